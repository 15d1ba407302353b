//! Receipts for commits: waiting until a revision is on disk. A receipt is a revision and a handle;
//! nothing is allocated or registered before somebody waits.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crate::store::Shared;
use crate::{Error, Revision};

/// A receipt for a revision. Dropping it costs nothing and cancels nothing.
#[derive(Debug)]
#[must_use = "a write is only durable after `wait`; drop the receipt on purpose where that is enough"]
pub struct Durable {
    revision: Revision,
    shared: Arc<Shared>,
}

impl Durable {
    pub(crate) fn new(revision: Revision, shared: Arc<Shared>) -> Durable {
        Durable { revision, shared }
    }

    /// The revision waited for.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Resolves once everything up to the revision is on disk; at once in a memory store.
    ///
    /// [`Error::Broken`] leaves the outcome open: the write stays visible, and may or may not be
    /// there after a restart.
    pub async fn wait(self) -> Result<(), Error> {
        match &self.shared.queue {
            Some(queue) => queue.settled(self.revision).await,
            None => Ok(()),
        }
    }

    /// As [`wait`](Durable::wait), for threads that are not in an async runtime.
    pub fn wait_blocking(self) -> Result<(), Error> {
        block_on(self.wait())
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
