//! A client's bytes in, our bytes out.

use futures::SinkExt;
use futures::channel::mpsc as pipe;

use super::frame::{Decoder, Encoder, Heard, Reason, Said};
use super::*;

/// What a client's zlib makes of three streams' headers, each block building on those before it.
const FIRST: &str =
    "78f9e3c6a7c202253a48f95b044eea16061606409ab308125f99a074cc68004e892545a989b9d0c2863515141500000000ffff";
const SECOND: &str = "225333a8a44a04000000ffff";
const THIRD: &str = "a2442f000000ffff";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn syn_stream(stream: u32, block: &str) -> Vec<u8> {
    let block = bytes(block);
    let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, 10 + block.len() as u8];
    frame.extend(stream.to_be_bytes());
    frame.extend([0; 6]);
    frame.extend(block);
    frame
}

fn data(stream: u32, text: &[u8], last: bool) -> Vec<u8> {
    let said = Said::Data { stream, bytes: Bytes::copy_from_slice(text), last };
    Encoder::default().encode(&said).to_vec()
}

fn headers(kind: &str) -> Headers {
    [("port", "8080"), ("requestid", "0"), ("streamtype", kind)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// However the bytes are cut, the same is heard (data in pieces is put together again).
fn check(input: &[Vec<u8>], want: Result<&[Heard], &str>) {
    let all = input.concat();
    for size in [1, 3, all.len()] {
        let mut decoder = Decoder::new();
        let mut got: Vec<Heard> = Vec::new();
        let mut fault = None;
        'all: for piece in all.chunks(size) {
            decoder.push(piece);
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    Err(error) => {
                        fault = Some(error.to_string());
                        break 'all;
                    }
                    Ok(Some(Heard::Data { stream, bytes, last })) => {
                        if let Some(Heard::Data { stream: s, bytes: b, last: l }) = got.last_mut()
                            && *s == stream
                            && !*l
                        {
                            (*b, *l) = ([&b[..], &bytes].concat().into(), last);
                        } else {
                            got.push(Heard::Data { stream, bytes, last });
                        }
                    }
                    Ok(Some(heard)) => got.push(heard),
                }
            }
        }
        match want {
            Ok(want) => assert_eq!((&got[..], fault), (want, None), "in pieces of {size}"),
            Err(want) => assert!(fault.as_deref().is_some_and(|f| f.contains(want)), "{fault:?} in pieces of {size}"),
        }
    }
}

#[test]
fn frames_are_read_in_any_pieces() {
    let opened = |stream, kind| Heard::Open { stream, headers: headers(kind), last: false };
    check(&[syn_stream(1, FIRST), syn_stream(3, SECOND)], Ok(&[opened(1, "error"), opened(3, "data")]));
    let hello = |last| Heard::Data { stream: 3, bytes: "hello".into(), last };
    check(&[data(3, b"hello", false), data(3, b"", true)], Ok(&[hello(true)]));
    check(&[data(3, b"hello", true)], Ok(&[hello(true)]));
    let ping = vec![0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9];
    let reset = vec![0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 1];
    // Settings and windows say nothing to us.
    let settings = vec![0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0];
    let window = vec![0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 1, 0];
    check(&[settings, ping, window, reset], Ok(&[Heard::Ping { id: 9 }, Heard::Reset { stream: 5 }]));
}

#[test]
fn what_is_no_spdy_ends_the_connection() {
    check(&[vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]], Err("version"));
    check(&[vec![0x80, 3, 0, 6, 0, 0, 0, 0]], Err("shorter"));
    check(&[vec![0x80, 3, 0, 1, 0, 0xff, 0, 0]], Err("longer"));
    check(&[syn_stream(1, SECOND)], Err("headers"));
    // Another dictionary; a cut block; what unfolds to more than headers are.
    check(&[syn_stream(1, &FIRST.replace("e3c6a7c2", "00000001"))], Err("headers"));
    check(&[syn_stream(1, &FIRST[..40])], Err("headers"));
    let mut bomb = flate2::Compress::new(flate2::Compression::best(), true);
    let mut block = Vec::with_capacity(1 << 16);
    bomb.compress_vec(&vec![0; 1 << 22], &mut block, flate2::FlushCompress::Sync).unwrap();
    let hex: String = block.iter().take(200).map(|b| format!("{b:02x}")).collect();
    check(&[syn_stream(1, &hex)], Err("headers"));
}

/// A connection with a client that is a pair of channels.
struct Client {
    send: pipe::Sender<io::Result<Bytes>>,
    receive: pipe::Receiver<Bytes>,
    opened: mpsc::Receiver<Stream>,
    _task: tokio::task::JoinSet<()>,
}

fn client() -> Client {
    let (send, incoming) = pipe::channel(16);
    let (outgoing, receive) = pipe::channel(16);
    let (sender, opened) = mpsc::channel(4);
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        let outgoing = outgoing.sink_map_err(io::Error::other);
        drop(run(incoming, outgoing, sender).await);
    });
    Client { send, receive, opened, _task: task }
}

impl Client {
    async fn says(&mut self, frame: Vec<u8>) {
        self.send.send(Ok(frame.into())).await.unwrap();
    }

    /// The next frame of ours: its first word and what follows the head.
    async fn hears(&mut self) -> (u32, Vec<u8>) {
        let frame = self.receive.next().await.unwrap();
        (u32::from_be_bytes(frame[..4].try_into().unwrap()), frame[8..].to_vec())
    }
}

#[tokio::test]
async fn streams_are_answered_talked_on_and_ended() {
    let mut client = client();
    client.says(syn_stream(1, FIRST)).await;
    let mut stream = client.opened.recv().await.unwrap();
    assert_eq!(stream.headers, headers("error"));
    let (kind, body) = client.hears().await;
    assert_eq!((kind, &body[..6]), (0x8003_0002, &[0, 0, 0, 1, 0x78, 1][..]));
    client.says(data(1, b"to us", true)).await;
    assert_eq!(stream.input.recv().await.unwrap(), "to us");
    assert_eq!(stream.input.recv().await, None);
    assert!(stream.output.say("to them".into()).await);
    stream.output.end().await;
    assert_eq!(client.hears().await, (1, b"to them".to_vec()));
    assert_eq!(client.hears().await, (1, Vec::new()));
    client.says(vec![0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]).await;
    assert_eq!(client.hears().await, (0x8003_0006, vec![0, 0, 0, 7]));
}

#[tokio::test]
async fn streams_that_may_not_be_are_taken_back() {
    let mut client = client();
    client.says(syn_stream(2, FIRST)).await;
    let reset = |stream: u8, reason: Reason| (0x8003_0003, vec![0, 0, 0, stream, 0, 0, 0, reason as u8]);
    assert_eq!(client.hears().await, reset(2, Reason::Protocol));
    client.says(syn_stream(3, SECOND)).await;
    let stream = client.opened.recv().await.unwrap();
    client.hears().await;
    // Told once that nobody reads it.
    drop(stream.input);
    client.says(data(3, b"for nobody", false)).await;
    assert_eq!(client.hears().await, reset(3, Reason::Cancel));
    // And one that the other side takes back.
    let taken_back = stream.output.reset();
    client.says(vec![0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]).await;
    taken_back.cancelled().await;
    assert!(!stream.output.say("for nobody".into()).await);
    client.opened.close();
    client.says(syn_stream(5, THIRD)).await;
    client.hears().await;
    assert_eq!(client.hears().await, reset(5, Reason::Cancel));
}
