//! Objects as rows: what `kubectl get` shows. Cells come from JSONPaths or from functions registered with the kind.

use crate::kind::{Column, ColumnValue};
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

const NAME_HELP: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
    resources may allow a client to request the generation of an appropriate name automatically. Name is primarily \
    intended for creation idempotence and configuration definition. Cannot be updated.";

/// The version of the views that the client asked for.
pub(crate) fn api_version(x: &Exchange) -> &'static str {
    if x.wanted.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// Only the metadata, under the kind that says so.
pub(crate) fn partial(x: &Exchange, object: Value) -> Value {
    let metadata = match object {
        Value::Object(mut map) => map.remove("metadata").unwrap_or_else(|| json!({})),
        _ => json!({}),
    };
    json!({"apiVersion": api_version(x), "kind": "PartialObjectMetadata", "metadata": metadata})
}

/// What a client may ask to be sent along with the cells.
pub(crate) fn check(x: &Exchange) -> Result<()> {
    let include = x.query.include_object.as_str();
    if matches!(include, "" | "Metadata" | "Object" | "None") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "Unable to convert to Table as requested: includeObject: Invalid value: {include:?}: must be 'Metadata', \
         'Object', 'None', or empty"
    )))
}

/// `head`: whether the column definitions are sent (in a watch only once).
pub(crate) fn table(x: &Exchange, objects: &[Value], meta: Value, head: bool) -> Value {
    let columns = x.kind().columns(x.served.version());
    let include = x.query.include_object.as_str();
    // Not when the request came: a watch lives for long.
    let now = x.server.now();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells = cells(columns, object, now);
            match include {
                "None" => json!({"cells": cells, "object": null}),
                "Object" => json!({"cells": cells, "object": object}),
                _ => json!({"cells": cells, "object": partial(x, object.clone())}),
            }
        })
        .collect();
    let definitions = if head { definitions(columns) } else { Value::Null };
    json!({"apiVersion": api_version(x), "kind": "Table", "metadata": meta, "columnDefinitions": definitions,
        "rows": rows})
}

fn definitions(columns: &[Column]) -> Value {
    let mut out = Vec::with_capacity(columns.len() + 1);
    if adds_name(columns) {
        out.push(json!({"name": "Name", "type": "string", "format": "name", "description": NAME_HELP,
            "priority": 0}));
    }
    for c in columns {
        let description = if c.description.is_empty() && c.kind == "date" {
            "Custom resource definition column (in JSONPath format): .metadata.creationTimestamp"
        } else {
            &c.description
        };
        // kubectl puts the kind before the cell of this format when it shows several kinds.
        let format = if c.name == "Name" { "name" } else { &c.format };
        out.push(json!({"name": c.name, "type": c.kind, "format": format, "description": description,
            "priority": c.priority}));
    }
    Value::Array(out)
}

/// A kind that describes its own name column keeps it.
fn adds_name(columns: &[Column]) -> bool {
    columns.first().is_none_or(|c| c.name != "Name")
}

pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let mut out = Vec::with_capacity(columns.len() + 1);
    if adds_name(columns) {
        out.push(json!(crate::metadata::text(object, "name")));
    }
    out.extend(columns.iter().map(|c| match &c.value {
        ColumnValue::Cell(f) => f(object, now),
        ColumnValue::Path(path) => path.first(object).map_or(Value::Null, |v| cell(v, &c.kind, now)),
    }));
    out
}

fn cell(value: &Value, kind: &str, now: Timestamp) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        ("integer", Value::Number(n)) => {
            n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) | ("string", Value::String(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(at) => json!(time::age(now.as_second() - at.as_second())),
            Err(_) => json!("<invalid>"),
        },
        ("string", other) => json!(other.to_string()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_by_type() {
        let now: Timestamp = "2024-01-01T00:01:00Z".parse().unwrap();
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"n": 3.0, "list": [1], "ok": true, "t": "x"}});
        let check = |kind: &str, path: &str, want: Value| {
            let columns = [Column::path("C", kind, path)];
            assert_eq!(cells(&columns, &object, now), vec![json!("a"), want], "{kind} {path}");
        };
        check("date", ".metadata.creationTimestamp", json!("60s"));
        check("date", ".spec.none", Value::Null);
        check("integer", ".spec.n", json!(3));
        check("string", ".spec.list", json!("[1]"));
        check("string", ".spec.t", json!("x"));
        check("boolean", ".spec.ok", json!(true));
        check("boolean", ".spec.t", Value::Null);
    }
}
