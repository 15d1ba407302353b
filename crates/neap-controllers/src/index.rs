//! An index of the objects of one kind, fed by events: plain data, no client, no task.
//!
//! An object only ever moves forward: what is older than what is held, or than its own removal, is not taken.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use neap_logic::plan::cache::Cached;

/// Namespace and name; the namespace is empty for kinds of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// A key of its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: Cached>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// By what else than its name an object is found: label or annotation key, and value.
pub(crate) type Terms = Vec<(&'static str, String)>;

/// What a step did: the object before and after. Nothing when it was older than what is known.
#[derive(Debug)]
pub(crate) struct Step<K> {
    pub(crate) before: Option<Arc<K>>,
    pub(crate) after: Option<Arc<K>>,
}

/// Removals remembered, so that an answer that was on its way does not bring an object back.
const TOMBSTONES: usize = 4096;

/// Objects of one kind.
#[derive(Debug)]
pub(crate) struct Index<K> {
    terms_of: fn(&K) -> Terms,
    objects: HashMap<Key, Arc<K>>,
    found_by: HashMap<(&'static str, String, String), BTreeSet<String>>,
    tombstones: HashMap<Key, u64>,
    tombstone_order: VecDeque<Key>,
    /// Keys written by ourselves while a listing is under way, which that listing may not know.
    written_during_listing: Option<BTreeSet<Key>>,
}

fn version<K: Cached>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K: Cached> Index<K> {
    pub(crate) fn new(terms_of: fn(&K) -> Terms) -> Self {
        Self {
            terms_of,
            objects: HashMap::new(),
            found_by: HashMap::new(),
            tombstones: HashMap::new(),
            tombstone_order: VecDeque::new(),
            written_during_listing: None,
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    /// The objects found by a term, by name.
    pub(crate) fn find(&self, namespace: &str, term: &'static str, value: &str) -> Vec<Arc<K>> {
        let Some(names) = self.found_by.get(&(term, namespace.to_owned(), value.to_owned())) else { return Vec::new() };
        names.iter().filter_map(|name| self.get(&Key::new(namespace, name.as_str()))).collect()
    }

    /// The objects of a namespace, in no order.
    pub(crate) fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<K>> {
        self.objects.iter().filter(move |(key, _)| key.namespace == namespace).map(|(_, object)| object)
    }

    /// Takes an object in that was asked for by its name. A watch by label tells of one that lost the label as of one that
    /// is gone, at the version it has without it; one that was found at that version is there.
    pub(crate) fn apply_read(&mut self, object: K) -> Option<Step<K>> {
        let (key, fresh) = (Key::of(&object), version(&object));
        if self.tombstones.get(&key) == Some(&fresh) {
            self.tombstones.insert(key, fresh.saturating_sub(1));
        }
        self.apply(object)
    }

    /// An object that was asked for is not there; only one that no watch shows can be held for longer than it lives.
    pub(crate) fn gone(&mut self, key: &Key) -> Option<Step<K>> {
        let last = version(self.objects.get(key)?.as_ref());
        self.bury(key.clone(), last);
        self.remove(key)
    }

    /// Takes an object in, unless it is old.
    pub(crate) fn apply(&mut self, object: K) -> Option<Step<K>> {
        let key = Key::of(&object);
        let fresh = version(&object);
        if self.objects.get(&key).is_some_and(|held| version(held.as_ref()) >= fresh) {
            return None;
        }
        if self.tombstones.get(&key).is_some_and(|gone| *gone >= fresh) {
            return None;
        }
        if let Some(written) = &mut self.written_during_listing {
            written.insert(key.clone());
        }
        let after = Arc::new(object);
        for (term, value) in (self.terms_of)(&after) {
            self.found_by.entry((term, key.namespace.clone(), value)).or_default().insert(key.name.clone());
        }
        let before = self.objects.insert(key.clone(), after.clone());
        if let Some(before) = &before {
            let kept = (self.terms_of)(&after);
            self.forget_terms(&key, before, &kept);
        }
        Some(Step { before, after: Some(after) })
    }

    /// Takes an object out.
    pub(crate) fn delete(&mut self, object: &K) -> Option<Step<K>> {
        let key = Key::of(object);
        let gone = version(object);
        if self.objects.get(&key).is_some_and(|held| version(held.as_ref()) > gone) {
            // It has been made again since.
            return None;
        }
        self.bury(key.clone(), gone);
        self.remove(&key)
    }

    fn bury(&mut self, key: Key, version: u64) {
        if self.tombstones.insert(key.clone(), version).is_none() {
            self.tombstone_order.push_back(key);
        }
        if self.tombstone_order.len() > TOMBSTONES
            && let Some(oldest) = self.tombstone_order.pop_front()
        {
            self.tombstones.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Step<K>> {
        let before = self.objects.remove(key)?;
        self.forget_terms(key, &before, &Terms::new());
        Some(Step { before: Some(before), after: None })
    }

    fn forget_terms(&mut self, key: &Key, before: &K, kept: &Terms) {
        for (term, value) in (self.terms_of)(before) {
            if kept.contains(&(term, value.clone())) {
                continue;
            }
            let at = (term, key.namespace.clone(), value);
            if let Some(names) = self.found_by.get_mut(&at) {
                names.remove(&key.name);
                if names.is_empty() {
                    self.found_by.remove(&at);
                }
            }
        }
    }

    /// A listing begins.
    pub(crate) fn begin_listing(&mut self) {
        self.written_during_listing = Some(BTreeSet::new());
    }

    /// The listing is complete: what it does not hold is gone.
    pub(crate) fn end_listing(&mut self, listed: Vec<K>) -> Vec<Step<K>> {
        let written = self.written_during_listing.take().unwrap_or_default();
        let names: BTreeSet<Key> = listed.iter().map(Key::of).collect();
        let mut steps: Vec<Step<K>> = listed.into_iter().filter_map(|object| self.apply(object)).collect();
        let gone: Vec<Key> =
            self.objects.keys().filter(|key| !names.contains(key) && !written.contains(key)).cloned().collect();
        steps.extend(gone.iter().filter_map(|key| self.remove(key)));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    fn object(name: &str, version: u64, label: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string(), "labels": {"l": label}}}))
            .expect("a ConfigMap")
    }

    fn index() -> Index<ConfigMap> {
        Index::new(|object| object.metadata.labels.iter().flatten().map(|(_, v)| ("l", v.clone())).collect())
    }

    fn found(index: &Index<ConfigMap>, value: &str) -> Vec<String> {
        index.find("ns", "l", value).iter().map(|o| o.metadata.name.clone().unwrap_or_default()).collect()
    }

    #[test]
    fn objects_are_found_by_their_terms() {
        let mut index = index();
        index.apply(object("b", 1, "x"));
        index.apply(object("a", 2, "x"));
        assert_eq!(found(&index, "x"), ["a", "b"]);
        index.apply(object("a", 3, "y"));
        assert_eq!((found(&index, "x"), found(&index, "y")), (vec!["b".to_owned()], vec!["a".to_owned()]));
        index.delete(&object("b", 4, "x"));
        assert!(found(&index, "x").is_empty());
    }

    #[test]
    fn nothing_moves_backward() {
        let mut index = index();
        assert!(index.apply(object("a", 5, "x")).is_some());
        assert!(index.apply(object("a", 5, "x")).is_none(), "the same version again");
        assert!(index.apply(object("a", 4, "x")).is_none(), "an older one");
        assert!(index.delete(&object("a", 4, "x")).is_none(), "an older removal");
        assert!(index.delete(&object("a", 6, "x")).is_some());
        assert!(index.apply(object("a", 6, "x")).is_none(), "an answer that was on its way");
        assert!(index.apply(object("a", 7, "x")).is_some(), "made again");
    }

    #[test]
    fn what_was_asked_for_counts_more_than_a_watch_by_label() {
        let mut index = index();
        index.apply(object("a", 5, "x"));
        // It lost the label by which it is watched.
        index.delete(&object("a", 6, ""));
        assert!(index.apply(object("a", 6, "")).is_none(), "an answer that was on its way");
        assert!(index.apply_read(object("a", 6, "")).is_some());
        assert_eq!(index.keys().count(), 1);
        assert!(index.gone(&Key::new("ns", "a")).is_some());
        assert!(index.apply(object("a", 6, "")).is_none(), "it is gone");
        assert!(index.gone(&Key::new("ns", "a")).is_none());
    }

    #[test]
    fn a_listing_replaces_what_it_can_know() {
        let mut index = index();
        index.apply(object("old", 1, "x"));
        index.begin_listing();
        index.apply(object("mine", 9, "x"));
        let steps = index.end_listing(vec![object("new", 5, "x")]);
        assert_eq!(steps.len(), 2);
        assert_eq!(found(&index, "x"), ["mine", "new"]);
    }
}
