//! Answers that break HTTP, or nearly: through the engine they are what another implementation makes of them, or an error.
//!
//! As long as `hostile`, with the same settings; what a long run found is kept at the end of `answers.txt`.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_local;

use super::harness::*;
use super::hostile::Trials;
use crate::{Limits, Protocol};

#[derive(Debug)]
struct Seen {
    status: StatusCode,
    body: Bytes,
    length: Option<u64>,
    trailers: usize,
}

impl Seen {
    /// The engine's server passes on only trailers that the head announces. Where several lengths say the same it says one.
    fn is(&self, plain: &Self) -> bool {
        (self.status, &self.body) == (plain.status, &plain.body)
            && plain.length.is_none_or(|length| self.length == Some(length))
            && self.trailers <= plain.trailers
    }
}

/// What hyper's client reads there. `None`: nothing whole.
async fn ask<T: AsyncRead + AsyncWrite + Unpin + 'static>(stream: T, method: &str) -> Option<Seen> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let driver = spawn_local(async move { drop(connection.await) });
    let request = http::Request::builder().method(method).uri("/").header("host", "a");
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await;
    let seen = async {
        let (head, body) = answer.ok()?.into_parts();
        // Beside a coding a length says nothing (RFC 9112, section 6.3), nor do several;
        // where no body can be the engine's server says none.
        let says = !head.headers.contains_key("transfer-encoding") && !matches!(head.status.as_u16(), 204 | 304);
        let mut lengths = head.headers.get_all("content-length").iter().filter(|_| says);
        let length = lengths.next().filter(|_| lengths.next().is_none()).and_then(|length| length.to_str().ok());
        let length = length.filter(|length| !length.starts_with('+')).and_then(|length| length.parse().ok());
        let body = body.collect().await.ok()?;
        let trailers = body.trailers().map_or(0, |trailers| trailers.len());
        Some(Seen { status: head.status, body: body.to_bytes(), length, trailers })
    };
    let seen = seen.await;
    driver.abort();
    seen
}

/// Reads a request's head, says these pieces, and closes.
async fn say<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, pieces: Rc<Vec<Vec<u8>>>) {
    if !matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {
        return;
    }
    for piece in pieces.iter() {
        if stream.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    drop(stream.shutdown().await);
    // Closed with something unread it would be a broken connection.
    while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
}

/// What each of the two reads in the same bytes.
async fn both(pieces: Vec<Vec<u8>>, method: &str) -> (Option<Seen>, Option<Seen>) {
    let pieces = Rc::new(pieces);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let said = spawn_local(say(far, pieces.clone()));
    let plain = ask(near, method).await;
    said.abort();
    let target = raw_origin(Protocol::Http1, move |stream| say(stream, pieces.clone())).await;
    let engine = Engine::new(target, Limits::default());
    (plain, ask(engine.connect(), method).await)
}

#[tokio::test]
async fn an_answer_is_what_others_read_in_it_or_an_error() {
    let mut trials = Trials::of(include_str!("answers.txt"));
    let (mut same, mut refused, mut neither) = (0, 0, 0);
    while let Some(bytes) = trials.next() {
        let mut pieces = Vec::new();
        let mut left = &bytes[..];
        while !left.is_empty() {
            let (now, later) = left.split_at(trials.random.usize(1..=left.len()));
            pieces.push(now.to_vec());
            left = later;
        }
        let method = if trials.random.u8(..8) == 0 { "HEAD" } else { "GET" };
        let judged = local(tokio::time::timeout(Duration::from_secs(20), both(pieces, method))).await;
        let text = String::from_utf8_lossy(&bytes);
        let (plain, ours) = judged.unwrap_or_else(|_| panic!("it never ends: {text:?}"));
        let failed = |seen: &Option<Seen>| seen.as_ref().is_none_or(|seen| matches!(seen.status.as_u16(), 500 | 502));
        if ours.as_ref().zip(plain.as_ref()).is_some_and(|(ours, plain)| ours.is(plain)) {
            same += 1;
        } else if failed(&ours) && plain.is_some() {
            // Stricter is right: another coding, a switch that nobody asked for, a length and a coding of old.
            refused += 1;
        } else if failed(&ours) {
            neither += 1;
        } else {
            panic!("{method} {text:?}: hyper reads {plain:?}, the engine {ours:?}");
        }
    }
    let tried = trials.tried;
    println!("{tried} answers: {same} alike, {neither} refused by both, {refused} by the engine alone");
    assert!(same * 4 > tried, "bent so far that nothing is left to judge: {same} of {tried}");
    assert!(refused * 5 < tried, "the engine refuses too much: {refused} of {tried}");
}
