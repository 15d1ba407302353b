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

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::copy::Half;
use crate::body::{OnEnd, Outcome};
use crate::time::now;
use crate::upstream::{Switched, Upstream};

/// How long the client's connection may take to leave HTTP once the 101 is on its way.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client that was told to go may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one side may be silent after the other has ended: a browser's tab that does not answer a close would hold an
/// instance for ever. The `timeout client-fin` of HAProxy's examples.
const HALF_CLOSED: Duration = Duration::from_secs(30);
/// The same where a client has ended and no WebSocket is spoken: the application may still be at work for its answer.
const HALF_CLOSED_WORKING: Duration = Duration::from_secs(600);

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
    let client = tokio::time::timeout(SWITCH_TIMEOUT, client).await?.map_err(io::Error::other)?;
    let mut joined = Joined {
        client: TokioIo::new(client),
        upstream: switched,
        up: Half::default(),
        down: if websocket { Half::of_websocket() } else { Half::default() },
        heard: Cell::new(now()),
        leaving: websocket.then(|| Box::pin(leaving.cancelled_owned())),
        cut_at: None,
        broken: None,
        half_closed: None,
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

/// Both directions.
struct Joined<C, U> {
    client: C,
    upstream: U,
    up: Half,
    down: Half,
    /// When something was read from either side.
    heard: Cell<Instant>,
    /// Resolves when the server goes away; `None` once it has, and for what is no WebSocket.
    leaving: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    cut_at: Option<Pin<Box<tokio::time::Sleep>>>,
    /// The way to the application has failed; what it has said before is still passed on.
    broken: Option<io::Error>,
    /// Since one side has ended: when the other must have been heard.
    half_closed: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<C, U> Joined<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if let Some(leaving) = &mut self.leaving
            && leaving.as_mut().poll(cx).is_ready()
        {
            self.leaving = None;
            self.down.give_notice();
            self.cut_at = Some(Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
        }
        let mut reader = Heard { stream: &mut self.upstream, heard: &self.heard, failed: false };
        let down = self.down.poll(cx, &mut reader, &mut self.client)?.is_ready();
        let mut up = true;
        if self.broken.is_none() {
            let mut reader = Heard { stream: &mut self.client, heard: &self.heard, failed: false };
            match self.up.poll(cx, &mut reader, &mut self.upstream) {
                // Without the client there is nobody to pass anything on to.
                Poll::Ready(Err(error)) if reader.failed => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => self.broken = Some(error),
                polled => up = polled.is_ready(),
            }
        }
        if up && down {
            return Poll::Ready(match self.broken.take() {
                Some(error) => Err(error),
                None => Ok(self.up.bytes + self.down.bytes),
            });
        }
        if up || down {
            let working = up && self.broken.is_none() && !self.down.is_websocket();
            let limit = if working { HALF_CLOSED_WORKING } else { HALF_CLOSED };
            if self.poll_silence(cx, limit).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        if let Some(cut) = &mut self.cut_at {
            ready!(cut.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<C, U> Joined<C, U> {
    /// Ready when nothing was heard for so long.
    fn poll_silence(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let end = self.heard.get() + limit;
        let timer = self.half_closed.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        while timer.as_mut().poll(cx).is_ready() {
            if now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

/// Remembers when something was read.
struct Heard<'a, T> {
    stream: &'a mut T,
    heard: &'a Cell<Instant>,
    /// Reading was what failed.
    failed: bool,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut *self.stream).poll_read(cx, buf));
        self.failed = read.is_err();
        self.heard.set(now());
        Poll::Ready(read)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn joined<U>(client: DuplexStream, upstream: U, websocket: bool) -> Joined<DuplexStream, U> {
        Joined {
            client,
            upstream,
            up: Half::default(),
            down: if websocket { Half::of_websocket() } else { Half::default() },
            heard: Cell::new(now()),
            leaving: None,
            cut_at: None,
            broken: None,
            half_closed: None,
        }
    }

    /// Takes nothing, and has said something.
    struct Dead(&'static [u8]);

    impl AsyncRead for Dead {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buf.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Dead {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_last_words_of_an_application_reach_the_client() {
        let (mut far, client) = duplex(64);
        far.write_all(b"still here?").await.expect("writes");
        let mut joined = joined(client, Dead(b"goodbye"), true);
        let ended = std::future::poll_fn(|cx| joined.poll(cx)).await;
        assert_eq!(ended.expect_err("the way up is broken").kind(), io::ErrorKind::BrokenPipe);
        drop(joined);
        let mut said = Vec::new();
        far.read_to_end(&mut said).await.expect("reads");
        assert_eq!(said, b"goodbye");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_an_end_is_cut() {
        let check = async |client_ends: bool, websocket: bool, after: u64| {
            let (mut far_client, client) = duplex(64);
            let (mut far_upstream, upstream) = duplex(64);
            let mut joined = joined(client, upstream, websocket);
            let (ends, stays) =
                if client_ends { (&mut far_client, &mut far_upstream) } else { (&mut far_upstream, &mut far_client) };
            ends.shutdown().await.expect("ends");
            let began = now();
            let tunnel = std::future::poll_fn(|cx| joined.poll(cx));
            let talk = async {
                // As long as it talks it stays.
                tokio::time::sleep(Duration::from_secs(20)).await;
                stays.write_all(b"word").await.expect("writes");
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = tunnel => assert_eq!(ended.expect_err("is cut").kind(), io::ErrorKind::TimedOut),
                () = talk => {}
            }
            assert_eq!(began.elapsed().as_secs(), 20 + after, "{client_ends} {websocket}");
        };
        check(false, true, 30).await;
        check(true, true, 30).await;
        check(false, false, 30).await;
        check(true, false, 600).await;
    }
}
