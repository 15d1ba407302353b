//! A handful of kinds in the shapes that matter to the contract: with and without status, scale, namespace, versions.
//! The server knows none of them; tests and the example register them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

pub(crate) fn crd(
    group: &str,
    plural: &str,
    kind: &str,
    namespaced: bool,
    versions: Value,
) -> CustomResourceDefinition {
    let short: Vec<&str> = match plural {
        "configmaps" => vec!["cm"],
        "namespaces" => vec!["ns"],
        "pods" => vec!["po"],
        "deployments" => vec!["deploy"],
        "serviceaccounts" => vec!["sa"],
        "widgets" => vec!["wd"],
        _ => vec![],
    };
    serde_json::from_value(json!({
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "shortNames": short,
                "categories": ["all"]},
            "versions": versions,
        },
    }))
    .expect("a definition")
}

fn version(name: &str, storage: bool, schema: Value, subresources: Value) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
        "subresources": subresources})
}

fn strings() -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}})
}

fn open() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A custom kind with everything: required and defaulted fields, an enumeration, status and scale.
pub(crate) fn widgets() -> CustomResourceDefinition {
    let schema = json!({
        "type": "object",
        "description": "Widget is what tests are made of.",
        "properties": {
            "spec": {
                "type": "object",
                "description": "What the widget should be.",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 0, "description": "How large."},
                    "color": {"type": "string", "enum": ["red", "blue"], "default": "red", "description": "Which colour."},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                        "items": {"type": "object", "required": ["name"], "properties": {
                            "name": {"type": "string"}, "port": {"type": "integer"}}}},
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    "ready": {"type": "boolean"},
                    "size": {"type": "integer"},
                    "selector": {"type": "string"},
                    "conditions": {"type": "array", "items": {"type": "object", "properties": {
                        "type": {"type": "string"}, "status": {"type": "string"}}}},
                },
            },
        },
    });
    let mut v1 = version(
        "v1",
        true,
        schema.clone(),
        json!({"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
            "labelSelectorPath": ".status.selector"}}),
    );
    v1["additionalPrinterColumns"] = json!([
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
    v1["selectableFields"] = json!([{"jsonPath": ".spec.color"}]);
    let beta = version("v1beta1", false, schema, json!({"status": {}}));
    crd("ex.dev", "widgets", "Widget", true, json!([v1, beta]))
}

/// Kinds of Kubernetes, as far as the tests need them.
pub(crate) fn kubernetes() -> Vec<CustomResourceDefinition> {
    let plain = |properties: Value| json!({"type": "object", "properties": properties});
    let status = || json!({"status": {}});
    let container = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string"}, "image": {"type": "string"}, "resources": open(),
        "env": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "value": {"type": "string"}}}}}});
    let pod_spec = json!({"type": "object", "properties": {
        "nodeName": {"type": "string"}, "serviceAccountName": {"type": "string"},
        "terminationGracePeriodSeconds": {"type": "integer"}, "dnsPolicy": {"type": "string"},
        "restartPolicy": {"type": "string"},
        "containers": {"type": "array", "description": "The containers.", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"], "items": container}}});
    vec![
        crd(
            "",
            "namespaces",
            "Namespace",
            false,
            json!([version("v1", true, plain(json!({"spec": open(), "status": open()})), status())]),
        ),
        crd(
            "",
            "configmaps",
            "ConfigMap",
            true,
            json!([version(
                "v1",
                true,
                plain(json!({"data": strings(), "binaryData": strings(), "immutable": {"type": "boolean"}})),
                json!(null)
            )]),
        ),
        crd(
            "",
            "secrets",
            "Secret",
            true,
            json!([version(
                "v1",
                true,
                plain(json!({"data": strings(), "stringData": strings(), "type": {"type": "string"}})),
                json!(null)
            )]),
        ),
        crd(
            "",
            "serviceaccounts",
            "ServiceAccount",
            true,
            json!([version("v1", true, plain(json!({"secrets": {"type": "array", "items": open()}})), json!(null))]),
        ),
        crd("", "events", "Event", true, json!([version("v1", true, open(), json!(null))])),
        crd(
            "",
            "pods",
            "Pod",
            true,
            json!([version("v1", true, plain(json!({"spec": pod_spec, "status": open()})), status())]),
        ),
        crd(
            "apps",
            "deployments",
            "Deployment",
            true,
            json!([version(
                "v1",
                true,
                plain(json!({
                "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "default": 1},
                    "selector": open(), "strategy": open(), "template": {"type": "object", "properties": {
                        "metadata": open(), "spec": pod_spec}}}},
                "status": open()})),
                json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".spec.selector"}})
            )]),
        ),
        crd("rbac.authorization.k8s.io", "roles", "Role", true, json!([version("v1", true, open(), json!(null))])),
        crd(
            "rbac.authorization.k8s.io",
            "rolebindings",
            "RoleBinding",
            true,
            json!([version("v1", true, open(), json!(null))]),
        ),
        crd(
            "rbac.authorization.k8s.io",
            "clusterroles",
            "ClusterRole",
            false,
            json!([version("v1", true, open(), json!(null))]),
        ),
        crd(
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
            "ClusterRoleBinding",
            false,
            json!([version("v1", true, open(), json!(null))]),
        ),
    ]
}
