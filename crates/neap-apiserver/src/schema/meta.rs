//! The part every object has whatever its schema says: apiVersion, kind and ObjectMeta.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::Schema;
use super::compile;

/// ObjectMeta as Kubernetes serves it, with the list and patch semantics of its fields.
pub(super) static OBJECT_META: LazyLock<Schema> = LazyLock::new(|| compile::fragment(&object_meta()));

/// A plain text field.
pub(super) static TEXT: LazyLock<Schema> = LazyLock::new(|| compile::fragment(&json!({"type": "string"})));

fn object_meta() -> Value {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let time = json!({"type": "string", "format": "date-time"});
    let number = json!({"type": "integer", "format": "int64"});
    let text = json!({"type": "string"});
    json!({
        "type": "object",
        "properties": {
            "annotations": texts,
            "creationTimestamp": time,
            "deletionGracePeriodSeconds": number,
            "deletionTimestamp": time,
            "finalizers": {
                "type": "array",
                "items": text,
                "x-kubernetes-list-type": "set",
                "x-kubernetes-patch-strategy": "merge",
            },
            "generateName": text,
            "generation": number,
            "labels": texts,
            "managedFields": {
                "type": "array",
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "properties": {
                        "apiVersion": text,
                        "fieldsType": text,
                        "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "manager": text,
                        "operation": text,
                        "subresource": text,
                        "time": time,
                    },
                },
            },
            "name": text,
            "namespace": text,
            "ownerReferences": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["uid"],
                "x-kubernetes-patch-merge-key": "uid",
                "x-kubernetes-patch-strategy": "merge",
                "items": {
                    "type": "object",
                    "x-kubernetes-map-type": "atomic",
                    "required": ["apiVersion", "kind", "name", "uid"],
                    "properties": {
                        "apiVersion": text,
                        "blockOwnerDeletion": {"type": "boolean"},
                        "controller": {"type": "boolean"},
                        "kind": text,
                        "name": text,
                        "uid": text,
                    },
                },
            },
            "resourceVersion": text,
            "selfLink": text,
            "uid": text,
        },
    })
}
