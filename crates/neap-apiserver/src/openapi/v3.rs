//! OpenAPI v3: one document for each group version. The index of them is made where they are served.

use serde_json::{Map, Value, json};

use super::KindDoc;
use super::common::{answer_schema, body_schema, group_version_kind, kind_schemas, shared_schemas};
use super::paths::{Body, Operation, Path, operation_id, patch_types, paths};

/// Where a v3 document keeps its schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// The document of one group version, which all of `docs` must belong to.
pub fn v3_group_version(docs: &[KindDoc<'_>]) -> Value {
    let mut schemas = shared_schemas(SCHEMAS);
    let mut items = Map::new();
    for doc in docs {
        schemas.extend(kind_schemas(doc, SCHEMAS));
        items.extend(paths(doc).iter().map(|path| (path.path.clone(), path_item(doc, path))));
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": items,
        "components": {"schemas": schemas},
    })
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
            json!({
                "name": name,
                "in": "path",
                "description": description,
                "required": true,
                "schema": {"type": "string", "uniqueItems": true},
            })
        })
        .collect();
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), parameters.into());
    }
    Value::Object(out)
}

fn operation_item(doc: &KindDoc<'_>, path: &Path, operation: &Operation) -> Value {
    let reference = |name: String| json!({"schema": {"$ref": format!("{SCHEMAS}{name}")}});
    let content = |schema: Value, types: &[&str]| -> Value {
        Value::Object(types.iter().map(|media| ((*media).to_owned(), schema.clone())).collect())
    };
    let answer = answer_schema(doc, operation.answer);
    let request = body_schema(doc, operation.body).map(|name| {
        let types = if operation.body == Body::Patch { patch_types(doc) } else { &["*/*"] };
        content(reference(name), types)
    });
    let parameters: Vec<Value> = operation
        .query
        .iter()
        .map(|query| {
            json!({
                "name": query.name,
                "in": "query",
                "description": query.description,
                "schema": {"type": query.kind, "uniqueItems": true},
            })
        })
        .collect();
    let mut out = Map::new();
    out.insert("operationId".to_owned(), operation_id(doc, operation, &path.id).into());
    out.insert("description".to_owned(), format!("{} {}", operation.words, doc.kind).into());
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), parameters.into());
    }
    if let Some(request) = request {
        let required = operation.body != Body::DeleteOptions;
        out.insert("requestBody".to_owned(), json!({"content": request, "required": required}));
    }
    out.insert(
        "responses".to_owned(),
        json!({
            "200": {"description": "OK", "content": content(reference(answer), &["application/json", "application/yaml"])},
        }),
    );
    out.insert("x-kubernetes-action".to_owned(), operation.action.into());
    out.insert("x-kubernetes-group-version-kind".to_owned(), group_version_kind(doc, doc.kind));
    Value::Object(out)
}
