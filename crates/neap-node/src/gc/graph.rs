//! Who owns whom, by UID. A plain structure: changes go in, acts come out.
//!
//! The rules: an object all of whose owners are gone is deleted. An owner that waits in the foreground
//! (`foregroundDeletion`) has its blocking dependents deleted first and goes when none is left. An owner that leaves
//! orphans (`orphan`) is struck from its dependents first. Nothing is deleted before every kind has been listed once,
//! since an owner that was not seen yet looks like one that is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// An object's place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Node {
    /// See [`kind_key`].
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) uid: String,
}

pub(super) fn kind_key(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

/// Something to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// `missing`: owners that were not seen, which is not yet to say that they are not there.
    Delete {
        node: Node,
        foreground: bool,
        missing: Vec<OwnerReference>,
    },
    Finalizers {
        node: Node,
        left: Vec<String>,
    },
    Owners {
        node: Node,
        left: Vec<OwnerReference>,
        missing: Vec<OwnerReference>,
    },
}

impl Act {
    pub(super) fn node(&self) -> &Node {
        match self {
            Self::Delete { node, .. } | Self::Finalizers { node, .. } | Self::Owners { node, .. } => node,
        }
    }

    /// Owners that must not be there if this is to be right.
    pub(super) fn missing(&self) -> &[OwnerReference] {
        match self {
            Self::Delete { missing, .. } | Self::Owners { missing, .. } => missing,
            Self::Finalizers { .. } => &[],
        }
    }

    fn order(&self) -> (u8, &Node) {
        let which = match self {
            Self::Owners { .. } => 0,
            Self::Delete { .. } => 1,
            Self::Finalizers { .. } => 2,
        };
        (which, self.node())
    }
}

impl Eq for Act {}

impl PartialOrd for Act {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Act {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// What of an object's metadata counts here.
struct Entry {
    node: Node,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
    deleting: bool,
    resource_version: Option<String>,
}

#[derive(Default)]
pub(super) struct Graph {
    by_uid: HashMap<String, Entry>,
    /// Owner's UID to dependents' UIDs.
    dependents: HashMap<String, BTreeSet<String>>,
    /// Kinds that are followed and not listed yet.
    expected: BTreeSet<String>,
    /// UIDs to look at.
    dirty: HashSet<String>,
}

impl Graph {
    /// A kind will be listed; until then nothing is known to be gone.
    pub(super) fn expect(&mut self, plural: &str, group: &str) {
        self.expected.insert(kind_key(plural, group));
    }

    pub(super) fn apply(&mut self, node: Node, metadata: ObjectMeta) {
        let uid = node.uid.clone();
        self.unlink(&uid);
        let owners = metadata.owner_references.unwrap_or_default();
        for owner in &owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            // An owner that waits for its dependents wants to know of a new one.
            self.dirty.insert(owner.uid.clone());
        }
        let entry = Entry {
            node,
            owners,
            finalizers: metadata.finalizers.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            resource_version: metadata.resource_version,
        };
        self.dirty.insert(uid.clone());
        self.by_uid.insert(uid, entry);
    }

    pub(super) fn delete(&mut self, node: &Node) {
        self.unlink(&node.uid);
        self.by_uid.remove(&node.uid);
        self.dirty.extend(self.dependents.get(&node.uid).into_iter().flatten().cloned());
    }

    pub(super) fn reset(&mut self, kind: &str, all: Vec<(Node, ObjectMeta)>) {
        let there: HashSet<&str> = all.iter().map(|(node, _)| node.uid.as_str()).collect();
        let gone: Vec<Node> = self
            .by_uid
            .values()
            .filter(|e| e.node.kind == kind && !there.contains(e.node.uid.as_str()))
            .map(|e| e.node.clone())
            .collect();
        gone.iter().for_each(|node| self.delete(node));
        for (node, metadata) in all {
            self.apply(node, metadata);
        }
        self.expected.remove(kind);
    }

    /// What is to be done about everything that changed; nothing while a list is still awaited.
    pub(super) fn due(&mut self) -> Vec<Act> {
        if !self.expected.is_empty() {
            return Vec::new();
        }
        let mut acts: BTreeMap<Node, Act> = BTreeMap::new();
        for uid in std::mem::take(&mut self.dirty) {
            for act in self.look(&uid) {
                acts.entry(act.node().clone()).or_insert(act);
            }
        }
        let mut acts: Vec<_> = acts.into_values().collect();
        acts.sort();
        acts
    }

    /// The version of an object that acts about it were decided from.
    pub(super) fn version(&self, node: &Node) -> Option<&str> {
        self.by_uid.get(&node.uid)?.resource_version.as_deref()
    }

    /// What was to be done about an object was not done. What is to be done may follow from it or from its owners.
    pub(super) fn look_again(&mut self, node: &Node) {
        let Some(entry) = self.by_uid.get(&node.uid) else { return };
        self.dirty.insert(node.uid.clone());
        self.dirty.extend(entry.owners.iter().map(|owner| owner.uid.clone()));
    }

    fn look(&self, uid: &str) -> Vec<Act> {
        let Some(entry) = self.by_uid.get(uid) else { return Vec::new() };
        if entry.deleting {
            return self.finish(entry);
        }
        if entry.owners.is_empty() {
            return Vec::new();
        }
        let (alive, gone): (Vec<_>, Vec<_>) =
            entry.owners.iter().partition(|owner| self.by_uid.contains_key(&owner.uid));
        let waiting = |owner: &&&OwnerReference| {
            self.by_uid.get(&owner.uid).is_some_and(|o| o.deleting && o.finalizers.iter().any(|f| f == FOREGROUND))
        };
        let solid: Vec<OwnerReference> = alive.iter().filter(|o| !waiting(o)).map(|o| (*o).clone()).collect();
        let missing = gone.into_iter().cloned().collect();
        let node = entry.node.clone();
        if solid.is_empty() {
            return vec![Act::Delete { node, foreground: !alive.is_empty(), missing }];
        }
        // Somebody still wants it; owners that are gone, or wait for it to go, are struck out.
        match solid.len() == entry.owners.len() {
            true => Vec::new(),
            false => vec![Act::Owners { node, left: solid, missing }],
        }
    }

    /// An object that is being deleted and waits for what depends on it.
    fn finish(&self, entry: &Entry) -> Vec<Act> {
        let dependents = || {
            let uids = self.dependents.get(&entry.node.uid).into_iter().flatten();
            uids.filter_map(|uid| self.by_uid.get(uid))
        };
        let without = |mark: &str| entry.finalizers.iter().filter(|f| *f != mark).cloned().collect::<Vec<_>>();
        if entry.finalizers.iter().any(|f| f == ORPHAN) {
            let mut acts: Vec<_> = dependents()
                .map(|d| Act::Owners {
                    node: d.node.clone(),
                    left: d.owners.iter().filter(|o| o.uid != entry.node.uid).cloned().collect(),
                    missing: Vec::new(),
                })
                .collect();
            if acts.is_empty() {
                acts.push(Act::Finalizers { node: entry.node.clone(), left: without(ORPHAN) });
            }
            return acts;
        }
        if entry.finalizers.iter().any(|f| f == FOREGROUND) {
            let blocking =
                |d: &&Entry| d.owners.iter().any(|o| o.uid == entry.node.uid && o.block_owner_deletion == Some(true));
            if !dependents().any(|d| blocking(&d)) {
                return vec![Act::Finalizers { node: entry.node.clone(), left: without(FOREGROUND) }];
            }
            return dependents().filter(|d| !d.deleting).flat_map(|d| self.look(&d.node.uid)).collect();
        }
        Vec::new()
    }

    fn unlink(&mut self, uid: &str) {
        let Some(entry) = self.by_uid.get(uid) else { return };
        for owner in &entry.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            // The owner may have waited for this one.
            self.dirty.insert(owner.uid.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn node(name: &str) -> Node {
        Node { kind: "things".into(), namespace: Some("n".into()), name: name.into(), uid: format!("{name}-uid") }
    }

    fn meta(owners: &[&str], finalizers: &[&str], deleting: bool) -> ObjectMeta {
        let owner = |name: &&str| OwnerReference {
            name: (*name).into(),
            uid: format!("{name}-uid"),
            controller: Some(true),
            block_owner_deletion: Some(true),
            ..Default::default()
        };
        ObjectMeta {
            owner_references: Some(owners.iter().map(owner).collect()),
            finalizers: Some(finalizers.iter().map(|f| (*f).to_owned()).collect()),
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..Default::default()
        }
    }

    fn words(acts: &[Act]) -> Vec<String> {
        let word = |act: &Act| match act {
            Act::Delete { node, foreground, .. } => {
                format!("delete {}{}", node.name, if *foreground { " in the foreground" } else { "" })
            }
            Act::Finalizers { node, left } => format!("finalizers of {}: {}", node.name, left.join(",")),
            Act::Owners { node, left, .. } => format!("owners of {}: {}", node.name, left.len()),
        };
        acts.iter().map(word).collect()
    }

    fn graph(entries: &[(&str, &[&str], &[&str], bool)]) -> Graph {
        let mut graph = Graph::default();
        graph.reset("things", entries.iter().map(|(n, o, f, d)| (node(n), meta(o, f, *d))).collect());
        graph
    }

    #[test]
    fn orphans_of_a_deleted_owner_go() {
        let mut graph = graph(&[("a", &[], &[], false), ("b", &["a"], &[], false), ("c", &["b"], &[], false)]);
        assert!(graph.due().is_empty());
        graph.delete(&node("a"));
        let acts = graph.due();
        assert_eq!(words(&acts), ["delete b"]);
        assert_eq!(acts[0].missing()[0].name, "a", "who must be asked for first");
        graph.delete(&node("b"));
        assert_eq!(words(&graph.due()), ["delete c"]);
    }

    #[test]
    fn one_living_owner_is_enough() {
        let mut graph = graph(&[("a", &[], &[], false), ("b", &[], &[], false), ("c", &["a", "b"], &[], false)]);
        graph.due();
        graph.delete(&node("a"));
        assert_eq!(words(&graph.due()), ["owners of c: 1"]);
    }

    #[test]
    fn the_foreground_waits_for_the_last_dependent() {
        let mut graph = graph(&[("a", &[], &["foregroundDeletion", "x"], true), ("b", &["a"], &[], false)]);
        assert_eq!(words(&graph.due()), ["delete b in the foreground"]);
        graph.delete(&node("b"));
        assert_eq!(words(&graph.due()), ["finalizers of a: x"]);
    }

    #[test]
    fn the_foreground_does_not_wait_for_what_somebody_else_wants() {
        let mut graph =
            graph(&[("a", &[], &["foregroundDeletion"], true), ("b", &[], &[], false), ("c", &["a", "b"], &[], false)]);
        assert_eq!(words(&graph.due()), ["owners of c: 1"]);
        graph.apply(node("c"), meta(&["b"], &[], false));
        assert_eq!(words(&graph.due()), ["finalizers of a: "]);
    }

    #[test]
    fn orphaning_strikes_the_owner_first() {
        let mut graph = graph(&[("a", &[], &["orphan"], true), ("b", &["a"], &[], false)]);
        assert_eq!(words(&graph.due()), ["owners of b: 0"]);
        graph.apply(node("b"), meta(&[], &[], false));
        assert_eq!(words(&graph.due()), ["finalizers of a: "]);
    }

    #[test]
    fn what_failed_is_decided_anew() {
        let mut owned = graph(&[("a", &[], &[], false), ("b", &["a"], &[], false)]);
        owned.due();
        owned.delete(&node("a"));
        assert_eq!(words(&owned.due()), ["delete b"]);
        owned.look_again(&node("b"));
        assert_eq!(words(&owned.due()), ["delete b"], "it is still to be done");
        owned.look_again(&node("b"));
        owned.apply(node("b"), meta(&[], &[], false));
        assert!(owned.due().is_empty(), "somebody took it meanwhile");
        let mut orphaned = graph(&[("a", &[], &["orphan"], true), ("b", &["a"], &[], false)]);
        assert_eq!(words(&orphaned.due()), ["owners of b: 0"]);
        orphaned.look_again(&node("b"));
        assert_eq!(words(&orphaned.due()), ["owners of b: 0"]);
    }

    #[test]
    fn nothing_goes_before_every_kind_was_listed() {
        let mut graph = Graph::default();
        graph.expect("others", "");
        graph.reset("things", vec![(node("b"), meta(&["a"], &[], false))]);
        assert!(graph.due().is_empty());
        graph.reset("others", Vec::new());
        assert_eq!(words(&graph.due()), ["delete b"]);
    }
}
