//! What the autoscaler needs of the outside. The roof plugs the implementations in.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use neap_logic::plan::metric::Collection;
use neap_logic::routing::RevisionKey;
use neap_logic::scale::InPath;
use tokio::sync::Notify;

/// What happened at one Revision since it was last measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stat {
    /// Requests in flight or waiting, averaged over the time since the last measurement.
    pub concurrency: f64,
    /// Requests that came in since the last measurement.
    pub requests: f64,
}

/// The outcome of measuring one Revision.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// It was measured.
    Stat(Stat),
    /// It could not be.
    Trouble(Collection),
}

/// A Revision without instances has been asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wake {
    /// Which.
    pub revision: RevisionKey,
    /// Requests that wait for it now.
    pub waiting: f64,
}

/// Measurements of requests: in one process the gateway's own counters, elsewhere what is scraped and pushed.
pub trait StatSource: Send + Sync + 'static {
    /// Measures, once a second. `wanted` are the Revisions that matter; a source may leave out those that had no
    /// request, and may add others that had.
    fn collect(&self, wanted: Vec<RevisionKey>) -> BoxFuture<'static, Vec<(RevisionKey, Sample)>>;

    /// Resolves when Revisions without instances have been asked for. Dropping the future before that loses nothing.
    fn woken(&self) -> BoxFuture<'_, Vec<Wake>>;
}

/// A Revision whose path of requests is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    /// The Revision.
    pub revision: RevisionKey,
    /// Its public Service.
    pub service: String,
    /// `http1` or `h2c`.
    pub protocol: String,
}

/// Finds out whether requests for a Revision would meet the activator.
pub trait ActivationProbe: Send + Sync + 'static {
    /// One try. It should end within a second; a try that fails is `InPath::NotYet` and is made again.
    fn probe(&self, target: ProbeTarget) -> BoxFuture<'static, InPath>;
}

/// The probe of a platform whose gateway is the only way in and activates by itself.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysInPath;

impl ActivationProbe for AlwaysInPath {
    fn probe(&self, _: ProbeTarget) -> BoxFuture<'static, InPath> {
        std::future::ready(InPath::Always).boxed()
    }
}

/// Wakes on their way from the request path to the autoscaler. Setting one never waits, and several for one Revision
/// become one, so there are never more than Revisions.
#[derive(Debug, Default)]
pub struct WakeSet {
    waiting: Mutex<BTreeMap<RevisionKey, f64>>,
    changed: Notify,
}

impl WakeSet {
    /// Says that so many requests wait for a Revision without instances.
    pub fn wake(&self, revision: &RevisionKey, waiting: f64) {
        let mut set = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match set.get_mut(revision) {
            Some(before) => *before = before.max(waiting),
            None => drop(set.insert(revision.clone(), waiting)),
        }
        drop(set);
        self.changed.notify_one();
    }

    /// All wakes since the last call, as soon as there is one.
    pub async fn woken(&self) -> Vec<Wake> {
        loop {
            let taken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken.into_iter().map(|(revision, waiting)| Wake { revision, waiting }).collect();
            }
            // A wake set after the look above has left its permit here.
            self.changed.notified().await;
        }
    }
}
