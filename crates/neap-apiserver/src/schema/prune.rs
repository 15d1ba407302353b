//! Pruning: removes the fields a schema does not know, and says which.

use serde_json::Value;

use super::Schema;
use super::node::{Additional, Kind};
use super::path::Path;
use crate::limits;

pub(super) fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    walk(schema, object, &Path::Root, &mut removed);
    removed.sort();
    removed
}

fn walk(schema: &Schema, value: &mut Value, path: &Path<'_>, removed: &mut Vec<String>) {
    let node = schema.node();
    match value {
        Value::Object(map) => {
            // A value of the wrong type is left whole for validation to name.
            if !matches!(node.kind, Kind::Object | Kind::Any) || node.int_or_string {
                return;
            }
            let keeps_unknown = node.preserve || node.additional.is_some();
            if !keeps_unknown && map.keys().any(|name| node.property(name).is_none()) {
                map.retain(|name, _| {
                    let known = node.property(name).is_some();
                    if !known && removed.len() < limits::FAULTS {
                        removed.push(Path::Field(path, name).text());
                    }
                    known
                });
            }
            for (name, field) in map.iter_mut() {
                if !field.is_object() && !field.is_array() {
                    continue;
                }
                let below = node.property(name).or(match &node.additional {
                    Some(Additional::Of(schema)) => Some(schema),
                    Some(Additional::Anything) | None => None,
                });
                if let Some(below) = below {
                    walk(below, field, &Path::Field(path, name), removed);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &node.items else { return };
            for (index, item) in items.iter_mut().enumerate() {
                walk(schema, item, &Path::Item(path, index), removed);
            }
        }
        _ => {}
    }
}
