//! Tasks that run as long as their role; each has a name for the one sentence about its end.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a part may take to end after it was told to: a write to a disk or to an API server, and some.
const ENDING: Duration = Duration::from_secs(10);

/// A part that should run for ever has ended without saying why.
#[derive(Debug, thiserror::Error)]
#[error("{part} ended by itself; this is a fault of neap")]
pub struct Ended {
    pub part: &'static str,
}

pub struct Parts<E> {
    tasks: JoinSet<()>,
    failed: mpsc::Sender<E>,
    failures: mpsc::Receiver<E>,
    stop: CancellationToken,
}

impl<E: From<Ended> + Send + 'static> Parts<E> {
    /// `stop` ends them all.
    pub fn new(stop: CancellationToken) -> Self {
        let (failed, failures) = mpsc::channel(1);
        Self { tasks: JoinSet::new(), failed, failures, stop }
    }

    /// A part that knows the stop signal, and ends in its own way.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(name, part.map(Ok::<(), E>));
    }

    /// A part that knows the stop signal, and may fail before.
    pub fn spawn_fallible<F: Into<E>>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), F>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.watch(name, part, async move {
            stop.cancelled().await;
            tokio::time::sleep(ENDING).await;
            tracing::warn!(part = name, "it has not ended in time, and is let go");
        });
    }

    /// A part that has nothing to bring to an end: it is let go at the stop signal.
    pub fn spawn_endless(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.watch(name, part.map(Ok::<(), E>), async move { stop.cancelled().await });
    }

    fn watch<F: Into<E>>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), F>> + Send + 'static,
        let_go: impl Future<Output = ()> + Send + 'static,
    ) {
        let (failed, stop) = (self.failed.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            // What it shared may be half changed, but nothing goes on with it: its end is the role's end.
            let result = tokio::select! {
                result = AssertUnwindSafe(part).catch_unwind() => result,
                () = let_go => return,
            };
            if !stop.is_cancelled() {
                let error = match result {
                    Ok(Err(error)) => error.into(),
                    Ok(Ok(())) | Err(_) => Ended { part: name }.into(),
                };
                // The first failure is told; later ones follow from it.
                drop(failed.try_send(error));
            }
        });
    }

    /// Resolves when a part that should run for ever has ended.
    pub async fn failed(&mut self) -> E {
        match self.failures.recv().await {
            Some(error) => error,
            // Never: this holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// Waits for all of them, after `stop`.
    pub async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn parts() -> (Parts<Ended>, CancellationToken) {
        let stop = CancellationToken::new();
        (Parts::new(stop.clone()), stop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_ends_in_its_own_way_and_is_let_go_when_it_does_not() {
        let (mut parts, stop) = parts();
        let tidied = Arc::new(AtomicBool::new(false));
        let (told, note) = (stop.clone(), tidied.clone());
        parts.spawn("tidy", async move {
            told.cancelled().await;
            tokio::time::sleep(ENDING / 2).await;
            note.store(true, Ordering::Relaxed);
        });
        parts.spawn("deaf", std::future::pending());
        parts.spawn_endless("endless", std::future::pending());
        stop.cancel();
        let began = tokio::time::Instant::now();
        parts.join().await;
        assert!(tidied.load(Ordering::Relaxed));
        assert_eq!(began.elapsed(), ENDING);
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_end_is_told_also_when_it_is_a_panic() {
        async fn check(run: impl FnOnce(&mut Parts<Ended>)) {
            let (mut parts, _stop) = parts();
            run(&mut parts);
            assert_eq!(parts.failed().await.part, "p");
        }
        check(|parts| parts.spawn("p", async {})).await;
        check(|parts| parts.spawn_endless("p", async {})).await;
        check(|parts| parts.spawn_fallible("p", async { Err::<(), _>(Ended { part: "p" }) })).await;
        check(|parts| parts.spawn("p", async { panic!("on purpose, to see that it is noticed") })).await;
    }
}
