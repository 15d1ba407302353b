//! Living condition sets: how an object's conditions add up to `Ready` (facts A1.2 to A1.5).
//!
//! Must never touch a time that did not change: `lastTransitionTime` moves only with its condition.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use neap_api::condition::{READY, find};
use neap_api::{Condition, ConditionStatus};

/// Which conditions `Ready` depends on, by kind.
#[derive(Debug, Clone, Copy)]
pub struct ConditionSet {
    /// The conditions that all must be true, in the order they are looked at.
    pub dependents: &'static [&'static str],
}

/// Service (A2.4).
pub const SERVICE: ConditionSet = ConditionSet { dependents: &["ConfigurationsReady", "RoutesReady"] };
/// Configuration (A3.4).
pub const CONFIGURATION: ConditionSet = ConditionSet { dependents: &[] };
/// Revision (A4.28); `Active` informs only.
pub const REVISION: ConditionSet = ConditionSet { dependents: &["ResourcesAvailable", "ContainerHealthy"] };
/// Route (A5.4).
pub const ROUTE: ConditionSet =
    ConditionSet { dependents: &["AllTrafficAssigned", "IngressReady", "CertificateProvisioned"] };
/// DomainMapping (A6.1).
pub const DOMAIN_MAPPING: ConditionSet =
    ConditionSet { dependents: &["DomainClaimed", "ReferenceResolved", "IngressReady", "CertificateProvisioned"] };
/// PodAutoscaler (A6.2).
pub const POD_AUTOSCALER: ConditionSet = ConditionSet { dependents: &["Active", "ScaleTargetInitialized", "SKSReady"] };
/// Metric (A6.3).
pub const METRIC: ConditionSet = ConditionSet { dependents: &[] };
/// ServerlessService (A6.4); `ActivatorEndpointsPopulated` informs only.
pub const SERVERLESS_SERVICE: ConditionSet = ConditionSet { dependents: &["EndpointsPopulated"] };
/// Ingress (A6.5).
pub const INGRESS: ConditionSet = ConditionSet { dependents: &["NetworkConfigured", "LoadBalancerReady"] };
/// Certificate (A6.6).
pub const CERTIFICATE: ConditionSet = ConditionSet { dependents: &[] };

/// Severity of a condition `Ready` does not depend on.
const INFO: &str = "Info";

/// The conditions of one object while they are worked out.
#[derive(Debug, Clone)]
pub struct Conditions {
    set: ConditionSet,
    list: Vec<Condition>,
    observed: Vec<Condition>,
    now: Timestamp,
}

impl Conditions {
    /// Starts from what was last written, and adds what is missing: unknown, or true while `Ready` is.
    pub fn new(set: ConditionSet, observed: &[Condition], now: Timestamp) -> Self {
        let mut this = Self { set, list: observed.to_vec(), observed: observed.to_vec(), now };
        let ready = this.get(READY).map(|c| c.status);
        if ready.is_none() {
            this.set(READY, ConditionStatus::Unknown, "", "");
        }
        let status =
            if ready == Some(ConditionStatus::True) { ConditionStatus::True } else { ConditionStatus::Unknown };
        for dependent in set.dependents {
            if this.get(dependent).is_none() {
                this.set(dependent, status, "", "");
            }
        }
        this
    }

    /// The condition of that type.
    pub fn get(&self, type_: &str) -> Option<&Condition> {
        find(&self.list, type_)
    }

    /// A condition's status; unknown where it is absent.
    pub fn status(&self, type_: &str) -> ConditionStatus {
        self.get(type_).map_or(ConditionStatus::Unknown, |c| c.status)
    }

    /// Whether `Ready` is true.
    pub fn is_ready(&self) -> bool {
        self.status(READY) == ConditionStatus::True
    }

    /// It holds; `Ready` follows when everything else holds too.
    pub fn mark_true(&mut self, type_: &str) {
        self.mark_true_because(type_, "", "");
    }

    /// It holds, and there is something to say about it.
    pub fn mark_true_because(&mut self, type_: &str, reason: &str, message: &str) {
        self.set(type_, ConditionStatus::True, reason, message);
        match self.unhappy_dependent() {
            Some(Condition { status, reason, message, .. }) => self.set(READY, status, &reason, &message),
            None if type_ != READY => self.set(READY, ConditionStatus::True, "", ""),
            None => {}
        }
    }

    /// It does not hold; neither does `Ready` when it depends on it.
    pub fn mark_false(&mut self, type_: &str, reason: &str, message: &str) {
        self.set(type_, ConditionStatus::False, reason, message);
        if self.is_dependent(type_) {
            self.set(READY, ConditionStatus::False, reason, message);
        }
    }

    /// It is not known yet; neither is `Ready`, unless another dependent is known not to hold.
    pub fn mark_unknown(&mut self, type_: &str, reason: &str, message: &str) {
        self.set(type_, ConditionStatus::Unknown, reason, message);
        let failed = self
            .set
            .dependents
            .iter()
            .filter_map(|d| self.get(d))
            .find(|c| c.status == ConditionStatus::False)
            .cloned();
        match failed {
            // A failure outweighs doubt.
            Some(failed) if self.status(READY) != ConditionStatus::False => {
                self.set(READY, ConditionStatus::False, &failed.reason, &failed.message);
            }
            Some(_) => {}
            None if self.is_dependent(type_) => self.set(READY, ConditionStatus::Unknown, reason, message),
            None => {}
        }
    }

    /// Takes over another object's condition under a name of our own.
    pub fn copy(&mut self, type_: &str, from: &Condition) {
        match from.status {
            ConditionStatus::True => self.mark_true_because(type_, &from.reason, &from.message),
            ConditionStatus::False => self.mark_false(type_, &from.reason, &from.message),
            ConditionStatus::Unknown => self.mark_unknown(type_, &from.reason, &from.message),
        }
    }

    /// Drops a condition that `Ready` does not depend on.
    pub fn clear(&mut self, type_: &str) {
        if type_ != READY && !self.is_dependent(type_) {
            self.list.retain(|c| c.type_ != type_);
        }
    }

    /// The list to write, sorted by type. What went away and came back on the way here did not change.
    pub fn into_vec(mut self) -> Vec<Condition> {
        for condition in &mut self.list {
            let before = find(&self.observed, &condition.type_).filter(|before| same(before, condition));
            if let Some(before) = before {
                condition.last_transition_time.clone_from(&before.last_transition_time);
            }
        }
        self.list
    }

    fn is_dependent(&self, type_: &str) -> bool {
        self.set.dependents.contains(&type_)
    }

    /// The failed dependent that changed last, else the unknown one that changed last.
    fn unhappy_dependent(&self) -> Option<Condition> {
        let mut dependents: Vec<&Condition> = self.list.iter().filter(|c| self.is_dependent(&c.type_)).collect();
        dependents.sort_by_key(|c| std::cmp::Reverse(c.last_transition_time.as_ref().map(|t| t.0.as_second())));
        let of = |status| dependents.iter().find(|c| c.status == status).map(|c| (*c).clone());
        of(ConditionStatus::False).or_else(|| of(ConditionStatus::Unknown))
    }

    fn set(&mut self, type_: &str, status: ConditionStatus, reason: &str, message: &str) {
        let severity = if type_ == READY || self.is_dependent(type_) { "" } else { INFO };
        let fresh = Condition {
            type_: type_.into(),
            status,
            severity: severity.into(),
            last_transition_time: Some(Time(self.now)),
            reason: reason.into(),
            message: message.into(),
        };
        match self.list.binary_search_by(|c| c.type_.as_str().cmp(type_)) {
            Ok(at) => {
                let old = &mut self.list[at];
                if !same(old, &fresh) {
                    *old = fresh;
                }
            }
            Err(at) => self.list.insert(at, fresh),
        }
    }
}

/// Whether two conditions say the same, whenever they began to.
fn same(old: &Condition, new: &Condition) -> bool {
    old.last_transition_time.is_some()
        && old.status == new.status
        && old.severity == new.severity
        && old.reason == new.reason
        && old.message == new.message
}

/// `Ready` of an object whose status speaks of its present spec.
pub fn is_ready(conditions: &[Condition], observed_generation: i64, generation: Option<i64>) -> bool {
    observed_generation == generation.unwrap_or_default() && status_of(conditions, READY) == ConditionStatus::True
}

/// Whether `Ready` is false about the present spec.
pub fn is_failed(conditions: &[Condition], observed_generation: i64, generation: Option<i64>) -> bool {
    observed_generation == generation.unwrap_or_default() && status_of(conditions, READY) == ConditionStatus::False
}

/// A condition's status; unknown where it is absent.
pub fn status_of(conditions: &[Condition], type_: &str) -> ConditionStatus {
    find(conditions, type_).map_or(ConditionStatus::Unknown, |c| c.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn rendered(conditions: &Conditions) -> String {
        let line = |c: &Condition| format!("{}={}({})", c.type_, c.status.as_str(), c.reason);
        conditions.list.iter().map(line).collect::<Vec<_>>().join(" ")
    }

    fn check(steps: impl Fn(&mut Conditions), want: &str) {
        let mut conditions = Conditions::new(SERVICE, &[], at(1));
        steps(&mut conditions);
        assert_eq!(rendered(&conditions), want);
    }

    #[test]
    fn a1_3_a1_4_ready_follows_its_dependents() {
        check(|_| {}, "ConfigurationsReady=Unknown() Ready=Unknown() RoutesReady=Unknown()");
        check(
            |c| {
                c.mark_true("ConfigurationsReady");
                c.mark_true("RoutesReady");
            },
            "ConfigurationsReady=True() Ready=True() RoutesReady=True()",
        );
        check(
            |c| {
                c.mark_false("ConfigurationsReady", "Bad", "");
                c.mark_unknown("RoutesReady", "Slow", "");
            },
            "ConfigurationsReady=False(Bad) Ready=False(Bad) RoutesReady=Unknown(Slow)",
        );
        check(
            |c| {
                c.mark_unknown("RoutesReady", "Slow", "");
                c.mark_true("ConfigurationsReady");
            },
            "ConfigurationsReady=True() Ready=Unknown(Slow) RoutesReady=Unknown(Slow)",
        );
        check(
            |c| c.mark_false("Extra", "Why", ""),
            "ConfigurationsReady=Unknown() Extra=False(Why) Ready=Unknown() RoutesReady=Unknown()",
        );
    }

    #[test]
    fn a1_2_times_move_only_with_their_condition() {
        let mut first = Conditions::new(CONFIGURATION, &[], at(1));
        first.mark_true(READY);
        let mut second = Conditions::new(CONFIGURATION, &first.into_vec(), at(9));
        second.mark_true(READY);
        assert_eq!(second.get(READY).and_then(|c| c.last_transition_time.clone()), Some(Time(at(1))));
        let mut there_and_back = second.clone();
        there_and_back.mark_unknown(READY, "Why", "");
        there_and_back.mark_true(READY);
        assert_eq!(there_and_back.into_vec()[0].last_transition_time, Some(Time(at(1))));
        second.mark_false(READY, "R", "m");
        assert_eq!(second.get(READY).and_then(|c| c.last_transition_time.clone()), Some(Time(at(9))));
    }

    #[test]
    fn a1_5_ready_is_about_the_present_generation() {
        let mut c = Conditions::new(CONFIGURATION, &[], at(1));
        c.mark_true(READY);
        let list = c.into_vec();
        assert!(is_ready(&list, 2, Some(2)) && !is_ready(&list, 1, Some(2)) && !is_failed(&list, 2, Some(2)));
    }
}
