//! h2 towards the client (prior knowledge on the same port), h2c towards the origin.

use std::convert::Infallible;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
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

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_no_window_does_not_keep_its_place() {
    local(async {
        let target = origin(|_| async {
            let (sender, body) = channel();
            spawn_local(async move {
                for _ in 0..3 {
                    drop(sender.send(Frame::data(Bytes::from_static(b"piece"))).await);
                }
            });
            http::Response::new(body)
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let (mut sender, connection) = http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(0)
            .handshake(TokioIo::new(engine.connect()))
            .await
            .expect("shakes hands");
        spawn_local(connection);
        let response = sender.send_request(get("/")).await.expect("answers");
        tokio::time::sleep(std::time::Duration::from_secs(200)).await;
        assert_eq!(engine.ended(), []);
        tokio::time::sleep(std::time::Duration::from_secs(200)).await;
        assert_eq!(engine.ended(), [Outcome::Dropped]);
        assert!(response.into_body().collect().await.is_err(), "the stream is reset");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_its_time_is_not_taken_for_one_that_is_not_taken() {
    local(async {
        let target = origin(|_| async {
            let (sender, body) = channel();
            spawn_local(async move {
                for _ in 0..3 {
                    tokio::time::sleep(std::time::Duration::from_secs(400)).await;
                    drop(sender.send(Frame::data(Bytes::from_static(b"piece"))).await);
                }
            });
            http::Response::new(body)
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut sender = client(engine.connect()).await;
        let response = sender.send_request(get("/")).await.expect("answers");
        assert_eq!(response.into_body().collect().await.expect("collects").to_bytes(), "piecepiecepiece");
    })
    .await;
}
