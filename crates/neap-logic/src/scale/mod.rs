//! How many instances a Revision should have.
//!
//! The way of a number: requests are counted into a [`Series`]; its averages are the [`Load`]; [`decide`] turns load
//! and ready instances into a wanted count; [`step`] keeps it within bounds and decides about the last instance.
//! Everything is a function of its arguments: this module must never read a clock, look at pods, or log.
//!
//! The last instance has a ladder of its own (running, stopped; frozen may come between): only [`Step`] speaks of
//! it, so a new rung is a new variant there and touches neither averages nor the decider.

mod bounds;
mod decide;
mod delay;
mod hpa;
pub mod scrape;
mod settings;
#[cfg(test)]
mod tests;
mod window;
mod zero;

pub use bounds::{Bounds, active_threshold};
pub use decide::{Decision, Load, Mode, Reason, State, decide, initial_burst_capacity};
pub use delay::DelayWindow;
pub use hpa::hpa_spec;
pub use settings::{AnnotationError, Class, Measure, Reachability, Scaling, class_of};
pub use window::{Aggregation, Series};
pub use zero::{Activity, InPath, Situation, Step, Why, step};

use std::time::Duration;

use jiff::Timestamp;

/// How often a Revision with instances or traffic is decided upon. Knative has no key for it.
pub const TICK: Duration = Duration::from_secs(2);

/// Width of a bucket of a [`Series`]. Knative has no key for it.
pub const BUCKET: Duration = Duration::from_secs(1);

/// How long after `then` it is `now`; nothing when it is before.
fn elapsed(now: Timestamp, then: Timestamp) -> Duration {
    now.duration_since(then).try_into().unwrap_or(Duration::ZERO)
}
