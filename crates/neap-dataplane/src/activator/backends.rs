//! Which instances of each Revision may get requests from this activator: those that proved that they take requests
//! (E1.8), and of these its own share (E1.7).
//!
//! A plain structure fed by the index and by whoever probes. It tells the gates; it never probes and never waits.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use neap_logic::routing::RevisionKey;
use neap_logic::throttle::subset;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::gate::Gate;

/// An address of a Revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) addr: SocketAddr,
    /// What the cluster says of it, which may be seconds behind.
    pub(crate) ready: bool,
}

/// What the index knows of a Revision.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) candidates: Vec<Candidate>,
    /// The addresses behind its public name: activators, while they are in the path.
    pub(crate) public: Vec<IpAddr>,
    /// Whether an instance may be believed before its kubelet is: its readiness is what its sidecar says, and
    /// nothing else has to happen first.
    pub(crate) early: bool,
}

pub(crate) struct Backends {
    own: IpAddr,
    /// Ready instances are believed without a probe (a mesh may not let us reach them one by one).
    trusting: bool,
    revisions: Mutex<HashMap<RevisionKey, Backend>>,
    /// There is something new to probe.
    news: Notify,
}

struct Backend {
    gate: Arc<Gate>,
    known: Known,
    proven: Vec<SocketAddr>,
}

impl Backends {
    pub(crate) fn new(own: IpAddr, trusting: bool) -> Self {
        Self { own, trusting, revisions: Mutex::default(), news: Notify::new() }
    }

    /// The index has seen something of this Revision.
    pub(crate) fn update(&self, key: &RevisionKey, gate: &Arc<Gate>, known: Known, now: Instant) {
        let mut revisions = self.lock();
        let backend = revisions.entry(key.clone()).or_insert_with(|| Backend {
            gate: gate.clone(),
            known: Known { candidates: Vec::new(), public: Vec::new(), early: false },
            proven: Vec::new(),
        });
        let before = std::mem::replace(&mut backend.known, known);
        backend.gate = gate.clone();
        let candidates = &backend.known.candidates;
        backend.proven.retain(|addr| {
            let of = |list: &[Candidate]| list.iter().find(|candidate| candidate.addr == *addr).copied();
            match (of(&before.candidates), of(candidates)) {
                // It was ready and is not any more: it has to prove itself again.
                (Some(was), Some(is)) => !was.ready || is.ready,
                (None, Some(_)) => true,
                (_, None) => false,
            }
        });
        if self.trusting {
            backend.proven =
                candidates.iter().filter(|candidate| candidate.ready).map(|candidate| candidate.addr).collect();
        }
        self.publish(backend, now);
        self.news.notify_one();
    }

    /// The Revision is gone.
    pub(crate) fn remove(&self, key: &RevisionKey) {
        self.lock().remove(key);
    }

    /// Instances to be probed.
    pub(crate) fn unproven(&self) -> Vec<(RevisionKey, SocketAddr)> {
        let revisions = self.lock();
        let of = |(key, backend): (&RevisionKey, &Backend)| {
            let wanted = backend.known.candidates.iter().filter(|candidate| {
                (candidate.ready || backend.known.early) && !backend.proven.contains(&candidate.addr)
            });
            wanted.map(|candidate| (key.clone(), candidate.addr)).collect::<Vec<_>>()
        };
        revisions.iter().flat_map(of).collect()
    }

    /// An instance took a probe.
    pub(crate) fn proved(&self, key: &RevisionKey, addr: SocketAddr, now: Instant) {
        let mut revisions = self.lock();
        let Some(backend) = revisions.get_mut(key) else { return };
        // It may have gone while it was being asked.
        if backend.known.candidates.iter().any(|candidate| candidate.addr == addr) && !backend.proven.contains(&addr) {
            backend.proven.push(addr);
            self.publish(backend, now);
        }
    }

    /// Resolves when there may be something new to probe.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    fn publish(&self, backend: &mut Backend, now: Instant) {
        backend.proven.sort_unstable();
        let mut activators = backend.known.public.clone();
        activators.sort_unstable();
        activators.dedup();
        let own = activators.iter().position(|ip| *ip == self.own);
        backend.gate.set_instances(subset(&backend.proven, own, activators.len()), now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RevisionKey, Backend>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
