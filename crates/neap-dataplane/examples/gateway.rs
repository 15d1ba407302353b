//! A gateway before one origin, without a cluster: what the data plane costs on top of the bare engine.
//!
//! `cargo run --release -p neap-dataplane --example gateway -- LISTEN ORIGIN [WORKERS] [CONTAINER_CONCURRENCY]`; ask for
//! host `hello.default.example.com`.

use std::net::SocketAddr;

use neap_dataplane::{Config, Door, Gateway, GatewayListener};
use tokio_util::sync::CancellationToken;

mod world;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "gateway LISTEN ORIGIN [WORKERS] [CONTAINER_CONCURRENCY]";
    let listen: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let origin: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let workers = args.next().map_or(Ok(1), |workers| workers.parse())?;
    let concurrency: i64 = args.next().map_or(Ok(0), |limit| limit.parse())?;

    let (plane, _wakes) = world::one_service(origin, concurrency)?;
    let mut registry = prometheus_client::registry::Registry::default();
    let socket = std::net::TcpListener::bind(listen)?;
    let listener = GatewayListener { socket, door: Door::External, tls: false, trust_forwarded: false };
    let running = Gateway::new(Config::default(), plane, &mut registry).start(
        vec![listener],
        workers,
        CancellationToken::new(),
    )?;
    println!("serving {origin} on {:?}", running.addresses());
    running.join_blocking();
    Ok(())
}
