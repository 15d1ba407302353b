//! Traffic targets: `name` is today's `tag` (fact I7).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Fields, present, take};
use crate::admit::field_error::Errors;

/// `fields` holds the list `traffic`; tags written as names are added to `named`.
pub(super) fn to_stored(fields: &mut Fields, named: &mut BTreeSet<String>) -> Errors {
    let mut errors = Errors::none();
    for (i, target) in targets(fields).enumerate() {
        let both = present(target, &["name", "tag"]);
        if both.len() > 1 {
            errors.add(Errors::both(&both).via_field_index("traffic", i));
            continue;
        }
        let Some(name) = take(target, "name") else { continue };
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            named.insert(name.to_owned());
        }
        target.insert("tag".into(), name);
    }
    errors
}

pub(super) fn to_old(fields: &mut Fields, named: &BTreeSet<String>) {
    for target in targets(fields) {
        let is_name = target.get("tag").and_then(Value::as_str).is_some_and(|tag| named.contains(tag));
        if is_name && let Some(tag) = target.remove("tag") {
            target.insert("name".into(), tag);
        }
    }
}

pub(super) fn targets(fields: &mut Fields) -> impl Iterator<Item = &mut Fields> {
    let list = fields.get_mut("traffic").and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}
