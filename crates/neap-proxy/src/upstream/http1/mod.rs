//! HTTP/1.1 to an upstream.
//!
//! An engine of our own, for what a request costs here is what this product is measured by: a connection is a value that the
//! request's own task works, first while it waits for the head, then while somebody reads the body, and nobody while it is
//! idle. No second task is woken, no message passed, and an idle connection holds no buffer.

mod answer;
mod connection;
mod framing;
mod head;
mod sending;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;

use super::patient::is_closed;
use super::pool::Pool;
use super::spare;
use super::{Answered, UpstreamBody};
use crate::body::{Body, BodyError};
use crate::error::ProxyError;
use crate::handler::Request;
use crate::time::now;

pub(super) use answer::Answer;
pub(super) use connection::Connection;
pub(crate) use connection::Switched;

/// What went wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The other side has ended.
    #[error("the connection was closed too early")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("this is no HTTP: {0}")]
    Parse(httparse::Error),
    /// It breaks HTTP in this way.
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the answer is in a transfer coding other than chunked")]
    Coding,
    #[error("the request's body broke off")]
    Body(#[source] BodyError),
    #[error("the request's body is not as long as it says")]
    Length,
}

impl From<httparse::Error> for Broken {
    fn from(error: httparse::Error) -> Self {
        Self::Parse(error)
    }
}

impl From<Broken> for BodyError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken.into())
    }
}

impl Broken {
    /// The other side closed without a word.
    fn is_closed(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Io(error) => is_closed(error),
            _ => false,
        }
    }

    fn of(self, pool: &Pool) -> ProxyError {
        let target = pool.target.addr;
        match self {
            Self::Coding => ProxyError::Coding { target },
            Self::Body(_) | Self::Length => ProxyError::ClientGone { source: self.into() },
            Self::Parse(_) | Self::Malformed(_) => ProxyError::UpstreamProtocol { target, source: self.into() },
            Self::Closed | Self::Io(_) => ProxyError::UpstreamClosed { target, source: self.into() },
        }
    }
}

/// Takes the request out of its place; puts it back if it was not started, or may be sent once more.
pub(super) async fn send(
    pool: &Rc<Pool>,
    request: &mut Option<Request>,
    idle: Option<Duration>,
) -> Result<Answered, ProxyError> {
    let again = request.as_ref().is_some_and(spare::is_again);
    let kept = if again { None } else { std::future::poll_fn(|cx| std::task::Poll::Ready(pool.take(cx))).await };
    let (mut connection, connect) = match kept {
        Some(connection) => (connection, None),
        None => {
            let began = now();
            let mut connection = Box::pin(Connection::open(pool)).await?;
            // It was made for this request: whoever closes that one unheard will close the next one too.
            if !std::future::poll_fn(|cx| std::task::Poll::Ready(connection.poll_silent(cx))).await {
                return Err(ProxyError::Unsent { target: pool.target.addr, source: Broken::Closed.into() });
            }
            (connection, Some(began.elapsed()))
        }
    };
    let mut sent = request.take().expect("a request to send");
    let repeatable = spare::is_repeatable(&sent);
    connection.begin(&mut sent);
    let head = match std::future::poll_fn(|cx| connection.poll_head(cx, &mut sent)).await {
        Ok(head) => head,
        Err(broken) => {
            if repeatable && broken.is_closed() {
                pool.metrics.upstream_retries.inc();
                spare::mark_again(&mut sent);
                *request = Some(sent);
            }
            return Err(broken.of(pool));
        }
    };
    if head.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let response = head.response.map(|()| Body::empty());
        return Ok(Answered { response, switched: Some(Switched::new(connection)), connect });
    }
    let (body, keep_alive) = (head.body, head.keep_alive);
    connection.keep_alive = keep_alive;
    let response = head.response.map(|()| UpstreamBody::http1(Answer::new(connection, pool, body), idle));
    Ok(Answered { response, switched: None, connect })
}
