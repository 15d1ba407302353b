//! OpenAPI v2 (Swagger): one document for everything.

use serde_json::{Map, Value, json};

use super::KindDoc;
use super::common::{self, answer_schema, body_schema, contents};
use super::paths::{Body, Operation, Path, patch_types};
use super::proto;

/// Where a v2 document keeps its schemas.
const SCHEMAS: &str = "#/definitions/";

/// The document as JSON.
pub fn v2(docs: &[KindDoc<'_>]) -> Value {
    let (mut definitions, items) = contents(docs, SCHEMAS, path_item);
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
    common::path_item(
        path,
        |operation| operation_item(doc, path, operation),
        |name, description| json!({"name": name, "in": "path", "description": description, "required": true, "type": "string", "uniqueItems": true}),
    )
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
    let mut out = common::operation_item(doc, path, operation);
    let answer = json!({"description": "OK", "schema": reference(answer_schema(doc, operation.answer))});
    for (name, value) in [
        ("consumes", json!(consumes)),
        ("produces", json!(["application/json", "application/yaml"])),
        ("schemes", json!(["https"])),
        ("parameters", parameters.into()),
        ("responses", json!({"200": answer})),
    ] {
        out.insert(name.to_owned(), value);
    }
    Value::Object(out)
}
