//! The listener: TLS or plain, HTTP/1.1 or h2 as negotiated, each connection a task that ends with the server.

use crate::auth::identity;
use crate::codec::{self, Body};
use crate::server::{ApiServer, Caller};
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::authentication::v1::UserInfo;
use std::convert::Infallible;
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
/// A handshake or the head of a request that takes longer is no client's.
const HANDSHAKE: Duration = Duration::from_secs(10);
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
                    accepted = listener.accept() => accepted.map(|(stream, _)| (stream, permit)),
                }
            }
        };
        match accepted {
            Ok((stream, permit)) => {
                let (server, tls, shutdown, abort) = (server.clone(), tls.clone(), shutdown.clone(), abort.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = abort.cancelled() => {}
                        () = connection(server, stream, tls, shutdown) => {}
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

async fn connection(server: ApiServer, stream: TcpStream, tls: Option<TlsAcceptor>, shutdown: CancellationToken) {
    // Small answers must not wait for the acknowledgement of the ones before.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return http(Peer { server, user: None }, stream, false, shutdown).await;
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
    http(Peer { server, user }, stream, h2, shutdown).await;
}

async fn http<S>(peer: Peer, stream: S, h2: bool, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let result = if h2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(io, peer);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE)
            .serve_connection(io, peer)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
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
}

impl hyper::service::Service<Request<Incoming>> for Peer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let peer = self.clone();
        Box::pin(async move {
            let user = match identity::of_request(&peer.server.0, request.headers(), peer.user.as_ref()) {
                Ok(user) => user,
                Err(error) => return Ok(codec::error(&error)),
            };
            Ok(peer.server.answer(request, Caller::outside(user)).await)
        })
    }
}
