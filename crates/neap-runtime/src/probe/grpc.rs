//! The gRPC health question (`grpc.health.v1.Health/Check`) by hand: two tiny messages need no code generator.

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http::header::{CONTENT_TYPE, TE};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// A health answer has a few bytes; whoever sends more is no health service.
const MAX_ANSWER: usize = 4096;
const SERVING: u8 = 1;

pub(super) async fn check(stream: TcpStream, service: &str) -> Result<(), String> {
    let said = |error: hyper::Error| format!("gRPC health: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(said)?;
    let request = Request::post("http://health/grpc.health.v1.Health/Check")
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::new(question(service)))
        .map_err(|e| format!("gRPC health: {e}"))?;
    let work = async {
        let response = sender.send_request(request).await.map_err(said)?;
        let (parts, body) = response.into_parts();
        let answer = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| format!("gRPC health: {e}"))?;
        let status = answer.trailers().and_then(|t| t.get("grpc-status")).or(parts.headers.get("grpc-status"));
        match status.and_then(|s| s.to_str().ok()) {
            Some("0") => verdict(&answer.to_bytes()),
            Some("12") => Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into()),
            Some("5") => Err(format!("the gRPC server does not know the service {service:?}")),
            Some(code) => Err(format!("gRPC health check failed with status {code}")),
            None => Err(format!("the answer is not gRPC (HTTP status {})", parts.status)),
        }
    };
    tokio::select! {
        result = work => result,
        ended = connection => Err(format!("gRPC health: the connection ended: {:?}", ended.err())),
    }
}

/// `HealthCheckRequest { service = 1 }` in a gRPC frame: compressed flag, length, message.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

/// `HealthCheckResponse { status = 1 }`; a missing field is 0, "unknown".
fn verdict(frame: &[u8]) -> Result<(), String> {
    let status = match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        Some(_) => 0,
        None => return Err("the gRPC health answer is cut short".into()),
    };
    match status {
        SERVING => Ok(()),
        other => Err(format!("gRPC health status {other}, wanted 1 (SERVING)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_framed() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 10, 2, b'a', b'b']);
        let long = question(&"s".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 10, 200, 1]);
        assert_eq!(verdict(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        assert!(verdict(&[0, 0, 0, 0, 2, 8, 2]).is_err());
        assert!(verdict(&[0, 0, 0, 0, 0]).is_err());
        assert!(verdict(&[0]).is_err());
    }
}
