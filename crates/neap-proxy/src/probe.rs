//! A small client for probes: one GET on a connection of its own, bounded in time and size.
//!
//! It never follows redirects, never keeps a connection, never retries; what an answer means is the caller's
//! business.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Most bytes of a body that are kept; a probe's answer is a word or a short JSON.
pub const MAX_BODY: usize = 64 * 1024;

/// An answer to a probe.
#[derive(Debug, Clone)]
pub struct ProbeAnswer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The first [`MAX_BODY`] bytes of the body.
    pub body: Bytes,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection.
    #[error("cannot connect to {target}")]
    Connect {
        /// The target.
        target: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No HTTP.
    #[error("{target} gave no valid HTTP answer")]
    Http {
        /// The target.
        target: SocketAddr,
        /// What the connection said.
        #[source]
        source: hyper::Error,
    },
    /// Too late.
    #[error("no answer from {target} within {after:?}")]
    Timeout {
        /// The target.
        target: SocketAddr,
        /// The limit.
        after: Duration,
    },
}

/// Sends `request` (origin-form target, Host set) to `target` over HTTP/1.1.
pub async fn probe(target: SocketAddr, request: Request<()>, after: Duration) -> Result<ProbeAnswer, ProbeError> {
    match tokio::time::timeout(after, exchange(target, request)).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(ProbeError::Timeout { target, after }),
    }
}

async fn exchange(target: SocketAddr, request: Request<()>) -> Result<ProbeAnswer, ProbeError> {
    let stream = TcpStream::connect(target).await.map_err(|source| ProbeError::Connect { target, source })?;
    let http = |source| ProbeError::Http { target, source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let answer = async {
        let response = sender.send_request(request.map(|()| Empty::<Bytes>::new())).await?;
        let (head, mut body) = response.into_parts();
        let mut kept = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                let room = MAX_BODY - kept.len();
                kept.extend_from_slice(&data[..data.len().min(room)]);
            }
            if kept.len() == MAX_BODY {
                break;
            }
        }
        Ok(ProbeAnswer { status: head.status, headers: head.headers, body: kept.freeze() })
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer.map_err(http),
        ended = &mut connection => {
            // The connection ends after a close; the answer may still lie in between.
            let answer = answer.await;
            answer.or_else(|source| ended.and(Err(source))).map_err(http)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn check(answer: &'static str, after: Duration) -> Result<ProbeAnswer, ProbeError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let target = listener.local_addr().expect("has an address");
        let request = Request::builder().uri("/healthz").header("host", "probe").body(()).expect("a request");
        let server = async {
            let (mut socket, _) = listener.accept().await.expect("accepts");
            let mut head = [0; 1024];
            let n = socket.read(&mut head).await.expect("reads");
            assert!(head[..n].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            socket.write_all(answer.as_bytes()).await.expect("writes");
            drop(socket);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = probe(target, request, after) => answer,
            () = server => unreachable!("the server waits for ever"),
        }
    }

    #[tokio::test]
    async fn answers_and_failures() {
        let long = Duration::from_secs(10);
        let answer = check("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\n\r\nqueue", long).await.expect("answers");
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"queue"[..]));
        assert_eq!(answer.headers["x-a"], "b");
        let until_close = check("HTTP/1.1 503 No\r\nconnection: close\r\n\r\nfailing", long).await.expect("answers");
        assert_eq!((until_close.status.as_u16(), &until_close.body[..]), (503, &b"failing"[..]));
        assert!(matches!(check("SSH-2.0\r\n\r\n", long).await, Err(ProbeError::Http { .. })));
        let short = Duration::from_millis(20);
        assert!(matches!(check("", short).await, Err(ProbeError::Timeout { .. })));
    }
}
