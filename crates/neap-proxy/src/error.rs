//! What can go wrong with a request, and the one table from causes to answers.
//!
//! The text for the caller and the text for the log are two things: the caller gets a short stable sentence
//! and a header that says whose fault it was; the log gets `Display` and its sources.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::body::{Body, Cause};

/// Header of every answer the engine makes itself: `FAULT/CODE`, for example `platform/queue-full`.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static("x-neap-error");

/// Whose fault a failed request was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The caller sent something that cannot be served.
    Client,
    /// The application broke the connection or its promises.
    App,
    /// Neap could not do its part.
    Platform,
}

impl Fault {
    /// The word used in headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::Platform => "platform",
        }
    }
}

/// Why a request was not served. `Display` is for the log.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Nothing is served under this name.
    #[error("nothing is served for host {host:?}")]
    NoRoute {
        /// The host asked for.
        host: String,
    },
    /// The route exists, but leads nowhere.
    #[error("{what} has no ready instance")]
    NoBackend {
        /// What has none.
        what: String,
    },
    /// The request breaks HTTP, or asks for what a gateway does not do.
    #[error("request refused: {why}")]
    BadRequest {
        /// In which way.
        why: &'static str,
    },
    /// CONNECT: this is a gateway, not a forward proxy.
    #[error("CONNECT is not served by a gateway")]
    ConnectMethod,
    /// The caller went away, or broke off its body.
    #[error("the client broke off its request")]
    ClientGone {
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// No TCP connection; nothing was sent.
    #[error("cannot connect to {target}")]
    Connect {
        /// The upstream.
        target: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// This process, or its machine, has no descriptor, port or memory left for a connection; nothing was sent.
    #[error("no connection to {target}: this machine has no room for another one")]
    Exhausted {
        /// The upstream.
        target: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No TCP connection in time; nothing was sent.
    #[error("no connection to {target} within {after:?}")]
    ConnectTimeout {
        /// The upstream.
        target: SocketAddr,
        /// The limit.
        after: Duration,
    },
    /// The HTTP handshake failed; nothing was sent.
    #[error("{target} does not speak the protocol its port is named for")]
    Handshake {
        /// The upstream.
        target: SocketAddr,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// A new connection ended, or the other side spoke first, before the request was written; nothing was sent.
    #[error("{target} closed a new connection, or spoke first on it, before it was asked")]
    Unsent {
        /// The upstream.
        target: SocketAddr,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// The connection ended before an answer; the request may have been seen.
    #[error("{target} closed the connection before it answered")]
    UpstreamClosed {
        /// The upstream.
        target: SocketAddr,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// The answer is not HTTP.
    #[error("{target} gave an answer that is not valid HTTP")]
    UpstreamProtocol {
        /// The upstream.
        target: SocketAddr,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// The answer is in a transfer coding that is not undone here.
    #[error("{target} gave an answer in a transfer coding other than chunked")]
    Coding {
        /// The upstream.
        target: SocketAddr,
    },
    /// The total or the response-start limit passed at the application.
    #[error("no answer began within {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// The limit passed while the request waited for an instance.
    #[error("no instance took the request within {after:?}")]
    WaitTimeout {
        /// The limit.
        after: Duration,
    },
    /// The idle limit passed before the answer began.
    #[error("nothing was heard for {after:?}")]
    IdleTimeout {
        /// The limit.
        after: Duration,
    },
    /// The queue in front of the application is full.
    #[error("the queue of {depth} waiting requests is full")]
    QueueFull {
        /// Its size.
        depth: usize,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Draining,
    /// The caller has sent more than its share.
    #[error("more requests than the limit allows; the next may come in {after:?}")]
    RateLimited {
        /// How long to wait.
        after: Duration,
    },
    /// The caller has not shown who it is.
    #[error("the caller is not authenticated: {why}")]
    Unauthenticated {
        /// What was missing or wrong.
        why: &'static str,
        /// The `WWW-Authenticate` header of the answer.
        challenge: HeaderValue,
    },
    /// The caller has shown who it is, and may not do this.
    #[error("the caller is not allowed: {why}")]
    Forbidden {
        /// What it lacks.
        why: &'static str,
    },
    /// Nobody can be let in, for what callers would have to show is not known.
    #[error("callers cannot be authenticated: {what}")]
    AuthUnavailable {
        /// What is not known.
        what: String,
    },
    /// A handler gave up for a reason of its own.
    #[error("{what}")]
    Internal {
        /// The reason.
        what: String,
    },
}

/// What a caller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub text: &'static str,
    /// Short stable name of the cause, for the header and for metrics.
    pub code: &'static str,
    /// Whose fault.
    pub fault: Fault,
    /// Seconds after which to try again, when trying again makes sense.
    pub retry_after: Option<u32>,
}

impl ProxyError {
    /// The table. The texts for a full queue and for timeouts are Knative's.
    pub fn answer(&self) -> Answer {
        use Fault::{App, Client, Platform};
        let (status, text, code, fault, retry_after) = match self {
            Self::NoRoute { .. } => (404, "no service is served under this address", "no-route", Client, None),
            Self::NoBackend { .. } => (503, "no instance is ready", "no-instance", Platform, Some(1)),
            Self::BadRequest { .. } => (400, "bad request", "bad-request", Client, None),
            Self::ConnectMethod => (405, "CONNECT is not supported", "connect-method", Client, None),
            Self::ClientGone { .. } => (400, "the request was broken off", "client-gone", Client, None),
            Self::Connect { .. } => (502, "the application does not accept connections", "connect", App, None),
            Self::ConnectTimeout { .. } => {
                (504, "the application does not accept connections in time", "connect-timeout", Platform, None)
            }
            Self::Exhausted { .. } => (503, "the gateway is out of connections", "exhausted", Platform, Some(1)),
            Self::Handshake { .. } => {
                (502, "the application does not speak the protocol its port is named for", "handshake", App, None)
            }
            Self::Unsent { .. } | Self::UpstreamClosed { .. } => {
                (502, "the application closed the connection without an answer", "closed", App, None)
            }
            Self::Coding { .. } | Self::UpstreamProtocol { .. } => {
                (502, "the application gave an answer that is not valid HTTP", "protocol", App, None)
            }
            Self::Timeout { .. } => (504, "request timeout", "timeout", App, None),
            Self::WaitTimeout { .. } => (504, "activator request timeout", "wait-timeout", Platform, None),
            Self::IdleTimeout { .. } => (504, "request timeout", "idle-timeout", App, None),
            Self::QueueFull { .. } => (503, "pending request queue full", "queue-full", Platform, Some(1)),
            Self::Draining => (503, "shutting down", "draining", Platform, Some(1)),
            Self::RateLimited { after } => {
                let whole = u32::try_from(after.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
                (429, "too many requests", "rate-limit", Client, Some(whole.max(1)))
            }
            Self::Unauthenticated { .. } => (401, "authentication required", "unauthenticated", Client, None),
            Self::Forbidden { .. } => (403, "not allowed", "forbidden", Client, None),
            Self::AuthUnavailable { .. } => {
                (503, "authentication is not available", "auth-unavailable", Platform, Some(5))
            }
            Self::Internal { .. } => (500, "internal error", "internal", Platform, None),
        };
        Answer {
            status: StatusCode::from_u16(status).expect("the table holds valid status codes"),
            text,
            code,
            fault,
            retry_after,
        }
    }

    /// Whether it is certain that no application saw the request, so that another one may get it.
    pub fn unstarted(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Handshake { .. } | Self::Unsent { .. }
        )
    }

    /// The answer as a response. A gRPC caller (see [`speaks_grpc`]) gets its own kind of failure, a trailers-only
    /// response, since its library shows the message only then.
    pub fn respond(&self, grpc: bool) -> http::Response<Body> {
        let answer = self.answer();
        let mut response = http::Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(ERROR_HEADER, error_value(&answer));
        if let Some(seconds) = answer.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::Unauthenticated { challenge, .. } = self {
            headers.insert(header::WWW_AUTHENTICATE, challenge.clone());
        }
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(grpc_status(answer.status)));
            headers.insert("grpc-message", HeaderValue::from_static(answer.text));
        } else {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
            *response.status_mut() = answer.status;
            *response.body_mut() = Body::full(Bytes::from_static(answer.text.as_bytes()));
        }
        response
    }
}

fn error_value(answer: &Answer) -> HeaderValue {
    HeaderValue::try_from(format!("{}/{}", answer.fault.as_str(), answer.code)).expect("fault and code are plain words")
}

/// Whether a request with these headers is a gRPC call.
pub fn speaks_grpc(request: &HeaderMap) -> bool {
    request
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        // `application/grpc-web` is for browsers, which read statuses as everybody does.
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// gRPC's own status for an HTTP one ("HTTP to gRPC status code mapping"), with 504 told apart.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        429 => 8,
        404 | 405 => 12,
        502 | 503 => 14,
        504 => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: &ProxyError, status: u16, value: &str, text: &str) {
        let response = error.respond(false);
        assert_eq!(response.status(), status, "{error}");
        assert_eq!(response.headers()[ERROR_HEADER], value, "{error}");
        assert_eq!(error.answer().text, text);
    }

    #[test]
    fn every_cause_has_its_answer() {
        let second = Duration::from_secs(1);
        let target: SocketAddr = ([127, 0, 0, 1], 1).into();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        check(
            &ProxyError::NoRoute { host: "x".into() },
            404,
            "client/no-route",
            "no service is served under this address",
        );
        check(&ProxyError::NoBackend { what: "a".into() }, 503, "platform/no-instance", "no instance is ready");
        check(&ProxyError::BadRequest { why: "x" }, 400, "client/bad-request", "bad request");
        check(&ProxyError::ConnectMethod, 405, "client/connect-method", "CONNECT is not supported");
        check(
            &ProxyError::Connect { target, source: refused() },
            502,
            "app/connect",
            "the application does not accept connections",
        );
        check(
            &ProxyError::ConnectTimeout { target, after: second },
            504,
            "platform/connect-timeout",
            "the application does not accept connections in time",
        );
        check(&ProxyError::Timeout { after: second }, 504, "app/timeout", "request timeout");
        check(&ProxyError::WaitTimeout { after: second }, 504, "platform/wait-timeout", "activator request timeout");
        check(&ProxyError::IdleTimeout { after: second }, 504, "app/idle-timeout", "request timeout");
        check(&ProxyError::QueueFull { depth: 1 }, 503, "platform/queue-full", "pending request queue full");
        check(&ProxyError::Draining, 503, "platform/draining", "shutting down");
        let limited = ProxyError::RateLimited { after: Duration::from_millis(1_200) };
        check(&limited, 429, "client/rate-limit", "too many requests");
        assert_eq!(limited.respond(false).headers()["retry-after"], "2");
        let stranger = ProxyError::Unauthenticated { why: "x", challenge: HeaderValue::from_static("Bearer") };
        check(&stranger, 401, "client/unauthenticated", "authentication required");
        assert_eq!(stranger.respond(false).headers()["www-authenticate"], "Bearer");
        check(&ProxyError::Forbidden { why: "x" }, 403, "client/forbidden", "not allowed");
        check(
            &ProxyError::AuthUnavailable { what: "x".into() },
            503,
            "platform/auth-unavailable",
            "authentication is not available",
        );
        check(&ProxyError::Internal { what: "x".into() }, 500, "platform/internal", "internal error");
    }

    #[test]
    fn only_what_never_left_is_unstarted() {
        let target: SocketAddr = ([127, 0, 0, 1], 1).into();
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(ProxyError::Connect { target, source: refused }.unstarted());
        assert!(!ProxyError::Timeout { after: Duration::ZERO }.unstarted());
    }

    #[test]
    fn a_grpc_caller_gets_a_grpc_status() {
        let mut request = HeaderMap::new();
        request.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        let mut for_browsers = HeaderMap::new();
        for_browsers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc-web+proto"));
        assert!(!speaks_grpc(&for_browsers));
        let response = ProxyError::QueueFull { depth: 1 }.respond(speaks_grpc(&request));
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "pending request queue full");
    }
}
