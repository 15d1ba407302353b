//! h2 towards the client (prior knowledge on the same port), h2c towards the origin.

use std::convert::Infallible;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::task::spawn_local;

use super::harness::*;
use crate::server::LocalExecutor;
use crate::{Limits, Outcome};

async fn client<B>(io: DuplexStream) -> http2::SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Unpin + 'static,
{
    let (sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(io)).await.expect("shakes hands");
    spawn_local(connection);
    sender
}

fn get(path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::builder().uri(format!("http://app.example{path}")).body(Empty::new()).expect("a request")
}

#[tokio::test]
async fn h2_to_http1() {
    local(async {
        let target = origin(|request| async move {
            let cookie = request.headers()["cookie"].to_str().expect("text").to_owned();
            let host = request.headers()["host"].to_str().expect("text").to_owned();
            text(format!("{:?} {} {host} {cookie}", request.version(), request.uri()))
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut sender = client(engine.connect()).await;
        let mut request = get("/a?b");
        request.headers_mut().append("cookie", "a=1".parse().expect("a value"));
        request.headers_mut().append("cookie", "b=2".parse().expect("a value"));
        let response = sender.send_request(request).await.expect("answers");
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("connection"));
        let body = response.into_body().collect().await.expect("collects").to_bytes();
        assert_eq!(body, "HTTP/1.1 /a?b app.example a=1; b=2");
    })
    .await;
}

#[tokio::test]
async fn many_streams_share_connections() {
    local(async {
        let target = h2c_origin(|request| async move { text(request.uri().to_string()) }).await;
        let engine = Engine::new(target, Limits::default());
        let sender = client(engine.connect()).await;
        let answers = (0..150).map(|n| {
            let mut sender = sender.clone();
            async move {
                let response = sender.send_request(get(&format!("/{n}"))).await.expect("answers");
                let body = response.into_body().collect().await.expect("collects").to_bytes();
                assert_eq!(body, format!("http://app.example/{n}"));
            }
        });
        futures::future::join_all(answers).await;
        // The first connection takes 100 streams at once; how many were at once is up to the scheduler.
        assert!((1..=2).contains(&engine.metrics.upstream_connections.get()));
        assert_eq!(engine.ended().len(), 150);
    })
    .await;
}

#[tokio::test]
async fn grpc_streams_both_ways_and_ends_with_trailers() {
    local(async {
        let target = h2c_origin(|request| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let (sender, body) = channel();
            let mut incoming = request.into_body();
            spawn_local(async move {
                while let Some(Ok(frame)) = incoming.frame().await {
                    sender.send(frame).await.expect("sends");
                }
                let status = [("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))];
                sender.send(Frame::trailers(status.into_iter().collect())).await.expect("sends");
            });
            http::Response::new(body)
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut sender = client(engine.connect()).await;
        let (messages, body) = channel();
        let request = http::Request::post("http://app.example/pkg.Service/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .expect("a request");
        let mut answer = sender.send_request(request).await.expect("answers before the request ends").into_body();
        for message in ["one", "two"] {
            messages.send(Frame::data(message.into())).await.expect("sends");
            let frame = answer.frame().await.expect("a frame").expect("is whole");
            assert_eq!(frame.into_data().expect("data"), message);
        }
        drop(messages);
        let frame = answer.frame().await.expect("a frame").expect("is whole");
        assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], "0");
        assert!(answer.frame().await.is_none());
        assert_eq!(engine.ended(), [Outcome::Complete]);
    })
    .await;
}

#[tokio::test]
async fn http1_to_h2c() {
    local(async {
        let target =
            h2c_origin(|request| async move { text(format!("{:?} {}", request.version(), request.uri())) }).await;
        let engine = Engine::new(target, Limits::default());
        let answer = engine.raw("GET /x HTTP/1.1\r\nHost: a:8080\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("HTTP/2.0 http://a:8080/x"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_stream_given_up_by_the_client_ends_at_the_origin() {
    local(async {
        let (gone, mut told) = tokio::sync::mpsc::channel::<()>(1);
        let target = h2c_origin(move |_| {
            let gone = gone.clone();
            async move {
                let (sender, body) = channel();
                spawn_local(async move {
                    sender.closed().await;
                    gone.send(()).await.expect("the test waits");
                });
                http::Response::new(body)
            }
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut sender = client(engine.connect()).await;
        let response = sender.send_request(get("/")).await.expect("answers");
        drop(response);
        told.recv().await.expect("the origin saw it");
        assert_eq!(engine.ended(), [Outcome::Dropped]);
    })
    .await;
}

/// Streams of many clients share a connection to an instance; its window is no less than all of theirs.
#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody_else() {
    local(async {
        let target = h2c_origin(|request| async move {
            if request.uri().path() == "/short" {
                return text("short");
            }
            let (sender, body) = channel();
            spawn_local(
                async move { while sender.send(Frame::data(Bytes::from_static(&[0; 65536]))).await.is_ok() {} },
            );
            http::Response::new(body)
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut stalled = Vec::new();
        for _ in 0..8 {
            let mut client = engine.connect();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
            read_until(&mut client, "200 OK").await;
            stalled.push(client);
        }
        for _ in 0..5000 {
            tokio::task::yield_now().await;
        }
        let short = engine.raw("GET /short HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = tokio::time::timeout(std::time::Duration::from_secs(10), short).await.expect("is not held up");
        assert!(answer.ends_with("short"), "{answer}");
        assert_eq!(engine.metrics.upstream_connections.get(), 1);
    })
    .await;
}

/// Those that wait for one attempt to connect share its outcome.
#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_made_fails_once_for_all() {
    local(async {
        // It takes connections, but no TLS handshake is answered.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let target =
            crate::Target { addr: listener.local_addr().expect("has an address"), protocol: crate::Protocol::H2c };
        let made = rcgen::generate_simple_self_signed(["app.example".to_owned()]).expect("makes a certificate");
        let tls = crate::tls::ClientTls::new(made.cert.pem().as_bytes(), "app.example").expect("is an authority");
        let config = crate::UpstreamConfig { tls: Some(tls), ..Default::default() };
        let tasks = tokio_util::task::TaskTracker::new();
        let upstream = crate::Upstream::new(config, crate::Metrics::default(), tasks);
        let began = crate::time::now();
        let calls = (0..10).map(|_| async {
            let mut request =
                Some(http::Request::get("/").header("host", "a").body(crate::Body::empty()).expect("a request"));
            let error = upstream.send(target, &mut request, None, None).await.expect_err("cannot connect");
            assert!(error.unstarted() && request.is_some(), "{error}");
            assert_eq!(began.elapsed().as_secs(), 5, "{error}");
        });
        futures::future::join_all(calls).await;
    })
    .await;
}

/// An upstream that allows fewer streams than we would put on a connection gets more connections.
#[tokio::test]
async fn the_streams_an_upstream_allows_are_kept() {
    local(async {
        let target = raw_origin(crate::Protocol::H2c, |stream| async move {
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                if request.uri().path() == "/first" {
                    return Ok::<_, Infallible>(text("x"));
                }
                std::future::pending().await
            });
            let mut server = hyper::server::conn::http2::Builder::new(LocalExecutor);
            drop(server.max_concurrent_streams(2).serve_connection(TokioIo::new(stream), service).await);
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let first = engine.raw("GET /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(first.ends_with('x'), "{first}");
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = engine.connect();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
            clients.push(client);
        }
        tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while engine.metrics.upstream_connections.get() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("a second connection is made");
    })
    .await;
}
