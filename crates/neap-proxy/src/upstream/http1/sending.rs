//! A request on its way out: its head, then its body as it comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::framing::Encoder;
use super::{Broken, head};
use crate::body::{Body, BodyError};
use crate::handler::Request;

/// Room for the head of most requests, whole.
const HEAD_BYTES: usize = 1000;

/// What is still to be written.
pub(super) struct Sending<B = Body> {
    /// The head, and what stands before a piece of the body or at its end.
    frame: Vec<u8>,
    /// How much of it has been written.
    written: usize,
    /// Behind that, a piece of the body as it came.
    data: Bytes,
    /// Behind that, the end of a chunk.
    behind: &'static [u8],
    body: Option<(B, Encoder)>,
    /// Something was written that TLS may hold back.
    unflushed: bool,
}

impl Sending {
    /// Takes the body out of the request; what is left of it can be sent again if there was none.
    pub(super) fn begin(request: &mut Request) -> Self {
        let mut frame = Vec::with_capacity(HEAD_BYTES);
        let encoder = head::write(request, &mut frame);
        let body = encoder.map(|encoder| (std::mem::replace(request.body_mut(), Body::empty()), encoder));
        Self::of(frame, body)
    }

    pub(super) fn nothing() -> Self {
        Self::of(Vec::new(), None)
    }
}

impl<B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin> Sending<B> {
    fn of(frame: Vec<u8>, body: Option<(B, Encoder)>) -> Self {
        Self { frame, written: 0, data: Bytes::new(), behind: b"", body, unflushed: false }
    }

    /// All of it has left.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.is_written() && !self.unflushed
    }

    fn is_written(&self) -> bool {
        self.frame.is_empty() && self.data.is_empty() && self.behind.is_empty()
    }

    /// Writes what can be written now.
    pub(super) fn poll<W: AsyncWrite + Unpin>(&mut self, wire: &mut W, cx: &mut Context<'_>) -> Result<(), Broken> {
        loop {
            // First what more there is: a head and a small body leave together.
            if self.data.is_empty() && self.behind.is_empty() {
                self.poll_body(cx)?;
            }
            if self.is_written() {
                if self.body.is_none() {
                    // An idle connection holds no room.
                    self.frame = Vec::new();
                }
                return self.poll_flush(wire, cx);
            }
            let frame = &self.frame[self.written..];
            let wrote = if self.data.is_empty() && self.behind.is_empty() {
                Pin::new(&mut *wire).poll_write(cx, frame)
            } else {
                let parts = [IoSlice::new(frame), IoSlice::new(&self.data), IoSlice::new(self.behind)];
                Pin::new(&mut *wire).poll_write_vectored(cx, &parts)
            };
            match wrote? {
                Poll::Pending => return Ok(()),
                Poll::Ready(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(n) => self.advance(n),
            }
        }
    }

    fn poll_flush<W: AsyncWrite + Unpin>(&mut self, wire: &mut W, cx: &mut Context<'_>) -> Result<(), Broken> {
        if self.unflushed && Pin::new(wire).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(())
    }

    fn advance(&mut self, n: usize) {
        self.unflushed = true;
        let of_frame = n.min(self.frame.len() - self.written);
        self.written += of_frame;
        if self.written == self.frame.len() {
            self.written = 0;
            self.frame.clear();
        }
        let of_data = (n - of_frame).min(self.data.len());
        self.data.advance(of_data);
        if self.data.is_empty() {
            self.data = Bytes::new();
        }
        self.behind = &self.behind[n - of_frame - of_data..];
    }

    /// The next piece of the body, if it is there. To be called when the last one has been written.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while let Some((body, encoder)) = &mut self.body {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Ok(()) };
            match frame.transpose().map_err(Broken::Body)? {
                None => self.end(&http::HeaderMap::new())?,
                Some(frame) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.behind = encoder.data(&data, &mut self.frame)?;
                        self.data = data;
                        if body.is_end_stream() {
                            // The end leaves with it.
                            self.behind = encoder.after_last()?;
                            self.body = None;
                        }
                        return Ok(());
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.end(&trailers)?;
                    }
                },
            }
        }
        Ok(())
    }

    fn end(&mut self, trailers: &http::HeaderMap) -> Result<(), Broken> {
        match self.body.take() {
            Some((_, encoder)) => encoder.end(trailers, &mut self.frame),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, and not every time.
    struct Narrow {
        taken: Vec<u8>,
        most: usize,
        vectored: bool,
        blocks: bool,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.blocks = !self.blocks;
            if self.blocks {
                return Poll::Pending;
            }
            let n = buf.len().min(self.most);
            self.taken.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            let buf = if self.vectored { &all[..] } else { first };
            self.poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn sent<B>(body: B, encoder: Encoder, most: usize, vectored: bool) -> Result<String, Broken>
    where
        B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
    {
        let mut sending = Sending::of(b"head ".to_vec(), Some((body, encoder)));
        let mut wire = Narrow { taken: Vec::new(), most, vectored, blocks: false };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while !sending.is_done() {
            sending.poll(&mut wire, &mut cx)?;
        }
        assert_eq!(sending.frame.capacity(), 0, "nothing is held");
        Ok(String::from_utf8(wire.taken).expect("text"))
    }

    fn pieces(trailers: bool) -> impl http_body::Body<Data = Bytes, Error = BodyError> + Unpin {
        let sum = http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("1"))]);
        let data = ["one", "", "twelve bytes"].map(|data| http_body::Frame::data(Bytes::from_static(data.as_bytes())));
        let all = data.into_iter().chain(trailers.then(|| http_body::Frame::trailers(sum)));
        http_body_util::StreamBody::new(futures::stream::iter(all.map(Ok)))
    }

    #[test]
    fn nothing_is_lost_however_little_is_taken() {
        for most in [1, 2, 3, 5, 17, 1000] {
            for vectored in [true, false] {
                let check = |body, encoder, all: &str| {
                    assert_eq!(sent(body, encoder, most, vectored).expect("is sent"), all, "{most} at once");
                };
                check(pieces(false), Encoder::Length(15), "head onetwelve bytes");
                let chunks = "head 3\r\none\r\nc\r\ntwelve bytes\r\n0\r\n";
                check(pieces(false), Encoder::Chunked, &format!("{chunks}\r\n"));
                check(pieces(true), Encoder::Chunked, &format!("{chunks}etag: 1\r\n\r\n"));
            }
        }
    }

    #[test]
    fn a_body_that_is_not_what_was_announced_is_a_fault() {
        for length in [14, 16] {
            let broken = sent(pieces(false), Encoder::Length(length), 1000, true).expect_err("is no such body");
            assert!(matches!(broken, Broken::Length), "{broken}");
        }
    }
}
