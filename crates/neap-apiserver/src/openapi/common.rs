//! What both document versions share: names of schemas, the schemas of metadata, and the schemas of kinds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, ObjectMeta, Patch, Status};
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::KindDoc;
use super::paths::{Answer, Body, Operation, Path, operation_id, paths};

/// Where references point before a document says where its schemas are.
pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The name of a kind's schema: Kubernetes' own for its groups, the group reversed for others.
pub(super) fn schema_name(doc: &KindDoc<'_>, kind: &str) -> String {
    let (group, version) = (doc.group, doc.version);
    let package = match group {
        "" => "io.k8s.api.core".to_owned(),
        group if !group.contains('.') => format!("io.k8s.api.{group}"),
        group => match group.strip_suffix(".k8s.io").filter(|short| !short.contains('.')) {
            Some("apiextensions") => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_owned(),
            Some(short) => format!("io.k8s.api.{short}"),
            None => group.rsplit('.').collect::<Vec<_>>().join("."),
        },
    };
    format!("{package}.{version}.{kind}")
}

/// The schema of what an operation returns.
pub(super) fn answer_schema(doc: &KindDoc<'_>, answer: Answer) -> String {
    match answer {
        Answer::Object => schema_name(doc, doc.kind),
        Answer::List => schema_name(doc, &format!("{}List", doc.kind)),
        Answer::Status => format!("{META}.Status"),
    }
}

/// The schema of what an operation takes, if anything.
pub(super) fn body_schema(doc: &KindDoc<'_>, body: Body) -> Option<String> {
    match body {
        Body::None => None,
        Body::Object => Some(schema_name(doc, doc.kind)),
        Body::Patch => Some(format!("{META}.Patch")),
        Body::DeleteOptions => Some(format!("{META}.DeleteOptions")),
    }
}

/// `x-kubernetes-group-version-kind` of a schema is a list, of an operation a single one.
fn group_version_kind(doc: &KindDoc<'_>, kind: &str) -> Value {
    json!({"group": doc.group, "version": doc.version, "kind": kind})
}

/// The schemas and the paths of some kinds: what a document of either version holds, each in its own words (`item`).
pub(super) fn contents(
    docs: &[KindDoc<'_>],
    prefix: &str,
    item: impl Fn(&KindDoc<'_>, &Path) -> Value,
) -> (Map<String, Value>, Map<String, Value>) {
    let mut schemas = shared_schemas(prefix);
    let mut items = Map::new();
    for doc in docs {
        schemas.extend(kind_schemas(doc, prefix));
        items.extend(paths(doc).iter().map(|path| (path.path.clone(), item(doc, path))));
    }
    (schemas, items)
}

/// The operations of a path and the parameters they share, each in the words of a document version.
pub(super) fn path_item(
    path: &Path,
    operation: impl Fn(&Operation) -> Value,
    parameter: impl Fn(&str, &str) -> Value,
) -> Value {
    let mut out: Map<String, Value> =
        path.operations.iter().map(|one| (one.method.to_owned(), operation(one))).collect();
    let parameters: Vec<Value> =
        path.parameters.iter().map(|(name, description)| parameter(name, description)).collect();
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), parameters.into());
    }
    Value::Object(out)
}

/// What both versions say of an operation.
pub(super) fn operation_item(doc: &KindDoc<'_>, path: &Path, operation: &Operation) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("operationId".to_owned(), operation_id(doc, operation, &path.id).into());
    out.insert("description".to_owned(), format!("{} {}", operation.words, doc.kind).into());
    out.insert("x-kubernetes-action".to_owned(), operation.action.into());
    out.insert("x-kubernetes-group-version-kind".to_owned(), group_version_kind(doc, doc.kind));
    out
}

/// The schemas of metadata and of the requests and answers every kind has, under their Kubernetes names.
/// `prefix` is where the document keeps schemas (`#/components/schemas/`).
fn shared_schemas(prefix: &str) -> Map<String, Value> {
    let mut settings = SchemaSettings::openapi3();
    settings.definitions_path = prefix.trim_start_matches('#').trim_end_matches('/').to_owned().into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    for request in [
        generator.subschema_for::<ObjectMeta>(),
        generator.subschema_for::<ListMeta>(),
        generator.subschema_for::<DeleteOptions>(),
        generator.subschema_for::<Patch>(),
        generator.subschema_for::<Status>(),
    ] {
        debug_assert!(request.get("$ref").is_some(), "a named type is referred to by name");
    }
    let mut schemas = generator.take_definitions(true);
    for schema in schemas.values_mut() {
        wrap_references(schema);
    }
    let meta = schemas.get_mut(&format!("{META}.ObjectMeta")).and_then(|meta| meta.get_mut("properties"));
    let annotate = |meta: Option<&mut Value>, field: &str, extensions: Value| {
        if let (Some(Value::Object(list)), Value::Object(extensions)) =
            (meta.and_then(|m| m.get_mut(field)), extensions)
        {
            list.extend(extensions);
        }
    };
    if let Some(meta) = meta {
        annotate(
            Some(meta),
            "finalizers",
            json!({"x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"}),
        );
        annotate(
            Some(meta),
            "ownerReferences",
            json!({
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["uid"],
                "x-kubernetes-patch-merge-key": "uid",
                "x-kubernetes-patch-strategy": "merge",
            }),
        );
        annotate(Some(meta), "managedFields", json!({"x-kubernetes-list-type": "atomic"}));
    }
    schemas
}

/// A reference beside other words is not allowed in OpenAPI 3.0: it goes into an `allOf` of its own.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.len() > 1
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
            map.values_mut().for_each(wrap_references);
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

/// The schemas of a kind and of its list.
fn kind_schemas(doc: &KindDoc<'_>, prefix: &str) -> [(String, Value); 2] {
    let meta = |name: &str, description: &str| json!({"description": description, "allOf": [{"$ref": format!("{prefix}{META}.{name}")}]});
    let name = schema_name(doc, doc.kind);
    let mut schema = doc.schema.clone();
    announce_merge_keys(&mut schema);
    if let Value::Object(map) = &mut schema {
        map.entry("type").or_insert_with(|| "object".into());
        // Generated schemas call metadata required; to a client it is not, any more than kind is.
        if let Some(Value::Array(required)) = map.get_mut("required") {
            required.retain(|name| name != "metadata");
            if required.is_empty() {
                map.remove("required");
            }
        }
        map.insert("x-kubernetes-group-version-kind".to_owned(), json!([group_version_kind(doc, doc.kind)]));
        let properties = map.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(properties) = properties {
            type_fields(properties);
            properties.insert("metadata".to_owned(), meta("ObjectMeta", META_DESCRIPTION));
        }
    }
    let list_kind = format!("{}List", doc.kind);
    let mut properties = Map::new();
    type_fields(&mut properties);
    properties.insert("metadata".to_owned(), meta("ListMeta", LIST_META_DESCRIPTION));
    properties.insert(
        "items".to_owned(),
        json!({
            "description": format!("List of {}.", doc.plural),
            "type": "array",
            "items": {"$ref": format!("{prefix}{name}")},
        }),
    );
    let list = json!({
        "description": format!("{list_kind} is a list of {}", doc.kind),
        "type": "object",
        "required": ["items"],
        "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(doc, &list_kind)],
    });
    [(name, schema), (schema_name(doc, &list_kind), list)]
}

const META_DESCRIPTION: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_META_DESCRIPTION: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

fn type_fields(properties: &mut Map<String, Value>) {
    for (name, description) in [
        (
            "apiVersion",
            "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
        ),
        (
            "kind",
            "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
        ),
    ] {
        properties.insert(name.to_owned(), json!({"description": description, "type": "string"}));
    }
}

/// Says in kubectl's words how this server merges lists with keys: kubectl computes its patches from what
/// the document says, and the two must agree or removed items stay.
fn announce_merge_keys(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let strategy = map.contains_key("x-kubernetes-patch-strategy");
            let list_type = map.get("x-kubernetes-list-type").and_then(Value::as_str).unwrap_or_default();
            let key = map.get("x-kubernetes-list-map-keys").and_then(|keys| keys.get(0)).cloned();
            match (strategy, list_type, key) {
                (false, "map", Some(key)) => {
                    map.insert("x-kubernetes-patch-merge-key".to_owned(), key);
                    map.insert("x-kubernetes-patch-strategy".to_owned(), "merge".into());
                }
                (false, "set", _) => {
                    map.insert("x-kubernetes-patch-strategy".to_owned(), "merge".into());
                }
                _ => {}
            }
            map.values_mut().for_each(announce_merge_keys);
        }
        Value::Array(items) => items.iter_mut().for_each(announce_merge_keys),
        _ => {}
    }
}
