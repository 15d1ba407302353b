//! Bytes that nobody means well with, at everything of this crate that reads some: the bytes of a connection before HTTP, the
//! engine as a whole, header rules, frames of WebSockets. Nothing panics, and no request is made of nothing.
//!
//! Short in the tests, with a fixed seed; `HOSTILE_SECONDS=600` makes a long run, whose seed is printed, and `HOSTILE_SEED`
//! repeats one. What a long run found is kept at the end of `corpus.txt`.

#![expect(clippy::disallowed_methods, reason = "how long to go on is no matter of the code under test")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use super::malformed::observed;
use crate::body::Body;
use crate::headers;

const SHORT: usize = 400;
const SEED: u64 = 3;
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\x80",
    b"\xff",
    b"0",
    b"-1",
    b"+5",
    b"0x5",
    b"5",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Connection: close\r\n",
    b"Host: b\r\n",
    b"Connection: X-Forwarded-For\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"GET ",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"99999999999999999999",
];

/// Inputs to be tried, as many or for as long as was asked: those of a corpus first, then bent ones.
pub(super) struct Trials {
    pub(super) random: Rng,
    seeds: Vec<Vec<u8>>,
    first: Vec<Vec<u8>>,
    until: Option<Instant>,
    pub(super) tried: usize,
}

impl Trials {
    pub(super) fn of(corpus: &str) -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seconds = number("HOSTILE_SECONDS");
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let seed = number("HOSTILE_SEED").unwrap_or_else(|| if seconds.is_some() { now() } else { SEED });
        println!("seed {seed}");
        let texts = corpus.trim_end_matches('\n').split("\n---\n").map(|text| text.replace('\n', "\r\n"));
        let seeds: Vec<_> =
            texts.map(|text| text.replace("\\r\r\n", "\n").into_bytes()).filter(|text| !text.is_empty()).collect();
        let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Self { random: Rng::with_seed(seed), first: seeds.clone(), seeds, until, tried: 0 }
    }

    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let goes_on = self.until.map_or(self.tried < SHORT, |until| Instant::now() < until);
        goes_on.then(|| {
            self.tried += 1;
            self.first.pop().unwrap_or_else(|| self.bent())
        })
    }

    fn bent(&mut self) -> Vec<u8> {
        let (random, seeds) = (&mut self.random, &self.seeds);
        let mut bytes = random.choice(seeds).expect("a seed").clone();
        for _ in 0..random.usize(0..5) {
            let at = random.usize(..=bytes.len());
            let to = random.usize(at..=bytes.len().min(at + 8));
            let piece = match random.u8(0..5) {
                0 => Vec::new(),
                1 => random.choice(WORDS).expect("a word").to_vec(),
                2 => {
                    let other = random.choice(seeds).expect("a seed");
                    let from = random.usize(..other.len());
                    other[from..random.usize(from..=other.len())].to_vec()
                }
                3 => bytes[at..to].repeat(random.usize(..20)),
                _ => vec![random.u8(..)],
            };
            bytes.splice(at..to, piece);
        }
        bytes
    }
}

/// The whole engine: whatever comes is answered or dropped, and the origin sees only what can be a request.
async fn engine(random: &mut Rng, bytes: &[u8]) -> bool {
    let (engine, seen) = observed().await;
    let (mut read, mut write) = tokio::io::split(engine.connect());
    let mut left = bytes;
    let send = async {
        while !left.is_empty() {
            let (now, later) = left.split_at(random.usize(1..=left.len()));
            left = later;
            if write.write_all(now).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(write.shutdown().await);
    };
    let mut answer = Vec::new();
    let receive = async { drop(read.read_to_end(&mut answer).await) };
    let both = async { tokio::join!(send, receive) };
    let whole = tokio::time::timeout(Duration::from_secs(20), both).await.is_ok();
    assert!(whole, "it never ends: {:?}", String::from_utf8_lossy(bytes));
    // What a client would have to spell out for each: method and version; an origin sees no more than that.
    let most = bytes.windows(8).filter(|at| at.starts_with(b"HTTP/1.")).count();
    let seen = seen.borrow();
    assert!(seen.len() <= most, "{seen:?} of {:?}", String::from_utf8_lossy(bytes));
    answer.starts_with(b"HTTP/1.")
}

fn header_rules(random: &mut Rng, bytes: &[u8]) {
    let mut map = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(50) {
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&b"connection"[..], line),
        };
        let name = HeaderName::from_bytes(name.trim_ascii()).unwrap_or(http::header::CONNECTION);
        if let Ok(value) = HeaderValue::from_bytes(value.trim_ascii()) {
            map.append(name, value);
        }
    }
    let mut request = http::Request::new(Body::empty());
    *request.headers_mut() = map.clone();
    if random.bool() {
        *request.version_mut() = http::Version::HTTP_2;
    }
    if let Ok(uri) = http::Uri::try_from(bytes.split(|byte| *byte == b' ').nth(1).unwrap_or(b"/")) {
        *request.uri_mut() = uri;
    }
    if headers::canonical(&mut request).is_ok() {
        let left = request.headers();
        assert_eq!(left.get_all("host").iter().count(), 1);
        for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "http2-settings"] {
            assert!(!left.contains_key(name), "{name} is left of {map:?}");
        }
        assert!(request.uri().authority().is_none());
    }
    let peer = HeaderValue::from_static("192.0.2.7");
    let origin = headers::Origin { peer: &peer, tls: random.bool(), trusted: random.bool() };
    headers::set_forwarded(request.headers_mut(), origin);
    let list = &request.headers()["x-forwarded-for"];
    assert!(
        list.as_bytes().ends_with(b"192.0.2.7") && request.headers().get_all("x-forwarded-for").iter().count() == 1
    );
}

fn frames(random: &mut Rng, bytes: &[u8]) {
    let follow = |pieces: &[&[u8]]| {
        let mut frames = crate::tunnel::frames::Frames::default();
        pieces.iter().for_each(|piece| frames.follow(piece));
        frames.takes_notice()
    };
    let (one, two) = bytes.split_at(random.usize(..=bytes.len()));
    assert_eq!(follow(&[bytes]), follow(&[one, two]), "however it is cut: {bytes:?}");
}

#[tokio::test]
async fn whatever_comes_nothing_panics_and_no_request_is_made_of_nothing() {
    let mut trials = Trials::of(include_str!("corpus.txt"));
    let mut answered = 0;
    while let Some(bytes) = trials.next() {
        for _ in 0..20 {
            let more = trials.bent();
            header_rules(&mut trials.random, &more);
            frames(&mut trials.random, &more);
        }
        header_rules(&mut trials.random, &bytes);
        frames(&mut trials.random, &bytes);
        // Each on tasks of its own, which end with it.
        answered += usize::from(local(engine(&mut trials.random, &bytes)).await);
    }
    let tried = trials.tried;
    println!("{tried} connections, {answered} answered");
    assert!(answered * 4 > tried, "bent so far that nothing is left to judge: {answered} of {tried}");
}
