//! What the controllers tell about themselves.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

/// How a look at an object ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    /// As planned.
    Settled,
    /// The caches were behind.
    Stale,
    /// The API refused a write for good.
    Refused,
    /// A call failed.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    controller: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    controller: &'static str,
    outcome: Outcome,
}

/// Figures of all controllers. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    looks: Family<Ended, Counter>,
    duration: Family<Of, Histogram>,
    depth: Family<Of, Gauge>,
}

impl Metrics {
    /// Registers the figures.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::unregistered();
        let registry = registry.sub_registry_with_prefix("neap_controller");
        registry.register("looks", "Looks at objects, by how they ended", this.looks.clone());
        registry.register_with_unit(
            "look_duration",
            "Time a look took, writes included",
            Unit::Seconds,
            this.duration.clone(),
        );
        registry.register("queue_depth", "Objects that wait for a look or are being looked at", this.depth.clone());
        this
    }

    /// Figures nobody asks for.
    pub fn unregistered() -> Self {
        Self {
            looks: Family::default(),
            // From 0.1 ms, doubling, to about 3 s.
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 2.0, 16))),
            depth: Family::default(),
        }
    }

    pub(crate) fn depth(&self, controller: &'static str, depth: usize) {
        self.depth.get_or_create(&Of { controller }).set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    pub(crate) fn start(&self, controller: &'static str) -> Timer {
        Timer { metrics: self.clone(), controller, start: Instant::now() }
    }
}

/// A look under way.
pub(crate) struct Timer {
    metrics: Metrics,
    controller: &'static str,
    start: Instant,
}

impl Timer {
    pub(crate) fn end(self, outcome: Outcome) {
        let Self { metrics, controller, start } = self;
        metrics.looks.get_or_create(&Ended { controller, outcome }).inc();
        metrics.duration.get_or_create(&Of { controller }).observe(start.elapsed().as_secs_f64());
    }
}
