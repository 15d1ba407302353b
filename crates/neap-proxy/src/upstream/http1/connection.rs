//! One connection.

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Broken;
use super::head::{self, Head};
use super::sending::Sending;
use crate::error::ProxyError;
use crate::handler::Request;
use crate::upstream::connect::{self, Wire};
use crate::upstream::patient::Patient;
use crate::upstream::pool::Pool;

/// Read at once where little is expected: nearly all answers of services, head and body.
const LITTLE: usize = 8 * 1024;
/// Read at once where more is known or likely to come.
const MUCH: usize = 64 * 1024;

/// Dropping it closes it, which is how a request in progress is called off.
pub(crate) struct Connection {
    wire: Patient<Wire>,
    sending: Sending,
    /// Bytes that have come and are not read yet.
    pub(super) ahead: Bytes,
    /// The last time, as much came as there was room for.
    flows: bool,
    max_head_bytes: usize,
    /// How long it may be kept when the answer in progress has ended, if that was said.
    pub(super) keep_alive: Option<Duration>,
}

impl Connection {
    pub(super) async fn open(pool: &Pool) -> Result<Self, ProxyError> {
        let wire = Patient::new(connect::connect(pool.target, &pool.config).await?);
        pool.metrics.upstream_connections.inc();
        let max_head_bytes = pool.config.max_head_bytes;
        let (sending, ahead) = (Sending::nothing(), Bytes::new());
        Ok(Self { wire, sending, ahead, flows: false, max_head_bytes, keep_alive: None })
    }

    pub(crate) fn keep_alive(&self) -> Option<Duration> {
        self.keep_alive
    }

    /// Whether it could carry a request now, as far as is known: the one before has been dealt with, both ways.
    pub(crate) fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        let may_be_kept = self.keep_alive != Some(Duration::ZERO) && !self.wire.is_deaf();
        may_be_kept && self.sending.is_done() && self.poll_silent(cx)
    }

    /// Whether the other side has said nothing, not even goodbye.
    pub(super) fn poll_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let mut room = [MaybeUninit::uninit()];
        let mut buf = ReadBuf::uninit(&mut room);
        let reads = std::future::poll_fn(|cx| Pin::new(&mut self.wire).poll_read(cx, &mut buf));
        // A task that has done much at once would be told that nothing came.
        self.ahead.is_empty() && pin!(tokio::task::unconstrained(reads)).poll(cx).is_pending()
    }

    /// What is in the request will be written; its body is taken out of it.
    pub(super) fn begin(&mut self, request: &mut Request) {
        self.sending = Sending::begin(request);
        self.flows = false;
    }

    /// Writes what can be written of the request in progress.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        if self.sending.is_done() { Ok(()) } else { self.sending.poll(&mut self.wire, cx) }
    }

    /// Writes the request and reads the head of its answer.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, request: &mut Request) -> Poll<Result<Head, Broken>> {
        self.poll_send(cx)?;
        loop {
            // In bytes that were looked at before no head ended.
            let seen = self.ahead.len();
            if ready!(self.poll_fill(cx, 0))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
            let mut may_end = seen == 0 || head::may_end(&self.ahead, seen);
            while may_end && !self.ahead.is_empty() {
                let Some(head) = head::read(&self.ahead, request)? else { break };
                self.ahead.advance(head.length);
                match head.response.status() {
                    StatusCode::SWITCHING_PROTOCOLS if !self.sending.is_done() => {
                        return Poll::Ready(Err(Broken::Malformed("it switches protocols amid a request")));
                    }
                    // What comes before the answer proper is between the two of us (RFC 9110, section 15.2).
                    status if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS => may_end = true,
                    _ => return Poll::Ready(Ok(head)),
                }
            }
            if self.ahead.len() >= self.max_head_bytes {
                return Poll::Ready(Err(Broken::Malformed("its head is too large")));
            }
        }
    }

    /// Reads what there is behind what has come before. Zero: the other side has ended.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, expected: u64) -> Poll<Result<usize, Broken>> {
        let much = self.flows || expected > LITTLE as u64;
        let read = ready!(if much { self.poll_much(cx, expected) } else { self.poll_little(cx) })?;
        self.flows = read >= LITTLE;
        Poll::Ready(Ok(read))
    }

    /// Through the stack: waiting takes no room, and what came takes as much as it is long.
    fn poll_little(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; LITTLE];
        let mut buf = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.wire).poll_read(cx, &mut buf))?;
        let came = buf.filled();
        self.ahead = if self.ahead.is_empty() {
            Bytes::copy_from_slice(came)
        } else {
            Bytes::from([&self.ahead[..], came].concat())
        };
        Poll::Ready(Ok(came.len()))
    }

    /// Into its own room, without a copy.
    fn poll_much(&mut self, cx: &mut Context<'_>, expected: u64) -> Poll<io::Result<usize>> {
        ready!(self.wire.get_ref().poll_readable(cx))?;
        let room = match expected {
            0 => MUCH,
            _ => usize::try_from(expected).map_or(MUCH, |expected| expected.clamp(LITTLE, MUCH)),
        };
        let mut all = BytesMut::with_capacity(self.ahead.len() + room);
        all.extend_from_slice(&self.ahead);
        let read = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.wire), cx, &mut all))?;
        // Whoever reads it may be slow, and must not hold room that little is in.
        self.ahead = if all.len() < LITTLE { Bytes::copy_from_slice(&all) } else { all.freeze() };
        Poll::Ready(Ok(read))
    }
}

/// A connection that left HTTP.
pub(crate) struct Switched {
    wire: Patient<Wire>,
    /// Came with the head.
    ahead: Bytes,
}

impl Switched {
    pub(super) fn new(connection: Connection) -> Self {
        Self { wire: connection.wire, ahead: connection.ahead }
    }
}

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.wire).poll_read(cx, buf);
        }
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
