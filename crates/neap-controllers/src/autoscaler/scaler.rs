//! What is remembered of one Revision between two looks at it. Plain state; the engine moves it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use neap_api::autoscaling::PodAutoscaler;
use neap_logic::config::Settings;
use neap_logic::plan::Refusal;
use neap_logic::plan::metric::Collection;
use neap_logic::plan::podautoscaler::Decided;
use neap_logic::scale::{
    AnnotationError, Class, Decision, InPath, Load, Measure, Scaling, Series, State, class_of, decide,
};
use tokio::time::Instant;

use super::ports::Stat;

/// First pause after an API call that failed; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause after an API call that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Calls of one kind in a row that go through and yet leave something to do, before pauses begin: more than any
/// honest sequence takes, so that a disagreement with the API server about an object's form does not spin.
const CALLS_WITHOUT_PAUSE: u32 = 8;

/// One Revision.
#[derive(Debug)]
pub(super) struct Scaler {
    pa: Arc<PodAutoscaler>,
    settings: Arc<Settings>,
    pub(super) class: Class,
    pub(super) scaling: Scaling,
    pace: Pace,
    pub(super) decided: Option<Decided>,
    pub(super) in_path: InPath,
    pub(super) probing: bool,
    pub(super) collection: Collection,
    pub(super) refusals: Vec<Refusal>,
    pub(super) scale_calls: Lane,
    pub(super) write_calls: Lane,
}

/// Whether a Revision is measured and decided upon.
#[derive(Debug)]
enum Pace {
    /// At zero without traffic: nothing happens until a wake.
    Parked,
    /// Every second and every tick.
    Live(Box<Meter>),
}

#[derive(Debug)]
struct Meter {
    series: Series,
    /// When the series began.
    since: Timestamp,
    state: State,
}

impl Meter {
    fn new(scaling: &Scaling, ready: u32, at: Timestamp) -> Box<Self> {
        let series = Series::new(scaling.stable_window, scaling.panic_window);
        Box::new(Self { series, since: at, state: State::new(ready, at) })
    }
}

impl Scaler {
    /// A Revision seen for the first time, parked.
    pub(super) fn new(pa: &Arc<PodAutoscaler>, settings: &Arc<Settings>) -> (Self, Vec<AnnotationError>) {
        let (scaling, errors) = resolve(pa, settings);
        let scaler = Self {
            pa: pa.clone(),
            settings: settings.clone(),
            class: class_of(pa, &settings.autoscaler),
            scaling,
            pace: Pace::Parked,
            decided: None,
            in_path: InPath::NotYet,
            probing: false,
            collection: Collection::Working,
            refusals: Vec::new(),
            scale_calls: Lane::default(),
            write_calls: Lane::default(),
        };
        (scaler, errors)
    }

    /// Takes over what the PodAutoscaler and the settings say now. Windows of another length begin anew, and until they
    /// are full the count does not fall.
    pub(super) fn configure(
        &mut self,
        pa: &Arc<PodAutoscaler>,
        settings: &Arc<Settings>,
        at: Timestamp,
    ) -> Vec<AnnotationError> {
        if Arc::ptr_eq(&self.pa, pa) && Arc::ptr_eq(&self.settings, settings) {
            return Vec::new();
        }
        let says_the_same = Arc::ptr_eq(&self.settings, settings)
            && self.pa.metadata.annotations == pa.metadata.annotations
            && self.pa.spec == pa.spec;
        self.pa = pa.clone();
        self.settings = settings.clone();
        if says_the_same {
            return Vec::new();
        }
        let (scaling, errors) = resolve(pa, settings);
        self.class = class_of(pa, &settings.autoscaler);
        if let Pace::Live(meter) = &mut self.pace
            && (!meter.series.has_windows(scaling.stable_window, scaling.panic_window)
                || self.scaling.measure != scaling.measure)
        {
            let held = self.decided.map_or(0, |decided| decided.desired);
            *meter = Meter::new(&scaling, held, at);
        }
        self.scaling = scaling;
        errors
    }

    /// The settings it was last configured with.
    pub(super) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Whether it is measured and decided upon.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.pace, Pace::Live(_))
    }

    /// Since when it has been measured without a gap.
    pub(super) fn measured_since(&self) -> Option<Timestamp> {
        match &self.pace {
            Pace::Parked => None,
            Pace::Live(meter) => Some(meter.since),
        }
    }

    /// Begins to measure.
    pub(super) fn unpark(&mut self, ready: u32, at: Timestamp) {
        if !self.is_live() {
            self.pace = Pace::Live(Meter::new(&self.scaling, ready, at));
        }
    }

    /// Stops measuring and forgets what was measured.
    pub(super) fn park(&mut self) {
        self.pace = Pace::Parked;
    }

    /// Takes in what one second brought.
    pub(super) fn record(&mut self, at: Timestamp, stat: Stat) {
        if let Pace::Live(meter) = &mut self.pace {
            let value = match self.scaling.measure {
                Measure::Concurrency => stat.concurrency,
                Measure::Rps => stat.requests,
            };
            meter.series.record(at, value);
        }
    }

    /// Decides, where something has been measured. `at_least` is load that is known but not measured yet.
    pub(super) fn decide(&mut self, ready: u32, at: Timestamp, at_least: f64) -> Option<(Load, Decision)> {
        let Pace::Live(meter) = &mut self.pace else { return None };
        let mut load = match meter.series.load(at, self.scaling.aggregation) {
            Some(load) => load,
            None if at_least > 0.0 => Load::default(),
            None => return None,
        };
        load.stable = load.stable.max(at_least);
        load.panic = load.panic.max(at_least);
        let decision = decide(&self.scaling, load, ready, std::mem::take(&mut meter.state), at);
        meter.state = decision.next.clone();
        self.decided = Some(Decided::from(&decision));
        Some((load, decision))
    }
}

fn resolve(pa: &PodAutoscaler, settings: &Settings) -> (Scaling, Vec<AnnotationError>) {
    Scaling::resolve(pa, &settings.autoscaler, settings.deployment.progress_deadline)
}

/// API calls of one kind for one Revision: one at a time, with pauses after failures.
#[derive(Debug, Default)]
pub(super) struct Lane {
    busy: bool,
    in_a_row: u32,
    failures: u32,
    not_before: Option<Instant>,
}

impl Lane {
    /// Whether a call may be made now. A pause that is over is forgotten.
    pub(super) fn is_open(&mut self, now: Instant) -> bool {
        if self.not_before.is_some_and(|at| at <= now) {
            self.not_before = None;
        }
        !self.busy && self.not_before.is_none()
    }

    /// When it opens again, where that is only a matter of time.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.busy)
    }

    /// A call is made.
    pub(super) fn begin(&mut self) {
        self.busy = true;
    }

    /// There was nothing to do.
    pub(super) fn rest(&mut self) {
        if !self.busy {
            self.in_a_row = 0;
        }
    }

    /// The call has ended.
    pub(super) fn end(&mut self, failed: bool, now: Instant) {
        self.busy = false;
        (self.failures, self.in_a_row) = if failed { (self.failures + 1, 0) } else { (0, self.in_a_row + 1) };
        let pauses = self.failures.max(self.in_a_row.saturating_sub(CALLS_WITHOUT_PAUSE));
        self.not_before = pauses
            .checked_sub(1)
            .map(|doublings| now + FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE));
    }
}

#[cfg(test)]
#[path = "scaler_tests.rs"]
mod tests;
