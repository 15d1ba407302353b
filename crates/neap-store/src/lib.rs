//! A durable, revisioned, ordered map of bytes: compare-and-set transactions, ranges at a
//! revision, watches from a revision, compaction.
//!
//! It exists so that the API server can be one process on one machine. It must never learn what
//! its keys and values mean: no JSON, no kinds, no clock.
//!
//! # What it promises
//!
//! - **One counter.** Each transaction that changes something gets the next revision. A revision
//!   is never given twice, not even after a crash: numbers are reserved on disk in blocks before
//!   they are handed out, and what is left of a block after a crash is skipped.
//! - **Visible at once, durable apart.** A committed write is seen by readers and watchers of this
//!   process before [`Store::commit`] returns. [`Committed::durable`] resolves when it is on disk.
//!   Who answers somebody outside the process waits for it; who can derive the write again need not.
//! - **Order.** A watcher sees each matching change once, in the order of revisions, or is told
//!   that it missed some ([`Lagged`]); it is never silently skipped ahead.
//! - **Bounds.** History, the backlog of the disk, keys, values and transactions have limits, each a
//!   named constant. A watcher costs a cursor, not a queue.
//! - **One owner.** A file is open in one process at a time, and a file that is not a sound store
//!   file of a known format is refused without a byte of it being changed.
//!
//! ```
//! # fn main() -> Result<(), neap_store::Error> {
//! use neap_store::{Expect, Store, Txn};
//!
//! let store = Store::memory();
//! let created = store.commit(Txn::new().put("/pods/a", Expect::Absent, "one"))?;
//! let mut watch = store.watch(b"/pods/", created.revision)?;
//! let replaced = Expect::Revision(created.revision);
//! store.commit(Txn::new().put("/pods/a", replaced, "two"))?.durable.wait_blocking()?;
//! assert!(watch.try_next().is_ready());
//! let page = store.range(b"/pods/", None, 500, Some(created.revision))?;
//! assert_eq!(page.entries[0].value, "one");
//! # Ok(())
//! # }
//! ```
//!
//! # When the disk fails
//!
//! The commits that wait are told [`Error::Broken`], further writes are refused with the same error,
//! reads and watches go on. What was visible but not yet durable stays visible, so nothing in
//! this process diverges; it may be gone after a restart, and its revision numbers are not reused.
//! Two cases, by what failed:
//!
//! - *No space left*, reported while writing: the store tries again every few seconds
//!   and takes writes again once everything it holds is on disk. A commit that was answered with
//!   an error may therefore still become durable, as with any lost answer.
//! - *Anything else*, and any failed sync: the store stays read-only until it is opened again. After
//!   a failed sync the kernel may have dropped the pages it could not write, so neither what is
//!   in memory nor what a second sync says proves anything about the disk.
//!
//! # Where things are
//!
//! `index` holds keys, versions and history, and is plain data; `topics` finds the watchers of a
//! key; `watch` is a watcher's cursor; `store` puts them under one lock; `disk` knows the file
//! format, `file` the file itself; `writer` is the one thread that writes (file stores only).

#![warn(missing_docs)]

mod disk;
mod durable;
mod error;
mod file;
mod index;
mod store;
mod topics;
mod txn;
mod watch;
mod writer;

pub use disk::{CACHE_BYTES, FORMAT};
pub use durable::Durable;
pub use error::Error;
pub use index::{Entry, Event, Page};
pub use store::{HISTORY_BURST, HISTORY_BYTES, HISTORY_EVENTS, Options, Stats, Store};
pub use txn::{Committed, Expect, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_STEPS, MAX_VALUE_BYTES, Op, Txn};
pub use watch::{Lagged, Watch};
pub use writer::{PENDING_BYTES, PENDING_CHANGES, RESERVED_REVISIONS};

/// A point in the history of a store. Starts at 1 in an empty store and only grows.
pub type Revision = u64;
