//! The indexes: plain structures fed with objects, from which snapshots are made.
//!
//! They never wait and never ask anybody anything. What depends on two kinds (a Revision and its endpoints, a Service
//! and its endpoints) is joined here, in whatever order the objects come.

mod endpoints;
mod object;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use neap_api::networking::Ingress;
use neap_api::serving::Revision;
use neap_logic::names;
use neap_logic::routing::{Change, IngressKey, RevisionKey, SecretRef};
use neap_logic::throttle::{ACTIVATOR_QUEUE_DEPTH, subset};
use tokio::time::Instant;

use self::endpoints::Endpoints;
pub(crate) use self::object::key_of;
use crate::activator::PORTS as SIDECAR_PORTS;
use crate::activator::backends::{Backends, Known};
use crate::certificates;
use crate::extras::RouteState;
use crate::extras::auth::{KeySets, SecretKeys};
use crate::gate::{Gate, GateName, Settings};
use crate::plane::Wakes;
use crate::snapshot::{ServiceEntry, ServiceKey, ServicePort, Snapshot};
use crate::status::{IngressState, IngressStatus};

pub(crate) struct Indexes {
    wakes: Wakes,
    routing: neap_logic::routing::Index,
    generations: HashMap<IngressKey, i64>,
    /// Revisions whose instances are believed before the cluster believes them; kept where they prove themselves.
    early: HashMap<RevisionKey, bool>,
    endpoints: Endpoints,
    /// Endpoints of these Services belong to Revisions.
    private: HashMap<ServiceKey, RevisionKey>,
    snapshot: Snapshot,
    status: IngressStatus,
    /// Gates that are no longer in the snapshot, for as long as a request holds them.
    retired: Vec<Weak<Gate>>,
    /// Where instances have to prove themselves before they get requests.
    backends: Option<Arc<Backends>>,
    /// Issuers' keys, shared by the routes that trust them.
    key_sets: KeySets,
    /// Gateways beside this one.
    peers: Option<Peers>,
}

/// The gateways that stand before the same instances. Each has its own account of an instance's requests, so that an
/// instance with a limit belongs to one of them (as to one activator, E1.7), while there are as many instances as gateways.
struct Peers {
    own: IpAddr,
    /// Where their Service is.
    namespace: Arc<str>,
    addresses: Vec<IpAddr>,
}

impl Peers {
    fn share(&self, mut instances: Vec<SocketAddr>) -> Vec<SocketAddr> {
        instances.sort_unstable();
        instances.dedup();
        let own = self.addresses.iter().position(|ip| *ip == self.own);
        subset(&instances, own, self.addresses.len())
    }
}

/// What has to be published after a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    pub(crate) snapshot: bool,
    pub(crate) status: bool,
}

impl Dirty {
    pub(crate) const SNAPSHOT: Self = Self { snapshot: true, status: false };
    const NOTHING: Self = Self { snapshot: false, status: false };

    pub(crate) fn and(self, other: Self) -> Self {
        Self { snapshot: self.snapshot || other.snapshot, status: self.status || other.status }
    }
}

impl Indexes {
    pub(crate) fn new(ingress_class: &str, wakes: Wakes) -> Self {
        Self {
            wakes,
            routing: neap_logic::routing::Index::new(ingress_class),
            generations: HashMap::new(),
            early: HashMap::new(),
            endpoints: Endpoints::default(),
            private: HashMap::new(),
            snapshot: Snapshot::default(),
            status: IngressStatus::default(),
            retired: Vec::new(),
            backends: None,
            key_sets: KeySets::default(),
            peers: None,
        }
    }

    pub(crate) fn with_peers(mut self, namespace: &str, own: IpAddr) -> Self {
        self.peers = Some(Peers { own, namespace: namespace.into(), addresses: Vec::new() });
        self
    }

    pub(crate) fn with_backends(mut self, backends: Arc<Backends>) -> Self {
        self.backends = Some(backends);
        self
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    pub(crate) fn status(&self) -> IngressStatus {
        self.status.clone()
    }

    /// Every gate that is or may still be in use.
    pub(crate) fn gates(&self) -> Vec<Arc<Gate>> {
        let retired = self.retired.iter().filter_map(Weak::upgrade);
        self.snapshot.gates().cloned().chain(retired).collect()
    }

    /// Takes a gate out of service: it gets no more requests, and those that wait there go on to `successor`.
    fn retire(&mut self, gate: &Arc<Gate>, successor: Option<Arc<Gate>>, now: Instant) {
        gate.retire(successor, now);
        self.retired.retain(|gate| gate.strong_count() > 0);
        self.retired.push(Arc::downgrade(gate));
    }

    // Ingresses

    pub(crate) fn apply_ingress(&mut self, ingress: &Ingress) -> Dirty {
        let (namespace, name) = key_of(&ingress.metadata);
        let key = IngressKey::new(namespace, name);
        let generation = ingress.metadata.generation.unwrap_or_default();
        let older = self.generations.insert(key.clone(), generation);
        let mut change = self.routing.apply(ingress);
        if older != Some(generation) {
            change.touched.insert(key.clone());
        }
        if change.table {
            self.extras_changed(&key, ingress.metadata.uid.as_deref());
        }
        self.routes_changed(&change)
    }

    pub(crate) fn delete_ingress(&mut self, key: &IngressKey) -> Dirty {
        self.generations.remove(key);
        let change = self.routing.delete(key);
        self.snapshot.extras.remove_mut(key);
        self.routes_changed(&change)
    }

    /// Keeps what is remembered for an Ingress in step with its rules.
    fn extras_changed(&mut self, key: &IngressKey, uid: Option<&str>) {
        let before = self.snapshot.extras.get(key).cloned();
        match self.routing.get(key).and_then(|part| part.extras.clone()) {
            None => drop(self.snapshot.extras.remove_mut(key)),
            Some(rules) if before.as_ref().is_some_and(|before| before.rules == rules) => {}
            Some(rules) => {
                // Without a uid, as in a test, the name has to do.
                let identity = uid.map_or_else(|| key.to_string(), str::to_owned);
                let state = RouteState::new(&rules, &identity, before.as_deref(), &mut self.key_sets);
                self.snapshot.extras.insert_mut(key.clone(), Arc::new(state));
            }
        }
    }

    pub(crate) fn ingresses(&self) -> Vec<IngressKey> {
        self.generations.keys().cloned().collect()
    }

    fn routes_changed(&mut self, change: &Change) -> Dirty {
        if change.table {
            self.snapshot.routes = self.routing.table();
        }
        for key in &change.touched {
            let state = self.routing.get(key).map(|part| IngressState {
                hash: part.hash.clone(),
                generation: self.generations.get(key).copied().unwrap_or_default(),
                conflicts: self.routing.conflicts(key),
                problems: part.problems.clone(),
            });
            self.status.set(key, state);
        }
        Dirty { snapshot: change.table, status: !change.touched.is_empty() }
    }

    // Revisions

    pub(crate) fn apply_revision(&mut self, revision: &Revision, now: Instant) -> Dirty {
        let (namespace, name) = key_of(&revision.metadata);
        let key = RevisionKey::new(namespace, name);
        let settings = object::revision_settings(revision, ACTIVATOR_QUEUE_DEPTH);
        if self.snapshot.revisions.get(&key).is_some_and(|gate| gate.settings == settings) {
            return Dirty::NOTHING;
        }
        let gate = Arc::new(Gate::new(GateName::Revision(key.clone()), settings, self.wakes.clone(), now));
        let private = private_service(&key);
        if self.backends.is_some() {
            self.early.insert(key.clone(), object::is_believed_early(revision));
        }
        self.tell_instances(&key, &gate, now);
        self.private.insert(private, key.clone());
        let older = self.snapshot.revisions.get(&key).cloned();
        self.snapshot.revisions.insert_mut(key, gate.clone());
        if let Some(older) = older {
            self.retire(&older, Some(gate), now);
        }
        Dirty::SNAPSHOT
    }

    pub(crate) fn delete_revision(&mut self, key: &RevisionKey, now: Instant) -> Dirty {
        let Some(gate) = self.snapshot.revisions.get(key).cloned() else { return Dirty::NOTHING };
        self.private.remove(&private_service(key));
        self.early.remove(key);
        if let Some(backends) = &self.backends {
            backends.remove(key);
        }
        self.snapshot.revisions.remove_mut(key);
        self.retire(&gate, None, now);
        Dirty::SNAPSHOT
    }

    pub(crate) fn revisions(&self) -> Vec<RevisionKey> {
        self.snapshot.revisions.keys().cloned().collect()
    }

    // Endpoints

    pub(crate) fn apply_slice(&mut self, slice: &EndpointSlice, now: Instant) -> Dirty {
        let services = self.endpoints.apply(slice);
        self.endpoints_changed(services, now)
    }

    pub(crate) fn delete_slice(&mut self, namespace: &str, name: &str, now: Instant) -> Dirty {
        let services = self.endpoints.delete(namespace, name);
        self.endpoints_changed(services, now)
    }

    pub(crate) fn slices(&self) -> Vec<(Arc<str>, Arc<str>)> {
        self.endpoints.slices()
    }

    /// Instances are live: gates are told at once, and no snapshot changes.
    fn endpoints_changed(&mut self, services: BTreeSet<ServiceKey>, now: Instant) -> Dirty {
        self.peers_changed(&services, now);
        for service in services {
            let public = RevisionKey { namespace: service.namespace.clone(), name: service.name.clone() };
            let key = self.private.get(&service).or(self.backends.as_ref().map(|_| &public));
            if let Some((key, gate)) = key.and_then(|key| self.snapshot.revisions.get_key_value(key)) {
                self.tell_instances(key, gate, now);
            } else if let Some(entry) = self.snapshot.services.get(&service) {
                for port in &entry.ports {
                    port.gate.set_instances(self.endpoints.of_port(&service, &port.name), now);
                }
            }
        }
        Dirty::NOTHING
    }

    /// Where a gateway has come or gone, all instances are shared out anew.
    fn peers_changed(&mut self, services: &BTreeSet<ServiceKey>, now: Instant) {
        let Some(peers) = &mut self.peers else { return };
        if !services.iter().any(|service| service.namespace == peers.namespace) {
            return;
        }
        let addresses = self.endpoints.beside(&peers.namespace, peers.own);
        if addresses != peers.addresses {
            peers.addresses = addresses;
            for (key, gate) in &self.snapshot.revisions {
                self.tell_instances(key, gate, now);
            }
        }
    }

    /// Of instances with a limit that nobody behind us keeps, this gateway's own.
    fn share(&self, gate: &Gate, instances: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let is_sidecar = |addr: &SocketAddr| SIDECAR_PORTS.contains(&addr.port());
        match &self.peers {
            Some(peers) if gate.settings.container_concurrency > 0 && !instances.iter().any(is_sidecar) => {
                peers.share(instances)
            }
            _ => instances,
        }
    }

    fn tell_instances(&self, key: &RevisionKey, gate: &Arc<Gate>, now: Instant) {
        let private = private_service(key);
        match &self.backends {
            None => gate.set_instances(self.share(gate, self.endpoints.of_revision(&private)), now),
            Some(backends) => {
                let public = ServiceKey { namespace: key.namespace.clone(), name: key.name.clone() };
                let known = Known {
                    candidates: self.endpoints.candidates(&private),
                    public: self.endpoints.ready_addresses(&public),
                    early: self.early.get(key).copied().unwrap_or_default(),
                };
                backends.update(key, gate, known, now);
            }
        }
    }

    // Services

    pub(crate) fn apply_service(&mut self, service: &Service, now: Instant) -> Dirty {
        let (namespace, name) = key_of(&service.metadata);
        let key = ServiceKey { namespace: namespace.into(), name: name.into() };
        if object::is_of_a_revision(service) {
            // Requests for Revisions go by the Revision, so these need not be kept; there are two for each.
            return self.delete_service(&key, now);
        }
        let (external_name, ports) = object::service_ports(service);
        if let Some(old) = self.snapshot.services.get(&key)
            && old.external_name == external_name
            && old.ports.len() == ports.len()
            && old
                .ports
                .iter()
                .zip(&ports)
                .all(|(old, new)| old.number == new.number && old.name == new.name && old.gate.settings == new.settings)
        {
            return Dirty::NOTHING;
        }
        let ports = ports
            .into_iter()
            .map(|port| {
                let name = GateName::Service {
                    namespace: namespace.to_owned(),
                    name: key.name.to_string(),
                    port: neap_logic::routing::Port::Number(port.number),
                };
                let gate = Arc::new(Gate::new(name, port.settings, self.wakes.clone(), now));
                gate.set_instances(self.endpoints.of_port(&key, &port.name), now);
                ServicePort { number: port.number, name: port.name, gate }
            })
            .collect();
        let entry = Arc::new(ServiceEntry { external_name, ports });
        let older = self.snapshot.services.get(&key).cloned();
        self.snapshot.services.insert_mut(key, entry.clone());
        if let Some(older) = older {
            self.retire_service(&older, Some(&entry), now);
        }
        Dirty::SNAPSHOT
    }

    pub(crate) fn delete_service(&mut self, key: &ServiceKey, now: Instant) -> Dirty {
        let Some(older) = self.snapshot.services.get(key).cloned() else { return Dirty::NOTHING };
        self.snapshot.services.remove_mut(key);
        self.retire_service(&older, None, now);
        Dirty::SNAPSHOT
    }

    fn retire_service(&mut self, service: &ServiceEntry, successor: Option<&ServiceEntry>, now: Instant) {
        for old in &service.ports {
            let new = successor.and_then(|entry| entry.ports.iter().find(|port| port.number == old.number));
            self.retire(&old.gate, new.map(|port| port.gate.clone()), now);
        }
    }

    pub(crate) fn services(&self) -> Vec<ServiceKey> {
        self.snapshot.services.keys().cloned().collect()
    }

    // Secrets

    pub(crate) fn apply_secret(&mut self, secret: &Secret) -> Dirty {
        let (namespace, name) = key_of(&secret.metadata);
        let key = SecretRef { namespace: namespace.into(), name: name.into() };
        let certificate = certificates::of_secret(secret);
        if let Some(Err(error)) = &certificate {
            let kept = self.snapshot.certificates.contains_key(&key);
            tracing::warn!(secret = %format_args!("{namespace}/{name}"), error = error as &dyn std::error::Error, kept,
                "the Secret's certificate cannot be used; one that was read before stays in use");
            if kept {
                return Dirty::NOTHING;
            }
        }
        // It may have been of another kind.
        let gone = self.delete_secret(&key);
        if let Some(keys) = SecretKeys::of(secret) {
            self.snapshot.keys.insert_mut(key, Arc::new(keys));
            return Dirty::SNAPSHOT;
        }
        match certificates::of_order(secret) {
            Some(Ok(challenge)) => {
                self.snapshot.challenges.insert_mut(key, Arc::new(challenge));
                return Dirty::SNAPSHOT;
            }
            Some(Err(error)) => {
                tracing::warn!(secret = %format_args!("{namespace}/{name}"), error = &error as &dyn std::error::Error,
                    "an authority's challenge cannot be answered");
                return gone;
            }
            None => {}
        }
        match certificate {
            None | Some(Err(_)) => gone,
            Some(Ok(certificate)) => {
                self.snapshot.certificates.insert_mut(key, certificate);
                Dirty::SNAPSHOT
            }
        }
    }

    pub(crate) fn delete_secret(&mut self, key: &SecretRef) -> Dirty {
        let Snapshot { certificates, challenges, keys, .. } = &mut self.snapshot;
        if certificates.remove_mut(key) | challenges.remove_mut(key) | keys.remove_mut(key) {
            Dirty::SNAPSHOT
        } else {
            Dirty::NOTHING
        }
    }

    pub(crate) fn secrets(&self) -> Vec<SecretRef> {
        let Snapshot { certificates, challenges, keys, .. } = &self.snapshot;
        certificates.keys().chain(challenges.keys()).chain(keys.keys()).cloned().collect()
    }
}

fn private_service(revision: &RevisionKey) -> ServiceKey {
    ServiceKey { namespace: revision.namespace.clone(), name: names::private_service(&revision.name).into() }
}

impl IngressStatus {
    fn set(&mut self, key: &IngressKey, state: Option<IngressState>) {
        match state {
            Some(state) => self.live.insert_mut(key.clone(), state),
            None => drop(self.live.remove_mut(key)),
        }
    }
}

impl Settings {
    /// Of a plain Service: no limit is an ingress's to set (F1.13).
    pub(crate) fn of_service(protocol: neap_proxy::Protocol) -> Self {
        Self {
            limits: neap_proxy::Limits::default(),
            protocol,
            container_concurrency: 0,
            depth: ACTIVATOR_QUEUE_DEPTH,
            service: None,
        }
    }
}
