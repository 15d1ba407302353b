//! Whoever does not read holds no memory: what the engine takes in for it is bounded by sockets and windows.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;

use super::harness::*;
use crate::{Limits, Protocol};

const PIECE: usize = 64 * 1024;
/// The kernel's own buffers on loopback grow to some megabytes; the engine adds the windows of one h2 connection at most.
const BOUND: usize = 24 << 20;
/// What is offered in all: far more.
const OFFERED: usize = 256 << 20;

/// Waits until a counter has not moved for a while.
async fn settled(counter: &Cell<usize>) -> usize {
    loop {
        let before = counter.get();
        for _ in 0..2000 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if counter.get() == before {
            return before;
        }
    }
}

async fn check_download(protocol: Protocol) {
    let given = Rc::new(Cell::new(0));
    let count = given.clone();
    let answer = move |_request| {
        let count = count.clone();
        async move {
            let (sender, body) = channel();
            spawn_local(async move {
                while count.get() < OFFERED && sender.send(Frame::data(Bytes::from_static(&[0; PIECE]))).await.is_ok() {
                    count.set(count.get() + PIECE);
                }
            });
            http::Response::new(body)
        }
    };
    let target = match protocol {
        Protocol::Http1 => origin(answer).await,
        Protocol::H2c => h2c_origin(answer).await,
    };
    let engine = Engine::new(target, Limits::default());
    let mut client = engine.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    read_until(&mut client, "200 OK").await;
    let taken = settled(&given).await;
    assert!(taken < BOUND, "{taken} bytes were taken in for a client that does not read ({protocol:?})");
}

#[tokio::test]
async fn an_answer_nobody_reads_is_not_taken_in() {
    local(async {
        check_download(Protocol::Http1).await;
        check_download(Protocol::H2c).await;
    })
    .await;
}

#[tokio::test]
async fn a_body_the_application_does_not_read_is_not_taken_in() {
    local(async {
        let target = raw_origin(Protocol::Http1, |stream| async move {
            // It holds the connection, and reads nothing.
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut client = engine.connect();
        let given = Rc::new(Cell::new(0));
        let count = given.clone();
        spawn_local(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {OFFERED}\r\n\r\n");
            client.write_all(head.as_bytes()).await.expect("writes");
            while client.write_all(&[0; PIECE]).await.is_ok() {
                count.set(count.get() + PIECE);
            }
        });
        let taken = settled(&given).await;
        assert!(taken < BOUND, "{taken} bytes were taken in for an application that does not read");
    })
    .await;
}

/// Keeps every request and reads none of its body.
struct Deaf;

impl crate::Handler for Deaf {
    async fn handle(&self, request: crate::Request, _: &crate::Connection) -> crate::Response {
        std::future::pending::<()>().await;
        drop(request);
        unreachable!("it waits for ever")
    }
}

#[tokio::test]
async fn bodies_of_requests_that_wait_are_bounded_for_each_connection() {
    local(async {
        const SMALL: usize = 4096;
        let server = crate::Server::new(crate::ServerConfig::default(), crate::Metrics::default());
        let shared = crate::server::worker::Shared::new(server, std::sync::Arc::new([]));
        let (client, io) = tokio::io::duplex(PIECE);
        spawn_local(async move {
            let connection = crate::Connection::plain(([192, 0, 2, 7], 4711).into(), ([192, 0, 2, 1], 80).into(), 0);
            crate::server::connection::speak(io, connection, None, &shared, Rc::new(Deaf), None).await;
        });
        let io = hyper_util::rt::TokioIo::new(client);
        let (sender, driver) =
            hyper::client::conn::http2::handshake(crate::server::LocalExecutor, io).await.expect("shakes hands");
        spawn_local(driver);
        let given = Rc::new(Cell::new(0));
        for _ in 0..8 {
            let (pieces, body) = channel();
            let (mut sender, count) = (sender.clone(), given.clone());
            let request = http::Request::post("http://a/").body(body).expect("a request");
            spawn_local(async move { drop(sender.send_request(request).await) });
            spawn_local(async move {
                while pieces.send(Frame::data(Bytes::from_static(&[0; SMALL]))).await.is_ok() {
                    count.set(count.get() + SMALL);
                }
            });
        }
        let taken = settled(&given).await;
        // What lies on the way, and a few pieces of each stream, are the client's own.
        let bound = crate::config::H2_CONNECTION_WINDOW as usize + PIECE + 8 * 8 * SMALL;
        assert!(taken > SMALL && taken < bound, "{taken} bytes were taken in");
        assert!(bound < 2 << 20, "which is to stay little: there are many connections");
    })
    .await;
}
