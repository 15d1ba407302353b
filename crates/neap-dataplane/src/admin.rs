//! What the admin port shows: metrics of all Revisions, and the state of the data plane for people.

use std::sync::Arc;

use neap_logic::routing::RevisionKey;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use crate::gate::{Gate, Observed};
use crate::plane::DataPlane;
use crate::stats::BUCKETS;

/// Reads the gates when metrics are asked for; nothing is kept twice.
pub(crate) struct GateCollector {
    plane: Arc<DataPlane>,
}

type Labels = [(&'static str, String); 2];

impl GateCollector {
    pub(crate) fn new(plane: Arc<DataPlane>) -> Self {
        Self { plane }
    }
}

impl std::fmt::Debug for GateCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GateCollector").finish_non_exhaustive()
    }
}

impl Collector for GateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let snapshot = self.plane.snapshot();
        let observed: Vec<(Labels, Observed)> = snapshot
            .revisions
            .iter()
            .map(|(key, gate)| {
                let labels =
                    [("k8s_namespace_name", key.namespace.to_string()), ("kn_revision_name", key.name.to_string())];
                (labels, gate.observe())
            })
            .collect();
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Observed) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, observed) in &observed {
                #[expect(clippy::cast_possible_wrap, reason = "these are counts of things in memory")]
                ConstGauge::new(value(observed) as i64).encode(family.encode_family(labels)?)?;
            }
            Ok::<_, std::fmt::Error>(())
        };
        gauge("kn_revision_request_concurrency", "Requests present, those that wait included", &|o| o.present.into())?;
        gauge("kn_revision_request_queued", "Requests that wait for an instance", &|o| o.waiting as u64)?;
        gauge("kn_revision_request_active", "Requests at an instance", &|o| {
            o.instances.iter().chain(&o.leaving).map(|(_, n)| u64::from(*n)).sum()
        })?;
        gauge("neap_revision_instances", "Instances that may take requests", &|o| o.ready as u64)?;
        let mut counter = |name: &str, help: &str, value: &dyn Fn(&Observed) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, observed) in &observed {
                ConstCounter::new(value(observed)).encode(family.encode_family(labels)?)?;
            }
            Ok::<_, std::fmt::Error>(())
        };
        counter("neap_revision_requests", "Requests that came", &|o| o.totals.requests)?;
        counter("neap_revision_requests_waited", "Requests that had to wait for an instance", &|o| o.totals.waited)?;
        counter("neap_revision_requests_refused", "Requests refused because the queue was full", &|o| {
            o.totals.refused
        })?;
        counter("neap_revision_wakes", "Times an instance was asked for because there was none", &|o| o.totals.wakes)?;
        let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let mut family =
            encoder.encode_descriptor("neap_revision_answers", "Answers by class", None, MetricType::Counter)?;
        for (labels, observed) in &observed {
            for (class, count) in classes.iter().zip(observed.totals.by_class) {
                let [namespace, revision] = labels.clone();
                let labels = [namespace, revision, ("class", (*class).to_owned())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "kn_serving_invocation_duration_seconds",
            "From the arrival of a request to the end of its answer",
            None,
            MetricType::Histogram,
        )?;
        for (labels, observed) in &observed {
            let totals = &observed.totals;
            let bounds = BUCKETS.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(totals.buckets).collect();
            let count = totals.buckets.iter().sum();
            family.encode_family(labels)?.encode_histogram::<NoLabelSet>(totals.seconds, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// The data plane as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// Hosts served.
    pub hosts: usize,
    /// Revisions and plain Services, sorted by name.
    pub gates: Vec<GateOverview>,
}

/// One gate.
#[derive(Debug, Clone, Serialize)]
pub struct GateOverview {
    /// `revision NAMESPACE/NAME`, or a Service and its port.
    pub name: String,
    /// Requests present.
    pub concurrency: u32,
    /// Of these, how many wait.
    pub waiting: usize,
    /// Requests one instance takes at once; 0 is no limit.
    pub container_concurrency: u32,
    /// Address and requests of each instance.
    pub instances: Vec<(String, u32)>,
    /// Of each instance that only finishes what it has.
    pub leaving: Vec<(String, u32)>,
}

impl DataPlane {
    /// For the admin port and `explain`.
    pub fn overview(&self) -> Overview {
        let snapshot = self.snapshot();
        let mut gates: Vec<GateOverview> = snapshot.gates().map(|gate| GateOverview::of(gate)).collect();
        gates.sort_by(|a, b| a.name.cmp(&b.name));
        Overview { hosts: snapshot.routes.len(), gates }
    }

    /// What is live of one Revision; `None` if it is not known.
    pub fn revision(&self, namespace: &str, name: &str) -> Option<GateOverview> {
        let gate = self.snapshot().revisions.get(&RevisionKey::new(namespace, name)).cloned()?;
        Some(GateOverview::of(&gate))
    }

    /// Requests present at one Revision; none at one that is not known. Cheap: asked at each wake-up.
    pub fn present(&self, revision: &RevisionKey) -> u32 {
        self.snapshots().load().revisions.get(revision).map_or(0, |gate| gate.present())
    }
}

impl GateOverview {
    fn of(gate: &Gate) -> Self {
        let observed = gate.observe();
        let text =
            |list: Vec<(std::net::SocketAddr, u32)>| list.into_iter().map(|(addr, n)| (addr.to_string(), n)).collect();
        Self {
            name: gate.name.to_string(),
            concurrency: observed.present,
            waiting: observed.waiting,
            container_concurrency: gate.settings.container_concurrency,
            instances: text(observed.instances),
            leaving: text(observed.leaving),
        }
    }
}
