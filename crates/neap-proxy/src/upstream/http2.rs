//! HTTP/2 without TLS to an upstream. Streams share connections, so each connection has a task of its own.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::uri::{Authority, Parts as UriParts, Scheme};
use http::{Uri, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::pool::Pool;
use super::{Answered, UpstreamBody, connect};
use crate::body::Body;
use crate::config::{H2_PING_INTERVAL, H2_PING_TIMEOUT, UPSTREAM_H2_CONNECTION_WINDOW, UPSTREAM_H2_STREAM_WINDOW};
use crate::error::ProxyError;
use crate::handler::Request;
use crate::server::LocalExecutor;
use crate::time::now;

/// One connection and the number of its streams.
pub(super) struct Http2 {
    sender: http2::SendRequest<Body>,
    streams: Rc<Streams>,
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
            .initial_connection_window_size(UPSTREAM_H2_CONNECTION_WINDOW)
            .max_header_list_size(max_head)
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ProxyError::Handshake { target: pool.target.addr, source })?;
        let target = pool.target.addr;
        pool.tasks.spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%target, error = &error as &dyn std::error::Error, "h2 connection ended");
            }
        });
        Ok(Self { sender, streams: Rc::default() })
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

/// Takes the request out of its place; puts it back if it was not started.
pub(super) async fn send(
    pool: &Rc<Pool>,
    request: &mut Option<Request>,
    idle: Option<Duration>,
) -> Result<Answered, ProxyError> {
    let target = pool.target.addr;
    let mut connect = None;
    loop {
        let (mut sender, stream) = match existing(pool) {
            Some(opened) => opened,
            None => {
                let began = now();
                let opened = stream(pool).await?;
                connect = Some(began.elapsed());
                opened
            }
        };
        let mut sent = request.take().expect("a request to send");
        absolute(&mut sent)?;
        match sender.try_send_request(sent).await {
            Ok(response) => {
                let response = response.map(|incoming| UpstreamBody::http2(incoming, stream, idle));
                return Ok(Answered { response, switched: None, connect });
            }
            Err(mut error) => match error.take_message() {
                Some(mut unsent) => {
                    pool.metrics.upstream_retries.inc();
                    pool.h2.borrow_mut().retain(|connection| !connection.is_closed());
                    origin(&mut unsent);
                    *request = Some(unsent);
                }
                None => {
                    let source = error.into_error();
                    return Err(if source.is_user() {
                        ProxyError::ClientGone { source }
                    } else if source.is_parse() {
                        ProxyError::UpstreamProtocol { target, source }
                    } else {
                        ProxyError::UpstreamClosed { target, source }
                    });
                }
            },
        }
    }
}

/// Room on a new connection, or on one that somebody else made meanwhile.
async fn stream(pool: &Pool) -> Result<(http2::SendRequest<Body>, Stream), ProxyError> {
    let _one_at_a_time = pool.h2_connecting.lock().await;
    if let Some(opened) = existing(pool) {
        return Ok(opened);
    }
    let connection = Http2::connect(pool).await?;
    let opened = (connection.sender.clone(), Stream::open(&connection.streams));
    pool.h2.borrow_mut().push(connection);
    Ok(opened)
}

fn existing(pool: &Pool) -> Option<(http2::SendRequest<Body>, Stream)> {
    pool.h2
        .borrow()
        .iter()
        .find(|connection| connection.sender.is_ready() && connection.streams.open.get() < pool.config.h2_streams)
        .map(|connection| (connection.sender.clone(), Stream::open(&connection.streams)))
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
