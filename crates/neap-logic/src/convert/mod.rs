//! The API of 2018 to 2020 (`serving.knative.dev/v1alpha1` and `v1beta1`) and today's, turned into each other (facts I1
//! to I7).
//!
//! Objects are stored in v1. What an old object says and v1 has no place for stays with it in an annotation
//! ([`memo`]), so that whoever wrote in old words reads old words. Where the annotation and the v1 object disagree,
//! because somebody edited the object in v1, the object is right and the annotation says nothing. Both old versions
//! are read alike: v1beta1 is v1alpha1 without its oldest words, and a manifest that mixes them is still understood.
//!
//! Must never lose a field in silence: what is known is converted, what cannot be is refused by name, and what is not
//! known stays where it is, for the schema to complain about.

use neap_api::keys::neap;
use neap_api::serving::{GROUP, Service};
use serde_json::{Map, Value, json};

use crate::admit::field_error::Errors;

mod memo;
mod service;
mod status;
mod template;
#[cfg(test)]
mod tests;
mod traffic;

use memo::Memo;

/// The version objects are stored in and rules speak of.
pub const STORED: &str = "v1";
/// The versions that are only converted.
pub const OLD: [&str; 2] = ["v1alpha1", "v1beta1"];

type Fields = Map<String, Value>;

/// An object of one apiVersion as one of another, both of the serving group.
///
/// # Errors
/// What cannot be said in v1, field by field, in the words of admission. Objects of v1 can always be shown in an old
/// version.
pub fn convert(mut object: Value, from: &str, to: &str) -> Result<Value, Errors> {
    let (was_old, is_old) = (is_old(from)?, is_old(to)?);
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    match (was_old, is_old) {
        (true, false) => to_stored(&kind, &mut object)?,
        (false, true) => to_old(&kind, &mut object),
        // The two old versions have the same words.
        _ => {}
    }
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), to.into());
    }
    Ok(object)
}

/// Answers a cluster's API server that asks for objects in another version (`ConversionReview`): all of them, or why not.
pub fn review(question: &Value) -> Value {
    let request = &question["request"];
    let to = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = request["objects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let one = |object: &Value| {
        let from = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        convert(object.clone(), &from, to)
    };
    let converted: Result<Vec<Value>, Errors> = objects.iter().map(one).collect();
    let (converted, result) = match converted {
        Ok(converted) => (converted, json!({"status": "Success"})),
        Err(errors) => (Vec::new(), json!({"status": "Failure", "message": errors.refusals()})),
    };
    json!({
        "apiVersion": question["apiVersion"], "kind": question["kind"],
        "response": {"uid": request["uid"], "convertedObjects": converted, "result": result},
    })
}

/// Whether a Service owns nothing because it was told so, the old `spec.manual`: the annotation says it, and the spec
/// says nothing else. A spec that does say what to run is an ordinary Service's, whatever the annotation.
pub fn is_manual(service: &Value) -> bool {
    let spec = &service["spec"];
    let empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    service["metadata"]["annotations"][neap::SERVICE_MODE] == neap::SERVICE_MODE_MANUAL
        && empty(&spec["template"]["spec"]["containers"])
        && empty(&spec["traffic"])
}

/// As [`is_manual`], of a typed Service.
pub fn is_manual_service(service: &Service) -> bool {
    let mode = service.metadata.annotations.as_ref().and_then(|a| a.get(neap::SERVICE_MODE));
    mode.is_some_and(|mode| mode == neap::SERVICE_MODE_MANUAL)
        && service.spec.template.spec.pod.containers.is_empty()
        && service.spec.traffic.is_empty()
}

fn is_old(api_version: &str) -> Result<bool, Errors> {
    let version = api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/')).unwrap_or(api_version);
    match version {
        STORED => Ok(false),
        version if OLD.contains(&version) => Ok(true),
        _ => Err(Errors::invalid(api_version, "apiVersion")),
    }
}

fn to_stored(kind: &str, object: &mut Value) -> Result<(), Errors> {
    let mut memo = Memo::default();
    let mut errors = Errors::none();
    let mut mode = None;
    let mut routing = None;
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let found = match kind {
            "Service" => service::to_stored(spec, &mut memo, &mut mode),
            "Configuration" => template::configuration_to_stored(spec, &mut memo.configuration),
            "Revision" => template::revision_to_stored(spec, &mut memo.revision),
            "Route" => {
                memo.generation = take_generation(spec);
                traffic::to_stored(spec, &mut memo.named)
            }
            _ => Errors::none(),
        };
        errors.add(found.via_field("spec"));
    }
    if kind == "Revision" {
        routing = memo.revision.serving_state;
    }
    if let Some(state) = object.get_mut("status").and_then(Value::as_object_mut) {
        status::to_stored(kind, state);
    }
    if !errors.is_ok() {
        return Err(errors);
    }
    if let Some(state) = routing {
        memo.revision.labelled = template::set_routing_state(object, state);
    }
    if let Some(mode) = mode {
        annotate(object, neap::SERVICE_MODE, mode.to_owned());
    }
    if let Some(text) = memo.text() {
        annotate(object, neap::WRITTEN_AS, text);
    }
    Ok(())
}

fn to_old(kind: &str, object: &mut Value) {
    let memo = Memo::of(object);
    if memo.is_some() {
        remove_annotation(object, neap::WRITTEN_AS);
    }
    let mut memo = memo.unwrap_or_default();
    if kind == "Service" && is_manual(object) {
        remove_annotation(object, neap::SERVICE_MODE);
        object["spec"] = json!({"manual": {}});
    }
    if kind == "Revision" {
        template::hide_routing_state(object, &mut memo.revision);
    }
    let generation = object["metadata"]["generation"].as_i64();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        match kind {
            "Service" => service::to_old(spec, &memo, generation),
            "Configuration" => template::configuration_to_old(spec, &memo.configuration, generation),
            "Revision" => template::revision_to_old(spec, &memo.revision, generation),
            "Route" => {
                show_generation(spec, memo.generation, generation);
                traffic::to_old(spec, &memo.named);
            }
            _ => {}
        }
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if let Some(state) = object.get_mut("status").and_then(Value::as_object_mut) {
        status::to_old(kind, state, &name);
    }
}

/// `spec.generation`: the server's count of changes before Kubernetes kept one itself.
fn take_generation(spec: &mut Fields) -> Option<i64> {
    let generation = spec.get("generation").and_then(Value::as_i64)?;
    spec.remove("generation");
    Some(generation)
}

/// The count that Kubernetes keeps is the right one; what was written stands in until there is one.
fn show_generation(spec: &mut Fields, written: Option<i64>, counted: Option<i64>) {
    if let Some(written) = written {
        spec.insert("generation".into(), counted.unwrap_or(written).into());
    }
}

/// Takes out a field unless it is null, which is as if it were not there.
fn take(fields: &mut Fields, key: &str) -> Option<Value> {
    fields.remove(key).filter(|value| !value.is_null())
}

/// The keys among `keys` that are set.
fn present<'a>(fields: &Fields, keys: &[&'a str]) -> Vec<&'a str> {
    keys.iter().copied().filter(|key| fields.get(*key).is_some_and(|value| !value.is_null())).collect()
}

/// Labels or annotations to write into. What is no object is no metadata, and refused elsewhere.
fn words<'a>(object: &'a mut Value, map: &str) -> Option<&'a mut Fields> {
    let meta = object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let words = meta.as_object_mut()?.entry(map).or_insert(Value::Null);
    if words.is_null() {
        *words = Value::Object(Map::new());
    }
    words.as_object_mut()
}

fn annotate(object: &mut Value, key: &str, value: String) {
    if let Some(annotations) = words(object, "annotations") {
        annotations.insert(key.to_owned(), value.into());
    }
}

/// A map that is left empty goes too.
fn remove_annotation(object: &mut Value, key: &str) {
    remove_from(object, "annotations", key);
}

fn remove_from(object: &mut Value, map: &str, key: &str) {
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(words) = meta.get_mut(map).and_then(Value::as_object_mut) else { return };
    if words.remove(key).is_some() && words.is_empty() {
        meta.remove(map);
    }
}
