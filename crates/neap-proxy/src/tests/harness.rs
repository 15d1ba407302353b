//! What the tests stand on.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::task::TaskTracker;

use crate::server::connection::speak;
use crate::server::worker::Shared;
use crate::upstream::Deadline;
use crate::*;

/// Runs a test on one thread with local tasks.
pub(super) async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// The engine before one origin.
pub(super) struct Engine {
    pub(super) shared: Rc<Shared>,
    pub(super) metrics: Metrics,
    handler: Rc<Proxy>,
}

pub(super) struct Proxy {
    upstream: Upstream,
    /// `None`: it has no instance, and requests wait for one.
    target: Option<Target>,
    limits: Limits,
    /// Holds given back so far, with how they ended.
    pub(super) ended: Rc<RefCell<Vec<Outcome>>>,
    /// Places taken now.
    held: Rc<()>,
}

impl Engine {
    pub(super) fn new(target: Target, limits: Limits) -> Self {
        Self::with(ServerConfig::default(), target, limits)
    }

    pub(super) fn with(config: ServerConfig, target: Target, limits: Limits) -> Self {
        Self::before(config, Some(target), limits)
    }

    /// Its requests wait for ever.
    pub(super) fn without_instance() -> Self {
        Self::before(ServerConfig::default(), None, Limits::default())
    }

    fn before(config: ServerConfig, target: Option<Target>, limits: Limits) -> Self {
        let metrics = Metrics::default();
        let shared = Shared::new(Server::new(config, metrics.clone()), Arc::new([]));
        let upstream = Upstream::new(UpstreamConfig::default(), metrics.clone(), TaskTracker::new());
        let handler = Rc::new(Proxy { upstream, target, limits, ended: Rc::default(), held: Rc::default() });
        Self { shared, metrics, handler }
    }

    /// A client's connection.
    pub(super) fn connect(&self) -> DuplexStream {
        self.connect_as(None)
    }

    /// The same; `h2` is what TLS has settled.
    pub(super) fn connect_as(&self, h2: Option<bool>) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let peer = ([192, 0, 2, 7], 4711).into();
        let local = ([192, 0, 2, 1], 80).into();
        let connection = Connection::plain(peer, local, 0);
        let (shared, handler) = (self.shared.clone(), self.handler.clone());
        spawn_local(async move { speak(server, connection, h2, &shared, handler, None).await });
        client
    }

    /// What a worker does to its upstream once a second.
    pub(super) fn sweep(&self) {
        self.handler.upstream.sweep();
    }

    pub(super) fn close_tunnels(&self) {
        self.handler.upstream.close_tunnels();
    }

    pub(super) fn ended(&self) -> Vec<Outcome> {
        self.handler.ended.borrow().clone()
    }

    /// Places at the origin, or in the queue before it, that are taken.
    pub(super) fn held(&self) -> usize {
        Rc::strong_count(&self.handler.held) - 1
    }

    /// A client's connection through the kernel.
    pub(super) async fn connect_by_tcp(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let local = listener.local_addr().expect("has an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(local), listener.accept());
        let (server, peer) = accepted.expect("accepts");
        let (shared, handler) = (self.shared.clone(), self.handler.clone());
        spawn_local(async move {
            speak(server, Connection::plain(peer, local, 0), None, &shared, handler, None).await;
        });
        client.expect("connects")
    }

    /// Sends bytes on a connection of their own and returns all that comes back until it closes.
    pub(super) async fn raw(&self, request: &str) -> String {
        let mut client = self.connect();
        // Who sends too much may be refused before the end.
        drop(client.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("reads");
        String::from_utf8(answer).expect("text")
    }
}

impl Handler for Proxy {
    async fn handle(&self, mut request: Request, connection: &Connection) -> Response {
        let arrived = time::now();
        if let Err(error) = headers::canonical(&mut request) {
            return error.respond(false);
        }
        let origin = headers::Origin { peer: &connection.peer_value, tls: connection.tls, trusted: false };
        headers::set_forwarded(request.headers_mut(), origin);
        let mut picker = One(self.target, self.ended.clone(), &self.held);
        match forward(&self.upstream, &mut picker, &mut Some(request), &self.limits, arrived).await {
            Ok(response) => response,
            Err(error) => error.respond(false),
        }
    }
}

struct One<'a>(Option<Target>, Rc<RefCell<Vec<Outcome>>>, &'a Rc<()>);

pub(super) struct Hold(Rc<RefCell<Vec<Outcome>>>, #[expect(dead_code, reason = "counted until it is dropped")] Rc<()>);

impl OnEnd for Hold {
    fn on_end(&mut self, outcome: Outcome, _bytes: u64) {
        self.0.borrow_mut().push(outcome);
    }
}

impl Picker for One<'_> {
    type Hold = Hold;

    async fn pick(&mut self, _deadline: Option<Deadline>) -> Result<Picked<Hold>, ProxyError> {
        let hold = Hold(self.1.clone(), self.2.clone());
        match self.0 {
            Some(target) => Ok(Picked { target, hold }),
            None => std::future::pending().await,
        }
    }

    fn refused(&mut self, _picked: Picked<Hold>, error: ProxyError) -> Result<(), ProxyError> {
        Err(error)
    }
}

/// An origin that speaks HTTP/1.1 as the handler says.
pub(super) async fn origin<F, R>(handler: F) -> Target
where
    F: Fn(http::Request<Incoming>) -> R + 'static,
    R: Future<Output = http::Response<BoxBody>> + 'static,
{
    let handler = Rc::new(handler);
    raw_origin(Protocol::Http1, move |stream| {
        let handler = handler.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            drop(served.await);
        }
    })
    .await
}

/// The same for h2c.
pub(super) async fn h2c_origin<F, R>(handler: F) -> Target
where
    F: Fn(http::Request<Incoming>) -> R + 'static,
    R: Future<Output = http::Response<BoxBody>> + 'static,
{
    let handler = Rc::new(handler);
    raw_origin(Protocol::H2c, move |stream| {
        let handler = handler.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http2::Builder::new(server::LocalExecutor)
                .serve_connection(TokioIo::new(stream), service);
            drop(served.await);
        }
    })
    .await
}

/// An origin that does with each connection what it likes.
pub(super) async fn raw_origin<F, R>(protocol: Protocol, serve: F) -> Target
where
    F: Fn(TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr: SocketAddr = listener.local_addr().expect("has an address");
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream));
        }
    });
    Target { addr, protocol }
}

pub(super) type BoxBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

pub(super) fn text(text: impl Into<Bytes>) -> http::Response<BoxBody> {
    http::Response::new(Full::new(text.into()).boxed_unsync())
}

/// A body fed through a channel.
pub(super) fn channel() -> (tokio::sync::mpsc::Sender<http_body::Frame<Bytes>>, BoxBody) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<http_body::Frame<Bytes>>(1);
    let frames = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
    (sender, http_body_util::StreamBody::new(frames).boxed_unsync())
}

/// Answers with the request's own frames as they come.
pub(super) async fn echo(request: http::Request<Incoming>) -> http::Response<BoxBody> {
    let (sender, body) = channel();
    let mut incoming = request.into_body();
    spawn_local(async move {
        while let Some(Ok(frame)) = incoming.frame().await {
            if sender.send(frame).await.is_err() {
                break;
            }
        }
    });
    http::Response::new(body)
}

/// Reads until the text has come.
pub(super) async fn read_until(client: &mut DuplexStream, wanted: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(wanted) {
        let mut chunk = [0; 4096];
        let n = client.read(&mut chunk).await.expect("reads");
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(read).expect("text")
}
