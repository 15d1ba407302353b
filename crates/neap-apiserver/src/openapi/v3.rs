//! OpenAPI v3: an index of group versions, and one document for each.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::KindDoc;
use super::common::{META, group_version_kind, kind_schemas, schema_name, shared_schemas};
use super::paths::{Answer, Body, Operation, Path, operation_id, patch_types, paths};

/// Where a v3 document keeps its schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// The index at `/openapi/v3`. The address of a document carries a hash of what it is made of, so clients
/// may keep it for as long as the index names it.
pub fn v3_index(docs: &[KindDoc<'_>]) -> Value {
    let mut hashes: std::collections::BTreeMap<String, Sha256> = std::collections::BTreeMap::new();
    for doc in docs {
        let hash = hashes.entry(doc.group_version_path()).or_default();
        hash.update(format!(
            "{} {} {} {:?} {:?} {}\n",
            doc.kind, doc.plural, doc.namespaced, doc.verbs, doc.subresources, doc.schema
        ));
    }
    let paths: Map<String, Value> = hashes
        .into_iter()
        .map(|(path, hash)| {
            let digest = hash.finalize();
            let hash: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
            let address = json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")});
            (path, address)
        })
        .collect();
    json!({"paths": paths})
}

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
    let answer = match operation.answer {
        Answer::Object => schema_name(doc, doc.kind),
        Answer::List => schema_name(doc, &format!("{}List", doc.kind)),
        Answer::Status => format!("{META}.Status"),
    };
    let request = match operation.body {
        Body::None => None,
        Body::Object => Some(content(reference(schema_name(doc, doc.kind)), &["*/*"])),
        Body::Patch => Some(content(reference(format!("{META}.Patch")), patch_types(doc))),
        Body::DeleteOptions => Some(content(reference(format!("{META}.DeleteOptions")), &["*/*"])),
    };
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
