//! The one thread that writes to the disk, and the queue in front of it. Commits pile up in the queue
//! while a sync runs and then go to disk together; a key changed ten times meanwhile is
//! written once. The thread must never hold the queue's lock while it touches the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::disk::Disk;
use crate::store::Shared;
use crate::{Error, Revision};

/// Most keys that may wait to be written. At the disk's slowest, a sync of a second, it takes a
/// burst of sixteen thousand changes to reach it.
pub const PENDING_CHANGES: usize = 16 * 1024;

/// Most bytes that may wait to be written. They are shared with the index, so this bounds the size of one disk
/// transaction more than memory. Twice the largest transaction.
pub const PENDING_BYTES: usize = 16 * 1024 * 1024;

/// Revisions reserved on disk ahead of their use. A crash skips what is left of a block, so it should look
/// small to people who read revisions; and it is renewed at half, which has to last for as long as a
/// sync takes: at a hundred thousand commits a second, a third of a second.
pub const RESERVED_REVISIONS: u64 = 64 * 1024;

/// How long a change waits for company when nobody waits for it. Somebody who does wait starts the write at
/// once. Ten milliseconds turn the storm of derived writes after a deployment into a few syncs, and are
/// below what anybody notices of a crash.
const LINGER: Duration = Duration::from_millis(10);

/// How often a store on a full disk tries again: soon enough for somebody who has just made room and watches,
/// and each try reads the file once.
const RETRY: Duration = Duration::from_secs(2);

/// The writer's waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) linger: Duration,
    pub(crate) retry: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { linger: LINGER, retry: RETRY }
    }
}

/// What a key becomes on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Put { value: Bytes, created: Revision, modified: Revision },
    Delete,
}

/// What one disk transaction writes.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) changes: BTreeMap<Bytes, Change>,
    /// Everything up to this revision is in this batch or on disk already.
    pub(crate) revision: Revision,
    /// Reserve revisions up to this one.
    pub(crate) reserve: Option<Revision>,
}

/// Changes on their way to the disk.
pub(crate) struct Queue {
    pending: Mutex<Pending>,
    /// Signals `pending` to the writer.
    changed: Condvar,
    settled: watch::Sender<Settled>,
    pace: Pace,
}

pub(crate) struct Pending {
    changes: BTreeMap<Bytes, Change>,
    bytes: usize,
    /// The newest revision in `changes`, or taken from it.
    revision: Revision,
    /// The newest revision that may be handed out.
    reserved: Revision,
    /// The newest revision that somebody waits for.
    wanted: Revision,
    /// The newest revision the writer took.
    taken: Revision,
    ending: bool,
}

/// What became of the commits so far.
#[derive(Debug, Clone)]
struct Settled {
    /// Everything up to this revision is on disk.
    revision: Revision,
    /// Why nothing more gets there at the moment.
    broken: Option<Error>,
}

impl Queue {
    /// A queue for a store at `revision` whose disk has reserved revisions up to `reserved`.
    pub(crate) fn new(revision: Revision, reserved: Revision, pace: Pace) -> Queue {
        let pending = Pending {
            changes: BTreeMap::new(),
            bytes: 0,
            revision,
            reserved,
            wanted: revision,
            taken: revision,
            ending: false,
        };
        Queue {
            pending: Mutex::new(pending),
            changed: Condvar::new(),
            settled: watch::Sender::new(Settled { revision, broken: None }),
            pace,
        }
    }

    /// Makes room for a transaction, or refuses it. The caller holds the index's lock until it has pushed
    /// its changes, so that the queue sees whole transactions in the order of their revisions.
    pub(crate) fn admit(&self, revision: Revision, changes: usize) -> Result<Admitted<'_>, Error> {
        let pending = self.lock();
        let full = pending.changes.len() + changes > PENDING_CHANGES || pending.bytes > PENDING_BYTES;
        if full || revision > pending.reserved {
            return Err(Error::Busy { waiting: pending.changes.len(), bytes: pending.bytes });
        }
        Ok(Admitted { pending, changed: &self.changed })
    }

    /// Resolves once `revision` is on disk, and hurries the writer along.
    pub(crate) async fn settled(&self, revision: Revision) -> Result<(), Error> {
        let mut settled = self.settled.subscribe();
        if settled.borrow().revision < revision {
            let mut pending = self.lock();
            if pending.wanted < revision {
                pending.wanted = revision;
                self.changed.notify_one();
            }
        }
        let outcome = settled
            .wait_for(|settled| settled.revision >= revision || settled.broken.is_some())
            .await
            .expect("the sender lives in the queue this borrows");
        match &outcome.broken {
            Some(broken) if outcome.revision < revision => Err(broken.clone()),
            _ => Ok(()),
        }
    }

    /// Keys and bytes waiting, and the newest revision on disk.
    pub(crate) fn depth(&self) -> (usize, usize, Revision) {
        let pending = self.lock();
        (pending.changes.len(), pending.bytes, self.settled.borrow().revision)
    }

    /// Lets the writer finish: it writes what waits and stops.
    pub(crate) fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_one();
    }

    /// Waits for something to write; `None` once the queue has ended and is empty.
    fn take(&self) -> Option<Batch> {
        let idle = |pending: &mut Pending| pending.changes.is_empty() && !pending.ending;
        let calm = |pending: &mut Pending| !pending.urgent();
        let pending = self.changed.wait_while(self.lock(), idle).expect(UNPOISONED);
        let (mut pending, _) = self.changed.wait_timeout_while(pending, self.pace.linger, calm).expect(UNPOISONED);
        if pending.changes.is_empty() {
            return None;
        }
        Some(pending.take())
    }

    fn done(&self, batch: &Batch) {
        if let Some(reserved) = batch.reserve {
            self.lock().reserved = reserved;
        }
        self.settled.send_replace(Settled { revision: batch.revision, broken: None });
    }

    /// Puts back what could not be written, below what came since.
    fn failed(&self, batch: Batch, error: &Error) {
        let mut pending = self.lock();
        for (key, change) in batch.changes {
            pending.push_if_absent(key, change);
        }
        drop(pending);
        self.settled.send_modify(|settled| settled.broken = Some(error.clone()));
    }

    /// Waits for the end, or `timeout`. True at the end.
    fn ended_within(&self, timeout: Option<Duration>) -> bool {
        let running = |pending: &mut Pending| !pending.ending;
        match timeout {
            Some(timeout) => {
                let waited = self.changed.wait_timeout_while(self.lock(), timeout, running);
                waited.expect(UNPOISONED).0.ending
            }
            None => self.changed.wait_while(self.lock(), running).expect(UNPOISONED).ending,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "nothing panics while it holds the queue's lock";

/// Room in the queue for one transaction.
pub(crate) struct Admitted<'a> {
    pending: MutexGuard<'a, Pending>,
    changed: &'a Condvar,
}

impl Admitted<'_> {
    /// Queues the changes of one transaction.
    pub(crate) fn push(mut self, revision: Revision, changes: impl Iterator<Item = (Bytes, Change)>) {
        let idle = self.pending.changes.is_empty();
        for (key, change) in changes {
            self.pending.push(key, change);
        }
        self.pending.revision = revision;
        if idle || self.pending.urgent() {
            self.changed.notify_one();
        }
    }
}

impl Pending {
    fn push(&mut self, key: Bytes, change: Change) {
        self.bytes += weight(&key, &change);
        let size = key.len();
        if let Some(replaced) = self.changes.insert(key, change) {
            self.bytes -= size + replaced.weight();
        }
    }

    fn push_if_absent(&mut self, key: Bytes, change: Change) {
        if !self.changes.contains_key(&key) {
            self.push(key, change);
        }
    }

    fn take(&mut self) -> Batch {
        self.bytes = 0;
        self.taken = self.revision;
        // Renewed at half, so that commits go on while the renewal is on its way to the disk.
        let low = self.reserved - self.revision < RESERVED_REVISIONS / 2;
        Batch {
            changes: std::mem::take(&mut self.changes),
            revision: self.revision,
            reserve: low.then_some(self.revision + RESERVED_REVISIONS),
        }
    }

    /// Whether the writer should start now instead of waiting for more.
    fn urgent(&self) -> bool {
        self.ending
            || self.wanted > self.taken
            || self.changes.len() > PENDING_CHANGES / 4
            || self.bytes > PENDING_BYTES / 4
            || self.reserved - self.revision < RESERVED_REVISIONS / 4
    }
}

impl Change {
    fn weight(&self) -> usize {
        match self {
            Change::Put { value, .. } => value.len(),
            Change::Delete => 0,
        }
    }
}

fn weight(key: &Bytes, change: &Change) -> usize {
    key.len() + change.weight()
}

/// The writer's thread: from the opening of the store until its queue ends.
pub(crate) fn run(shared: &Arc<Shared>, queue: &Queue, mut disk: Disk) -> Result<(), Error> {
    let _alarm = Alarm { shared, queue, path: disk.path().to_owned() };
    while let Some(batch) = queue.take() {
        match disk.write(&batch) {
            Ok(()) => queue.done(&batch),
            Err(error) => {
                // Refused first: whoever is told that his commit failed must not get the next one through.
                shared.refuse(&error);
                queue.failed(batch, &error);
                outlast(shared, queue, &mut disk, error)?;
            }
        }
    }
    let revision = queue.lock().revision;
    disk.finish(revision)
}

/// Returns once the disk takes writes again; the error if it never does before the queue ends.
fn outlast(shared: &Shared, queue: &Queue, disk: &mut Disk, mut error: Error) -> Result<(), Error> {
    loop {
        let heals = matches!(error, Error::Broken { heals: true, .. });
        let last = queue.ended_within(heals.then_some(queue.pace.retry));
        if heals {
            let batch = queue.lock().take();
            match disk.reopen().and_then(|()| disk.write(&batch)) {
                Ok(()) => {
                    // Accepted last, or the next commit's waiter would still find the old error.
                    queue.done(&batch);
                    shared.accept();
                    return Ok(());
                }
                Err(again) => {
                    shared.refuse(&again);
                    queue.failed(batch, &again);
                    error = again;
                }
            }
        }
        if last {
            return Err(error);
        }
    }
}

/// Tells everybody if the writer dies of a bug, so that nobody waits for it for ever.
struct Alarm<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    path: std::path::PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("the thread that writes has panicked")]
pub(crate) struct WriterDied;

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::Broken { path: self.path.clone(), heals: false, source: Arc::new(WriterDied) };
            self.shared.refuse(&error);
            self.queue.settled.send_modify(|settled| settled.broken = Some(error.clone()));
        }
    }
}
