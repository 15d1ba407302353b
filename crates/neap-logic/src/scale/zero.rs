//! From a wanted count to what is done: bounds, and the way of the last instance (E4.10 to E4.12).
//!
//! A Revision goes to zero in three steps, each seen by everybody before the next: it is declared inactive, which puts
//! the activator in the path of its requests; the path is seen to have moved; the last instance is stopped.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::elapsed;
use super::settings::Scaling;

/// How often the path is looked at again while the activator is not yet in it (E4.12).
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// The `Active` condition of the PodAutoscaler, and since when it has been so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Unknown: instances are being made.
    Activating(Timestamp),
    /// True: enough instances are ready.
    Active(Timestamp),
    /// False: no traffic, or it could not be activated.
    Inactive(Timestamp),
}

/// Whether a request would meet the activator (or a gateway that does its work) if there were no instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InPath {
    /// Not seen yet.
    NotYet,
    /// A probe went through it. Other proxies may not have heard yet, hence the grace period.
    Seen,
    /// There is no way around it: nothing has to spread, and the grace period has no object.
    Always,
}

/// All that [`step`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// What the decider wants; `None` while nothing has been measured.
    pub desired: Option<u32>,
    /// The `Active` condition as it stands.
    pub activity: Activity,
    /// Since when the load has been measured without a gap; `None` while it is not.
    pub measured_since: Option<Timestamp>,
    /// Whether the initial scale has ever been reached.
    pub initialized: bool,
    /// What is known of the path.
    pub in_path: InPath,
    /// For how long the activator has been behind the public Service.
    pub proxied_for: Duration,
    /// The time.
    pub now: Timestamp,
}

/// What is done about the count. A rung between running and stopped would be a variant here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Set the count of the target. `again`: look again then, even if nothing happens.
    Scale {
        /// The count.
        to: u32,
        /// When to look again.
        again: Option<Duration>,
        /// Why, where it was not simply wanted.
        why: Option<Why>,
    },
    /// Zero is wanted, but the target keeps its count for now. The Revision counts as inactive.
    Retire {
        /// When to look again; `None`: when something has changed.
        again: Option<Duration>,
        /// Why not yet.
        why: Why,
    },
    /// Nothing is known and nothing is done.
    Keep {
        /// When to look again.
        again: Option<Duration>,
        /// Why.
        why: Why,
    },
}

impl Step {
    /// The count as `status.desiredScale` reports it: −1 is unknown.
    pub fn want(self) -> i32 {
        match self {
            Self::Scale { to, .. } => i32::try_from(to).unwrap_or(i32::MAX),
            Self::Retire { .. } => 0,
            Self::Keep { .. } => -1,
        }
    }

    /// When to look again.
    pub fn again(self) -> Option<Duration> {
        match self {
            Self::Scale { again, .. } | Self::Retire { again, .. } | Self::Keep { again, .. } => again,
        }
    }

    /// Why the wanted count is not simply applied.
    pub fn why(self) -> Option<Why> {
        match self {
            Self::Scale { why, .. } => why,
            Self::Retire { why, .. } | Self::Keep { why, .. } => Some(why),
        }
    }
}

/// Why a wanted zero is not, or not yet, carried out; in words through `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing has been measured.
    NotMeasured,
    /// `enable-scale-to-zero` is false.
    ZeroForbidden,
    /// It is being activated, and may take so much longer.
    Activating(Duration),
    /// It was not activated in time, and is given up.
    ActivationTimedOut,
    /// It has been active for less than a stable window.
    ActiveTooShortly(Duration),
    /// Idle for a stable window: requests are sent by the activator first.
    Idle,
    /// The activator is not yet in the path.
    PathNotMoved,
    /// The path has moved, but for so long somebody may not have heard, or the instance is retained.
    Grace(Duration),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMeasured => write!(f, "nothing has been measured yet"),
            Self::ZeroForbidden => write!(f, "enable-scale-to-zero is false, so one instance stays"),
            Self::Activating(left) => write!(f, "being activated; given up in {}s", left.as_secs()),
            Self::ActivationTimedOut => write!(f, "not activated within the progress deadline; given up"),
            Self::ActiveTooShortly(left) => {
                write!(f, "idle; must be active for {}s more before it may sleep", left.as_secs())
            }
            Self::Idle => write!(f, "idle; requests are led to the activator before the last instance goes"),
            Self::PathNotMoved => write!(f, "idle; the activator does not answer for it yet"),
            Self::Grace(left) => write!(f, "idle; the last instance stays for {}s more", left.as_secs()),
        }
    }
}

/// Decides what is done about the count.
pub fn step(scaling: &Scaling, s: &Situation) -> Step {
    let desired = match (s.desired, s.activity) {
        (Some(desired), _) => desired,
        // A Revision on its way up has bounds to meet, measured or not.
        (None, Activity::Activating(_)) => 0,
        (None, _) => return Step::Keep { again: None, why: Why::NotMeasured },
    };
    let to = scaling.bounds(s.initialized).apply(desired);
    if to > 0 {
        return Step::Scale { to, again: None, why: None };
    }
    if !scaling.scale_to_zero {
        return Step::Scale { to: 1, again: None, why: Some(Why::ZeroForbidden) };
    }
    match s.activity {
        Activity::Activating(since) => {
            match scaling.activation_timeout.checked_sub(elapsed(s.now, since)).filter(|left| !left.is_zero()) {
                None => Step::Scale { to: 0, again: None, why: Some(Why::ActivationTimedOut) },
                Some(left) => Step::Keep { again: Some(left), why: Why::Activating(left) },
            }
        }
        Activity::Active(since) => {
            // A history that has just begun, as after a restart, says nothing about the time before it.
            let since = s.measured_since.map_or(since, |measured| since.max(measured));
            match scaling.stable_window.checked_sub(elapsed(s.now, since)).filter(|left| !left.is_zero()) {
                None => Step::Retire { again: None, why: Why::Idle },
                Some(left) => Step::Scale { to: 1, again: Some(left), why: Some(Why::ActiveTooShortly(left)) },
            }
        }
        Activity::Inactive(since) => last_instance(scaling, s, elapsed(s.now, since)),
    }
}

fn last_instance(scaling: &Scaling, s: &Situation, inactive_for: Duration) -> Step {
    // With a burst capacity of −1 the activator is never out of the path.
    let always = scaling.target_burst_capacity < 0.0;
    if s.in_path == InPath::NotYet && !always {
        return Step::Retire { again: Some(PROBE_PERIOD), why: Why::PathNotMoved };
    }
    let grace = if s.in_path == InPath::Always { Duration::ZERO } else { scaling.grace_period };
    let left = grace.saturating_sub(s.proxied_for).max(scaling.retention.saturating_sub(inactive_for));
    // However long the rest would be, nobody waits for more than the longer of the two in all.
    let left = left.min(grace.max(scaling.retention).saturating_sub(inactive_for));
    if left.is_zero() {
        Step::Scale { to: 0, again: None, why: None }
    } else {
        Step::Retire { again: Some(left), why: Why::Grace(left) }
    }
}
