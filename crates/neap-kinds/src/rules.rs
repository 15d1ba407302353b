//! What Kubernetes' own API server refuses of its built-in kinds beyond their schema: values that stay as they are, keys
//! that mean something, numbers below zero. Only rules that somebody can run into here; the words are Kubernetes'.

use crate::defaults;
use kube_core::response::StatusCause;
use neap_apiserver::status::{cause, forbidden, invalid, required};
use serde_json::Value;
use std::collections::HashSet;

type Rule = fn(&Value, Option<&Value>) -> Vec<StatusCause>;

const IMMUTABLE: &str = "field is immutable";
/// Bytes of data that a ConfigMap or Secret may hold (`MaxSecretSize`): each is kept in memory.
const DATA: usize = 1024 * 1024;
/// Faults that are told of one object.
const FAULTS: usize = 250;

const SEALED: &str = "field is immutable when `immutable` is set";

/// Group, plural, what must hold of the new object, given the old one.
pub(crate) fn all() -> [(&'static str, &'static str, Rule); 5] {
    [
        ("", "pods", pod),
        ("", "configmaps", config_map),
        ("", "secrets", secret),
        ("", "services", service),
        ("apps", "deployments", deployment),
    ]
}

fn config_map(map: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = keys(map, &["data", "binaryData"]);
    let data = |key: &str| map.get("data").and_then(|data| data.get(key)).is_some();
    let doubled = map.get("binaryData").and_then(Value::as_object).into_iter().flatten().find(|(key, _)| data(key));
    if let Some((key, _)) = doubled {
        let path = format!("data[{key}]");
        causes.push(invalid(&path, &Value::from(key.as_str()), "duplicate of key present in binaryData"));
    }
    if size(map, "data", false) + size(map, "binaryData", true) > DATA {
        causes.push(too_long("[]"));
    }
    causes.extend(sealed(map, old, &["data", "binaryData"]));
    causes
}

fn secret(secret: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = keys(secret, &["data"]);
    let kind = |of: &Value| of.get("type").cloned().unwrap_or_default();
    if old.is_some_and(|old| kind(old) != kind(secret)) {
        causes.push(invalid("type", &kind(secret), IMMUTABLE));
    }
    let needed: &[&str] = match kind(secret).as_str() {
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
        Some("kubernetes.io/dockercfg") => &[".dockercfg"],
        Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|key| secret.get("data").and_then(|data| data.get(**key)).is_none()) {
        causes.push(required(&format!("data[{key}]"), ""));
    }
    if size(secret, "data", true) > DATA {
        causes.push(too_long("data"));
    }
    causes.extend(sealed(secret, old, &["data"]));
    causes
}

/// Bytes of the values in a field, as they are or as base64.
fn size(object: &Value, field: &str, encoded: bool) -> usize {
    let values = object.get(field).and_then(Value::as_object).into_iter().flat_map(|map| map.values());
    let bytes = |text: &str| if encoded { text.trim_end_matches('=').len() * 3 / 4 } else { text.len() };
    values.filter_map(Value::as_str).map(bytes).sum()
}

fn too_long(field: &str) -> StatusCause {
    cause("FieldValueTooLong", field, format!("Too long: may not be more than {DATA} bytes"))
}

/// Keys become file names and variables.
fn keys(object: &Value, fields: &[&str]) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    for field in fields {
        for key in object.get(*field).and_then(Value::as_object).into_iter().flat_map(|map| map.keys()) {
            if causes.len() >= FAULTS {
                return causes;
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let path = format!("{field}[{key}]");
            if key.len() > 253 {
                causes.push(invalid(&path, &Value::from(key.as_str()), "must be no more than 253 characters"));
            } else if key.is_empty() || !key.chars().all(plain) {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                           'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                causes.push(invalid(&path, &Value::from(key.as_str()), why));
            } else if key == "." || key.starts_with("..") {
                let why =
                    if key.len() > 2 { "must not start with '..'".to_owned() } else { format!("must not be '{key}'") };
                causes.push(invalid(&path, &Value::from(key.as_str()), &why));
            }
        }
    }
    causes
}

/// An object that says it is immutable stays as it is, and stays immutable.
fn sealed(new: &Value, old: Option<&Value>, fields: &[&str]) -> Vec<StatusCause> {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return Vec::new() };
    let mut changed: Vec<&str> = fields.iter().copied().filter(|field| old.get(*field) != new.get(*field)).collect();
    if new["immutable"] != true {
        changed.insert(0, "immutable");
    }
    changed.into_iter().map(|field| forbidden(field, SEALED)).collect()
}

fn service(service: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut names: HashSet<&str> = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        if causes.len() >= FAULTS {
            break;
        }
        let name = port.get("name").and_then(Value::as_str).unwrap_or("");
        let path = format!("spec.ports[{i}].name");
        if name.is_empty() && ports.len() > 1 {
            causes.push(required(&path, ""));
        } else if !names.insert(name) {
            causes.push(cause("FieldValueDuplicate", &path, format!("Duplicate value: {name:?}")));
        }
    }
    causes
}

/// What a pod does is settled when it is made: a container that runs does not change its command.
fn pod(pod: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let Some(old) = old else { return Vec::new() };
    let spec = |of: &Value| of.get("spec").cloned().unwrap_or_default();
    let mut before = old.clone();
    // An old pod may lack a default that is newer than it.
    defaults::pod(&mut before, Some(old));
    let (mut before, mut after) = (spec(&before), spec(pod));
    for list in ["containers", "initContainers"] {
        let images: Vec<Option<Value>> = items(&before, list).iter().map(|c| c.get("image").cloned()).collect();
        let now = after.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, image) in now.zip(images) {
            put(container, "image", image);
        }
    }
    for field in ["activeDeadlineSeconds", "ephemeralContainers"] {
        put(&mut after, field, before.get(field).cloned());
    }
    // Whoever finds a place for it says so, once.
    if before.get("nodeName").and_then(Value::as_str).is_none_or(str::is_empty) {
        put(&mut before, "nodeName", after.get("nodeName").cloned());
    }
    let tolerated: HashSet<&Value> = items(&after, "tolerations").iter().collect();
    if items(&before, "tolerations").iter().all(|one| tolerated.contains(one)) {
        put(&mut after, "tolerations", before.get("tolerations").cloned());
    }
    if before == after {
        return Vec::new();
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
               `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)";
    vec![forbidden("spec", why)]
}

fn items<'a>(spec: &'a Value, list: &str) -> &'a [Value] {
    spec.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn put(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(field.to_owned(), value),
        None => map.remove(field),
    };
}

fn deployment(deployment: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let replicas = deployment.pointer("/spec/replicas").unwrap_or(&Value::Null);
    if replicas.as_i64().is_some_and(|n| n < 0) {
        causes.push(invalid("spec.replicas", replicas, "must be greater than or equal to 0"));
    }
    let labels = deployment.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
    let wanted = deployment.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    if wanted.into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        let why = "`selector` does not match template `labels`";
        causes.push(invalid("spec.template.metadata.labels", labels, why));
    }
    let selector = deployment.pointer("/spec/selector").unwrap_or(&Value::Null);
    let empty = |key: &str| match selector.get(key) {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        _ => true,
    };
    if selector.is_object() && empty("matchLabels") && empty("matchExpressions") {
        causes.push(invalid("spec.selector", selector, "empty selector is invalid for deployment"));
    }
    if old.is_some_and(|old| old.pointer("/spec/selector").unwrap_or(&Value::Null) != selector) {
        causes.push(invalid("spec.selector", selector, IMMUTABLE));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_refused() {
        let check = |rule: Rule, old: Value, new: Value, want: &[&str]| {
            let old = if old.is_null() { None } else { Some(&old) };
            let fields: Vec<String> = rule(&new, old).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields, want, "{new}");
        };
        let none = Value::Null;
        check(config_map, none.clone(), json!({"data": {"a.b-c_D": ""}}), &[]);
        check(config_map, none.clone(), json!({"data": {"a b": "", "..": ""}}), &["data[..]", "data[a b]"]);
        check(config_map, none.clone(), json!({"data": {"a": ""}, "binaryData": {"a": ""}}), &["data[a]"]);
        let fixed = json!({"immutable": true, "data": {"a": "1"}});
        check(config_map, fixed.clone(), fixed.clone(), &[]);
        check(config_map, fixed.clone(), json!({"immutable": true, "data": {"a": "2"}}), &["data"]);
        check(config_map, fixed, json!({"data": {"a": "1"}}), &["immutable"]);
        check(secret, json!({"type": "Opaque"}), json!({"type": "other"}), &["type"]);
        check(secret, none.clone(), json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), &["data[tls.key]"]);
        check(service, none.clone(), json!({"spec": {"ports": [{"port": 1}]}}), &[]);
        check(service, none.clone(), json!({"spec": {"ports": [{"name": "a"}, {"port": 1}]}}), &["spec.ports[1].name"]);
        let made = |label: &str, selector: &str, replicas: i64| {
            json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"a": selector}},
                "template": {"metadata": {"labels": {"a": label}}}}})
        };
        check(deployment, none.clone(), made("b", "b", 1), &[]);
        check(deployment, none.clone(), json!({"spec": {"selector": {}}}), &["spec.selector"]);
        check(deployment, none, made("b", "c", -1), &["spec.replicas", "spec.template.metadata.labels"]);
        check(deployment, made("b", "b", 1), made("c", "c", 1), &["spec.selector"]);
        let half = "x".repeat(DATA / 2);
        check(config_map, Value::Null, json!({"data": {"a": half, "b": half}}), &[]);
        check(config_map, Value::Null, json!({"data": {"a": half, "b": half, "c": "x"}}), &["[]"]);
        check(secret, Value::Null, json!({"data": {"a": "eHh4".repeat(DATA / 3), "b": "eA=="}}), &[]);
        check(secret, Value::Null, json!({"data": {"a": "eHh4".repeat(DATA / 3), "b": "eHg="}}), &["data"]);
        let many: serde_json::Map<String, Value> = (0..1_000).map(|n| (format!("!{n}"), json!(""))).collect();
        assert_eq!(config_map(&json!({"data": many}), None).len(), FAULTS);
    }

    #[test]
    fn what_may_change_of_a_pod() {
        let made = |change: &dyn Fn(&mut Value)| {
            let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "x:1", "command": ["run"]}],
                "tolerations": [{"key": "k"}]}});
            defaults::pod(&mut pod, None);
            change(&mut pod["spec"]);
            pod
        };
        let before = made(&|_| {});
        let check = |change: &dyn Fn(&mut Value), want: bool| {
            let after = made(change);
            assert_eq!(pod(&after, Some(&before)).is_empty(), want, "{}", after["spec"]);
        };
        check(&|_| {}, true);
        check(&|spec| spec["containers"][0]["image"] = json!("x:2"), true);
        check(&|spec| spec["nodeName"] = json!("n"), true);
        check(&|spec| spec["activeDeadlineSeconds"] = json!(5), true);
        check(&|spec| spec["tolerations"] = json!([{"key": "k"}, {"key": "l"}]), true);
        check(&|spec| spec["tolerations"] = json!([]), false);
        check(&|spec| spec["containers"][0]["command"] = json!(["other"]), false);
        check(&|spec| spec["containers"][0]["env"] = json!([{"name": "A", "value": "b"}]), false);
        check(&|spec| spec["serviceAccountName"] = json!("other"), false);
        let (mut bound, mut moved) = (before.clone(), before.clone());
        bound["spec"]["nodeName"] = json!("n");
        moved["spec"]["nodeName"] = json!("m");
        assert!(!pod(&moved, Some(&bound)).is_empty(), "a pod stays on its node");
        let bare = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        let mut filled = bare.clone();
        defaults::pod(&mut filled, Some(&bare));
        assert_eq!(pod(&filled, Some(&bare)), [], "what an old pod lacks is no change");
    }
}
