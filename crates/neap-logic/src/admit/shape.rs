//! Before the rules: an object is what its kind's type can hold, or it is refused. Controllers read typed objects, and one
//! that cannot be read would be in the way of all others of its kind.
//!
//! On the way, what is written in two ways is written in one: an explicit nothing is left out, and an amount given as a
//! number becomes the text that it stands for.

use std::fmt::Write as _;

use neap_api::{autoscaling, networking, serving};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// How many tries may be spent on finding the place that cannot be read.
const TRIES: usize = 200;

type Decode = fn(&Value) -> Result<(), String>;

/// Brings an object into shape; the error is a sentence for whoever wrote it.
pub(super) fn check(group: &str, kind: &str, value: &mut Value) -> Result<(), String> {
    let Some(decode) = decoder(group, kind) else { return Ok(()) };
    // What was observed is written by another door, and is not this writer's to mend.
    let status = value.as_object_mut().and_then(|fields| fields.remove("status"));
    let result = bring(value, decode);
    if let (Some(status), Some(fields)) = (status, value.as_object_mut()) {
        fields.insert("status".into(), status);
    }
    result
}

fn bring(value: &mut Value, decode: Decode) -> Result<(), String> {
    drop_nulls(value);
    write_amounts(value);
    if let Some(fields) = value.as_object_mut() {
        fields.entry("spec").or_insert_with(|| Value::Object(Map::new()));
    }
    let Err(error) = decode(value) else { return Ok(()) };
    // Bad metadata is told by the server, which knows it better.
    let place = culprit(value, decode);
    let mut message = format!("mutation failed: cannot decode incoming new object: {error}");
    if !place.is_empty() {
        let _ = write!(message, ": {place}");
    }
    Err(message)
}

fn decoder(group: &str, kind: &str) -> Option<Decode> {
    fn of<T: DeserializeOwned + Serialize>(value: &Value) -> Result<(), String> {
        let read = T::deserialize(value).map_err(|error| error.to_string())?;
        let written = serde_json::to_value(read).map_err(|error| error.to_string())?;
        if is_like(value, &written) { Ok(()) } else { Err("invalid type: sequence, expected an object".into()) }
    }
    match (group, kind) {
        (serving::GROUP, "Service") => Some(of::<serving::Service>),
        (serving::GROUP, "Configuration") => Some(of::<serving::Configuration>),
        (serving::GROUP, "Revision") => Some(of::<serving::Revision>),
        (serving::GROUP, "Route") => Some(of::<serving::Route>),
        (serving::GROUP, "DomainMapping") => Some(of::<serving::DomainMapping>),
        (autoscaling::GROUP, "PodAutoscaler") => Some(of::<autoscaling::PodAutoscaler>),
        (autoscaling::GROUP, "Metric") => Some(of::<autoscaling::Metric>),
        (networking::GROUP, "Ingress") => Some(of::<networking::Ingress>),
        (networking::GROUP, "ServerlessService") => Some(of::<networking::ServerlessService>),
        (networking::GROUP, "Certificate") => Some(of::<networking::Certificate>),
        _ => None,
    }
}

/// Whether no list stands where an object should: the reader takes it for the object's fields in their order.
fn is_like(value: &Value, written: &Value) -> bool {
    match (value, written) {
        (Value::Array(_), Value::Object(_)) => false,
        (Value::Object(value), Value::Object(written)) => {
            value.iter().all(|(key, held)| written.get(key).is_none_or(|other| is_like(held, other)))
        }
        (Value::Array(value), Value::Array(written)) => {
            value.iter().zip(written).all(|(held, other)| is_like(held, other))
        }
        _ => true,
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, held| !held.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// `cpu: 1` means `cpu: "1"`.
fn write_amounts(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, held) in map {
                match (key.as_str(), held) {
                    ("limits" | "requests", Value::Object(amounts)) => amounts.values_mut().for_each(write_amount),
                    ("sizeLimit" | "divisor", held @ Value::Number(_)) => write_amount(held),
                    (_, held) => write_amounts(held),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(write_amounts),
        _ => {}
    }
}

fn write_amount(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = number.to_string().into();
    }
}

/// The smallest part without which the rest can be read; empty when there are several.
fn culprit(value: &Value, decode: Decode) -> String {
    let (mut path, mut shown, mut tries) = (String::new(), String::new(), 0);
    while let Some(children) = value.pointer(&path).map(children) {
        let guilty = children.into_iter().find(|(step, _)| {
            // What must be there may still be empty.
            let stand_ins = [None, Some(Value::Object(Map::new())), Some(Value::Array(Vec::new()))];
            tries += 1;
            tries <= TRIES && stand_ins.into_iter().any(|other| decode(&with(value, &path, step, other)).is_ok())
        });
        let Some((step, name)) = guilty else { break };
        let _ = write!(path, "/{step}");
        shown.push_str(if shown.is_empty() { name.trim_start_matches('.') } else { &name });
    }
    shown
}

/// The steps below a value: as JSON pointers have them, and as people write them.
fn children(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(map) => {
            map.keys().map(|key| (key.replace('~', "~0").replace('/', "~1"), format!(".{key}"))).collect()
        }
        Value::Array(list) => (0..list.len()).map(|i| (i.to_string(), format!("[{i}]"))).collect(),
        _ => Vec::new(),
    }
}

/// The value with something else, or nothing, at a step below `parent`.
fn with(value: &Value, parent: &str, step: &str, other: Option<Value>) -> Value {
    let mut changed = value.clone();
    match (changed.pointer_mut(&format!("{parent}/{step}")), other) {
        (Some(place), Some(other)) => *place = other,
        (_, _) => match changed.pointer_mut(parent) {
            Some(Value::Object(map)) => drop(map.remove(&step.replace("~1", "/").replace("~0", "~"))),
            Some(Value::Array(list)) => drop(step.parse::<usize>().map(|i| list.remove(i))),
            _ => {}
        },
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(container: Value) -> Value {
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"},
            "spec": {"template": {"spec": {"containers": [container]}}}})
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let refused = |mut value: Value, want: &str| {
            let error = check(serving::GROUP, "Service", &mut value).expect_err(want);
            assert_eq!(error.strip_prefix("mutation failed: cannot decode incoming new object: "), Some(want));
        };
        let wrong = |what: &str| format!("invalid type: {what}");
        refused(
            service(json!({"image": "i", "env": [{"name": "a", "value": "b"}, {"name": "c", "value": 5}]})),
            &wrong("integer `5`, expected a string: spec.template.spec.containers[0].env[1].value"),
        );
        refused(service(json!("i")), &wrong("string \"i\", expected Container: spec.template.spec.containers[0]"));
        refused(
            json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {}, "spec": {"traffic": 1}}),
            &wrong("integer `1`, expected a sequence: spec.traffic"),
        );
        refused(
            json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {}, "spec": {"template": []}}),
            &wrong("sequence, expected an object: spec.template"),
        );
    }

    #[test]
    fn nothing_is_left_out_and_amounts_are_texts() {
        let mut value =
            service(json!({"image": "i", "args": null, "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            "env": [{"name": "limits", "value": "3"}]}));
        value["spec"]["traffic"] = Value::Null;
        value["status"] = json!({"traffic": null});
        check(serving::GROUP, "Service", &mut value).expect("it can be read");
        assert_eq!(value["status"], json!({"traffic": null}), "it is not looked at");
        assert_eq!(
            value["spec"],
            json!({"template": {"spec": {"containers": [{"image": "i", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "env": [{"name": "limits", "value": "3"}]}]}}})
        );
    }
}
