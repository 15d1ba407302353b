//! What the loop knows: deployments, their pods, quotas, and which deployments are to be looked at when.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::{Event, LAST_RETRY, RETRY};
use crate::feed::Change;

/// Namespace and name.
pub(super) type Key = (String, String);

#[derive(Default)]
pub(super) struct Index {
    deployments: BTreeMap<Key, Arc<Deployment>>,
    pods: BTreeMap<Key, Pod>,
    quotas: BTreeMap<Key, ResourceQuota>,
    /// UID of a deployment to its pods' keys.
    owned: HashMap<String, BTreeSet<Key>>,
    dirty: BTreeSet<Key>,
    later: BTreeMap<Key, Instant>,
    /// Whose last pod was refused, and how often in a row.
    refused: BTreeMap<Key, u32>,
    /// Deployments, pods, quotas: which kinds have been listed once.
    listed: [bool; 3],
}

impl Index {
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Deployment(Change::Apply(deployment)) => self.put_deployment(deployment),
            Event::Deployment(Change::Delete(deployment)) => self.drop_deployment(&key(&deployment)),
            Event::Deployment(Change::Reset(all)) => {
                for key in std::mem::take(&mut self.deployments).into_keys() {
                    self.drop_deployment(&key);
                }
                all.into_iter().for_each(|d| self.put_deployment(d));
                self.listed[0] = true;
            }
            Event::Pod(Change::Apply(pod)) => self.put_pod(pod),
            Event::Pod(Change::Delete(pod)) => self.drop_pod(&key(&pod)),
            Event::Pod(Change::Reset(all)) => {
                for key in self.pods.keys().cloned().collect::<Vec<_>>() {
                    self.drop_pod(&key);
                }
                all.into_iter().for_each(|p| self.put_pod(p));
                self.listed[1] = true;
            }
            Event::Quota(Change::Apply(quota)) => {
                self.look_at_refused(&quota.namespace().unwrap_or_default());
                self.quotas.insert(key(&quota), quota);
            }
            Event::Quota(Change::Delete(quota)) => {
                self.look_at_refused(&quota.namespace().unwrap_or_default());
                self.quotas.remove(&key(&quota));
            }
            Event::Quota(Change::Reset(all)) => {
                self.quotas = all.into_iter().map(|q| (key(&q), q)).collect();
                self.listed[2] = true;
            }
        }
    }

    /// Whether everything was listed once: before that, missing pods mean nothing.
    pub(super) fn synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    pub(super) fn deployment(&self, key: &Key) -> Option<Arc<Deployment>> {
        self.deployments.get(key).cloned()
    }

    pub(super) fn pods_of(&self, deployment: &Deployment) -> Vec<&Pod> {
        let uid = deployment.uid().unwrap_or_default();
        self.owned.get(&uid).into_iter().flatten().filter_map(|key| self.pods.get(key)).collect()
    }

    pub(super) fn pods_of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        in_namespace(&self.pods, namespace)
    }

    pub(super) fn quotas<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ResourceQuota> {
        in_namespace(&self.quotas, namespace)
    }

    pub(super) fn forget_pod(&mut self, of: &Key, name: &str) {
        self.drop_pod(&(of.0.clone(), name.to_owned()));
    }

    /// A pod was refused, by admission or a quota: how long until it is tried again.
    pub(super) fn refused(&mut self, key: &Key) -> Duration {
        let times = self.refused.entry(key.clone()).or_default();
        *times += 1;
        RETRY.saturating_mul(1 << (*times - 1).min(16)).min(LAST_RETRY)
    }

    pub(super) fn accepted(&mut self, key: &Key) {
        self.refused.remove(key);
    }

    /// A quota changed, or what is used of it.
    fn look_at_refused(&mut self, namespace: &str) {
        self.dirty.extend(self.refused.keys().filter(|key| key.0 == namespace).cloned());
    }

    /// Look at a deployment again after this long.
    pub(super) fn again(&mut self, key: Key, after: Duration) {
        if self.deployments.contains_key(&key) {
            self.later.insert(key, Instant::now() + after);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.values().min().copied()
    }

    /// Takes what is to be looked at now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Key> {
        let mut due = std::mem::take(&mut self.dirty);
        due.extend(self.later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()));
        due.iter().for_each(|key| {
            self.later.remove(key);
        });
        due.into_iter().collect()
    }

    fn put_deployment(&mut self, deployment: Deployment) {
        let key = key(&deployment);
        let known = self.deployments.get(&key);
        // Our own writes come back as events; what is known already is no news, and what is older is none either.
        if known.is_some_and(|known| !newer(known.meta(), deployment.meta())) {
            return;
        }
        if known.is_some_and(|known| known.metadata.generation != deployment.metadata.generation) {
            self.refused.remove(&key);
        }
        self.dirty.insert(key.clone());
        self.deployments.insert(key, Arc::new(deployment));
    }

    fn drop_deployment(&mut self, key: &Key) {
        self.deployments.remove(key);
        self.dirty.remove(key);
        self.later.remove(key);
        self.refused.remove(key);
    }

    fn put_pod(&mut self, pod: Pod) {
        let key = key(&pod);
        if self.pods.get(&key).is_some_and(|known| !newer(known.meta(), pod.meta())) {
            return;
        }
        // It may have another owner now, or none: whoever is to look at a broken pod takes it out of its set.
        if self.pods.get(&key).and_then(owner) != owner(&pod) {
            self.drop_pod(&key);
        }
        if let Some(owner) = owner(&pod) {
            self.owned.entry(owner.clone()).or_default().insert(key.clone());
            self.mark(&owner);
        }
        self.pods.insert(key, pod);
    }

    fn drop_pod(&mut self, key: &Key) {
        let Some(pod) = self.pods.remove(key) else { return };
        let Some(owner) = owner(&pod) else { return };
        if let Some(owned) = self.owned.get_mut(&owner) {
            owned.remove(key);
            if owned.is_empty() {
                self.owned.remove(&owner);
            }
        }
        self.mark(&owner);
    }

    fn mark(&mut self, uid: &str) {
        let found = self.deployments.iter().find(|(_, d)| d.metadata.uid.as_deref() == Some(uid));
        if let Some((key, _)) = found {
            self.dirty.insert(key.clone());
        }
    }
}

fn in_namespace<'a, K>(map: &'a BTreeMap<Key, K>, namespace: &'a str) -> impl Iterator<Item = &'a K> {
    map.range((namespace.to_owned(), String::new())..).take_while(move |(key, _)| key.0 == namespace).map(|(_, v)| v)
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn owner(pod: &Pod) -> Option<String> {
    pod.owner_references().iter().find(|o| o.controller == Some(true) && o.kind == "Deployment").map(|o| o.uid.clone())
}

fn newer(known: &kube::core::ObjectMeta, now: &kube::core::ObjectMeta) -> bool {
    let version = |meta: &kube::core::ObjectMeta| meta.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    known.uid != now.uid || version(known) < version(now)
}
