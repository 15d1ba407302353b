//! Two connections that left HTTP (WebSocket and other upgrades), joined byte by byte.
//!
//! No request limit cuts a tunnel; only silence does, when an idle limit is set. The place taken at the target
//! is held until the tunnel ends.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::Instant;

use crate::body::{OnEnd, Outcome};
use crate::time::now;
use crate::upstream::{Switched, Upstream};

/// Buffer of each direction, bytes.
const BUFFER: usize = 16 * 1024;
/// How long the two sides may take to leave HTTP once the 101 is on its way.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn spawn<H: OnEnd + 'static>(
    upstream: &Upstream,
    client: OnUpgrade,
    switched: Switched,
    idle: Option<Duration>,
    hold: H,
) {
    let open = upstream.metrics().tunnels.clone();
    open.inc();
    let mut end = End { hold, outcome: Outcome::Dropped, bytes: 0 };
    upstream.tasks().spawn_local(async move {
        match join(client, switched, idle).await {
            Ok((up, down)) => {
                end.outcome = Outcome::Complete;
                end.bytes = up + down;
            }
            Err(error) => {
                end.outcome = Outcome::Failed;
                tracing::debug!(error = &error as &dyn std::error::Error, "tunnel ended");
            }
        }
        drop(end);
        open.dec();
    });
}

/// Tells the hold how it ended, also when the task is dropped at the end of a drain.
struct End<H: OnEnd> {
    hold: H,
    outcome: Outcome,
    bytes: u64,
}

impl<H: OnEnd> Drop for End<H> {
    fn drop(&mut self) {
        self.hold.on_end(self.outcome, self.bytes);
    }
}

async fn join(client: OnUpgrade, switched: Switched, idle: Option<Duration>) -> io::Result<(u64, u64)> {
    let (upgrade, handing_over) = switched.split();
    let both = async { tokio::join!(client, upgrade, handing_over) };
    let (client, upstream, ()) = tokio::time::timeout(SWITCH_TIMEOUT, both).await?;
    let heard = Rc::new(Cell::new(now()));
    let mut client = Heard { io: TokioIo::new(client.map_err(io::Error::other)?), at: heard.clone() };
    let mut upstream = Heard { io: TokioIo::new(upstream.map_err(io::Error::other)?), at: heard.clone() };
    let copy = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER);
    match idle {
        None => copy.await,
        Some(limit) => tokio::select! {
            copied = copy => copied,
            () = silence(&heard, limit) => Err(io::ErrorKind::TimedOut.into()),
        },
    }
}

async fn silence(heard: &Cell<Instant>, limit: Duration) {
    while now() < heard.get() + limit {
        tokio::time::sleep_until(heard.get() + limit).await;
    }
}

/// Remembers when something was read from either side.
struct Heard<T> {
    io: T,
    at: Rc<Cell<Instant>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.at.set(now());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
