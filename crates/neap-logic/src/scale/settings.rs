//! The settings of one Revision: its annotations over the platform's settings (E4.1, E4.2, C2).
//!
//! Annotations have been validated at admission. One that cannot be read nevertheless (an object from another time or
//! place) is left aside for the platform's setting, and reported.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use neap_api::autoscaling::PodAutoscaler;
use neap_api::keys::{autoscaling as keys, serving};

use super::window::Aggregation;
use crate::config::Autoscaler;
use crate::config::autoscaler::{RPS_TARGET_UTILIZATION, TARGET_MIN};
use crate::config::go::parse_duration;

/// Kept on top of the progress deadline before a Revision that does not come up is given up, so that the cause has
/// time to reach its status (E4.11).
pub(super) const ACTIVATION_BUFFER: Duration = Duration::from_secs(30);

/// Which autoscaler a Revision is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Ours.
    Kpa,
    /// A HorizontalPodAutoscaler.
    Hpa,
    /// Somebody else's: not to be touched.
    Other(String),
}

/// What is measured by our own autoscaler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests in flight.
    Concurrency,
    /// Requests per second.
    Rps,
}

/// Whether a Route refers to the Revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Not known yet.
    Unknown,
    /// It does.
    Reachable,
    /// It does not: the minimum does not hold, and the count may fall at once.
    Unreachable,
}

/// An annotation that was left aside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key} is {value:?}, which is not {wanted}; the platform's setting is used")]
pub struct AnnotationError {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What it should be.
    pub wanted: &'static str,
}

/// All settings that the decisions about one Revision depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// What is measured.
    pub measure: Measure,
    /// Load per instance that is aimed at.
    pub target: f64,
    /// Load an instance takes when full.
    pub total: f64,
    /// Requests that must find room at once; −1 keeps the activator in the path always.
    pub target_burst_capacity: f64,
    /// Requests one activator is taken to carry.
    pub activator_capacity: f64,
    /// Averaging window outside panic.
    pub stable_window: Duration,
    /// Averaging window in panic.
    pub panic_window: Duration,
    /// How averages are made.
    pub aggregation: Aggregation,
    /// Load against ready instances at which panic begins, as a factor.
    pub panic_threshold: f64,
    /// Largest growth per decision, a factor.
    pub max_scale_up_rate: f64,
    /// Largest shrinking per decision, a factor.
    pub max_scale_down_rate: f64,
    /// How long a smaller count must last.
    pub scale_down_delay: Duration,
    /// Fewest instances when not at zero.
    pub activation_scale: u32,
    /// Fewest instances while reachable.
    pub min_scale: u32,
    /// Most instances.
    pub max_scale: Option<u32>,
    /// Instances to be reached once.
    pub initial_scale: u32,
    /// Whether a Route refers to the Revision.
    pub reachability: Reachability,
    /// Whether the last instance may go.
    pub scale_to_zero: bool,
    /// Longest wait for the path to move before the last instance goes.
    pub grace_period: Duration,
    /// Least time the last instance stays once the Revision is inactive.
    pub retention: Duration,
    /// How long an activation may take before it is given up.
    pub activation_timeout: Duration,
}

/// The class of a PodAutoscaler.
pub fn class_of(pa: &PodAutoscaler, config: &Autoscaler) -> Class {
    let annotation = pa.metadata.annotations.as_ref().and_then(|all| all.get(keys::CLASS));
    match annotation.unwrap_or(&config.pod_autoscaler_class).as_str() {
        keys::CLASS_KPA => Class::Kpa,
        keys::CLASS_HPA => Class::Hpa,
        other => Class::Other(other.to_owned()),
    }
}

impl Scaling {
    /// The settings of the Revision behind a PodAutoscaler. `progress_deadline` is the platform's.
    pub fn resolve(
        pa: &PodAutoscaler,
        config: &Autoscaler,
        progress_deadline: Duration,
    ) -> (Self, Vec<AnnotationError>) {
        let none = BTreeMap::new();
        let mut read = Annotations { all: pa.metadata.annotations.as_ref().unwrap_or(&none), errors: Vec::new() };

        let measure = match read.text(&[keys::METRIC]) {
            Some("rps") => Measure::Rps,
            _ => Measure::Concurrency,
        };
        let limit = pa.spec.container_concurrency.max(0) as f64;
        let (mut total, fraction) = match measure {
            Measure::Rps => (config.rps_target, RPS_TARGET_UTILIZATION),
            Measure::Concurrency if limit > 0.0 => (limit, config.target_utilization),
            Measure::Concurrency => (config.concurrency_target, config.target_utilization),
        };
        if let Some(target) = read.finite(&[keys::TARGET]) {
            // Aiming at more than an instance takes would never add one.
            total = match measure {
                Measure::Concurrency if limit > 0.0 => target.min(limit),
                _ => target,
            };
        }
        let utilization = read.finite(&[keys::TARGET_UTILIZATION, keys::TARGET_UTILIZATION_ALT]);
        let fraction = utilization.map_or(fraction, |percent| percent / 100.0);

        let stable_window = read.duration(&[keys::WINDOW]).unwrap_or(config.stable_window);
        let panic_percent =
            read.finite(&[keys::PANIC_WINDOW, keys::PANIC_WINDOW_ALT]).unwrap_or(config.panic_window_percentage);
        let panic_threshold = read
            .finite(&[keys::PANIC_THRESHOLD, keys::PANIC_THRESHOLD_ALT])
            .unwrap_or(config.panic_threshold_percentage);
        let initial_scale = read
            .number(&[keys::INITIAL_SCALE, keys::INITIAL_SCALE_ALT])
            .filter(|scale| *scale > 0 || config.allow_zero_initial_scale)
            .unwrap_or(count(config.initial_scale));
        let max_scale: u32 = read.number(&[keys::MAX_SCALE, keys::MAX_SCALE_ALT]).unwrap_or(count(config.max_scale));
        let progress_deadline = read.duration(&[serving::PROGRESS_DEADLINE]).unwrap_or(progress_deadline);

        let scaling = Self {
            measure,
            target: (total * fraction).max(TARGET_MIN),
            total,
            target_burst_capacity: read
                .finite(&[keys::TARGET_BURST_CAPACITY, keys::TARGET_BURST_CAPACITY_ALT])
                .unwrap_or(config.target_burst_capacity),
            activator_capacity: config.activator_capacity,
            stable_window,
            panic_window: panic_window(stable_window, panic_percent),
            aggregation: match read.text(&[keys::AGGREGATION, keys::AGGREGATION_ALT]) {
                Some("weighted-exponential" | "weightedExponential") => Aggregation::WeightedExponential,
                _ => Aggregation::Linear,
            },
            panic_threshold: panic_threshold / 100.0,
            max_scale_up_rate: config.max_scale_up_rate,
            max_scale_down_rate: config.max_scale_down_rate,
            scale_down_delay: read
                .duration(&[keys::SCALE_DOWN_DELAY, keys::SCALE_DOWN_DELAY_ALT])
                .unwrap_or(config.scale_down_delay),
            activation_scale: read.number(&[keys::ACTIVATION_SCALE]).unwrap_or(1),
            min_scale: read.number(&[keys::MIN_SCALE, keys::MIN_SCALE_ALT]).unwrap_or(count(config.min_scale)),
            max_scale: Some(max_scale).filter(|max| *max > 0),
            initial_scale,
            reachability: match pa.spec.reachability.as_str() {
                "Reachable" => Reachability::Reachable,
                "Unreachable" => Reachability::Unreachable,
                _ => Reachability::Unknown,
            },
            scale_to_zero: config.enable_scale_to_zero,
            grace_period: config.scale_to_zero_grace_period,
            retention: read
                .duration(&[keys::RETENTION, keys::RETENTION_ALT])
                .unwrap_or(config.scale_to_zero_pod_retention_period),
            activation_timeout: progress_deadline + ACTIVATION_BUFFER,
        };
        (scaling, read.errors)
    }
}

/// A share of the stable window, to the nearest second, one at least (E4.2).
fn panic_window(stable: Duration, percent: f64) -> Duration {
    let seconds = (stable.as_secs_f64() * percent / 100.0).round();
    Duration::from_secs((seconds as u64).max(1))
}

/// Settings of counts are validated not to be negative.
fn count(setting: i32) -> u32 {
    u32::try_from(setting).unwrap_or(0)
}

pub(super) fn annotation_number<N: FromStr>(all: &BTreeMap<String, String>, key: &str) -> Option<N> {
    all.get(key)?.trim().parse().ok()
}

pub(super) fn annotation_duration(all: &BTreeMap<String, String>, key: &str) -> Option<Duration> {
    duration_of(all.get(key)?.trim())
}

fn duration_of(text: &str) -> Option<Duration> {
    parse_duration(text)?.positive()
}

struct Annotations<'a> {
    all: &'a BTreeMap<String, String>,
    errors: Vec<AnnotationError>,
}

impl<'a> Annotations<'a> {
    /// The value under the first of several spellings that is there.
    fn find(&self, keys: &[&str]) -> Option<(&'a str, &'a str)> {
        keys.iter().find_map(|key| self.all.get_key_value(*key)).map(|(key, value)| (&**key, value.trim()))
    }

    fn text(&self, keys: &[&str]) -> Option<&'a str> {
        self.find(keys).map(|(_, value)| value)
    }

    fn number<N: FromStr>(&mut self, keys: &[&str]) -> Option<N> {
        self.parsed(keys, "a number in range", |text| text.parse().ok())
    }

    /// A number that a count can be made of: `NaN` and `inf` are read as numbers too.
    fn finite(&mut self, keys: &[&str]) -> Option<f64> {
        self.parsed(keys, "a number in range", |text| text.parse().ok().filter(|n: &f64| n.is_finite()))
    }

    fn duration(&mut self, keys: &[&str]) -> Option<Duration> {
        self.parsed(keys, "a duration such as 1m30s", duration_of)
    }

    fn parsed<T>(&mut self, keys: &[&str], wanted: &'static str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (key, value) = self.find(keys)?;
        let parsed = parse(value);
        if parsed.is_none() {
            self.errors.push(AnnotationError { key: key.to_owned(), value: value.to_owned(), wanted });
        }
        parsed
    }
}
