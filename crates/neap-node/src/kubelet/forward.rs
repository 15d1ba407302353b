//! Ports of a pod carried to whoever asks (`kubectl port-forward`): for every connection made at the other end two
//! streams of one SPDY connection, one for its bytes and one for a sentence when it cannot be made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use neap_runtime::pod::PodId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::spdy::{self, Stream};
use super::upgrade::{self, PodRequest, Refusal};
use super::{Kubelet, LogsError, Shared};
use crate::report::chain;

/// Inside a WebSocket, and on the bare connection (`k8s.io/apimachinery/pkg/util/portforward`).
const WEBSOCKET: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];
const SPDY: [&str; 1] = ["portforward.k8s.io"];
/// How long one of a connection's two streams may wait for the other (the kubelet's `DefaultStreamCreationTimeout`).
const PAIRING: Duration = Duration::from_secs(30);
/// A process in the pod that does not accept for this long will not.
const CONNECT: Duration = Duration::from_secs(30);
/// Read at once.
const PIECE: usize = 32 << 10;

/// A connection to be: its streams by their kind, as far as they were opened.
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
    port: Option<u16>,
    since: Instant,
}

impl Kubelet {
    /// Answers a request for `portforward`, and carries connections once its own has become SPDY.
    ///
    /// # Errors
    /// The pod is not here, or the request asks for nothing that is known.
    pub async fn answer_forward(&self, mut asked: PodRequest<'_>) -> Result<Response<()>, Refusal> {
        let missing = || LogsError::NoSuchPod { name: asked.pod.to_owned() };
        let found = self.shared.names.find(asked.namespace, asked.pod);
        let gone = |error: LogsError| Refusal { status: StatusCode::NOT_FOUND, message: error.to_string() };
        let found = found.ok_or_else(|| gone(missing()))?;
        let id = PodId(found.uid);
        if self.shared.runtime.status(&id).is_none() {
            return Err(gone(missing()));
        }
        let (answer, carrier) = upgrade::accept(asked.request.headers(), &WEBSOCKET, &SPDY)?;
        let upgraded = hyper::upgrade::on(&mut asked.request);
        let shared = Arc::clone(&self.shared);
        self.shared.talks.spawn(async move {
            let stop = shared.shutdown.clone();
            let forward = async {
                match upgraded.await {
                    Ok(socket) => {
                        let socket = hyper_util::rt::TokioIo::new(socket);
                        forward(upgrade::bytewise(socket, carrier).await, &shared, &id).await;
                    }
                    Err(error) => tracing::debug!(%error, "a connection for forwarding ports was not made"),
                }
            };
            tokio::select! {
                () = forward => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(answer)
    }
}

/// Until the other side is gone.
async fn forward((incoming, outgoing): upgrade::Bytewise, shared: &Arc<Shared>, id: &PodId) {
    let (sender, mut opened) = mpsc::channel(1);
    let mut connections = JoinSet::new();
    let pairing = async {
        let mut waiting: HashMap<String, Pair> = HashMap::new();
        loop {
            let oldest = waiting.values().map(|pair| pair.since + PAIRING).min();
            let stream: Option<Stream> = tokio::select! {
                stream = opened.recv() => stream,
                () = sleep_until(oldest.unwrap_or_else(Instant::now)), if oldest.is_some() => {
                    waiting.retain(|_, pair| pair.since.elapsed() < PAIRING);
                    continue;
                }
                Some(_) = connections.join_next() => continue,
            };
            let Some(stream) = stream else { break };
            let request = stream.headers.get("requestid").cloned().unwrap_or_default();
            let pair = waiting.entry(request.clone()).or_insert_with(|| Pair {
                data: None,
                error: None,
                port: stream.headers.get("port").and_then(|port| port.parse().ok()),
                since: Instant::now(),
            });
            match stream.headers.get("streamtype").map(String::as_str) {
                Some("data") => pair.data = Some(stream),
                Some("error") => pair.error = Some(stream),
                _ => stream.output.end().await,
            }
            if pair.data.is_none() || pair.error.is_none() {
                continue;
            }
            if let Some(Pair { data: Some(data), error: Some(error), port, .. }) = waiting.remove(&request) {
                connections.spawn(carry(shared.clone(), id.clone(), port, data, error));
            }
        }
    };
    let spoken = async {
        if let Err(error) = spdy::run(incoming, outgoing, sender).await {
            tracing::debug!(error = chain(&error), "whoever forwarded ports went away");
        }
    };
    // What is still carried ends with the connection, dropped here.
    tokio::select! {
        () = pairing => {}
        () = spoken => {}
    }
}

/// One connection, from its beginning to its end.
async fn carry(shared: Arc<Shared>, id: PodId, port: Option<u16>, data: Stream, error: Stream) {
    let reset = data.output.reset();
    let connected = match port {
        None => Err("the stream names no port".to_owned()),
        Some(port) => {
            let connecting = timeout(CONNECT, shared.runtime.connect(&id, port));
            let failed = |why: String| format!("error forwarding port {port} to pod {id}: {why}");
            match connecting.await {
                Ok(Ok(socket)) => Ok(socket),
                Ok(Err(error)) => Err(failed(chain(&error))),
                Err(_) => Err(failed(format!("nobody answered within {} s", CONNECT.as_secs()))),
            }
        }
    };
    match connected {
        Ok(socket) => {
            tokio::select! {
                () = both_ways(socket, data) => {}
                () = reset.cancelled() => {}
            }
        }
        Err(why) => {
            error.output.say(Bytes::from(why)).await;
            data.output.end().await;
        }
    }
    error.output.end().await;
}

async fn both_ways(socket: TcpStream, data: Stream) {
    let Stream { mut input, output, .. } = data;
    let (mut from, mut to) = socket.into_split();
    let there = async {
        while let Some(bytes) = input.recv().await {
            if to.write_all(&bytes).await.is_err() {
                // It reads no more; what it says still counts. Closing the stream tells the other side.
                return;
            }
        }
        drop(to.shutdown().await);
    };
    let back = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match from.read_buf(&mut buffer).await {
                Ok(1..) if output.say(buffer.split().freeze()).await => {}
                _ => break,
            }
        }
        output.end().await;
    };
    let (mut there, mut back) = (std::pin::pin!(there), std::pin::pin!(back));
    // Once the pod has said all, nobody waits for what it might still be told.
    tokio::select! {
        () = &mut there => back.await,
        () = &mut back => {}
    }
}
