//! The decider: from load and ready instances to a wanted count (E4).

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::delay::DelayWindow;
use super::elapsed;
use super::settings::{Reachability, Scaling};

/// Even without any need, two activators are put in the path, so that one may fail (E4.9).
const MIN_ACTIVATORS: u32 = 2;

/// Average load of a whole Revision: requests in flight, or requests per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Over the stable window.
    pub stable: f64,
    /// Over the panic window.
    pub panic: f64,
}

/// Whether the Revision follows the long or the short window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mode {
    /// The count follows the stable window, up and down.
    #[default]
    Stable,
    /// The count only grows.
    Panic {
        /// When the load was last over the threshold.
        since: Timestamp,
        /// The greatest count of this panic.
        most: u32,
    },
}

/// What the decider remembers from one decision to the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Stable or panic.
    pub mode: Mode,
    /// Counts held back by `scale-down-delay`.
    pub delay: DelayWindow,
}

impl State {
    /// The state of a decider that has just begun. With several instances ready it begins in panic: the history is
    /// lost, and until there is a new one the count must not fall.
    pub fn new(ready: u32, now: Timestamp) -> Self {
        let mode = if ready > 1 { Mode::Panic { since: now, most: ready } } else { Mode::Stable };
        Self { mode, delay: DelayWindow::default() }
    }
}

/// What was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Wanted instances, before bounds.
    pub desired: u32,
    /// Requests that would find room at once beyond those in flight and the burst that must fit; negative: the
    /// activator is to stay in the path.
    pub excess_burst_capacity: i32,
    /// Activators to put in the path.
    pub num_activators: u32,
    /// The state for the next decision.
    pub next: State,
    /// How it came about.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Whether the Revision panics.
    pub fn in_panic(&self) -> bool {
        matches!(self.next.mode, Mode::Panic { .. })
    }
}

/// One step of the way to a decision, in words through `Display`.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// The measured load and what it takes.
    Load {
        /// The load.
        load: Load,
        /// Aimed at per instance.
        target: f64,
        /// Instances ready.
        ready: u32,
        /// Instances the stable load takes.
        stable: f64,
        /// Instances the panic load takes.
        panic: f64,
    },
    /// One decision may only change the count so far.
    Rate {
        /// Fewest.
        least: u32,
        /// Most.
        most: u32,
    },
    /// A Revision that is not at zero has at least its activation scale.
    ActivationScale(u32),
    /// Panic began.
    PanicBegins {
        /// Load over capacity.
        ratio: f64,
        /// The threshold.
        threshold: f64,
    },
    /// Panic is over.
    PanicEnds,
    /// In panic the count does not fall.
    HeldByPanic {
        /// What the load would take.
        from: u32,
        /// What it stays at.
        at: u32,
    },
    /// A smaller count has not lasted long enough.
    HeldByDelay {
        /// What the load would take.
        from: u32,
        /// What it stays at.
        at: u32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { load, target, ready, stable, panic } => write!(
                f,
                "load {:.2} (short window {:.2}) at a target of {target:.2} per instance takes {stable:.0} ({panic:.0}); {ready} ready",
                load.stable, load.panic
            ),
            Self::Rate { least, most } => write!(f, "one step may go to {least} at least and {most} at most"),
            Self::ActivationScale(n) => write!(f, "activation-scale asks for {n} when not at zero"),
            Self::PanicBegins { ratio, threshold } => write!(
                f,
                "panic begins: the short window takes {ratio:.2} times the ready instances, the threshold is {threshold:.2}"
            ),
            Self::PanicEnds => write!(f, "panic ends: below the threshold for a stable window"),
            Self::HeldByPanic { from, at } => write!(f, "in panic the count stays at {at} instead of {from}"),
            Self::HeldByDelay { from, at } => write!(f, "scale-down-delay keeps the count at {at} instead of {from}"),
        }
    }
}

/// Decides how many instances a Revision should have. `ready` counts its ready instances.
pub fn decide(scaling: &Scaling, load: Load, ready: u32, state: State, now: Timestamp) -> Decision {
    let mut reasons = Vec::new();
    // At zero there is nothing to multiply; one instance stands for it (E4.3).
    let some = f64::from(ready.max(1));

    let for_stable = (load.stable / scaling.target).ceil();
    let for_panic = (load.panic / scaling.target).ceil();
    reasons.push(Reason::Load { load, target: scaling.target, ready, stable: for_stable, panic: for_panic });

    // Rounded outwards, so that a small rate still lets the count move by one (E4.4).
    let most = (scaling.max_scale_up_rate * some).ceil();
    let least = match scaling.reachability {
        Reachability::Unreachable => 0.0,
        Reachability::Reachable | Reachability::Unknown => (some / scaling.max_scale_down_rate).floor(),
    };
    let within = |count: f64| count.max(least).min(most) as u32;
    let (mut stable, mut panic) = (within(for_stable), within(for_panic));
    if f64::from(stable) != for_stable {
        reasons.push(Reason::Rate { least: least as u32, most: most as u32 });
    }

    let activation = scaling.activation_scale;
    if activation > 1 {
        for (count, needed) in [(&mut stable, for_stable), (&mut panic, for_panic)] {
            if needed > 0.0 && *count < activation {
                *count = activation;
                if !reasons.contains(&Reason::ActivationScale(activation)) {
                    reasons.push(Reason::ActivationScale(activation));
                }
            }
        }
    }

    let ratio = for_panic / some;
    let mode = next_mode(state.mode, ratio, scaling.panic_threshold, scaling.stable_window, now, &mut reasons);
    let (mut desired, mode) = match mode {
        Mode::Stable => (stable, Mode::Stable),
        Mode::Panic { since, most } => {
            let needed = stable.max(panic);
            if needed < most {
                reasons.push(Reason::HeldByPanic { from: needed, at: most });
            }
            let most = needed.max(most);
            (most, Mode::Panic { since, most })
        }
    };

    let mut delay = state.delay;
    if scaling.reachability != Reachability::Unreachable {
        let greatest = delay.record(now, desired, scaling.scale_down_delay);
        if greatest > desired {
            reasons.push(Reason::HeldByDelay { from: desired, at: greatest });
        }
        desired = greatest;
    }

    let (excess_burst_capacity, num_activators) = burst(scaling, load.panic, ready);
    let next = State { mode, delay };
    Decision { desired, excess_burst_capacity, num_activators, next, reasons }
}

/// The excess burst capacity of a Revision that has not been measured: with its initial scale and no load.
pub fn initial_burst_capacity(scaling: &Scaling) -> i32 {
    burst(scaling, 0.0, scaling.initial_scale).0
}

/// E4.6. The end of a panic counts from the last time over the threshold.
fn next_mode(
    mode: Mode,
    ratio: f64,
    threshold: f64,
    stable_window: Duration,
    now: Timestamp,
    reasons: &mut Vec<Reason>,
) -> Mode {
    let over = ratio >= threshold;
    match mode {
        Mode::Stable if over => {
            reasons.push(Reason::PanicBegins { ratio, threshold });
            Mode::Panic { since: now, most: 0 }
        }
        Mode::Stable => Mode::Stable,
        Mode::Panic { most, .. } if over => Mode::Panic { since: now, most },
        Mode::Panic { since, .. } if elapsed(now, since) > stable_window => {
            reasons.push(Reason::PanicEnds);
            Mode::Stable
        }
        Mode::Panic { .. } => mode,
    }
}

/// Excess burst capacity and number of activators (E4.8, E4.9). The short window counts here, so that a surge puts
/// the activator into the path and not a lull.
fn burst(scaling: &Scaling, panic_load: f64, ready: u32) -> (i32, u32) {
    let capacity = f64::from(ready) * scaling.total;
    let activators = |requests: f64| ((requests / scaling.activator_capacity).ceil() as u32).max(MIN_ACTIVATORS);
    let wanted = scaling.target_burst_capacity;
    if wanted == 0.0 {
        (0, MIN_ACTIVATORS)
    } else if wanted < 0.0 {
        (-1, activators(capacity))
    } else {
        ((capacity - wanted - panic_load).floor() as i32, activators(capacity + wanted))
    }
}
