//! The body of an upstream's answer, and how long it may be silent.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::http1::Answer;
use super::http2::Stream;
use crate::body::{Body, BodyError, poll_stream};
use crate::time::now;

pub(crate) struct UpstreamBody {
    source: Source,
    idle: Option<Idle>,
    /// Told with the next poll, so that what came before it leaves first: the server drops what it has not yet
    /// written when a body fails.
    broken: Option<BodyError>,
}

enum Source {
    Http1(Answer),
    Http2(Incoming, #[expect(dead_code, reason = "counts the stream until it is dropped")] Stream),
    Done,
}

struct Idle {
    limit: Duration,
    heard: Instant,
    /// Made when the body makes us wait for the first time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl UpstreamBody {
    pub(super) fn http1(mut answer: Answer, idle: Option<Duration>) -> Body {
        match answer.take_whole() {
            Some(whole) => Body::full(whole),
            None if answer.is_end_stream() => Body::empty(),
            None => Self::of(Source::Http1(answer), idle),
        }
    }

    pub(super) fn http2(incoming: Incoming, stream: Stream, idle: Option<Duration>) -> Body {
        if incoming.is_end_stream() { Body::empty() } else { Self::of(Source::Http2(incoming, stream), idle) }
    }

    fn of(source: Source, idle: Option<Duration>) -> Body {
        let idle = idle.map(|limit| Idle { limit, heard: now(), timer: None });
        Body::upstream(Self { source, idle, broken: None })
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match &mut self.source {
            Source::Http1(answer) => answer.poll_frame(cx),
            Source::Http2(incoming, _) => poll_stream(incoming, cx),
            Source::Done => Poll::Ready(None),
        };
        let Poll::Ready(frame) = frame else { return self.poll_silence(cx) };
        if let Some(idle) = &mut self.idle {
            idle.heard = now();
        }
        match frame {
            Some(Err(error)) => self.fail(error, cx),
            frame => {
                if frame.is_none() || self.is_end_stream() {
                    self.source = Source::Done;
                }
                Poll::Ready(frame)
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.broken.is_none()
            && match &self.source {
                Source::Http1(answer) => answer.is_end_stream(),
                Source::Http2(incoming, _) => incoming.is_end_stream(),
                Source::Done => true,
            }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Http1(answer) => answer.size_hint(),
            Source::Http2(incoming, _) => incoming.size_hint(),
            Source::Done => SizeHint::with_exact(0),
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
