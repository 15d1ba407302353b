//! What the runtime knows of one pod: the part that is written down, and the part that is only in memory.
//!
//! [`PodCell::update`] is the one way to change it: it writes the record when that changed, and tells the world when
//! the status changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};

use super::restart::Backoff;
use super::status;
use crate::logs::shelf::Shelf;
use crate::machine::{Handle, Sandbox};
use crate::pod::{ContainerState, ContainerStatus, PodId, PodSpec, PodStatus, Terminated};
use crate::record::{self, Ledger, VERSION};
use crate::volumes;

/// Name of the pod's ledger.
const LEDGER: &str = "state";

/// The durable part, besides the specification. Written whole, in a ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub version: u8,
    pub sandbox: Option<Sandbox>,
    pub started: Option<Timestamp>,
    /// Port name to the real port, where pods share the machine's network.
    pub ports: BTreeMap<String, u16>,
    pub containers: BTreeMap<String, ContainerRecord>,
    /// Somebody asked for the pod's end; it must be complete at this time.
    pub removing: Option<Timestamp>,
    /// The machine ended it, and why; it stays until somebody removes it.
    #[serde(default)]
    pub evicted: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// Runs so far; the newest one is number `runs - 1`.
    pub runs: u32,
    /// How many of them have ended and been dealt with.
    pub accounted: u32,
    pub restarts: u32,
    pub backoff: Backoff,
    pub last: Option<Terminated>,
    /// It has ended and will not run again.
    pub done: Option<Terminated>,
    pub image_id: String,
    /// What the images that are its volumes were when the newest run began: their layers are mounted, whatever the names
    /// that they were pulled by mean since.
    #[serde(default)]
    pub volume_images: Vec<String>,
    pub stop_signal: Option<String>,
    /// How many of the runs have their postStart hook behind them.
    #[serde(default)]
    pub hooked: u32,
    /// How many of the runs have passed their startup probe.
    #[serde(default)]
    pub begun: u32,
    /// What the readiness probe said last, if that was of this many runs and well.
    #[serde(default)]
    pub ready: u32,
}

/// Everything known of a pod now.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub record: PodRecord,
    pub containers: BTreeMap<String, ContainerLive>,
}

#[derive(Clone, Debug)]
pub(crate) struct ContainerLive {
    pub status: ContainerStatus,
    pub handle: Option<Handle>,
}

/// The specification on disk.
#[derive(Serialize, Deserialize)]
struct SpecFile {
    version: u8,
    spec: PodSpec,
}

/// All that must be readable in a record of another version.
#[derive(Deserialize)]
struct Versioned {
    version: u8,
}

/// What a pod's directory holds.
pub(crate) enum Loaded {
    Pod(Arc<PodCell>),
    /// Torn, or not yet whole: what was begun was never promised.
    Nothing,
    /// Written by another version of neap, in this format.
    Foreign(u8),
}

/// One pod's state, shared by its actor and the runtime's callers.
pub(crate) struct PodCell {
    pub id: PodId,
    /// Everything of this pod but its logs.
    pub dir: PathBuf,
    pub log_dir: PathBuf,
    spec: watch::Sender<Arc<PodSpec>>,
    /// Held while the volumes are made or brought up to date.
    volumes: Mutex<()>,
    state: Mutex<State>,
    /// Locked before the state, by whoever changes that: who only looks never waits for the disk.
    ledger: Mutex<Ledger>,
    changes: broadcast::Sender<PodId>,
    /// When the pod must be gone, once somebody asked for that.
    pub stop: watch::Sender<Option<Timestamp>>,
    /// When its containers must have ended: because of that, or because the machine wants it so.
    pub ending: watch::Sender<Option<Timestamp>>,
    /// The same for sidecars, which end after all others.
    pub stop_sidecars: watch::Sender<Option<Timestamp>>,
    /// Something of the status changed.
    pub turned: Notify,
    /// Held while the process is made whose PID namespace the pod's containers share.
    pub pids: tokio::sync::Mutex<()>,
    pub gone: watch::Sender<bool>,
}

impl PodCell {
    /// A pod that is new here. Written down before this returns.
    pub(crate) fn create(
        dir: PathBuf,
        log_dir: PathBuf,
        spec: PodSpec,
        changes: broadcast::Sender<PodId>,
    ) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&dir)?;
        let record = PodRecord { version: VERSION, ..PodRecord::default() };
        let mut ledger = Ledger::new(&dir, LEDGER);
        ledger.write(&record)?;
        write_spec(&dir, &spec)?;
        Ok(Self::new(dir, log_dir, spec, (ledger, record), changes))
    }

    /// A pod that an earlier run of the runtime wrote down.
    ///
    /// # Errors
    /// Its files cannot be read now, which says nothing about what is in them.
    pub(crate) fn load(dir: &Path, logs: &Shelf, changes: broadcast::Sender<PodId>) -> io::Result<Loaded> {
        let spec = dir.join("spec.json");
        if let Some(Versioned { version }) =
            record::read_if_there(&spec)?.filter(|of: &Versioned| of.version != VERSION)
        {
            return Ok(Loaded::Foreign(version));
        }
        let Some(file) = record::read_if_there::<SpecFile>(&spec)? else { return Ok(Loaded::Nothing) };
        match Ledger::open::<Versioned>(dir, LEDGER)? {
            None => return Ok(Loaded::Nothing),
            Some((_, Versioned { version })) if version != VERSION => return Ok(Loaded::Foreign(version)),
            Some(_) => {}
        }
        let Some((ledger, record)) = Ledger::open::<PodRecord>(dir, LEDGER)? else { return Ok(Loaded::Nothing) };
        let log_dir = logs.dir_of(&file.spec);
        Ok(Loaded::Pod(Self::new(dir.to_owned(), log_dir, file.spec, (ledger, record), changes)))
    }

    fn new(
        dir: PathBuf,
        log_dir: PathBuf,
        spec: PodSpec,
        (ledger, record): (Ledger, PodRecord),
        changes: broadcast::Sender<PodId>,
    ) -> Arc<Self> {
        let mut containers = BTreeMap::new();
        for (at, container) in spec.init_containers.iter().chain(&spec.containers).enumerate() {
            let known = record.containers.get(&container.name).cloned().unwrap_or_default();
            let first_wait = if at < spec.init_containers.len() || spec.init_containers.is_empty() {
                "ContainerCreating"
            } else {
                "PodInitializing"
            };
            let state = match known.done {
                Some(done) => ContainerState::Terminated(done),
                None => status::waiting(first_wait, ""),
            };
            let status = ContainerStatus {
                name: container.name.clone(),
                state,
                last: known.last,
                trouble: None,
                ready: false,
                started: false,
                restarts: known.restarts,
                image: container.image.clone(),
                image_id: known.image_id,
                volume_images: known.volume_images,
            };
            containers.insert(container.name.clone(), ContainerLive { status, handle: None });
        }
        Arc::new(Self {
            id: spec.id.clone(),
            dir,
            log_dir,
            stop: watch::Sender::new(record.removing),
            ending: watch::Sender::new(record.removing.or(record.evicted.as_ref().map(|_| Timestamp::MIN))),
            stop_sidecars: watch::Sender::new(None),
            turned: Notify::new(),
            pids: tokio::sync::Mutex::default(),
            gone: watch::Sender::new(false),
            spec: watch::Sender::new(Arc::new(spec)),
            volumes: Mutex::default(),
            state: Mutex::new(State { record, containers }),
            ledger: Mutex::new(ledger),
            changes,
        })
    }

    pub(crate) fn spec(&self) -> Arc<PodSpec> {
        self.spec.borrow().clone()
    }

    /// Tells of each specification that is taken.
    pub(crate) fn specs(&self) -> watch::Receiver<Arc<PodSpec>> {
        self.spec.subscribe()
    }

    /// Makes the volumes, or brings them up to date: always by the newest specification, and one after the other, or a
    /// container's start could put back what a change just replaced.
    pub(crate) fn prepare_volumes(&self, root: bool) -> io::Result<BTreeMap<String, PathBuf>> {
        let _one_at_a_time = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let spec = self.spec();
        volumes::prepare(&self.dir, &spec, root)
    }

    /// Takes a specification whose changeable parts may differ.
    pub(crate) fn replace_spec(&self, spec: PodSpec) -> io::Result<()> {
        write_spec(&self.dir, &spec)?;
        self.spec.send_replace(Arc::new(spec));
        Ok(())
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    pub(crate) fn status(&self) -> PodStatus {
        let spec = self.spec();
        status::summarize(&spec, &self.lock())
    }

    /// Changes the state, writes the record if it changed, and tells if the status changed.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let spec = self.spec();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let (record, status) = (state.record.clone(), status::summarize(&spec, &state));
        let result = change(&mut state);
        let changed = (state.record != record).then(|| state.record.clone());
        let turned = status::summarize(&spec, &state) != status;
        drop(state);
        if let Some(record) = changed
            && let Err(error) = ledger.write(&record)
        {
            tracing::error!(pod = %self.id, %error, "cannot write down the pod's state; a restart of neap would not know it");
        }
        drop(ledger);
        if turned {
            // Nobody listening is no fault: the status can always be asked for.
            let _ = self.changes.send(self.id.clone());
            self.turned.notify_waiters();
        }
        result
    }

    /// Somebody wants the pod gone at `deadline`; the more impatient asker is heard.
    pub(crate) fn remove(&self, deadline: Timestamp) {
        let deadline = self.stop.borrow().map_or(deadline, |earlier| earlier.min(deadline));
        self.update(|state| state.record.removing = Some(deadline));
        self.stop.send_replace(Some(deadline));
        let nearer = |old: &mut Option<Timestamp>| *old = Some(old.map_or(deadline, |earlier| earlier.min(deadline)));
        self.ending.send_modify(nearer);
        // Sidecars that were not told yet are told when the others have ended.
        self.stop_sidecars.send_if_modified(|stop| {
            let told = stop.is_some();
            if told {
                nearer(stop);
            }
            told
        });
    }

    /// Ends the pod's containers now, for good.
    pub(crate) fn evict(&self, why: String, now: Timestamp) {
        tracing::warn!(pod = %self.id, why, "evicting a pod");
        self.update(|state| state.record.evicted.get_or_insert(why).clone());
        self.ending.send_replace(Some(now));
    }

    /// Changes one container.
    pub(crate) fn update_container<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut ContainerRecord, &mut ContainerLive) -> T,
    ) -> T {
        self.update(|state| {
            let record = state.record.containers.entry(name.to_owned()).or_default();
            let live = state.containers.get_mut(name).expect("every container of the specification has its state");
            let result = change(record, live);
            live.status.restarts = record.restarts;
            live.status.last = record.last.clone();
            live.status.image_id = record.image_id.clone();
            live.status.volume_images = record.volume_images.clone();
            result
        })
    }

    /// The pod is gone: nothing of it will be said any more.
    pub(crate) fn announce_gone(&self) {
        self.gone.send_replace(true);
        let _ = self.changes.send(self.id.clone());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_spec(dir: &Path, spec: &PodSpec) -> io::Result<()> {
    record::write(&dir.join("spec.json"), &SpecFile { version: VERSION, spec: spec.clone() })
}

/// Directory of a pod's logs below the one of all logs, as Kubernetes names them.
pub(crate) fn log_name(spec: &PodSpec) -> String {
    format!("{}_{}_{}", spec.namespace, spec.name, spec.id)
}
