//! `config-neap`: the settings Knative has no place for.

use std::collections::BTreeMap;

use super::acme::{self, Acme};
use super::logs::{self, Logs};
use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-neap";

/// `external-http-port`: the port a URL need not name.
pub const HTTP_PORT: u16 = 80;
/// `external-https-port`: the port a URL need not name.
pub const HTTPS_PORT: u16 = 443;
/// `cluster-domain`: where the names of Kubernetes Services end.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// `external-gateway`: namespace/name of the Service in front of public hosts.
pub const EXTERNAL_GATEWAY: &str = "knative-serving/neap-gateway";
/// `local-gateway`: namespace/name of the Service in front of cluster-local hosts.
pub const LOCAL_GATEWAY: &str = "knative-serving/neap-gateway-internal";

/// A Kubernetes Service by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Our own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neap {
    /// The port on which the world reaches plain HTTP; shown in URLs unless it is 80.
    pub external_http_port: u16,
    /// The port on which the world reaches HTTPS; shown in URLs unless it is 443.
    pub external_https_port: u16,
    /// Where the names of Kubernetes Services end.
    pub cluster_domain: String,
    /// The Service in front of public hosts.
    pub external_gateway: ServiceName,
    /// The Service in front of cluster-local hosts.
    pub local_gateway: ServiceName,
    /// Registries, `host` or `host:port`, that are spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Registry → the mirrors to ask before it, `[http://]host[:port][/prefix]`, in this order.
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    /// Where public certificates come from; `None` while the local authority issues all of them.
    pub acme: Option<Acme>,
    /// The logs of containers.
    pub logs: Logs,
}

impl Default for Neap {
    fn default() -> Self {
        Self {
            external_http_port: HTTP_PORT,
            external_https_port: HTTPS_PORT,
            cluster_domain: CLUSTER_DOMAIN.into(),
            external_gateway: service_name(EXTERNAL_GATEWAY).expect("the default is well formed"),
            local_gateway: service_name(LOCAL_GATEWAY).expect("the default is well formed"),
            insecure_registries: Vec::new(),
            registry_mirrors: BTreeMap::new(),
            acme: None,
            logs: Logs::default(),
        }
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Neap {
    let logs = logs::parse(data, mistakes);
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Neap::default();
    let port = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0);
    Neap {
        external_http_port: r.with(&["external-http-port"], d.external_http_port, "a port", port),
        external_https_port: r.with(&["external-https-port"], d.external_https_port, "a port", port),
        cluster_domain: r.with(&["cluster-domain"], d.cluster_domain, "a domain name", |text| {
            crate::names::is_dns1123_subdomain(text).then(|| text.to_owned())
        }),
        external_gateway: r.with(
            &["external-gateway"],
            d.external_gateway,
            "knative-serving/NAME of a Service",
            gateway,
        ),
        local_gateway: r.with(&["local-gateway"], d.local_gateway, "knative-serving/NAME of a Service", gateway),
        insecure_registries: r.with(
            &["registries.insecure"],
            d.insecure_registries,
            "hosts, with or without a port, separated by commas",
            registries,
        ),
        registry_mirrors: r.with(
            &["registries.mirrors"],
            d.registry_mirrors,
            "lines such as docker.io=mirror.example:5000/hub,http://10.0.0.1:5000",
            mirrors,
        ),
        acme: acme::parse(&mut r),
        logs,
    }
}

fn registries(text: &str) -> Option<Vec<String>> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| is_registry(word).then(|| word.to_owned())).collect()
}

fn mirrors(text: &str) -> Option<BTreeMap<String, Vec<String>>> {
    let mut mirrors = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (registry, list) = line.split_once('=')?;
        let list: Vec<String> =
            list.split(',').map(str::trim).map(|one| is_mirror(one).then(|| one.to_owned())).collect::<Option<_>>()?;
        let known = mirrors.insert(Some(registry.trim()).filter(|r| is_registry(r))?.to_owned(), list);
        // Two lines for one registry: nobody could tell which comes first.
        if known.is_some() {
            return None;
        }
    }
    Some(mirrors)
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    crate::names::is_dns1123_subdomain(host) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_mirror(text: &str) -> bool {
    let place = text.strip_prefix("http://").unwrap_or(text);
    let (host, prefix) = place.split_once('/').unwrap_or((place, ""));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '/' | '-' | '_' | '.');
    is_registry(host) && prefix.chars().all(plain)
}

/// Only there are a gateway's addresses looked for.
fn gateway(text: &str) -> Option<ServiceName> {
    service_name(text).filter(|service| service.namespace == neap_api::keys::config::NAMESPACE)
}

fn service_name(text: &str) -> Option<ServiceName> {
    let (namespace, name) = text.split_once('/')?;
    let fits = crate::names::is_dns1123_label(namespace) && crate::names::is_dns1123_label(name);
    fits.then(|| ServiceName { namespace: namespace.into(), name: name.into() })
}
