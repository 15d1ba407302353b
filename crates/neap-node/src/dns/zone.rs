//! The names inside the cluster's domain. A plain index of Services and their slices; knows no socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Resource, ResourceExt};

use crate::feed::Change;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Longest chain of aliases inside the cluster that is followed for a client.
const ALIASES: usize = 4;

pub(super) enum Event {
    Service(Change<Service>),
    Slice(Change<EndpointSlice>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Addresses(Vec<Ipv4Addr>),
    Alias {
        target: String,
        addresses: Vec<Ipv4Addr>,
    },
    /// Port and the name it is at.
    Ports(Vec<(u16, String)>),
    Missing,
}

type Key = (String, String);

pub(super) struct Zone {
    domain: String,
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, EndpointSlice>,
    /// Names of slices by their Service.
    of_service: BTreeMap<Key, BTreeSet<Key>>,
}

impl Zone {
    pub(super) fn new(domain: &str) -> Self {
        Self {
            domain: domain.to_lowercase(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            of_service: BTreeMap::new(),
        }
    }

    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Service(change) => keep(&mut self.services, change),
            Event::Slice(change) => self.take_slice(change),
        }
    }

    fn take_slice(&mut self, change: Change<EndpointSlice>) {
        let link = |of: &mut BTreeMap<Key, BTreeSet<Key>>, slice: &EndpointSlice, there: bool| {
            let (namespace, name) = (slice.namespace().unwrap_or_default(), slice.name_any());
            let Some(service) = slice.labels().get(SERVICE_NAME) else { return };
            let service = (namespace.clone(), service.clone());
            let names = of.entry(service.clone()).or_default();
            match there {
                true => drop(names.insert((namespace, name))),
                false => drop(names.remove(&(namespace, name))),
            }
            if names.is_empty() {
                of.remove(&service);
            }
        };
        match &change {
            Change::Apply(slice) | Change::Delete(slice) => {
                let key = (slice.namespace().unwrap_or_default(), slice.name_any());
                if let Some(before) = self.slices.get(&key) {
                    link(&mut self.of_service, before, false);
                }
                if matches!(change, Change::Apply(_)) {
                    link(&mut self.of_service, slice, true);
                }
            }
            Change::Reset(all) => {
                self.of_service.clear();
                all.iter().for_each(|slice| link(&mut self.of_service, slice, true));
            }
        }
        keep(&mut self.slices, change);
    }

    /// `None` for a name outside the domain. The name is in lower case and without a dot at its end.
    pub(super) fn lookup(&self, name: &str) -> Option<Answer> {
        if name == self.domain {
            return Some(Answer::Addresses(Vec::new()));
        }
        let inside = name.strip_suffix(&self.domain)?.strip_suffix('.')?;
        let labels: Vec<&str> = inside.split('.').collect();
        let answer = match labels.as_slice() {
            ["svc"] | [_, "svc"] => Answer::Addresses(Vec::new()),
            [service, namespace, "svc"] => self.service(service, namespace, ALIASES),
            [port, protocol, service, namespace, "svc"] if port.starts_with('_') && protocol.starts_with('_') => {
                self.port(&port[1..], &protocol[1..], service, namespace)
            }
            [pod, service, namespace, "svc"] => self.pod(pod, service, namespace),
            _ => Answer::Missing,
        };
        Some(answer)
    }

    fn service(&self, name: &str, namespace: &str, aliases: usize) -> Answer {
        let Some(service) = self.services.get(&(namespace.to_owned(), name.to_owned())) else { return Answer::Missing };
        let spec = service.spec.as_ref();
        if let Some(target) = spec.and_then(|s| s.external_name.as_deref()).filter(|t| !t.is_empty()) {
            let target = target.trim_end_matches('.').to_lowercase();
            return Answer::Alias { addresses: self.follow(&target, aliases), target };
        }
        let fixed = spec.and_then(|s| s.cluster_ip.as_deref()).and_then(|ip| ip.parse().ok());
        Answer::Addresses(fixed.map_or_else(|| self.addresses(name, namespace), |ip| vec![ip]))
    }

    /// The addresses at the end of a chain of aliases; none where it is too long or leads outside.
    fn follow(&self, target: &str, aliases: usize) -> Vec<Ipv4Addr> {
        let inside = target.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')).unwrap_or_default();
        let labels: Vec<&str> = inside.split('.').collect();
        let (true, [service, namespace, "svc"]) = (aliases > 0, labels.as_slice()) else { return Vec::new() };
        match self.service(service, namespace, aliases - 1) {
            Answer::Addresses(addresses) | Answer::Alias { addresses, .. } => addresses,
            Answer::Ports(_) | Answer::Missing => Vec::new(),
        }
    }

    fn addresses(&self, name: &str, namespace: &str) -> Vec<Ipv4Addr> {
        let ready = self.slices_of(name, namespace).flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = ready.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false));
        let mut found: Vec<_> = ready.flat_map(|e| &e.addresses).filter_map(|a| a.parse().ok()).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn pod(&self, hostname: &str, service: &str, namespace: &str) -> Answer {
        let endpoints = self.slices_of(service, namespace).flat_map(|slice| slice.endpoints.iter().flatten());
        let named = endpoints.filter(|e| {
            e.hostname.as_deref() == Some(hostname) || e.addresses.iter().any(|a| a.replace('.', "-") == hostname)
        });
        let found: Vec<_> = named.flat_map(|e| &e.addresses).filter_map(|a| a.parse().ok()).collect();
        if found.is_empty() { Answer::Missing } else { Answer::Addresses(found) }
    }

    fn port(&self, port: &str, protocol: &str, service: &str, namespace: &str) -> Answer {
        let mut found = Vec::new();
        for slice in self.slices_of(service, namespace) {
            let ports = slice.ports.iter().flatten();
            let wanted = ports.filter(|p| {
                p.name.as_deref() == Some(port) && p.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
            });
            for number in wanted.filter_map(|p| p.port.and_then(|n| u16::try_from(n).ok())) {
                found.push((number, format!("{service}.{namespace}.svc.{}", self.domain)));
            }
        }
        found.sort_unstable();
        found.dedup();
        if found.is_empty() { Answer::Missing } else { Answer::Ports(found) }
    }

    fn slices_of<'a>(&'a self, service: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a EndpointSlice> {
        // Of any name: users make slices, too.
        let of = self.of_service.get(&(namespace.to_owned(), service.to_owned()));
        of.into_iter().flatten().filter_map(|key| self.slices.get(key))
    }
}

/// The last two labels: what a negative answer names as its zone.
pub(super) fn apex(name: &str) -> String {
    let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
    labels[labels.len().saturating_sub(2)..].join(".")
}

fn keep<K: Resource>(map: &mut BTreeMap<Key, K>, change: Change<K>) {
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match change {
        Change::Apply(object) => {
            map.insert(key(&object), object);
        }
        Change::Delete(object) => {
            map.remove(&key(&object));
        }
        Change::Reset(all) => *map = all.into_iter().map(|object| (key(&object), object)).collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(in crate::dns) fn fill(zone: &mut Zone) {
        let service = |value| serde_json::from_value::<Service>(value).expect("a service");
        let services = vec![
            service(json!({"metadata": {"name": "web", "namespace": "n"}, "spec": {"clusterIP": "None"}})),
            service(json!({"metadata": {"name": "fixed", "namespace": "n"}, "spec": {"clusterIP": "198.19.0.1"}})),
            service(json!({"metadata": {"name": "alias", "namespace": "n"},
                "spec": {"type": "ExternalName", "externalName": "web.n.svc.cluster.local"}})),
            service(json!({"metadata": {"name": "loop", "namespace": "n"},
                "spec": {"type": "ExternalName", "externalName": "loop.n.svc.cluster.local"}})),
        ];
        zone.take(Event::Service(Change::Reset(services)));
        let slice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["198.19.0.2"], "conditions": {"ready": true}},
                {"addresses": ["198.19.0.3"], "conditions": {"ready": false}},
            ],
        }));
        zone.take(Event::Slice(Change::Reset(vec![slice.expect("a slice")])));
    }

    #[test]
    fn names_lead_to_addresses() {
        let mut zone = Zone::new("cluster.local");
        fill(&mut zone);
        let ready = || vec![Ipv4Addr::new(198, 19, 0, 2)];
        let rows = [
            ("web.n.svc.cluster.local", Some(Answer::Addresses(ready()))),
            ("fixed.n.svc.cluster.local", Some(Answer::Addresses(vec![Ipv4Addr::new(198, 19, 0, 1)]))),
            (
                "alias.n.svc.cluster.local",
                Some(Answer::Alias { target: "web.n.svc.cluster.local".into(), addresses: ready() }),
            ),
            (
                "loop.n.svc.cluster.local",
                Some(Answer::Alias { target: "loop.n.svc.cluster.local".into(), addresses: Vec::new() }),
            ),
            ("_http._tcp.web.n.svc.cluster.local", Some(Answer::Ports(vec![(8080, "web.n.svc.cluster.local".into())]))),
            ("198-19-0-2.web.n.svc.cluster.local", Some(Answer::Addresses(ready()))),
            ("gone.n.svc.cluster.local", Some(Answer::Missing)),
            ("n.svc.cluster.local", Some(Answer::Addresses(Vec::new()))),
            ("example.org", None),
            ("notcluster.local", None),
        ];
        for (name, want) in rows {
            assert_eq!(zone.lookup(name), want, "{name}");
        }
    }
}
