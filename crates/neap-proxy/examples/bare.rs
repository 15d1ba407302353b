//! The engine with nothing on top: every request goes to one origin. For comparing the engine with other proxies.
//!
//! `cargo run --release -p neap-proxy --example bare -- LISTEN ORIGIN [WORKERS] [h2c]`

use std::net::SocketAddr;

use neap_proxy::{
    Connection, Handler, Limits, Listener, Metrics, OnEnd, Outcome, Picked, Picker, Protocol, ProxyError, Request,
    Response, Server, ServerConfig, Target, Upstream, UpstreamConfig, forward, headers,
};
use tokio_util::sync::CancellationToken;

struct Bare {
    upstream: std::rc::Rc<Upstream>,
    target: Target,
}

impl Handler for Bare {
    async fn handle(&self, mut request: Request, connection: &Connection) -> Response {
        if let Err(error) = headers::canonical(&mut request) {
            return error.respond(false);
        }
        let origin = headers::Origin { peer: &connection.peer_value, tls: connection.tls, trusted: false };
        headers::set_forwarded(request.headers_mut(), origin);
        let limits = Limits { total: Some(std::time::Duration::from_secs(300)), ..Limits::default() };
        let arrived = tokio::time::Instant::now();
        match forward(&self.upstream, &mut Always(self.target), &mut Some(request), &limits, arrived).await {
            Ok(response) => response,
            Err(error) => error.respond(false),
        }
    }
}

struct Always(Target);

struct Nothing;

impl OnEnd for Nothing {
    fn on_end(&mut self, _outcome: Outcome, _bytes: u64) {}
}

impl Picker for Always {
    type Hold = Nothing;

    async fn pick(&mut self, _by: Option<neap_proxy::upstream::Deadline>) -> Result<Picked<Nothing>, ProxyError> {
        Ok(Picked { target: self.0, hold: Nothing })
    }

    fn refused(&mut self, _picked: Picked<Nothing>, error: ProxyError) -> Result<(), ProxyError> {
        Err(error)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "bare LISTEN ORIGIN [WORKERS] [h2c]";
    let listen: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let origin: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let workers = args.next().map_or(Ok(1), |workers| workers.parse())?;
    let protocol = if args.next().as_deref() == Some("h2c") { Protocol::H2c } else { Protocol::Http1 };
    let target = Target { addr: origin, protocol };
    let socket = std::net::TcpListener::bind(listen)?;
    let metrics = Metrics::default();
    let server = Server::new(ServerConfig::default(), metrics.clone());
    let running = server.start(vec![Listener::plain(socket)], workers, CancellationToken::new(), move |worker| {
        let upstream = Upstream::new(UpstreamConfig::default(), metrics.clone(), worker.tasks().clone());
        let upstream = std::rc::Rc::new(upstream);
        let swept = upstream.clone();
        worker.on_sweep(move || swept.sweep());
        Bare { upstream, target }
    })?;
    println!("serving {} on {:?}", origin, running.addresses());
    running.join_blocking();
    Ok(())
}
