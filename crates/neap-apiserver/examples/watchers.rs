//! What many watchers of one kind cost: `cargo run --release --example watchers -- 10000` opens so many watches in one
//! process, writes an object, and says how long it took until all had it and how much memory they hold.

#[path = "../tests/kinds/mod.rs"]
mod kinds;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use neap_apiserver::{ApiServer, Body, Caller, Config, Registry, auth};
use neap_store::Store;
use std::sync::Arc;
use std::time::Instant;

const WIDGETS: &str = "/apis/ex.dev/v1/namespaces/ns/widgets";
/// Events that all watchers get, one after the other.
const EVENTS: usize = 5;

async fn ask(server: &ApiServer, request: Request<Bytes>) -> Body {
    server.answer(request.map(Full::new), Caller::outside(Some(auth::admin("watcher")))).await.into_body()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "an example is a binary: the clock is read here and passed on")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let registry = Registry::new();
    registry.register_all(&kinds::kubernetes())?;
    registry.register(&kinds::widgets())?;
    let server = ApiServer::new(Store::memory(), registry, Config::new(Arc::new(Timestamp::now), 1));
    let namespace = r#"{"metadata": {"name": "ns"}}"#;
    ask(&server, Request::post("/api/v1/namespaces").body(namespace.into())?).await;
    let before = resident_kib();
    let mut watches = Vec::with_capacity(count);
    for _ in 0..count {
        watches.push(ask(&server, Request::get(format!("{WIDGETS}?watch=1")).body(Bytes::new())?).await);
    }
    println!("{count} watches: {:.1} KiB each", (resident_kib() - before) as f64 / count as f64);
    for n in 0..EVENTS {
        let text = "x".repeat(2048);
        let widget = format!(
            r#"{{"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {{"name": "w{n}", "annotations": {{"a": "{text}"}}}}, "spec": {{"size": 1}}}}"#
        );
        let begun = Instant::now();
        ask(&server, Request::post(WIDGETS).body(widget.into())?).await;
        for watch in &mut watches {
            watch.frame().await.ok_or("a watch ended")??;
        }
        println!(
            "event {n}: all have it after {:.1} ms, {} KiB resident",
            begun.elapsed().as_secs_f64() * 1e3,
            resident_kib()
        );
    }
    Ok(())
}
