//! The part of SPDY/3.1 that `kubectl` speaks with pods: the other side opens streams, both sides say things on them and
//! end them. Older clients speak it on the bare connection, today's inside a WebSocket.
//!
//! Windows are neither kept nor asked for: no client of Kubernetes knows them, and the connection below holds a fast
//! sender back. A stream that nobody reads therefore holds the others of its connection up, as it does there.

mod frame;
mod headers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream as Incoming, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use frame::{Decoder, Encoder, Heard, Reason, Said};
pub(super) use headers::Headers;

/// Streams of one connection at once: two for each connection that kubectl forwards.
const MAX_STREAMS: usize = 1024;
/// Pieces that wait for whoever reads a stream; each is at most what was read from the connection at once.
const WAITING: usize = 8;
/// Frames that wait for the connection.
const OUTGOING: usize = 32;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the connection broke off")]
    Io(#[from] io::Error),
    #[error("a control frame is longer than streams of pods need")]
    Long,
    #[error("a control frame is shorter than its kind")]
    Short,
    #[error("a control frame is of another version than 3")]
    Version,
    #[error("a block of headers cannot be read")]
    Headers,
}

/// A stream that the other side opened.
pub(super) struct Stream {
    pub(super) headers: Headers,
    pub(super) input: mpsc::Receiver<Bytes>,
    pub(super) output: Output,
}

/// Our half of a stream.
pub(super) struct Output {
    id: u32,
    frames: mpsc::Sender<Said>,
    streams: Streams,
    reset: CancellationToken,
}

type Streams = Arc<Mutex<HashMap<u32, Entry>>>;

struct Entry {
    /// `None` once the other side has said all.
    input: Option<mpsc::Sender<Bytes>>,
    /// We have said all.
    said_all: bool,
    /// The other side wants no more of it, or the connection is over.
    reset: CancellationToken,
}

impl Output {
    /// `false`: nobody listens any more.
    pub(super) async fn say(&self, bytes: Bytes) -> bool {
        self.frame(Said::Data { stream: self.id, bytes, last: false }).await
    }

    /// Nothing more will be said.
    pub(super) async fn end(self) {
        self.frame(Said::Data { stream: self.id, bytes: Bytes::new(), last: true }).await;
        let mut streams = lock(&self.streams);
        if let Some(entry) = streams.get_mut(&self.id) {
            entry.said_all = true;
            if entry.input.is_none() {
                streams.remove(&self.id);
            }
        }
    }

    /// Cancelled when the other side wants no more of this stream.
    pub(super) fn reset(&self) -> CancellationToken {
        self.reset.clone()
    }

    async fn frame(&self, said: Said) -> bool {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => false,
            sent = self.frames.send(said) => sent.is_ok(),
        }
    }
}

impl Drop for Output {
    /// Let go without an end: the other side shall not wait for one.
    fn drop(&mut self) {
        let mut streams = lock(&self.streams);
        if streams.get(&self.id).is_some_and(|entry| !entry.said_all) {
            streams.remove(&self.id);
            // With a full queue the stream stays open over there until its connection ends, as it would without this.
            drop(self.frames.try_send(Said::Reset { stream: self.id, reason: Reason::Cancel }));
        }
    }
}

/// Speaks SPDY until the connection is over; streams that are opened go to `opened`.
pub(super) async fn run(
    incoming: impl Incoming<Item = io::Result<Bytes>>,
    outgoing: impl Sink<Bytes, Error = io::Error>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), Fault> {
    let (frames, said) = mpsc::channel(OUTGOING);
    let streams = Streams::default();
    let result = tokio::select! {
        result = hear(incoming, &streams, frames, opened) => result,
        result = say(outgoing, said) => result.map_err(Fault::Io),
    };
    lock(&streams).drain().for_each(|(_, entry)| entry.reset.cancel());
    result
}

async fn say(outgoing: impl Sink<Bytes, Error = io::Error>, mut said: mpsc::Receiver<Said>) -> io::Result<()> {
    let mut outgoing = std::pin::pin!(outgoing);
    let mut encoder = Encoder::default();
    while let Some(one) = said.recv().await {
        outgoing.feed(encoder.encode(&one)).await?;
        if said.is_empty() {
            outgoing.flush().await?;
        }
    }
    outgoing.close().await
}

async fn hear(
    incoming: impl Incoming<Item = io::Result<Bytes>>,
    streams: &Streams,
    frames: mpsc::Sender<Said>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), Fault> {
    let mut incoming = std::pin::pin!(incoming);
    let mut decoder = Decoder::new();
    let mut newest = 0;
    while let Some(bytes) = incoming.next().await {
        decoder.push(&bytes?);
        while let Some(heard) = decoder.next()? {
            match heard {
                Heard::Open { stream, headers, last } => {
                    let answer = match open(stream, newest, last, streams) {
                        Err(reason) => Said::Reset { stream, reason },
                        Ok((input, reset)) => {
                            newest = stream;
                            let output = Output { id: stream, frames: frames.clone(), streams: streams.clone(), reset };
                            // Before whoever takes it can say anything on it.
                            drop(frames.send(Said::Reply { stream }).await);
                            // Nobody there to take it: it is dropped, which tells the other side.
                            drop(opened.send(Stream { headers, input, output }).await);
                            continue;
                        }
                    };
                    drop(frames.send(answer).await);
                }
                Heard::Data { stream, bytes, last } => {
                    let input = lock(streams).get(&stream).and_then(|entry| entry.input.clone());
                    if let Some(input) = input
                        && !bytes.is_empty()
                        && input.send(bytes).await.is_err()
                    {
                        // Nobody reads it any more: the other side need not go on.
                        end_input(streams, stream);
                        drop(frames.send(Said::Reset { stream, reason: Reason::Cancel }).await);
                    }
                    if last {
                        end_input(streams, stream);
                    }
                }
                Heard::Reset { stream } => {
                    if let Some(entry) = lock(streams).remove(&stream) {
                        entry.reset.cancel();
                    }
                }
                // Even numbers would be answers to questions of ours.
                Heard::Ping { id } if id % 2 == 1 => drop(frames.send(Said::Ping { id }).await),
                // What is open is still served; the connection's end follows by itself.
                Heard::Ping { .. } | Heard::GoAway => {}
            }
        }
    }
    Ok(())
}

fn open(
    stream: u32,
    newest: u32,
    last: bool,
    streams: &Streams,
) -> Result<(mpsc::Receiver<Bytes>, CancellationToken), Reason> {
    // Clients' streams have odd numbers that grow (SPDY/3, 2.3.2).
    if stream.is_multiple_of(2) || stream <= newest {
        return Err(Reason::Protocol);
    }
    let mut streams = lock(streams);
    if streams.len() >= MAX_STREAMS {
        return Err(Reason::Refused);
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let reset = CancellationToken::new();
    streams.insert(stream, Entry { input: (!last).then_some(sender), said_all: false, reset: reset.clone() });
    Ok((receiver, reset))
}

fn end_input(streams: &Streams, stream: u32) {
    let mut streams = lock(streams);
    if let Some(entry) = streams.get_mut(&stream) {
        entry.input = None;
        if entry.said_all {
            streams.remove(&stream);
        }
    }
}

fn lock(streams: &Streams) -> MutexGuard<'_, HashMap<u32, Entry>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}
