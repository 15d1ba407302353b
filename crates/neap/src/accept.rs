//! The loop in front of every small server of the roof: so many connections at once, each a task that ends with the server.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A pause after accept failed (out of file descriptors), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Hands each connection to `serve` until `stop`; beyond `limit` at once they wait in the listen queue.
pub async fn each<F>(
    listener: TcpListener,
    limit: usize,
    stop: CancellationToken,
    mut serve: impl FnMut(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(limit));
    let mut connections = JoinSet::new();
    let next = async || {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        (listener.accept().await, permit)
    };
    loop {
        let (accepted, permit) = tokio::select! {
            () = stop.cancelled() => return,
            next = next() => next,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let serving = serve(stream);
                connections.spawn(async move {
                    let _permit = permit;
                    serving.await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
