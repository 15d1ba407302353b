//! Namespaces: they hold objects, so creating in them and removing them follows rules of its own. Pure.
//!
//! A namespace goes in two steps: a delete marks it (phase Terminating), and whoever empties it takes `kubernetes` out
//! of `spec.finalizers` through the `finalize` subresource.

use crate::kind::Role;
use crate::metadata;
use crate::status::{ApiError, ResourceId, cause, invalid};
use kube_core::response::StatusCause;
use serde_json::{Value, json};

const FINALIZER: &str = "kubernetes";
/// Every namespace carries its own name as a label, so that selectors can name it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(crate) fn missing(name: &str) -> ApiError {
    ApiError::NotFound { resource: ResourceId::new("", "namespaces"), name: name.to_owned() }
}

pub(crate) fn terminating(resource: ResourceId, namespace: &str, name: &str) -> ApiError {
    ApiError::Forbidden {
        resource,
        name: name.to_owned(),
        why: format!("unable to create new content in namespace {namespace} because it is being terminated"),
        causes: vec![cause(
            "NamespaceTerminating",
            "metadata.namespace",
            format!("namespace {namespace} is being terminated"),
        )],
    }
}

/// What belongs to whoever writes: the label, and on an update the finalizers, which only a request for them
/// (`finalizes`) changes.
pub(crate) fn default(object: &mut Value, old: Option<&Value>, finalizes: bool) {
    let name = metadata::text(object, "name").to_owned();
    let labels = metadata::of_mut(object).entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(NAME_LABEL.to_owned(), json!(name));
    }
    if let Some(spec) = old.filter(|_| !finalizes).and_then(|old| old.get("spec")) {
        object["spec"] = spec.clone();
    }
}

/// What the server decides at birth.
pub(crate) fn prepare(object: &mut Value) {
    object["spec"] = json!({"finalizers": [FINALIZER]});
    object["status"] = json!({"phase": "Active"});
}

pub(crate) fn validate(object: &Value) -> Vec<StatusCause> {
    let finalizers = object.pointer("/spec/finalizers").and_then(Value::as_array);
    let fault = |(i, finalizer): (usize, &Value)| {
        let why = metadata::finalizer_fault(finalizer.as_str().unwrap_or(""))?;
        Some(invalid(&format!("spec.finalizers[{i}]"), finalizer, why))
    };
    finalizers.into_iter().flatten().enumerate().filter_map(fault).collect()
}

pub(crate) fn mark(object: &mut Value) {
    object["status"]["phase"] = json!("Terminating");
}

/// Whether the kind's own finalizers (other than `metadata.finalizers`) are done.
pub(crate) fn is_finalized(role: Role, object: &Value) -> bool {
    role != Role::Namespaces || object.pointer("/spec/finalizers").and_then(Value::as_array).is_none_or(Vec::is_empty)
}
