//! A whole gateway on loopback: threads, sockets, long-lived connections, shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use neap_dataplane::{Config, DataPlane, Door, Feed, Gateway, GatewayListener};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn instances(plane: &DataPlane, addrs: &[SocketAddr]) {
    let slices = addrs.iter().map(|addr| {
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "ns", "name": addr.port().to_string(),
                          "labels": { "kubernetes.io/service-name": "r-private" } },
            "ports": [{ "name": "http", "port": addr.port() }], "endpoints": [{ "addresses": [addr.ip()] }],
        }))
        .expect("a slice")
    });
    plane.feed::<EndpointSlice>(Feed::Reset(slices.collect()), Instant::now());
}

fn world() -> Arc<DataPlane> {
    let (plane, _wakes) = DataPlane::new("c");
    plane.feed::<neap_api::serving::Revision>(
        Feed::Apply(
            serde_json::from_value(json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": { "namespace": "ns", "name": "r" },
                "spec": { "timeoutSeconds": 1, "containers": [{ "image": "x" }] },
            }))
            .expect("a Revision"),
        ),
        Instant::now(),
    );
    plane.feed::<neap_api::networking::Ingress>(
        Feed::Apply(
            serde_json::from_value(json!({
                "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
                "metadata": { "namespace": "ns", "name": "i",
                              "annotations": { "networking.knative.dev/ingress.class": "c" } },
                "spec": { "rules": [{ "hosts": ["app.example"], "http": { "paths": [{ "splits": [{
                    "serviceName": "r", "serviceNamespace": "ns", "servicePort": 80, "percent": 100,
                    "appendHeaders": { "Knative-Serving-Revision": "r", "Knative-Serving-Namespace": "ns" } }] }] } }] },
            }))
            .expect("an Ingress"),
        ),
        Instant::now(),
    );
    plane
}

async fn read_until(client: &mut TcpStream, wanted: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(wanted) {
        let mut chunk = [0; 4096];
        let n = client.read(&mut chunk).await.expect("reads");
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(read).expect("text")
}

/// An instance that switches protocols and echoes.
async fn echo(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            read_until(&mut stream, "\r\n\r\n").await;
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("writes");
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.expect("echoes");
        }
    });
    addr
}

#[tokio::test]
async fn a_socket_is_a_request_while_it_is_open() {
    let mut tasks = JoinSet::new();
    let plane = world();
    let addr = echo(&mut tasks).await;
    instances(&plane, &[addr]);
    let mut registry = prometheus_client::registry::Registry::default();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let listener = GatewayListener { socket, door: Door::External, tls: false, trust_forwarded: false };
    let shutdown = CancellationToken::new();
    let running = Gateway::new(Config::default(), plane.clone(), &mut registry)
        .start(vec![listener], 2, shutdown.clone())
        .expect("starts");

    let mut client = TcpStream::connect(running.addresses()[0]).await.expect("connects");
    let head = "GET /ws HTTP/1.1\r\nHost: app.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("writes");
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    client.write_all(b"one").await.expect("writes");
    read_until(&mut client, "one").await;
    assert_eq!(plane.in_flight(addr), 1);
    assert_eq!(plane.collect(Instant::now())[0].concurrency, 1);

    instances(&plane, &[]);
    let drained = plane.drained(addr.ip(), Some(addr.port()));
    tokio::pin!(drained);
    assert!(futures::poll!(&mut drained).is_pending(), "it still has the socket");
    client.shutdown().await.expect("closes");
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), drained).await.expect("is drained");
    assert_eq!(plane.collect(Instant::now())[0].concurrency, 0);

    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), running.join()).await.expect("stops");
}
