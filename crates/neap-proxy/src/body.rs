//! One body type for both directions.
//!
//! It streams and never buffers: a frame is asked for when the other side can take it. Whoever must know how a
//! body ended (concurrency limits, statistics, access logs) attaches an [`OnEnd`]; it is told exactly once,
//! also when the body is dropped half-way.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::upstream::UpstreamBody;

/// How a body came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was passed on.
    Complete,
    /// The receiver lost interest.
    Dropped,
    /// The sender broke off, or a limit passed.
    Failed,
}

/// Told once how a body ended.
pub trait OnEnd {
    /// `bytes` of data were passed on.
    fn on_end(&mut self, outcome: Outcome, bytes: u64);
}

/// What a connection said when it failed.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection it came from failed.
    #[error("the other side broke off the body")]
    Broken(#[source] Cause),
    /// Nothing came for too long.
    #[error("nothing was heard for {0:?}")]
    Idle(Duration),
}

impl From<hyper::Error> for BodyError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// The next frame of a body over h2. hyper takes a stream that was reset without an error (RFC 9113, section 8.1) for one that has
/// ended; half an upload must not pass as a whole one.
pub(crate) fn poll_stream(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    use http_body::Body as _;
    let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
    if frame.is_none() && !incoming.is_end_stream() {
        return Poll::Ready(Some(Err(BodyError::Broken("the stream was reset before its end".into()))));
    }
    Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
}

/// A request or response body.
pub struct Body {
    kind: Kind,
    bytes: u64,
    on_end: Option<Box<dyn OnEnd>>,
}

enum Kind {
    Empty,
    Full(Option<Bytes>),
    Client(Incoming),
    /// The same over h2, where a stream may be reset without an error. Its body has stopped then, and not ended.
    ClientStream(Incoming),
    Upstream(Box<UpstreamBody>),
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    /// A body that is all there.
    pub fn full(data: impl Into<Bytes>) -> Self {
        Self::of(Kind::Full(Some(data.into())))
    }

    /// A body that arrives on a client's connection.
    pub fn client(incoming: Incoming, version: http::Version) -> Self {
        let h2 = version == http::Version::HTTP_2;
        Self::of(if h2 { Kind::ClientStream(incoming) } else { Kind::Client(incoming) })
    }

    pub(crate) fn upstream(body: UpstreamBody) -> Self {
        Self::of(Kind::Upstream(Box::new(body)))
    }

    fn of(kind: Kind) -> Self {
        Self { kind, bytes: 0, on_end: None }
    }

    /// Attaches the one who is told how this body ends. A body that already has one keeps both, told in the
    /// order of attachment.
    #[must_use]
    pub fn on_end(mut self, hook: impl OnEnd + 'static) -> Self {
        self.on_end = Some(match self.on_end.take() {
            None => Box::new(hook),
            Some(first) => Box::new(Both(first, hook)),
        });
        self
    }

    /// Whether no data and no trailers will come.
    pub fn is_empty(&self) -> bool {
        http_body::Body::is_end_stream(self)
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(mut hook) = self.on_end.take() {
            hook.on_end(outcome, self.bytes);
        }
    }
}

struct Both<T>(Box<dyn OnEnd>, T);

impl<T: OnEnd> OnEnd for Both<T> {
    fn on_end(&mut self, outcome: Outcome, bytes: u64) {
        self.0.on_end(outcome, bytes);
        self.1.on_end(outcome, bytes);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.kind {
            Kind::Empty => None,
            Kind::Full(data) => data.take().map(|data| Ok(Frame::data(data))),
            Kind::Client(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(BodyError::from))
            }
            Kind::ClientStream(incoming) => ready!(poll_stream(incoming, cx)),
            Kind::Upstream(body) => ready!(body.poll_frame(cx)),
        };
        match &frame {
            None => this.end(Outcome::Complete),
            Some(Err(_)) => this.end(Outcome::Failed),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.bytes += data.len() as u64;
                }
                // The receiver may drop a body of known length without asking for its end.
                if this.on_end.is_some() && http_body::Body::is_end_stream(this) {
                    this.end(Outcome::Complete);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(data) => data.is_none(),
            Kind::Client(incoming) | Kind::ClientStream(incoming) => incoming.is_end_stream(),
            Kind::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(data) => SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64)),
            Kind::Client(incoming) | Kind::ClientStream(incoming) => incoming.size_hint(),
            Kind::Upstream(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let outcome = if http_body::Body::is_end_stream(self) { Outcome::Complete } else { Outcome::Dropped };
        self.end(outcome);
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Client(_) | Kind::ClientStream(_) => "client",
            Kind::Upstream(_) => "upstream",
        };
        f.debug_struct("Body").field("kind", &kind).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use http_body_util::BodyExt;

    use super::*;

    struct Note(Rc<RefCell<Vec<(Outcome, u64)>>>);

    impl OnEnd for Note {
        fn on_end(&mut self, outcome: Outcome, bytes: u64) {
            self.0.borrow_mut().push((outcome, bytes));
        }
    }

    #[tokio::test]
    async fn the_end_is_told_once() {
        let notes = Rc::new(RefCell::new(Vec::new()));
        let mut body = Body::full("four").on_end(Note(notes.clone()));
        assert!(body.frame().await.is_some());
        assert_eq!(*notes.borrow(), [(Outcome::Complete, 4)]);
        assert!(body.frame().await.is_none());
        drop(body);
        drop(Body::full("four").on_end(Note(notes.clone())));
        drop(Body::empty().on_end(Note(notes.clone())).on_end(Note(notes.clone())));
        let told = [(Outcome::Complete, 4), (Outcome::Dropped, 0), (Outcome::Complete, 0), (Outcome::Complete, 0)];
        assert_eq!(*notes.borrow(), told);
    }
}
