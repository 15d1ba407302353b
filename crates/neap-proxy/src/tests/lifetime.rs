//! Draining, and clients that go away.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use super::harness::*;
use crate::server::LocalExecutor;
use crate::{Limits, Outcome};

async fn slow_origin() -> crate::Target {
    origin(|_| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        text("late")
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_requests_and_closes_the_rest() {
    local(async {
        let engine = Engine::new(slow_origin().await, Limits::default());
        let (mut idle, mut busy, mut early) = (engine.connect(), engine.connect(), engine.connect());
        let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        idle.write_all(get).await.expect("writes");
        read_until(&mut idle, "late").await;
        busy.write_all(get).await.expect("writes");
        tokio::time::sleep(Duration::from_secs(1)).await;
        engine.shared.drain();
        assert_eq!(idle.read(&mut [0; 10]).await.expect("reads"), 0);
        assert_eq!(early.read(&mut [0; 10]).await.expect("reads"), 0);
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.expect("reads");
        assert!(answer.ends_with("late") && answer.contains("connection: close"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_h2_client_is_told_to_go_away_and_gets_its_answers() {
    local(async {
        let engine = Engine::new(slow_origin().await, Limits::default());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(engine.connect()))
                .await
                .expect("shakes hands");
        let ended = spawn_local(connection);
        let request = || http::Request::get("http://a/").body(Empty::<Bytes>::new()).expect("a request");
        let answer = sender.send_request(request());
        let drain = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            engine.shared.drain();
        };
        let (answer, ()) = tokio::join!(answer, drain);
        let body = answer.expect("answers").into_body().collect().await.expect("collects").to_bytes();
        assert_eq!(body, "late");
        assert!(sender.send_request(request()).await.is_err(), "no new streams after GOAWAY");
        ended.await.expect("ends").expect("in peace");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_calls_its_request_off() {
    local(async {
        let (gone, mut told) = tokio::sync::mpsc::channel::<()>(1);
        let target = raw_origin(crate::Protocol::Http1, move |mut stream| {
            let gone = gone.clone();
            async move {
                let mut head = [0; 1024];
                while stream.read(&mut head).await.is_ok_and(|n| n > 0) {}
                gone.send(()).await.expect("the test waits");
            }
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut client = engine.connect();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(client);
        told.recv().await.expect("the origin's connection is closed");
        assert_eq!(engine.ended(), [], "it never began");
    })
    .await;
}

#[tokio::test]
async fn an_answer_cut_by_the_origin_is_cut_for_the_client() {
    local(async {
        let target = raw_origin(crate::Protocol::Http1, |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this").await.expect("writes");
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let answer = engine.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.contains("content-length: 100") && answer.ends_with("only this"), "{answer}");
        assert_eq!(engine.ended(), [Outcome::Failed]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn kept_connections_are_closed_before_the_origin_would() {
    local(async {
        let check = async |keep_alive: &'static str, sweeps: usize| {
            let (closed, mut told) = tokio::sync::mpsc::channel::<()>(1);
            let target = raw_origin(crate::Protocol::Http1, move |mut stream| {
                let closed = closed.clone();
                async move {
                    assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{keep_alive}\r\n");
                    stream.write_all(answer.as_bytes()).await.expect("writes");
                    assert_eq!(stream.read(&mut [0; 1024]).await.expect("reads"), 0);
                    closed.send(()).await.expect("the test waits");
                }
            })
            .await;
            let engine = Engine::new(target, Limits::default());
            let mut client = engine.connect();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
            read_until(&mut client, "\r\n\r\n").await;
            for sweep in 1..=sweeps {
                assert!(told.try_recv().is_err(), "{keep_alive:?} is still open before sweep {sweep}");
                engine.sweep();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            told.recv().await.expect("is closed");
        };
        check("", 4).await;
        check("keep-alive: timeout=60\r\n", 4).await;
        check("keep-alive: timeout=3\r\n", 2).await;
        check("keep-alive: timeout=1\r\n", 0).await;
    })
    .await;
}
