//! The sample application: what `neap up --demo` deploys and what the tests call.
//!
//! It is a role of this binary (`neap sample`), so the image is packed from the running executable and needs neither
//! a second build nor a network. It greets, tells which revision it is, and misbehaves on demand. It knows nothing of Neap:
//! everything it reports comes from its environment and the request, as in any container.

mod grpc;
mod image;
mod query;
mod websocket;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use image::{EXECUTABLE, Files, pack};
use query::Query;

/// Port when `$PORT` says nothing: Knative's default user port.
const DEFAULT_PORT: u16 = 8080;
/// How long requests in flight may take after SIGTERM before the process ends anyway.
const DRAIN: Duration = Duration::from_secs(600);
/// Most that `/memory` keeps, MiB: enough to pass any limit a test sets, too little to hurt the machine.
const MEMORY_MAX_MIB: u64 = 4096;
/// Longest that one request may be told to last.
const LONGEST: Duration = Duration::from_secs(3600);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the process knows of itself.
struct App {
    /// Environment as it was at the start.
    env: Vec<(String, String)>,
    ready: AtomicBool,
    served: AtomicU64,
    in_flight: AtomicU64,
    /// Most requests that were ever inside at the same time; tests of containerConcurrency look at it.
    most_in_flight: AtomicU64,
}

/// Serves until SIGTERM or SIGINT, then lets requests in flight end.
///
/// # Errors
/// The port is taken, or signals cannot be handled.
pub fn run(env: Vec<(String, String)>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(env))
}

async fn serve(env: Vec<(String, String)>) -> io::Result<()> {
    let app = Arc::new(App {
        env,
        ready: AtomicBool::new(true),
        served: AtomicU64::new(0),
        in_flight: AtomicU64::new(0),
        most_in_flight: AtomicU64::new(0),
    });
    let port = app.var("PORT").and_then(|p| p.parse().ok()).unwrap_or(DEFAULT_PORT);
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());
    let stopping = CancellationToken::new();
    let mut connections = tokio::task::JoinSet::new();
    println!("listening on {port}, revision {}", app.var("K_REVISION").unwrap_or("none"));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // A greeting is one small write; waiting to fill a segment only adds latency.
                drop(stream.set_nodelay(true));
                let app = app.clone();
                let service = hyper::service::service_fn(move |request| {
                    let app = app.clone();
                    async move { Ok::<_, Infallible>(app.answer(request).await) }
                });
                let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
                connections.spawn(converse(connection, stopping.clone()));
            }
            Some(_) = connections.join_next() => {}
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    println!("stopping after {} requests", app.served.load(Ordering::Relaxed));
    drop(listener);
    stopping.cancel();
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is still in flight then is cut off by the process's end.
    drop(tokio::time::timeout(DRAIN, drained).await);
    Ok(())
}

/// One connection to its end; told to stop, it ends after the request it is in.
async fn converse<S>(
    connection: auto::UpgradeableConnection<'static, TokioIo<tokio::net::TcpStream>, S, TokioExecutor>,
    stopping: CancellationToken,
) where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + 'static,
    S::Future: Send + 'static,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopping.cancelled() => None,
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        // A peer that broke off needs no answer.
        drop(connection.await);
    }
}

impl App {
    fn var(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        self.served.fetch_add(1, Ordering::Relaxed);
        let inside = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(inside, Ordering::Relaxed);
        let response = self.route(request).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        if grpc::is_grpc(request.headers()) {
            return grpc::echo(request);
        }
        if websocket::is_upgrade(request.headers()) {
            return websocket::echo(request);
        }
        let query = Query::new(request.uri().query().unwrap_or_default());
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/" => self.greet(&query),
            "/info" => self.info(),
            "/headers" => headers(request.headers()),
            "/env" => self.env(),
            "/sleep" => {
                tokio::time::sleep(query.millis("ms", LONGEST)).await;
                self.greet(&query)
            }
            "/cpu" => self.burn(query.millis("ms", LONGEST)),
            "/memory" => fill(query.number("mb").unwrap_or(1).min(MEMORY_MAX_MIB), query.millis("ms", LONGEST)).await,
            "/sse" => events(query.number("count").unwrap_or(5), query.millis("ms", LONGEST)),
            "/echo" => echo(request),
            "/fail" => {
                let status = query.number("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(500);
                text(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), "failed on demand\n")
            }
            // The request in flight gets no answer: that is the point.
            "/exit" => std::process::exit(query.number("code").and_then(|c| i32::try_from(c).ok()).unwrap_or(1)),
            "/ready" => self.readiness(request.method(), &query),
            "/healthz" if self.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ok\n"),
            "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            _ => text(StatusCode::NOT_FOUND, USAGE),
        }
    }

    fn greet(&self, query: &Query) -> Response<Body> {
        let name =
            query.text("name").or_else(|| self.var("TARGET").map(str::to_owned)).unwrap_or_else(|| "World".into());
        let revision = self.var("K_REVISION").unwrap_or("no revision");
        text(StatusCode::OK, format!("Hello {name}, from {revision}!\n"))
    }

    fn info(&self) -> Response<Body> {
        json(&serde_json::json!({
            "revision": self.var("K_REVISION"),
            "configuration": self.var("K_CONFIGURATION"),
            "service": self.var("K_SERVICE"),
            "hostname": self.var("HOSTNAME"),
            "port": self.var("PORT"),
            "served": self.served.load(Ordering::Relaxed),
            "inFlight": self.in_flight.load(Ordering::Relaxed),
            "mostInFlight": self.most_in_flight.load(Ordering::Relaxed),
            "pid": std::process::id(),
        }))
    }

    fn env(&self) -> Response<Body> {
        let map: serde_json::Map<_, _> = self.env.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        json(&map.into())
    }

    /// Spins on this one thread: everything else this instance has to do waits, as in a busy application.
    #[expect(clippy::disallowed_methods, reason = "burning CPU for a wall-clock time needs the wall clock")]
    fn burn(&self, time: Duration) -> Response<Body> {
        let start = std::time::Instant::now();
        let mut rounds = 0_u64;
        while start.elapsed() < time {
            rounds = std::hint::black_box(rounds.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        text(StatusCode::OK, format!("burned {} ms\n", time.as_millis()))
    }

    /// GET tells, POST with `set=true|false` changes what `/healthz` answers.
    fn readiness(&self, method: &Method, query: &Query) -> Response<Body> {
        if method == Method::POST {
            self.ready.store(query.text("set").as_deref() != Some("false"), Ordering::Relaxed);
        }
        text(StatusCode::OK, format!("{}\n", self.ready.load(Ordering::Relaxed)))
    }
}

const USAGE: &str = "\
/            greets; ?name=
/info        who and how much, as JSON
/headers     the request's headers, as JSON
/env         the environment, as JSON
/sleep       ?ms=
/cpu         burns; ?ms=
/memory      fills and holds; ?mb= ?ms=
/sse         server-sent events; ?count= ?ms= between them
/echo        the request's body and trailers, streamed back
/fail        ?status=
/exit        ends the process; ?code=
/ready       POST ?set=true|false changes what /healthz answers
WebSocket and gRPC calls on any path are echoed.
";

/// Touches every page, so that the memory is really used, and gives it back after the answer.
async fn fill(mebibytes: u64, hold: Duration) -> Response<Body> {
    const PAGE: usize = 4096;
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        let mut block = vec![0_u8; 1 << 20];
        for byte in block.iter_mut().step_by(PAGE) {
            *byte = 1;
        }
        kept.push(block);
    }
    tokio::time::sleep(hold).await;
    text(StatusCode::OK, format!("held {} MiB\n", kept.len()))
}

fn events(count: u64, gap: Duration) -> Response<Body> {
    let stream = futures::stream::unfold(0, move |n| async move {
        if n >= count {
            return None;
        }
        if n > 0 {
            tokio::time::sleep(gap).await;
        }
        Some((Ok(Frame::data(Bytes::from(format!("id: {n}\ndata: event {n}\n\n")))), n + 1))
    });
    response(StatusCode::OK, "text/event-stream", BodyExt::boxed_unsync(StreamBody::new(stream)))
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let type_ = request.headers().get(header::CONTENT_TYPE).and_then(|t| t.to_str().ok()).unwrap_or("text/plain");
    let type_ = type_.to_owned();
    response(StatusCode::OK, &type_, passed_on(request.into_body()))
}

/// The incoming body as an outgoing one; it ends where the caller breaks off.
fn passed_on(body: Incoming) -> Body {
    let frames = futures::stream::unfold(body, |mut body| async move {
        match body.frame().await {
            Some(Ok(frame)) => Some((Ok(frame), body)),
            Some(Err(_)) | None => None,
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(frames.fuse()))
}

fn headers(headers: &HeaderMap) -> Response<Body> {
    let mut map = serde_json::Map::new();
    for (name, value) in headers {
        let values = map.entry(name.as_str()).or_insert_with(|| serde_json::json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(String::from_utf8_lossy(value.as_bytes()).into());
        }
    }
    json(&map.into())
}

fn json(value: &serde_json::Value) -> Response<Body> {
    response(StatusCode::OK, "application/json", full(format!("{value}\n")))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", full(body))
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

fn response(status: StatusCode, type_: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, type_)
        .body(body)
        .expect("status and content type come from this file or from a parsed header")
}
