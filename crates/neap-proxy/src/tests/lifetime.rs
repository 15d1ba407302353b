//! Draining, and clients that go away.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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
async fn a_drain_answers_what_has_come_already() {
    local(async {
        let target = origin(|request| async move { text(request.uri().path().to_owned()) }).await;
        let engine = Engine::new(target, Limits::default());
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
        let (mut kept, mut fresh, mut late, mut half) =
            (engine.connect(), engine.connect(), engine.connect(), engine.connect());
        let mut secure = engine.connect_as(Some(false));
        kept.write_all(&get("/1")).await.expect("writes");
        read_until(&mut kept, "\r\n\r\n/1").await;
        let head = get("/half");
        let (first, second) = head.split_at(9);
        half.write_all(first).await.expect("writes");
        tokio::time::sleep(Duration::from_millis(10)).await;
        // In the sockets, seen by nobody yet.
        kept.write_all(&get("/2")).await.expect("writes");
        fresh.write_all(&get("/fresh")).await.expect("writes");
        engine.shared.drain();
        tokio::time::sleep(Duration::from_millis(10)).await;
        late.write_all(&get("/late")).await.expect("writes");
        secure.write_all(&get("/secure")).await.expect("writes");
        half.write_all(second).await.expect("writes");
        for (client, path) in [(kept, "/2"), (fresh, "/fresh"), (late, "/late"), (half, "/half"), (secure, "/secure")] {
            let mut client = client;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("reads");
            assert!(answer.ends_with(path) && answer.contains("connection: close"), "{path}: {answer}");
        }
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
    /// `begun`: while the answer is on its way.
    async fn check<C: AsyncRead + AsyncWrite + Unpin>(connect: impl AsyncFnOnce(&Engine) -> C, begun: bool) {
        let (gone, mut told) = tokio::sync::mpsc::channel::<()>(1);
        let target = raw_origin(crate::Protocol::Http1, move |mut stream| {
            let gone = gone.clone();
            async move {
                let mut head = [0; 1024];
                assert!(stream.read(&mut head).await.expect("reads") > 0);
                if begun {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nso far").await.expect("writes");
                }
                while stream.read(&mut head).await.is_ok_and(|n| n > 0) {}
                gone.send(()).await.expect("the test waits");
            }
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut client = connect(&engine).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        if begun {
            let mut answer = Vec::new();
            while !answer.ends_with(b"so far") {
                assert!(client.read_buf(&mut answer).await.expect("reads") > 0);
            }
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(engine.held(), 1);
        drop(client);
        // No sweep comes by here: it is noticed at once, and not when somebody looks.
        told.recv().await.expect("the origin's connection is closed");
        let ended: &[_] = if begun { &[Outcome::Dropped] } else { &[] };
        assert_eq!((engine.ended().as_slice(), engine.held()), (ended, 0), "begun: {begun}");
    }
    local(async {
        for begun in [false, true] {
            check(async |engine| engine.connect(), begun).await;
            check(async |engine| engine.connect_by_tcp().await, begun).await;
        }
    })
    .await;
}

/// Nobody reads its body while it waits, so nobody meets its end.
#[tokio::test]
async fn a_client_that_goes_away_behind_its_body_does_so_too() {
    local(async {
        let engine = Engine::without_instance();
        let (mut gone, mut stays) = (engine.connect_by_tcp().await, engine.connect_by_tcp().await);
        let sweep = || engine.shared.judge(crate::time::now());
        for client in [&mut gone, &mut stays] {
            client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await.expect("writes");
            // More than hyper reads ahead, less than a socket holds.
            client.write_all(&[b'x'; 100_000]).await.expect("writes");
        }
        while engine.held() < 2 {
            tokio::task::yield_now().await;
        }
        sweep();
        assert_eq!((engine.held(), engine.shared.open()), (2, 2));
        drop(gone);
        let noticed = async {
            while engine.held() > 1 {
                sweep();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), noticed).await.expect("the place is given back");
        assert_eq!((engine.held(), engine.shared.open()), (1, 1), "who stays is served");
        drop(stays);
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

/// RFC 6455, section 7.4.1: 1001, and nothing in the middle of a frame.
#[tokio::test(start_paused = true)]
async fn a_websocket_is_told_that_the_server_goes_away() {
    local(async {
        let target = raw_origin(crate::Protocol::Http1, |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("writes");
            // A frame in two pieces, the second of which comes late.
            stream.write_all(&[0x82, 4, 1, 2]).await.expect("writes");
            tokio::time::sleep(Duration::from_secs(1)).await;
            stream.write_all(&[3, 4]).await.expect("writes");
            std::future::pending::<()>().await;
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut client = engine.connect();
        let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(head.as_bytes()).await.expect("writes");
        let mut read = Vec::new();
        while !read.ends_with(&[0x82, 4, 1, 2]) {
            assert!(client.read_buf(&mut read).await.expect("reads") > 0);
        }
        engine.close_tunnels();
        let mut rest = [0; 6];
        client.read_exact(&mut rest).await.expect("reads");
        assert_eq!(rest, [3, 4, 0x88, 2, 0x03, 0xE9]);
        // One that does not say goodbye is cut.
        let began = crate::time::now();
        assert_eq!(client.read(&mut rest).await.expect("reads"), 0);
        assert_eq!(began.elapsed().as_secs(), 4);
        assert_eq!((engine.metrics.tunnels.get(), engine.ended()), (0, vec![Outcome::Failed]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_rests_and_comes_back() {
    local(async {
        let target = origin(|request| async move { text(request.uri().path().to_owned()) }).await;
        let engine = Engine::new(target, Limits::default());
        let mut client = engine.connect();
        let mut ask = async |path: &str, body: &str| {
            let length = body.len();
            let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
            let (first, second) = head.split_at(9);
            client.write_all(first.as_bytes()).await.expect("writes");
            // In pieces: what wakes it need not be a whole head.
            tokio::task::yield_now().await;
            client.write_all(second.as_bytes()).await.expect("writes");
            read_until(&mut client, &format!("\r\n\r\n{path}")).await
        };
        let rest = async |seconds: u64| {
            for _ in 0..seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                engine.shared.judge(crate::time::now());
            }
            // The connection's task sees it.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            engine.shared.resting()
        };
        ask("/1", "").await;
        assert_eq!(rest(4).await, 0);
        assert_eq!(rest(3).await, 1);
        assert!(!ask("/2", "").await.contains("connection: close"));
        assert_eq!(rest(1).await, 0);
        assert_eq!(rest(7).await, 1, "and again");
        // A body whose end looks like nothing in particular keeps it awake: the next head may have begun with it.
        ask("/3", "body").await;
        assert_eq!(rest(10).await, 0);
        ask("/4", "").await;
        assert_eq!(rest(10).await, 1);
        // Asleep, it is still closed when it is silent for too long, and when the server stops.
        assert!(rest(700).await == 0 && engine.shared.open() == 0);
        let mut client = engine.connect();
        client.write_all(b"GET /5 HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        read_until(&mut client, "/5").await;
        assert_eq!(rest(10).await, 1);
        engine.shared.drain();
        assert_eq!(client.read(&mut [0; 9]).await.expect("reads"), 0);
    })
    .await;
}

/// After a TLS handshake the first request is a flight behind.
#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_first_request_of_a_connection() {
    local(async {
        let engine = Engine::new(slow_origin().await, Limits::default());
        let (mut asks, mut silent) = (engine.connect_as(Some(false)), engine.connect_as(Some(false)));
        tokio::time::sleep(Duration::from_millis(1)).await;
        engine.shared.drain();
        tokio::time::sleep(Duration::from_millis(300)).await;
        asks.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        let mut answer = String::new();
        asks.read_to_string(&mut answer).await.expect("reads");
        assert!(answer.ends_with("late") && answer.contains("connection: close"), "{answer}");
        assert_eq!(silent.read(&mut [0; 10]).await.expect("reads"), 0);
    })
    .await;
}
