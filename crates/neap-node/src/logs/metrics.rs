//! What is told about the sending of logs.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why lines were not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The endpoint will never take them.
    Refused,
    /// Their files turned over, or were removed, before they were sent.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

impl Why {
    fn of(reason: Reason) -> Self {
        let reason = match reason {
            Reason::Refused => "refused",
            Reason::Lost => "lost",
        };
        Self { reason }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) records: Counter,
    pub(super) bytes: Counter,
    dropped: Family<Why, Counter>,
    pub(super) gaps: Counter,
    pub(super) failures: Counter,
    pub(super) lag: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register("neap_logs_shipped_records", "Lines of containers that have arrived", this.records.clone());
        registry.register("neap_logs_shipped_bytes", "Bytes of text in them", this.bytes.clone());
        registry.register("neap_logs_dropped_records", "Lines that will not arrive", this.dropped.clone());
        registry.register("neap_logs_gaps", "Times that logs went before they were even looked at", this.gaps.clone());
        registry.register("neap_logs_failed_requests", "Tries to send lines that failed", this.failures.clone());
        registry.register("neap_logs_lag_seconds", "Age of the oldest line that waits to be sent", this.lag.clone());
        this
    }

    pub(super) fn drop_records(&self, reason: Reason, count: u64) {
        self.dropped.get_or_create(&Why::of(reason)).inc_by(count);
    }

    #[cfg(test)]
    pub(super) fn dropped(&self, reason: Reason) -> u64 {
        self.dropped.get_or_create(&Why::of(reason)).get()
    }
}
