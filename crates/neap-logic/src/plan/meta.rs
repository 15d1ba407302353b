//! Reading and copying labels and annotations.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::keys::{neap, serving};

/// Labels or annotations.
pub type Words = BTreeMap<String, String>;

/// A label's value.
pub fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// An annotation's value.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// An annotation's value under the first of several spellings that is present.
pub fn annotation_of<'a>(meta: &'a ObjectMeta, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| annotation(meta, key))
}

/// The labels for a child.
pub fn labels(meta: &ObjectMeta) -> Words {
    meta.labels.clone().unwrap_or_default()
}

/// What is said of one object alone: the record of client-side apply, the form an old object was written in, and that a
/// Service owns nothing.
const OWN: [&str; 3] = [serving::LAST_APPLIED, neap::WRITTEN_AS, neap::SERVICE_MODE];

/// The annotations for a child: all but those of the parent alone and those in `without`.
pub fn annotations(meta: &ObjectMeta, without: &[&str]) -> Words {
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()) && !without.contains(&key.as_str()));
    annotations
}

/// Words as metadata holds them: absent when there are none.
pub fn some(words: Words) -> Option<Words> {
    (!words.is_empty()).then_some(words)
}

/// The members of a comma-separated annotation.
pub fn list(meta: &ObjectMeta, key: &str) -> BTreeSet<String> {
    let text = annotation(meta, key).unwrap_or_default();
    text.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Members as one annotation.
pub fn join(members: &BTreeSet<String>) -> String {
    members.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// An object's name.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// An object's namespace.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// An error with its causes, as one sentence.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
