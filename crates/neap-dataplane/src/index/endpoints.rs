//! EndpointSlices by Service: which addresses are ready on which port.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::object::key_of;
use crate::activator::backends::Candidate;
use crate::snapshot::ServiceKey;

/// Label of a slice: its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Ports of a Revision's private Service that lead to the application (D6.1); the others are for metrics, admin
/// and meshes.
const REVISION_PORTS: [&str; 2] = ["http", "http2"];

type SliceKey = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct Endpoints {
    slices: HashMap<SliceKey, Slice>,
    by_service: HashMap<ServiceKey, BTreeSet<SliceKey>>,
}

#[derive(Debug)]
struct Slice {
    service: ServiceKey,
    ports: Vec<(String, u16)>,
    ready: Vec<IpAddr>,
    /// Neither ready nor on their way out.
    starting: Vec<IpAddr>,
}

impl Endpoints {
    /// Takes a slice in. Returns the Services whose endpoints may have changed.
    pub(super) fn apply(&mut self, slice: &EndpointSlice) -> BTreeSet<ServiceKey> {
        let (namespace, name) = key_of(&slice.metadata);
        let mut touched = self.delete(namespace, name);
        let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else {
            return touched;
        };
        let service = ServiceKey { namespace: namespace.into(), name: service.as_str().into() };
        let ports = slice.ports.as_deref().unwrap_or_default().iter();
        let ports = ports
            .filter_map(|port| {
                Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port?).ok().filter(|port| *port > 0)?))
            })
            .collect();
        let (mut ready, mut starting) = (Vec::new(), Vec::new());
        for endpoint in slice.endpoints.iter().flatten() {
            // "Consumers must handle additional addresses", but all of one endpoint reach the same pod.
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { continue };
            // Unknown counts as ready (the field's own definition); what terminates is never ready.
            let conditions = endpoint.conditions.as_ref();
            match conditions.map(|is| (is.ready.unwrap_or(true), is.terminating.unwrap_or(false))) {
                None | Some((true, false)) => ready.push(address),
                Some((false, false)) => starting.push(address),
                Some((_, true)) => {}
            }
        }
        let key: SliceKey = (namespace.into(), name.into());
        self.by_service.entry(service.clone()).or_default().insert(key.clone());
        touched.insert(service.clone());
        self.slices.insert(key, Slice { service, ports, ready, starting });
        touched
    }

    /// Takes a slice out.
    pub(super) fn delete(&mut self, namespace: &str, name: &str) -> BTreeSet<ServiceKey> {
        let key: SliceKey = (namespace.into(), name.into());
        let Some(old) = self.slices.remove(&key) else { return BTreeSet::new() };
        if let Some(of_service) = self.by_service.get_mut(&old.service) {
            of_service.remove(&key);
            if of_service.is_empty() {
                self.by_service.remove(&old.service);
            }
        }
        BTreeSet::from([old.service])
    }

    pub(super) fn slices(&self) -> Vec<SliceKey> {
        self.slices.keys().cloned().collect()
    }

    /// The instances of a Revision, by its private Service.
    pub(super) fn of_revision(&self, private: &ServiceKey) -> Vec<SocketAddr> {
        self.select(private, |name| REVISION_PORTS.contains(&name))
    }

    /// Everything that may be an instance, by the private Service, and whether it is ready.
    pub(super) fn candidates(&self, private: &ServiceKey) -> Vec<Candidate> {
        let slices = self.by_service.get(private).into_iter().flatten().filter_map(|key| self.slices.get(key));
        let of = |slice: &Slice| {
            let port =
                slice.ports.iter().find(|(name, _)| REVISION_PORTS.contains(&name.as_str())).map(|(_, port)| *port);
            let with = move |ready: bool| {
                move |ip: &IpAddr| port.map(|port| Candidate { addr: SocketAddr::new(*ip, port), ready })
            };
            let all = slice.ready.iter().filter_map(with(true)).chain(slice.starting.iter().filter_map(with(false)));
            all.collect::<Vec<_>>()
        };
        slices.flat_map(of).collect()
    }

    /// The addresses behind a Service's name.
    pub(super) fn ready_addresses(&self, service: &ServiceKey) -> Vec<IpAddr> {
        let slices = self.by_service.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices.flat_map(|slice| slice.ready.iter().copied()).collect()
    }

    /// The addresses behind the first Service of a namespace, by name, that leads to `own` too; sorted.
    pub(super) fn beside(&self, namespace: &str, own: IpAddr) -> Vec<IpAddr> {
        let ours = self.by_service.keys().filter(|service| *service.namespace == *namespace);
        let with_own = ours.filter(|service| self.ready_addresses(service).contains(&own));
        let mut addresses = with_own.min().map_or_else(Vec::new, |service| self.ready_addresses(service));
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The endpoints of a Service's port. A Service with a single port need not name it.
    pub(super) fn of_port(&self, service: &ServiceKey, port: &str) -> Vec<SocketAddr> {
        self.select(service, |name| name == port)
    }

    fn select(&self, service: &ServiceKey, wanted: impl Fn(&str) -> bool) -> Vec<SocketAddr> {
        let slices = self.by_service.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices
            .filter_map(|slice| Some((slice, slice.ports.iter().find(|(name, _)| wanted(name))?.1)))
            .flat_map(|(slice, port)| slice.ready.iter().map(move |ip| SocketAddr::new(*ip, port)))
            .collect()
    }
}
