//! The answers of one h2 connection, as the sweep sees them.
//!
//! A client of h2 decides for each stream how much of it is sent (RFC 9113, section 5.2). One that gives no room leaves
//! an answer half-way, with all that it holds, while its socket looks healthy; nothing of the answer's own would ring,
//! for nobody asks its body for more. So whoever holds a piece for too long is called off here, which resets the stream.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Answers {
    all: RefCell<Vec<Weak<Answer>>>,
    /// The one whose stream hyper is about to spawn.
    begun: RefCell<Option<Rc<Answer>>>,
}

/// One answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// hyper has taken a piece and has not come back for the next: there is no room for it at the client.
    held: Cell<bool>,
    /// Since when, at the latest, it is the same piece; kept by the sweep.
    held_since: Cell<Option<Instant>>,
    stream: RefCell<Option<AbortHandle>>,
}

impl Answers {
    pub(super) fn begin(&self) -> Rc<Answer> {
        let answer = Rc::new(Answer::default());
        self.all.borrow_mut().push(Rc::downgrade(&answer));
        *self.begun.borrow_mut() = Some(answer.clone());
        answer
    }

    /// Calls off what has been held for so long, and says how many that were.
    pub(super) fn judge(&self, now: Instant, limit: Duration) -> usize {
        let mut cut = 0;
        self.all.borrow_mut().retain(|answer| {
            let Some(answer) = answer.upgrade() else { return false };
            let is_over = answer.is_held_since(now).is_some_and(|since| now - since >= limit);
            if is_over && let Some(stream) = answer.stream.borrow_mut().take() {
                stream.abort();
                cut += 1;
            }
            true
        });
        cut
    }
}

impl Answer {
    /// Its body was asked for more; `piece` is whether that gave data.
    pub(super) fn polled(&self, piece: bool) {
        self.held.set(piece);
        self.held_since.set(None);
    }

    fn is_held_since(&self, now: Instant) -> Option<Instant> {
        if self.held.get() {
            self.held_since.set(self.held_since.get().or(Some(now)));
        }
        self.held_since.get()
    }
}

/// Spawns the streams of one connection on the worker's own task set.
#[derive(Debug, Clone)]
pub(super) struct Streams(pub(super) Rc<Answers>);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        // It ends with its connection, which owns the other end of its channel. hyper spawns a stream in the same breath
        // in which it has called the service, so this one belongs to the answer that was begun last.
        let task = tokio::task::spawn_local(future);
        if let Some(answer) = self.0.begun.borrow_mut().take() {
            *answer.stream.borrow_mut() = Some(task.abort_handle());
        }
    }
}
