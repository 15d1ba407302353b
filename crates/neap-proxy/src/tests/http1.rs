//! HTTP/1.1 on both sides.

use std::cell::RefCell;
use std::rc::Rc;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::{Limits, Outcome};

#[tokio::test]
async fn only_expected_headers_pass() {
    local(async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let note = seen.clone();
        let target = origin(move |request| {
            let mut names: Vec<_> =
                request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect();
            names.sort();
            *note.borrow_mut() = names;
            async {
                let mut response = text("hello");
                response.headers_mut().insert("x-app", "yes".parse().expect("a value"));
                response.headers_mut().insert("keep-alive", "timeout=5".parse().expect("a value"));
                response.headers_mut().insert("proxy-authenticate", "Basic".parse().expect("a value"));
                response
            }
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let answer = engine
            .raw(
                "GET /a?b=c HTTP/1.1\r\nHost: app.example:8080\r\nAccept: x\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
                 Keep-Alive: 5\r\nProxy-Authorization: secret\r\nTE: gzip\r\nUpgrade: h2c\r\n\r\n",
            )
            .await;
        assert_eq!(
            *seen.borrow(),
            [
                "accept: x",
                "host: app.example:8080",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: app.example:8080",
                "x-forwarded-proto: http",
            ]
        );
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let mut lines: Vec<_> = head.lines().filter(|line| !line.starts_with("date: ")).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["HTTP/1.1 200 OK", "connection: close", "content-length: 5", "x-app: yes"]);
        assert_eq!(body, "hello");
        assert_eq!(engine.ended(), [Outcome::Complete]);
    })
    .await;
}

#[tokio::test]
async fn a_client_cannot_take_off_what_is_set_for_it() {
    local(async {
        let target = origin(|request| async move {
            let set = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
            text(set.map(|name| request.headers().get(name).map_or("?", |v| v.to_str().expect("text"))).join(" "))
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\
                    Connection: close, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host\r\n\r\n";
        let answer = engine.raw(head).await;
        assert!(answer.ends_with("192.0.2.7 http a"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_body_in_chunks_arrives_whatever_the_method() {
    local(async {
        let engine = Engine::new(origin(echo).await, Limits::default());
        for method in ["GET", "DELETE", "POST"] {
            let head =
                format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
            let answer = engine.raw(&(head + "5\r\nhello\r\n0\r\n\r\n")).await;
            assert!(answer.contains("hello"), "{method}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    local(async {
        let target = origin(|request| async move { text(request.uri().path().to_owned()) }).await;
        let engine = Engine::new(target, Limits::default());
        let one = |path: &str, close: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{close}\r\n");
        let all = one("/1", "") + &one("/2", "") + &one("/3", "Connection: close\r\n");
        let answer = engine.raw(&all).await;
        let at = |text: &str| answer.find(text).unwrap_or_else(|| panic!("{text} is missing in {answer}"));
        assert!(at("\r\n\r\n/1") < at("\r\n\r\n/2") && at("\r\n\r\n/2") < at("\r\n\r\n/3"));
        assert_eq!(engine.metrics.upstream_connections.get(), 1, "the connection was kept");
    })
    .await;
}

#[tokio::test]
async fn expect_continue_is_answered_before_the_body() {
    local(async {
        let engine = Engine::new(origin(echo).await, Limits::default());
        let mut client = engine.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
        client.write_all(head.as_bytes()).await.expect("writes");
        read_until(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
        client.write_all(b"body").await.expect("writes");
        let answer = read_until(&mut client, "\r\n0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\n4\r\nbody\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    local(async {
        let target = origin(|request| async move {
            assert_eq!(request.headers()["trailer"], "x-sum");
            let collected = request.into_body().collect().await.expect("collects");
            let sum = collected.trailers().expect("trailers")["x-sum"].clone();
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                let data = http_body::Frame::data(collected.to_bytes());
                sender.send(data).await.expect("sends");
                let trailers = [("x-sum".parse().expect("a name"), sum)].into_iter().collect();
                sender.send(http_body::Frame::trailers(trailers)).await.expect("sends");
            });
            let mut response = http::Response::new(body);
            response.headers_mut().insert("trailer", "x-sum".parse().expect("a value"));
            response
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let answer = engine
            .raw(
                "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\nConnection: close, te\r\n\
                 Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n",
            )
            .await;
        assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
        assert!(answer.ends_with("5\r\nabcde\r\n0\r\nx-sum: 5\r\n\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_streams_and_may_begin_before_the_request_ends() {
    local(async {
        let engine = Engine::new(origin(echo).await, Limits::default());
        let mut client = engine.connect();
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n")
            .await
            .expect("writes");
        read_until(&mut client, "4\r\nping\r\n").await;
        client.write_all(b"4\r\npong\r\n").await.expect("writes");
        read_until(&mut client, "4\r\npong\r\n").await;
        assert_eq!(engine.ended(), [], "the place is held while the answer lasts");
        client.write_all(b"0\r\n\r\n").await.expect("writes");
        read_until(&mut client, "0\r\n\r\n").await;
        assert_eq!(engine.ended(), [Outcome::Complete]);
    })
    .await;
}

#[tokio::test]
async fn bodies_larger_than_any_buffer() {
    local(async {
        let engine = Engine::new(origin(echo).await, Limits::default());
        let client = engine.connect();
        let body = vec![b'x'; 3_000_000];
        let (mut read, mut write) = tokio::io::split(client);
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        let send = async {
            write.write_all(head.as_bytes()).await.expect("writes");
            write.write_all(&body).await.expect("writes");
        };
        let mut answer = Vec::new();
        let receive = async { read.read_to_end(&mut answer).await.expect("reads") };
        tokio::join!(send, receive);
        assert_eq!(answer.iter().filter(|byte| **byte == b'x').count(), body.len());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn upgraded_connections_are_joined_and_outlive_request_limits() {
    local(async {
        let target = raw_origin(crate::Protocol::Http1, |mut stream| async move {
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.expect("reads");
            let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
            assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: x\r\n\r\nwelcome";
            stream.write_all(answer.as_bytes()).await.expect("writes");
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.expect("echoes");
        })
        .await;
        let second = Some(std::time::Duration::from_secs(1));
        let engine = Engine::new(target, Limits { total: second, response_start: second, idle: None });
        let mut client = engine.connect();
        let head = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";
        client.write_all(head.as_bytes()).await.expect("writes");
        let answer = read_until(&mut client, "welcome").await;
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        assert!(answer.contains("upgrade: websocket") && answer.contains("sec-websocket-accept: x"), "{answer}");
        tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
        client.write_all(b"to and fro").await.expect("writes");
        read_until(&mut client, "to and fro").await;
        assert_eq!((engine.metrics.tunnels.get(), engine.ended()), (1, vec![]), "the place is held");
        drop(client);
        while engine.metrics.tunnels.get() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(engine.ended(), [Outcome::Complete]);
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_may_be_declined() {
    local(async {
        let engine = Engine::new(origin(|_| async { text("no") }).await, Limits::default());
        let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n";
        let answer = engine.raw(head).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("no"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_request_for_a_gateway() {
    local(async {
        let engine = Engine::new(origin(|_| async { text("never") }).await, Limits::default());
        let check = async |request: &str, status: &str| {
            let answer = engine.raw(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?} gave {answer:?}");
        };
        check("CONNECT a:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "405").await;
        check("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400").await;
        check("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", "400").await;
        check("nonsense\r\n\r\n", "400").await;
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        check(&large, "431").await;
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
        check(&many, "431").await;
    })
    .await;
}

#[tokio::test]
async fn absolute_targets_and_old_clients() {
    local(async {
        let target = origin(|request| async move {
            let host = request.headers()["host"].to_str().expect("text").to_owned();
            text(format!("{} {}", request.uri(), host))
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let answer = engine.raw("GET http://b.example/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("/x b.example"), "{answer}");
        let answer = engine.raw("GET /y HTTP/1.0\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("/y a"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_tunnel_ends_when_an_idle_limit_is_set() {
    local(async {
        let target = raw_origin(crate::Protocol::Http1, |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("writes");
            for _ in 0..3 {
                tokio::time::sleep(std::time::Duration::from_secs(4)).await;
                stream.write_all(b"tick").await.expect("writes");
            }
            std::future::pending::<()>().await;
        })
        .await;
        let idle = Some(std::time::Duration::from_secs(5));
        let engine = Engine::new(target, Limits { idle, ..Limits::default() });
        let began = crate::time::now();
        let answer = engine.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
        assert!(answer.ends_with(&"tick".repeat(3)), "{answer}");
        assert_eq!(began.elapsed().as_secs(), 17);
        assert_eq!(engine.ended(), [Outcome::Failed]);
    })
    .await;
}

/// RFC 9112, section 6.3.
#[tokio::test]
async fn an_answer_is_framed_by_its_coding() {
    local(async {
        let check = async |coding: &'static str, status: &str, end: &str| {
            let target = raw_origin(crate::Protocol::Http1, move |mut stream| async move {
                assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: {coding}\r\n\r\n");
                stream.write_all(format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes()).await.expect("writes");
            })
            .await;
            let engine = Engine::new(target, Limits::default());
            let answer = engine.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(end), "{coding}: {answer}");
        };
        check("chunked", "200", "5\r\nhello\r\n0\r\n\r\n").await;
        check("gzip, chunked", "502", "the application gave an answer that is not valid HTTP").await;
    })
    .await;
}
