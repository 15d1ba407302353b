//! Where rules stand in a schema: holding them against objects, and against the schema itself when it is defined.

use super::eval::{Eval, Fault};
use super::value::{Val, shown};
use super::{OLD, Program, Rule, SELF};
use crate::schema::{Additional, FieldError, FieldErrorKind, ListType, Path, Schema};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Steps that one rule may take on one value. Kubernetes allows a rule 10^6 of its own units.
const PER_RULE: usize = 1_000_000;
/// Steps that the rules of one object may take together: less than a second.
const PER_OBJECT: usize = 5_000_000;
/// The longest message that an expression may make, in bytes; a longer one is as good as none.
const MESSAGE: usize = 5 * 1024;

/// What the rules of a schema say of an object, and of its change where there was one before.
pub(crate) fn validate(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut walk = Walk { errors: Vec::new(), left: PER_OBJECT, is_over: false };
    walk.value(schema, object, old, &Path::Root);
    walk.errors
}

struct Walk {
    errors: Vec<FieldError>,
    left: usize,
    /// A rule found nothing left, and this was said.
    is_over: bool,
}

impl Walk {
    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &Path<'_>) {
        let node = schema.node();
        if !node.has_rules || value.is_null() || self.errors.len() >= crate::limits::FAULTS {
            return;
        }
        for rule in &node.rules {
            if self.is_over {
                return;
            }
            if let Some(program) = rule.program(schema) {
                self.rule(rule, program, schema, value, old, path);
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let below = node.property(name).or(match &node.additional {
                        Some(Additional::Of(schema)) => Some(schema),
                        _ => None,
                    });
                    if let Some(below) = below {
                        self.value(below, field, old.and_then(|old| old.get(name)), &Path::Field(path, name));
                    }
                }
            }
            Value::Array(items) => {
                let Some(below) = &node.items else { return };
                if !below.node().has_rules {
                    return;
                }
                // Items are followed from one version to the next by their keys, or not at all.
                let identity = |item: &'_ Value| -> Option<Vec<Option<Value>>> {
                    let ListType::Map(keys) = &node.list else { return None };
                    Some(keys.iter().map(|key| item.get(&**key).cloned()).collect())
                };
                let before = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                // Of several the first counts, so it is put in last.
                let before: HashMap<_, _> =
                    before.iter().rev().filter_map(|known| Some((identity(known)?, known))).collect();
                for (at, item) in items.iter().enumerate() {
                    let twin = identity(item).and_then(|keys| before.get(&keys).copied());
                    self.value(below, item, twin, &Path::Item(path, at));
                }
            }
            _ => {}
        }
    }

    fn rule(
        &mut self,
        rule: &Rule,
        program: &Program,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        path: &Path<'_>,
    ) {
        match old {
            None if program.of_changes && !rule.optional_old => return,
            // What was let in once stays in as long as it does not change.
            Some(old) if !program.of_changes && old == value => return,
            _ => {}
        }
        let before = match (old.map(|old| Val::of(old, Some(schema))), rule.optional_old) {
            (Some(old), true) => Val::some(old),
            (None, true) => Val::Optional(None),
            (old, false) => old.unwrap_or(Val::Null),
        };
        let scope = vec![(SELF, Val::of(value, Some(schema))), (OLD, before)];
        let budget = self.left.min(PER_RULE);
        let mut eval = Eval::new(scope, budget);
        let outcome = eval.value(&program.rule);
        let told = || match rule.message.trim() {
            "" => format!("failed rule: {}", rule.source.split_whitespace().collect::<Vec<_>>().join(" ")),
            message => message.to_owned(),
        };
        match outcome {
            Ok(Val::Bool(true)) => {}
            Ok(Val::Bool(false)) => {
                let made = program.message.as_ref().and_then(|message| eval.value(message).ok());
                let made = made.as_ref().and_then(Val::as_str).map(str::trim);
                let made = made.filter(|m| !m.is_empty() && m.len() <= MESSAGE && !m.contains('\n'));
                let message = made.map_or_else(told, str::to_owned);
                self.errors.push(fault(rule, schema, path, message));
            }
            Ok(_) => {}
            Err(Fault::Error(why)) => {
                let message = format!("{why} evaluating rule: {}", told());
                self.errors.push(FieldError::invalid(path.field(), shown(schema), message));
            }
            Err(Fault::Spent) => {
                let message = "validation failed due to running out of cost budget, no further validation rules will be \
                               run";
                self.errors.push(FieldError::invalid(path.field(), shown(schema), message));
                self.left = 0;
                self.is_over = true;
                return;
            }
        }
        self.left -= budget - eval.left();
    }
}

fn fault(rule: &Rule, schema: &Schema, path: &Path<'_>, message: String) -> FieldError {
    let mut at = path.field();
    for step in steps(&rule.field_path).unwrap_or_default() {
        at = match (at.as_str(), step.contains(['.', '/', '-'])) {
            ("<nil>", _) => step,
            (at, true) => format!("{at}[{step}]"),
            (at, false) => format!("{at}.{step}"),
        };
    }
    match rule.reason.as_str() {
        "FieldValueForbidden" => FieldError::forbidden(at, message),
        "FieldValueRequired" => FieldError::required(at, message),
        "FieldValueDuplicate" => FieldError { detail: message, ..FieldError::duplicate(at, shown(schema)) },
        _ => FieldError::invalid(at, shown(schema), message),
    }
}

/// `.spec.field` and `.spec['a.b']` as names; `None` where it is no such path.
fn steps(path: &str) -> Option<Vec<String>> {
    let (mut out, mut rest) = (Vec::new(), path.trim());
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("['") {
            let (name, after) = after.split_once("']")?;
            out.push(name.to_owned());
            rest = after;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            if end == 0 {
                return None;
            }
            out.push(after[..end].to_owned());
            rest = &after[end..];
        }
    }
    Some(out)
}

/// What is wrong with the rules in the schema of a definition.
pub(crate) fn check(schema: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Value::Object(map) = schema {
        check_node(map, true, "", &mut errors, true);
    }
    errors
}

fn check_node(map: &Map<String, Value>, is_root: bool, path: &str, errors: &mut Vec<FieldError>, followed: bool) {
    let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let rules = map.get("x-kubernetes-validations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !rules.is_empty() {
        let value = Value::Object(map.clone());
        let schema = if is_root { Schema::of_root(&value) } else { Schema::of_part(&value) };
        for (at, rule) in rules.iter().enumerate() {
            check_rule(rule, &schema, &child(&format!("x-kubernetes-validations[{at}]")), followed, errors);
        }
    }
    for (name, below) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Value::Object(below) = below {
            check_node(below, false, &format!("{}[{name}]", child("properties")), errors, followed);
        }
    }
    if let Some(Value::Object(below)) = map.get("additionalProperties") {
        check_node(below, false, &child("additionalProperties"), errors, followed);
    }
    if let Some(Value::Object(below)) = map.get("items") {
        let by_key = map.get("x-kubernetes-list-type").is_some_and(|kind| kind == "map");
        check_node(below, false, &child("items"), errors, followed && by_key);
    }
}

fn check_rule(value: &Value, schema: &Schema, path: &str, followed: bool, errors: &mut Vec<FieldError>) {
    let rule = Rule::read(value);
    let at = |field: &str| format!("{path}.{field}");
    if rule.source.trim().is_empty() {
        errors.push(FieldError::required(at("rule"), "rule is not specified"));
        return;
    }
    let message = rule.message.trim();
    if message.contains('\n') {
        errors.push(FieldError::invalid(at("message"), message, "message must not contain line breaks"));
    }
    if message.len() > 2048 {
        errors.push(FieldError::too_long(at("message"), 2048));
    }
    if message.is_empty() && rule.source.trim().contains('\n') {
        errors.push(FieldError::required(at("message"), "message must be specified if rule contains line breaks"));
    }
    const REASONS: [&str; 4] =
        ["FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate"];
    if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
        let allowed = REASONS.map(Value::from);
        errors.push(FieldError::not_supported(at("reason"), rule.reason.clone(), &allowed));
    }
    if !rule.field_path.is_empty() {
        let known = steps(&rule.field_path).is_some_and(|steps| leads_to_a_field(schema, &steps));
        if !known {
            let why = "fieldPath must be a valid path: does not refer to a valid field";
            errors.push(FieldError::invalid(at("fieldPath"), rule.field_path.clone(), why));
        }
    }
    match rule.compile(schema) {
        Err(misfit) => errors.push(FieldError::invalid(at(misfit.field), value.clone(), misfit.why)),
        Ok(program) if program.of_changes && !followed => {
            let why = "oldSelf cannot be used on the uncorrelatable portion of the schema: items of a list that is no map \
                       cannot be followed from one version to the next";
            errors.push(FieldError::invalid(at("rule"), rule.source.clone(), why));
        }
        Ok(_) => {}
    }
}

fn leads_to_a_field(schema: &Schema, steps: &[String]) -> bool {
    match steps.split_first() {
        None => true,
        Some((first, rest)) => schema.node().field(first).is_some_and(|below| leads_to_a_field(below, rest)),
    }
}

/// Whether faults of this kind leave the rules unasked: they would be held against something that is not even of its
/// shape.
pub(crate) fn is_blocking(kind: FieldErrorKind) -> bool {
    matches!(
        kind,
        FieldErrorKind::Required
            | FieldErrorKind::NotSupported
            | FieldErrorKind::TooLong
            | FieldErrorKind::TooMany
            | FieldErrorKind::TypeInvalid
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whoever_uses_up_the_steps_does_not_get_past_the_rules_that_follow() {
        let rules = json!([{"rule": "1 == 1"}, {"rule": "1 == 2"}]);
        let schema = Schema::compile(&json!({"type": "object", "x-kubernetes-validations": rules})).unwrap();
        let mut walk = Walk { errors: Vec::new(), left: 0, is_over: false };
        walk.value(&schema, &json!({}), None, &Path::Root);
        assert_eq!(walk.errors.len(), 1, "and it is said once: {:?}", walk.errors);
    }

    #[test]
    fn items_are_followed_by_their_keys_however_many_there_are() {
        const MANY: usize = 20_000;
        let schema = Schema::compile(&json!({"type": "object", "properties": {"l": {"type": "array",
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"],
            "properties": {"k": {"type": "integer"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v == oldSelf.v"}]}}}}))
        .unwrap();
        let item = |n: usize| json!({"k": n, "v": 2 * n});
        let old = json!({"l": (0..MANY).map(item).collect::<Value>()});
        let mut new = json!({"l": (0..MANY).rev().map(item).collect::<Value>()});
        assert_eq!(validate(&schema, &new, Some(&old)), []);
        new["l"][7]["v"] = json!(0);
        assert_eq!(validate(&schema, &new, Some(&old)).len(), 1);
    }
}
