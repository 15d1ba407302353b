//! HTTP/1.1 to an upstream.
//!
//! hyper's connection is usually driven by a task of its own. Here the request's own task drives it: first
//! while it waits for the head, then while it reads the body, and nobody while it is idle. That saves waking
//! a second task for each event, and lets head and body of a small answer leave in one write.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::pool::Pool;
use super::spare::{Spare, is_again};
use super::{Answered, UpstreamBody, connect};
use crate::body::Body;
use crate::error::ProxyError;
use crate::handler::Request;
use crate::time::now;

/// Room left below a server's own keep-alive time, so that we close first.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// One connection. Dropping it closes it, which is how a request in progress is called off.
pub(super) struct Http1 {
    sender: http1::SendRequest<Body>,
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>>>>>,
    keep_alive: Option<Duration>,
}

/// A connection that left HTTP: `upgrade` resolves while `connection` is driven.
pub(crate) struct Switched {
    upgrade: OnUpgrade,
    connection: Http1,
}

impl Http1 {
    async fn connect(pool: &Pool) -> Result<Self, ProxyError> {
        let stream = connect::connect(pool.target, &pool.config).await?;
        pool.metrics.upstream_connections.inc();
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(pool.config.max_head_bytes)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ProxyError::Handshake { target: pool.target.addr, source })?;
        let driver = Box::pin(driver.with_upgrades());
        Ok(Self { sender, driver: Some(driver), keep_alive: None })
    }

    /// Lets the connection work. Afterwards `driver` is `None` if it has ended.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(_result) = driver.as_mut().poll(cx)
        {
            // The result is told to the request or body in progress too, where it belongs.
            self.driver = None;
        }
    }

    /// Whether it could carry a request now.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.driver.is_some() && self.sender.is_ready()
    }

    pub(super) fn keep_alive(&self) -> Option<Duration> {
        self.keep_alive
    }
}

impl Switched {
    /// The second future hands the connection over to the first; both must be awaited together.
    pub(crate) fn split(self) -> (OnUpgrade, impl Future<Output = ()>) {
        let Self { upgrade, mut connection } = self;
        let drive = std::future::poll_fn(move |cx| {
            connection.drive(cx);
            if connection.driver.is_some() { Poll::Pending } else { Poll::Ready(()) }
        });
        (upgrade, drive)
    }
}

/// Takes the request out of its place; puts it back if it was not started.
pub(super) async fn send(
    pool: &Rc<Pool>,
    request: &mut Option<Request>,
    idle: Option<Duration>,
) -> Result<Answered, ProxyError> {
    // Kept connections may turn out to be closed one after the other; each gives the request back unsent.
    let mut connect = None;
    let again = request.as_ref().is_some_and(is_again);
    loop {
        let kept = if again { None } else { std::future::poll_fn(|cx| Poll::Ready(pool.take(cx))).await };
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let began = now();
                let connection = Box::pin(Http1::connect(pool)).await?;
                connect = Some(began.elapsed());
                connection
            }
        };
        let mut sent = request.take().expect("a request to send");
        announce_body(&mut sent);
        let spare = Spare::of(&sent);
        match round_trip(&mut connection, sent).await {
            Ok(response) => return answered(pool, connection, response, idle, connect),
            Err(Unanswered { message: Some(unsent), source }) => {
                *request = Some(unsent);
                // It was made for this request: whoever closes that one unheard will close the next one too.
                if connect.is_some() {
                    return Err(ProxyError::Unsent { target: pool.target.addr, source });
                }
                pool.metrics.upstream_retries.inc();
            }
            Err(Unanswered { source, message: None }) => match spare {
                Some(spare) if source.is_incomplete_message() || io_closed(&source) => {
                    pool.metrics.upstream_retries.inc();
                    *request = Some(spare.request());
                    return Err(classify(pool, source));
                }
                _ => return Err(classify(pool, source)),
            },
        }
    }
}

/// A body of unknown length is sent in chunks, whatever the method. hyper does so by itself, but not where bodies are
/// rare: there it would leave the body out.
fn announce_body(request: &mut Request) {
    let has_none = request.body().is_empty();
    if has_none && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        // 9110, 8.6: it should say that there is none; h2 clients need not, and strict servers insist.
        if !request.headers().contains_key(header::CONTENT_LENGTH) {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        return;
    }
    let rare = matches!(*request.method(), Method::GET | Method::HEAD);
    if rare && !has_none && http_body::Body::size_hint(request.body()).exact().is_none() {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

struct Unanswered {
    source: hyper::Error,
    message: Option<Request>,
}

async fn round_trip(connection: &mut Http1, request: Request) -> Result<http::Response<Incoming>, Unanswered> {
    let mut answer = std::pin::pin!(connection.sender.try_send_request(request));
    std::future::poll_fn(|cx| {
        // The connection first: it writes the request and reads the answer; then the answer is there or not.
        connection.drive(cx);
        answer.as_mut().poll(cx)
    })
    .await
    .map_err(|mut error| Unanswered { message: error.take_message(), source: error.into_error() })
}

fn answered(
    pool: &Rc<Pool>,
    mut connection: Http1,
    mut response: http::Response<Incoming>,
    idle: Option<Duration>,
    connect: Option<Duration>,
) -> Result<Answered, ProxyError> {
    frame_anew(pool, response.headers_mut())?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgrade = hyper::upgrade::on(&mut response);
        let response = response.map(|_| Body::empty());
        return Ok(Answered { response, switched: Some(Switched { upgrade, connection }), connect });
    }
    if response.version() == Version::HTTP_10 {
        // hyper would speak 1.0 on it from now on, where a body of unknown length cannot be sent.
        connection.keep_alive = Some(Duration::ZERO);
    } else if let Some(hint) = keep_alive_hint(response.headers()) {
        connection.keep_alive = Some(hint.saturating_sub(KEEP_ALIVE_MARGIN));
    }
    let response = response.map(|incoming| UpstreamBody::http1(incoming, connection, pool, idle));
    Ok(Answered { response, switched: None, connect })
}

/// RFC 9112, section 6.3: the body was read by its transfer coding, which is taken off; a length beside it says something
/// else. Codings other than `chunked` are not undone, so what is in them cannot be passed on.
fn frame_anew(pool: &Pool, headers: &mut HeaderMap) -> Result<(), ProxyError> {
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(());
    }
    headers.remove(header::CONTENT_LENGTH);
    let is_plain = |coding: &str| {
        let coding = coding.trim();
        coding.is_empty() || coding.eq_ignore_ascii_case("chunked") || coding.eq_ignore_ascii_case("identity")
    };
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if codings.all(|value| value.to_str().is_ok_and(|value| value.split(',').all(is_plain))) {
        return Ok(());
    }
    Err(ProxyError::Coding { target: pool.target.addr })
}

/// `Keep-Alive: timeout=5`: what Node, Apache and others promise.
fn keep_alive_hint(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// The kernel says that the other side is gone.
fn io_closed(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|io| matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}

fn classify(pool: &Pool, source: hyper::Error) -> ProxyError {
    let target = pool.target.addr;
    if source.is_user() {
        ProxyError::ClientGone { source }
    } else if source.is_parse() {
        ProxyError::UpstreamProtocol { target, source }
    } else {
        ProxyError::UpstreamClosed { target, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_hints() {
        let check = |value: &str, seconds: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", value.parse().expect("a header value"));
            assert_eq!(keep_alive_hint(&headers), seconds.map(Duration::from_secs), "{value}");
        };
        check("timeout=5", Some(5));
        check("max=100, timeout=15", Some(15));
        check("timeout=soon", None);
        check("max=1", None);
        assert_eq!(keep_alive_hint(&HeaderMap::new()), None);
    }
}
