//! Looking into JSON the way Go looks into structs: absent, null and empty are the same.

use serde_json::{Map, Value};

use super::field_error::Errors;

/// A value that stands for every absent one.
pub(super) const ABSENT: &Value = &Value::Null;

/// Whether a field counts as set.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) | Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    }
}

/// The elements of a list, none when it is absent.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The text of a field, empty when it is absent.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Keys and texts of a map of strings.
pub(super) fn pairs(value: &Value) -> impl Iterator<Item = (&str, &str)> {
    value.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
}

/// The set fields of `value` that are not among `allowed`.
pub(super) fn only(value: &Value, allowed: &[&str]) -> Errors {
    let mut errors = Errors::none();
    for (field, held) in value.as_object().into_iter().flatten() {
        if is_set(held) && !allowed.contains(&field.as_str()) {
            errors.add(Errors::disallowed(&[field]));
        }
    }
    errors
}

/// The elements of a list to write into; an absent list is not made.
pub(super) fn list_mut<'a>(value: &'a mut Value, field: &str) -> &'a mut [Value] {
    value.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// A JSON object to write into, made when it is absent.
pub(super) fn object<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let held = &mut value[field];
    if !held.is_object() {
        *held = Value::Object(Map::new());
    }
    held.as_object_mut().expect("made an object above")
}

/// The differences of two values, a line each: `-path: old` and `+path: new`.
pub(super) fn difference(old: &Value, new: &Value) -> String {
    let mut lines = Vec::new();
    differ("", old, new, &mut lines);
    lines.join("\n")
}

fn differ(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differ(&at, a.get(key).unwrap_or(ABSENT), b.get(key).unwrap_or(ABSENT), lines);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                differ(&format!("{path}[{i}]"), a.get(i).unwrap_or(ABSENT), b.get(i).unwrap_or(ABSENT), lines);
            }
        }
        (old, new) => {
            if !old.is_null() {
                lines.push(format!("-{path}: {old}"));
            }
            if !new.is_null() {
                lines.push(format!("+{path}: {new}"));
            }
        }
    }
}
