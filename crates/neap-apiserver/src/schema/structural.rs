//! Whether a user's schema is structural: the rules a CustomResourceDefinition must keep, in Kubernetes'
//! words. Works on the raw JSON, because the compiled form has already forgotten what is forbidden.

use serde_json::{Map, Value};

use super::compile;
use super::error::FieldError;
use super::pattern;

/// How high in the tree a schema sits; some rules differ.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Every broken rule, sorted by its text.
pub(super) fn check(schema: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match schema {
        Value::Object(map) => structure(map, Level::Root, "", &mut errors),
        _ => errors.push(FieldError::required("type", "must not be empty at the root")),
    }
    errors.sort_by_key(ToString::to_string);
    errors
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn property(path: &str, name: &str) -> String {
    format!("{}[{name}]", child(path, "properties"))
}

fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}

fn properties(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    map.get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, schema)| Some((name, schema.as_object()?)))
}

fn structure(map: &Map<String, Value>, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
    let (preserve, embedded, int_or_string) = (
        flag(map, "x-kubernetes-preserve-unknown-fields"),
        flag(map, "x-kubernetes-embedded-resource"),
        flag(map, "x-kubernetes-int-or-string"),
    );
    if kind.is_empty() && !preserve && !int_or_string && !embedded {
        errors.push(FieldError::required(
            child(path, "type"),
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
    if !kind.is_empty() && !TYPES.contains(&kind) {
        let known = TYPES.map(Value::from);
        errors.push(FieldError::not_supported(child(path, "type"), kind, known.iter()));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(child(path, "type"), kind, "must be object at the root"));
    }
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(child(path, "type"), detail),
            other => FieldError::invalid(child(path, "type"), other, detail),
        });
    }
    if int_or_string && preserve {
        errors.push(FieldError::invalid(
            child(path, "x-kubernetes-preserve-unknown-fields"),
            true,
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if int_or_string && embedded {
        errors.push(FieldError::invalid(
            child(path, "x-kubernetes-embedded-resource"),
            true,
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if embedded && !preserve && properties(map).next().is_none() {
        errors.push(FieldError::required(
            child(path, "properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
    if flag(map, "uniqueItems") {
        errors.push(FieldError::forbidden(
            child(path, "uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if map.contains_key("$ref") {
        errors.push(FieldError::forbidden(child(path, "$ref"), "$ref is not supported"));
    }
    additional(map, level, embedded, path, errors);
    list_and_map_types(map, kind, path, errors);
    if let Some(Value::Object(items)) = map.get("items") {
        structure(items, Level::Item, &child(path, "items"), errors);
    } else if kind == "array" {
        errors.push(FieldError::required(child(path, "items"), "must be specified"));
    }
    for (name, schema) in properties(map) {
        let below = property(path, name);
        let is_meta = (level == Level::Root || embedded) && name == "metadata";
        if is_meta {
            metadata(schema, level, &below, errors);
        } else {
            if (level == Level::Root || embedded) && matches!(name.as_str(), "kind" | "apiVersion") {
                let stated = schema.get("type").and_then(Value::as_str).unwrap_or_default();
                if stated != "string" {
                    errors.push(FieldError::invalid(child(&below, "type"), stated, "must be string"));
                }
            }
            structure(schema, Level::Field, &below, errors);
        }
    }
    let int_or_string_any_of = int_or_string
        && [map.get("anyOf"), map.get("allOf").and_then(|all| all.get(0)?.get("anyOf"))]
            .into_iter()
            .flatten()
            .any(is_int_or_string);
    values(map, map, int_or_string_any_of, path, errors);
    default_value(map, path, errors);
}

fn additional(map: &Map<String, Value>, level: Level, embedded: bool, path: &str, errors: &mut Vec<FieldError>) {
    let at = child(path, "additionalProperties");
    match map.get("additionalProperties") {
        None => return,
        Some(Value::Bool(false)) => {
            errors.push(FieldError::forbidden(at.clone(), "additionalProperties cannot be set to false"));
        }
        Some(Value::Object(schema)) => structure(schema, Level::Field, &at, errors),
        Some(_) => {}
    }
    if level == Level::Root {
        errors.push(FieldError::forbidden(at.clone(), "must not be used at the root"));
    }
    if embedded {
        errors.push(FieldError::forbidden(at.clone(), "must not be used if x-kubernetes-embedded-resource is set"));
    }
    if properties(map).next().is_some() {
        errors.push(FieldError::forbidden(at, "additionalProperties and properties are mutual exclusive"));
    }
}

fn list_and_map_types(map: &Map<String, Value>, kind: &str, path: &str, errors: &mut Vec<FieldError>) {
    let keys: Vec<&str> = map
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (type_at, keys_at) = (child(path, "x-kubernetes-list-type"), child(path, "x-kubernetes-list-map-keys"));
    let list_type = map.get("x-kubernetes-list-type");
    if list_type.is_some() && kind != "array" {
        errors.push(FieldError::invalid(
            child(path, "type"),
            kind,
            "must be array if x-kubernetes-list-type is specified",
        ));
    }
    match list_type.map(|t| t.as_str().unwrap_or_default()) {
        None | Some("atomic" | "set") if !keys.is_empty() => errors.push(FieldError::forbidden(
            keys_at,
            "x-kubernetes-list-map-keys can only be used with x-kubernetes-list-type=map",
        )),
        None | Some("atomic" | "set") => {}
        Some("map") => {
            if keys.is_empty() {
                errors
                    .push(FieldError::required(keys_at.clone(), "must not be empty if x-kubernetes-list-type is map"));
            }
            let items = map.get("items").and_then(Value::as_object);
            let items_at = child(path, "items");
            if items.and_then(|items| items.get("type")).is_none_or(|t| t != "object") {
                errors.push(FieldError::invalid(
                    child(&items_at, "type"),
                    items.and_then(|items| items.get("type")).cloned().unwrap_or("".into()),
                    "must be object if parent array's x-kubernetes-list-type is map",
                ));
            }
            for key in keys {
                let schema = items.and_then(|items| items.get("properties")?.get(key)).and_then(Value::as_object);
                let required = items
                    .and_then(|items| items.get("required")?.as_array())
                    .is_some_and(|all| all.iter().any(|n| n == key));
                match schema {
                    None => errors.push(FieldError::invalid(
                        keys_at.clone(),
                        key,
                        "entries must all be names of item properties",
                    )),
                    Some(schema) if !required && !schema.contains_key("default") => errors.push(FieldError::required(
                        child(&property(&items_at, key), "default"),
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                    )),
                    Some(_) => {}
                }
            }
        }
        Some(_) => errors.push(FieldError::not_supported(
            type_at,
            list_type.cloned().unwrap_or_default(),
            &["atomic".into(), "map".into(), "set".into()],
        )),
    }
    if let Some(map_type) = map.get("x-kubernetes-map-type") {
        if kind != "object" {
            errors.push(FieldError::invalid(
                child(path, "type"),
                kind,
                "must be object if x-kubernetes-map-type is specified",
            ));
        }
        if map_type != "atomic" && map_type != "granular" {
            errors.push(FieldError::not_supported(
                child(path, "x-kubernetes-map-type"),
                map_type.clone(),
                &["atomic".into(), "granular".into()],
            ));
        }
    }
}

/// Metadata may be restricted, and only in its two names; below the root it is an ordinary object.
fn metadata(map: &Map<String, Value>, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    if map.get("type").is_none_or(|t| t != "object") {
        errors.push(FieldError::invalid(
            child(path, "type"),
            map.get("type").cloned().unwrap_or("".into()),
            "must be object",
        ));
    }
    let only_names = properties(map).all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
    let nothing_else = map.keys().all(|key| matches!(key.as_str(), "type" | "properties" | "description"));
    if level == Level::Root && !(only_names && nothing_else) {
        errors.push(FieldError::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

fn is_int_or_string(any_of: &Value) -> bool {
    *any_of == serde_json::json!([{"type": "integer"}, {"type": "string"}])
}

/// The junctors and the pattern of a schema whose structure is `owner`.
fn values(
    map: &Map<String, Value>,
    owner: &Map<String, Value>,
    skip_int_or_string: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (index, schema) in map.get(junctor).and_then(Value::as_array).into_iter().flatten().enumerate() {
            let Value::Object(schema) = schema else { continue };
            let at = format!("{}[{index}]", child(path, junctor));
            let is_the_idiom = skip_int_or_string
                && (junctor == "anyOf" && map.get("anyOf").is_some_and(is_int_or_string)
                    || junctor == "allOf" && index == 0 && schema.get("anyOf").is_some_and(is_int_or_string));
            if !is_the_idiom {
                nested(schema, Some(owner), &at, path, errors);
            }
        }
    }
    if let Some(Value::Object(schema)) = map.get("not") {
        nested(schema, Some(owner), &child(path, "not"), path, errors);
    }
    if let Some(source) = map.get("pattern").and_then(Value::as_str)
        && let Err(error) = pattern::compile(source)
    {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        errors.push(FieldError::invalid(
            child(path, "pattern"),
            source,
            format!("must be a valid regular expression, but isn't: {reason}"),
        ));
    }
}

/// A schema inside a junctor: it may only restrict values of what `owner` already describes at `owner_path`.
fn nested(
    map: &Map<String, Value>,
    owner: Option<&Map<String, Value>>,
    path: &str,
    owner_path: &str,
    errors: &mut Vec<FieldError>,
) {
    for (name, rule) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
    ] {
        let stated = map.get(name).is_some_and(|value| *value != Value::Bool(false) && *value != "");
        if stated {
            errors.push(FieldError::forbidden(child(path, name), rule));
        }
    }
    for (name, schema) in properties(map) {
        let (at, owner_at) = (property(path, name), property(owner_path, name));
        if name == "metadata" {
            errors.push(FieldError::forbidden(at.clone(), "must not be specified in a nested context"));
        }
        let below =
            owner.and_then(|owner| properties(owner).find(|(known, _)| *known == name)).map(|(_, schema)| schema);
        if owner.is_some() && below.is_none() {
            errors.push(FieldError::required(owner_at.clone(), format!("because it is defined in {at}")));
        }
        nested(schema, below, &at, &owner_at, errors);
    }
    if let Some(Value::Object(items)) = map.get("items") {
        let (at, owner_at) = (child(path, "items"), child(owner_path, "items"));
        let below = owner.and_then(|owner| owner.get("items")).and_then(Value::as_object);
        if owner.is_some() && below.is_none() {
            errors.push(FieldError::required(owner_at.clone(), format!("because it is defined in {at}")));
        }
        nested(items, below, &at, &owner_at, errors);
    }
    let nothing = Map::new();
    values(map, owner.unwrap_or(&nothing), false, path, errors);
}

/// A default must itself be acceptable.
fn default_value(map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let Some(default) = map.get("default") else { return };
    let at = child(path, "default");
    let schema = compile::fragment(&Value::Object(map.clone()));
    let mut kept = default.clone();
    let unknown = super::prune::prune(&schema, &mut kept);
    if !unknown.is_empty() {
        errors.push(FieldError::invalid(at.clone(), default.clone(), "must be pruned"));
    }
    for mut error in super::validate::validate(&schema, default) {
        error.path = if error.path == "<nil>" { at.clone() } else { child(&at, &error.path) };
        errors.push(error);
    }
}
