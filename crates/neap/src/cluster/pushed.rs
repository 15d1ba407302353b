//! Where activators send their statistics: a WebSocket on the autoscaler's port 8080, binary messages in Knative's wire
//! format (facts E1.11, E4.15). Only the autoscaler that leads takes them; a copy that stands by turns callers away, and
//! they come again until they meet the leader.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use neap_api::statistics;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::scrape::Statistics;
use crate::accept;

/// Activators and health checks at once.
const CONNECTIONS: usize = 1024;
/// Longest message: some ten thousand Revisions.
const MESSAGE_MAX: usize = 4 << 20;
/// An activator sends every second, and pings; one that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// Serves until `stop`; takes statistics from when `leading` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    statistics: Arc<Statistics>,
    leading: CancellationToken,
    stop: CancellationToken,
) {
    accept::each(listener, CONNECTIONS, stop.clone(), |stream| {
        let (statistics, leading, stop) = (statistics.clone(), leading.clone(), stop.clone());
        async move { connection(stream, &statistics, &leading, &stop).await }
    })
    .await;
}

async fn connection(stream: TcpStream, statistics: &Statistics, leading: &CancellationToken, stop: &CancellationToken) {
    let (upgraded, taken) = tokio::sync::oneshot::channel();
    let upgraded = std::sync::Mutex::new(Some(upgraded));
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, leading.is_cancelled());
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(sender) = upgraded.lock().ok().and_then(|mut sender| sender.take())
        {
            // Nobody waits for it when the connection ends before.
            drop(sender.send(hyper::upgrade::on(request)));
        }
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let connection = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "a connection for statistics broke");
        return;
    }
    drop(upgraded);
    let Ok(upgrade) = taken.await else { return };
    if let Ok(io) = upgrade.await {
        listen(TokioIo::new(io), statistics, stop).await;
    }
}

/// A WebSocket for those who ask for one while this leads; health for the others.
fn answer<B>(request: &Request<B>, leads: bool) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
        return text(StatusCode::OK, "autoscaler\n");
    };
    if !leads {
        return text(StatusCode::SERVICE_UNAVAILABLE, "another autoscaler leads; ask again\n");
    }
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return text(StatusCode::BAD_REQUEST, "no usable Sec-WebSocket-Key\n");
    };
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

async fn listen<S>(io: S, statistics: &Statistics, stop: &CancellationToken)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let limits = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => {
                let restart = CloseFrame { code: CloseCode::Restart, reason: "the autoscaler restarts".into() };
                // It comes again by itself, whether or not it heard this.
                drop(socket.close(Some(restart)).await);
                return;
            }
            message = tokio::time::timeout(SILENCE, socket.next()) => message,
        };
        match message {
            Ok(Some(Ok(Message::Binary(bytes)))) => match statistics::decode_all(&bytes) {
                Ok(messages) => statistics.push(messages),
                Err(error) => {
                    tracing::warn!(%error, "an activator sent what is no statistics; its connection is closed");
                    let wrong = CloseFrame { code: CloseCode::Invalid, reason: error.to_string().into() };
                    drop(socket.close(Some(wrong)).await);
                    return;
                }
            },
            // Pings are answered by the library with the next read; this sends the answer at once.
            Ok(Some(Ok(Message::Ping(_)))) => {
                if socket.flush().await.is_err() {
                    return;
                }
            }
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
            Ok(Some(Ok(_))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use neap_api::statistics::{RevisionStatistics, Statistics as Numbers};
    use neap_controllers::autoscaler::StatSource;
    use tokio::task::JoinSet;

    async fn connect(address: std::net::SocketAddr) -> Result<WebSocketStream<TcpStream>, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let url = format!("ws://{address}/");
        tokio_tungstenite::client_async(url, stream).await.map(|(socket, _)| socket).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn e1_11_an_activator_reports_to_the_leader() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let (leading, stop) = (CancellationToken::new(), CancellationToken::new());
        let statistics = Arc::new(Statistics::new());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, statistics.clone(), leading.clone(), stop.clone()));

        let refused = connect(address).await.expect_err("nobody leads");
        assert!(refused.contains("503"), "{refused}");
        leading.cancel();
        let mut socket = connect(address).await.expect("connects");
        let numbers = Numbers { average_concurrent_requests: 1.0, request_count: 1.0, ..Numbers::default() };
        let message = RevisionStatistics { namespace: "ns".into(), name: "rev".into(), statistics: Some(numbers) };
        socket.send(Message::Binary(statistics::encode_all(&[message]).into())).await.expect("sends");
        let woken = statistics.woken().await;
        assert_eq!((woken.len(), &*woken[0].revision.name), (1, "rev"));

        socket.send(Message::Binary(Bytes::from_static(b"\x0a\x05"))).await.expect("sends");
        let closed = socket.next().await.expect("an answer").expect("a message");
        assert!(matches!(closed, Message::Close(Some(frame)) if frame.code == CloseCode::Invalid));

        let mut other = connect(address).await.expect("connects");
        stop.cancel();
        let last = other.next().await;
        assert!(matches!(last, None | Some(Err(_)) | Some(Ok(Message::Close(_)))), "{last:?}");
        assert!(statistics.woken().now_or_never().is_none());
        server.shutdown().await;
    }
}
