//! Every limit of the engine in one place, each with its unit and its reason.
//!
//! Values only: nothing here reads an environment or a file.

use std::time::Duration;

use crate::tls::ClientTls;

/// Largest request or response head. nginx allows 4 x 8 KiB of headers, Envoy 60 KiB; browsers with many
/// cookies reach 32 KiB.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a client may take from the first byte of a head to its last (slow loris). nginx waits 60 s,
/// which lets one laptop hold a server's connections; no honest client needs more than a few round trips.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a client connection may wait for its next request. Longer than the 600 s after which the common
/// cloud load balancers drop an idle connection, so that they, not we, close first and no request is lost in between.
pub const CLIENT_IDLE_TIMEOUT: Duration = Duration::from_secs(620);
/// How long a client may say nothing at all after it has connected: browsers connect ahead, but whoever opens sockets to
/// say nothing must not keep them for as long as one that was served.
pub const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may refuse to take a single byte of an answer, or over h2 a single piece (64 KiB at most). The
/// `send_timeout` of nginx.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open client connections per listener, sockets after an upgrade included. A connection at rest costs about 10 KiB.
pub const MAX_CONNECTIONS: usize = 65_536;
/// Requests in progress on one h2 connection; the figure of nginx is 128, of Go 250.
pub const H2_MAX_STREAMS: u32 = 250;
/// What one stream of an h2 client may send ahead, bytes. 64 KiB, the protocol's default, stalls uploads over long paths;
/// this is 10 MB/s over 50 ms.
pub const H2_STREAM_WINDOW: u32 = 512 * 1024;
/// What all streams of an h2 client's connection may send ahead together, bytes: as much of the bodies that nobody reads
/// yet, as while their requests wait, is kept in memory for each connection. Go's server allows the same.
pub const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What one stream of an h2 upstream may send ahead, bytes: instances are near. A connection to an upstream allows as
/// much for each of its streams, so that clients that do not read hold up nobody but themselves.
pub const UPSTREAM_H2_STREAM_WINDOW: u32 = 256 * 1024;
/// How often an h2 peer is asked whether it is still there.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long requests in progress may go on once the server is told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a worker looks for connections that overstayed, and for upstream connections to close.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How long a TCP connection to an upstream may take. An instance is on this machine or in this cluster;
/// a lost SYN is repeated after 1 s, so this allows two losses.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an upstream connection is kept without use. Below the shortest keep-alive of a common
/// application server that sends no `Keep-Alive: timeout` hint (uvicorn, 5 s), so that we close first.
pub const UPSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections kept per target and worker: as many as are in use at a busy moment, for of a thousand that come and go
/// some hundreds are idle at any time. What is too many goes by [`UPSTREAM_IDLE_TIMEOUT`], since the last used is used first.
pub const UPSTREAM_MAX_IDLE: usize = 1024;
/// Streams put on one h2 connection to an upstream before a second one is opened; 100 is the least a server
/// should allow (RFC 9113, section 6.5.2).
pub const UPSTREAM_H2_STREAMS: usize = 100;

/// Limits of the side that faces clients.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Largest head, bytes. Default [`MAX_HEAD_BYTES`].
    pub max_head_bytes: usize,
    /// From first to last byte of a head. Default [`HEAD_TIMEOUT`].
    pub head_timeout: Duration,
    /// From connecting to the first byte. Default [`FIRST_REQUEST_TIMEOUT`].
    pub first_request_timeout: Duration,
    /// Between two requests. Default [`CLIENT_IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// Between two bytes taken by the client. Default [`WRITE_STALL_TIMEOUT`].
    pub write_stall_timeout: Duration,
    /// TLS handshake. Default [`TLS_HANDSHAKE_TIMEOUT`].
    pub tls_handshake_timeout: Duration,
    /// Open connections per listener, all workers together. Default [`MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// Streams per h2 connection. Default [`H2_MAX_STREAMS`].
    pub h2_max_streams: u32,
    /// Grace for requests in progress at shutdown. Default [`DRAIN_TIMEOUT`].
    pub drain_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_head_bytes: MAX_HEAD_BYTES,
            head_timeout: HEAD_TIMEOUT,
            first_request_timeout: FIRST_REQUEST_TIMEOUT,
            idle_timeout: CLIENT_IDLE_TIMEOUT,
            write_stall_timeout: WRITE_STALL_TIMEOUT,
            tls_handshake_timeout: TLS_HANDSHAKE_TIMEOUT,
            max_connections: MAX_CONNECTIONS,
            h2_max_streams: H2_MAX_STREAMS,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

/// Limits of the side that faces upstreams.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// TCP connect. Default [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// Unused connections are closed after this. Default [`UPSTREAM_IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// Unused connections per target and worker. Default [`UPSTREAM_MAX_IDLE`].
    pub max_idle: usize,
    /// Streams per h2 connection. Default [`UPSTREAM_H2_STREAMS`].
    pub h2_streams: usize,
    /// Largest response head, bytes. Default [`MAX_HEAD_BYTES`].
    pub max_head_bytes: usize,
    /// TLS, where upstreams speak it. Default none.
    pub tls: Option<ClientTls>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: UPSTREAM_IDLE_TIMEOUT,
            max_idle: UPSTREAM_MAX_IDLE,
            h2_streams: UPSTREAM_H2_STREAMS,
            max_head_bytes: MAX_HEAD_BYTES,
            tls: None,
        }
    }
}

/// How long one request may take. All three begin when the request arrives; `None` is no limit.
///
/// The first two end with the first byte of the answer: an answer that has begun is never cut by them, so that
/// streams and sockets live as long as both sides want. `idle` goes on after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Until the answer begins.
    pub total: Option<Duration>,
    /// Until the answer begins; the shorter one counts.
    pub response_start: Option<Duration>,
    /// Between two pieces of the answer, and before the first.
    pub idle: Option<Duration>,
}
