//! What the loop knows: services, pods, slices, endpoints; and which services are to be looked at.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Resource, ResourceExt};

use super::Event;
use super::plan::{Observed, SERVICE_NAME, managed, selects};
use crate::feed::Change;

/// Namespace and name.
pub(super) type Key = (String, String);

#[derive(Default)]
pub(super) struct Index {
    services: BTreeMap<Key, Service>,
    pods: BTreeMap<Key, Pod>,
    slices: BTreeMap<Key, EndpointSlice>,
    endpoints: BTreeMap<Key, Endpoints>,
    dirty: BTreeSet<Key>,
    /// Services, pods, slices, endpoints.
    listed: [bool; 4],
}

impl Index {
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Service(change) => {
                self.dirty.extend(store(&mut self.services, change, &mut self.listed[0]));
            }
            Event::Pod(change) => self.take_pod(change),
            Event::Slice(change) => {
                for (_, before, now) in moved(&mut self.slices, change, &mut self.listed[2]) {
                    self.dirty.extend(before.iter().chain(&now).filter(|s| managed(s)).filter_map(service_of));
                }
            }
            Event::Endpoints(change) => {
                for (key, ..) in moved(&mut self.endpoints, change, &mut self.listed[3]) {
                    self.dirty.insert(key);
                }
            }
        }
    }

    pub(super) fn synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    pub(super) fn due(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    pub(super) fn look_at(&mut self, keys: Vec<Key>) {
        self.dirty.extend(keys);
    }

    pub(super) fn observed<'a>(&'a self, key: &'a Key) -> Observed<'a> {
        let service = self.services.get(key);
        let pods = match service {
            Some(service) => in_namespace(&self.pods, &key.0).filter(|pod| selects(service, pod)).collect(),
            None => Vec::new(),
        };
        Observed {
            service,
            pods,
            slices: in_namespace(&self.slices, &key.0)
                .filter(|s| managed(s) && service_of(s).as_ref() == Some(key))
                .collect(),
            endpoints: self.endpoints.get(key),
        }
    }

    pub(super) fn slice(&self, namespace: &str, name: &str) -> Option<&EndpointSlice> {
        self.slices.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(super) fn slices_of(&self, key: &Key) -> Vec<String> {
        let ours = in_namespace(&self.slices, &key.0).filter(|s| managed(s) && service_of(s).as_ref() == Some(key));
        ours.map(ResourceExt::name_any).collect()
    }

    pub(super) fn endpoints(&self, key: &Key) -> Option<&Endpoints> {
        self.endpoints.get(key)
    }

    pub(super) fn forget_slice(&mut self, namespace: &str, name: &str) {
        self.slices.remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub(super) fn forget_endpoints(&mut self, key: &Key) {
        self.endpoints.remove(key);
    }

    fn take_pod(&mut self, change: Change<Pod>) {
        for (key, before, now) in moved(&mut self.pods, change, &mut self.listed[1]) {
            let touched = in_namespace(&self.services, &key.0)
                .filter(|service| before.iter().chain(&now).any(|pod| selects(service, pod)))
                .map(|service| (key.0.clone(), service.name_any()));
            self.dirty.extend(touched.collect::<Vec<_>>());
        }
    }
}

/// The Service a slice belongs to.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    Some((slice.namespace()?, slice.labels().get(SERVICE_NAME)?.clone()))
}

fn in_namespace<'a, K>(map: &'a BTreeMap<Key, K>, namespace: &'a str) -> impl Iterator<Item = &'a K> {
    map.range((namespace.to_owned(), String::new())..).take_while(move |(key, _)| key.0 == namespace).map(|(_, v)| v)
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Applies a change; the keys that are touched by it.
fn store<K: Resource + Clone>(map: &mut BTreeMap<Key, K>, change: Change<K>, listed: &mut bool) -> Vec<Key> {
    moved(map, change, listed).into_iter().map(|(key, ..)| key).collect()
}

/// Applies a change; for each object that is not as it was, how it was and how it is.
fn moved<K: Resource + Clone>(
    map: &mut BTreeMap<Key, K>,
    change: Change<K>,
    listed: &mut bool,
) -> Vec<(Key, Option<K>, Option<K>)> {
    match change {
        Change::Apply(object) => {
            let key = key(&object);
            let known = map.get(&key).map(|known| (known.uid(), version(known)));
            // Our own writes come back as events: what is known, and what is older than that, is no news.
            if known.is_some_and(|(uid, at)| uid == object.uid() && at >= version(&object)) {
                return Vec::new();
            }
            let before = map.insert(key.clone(), object.clone());
            vec![(key, before, Some(object))]
        }
        Change::Delete(object) => {
            let key = key(&object);
            let before = map.remove(&key);
            vec![(key, before, None)]
        }
        Change::Reset(all) => {
            *listed = true;
            let mut old = std::mem::take(map);
            let mut touched = Vec::new();
            for object in all {
                let key = key(&object);
                touched.push((key.clone(), old.remove(&key), Some(object.clone())));
                map.insert(key, object);
            }
            touched.extend(old.into_iter().map(|(key, object)| (key, Some(object), None)));
            touched
        }
    }
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}
