//! What is sent twice, and what never is.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::{Limits, Protocol, ProxyError};

/// An origin whose connections answer so many requests each, and then do as `end` says when the next one comes.
async fn fickle(end: End) -> (crate::Target, Rc<Cell<usize>>) {
    let seen = Rc::new(Cell::new(0));
    let count = seen.clone();
    let target = raw_origin(Protocol::Http1, move |mut stream| {
        let count = count.clone();
        async move {
            let mut head = [0; 4096];
            for nth in 0.. {
                match stream.read(&mut head).await {
                    Ok(n) if n > 0 => count.set(count.get() + 1),
                    _ => return,
                }
                if nth > 0 && end == End::OnNextRequest {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("writes");
                if end == End::AfterAnswer {
                    return;
                }
            }
        }
    })
    .await;
    (target, seen)
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Closes without a word after its first answer.
    AfterAnswer,
    /// Closes when a second request comes, before it answers.
    OnNextRequest,
}

async fn check(end: End, method: &str, body: &str, status: &str, seen: usize) {
    let (target, count) = fickle(end).await;
    let engine = Engine::new(target, Limits::default());
    let mut client = engine.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    read_until(&mut client, "\r\n\r\nok").await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let length = body.len();
    let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write_all(request.as_bytes()).await.expect("writes");
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} gave {answer}");
    assert_eq!(count.get(), seen, "requests that reached the origin");
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_nothing() {
    local(async {
        check(End::AfterAnswer, "GET", "", "200", 2).await;
        check(End::AfterAnswer, "POST", "data", "200", 2).await;
    })
    .await;
}

#[tokio::test]
async fn a_request_that_may_have_changed_something_is_not_repeated() {
    local(async {
        check(End::OnNextRequest, "GET", "", "200", 3).await;
        check(End::OnNextRequest, "POST", "", "502", 2).await;
        check(End::OnNextRequest, "PUT", "data", "502", 2).await;
    })
    .await;
}

/// Sends one such request to an origin that closes every connection unanswered; returns how many it got.
async fn connections_for(target: crate::Target, method: &str) -> u64 {
    let engine = Engine::new(target, Limits::default());
    let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let answer = engine.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    engine.metrics.upstream_connections.get()
}

/// Also on the connection that was made for it: an instance that dies takes its first requests with it like all others.
#[tokio::test]
async fn what_changes_nothing_is_sent_once_more_and_no_more() {
    local(async {
        let check = async |method: &str, connections: u64| {
            let target = raw_origin(Protocol::Http1, |mut stream| async move {
                assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
            })
            .await;
            assert_eq!(connections_for(target, method).await, connections, "{method}");
        };
        check("GET", 2).await;
        check("OPTIONS", 2).await;
        check("POST", 1).await;
        check("DELETE", 1).await;
    })
    .await;
}

/// The same over HTTP/2: a connection that ends with a stream open is no answer.
#[tokio::test]
async fn what_changes_nothing_is_sent_once_more_over_h2_too() {
    /// Returns when a HEADERS frame has come.
    async fn a_request(stream: &mut tokio::net::TcpStream) -> std::io::Result<()> {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        stream.write_all(&SETTINGS).await?;
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            stream.read_exact(&mut vec![0; length]).await?;
            if head[3] == 1 {
                return Ok(());
            }
        }
    }
    local(async {
        let check = async |method: &str, connections: u64| {
            let target = raw_origin(Protocol::H2c, |mut stream| async move {
                a_request(&mut stream).await.expect("a request");
            })
            .await;
            assert_eq!(connections_for(target, method).await, connections, "{method}");
        };
        check("GET", 2).await;
        check("POST", 1).await;
    })
    .await;
}

#[tokio::test]
async fn failures_to_connect_and_to_speak() {
    local(async {
        // Bound and not listened on, so that nobody else gets the port meanwhile.
        let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("binds");
        let addr = closed.local_addr().expect("has an address").as_socket().expect("is one of the internet");
        let refused = crate::Target { addr, protocol: Protocol::Http1 };
        let garbage = raw_origin(Protocol::Http1, |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
            stream.write_all(b"220 mail.example ESMTP\r\n\r\n").await.expect("writes");
        })
        .await;
        let check = async |target, code: &str| {
            let engine = Engine::new(target, Limits::default());
            let answer = engine.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
            assert!(answer.contains(&format!("x-neap-error: app/{code}\r\n")), "{answer}");
        };
        check(refused, "connect").await;
        check(garbage, "protocol").await;
    })
    .await;
}

/// Whoever closes what was just made is asked once, not again and again.
#[tokio::test]
async fn an_upstream_that_closes_at_once_gets_one_connection_for_each_request() {
    local(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let addr = listener.local_addr().expect("has an address");
        // On a thread of its own, so that it may be faster than the engine's first look at the connection.
        let closes = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let peer = stream.peer_addr().expect("has a peer");
                drop(stream);
                if peer.ip() == std::net::Ipv4Addr::new(127, 0, 0, 9) {
                    return;
                }
            }
        });
        let engine = Engine::new(crate::Target { addr, protocol: Protocol::Http1 }, Limits::default());
        for nth in 1..=200 {
            let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let answer = engine.raw(request).await;
            assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("app/closed"), "{answer}");
            assert_eq!(engine.metrics.upstream_connections.get(), nth);
        }
        let last = tokio::net::TcpSocket::new_v4().expect("a socket");
        last.bind(([127, 0, 0, 9], 0).into()).expect("binds");
        drop(last.connect(addr).await);
        closes.join().expect("ends");
    })
    .await;
}

/// The version of an answer is ours, and its connection does not bring the next request down to 1.0.
#[tokio::test]
async fn an_http_1_0_application_is_not_noticed_by_clients() {
    local(async {
        let connections = Rc::new(Cell::new(0));
        let count = connections.clone();
        let target = raw_origin(Protocol::Http1, move |mut stream| {
            count.set(count.get() + 1);
            async move {
                let mut read = Vec::new();
                while stream.read_buf(&mut read).await.is_ok_and(|n| n > 0) {
                    let whole = read.ends_with(b"\r\n\r\n") && (read[0] == b'G' || read.ends_with(b"0\r\n\r\n"));
                    if whole && read.starts_with(b"GET /close") {
                        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nto the end").await.expect("writes");
                        return;
                    }
                    if whole {
                        read.clear();
                        let answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok";
                        stream.write_all(answer).await.expect("writes");
                    }
                }
            }
        })
        .await;
        let engine = Engine::new(target, Limits::default());
        let mut client = engine.connect();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        let answer = read_until(&mut client, "\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"), "{answer}");
        let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        client.write_all(post.as_bytes()).await.expect("writes");
        read_until(&mut client, "\r\n\r\nok").await;
        client.write_all(b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        let answer = read_until(&mut client, "0\r\n\r\n").await;
        assert!(answer.contains("chunked") && answer.contains("to the end"), "{answer}");
        assert_eq!(connections.get(), 3);
    })
    .await;
}

/// An origin that reads no body: it answers and closes.
async fn refusing() -> crate::Target {
    raw_origin(Protocol::Http1, |mut stream| async move {
        assert!(stream.read(&mut [0; 64]).await.expect("reads") > 0);
        let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 8\r\nconnection: close\r\n\r\ntoo much";
        stream.write_all(answer).await.expect("writes");
    })
    .await
}

/// It closes with the body unread, so what we send next fails while its answer waits to be read.
#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_sent_is_heard() {
    local(async {
        let engine = Engine::new(refusing().await, Limits::default());
        for length in [20_000, 200_000, 3_000_000].repeat(20) {
            let client = engine.connect_by_tcp().await;
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let (mut reader, mut writer) = client.into_split();
            let write = async {
                writer.write_all(head.as_bytes()).await.expect("writes");
                // We close when the answer is there, as any server would.
                drop(writer.write_all(&vec![b'x'; length]).await);
            };
            let read = async {
                let mut answer = Vec::new();
                reader.read_to_end(&mut answer).await.expect("reads");
                String::from_utf8(answer).expect("text")
            };
            let ((), answer) = tokio::join!(write, read);
            assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("too much"), "{length}: {answer}");
        }
    })
    .await;
}

/// Many clients write all they have before they read, and take a connection that breaks meanwhile for the answer.
#[tokio::test]
async fn who_sends_all_before_reading_gets_the_early_answer_too() {
    local(async {
        let engine = Engine::new(refusing().await, Limits::default());
        for length in [20_000, 8_000_000].repeat(5) {
            let mut client = engine.connect_by_tcp().await;
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            client.write_all(head.as_bytes()).await.expect("writes");
            for piece in vec![b'x'; length].chunks(100_000) {
                client.write_all(piece).await.expect("writes");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("reads");
            assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("too much"), "{length}: {answer}");
        }
    })
    .await;
}

/// Only who closed without a word is asked once more: a limit that has passed while we connected would pass again at once, and
/// a machine that is out of ports would be asked for another without a pause.
#[tokio::test]
async fn what_was_never_sent_is_not_taken_for_unheard() {
    struct Strict(crate::Target);
    struct Nothing;
    impl crate::OnEnd for Nothing {
        fn on_end(&mut self, _: crate::Outcome, _: u64) {}
    }
    impl crate::Picker for Strict {
        type Hold = Nothing;
        async fn pick(&mut self, _: Option<crate::upstream::Deadline>) -> Result<crate::Picked<Nothing>, ProxyError> {
            Ok(crate::Picked { target: self.0, hold: Nothing })
        }
        fn unheard(
            &mut self,
            _: crate::Picked<Nothing>,
            _: ProxyError,
            _: u32,
        ) -> Result<Option<crate::Picked<Nothing>>, ProxyError> {
            panic!("it was never sent")
        }
        fn refused(&mut self, _: crate::Picked<Nothing>, error: ProxyError) -> Result<(), ProxyError> {
            Err(error)
        }
    }
    // Whoever connects to a full queue waits: the kernel drops what asks for a connection.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("binds");
    full.listen(0).expect("listens");
    let addr = full.local_addr().expect("has an address").as_socket().expect("is one of the internet");
    let wait = Duration::from_millis(100);
    let queue: Vec<_> =
        std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&addr, wait).ok()).take(50).collect();
    assert!(queue.len() < 50, "the queue never fills");
    let tasks = tokio_util::task::TaskTracker::new();
    let upstream = crate::Upstream::new(crate::UpstreamConfig::default(), crate::Metrics::default(), tasks);
    let mut request =
        Some(http::Request::builder().uri("/").header("host", "a").body(crate::Body::empty()).expect("one"));
    let limits = Limits { total: Some(Duration::from_millis(20)), ..Limits::default() };
    let target = crate::Target { addr, protocol: Protocol::Http1 };
    let arrived = crate::time::now();
    let forwarded = crate::forward(&upstream, &mut Strict(target), &mut request, &limits, arrived).await;
    let error = forwarded.expect_err("nobody answers");
    assert!(matches!(error, ProxyError::Timeout { .. }), "{error}");
}
