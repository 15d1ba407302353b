//! The objects an autoscaler looks at, as last seen, and which Revisions a change concerns.
//!
//! Of what is only counted (Deployments, EndpointSlices) no more than the counts is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Resource, ResourceExt};
use neap_api::autoscaling::{Metric, PodAutoscaler};
use neap_api::networking::ServerlessService;
use neap_logic::names::private_service;
use neap_logic::routing::RevisionKey;

/// Deletions remembered per kind, so that the response to a write made before one does not bring the object back.
/// A response is late by a job's length, and far fewer objects than this go in that time.
const GRAVES: usize = 256;

/// Label of an EndpointSlice: the Service it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What happened to the objects of one kind.
#[derive(Clone, Debug)]
pub(super) enum Delta<T> {
    /// One is new or has changed.
    Apply(T),
    /// One is gone.
    Delete(T),
    /// These are all.
    Reset(Vec<T>),
}

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Pa(Delta<PodAutoscaler>),
    Sks(Delta<ServerlessService>),
    Metric(Delta<Metric>),
    Hpa(Delta<HorizontalPodAutoscaler>),
    Target(Delta<Target>),
    Slice(Delta<Slice>),
}

/// What is scaled: how many replicas a Deployment is told to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) key: RevisionKey,
    pub(super) replicas: u32,
}

impl From<Deployment> for Target {
    fn from(deployment: Deployment) -> Self {
        // Absent means one, as Kubernetes has it.
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        Self { key: key_of(&deployment), replicas: u32::try_from(replicas).unwrap_or(0) }
    }
}

/// What an EndpointSlice says about the pods of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    key: RevisionKey,
    service: RevisionKey,
    /// By pod, or by address where no pod is named: two slices of one Service may name the same pod.
    endpoints: BTreeMap<String, Endpoint>,
}

/// How a pod is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint {
    Terminating,
    NotReady,
    Ready,
}

impl From<EndpointSlice> for Slice {
    fn from(slice: EndpointSlice) -> Self {
        let key = key_of(&slice);
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let service = RevisionKey::new(&key.namespace, service.map_or("", String::as_str));
        let mut endpoints = BTreeMap::new();
        for endpoint in slice.endpoints.unwrap_or_default() {
            let conditions = endpoint.conditions.unwrap_or_default();
            let state = match (conditions.terminating, conditions.ready) {
                (Some(true), _) => Endpoint::Terminating,
                // Absent means ready, as Kubernetes has it.
                (_, Some(false)) => Endpoint::NotReady,
                _ => Endpoint::Ready,
            };
            let pod = endpoint.target_ref.and_then(|pod| pod.name).or_else(|| endpoint.addresses.into_iter().next());
            if let Some(pod) = pod {
                endpoints.insert(pod, state);
            }
        }
        Self { key, service, endpoints }
    }
}

/// How many pods of a Revision are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    pub(super) ready: u32,
    pub(super) not_ready: u32,
    pub(super) terminating: u32,
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct World {
    pas: Known<PodAutoscaler>,
    skss: Known<ServerlessService>,
    metrics: Known<Metric>,
    hpas: Known<HorizontalPodAutoscaler>,
    /// By the target's own name.
    targets: HashMap<RevisionKey, u32>,
    /// From a target's name to the PodAutoscaler that scales it.
    scaled_by: HashMap<RevisionKey, RevisionKey>,
    slices: HashMap<RevisionKey, Slice>,
    /// From a private Service's name to its slices.
    slices_of: HashMap<RevisionKey, BTreeSet<RevisionKey>>,
    /// From a private Service's name to its PodAutoscaler.
    served_by: HashMap<RevisionKey, RevisionKey>,
    targets_listed: bool,
    slices_listed: bool,
}

impl World {
    /// Takes a change in. Returns the Revisions it concerns.
    pub(super) fn apply(&mut self, change: Change) -> BTreeSet<RevisionKey> {
        match change {
            Change::Pa(delta) => {
                let touched = self.pas.apply(delta);
                for key in &touched {
                    self.index_pa(key);
                }
                touched
            }
            Change::Sks(delta) => self.skss.apply(delta),
            Change::Metric(delta) => self.metrics.apply(delta),
            Change::Hpa(delta) => self.hpas.apply(delta),
            Change::Target(delta) => self.apply_targets(delta),
            Change::Slice(delta) => self.apply_slices(delta),
        }
    }

    /// Whether everything has been listed once. Before that, what is missing may only not have been seen.
    pub(super) fn is_complete(&self) -> bool {
        let objects = self.pas.listed && self.skss.listed && self.metrics.listed && self.hpas.listed;
        objects && self.targets_listed && self.slices_listed
    }

    pub(super) fn pa(&self, key: &RevisionKey) -> Option<&Arc<PodAutoscaler>> {
        self.pas.objects.get(key)
    }

    pub(super) fn pas(&self) -> impl Iterator<Item = &RevisionKey> {
        self.pas.objects.keys()
    }

    pub(super) fn sks(&self, key: &RevisionKey) -> Option<&Arc<ServerlessService>> {
        self.skss.objects.get(key)
    }

    pub(super) fn metric(&self, key: &RevisionKey) -> Option<&Arc<Metric>> {
        self.metrics.objects.get(key)
    }

    pub(super) fn hpa(&self, key: &RevisionKey) -> Option<&Arc<HorizontalPodAutoscaler>> {
        self.hpas.objects.get(key)
    }

    /// Replicas the target of a PodAutoscaler is told to have.
    pub(super) fn replicas(&self, pa: &PodAutoscaler) -> Option<u32> {
        self.targets.get(&target_of(pa)).copied()
    }

    /// The pods behind a Revision's private Service.
    pub(super) fn pods(&self, key: &RevisionKey) -> Pods {
        let service = private_of(key);
        let mut best: BTreeMap<&str, Endpoint> = BTreeMap::new();
        for slice in self.slices_of.get(&service).into_iter().flatten().filter_map(|key| self.slices.get(key)) {
            for (pod, state) in &slice.endpoints {
                let known = best.entry(pod).or_insert(*state);
                *known = (*known).max(*state);
            }
        }
        let count = |wanted| u32::try_from(best.values().filter(|state| **state == wanted).count()).unwrap_or(u32::MAX);
        Pods {
            ready: count(Endpoint::Ready),
            not_ready: count(Endpoint::NotReady),
            terminating: count(Endpoint::Terminating),
        }
    }

    fn index_pa(&mut self, key: &RevisionKey) {
        match self.pas.objects.get(key) {
            Some(pa) => {
                self.scaled_by.insert(target_of(pa), key.clone());
                self.served_by.insert(private_of(key), key.clone());
            }
            None => {
                self.scaled_by.retain(|_, pa| pa != key);
                self.served_by.remove(&private_of(key));
            }
        }
    }

    fn apply_targets(&mut self, delta: Delta<Target>) -> BTreeSet<RevisionKey> {
        let before = &mut self.targets;
        let changed: BTreeSet<RevisionKey> = match delta {
            Delta::Apply(target) => {
                let old = before.insert(target.key.clone(), target.replicas);
                (old != Some(target.replicas)).then_some(target.key).into_iter().collect()
            }
            Delta::Delete(target) => before.remove(&target.key).map(|_| target.key).into_iter().collect(),
            Delta::Reset(all) => {
                self.targets_listed = true;
                let all: HashMap<_, _> = all.into_iter().map(|target| (target.key, target.replicas)).collect();
                let old = std::mem::replace(before, all);
                old.into_keys().chain(before.keys().cloned()).collect()
            }
        };
        changed.iter().filter_map(|target| self.scaled_by.get(target).cloned()).collect()
    }

    fn apply_slices(&mut self, delta: Delta<Slice>) -> BTreeSet<RevisionKey> {
        let mut services = BTreeSet::new();
        match delta {
            Delta::Apply(slice) => {
                if self.slices.get(&slice.key) != Some(&slice) {
                    self.put_slice(slice, &mut services);
                }
            }
            Delta::Delete(slice) => self.take_slice(&slice.key, &mut services),
            Delta::Reset(all) => {
                self.slices_listed = true;
                for key in self.slices.keys().cloned().collect::<Vec<_>>() {
                    self.take_slice(&key, &mut services);
                }
                for slice in all {
                    self.put_slice(slice, &mut services);
                }
            }
        }
        services.iter().filter_map(|service| self.served_by.get(service).cloned()).collect()
    }

    fn put_slice(&mut self, slice: Slice, services: &mut BTreeSet<RevisionKey>) {
        self.take_slice(&slice.key, services);
        services.insert(slice.service.clone());
        self.slices_of.entry(slice.service.clone()).or_default().insert(slice.key.clone());
        self.slices.insert(slice.key.clone(), slice);
    }

    fn take_slice(&mut self, key: &RevisionKey, services: &mut BTreeSet<RevisionKey>) {
        let Some(old) = self.slices.remove(key) else { return };
        if let Some(slices) = self.slices_of.get_mut(&old.service) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(&old.service);
            }
        }
        services.insert(old.service);
    }
}

/// Namespace and name of any object. Everything of a Revision's but its target and Services has its name.
pub(super) fn key_of(object: &impl Resource) -> RevisionKey {
    RevisionKey::new(
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.meta().name.as_deref().unwrap_or_default(),
    )
}

fn target_of(pa: &PodAutoscaler) -> RevisionKey {
    RevisionKey::new(pa.metadata.namespace.as_deref().unwrap_or_default(), &pa.spec.scale_target_ref.name)
}

fn private_of(key: &RevisionKey) -> RevisionKey {
    RevisionKey { namespace: key.namespace.clone(), name: private_service(&key.name).into() }
}

/// The objects of one kind.
#[derive(Debug)]
struct Known<K> {
    objects: HashMap<RevisionKey, Arc<K>>,
    /// Whether they have been listed once.
    listed: bool,
    /// The UIDs of those deleted last.
    graves: VecDeque<String>,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listed: false, graves: VecDeque::new() }
    }
}

impl<K: Resource> Known<K> {
    fn apply(&mut self, delta: Delta<K>) -> BTreeSet<RevisionKey> {
        match delta {
            Delta::Apply(object) => {
                let key = key_of(&object);
                let dead = object.meta().uid.as_ref().is_some_and(|uid| self.graves.contains(uid));
                if dead || self.objects.get(&key).is_some_and(|held| is_newer(&**held, &object)) {
                    return BTreeSet::new();
                }
                self.objects.insert(key.clone(), Arc::new(object));
                BTreeSet::from([key])
            }
            Delta::Delete(object) => {
                let key = key_of(&object);
                // A deletion seen late must not take the object that was created anew under the same name.
                if self.objects.get(&key).is_some_and(|held| held.meta().uid == object.meta().uid) {
                    self.objects.remove(&key);
                }
                if let Some(uid) = object.uid() {
                    self.graves.push_back(uid);
                    if self.graves.len() > GRAVES {
                        self.graves.pop_front();
                    }
                }
                BTreeSet::from([key])
            }
            Delta::Reset(all) => {
                self.listed = true;
                let all = all.into_iter().map(|object| (key_of(&object), Arc::new(object))).collect();
                let old = std::mem::replace(&mut self.objects, all);
                old.into_keys().chain(self.objects.keys().cloned()).collect()
            }
        }
    }
}

/// Whether what is held is newer than, or the same as, what comes in. A response to a write of our own may overtake
/// the watch; the watch must not take it back.
fn is_newer(held: &impl Resource, new: &impl Resource) -> bool {
    let version = |object: &dyn Fn() -> Option<String>| object().and_then(|version| version.parse::<u64>().ok());
    match (version(&|| held.resource_version()), version(&|| new.resource_version())) {
        (Some(held_version), Some(new_version)) => held.meta().uid == new.meta().uid && held_version >= new_version,
        _ => false,
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
