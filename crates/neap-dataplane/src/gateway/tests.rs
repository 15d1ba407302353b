//! Requests through the gateway's handler, before origins on loopback.

#![expect(clippy::large_futures, reason = "a test runs once")]

use std::cell::Cell;
use std::net::SocketAddr;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use neap_api::keys::networking::NEAP_INGRESS_CLASS;
use neap_logic::throttle::ACTIVATOR_QUEUE_DEPTH;
use serde_json::json;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::world::*;
use super::*;
use crate::plane::Feed;

#[tokio::test]
async fn the_application_sees_exactly_these_headers() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 300 }));
        world.instances("r-private", "http", &[mirror().await]);
        let mut request = get("app.example", "/");
        for (name, value) in [
            ("knative-serving-revision", "other"),
            ("k-original-host", "fake.example"),
            ("k-proxy-request", "activator"),
            ("x-forwarded-proto", "https"),
            ("user-header", "kept"),
        ] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let (head, body) = world.send(EXTERNAL, request).await;
        let lines: Vec<_> = body.lines().filter(|line| !line.starts_with("traceparent: 00-")).collect();
        assert_eq!(lines.len() + 1, body.lines().count(), "a trace is begun: {body}");
        assert_eq!(
            lines,
            [
                "forwarded: for=192.0.2.7;host=app.example;proto=http",
                "host: app.example",
                "user-header: kept",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: app.example",
                "x-forwarded-proto: http",
            ]
        );
        let mut names: Vec<_> = head.headers().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "date"]);
    })
    .await;
}

#[tokio::test]
async fn doors_hosts_and_redirects() {
    local(async {
        let world = World::with_app(json!({}));
        world.instances("r-private", "http", &[instance(|_| async { "app".into() }).await]);
        let check = async |door: usize, host: &str, status: u16| {
            assert_eq!(world.get(door, host, "/").await.0, status, "{host}");
        };
        check(EXTERNAL, "app.example", 200).await;
        check(EXTERNAL, "APP.example:8080", 200).await;
        check(LOCAL, "app.example", 200).await;
        check(LOCAL, "app.ns", 200).await;
        check(LOCAL, "app.ns.svc.cluster.local", 200).await;
        check(EXTERNAL, "app.ns", 404).await;
        check(EXTERNAL, "nobody.example", 404).await;
        check(LOCAL, "r.ns.svc.cluster.local", 200).await;
        check(LOCAL, "r.ns.svc.cluster.local:80", 200).await;
        check(EXTERNAL, "r.ns.svc.cluster.local", 404).await;
        check(LOCAL, "other.ns.svc.cluster.local", 404).await;

        world.ingress(
            "safe",
            json!({ "httpOption": "Redirected", "rules": [
            { "hosts": ["safe.example"], "http": { "paths": [path_to_revision("r")] } }] }),
        );
        let (head, _) = world.send(EXTERNAL, get("safe.example:8080", "/a?b=c")).await;
        assert_eq!(head.status(), 301);
        assert_eq!(head.headers()["location"], "https://safe.example:8443/a?b=c");
        check(LOCAL, "safe.example", 200).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_wakes_a_revision_and_goes_when_it_is_there() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 300 }));
        let addr = instance(|_| async { "awake".into() }).await;
        let starting = async {
            sleep(Duration::from_millis(150)).await;
            assert_eq!(world.was_woken().as_deref(), Some("ns/r"));
            world.instances("r-private", "http", &[addr]);
        };
        let ((head, body), ()) = tokio::join!(world.send(EXTERNAL, get("app.example", "/")), starting);
        assert_eq!((head.status().as_u16(), body.as_str()), (200, "awake"));
        let timing = head.headers()["server-timing"].to_str().expect("text").to_owned();
        assert!(timing.starts_with("neap-wait;dur=15"), "{timing}");
        let (head, _) = world.send(EXTERNAL, get("app.example", "/")).await;
        assert!(!head.headers().contains_key("server-timing"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn waits_and_answers_have_deadlines() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 20, "responseStartTimeoutSeconds": 10 }));
        let check = async |text: &str, error: &str, seconds: u64| {
            let began = Instant::now();
            let (head, body) = world.send(EXTERNAL, get("app.example", "/")).await;
            assert_eq!((head.status().as_u16(), body.as_str()), (504, text));
            assert_eq!(head.headers()["x-neap-error"], error);
            assert_eq!(began.elapsed().as_secs(), seconds);
        };
        check("activator request timeout", "platform/wait-timeout", 10).await;
        world.instances("r-private", "http", &[instance(|_| std::future::pending()).await]);
        check("request timeout", "app/timeout", 10).await;
        let stat = &world.plane.collect(Instant::now())[0];
        assert_eq!((stat.concurrency, stat.waiting, stat.request_count), (0, 0, 2));
    })
    .await;
}

/// It closes every connection when it has read a request, and counts them.
async fn dying(requests: Rc<Cell<u32>>) -> SocketAddr {
    use tokio::io::AsyncReadExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let requests = requests.clone();
            spawn_local(async move {
                if stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                    requests.set(requests.get() + 1);
                }
            });
        }
    });
    addr
}

/// What changes nothing goes to another instance when the first closes without a word, and to no third.
#[tokio::test]
async fn an_instance_that_dies_takes_no_reader_with_it() {
    local(async {
        let world = World::with_app(json!({}));
        let died = Rc::new(Cell::new(0));
        let lives = instance(|_| async { "here".into() }).await;
        world.instances("r-private", "http", &[dying(died.clone()).await, lives]);
        for _ in 0..20 {
            assert_eq!(world.get(EXTERNAL, "app.example", "/").await, (200, "here".to_owned()));
        }
        assert!(died.get() > 0, "the other one was asked as well");
        let mut statuses = Vec::new();
        for _ in 0..20 {
            let mut post = get("app.example", "/");
            *post.method_mut() = http::Method::POST;
            statuses.push(world.send(EXTERNAL, post).await.0.status().as_u16());
        }
        assert!(statuses.contains(&502) && statuses.contains(&200), "{statuses:?}");

        died.set(0);
        world.instances("r-private", "http", &[dying(died.clone()).await, dying(died.clone()).await]);
        assert_eq!(world.get(EXTERNAL, "app.example", "/").await.0, 502);
        assert_eq!(died.get(), 2);
    })
    .await;
}

/// Whoever dies closes its connections before it stops taking new ones: what it closes in between is the same death.
#[tokio::test(start_paused = true)]
async fn the_only_instance_dies_with_its_door_open() {
    local(async {
        let world = World::with_app(json!({}));
        let check = async |closed: u32, then: Duration, status: u16, asked: u32| {
            let connections = Rc::new(Cell::new(0));
            let addr = closing(connections.clone(), closed, then).await;
            world.instances("r-private", "http", &[addr]);
            assert_eq!(world.get(EXTERNAL, "app.example", "/").await.0, status, "{closed} closed");
            assert_eq!(connections.get(), asked, "{closed} closed");
        };
        check(1, Duration::ZERO, 200, 2).await;
        check(2, Duration::ZERO, 200, 3).await;
        check(3, Duration::ZERO, 502, 3).await;
        // Time enough to be another one.
        check(2, Duration::from_millis(150), 502, 2).await;
    })
    .await;
}

/// Closes its first connections without a word, all but the first of them after a while; then it answers.
async fn closing(connections: Rc<Cell<u32>>, first: u32, after: Duration) -> SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.set(connections.get() + 1);
            let nth = connections.get();
            spawn_local(async move {
                if stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) && nth > first {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("writes");
                } else if nth > 1 {
                    sleep(after).await;
                }
            });
        }
    });
    addr
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 5 }));
        let mut all: FuturesUnordered<_> =
            (0..=ACTIVATOR_QUEUE_DEPTH).map(|_| world.get(EXTERNAL, "app.example", "/")).collect();
        assert_eq!(all.next().await, Some((503, "pending request queue full".into())));
        assert!(futures::poll!(all.next()).is_pending(), "the others wait");
        let late: Vec<u16> = all.map(|(status, _)| status).collect().await;
        assert!(late.len() == ACTIVATOR_QUEUE_DEPTH && late.iter().all(|status| *status == 504));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn container_concurrency_holds_for_each_instance() {
    local(async {
        let world = World::with_app(json!({ "containerConcurrency": 2, "timeoutSeconds": 300 }));
        let most = Rc::new(Cell::new(0));
        let busy = |most: Rc<Cell<usize>>| {
            let now = Rc::new(Cell::new(0));
            instance(move |_| {
                let (now, most) = (now.clone(), most.clone());
                async move {
                    now.set(now.get() + 1);
                    most.set(most.get().max(now.get()));
                    sleep(Duration::from_millis(100)).await;
                    now.set(now.get() - 1);
                    "done".into()
                }
            })
        };
        world.instances("r-private", "http", &[busy(most.clone()).await, busy(most.clone()).await]);
        let began = Instant::now();
        let all: FuturesUnordered<_> = (0..12).map(|_| world.get(EXTERNAL, "app.example", "/")).collect();
        let all: Vec<_> = all.collect().await;
        assert!(all.iter().all(|answer| *answer == (200, "done".to_owned())), "{all:?}");
        assert_eq!(most.get(), 2);
        assert_eq!(began.elapsed().as_millis() / 100, 3, "12 requests, 4 at a time");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_costs_no_request() {
    local(async {
        for concurrency in [0, 1] {
            let world = World::with_app(json!({ "containerConcurrency": concurrency, "timeoutSeconds": 300 }));
            // Instances are tried in the order of their addresses when concurrency is low; some dead one is before.
            let mut addrs = vec![dead(), dead(), dead(), instance(|_| async { "alive".into() }).await];
            addrs.sort_unstable();
            world.instances("r-private", "http", &addrs);
            let all: FuturesUnordered<_> = (0..20).map(|_| world.get(EXTERNAL, "app.example", "/")).collect();
            assert!(all.all(|answer| async move { answer == (200, "alive".into()) }).await);
            // Only dead ones: wait for a better one.
            world.instances("r-private", "http", &addrs[..0]);
            world.instances("r-private", "http", &[dead()]);
            let better = async {
                sleep(Duration::from_secs(3)).await;
                world.instances("r-private", "http", &addrs);
            };
            let (answer, ()) = tokio::join!(world.get(EXTERNAL, "app.example", "/"), better);
            assert_eq!(answer, (200, "alive".into()));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_request_is_lost_while_instances_come_and_go() {
    local(async {
        let world = Rc::new(World::with_app(json!({ "containerConcurrency": 3, "timeoutSeconds": 300 })));
        let mut addrs = Vec::new();
        for _ in 0..4 {
            addrs.push(
                instance(|_| async {
                    sleep(Duration::from_millis(7)).await;
                    "ok".into()
                })
                .await,
            );
        }
        let churn = async {
            for round in 0_usize..100 {
                let present: Vec<_> =
                    addrs.iter().enumerate().filter(|(n, _)| (round >> n) & 1 == 1).map(|(_, addr)| *addr).collect();
                world.instances("r-private", "http", &present);
                sleep(Duration::from_millis(5)).await;
            }
            world.instances("r-private", "http", &addrs);
        };
        let client = async |world: Rc<World>| {
            for _ in 0..25 {
                assert_eq!(world.get(EXTERNAL, "app.example", "/").await, (200, "ok".into()));
            }
        };
        let clients: FuturesUnordered<_> = (0..40).map(|_| client(world.clone())).collect();
        tokio::join!(clients.collect::<()>(), churn);
        let stat = &world.plane.collect(Instant::now())[0];
        assert_eq!((stat.request_count, stat.concurrency), (1000, 0));
        for addr in addrs {
            world.instances("r-private", "http", &[]);
            world.plane.drained(addr.ip(), Some(addr.port())).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_leaves_finishes_and_is_then_drained() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 300 }));
        let old = instance(|_| async {
            sleep(Duration::from_secs(5)).await;
            "old".into()
        })
        .await;
        let new = instance(|_| async { "new".into() }).await;
        world.instances("r-private", "http", &[old]);
        let began = Instant::now();
        let leave = async {
            sleep(Duration::from_secs(1)).await;
            world.instances("r-private", "http", &[new]);
            assert_eq!(world.get(EXTERNAL, "app.example", "/").await, (200, "new".into()));
            assert_eq!((world.plane.in_flight(old), world.plane.in_flight(new)), (1, 0));
            world.plane.drained(old.ip(), Some(old.port())).await;
            assert_eq!(began.elapsed().as_secs(), 5);
        };
        let (answer, ()) = tokio::join!(world.get(EXTERNAL, "app.example", "/"), leave);
        assert_eq!(answer, (200, "old".into()));
    })
    .await;
}

#[tokio::test]
async fn a_custom_domain_leads_to_its_route_in_one_hop() {
    local(async {
        let world = World::with_app(json!({}));
        world.instances("r-private", "http", &[mirror().await]);
        world.service("app", json!({ "type": "ExternalName", "externalName": "gateway.internal", "ports": [{ "port": 80 }] }));
        world.ingress("www", json!({ "rules": [{ "hosts": ["www.example.com"], "http": { "paths": [path_to_service("app",
            json!({ "rewriteHost": "app.ns.svc.cluster.local", "appendHeaders": { "K-Original-Host": "www.example.com" } }))] } }] }));
        let (status, body) = world.get(EXTERNAL, "www.example.com", "/").await;
        assert_eq!(status, 200);
        assert!(body.contains("host: www.example.com\n") && body.contains("x-forwarded-host: www.example.com"), "{body}");
        assert!(!body.contains("k-original-host"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn plain_services_get_what_the_route_says() {
    local(async {
        let world = World::new();
        world.service("web", json!({ "ports": [{ "name": "http", "port": 80 }] }));
        world.instances("web", "http", &[mirror().await]);
        world.ingress(
            "web",
            json!({ "rules": [{ "hosts": ["web.example"], "http": { "paths": [path_to_service("web",
            json!({ "rewriteHost": "inner.example", "appendHeaders": { "Foo": "new" } }))] } }] }),
        );
        let mut request = get("web.example", "/");
        for (name, value) in [("foo", "old"), ("k-network-probe", "probe"), ("k-network-hash", "override")] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let (_, body) = world.send(EXTERNAL, request).await;
        let hash = world.plane.ingress_status().borrow().get("ns", "web").expect("is live").hash.clone();
        let lines: Vec<_> = body.lines().collect();
        assert_eq!(
            lines,
            [
                "foo: new",
                "host: inner.example",
                &format!("k-network-hash: {hash}"),
                "k-network-probe: probe",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: web.example",
                "x-forwarded-proto: http",
            ]
        );
        let mut request = get("web.example", "/");
        for (name, value) in [("k-network-probe", "probe"), ("k-network-hash", "its-own")] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        assert!(world.send(EXTERNAL, request).await.1.contains("k-network-hash: its-own"), "G8.4");
        let mut request = get("web.example", "/");
        request.headers_mut().insert("k-network-hash", "x".parse().expect("a value"));
        assert!(!world.send(EXTERNAL, request).await.1.contains("k-network-hash"), "only probes are told");
    })
    .await;
}

#[tokio::test]
async fn probes_of_a_revision_wake_nobody() {
    local(async {
        let world = World::with_app(json!({}));
        let mut request = get("app.example", "/healthz");
        request.headers_mut().insert("k-network-probe", "probe".parse().expect("a value"));
        request.headers_mut().insert("k-network-hash", "override".parse().expect("a value"));
        let (head, _) = world.send(EXTERNAL, request).await;
        let hash = world.plane.ingress_status().borrow().get("ns", "app").expect("is live").hash.to_string();
        assert_eq!((head.status().as_u16(), &head.headers()["k-network-hash"]), (200, &hash.parse().expect("a value")));
        assert_eq!(world.was_woken(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_yet_is_waited_for_a_moment() {
    local(async {
        let world = World::new();
        world.ingress(
            "app",
            json!({ "rules": [{ "hosts": ["app.example"], "http": { "paths": [path_to_revision("r")] } }] }),
        );
        let addr = instance(|_| async { "here".into() }).await;
        let late = async {
            sleep(Duration::from_millis(300)).await;
            world.revision("r", json!({}));
            world.instances("r-private", "http", &[addr]);
        };
        let (answer, ()) = tokio::join!(world.get(EXTERNAL, "app.example", "/"), late);
        assert_eq!(answer, (200, "here".into()));

        world.service("web", json!({ "ports": [{ "name": "http", "port": 80 }] }));
        for (name, host) in [("web", "web.example"), ("missing", "missing.example")] {
            world.ingress(
                name,
                json!({ "rules": [{ "hosts": [host], "http": { "paths": [path_to_service(name, json!({}))] } }] }),
            );
            let began = Instant::now();
            assert_eq!(world.get(EXTERNAL, host, "/").await, (503, "no instance is ready".into()));
            assert_eq!(began.elapsed(), SETTLE);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn server_timing_says_where_the_time_went() {
    local(async {
        let world = World::with_app(json!({ "containerConcurrency": 1 }));
        let addr = instance(|request| async move {
            assert!(!request.headers().contains_key("x-neap-timing"));
            sleep(Duration::from_millis(200)).await;
            "done".into()
        })
        .await;
        let ask = async || {
            let mut request = get("app.example", "/");
            request.headers_mut().insert("x-neap-timing", "1".parse().expect("a value"));
            let (head, _) = world.send(EXTERNAL, request).await;
            let timing = head.headers()["server-timing"].to_str().expect("text").to_owned();
            let mut parts = Vec::new();
            for part in timing.split(", ") {
                let (name, millis) = part.split_once(";dur=").expect("a name and a time");
                // Hundreds of milliseconds: what connecting takes besides is the machine's.
                parts.push((name.to_owned(), (millis.parse::<f64>().expect("a number") / 100.0).round() as u32));
            }
            parts
        };
        let names = ["neap-queue", "neap-wake", "neap-connect", "neap-app"];
        let times = |times: [u32; 4]| names.iter().map(|name| (*name).to_owned()).zip(times).collect::<Vec<_>>();
        let late = async {
            sleep(Duration::from_millis(300)).await;
            world.instances("r-private", "http", &[addr]);
        };
        let (woken, ()) = tokio::join!(ask(), late);
        assert_eq!(woken, times([0, 3, 0, 2]));
        let (first, second) = tokio::join!(ask(), ask());
        assert_eq!(first, times([0, 0, 0, 2]));
        assert_eq!(second, times([2, 0, 0, 2]));
    })
    .await;
}

#[tokio::test]
async fn splits_are_kept() {
    local(async {
        let world = World::new();
        let mut path = path_to_revision("a");
        path["splits"][0]["percent"] = json!(30);
        let mut other = path_to_revision("b")["splits"][0].clone();
        other["percent"] = json!(70);
        path["splits"].as_array_mut().expect("a list").push(other);
        world.ingress("app", json!({ "rules": [{ "hosts": ["app.example"], "http": { "paths": [path] } }] }));
        world.revision("a", json!({}));
        world.revision("b", json!({}));
        let request = get("app.example", "/");
        let mut to_a = 0;
        for n in 1..=2000_u32 {
            let snapshot = world.front.snapshots.load();
            let entrance = Entrance { door: Door::External, trusted: false };
            let route = world
                .front
                .route(&snapshot, &request, &connection(EXTERNAL), &entrance, false)
                .expect("a good request");
            let Route::Go(way) = route else { panic!("is routed") };
            to_a += u32::from(way.gate.name.to_string() == "revision ns/a");
            // Not only in the end: spread evenly all the way.
            assert!((to_a * 10).abs_diff(n * 3) <= 50, "{to_a} of {n}");
        }
    })
    .await;
}

#[tokio::test]
async fn metrics_name_each_revision() {
    local(async {
        let world = World::with_app(json!({}));
        world.instances("r-private", "http", &[instance(|_| async { "x".into() }).await]);
        world.get(EXTERNAL, "app.example", "/").await;
        let mut registry = Registry::default();
        drop(Gateway::new(Config::default(), world.plane.clone(), &mut registry));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        let labels = r#"k8s_namespace_name="ns",kn_revision_name="r""#;
        for line in [
            format!("neap_revision_requests_total{{{labels}}} 1"),
            format!(r#"neap_revision_answers_total{{{labels},class="2xx"}} 1"#),
            format!("kn_revision_request_concurrency{{{labels}}} 0"),
            format!("neap_revision_instances{{{labels}}} 1"),
            format!("kn_serving_invocation_duration_seconds_count{{{labels}}} 1"),
            format!(r#"kn_serving_invocation_duration_seconds_bucket{{le="+Inf",{labels}}} 1"#),
        ] {
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_publishes_what_others_keep_inside() {
    local(async {
        let world = World::new();
        world.revision("r", json!({}));
        world.instances("r-private", "http", &[instance(|_| async { "inner".into() }).await]);
        let paths = json!({ "paths": [path_to_revision("r")] });
        let inside = |name: &str| {
            json!({ "rules": [{ "hosts": [format!("{name}.svc.cluster.local")], "visibility": "ClusterLocal",
            "http": paths }] })
        };
        world.ingress("own", inside("own.ns"));
        let meta = json!({ "namespace": "other", "name": "theirs",
                           "annotations": { "networking.knative.dev/ingress.class": NEAP_INGRESS_CLASS } });
        world.feed::<neap_api::networking::Ingress>(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": meta,
            "spec": inside("theirs.other"),
        }));
        for (name, behind, status) in [("a", "own.ns", 200), ("b", "theirs.other", 404)] {
            let host = format!("{behind}.svc.cluster.local");
            world.service(name, json!({ "type": "ExternalName", "externalName": host, "ports": [{ "port": 80 }] }));
            let paths = json!({ "paths": [path_to_service(name, json!({}))] });
            world.ingress(name, json!({ "rules": [{ "hosts": [format!("{name}.example")], "http": paths }] }));
            assert_eq!(world.get(EXTERNAL, &format!("{name}.example"), "/").await.0, status, "{name}");
            assert_eq!(world.get(LOCAL, &format!("{name}.example"), "/").await.0, 200, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn challenges_are_answered_in_the_clear() {
    local(async {
        let world = World::new();
        let order = |namespace: &str, of: &str| {
            let answers = json!({ "namespace": of, "http01": [
                { "host": "shop.example", "token": "tok", "key_authorization": "tok.thumb" },
            ]});
            json!({ "apiVersion": "v1", "kind": "Secret", "type": "neap.dev/acme-order",
                "metadata": { "namespace": namespace, "name": "acme-1" },
                "data": { "answers": k8s_openapi::ByteString(answers.to_string().into_bytes()) } })
        };
        let path = "/.well-known/acme-challenge/tok";
        let solver = json!({ "path": path, "splits": [
            { "serviceName": "neap-acme", "serviceNamespace": "knative-serving", "servicePort": 80 }] });
        world.ingress(
            "shop",
            json!({ "httpOption": "Redirected", "rules": [
                { "hosts": ["shop.example"], "http": { "paths": [solver, path_to_revision("r")] } },
            ]}),
        );
        // Nobody else's Secrets count, nor an order of another namespace.
        world.feed::<k8s_openapi::api::core::v1::Secret>(order("other", "ns"));
        world.feed::<k8s_openapi::api::core::v1::Secret>(order("knative-serving", "other"));
        assert_eq!(world.get(EXTERNAL, "shop.example", "/").await.0, 301);
        // The answer may come a moment after the path.
        let late = async {
            sleep(Duration::from_millis(20)).await;
            world.feed::<k8s_openapi::api::core::v1::Secret>(order("knative-serving", "ns"));
        };
        let (answer, ()) = tokio::join!(world.get(EXTERNAL, "shop.example:80", path), late);
        assert_eq!(answer, (200, "tok.thumb".to_owned()));
        assert_eq!(world.get(EXTERNAL, "shop.example", "/.well-known/acme-challenge/other").await.0, 301);
        // Whoever has a host of ours and no Ingress yet.
        assert_eq!(world.get(LOCAL, "SHOP.example", path).await, (200, "tok.thumb".to_owned()));
    })
    .await;
}

/// A Revision is immutable, but what is made of it is not: its gate may be replaced while requests wait, or go.
#[tokio::test(start_paused = true)]
async fn those_who_wait_go_where_the_revision_goes() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 300 }));
        let addr = instance(|_| async { "awake".into() }).await;
        let changes = async {
            sleep(Duration::from_secs(1)).await;
            world.revision("r", json!({ "timeoutSeconds": 200 }));
            sleep(Duration::from_secs(1)).await;
            world.instances("r-private", "http", &[addr]);
        };
        let began = Instant::now();
        let (answer, ()) = tokio::join!(world.get(EXTERNAL, "app.example", "/"), changes);
        assert_eq!((answer, began.elapsed().as_secs()), ((200, "awake".into()), 2));
        assert_eq!(world.plane.collect(Instant::now())[0].concurrency, 0);

        world.instances("r-private", "http", &[]);
        let key = RevisionKey::new("ns", "r");
        let goes = async {
            sleep(Duration::from_secs(1)).await;
            let gone = serde_json::from_value::<neap_api::serving::Revision>(json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": { "namespace": "ns", "name": "r" }, "spec": { "containers": [{ "image": "x" }] },
            }));
            world.plane.feed(Feed::Delete(gone.expect("an object")), Instant::now());
            assert!(world.plane.snapshot().revisions.get(&key).is_none());
        };
        let began = Instant::now();
        let (answer, ()) = tokio::join!(world.get(EXTERNAL, "app.example", "/"), goes);
        assert_eq!((answer.0, began.elapsed().as_secs()), (503, 1));
    })
    .await;
}
