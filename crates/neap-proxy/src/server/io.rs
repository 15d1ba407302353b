//! A client's byte stream with what is needed to judge it: bytes read ahead to tell HTTP/1 from h2, and notes of
//! whether it is in the middle of a head and whether it takes our bytes.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::connection::Place;

/// What an h2 client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes taken at once from a client that comes back after a silence: most heads, whole.
const AHEAD: usize = 2048;
/// Bytes read at once from a client that was answered before it had sent all.
const LINGER_BYTES: usize = 16 * 1024;

/// What a connection is at. Flags only: the sweep, which comes by once a second, adds the times.
///
/// Atomic because hyper asks for streams that may move between threads; in fact none does.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Bytes have come that are no whole head yet.
    pub(super) reading: AtomicBool,
    /// The client does not take the bytes that we want to send.
    pub(super) stalled: AtomicBool,
    /// It has taken some since the last sweep.
    pub(super) moved: AtomicBool,
    /// The last bytes that came were the end of a head, so that nothing of the next one can have come with them.
    pub(super) whole: AtomicBool,
}

impl Notes {
    /// The head is complete.
    pub(super) fn head_complete(&self) {
        self.reading.store(false, Ordering::Relaxed);
    }

    fn came(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.reading.store(true, Ordering::Relaxed);
            self.whole.store(bytes.ends_with(b"\r\n\r\n"), Ordering::Relaxed);
        }
    }
}

/// What may know that its other end sends no more, although nobody has read that far.
pub(crate) trait HangsUp {
    /// Whether [`HangsUp::poll_end`] tells. Otherwise whoever wants to know must read.
    const TELLS: bool = false;

    fn has_hung_up(&self) -> bool;

    /// Whether its other end has ended, with nothing before that is left to be read. If not, the task is woken when it does.
    fn poll_end(&self, _cx: &mut Context<'_>) -> bool {
        false
    }
}

impl HangsUp for TcpStream {
    const TELLS: bool = true;

    fn poll_end(&self, cx: &mut Context<'_>) -> bool {
        let mut room = [MaybeUninit::uninit()];
        let mut buf = ReadBuf::uninit(&mut room);
        // The kernel is asked only when something has come.
        matches!(self.poll_peek(cx, &mut buf), Poll::Ready(Ok(0) | Err(_)))
    }

    fn has_hung_up(&self) -> bool {
        // The stream's readiness has the kernel's word for it; nothing is waited for.
        matches!(self.ready(Interest::READABLE).now_or_never(), Some(Ok(ready)) if ready.is_read_closed())
    }
}

impl HangsUp for TlsStream<TcpStream> {
    fn has_hung_up(&self) -> bool {
        self.get_ref().0.has_hung_up()
    }
}

#[cfg(test)]
impl HangsUp for tokio::io::DuplexStream {
    fn has_hung_up(&self) -> bool {
        false
    }
}

/// A stream that is lent to hyper and can be had back.
#[derive(Debug)]
pub(super) struct Lent<T>(Arc<Mutex<Loan<T>>>);

#[derive(Debug)]
struct Loan<T> {
    stream: Stream<T>,
    /// The borrower is told to finish, but not to close.
    recalled: bool,
}

/// A stream that came back.
pub(super) enum Returned<T> {
    /// It was recalled: the client knows of nothing.
    Open(Stream<T>),
    /// The borrower has told the client that nothing more comes.
    Closed(Stream<T>),
}

/// What gets it back.
#[derive(Debug)]
pub(super) struct Lender<T>(Arc<Mutex<Loan<T>>>);

impl<T> Lent<T> {
    pub(super) fn new(stream: Stream<T>) -> (Self, Lender<T>) {
        let loan = Arc::new(Mutex::new(Loan { stream, recalled: false }));
        (Self(loan.clone()), Lender(loan))
    }

    /// One thread has it, so nobody ever waits here.
    fn with<R>(&self, act: impl FnOnce(&mut Loan<T>) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: HangsUp + 'static> Lender<T> {
    /// Whether the client has hung up, for as long as the stream is lent.
    pub(super) fn hung_up(&self) -> impl Fn() -> bool + 'static {
        let loan = Arc::downgrade(&self.0);
        move || {
            let Some(loan) = loan.upgrade() else { return false };
            loan.lock().unwrap_or_else(PoisonError::into_inner).stream.inner.has_hung_up()
        }
    }
}

impl<T: HangsUp> Lender<T> {
    /// See [`HangsUp::poll_end`].
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> bool {
        T::TELLS && self.0.lock().unwrap_or_else(PoisonError::into_inner).stream.inner.poll_end(cx)
    }
}

impl<T> Lender<T> {
    /// From now on closing does nothing.
    pub(super) fn recall(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).recalled = true;
    }

    /// `None` while it is still lent, as to whoever it was handed to by an upgrade.
    pub(super) fn take_back(self) -> Option<Returned<T>> {
        let loan = Arc::into_inner(self.0)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        Some(if loan.recalled { Returned::Open(loan.stream) } else { Returned::Closed(loan.stream) })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lent<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|loan| Pin::new(&mut loan.stream).poll_read(cx, buf))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lent<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|loan| Pin::new(&mut loan.stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|loan| Pin::new(&mut loan.stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.with(|loan| loan.stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|loan| Pin::new(&mut loan.stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|loan| if loan.recalled { Poll::Ready(Ok(())) } else { Pin::new(&mut loan.stream).poll_shutdown(cx) })
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Stream<T> {
    inner: T,
    ahead: Vec<u8>,
    notes: Arc<Notes>,
    _place: Option<Place>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream<T> {
    pub(super) fn new(inner: T, notes: Arc<Notes>, place: Option<Place>) -> Self {
        Self { inner, ahead: Vec::new(), notes, _place: place }
    }

    /// Waits for the client's next bytes and keeps them for the reader, without any room of its own while it waits. False:
    /// there will be none.
    pub(super) async fn next_bytes(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| {
            let mut room = [const { MaybeUninit::uninit() }; AHEAD];
            let mut buf = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            self.notes.came(buf.filled());
            self.ahead = buf.filled().to_vec();
            Poll::Ready(Ok(!self.ahead.is_empty()))
        })
        .await
    }

    /// Reads and forgets what the client still sends, until it ends, or for so long. Closed with that unread, the kernel would
    /// call the connection broken, and a client that writes before it reads would never see its answer.
    pub(super) async fn linger(mut self, most: Duration) {
        let forget = async {
            let mut room = vec![0; LINGER_BYTES];
            drop(self.inner.shutdown().await);
            while self.inner.read(&mut room).await.is_ok_and(|n| n > 0) {}
        };
        // Who goes on for longer than that does not look for an answer.
        drop(tokio::time::timeout(most, forget).await);
    }

    /// Reads until it is certain whether the client speaks h2. No method of HTTP/1 begins with `PRI `, so this
    /// rarely needs more than the first packet.
    pub(super) async fn speaks_h2(&mut self) -> io::Result<bool> {
        let mut read = [0; PREFACE.len()];
        let mut length = 0;
        while length < PREFACE.len() && read[..length] == PREFACE[..length] {
            let n = self.inner.read(&mut read[length..]).await?;
            if n == 0 {
                break;
            }
            length += n;
            self.notes.came(&read[..length]);
        }
        self.ahead = read[..length].to_vec();
        Ok(read[..length] == PREFACE[..])
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead.drain(..n);
            if !this.ahead.is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.ahead = Vec::new();
            // With what follows, if that is there: a reader that gets part of a head doubles its room. An end is still there
            // when it reads again, and a failure reads as one then.
            if buf.remaining() > 0 && Pin::new(&mut this.inner).poll_read(cx, buf).is_ready() {
                this.notes.came(&buf.filled()[before..]);
            }
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        this.notes.came(&buf.filled()[before..]);
        result
    }
}

impl<T: AsyncWrite + Unpin> Stream<T> {
    fn note<R>(&self, result: Poll<R>) -> Poll<R> {
        if result.is_pending() {
            self.notes.stalled.store(true, Ordering::Relaxed);
        } else if self.notes.stalled.load(Ordering::Relaxed) {
            self.notes.stalled.store(false, Ordering::Relaxed);
            self.notes.moved.store(true, Ordering::Relaxed);
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
    use super::*;

    async fn check(pieces: &[&[u8]], h2: bool) {
        let (mut client, server) = tokio::io::duplex(64);
        let mut stream = Stream::new(server, Arc::default(), None);
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
