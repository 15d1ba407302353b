//! The activator against facts E1, row by row.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use neap_api::serving::Revision;
use neap_api::statistics::decode_all;
use neap_proxy::server::LocalExecutor;
use neap_proxy::{Body, Handler, Request, Worker};
use serde_json::{Value, json};
use tokio::task::{LocalSet, spawn_local};

use neap_proxy::Upstream;

use super::*;
use crate::plane::Feed;

const OWN: &str = "198.19.0.9";

/// An activator without sockets of its own.
struct Rig {
    front: Front,
    plane: Arc<DataPlane>,
    backends: Arc<Backends>,
    wakes: RefCell<mpsc::Receiver<RevisionKey>>,
}

impl Rig {
    fn new() -> Self {
        let backends = Arc::new(Backends::new(OWN.parse().expect("an address"), false));
        let (plane, wakes) = DataPlane::with_backends(backends.clone());
        let engine = Metrics::default();
        let upstream = Upstream::new(UpstreamConfig::default(), engine.clone(), Worker::detached().tasks().clone());
        let health = Arc::new(Health::default());
        health.connected.store(true, Ordering::Relaxed);
        let front = Front {
            snapshots: plane.snapshots(),
            upstream: Rc::new(upstream),
            engine,
            health,
            metrics: (9, Arc::default()),
            suffix: "svc.cluster.local".into(),
            secure_port: None,
        };
        Self { front, plane, backends, wakes: RefCell::new(wakes) }
    }

    fn revision(&self, spec: Value) {
        let mut all = json!({ "containers": [{ "image": "x" }] });
        all.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        let revision = json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": { "namespace": "ns", "name": "r" }, "spec": all });
        let revision: Revision = serde_json::from_value(revision).expect("a Revision");
        self.plane.feed(Feed::Apply(revision), Instant::now());
    }

    /// Endpoints of a Service: addresses, and whether each is ready.
    fn endpoints(&self, service: &str, port: u16, addresses: &[(&str, bool)]) {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|(ip, ready)| json!({ "addresses": [ip], "conditions": { "ready": ready } }))
            .collect();
        let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "ns", "name": format!("{service}-1"),
                          "labels": { "kubernetes.io/service-name": service } },
            "ports": [{ "name": "http", "port": port }], "endpoints": endpoints });
        let slice: EndpointSlice = serde_json::from_value(slice).expect("a slice");
        self.plane.feed(Feed::Apply(slice), Instant::now());
    }

    fn prove_all(&self) {
        for (key, addr) in self.backends.unproven() {
            self.backends.proved(&key, addr, Instant::now());
        }
    }

    fn unproven(&self) -> Vec<String> {
        let mut all: Vec<_> = self.backends.unproven().into_iter().map(|(_, addr)| addr.ip().to_string()).collect();
        all.sort();
        all
    }

    fn instances(&self) -> Vec<String> {
        let overview = self.plane.revision("ns", "r").expect("is known");
        let mut all: Vec<_> = overview.instances.into_iter().map(|(addr, _)| addr).collect();
        all.sort();
        all
    }

    async fn send(&self, request: Request) -> (u16, String) {
        let response = self.front.handle(request, &connection()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("collects").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

fn connection() -> neap_proxy::Connection {
    neap_proxy::Connection::plain(([192, 0, 2, 7], 4711).into(), ([192, 0, 2, 1], 80).into(), 0)
}

fn get(fields: &[(&str, &str)]) -> Request {
    let mut builder = http::Request::get("/");
    if !fields.iter().any(|(name, _)| *name == "host") {
        builder = builder.header("host", "app.example");
    }
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::empty()).expect("a request")
}

const NAMED: [(&str, &str); 2] = [("knative-serving-revision", "r"), ("knative-serving-namespace", "ns")];

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// A sidecar: answers probes, and shows the headers of everything else.
async fn sidecar() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(async move {
                let service = service_fn(|request: http::Request<Incoming>| async move {
                    let agent = request.headers().get("user-agent").map(|agent| agent.to_str().expect("text"));
                    let text = if agent == Some("Knative-Activator-Probe") {
                        assert_eq!(
                            (request.uri().path(), &request.headers()["k-network-probe"]),
                            ("/healthz", &"queue".parse().expect("a value"))
                        );
                        "queue".to_owned()
                    } else {
                        let mut lines: Vec<_> = request
                            .headers()
                            .iter()
                            .map(|(n, v)| format!("{n}: {}", v.to_str().expect("text")))
                            .collect();
                        lines.sort();
                        format!("{:?}\n{}", request.version(), lines.join("\n"))
                    };
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(text))))
                });
                let both = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
                drop(both.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    addr
}

#[tokio::test]
async fn e1_2_probes_and_unknown_revisions() {
    local(async {
        let rig = Rig::new();
        let check = async |fields: &[(&str, &str)], status: u16, body: &str| {
            let got = rig.send(get(fields)).await;
            assert_eq!((got.0, got.1.as_str()), (status, body), "{fields:?}");
        };
        check(&[("user-agent", "kube-probe/1.31")], 200, "").await;
        check(&[("k-kubelet-probe", "activator")], 200, "").await;
        check(&[("k-network-probe", "probe"), ("k-network-hash", "abc")], 200, "").await;
        check(&[("k-network-probe", "activator")], 200, "activator").await;
        check(&[("k-network-probe", "other")], 400, "unexpected probe header value: other\n").await;
        assert_eq!(rig.send(get(&NAMED)).await.0, 404);
        assert_eq!(rig.send(get(&[("host", "r.ns.svc.cluster.local")])).await.0, 404);
        rig.front.health.connected.store(false, Ordering::Relaxed);
        check(&[("user-agent", "kube-probe/1.31")], 500, "the autoscaler is not connected\n").await;
        rig.front.health.stopping.store(true, Ordering::Relaxed);
        check(&[("user-agent", "kube-probe/1.31")], 500, "received SIGTERM from kubelet\n").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn e1_3_the_timeout_of_a_request_that_waits() {
    local(async {
        let rig = Rig::new();
        rig.revision(json!({ "timeoutSeconds": 20, "responseStartTimeoutSeconds": 7 }));
        let began = Instant::now();
        assert_eq!(rig.send(get(&NAMED)).await, (504, "activator request timeout".into()));
        assert_eq!(began.elapsed().as_secs(), 7);
        assert_eq!(rig.wakes.borrow_mut().try_recv().expect("asked for one"), RevisionKey::new("ns", "r"));
    })
    .await;
}

#[tokio::test]
async fn e1_7_an_activator_takes_its_share() {
    let rig = Rig::new();
    rig.revision(json!({}));
    let pods: Vec<String> = (1..=7).map(|n| format!("198.19.1.{n}")).collect();
    let all: Vec<_> = pods.iter().map(|ip| (ip.as_str(), true)).collect();
    rig.endpoints("r-private", 8012, &all);
    rig.prove_all();
    assert_eq!(rig.instances().len(), 7, "not among the public addresses: all");
    rig.endpoints("r", 8012, &[("198.19.0.7", true), (OWN, true), ("198.19.0.8", true)]);
    assert_eq!(rig.instances(), ["198.19.1.5:8012", "198.19.1.6:8012"], "the last of three");
    rig.endpoints("r", 8012, &[("198.19.1.1", true)]);
    assert_eq!(rig.instances().len(), 7, "out of the path again");
}

#[tokio::test]
async fn e1_8_instances_prove_themselves() {
    let rig = Rig::new();
    rig.revision(json!({}));
    rig.endpoints("r-private", 8012, &[("198.19.1.1", true), ("198.19.1.2", false)]);
    assert_eq!((rig.unproven(), rig.instances().len()), (vec!["198.19.1.1".into(), "198.19.1.2".into()], 0));
    rig.prove_all();
    assert_eq!(rig.instances().len(), 2, "also one that is not ready yet");
    rig.endpoints("r-private", 8012, &[("198.19.1.1", false), ("198.19.1.2", true)]);
    assert_eq!(rig.unproven(), ["198.19.1.1"], "one that was ready and is not has to prove itself again");
    assert_eq!(rig.instances(), ["198.19.1.2:8012"]);
    rig.endpoints("r-private", 8012, &[("198.19.1.1", false)]);
    assert_eq!(rig.instances().len(), 0, "one that is gone gets nothing");

    let late = |spec: Value| {
        let rig = Rig::new();
        rig.revision(spec);
        rig.endpoints("r-private", 8012, &[("198.19.1.1", true), ("198.19.1.2", false)]);
        assert_eq!(rig.unproven(), ["198.19.1.1"], "only the ready one");
    };
    late(json!({ "containers": [{ "image": "x", "readinessProbe": { "exec": { "command": ["true"] } } }] }));
    late(json!({ "containers": [{ "image": "x", "startupProbe": { "httpGet": { "port": 1 } } }] }));
}

#[tokio::test]
async fn e1_9_what_is_trusted_needs_no_probe() {
    let backends = Arc::new(Backends::new(OWN.parse().expect("an address"), true));
    let (plane, wakes) = DataPlane::with_backends(backends.clone());
    let rig = Rig { plane, backends, wakes: RefCell::new(wakes), ..Rig::new() };
    rig.revision(json!({}));
    rig.endpoints("r-private", 8012, &[("198.19.1.1", true), ("198.19.1.2", false)]);
    assert_eq!(rig.instances(), ["198.19.1.1:8012"]);
}

#[tokio::test]
async fn e1_10_the_sidecar_sees_these_headers() {
    local(async {
        let rig = Rig::new();
        let addr = sidecar().await;
        rig.revision(json!({}));
        rig.endpoints("r-private", addr.port(), &[("127.0.0.1", true)]);
        rig.prove_all();
        let (status, body) = rig.send(get(&NAMED)).await;
        let want = "HTTP/1.1\nhost: app.example\nk-original-host: app.example\nk-proxy-request: activator\n\
                    x-forwarded-for: 192.0.2.7";
        assert_eq!((status, body.as_str()), (200, want));
        // By host alone, and one that has been rewritten before.
        let (_, body) =
            rig.send(get(&[("host", "r.ns.svc.cluster.local:80"), ("k-original-host", "www.example.com")])).await;
        assert!(body.contains("\nk-original-host: www.example.com\n"), "{body}");
        let mut request = get(&NAMED);
        *request.version_mut() = http::Version::HTTP_2;
        assert!(rig.send(request).await.1.starts_with("HTTP/2.0\n"));
    })
    .await;
}

#[tokio::test]
async fn e1_the_whole_way_from_zero() {
    local(async {
        let vars = [("POD_NAME", "activator-1"), ("POD_IP", OWN), ("PROBE_FREQUENCY", "5ms")];
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let activator = Activator::new(Settings::from_env(&vars).expect("is understood"));
        let rig = Rig { plane: activator.plane(), ..Rig::new() };
        rig.revision(json!({ "containerConcurrency": 1 }));
        let socket = || std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let life = Life::default();
        let started = activator.start(vec![socket()], socket(), 1, &life).expect("starts");
        let Started { running, mut messages, connection, background } = started;
        let background = spawn_local(background);
        connection.set(true);
        let ask = |path: &'static str, at: usize, fields: Vec<(&'static str, &'static str)>| {
            let addr = running.addresses()[at];
            async move {
                let stream = tokio::net::TcpStream::connect(addr).await.expect("connects");
                let (mut sender, driver) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks");
                spawn_local(driver);
                let mut builder = http::Request::get(path).header("host", "app.example");
                for (name, value) in fields {
                    builder = builder.header(name, value);
                }
                let request = builder.body(Full::<Bytes>::default()).expect("a request");
                let response = sender.send_request(request).await.expect("answers");
                let status = response.status().as_u16();
                let body = response.into_body().collect().await.expect("collects").to_bytes();
                (status, String::from_utf8_lossy(&body).into_owned())
            }
        };
        let waiting = spawn_local(ask("/", 0, NAMED.to_vec()));
        let message = decode_all(&messages.recv().await.expect("a message")).expect("is one");
        assert_eq!(
            (message[0].name.as_str(), message[0].statistics.as_ref().expect("has some").request_count),
            ("r", 1.0)
        );
        // The autoscaler has made an instance; the cluster does not call it ready yet.
        let addr = sidecar().await;
        rig.endpoints("r-private", addr.port(), &[("127.0.0.1", false)]);
        let (status, body) = waiting.await.expect("ends");
        assert!(status == 200 && body.contains("k-proxy-request: activator"), "{status} {body}");
        let (_, metrics) = ask("/metrics", 1, vec![]).await;
        for line in
            ["kn_activator_stats_conn_reachable 1", "kn_revision_request_concurrency{", "kn_revision_request_queued{"]
        {
            assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
        }
        // A request that waits when the end begins still gets its instance.
        rig.endpoints("r-private", addr.port(), &[]);
        let waiting = spawn_local(ask("/", 0, NAMED.to_vec()));
        let waits = || rig.plane.revision("ns", "r").is_some_and(|revision| revision.waiting > 0);
        while !waits() {
            tokio::task::yield_now().await;
        }
        life.stopping.cancel();
        life.shutdown.cancel();
        let other = sidecar().await;
        rig.endpoints("r-private", other.port(), &[("127.0.0.1", false)]);
        let (status, body) = waiting.await.expect("ends");
        assert_eq!(status, 200, "{body}");
        running.join().await;
        life.ended.cancel();
        background.await.expect("ends");
    })
    .await;
}

/// The message is the autoscaler's in full: what is said at once and what is said each second are the same kind.
#[tokio::test(start_paused = true)]
async fn e1_11_reports_go_out_every_second() {
    let backends = Arc::new(Backends::new(IpAddr::from([127, 0, 0, 1]), true));
    let (plane, wakes) = DataPlane::with_backends(backends);
    let rig = Rig { plane: plane.clone(), ..Rig::new() };
    rig.revision(json!({}));
    let gate = plane.snapshot().revisions.values().next().expect("one").clone();
    let (sender, mut messages) = mpsc::channel::<Vec<u8>>(8);
    let seen = Mutex::new(Vec::new());
    let read = async {
        let entry = gate.enter(Instant::now(), crate::gate::Comes::First, None);
        while let Some(message) = messages.recv().await {
            let all = decode_all(&message).expect("is one");
            let stat = all[0].statistics.clone().expect("has some");
            let mut seen = seen.lock().expect("is whole");
            seen.push((stat.average_concurrent_requests.round(), stat.request_count));
            if seen.len() == 3 {
                break;
            }
        }
        drop(entry);
    };
    tokio::select! {
        () = report("a".into(), &plane, wakes, &sender) => panic!("it never ends by itself"),
        () = read => {}
    }
    // At once; then the first second without it; then a second with a request that is present all the time.
    assert_eq!(*seen.lock().expect("is whole"), [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0)]);
}

#[tokio::test]
async fn e1_10_sidecars_may_take_tls() {
    local(async {
        let made = rcgen::generate_simple_self_signed([SIDECAR_NAME.to_owned()]).expect("makes a certificate");
        let key = made.signing_key.serialize_pem();
        let pair = neap_proxy::tls::certified_key(made.cert.pem().as_bytes(), key.as_bytes()).expect("fits");
        #[derive(Debug)]
        struct Fixed(Arc<neap_proxy::tls::CertifiedKey>);
        impl ResolvesServerCert for Fixed {
            fn resolve(&self, _: neap_proxy::tls::ClientHello<'_>) -> Option<Arc<neap_proxy::tls::CertifiedKey>> {
                Some(self.0.clone())
            }
        }
        struct Tell;
        impl Handler for Tell {
            async fn handle(&self, request: Request, connection: &neap_proxy::Connection) -> neap_proxy::Response {
                let host = request.headers()["k-original-host"].to_str().expect("text").to_owned();
                http::Response::new(Body::full(format!("{host} {}", connection.tls)))
            }
        }
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let shutdown = CancellationToken::new();
        let listener = Listener::tls(socket, TlsPolicy::default().server_config(Arc::new(Fixed(pair))));
        let running = Server::new(ServerConfig::default(), Metrics::default())
            .start(vec![listener], 1, shutdown.clone(), |_| Tell)
            .expect("starts");
        let port = running.addresses()[0].port();

        let mut rig = Rig::new();
        let tls = ClientTls::new(made.cert.pem().as_bytes(), SIDECAR_NAME).expect("is an authority");
        let config = UpstreamConfig { tls: Some(tls), ..UpstreamConfig::default() };
        let tasks = Worker::detached().tasks().clone();
        rig.front.upstream = Rc::new(Upstream::new(config, Metrics::default(), tasks));
        rig.front.secure_port = Some(port);
        rig.revision(json!({}));
        // The endpoints name the port in the clear, which is also the one that is probed.
        rig.endpoints("r-private", 8012, &[("127.0.0.1", true)]);
        rig.prove_all();
        assert_eq!(rig.send(get(&NAMED)).await, (200, "app.example true".into()));
        shutdown.cancel();
        drop(rig);
        running.join().await;
    })
    .await;
}
