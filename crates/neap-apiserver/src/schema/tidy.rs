//! Tidying: what a compiled-in kind's typed form cannot hold is dropped (empty optional lists and maps, nulls).

use serde_json::Value;

use super::Schema;
use super::node::{Additional, Kind, Node};

/// The metadata of a whole object has rules of its own.
const METADATA: &str = "metadata";

pub(super) fn object(schema: &Schema, object: &mut Value) {
    let meta = object.as_object_mut().and_then(|map| map.remove(METADATA));
    tidy(schema, object);
    if let (Some(meta), Some(map)) = (meta, object.as_object_mut()) {
        map.insert(METADATA.to_owned(), meta);
    }
}

fn tidy(schema: &Schema, value: &mut Value) {
    let node = schema.node();
    match value {
        Value::Object(map) if !node.int_or_string && matches!(node.kind, Kind::Object | Kind::Any) => {
            map.retain(|name, field| {
                let Some(below) = node.field(name) else { return !field.is_null() || node.preserve };
                tidy(below, field);
                // What stands for an object of known fields says something by being there; an entry of a map too.
                is_required(node, name) || node.property(name).is_none() || !says_nothing(below.node(), field)
            });
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                items.iter_mut().for_each(|item| tidy(schema, item));
            }
        }
        _ => {}
    }
}

fn is_required(node: &Node, name: &str) -> bool {
    node.checks.as_ref().is_some_and(|checks| checks.required.iter().any(|known| **known == *name))
}

fn says_nothing(node: &Node, value: &Value) -> bool {
    match value {
        Value::Null => !node.nullable,
        Value::Array(items) => items.is_empty() && node.kind == Kind::Array,
        Value::Object(map) => {
            let is_map = node.properties.is_empty() && matches!(node.additional, Some(Additional::Of(_)));
            map.is_empty() && is_map
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_says_nothing_goes() {
        let schema = Schema::compile_trusted(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "required": ["must"],
            "properties": {
                "list": {"type": "array", "items": {"type": "object", "properties": {"inner": {"type": "array", "items": {}}}}},
                "must": {"type": "array", "items": {"type": "string"}},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "choice": {"type": "object", "properties": {"x": {"type": "string"}}},
                "text": {"type": "string"}, "any": {}}}}}));
        let check = |spec: Value, want: Value| {
            let mut object = json!({"spec": spec});
            schema.tidy(&mut object);
            assert_eq!(object, json!({"spec": want}));
        };
        check(json!({"list": [], "map": {}, "text": null}), json!({}));
        check(
            json!({"list": [{"inner": []}], "must": [], "map": {"a": ""}}),
            json!({"list": [{}], "must": [], "map": {"a": ""}}),
        );
        check(json!({"choice": {}, "text": "", "any": {}}), json!({"choice": {}, "text": "", "any": {}}));
    }
}
