//! OpenAPI v3: one document for each group version. The index of them is made where they are served.

use serde_json::{Value, json};

use super::KindDoc;
use super::common::{self, answer_schema, body_schema, contents};
use super::paths::{Body, Operation, Path, patch_types};

/// Where a v3 document keeps its schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// The document of one group version, which all of `docs` must belong to.
pub fn v3_group_version(docs: &[KindDoc<'_>]) -> Value {
    let (schemas, items) = contents(docs, SCHEMAS, path_item);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": items,
        "components": {"schemas": schemas},
    })
}

fn path_item(doc: &KindDoc<'_>, path: &Path) -> Value {
    common::path_item(
        path,
        |operation| operation_item(doc, path, operation),
        |name, description| {
            json!({
                "name": name,
                "in": "path",
                "description": description,
                "required": true,
                "schema": {"type": "string", "uniqueItems": true},
            })
        },
    )
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
    let mut out = common::operation_item(doc, path, operation);
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
    Value::Object(out)
}
