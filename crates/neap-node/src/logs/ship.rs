//! The shipper: looks, reads, sends, writes down how far it came, and looks again. One batch is on its way at a time;
//! while an endpoint does not answer, nothing but that batch is kept, and the looking goes on.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use neap_runtime::shelf::Shelf;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::batch::{Batch, Bounds};
use super::metrics::{Metrics, Reason};
use super::pace::{Backoff, Complaint};
use super::sink::{Outcome, Sink};
use super::tail::{Tail, Wishes};
use super::{Settings, Target};
use crate::kubelet::Clock;

/// Time between two looks at the disk: half of what a line may wait, but within these.
const SHORTEST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// How often it is written down how far the logs are sent, at most: what arrived since is sent again after a crash.
const SAVE: Duration = Duration::from_millis(500);

/// Sends the logs of this machine.
pub struct Shipper {
    shelf: Arc<Shelf>,
    settings: watch::Receiver<Arc<Settings>>,
    checkpoint: PathBuf,
    clock: Clock,
    metrics: Metrics,
}

/// What is under way.
struct Work {
    tail: Arc<Mutex<Tail>>,
    /// Being filled.
    open: Batch,
    /// On their way, first first: halves of one that was too large.
    sealed: VecDeque<Arc<Batch>>,
    saved: Option<Instant>,
    said: Said,
}

/// What people are told.
#[derive(Default)]
struct Said {
    /// Since when nothing arrives.
    outage: Option<Instant>,
    lost: Complaint,
    gaps: Complaint,
    refused: Complaint,
    why: String,
    unsaved: Complaint,
    unsaved_why: String,
    unreadable: Complaint,
    unreadable_why: String,
}

impl Shipper {
    /// `checkpoint`: the file that remembers how far the logs are sent.
    pub fn new(
        shelf: Arc<Shelf>,
        settings: watch::Receiver<Arc<Settings>>,
        checkpoint: PathBuf,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self { shelf, settings, checkpoint, clock, metrics }
    }

    /// Runs for ever. When it is let go, the next run sends what was not sent.
    pub async fn run(mut self) {
        let mut work = None;
        loop {
            let settings = self.settings.borrow_and_update().clone();
            match &settings.target {
                Some(target) => {
                    let begun = match work.take() {
                        Some(begun) => begun,
                        None => self.begin().await,
                    };
                    work = Some(self.ship(begun, &settings, target).await);
                }
                None => {
                    // Switched off is a pause: what was sent stays written down.
                    work = None;
                    self.shelf.hold(HashSet::new());
                    self.metrics.lag.set(0.0);
                    self.changed().await;
                }
            }
        }
    }

    /// Resolves when other settings are there; never, when there will be none.
    async fn changed(&mut self) {
        if self.settings.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn begin(&self) -> Work {
        let (shelf, file) = (self.shelf.clone(), self.checkpoint.clone());
        let opened = tokio::task::spawn_blocking(move || Tail::open(shelf, &file)).await;
        let tail = Arc::new(Mutex::new(opened.expect("opening does not panic")));
        Work { tail, open: Batch::default(), sealed: VecDeque::new(), saved: None, said: Said::default() }
    }

    /// Until the settings are others.
    async fn ship(&mut self, mut work: Work, settings: &Arc<Settings>, target: &Target) -> Work {
        let opening = (settings.clone(), target.clone());
        let opened = tokio::task::spawn_blocking(move || Sink::open(&opening.0, &opening.1)).await;
        let sink = match opened.expect("opening does not panic") {
            Ok(sink) => sink,
            Err(error) => {
                let error = crate::report::chain(&error);
                tracing::error!(error, "container logs are not sent: correct the settings logs.* in config-neap");
                self.changed().await;
                return work;
            }
        };
        let bounds = Bounds { size: settings.batch_size, age: settings.batch_age };
        let step = (settings.batch_age / 2).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let mut backoff = Backoff::new(settings.retry);
        loop {
            let more = self.look(&mut work, settings, bounds).await;
            if work.sealed.is_empty() && work.open.is_due(bounds, self.now()) {
                work.sealed.push_back(Arc::new(std::mem::take(&mut work.open)));
            }
            let Some(batch) = work.sealed.front().cloned() else {
                if more {
                    continue;
                }
                tokio::select! {
                    () = self.changed() => return work,
                    () = sleep(step) => continue,
                }
            };
            let (outcome, changed) = self.send(&mut work, &sink, &batch, settings, (bounds, step)).await;
            let pause = outcome.and_then(|outcome| self.account(&mut work, target, &batch, outcome, &mut backoff));
            if changed {
                return work;
            }
            if let Some(pause) = pause {
                let until = Instant::now() + pause;
                while Instant::now() < until {
                    tokio::select! {
                        () = self.changed() => return work,
                        () = sleep_until(until.min(Instant::now() + step)) => {}
                    }
                    self.look(&mut work, settings, bounds).await;
                }
            }
        }
    }

    /// Sends a batch once and looks on meanwhile. What became of it, if it was waited for; and whether the settings are
    /// others now. A write to files is waited for: it goes on, and whoever writes there next would write into it.
    async fn send(
        &mut self,
        work: &mut Work,
        sink: &Sink,
        batch: &Arc<Batch>,
        settings: &Arc<Settings>,
        (bounds, step): (Bounds, Duration),
    ) -> (Option<Outcome>, bool) {
        let mut sending = sink.send(batch.clone(), (self.clock)());
        loop {
            tokio::select! {
                outcome = &mut sending => return (Some(outcome), false),
                () = self.changed() => {
                    let outcome = if sink.is_files() { Some(sending.await) } else { None };
                    return (outcome, true);
                }
                () = sleep(step) => {}
            }
            self.look(work, settings, bounds).await;
        }
    }

    /// Sees what is on the disk, and reads on where there is room. Whether there may be more to read.
    async fn look(&self, work: &mut Work, settings: &Arc<Settings>, bounds: Bounds) -> bool {
        let wishes = Wishes {
            volume: settings.volume.clone(),
            naming: settings.naming.clone(),
            json_severity: settings.json_severity,
        };
        let (tail, now) = (work.tail.clone(), self.now());
        let mut batch = std::mem::take(&mut work.open);
        let may_fill = work.sealed.is_empty();
        let due = work.saved.is_none_or(|saved| saved.elapsed() >= SAVE);
        let looking = tokio::task::spawn_blocking(move || {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            let looked = tail.look(&wishes);
            let unreadable = looked.as_ref().err().map(ToString::to_string);
            let mut losses = looked.unwrap_or_default();
            let more = may_fill && tail.fill(&mut batch, bounds, &wishes, now, &mut losses);
            if may_fill && batch.records.is_empty() {
                // What was no line, or was sent before.
                tail.arrived(&std::mem::take(&mut batch.marks));
            }
            tail.settle();
            let saved = if due { tail.save() } else { Ok(false) };
            (batch, losses, unreadable, more, saved)
        });
        let (batch, losses, unreadable, more, saved) = looking.await.expect("looking does not panic");
        work.open = batch;
        // Only a write counts: what arrives after a quiet time is written down at once.
        if !matches!(saved, Ok(false)) {
            work.saved = Some(Instant::now());
        }
        if let Err(error) = saved {
            work.said.unsaved.add(1);
            work.said.unsaved_why = format!("{}: {error}", self.checkpoint.display());
        }
        if let Some(error) = unreadable {
            work.said.unreadable.add(1);
            work.said.unreadable_why = error;
        }
        self.metrics.drop_records(Reason::Lost, losses.lines);
        self.metrics.gaps.inc_by(losses.gaps);
        work.said.lost.add(losses.lines);
        work.said.gaps.add(losses.gaps);
        let oldest = work.sealed.front().map_or(&work.open, |batch| batch).oldest();
        let lag = oldest.map_or(Duration::ZERO, |oldest| Duration::from_nanos(now.saturating_sub(oldest)));
        self.metrics.lag.set(lag.as_secs_f64());
        work.said.complain();
        more
    }

    /// What is to be done about an outcome. A pause, when it is to be tried again.
    fn account(
        &self,
        work: &mut Work,
        target: &Target,
        batch: &Arc<Batch>,
        outcome: Outcome,
        backoff: &mut Backoff,
    ) -> Option<Duration> {
        let all = batch.records.len() as u64;
        let refused = match outcome {
            Outcome::Arrived { refused, why } => {
                work.said.why = why;
                refused.min(all)
            }
            Outcome::Refused { why } => {
                work.said.why = why;
                all
            }
            Outcome::TooLarge => match Batch::clone(batch).halves() {
                Some((first, second)) => {
                    work.sealed.pop_front();
                    work.sealed.push_front(Arc::new(second));
                    work.sealed.push_front(Arc::new(first));
                    return None;
                }
                None => {
                    work.said.why = "it takes no line of this length".to_owned();
                    all
                }
            },
            Outcome::Again { after, why } => {
                self.metrics.failures.inc();
                let pause = backoff.pause(after, fastrand::f64());
                if work.said.outage.is_none() {
                    work.said.outage = Some(Instant::now());
                    tracing::warn!(
                        "container logs cannot be sent to {}: {why}; they wait on this machine, and it is tried again until it works",
                        place(target)
                    );
                } else {
                    tracing::debug!(why, ?pause, "container logs still cannot be sent");
                }
                return Some(pause);
            }
        };
        backoff.reset();
        if let Some(since) = work.said.outage.take() {
            tracing::warn!("container logs are sent to {} again, after {} s", place(target), since.elapsed().as_secs());
        }
        work.said.refused.add(refused);
        self.metrics.drop_records(Reason::Refused, refused);
        self.metrics.records.inc_by(all - refused);
        if refused < all {
            self.metrics.bytes.inc_by(batch.records.iter().map(|record| record.body.len() as u64).sum());
        }
        work.sealed.pop_front();
        work.tail.lock().unwrap_or_else(PoisonError::into_inner).arrived(&batch.marks);
        work.said.complain();
        None
    }

    /// Nanoseconds since 1970.
    fn now(&self) -> u64 {
        u64::try_from((self.clock)().as_nanosecond()).unwrap_or(0)
    }
}

impl Said {
    fn complain(&mut self) {
        let now = Instant::now();
        if let Some(lines) = self.lost.due(now) {
            tracing::warn!(
                lines,
                "lines of container logs were not sent: their files turned over or were removed first, or are collected no more"
            );
        }
        if let Some(times) = self.gaps.due(now) {
            tracing::warn!(
                times,
                "container logs turned over before they were looked at: an unknown number of lines was not sent"
            );
        }
        if let Some(lines) = self.refused.due(now) {
            tracing::warn!(
                lines,
                why = self.why,
                "container logs were refused, and will not be sent again; some of these lines may have been taken all the same"
            );
        }
        if self.unsaved.due(now).is_some() {
            let error = &self.unsaved_why;
            tracing::warn!(
                error,
                "how far container logs are sent cannot be written down; after a restart they are sent again"
            );
        }
        if self.unreadable.due(now).is_some() {
            tracing::warn!(error = self.unreadable_why, "the directory of container logs cannot be read");
        }
    }
}

fn place(target: &Target) -> &str {
    match target {
        Target::Files(files) => &files.path,
        Target::Otlp { url, .. } | Target::Loki { url, .. } => url,
    }
}
