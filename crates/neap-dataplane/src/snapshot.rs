//! What a request sees of the world, from its start to its end.

use std::sync::Arc;

use neap_logic::routing::{Backend, IngressKey, Port, RevisionKey, SecretRef, Table};
use neap_proxy::tls::CertifiedKey;
use rpds::HashTrieMapSync;

use crate::certificates::Challenge;
use crate::extras::RouteState;
use crate::extras::auth::SecretKeys;
use crate::gate::Gate;

/// A map that costs nothing to copy: a copy and its original share all but what has changed since, so that one change
/// costs the same beside ten others or ten thousand.
pub(crate) type Shared<K, V> = HashTrieMapSync<K, V>;

/// Immutable; cheap to publish, for its parts are shared with the index until they change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) routes: Table,
    pub(crate) revisions: Shared<RevisionKey, Arc<Gate>>,
    pub(crate) services: Shared<ServiceKey, Arc<ServiceEntry>>,
    pub(crate) certificates: Shared<SecretRef, Arc<CertifiedKey>>,
    /// Of orders for certificates that are open.
    pub(crate) challenges: Shared<SecretRef, Arc<Challenge>>,
    /// Keys that callers may show.
    pub(crate) keys: Shared<SecretRef, Arc<SecretKeys>>,
    /// The Ingresses that ask for something beyond Knative.
    pub(crate) extras: Shared<IngressKey, Arc<RouteState>>,
}

/// Names a Kubernetes Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ServiceKey {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// A plain Service, as far as requests are concerned.
#[derive(Debug)]
pub(crate) struct ServiceEntry {
    /// It is but another name for this host.
    pub(crate) external_name: Option<String>,
    pub(crate) ports: Vec<ServicePort>,
}

#[derive(Debug)]
pub(crate) struct ServicePort {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) gate: Arc<Gate>,
}

/// Where a backend of a route leads.
pub(crate) enum Destination<'s> {
    Gate(&'s Arc<Gate>),
    /// To whatever this host name stands for.
    Alias(&'s str),
    /// The watches have not told of it (yet).
    Unknown,
}

impl Snapshot {
    pub(crate) fn destination(&self, backend: &Backend) -> Destination<'_> {
        if let Some(revision) = &backend.revision {
            return self.revisions.get(revision).map_or(Destination::Unknown, Destination::Gate);
        }
        let key = ServiceKey { namespace: backend.namespace.clone(), name: backend.service.clone() };
        let Some(service) = self.services.get(&key) else { return Destination::Unknown };
        if let Some(name) = &service.external_name {
            return Destination::Alias(name);
        }
        service.port(&backend.port).map_or(Destination::Unknown, |port| Destination::Gate(&port.gate))
    }

    /// Every gate, in no order.
    pub(crate) fn gates(&self) -> impl Iterator<Item = &Arc<Gate>> {
        let services = self.services.values().flat_map(|service| service.ports.iter().map(|port| &port.gate));
        self.revisions.values().chain(services)
    }
}

impl ServiceEntry {
    fn port(&self, wanted: &Port) -> Option<&ServicePort> {
        self.ports.iter().find(|port| match wanted {
            Port::Number(number) => port.number == *number,
            Port::Name(name) => *port.name == **name,
        })
    }
}
