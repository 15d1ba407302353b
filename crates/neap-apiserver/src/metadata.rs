//! The rules of ObjectMeta: what a client may set, what the server sets, what may never change. Pure: time, identity and
//! chance come in as arguments.

use crate::limits::{FAULTS, NAME, cut};
use crate::status::{ApiError, ResourceId, Result, forbidden, invalid, required};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::response::StatusCause;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Kubernetes' limit on the sum of annotation keys and values, in bytes (`TotalAnnotationSizeLimitB`).
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
/// A generated name ends in this many random characters; the base is cut so that the whole fits a label.
const GENERATED_SUFFIX: usize = 5;
const NAME_LIMIT: usize = 63;
/// No vowels and no look-alikes, so that no word and no confusion arises.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// How names of a kind are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameRule {
    #[default]
    Subdomain,
    Label,
    /// As `Label`, but beginning with a letter: names of Kubernetes Services.
    Label1035,
    /// Whatever fits in one URL segment: names of roles and their bindings.
    Segment,
}

/// Which changes count as a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The kind has no generation (config-maps, secrets).
    Never,
    /// Everything but metadata, and but status when the kind has that subresource.
    Content { status_apart: bool },
}

/// What the rules need to know about the kind of an object.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub plural: &'a str,
    pub api_version: &'a str,
    pub namespaced: bool,
    pub name_rule: NameRule,
    pub generation: Generation,
    /// Updates must name a resource version (custom resources).
    pub conditional_updates: bool,
}

impl Shape<'_> {
    fn resource(&self) -> ResourceId {
        ResourceId::new(self.group, self.plural)
    }
}

/// The metadata of an object; makes the map when it is missing.
pub fn of_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let map = object.as_object_mut().expect("made an object above");
    let meta = map.entry("metadata").or_insert_with(|| json!({}));
    if !meta.is_object() {
        *meta = json!({});
    }
    meta.as_object_mut().expect("made an object above")
}

pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or("")
}

pub fn of<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get("metadata").and_then(|m| m.get(key))
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

pub fn is_deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// Kind, apiVersion and the types of metadata fields: what Kubernetes finds while decoding.
pub fn check_decoded(object: &mut Value, shape: &Shape<'_>) -> Result<()> {
    let Some(map) = object.as_object() else {
        return Err(ApiError::bad_request("the body of the request is not an object"));
    };
    let told = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or("");
    let (version, kind) = (told("apiVersion"), told("kind"));
    let native = !shape.conditional_updates;
    let undecodable = |why: String| {
        let told = if kind.is_empty() { shape.kind } else { kind };
        let version = if version.is_empty() { shape.api_version } else { version };
        let version = version.rsplit('/').next().unwrap_or_default();
        ApiError::Undecodable { told: told.to_owned(), version: version.to_owned(), kind: shape.kind.to_owned(), why }
    };
    if !version.is_empty() && version != shape.api_version {
        let why = format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            shape.api_version
        );
        return Err(if native { undecodable(why) } else { ApiError::bad_request(why) });
    }
    if !kind.is_empty() && kind != shape.kind {
        let why = format!("the kind in the data ({kind}) does not match the expected kind ({})", shape.kind);
        return Err(if native { undecodable(why) } else { ApiError::bad_request(why) });
    }
    if let Some(meta) = map.get("metadata")
        && let Err(why) = ObjectMeta::deserialize(meta)
        && !meta.is_null()
    {
        return Err(undecodable(format!("json: metadata: {why}")));
    }
    drop_nulls(of_mut(object));
    let map = object.as_object_mut().expect("checked above");
    map.insert("apiVersion".into(), json!(shape.api_version));
    map.insert("kind".into(), json!(shape.kind));
    Ok(())
}

/// Typed decoding in Go drops null and empty metadata fields; so do we, or no-op writes would look like changes.
fn drop_nulls(meta: &mut Map<String, Value>) {
    meta.retain(|key, v| match v {
        // An empty record asks for the record to be thrown away.
        Value::Array(_) if key == "managedFields" => true,
        Value::Null => false,
        Value::Object(m) => !m.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::String(s) => !s.is_empty(),
        _ => true,
    });
    for key in ["labels", "annotations"] {
        if let Some(Value::Object(map)) = meta.get_mut(key) {
            for v in map.values_mut().filter(|v| v.is_null()) {
                *v = json!("");
            }
        }
    }
}

/// Agreement of the body with the URL, and the fields the server sets at birth.
pub fn prepare_create(
    object: &mut Value,
    shape: &Shape<'_>,
    namespace: Option<&str>,
    now: &str,
    uid: &str,
    rng: &mut fastrand::Rng,
) -> Result<()> {
    place(object, shape, namespace)?;
    let meta = of_mut(object);
    if meta.get("resourceVersion").is_some_and(|v| v != "") {
        return Err(ApiError::Unnamed("resourceVersion should not be set on objects to be created".into()));
    }
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        meta.remove(key);
    }
    let base = meta.get("generateName").and_then(Value::as_str).unwrap_or("").to_owned();
    if meta.get("name").is_none() && !base.is_empty() {
        meta.insert("name".into(), json!(generated(&base, rng)));
    }
    meta.insert("uid".into(), json!(uid));
    meta.insert("creationTimestamp".into(), json!(now));
    if shape.generation != Generation::Never {
        meta.insert("generation".into(), json!(1));
    }
    Ok(())
}

pub fn generated(base: &str, rng: &mut fastrand::Rng) -> String {
    let mut cut = base.len().min(NAME_LIMIT - GENERATED_SUFFIX);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = base[..cut].to_owned();
    for _ in 0..GENERATED_SUFFIX {
        name.push(NAME_ALPHABET[rng.usize(..NAME_ALPHABET.len())] as char);
    }
    name
}

pub fn random_uid(rng: &mut fastrand::Rng) -> String {
    // Version 4, variant 1 (RFC 4122).
    let bits = (rng.u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let h = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

fn place(object: &mut Value, shape: &Shape<'_>, namespace: Option<&str>) -> Result<()> {
    let meta = of_mut(object);
    let told = meta.get("namespace").and_then(Value::as_str).unwrap_or("").to_owned();
    match namespace.filter(|_| shape.namespaced) {
        Some(ns) => {
            if !told.is_empty() && told != ns {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            meta.insert("namespace".into(), json!(ns));
        }
        None if !told.is_empty() => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        None => {}
    }
    Ok(())
}

/// Agreement with URL and old object; carries over what only the server may set.
pub fn prepare_update(
    new: &mut Value,
    old: &Value,
    shape: &Shape<'_>,
    namespace: Option<&str>,
    name: &str,
) -> Result<()> {
    place(new, shape, namespace)?;
    let told = text(new, "name").to_owned();
    if told.is_empty() {
        of_mut(new).insert("name".into(), json!(name));
    } else if told != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({told}) does not match the name on the URL ({name})"
        )));
    }
    let conflict = |why: String| ApiError::Conflict { resource: shape.resource(), name: name.to_owned(), why };
    let (uid, old_uid) = (text(new, "uid"), text(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
        )));
    }
    let version = text(new, "resourceVersion");
    if !version.is_empty() && version.parse::<u64>().is_err() {
        return Err(ApiError::Unnamed(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")));
    }
    let named = !version.is_empty() && version != "0";
    if named && version != text(old, "resourceVersion") {
        return Err(conflict(MODIFIED.to_owned()));
    }
    if !named && shape.conditional_updates {
        let causes = vec![invalid("metadata.resourceVersion", &json!(0), "must be specified for an update")];
        // By its plural, not its kind, as everybody else says it.
        let (group, kind) = (shape.group.to_owned(), shape.plural.to_owned());
        return Err(ApiError::Invalid { group, kind, name: name.to_owned(), causes });
    }
    carry(new, old);
    Ok(())
}

/// An object that is sent to a place of a name has that name in it.
pub fn nameless(name: &str) -> ApiError {
    ApiError::bad_request(format!(
        "the name of the object ({name} based on URL) was undeterminable: name must be provided"
    ))
}

/// The reason of a conflict by resource version.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Server-owned fields keep their old values whatever the client sent.
pub fn carry(new: &mut Value, old: &Value) {
    let empty = Map::new();
    let before = old.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let meta = of_mut(new);
    meta.remove("selfLink");
    for key in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"]
    {
        match before.get(key) {
            Some(value) => meta.insert(key.into(), value.clone()),
            None => meta.remove(key),
        };
    }
    // generateName is only a wish at birth; a replace that forgets it does not erase it.
    if let (Some(base), None) = (before.get("generateName"), meta.get("generateName")) {
        meta.insert("generateName".into(), base.clone());
    }
}

/// Raises the generation when the content changed.
pub fn bump(new: &mut Value, old: &Value, rule: Generation) {
    let Generation::Content { status_apart } = rule else { return };
    if content_differs(new, old, status_apart) {
        raise(new, old);
    }
}

pub fn raise(new: &mut Value, old: &Value) {
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    of_mut(new).insert("generation".into(), json!(generation + 1));
}

fn content_differs(a: &Value, b: &Value, status_apart: bool) -> bool {
    let empty = Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let counts = |key: &str| match key {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => !status_apart,
        _ => true,
    };
    a.iter().any(|(k, v)| counts(k) && b.get(k) != Some(v)) || b.keys().any(|k| counts(k) && !a.contains_key(k))
}

/// Everything that must hold for stored metadata. Empty means valid.
pub fn validate(object: &Value, old: Option<&Value>, shape: &Shape<'_>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let name = text(object, "name");
    if name.is_empty() {
        causes.push(required("metadata.name", "name or generateName is required"));
    } else if let Some(why) = name_fault(name, shape.name_rule).filter(|_| old.is_none()) {
        causes.push(invalid("metadata.name", &json!(name), why));
    }
    let empty = Map::new();
    let meta = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let base = meta.get("generateName").and_then(Value::as_str).unwrap_or("");
    if let Some(why) = generate_name_fault(base, shape.name_rule).filter(|_| old.is_none()) {
        causes.push(invalid("metadata.generateName", &json!(base), why));
    }
    if let Some(labels) = meta.get("labels").and_then(Value::as_object) {
        for (key, value) in labels {
            if causes.len() >= FAULTS {
                break;
            }
            if let Some(why) = label_key_fault(key) {
                causes.push(invalid("metadata.labels", &json!(key), &why));
            }
            if let Some(why) = value.as_str().and_then(label_value_fault) {
                causes.push(invalid("metadata.labels", value, why));
            }
        }
    }
    if let Some(notes) = meta.get("annotations").and_then(Value::as_object) {
        let mut size = 0;
        for (key, value) in notes {
            if let Some(why) = label_key_fault(&key.to_ascii_lowercase()).filter(|_| causes.len() < FAULTS) {
                causes.push(invalid("metadata.annotations", &json!(key), &why));
            }
            size += key.len() + value.as_str().map_or(0, str::len);
        }
        if size > ANNOTATIONS_LIMIT {
            causes.push(crate::status::cause(
                "FieldValueTooLong",
                "metadata.annotations",
                format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"),
            ));
        }
    }
    owners(meta, &mut causes);
    // Not for custom resources, and not for what defines them.
    let qualified = !shape.conditional_updates && shape.group != crate::crd::GROUP;
    for (i, finalizer) in finalizers(object).into_iter().enumerate() {
        if causes.len() >= FAULTS {
            break;
        }
        if let Some(why) = label_key_fault(finalizer) {
            causes.push(invalid("metadata.finalizers", &json!(finalizer), &why));
        } else if let Some(why) = finalizer_fault(finalizer).filter(|_| qualified) {
            causes.push(invalid(&format!("metadata.finalizers[{i}]"), &json!(finalizer), why));
        }
    }
    if let Some(old) = old.filter(|o| is_deleting(o)) {
        let before: std::collections::HashSet<&str> = finalizers(old).into_iter().collect();
        let added: Vec<&str> = finalizers(object).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            causes.push(forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
    }
    causes
}

/// Kubernetes' own kinds take finalizers of a domain only, beside the three that have none.
pub fn finalizer_fault(finalizer: &str) -> Option<&'static str> {
    let known = finalizer.contains('/') || ["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer);
    (!known).then_some("name is neither a standard finalizer name nor is it fully qualified")
}

fn owners(meta: &Map<String, Value>, causes: &mut Vec<StatusCause>) {
    let list = meta.get("ownerReferences").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut controllers: Vec<String> = Vec::new();
    for owner in list {
        if causes.len() >= FAULTS {
            return;
        }
        let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or("");
        for key in ["apiVersion", "kind", "name", "uid"] {
            if text(key).is_empty() {
                let why = if key == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                causes.push(invalid(&format!("metadata.ownerReferences.{key}"), &json!(""), why));
            }
        }
        if (text("apiVersion"), text("kind")) == ("v1", "Event") {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            causes.push(invalid("metadata.ownerReferences", owner, why));
        }
        // Two are one too many; how many more there are says nothing new, and each complaint shows the whole list.
        if owner.get("controller") == Some(&json!(true)) && controllers.len() < 2 {
            controllers.push(format!("{}/{}", cut(text("kind"), NAME), cut(text("name"), NAME)));
            if let [first, second] = controllers.as_slice() {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
                );
                causes.push(invalid("metadata.ownerReferences", &json!(list), &why));
            }
        }
    }
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

pub fn name_fault(name: &str, rule: NameRule) -> Option<&'static str> {
    match rule {
        NameRule::Subdomain if name.len() > 253 => Some("must be no more than 253 characters"),
        NameRule::Subdomain => (!name.split('.').all(is_label)).then_some(SUBDOMAIN),
        NameRule::Label | NameRule::Label1035 if name.len() > NAME_LIMIT => Some("must be no more than 63 characters"),
        NameRule::Label if !is_label(name) && name.split('.').all(is_label) => Some("must not contain dots"),
        NameRule::Label => (!is_label(name)).then_some(LABEL),
        NameRule::Label1035 => {
            (!(is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()))).then_some(LABEL_1035)
        }
        NameRule::Segment => match name {
            "." => Some("may not be '.'"),
            ".." => Some("may not be '..'"),
            n if n.contains('/') => Some("may not contain '/'"),
            n if n.contains('%') => Some("may not contain '%'"),
            _ => None,
        },
    }
}

fn is_label(text: &str) -> bool {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().copied().is_some_and(lower)
        && bytes.last().copied().is_some_and(lower)
        && bytes.iter().all(|b| lower(*b) || *b == b'-')
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What is wrong with the beginning of a name; it may end in a dash.
fn generate_name_fault(base: &str, rule: NameRule) -> Option<&'static str> {
    let masked = match base.strip_suffix('-') {
        Some(rest) if !rest.is_empty() && !rest.ends_with('-') => format!("{rest}a"),
        _ => base.to_owned(),
    };
    if base.is_empty() { None } else { name_fault(&masked, rule) }
}

pub fn label_key_fault(key: &str) -> Option<String> {
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return Some(
                QUALIFIED.replacen("name part", "a valid label key", 1)
                    + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            );
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Some("prefix part must be non-empty".to_owned());
            }
            if let Some(why) = name_fault(prefix, NameRule::Subdomain) {
                return Some(format!("prefix part {why}"));
            }
            name
        }
    };
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > NAME_LIMIT {
        return Some("name part must be no more than 63 bytes".to_owned());
    }
    (!is_qualified(name)).then(|| QUALIFIED.to_owned())
}

pub fn label_value_fault(value: &str) -> Option<&'static str> {
    if value.len() > NAME_LIMIT {
        return Some("must be no more than 63 bytes");
    }
    (!value.is_empty() && !is_qualified(value)).then_some(LABEL_VALUE)
}

#[cfg(test)]
#[path = "metadata_tests.rs"]
mod tests;
