//! Defaulting: nulls where none is allowed go, then absent fields with a default come.
//!
//! A default below an absent object is not reached: the object itself needs a default for that, as in
//! Kubernetes.

use serde_json::Value;

use super::Schema;

pub(super) fn apply(schema: &Schema, value: &mut Value) {
    let node = schema.node();
    match value {
        Value::Object(map) => {
            if map.values().any(Value::is_null) {
                map.retain(|name, field| {
                    !field.is_null() || node.field(name).is_none_or(|schema| schema.node().nullable)
                });
            }
            for at in &node.defaulted {
                let (name, schema) = &node.properties[*at as usize];
                if !map.contains_key(&**name) {
                    let default = schema.node().default.as_ref().expect("listed because it has a default");
                    map.insert(name.to_string(), (**default).clone());
                }
            }
            for (name, field) in map.iter_mut() {
                if (field.is_object() || field.is_array())
                    && let Some(schema) = node.field(name)
                {
                    apply(schema, field);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &node.items else { return };
            for item in items {
                if item.is_null()
                    && !schema.node().nullable
                    && let Some(default) = &schema.node().default
                {
                    *item = (**default).clone();
                }
                apply(schema, item);
            }
        }
        _ => {}
    }
}
