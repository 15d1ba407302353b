//! The store itself: index and topics under one lock, and, for a file, the way to the disk behind them.
//! Nothing here may wait for the disk but `open` and `close`: a commit goes through in memory at once or
//! is refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::disk::Disk;
use crate::file::{self, Device, Found, open_error};
use crate::index::{Count, Entry, Index, Limits, Page};
use crate::topics::{Topics, Wakes};
use crate::txn::{Committed, Op, Txn};
use crate::watch::Watch;
use crate::writer::{self, Change, Pace, Queue, WriterDied};
use crate::{Durable, Error, Revision};

/// Most events kept for watches and for ranges at earlier revisions. Starting fifty services makes some
/// five thousand; a watcher that is further behind than three such storms is better off listing again.
pub const HISTORY_EVENTS: usize = 16 * 1024;

/// Most bytes the history may keep alive beyond the current values. A fifth of what the idle platform
/// may use in all; events of 2 KiB objects reach it after some three thousand.
pub const HISTORY_BYTES: usize = 8 * 1024 * 1024;

/// How many times as much history is kept while a watcher has yet to read it. A thousand services at once make
/// fifty thousand events in half a minute, and a watcher that is told to list again then decodes thousands of objects
/// for it, which makes the next one late. Not without end: somebody who stopped reading must not hold more than this.
pub const HISTORY_BURST: usize = 8;
/// Events that a compaction forgets while nobody can read.
const COMPACTED_AT_ONCE: usize = 1024;

/// The revision of a store in which nothing has happened. Not 0, which Kubernetes reads as "any".
pub(crate) const FIRST_REVISION: Revision = 1;

/// Settings of a store. `Options::default()` is right outside of tests.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// See [`HISTORY_EVENTS`].
    pub history_events: usize,
    /// See [`HISTORY_BYTES`].
    pub history_bytes: usize,
    /// See [`HISTORY_BURST`].
    pub history_burst: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { history_events: HISTORY_EVENTS, history_bytes: HISTORY_BYTES, history_burst: HISTORY_BURST }
    }
}

impl Options {
    fn limits(self) -> Limits {
        Limits { events: self.history_events, bytes: self.history_bytes, burst: self.history_burst }
    }
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Keys that exist.
    pub keys: usize,
    /// Events kept in the history.
    pub history_events: usize,
    /// Their weight, in bytes.
    pub history_bytes: usize,
    /// Watches open.
    pub watchers: usize,
    /// Changed keys that wait to be written to disk.
    pub pending_changes: usize,
    /// Their size, in bytes.
    pub pending_bytes: usize,
    /// The newest revision that is on disk with all before it.
    pub durable: Revision,
}

/// A durable, revisioned, ordered map of bytes. Clones are handles to the same store.
///
/// Dropping the last handle closes the store as [`close`](Store::close) does.
#[derive(Debug, Clone)]
pub struct Store {
    owner: Arc<Owner>,
}

/// Owns the writer's thread; watches and receipts do not.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<Result<(), Error>>>>,
    /// The file, if there is one.
    path: Option<PathBuf>,
}

/// What handles, watches, receipts and the writer share.
pub(crate) struct Shared {
    state: RwLock<State>,
    /// The way to the disk, if there is one.
    pub(crate) queue: Option<Queue>,
}

pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) topics: Topics,
    writes: Writes,
}

/// Whether writes are taken.
enum Writes {
    /// Yes.
    Taken,
    /// No, because the disk fails; `Taken` again if it heals.
    Refused(Error),
    /// No, and never again.
    Closed,
}

impl Store {
    /// A store without a file: it answers on the calling task, has no threads, and is durable at once.
    pub fn memory() -> Store {
        Store::memory_with(Options::default())
    }

    /// As [`memory`](Store::memory), with settings.
    pub fn memory_with(options: Options) -> Store {
        let shared = Shared::new(Index::new(options.limits()), None);
        Store { owner: Arc::new(Owner { shared, writer: Mutex::new(None), path: None }) }
    }

    /// Opens the store in a file, creating it if there is none. Its directory must exist.
    ///
    /// Reads the whole file: call it where blocking is allowed.
    pub fn open(path: &Path, options: Options) -> Result<Store, Error> {
        match file::find(path)? {
            Found::Existing(device) => Store::open_on(Arc::new(device), path, options, Pace::default()),
            Found::New(device, birth) => {
                let disk = Disk::create(Arc::new(device), path)?;
                birth.finish()?;
                Store::start(Index::new(options.limits()), disk, Pace::default())
            }
        }
    }

    /// Opens the store on a device that holds one.
    pub(crate) fn open_on(device: Arc<dyn Device>, path: &Path, options: Options, pace: Pace) -> Result<Store, Error> {
        let mut index = Index::new(options.limits());
        let (disk, revision) = Disk::open(device, path, |entry| index.load(entry))?;
        index.resume(revision);
        Store::start(index, disk, pace)
    }

    /// Reserves the first revisions and starts the writer.
    fn start(index: Index, disk: Disk, pace: Pace) -> Result<Store, Error> {
        let revision = index.revision();
        let reserved = disk.reserve(revision)?;
        let path = disk.path().to_owned();
        let shared = Shared::new(index, Some(Queue::new(revision, reserved, pace)));
        let writer = thread::Builder::new().name("neap-store".to_owned()).spawn({
            let shared = shared.clone();
            move || match &shared.queue {
                Some(queue) => writer::run(&shared, queue, disk),
                None => Ok(()),
            }
        });
        let writer = Mutex::new(Some(writer.map_err(|error| open_error(&path, error))?));
        Ok(Store { owner: Arc::new(Owner { shared, writer, path: Some(path) }) })
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.shared().read().index.revision()
    }

    /// The oldest revision that can still be read at, or watched from.
    pub fn compacted(&self) -> Revision {
        self.shared().read().index.compacted()
    }

    /// The entry of a key.
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.shared().read().index.get(key)
    }

    /// Up to `limit` entries whose keys start with `prefix` and sort after `after`, as they were
    /// at revision `at`, or are now. A limit of 0 only counts.
    pub fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Error> {
        self.shared().read().index.range(prefix, after, limit, at, Count::All)
    }

    /// Applies a transaction if all its conditions hold. Never waits for the disk.
    ///
    /// A transaction that changes nothing (only checks, or removes what is not there) takes no revision
    /// and makes no event.
    pub fn commit(&self, mut txn: Txn) -> Result<Committed, Error> {
        txn.validate()?;
        // What is kept gets allocations of its own, exactly as large as needed: a small value must not keep
        // the request body alive that it was cut from, nor the spare room of the buffer it was built in.
        for (key, _, op) in &mut txn.steps {
            *key = Bytes::copy_from_slice(key);
            if let Op::Put(value) = op {
                *value = Bytes::copy_from_slice(value);
            }
        }
        let mut wakes = Wakes::default();
        let revision = self.shared().write().commit(txn, self.shared().queue.as_ref(), &mut wakes)?;
        wakes.fire();
        Ok(Committed { revision, durable: Durable::new(revision, self.shared().clone()) })
    }

    /// Watches the keys that start with `prefix`: all changes after revision `from`.
    pub fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        Watch::new(self.shared().clone(), prefix, from)
    }

    /// As [`Store::range`], where nobody asks how many more follow: `remaining` only says whether any do, which takes
    /// less time by all of them.
    pub fn range_uncounted(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Error> {
        self.shared().read().index.range(prefix, after, limit, at, Count::Any)
    }

    /// Forgets the history before `keep_after`, which becomes the oldest revision that can be read at or
    /// watched from. Watchers that are not that far yet are told that they lagged.
    pub fn compact(&self, keep_after: Revision) {
        // Nobody needs waking: whoever misses something now has an event waiting, and was woken for it.
        // In portions, so that readers come in between.
        while !self.shared().write().index.compact_some(keep_after, COMPACTED_AT_ONCE) {}
    }

    /// How full the store is.
    pub fn stats(&self) -> Stats {
        let state = self.shared().read();
        let (history_events, history_bytes) = state.index.history();
        let (pending_changes, pending_bytes, durable) = match &self.shared().queue {
            Some(queue) => queue.depth(),
            None => (0, 0, state.index.revision()),
        };
        Stats {
            keys: state.index.live(),
            history_events,
            history_bytes,
            watchers: state.topics.watchers(),
            pending_changes,
            pending_bytes,
            durable,
        }
    }

    /// A receipt for everything committed so far.
    pub fn flush(&self) -> Durable {
        Durable::new(self.revision(), self.shared().clone())
    }

    /// Ends the store for all its handles: writes are refused, everything committed is brought to disk, the
    /// file is released. Watches end after what they have yet to read; reads go on.
    ///
    /// Blocks until the disk has it all. A second call has nothing left to do.
    pub fn close(self) -> Result<(), Error> {
        self.owner.close()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }
}

impl Owner {
    fn close(&self) -> Result<(), Error> {
        {
            let mut state = self.shared.write();
            state.writes = Writes::Closed;
            state.topics.wake_all();
        }
        let writer = self.writer.lock().expect("only taking a value happens under it").take();
        let (Some(writer), Some(queue), Some(path)) = (writer, &self.shared.queue, &self.path) else {
            return Ok(());
        };
        queue.end();
        writer.join().unwrap_or_else(|_panic| {
            let source = Arc::new(WriterDied);
            Err(Error::Broken { path: path.clone(), heals: false, source })
        })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Nobody is left to be told, so it is logged.
        if let Err(error) = self.close() {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "the store was not closed in order");
        }
    }
}

impl Shared {
    fn new(index: Index, queue: Option<Queue>) -> Arc<Shared> {
        let state = State { index, topics: Topics::default(), writes: Writes::Taken };
        Arc::new(Shared { state: RwLock::new(state), queue })
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect(UNPOISONED)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect(UNPOISONED)
    }

    /// From now on writes are refused with `error`.
    pub(crate) fn refuse(&self, error: &Error) {
        let mut state = self.write();
        if !state.closed() {
            state.writes = Writes::Refused(error.clone());
        }
    }

    /// The disk works again.
    pub(crate) fn accept(&self) {
        let mut state = self.write();
        if !state.closed() {
            state.writes = Writes::Taken;
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds the store's lock";

impl State {
    pub(crate) fn closed(&self) -> bool {
        matches!(self.writes, Writes::Closed)
    }

    /// Checks and applies a transaction; returns the newest revision after it.
    fn commit(&mut self, txn: Txn, queue: Option<&Queue>, wakes: &mut Wakes) -> Result<Revision, Error> {
        match &self.writes {
            Writes::Taken => {}
            Writes::Refused(error) => return Err(error.clone()),
            Writes::Closed => return Err(Error::Closed),
        }
        let State { index, topics, .. } = self;
        if !index.check(&txn.steps)? {
            return Ok(index.revision());
        }
        let revision = index.revision() + 1;
        let room = match queue {
            Some(queue) => Some(queue.admit(revision, txn.steps.len())?),
            None => None,
        };
        let events = index.apply(txn.steps, revision);
        for seq in events.clone() {
            topics.publish(&index.event(seq).key, seq, index.first_seq(), wakes);
        }
        if let Some(room) = room {
            room.push(revision, events.map(|seq| change(index, seq)));
        }
        index.trim(|first| topics.needed(first));
        Ok(revision)
    }
}

/// What an event of the newest revision means for the disk.
fn change(index: &Index, seq: u64) -> (Bytes, Change) {
    let key = index.event(seq).key.clone();
    let change = match index.get(&key) {
        Some(Entry { value, created, modified, .. }) => Change::Put { value, created, modified },
        None => Change::Delete,
    };
    (key, change)
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
