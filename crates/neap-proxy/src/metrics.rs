//! What the engine counts. Fields are registered once; counting is an atomic add.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::error::ProxyError;

/// Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Client connections accepted.
    pub connections: Counter<u64, AtomicU64>,
    /// Client connections open.
    pub connections_open: Gauge,
    /// Client connections closed because the client was too slow, by what it was slow at, or gone.
    pub connections_expired: Family<ExpiredLabels, Counter>,
    /// TLS handshakes that failed.
    pub tls_failures: Counter,
    /// Connections made to upstreams.
    pub upstream_connections: Counter,
    /// Requests sent again because they had not been started.
    pub upstream_retries: Counter,
    /// Tunnels (WebSocket and other upgrades) open.
    pub tunnels: Gauge,
    /// Requests answered by the engine itself, by cause.
    pub errors: Family<ErrorLabels, Counter>,
}

/// Labels of [`Metrics::errors`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabels {
    /// The short name of the cause; see [`crate::error::Answer::code`].
    pub code: &'static str,
    /// Whose fault.
    pub fault: &'static str,
}

/// Labels of [`Metrics::connections_expired`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExpiredLabels {
    /// `head`, `idle`, `write`, `stream` (a response over h2), or `nobody`: it had hung up while its request waited.
    pub waiting_for: &'static str,
}

impl Metrics {
    /// Registers everything under `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let registry = registry.sub_registry_with_prefix("neap_proxy");
        registry.register("connections", "Client connections accepted", this.connections.clone());
        registry.register("connections_open", "Client connections open", this.connections_open.clone());
        registry.register(
            "connections_expired",
            "Client connections closed because the client was too slow",
            this.connections_expired.clone(),
        );
        registry.register("tls_failures", "TLS handshakes that failed", this.tls_failures.clone());
        registry.register("upstream_connections", "Connections made to upstreams", this.upstream_connections.clone());
        registry.register(
            "upstream_retries",
            "Requests sent again because they had not been started",
            this.upstream_retries.clone(),
        );
        registry.register("tunnels", "Tunnels open", this.tunnels.clone());
        registry.register("errors", "Requests answered by the engine itself, by cause", this.errors.clone());
        this
    }

    /// Counts a request that was not served.
    pub fn error(&self, error: &ProxyError) {
        let answer = error.answer();
        self.errors.get_or_create(&ErrorLabels { code: answer.code, fault: answer.fault.as_str() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_cause() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.error(&ProxyError::Draining);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        assert!(text.contains(r#"neap_proxy_errors_total{code="draining",fault="platform"} 1"#), "{text}");
    }
}
