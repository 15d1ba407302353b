//! What the roof decides about a gateway.

use std::sync::Arc;
use std::time::Duration;

use neap_logic::routing::Door;
use neap_proxy::access::AccessLog;
use neap_proxy::tls::ResolvesServerCert;
use neap_proxy::{ServerConfig, UpstreamConfig};

/// The DNS domain of Services inside.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
/// How long a request for something the watches have not told us of yet waits for them to tell. They run side by
/// side: a route may arrive a moment before the Revision or the endpoints it leads to.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// Settings of a gateway.
#[derive(Clone)]
pub struct Config {
    /// Limits towards clients.
    pub server: ServerConfig,
    /// Limits towards instances.
    pub upstream: UpstreamConfig,
    /// The port that redirects to https lead to; 443 is not spelled out.
    pub https_port: u16,
    /// The DNS domain of Services inside: `REVISION.NAMESPACE.svc.DOMAIN` reaches a Revision on a local door.
    pub cluster_domain: String,
    /// The certificate for names that no Ingress brings one for.
    pub fallback_certificate: Option<Arc<dyn ResolvesServerCert>>,
    /// Takes a record of every request.
    pub access_log: Option<Arc<dyn AccessLog>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            upstream: UpstreamConfig::default(),
            https_port: 443,
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.to_owned(),
            fallback_certificate: None,
            access_log: None,
        }
    }
}

/// A socket of a gateway.
#[derive(Debug)]
pub struct GatewayListener {
    /// Bound and listening.
    pub socket: std::net::TcpListener,
    /// For the outside or the inside.
    pub door: Door,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Whether what peers say in `X-Forwarded-Proto` and `-Host` is believed: a proxy of ours stands before it.
    pub trust_forwarded: bool,
}
