//! `config-neap`: the settings Knative has no place for.

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
}

impl Default for Neap {
    fn default() -> Self {
        Self {
            external_http_port: HTTP_PORT,
            external_https_port: HTTPS_PORT,
            cluster_domain: CLUSTER_DOMAIN.into(),
            external_gateway: service_name(EXTERNAL_GATEWAY).expect("the default is well formed"),
            local_gateway: service_name(LOCAL_GATEWAY).expect("the default is well formed"),
        }
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Neap {
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
            "namespace/name of a Service",
            service_name,
        ),
        local_gateway: r.with(&["local-gateway"], d.local_gateway, "namespace/name of a Service", service_name),
    }
}

fn service_name(text: &str) -> Option<ServiceName> {
    let (namespace, name) = text.split_once('/')?;
    let fits = crate::names::is_dns1123_label(namespace) && crate::names::is_dns1123_label(name);
    fits.then(|| ServiceName { namespace: namespace.into(), name: name.into() })
}
