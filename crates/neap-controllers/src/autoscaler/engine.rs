//! The loop: takes in what happened, looks at the Revisions it concerns, hands out jobs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Client;
use neap_api::autoscaling::PodAutoscaler;
use neap_logic::config::Settings;
use neap_logic::plan::podautoscaler::{self, Observed, Scaled, is_inactive, plan, plan_hpa};
use neap_logic::plan::{Context, Object, Plan, metric};
use neap_logic::routing::RevisionKey;
use neap_logic::scale::{AnnotationError, BUCKET, Class, InPath, TICK};
use tokio::sync::watch as latest;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::api::{self, CallError, Outcome};
use super::clock::Clock;
use super::metrics::{Labels, Metrics};
use super::ports::{ActivationProbe, ProbeTarget, Sample, Stat, StatSource, Wake};
use super::scaler::Scaler;
use super::timers::Timers;
use super::watch::Changes;
use super::world::{Change, Delta, Target, World};

/// How often measurements are taken while no Revision is live: only to find one whose wake was missed.
const IDLE_COLLECT: Duration = Duration::from_secs(10);
/// Measurements between two decisions.
const COLLECTS_PER_TICK: u64 = TICK.as_secs() / BUCKET.as_secs();
/// Jobs at the same time. Each is one or a few API calls; more would only queue in the client.
const JOBS: usize = 64;
/// Jobs beyond [`JOBS`] for wakes alone, so that a mass of status writes does not hold them up.
const WAKE_JOBS: usize = 256;
/// How long one look at the path of requests may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Changes taken in before the Revisions they concern are looked at.
const BATCH: usize = 256;
/// Wakes kept for Revisions that have not been seen yet.
const EARLY_WAKES: usize = 1024;
/// How long one is kept when there are so many.
const EARLY: Duration = Duration::from_secs(30);
/// Load of a request that waits: one in flight, or one per second.
const ONE_REQUEST: f64 = 1.0;

type Samples = Vec<(RevisionKey, Sample)>;

/// A job's result.
enum Done {
    Scaled { key: RevisionKey, to: u32, result: Result<Target, CallError> },
    Written { key: RevisionKey, outcome: Outcome },
    Probed { key: RevisionKey, in_path: InPath },
}

/// Something the loop waits for.
enum Input {
    Stop,
    Woken(Vec<Wake>),
    Job(Result<Done, JoinError>),
    Change(Option<Box<Change>>),
    Samples(Samples),
    Alarm,
    Settings(bool),
}

pub(super) struct Engine {
    client: Client,
    settings: latest::Receiver<Arc<Settings>>,
    stats: Arc<dyn StatSource>,
    probe: Arc<dyn ActivationProbe>,
    clock: Clock,
    metrics: Metrics,

    world: World,
    scalers: HashMap<RevisionKey, Scaler>,
    labels: HashMap<RevisionKey, Labels>,
    dirty: BTreeSet<RevisionKey>,
    timers: Timers,
    jobs: JoinSet<Done>,
    /// Wakes of Revisions that have not been seen, and since when.
    early: BTreeMap<RevisionKey, (f64, Instant)>,
    collect: Collect,
}

/// The measuring that goes on once a second.
struct Collect {
    due: Instant,
    /// When the running one was due.
    began: Instant,
    running: Option<BoxFuture<'static, Samples>>,
    /// The next one only sets the counters back: after an idle pace its averages would reach too far into the past.
    baseline: bool,
    count: u64,
}

impl Engine {
    pub(super) fn new(
        client: Client,
        settings: latest::Receiver<Arc<Settings>>,
        stats: Arc<dyn StatSource>,
        probe: Arc<dyn ActivationProbe>,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let now = Instant::now();
        Self {
            client,
            settings,
            stats,
            probe,
            clock,
            metrics,
            world: World::default(),
            scalers: HashMap::new(),
            labels: HashMap::new(),
            dirty: BTreeSet::new(),
            timers: Timers::default(),
            jobs: JoinSet::new(),
            early: BTreeMap::new(),
            collect: Collect { due: now, began: now, running: None, baseline: false, count: 0 },
        }
    }

    pub(super) async fn run(mut self, changes: &mut Changes, stop: CancellationToken) {
        let stats = self.stats.clone();
        loop {
            self.look();
            let alarm = self.alarm();
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => Input::Stop,
                wakes = stats.woken() => Input::Woken(wakes),
                Some(done) = self.jobs.join_next() => Input::Job(done),
                change = changes.next() => Input::Change(change.map(Box::new)),
                samples = running(&mut self.collect.running) => Input::Samples(samples),
                () = sleep_until(alarm) => Input::Alarm,
                changed = self.settings.changed() => Input::Settings(changed.is_ok()),
            };
            match input {
                // Without settings or watches there is nobody left to scale for.
                Input::Stop | Input::Change(None) | Input::Settings(false) => return,
                Input::Woken(wakes) => wakes.into_iter().for_each(|wake| self.wake(wake)),
                Input::Job(done) => self.finish(done),
                Input::Change(Some(change)) => {
                    self.take(*change);
                    for _ in 1..BATCH {
                        let Some(change) = changes.try_next() else { break };
                        self.take(change);
                    }
                }
                Input::Samples(samples) => self.measured(samples),
                Input::Alarm => self.ring(),
                Input::Settings(true) => self.dirty.extend(self.world.pas().cloned()),
            }
        }
    }

    fn alarm(&self) -> Instant {
        // While one measuring runs, the next is not due.
        let collect = self.collect.running.is_none().then_some(self.collect.due);
        let far = Instant::now() + IDLE_COLLECT;
        self.timers.next().into_iter().chain(collect).min().unwrap_or(far)
    }

    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(key) = self.timers.pop(now) {
            self.dirty.insert(key);
        }
        if self.collect.running.is_none() && self.collect.due <= now {
            let live = self.scalers.iter().filter(|(_, scaler)| scaler.is_live());
            let wanted = live.map(|(key, _)| key.clone()).collect();
            self.collect.began = self.collect.due;
            self.collect.running = Some(self.stats.collect(wanted));
        }
    }

    fn take(&mut self, change: Change) {
        let was_complete = self.world.is_complete();
        let touched = self.world.apply(change);
        self.dirty.extend(touched);
        if !was_complete && self.world.is_complete() {
            self.dirty.extend(self.world.pas().cloned());
            for (revision, (waiting, _)) in std::mem::take(&mut self.early) {
                self.wake(Wake { revision, waiting });
            }
        }
    }

    /// Looks at every Revision something has happened to, as far as there is room for jobs.
    fn look(&mut self) {
        if !self.world.is_complete() {
            return;
        }
        while self.jobs.len() < JOBS {
            let Some(key) = self.dirty.pop_first() else { return };
            self.look_at(&key);
        }
    }

    fn look_at(&mut self, key: &RevisionKey) {
        let Some(pa) = self.world.pa(key).cloned() else { return self.forget(key) };
        let is_new = self.configure(key, &pa);
        let pods = self.world.pods(key);
        let replicas = self.world.replicas(&pa);
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        match scaler.class {
            Class::Kpa => {
                let labels = self.labels.entry(key.clone()).or_insert_with(|| Labels::of(&pa));
                self.metrics.observed(labels, replicas, pods);
                // What runs, or is told to run, is measured; so is what is new, until it is known to sleep.
                let asleep = replicas == Some(0) && pods.ready == 0;
                if !asleep || is_new {
                    self.unpark(key);
                }
                if let Some((waiting, _)) = self.early.remove(key) {
                    self.unpark(key);
                    self.decide(key, waiting.max(ONE_REQUEST));
                } else if is_new && asleep && is_inactive(&pa) {
                    // Found asleep, as after a restart. Had it been asked for there would be a wake.
                    self.record(key, Stat::default());
                    self.decide(key, 0.0);
                    self.park_if_asleep(key);
                }
                self.look_at_kpa(key, &pa);
            }
            Class::Hpa => {
                let context = context(&self.clock, scaler);
                let hpa = self.world.hpa(key).map(|hpa| &**hpa);
                let sks = self.world.sks(key).map(|sks| &**sks);
                let plan = plan_hpa(&pa, hpa, sks, &scaler.scaling, &context);
                self.write(key, &pa, plan, None);
            }
            Class::Other(_) => {}
        }
    }

    fn look_at_kpa(&mut self, key: &RevisionKey, pa: &Arc<PodAutoscaler>) {
        self.look_at_path(key, pa);
        let Some(scaler) = self.scalers.get(key) else { return };
        let context = context(&self.clock, scaler);
        let Scaled { scale, plan } = plan(&self.observe(key, pa, scaler, &context));
        let metric_status = self.world.metric(key).and_then(|object| {
            let status = metric::plan(object, &scaler.collection, context.now).status?;
            Some(with_status(Object::of(&**object), status))
        });
        self.scale(key, pa, scale, &plan.reasons);
        self.write(key, pa, plan, metric_status);
    }

    fn observe<'a>(
        &'a self,
        key: &RevisionKey,
        pa: &'a PodAutoscaler,
        scaler: &'a Scaler,
        context: &'a Context,
    ) -> Observed<'a> {
        Observed {
            pa,
            sks: self.world.sks(key).map(|sks| &**sks),
            metric: self.world.metric(key).map(|metric| &**metric),
            scaling: &scaler.scaling,
            decided: scaler.decided,
            measured_since: scaler.measured_since(),
            replicas: self.world.replicas(pa),
            ready: self.world.pods(key).ready,
            in_path: scaler.in_path,
            context,
        }
    }

    /// Asks, for one that is to go to zero, whether the activator is in its path.
    fn look_at_path(&mut self, key: &RevisionKey, pa: &Arc<PodAutoscaler>) {
        let has_replicas = self.world.replicas(pa).is_some_and(|replicas| replicas > 0);
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        if !is_inactive(pa) {
            scaler.in_path = InPath::NotYet;
            return;
        }
        if scaler.in_path != InPath::NotYet || scaler.probing || !has_replicas {
            return;
        }
        let service = pa.status.as_ref().map(|status| status.service_name.clone()).unwrap_or_default();
        let target = ProbeTarget { revision: key.clone(), service, protocol: pa.spec.protocol_type.clone() };
        let mut probe = self.probe.probe(target);
        match (&mut probe).now_or_never() {
            Some(in_path) => scaler.in_path = in_path,
            None => {
                scaler.probing = true;
                let key = key.clone();
                self.jobs.spawn(async move {
                    let in_path = timeout(PROBE_TIMEOUT, probe).await.unwrap_or(InPath::NotYet);
                    Done::Probed { key, in_path }
                });
            }
        }
    }

    /// Takes over settings and annotations. Returns whether the Revision has not been seen before.
    fn configure(&mut self, key: &RevisionKey, pa: &Arc<PodAutoscaler>) -> bool {
        let settings = self.settings.borrow().clone();
        let at = self.clock.steady(Instant::now());
        let (is_new, errors) = match self.scalers.get_mut(key) {
            Some(scaler) => (false, scaler.configure(pa, &settings, at)),
            None => {
                let (scaler, errors) = Scaler::new(pa, &settings);
                self.scalers.insert(key.clone(), scaler);
                (true, errors)
            }
        };
        report(key, &errors);
        is_new
    }

    fn forget(&mut self, key: &RevisionKey) {
        self.scalers.remove(key);
        self.timers.set(key, None);
        if let Some(labels) = self.labels.remove(key) {
            self.metrics.forget(&labels);
        }
    }

    fn unpark(&mut self, key: &RevisionKey) {
        let ready = self.world.pods(key).ready;
        let now = Instant::now();
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        scaler.unpark(ready, self.clock.steady(now));
        if self.collect.due > now + BUCKET {
            // From the idle pace to the quick one.
            self.collect.due = now;
            self.collect.baseline = true;
        }
    }

    /// A request waits at a Revision without instances: it is scaled now, not at the next tick.
    fn wake(&mut self, wake: Wake) {
        let Wake { revision: key, waiting } = wake;
        let pa = self.world.pa(&key).filter(|_| self.world.is_complete()).cloned();
        let Some(pa) = pa else {
            let now = Instant::now();
            if self.early.len() >= EARLY_WAKES {
                // Of a Revision that is gone, or was never there, nothing will come.
                self.early.retain(|_, (_, since)| now.duration_since(*since) < EARLY);
            }
            if self.early.len() < EARLY_WAKES {
                self.early.insert(key, (waiting, now));
            }
            return;
        };
        self.configure(&key, &pa);
        let replicas = self.world.replicas(&pa);
        let Some(scaler) = self.scalers.get(&key) else { return };
        let on_its_way =
            replicas.is_some_and(|replicas| replicas > 0) && scaler.decided.is_some_and(|decided| decided.desired > 0);
        if scaler.class != Class::Kpa || on_its_way {
            return;
        }
        self.unpark(&key);
        self.decide(&key, waiting.max(ONE_REQUEST));
        if self.jobs.len() < JOBS + WAKE_JOBS
            && let Some(scaler) = self.scalers.get(&key)
        {
            let context = context(&self.clock, scaler);
            let to = podautoscaler::scale(&self.observe(&key, &pa, scaler, &context));
            self.scale(&key, &pa, to, &["requests wait".to_owned()]);
        }
        // Everything else can follow.
        self.dirty.insert(key);
    }

    fn record(&mut self, key: &RevisionKey, stat: Stat) {
        let at = self.clock.steady(Instant::now());
        if let Some(scaler) = self.scalers.get_mut(key) {
            scaler.record(at, stat);
        }
    }

    fn measured(&mut self, samples: Samples) {
        self.collect.running = None;
        if std::mem::take(&mut self.collect.baseline) {
            self.collect.due = self.collect.began + BUCKET;
            return;
        }
        self.collect.count += 1;
        let at = self.clock.steady(self.collect.began);
        let mut samples: HashMap<RevisionKey, Sample> = samples.into_iter().collect();
        let mut woken = Vec::new();
        for (key, scaler) in &mut self.scalers {
            let sample = samples.remove(key);
            if !scaler.is_live() {
                // Its wake went missing.
                if let Some(Sample::Stat(stat)) = sample
                    && stat.concurrency > 0.0
                {
                    woken.push(Wake { revision: key.clone(), waiting: stat.concurrency });
                }
                continue;
            }
            let collection = match sample {
                Some(Sample::Trouble(trouble)) => trouble,
                Some(Sample::Stat(stat)) => {
                    scaler.record(at, stat);
                    metric::Collection::Working
                }
                None => {
                    scaler.record(at, Stat::default());
                    metric::Collection::Working
                }
            };
            if scaler.collection != collection {
                scaler.collection = collection;
                self.dirty.insert(key.clone());
            }
        }
        for wake in woken {
            self.wake(wake);
        }
        if self.collect.count.is_multiple_of(COLLECTS_PER_TICK) {
            self.tick();
        }
        let pace = if self.scalers.values().any(Scaler::is_live) { BUCKET } else { IDLE_COLLECT };
        // From when it was due, so that each second gets one; what fell behind is not made up for.
        self.collect.due = (self.collect.began + pace).max(Instant::now());
    }

    fn tick(&mut self) {
        let live = self.scalers.iter().filter(|(_, scaler)| scaler.is_live());
        for key in live.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.decide(&key, 0.0);
            self.park_if_asleep(&key);
        }
    }

    fn decide(&mut self, key: &RevisionKey, at_least: f64) {
        let ready = self.world.pods(key).ready;
        let at = self.clock.steady(Instant::now());
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        let before = scaler.decided;
        let Some((load, decision)) = scaler.decide(ready, at, at_least) else { return };
        if let Some(labels) = self.labels.get(key) {
            self.metrics.decided(labels, &scaler.scaling, load, &decision);
        }
        if before.map(|before| before.desired) != Some(decision.desired) {
            info!(revision = %key, desired = decision.desired, why = %words(&decision.reasons), "decided");
        }
        if before != scaler.decided {
            self.dirty.insert(key.clone());
        }
    }

    /// Parks what has neither instances nor load, until a wake.
    fn park_if_asleep(&mut self, key: &RevisionKey) {
        let Some(pa) = self.world.pa(key) else { return };
        let empty = self.world.replicas(pa) == Some(0) && self.world.pods(key).ready == 0;
        let inactive = is_inactive(pa);
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        if empty && inactive && scaler.decided.is_none_or(|decided| decided.desired == 0) {
            debug!(revision = %key, "asleep");
            scaler.park();
        }
    }

    fn scale(&mut self, key: &RevisionKey, pa: &Arc<PodAutoscaler>, scale: Option<u32>, reasons: &[String]) {
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        let lane = &mut scaler.scale_calls;
        let Some(to) = scale else { return lane.rest() };
        if !lane.is_open(Instant::now()) {
            return;
        }
        lane.begin();
        info!(revision = %key, to, why = %words(reasons), "scaling");
        let (client, pa, key) = (self.client.clone(), pa.clone(), key.clone());
        self.jobs.spawn(async move { Done::Scaled { result: api::scale(client, &pa, to).await, key, to } });
    }

    fn write(&mut self, key: &RevisionKey, pa: &Arc<PodAutoscaler>, plan: Plan, metric_status: Option<Object>) {
        let now = Instant::now();
        let Some(scaler) = self.scalers.get_mut(key) else { return };
        let lane = &mut scaler.write_calls;
        if plan.is_empty() && metric_status.is_none() {
            lane.rest();
        } else if lane.is_open(now) {
            lane.begin();
            let own = plan.status.clone().map(|status| with_status(Object::of(&**pa), status));
            let statuses = own.into_iter().chain(metric_status).collect();
            let (client, key, plan) = (self.client.clone(), key.clone(), plan.clone());
            self.jobs
                .spawn(async move { Done::Written { outcome: api::carry_out(client, plan, statuses).await, key } });
        }
        let again = plan.again.map(|again| now + again);
        let lanes = [&scaler.scale_calls, &scaler.write_calls];
        let next = again.into_iter().chain(lanes.into_iter().filter_map(|lane| lane.opens_at())).min();
        self.timers.set(key, next);
    }

    fn finish(&mut self, done: Result<Done, JoinError>) {
        let now = Instant::now();
        match done {
            Ok(Done::Scaled { key, to, result }) => {
                if let Some(scaler) = self.scalers.get_mut(&key) {
                    scaler.scale_calls.end(result.is_err(), now);
                }
                match result {
                    Ok(target) => self.take(Change::Target(Delta::Apply(target))),
                    Err(error) => warn!(revision = %key, to, error = %chain(&error), "could not scale; tried again"),
                }
                self.dirty.insert(key);
            }
            Ok(Done::Written { key, outcome }) => {
                let Outcome { changes, refusals, errors, stale } = outcome;
                if let Some(scaler) = self.scalers.get_mut(&key) {
                    let again = stale || !errors.is_empty() || !refusals.is_empty();
                    scaler.write_calls.end(again, now);
                    scaler.refusals = refusals;
                }
                for error in &errors {
                    warn!(revision = %key, error = %chain(error), "a write failed; tried again");
                }
                for change in changes {
                    self.take(change);
                }
                self.dirty.insert(key);
            }
            Ok(Done::Probed { key, in_path }) => {
                if let Some(scaler) = self.scalers.get_mut(&key) {
                    scaler.probing = false;
                    scaler.in_path = in_path;
                }
                if in_path == InPath::NotYet {
                    // Tried again when the plan says so.
                    debug!(revision = %key, "the activator is not yet in the path");
                } else {
                    self.dirty.insert(key);
                }
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
}

fn context(clock: &Clock, scaler: &Scaler) -> Context {
    Context { now: clock.now(), settings: scaler.settings().clone(), refusals: scaler.refusals.clone() }
}

fn with_status(mut object: Object, status: serde_json::Value) -> Object {
    object.value["status"] = status;
    object
}

/// The running measurement; never, when there is none.
async fn running(collect: &mut Option<BoxFuture<'static, Samples>>) -> Samples {
    match collect {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

fn report(key: &RevisionKey, errors: &[AnnotationError]) {
    for error in errors {
        warn!(revision = %key, %error, "an annotation was left aside");
    }
}

fn words(reasons: &[impl ToString]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
