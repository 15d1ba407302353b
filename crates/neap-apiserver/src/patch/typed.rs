//! Objects seen through their schema: where they differ, which fields they set, how two are merged and
//! how items are taken out. This is what managed fields and server-side apply are made of.
//!
//! Where the schema knows nothing the shape is deduced from the value: objects merge field by field, lists
//! are replaced whole.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fieldset::{Scalar, Set, Step};
use crate::limits::{FAULT, FAULTS, cut};
use crate::schema::{Kind, ListType, Node, Schema};

/// How a value is taken apart.
enum Shape<'s> {
    /// Not at all: a scalar, or a container that is owned whole.
    Leaf,
    /// Field by field.
    Map(Option<&'s Node>),
    /// Item by item.
    List(&'s Node),
}

fn shape<'s>(schema: Option<&'s Schema>, value: &Value) -> Shape<'s> {
    let Some(node) = schema.map(Schema::node) else {
        return if value.is_object() { Shape::Map(None) } else { Shape::Leaf };
    };
    match (node.kind, value) {
        _ if node.int_or_string => Shape::Leaf,
        (Kind::Object, Value::Object(_) | Value::Null) if !node.atomic_map => Shape::Map(Some(node)),
        (Kind::Array, Value::Array(_) | Value::Null) if node.list != ListType::Atomic => Shape::List(node),
        (Kind::Any, Value::Object(_)) if !node.atomic_map && (node.preserve || !node.properties.is_empty()) => {
            Shape::Map(Some(node))
        }
        _ => Shape::Leaf,
    }
}

fn fields(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// The name of a list item, or why it has none.
fn item_step<'a>(node: &Node, item: &'a Value) -> Result<Step<'a>, String> {
    match &node.list {
        ListType::Map(keys) => {
            let Value::Object(map) = item else {
                return Err(match item {
                    Value::Null => "associative list with keys may not have a null element".to_owned(),
                    _ => "associative list with keys may not have non-map elements".to_owned(),
                });
            };
            let default = |name: &str| node.items.as_ref()?.node().property(name)?.node().default.as_deref().cloned();
            let mut named = Vec::with_capacity(keys.len());
            for key in keys {
                if let Some((name, value)) = map.get_key_value(&**key) {
                    named.push((Cow::Borrowed(name.as_str()), Scalar(Cow::Borrowed(value))));
                } else if let Some(value) = default(key) {
                    named.push((Cow::Owned(key.to_string()), Scalar(Cow::Owned(value))));
                }
            }
            // An item that says some of its keys is another one than those that say more.
            if named.is_empty() {
                let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    keys.join(" ")
                ));
            }
            Ok(Step::Key(named.into_boxed_slice()))
        }
        _ => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            scalar => Ok(Step::Item(Scalar(Cow::Borrowed(scalar)))),
        },
    }
}

/// Every item under its name in sorted order (equal names in list order), or nothing when one has no name.
fn named_items<'a>(node: &Node, list: &'a [Value]) -> Option<Vec<(Step<'a>, &'a Value)>> {
    let mut named = Vec::with_capacity(list.len());
    for item in list {
        named.push((item_step(node, item).ok()?, item));
    }
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(named)
}

/// What changed between two objects.
#[derive(Default)]
pub(super) struct Difference<'a> {
    pub(super) added: Set<'a>,
    pub(super) modified: Set<'a>,
    pub(super) removed: Set<'a>,
}

/// What happened to one value itself, apart from what happened below it.
#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Same,
    Added,
    Modified,
    Removed,
}

/// Compares two objects; `None` stands for no object at all.
pub(super) fn compare<'a>(schema: Option<&Schema>, old: Option<&'a Value>, new: Option<&'a Value>) -> Difference<'a> {
    let mut out = Difference::default();
    compare_value(schema, old, new, &mut out);
    out
}

impl<'a> Difference<'a> {
    fn descend(&mut self, step: Step<'a>, schema: Option<&Schema>, old: Option<&'a Value>, new: Option<&'a Value>) {
        let mut below = Difference::default();
        let mark = compare_value(schema, old, new, &mut below);
        self.put(step, mark, below);
    }

    fn put(&mut self, step: Step<'a>, mark: Mark, below: Difference<'a>) {
        for (set, member, below) in [
            (&mut self.added, mark == Mark::Added, below.added),
            (&mut self.modified, mark == Mark::Modified, below.modified),
            (&mut self.removed, mark == Mark::Removed, below.removed),
        ] {
            if member || !below.is_empty() {
                set.push(step.clone(), member, below);
            }
        }
    }
}

/// Equality of two leaves; 1 and 1.0 are one number.
fn same_leaf(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => Scalar(Cow::Borrowed(a)) == Scalar(Cow::Borrowed(b)),
        _ => a == b,
    }
}

/// Compares one pair of values, putting what happened below into `out`.
fn compare_value<'a>(
    schema: Option<&Schema>,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
    out: &mut Difference<'a>,
) -> Mark {
    let leaf = || match (old, new) {
        (None, _) => Mark::Added,
        (_, None) => Mark::Removed,
        (Some(old), Some(new)) if same_leaf(old, new) => Mark::Same,
        _ => Mark::Modified,
    };
    // Where both sides hold nothing they are leaves: that tells an empty container from null.
    if is_hollow(old) && is_hollow(new) {
        return leaf();
    }
    let whole = match (old, new) {
        (None, _) => Mark::Added,
        (_, None) => Mark::Removed,
        _ => Mark::Same,
    };
    // Most of an object does not change in a write: what is equal need not be taken apart.
    if old == new {
        return Mark::Same;
    }
    let shapes = (old.map(|value| shape(schema, value)), new.map(|value| shape(schema, value)));
    match shapes {
        (Some(Shape::Map(node)), Some(Shape::Map(_)) | None) | (None, Some(Shape::Map(node))) => {
            compare_fields(node, fields(old), fields(new), out);
            whole
        }
        (Some(Shape::List(node)), Some(Shape::List(_)) | None) | (None, Some(Shape::List(node))) => {
            match (named_items(node, items(old)), named_items(node, items(new))) {
                (Some(old), Some(new)) => {
                    compare_items(node, &old, &new, out);
                    whole
                }
                // An item without a name: the list can only be seen whole.
                _ => leaf(),
            }
        }
        (Some(old_shape), Some(new_shape)) => {
            // The value changed its nature: what it held is gone, what it holds is new.
            if let Shape::Map(node) = old_shape {
                compare_fields(node, fields(old), None, out);
            }
            if let Shape::Map(node) = new_shape {
                compare_fields(node, None, fields(new), out);
            }
            leaf()
        }
        _ => leaf(),
    }
}

fn compare_fields<'a>(
    node: Option<&Node>,
    old: Option<&'a Map<String, Value>>,
    new: Option<&'a Map<String, Value>>,
    out: &mut Difference<'a>,
) {
    // In the order of the names, so that the sets grow at their ends.
    let (mut old, mut new) = (old.into_iter().flatten().peekable(), new.into_iter().flatten().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let was = if order.is_le() { old.next() } else { None };
        let is = if order.is_ge() { new.next() } else { None };
        let (name, _) = was.or(is).expect("one side was taken");
        let below = node.and_then(|node| node.field(name));
        out.descend(Step::Field(Cow::Borrowed(name)), below, was.map(|(_, v)| v), is.map(|(_, v)| v));
    }
}

fn compare_items<'a>(
    node: &Node,
    old: &[(Step<'a>, &'a Value)],
    new: &[(Step<'a>, &'a Value)],
    out: &mut Difference<'a>,
) {
    let (mut at_old, mut at_new) = (0, 0);
    while at_old < old.len() || at_new < new.len() {
        let step = match (old.get(at_old), new.get(at_new)) {
            (Some((a, _)), Some((b, _))) => a.min(b),
            (Some((one, _)), None) | (None, Some((one, _))) => one,
            (None, None) => return,
        };
        let run = |list: &[(Step<'a>, &'a Value)], from: usize| {
            list[from..].iter().take_while(|(name, _)| name == step).count()
        };
        let (in_old, in_new) = (run(old, at_old), run(new, at_new));
        let (was, is) = (&old[at_old..at_old + in_old], &new[at_new..at_new + in_new]);
        (at_old, at_new) = (at_old + in_old, at_new + in_new);
        if in_old <= 1 && in_new <= 1 {
            let (was, is) = (was.first().map(|(_, v)| *v), is.first().map(|(_, v)| *v));
            out.descend(step.clone(), node.items.as_ref(), was, is);
        } else {
            // A name used twice (an old object may hold that): all its bearers together are one value.
            let mark = match (in_old, in_new) {
                (0, _) => Mark::Added,
                (_, 0) => Mark::Removed,
                _ if was.iter().map(|(_, v)| v).eq(is.iter().map(|(_, v)| v)) => Mark::Same,
                _ => Mark::Modified,
            };
            out.put(step.clone(), mark, Difference::default());
        }
    }
}

/// The fields an object sets, as the one who applies it owns them.
pub(super) fn field_set<'a>(schema: Option<&Schema>, value: &'a Value) -> Set<'a> {
    own_value(schema, value).1
}

/// Whether a value is owned itself, and what is owned below it.
fn own_value<'a>(schema: Option<&Schema>, value: &'a Value) -> (bool, Set<'a>) {
    let mut out = Set::default();
    match shape(schema, value) {
        Shape::Leaf => return (true, out),
        Shape::Map(node) => {
            for (name, field) in fields(Some(value)).into_iter().flatten() {
                let (leaf, below) = own_value(node.and_then(|node| node.field(name)), field);
                let named = node.is_some_and(|node| node.property(name).is_some());
                let hollow = field.is_null() || field.as_object().is_some_and(Map::is_empty);
                out.push(Step::Field(Cow::Borrowed(name)), leaf || !named || hollow, below);
            }
        }
        Shape::List(node) => {
            let Some(named) = named_items(node, items(Some(value))) else { return (true, out) };
            for (step, item) in named {
                let below = own_value(node.items.as_ref(), item).1;
                out.push(step, true, below);
            }
        }
    }
    (false, out)
}

/// Merges an applied configuration into an object: what it sets wins, what it does not mention stays.
pub(super) fn merge(schema: Option<&Schema>, live: &Value, applied: &Value) -> Value {
    match (shape(schema, live), shape(schema, applied)) {
        _ if is_hollow(Some(live)) => applied.clone(),
        (Shape::Map(node), Shape::Map(_)) => {
            let (Value::Object(live), Some(applied)) = (live, fields(Some(applied))) else { return live.clone() };
            let mut out = live.clone();
            for (name, field) in applied {
                let merged = match live.get(name) {
                    Some(old) => merge(node.and_then(|node| node.field(name)), old, field),
                    None => field.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::List(node), Shape::List(_)) => merge_items(node, items(Some(live)), items(Some(applied))),
        _ => applied.clone(),
    }
}

/// Merges two lists with named items. What both have stands in the order of the applied list; what only the
/// live list has keeps its place among its neighbours.
fn merge_items(node: &Node, live: &[Value], applied: &[Value]) -> Value {
    fn names<'a>(node: &Node, list: &'a [Value]) -> Option<Vec<Step<'a>>> {
        list.iter().map(|item| item_step(node, item).ok()).collect()
    }
    let (Some(ours), Some(theirs)) = (names(node, live), names(node, applied)) else {
        return Value::Array(applied.to_vec());
    };
    let (in_live, in_applied) = (places(&ours), places(&theirs));
    // Of each place in the applied list, the next that is in both.
    let mut next_shared = vec![None; theirs.len() + 1];
    for at in (0..theirs.len()).rev() {
        next_shared[at] = if in_live.contains_key(&theirs[at]) { Some(at) } else { next_shared[at + 1] };
    }
    let merged = |at: usize| match in_live.get(&theirs[at]) {
        Some(twin) => merge(node.items.as_ref(), &live[*twin], &applied[at]),
        None => applied[at].clone(),
    };
    let mut out = Vec::with_capacity(ours.len().max(theirs.len()));
    let (mut at_live, mut at_applied) = (0, 0);
    while at_live < ours.len() || at_applied < theirs.len() {
        if let Some(step) = ours.get(at_live) {
            match in_applied.get(step).copied() {
                None => {
                    out.push(live[at_live].clone());
                    at_live += 1;
                    continue;
                }
                // Already written, or to be written when its turn in the applied list comes.
                Some(twin) if twin < at_applied || next_shared[at_applied] != Some(twin) => {
                    at_live += 1;
                    continue;
                }
                Some(twin) if twin == at_applied => at_live += 1,
                Some(_) => {}
            }
        }
        out.push(merged(at_applied));
        at_applied += 1;
    }
    Value::Array(out)
}

/// Where each name first stands in a list.
fn places<'l, 'a>(names: &'l [Step<'a>]) -> BTreeMap<&'l Step<'a>, usize> {
    // Of several the first counts, so it is put in last.
    names.iter().enumerate().rev().map(|(at, name)| (name, at)).collect()
}

/// What stands for a container that lost everything it held.
#[derive(Clone, Copy)]
pub(super) enum Husk {
    /// Null, which owns its path as a whole: the form sets are computed from.
    Null,
    /// The empty container: the form that is stored.
    Empty,
}

/// Takes the fields and items of a set out of a value.
pub(super) fn remove(schema: Option<&Schema>, value: &Value, set: &Set<'_>, husk: Husk) -> Value {
    if set.is_empty() {
        return value.clone();
    }
    let emptied = |empty: bool, rest: Value| match husk {
        Husk::Null if empty => Value::Null,
        _ => rest,
    };
    match (shape(schema, value), value) {
        (Shape::Map(node), Value::Object(map)) => {
            let mut out = Map::new();
            for (name, field) in map {
                match set.child(&Step::Field(Cow::Borrowed(name))) {
                    Some((true, _)) => {}
                    Some((false, below)) => {
                        let below = remove(node.and_then(|node| node.field(name)), field, below, husk);
                        out.insert(name.clone(), below);
                    }
                    None => {
                        out.insert(name.clone(), field.clone());
                    }
                }
            }
            emptied(out.is_empty(), Value::Object(out))
        }
        (Shape::List(node), Value::Array(list)) => {
            let mut out = Vec::with_capacity(list.len());
            for item in list {
                match item_step(node, item).ok().and_then(|step| set.child(&step)) {
                    Some((true, _)) => {}
                    Some((false, below)) => out.push(remove(node.items.as_ref(), item, below, husk)),
                    None => out.push(item.clone()),
                }
            }
            emptied(out.is_empty(), Value::Array(out))
        }
        // Paths below something owned whole come from an older schema and name nothing any more.
        _ => value.clone(),
    }
}

/// Everything in an applied configuration that does not fit the schema: `.spec.foo: field not declared in
/// schema`. What apply cannot understand it must refuse, or it would own what it does not mean.
pub(super) fn misfits(schema: &Schema, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    check(Some(schema), value, &mut String::new(), &mut out);
    out
}

fn check(schema: Option<&Schema>, value: &Value, path: &mut String, out: &mut Vec<String>) {
    let Some(node) = schema.map(Schema::node) else { return };
    if value.is_null() || out.len() >= FAULTS {
        return;
    }
    let length = path.len();
    let expected = match node.kind {
        _ if node.int_or_string => (value.is_array() || value.is_object() || value.is_boolean()).then_some("scalar"),
        Kind::Any => None,
        Kind::Object => (!value.is_object()).then_some("map"),
        Kind::Array => (!value.is_array()).then_some("list"),
        Kind::String => (!value.is_string()).then_some("string"),
        Kind::Integer | Kind::Number => (!value.is_number()).then_some("numeric (int or float)"),
        Kind::Boolean => (!value.is_boolean()).then_some("boolean"),
    };
    if let Some(expected) = expected {
        out.push(format!("{path}: expected {expected}, got {}", cut(&value.to_string(), FAULT)));
        return;
    }
    match value {
        Value::Object(map) if !node.int_or_string => {
            for (name, field) in map {
                Step::Field(Cow::Borrowed(name)).show(path);
                match node.field(name) {
                    Some(below) => check(Some(below), field, path, out),
                    None if node.preserve || node.additional.is_some() => {}
                    None if out.len() >= FAULTS => {}
                    None => out.push(format!("{path}: field not declared in schema")),
                }
                path.truncate(length);
            }
        }
        Value::Array(list) => {
            let mut seen: BTreeSet<Step<'_>> = BTreeSet::new();
            for (index, item) in list.iter().enumerate() {
                if out.len() >= FAULTS {
                    return;
                }
                let step = if node.list == ListType::Atomic {
                    Step::Index(index)
                } else {
                    match item_step(node, item) {
                        Ok(step) => step,
                        Err(why) => {
                            out.push(format!("{path}: element {index}: {why}"));
                            continue;
                        }
                    }
                };
                if seen.contains(&step) {
                    let mut name = String::new();
                    step.show(&mut name);
                    out.push(format!("{path}: duplicate entries for key {name}"));
                    continue;
                }
                step.show(path);
                check(node.items.as_ref(), item, path, out);
                path.truncate(length);
                seen.insert(step);
            }
        }
        _ => {}
    }
}
