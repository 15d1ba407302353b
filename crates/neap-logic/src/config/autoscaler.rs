//! `config-autoscaler`: how many instances, and how fast that number may change.

use std::time::Duration;

use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-autoscaler";

/// `container-concurrency-target-percentage`: share of an instance's limit that is aimed at.
pub const TARGET_UTILIZATION: f64 = 0.7;
/// `container-concurrency-target-default`: requests in flight per instance where no limit is set.
pub const CONCURRENCY_TARGET: f64 = 100.0;
/// `requests-per-second-target-default`.
pub const RPS_TARGET: f64 = 200.0;
/// Share of the requests-per-second target that is aimed at; Knative has no key for it.
pub const RPS_TARGET_UTILIZATION: f64 = 0.7;
/// `target-burst-capacity`: requests that must find room at once; a prime near 200 in Knative.
pub const TARGET_BURST_CAPACITY: f64 = 211.0;
/// `stable-window`: averaging window outside panic.
pub const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// The bounds of `stable-window` and of the annotation `window`.
pub const WINDOW_BOUNDS: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3600));
/// `panic-window-percentage`: share of the stable window that makes the panic window.
pub const PANIC_WINDOW_PERCENTAGE: f64 = 10.0;
/// `panic-threshold-percentage`: load against capacity at which panic begins.
pub const PANIC_THRESHOLD_PERCENTAGE: f64 = 200.0;
/// `max-scale-up-rate`: factor per decision.
pub const MAX_SCALE_UP_RATE: f64 = 1000.0;
/// `max-scale-down-rate`: factor per decision.
pub const MAX_SCALE_DOWN_RATE: f64 = 2.0;
/// `scale-to-zero-grace-period`: longest wait for the network to move before the last instance goes.
pub const SCALE_TO_ZERO_GRACE_PERIOD: Duration = Duration::from_secs(30);
/// `pod-autoscaler-class`.
pub const POD_AUTOSCALER_CLASS: &str = "kpa.autoscaling.knative.dev";
/// `activator-capacity`: requests one activator is taken to carry.
pub const ACTIVATOR_CAPACITY: f64 = 100.0;
/// `initial-scale`: instances a new revision must reach once.
pub const INITIAL_SCALE: i32 = 1;
/// The smallest target per instance; below it the arithmetic loses its meaning.
pub const TARGET_MIN: f64 = 0.01;

/// Settings of the autoscaler.
#[derive(Debug, Clone, PartialEq)]
pub struct Autoscaler {
    /// Share of the concurrency target to aim at, in (0, 1].
    pub target_utilization: f64,
    /// Concurrency target where the revision sets no limit.
    pub concurrency_target: f64,
    /// Requests-per-second target.
    pub rps_target: f64,
    /// Requests that must find room at once; −1 keeps the activator in the path always.
    pub target_burst_capacity: f64,
    /// Averaging window outside panic.
    pub stable_window: Duration,
    /// Share of the stable window used in panic, in percent.
    pub panic_window_percentage: f64,
    /// Load against capacity at which panic begins, in percent.
    pub panic_threshold_percentage: f64,
    /// Largest growth per decision, a factor.
    pub max_scale_up_rate: f64,
    /// Largest shrinking per decision, a factor.
    pub max_scale_down_rate: f64,
    /// Whether the last instance may go.
    pub enable_scale_to_zero: bool,
    /// Longest wait for the network before the last instance goes.
    pub scale_to_zero_grace_period: Duration,
    /// Least time the last instance stays after the decision.
    pub scale_to_zero_pod_retention_period: Duration,
    /// Class given to revisions that name none.
    pub pod_autoscaler_class: String,
    /// Requests one activator is taken to carry.
    pub activator_capacity: f64,
    /// Instances a new revision must reach once.
    pub initial_scale: i32,
    /// Whether `initial_scale` may be 0.
    pub allow_zero_initial_scale: bool,
    /// Fewest instances of a reachable revision.
    pub min_scale: i32,
    /// Most instances; 0 means no bound.
    pub max_scale: i32,
    /// How long a smaller decision must hold.
    pub scale_down_delay: Duration,
    /// Highest `max-scale` anybody may ask for; 0 means no bound.
    pub max_scale_limit: i32,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            target_utilization: TARGET_UTILIZATION,
            concurrency_target: CONCURRENCY_TARGET,
            rps_target: RPS_TARGET,
            target_burst_capacity: TARGET_BURST_CAPACITY,
            stable_window: STABLE_WINDOW,
            panic_window_percentage: PANIC_WINDOW_PERCENTAGE,
            panic_threshold_percentage: PANIC_THRESHOLD_PERCENTAGE,
            max_scale_up_rate: MAX_SCALE_UP_RATE,
            max_scale_down_rate: MAX_SCALE_DOWN_RATE,
            enable_scale_to_zero: true,
            scale_to_zero_grace_period: SCALE_TO_ZERO_GRACE_PERIOD,
            scale_to_zero_pod_retention_period: Duration::ZERO,
            pod_autoscaler_class: POD_AUTOSCALER_CLASS.into(),
            activator_capacity: ACTIVATOR_CAPACITY,
            initial_scale: INITIAL_SCALE,
            allow_zero_initial_scale: false,
            min_scale: 0,
            max_scale: 0,
            scale_down_delay: Duration::ZERO,
            max_scale_limit: 0,
        }
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Autoscaler {
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Autoscaler::default();
    let mut utilization = r.float(&["container-concurrency-target-percentage"], d.target_utilization);
    // Written either as a share or in percent.
    if utilization > 1.0 {
        utilization /= 100.0;
    }
    let parsed = Autoscaler {
        target_utilization: utilization,
        concurrency_target: r.float(&["container-concurrency-target-default"], d.concurrency_target),
        rps_target: r.float(&["requests-per-second-target-default"], d.rps_target),
        target_burst_capacity: r.float(&["target-burst-capacity"], d.target_burst_capacity),
        stable_window: r.duration(&["stable-window"], d.stable_window),
        panic_window_percentage: r.float(&["panic-window-percentage"], d.panic_window_percentage),
        panic_threshold_percentage: r.float(&["panic-threshold-percentage"], d.panic_threshold_percentage),
        max_scale_up_rate: r.float(&["max-scale-up-rate"], d.max_scale_up_rate),
        max_scale_down_rate: r.float(&["max-scale-down-rate"], d.max_scale_down_rate),
        enable_scale_to_zero: r.boolean(&["enable-scale-to-zero"], d.enable_scale_to_zero),
        scale_to_zero_grace_period: r.duration(&["scale-to-zero-grace-period"], d.scale_to_zero_grace_period),
        scale_to_zero_pod_retention_period: r
            .duration(&["scale-to-zero-pod-retention-period"], d.scale_to_zero_pod_retention_period),
        pod_autoscaler_class: r.text(&["pod-autoscaler-class"], &d.pod_autoscaler_class),
        activator_capacity: r.float(&["activator-capacity"], d.activator_capacity),
        initial_scale: r.parse(&["initial-scale"], d.initial_scale, "a whole number"),
        allow_zero_initial_scale: r.boolean(&["allow-zero-initial-scale"], d.allow_zero_initial_scale),
        min_scale: r.parse(&["min-scale"], d.min_scale, "a whole number"),
        max_scale: r.parse(&["max-scale"], d.max_scale, "a whole number"),
        scale_down_delay: r.duration(&["scale-down-delay"], d.scale_down_delay),
        max_scale_limit: r.parse(&["max-scale-limit"], d.max_scale_limit, "a whole number"),
    };
    bounds(&parsed, &mut r);
    parsed
}

fn bounds(a: &Autoscaler, r: &mut Reader<'_>) {
    let pct = a.target_utilization * 100.0;
    r.require(pct > 0.0 && pct <= 100.0, "container-concurrency-target-percentage", || {
        format!("{pct} must be in (0, 100]")
    });
    r.require(
        a.concurrency_target * a.target_utilization >= TARGET_MIN,
        "container-concurrency-target-default",
        || format!("{} times the target percentage must be at least {TARGET_MIN}", a.concurrency_target),
    );
    r.require(a.rps_target >= TARGET_MIN, "requests-per-second-target-default", || {
        format!("{} must be at least {TARGET_MIN}", a.rps_target)
    });
    let burst = a.target_burst_capacity;
    r.require(burst >= 0.0 || burst == -1.0, "target-burst-capacity", || format!("{burst} must be -1 or not negative"));
    let whole = |d: Duration| d.subsec_nanos() == 0;
    r.require(
        whole(a.stable_window) && a.stable_window >= WINDOW_BOUNDS.0 && a.stable_window <= WINDOW_BOUNDS.1,
        "stable-window",
        || "must be whole seconds between 6s and 1h".into(),
    );
    r.require((1.0..=100.0).contains(&a.panic_window_percentage), "panic-window-percentage", || {
        format!("{} must be in [1, 100]", a.panic_window_percentage)
    });
    r.require(a.max_scale_up_rate > 1.0, "max-scale-up-rate", || {
        format!("{} must be greater than 1", a.max_scale_up_rate)
    });
    r.require(a.max_scale_down_rate > 1.0, "max-scale-down-rate", || {
        format!("{} must be greater than 1", a.max_scale_down_rate)
    });
    r.require(!a.scale_to_zero_grace_period.is_zero(), "scale-to-zero-grace-period", || {
        "must be longer than nothing".into()
    });
    r.require(a.activator_capacity >= 1.0, "activator-capacity", || {
        format!("{} must be at least 1", a.activator_capacity)
    });
    r.require(a.initial_scale > 0 || a.initial_scale == 0 && a.allow_zero_initial_scale, "initial-scale", || {
        format!("{} must be at least 1 (or 0 with allow-zero-initial-scale)", a.initial_scale)
    });
    r.require(a.min_scale >= 0, "min-scale", || format!("{} must not be negative", a.min_scale));
    r.require(a.max_scale_limit >= 0, "max-scale-limit", || format!("{} must not be negative", a.max_scale_limit));
    let limited = a.max_scale_limit > 0;
    r.require(a.max_scale >= 0 && (!limited || (1..=a.max_scale_limit).contains(&a.max_scale)), "max-scale", || {
        match limited {
            true => format!("{} must be in [1, max-scale-limit {}]", a.max_scale, a.max_scale_limit),
            false => format!("{} must not be negative", a.max_scale),
        }
    });
    r.require(a.max_scale == 0 || a.min_scale <= a.max_scale, "min-scale", || {
        format!("{} must not exceed max-scale {}", a.min_scale, a.max_scale)
    });
    r.require(whole(a.scale_down_delay), "scale-down-delay", || "must be whole seconds".into());
}
