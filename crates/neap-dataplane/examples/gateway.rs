//! A gateway before one origin, without a cluster: what the data plane costs on top of the bare engine.
//!
//! `cargo run --release -p neap-dataplane --example gateway -- LISTEN ORIGIN [WORKERS] [CONTAINER_CONCURRENCY]`; ask for
//! host `hello.default.example.com`.

use std::net::SocketAddr;

use neap_dataplane::{Config, DataPlane, Door, Feed, Gateway, GatewayListener};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "gateway LISTEN ORIGIN [WORKERS] [CONTAINER_CONCURRENCY]";
    let listen: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let origin: SocketAddr = args.next().ok_or(usage)?.parse()?;
    let workers = args.next().map_or(Ok(1), |workers| workers.parse())?;
    let concurrency: i64 = args.next().map_or(Ok(0), |limit| limit.parse())?;

    let (plane, _wakes) = DataPlane::new("bench");
    let now = Instant::now();
    plane.feed::<neap_api::serving::Revision>(
        Feed::Apply(serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": { "namespace": "default", "name": "hello-00001" },
            "spec": { "containerConcurrency": concurrency, "timeoutSeconds": 300, "responseStartTimeoutSeconds": 300,
                      "containers": [{ "image": "x" }] },
        }))?),
        now,
    );
    plane.feed::<k8s_openapi::api::discovery::v1::EndpointSlice>(
        Feed::Apply(serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "default", "name": "hello-00001-private-1",
                          "labels": { "kubernetes.io/service-name": "hello-00001-private" } },
            "ports": [{ "name": "http", "port": origin.port() }],
            "endpoints": [{ "addresses": [origin.ip()], "conditions": { "ready": true } }],
        }))?),
        now,
    );
    plane.feed::<neap_api::networking::Ingress>(
        Feed::Apply(serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": { "namespace": "default", "name": "hello",
                          "annotations": { "networking.knative.dev/ingress.class": "bench" } },
            "spec": { "rules": [{ "hosts": ["hello.default.example.com"], "http": { "paths": [{ "splits": [{
                "serviceName": "hello-00001", "serviceNamespace": "default", "servicePort": 80, "percent": 100,
                "appendHeaders": { "Knative-Serving-Revision": "hello-00001", "Knative-Serving-Namespace": "default" },
            }] }] } }] },
        }))?),
        now,
    );
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
