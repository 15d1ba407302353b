//! OpenAPI v2 (Swagger): one document for everything.

use serde_json::{Map, Value, json};

use super::KindDoc;
use super::common::{answer_schema, body_schema, group_version_kind, kind_schemas, shared_schemas};
use super::paths::{Body, Operation, Path, operation_id, patch_types, paths};
use super::proto;

/// Where a v2 document keeps its schemas.
const SCHEMAS: &str = "#/definitions/";

/// The document as JSON.
pub fn v2(docs: &[KindDoc<'_>]) -> Value {
    let mut definitions = shared_schemas(SCHEMAS);
    let mut items = Map::new();
    for doc in docs {
        definitions.extend(kind_schemas(doc, SCHEMAS));
        items.extend(paths(doc).iter().map(|path| (path.path.clone(), path_item(doc, path))));
    }
    for schema in definitions.values_mut() {
        downgrade(schema);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": items,
        "definitions": definitions,
    })
}

/// The document in the protobuf form kubectl asks for.
pub fn v2_protobuf(docs: &[KindDoc<'_>]) -> Vec<u8> {
    proto::encode(&v2(docs))
}

/// Takes out of a schema what v2 has no words for.
fn downgrade(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(reference) = map.get("allOf").and_then(|all| all.get(0)?.get("$ref")).cloned() {
                map.insert("$ref".to_owned(), reference);
            }
            for word in ["allOf", "anyOf", "oneOf", "not", "nullable"] {
                map.remove(word);
            }
            if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
                map.insert("type".to_owned(), "string".into());
                map.insert("format".to_owned(), "int-or-string".into());
            }
            for (name, value) in map.iter_mut() {
                match name.as_str() {
                    "properties" => value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(downgrade),
                    "items" | "additionalProperties" => downgrade(value),
                    _ => {}
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(downgrade),
        _ => {}
    }
}

fn path_item(doc: &KindDoc<'_>, path: &Path) -> Value {
    let mut out: Map<String, Value> = path
        .operations
        .iter()
        .map(|operation| (operation.method.to_owned(), operation_item(doc, path, operation)))
        .collect();
    let parameters: Vec<Value> = path
        .parameters
        .iter()
        .map(|(name, description)| {
            json!({"name": name, "in": "path", "description": description, "required": true, "type": "string", "uniqueItems": true})
        })
        .collect();
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), parameters.into());
    }
    Value::Object(out)
}

fn operation_item(doc: &KindDoc<'_>, path: &Path, operation: &Operation) -> Value {
    let reference = |name: String| json!({"$ref": format!("{SCHEMAS}{name}")});
    let mut parameters: Vec<Value> = operation
        .query
        .iter()
        .map(|query| {
            json!({"name": query.name, "in": "query", "description": query.description, "type": query.kind, "uniqueItems": true})
        })
        .collect();
    if let Some(body) = body_schema(doc, operation.body) {
        let required = operation.body != Body::DeleteOptions;
        parameters.push(json!({"name": "body", "in": "body", "required": required, "schema": reference(body)}));
    }
    let consumes = if operation.body == Body::Patch { patch_types(doc) } else { &["*/*"] };
    json!({
        "operationId": operation_id(doc, operation, &path.id),
        "description": format!("{} {}", operation.words, doc.kind),
        "consumes": consumes,
        "produces": ["application/json", "application/yaml"],
        "schemes": ["https"],
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": reference(answer_schema(doc, operation.answer))}},
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": group_version_kind(doc, doc.kind),
    })
}
