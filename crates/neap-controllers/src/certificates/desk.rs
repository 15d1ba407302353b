//! Between the controller of Certificates, which only looks and never waits, and those who make them: who is asked for what,
//! and how far each is. Kept in memory; a restart asks again, and orders go on where their records say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use kube::{Api, Client};
use neap_api::keys::config;
use neap_api::networking::Http01Challenge;
use neap_logic::certificates::renewal::Span;
use neap_logic::config::Acme;
use neap_logic::names::hash::sha256_hex;
use neap_logic::plan::certificate::Progress;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::authority::Authority;
use super::office::Office;
use crate::autoscaler::Clock;
use crate::caches::Caches;
use crate::index::Key;
use crate::queue::Queue;

/// Questions that may wait to be picked up.
const WAITING: usize = 1024;
/// How soon a Certificate is looked at again when too many wait.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// How often an authority is asked when it would like a certificate renewed, where it does not say how often itself.
pub(super) const SUGGESTION: Duration = Duration::from_secs(6 * 3600);

/// A certificate that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) names: Vec<String>,
    /// The authority outside; none for the local one.
    pub(crate) acme: Option<Acme>,
    /// What it stands in for, PEM.
    pub(crate) replaces: Option<String>,
}

impl Ask {
    fn is_same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.names == other.names && self.acme == other.acme
    }
}

enum Work {
    Issue(Box<Ask>, CancellationToken),
    Suggest { key: Key, acme: Box<Acme>, chain: String },
    Clean { secret: String },
}

/// What the controller sees.
pub(crate) struct Desk {
    board: Arc<Board>,
    work: mpsc::Sender<Work>,
}

/// The task that has it done.
pub(crate) struct Clerk {
    office: Arc<Office>,
    work: mpsc::Receiver<Work>,
}

/// How far everybody is.
pub(super) struct Board {
    state: Mutex<State>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct State {
    /// The mark of the local authority.
    local: Option<String>,
    entries: HashMap<Key, Entry>,
    suggestions: HashMap<Key, Suggestion>,
}

struct Entry {
    ask: Ask,
    progress: Progress,
    challenges: Vec<Http01Challenge>,
    /// Ends the work when nobody wants it any more.
    _work: DropGuard,
}

struct Suggestion {
    /// Of which certificate.
    of: String,
    span: Option<Span>,
    ask_at: Instant,
}

/// Both halves. Certificates are added to `queue` when something about them becomes known.
pub(crate) fn pair(client: Client, caches: Arc<Caches>, clock: Clock, queue: Arc<Queue>) -> (Desk, Clerk) {
    let board = Arc::new(Board { state: Mutex::default(), queue });
    let (sender, receiver) = mpsc::channel(WAITING);
    let office = Arc::new(Office::new(client, caches, clock, board.clone()));
    (Desk { board, work: sender }, Clerk { office, work: receiver })
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how far somebody is, unless it is not wanted any more.
    pub(super) fn tell(&self, ask: &Ask, progress: Progress, challenges: Vec<Http01Challenge>) {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(&ask.key).filter(|entry| entry.ask.is_same(ask)) else { return };
        if entry.progress != progress || entry.challenges != challenges {
            (entry.progress, entry.challenges) = (progress, challenges);
            drop(state);
            self.queue.add(ask.key.clone());
        }
    }

    pub(super) fn know_local(&self, mark: &str) {
        self.state().local = Some(mark.to_owned());
    }

    pub(super) fn suggest(&self, key: &Key, chain: &str, span: Option<Span>, again: Duration) {
        let of = sha256_hex(chain.as_bytes());
        let mut state = self.state();
        let Some(known) = state.suggestions.get_mut(key).filter(|known| known.of == of) else { return };
        known.ask_at = Instant::now() + again;
        if known.span != span {
            known.span = span;
            drop(state);
            self.queue.add(key.clone());
        }
    }
}

impl Desk {
    /// The mark of the local authority, once it is known.
    pub(crate) fn local(&self) -> Option<String> {
        self.board.state().local.clone()
    }

    /// How far whoever is asked for this is; nobody was, so far, for what is new.
    pub(crate) fn progress(&self, ask: Ask) -> (Progress, Vec<Http01Challenge>) {
        let mut state = self.board.state();
        if let Some(entry) = state.entries.get(&ask.key).filter(|entry| entry.ask.is_same(&ask)) {
            return (entry.progress.clone(), entry.challenges.clone());
        }
        let token = CancellationToken::new();
        let key = ask.key.clone();
        match self.work.try_send(Work::Issue(Box::new(ask.clone()), token.clone())) {
            Ok(()) => {
                let entry = Entry { ask, progress: Progress::Idle, challenges: Vec::new(), _work: token.drop_guard() };
                state.entries.insert(key, entry);
            }
            Err(_) => self.board.queue.add_after(key, BUSY_RETRY),
        }
        (Progress::Idle, Vec::new())
    }

    /// When the authority would like a certificate renewed, as far as it is known.
    pub(crate) fn suggested(&self, key: &Key, acme: &Acme, chain: &str) -> Option<Span> {
        let of = sha256_hex(chain.as_bytes());
        let now = Instant::now();
        let mut state = self.board.state();
        let known = state.suggestions.entry(key.clone()).or_insert_with(|| Suggestion {
            of: of.clone(),
            span: None,
            ask_at: now,
        });
        if known.of != of {
            *known = Suggestion { of, span: None, ask_at: now };
        }
        if known.ask_at <= now {
            let work = Work::Suggest { key: key.clone(), acme: Box::new(acme.clone()), chain: chain.to_owned() };
            if self.work.try_send(work).is_ok() {
                known.ask_at = now + SUGGESTION;
            }
        }
        known.span
    }

    /// Nobody is needed for this any more.
    pub(crate) fn settle(&self, key: &Key) {
        self.board.state().entries.remove(key);
    }

    /// The Certificate is gone.
    pub(crate) fn forget(&self, key: &Key) {
        let mut state = self.board.state();
        state.entries.remove(key);
        state.suggestions.remove(key);
    }

    /// Removes the Secret of an order whose Certificate is gone. What finds no room is found again.
    pub(crate) fn clean(&self, secret: &str) {
        drop(self.work.try_send(Work::Clean { secret: secret.to_owned() }));
    }
}

impl Clerk {
    /// Has things done until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        match Authority::existing(&self.office.client).await {
            Ok(Some(authority)) => self.office.board.know_local(authority.mark()),
            Ok(None) => {}
            Err(error) => warn!(error = &error as &dyn std::error::Error, "the local authority is not known yet"),
        }
        let mut jobs = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = jobs.join_next() => {}
                work = self.work.recv() => {
                    let Some(work) = work else { return };
                    let office = self.office.clone();
                    match work {
                        Work::Issue(ask, token) => jobs.spawn(async move {
                            let _ended_early = token.run_until_cancelled(Box::pin(office.issue(*ask))).await;
                        }),
                        Work::Suggest { key, acme, chain } => jobs.spawn(async move {
                            Box::pin(office.suggest(&key, &acme, &chain)).await;
                        }),
                        Work::Clean { secret } => jobs.spawn(async move { clean(&office.client, &secret).await }),
                    };
                }
            }
        }
    }
}

async fn clean(client: &Client, secret: &str) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
    match secrets.delete(secret, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => warn!(secret, %error, "an order that nobody needs stays; it is removed later"),
    }
}
