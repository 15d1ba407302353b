//! Two connections that left HTTP (WebSocket and other upgrades), joined byte by byte.
//!
//! No request limit cuts a tunnel; only silence does, when an idle limit is set. The place taken at the target
//! is held until the tunnel ends. When the server goes away a WebSocket is told so (status 1001) between two frames.

mod copy;
pub(crate) mod frames;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::copy::Half;
use crate::body::{OnEnd, Outcome};
use crate::time::now;
use crate::upstream::{Switched, Upstream};

/// How long the two sides may take to leave HTTP once the 101 is on its way.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client that was told to go may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn spawn<H: OnEnd + 'static>(
    upstream: &Upstream,
    client: OnUpgrade,
    switched: Switched,
    websocket: bool,
    idle: Option<Duration>,
    hold: H,
) {
    let open = upstream.metrics().tunnels.clone();
    open.inc();
    let leaving = upstream.leaving().clone();
    let mut end = End { hold, outcome: Outcome::Dropped, bytes: 0 };
    upstream.tasks().spawn_local(async move {
        match join(client, switched, websocket, idle, leaving).await {
            Ok(bytes) => {
                end.outcome = Outcome::Complete;
                end.bytes = bytes;
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

async fn join(
    client: OnUpgrade,
    switched: Switched,
    websocket: bool,
    idle: Option<Duration>,
    leaving: CancellationToken,
) -> io::Result<u64> {
    let (client, upstream) = Box::pin(switch(client, switched)).await?;
    let mut joined = Joined {
        client: TokioIo::new(client),
        upstream: TokioIo::new(upstream),
        up: Half::default(),
        down: if websocket { Half::of_websocket() } else { Half::default() },
        heard: Cell::new(now()),
        leaving: websocket.then(|| Box::pin(leaving.cancelled_owned())),
        cut_at: None,
    };
    match idle {
        None => std::future::poll_fn(|cx| joined.poll(cx)).await,
        Some(limit) => {
            let mut silence = Box::pin(tokio::time::sleep(limit));
            std::future::poll_fn(|cx| {
                if let Poll::Ready(result) = joined.poll(cx) {
                    return Poll::Ready(result);
                }
                loop {
                    ready!(silence.as_mut().poll(cx));
                    let end = joined.heard.get() + limit;
                    if now() >= end {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    silence.as_mut().reset(end);
                }
            })
            .await
        }
    }
}

/// Waits until both sides have left HTTP. Boxed by its caller: what it needs is not needed for the tunnel's life.
async fn switch(client: OnUpgrade, switched: Switched) -> io::Result<(Upgraded, Upgraded)> {
    let (upgrade, handing_over) = switched.split();
    let both = async { tokio::join!(client, upgrade, handing_over) };
    let (client, upstream, ()) = tokio::time::timeout(SWITCH_TIMEOUT, both).await?;
    Ok((client.map_err(io::Error::other)?, upstream.map_err(io::Error::other)?))
}

/// Both directions.
struct Joined {
    client: TokioIo<Upgraded>,
    upstream: TokioIo<Upgraded>,
    up: Half,
    down: Half,
    /// When something was read from either side.
    heard: Cell<Instant>,
    /// Resolves when the server goes away; `None` once it has, and for what is no WebSocket.
    leaving: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    cut_at: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Joined {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if let Some(leaving) = &mut self.leaving
            && leaving.as_mut().poll(cx).is_ready()
        {
            self.leaving = None;
            self.down.give_notice();
            self.cut_at = Some(Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
        }
        let up = self.up.poll(cx, &mut Heard(&mut self.client, &self.heard), &mut self.upstream)?;
        let down = self.down.poll(cx, &mut Heard(&mut self.upstream, &self.heard), &mut self.client)?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(self.up.bytes + self.down.bytes));
        }
        if let Some(cut) = &mut self.cut_at {
            ready!(cut.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

/// Remembers when something was read.
struct Heard<'a, T>(&'a mut T, &'a Cell<Instant>);

impl<T: AsyncRead + Unpin> AsyncRead for Heard<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut *self.0).poll_read(cx, buf))?;
        self.1.set(now());
        Poll::Ready(Ok(()))
    }
}
