//! Cadence and verdicts by table; questions against small servers on loopback.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn probe(action: ProbeAction) -> Probe {
    Probe {
        action,
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 3,
        grace: None,
    }
}

#[test]
fn tries_are_eager_until_the_first_success() {
    let mut cadence = Cadence::new(&ProbeAction::Tcp { port: 1 }, true);
    let period = Duration::from_secs(10);
    for _ in 0..100 {
        assert_eq!(cadence.next(false, period), MS);
    }
    assert!(cadence.next(false, period) > MS);
    for _ in 0..60 {
        cadence.next(false, period);
    }
    assert_eq!(cadence.next(false, period), period, "thins out to the period and no further");
    assert_eq!(Cadence::new(&ProbeAction::Tcp { port: 1 }, true).next(true, period), period);
    assert_eq!(Cadence::new(&ProbeAction::Tcp { port: 1 }, false).next(false, period), period);
    assert_eq!(Cadence::new(&ProbeAction::Exec(vec![]), true).next(false, period), 20 * MS);
}

#[test]
fn verdicts_need_their_rows() {
    let mut probe = probe(ProbeAction::Tcp { port: 1 });
    probe.success_threshold = 2;
    let mut verdicts = Verdicts::default();
    assert_eq!(verdicts.success(&probe), None);
    assert_eq!(verdicts.success(&probe), Some(true));
    assert_eq!(verdicts.failure(&probe, true), None);
    assert_eq!(verdicts.failure(&probe, false), None, "an eager failure does not count");
    assert_eq!(verdicts.failure(&probe, true), None);
    assert_eq!(verdicts.success(&probe), None, "failures reset the row of successes");
    assert_eq!([(); 3].map(|()| verdicts.failure(&probe, true)), [None, None, Some(false)]);
}

async fn ask(
    action: impl FnOnce(u16) -> ProbeAction,
    answer: fn(&Request<Incoming>) -> Response<Full<Bytes>>,
    h2: bool,
) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let mut server = JoinSet::new();
    server.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(&request)) });
            if h2 {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    });
    Prober::new().check(Ipv4Addr::LOCALHOST, &action(port), Duration::from_secs(5)).await
}

fn http(path: &str, headers: &[(&str, &str)]) -> impl FnOnce(u16) -> ProbeAction {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let path = path.to_owned();
    move |port| ProbeAction::Http { port, path, https: false, host: None, headers }
}

fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::default()).expect("a response")
}

#[tokio::test]
async fn http_answers_are_judged_by_their_status() {
    let echo = |request: &Request<Incoming>| status(request.uri().path()[1..].parse().expect("a code"));
    assert_eq!(ask(http("/200", &[]), echo, false).await, Ok(()));
    assert_eq!(ask(http("302", &[]), echo, false).await, Ok(()));
    for bad in ["/404", "/500"] {
        let error = ask(http(bad, &[]), echo, false).await.expect_err("not well");
        assert!(error.contains(&bad[1..]), "{error}");
    }
    let picky = |request: &Request<Incoming>| {
        let agent = request.headers().get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or("");
        let good = agent.starts_with("kube-probe/") && request.headers().get("host").is_some_and(|h| h == "me");
        status(if good { 200 } else { 400 })
    };
    assert_eq!(ask(http("/", &[("Host", "me")]), picky, false).await, Ok(()));
    assert!(ask(http("/", &[]), picky, false).await.is_err());
}

#[tokio::test]
async fn tcp_needs_a_listener_and_commands_are_refused() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("bound").port()
    };
    let prober = Prober::new();
    let second = Duration::from_secs(1);
    assert!(prober.check(Ipv4Addr::LOCALHOST, &ProbeAction::Tcp { port: nobody }, second).await.is_err());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    assert_eq!(prober.check(Ipv4Addr::LOCALHOST, &ProbeAction::Tcp { port }, second).await, Ok(()));
    assert!(prober.check(Ipv4Addr::LOCALHOST, &ProbeAction::Exec(vec![]), second).await.is_err());
}

#[tokio::test]
async fn grpc_health_is_asked_in_its_own_words() {
    let grpc = |port| ProbeAction::Grpc { port, service: "s".into() };
    let serving = |request: &Request<Incoming>| {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        Response::builder()
            .header("grpc-status", "0")
            .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])))
            .expect("a response")
    };
    assert_eq!(ask(grpc, serving, true).await, Ok(()));
    let unknown = |_: &Request<Incoming>| {
        Response::builder().header("grpc-status", "12").body(Full::default()).expect("a response")
    };
    let error = ask(grpc, unknown, true).await.expect_err("not well");
    assert!(error.contains("does not implement"), "{error}");
}
