//! The listener: TLS or plain, HTTP/1.1 or h2 as negotiated, each connection a task that ends with the server.

use crate::auth::identity;
use crate::codec::Body;
use crate::server::ApiServer;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::authentication::v1::UserInfo;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time. Clients multiplex; a machine's worth of controllers, kubectls and pods stays far below.
const CONNECTIONS: usize = 4096;
/// A handshake that takes longer is no client's.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may take to its first request by a known user. Who only asks what everybody may ask comes back
/// with another: whoever answers pings could hold a place for ever, and there are not many.
const FIRST: Duration = Duration::from_secs(30);
/// How long such a connection has for the request it is just answering.
const LAST: Duration = Duration::from_secs(5);
/// How long a connection may be idle between two requests, and the head of one may take. Clients keep connections for
/// 90 s (Go's `IdleConnTimeout`, and kube-apiserver's own limit); who closes first must not be the server, or a request
/// that is just on its way fails.
const IDLE: Duration = Duration::from_secs(180);
/// How long requests in flight may go on when the server stops. Watches are told and end at once.
const DRAIN: Duration = Duration::from_secs(5);
/// A pause after accept failed (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// h2 keep-alive: finds clients that vanished without a word, as Kubernetes does.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Serves until `shutdown`, then drains. Returns once no connection is left.
pub async fn serve(
    server: ApiServer,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    shutdown: CancellationToken,
) {
    let tls = tls.map(TlsAcceptor::from);
    let tasks = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = room.clone().acquire_owned() => {
                let permit = permit.expect("the semaphore is never closed");
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    accepted = listener.accept() => accepted.map(|(stream, from)| (stream, from.ip(), permit)),
                }
            }
        };
        match accepted {
            Ok((stream, source, permit)) => {
                let peer = Peer { server: server.clone(), user: None, source, begun: CancellationToken::new() };
                let (tls, shutdown, abort) = (tls.clone(), shutdown.clone(), abort.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = abort.cancelled() => {}
                        () = connection(peer, stream, tls, shutdown) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        abort.cancel();
        tasks.wait().await;
    }
}

async fn connection(peer: Peer, stream: TcpStream, tls: Option<TlsAcceptor>, shutdown: CancellationToken) {
    // Small answers must not wait for the acknowledgement of the ones before.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return http(peer, stream, false, shutdown).await;
    };
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        // Port scans and clients that do not trust us: their matter.
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let (_, session) = stream.get_ref();
    let user = session.peer_certificates().and_then(|c| c.first()).and_then(|c| identity::of_certificate(c));
    let h2 = session.alpn_protocol() == Some(b"h2");
    http(Peer { user, ..peer }, stream, h2, shutdown).await;
}

async fn http<S>(peer: Peer, stream: S, h2: bool, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let begun = peer.begun.clone();
    let silent = async {
        if tokio::time::timeout(FIRST, begun.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let mut silent = std::pin::pin!(silent);
    let result = if h2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(io, peer);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = silent.as_mut() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(LAST, connection).await {
                    Ok(result) => result,
                    Err(_) => return tracing::debug!("a connection of nobody did not end"),
                }
            }
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .serve_connection(io, peer)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = silent.as_mut() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(LAST, connection).await {
                    Ok(result) => result,
                    Err(_) => return tracing::debug!("a connection of nobody did not end"),
                }
            }
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The service of one connection: its certificate's user, unless a request brings a token.
#[derive(Clone)]
struct Peer {
    server: ApiServer,
    user: Option<UserInfo>,
    source: IpAddr,
    /// Cancelled by the first request of a known user.
    begun: CancellationToken,
}

impl hyper::service::Service<Request<Incoming>> for Peer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let user = self.server.identify(request.headers(), self.user.as_ref());
        if matches!(user, Ok(Some(_))) {
            self.begun.cancel();
        }
        let (server, source) = (self.server.clone(), self.source);
        Box::pin(async move { Ok(server.ask_as(request, user, Some(source)).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Registry};
    use jiff::Timestamp;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    async fn version(client: &mut DuplexStream) -> Option<String> {
        client.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.ok()?;
        let mut head = [0; 12];
        client.read_exact(&mut head).await.ok()?;
        // The rest of the answer is short and comes at once.
        let mut rest = [0; 4096];
        let read = client.read(&mut rest).await.ok()?;
        assert!(read < rest.len(), "the answer is longer than this test thinks");
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    fn connect(user: Option<UserInfo>, tasks: &mut tokio::task::JoinSet<()>) -> DuplexStream {
        let now: crate::Now = Arc::new(|| Timestamp::UNIX_EPOCH);
        let server = ApiServer::new(neap_store::Store::memory(), Registry::new(), Config::new(now, 1));
        let (client, ours) = tokio::io::duplex(64 * 1024);
        let peer = Peer { server, user, source: IpAddr::from([127, 0, 0, 1]), begun: CancellationToken::new() };
        tasks.spawn(http(peer, ours, false, CancellationToken::new()));
        client
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_kept_for_minutes_and_not_for_ever() {
        let mut tasks = tokio::task::JoinSet::new();
        let mut client = connect(Some(crate::auth::admin("a")), &mut tasks);
        for idle in [0, 27, 90, 170] {
            tokio::time::sleep(Duration::from_secs(idle)).await;
            assert_eq!(version(&mut client).await.as_deref(), Some("HTTP/1.1 200"), "after {idle} s");
        }
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert_eq!(version(&mut client).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_keeps_no_connection_however_busy() {
        let mut tasks = tokio::task::JoinSet::new();
        let mut client = connect(None, &mut tasks);
        for _ in 0..5 {
            assert_eq!(version(&mut client).await.as_deref(), Some("HTTP/1.1 200"));
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        tokio::time::sleep(FIRST).await;
        assert_eq!(version(&mut client).await, None);
    }
}
