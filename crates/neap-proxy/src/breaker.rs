//! A limit on requests at once, with a bounded queue before it.
//!
//! For one target with one limit (the `queue` role). Who has many targets keeps its own account and uses this
//! type's vocabulary only.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ProxyError;

/// Admits a number of requests at once, in the order they came.
#[derive(Debug, Clone)]
pub struct Breaker {
    room: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    concurrency: usize,
    depth: usize,
}

/// A place inside; dropping it makes room.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
}

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// The queue holds as many requests as it may.
    Full {
        /// How many that is.
        depth: usize,
    },
    /// The deadline passed in the queue.
    Deadline,
}

impl Breaker {
    /// `concurrency` requests inside, `depth` more in the queue.
    pub fn new(concurrency: usize, depth: usize) -> Self {
        let concurrency = concurrency.min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(concurrency)), waiting: Arc::default(), concurrency, depth }
    }

    /// Takes a place, waiting for it until `deadline`.
    pub async fn enter(&self, deadline: Option<Instant>) -> Result<Permit, Rejected> {
        if let Ok(place) = self.room.clone().try_acquire_owned() {
            return Ok(Permit { _place: place });
        }
        let _queued = Queued::join(&self.waiting, self.depth)?;
        let place = self.room.clone().acquire_owned();
        let place = match deadline {
            None => place.await,
            Some(at) => timeout_at(at, place).await.map_err(|_elapsed| Rejected::Deadline)?,
        };
        Ok(Permit { _place: place.expect("the semaphore is never closed") })
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many are inside or wait.
    pub fn in_flight(&self) -> usize {
        self.concurrency - self.room.available_permits() + self.waiting()
    }
}

impl Rejected {
    /// As an error of a request whose limit was `after`.
    pub fn error(self, after: std::time::Duration) -> ProxyError {
        match self {
            Self::Full { depth } => ProxyError::QueueFull { depth },
            Self::Deadline => ProxyError::WaitTimeout { after },
        }
    }
}

/// A place in the queue.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn join(waiting: &'a AtomicUsize, depth: usize) -> Result<Self, Rejected> {
        let joined = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < depth).then_some(n + 1));
        joined.map(|_| Self(waiting)).map_err(|_| Rejected::Full { depth })
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::now;

    #[tokio::test(start_paused = true)]
    async fn admits_queues_and_rejects() {
        let breaker = Breaker::new(1, 1);
        let soon = || Some(now() + Duration::from_secs(5));
        let inside = breaker.enter(soon()).await.expect("there is room");
        let (second, third, ()) = tokio::join!(breaker.enter(soon()), breaker.enter(soon()), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!((breaker.waiting(), breaker.in_flight()), (1, 2));
            drop(inside);
        });
        assert_eq!(third.expect_err("the queue is full"), Rejected::Full { depth: 1 });
        let _second = second.expect("the first left");
        assert_eq!(breaker.waiting(), 0);
        assert_eq!(breaker.enter(soon()).await.expect_err("nobody leaves"), Rejected::Deadline);
        assert_eq!(breaker.waiting(), 0);
    }
}
