//! How a request becomes a conversation: the connection turns into a WebSocket, or, for older clients, into SPDY.

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::codec::{BytesCodec, Framed};

/// Longest message taken. kubectl sends at most 32 KiB at once.
const MAX_MESSAGE: usize = 1 << 20;
const SPDY: &str = "SPDY/3.1";
/// Where SPDY's clients name the protocols they know.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Why a request for a conversation is not granted: the status and what kubectl prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }
}

/// A request for a conversation with a pod: its query, and the headers that ask for another protocol.
pub struct PodRequest<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub query: &'a [(String, String)],
    pub request: http::Request<Bytes>,
}

impl PodRequest<'_> {
    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.query.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    pub(super) fn yes(&self, key: &str) -> bool {
        self.query.iter().any(|(k, v)| k == key && (v == "true" || v == "1"))
    }
}

/// What the connection turns into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    WebSocket,
    Spdy,
}

/// The answer that turns a connection into what it asks for. Protocols are named best first.
pub(super) fn accept(
    headers: &HeaderMap,
    websocket: &[&'static str],
    spdy: &[&'static str],
) -> Result<(Response<()>, Carrier), Refusal> {
    if has(headers, &CONNECTION, "upgrade") && has(headers, &UPGRADE, SPDY) {
        let protocol = choose(headers, &STREAM_PROTOCOL, spdy)?;
        return Ok((switching(SPDY, &STREAM_PROTOCOL, protocol), Carrier::Spdy));
    }
    if !has(headers, &CONNECTION, "upgrade") || !has(headers, &UPGRADE, "websocket") {
        return Err(Refusal::bad("streams of pods are offered over a WebSocket or SPDY/3.1 only"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Refusal::bad("the WebSocket's key is missing"))?;
    let protocol = choose(headers, &SEC_WEBSOCKET_PROTOCOL, websocket)?;
    let mut answer = switching("websocket", &SEC_WEBSOCKET_PROTOCOL, protocol);
    // RFC 6455, 4.2.2.
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept).map_err(|_| Refusal::bad("the WebSocket's key is not one"))?;
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok((answer, Carrier::WebSocket))
}

fn choose(headers: &HeaderMap, name: &HeaderName, known: &[&'static str]) -> Result<&'static str, Refusal> {
    let both = known.iter().find(|one| has(headers, name, one)).copied();
    both.ok_or_else(|| Refusal::bad(format!("none of the protocols in {name} is known; known: {}", known.join(", "))))
}

fn switching(to: &'static str, name: &HeaderName, protocol: &'static str) -> Response<()> {
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let set = answer.headers_mut();
    set.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    set.insert(UPGRADE, HeaderValue::from_static(to));
    set.insert(name, HeaderValue::from_static(protocol));
    answer
}

fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(wanted))
}

pub(super) async fn websocket<S: AsyncRead + AsyncWrite + Unpin>(socket: S) -> WebSocketStream<S> {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MAX_MESSAGE);
    config.max_frame_size = Some(MAX_MESSAGE);
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await
}

/// Both directions of a connection that carries bytes.
pub(super) type Bytewise = (
    std::pin::Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    std::pin::Pin<Box<dyn Sink<Bytes, Error = io::Error> + Send>>,
);

/// The bytes of a connection: as they are, or out of a WebSocket's messages.
pub(super) async fn bytewise<S>(socket: S, carrier: Carrier) -> Bytewise
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match carrier {
        Carrier::Spdy => {
            let (sink, stream) = Framed::new(socket, BytesCodec::new()).split::<Bytes>();
            (Box::pin(stream.map(|read| read.map(Into::into))), Box::pin(sink))
        }
        Carrier::WebSocket => {
            let (sink, stream) = websocket(socket).await.split();
            let stream = stream.take_while(|m| std::future::ready(!matches!(m, Ok(Message::Close(_)))));
            let stream = stream.filter_map(|message| {
                std::future::ready(match message {
                    Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                    Ok(_) => None,
                    Err(error) => Some(Err(io::Error::other(error))),
                })
            });
            let sink = sink.sink_map_err(io::Error::other);
            let sink = sink.with(|bytes: Bytes| std::future::ready(io::Result::Ok(Message::Binary(bytes))));
            (Box::pin(stream), Box::pin(sink))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V5: &str = "v5.channel.k8s.io";
    const V4: &str = "v4.channel.k8s.io";

    fn check(headers: &[(&'static str, &str)], want: Option<(Carrier, &str, &str)>) {
        let asked = headers.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect();
        let got = accept(&asked, &[V5, V4], &[V4]);
        match (got, want) {
            (Ok((answer, carrier)), Some((wanted, name, protocol))) => {
                assert_eq!((answer.status(), carrier), (StatusCode::SWITCHING_PROTOCOLS, wanted));
                assert_eq!(answer.headers()[name], protocol, "{headers:?}");
                if carrier == Carrier::WebSocket {
                    // The example of RFC 6455.
                    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                }
            }
            (Err(refusal), None) => assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{headers:?}"),
            (got, want) => panic!("{got:?} instead of {want:?} for {headers:?}"),
        }
    }

    #[test]
    fn connections_become_what_they_ask_for_in_the_best_protocol() {
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let (upgrade, connection) = (("upgrade", "websocket"), ("connection", "keep-alive, Upgrade"));
        let name = "sec-websocket-protocol";
        let both = (name, "v4.channel.k8s.io, v5.channel.k8s.io");
        check(&[key, upgrade, connection, both], Some((Carrier::WebSocket, name, V5)));
        check(&[key, upgrade, connection, (name, V4)], Some((Carrier::WebSocket, name, V4)));
        let spdy = ("upgrade", "SPDY/3.1");
        let name = "x-stream-protocol-version";
        check(&[spdy, connection, (name, "v4.channel.k8s.io, channel.k8s.io")], Some((Carrier::Spdy, name, V4)));
        check(&[spdy, connection, (name, "v1.channel.k8s.io")], None);
        check(&[spdy, connection], None);
        check(&[key, connection, both], None);
        check(&[key, upgrade, both], None);
        check(&[upgrade, connection, both], None);
        check(&[key, upgrade, connection, ("sec-websocket-protocol", "v1.channel.k8s.io")], None);
    }
}
