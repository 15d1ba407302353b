//! Strategic merge patch: a merge patch that knows which lists are sets and which have keys, and that can
//! be told to delete, replace and reorder (`$patch`, `$deleteFromPrimitiveList`, `$setElementOrder`,
//! `$retainKeys`).

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Node, Schema};

/// `$patch: replace | delete | merge`, in a map or a list item.
const DIRECTIVE: &str = "$patch";
/// `$deleteFromPrimitiveList/finalizers: [...]` beside the list it empties.
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
/// `$setElementOrder/containers: [...]` beside the list it orders.
const SET_ORDER: &str = "$setElementOrder/";
/// `$retainKeys: [...]`: every other field of the map goes.
const RETAIN_KEYS: &str = "$retainKeys";

/// Applies a strategic merge patch. On an error the object is as it was.
pub fn strategic_merge(object: &mut Value, patch: &Value, schema: &Schema) -> Result<(), PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (&*object, patch) else {
        return Err(PatchError::malformed("a strategic merge patch is an object"));
    };
    let merged = merge_map(original.clone(), patch, Some(schema))?;
    *object = Value::Object(merged);
    Ok(())
}

type Object = Map<String, Value>;

fn merge_map(mut original: Object, patch: &Object, schema: Option<&Schema>) -> Result<Object, PatchError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(without_directives(patch)),
            Some("delete") => Ok(Object::new()),
            // Merging is what happens anyway.
            Some("merge") => {
                let mut rest = patch.clone();
                rest.remove(DIRECTIVE);
                merge_map(original, &rest, schema)
            }
            _ => Err(unknown_directive(directive, patch)),
        };
    }
    let node = schema.map(Schema::node);
    if let Some(list) = patch.get(RETAIN_KEYS) {
        retain_keys(&mut original, patch, list)?;
    }
    // Lists with an order of their own come first and are done with.
    let mut ordered: HashSet<&str> = HashSet::new();
    for (key, order) in patch {
        if let Some(name) = key.strip_prefix(SET_ORDER) {
            merge_ordered(&mut original, patch, name, order, node)?;
            ordered.insert(name);
        }
    }
    for (key, change) in patch {
        if key == RETAIN_KEYS || key.starts_with(SET_ORDER) || ordered.contains(key.as_str()) {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(&mut original, name, change)?;
            continue;
        }
        if change.is_null() {
            original.remove(key);
            continue;
        }
        let below = node.and_then(|node| node.field(key));
        let merged = match (original.remove(key), change) {
            (Some(Value::Object(old)), Value::Object(change)) => {
                if below.is_some_and(|schema| schema.node().replace) {
                    Value::Object(without_directives(change))
                } else {
                    Value::Object(merge_map(old, change, below)?)
                }
            }
            (Some(Value::Array(old)), Value::Array(change)) => Value::Array(merge_list(old, change, below)?),
            (_, change) => match fresh(change) {
                Some(value) => value,
                None => continue,
            },
        };
        original.insert(key.clone(), merged);
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, patch: &Object) -> PatchError {
    let told = directive.as_str().map_or_else(|| shown(directive), str::to_owned);
    PatchError::directive(format!("unknown patch type: {told} in map: {}", shown(&Value::Object(patch.clone()))))
}

/// A value that replaces or newly sets: nulls and directives have nothing to act on in it. Nothing is left of
/// what is only there to be deleted.
fn fresh(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Object(map) if is_deletion(map) => return None,
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(fresh_items(items)),
        other => other.clone(),
    })
}

fn fresh_items(items: &[Value]) -> Vec<Value> {
    // An item that is a directive and nothing else speaks of the list, not of itself.
    items.iter().filter(|item| !item.as_object().is_some_and(is_bare_directive)).filter_map(fresh).collect()
}

fn is_deletion(map: &Object) -> bool {
    map.get(DIRECTIVE).is_some_and(|directive| directive == "delete")
}

fn is_bare_directive(map: &Object) -> bool {
    map.len() == 1 && map.contains_key(DIRECTIVE)
}

fn without_directives(map: &Object) -> Object {
    map.iter()
        .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
        .filter_map(|(name, value)| Some((name.clone(), fresh(value)?)))
        .collect()
}

/// `$retainKeys`: drops every field the list does not name, and insists that it names what the patch sets.
fn retain_keys(original: &mut Object, patch: &Object, list: &Value) -> Result<(), PatchError> {
    let bad = || PatchError::directive("invalid patch format of retainKeys");
    let Value::Array(list) = list else { return Err(bad()) };
    let list: HashSet<&str> = list.iter().filter_map(Value::as_str).collect();
    let retained = |name: &str| list.contains(name);
    for (name, value) in patch {
        let directive = name == RETAIN_KEYS || name.starts_with(DELETE_FROM_LIST) || name.starts_with(SET_ORDER);
        if !directive && !value.is_null() && !retained(name) {
            return Err(bad());
        }
    }
    original.retain(|name, _| retained(name));
    Ok(())
}

fn delete_from_list(original: &mut Object, name: &str, gone: &Value) -> Result<(), PatchError> {
    let Value::Array(gone) = gone else {
        return Err(PatchError::directive("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(items)) = original.get_mut(name) {
        let gone: HashSet<&Value> = gone.iter().collect();
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// `$setElementOrder`: merges the list of that name, if the patch has one, and orders the result.
fn merge_ordered(
    original: &mut Object,
    patch: &Object,
    name: &str,
    order: &Value,
    node: Option<&Node>,
) -> Result<(), PatchError> {
    let bad = || PatchError::directive("invalid patch format of setElementOrder list");
    let below = node.and_then(|node| node.field(name));
    let key = below.and_then(|schema| schema.node().merge_key.as_deref()).unwrap_or_default();
    let Value::Array(order) = order else { return Err(bad()) };
    let list = |value: Option<&Value>| match value {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items.clone())),
        Some(_) => Err(bad()),
    };
    let (live, change) = (list(original.get(name))?, list(patch.get(name))?);
    if let Some(change) = &change {
        check_order(change, order, key)?;
    }
    let merged = match (&live, change) {
        (None, None) => return Ok(()),
        (Some(live), None) => live.clone(),
        (None, Some(change)) => fresh_items(&change),
        (Some(live), Some(change)) => merge_list(live.clone(), &change, below)?,
    };
    let live = live.unwrap_or_default();
    original.insert(name.to_owned(), Value::Array(reorder(merged, order, &live, key)));
    Ok(())
}

/// The items of a patch must stand in the order the patch asks for, and be named by it.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    if change.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in change.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if !key.is_empty() && item.get(key).is_none() {
            return Err(missing_key(item, key));
        }
        if !wanted.any(|one| same_item(one, item, key)) {
            return Err(PatchError::directive(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::Array(change.to_vec()),
                Value::Array(order.to_vec())
            )));
        }
    }
    Ok(())
}

fn missing_key(item: &Value, key: &str) -> PatchError {
    PatchError::directive(format!("map: {} does not contain declared merge key: {key}", shown(item)))
}

/// A value the way Go prints it, which is what people find when they search for a message.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let fields: Vec<String> = map.iter().map(|(name, value)| format!("{name}:{}", shown(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

/// Whether two items are the same one: by key for objects, by value otherwise.
fn same_item(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() {
        return a == b;
    }
    match (a.get(key), b.get(key)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// What an item is known by: its key for objects, its value otherwise.
fn identity<'a>(item: &'a Value, key: &str) -> Option<&'a Value> {
    if key.is_empty() { Some(item) } else { item.get(key) }
}

/// Where each item first stands in a list.
fn places<'a>(list: &'a [Value], key: &str) -> HashMap<&'a Value, usize> {
    // Of several the first counts, so it is put in last.
    list.iter().enumerate().rev().filter_map(|(at, item)| Some((identity(item, key)?, at))).collect()
}

/// Merges two lists the way the schema says; without a word from it the new one replaces.
fn merge_list(original: Vec<Value>, patch: &[Value], schema: Option<&Schema>) -> Result<Vec<Value>, PatchError> {
    let node = schema.map(Schema::node);
    if !node.is_some_and(|node| node.merge) {
        return Ok(fresh_items(patch));
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let objects = original.iter().chain(patch).filter(|item| item.is_object()).count();
    if objects != 0 && objects != original.len() + patch.len() {
        return Err(PatchError::directive("list element types are not identical"));
    }
    if original.iter().chain(patch).any(Value::is_array) {
        return Err(PatchError::directive("lists of lists are not supported"));
    }
    if objects == 0 {
        let mut seen = HashSet::with_capacity(original.len() + patch.len());
        let merged = original.iter().chain(patch).filter(|item| seen.insert(*item)).cloned().collect();
        return Ok(reorder(merged, patch, &original, ""));
    }
    let key = node.and_then(|node| node.merge_key.as_deref()).unwrap_or_default();
    if key.is_empty() {
        return Err(PatchError::directive("cannot merge lists without merge key for type map"));
    }
    merge_keyed(original, patch, key, node.and_then(|node| node.items.as_ref()))
}

/// Merges two lists of objects that are told apart by a key.
fn merge_keyed(
    original: Vec<Value>,
    patch: &[Value],
    key: &str,
    items: Option<&Schema>,
) -> Result<Vec<Value>, PatchError> {
    let mut gone: HashSet<&Value> = HashSet::new();
    let mut plain: Vec<&Value> = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let Some(name) = item.get(key) else { return Err(missing_key(item, key)) };
                    gone.insert(name);
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::directive("merging lists cannot yet be specified in the patch"));
                }
                _ => {
                    let Value::Object(map) = item else { continue };
                    return Err(unknown_directive(directive, map));
                }
            },
        }
    }
    if replace {
        return Ok(plain.into_iter().filter_map(fresh).collect());
    }
    let mut merged: Vec<Value> =
        original.iter().filter(|one| one.get(key).is_none_or(|name| !gone.contains(name))).cloned().collect();
    let mut known: HashMap<Value, usize> =
        places(&merged, key).into_iter().map(|(name, at)| (name.clone(), at)).collect();
    for item in &plain {
        let Value::Object(change) = item else { continue };
        let Some(name) = change.get(key) else { return Err(missing_key(item, key)) };
        match known.get(name) {
            Some(&at) => {
                let Value::Object(old) = merged[at].take() else { continue };
                merged[at] = Value::Object(merge_map(old, change, items)?);
            }
            None => {
                if let Some(new) = fresh(item) {
                    if let Some(name) = new.get(key) {
                        known.insert(name.clone(), merged.len());
                    }
                    merged.push(new);
                }
            }
        }
    }
    let order: Vec<Value> = plain.into_iter().cloned().collect();
    Ok(reorder(merged, &order, &original, key))
}

/// Orders a merged list: what `wanted` names stands in its order; the rest keeps its order in `live` and its
/// place among the named where both were live before.
fn reorder(merged: Vec<Value>, wanted: &[Value], live: &[Value], key: &str) -> Vec<Value> {
    let (in_wanted, in_live) = (places(wanted, key), places(live, key));
    // Each item with its place in the list that orders it, and in the live one.
    let place = |of: &HashMap<&Value, usize>, item: &Value| identity(item, key).and_then(|name| of.get(name)).copied();
    let (mut named, mut rest) = (Vec::new(), Vec::new());
    for item in merged {
        let live = place(&in_live, &item);
        match place(&in_wanted, &item) {
            Some(wanted) => named.push((wanted, live, item)),
            None => rest.push((live, item)),
        }
    }
    named.sort_by_key(|(wanted, ..)| *wanted);
    rest.sort_by_key(|(live, _)| *live);
    let mut out = Vec::with_capacity(named.len() + rest.len());
    let (mut named, mut rest) = (named.into_iter().peekable(), rest.into_iter().peekable());
    loop {
        let rest_first = match (rest.peek(), named.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((Some(left), _)), Some((_, Some(right), _))) => left < right,
            _ => false,
        };
        if rest_first {
            out.extend(rest.next().map(|(_, item)| item));
        } else {
            out.extend(named.next().map(|(.., item)| item));
        }
    }
}
