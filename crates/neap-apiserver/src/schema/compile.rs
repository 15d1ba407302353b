//! From the JSON of an OpenAPI v3 schema to interned nodes.
//!
//! Reading is lenient (what is not understood is not enforced); whether a user's schema is acceptable at
//! all is decided before, in `structural`.

use std::sync::Arc;

use serde_json::{Map, Number, Value};

use super::Schema;
use super::meta;
use super::node::{Additional, Checks, Kind, ListType, Node, Pattern, intern, text};
use crate::cel::Rule;

/// Where the schema comes from, which decides how an object without any stated field is read.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// A custom resource: unknown fields go unless the schema keeps them.
    User,
    /// Generated from Go types: `type: object` alone is how an arbitrary object is written.
    Trusted,
}

pub(super) fn compile(schema: &Value) -> Schema {
    root(schema, Source::User)
}

pub(super) fn compile_trusted(schema: &Value) -> Schema {
    root(schema, Source::Trusted)
}

/// A schema that is not a whole object.
pub(super) fn fragment(schema: &Value) -> Schema {
    intern(node(schema, Source::User))
}

fn root(schema: &Value, source: Source) -> Schema {
    let mut made = node(schema, source);
    made.kind = Kind::Object;
    add_type_and_meta(&mut made, schema);
    intern(made)
}

/// Puts apiVersion, kind and ObjectMeta in place, keeping restrictions on the two names.
fn add_type_and_meta(node: &mut Node, schema: &Value) {
    let mut properties = std::mem::take(&mut node.properties).into_vec();
    properties.retain(|(name, _)| !matches!(&**name, "apiVersion" | "kind" | "metadata"));
    properties.push((text("apiVersion"), meta::TEXT.clone()));
    properties.push((text("kind"), meta::TEXT.clone()));
    properties.push((text("metadata"), object_meta(schema.pointer("/properties/metadata/properties"))));
    set_properties(node, properties);
}

/// ObjectMeta, with `name` and `generateName` restricted as the schema says.
fn object_meta(stated: Option<&Value>) -> Schema {
    let restricted = |name: &str| stated?.get(name).map(fragment).filter(|made| !made.same(&meta::TEXT));
    let (name, generate_name) = (restricted("name"), restricted("generateName"));
    if name.is_none() && generate_name.is_none() {
        return meta::OBJECT_META.clone();
    }
    let base = meta::OBJECT_META.node();
    let properties = base.properties.iter().map(|(known, schema)| {
        let schema = match &**known {
            "name" => name.clone(),
            "generateName" => generate_name.clone(),
            _ => None,
        }
        .unwrap_or_else(|| schema.clone());
        (known.clone(), schema)
    });
    let mut made = Node { kind: Kind::Object, ..Node::empty() };
    set_properties(&mut made, properties.collect());
    intern(made)
}

fn set_properties(node: &mut Node, mut properties: Vec<(Arc<str>, Schema)>) {
    properties.sort_by(|(a, _), (b, _)| a.cmp(b));
    node.defaulted = properties
        .iter()
        .enumerate()
        .filter(|(_, (_, schema))| schema.node().default.is_some())
        .map(|(at, _)| u32::try_from(at).expect("a schema is smaller than a request body"))
        .collect();
    node.properties = properties.into_boxed_slice();
}

fn node(schema: &Value, source: Source) -> Node {
    let Value::Object(map) = schema else {
        // `true`, the schema of anything.
        return Node { preserve: true, ..Node::empty() };
    };
    let (kind, null_listed) = kind(map);
    let mut made = Node {
        kind,
        nullable: null_listed || flag(map, "nullable"),
        int_or_string: flag(map, "x-kubernetes-int-or-string")
            || map.get("format").is_some_and(|f| f == "int-or-string"),
        preserve: flag(map, "x-kubernetes-preserve-unknown-fields"),
        embedded: flag(map, "x-kubernetes-embedded-resource"),
        atomic_map: map.get("x-kubernetes-map-type").is_some_and(|t| t == "atomic"),
        list: list_type(map),
        merge_key: map.get("x-kubernetes-patch-merge-key").and_then(Value::as_str).map(text),
        additional: match map.get("additionalProperties") {
            None | Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(Additional::Anything),
            Some(schema) => Some(Additional::Of(intern(node(schema, source)))),
        },
        items: map.get("items").map(|schema| intern(node(schema, source))),
        default: map.get("default").cloned().map(Box::new),
        checks: checks(map, source),
        rules: map
            .get("x-kubernetes-validations")
            .and_then(Value::as_array)
            .map(|rules| rules.iter().map(Rule::read).collect())
            .unwrap_or_default(),
        ..Node::empty()
    };
    for strategy in map.get("x-kubernetes-patch-strategy").and_then(Value::as_str).unwrap_or_default().split(',') {
        match strategy {
            "merge" => made.merge = true,
            "replace" => made.replace = true,
            // retainKeys is announced by the patch itself; the schema only tells clients to send it.
            _ => {}
        }
    }
    if !map.contains_key("x-kubernetes-patch-strategy") && kind == Kind::Array {
        // Schemas of built-in kinds come without the patch extensions. There a list with keys merges by the
        // first of them and a set merges by value, which is what the extensions would say.
        made.merge = made.list != ListType::Atomic;
        made.merge_key = map.get("x-kubernetes-list-map-keys").and_then(|keys| keys.get(0)?.as_str()).map(text);
    }
    if made.int_or_string {
        // `type: string` with the extension is how v2 documents spell it.
        made.kind = Kind::Any;
    }
    let stated = map.get("properties").and_then(Value::as_object);
    if let Some(stated) = stated {
        set_properties(
            &mut made,
            stated.iter().map(|(name, schema)| (text(name), intern(node(schema, source)))).collect(),
        );
    }
    if made.embedded {
        add_type_and_meta(&mut made, schema);
    }
    made.has_rules = has_rules(&made);
    let says_nothing = made.properties.is_empty() && made.additional.is_none() && made.items.is_none();
    if source == Source::Trusted
        && says_nothing
        && !made.int_or_string
        && matches!(made.kind, Kind::Object | Kind::Any)
        && stated.is_none()
    {
        made.preserve = true;
    }
    made
}

fn has_rules(node: &Node) -> bool {
    let below = |schema: &Schema| schema.node().has_rules;
    !node.rules.is_empty()
        || node.properties.iter().any(|(_, schema)| below(schema))
        || node.items.as_ref().is_some_and(below)
        || matches!(&node.additional, Some(Additional::Of(schema)) if below(schema))
}

/// The declared type, and whether `null` was listed beside it.
fn kind(map: &Map<String, Value>) -> (Kind, bool) {
    let named = |name: &str| match name {
        "object" => Kind::Object,
        "array" => Kind::Array,
        "string" => Kind::String,
        "integer" => Kind::Integer,
        "number" => Kind::Number,
        "boolean" => Kind::Boolean,
        _ => Kind::Any,
    };
    match map.get("type") {
        Some(Value::String(name)) => (named(name), false),
        Some(Value::Array(names)) => {
            let null = names.iter().any(|name| name == "null");
            let mut others = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            match (others.next(), others.next()) {
                (Some(only), None) => (named(only), null),
                _ => (Kind::Any, null),
            }
        }
        _ => (Kind::Any, false),
    }
}

fn list_type(map: &Map<String, Value>) -> ListType {
    match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListType::Set,
        Some("map") => {
            let mut keys: Vec<Arc<str>> = texts(map.get("x-kubernetes-list-map-keys"));
            keys.sort();
            if keys.is_empty() { ListType::Atomic } else { ListType::Map(keys.into_boxed_slice()) }
        }
        _ => ListType::Atomic,
    }
}

/// The value checks, or nothing when there are none.
fn checks(map: &Map<String, Value>, source: Source) -> Option<Box<Checks>> {
    let (minimum, exclusive_minimum) = bound(map, "minimum", "exclusiveMinimum");
    let (maximum, exclusive_maximum) = bound(map, "maximum", "exclusiveMaximum");
    let all = |name: &str| -> Box<[Schema]> {
        let list = map.get(name).and_then(Value::as_array);
        list.into_iter().flatten().map(|schema| intern(node(schema, source))).collect()
    };
    let count = |name: &str| map.get(name).and_then(Value::as_u64);
    let checks = Checks {
        required: texts(map.get("required")).into_boxed_slice(),
        format: map.get("format").and_then(Value::as_str).filter(|name| super::formats::is_known(name)).map(text),
        enumeration: match (map.get("enum"), map.get("const")) {
            (Some(Value::Array(values)), _) => Some(values.clone().into_boxed_slice()),
            (_, Some(value)) => Some(Box::new([value.clone()])),
            _ => None,
        },
        minimum,
        maximum,
        exclusive_minimum,
        exclusive_maximum,
        multiple_of: map.get("multipleOf").and_then(Value::as_number).cloned(),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        unique_items: flag(map, "uniqueItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        pattern: map.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty()).map(Pattern::new),
        all_of: all("allOf"),
        any_of: all("anyOf"),
        one_of: all("oneOf"),
        not: map.get("not").map(|schema| intern(node(schema, source))),
    };
    (checks != Checks::default()).then(|| Box::new(checks))
}

/// A bound and whether it excludes itself, in either spelling: a boolean beside the bound (OpenAPI 3.0) or
/// a bound of its own (JSON Schema 2020).
fn bound(map: &Map<String, Value>, inclusive: &str, exclusive: &str) -> (Option<Number>, bool) {
    match map.get(exclusive) {
        Some(Value::Number(own)) => (Some(own.clone()), true),
        other => {
            let limit = map.get(inclusive).and_then(Value::as_number).cloned();
            let excludes = limit.is_some() && other == Some(&Value::Bool(true));
            (limit, excludes)
        }
    }
}

fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}

fn texts(list: Option<&Value>) -> Vec<Arc<str>> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(text).collect()
}
