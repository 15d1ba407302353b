//! What Kubernetes' own API server refuses of its built-in kinds beyond their schema: values that stay as they are, keys
//! that mean something, numbers below zero. Only rules that somebody can run into here; the words are Kubernetes'.

use kube_core::response::StatusCause;
use neap_apiserver::status::{cause, forbidden, invalid, required};
use serde_json::Value;

type Rule = fn(&Value, Option<&Value>) -> Vec<StatusCause>;

const IMMUTABLE: &str = "field is immutable";
const SEALED: &str = "field is immutable when `immutable` is set";

/// Group, plural, what must hold of the new object, given the old one.
pub(crate) fn all() -> [(&'static str, &'static str, Rule); 4] {
    [
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
    causes.extend(sealed(secret, old, &["data"]));
    causes
}

/// Keys become file names and variables.
fn keys(object: &Value, fields: &[&str]) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    for field in fields {
        for key in object.get(*field).and_then(Value::as_object).into_iter().flat_map(|map| map.keys()) {
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
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let name = port.get("name").and_then(Value::as_str).unwrap_or("");
        let path = format!("spec.ports[{i}].name");
        if name.is_empty() && ports.len() > 1 {
            causes.push(required(&path, ""));
        } else if names.contains(&name) {
            causes.push(cause("FieldValueDuplicate", &path, format!("Duplicate value: {name:?}")));
        }
        names.push(name);
    }
    causes
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
        check(deployment, none, made("b", "c", -1), &["spec.replicas", "spec.template.metadata.labels"]);
        check(deployment, made("b", "b", 1), made("c", "c", 1), &["spec.selector"]);
    }
}
