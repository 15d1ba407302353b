//! What the autoscaler tells about its Revisions (E4.14). One field per metric; a Revision's series go with it.

use std::sync::atomic::AtomicU64;

use neap_api::autoscaling::PodAutoscaler;
use neap_api::keys::serving;
use neap_logic::scale::{Decision, Load, Measure, Scaling};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::world::Pods;

/// Which Revision a series is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    k8s_namespace_name: String,
    kn_service_name: String,
    kn_configuration_name: String,
    kn_revision_name: String,
}

impl Labels {
    pub(super) fn of(pa: &PodAutoscaler) -> Self {
        let label = |key: &str| {
            let labels = pa.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(key)).cloned().unwrap_or_default()
        };
        Self {
            k8s_namespace_name: pa.metadata.namespace.clone().unwrap_or_default(),
            kn_service_name: label(serving::SERVICE),
            kn_configuration_name: label(serving::CONFIGURATION),
            kn_revision_name: pa.metadata.name.clone().unwrap_or_default(),
        }
    }
}

type Whole = Family<Labels, Gauge>;
type Real = Family<Labels, Gauge<f64, AtomicU64>>;

/// All metrics of the autoscaler.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    desired: Whole,
    requested: Whole,
    ready: Whole,
    not_ready: Whole,
    pending: Whole,
    terminating: Whole,
    excess: Real,
    panic: Whole,
    stable_concurrency: Real,
    panic_concurrency: Real,
    target_concurrency: Real,
    stable_rps: Real,
    panic_rps: Real,
    target_rps: Real,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let mut whole = |name: &str, help: &str, family: &Whole| registry.register(name, help, family.clone());
        whole("kn_revision_pods_desired", "Instances the autoscaler wants", &this.desired);
        whole("kn_revision_pods_requested", "Instances asked of Kubernetes", &this.requested);
        whole("kn_revision_pods_count", "Instances ready", &this.ready);
        whole("kn_revision_pods_not_ready_count", "Instances not ready", &this.not_ready);
        whole("kn_revision_pods_pending_count", "Instances asked for and not there yet", &this.pending);
        whole("kn_revision_pods_terminating_count", "Instances on their way out", &this.terminating);
        whole("kn_revision_panic_mode", "1 while the Revision panics", &this.panic);
        let mut real = |name: &str, help: &str, family: &Real| registry.register(name, help, family.clone());
        real(
            "kn_revision_capacity_excess",
            "Requests that would find room beyond the burst to keep free",
            &this.excess,
        );
        real("kn_revision_concurrency_stable", "Requests in flight over the stable window", &this.stable_concurrency);
        real("kn_revision_concurrency_panic", "Requests in flight over the panic window", &this.panic_concurrency);
        real("kn_revision_concurrency_target", "Requests in flight aimed at per instance", &this.target_concurrency);
        real("kn_revision_rps_stable", "Requests per second over the stable window", &this.stable_rps);
        real("kn_revision_rps_panic", "Requests per second over the panic window", &this.panic_rps);
        real("kn_revision_rps_target", "Requests per second aimed at per instance", &this.target_rps);
        this
    }

    pub(super) fn decided(&self, labels: &Labels, scaling: &Scaling, load: Load, decision: &Decision) {
        self.desired.get_or_create(labels).set(i64::from(decision.desired));
        self.excess.get_or_create(labels).set(f64::from(decision.excess_burst_capacity));
        self.panic.get_or_create(labels).set(i64::from(decision.in_panic()));
        let (stable, panic, target) = match scaling.measure {
            Measure::Concurrency => (&self.stable_concurrency, &self.panic_concurrency, &self.target_concurrency),
            Measure::Rps => (&self.stable_rps, &self.panic_rps, &self.target_rps),
        };
        stable.get_or_create(labels).set(load.stable);
        panic.get_or_create(labels).set(load.panic);
        target.get_or_create(labels).set(scaling.target);
    }

    pub(super) fn observed(&self, labels: &Labels, replicas: Option<u32>, pods: Pods) {
        let replicas = replicas.unwrap_or(0);
        self.requested.get_or_create(labels).set(i64::from(replicas));
        self.ready.get_or_create(labels).set(i64::from(pods.ready));
        self.not_ready.get_or_create(labels).set(i64::from(pods.not_ready));
        let pending = replicas.saturating_sub(pods.ready).saturating_sub(pods.not_ready);
        self.pending.get_or_create(labels).set(i64::from(pending));
        self.terminating.get_or_create(labels).set(i64::from(pods.terminating));
    }

    pub(super) fn forget(&self, labels: &Labels) {
        let Self { desired, requested, ready, not_ready, pending, terminating, panic, .. } = self;
        for family in [desired, requested, ready, not_ready, pending, terminating, panic] {
            family.remove(labels);
        }
        let Self { excess, stable_concurrency, panic_concurrency, target_concurrency, .. } = self;
        let Self { stable_rps, panic_rps, target_rps, .. } = self;
        for family in
            [excess, stable_concurrency, panic_concurrency, target_concurrency, stable_rps, panic_rps, target_rps]
        {
            family.remove(labels);
        }
    }
}
