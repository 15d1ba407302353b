//! The quiet period at the end (E2.8): routers learn late that a pod goes, so it keeps serving until nothing has come
//! for a while.
//!
//! Probes fail from the first moment; requests are served to the last.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long nothing may come before the sidecar believes that everybody knows.
pub(super) const QUIET: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Drainer {
    quiet: Duration,
    state: Cell<State>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    /// Done at this instant, unless a request comes first.
    Draining(Instant),
    Drained,
}

impl Drainer {
    pub(super) fn new(quiet: Duration) -> Self {
        Self { quiet, state: Cell::new(State::Serving), changed: Notify::new() }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.get() != State::Serving
    }

    /// A request came.
    pub(super) fn touch(&self, now: Instant) {
        if let State::Draining(_) = self.state.get() {
            self.state.set(State::Draining(now + self.quiet));
        }
    }

    /// Begins to drain, if that has not begun, and resolves when it is done or called off.
    pub(super) async fn drain(&self, now: Instant) {
        if self.state.get() == State::Serving {
            self.state.set(State::Draining(now + self.quiet));
        }
        while let State::Draining(until) = self.state.get() {
            let changed = self.changed.notified();
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {
                    if self.state.get() == State::Draining(until) {
                        self.state.set(State::Drained);
                        self.changed.notify_waiters();
                    }
                }
            }
        }
    }

    /// Serves again; who waits for the end goes on.
    pub(super) fn reset(&self) {
        self.state.set(State::Serving);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn e2_8_each_request_begins_the_quiet_period_anew() {
        let drainer = Drainer::new(QUIET);
        let begin = now();
        let requests = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                assert!(drainer.is_draining());
                drainer.touch(now());
            }
        };
        tokio::join!(drainer.drain(now()), drainer.drain(now()), requests);
        assert_eq!(now() - begin, Duration::from_secs(20 * 3) + QUIET);
        assert!(drainer.is_draining(), "probes go on failing");
        drainer.drain(now()).await;
        drainer.touch(now());
        drainer.drain(now()).await;
        assert_eq!(now() - begin, Duration::from_secs(20 * 3) + QUIET, "what is done stays done");
    }

    #[tokio::test(start_paused = true)]
    async fn e2_8_a_drain_can_be_called_off() {
        let drainer = Drainer::new(QUIET);
        let begin = now();
        let off = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drainer.reset();
        };
        tokio::join!(drainer.drain(now()), off);
        assert_eq!(now() - begin, Duration::from_secs(1));
        assert!(!drainer.is_draining());
        drainer.drain(now()).await;
        assert_eq!(now() - begin, Duration::from_secs(1) + QUIET, "and begun again");
    }
}
