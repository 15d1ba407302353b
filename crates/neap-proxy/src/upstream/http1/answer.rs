//! The body of an answer, and the way back of its connection.

use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::connection::Connection;
use super::framing::Decoder;
use crate::body::BodyError;
use crate::upstream::pool::Pool;

/// Whoever reads it works the connection. At its end the connection goes back to its pool; dropped before, it is closed, which
/// tells the other side to stop.
pub(crate) struct Answer {
    /// `None` when it has gone.
    connection: Option<Connection>,
    pool: Rc<Pool>,
    body: Decoder,
}

impl Answer {
    /// If there is no body, or if all of it has come, the connection goes back at once.
    pub(super) fn new(connection: Connection, pool: &Rc<Pool>, body: Decoder) -> Self {
        let mut answer = Self { connection: Some(connection), pool: pool.clone(), body };
        if answer.body.is_done() {
            // No one will read it, so nothing but this moment is left.
            answer.give_back(&mut Context::from_waker(Waker::noop()));
        }
        answer
    }

    /// The whole body, if it has come with its head.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        let connection = self.connection.as_mut()?;
        let Decoder::Length(length) = self.body else { return None };
        if connection.ahead.len() as u64 != length {
            return None;
        }
        let whole = std::mem::take(&mut connection.ahead);
        self.body = Decoder::Done;
        self.give_back(&mut Context::from_waker(Waker::noop()));
        Some(whole)
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        connection.poll_send(cx)?;
        loop {
            let frame = self.body.decode(&mut connection.ahead)?;
            if self.body.is_done() {
                self.give_back(cx);
                return Poll::Ready(frame.map(Ok));
            }
            if let Some(frame) = frame {
                return Poll::Ready(Some(Ok(frame)));
            }
            if ready!(connection.poll_fill(cx, self.body.expects()))? == 0 {
                self.body.end()?;
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_done()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn give_back(&mut self, cx: &mut Context<'_>) {
        if let Some(mut connection) = self.connection.take()
            && connection.poll_idle(cx)
        {
            self.pool.put(connection);
        }
    }
}
