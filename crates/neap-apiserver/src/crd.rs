//! CustomResourceDefinitions: kinds that users define while the server runs.
//!
//! A definition that is accepted is served before its create returns. A definition that is deleted takes its objects with
//! it, and goes itself once the last of them is gone.

use crate::kind::{Kind, Origin};
use crate::metadata::{self, NameRule};
use crate::registry::{Kinds, Registry};
use crate::request::Resource;
use crate::schema::Schema;
use crate::server::{Exchange, Inner};
use crate::status::{ApiError, Result, cause, invalid, not_supported, required};
use crate::storage;
use crate::verbs::delete;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::response::StatusCause;
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError};

pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
/// On definitions in groups that belong to Kubernetes.
const APPROVED: &str = "api-approved.kubernetes.io";
/// Kubernetes' finalizer that keeps a definition until its objects are gone.
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Serves definitions, and the kinds of those that are stored already.
pub(crate) fn register(server: &Arc<Inner>) {
    if server.registry.kinds().get(GROUP, PLURAL).is_none() {
        server.registry.insert(own_kind());
    }
    let page = server.store.range(storage::root(GROUP, PLURAL).as_bytes(), None, usize::MAX, None);
    for entry in page.map(|p| p.entries).unwrap_or_default() {
        match serde_json::from_slice::<Value>(&entry.value) {
            Ok(object) => serve(&server.registry, &object),
            Err(error) => tracing::error!(key = %entry.key.escape_ascii(), %error, "a stored definition is damaged"),
        }
        if storage::is_deleting(&entry.value) {
            // Its deletion was interrupted by the end of the process.
            let name = entry.key.strip_prefix(storage::root(GROUP, PLURAL).as_bytes()).unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            empty(server, &name);
            finish(server, &name);
        }
    }
}

/// The kind of definitions itself. Its schema refers to itself, so below the names everything is accepted and checked by
/// [`validate`].
fn own_kind() -> Kind {
    let crd: CustomResourceDefinition = serde_json::from_value(json!({
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {"plural": PLURAL, "singular": "customresourcedefinition", "kind": "CustomResourceDefinition",
                "shortNames": ["crd", "crds"], "categories": ["api-extensions"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}},
                "additionalPrinterColumns": [
                    {"name": "Created At", "type": "string", "jsonPath": ".metadata.creationTimestamp"}],
            }],
        },
    }))
    .expect("the literal is a definition");
    let mut kind = Kind::from_crd(&crd, Origin::Compiled).expect("the literal is a definition");
    // What `prepare` computes at birth.
    kind.keep_created_status = true;
    kind
}

/// Fills in what Kubernetes defaults, and answers the definition's conditions at once.
pub(crate) fn prepare(server: &Inner, object: &mut Value, old: Option<&Value>, now: &str) {
    let spec = &mut object["spec"];
    let kind = spec.pointer("/names/kind").and_then(Value::as_str).unwrap_or("").to_owned();
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        names.entry("singular").or_insert_with(|| json!(kind.to_lowercase()));
        names.entry("listKind").or_insert_with(|| json!(format!("{kind}List")));
    }
    if spec.get("conversion").is_none() && spec.is_object() {
        spec["conversion"] = json!({"strategy": "None"});
    }
    let spec = spec.clone();
    let names = spec.get("names").cloned().unwrap_or_else(|| json!({}));
    let clash = clash(&server.registry.kinds(), object);
    let before = old.and_then(|o| o.pointer("/status/conditions")).cloned().unwrap_or_else(|| json!([]));
    let accepted = clash.is_none();
    let terminating = metadata::is_deleting(object);
    let told = clash.unwrap_or_else(|| "no conflicts found".to_owned());
    let reason = if accepted { "NoConflicts" } else { "MultipleNamesConflict" };
    let mut conditions = vec![
        condition(&before, "NamesAccepted", accepted, reason, &told, now),
        if accepted {
            condition(&before, "Established", true, "InitialNamesAccepted", "the initial names have been accepted", now)
        } else {
            condition(&before, "Established", false, "NotAccepted", "not all names are accepted", now)
        },
    ];
    if terminating {
        conditions.push(condition(
            &before,
            "Terminating",
            true,
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
            now,
        ));
    }
    let mut stored: Vec<Value> =
        old.and_then(|o| o.pointer("/status/storedVersions")).and_then(Value::as_array).cloned().unwrap_or_default();
    let storage = spec.get("versions").and_then(Value::as_array).into_iter().flatten().find(|v| v["storage"] == true);
    if let Some(name) = storage.map(|v| v["name"].clone()).filter(|n| !stored.contains(n)) {
        stored.push(name);
    }
    object["status"] = json!({"conditions": conditions, "acceptedNames": if accepted { names } else { json!({"plural": "", "kind": ""}) },
        "storedVersions": stored});
    if old.is_none() {
        let meta = metadata::of_mut(object);
        let list = meta.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut().filter(|l| !l.contains(&json!(CLEANUP))) {
            list.push(json!(CLEANUP));
        }
    }
}

fn condition(before: &Value, kind: &str, on: bool, reason: &str, message: &str, now: &str) -> Value {
    let status = if on { "True" } else { "False" };
    let same = before.as_array().into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status);
    let since = same.map_or_else(|| json!(now), |c| c["lastTransitionTime"].clone());
    json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
}

/// Another kind of the group that has one of the names already.
fn clash(kinds: &Kinds, object: &Value) -> Option<String> {
    let name = metadata::text(object, "name");
    let group = object.pointer("/spec/group").and_then(Value::as_str)?;
    let text = |key: &str| object.pointer(&format!("/spec/names/{key}")).and_then(Value::as_str).unwrap_or("");
    for other in kinds.of_group(group) {
        if format!("{}.{}", other.plural, other.group) == name {
            continue;
        }
        if other.kind == text("kind") {
            return Some(format!("{:?} is already in use", other.kind));
        }
        if other.singular == text("singular")
            || other.short_names.iter().any(|s| {
                object
                    .pointer("/spec/names/shortNames")
                    .and_then(Value::as_array)
                    .is_some_and(|l| l.contains(&json!(s)))
            })
        {
            return Some(format!("{:?} is already in use", text("singular")));
        }
    }
    None
}

/// What must hold for a definition, beyond what its typed form says.
pub(crate) fn validate(object: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let text = |v: &Value, path: &str| v.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
    let (group, plural) = (text(object, "/spec/group"), text(object, "/spec/names/plural"));
    let name = metadata::text(object, "name");
    // On an update both are immutable, so it holds as it did.
    if old.is_none() && name != format!("{plural}.{group}") {
        causes.push(invalid("metadata.name", &json!(name), "must be spec.names.plural+\".\"+spec.group"));
    }
    if group.is_empty() {
        causes.push(required("spec.group", ""));
    } else if !group.contains('.') {
        causes.push(invalid("spec.group", &json!(group), "should be a domain with at least one dot"));
    }
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|d| group == *d || group.ends_with(&format!(".{d}")));
    if protected && metadata::of(object, "annotations").and_then(|notes| notes.get(APPROVED)).is_none() {
        let why = format!(
            "protected groups must have approval annotation {APPROVED:?}, see \
             https://github.com/kubernetes/enhancements/pull/1111"
        );
        causes.push(required(&format!("metadata.annotations[{APPROVED}]"), &why));
    }
    match text(object, "/spec/scope").as_str() {
        "" => causes.push(required("spec.scope", "")),
        "Namespaced" | "Cluster" => {}
        other => causes.push(not_supported("spec.scope", &json!(other), &["Cluster", "Namespaced"])),
    }
    let versions = object.pointer("/spec/versions").and_then(Value::as_array).cloned().unwrap_or_default();
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        causes.push(invalid("spec.versions", object.pointer("/spec/versions").unwrap_or(&Value::Null), why));
    }
    for (i, version) in versions.iter().enumerate() {
        if let Some(why) = metadata::name_fault(&text(version, "/name"), NameRule::Label1035) {
            causes.push(invalid(&format!("spec.versions[{i}].name"), &version["name"], why));
        }
        for (key, below) in [
            ("specReplicasPath", &[".spec."][..]),
            ("statusReplicasPath", &[".status."]),
            ("labelSelectorPath", &[".spec.", ".status."]),
        ] {
            let path = text(version, &format!("/subresources/scale/{key}"));
            if !path.is_empty() && !below.iter().any(|part| path.starts_with(part)) {
                let place = if versions.len() == 1 { "spec".to_owned() } else { format!("spec.versions[{i}]") };
                let roots: Vec<&str> = below.iter().map(|part| part.trim_end_matches('.')).collect();
                let why = format!("should be a json path under {}", roots.join(" or "));
                causes.push(invalid(&format!("{place}.subresources.scale.{key}"), &json!(path), &why));
            }
        }
        match version.pointer("/schema/openAPIV3Schema") {
            None => causes.push(required(&format!("spec.versions[{i}].schema.openAPIV3Schema"), "")),
            Some(schema) => {
                // One schema for all is held in a place of its own, as far as messages go.
                let place = match versions.len() {
                    1 => "spec.validation.openAPIV3Schema".to_owned(),
                    _ => format!("spec.versions[{i}].schema.openAPIV3Schema"),
                };
                let faults = Schema::compile(schema).err().map(|e| e.errors).unwrap_or_default();
                causes.extend(faults.iter().map(|fault| {
                    let mut cause = fault.cause();
                    cause.field = format!("{place}.{}", fault.path);
                    cause
                }));
            }
        }
    }
    for key in ["plural", "singular", "kind", "listKind"] {
        let (path, value) = (format!("spec.names.{key}"), text(object, &format!("/spec/names/{key}")));
        // Kinds are names of a domain too, but for their capitals.
        let fault = metadata::name_fault(&value.to_lowercase(), NameRule::Label1035);
        match fault.filter(|_| !value.is_empty()) {
            _ if value.is_empty() && matches!(key, "plural" | "kind") => causes.push(required(&path, "")),
            Some(why) => causes.push(invalid(&path, &json!(value), why)),
            None if key == "plural" && value != value.to_lowercase() => {
                let why = metadata::name_fault(&value, NameRule::Label1035).unwrap_or_default();
                causes.push(invalid(&path, &json!(value), why));
            }
            None => {}
        }
    }
    if text(object, "/spec/conversion/strategy") == "Webhook" {
        causes.push(not_supported("spec.conversion.strategy", &json!("Webhook"), &["None"]));
    }
    if let Some(old) = old {
        for (field, path) in [
            ("spec.group", "/spec/group"),
            ("spec.scope", "/spec/scope"),
            ("spec.names.kind", "/spec/names/kind"),
            ("spec.names.plural", "/spec/names/plural"),
        ] {
            if old.pointer(path) != object.pointer(path) {
                causes.push(invalid(field, object.pointer(path).unwrap_or(&Value::Null), "field is immutable"));
            }
        }
    }
    if causes.is_empty() {
        let built = typed(object)
            .and_then(|crd| Kind::from_crd(&crd, Origin::Stored(name.to_owned())).map_err(|e| e.to_string()));
        if let Err(why) = built {
            causes.push(cause("FieldValueInvalid", "spec", format!("Invalid value: {why}")));
        }
    }
    causes
}

fn typed(object: &Value) -> std::result::Result<CustomResourceDefinition, String> {
    serde_json::from_value(object.clone()).map_err(|e| e.to_string())
}

fn serve(registry: &Registry, object: &Value) {
    let name = metadata::text(object, "name");
    let established = object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    if !established {
        return;
    }
    // The program's own kinds stay as they are compiled; a stored definition of one only says that it is served.
    let group = object.pointer("/spec/group").and_then(Value::as_str).unwrap_or("");
    let plural = object.pointer("/spec/names/plural").and_then(Value::as_str).unwrap_or("");
    if registry.kinds().get(group, plural).is_some_and(|k| k.origin == Origin::Compiled) {
        return;
    }
    let built =
        typed(object).and_then(|crd| Kind::from_crd(&crd, Origin::Stored(name.to_owned())).map_err(|e| e.to_string()));
    match built {
        Ok(kind) => registry.insert(kind),
        Err(why) => tracing::error!(name, why, "a stored definition cannot be served"),
    }
}

fn served<'a>(kinds: &'a Kinds, definition: &str) -> Option<&'a Arc<Kind>> {
    let (plural, group) = definition.split_once('.')?;
    kinds.get(group, plural).filter(|k| k.origin == Origin::Stored(definition.to_owned()))
}

/// A definition was written (`Some`) or is gone.
pub(crate) fn changed(server: &Arc<Inner>, object: Option<&Value>, name: &str) {
    {
        // Two writers of one definition come here in any order: what is stored decides, not what each of them wrote.
        let _place = server.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        match load(server, name) {
            Some((stored, _)) => serve(&server.registry, &stored),
            None => {
                if let Some(kind) = served(&server.registry.kinds(), name) {
                    server.registry.remove(&kind.group, &kind.plural);
                }
            }
        }
    }
    let Some(object) = object else { return };
    if metadata::is_deleting(object) {
        empty(server, name);
        finish(server, name);
    }
}

/// An object of a user's kind is gone: perhaps the last one that its dying definition waited for.
pub(crate) fn instance_gone(server: &Arc<Inner>, definition: &str) {
    finish(server, definition);
}

/// New objects of a kind that is about to go are refused.
pub(crate) fn check_accepting(x: &Exchange) -> Result<()> {
    let Origin::Stored(definition) = &x.kind().origin else { return Ok(()) };
    let key = format!("{}{definition}", storage::root(GROUP, PLURAL));
    match x.server.store.get(key.as_bytes()) {
        Some(entry) if storage::is_deleting(&entry.value) => {
            Err(ApiError::NotSupported { resource: x.kind().id(), verb: "create" })
        }
        _ => Ok(()),
    }
}

fn load(server: &Inner, name: &str) -> Option<(Value, neap_store::Entry)> {
    let entry = server.store.get(format!("{}{name}", storage::root(GROUP, PLURAL)).as_bytes())?;
    Some((serde_json::from_slice(&entry.value).ok()?, entry))
}

/// Deletes every object of a definition; those with finalizers stay until these are gone.
fn empty(server: &Arc<Inner>, definition: &str) {
    let kinds = server.registry.kinds();
    let Some(kind) = served(&kinds, definition).cloned() else { return };
    let Ok(page) = server.store.range(storage::prefix(&kind, None).as_bytes(), None, usize::MAX, None) else { return };
    for entry in page.entries {
        let (namespace, name) = storage::parse_key(&kind, &entry.key);
        let at = Resource {
            group: kind.group.clone(),
            version: kind.storage_version().name.clone(),
            plural: kind.plural.clone(),
            namespace: kind.namespaced.then(|| namespace.to_owned()),
            name: Some(name.to_owned()),
            ..Resource::default()
        };
        let mut x = Exchange::internal(server, &kinds, &kind, at);
        if let Err(error) = delete::one(&mut x, name, &delete::Options::default()) {
            tracing::warn!(definition, name, %error, "an object of a deleted definition stays");
        }
    }
}

/// Lets a dying definition go when no object of it is left.
fn finish(server: &Arc<Inner>, definition: &str) {
    let key = format!("{}{definition}", storage::root(GROUP, PLURAL));
    if !server.store.get(key.as_bytes()).is_some_and(|entry| storage::is_deleting(&entry.value)) {
        return;
    }
    let Some((mut object, entry)) = load(server, definition) else { return };
    let kinds = server.registry.kinds();
    if let Some(kind) = served(&kinds, definition) {
        let left = server.store.range_uncounted(storage::prefix(kind, None).as_bytes(), None, 1, None);
        if left.is_ok_and(|p| !p.entries.is_empty()) {
            return;
        }
    }
    let rest: Vec<String> =
        metadata::finalizers(&object).into_iter().filter(|f| *f != CLEANUP).map(str::to_owned).collect();
    let expect = neap_store::Expect::Revision(entry.modified);
    let txn = if rest.is_empty() {
        neap_store::Txn::new().delete(entry.key, expect)
    } else {
        metadata::of_mut(&mut object).insert("finalizers".into(), json!(rest));
        neap_store::Txn::new().put(entry.key, expect, storage::encode(&object))
    };
    match server.store.commit(txn) {
        // Whoever changed it in between finishes it.
        Err(neap_store::Error::Conflict { .. }) => {}
        Err(error) => tracing::warn!(definition, %error, "a deleted definition could not be removed"),
        Ok(_) if rest.is_empty() => changed(server, None, definition),
        Ok(_) => {}
    }
}

impl Exchange {
    /// A request that the server makes to itself.
    pub(crate) fn internal(server: &Arc<Inner>, kinds: &Arc<Kinds>, kind: &Arc<Kind>, at: Resource) -> Self {
        let index = kind.versions.iter().position(|v| v.storage).unwrap_or(0);
        let served = crate::registry::Served::new(kind.clone(), index);
        Self {
            working: Inner::working(kinds, &served),
            server: server.clone(),
            kinds: kinds.clone(),
            served,
            at,
            query: crate::request::Query::default(),
            wanted: crate::codec::Wanted::default(),
            user: crate::auth::admin("system:apiserver"),
            user_agent: "apiserver".to_owned(),
            ack: crate::server::Ack::Visible,
            managed: storage::Managed::Shown,
            now: server.now(),
            warnings: Vec::new(),
            faults: Vec::new(),
        }
    }
}
