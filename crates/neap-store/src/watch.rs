//! A watcher: a cursor into the shared history. It holds no events of its own, so a slow one costs
//! nothing but the chance to be told that it lagged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::watch;

use crate::index::{Event, Seq};
use crate::store::Shared;
use crate::topics::{Next, Place};
use crate::{Error, Revision};

/// The watcher was too slow: events it had not read are no longer kept. List again, watch from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events after revision {seen} are no longer kept; list again")]
pub struct Lagged {
    /// The last revision that was seen completely.
    pub seen: Revision,
}

/// Changes of the keys with a prefix, in order of revision.
pub struct Watch {
    shared: Arc<Shared>,
    prefix: Bytes,
    wake: watch::Receiver<()>,
    cursor: Cursor,
    place: Place,
}

enum Cursor {
    /// The next position to look at, and the revision up to which everything was seen.
    Reading { next: Seq, seen: Revision },
    /// The lag was reported, or the store was closed: nothing comes any more.
    Ended { seen: Revision },
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        let prefix = Bytes::copy_from_slice(prefix);
        let mut state = shared.write();
        let next = state.index.seq_after(from)?;
        let state = &mut *state;
        let (wake, place) = state.topics.join(&prefix, next, &state.index);
        state.index.expect_reader(next);
        let cursor = Cursor::Reading { next, seen: from };
        Ok(Watch { shared: shared.clone(), prefix, wake, cursor, place })
    }

    /// The next event. `None` after the store was closed and everything before that was read, and
    /// after [`Lagged`]. Cancel safe: an event is lost only if it was returned.
    pub async fn next(&mut self) -> Option<Result<Event, Lagged>> {
        loop {
            if let Poll::Ready(next) = self.try_next() {
                return next;
            }
            if self.wake.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The next event if there is one now; `Pending` means that nothing matching has happened.
    pub fn try_next(&mut self) -> Poll<Option<Result<Event, Lagged>>> {
        let Cursor::Reading { next, seen } = self.cursor else {
            return Poll::Ready(None);
        };
        let shared = self.shared.clone();
        let state = shared.read();
        let index = &state.index;
        match state.topics.next(&self.prefix, next, index.first_seq()) {
            Next::At(seq) => {
                let event = index.event(seq).clone();
                // More events of the same revision may follow, so only the one before is seen for sure.
                let seen = seen.max(event.revision - 1);
                self.move_to(Cursor::Reading { next: seq + 1, seen });
                Poll::Ready(Some(Ok(event)))
            }
            Next::Idle => {
                let seen = index.revision();
                if state.closed() {
                    self.move_to(Cursor::Ended { seen });
                    return Poll::Ready(None);
                }
                self.move_to(Cursor::Reading { next: index.end_seq(), seen });
                Poll::Pending
            }
            Next::Lagged => {
                self.move_to(Cursor::Ended { seen });
                Poll::Ready(Some(Err(Lagged { seen })))
            }
        }
    }

    /// The revision up to which this watcher has seen everything that concerns it: a watch begun from
    /// it misses nothing and repeats nothing. It moves on without events and never back, so it
    /// is what a bookmark carries.
    pub fn progress(&mut self) -> Revision {
        let (next, seen) = match self.cursor {
            Cursor::Reading { next, seen } => (next, seen),
            Cursor::Ended { seen } => return seen,
        };
        let state = self.shared.read();
        let index = &state.index;
        let (next, seen) = match state.topics.next(&self.prefix, next, index.first_seq()) {
            Next::At(seq) => (seq, seen.max(index.event(seq).revision - 1)),
            Next::Idle => (index.end_seq(), index.revision()),
            // `next` will tell.
            Next::Lagged => (next, seen),
        };
        drop(state);
        self.move_to(Cursor::Reading { next, seen });
        seen
    }

    fn move_to(&mut self, cursor: Cursor) {
        self.place.position.store(
            match cursor {
                Cursor::Reading { next, .. } => next,
                Cursor::Ended { .. } => Seq::MAX,
            },
            Ordering::Relaxed,
        );
        self.cursor = cursor;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.write().topics.leave(&self.prefix, &self.place);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
