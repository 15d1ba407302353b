//! What attackers send: messages that two servers could read in two ways, and messages that are none.
//!
//! Each case says how it is answered and what the origin saw of it. The rule: refused, or passed on in a form that can be
//! read in one way only; never more requests at the origin than at the engine.

use std::cell::RefCell;
use std::rc::Rc;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::Limits;

/// The engine before an origin that writes down what it sees: method, target, body.
pub(super) async fn observed() -> (Engine, Rc<RefCell<Vec<String>>>) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let note = seen.clone();
    let target = origin(move |request| {
        let note = note.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
                Err(_) => "(broken off)".into(),
            };
            let host = head.headers["host"].to_str().expect("text");
            note.borrow_mut().push(format!("{} {host} {} {body}", head.method, head.uri).trim_end().to_owned());
            text("answer")
        }
    })
    .await;
    (Engine::new(target, Limits::default()), seen)
}

/// `statuses` of all answers on the connection, in order; `seen` by the origin.
async fn check(name: &str, request: impl AsRef<[u8]>, statuses: &[u16], seen_wanted: &[&str]) {
    let (engine, seen) = observed().await;
    let (mut read, mut write) = tokio::io::split(engine.connect());
    let request = request.as_ref().to_vec();
    // Refused before the end, perhaps.
    let send = async { drop(write.write_all(&request).await) };
    let mut answer = Vec::new();
    let of = |answer: &[u8]| -> Vec<u16> {
        let text = String::from_utf8_lossy(answer);
        text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
    };
    let receive =
        async { while of(&answer).len() < statuses.len() && read.read_buf(&mut answer).await.expect("reads") > 0 {} };
    tokio::join!(send, receive);
    // Is there more to come?
    drop(write.shutdown().await);
    drop(read.read_to_end(&mut answer).await);
    let (got, answer) = (of(&answer), String::from_utf8_lossy(&answer));
    assert_eq!(got, statuses, "{name}: {answer:?}");
    assert_eq!(*seen.borrow(), seen_wanted, "{name}");
}

#[tokio::test]
async fn lengths_that_contradict() {
    local(async {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        // Framed by the chunks, and sent on so. The connection ends there, so that what follows is nobody's request.
        check(
            "CL.TE",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
            &[200],
            &["POST a /"],
        )
        .await;
        check(
            "TE.CL",
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
            &[200],
            &[&format!("POST a / {}", smuggled.trim_end())],
        )
        .await;
        for (name, field) in [
            ("TE.TE, unknown coding last", "Transfer-Encoding: chunked, identity"),
            ("TE.TE, unknown coding", "Transfer-Encoding: xchunked"),
            ("TE.TE, twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow"),
            ("TE behind a vertical tab", "Transfer-Encoding: \x0bchunked"),
            ("TE before a colon with a space", "Transfer-Encoding : chunked"),
        ] {
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\nContent-Length: 3\r\n\r\nabc{smuggled}");
            check(name, request, &[400], &[]).await;
        }
        for (name, field) in [
            ("two lengths", "Content-Length: 3\r\nContent-Length: 4"),
            ("two lengths in one", "Content-Length: 3, 4"),
            ("a negative length", "Content-Length: -3"),
            ("a signed length", "Content-Length: +3"),
            ("a length in hex", "Content-Length: 0x3"),
            ("a length with a space in it", "Content-Length: 3 3"),
            ("an empty length", "Content-Length: "),
            ("a length beyond numbers", "Content-Length: 99999999999999999999"),
            ("a space before the colon", "Content-Length : 3"),
        ] {
            check(name, format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\nabc{smuggled}"), &[400], &[]).await;
        }
        check("HTTP/1.0 has no chunks", format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"), &[400], &[]).await;
        check("the same length twice", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", &[200], &["POST a / abc"]).await;
        check("a body nobody announced", format!("GET / HTTP/1.1\r\nHost: a\r\n\r\n{smuggled}"), &[200, 200], &["GET a /", "GET a /smuggled"]).await;
    })
    .await;
}

#[tokio::test]
async fn chunks() {
    local(async {
        let chunked = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        check("extensions are dropped", chunked("3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n"), &[200], &["POST a / abc"])
            .await;
        check("upper case", chunked("A\r\n0123456789\r\n0\r\n\r\n"), &[200], &["POST a / 0123456789"]).await;
        for (name, body) in [
            ("a size beyond numbers", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
            ("a negative size", "-3\r\nabc\r\n0\r\n\r\n"),
            ("a size in no digits", "xyz\r\nabc\r\n0\r\n\r\n"),
            ("a prefix of hex", "0x3\r\nabc\r\n0\r\n\r\n"),
            ("data beyond the size", "3\r\nabcdef\r\n0\r\n\r\n"),
            ("no end of line", "3\rabc\r\n0\r\n\r\n"),
            ("no size", "\r\nabc\r\n0\r\n\r\n"),
        ] {
            broken_off(name, &chunked(body)).await;
        }
        let endless = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(100_000));
        broken_off("endless extensions", &chunked(&endless)).await;
        let trailers = format!("1\r\na\r\n0\r\n{}\r\n", "x-t: y\r\n".repeat(20_000));
        broken_off("endless trailers", &chunked(&trailers)).await;
    })
    .await;
}

/// The head was in order and may have been passed on before its body was found out; but nothing of it may be answered as
/// if it were whole, and nothing may follow.
async fn broken_off(name: &str, request: &str) {
    let (engine, seen) = observed().await;
    let answer = engine.raw(&format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{name}: {answer:?}");
    // The origin is told by a connection that ends early.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let seen = seen.borrow();
    assert!(seen.iter().all(|request| request.ends_with("(broken off)")), "{name}: {seen:?}");
}

#[tokio::test]
async fn heads() {
    local(async {
        let with = |line: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\nConnection: close\r\n\r\n");
        for (name, line) in [
            ("a folded line", "X-A: b\r\n c"),
            ("a space before the colon", "X-A : b"),
            ("a name with a space", "X A: b"),
            ("no name", ": b"),
            ("no colon", "X-A"),
            ("NUL in a value", "X-A: b\0c"),
            ("NUL in a name", "X\0A: b"),
            ("a bare CR in a value", "X-A: b\rX-B: c"),
            ("a control character in a value", "X-A: b\x01c"),
            ("another host", "Host: b"),
            ("the same host again", "Host: a"),
        ] {
            check(name, with(line), &[400], &[]).await;
        }
        check("no host", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", &[400], &[]).await;
        check("a host that is none", "GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", &[400], &[]).await;
        check("a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n", &[400], &[]).await;
        check("a host with user information", "GET / HTTP/1.1\r\nHost: x@a\r\nConnection: close\r\n\r\n", &[400], &[])
            .await;
        check("an empty host", "GET / HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n", &[400], &[]).await;
        check("bare LF as an end of line", "GET / HTTP/1.1\nHost: a\nConnection: close\n\n", &[200], &["GET a /"])
            .await;
        check(
            "the target's host wins",
            "GET http://b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            &[200],
            &["GET b /x"],
        )
        .await;
        check(
            "encoded ends of lines stay encoded",
            "GET /%0d%0aX-A:%20b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            &[200],
            &["GET a /%0d%0aX-A:%20b"],
        )
        .await;
        check("CONNECT", "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", &[405], &[]).await;
        for (name, line) in [
            ("a space in the target", "GET /a b HTTP/1.1"),
            ("two spaces", "GET  / HTTP/1.1"),
            ("a tab", "GET\t/ HTTP/1.1"),
            ("no version", "GET /"),
            ("another version", "GET / HTTP/3.0"),
            ("a method that is none", "G(T / HTTP/1.1"),
            ("h2's preface, almost", "PRI * HTTP/2.0"),
        ] {
            check(name, format!("{line}\r\nHost: a\r\n\r\n"), &[400], &[]).await;
        }
        let long = "x".repeat(70_000);
        // The head ends before its first line does, so it is the head that is too large.
        check("an endless target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), &[431], &[]).await;
        check("an endless field", with(&format!("X-A: {long}")), &[431], &[]).await;
        check("too many fields", with(&"X-A: b\r\n".repeat(200)), &[431], &[]).await;
        check("binary", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[400], &[]).await;
    })
    .await;
}
