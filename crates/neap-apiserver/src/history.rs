//! When history ends: revisions older than some minutes are given up, as etcd's are under Kubernetes (410 after that).
//!
//! No task does it. History only grows by requests, so requests end it too; a server that nobody asks keeps a little
//! memory a little longer. The store bounds what a storm between two of these moments can pile up.

use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use neap_store::{Revision, Store};

/// How often history is cut, at the revision of the last cut: what is younger than this is always kept
/// (kube-apiserver: `--etcd-compaction-interval`).
const INTERVAL: SignedDuration = SignedDuration::from_mins(5);

#[derive(Default)]
pub(crate) struct History(Mutex<Option<Mark>>);

/// The revision there was at a moment.
#[derive(Clone, Copy)]
struct Mark {
    at: Timestamp,
    revision: Revision,
}

impl History {
    /// Called for every request; does something once in an interval.
    pub(crate) fn pass(&self, now: Timestamp, store: &Store) {
        let due = {
            let mut mark = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let old = *mark;
            // A clock that was set back begins anew, or the next cut would be far away.
            if old.is_some_and(|old| now >= old.at && now.duration_since(old.at) < INTERVAL) {
                return;
            }
            *mark = Some(Mark { at: now, revision: store.revision() });
            old
        };
        if let Some(old) = due {
            store.compact(old.revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_store::{Expect, Txn};

    #[test]
    fn what_is_older_than_an_interval_goes() {
        let (store, history) = (Store::memory(), History::default());
        let write = || store.commit(Txn::new().put("/k", Expect::Any, "v")).unwrap().revision;
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let first = write();
        history.pass(at(0), &store);
        let second = write();
        history.pass(at(299), &store);
        assert_eq!(store.compacted(), 0, "not yet");
        history.pass(at(300), &store);
        assert_eq!(store.compacted(), first);
        write();
        history.pass(at(10), &store);
        assert_eq!(store.compacted(), second, "a clock that was set back is believed");
        history.pass(at(20), &store);
        assert_eq!(store.compacted(), second);
    }
}
