//! What the generated schemas do not say: which lists are maps and by which keys, and where a user may write what the
//! schema does not know. The generator knows types only; Kubernetes keeps these facts in its own annotations, and
//! server-side apply and strategic merge depend on them (strategic merge takes the first of the keys).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceValidation, JSONSchemaProps};
use serde_json::{Map, Value, json};

/// How Kubernetes treats one list of objects.
struct ListRule {
    /// The property that holds the list.
    property: &'static str,
    /// A property every item has; tells apart lists of the same name (a container's `ports` from a Service's).
    item_has: &'static str,
    /// What tells one item from another.
    keys: &'static [&'static str],
}

const fn by(property: &'static str, item_has: &'static str, keys: &'static [&'static str]) -> ListRule {
    ListRule { property, item_has, keys }
}

const LISTS: &[ListRule] = &[
    by("containers", "image", &["name"]),
    by("initContainers", "image", &["name"]),
    by("ephemeralContainers", "image", &["name"]),
    by("ports", "containerPort", &["containerPort", "protocol"]),
    by("ports", "nodePort", &["port", "protocol"]),
    by("env", "valueFrom", &["name"]),
    by("volumeMounts", "mountPath", &["mountPath"]),
    by("volumeDevices", "devicePath", &["devicePath"]),
    by("volumes", "configMap", &["name"]),
    by("imagePullSecrets", "name", &["name"]),
    by("hostAliases", "ip", &["ip"]),
    by("topologySpreadConstraints", "topologyKey", &["topologyKey", "whenUnsatisfiable"]),
    by("resourceClaims", "name", &["name"]),
    by("schedulingGates", "name", &["name"]),
    by("conditions", "type", &["type"]),
    by("podIPs", "ip", &["ip"]),
    by("hostIPs", "ip", &["ip"]),
    by("addresses", "type", &["type"]),
];

/// Maps that are replaced whole.
const ATOMIC_MAPS: &[&str] = &[
    "nodeSelector",
    "matchLabels",
    "labelSelector",
    "selector",
    "scaleTargetRef",
    "secretKeyRef",
    "configMapKeyRef",
    "fieldRef",
    "resourceFieldRef",
    "claimRef",
    "objectRef",
    "roleRef",
    "nodeSelectorTerms",
];

/// Runs an edit over a validation's schema as JSON.
pub(crate) fn edit(validation: &mut CustomResourceValidation, how: fn(&mut Value)) {
    if let Some(props) = validation.open_api_v3_schema.take() {
        validation.open_api_v3_schema = Some(edited(props, how));
    }
}

/// The same for a schema alone.
pub(crate) fn edited(props: JSONSchemaProps, how: fn(&mut Value)) -> JSONSchemaProps {
    let mut value = serde_json::to_value(props).expect("a schema serialises");
    how(&mut value);
    serde_json::from_value(value).expect("an edited schema is still a schema")
}

/// For built-in kinds: everything Kubernetes says of them.
pub(crate) fn for_builtin(schema: &mut Value) {
    annotate(schema, "", true);
}

/// For Knative kinds: a container may come without a name (A4.22 gives it one), so containers are no map for
/// server-side apply, and strategic merge does not exist for custom kinds at all.
pub(crate) fn for_knative(schema: &mut Value) {
    describe(schema);
    drop_defaults(schema);
    annotate(schema, "", false);
    open_traffic_defaults(schema);
    open_probe_ports(schema);
}

/// A probe by HTTP or TCP without a port means the port that serves.
fn open_probe_ports(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, child) in properties {
            if ["httpGet", "tcpSocket"].contains(&name.as_str())
                && let Some(required) = child.get_mut("required").and_then(Value::as_array_mut)
            {
                required.retain(|field| field != "port");
            }
            open_probe_ports(child);
        }
    }
    object.get_mut("items").into_iter().for_each(open_probe_ports);
}

/// What a kind is about is written at its spec, where the generator cannot take it for the kind; and it takes every spec
/// for required, which is for admission to say.
fn describe(schema: &mut Value) {
    let about = schema.pointer("/properties/spec/description").cloned();
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    match about {
        Some(about) => drop(object.insert("description".into(), about)),
        None => drop(object.remove("description")),
    }
    object.remove("required");
}

/// The generator writes down what a field is decoded as when it is absent. To an API server that would be a value to store,
/// and the user's to own.
fn drop_defaults(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.remove("default");
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(drop_defaults);
    }
    for inner in ["items", "additionalProperties"] {
        object.get_mut(inner).into_iter().for_each(drop_defaults);
    }
}

fn annotate(schema: &mut Value, property: &str, builtin: bool) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if property == "metadata" && object.get("properties").is_some_and(|p| p.get("ownerReferences").is_some()) {
        // Metadata embedded in a template: whatever the user wrote, `creationTimestamp: null` of generated files included.
        *schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        return;
    }
    if object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        object.remove("type");
    }
    if ATOMIC_MAPS.contains(&property) && object.get("type") == Some(&json!("object")) {
        object.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
    if object.get("type") == Some(&json!("array")) {
        annotate_list(object, property, builtin);
    }
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, child) in properties {
            annotate(child, name, builtin);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(child) = object.get_mut(inner) {
            annotate(child, "", builtin);
        }
    }
}

fn annotate_list(object: &mut Map<String, Value>, property: &str, builtin: bool) {
    let Some(items) = object.get_mut("items").and_then(|i| i.get_mut("properties")) else {
        if property == "finalizers" {
            object.insert("x-kubernetes-list-type".into(), json!("set"));
        }
        return;
    };
    let Some(rule) = LISTS.iter().find(|r| r.property == property && items.get(r.item_has).is_some()) else {
        return;
    };
    if rule.keys.contains(&"protocol")
        && let Some(protocol) = items.get_mut("protocol").and_then(Value::as_object_mut)
    {
        // A key of a map must have a value.
        protocol.insert("default".into(), json!("TCP"));
    }
    let optional_key = !builtin && rule.property.to_lowercase().ends_with("containers");
    if !optional_key {
        object.insert("x-kubernetes-list-type".into(), json!("map"));
        object.insert("x-kubernetes-list-map-keys".into(), json!(rule.keys));
    }
}

/// `containers` of a template may be incomplete where the Service is only half written; the admission rules say so in
/// Knative's words, so the schema must not refuse it first.
fn open_traffic_defaults(schema: &mut Value) {
    let Some(spec) = schema.pointer_mut("/properties/spec") else {
        return;
    };
    relax_containers(spec);
}

fn relax_containers(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    for list in ["containers", "initContainers"] {
        let found = object.get_mut("properties").and_then(|p| p.get_mut(list)).and_then(|l| l.get_mut("items"));
        if let Some(items) = found.and_then(Value::as_object_mut) {
            items.remove("required");
        }
    }
    if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|r| r != "containers");
    }
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for child in properties.values_mut() {
            relax_containers(child);
        }
    }
}
