//! Judging values: every check of the OpenAPI subset Kubernetes enforces, in Kubernetes' words.

use std::collections::HashSet;

use serde_json::{Number, Value};

use super::Schema;
use super::error::{FieldError, FieldErrorKind, quote};
use super::formats;
use super::node::{Additional, Checks, Kind, ListType, Node};
use super::path::Path;
use crate::limits;

pub(super) fn validate(schema: &Schema, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, object, &Path::Root, &mut errors);
    errors
}

fn walk(schema: &Schema, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    // A message has an end, and the path of each fault is a text of its own.
    if errors.len() >= limits::FAULTS {
        return;
    }
    let node = schema.node();
    if value.is_null() && node.nullable {
        return;
    }
    if !has_type(node, value) {
        let wanted = if node.int_or_string { "integer,string" } else { node.kind.name() };
        errors.push(wrong_type(path, wanted, type_name(value)));
        // What is said of any type still holds; there is nothing of the right type to look into.
        if let Some(checks) = &node.checks {
            check_enumeration(checks, value, path, errors);
            if !value.is_null() {
                check_junctors(checks, value, path, errors);
            }
        }
        return;
    }
    if let Some(checks) = &node.checks {
        check_enumeration(checks, value, path, errors);
        check_value(checks, value, path, errors);
        check_junctors(checks, value, path, errors);
    }
    match value {
        Value::Object(map) => {
            if node.embedded {
                for name in ["apiVersion", "kind"] {
                    if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                        errors.push(FieldError::required(Path::Field(path, name).field(), ""));
                    }
                }
            }
            for (name, field) in map {
                let below = node.property(name).or(match &node.additional {
                    Some(Additional::Of(schema)) => Some(schema),
                    Some(Additional::Anything) | None => None,
                });
                if let Some(below) = below {
                    walk(below, field, &Path::Field(path, name), errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                for (index, item) in items.iter().enumerate() {
                    walk(schema, item, &Path::Item(path, index), errors);
                }
            }
            check_uniqueness(node, items, path, errors);
        }
        _ => {}
    }
}

fn has_type(node: &Node, value: &Value) -> bool {
    if node.int_or_string {
        return value.is_string() || is_integer(value);
    }
    match node.kind {
        Kind::Any => true,
        Kind::Object => value.is_object(),
        Kind::Array => value.is_array(),
        Kind::String => value.is_string(),
        Kind::Integer => is_integer(value),
        Kind::Number => value.is_number(),
        Kind::Boolean => value.is_boolean(),
    }
}

/// Integers, and floating point numbers without a fraction, which JSON does not tell apart.
fn is_integer(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|float| float.fract() == 0.0)
        }
        _ => false,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `spec.x in body must be of type integer: "string"`, with `found` as the shown value.
fn wrong_type(path: &Path<'_>, wanted: &str, found: &str) -> FieldError {
    let mut detail = format!("{} in body must be of type {wanted}: ", path.text());
    quote(&mut detail, found);
    FieldError { path: path.field(), kind: FieldErrorKind::TypeInvalid, detail, value: Some(found.into()) }
}

fn check_enumeration(checks: &Checks, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if let Some(allowed) = &checks.enumeration
        && !allowed.iter().any(|one| same_value(one, value))
    {
        errors.push(FieldError::not_supported(path.field(), value.clone(), allowed.iter()));
    }
}

fn check_value(checks: &Checks, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(text) => check_text(checks, text, path, errors),
        Value::Number(number) => check_number(checks, number, value, path, errors),
        Value::Array(items) => check_items(checks, items, path, errors),
        Value::Object(map) => {
            for name in &checks.required {
                if !map.contains_key(&**name) {
                    errors.push(FieldError::required(Path::Field(path, name).field(), ""));
                }
            }
            if let Some(least) = checks.min_properties.filter(|least| (map.len() as u64) < *least) {
                errors.push(invalid(path, map.len(), &format!("should have at least {least} properties")));
            }
            if let Some(most) = checks.max_properties.filter(|most| map.len() as u64 > *most) {
                errors.push(FieldError::too_many(path.field(), map.len(), most));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// `<value>: <path> in body <complaint>`.
fn invalid(path: &Path<'_>, value: impl Into<Value>, complaint: &str) -> FieldError {
    FieldError::invalid(path.field(), value, format!("{} in body {complaint}", path.text()))
}

fn check_text(checks: &Checks, text: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    // Of length and pattern only the first complaint counts: the rest follows from it.
    let length = || text.chars().count() as u64;
    if let Some(most) = checks.max_length.filter(|most| length() > *most) {
        errors.push(FieldError::too_long(path.field(), most));
    } else if let Some(least) = checks.min_length.filter(|least| length() < *least) {
        errors.push(invalid(path, text, &format!("should be at least {least} chars long")));
    } else if let Some(pattern) = checks.pattern.as_ref().filter(|pattern| !pattern.matches(text)) {
        errors.push(invalid(path, text, &format!("should match '{}'", pattern.source)));
    }
    if let Some(format) = checks.format.as_ref().filter(|format| !formats::matches(format, text)) {
        let mut error = wrong_type(path, format, text);
        error.value = Some(text.into());
        errors.push(error);
    }
}

fn check_number(checks: &Checks, number: &Number, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if checks.format.as_deref() == Some("int32") && number.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
        errors.push(wrong_type(path, "int32", "int64"));
    }
    if checks.format.as_deref() == Some("int64") && number.as_i64().is_none() && number.is_u64() {
        errors.push(wrong_type(path, "int64", "uint64"));
    }
    if let Some(limit) = &checks.maximum {
        let order = compare(number, limit);
        if checks.exclusive_maximum && order != std::cmp::Ordering::Less {
            errors.push(invalid(path, value.clone(), &format!("should be less than {}", plain(limit))));
        } else if order == std::cmp::Ordering::Greater {
            errors.push(invalid(path, value.clone(), &format!("should be less than or equal to {}", plain(limit))));
        }
    }
    if let Some(limit) = &checks.minimum {
        let order = compare(number, limit);
        if checks.exclusive_minimum && order != std::cmp::Ordering::Greater {
            errors.push(invalid(path, value.clone(), &format!("should be greater than {}", plain(limit))));
        } else if order == std::cmp::Ordering::Less {
            errors.push(invalid(path, value.clone(), &format!("should be greater than or equal to {}", plain(limit))));
        }
    }
    if let Some(factor) = &checks.multiple_of {
        let quotient = float(number) / float(factor);
        if quotient != quotient.trunc() {
            errors.push(invalid(path, value.clone(), &format!("should be a multiple of {}", plain(factor))));
        }
    }
}

/// A bound as messages show it: a whole number has no fraction, however the schema wrote it.
fn plain(number: &Number) -> String {
    if number.is_f64() { float(number).to_string() } else { number.to_string() }
}

fn float(number: &Number) -> f64 {
    number.as_f64().expect("without arbitrary precision every number is a float")
}

fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => float(a).total_cmp(&float(b)),
    }
}

/// Equality as JSON sees it: 1 and 1.0 are one value.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_eq(),
        _ => a == b,
    }
}

fn check_items(checks: &Checks, items: &[Value], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if let Some(least) = checks.min_items.filter(|least| (items.len() as u64) < *least) {
        errors.push(invalid(path, items.len(), &format!("should have at least {least} items")));
    }
    if let Some(most) = checks.max_items.filter(|most| items.len() as u64 > *most) {
        errors.push(FieldError::too_many(path.field(), items.len(), most));
    }
    if checks.unique_items {
        let mut seen = HashSet::with_capacity(items.len());
        if !items.iter().all(|item| seen.insert(item)) {
            errors.push(invalid(path, Value::Array(items.to_vec()), "shouldn't contain duplicates"));
        }
    }
}

fn check_junctors(checks: &Checks, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let attempt = |schema: &Schema| {
        let mut found = Vec::new();
        walk(schema, value, path, &mut found);
        found
    };
    let complain =
        |rule: &str, more: &str| FieldError::invalid("<nil>", "", format!("\"{}\" {rule}{more}", path.text()));
    for schema in &checks.all_of {
        let found = attempt(schema);
        if !found.is_empty() {
            errors.extend(found);
            errors.push(complain("must validate all the schemas (allOf)", ""));
        }
    }
    if !checks.any_of.is_empty() {
        let failures: Vec<_> = checks.any_of.iter().map(attempt).collect();
        if failures.iter().all(|found| !found.is_empty()) {
            errors.push(complain("must validate at least one schema (anyOf)", ""));
            errors.extend(nearest(failures));
        }
    }
    if !checks.one_of.is_empty() {
        let failures: Vec<_> = checks.one_of.iter().map(attempt).collect();
        match failures.iter().filter(|found| found.is_empty()).count() {
            1 => {}
            0 => {
                errors.push(complain("must validate one and only one schema (oneOf).", " Found none valid"));
                errors.extend(nearest(failures));
            }
            several => errors.push(complain(
                "must validate one and only one schema (oneOf).",
                &format!(" Found {several} valid alternatives"),
            )),
        }
    }
    if let Some(schema) = &checks.not
        && attempt(schema).is_empty()
    {
        errors.push(complain("must not validate the schema (not)", ""));
    }
}

/// The complaints of the alternative that came nearest: the one with the fewest.
fn nearest(failures: Vec<Vec<FieldError>>) -> Vec<FieldError> {
    failures.into_iter().min_by_key(Vec::len).unwrap_or_default()
}

/// Sets hold each value once, lists with keys hold each key once.
fn check_uniqueness(node: &Node, items: &[Value], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if items.len() < 2 {
        return;
    }
    match &node.list {
        ListType::Atomic => {}
        ListType::Set => {
            let mut seen = HashSet::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                if !seen.insert(item) && errors.len() < limits::FAULTS {
                    errors.push(FieldError::duplicate(Path::Item(path, index).field(), item.clone()));
                }
            }
        }
        ListType::Map(keys) => {
            let default = |name: &str| node.items.as_ref()?.node().property(name)?.node().default.as_deref();
            let mut seen = HashSet::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                let Value::Object(map) = item else { continue };
                let key: Vec<Option<&Value>> =
                    keys.iter().map(|name| map.get(&**name).or_else(|| default(name))).collect();
                if !seen.insert(key) && errors.len() < limits::FAULTS {
                    let shown: serde_json::Map<String, Value> =
                        keys.iter().filter_map(|name| Some((name.to_string(), map.get(&**name)?.clone()))).collect();
                    errors.push(FieldError::duplicate(Path::Item(path, index).field(), shown));
                }
            }
        }
    }
}
