//! Keeps a table in step with a changing set of Ingress objects.
//!
//! Each Ingress is compiled when it changes and never again; a change touches only the hosts it names. The result
//! depends on the set of objects, not on the order they came in: of two Ingresses that claim a host the older one
//! has it, by creation time and then by name.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use neap_api::keys;
use neap_api::networking::Ingress;

use super::compile::{CompiledIngress, compile};
use super::host::HostMap;
use super::rule::{HostRoutes, IngressKey, SecretRef};
use super::table::Table;

/// A host an Ingress claims and another one has (F4.5: `DomainConflict`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The host pattern.
    pub host: Arc<str>,
    /// The Ingress that has it.
    pub owner: IngressKey,
}

/// What a change did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether the table differs from before.
    pub table: bool,
    /// The Ingresses whose routes or conflicts may differ from before, the changed one included.
    pub touched: BTreeSet<IngressKey>,
}

/// All Ingresses of one class, compiled, and the table made of them.
#[derive(Debug)]
pub struct Index {
    class: Box<str>,
    parts: HashMap<IngressKey, Arc<CompiledIngress>>,
    hosts: Claims<Arc<HostRoutes>>,
    certificates: Claims<Arc<SecretRef>>,
    table: Table,
}

impl Index {
    /// An empty index that takes Ingresses of this class only.
    pub fn new(class: &str) -> Self {
        Self {
            class: class.into(),
            parts: HashMap::new(),
            hosts: Claims::default(),
            certificates: Claims::default(),
            table: Table::default(),
        }
    }

    /// Takes in an Ingress that is new or has changed. One that is of another class now, or is being deleted, is
    /// taken out.
    pub fn apply(&mut self, ingress: &Ingress) -> Change {
        if !self.is_ours(ingress) || ingress.metadata.deletion_timestamp.is_some() {
            return self.delete(&IngressKey::new(
                ingress.metadata.namespace.as_deref().unwrap_or_default(),
                ingress.metadata.name.as_deref().unwrap_or_default(),
            ));
        }
        let new = Arc::new(compile(ingress));
        if self.parts.get(&new.key).is_some_and(|old| *old == new) {
            return Change::default();
        }
        let mut change = self.delete(&new.key);
        let rank = Rank { created: new.created.unwrap_or(Timestamp::MAX), key: new.key.clone() };
        for (host, routes) in &new.hosts {
            self.hosts.put(host, &rank, routes.clone(), &mut self.table.hosts, &mut change.touched);
        }
        for (host, secret) in &new.certificates {
            let map = &mut self.table.certificates;
            self.certificates.put(host, &rank, secret.clone(), map, &mut change.touched);
        }
        change.table = true;
        change.touched.insert(new.key.clone());
        self.parts.insert(new.key.clone(), new);
        change
    }

    /// Takes out an Ingress. A host it had goes to the next one that claims it.
    pub fn delete(&mut self, key: &IngressKey) -> Change {
        let mut change = Change::default();
        let Some(old) = self.parts.remove(key) else { return change };
        for (host, _) in &old.hosts {
            self.hosts.take(host, key, &mut self.table.hosts, &mut change.touched);
        }
        for (host, _) in &old.certificates {
            self.certificates.take(host, key, &mut self.table.certificates, &mut change.touched);
        }
        change.table = true;
        change.touched.insert(key.clone());
        change
    }

    /// Replaces everything, as after a new list of all objects. Unchanged Ingresses stay compiled.
    pub fn reset<'a>(&mut self, all: impl IntoIterator<Item = &'a Ingress>) -> Change {
        let mut gone: BTreeSet<IngressKey> = self.parts.keys().cloned().collect();
        let mut change = Change::default();
        for ingress in all {
            gone.remove(&IngressKey::new(
                ingress.metadata.namespace.as_deref().unwrap_or_default(),
                ingress.metadata.name.as_deref().unwrap_or_default(),
            ));
            change.add(self.apply(ingress));
        }
        for key in gone {
            change.add(self.delete(&key));
        }
        change
    }

    /// A snapshot that later changes do not touch.
    pub fn table(&self) -> Table {
        self.table.clone()
    }

    /// The compiled Ingress.
    pub fn get(&self, key: &IngressKey) -> Option<&Arc<CompiledIngress>> {
        self.parts.get(key)
    }

    /// The hosts an Ingress claims in vain. Empty also for an Ingress that is not known.
    pub fn conflicts(&self, key: &IngressKey) -> Vec<Conflict> {
        let hosts = self.parts.get(key).map_or(&[][..], |part| &part.hosts);
        hosts
            .iter()
            .filter_map(|(host, _)| {
                let owner = self.hosts.owner(host)?;
                (owner != key).then(|| Conflict { host: host.clone(), owner: owner.clone() })
            })
            .collect()
    }

    /// How many Ingresses it holds.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn is_ours(&self, ingress: &Ingress) -> bool {
        let annotations = ingress.metadata.annotations.as_ref();
        let class = annotations.and_then(|all| {
            all.get(keys::networking::INGRESS_CLASS).or_else(|| all.get(keys::networking::INGRESS_CLASS_ALT))
        });
        class.is_some_and(|class| **class == *self.class)
    }
}

impl Change {
    fn add(&mut self, other: Self) {
        self.table |= other.table;
        self.touched.extend(other.touched);
    }
}

/// Orders claims on a host: the first has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    created: Timestamp,
    key: IngressKey,
}

/// Who claims which host, best claim first.
#[derive(Debug)]
struct Claims<V> {
    by_host: HashMap<Arc<str>, Vec<(Rank, V)>>,
}

impl<V> Default for Claims<V> {
    fn default() -> Self {
        Self { by_host: HashMap::new() }
    }
}

impl<V: Clone> Claims<V> {
    fn owner(&self, host: &str) -> Option<&IngressKey> {
        self.by_host.get(host).and_then(|claims| claims.first()).map(|(rank, _)| &rank.key)
    }

    fn put(
        &mut self,
        host: &Arc<str>,
        rank: &Rank,
        value: V,
        map: &mut HostMap<V>,
        touched: &mut BTreeSet<IngressKey>,
    ) {
        let claims = self.by_host.entry(host.clone()).or_default();
        let at = claims.partition_point(|(other, _)| other < rank);
        claims.insert(at, (rank.clone(), value.clone()));
        if at == 0 {
            map.insert(host, value);
        }
        touched.extend(claims.iter().map(|(rank, _)| rank.key.clone()));
    }

    fn take(&mut self, host: &Arc<str>, key: &IngressKey, map: &mut HostMap<V>, touched: &mut BTreeSet<IngressKey>) {
        let Some(claims) = self.by_host.get_mut(host) else { return };
        claims.retain(|(rank, _)| rank.key != *key);
        touched.extend(claims.iter().map(|(rank, _)| rank.key.clone()));
        match claims.first() {
            Some((_, next)) => map.insert(host, next.clone()),
            None => {
                self.by_host.remove(host);
                map.remove(host);
            }
        }
    }
}
