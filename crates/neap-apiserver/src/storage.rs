//! How an object lies in the store, and how it is served from there without being parsed.
//!
//! A stored object is its JSON without `apiVersion`, `kind` and `metadata.resourceVersion`, beginning with its metadata:
//! `{"metadata":{"creationTimestamp":…},"spec":…}`. All three are known from the key and the revision, so a served
//! object is a fixed head, the revision and the rest of the stored bytes. `managedFields`, which is about half of an
//! object and which only people and their tools read, comes first, so that it can be left out without a parse.

use crate::kind::{Kind, Version};
use crate::status::{ApiError, ResourceId, Result};
use neap_store::{Error, Revision};
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

const OPEN: &[u8] = br#"{"metadata":{"#;
const MANAGED: &str = "managedFields";
const ROOT: &str = "/registry/";
/// The core group has no name; in keys it is called this, which no other group may be (a group needs a dot or is known).
const CORE: &str = "core";

/// `/registry/<group>/<plural>/[<namespace>/]`
pub(crate) fn prefix(kind: &Kind, namespace: Option<&str>) -> String {
    let (group, plural) = &kind.stored_as;
    let mut out = root(group, plural);
    if let Some(ns) = namespace.filter(|_| kind.namespaced) {
        out.push_str(ns);
        out.push('/');
    }
    out
}

pub(crate) fn root(group: &str, plural: &str) -> String {
    format!("{ROOT}{}/{plural}/", if group.is_empty() { CORE } else { group })
}

pub(crate) fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    let mut out = prefix(kind, namespace);
    out.push_str(name);
    out
}

/// Namespace (empty for cluster-wide kinds) and name of a stored object.
pub(crate) fn parse_key<'a>(kind: &Kind, key: &'a [u8]) -> (&'a str, &'a str) {
    let (group, plural) = &kind.stored_as;
    let start = ROOT.len() + if group.is_empty() { CORE.len() } else { group.len() } + plural.len() + 2;
    let rest = key.get(start..).and_then(|k| std::str::from_utf8(k).ok()).unwrap_or("");
    if kind.namespaced { rest.split_once('/').unwrap_or(("", rest)) } else { ("", rest) }
}

pub(crate) fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(OPEN);
    let mut first = true;
    if let Some(meta) = object.get("metadata").and_then(Value::as_object) {
        if let Some(managed) = meta.get(MANAGED) {
            member(&mut out, &mut first, MANAGED, managed);
        }
        for (key, value) in meta.iter().filter(|(k, _)| !matches!(k.as_str(), "resourceVersion" | MANAGED)) {
            member(&mut out, &mut first, key, value);
        }
    }
    out.push(b'}');
    first = false;
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "metadata" | "apiVersion" | "kind") {
            member(&mut out, &mut first, key, value);
        }
    }
    out.push(b'}');
    out
}

fn member(out: &mut Vec<u8>, first: &mut bool, key: &str, value: &Value) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, key).expect("a string is serialisable");
    out.push(b':');
    serde_json::to_writer(out, value).expect("a JSON value is serialisable");
}

/// Whether an object is served with its `managedFields`. What is written back without them keeps them, so a caller who
/// does not read them need not have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    Shown,
    LeftOut,
}

/// Appends a stored object as a version serves it.
pub(crate) fn splice(out: &mut Vec<u8>, version: &Version, revision: Revision, stored: &[u8], managed: Managed) {
    splice_head(out, &version.head, revision, stored, managed);
}

/// Appends a stored object without its apiVersion and kind.
pub(crate) fn splice_item(out: &mut Vec<u8>, revision: Revision, stored: &[u8], managed: Managed) {
    splice_head(out, r#"{"metadata":{"resourceVersion":""#, revision, stored, managed);
}

/// What follows `"managedFields":`, its value and a comma, where an object begins with them.
fn without_managed(rest: &[u8]) -> &[u8] {
    let Some(value) = rest.strip_prefix(br#""managedFields":"#) else { return rest };
    let (mut depth, mut at) = (0usize, 0);
    while let Some(byte) = value.get(at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b'"' => {
                at += 1;
                while let Some(byte) = value.get(at).filter(|byte| **byte != b'"') {
                    at += if *byte == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    let after = value.get(at..).unwrap_or_default();
    after.strip_prefix(b",").unwrap_or(after)
}

fn splice_head(out: &mut Vec<u8>, head: &str, revision: Revision, stored: &[u8], managed: Managed) {
    let rest = stored.strip_prefix(OPEN).unwrap_or(b"}}");
    let rest = if managed == Managed::LeftOut { without_managed(rest) } else { rest };
    out.reserve(head.len() + 24 + rest.len());
    out.extend_from_slice(head.as_bytes());
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut n = revision;
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.push(b'"');
    if rest.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(rest);
}

/// A stored object as a value, complete.
pub(crate) fn decode(stored: &[u8], version: &Version, kind: &str, revision: Revision) -> Result<Value> {
    let mut object: Value =
        serde_json::from_slice(stored).map_err(|e| ApiError::internal(format!("a stored {kind} is damaged: {e}")))?;
    complete(&mut object, &version.api_version, kind, revision);
    Ok(object)
}

pub(crate) fn complete(object: &mut Value, api_version: &str, kind: &str, revision: Revision) {
    crate::metadata::of_mut(object).insert("resourceVersion".into(), json!(revision.to_string()));
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), json!(api_version));
        map.insert("kind".into(), json!(kind));
    }
}

/// Only the labels of a stored object; the rest is skipped, not built.
pub(crate) fn labels(stored: &[u8]) -> BTreeMap<String, Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        metadata: Meta<'a>,
    }
    #[derive(Deserialize)]
    struct Meta<'a> {
        #[serde(borrow, default)]
        labels: BTreeMap<String, Cow<'a, str>>,
    }
    serde_json::from_slice::<Head<'_>>(stored).map(|h| h.metadata.labels).unwrap_or_default()
}

/// Whether a stored object is on its way out; looks only at the one field.
pub(crate) fn is_deleting(stored: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Head {
        metadata: Meta,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        #[serde(default)]
        deletion_timestamp: Option<String>,
    }
    serde_json::from_slice::<Head>(stored).is_ok_and(|h| h.metadata.deletion_timestamp.is_some())
}

/// The store's failures as clients see them. A lost race is the caller's to judge.
pub(crate) fn store_error(error: &Error, resource: &ResourceId, name: &str) -> ApiError {
    match error {
        Error::Conflict { .. } => ApiError::Conflict {
            resource: resource.clone(),
            name: name.to_owned(),
            why: crate::metadata::MODIFIED.to_owned(),
        },
        Error::TooLarge { limit, .. } => ApiError::TooLarge { limit: *limit },
        Error::Compacted { requested, compacted } => {
            ApiError::Expired(format!("too old resource version: {requested} ({compacted})"))
        }
        Error::Future { requested, current } => ApiError::FutureRevision { asked: *requested, current: *current },
        Error::Busy { .. } => {
            ApiError::TooManyRequests { message: error.to_string(), retry_after_seconds: 1, causes: Vec::new() }
        }
        Error::Closed | Error::Broken { .. } => ApiError::Unavailable(error.to_string()),
        other => ApiError::internal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spliced_object_is_the_object() {
        let object = json!({
            "apiVersion": "ex.dev/v1", "kind": "Thing",
            "metadata": {"name": "a", "labels": {"x": "y\n"}, "resourceVersion": "7"},
            "spec": {"n": [1, {"metadata": {}}]}, "data": null,
        });
        let stored = encode(&object);
        for revision in [0u64, 7, 10, u64::MAX] {
            let mut out = Vec::new();
            splice_head(&mut out, &crate::kind::head("ex.dev/v1", "Thing"), revision, &stored, Managed::Shown);
            let mut want = object.clone();
            want["metadata"]["resourceVersion"] = json!(revision.to_string());
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), want);
        }
        assert_eq!(labels(&stored).get("x").map(|v| v.as_ref()), Some("y\n"));
    }

    #[test]
    fn the_record_of_managers_can_be_left_out() {
        let check = |managed: Value, rest: Value| {
            let mut object = json!({"apiVersion": "v1", "kind": "K", "metadata": rest, "spec": {"a": "]"}});
            let mut want = object.clone();
            object["metadata"]["managedFields"] = managed;
            want["metadata"]["resourceVersion"] = json!("3");
            let mut out = Vec::new();
            splice_head(&mut out, &crate::kind::head("v1", "K"), 3, &encode(&object), Managed::LeftOut);
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), want, "{object}");
        };
        let fields = json!([{"manager": "a]\"}\\", "fieldsV1": {"f:spec": {"k:{\"name\":\"x\"}": {".": {}}}}}, {}]);
        check(fields.clone(), json!({"name": "a", "uid": "u"}));
        check(fields, json!({}));
        check(json!([]), json!({"annotations": {"managedFields": "[", "z": "\\"}}));
    }

    #[test]
    fn metadata_may_be_empty() {
        let stored = encode(&json!({"metadata": {}}));
        let mut out = Vec::new();
        splice_head(&mut out, &crate::kind::head("v1", "K"), 3, &stored, Managed::LeftOut);
        assert_eq!(
            serde_json::from_slice::<Value>(&out).unwrap(),
            json!({"apiVersion": "v1", "kind": "K", "metadata": {"resourceVersion": "3"}})
        );
    }
}
