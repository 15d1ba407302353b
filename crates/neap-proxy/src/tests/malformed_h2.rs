//! The same for h2, frame by frame: heads that would become something else in HTTP/1.1, and floods.

use std::cell::Cell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use super::malformed::observed;
use crate::Limits;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("is short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// HPACK without a table and without Huffman codes (RFC 7541, section 6.2.2).
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut text = |text: &str| {
        let length = text.len();
        if length < 127 {
            out.push(u8::try_from(length).expect("is short"));
        } else {
            out.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                out.push(u8::try_from(rest % 128).expect("is small") | 128);
                rest /= 128;
            }
            out.push(u8::try_from(rest).expect("is small"));
        }
        out.extend_from_slice(text.as_bytes());
    };
    // The first byte of each field says "literal, a new name, not for the table"; it is zero, like an empty text's.
    for (name, value) in list {
        text("");
        text(name);
        text(value);
    }
    out
}

const PLAIN: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// An answer with this status.
    Answer(u16),
    /// The stream was reset, with this code.
    Reset(u32),
    /// The connection was given up, with this code.
    GoAway(u32),
    Closed,
}

/// Sends frames after the preface and says how stream 1 ended.
async fn converse(engine: &Engine, frames: &[u8]) -> End {
    let (mut read, mut write) = tokio::io::split(engine.connect());
    let send = async {
        let settings = frame(SETTINGS, 0, 0, &[]);
        drop(write.write_all(&[PREFACE, &settings, frames].concat()).await);
        std::future::pending::<()>().await;
    };
    let receive = async {
        let mut bytes = Vec::new();
        let mut status = None;
        loop {
            while bytes.len() >= 9 {
                let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
                if bytes.len() < 9 + length {
                    break;
                }
                let (kind, flags) = (bytes[3], bytes[4]);
                let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
                let payload: Vec<u8> = bytes.drain(..9 + length).skip(9).collect();
                let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
                match kind {
                    GOAWAY if code(4) != 0 => return End::GoAway(code(4)),
                    RST_STREAM if stream == 1 => return End::Reset(code(0)),
                    HEADERS if stream == 1 => status = Some(status_of(&payload)),
                    _ => {}
                }
                if stream == 1 && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                    return End::Answer(status.expect("a head came first"));
                }
            }
            if read.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
                return End::Closed;
            }
        }
    };
    tokio::select! {
        () = send => unreachable!("it waits for ever"),
        end = receive => end,
    }
}

/// Statuses of HPACK's static table, and others as a literal with the name of entry 8.
fn status_of(block: &[u8]) -> u16 {
    match block[0] & 0x7f {
        8 if block[0] & 0x80 != 0 => 200,
        at @ 9..=14 => [204, 206, 304, 400, 404, 500][usize::from(at) - 9],
        // Dynamic or literal; three digits, in Huffman codes or not, which is all the same to these tests.
        _ => 0,
    }
}

async fn check(name: &str, list: &[(&str, &str)], end: End, seen_wanted: &[&str]) {
    let (engine, seen) = observed().await;
    let got = converse(&engine, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(list))).await;
    assert_eq!(got, end, "{name}");
    assert_eq!(*seen.borrow(), seen_wanted, "{name}");
}

/// PROTOCOL_ERROR
const PROTOCOL: u32 = 1;
/// ENHANCE_YOUR_CALM
const CALM: u32 = 11;

/// SETTINGS_INITIAL_WINDOW_SIZE = 0: the client takes heads, and not a byte of a body.
#[tokio::test(start_paused = true)]
async fn an_answer_that_the_client_gives_no_room_is_called_off() {
    local(async {
        let target = origin(|_| async {
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                while sender.send(http_body::Frame::data(vec![0; 4096].into())).await.is_ok() {}
            });
            http::Response::new(body)
        })
        .await;
        // Less than it takes until pings are missed, which this client does not answer.
        let limit = std::time::Duration::from_secs(20);
        let config = crate::ServerConfig { write_stall_timeout: limit, ..Default::default() };
        let engine = Engine::with(config, target, Limits::default());
        let no_room = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&PLAIN));
        let frames = [no_room, request].concat();
        let converse = converse(&engine, &frames);
        let sweeps = async {
            for second in 0.. {
                assert!(second < 25, "the stream is still open");
                assert!(second > 18 || engine.ended().is_empty());
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                engine.shared.judge(crate::time::now());
            }
        };
        tokio::select! {
            end = converse => assert_eq!(end, End::Reset(8), "CANCEL"),
            () = sweeps => {}
        }
        assert_eq!(engine.ended(), [crate::Outcome::Dropped], "its place is given back");
    })
    .await;
}

#[tokio::test]
async fn heads_that_are_none() {
    local(async {
        check("plain", &PLAIN, End::Answer(200), &["GET a /"]).await;
        let with = |more: &[(&'static str, &'static str)]| [&PLAIN[..], more].concat();
        let but = |name: &str, value: &'static str| -> Vec<(&'static str, &'static str)> {
            PLAIN.iter().map(|(n, v)| (*n, if *n == name { value } else { *v })).collect()
        };
        let without = |name: &str| -> Vec<(&'static str, &'static str)> {
            PLAIN.iter().filter(|(n, _)| *n != name).copied().collect()
        };
        for (name, list) in [
            ("no method", without(":method")),
            ("no scheme", without(":scheme")),
            ("no path", without(":path")),
            ("an empty path", but(":path", "")),
            ("two paths", with(&[(":path", "/b")])),
            ("two methods", with(&[(":method", "POST")])),
            ("a pseudo field of answers", with(&[(":status", "200")])),
            ("an unknown pseudo field", with(&[(":x", "y")])),
            ("a pseudo field behind others", [&[("x-a", "b")][..], &PLAIN[..]].concat()),
            ("upper case", with(&[("X-A", "b")])),
            ("a connection field", with(&[("connection", "close")])),
            ("a transfer coding", with(&[("transfer-encoding", "chunked")])),
            ("an upgrade", with(&[("upgrade", "websocket")])),
            ("TE other than trailers", with(&[("te", "gzip")])),
            ("an end of line in a value", with(&[("x-a", "b\r\nx-c: d")])),
            ("an end of line in a name", with(&[("x-a: b\r\nx-c", "d")])),
            ("a colon in a name", with(&[("x-a:", "b")])),
            ("NUL in a value", with(&[("x-a", "b\0c")])),
            ("a space in a name", with(&[("x a", "b")])),
            ("an empty name", with(&[("", "b")])),
            ("a request in the method", but(":method", "GET / HTTP/1.1\r\nhost: b\r\nx: ")),
            ("a space in the method", but(":method", "GET /x")),
            ("a request in the path", but(":path", "/ HTTP/1.1\r\nhost: b\r\n\r\n")),
            ("a request in the authority", but(":authority", "a\r\nx-a: b")),
        ] {
            let (engine, seen) = observed().await;
            let got = converse(&engine, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&list))).await;
            let refused = matches!(got, End::Reset(PROTOCOL) | End::GoAway(PROTOCOL) | End::Answer(400));
            assert!(refused && seen.borrow().is_empty(), "{name}: {got:?} {:?}", seen.borrow());
        }
        check("no authority and no host", &without(":authority"), End::Answer(400), &[]).await;
        check("a user in the authority", &but(":authority", "x@a"), End::Answer(200), &["GET a /"]).await;
        check("authority and host", &with(&[("host", "b")]), End::Answer(200), &["GET a /"]).await;
        check("a path beside the slash", &but(":path", "x"), End::Reset(PROTOCOL), &[]).await;
        check("a space in the path", &but(":path", "/a b"), End::Reset(PROTOCOL), &[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_length_that_is_not_the_bodys() {
    local(async {
        let post = |length: &'static str| {
            let mut list = PLAIN.to_vec();
            list[0] = (":method", "POST");
            list.push(("content-length", length));
            frame(HEADERS, END_HEADERS, 1, &fields(&list))
        };
        for (name, length, body) in
            [("too long", "2", "abc"), ("too short", "9", "abc"), ("no number", "x", "abc"), ("two", "3, 4", "abc")]
        {
            let (engine, seen) = observed().await;
            let frames = [post(length), frame(DATA, END_STREAM, 1, body.as_bytes())].concat();
            let end = converse(&engine, &frames).await;
            assert!(!matches!(end, End::Answer(200)), "{name}: {end:?}");
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(
                seen.borrow().iter().all(|request| request.ends_with("(broken off)")),
                "{name}: {:?}",
                seen.borrow()
            );
        }
    })
    .await;
}

/// RFC 9113, section 8.1: also a stream that is reset without an error has not ended.
#[tokio::test]
async fn half_an_upload_is_none() {
    local(async {
        for code in [0_u32, 8] {
            let (told, heard) = tokio::sync::oneshot::channel();
            let told = Cell::new(Some(told));
            let target = raw_origin(crate::Protocol::Http1, move |mut stream| {
                let told = told.take();
                async move {
                    let mut all = Vec::new();
                    drop(stream.read_to_end(&mut all).await);
                    drop(told.map(|told| told.send(all)));
                }
            })
            .await;
            let engine = Engine::new(target, Limits::default());
            let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
            let begins = [frame(HEADERS, END_HEADERS, 1, &fields(&head)), frame(DATA, 0, 1, b"abc")].concat();
            let mut client = engine.connect();
            let start = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &begins].concat();
            client.write_all(&start).await.expect("writes");
            while engine.held() == 0 {
                tokio::task::yield_now().await;
            }
            client.write_all(&frame(RST_STREAM, 0, 1, &code.to_be_bytes())).await.expect("writes");
            let heard = heard.await.expect("the connection ends");
            let heard = String::from_utf8_lossy(&heard);
            assert!(heard.starts_with("POST ") && !heard.ends_with("0\r\n\r\n"), "{code}: {heard}");
        }
    })
    .await;
}

#[tokio::test]
async fn floods_end_the_connection_and_reach_nobody() {
    local(async {
        // CVE-2023-44487: requests that are called off as soon as they are made.
        let rapid: Vec<u8> = (0..10_000_u32)
            .flat_map(|n| {
                let stream = 2 * n + 3;
                let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(&PLAIN));
                [request, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            })
            .collect();
        let (engine, seen) = observed().await;
        assert_eq!(converse(&engine, &rapid).await, End::GoAway(CALM));
        assert!(seen.borrow().len() < 300, "{} requests got through", seen.borrow().len());

        // CVE-2024-27316: a head that never ends.
        let mut endless = frame(HEADERS, END_STREAM, 1, &fields(&PLAIN));
        let part = fields(&[("x-a", &"b".repeat(4000))]);
        for _ in 0..2000 {
            endless.extend_from_slice(&frame(CONTINUATION, 0, 1, &part));
        }
        let (engine, seen) = observed().await;
        let end = converse(&engine, &endless).await;
        assert!(matches!(end, End::GoAway(_) | End::Closed), "{end:?}");
        assert!(seen.borrow().is_empty());

        // A head beyond the limit, complete.
        let mut large = frame(HEADERS, END_STREAM, 1, &fields(&PLAIN));
        for n in 0..25 {
            let flags = if n == 24 { END_HEADERS } else { 0 };
            large.extend_from_slice(&frame(CONTINUATION, flags, 1, &part));
        }
        let (engine, seen) = observed().await;
        let end = converse(&engine, &large).await;
        assert!(!matches!(end, End::Answer(200)), "{end:?}");
        assert!(seen.borrow().is_empty());

        // Frames that ask for an answer each, from one who reads none: the engine stops reading, and keeps nothing.
        for (name, kind, payload) in [("settings", SETTINGS, &[][..]), ("pings", PING, &[0; 8][..])] {
            let (engine, _) = observed().await;
            let mut client = engine.connect();
            let start = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
            client.write_all(&start).await.expect("writes");
            let one = frame(kind, 0, 0, payload);
            let mut sent = 0;
            let flood = async {
                while sent < 64 << 20 && client.write_all(&one.repeat(100)).await.is_ok() {
                    sent += 100 * one.len();
                }
            };
            drop(tokio::time::timeout(std::time::Duration::from_millis(200), flood).await);
            assert!(sent < 4 << 20, "{name}: {sent} bytes were taken in");
        }
    })
    .await;
}
