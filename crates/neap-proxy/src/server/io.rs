//! A client's byte stream with what is needed to judge it: bytes read ahead to tell HTTP/1 from h2, and notes of
//! when it began a head and when it stopped taking our bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::time::now;

/// What an h2 client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Notes about a connection, in milliseconds since it was accepted, plus one; zero is "not".
///
/// Atomic because hyper asks for streams that may move between threads; in fact none does.
#[derive(Debug)]
pub(super) struct Notes {
    accepted: Instant,
    reading_since: AtomicU64,
    stalled_since: AtomicU64,
}

impl Notes {
    pub(super) fn new(accepted: Instant) -> Arc<Self> {
        Arc::new(Self { accepted, reading_since: AtomicU64::new(0), stalled_since: AtomicU64::new(0) })
    }

    /// Since when bytes of a head have been coming in, in milliseconds before `now`.
    pub(super) fn reading_for(&self, now: Instant) -> Option<u64> {
        self.elapsed(&self.reading_since, now)
    }

    /// Since when the client has not taken a byte that we want to send.
    pub(super) fn stalled_for(&self, now: Instant) -> Option<u64> {
        self.elapsed(&self.stalled_since, now)
    }

    /// The head is complete.
    pub(super) fn head_complete(&self) {
        self.reading_since.store(0, Ordering::Relaxed);
    }

    fn mark(&self, since: &AtomicU64) {
        if since.load(Ordering::Relaxed) == 0 {
            since.store(self.millis(now()) + 1, Ordering::Relaxed);
        }
    }

    fn elapsed(&self, since: &AtomicU64, now: Instant) -> Option<u64> {
        let since = since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.millis(now).saturating_sub(since))
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.accepted).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Stream<T> {
    inner: T,
    ahead: Vec<u8>,
    notes: Arc<Notes>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream<T> {
    pub(super) fn new(inner: T, notes: Arc<Notes>) -> Self {
        Self { inner, ahead: Vec::new(), notes }
    }

    /// Reads until it is certain whether the client speaks h2. No method of HTTP/1 begins with `PRI `, so this
    /// rarely needs more than the first packet.
    pub(super) async fn speaks_h2(&mut self) -> io::Result<bool> {
        use tokio::io::AsyncReadExt;
        let mut read = [0; PREFACE.len()];
        let mut length = 0;
        while length < PREFACE.len() && read[..length] == PREFACE[..length] {
            let n = self.inner.read(&mut read[length..]).await?;
            if n == 0 {
                break;
            }
            self.notes.mark(&self.notes.reading_since);
            length += n;
        }
        self.ahead = read[..length].to_vec();
        Ok(read[..length] == PREFACE[..])
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead.drain(..n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.notes.mark(&this.notes.reading_since);
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> Stream<T> {
    fn note<R>(&self, result: Poll<R>) -> Poll<R> {
        if result.is_pending() {
            self.notes.mark(&self.notes.stalled_since);
        } else {
            self.notes.stalled_since.store(0, Ordering::Relaxed);
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn check(pieces: &[&[u8]], h2: bool) {
        let (mut client, server) = tokio::io::duplex(64);
        let mut stream = Stream::new(server, Notes::new(now()));
        let write = async {
            for piece in pieces {
                client.write_all(piece).await.expect("writes");
                tokio::task::yield_now().await;
            }
            client.shutdown().await.expect("closes");
        };
        let read = async {
            assert_eq!(stream.speaks_h2().await.expect("reads"), h2);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("reads");
            assert_eq!(all, pieces.concat(), "nothing is lost");
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn tells_the_protocols_apart() {
        check(&[b"GET / HTTP/1.1\r\n\r\n"], false).await;
        check(&[b"P", b"OST / HTTP/1.1\r\n\r\n"], false).await;
        check(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"rest"], true).await;
        check(&[b"PRI * HTTP", b"/2.0\r\n\r\nSM\r\n", b"\r\n"], true).await;
        check(&[b"PRI * HTTP/1.1\r\n\r\n"], false).await;
        check(&[], false).await;
    }
}
