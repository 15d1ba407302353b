//! The sidecar against facts E2, row by row: under a paused clock where time matters, over its own sockets where ports do.

#![expect(clippy::large_futures, reason = "a test runs once")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use neap_api::statistics::Statistics;
use neap_proxy::server::LocalExecutor;
use neap_proxy::{Body, Connection, Handler, Request};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use super::settings::tests::vars;
use super::*;

/// A sidecar without sockets of its own.
struct Rig {
    front: Rc<Front>,
    terminate: CancellationToken,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl RequestLog for Lines {
    fn line(&self, line: String) {
        self.0.lock().expect("is whole").push(line);
    }
}

impl Rig {
    fn new(user_port: u16, changes: &[(&str, &str)]) -> Self {
        Self::logged(user_port, changes, Arc::default())
    }

    fn logged(user_port: u16, changes: &[(&str, &str)], lines: Arc<Lines>) -> Self {
        let queue = Queue::new(settings(user_port, changes), Path::new("/nonexistent")).expect("needs no certificate");
        let queue = queue.with_request_log(lines);
        let (terminate, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let engine = neap_proxy::Metrics::default();
        let sidecar = queue.sidecar(&Worker::detached(), &engine, &terminate, &shutdown);
        let doors = vec![Door::Main, Door::Admin, Door::Stats, Door::Metrics];
        Self { front: Rc::new(Front { doors, sidecar }), terminate, shutdown }
    }

    fn sidecar(&self) -> &Sidecar {
        &self.front.sidecar
    }

    async fn send(&self, door: usize, request: Request) -> (u16, String) {
        let connection = Connection::plain(([192, 0, 2, 7], 4711).into(), ([192, 0, 2, 1], 80).into(), door);
        let response = self.front.handle(request, &connection).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("collects").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        self.send(0, get(path, fields)).await
    }

    /// The message of the time that has passed.
    fn stat(&self) -> Statistics {
        self.sidecar().counted.report(Instant::now());
        let request = get("/metrics", &[]);
        let connection = Connection::plain(([192, 0, 2, 7], 4711).into(), ([192, 0, 2, 1], 80).into(), 2);
        let response = self.front.handle(request, &connection).now_or_never().expect("answers at once");
        assert_eq!(response.headers()["content-type"], "application/protobuf");
        let body = response.into_body().collect().now_or_never().expect("is all there").expect("collects").to_bytes();
        Statistics::decode(&body).expect("is a message")
    }
}

fn settings(user_port: u16, changes: &[(&str, &str)]) -> Settings {
    let port = user_port.to_string();
    let mut vars: BTreeMap<String, String> = vars(changes);
    vars.insert("USER_PORT".into(), port);
    Settings::from_env(&vars).expect("is understood")
}

fn get(path: &str, fields: &[(&str, &str)]) -> Request {
    let mut builder = http::Request::get(path).header("host", "app.example");
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::empty()).expect("a request")
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// An application on loopback; it speaks HTTP/1.1 and h2c.
async fn app<F, R>(handler: F) -> u16
where
    F: Fn(http::Request<Incoming>) -> R + 'static,
    R: Future<Output = (u16, String)> + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    let handler = Rc::new(handler);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = handler.clone();
            spawn_local(async move {
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let answer = handler(request);
                    async move {
                        let (status, text) = answer.await;
                        let mut response = http::Response::new(Full::new(Bytes::from(text)));
                        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                        Ok::<_, Infallible>(response)
                    }
                });
                let io = TokioIo::new(stream);
                drop(hyper_util::server::conn::auto::Builder::new(LocalExecutor).serve_connection(io, service).await);
            });
        }
    });
    port
}

/// One that answers with the headers it got.
async fn mirror() -> u16 {
    app(|request| async move {
        let mut lines: Vec<_> =
            request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect();
        lines.sort();
        (200, format!("{:?}\n{}", request.version(), lines.join("\n")))
    })
    .await
}

/// One that answers when it is let.
async fn held() -> (u16, Rc<tokio::sync::Semaphore>, Rc<Cell<u32>>) {
    let (let_go, seen) = (Rc::new(tokio::sync::Semaphore::new(0)), Rc::new(Cell::new(0)));
    let (gate, count) = (let_go.clone(), seen.clone());
    let port = app(move |_| {
        let gate = gate.clone();
        count.set(count.get() + 1);
        async move {
            gate.acquire().await.expect("is open").forget();
            (200, "at last".into())
        }
    })
    .await;
    (port, let_go, seen)
}

fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has an address").port()
}

#[tokio::test]
async fn e2_2_the_application_sees_exactly_these_headers() {
    local(async {
        let rig = Rig::new(mirror().await, &[]);
        let (status, body) = rig
            .get(
                "/",
                &[
                    ("x-forwarded-for", "1.2.3.4, 10.0.0.1"),
                    ("x-forwarded-proto", "https"),
                    ("knative-serving-revision", "r"),
                    ("knative-serving-namespace", "ns"),
                    ("traceparent", "00-aa-bb-00"),
                    ("connection", "close"),
                ],
            )
            .await;
        let want = "HTTP/1.1\n\
                    forwarded: for=1.2.3.4;proto=https, for=10.0.0.1\n\
                    host: app.example\n\
                    traceparent: 00-aa-bb-00\n\
                    x-forwarded-for: 1.2.3.4, 10.0.0.1, 192.0.2.7\n\
                    x-forwarded-proto: https";
        assert_eq!((status, body.as_str()), (200, want));
        let (_, body) = rig.get("/", &[("forwarded", "for=9.9.9.9")]).await;
        assert!(body.contains("forwarded: for=9.9.9.9\n"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn e2_3_beyond_the_limit_requests_wait_and_beyond_the_queue_they_are_refused() {
    local(async {
        let (port, let_go, seen) = held().await;
        let rig = Rc::new(Rig::new(port, &[("CONTAINER_CONCURRENCY", "2")]));
        let requests: Vec<_> = (0..22)
            .map(|_| {
                let rig = rig.clone();
                spawn_local(async move { rig.get("/", &[]).await })
            })
            .collect();
        while seen.get() < 2 || rig.sidecar().breaker.as_ref().expect("has one").waiting() < 20 {
            tokio::task::yield_now().await;
        }
        let response = {
            let connection = Connection::plain(([192, 0, 2, 7], 1).into(), ([192, 0, 2, 1], 80).into(), 0);
            rig.front.handle(get("/", &[]), &connection).await
        };
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &"1".parse().expect("a value"))
        );
        let body = response.into_body().collect().await.expect("collects").to_bytes();
        assert_eq!(body, "pending request queue full");
        assert_eq!(seen.get(), 2, "no more than the limit at the application");
        let_go.add_permits(22);
        for request in requests {
            assert_eq!(request.await.expect("ends").0, 200);
        }
        assert_eq!(rig.sidecar().breaker.as_ref().expect("has one").in_flight(), 0);
        assert!(Rig::new(port, &[]).sidecar().breaker.is_none(), "no limit, no queue");
    })
    .await;
}

#[tokio::test]
async fn e2_4_probes_are_answered_here() {
    local(async {
        let rig = Rig::new(closed(), &[]);
        let check = async |fields: &[(&str, &str)], status: u16, body: &str| {
            let got = rig.get("/any", fields).await;
            assert_eq!((got.0, got.1.as_str()), (status, body), "{fields:?}");
        };
        check(&[("user-agent", "kube-probe/1.31"), ("k-network-probe", "queue")], 200, "queue").await;
        check(&[("user-agent", "Knative-Activator-Probe"), ("k-network-probe", "queue")], 200, "queue").await;
        check(&[("user-agent", "Knative-Autoscaling-Probe"), ("k-network-probe", "queue")], 200, "queue").await;
        check(&[("k-kubelet-probe", "queue"), ("k-network-probe", "queue")], 200, "queue").await;
        check(&[("user-agent", "kube-probe/1.31")], 400, "unexpected probe header value: \n").await;
        check(
            &[("user-agent", "kube-probe/1.31"), ("k-network-probe", "probe")],
            400,
            "unexpected probe header value: probe\n",
        )
        .await;
        check(&[("k-network-probe", "probe"), ("k-network-hash", "abc")], 200, "").await;
        let without = "a probe request must contain a non-empty \"K-Network-Hash\" header\n";
        check(&[("k-network-probe", "probe")], 400, without).await;
        // Whoever is none of the probers speaks to the application, whatever its headers.
        assert_eq!(rig.get("/", &[("k-network-probe", "queue")]).await.0, 502);

        let port = closed().to_string();
        let failing = json!({ "tcpSocket": { "port": port.parse::<u16>().expect("a port") }, "periodSeconds": 1 });
        let rig = Rig::new(closed(), &[("SERVING_READINESS_PROBE", &failing.to_string())]);
        let got = rig.get("/", &[("user-agent", "kube-probe/1"), ("k-network-probe", "queue")]).await;
        assert_eq!(got, (503, String::new()));
        let stat = rig.stat();
        assert_eq!((stat.request_count, stat.average_concurrent_requests), (0.0, 0.0), "probes are no requests");
    })
    .await;
}

#[tokio::test]
async fn e2_5_kinds_of_probes() {
    local(async {
        let healthy = app(|request| async move {
            let agent = request.headers()["user-agent"].to_str().expect("text").starts_with("kube-probe/");
            match (request.uri().path(), agent) {
                ("/ok", true) => (200, String::new()),
                ("/moved", true) => (301, String::new()),
                ("/fields", true) if request.headers()["x-a"] == "b" => (200, String::new()),
                ("/h2", true) if request.version() == http::Version::HTTP_2 => (200, String::new()),
                _ => (404, String::new()),
            }
        })
        .await;
        let dead = closed();
        let check = async |probe: serde_json::Value, changes: &[(&str, &str)], ready: bool| {
            let text = probe.to_string();
            let all: Vec<_> = changes.iter().copied().chain([("SERVING_READINESS_PROBE", text.as_str())]).collect();
            let rig = Rig::new(healthy, &all);
            assert_eq!(rig.sidecar().prober.ready().await, ready, "{probe}");
        };
        let http = |path: &str, port: u16| json!({ "httpGet": { "host": "127.0.0.1", "path": path, "port": port }, "periodSeconds": 1 });
        check(http("/ok", healthy), &[], true).await;
        check(http("ok", healthy), &[], true).await;
        check(http("/moved", healthy), &[], true).await;
        check(http("/missing", healthy), &[], false).await;
        check(http("/ok", dead), &[], false).await;
        check(http("/h2", healthy), &[], false).await;
        check(http("/h2", healthy), &[("ENABLE_HTTP2_AUTO_DETECTION", "true")], true).await;
        check(http("/ok", healthy), &[("ENABLE_HTTP2_AUTO_DETECTION", "true")], true).await;
        let fields = json!({ "httpGet": { "path": "/fields", "port": healthy, "httpHeaders": [{ "name": "X-A", "value": "b" }] },
                             "periodSeconds": 1, "timeoutSeconds": 5 });
        check(fields, &[], true).await;
        check(json!({ "tcpSocket": { "port": healthy }, "periodSeconds": 1 }), &[], true).await;
        check(json!({ "tcpSocket": { "port": dead }, "periodSeconds": 1 }), &[], false).await;
        check(json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 }), &[], false).await;
        // Several containers: all have to pass.
        let several = [("ENABLE_MULTI_CONTAINER_PROBES", "true")];
        check(json!([http("/ok", healthy), http("/moved", healthy)]), &several, true).await;
        check(json!([http("/ok", healthy), http("/missing", healthy)]), &several, false).await;
    })
    .await;
}

#[tokio::test]
async fn e2_5_the_health_protocol_of_grpc() {
    local(async {
        let check = async |answer: &'static [u8], status: &'static str, ready: bool| {
            let seen = Rc::new(RefCell::new(Bytes::new()));
            let port = grpc_app(answer, status, seen.clone()).await;
            let probe = json!({ "grpc": { "port": port, "service": "s" }, "periodSeconds": 1 }).to_string();
            let rig = Rig::new(port, &[("SERVING_READINESS_PROBE", &probe)]);
            assert_eq!(rig.sidecar().prober.ready().await, ready, "{answer:?} {status}");
            assert_eq!(seen.borrow()[..], *b"\0\0\0\0\x03\x0a\x01s");
        };
        check(b"\0\0\0\0\x02\x08\x01", "0", true).await;
        check(b"\0\0\0\0\x02\x08\x02", "0", false).await;
        check(b"", "12", false).await;
    })
    .await;
}

async fn grpc_app(answer: &'static [u8], status: &'static str, seen: Rc<RefCell<Bytes>>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            spawn_local(async move {
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let seen = seen.clone();
                    async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        *seen.borrow_mut() = request.into_body().collect().await.expect("collects").to_bytes();
                        let trailers =
                            [(http::HeaderName::from_static("grpc-status"), status.parse().expect("a value"))];
                        let body = Full::new(Bytes::from_static(answer));
                        let trailers: http::HeaderMap = trailers.into_iter().collect();
                        Ok::<_, Infallible>(http::Response::new(body.with_trailers(async move { Some(Ok(trailers)) })))
                    }
                });
                let http2 = hyper::server::conn::http2::Builder::new(LocalExecutor);
                drop(http2.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    port
}

#[tokio::test]
async fn e2_5_an_eager_probe_tries_until_it_has_succeeded_often_enough() {
    local(async {
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        let port = app(move |_| {
            count.set(count.get() + 1);
            let status = if count.get() == 2 { 500 } else { 200 };
            async move { (status, String::new()) }
        })
        .await;
        let probe = json!({ "httpGet": { "path": "/", "port": port }, "successThreshold": 2 }).to_string();
        let rig = Rig::new(port, &[("SERVING_READINESS_PROBE", &probe)]);
        // Those who ask at the same time share one run.
        let ready = &rig.sidecar().prober;
        assert_eq!(tokio::join!(ready.ready(), ready.ready(), ready.ready()), (true, true, true));
        assert_eq!(asked.get(), 4, "yes, no, yes, yes");
        assert!(ready.ready().await);
        assert_eq!(asked.get(), 5, "successes in a row go on counting");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn e2_5_an_eager_probe_gives_up_after_ten_seconds() {
    local(async {
        let port = closed();
        let probe = json!({ "tcpSocket": { "port": port }, "successThreshold": 1 }).to_string();
        let rig = Rig::new(port, &[("SERVING_READINESS_PROBE", &probe)]);
        let began = Instant::now();
        assert!(!rig.sidecar().prober.ready().await);
        assert_eq!(began.elapsed().as_secs(), 9, "the last attempt begins before the tenth second is over");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn e2_7_timeouts() {
    local(async {
        let (port, _let_go, _) = held().await;
        let check = async |changes: &[(&str, &str)], seconds: u64| {
            let rig = Rig::new(port, changes);
            let began = Instant::now();
            assert_eq!(rig.get("/", &[]).await, (504, "request timeout".into()), "{changes:?}");
            assert_eq!(began.elapsed().as_secs(), seconds, "{changes:?}");
        };
        check(&[("REVISION_TIMEOUT_SECONDS", "7")], 7).await;
        check(&[("REVISION_RESPONSE_START_TIMEOUT_SECONDS", "5")], 5).await;
        check(&[("REVISION_IDLE_TIMEOUT_SECONDS", "3")], 3).await;
        // Those that wait for a place too.
        let rig = Rig::new(port, &[("REVISION_TIMEOUT_SECONDS", "7"), ("CONTAINER_CONCURRENCY", "1")]);
        let (one, two) = tokio::join!(rig.get("/", &[]), rig.get("/", &[]));
        assert_eq!((one, two), ((504, "request timeout".into()), (504, "request timeout".into())));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn e2_8_told_to_end_it_serves_until_nothing_has_come_for_a_while() {
    local(async {
        let rig = Rc::new(Rig::new(mirror().await, &[]));
        let probe = [("user-agent", "kube-probe/1"), ("k-network-probe", "queue")];
        assert_eq!(rig.get("/", &probe).await.0, 200);
        // A container is stopped first, a moment before the signal.
        let waiting = rig.clone();
        let stopped = spawn_local(async move { waiting.send(1, get("/wait-for-drain", &[])).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.terminate.cancel();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(rig.get("/", &probe).await, (503, "shutting down\n".into()));
        let hash = [("k-network-probe", "probe"), ("k-network-hash", "x")];
        assert_eq!(rig.get("/", &hash).await, (503, "shutting down\n".into()));
        assert_eq!(rig.get("/", &[]).await.0, 200, "late requests are served");
        let since = Instant::now();
        assert!(!rig.shutdown.is_cancelled() && !stopped.is_finished());
        rig.shutdown.cancelled().await;
        assert_eq!(since.elapsed().as_secs(), 30);
        assert_eq!(stopped.await.expect("ends").0, 200);
        assert_eq!(rig.send(1, get("/other", &[])).await.0, 404);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn e2_8_a_container_that_is_only_restarted_is_not_held_up() {
    local(async {
        let rig = Rig::new(closed(), &[]);
        let began = Instant::now();
        assert_eq!(rig.send(1, get("/wait-for-drain", &[])).await.0, 200);
        assert_eq!(began.elapsed().as_secs(), 1);
        let probe = [("user-agent", "kube-probe/1"), ("k-network-probe", "queue")];
        assert_eq!(rig.get("/", &probe).await.0, 200, "the pod goes on");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn e2_9_statistics_are_weighted_by_time() {
    local(async {
        let (port, let_go, seen) = held().await;
        let rig = Rc::new(Rig::new(port, &[]));
        assert_eq!(rig.stat(), Statistics { pod_name: "hello-00001-deployment-1".into(), ..Statistics::default() });
        let requests: Vec<_> = (0..3)
            .map(|n| {
                let rig = rig.clone();
                let fields: &[_] = if n == 0 { &[("k-proxy-request", "activator")] } else { &[] };
                spawn_local(async move { rig.get("/", fields).await })
            })
            .collect();
        while seen.get() < 3 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let stat = rig.stat();
        let near = |got: f64, want: f64| assert!((got - want).abs() < 0.01, "{got} is not {want}");
        near(stat.average_concurrent_requests, 3.0);
        near(stat.average_proxied_concurrent_requests, 1.0);
        near(stat.request_count, 1.5);
        near(stat.proxied_request_count, 0.5);
        near(stat.process_uptime, 2.0);
        let_go.add_permits(3);
        for request in requests {
            request.await.expect("ends");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let stat = rig.stat();
        near(stat.average_concurrent_requests, 0.0);
        near(stat.request_count, 0.0);
    })
    .await;
}

#[tokio::test]
async fn e2_10_the_host_before_an_activator_is_restored() {
    local(async {
        let rig = Rig::new(mirror().await, &[]);
        let (_, body) = rig.get("/", &[("k-original-host", "www.example.com"), ("k-proxy-request", "activator")]).await;
        assert!(body.contains("host: www.example.com\n") && !body.contains("k-original-host"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn e2_11_requests_are_measured() {
    local(async {
        let config = r#"{"requestMetrics":{"protocol":"prometheus"}}"#;
        let changes = [("OBSERVABILITY_CONFIG", config), ("CONTAINER_CONCURRENCY", "5")];
        let rig = Rig::new(mirror().await, &changes);
        rig.get("/", &[("knative-serving-default-route", "true")]).await;
        rig.get("/", &[("user-agent", "kube-probe/1"), ("k-network-probe", "queue")]).await;
        let (status, text) = rig.send(3, get("/metrics", &[])).await;
        assert_eq!(status, 200);
        for line in [
            "kn_serving_invocation_duration_seconds_count{http_response_status_code=\"200\"} 1",
            "http_response_status_code=\"200\",kn_route_tag=\"kn:default\"} 1",
            "kn_serving_queue_depth 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        let off = Rig::new(mirror().await, &[]);
        assert_eq!(off.send(3, get("/metrics", &[])).await.0, 404);
    })
    .await;
}

#[tokio::test]
async fn e2_12_requests_are_logged_and_probes_when_asked_for() {
    local(async {
        let probe = [("user-agent", "kube-probe/1"), ("k-network-probe", "queue")];
        let check = async |probes: bool, want: &[&str]| {
            let template = "{{.Request.RequestURI}} {{.Response.Code}} {{.Response.Size}} {{.Revision.PodName}}";
            let config =
                json!({ "enableRequestLog": true, "enableProbeRequestLog": probes, "requestLogTemplate": template });
            let lines = Arc::new(Lines::default());
            let port = app(|_| async { (201, "four".into()) }).await;
            let rig = Rig::logged(port, &[("OBSERVABILITY_CONFIG", &config.to_string())], lines.clone());
            rig.get("/a?b", &[]).await;
            rig.get("/p", &probe).await;
            assert_eq!(*lines.0.lock().expect("is whole"), want);
        };
        check(false, &["/a?b 201 4 hello-00001-deployment-1\n"]).await;
        check(true, &["/a?b 201 4 hello-00001-deployment-1\n", "/p 200 5 hello-00001-deployment-1\n"]).await;
    })
    .await;
}

#[tokio::test]
async fn e2_13_the_application_is_spoken_to_as_its_client_speaks() {
    local(async {
        let rig = Rig::new(mirror().await, &[]);
        let check = async |version: http::Version, want: &str| {
            let mut request = get("/", &[]);
            *request.version_mut() = version;
            let (status, body) = rig.send(0, request).await;
            assert_eq!((status, body.lines().next()), (200, Some(want)));
        };
        check(http::Version::HTTP_11, "HTTP/1.1").await;
        check(http::Version::HTTP_2, "HTTP/2.0").await;
        assert_eq!(rig.sidecar().engine.upstream_connections.get(), 2);
    })
    .await;
}

// Over its own sockets.

struct Served {
    running: Running,
    terminate: CancellationToken,
}

fn serve(user_port: u16, changes: &[(&str, &str)], certificates: &Path) -> Served {
    let mut queue = Queue::new(settings(user_port, changes), certificates).expect("has what it needs");
    (queue.quiet, queue.tunnels) = (Duration::from_millis(50), Duration::from_millis(50));
    let socket = || TcpListener::bind("127.0.0.1:0").expect("binds");
    let sockets = Sockets {
        main: socket(),
        tls: queue.certificates.is_some().then(socket),
        admin: socket(),
        stats: socket(),
        metrics: queue.settings.metrics_port.map(|_| socket()),
    };
    let terminate = CancellationToken::new();
    let running = queue.start(sockets, terminate.clone()).expect("starts");
    Served { running, terminate }
}

async fn ask(addr: SocketAddr, path: &str) -> String {
    converse(TcpStream::connect(addr).await.expect("connects"), path).await
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("reads");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn e2_1_each_server_answers_on_its_port() {
    local(async {
        let config = r#"{"requestMetrics":{"protocol":"prometheus"}}"#;
        let served = serve(mirror().await, &[("OBSERVABILITY_CONFIG", config)], Path::new("/nonexistent"));
        let addresses = served.running.addresses().to_vec();
        let [main, admin, stats, metrics] = &addresses[..] else { panic!("four without TLS") };
        assert!(ask(*main, "/").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(ask(*admin, "/").await.starts_with("HTTP/1.1 404 "));
        let stat = ask(*stats, "/metrics").await;
        assert!(stat.contains("content-type: application/protobuf\r\n") && stat.contains("hello-00001-deployment-1"));
        assert!(ask(*stats, "/").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(*metrics, "/metrics").await.contains("kn_revision_name=\"hello-00001\""));

        let h2 = TcpStream::connect(*main).await.expect("connects");
        let (mut sender, driver) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(LocalExecutor, TokioIo::new(h2))
                .await
                .expect("speaks h2c");
        spawn_local(driver);
        let request = http::Request::get("http://a/").body(Full::default()).expect("a request");
        let response = sender.send_request(request).await.expect("answers");
        let body = response.into_body().collect().await.expect("collects").to_bytes();
        assert!(body.starts_with(b"HTTP/2.0\n"));
        drop(sender);

        served.terminate.cancel();
        served.running.join().await;
        assert!(TcpStream::connect(*main).await.is_err(), "nobody listens any more");
    })
    .await;
}

#[tokio::test]
async fn e2_1_tls_with_a_certificate_that_is_renewed() {
    local(async {
        let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).expect("makes a certificate");
        let directory = tempfile::tempdir().expect("a directory");
        let write = |pair: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            std::fs::write(directory.path().join("tls.crt"), pair.cert.pem()).expect("writes");
            std::fs::write(directory.path().join("tls.key"), pair.signing_key.serialize_pem()).expect("writes");
        };
        write(&made("one.example"));
        let mounted = Mounted::open(directory.path()).expect("reads").expect("is there");
        let shown = || mounted.leaf();
        let first = shown();
        mounted.reload();
        assert_eq!(shown(), first, "nothing has changed");
        write(&made("two.example"));
        mounted.reload();
        let second = shown();
        assert_ne!(second, first);
        std::fs::write(directory.path().join("tls.key"), "nonsense").expect("writes");
        mounted.reload();
        assert_eq!(shown(), second, "a pair that cannot be used changes nothing");

        let third = made("three.example");
        write(&third);
        let served = serve(mirror().await, &[], directory.path());
        let mut trusted = rustls::RootCertStore::empty();
        trusted.add(third.cert.der().clone()).expect("is a certificate");
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("is spoken")
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let stream = TcpStream::connect(served.running.addresses()[3]).await.expect("connects");
        let name = "three.example".try_into().expect("a name");
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let answer = converse(stream.expect("shakes hands"), "/").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        served.terminate.cancel();
        served.running.join().await;
    })
    .await;
}

/// An application that switches protocols, says one frame and then nothing.
async fn websocket() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.expect("reads") > 0);
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("writes");
            stream.write_all(&[0x81, 2, b'h', b'i']).await.expect("writes");
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        }
    });
    port
}

#[tokio::test]
async fn e2_8_sockets_are_told_at_the_end() {
    local(async {
        let served = serve(websocket().await, &[], Path::new("/nonexistent"));
        let mut client = TcpStream::connect(served.running.addresses()[0]).await.expect("connects");
        let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(head.as_bytes()).await.expect("writes");
        let mut read = Vec::new();
        while !read.ends_with(b"hi") {
            assert!(client.read_buf(&mut read).await.expect("reads") > 0);
        }
        served.terminate.cancel();
        let mut notice = [0; 4];
        client.read_exact(&mut notice).await.expect("reads");
        assert_eq!(notice, [0x88, 2, 0x03, 0xE9], "close, 1001");
        client.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.expect("writes");
        drop(client);
        served.running.join().await;
    })
    .await;
}
