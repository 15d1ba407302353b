//! The patches against what Kubernetes documents and does.

mod apply;
mod json;
mod strategic;
mod track;

use serde_json::{Value, json};

use super::*;
use crate::schema::Schema;

/// A deployment-like kind: every list and map semantics that exists occurs in it.
pub(super) fn schema() -> Schema {
    let env = json!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
        },
    });
    let ports = json!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
        "x-kubernetes-patch-merge-key": "containerPort",
        "x-kubernetes-patch-strategy": "merge",
        "items": {
            "type": "object",
            "required": ["containerPort"],
            "properties": {
                "containerPort": {"type": "integer"},
                "name": {"type": "string"},
                "protocol": {"type": "string", "default": "TCP"},
            },
        },
    });
    let container = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "args": {"type": "array", "items": {"type": "string"}},
            "env": env,
            "image": {"type": "string"},
            "name": {"type": "string"},
            "ports": ports,
        },
    });
    Schema::compile_trusted(&json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "replicas": {"type": "integer"},
                    "selector": {
                        "type": "object",
                        "x-kubernetes-map-type": "atomic",
                        "additionalProperties": {"type": "string"},
                    },
                    "strategy": {
                        "type": "object",
                        "x-kubernetes-patch-strategy": "retainKeys",
                        "properties": {
                            "type": {"type": "string"},
                            "rollingUpdate": {"type": "object", "properties": {"maxSurge": {"x-kubernetes-int-or-string": true}}},
                        },
                    },
                    "colors": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                    "tolerations": {"type": "array", "items": {"type": "object", "properties": {"key": {"type": "string"}}}},
                    "containers": {
                        "type": "array",
                        "items": container,
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                    },
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                },
            },
            "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
        },
    }))
}

/// An object of that kind with this spec.
pub(super) fn object(spec: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default", "uid": "u"},
        "spec": spec,
    })
}

/// The same as a user would apply it.
pub(super) fn configuration(spec: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default"},
        "spec": spec,
    })
}

/// A manager at second `at` of some day.
pub(super) fn manager(name: &str, operation: Operation, at: i64) -> Manager {
    Manager {
        name: name.to_owned(),
        operation,
        api_version: "apps/v1".to_owned(),
        subresource: None,
        time: jiff::Timestamp::from_second(1_767_312_000 + at).expect("a time in range"),
    }
}

/// The record of owners as `name/Operation: fields`, without times.
pub(super) fn owners(object: &Value) -> Vec<String> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries
        .into_iter()
        .flatten()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default();
            let subresource = entry.get("subresource").and_then(Value::as_str).map(|s| format!("/{s}"));
            let subresource = subresource.unwrap_or_default();
            format!("{}/{}{subresource}: {}", text("manager"), text("operation"), entry["fieldsV1"])
        })
        .collect()
}

/// The object without its record.
pub(super) fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("managedFields");
    }
    object
}
