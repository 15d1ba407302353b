//! Limits on time, on a paused clock.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::time::now;
use crate::{Limits, Outcome, ServerConfig};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const CLOSE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn seconds(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(n))
}

#[tokio::test(start_paused = true)]
async fn no_answer_in_time_is_504() {
    local(async {
        let check = async |limits: Limits, after: u64, code: &str| {
            let target = origin(|_| std::future::pending()).await;
            let engine = Engine::new(target, limits);
            let began = now();
            let answer = engine.raw(CLOSE).await;
            assert!(answer.starts_with("HTTP/1.1 504 ") && answer.ends_with("\r\n\r\nrequest timeout"), "{answer}");
            assert!(answer.contains(&format!("x-neap-error: app/{code}\r\n")), "{answer}");
            assert_eq!(began.elapsed().as_secs(), after);
        };
        check(Limits { total: seconds(300), ..Limits::default() }, 300, "timeout").await;
        check(Limits { total: seconds(300), response_start: seconds(10), idle: None }, 10, "timeout").await;
        check(Limits { total: seconds(300), response_start: None, idle: seconds(5) }, 5, "idle-timeout").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_begun_outlives_the_total_limit() {
    local(async {
        let target = origin(|_| async {
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                for part in ["one ", "two ", "three"] {
                    tokio::time::sleep(Duration::from_secs(8)).await;
                    sender.send(http_body::Frame::data(part.into())).await.expect("sends");
                }
            });
            http::Response::new(body)
        })
        .await;
        let engine = Engine::new(target, Limits { total: seconds(10), response_start: seconds(10), idle: seconds(9) });
        let answer = engine.raw(CLOSE).await;
        assert!(answer.contains("three") && answer.ends_with("0\r\n\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn silence_in_an_answer_cuts_it() {
    local(async {
        let target = origin(|_| async {
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                for pause in [3, 3, 60] {
                    tokio::time::sleep(Duration::from_secs(pause)).await;
                    drop(sender.send(http_body::Frame::data("part".into())).await);
                }
            });
            http::Response::new(body)
        })
        .await;
        let engine = Engine::new(target, Limits { idle: seconds(5), ..Limits::default() });
        let began = now();
        let answer = engine.raw(CLOSE).await;
        assert_eq!(began.elapsed().as_secs(), 11);
        assert_eq!(answer.matches("part").count(), 2);
        assert!(!answer.ends_with("0\r\n\r\n"), "the client must see that something is missing");
        assert_eq!(engine.ended(), [Outcome::Failed]);
    })
    .await;
}

/// Sweeps once a second for so long.
async fn sweep(engine: &Engine, seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        engine.shared.judge(now());
        tokio::task::yield_now().await;
    }
}

async fn is_closed(client: &mut tokio::io::DuplexStream) -> bool {
    let mut byte = [0];
    tokio::select! {
        biased;
        read = client.read(&mut byte) => matches!(read, Ok(0)),
        () = async { for _ in 0..10 { tokio::task::yield_now().await } } => false,
    }
}

#[tokio::test(start_paused = true)]
async fn slow_clients_are_closed() {
    local(async {
        let config = ServerConfig {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            ..ServerConfig::default()
        };
        let engine = Engine::with(config, origin(|_| async { text("x") }).await, Limits::default());
        // A head that never ends.
        let mut loris = engine.connect();
        // A first byte that could become h2.
        let mut early = engine.connect();
        // Nothing at all, and a request followed by nothing.
        let mut silent = engine.connect();
        let mut served = engine.connect();
        loris.write_all(b"GET / HTTP/1.1\r\nHost: ").await.expect("writes");
        early.write_all(b"PRI").await.expect("writes");
        served.write_all(GET).await.expect("writes");
        read_until(&mut served, "\r\n\r\nx").await;
        sweep(&engine, 9).await;
        assert!(!is_closed(&mut loris).await && !is_closed(&mut early).await);
        sweep(&engine, 3).await;
        assert!(is_closed(&mut loris).await && is_closed(&mut early).await);
        assert!(!is_closed(&mut silent).await && !is_closed(&mut served).await);
        sweep(&engine, 20).await;
        assert!(is_closed(&mut silent).await && is_closed(&mut served).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_closed_and_the_origin_told() {
    local(async {
        let target = origin(|_| async {
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                let block = bytes::Bytes::from(vec![0; 64 * 1024]);
                while sender.send(http_body::Frame::data(block.clone())).await.is_ok() {}
            });
            http::Response::new(body)
        })
        .await;
        let config = ServerConfig { write_stall_timeout: Duration::from_secs(60), ..ServerConfig::default() };
        let engine = Engine::with(config, target, Limits::default());
        let mut client = engine.connect();
        client.write_all(GET).await.expect("writes");
        read_until(&mut client, "200 OK").await;
        sweep(&engine, 58).await;
        assert_eq!(engine.ended(), []);
        sweep(&engine, 5).await;
        assert_eq!(engine.ended(), [Outcome::Dropped]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_connects_and_says_nothing_has_a_minute() {
    local(async {
        let engine = Engine::new(origin(|_| async { text("x") }).await, Limits::default());
        let (mut silent, mut served) = (engine.connect(), engine.connect());
        served.write_all(GET).await.expect("writes");
        read_until(&mut served, "\r\n\r\nx").await;
        sweep(&engine, 55).await;
        assert!(!is_closed(&mut silent).await);
        sweep(&engine, 8).await;
        assert!(is_closed(&mut silent).await && !is_closed(&mut served).await);
    })
    .await;
}
