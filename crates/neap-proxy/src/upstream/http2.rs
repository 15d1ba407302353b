//! HTTP/2 without TLS to an upstream. Streams share connections, so each connection has a task of its own.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use http::uri::{Authority, Parts as UriParts, Scheme};
use http::{Uri, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::pool::Pool;
use super::spare::Spare;
use super::{Answered, UpstreamBody, connect};
use crate::body::Body;
use crate::config::{H2_PING_INTERVAL, H2_PING_TIMEOUT, UPSTREAM_H2_STREAM_WINDOW};
use crate::error::ProxyError;
use crate::handler::Request;
use crate::server::LocalExecutor;
use crate::time::now;

/// One connection and the number of its streams.
pub(super) struct Http2 {
    sender: http2::SendRequest<Body>,
    streams: Rc<Streams>,
    /// Runs in a task of its own, and is asked what the other side allows.
    driver: Rc<RefCell<http2::Connection<TokioIo<connect::Wire>, Body, LocalExecutor>>>,
}

#[derive(Default)]
struct Streams {
    open: Cell<usize>,
    /// Sweeps that found no stream, one after the other.
    idle_sweeps: Cell<u64>,
}

/// Counts one stream while it lives.
pub(super) struct Stream(Rc<Streams>);

impl Stream {
    fn open(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        streams.idle_sweeps.set(0);
        Self(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl Http2 {
    async fn connect(pool: &Pool) -> Result<Self, ProxyError> {
        let stream = connect::connect(pool.target, &pool.config).await?;
        pool.metrics.upstream_connections.inc();
        let max_head = u32::try_from(pool.config.max_head_bytes).unwrap_or(u32::MAX);
        let (sender, driver) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(UPSTREAM_H2_STREAM_WINDOW)
            .initial_connection_window_size(connection_window(pool.config.h2_streams))
            .max_header_list_size(max_head)
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ProxyError::Handshake { target: pool.target.addr, source: source.into() })?;
        let target = pool.target.addr;
        let driver = Rc::new(RefCell::new(driver));
        let driven = driver.clone();
        pool.tasks.spawn_local(async move {
            let ended = std::future::poll_fn(|cx| Pin::new(&mut *driven.borrow_mut()).poll(cx));
            if let Err(error) = ended.await {
                tracing::debug!(%target, error = &error as &dyn std::error::Error, "h2 connection ended");
            }
        });
        Ok(Self { sender, streams: Rc::default(), driver })
    }

    /// Whether another stream may be put on it: we have a limit, and so has the other side once its settings have come. A
    /// server that allows none for the moment gets one, which waits there.
    fn has_room(&self, most: usize) -> bool {
        let open = self.streams.open.get();
        self.sender.is_ready() && open < most && (open == 0 || open < self.driver.borrow().current_max_send_streams())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Counts a sweep; true when it has been without streams for `most` of them.
    pub(super) fn swept(&self, most: u64) -> bool {
        if self.streams.open.get() > 0 {
            return false;
        }
        self.streams.idle_sweeps.set(self.streams.idle_sweeps.get() + 1);
        self.streams.idle_sweeps.get() >= most
    }
}

/// The other side closed the connection, or said that it will and has not begun with this stream.
fn connection_ended(error: &hyper::Error) -> bool {
    let Some(source) = std::error::Error::source(error) else { return false };
    let left = |source: &h2::Error| source.is_io() || source.is_go_away() && source.is_remote();
    source.is::<io::Error>() || source.downcast_ref().is_some_and(left)
}

/// Takes the request out of its place; puts it back if it was not started.
pub(super) async fn send(
    pool: &Rc<Pool>,
    request: &mut Option<Request>,
    idle: Option<Duration>,
) -> Result<Answered, ProxyError> {
    let target = pool.target.addr;
    let mut connect = None;
    loop {
        let (fresh, (mut sender, stream)) = match existing(pool) {
            Some(opened) => (false, opened),
            None => {
                let began = now();
                let opened = stream(pool).await?;
                connect = Some(began.elapsed());
                (true, opened)
            }
        };
        let mut sent = request.take().expect("a request to send");
        let spare = Spare::of(&sent);
        absolute(&mut sent)?;
        match sender.try_send_request(sent).await {
            Ok(response) => {
                let response = response.map(|incoming| UpstreamBody::http2(incoming, stream, idle));
                return Ok(Answered { response, switched: None, connect });
            }
            Err(mut error) => match error.take_message() {
                Some(mut unsent) => {
                    forget(pool, &stream);
                    origin(&mut unsent);
                    *request = Some(unsent);
                    // Whoever closes a connection unheard that was just made will close the next one too.
                    if fresh {
                        return Err(ProxyError::Unsent { target, source: error.into_error().into() });
                    }
                    pool.metrics.upstream_retries.inc();
                }
                None => {
                    let source = error.into_error();
                    // A stream that was refused is an answer; a connection that is gone is none.
                    if connection_ended(&source) {
                        forget(pool, &stream);
                        *request = spare.map(Spare::request);
                        pool.metrics.upstream_retries.inc_by(u64::from(request.is_some()));
                    }
                    return Err(if source.is_user() {
                        ProxyError::ClientGone { source: source.into() }
                    } else if source.is_parse() {
                        ProxyError::UpstreamProtocol { target, source: source.into() }
                    } else {
                        ProxyError::UpstreamClosed { target, source: source.into() }
                    });
                }
            },
        }
    }
}

/// As much as all streams of a connection may have on the way, up to what the protocol can say.
fn connection_window(streams: usize) -> u32 {
    const MOST: u32 = (1 << 31) - 1;
    let streams = u32::try_from(streams.max(1)).unwrap_or(MOST);
    UPSTREAM_H2_STREAM_WINDOW.saturating_mul(streams).min(MOST)
}

/// How an attempt to connect failed, for those who waited for its outcome.
#[derive(Debug, Clone, Copy)]
pub(super) enum Failure {
    Timeout(Duration),
    Refused(io::ErrorKind),
}

impl Failure {
    fn of(error: &ProxyError) -> Self {
        match error {
            ProxyError::ConnectTimeout { after, .. } => Self::Timeout(*after),
            ProxyError::Connect { source, .. } => Self::Refused(source.kind()),
            _ => Self::Refused(io::ErrorKind::ConnectionAborted),
        }
    }

    fn again(self, target: SocketAddr) -> ProxyError {
        match self {
            Self::Timeout(after) => ProxyError::ConnectTimeout { target, after },
            Self::Refused(kind) => ProxyError::Connect { target, source: kind.into() },
        }
    }
}

/// Room on a new connection, or on one that somebody else made meanwhile. Who waited for an attempt of somebody else shares
/// its outcome, good or bad: one after the other they would wait for as many timeouts.
async fn stream(pool: &Pool) -> Result<(http2::SendRequest<Body>, Stream), ProxyError> {
    let failures = pool.h2_failures.get();
    let _one_at_a_time = pool.h2_connecting.lock().await;
    if let Some(opened) = existing(pool) {
        return Ok(opened);
    }
    if let (count, Some(failure)) = pool.h2_failures.get()
        && count != failures.0
    {
        return Err(failure.again(pool.target.addr));
    }
    let connected = Http2::connect(pool).await;
    if let Err(error) = &connected {
        pool.h2_failures.set((failures.0.wrapping_add(1), Some(Failure::of(error))));
    }
    let connection = connected?;
    let opened = (connection.sender.clone(), Stream::open(&connection.streams));
    pool.h2.borrow_mut().push(connection);
    Ok(opened)
}

fn existing(pool: &Pool) -> Option<(http2::SendRequest<Body>, Stream)> {
    pool.h2
        .borrow()
        .iter()
        .find(|connection| connection.has_room(pool.config.h2_streams))
        .map(|connection| (connection.sender.clone(), Stream::open(&connection.streams)))
}

/// Puts no more streams on the connection that carries this one; it may not know yet that it has ended.
fn forget(pool: &Pool, stream: &Stream) {
    let ends = |connection: &Http2| connection.is_closed() || Rc::ptr_eq(&connection.streams, &stream.0);
    pool.h2.borrow_mut().retain(|connection| !ends(connection));
}

/// h2 carries scheme and authority in the request line's place, and no Host (RFC 9113, section 8.3.1).
fn absolute(request: &mut Request) -> Result<(), ProxyError> {
    let host = request.headers_mut().remove(header::HOST).ok_or(ProxyError::BadRequest { why: "no host" })?;
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| ProxyError::BadRequest { why: "bad host" })?;
    let mut parts = UriParts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| ProxyError::BadRequest { why: "bad path" })?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// Undoes [`absolute`].
fn origin(request: &mut Request) {
    crate::headers::canonical_uri(request);
    *request.version_mut() = Version::HTTP_11;
}
