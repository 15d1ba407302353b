//! Bytes between two connections, both ways, without a buffer of their own while nothing moves.
//!
//! What is read goes out at once from the stack; only what the other side does not take yet is kept. So ten thousand
//! silent sockets cost no buffers, where the usual pair of buffers each would cost hundreds of megabytes.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{Frames, GOING_AWAY};

/// Most that is read at once, and kept for one direction, bytes.
const CHUNK: usize = 16 * 1024;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// Read but not yet taken by the other side; `sent` of it are.
    kept: Vec<u8>,
    sent: usize,
    /// Bytes have been written that may lie in a buffer of the writer's.
    unflushed: bool,
    ended: bool,
    done: bool,
    /// Bytes passed on.
    pub(super) bytes: u64,
    /// Follows the frames of a WebSocket, where a notice may have to be put in.
    frames: Option<Frames>,
    notice: Notice,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Notice {
    #[default]
    None,
    /// To be sent at the next end of a frame.
    Wanted,
    /// Sent: what comes after is nobody's.
    Given,
}

impl Half {
    /// What a WebSocket's server says.
    pub(super) fn of_websocket() -> Self {
        Self { frames: Some(Frames::default()), ..Self::default() }
    }

    pub(super) fn is_websocket(&self) -> bool {
        self.frames.is_some()
    }

    /// Asks for a notice that the server goes away; only a WebSocket has one.
    pub(super) fn give_notice(&mut self) {
        if self.notice == Notice::None && self.frames.is_some() {
            self.notice = Notice::Wanted;
        }
    }

    /// Moves what can be moved. Ready when the reader has ended and the writer has been told.
    pub(super) fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.poll_kept(cx, writer))?;
            if self.notice == Notice::Wanted && self.frames.as_ref().is_some_and(Frames::takes_notice) {
                self.notice = Notice::Given;
                self.kept.extend_from_slice(&GOING_AWAY);
                continue;
            }
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let mut room = [const { MaybeUninit::uninit() }; CHUNK];
            let mut buf = ReadBuf::uninit(&mut room);
            match Pin::new(&mut *reader).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(read) => read?,
            }
            let read = buf.filled();
            self.ended = read.is_empty();
            if self.notice != Notice::Given && !read.is_empty() {
                self.pass_on(cx, read, writer)?;
            }
        }
    }

    fn pass_on<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, read: &[u8], writer: &mut W) -> io::Result<()> {
        self.bytes += read.len() as u64;
        if let Some(frames) = &mut self.frames {
            frames.follow(read);
        }
        let mut rest = read;
        while !rest.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => rest = &rest[n..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.kept.extend_from_slice(rest);
                    break;
                }
            }
        }
        self.unflushed = true;
        Ok(())
    }

    fn poll_kept<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            let n = ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
            self.unflushed = true;
        }
        if !self.kept.is_empty() {
            // The memory goes too: most sockets are silent most of the time.
            self.kept = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn run(half: &mut Half, reader: &mut (impl AsyncRead + Unpin), writer: &mut (impl AsyncWrite + Unpin)) {
        std::future::poll_fn(|cx| half.poll(cx, reader, writer)).await.expect("copies");
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_in_order() {
        let (mut source, mut reader) = tokio::io::duplex(64 * 1024);
        let (mut writer, mut sink) = tokio::io::duplex(7);
        let data: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut half = Half::default();
        let mut got = Vec::new();
        tokio::join!(
            async {
                source.write_all(&data).await.expect("writes");
                source.shutdown().await.expect("closes");
            },
            run(&mut half, &mut reader, &mut writer),
            async {
                sink.read_to_end(&mut got).await.expect("reads");
            }
        );
        assert!(got == data);
        assert_eq!(half.bytes, data.len() as u64);
        assert_eq!(half.kept.capacity(), 0, "nothing is held at rest");
    }

    #[tokio::test]
    async fn a_notice_waits_for_the_end_of_a_frame() {
        let (mut source, mut reader) = tokio::io::duplex(1024);
        let (mut writer, mut sink) = tokio::io::duplex(1024);
        let mut half = Half::of_websocket();
        let step = |half: &mut Half, reader: &mut _, writer: &mut _| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(half.poll(&mut cx, reader, writer).is_pending());
        };
        source.write_all(&[0x82, 4, 1, 2]).await.expect("writes");
        step(&mut half, &mut reader, &mut writer);
        half.give_notice();
        step(&mut half, &mut reader, &mut writer);
        source.write_all(&[3, 4]).await.expect("writes");
        step(&mut half, &mut reader, &mut writer);
        source.write_all(&[0x82, 1, 9]).await.expect("writes");
        step(&mut half, &mut reader, &mut writer);
        drop(writer);
        let mut got = Vec::new();
        sink.read_to_end(&mut got).await.expect("reads");
        assert_eq!(got, [&[0x82, 4, 1, 2, 3, 4][..], &GOING_AWAY].concat(), "and is the last");
    }
}
