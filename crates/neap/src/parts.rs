//! Tasks that run as long as their role; each has a name for the one sentence about its end.

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A part that should run for ever has ended without saying why.
#[derive(Debug, thiserror::Error)]
#[error("{part} ended by itself; this is a fault of neap")]
pub struct Ended {
    pub part: &'static str,
}

pub struct Parts<E> {
    tasks: JoinSet<&'static str>,
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

    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(name, part.map(Ok::<(), E>));
    }

    pub fn spawn_fallible<F: Into<E>>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), F>> + Send + 'static,
    ) {
        let (failed, stop) = (self.failed.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            // A part need not know the stop signal: it is let go then.
            let result = tokio::select! {
                result = part => result,
                () = stop.cancelled() => return name,
            };
            if !stop.is_cancelled() {
                let error = result.err().map_or_else(|| Ended { part: name }.into(), Into::into);
                // The first failure is told; later ones follow from it.
                drop(failed.try_send(error));
            }
            name
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
