//! The body of an upstream's answer.
//!
//! Over HTTP/1.1 whoever reads the body drives the connection (see `http1`) and gives it back to the pool at
//! the end; dropping the body half-way closes the connection, which tells the upstream to stop.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::http1::Http1;
use super::http2::Stream;
use super::pool::Pool;
use crate::body::{Body, BodyError};
use crate::time::now;

pub(crate) struct UpstreamBody {
    incoming: Incoming,
    source: Source,
    idle: Option<Idle>,
    /// Told with the next poll, so that what came before it leaves first: the server drops what it has not yet
    /// written when a body fails.
    broken: Option<BodyError>,
}

enum Source {
    Http1(Http1, Rc<Pool>),
    Http2(#[expect(dead_code, reason = "counts the stream until it is dropped")] Stream),
    Done,
}

struct Idle {
    limit: Duration,
    heard: Instant,
    /// Made when the body makes us wait for the first time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl UpstreamBody {
    pub(super) fn http1(incoming: Incoming, connection: Http1, pool: &Rc<Pool>, idle: Option<Duration>) -> Body {
        if incoming.is_end_stream() {
            // No one will read this body, so nothing but this moment is left to give the connection back.
            let mut connection = connection;
            if connection.poll_idle(&mut Context::from_waker(std::task::Waker::noop())) {
                pool.put(connection);
            }
            return Body::empty();
        }
        Self::of(incoming, Source::Http1(connection, pool.clone()), idle)
    }

    pub(super) fn http2(incoming: Incoming, stream: Stream, idle: Option<Duration>) -> Body {
        Self::of(incoming, Source::Http2(stream), idle)
    }

    fn of(incoming: Incoming, source: Source, idle: Option<Duration>) -> Body {
        let idle = idle.map(|limit| Idle { limit, heard: now(), timer: None });
        Body::upstream(Self { incoming, source, idle, broken: None })
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        // Asking comes first: it tells the connection that there is room.
        let mut frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if frame.is_pending()
            && let Source::Http1(connection, _) = &mut self.source
        {
            connection.drive(cx);
            frame = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        match frame {
            Poll::Pending => self.poll_silence(cx),
            Poll::Ready(frame) => {
                if let Some(idle) = &mut self.idle {
                    idle.heard = now();
                }
                match frame {
                    Some(Err(error)) => self.fail(error.into(), cx),
                    Some(Ok(frame)) if !self.incoming.is_end_stream() => Poll::Ready(Some(Ok(frame))),
                    end => {
                        self.give_back(cx);
                        Poll::Ready(end.map(|frame| frame.map_err(BodyError::from)))
                    }
                }
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    fn give_back(&mut self, cx: &mut Context<'_>) {
        if let Source::Http1(mut connection, pool) = std::mem::replace(&mut self.source, Source::Done)
            && connection.poll_idle(cx)
        {
            pool.put(connection);
        }
    }

    fn fail<T>(&mut self, error: BodyError, cx: &mut Context<'_>) -> Poll<T> {
        self.source = Source::Done;
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_silence<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, BodyError>>> {
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        let timer = idle.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(idle.heard + idle.limit)));
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // The timer is not moved with each frame; it is when it rings that we look.
            let end = idle.heard + idle.limit;
            if now() >= end {
                let error = BodyError::Idle(idle.limit);
                return self.fail(error, cx);
            }
            timer.as_mut().reset(end);
        }
    }
}
