//! A command's streams over one WebSocket, as kubectl speaks them (`v5.channel.k8s.io`, and `v4` without half-closing):
//! every message begins with the number of its stream.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use neap_runtime::pod::{CommandOptions, CommandSession, Error};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use super::Kubelet;
use super::exec::ExecError;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How it ended, as a Status.
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Followed by the number of the stream that is closed.
const CLOSE: u8 = 255;

/// Best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Longest message taken. kubectl sends at most 32 KiB at once.
const MAX_MESSAGE: usize = 1 << 20;
/// Read of a stream at once.
const PIECE: usize = 16 << 10;
/// A command that has ended may have left somebody behind who holds its output open: so long is waited for the rest.
const REST: Duration = Duration::from_millis(200);

/// Why a request for a command is not granted: the status and what kubectl prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

/// The `exec` request's query, and the headers that ask for a WebSocket.
pub struct ExecRequest<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub query: &'a [(String, String)],
    pub request: http::Request<Bytes>,
}

impl Kubelet {
    /// Answers a request for `exec`: begins the command, and talks once the connection is a WebSocket.
    ///
    /// # Errors
    /// It asks for no WebSocket, or for a command that cannot be run.
    pub async fn answer_exec(&self, asked: ExecRequest<'_>) -> Result<Response<()>, Refusal> {
        let ExecRequest { namespace, pod, query, mut request } = asked;
        let all = |key: &str| query.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect::<Vec<_>>();
        let yes = |key: &str| all(key).iter().any(|v| v == "true" || v == "1");
        let command = CommandOptions { argv: all("command"), terminal: yes("tty"), stdin: yes("stdin") };
        let container = all("container").into_iter().next();
        // Before the rest: a client that is refused asks again in an older way, and shows the answer to that.
        self.find_container(namespace, pod, container.as_deref()).map_err(|e| refused(&e))?;
        let answer = handshake(request.headers())?;
        let session = self.exec(namespace, pod, container.as_deref(), command).await.map_err(|e| refused(&e))?;
        let upgraded = hyper::upgrade::on(&mut request);
        let shared = Arc::clone(&self.shared);
        self.shared.talks.spawn(async move {
            let talk = async {
                match upgraded.await {
                    Ok(socket) => talk(hyper_util::rt::TokioIo::new(socket), session).await,
                    Err(error) => tracing::debug!(%error, "a connection for a command was not made"),
                }
            };
            tokio::select! {
                () = talk => {}
                // Dropping the session ends the command.
                () = shared.shutdown.cancelled() => {}
            }
        });
        Ok(answer)
    }
}

fn refused(error: &ExecError) -> Refusal {
    let status = match error {
        ExecError::NotFound(super::LogsError::NoSuchPod { .. }) => StatusCode::NOT_FOUND,
        ExecError::NotFound(_) | ExecError::NoCommand => StatusCode::BAD_REQUEST,
        ExecError::NotRunning { .. } | ExecError::Runtime { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut message = error.to_string();
    if let ExecError::Runtime { source, .. } = error {
        message = format!("{message}: {}", chain(source));
    }
    Refusal { status, message }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// The answer that makes a connection a WebSocket (RFC 6455, 4.2.2).
fn handshake(headers: &HeaderMap) -> Result<Response<()>, Refusal> {
    let bad = |message: &str| Refusal { status: StatusCode::BAD_REQUEST, message: message.to_owned() };
    let has = |name, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(wanted))
    };
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        return Err(bad("a command's streams are offered over a WebSocket only; use kubectl 1.29 or newer"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("the WebSocket's key is missing"))?;
    let protocol = PROTOCOLS.into_iter().find(|known| has(SEC_WEBSOCKET_PROTOCOL, known));
    let protocol = protocol
        .ok_or_else(|| bad("none of the WebSocket's protocols is known; known are v5 and v4.channel.k8s.io"))?;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let set = answer.headers_mut();
    set.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    set.insert(UPGRADE, HeaderValue::from_static("websocket"));
    set.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    let accept = HeaderValue::from_str(&accept).map_err(|_| bad("the WebSocket's key is not one"))?;
    set.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(answer)
}

/// Until the command has ended and all it said is sent, or until the other side is gone: then the command ends.
async fn talk(socket: impl AsyncRead + AsyncWrite + Unpin + Send, session: CommandSession) {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MAX_MESSAGE);
    config.max_frame_size = Some(MAX_MESSAGE);
    let socket = WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await;
    let (mut sink, stream) = socket.split();
    let CommandSession { stdin, stdout, stderr, resize, exit } = session;
    let output = async {
        // Clients take the first message for the sign that the command runs.
        sink.send(Message::binary(vec![STDOUT])).await?;
        let ended = say_all(&mut sink, stdout, stderr, exit).await?;
        let mut last = vec![ERROR];
        last.extend(ended.to_string().into_bytes());
        sink.send(Message::binary(last)).await?;
        // Without a code kubectl takes the end for an accident.
        let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
        sink.send(Message::Close(Some(end))).await
    };
    tokio::select! {
        said = output => {
            if let Err(error) = said {
                tracing::debug!(%error, "whoever talked with a command went away");
            }
        }
        () = hear(stream, stdin, resize) => {}
    }
}

/// Sends what the command says, to its end; then how it ended.
async fn say_all<S>(
    sink: &mut S,
    mut stdout: impl AsyncRead + Unpin,
    stderr: Option<impl AsyncRead + Unpin>,
    exit: impl Future<Output = Result<i32, Error>>,
) -> Result<Value, tungstenite::Error>
where
    S: SinkExt<Message, Error = tungstenite::Error> + Unpin,
{
    let mut exit = std::pin::pin!(exit);
    let mut ended = None;
    let (mut out, mut err) = (vec![0; PIECE + 1], vec![0; PIECE + 1]);
    (out[0], err[0]) = (STDOUT, STDERR);
    let (mut open, mut stderr) = (true, stderr);
    let mut last = Instant::now();
    while open || stderr.is_some() {
        let read_err = async {
            match &mut stderr {
                Some(stream) => stream.read(&mut err[1..]).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = stdout.read(&mut out[1..]), if open => match read {
                Ok(n @ 1..) => sink.send(Message::binary(out[..=n].to_vec())).await?,
                Ok(0) | Err(_) => open = false,
            },
            read = read_err => match read {
                Ok(n @ 1..) => sink.send(Message::binary(err[..=n].to_vec())).await?,
                Ok(0) | Err(_) => stderr = None,
            },
            code = &mut exit, if ended.is_none() => {
                ended = Some(code);
                last = Instant::now() + REST;
            }
            () = sleep_until(last), if ended.is_some() => break,
        }
    }
    let ended = match ended {
        Some(ended) => ended,
        None => exit.await,
    };
    Ok(status(&ended))
}

/// The Status that kubectl takes the exit code from.
fn status(ended: &Result<i32, Error>) -> Value {
    match ended {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => {
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500, "message": chain(error)})
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Hands on what the other side types, until it is gone.
async fn hear(
    mut stream: impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
    mut stdin: Option<impl AsyncWrite + Unpin>,
    resize: Option<neap_runtime::pod::Resize>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match &message {
            Message::Binary(bytes) => bytes.clone(),
            // The protocol's sister in base64 sends text; ours has none.
            Message::Text(text) => match STANDARD.decode(text.as_bytes()) {
                Ok(bytes) => bytes.into(),
                Err(_) => continue,
            },
            Message::Close(_) => return,
            _ => continue,
        };
        match bytes.split_first() {
            Some((&STDIN, typed)) => {
                if let Some(input) = &mut stdin
                    && (input.write_all(typed).await.is_err() || input.flush().await.is_err())
                {
                    // The command reads no more; what it says still counts.
                    stdin = None;
                }
            }
            Some((&CLOSE, [STDIN])) => {
                if let Some(mut input) = stdin.take() {
                    // Gone already is as good.
                    let _ = input.shutdown().await;
                }
            }
            Some((&RESIZE, size)) => {
                if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice::<Size>(size))
                    && let Err(error) = resize(size.height, size.width)
                {
                    tracing::debug!(%error, "a terminal does not take its size");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn request(headers: &[(&'static str, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn connections_become_websockets_of_the_best_protocol() {
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let (upgrade, connection) = (("upgrade", "websocket"), ("connection", "keep-alive, Upgrade"));
        let both = ("sec-websocket-protocol", "v4.channel.k8s.io, v5.channel.k8s.io");
        let answer = handshake(&request(&[key, upgrade, connection, both])).unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        // The example of RFC 6455.
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for headers in [
            vec![key, connection, both, ("upgrade", "SPDY/3.1")],
            vec![key, upgrade, both],
            vec![upgrade, connection, both],
            vec![key, upgrade, connection, ("sec-websocket-protocol", "v1.channel.k8s.io")],
        ] {
            assert_eq!(handshake(&request(&headers)).unwrap_err().status, StatusCode::BAD_REQUEST, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn streams_sizes_and_the_exit_code_cross_the_socket() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (command_in, typed) = tokio::io::duplex(1 << 16);
        let (sizes, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let told = sizes.clone();
        let read = seen.clone();
        let session = CommandSession {
            stdin: Some(Box::pin(command_in)),
            stdout: Box::pin(std::io::Cursor::new(b"out".to_vec())),
            stderr: Some(Box::pin(std::io::Cursor::new(b"err".to_vec()))),
            resize: Some(Box::new(move |rows, columns| {
                told.lock().unwrap().push((rows, columns));
                Ok(())
            })),
            // Ends when its input does.
            exit: Box::pin(async move {
                let mut typed = typed;
                let mut all = Vec::new();
                typed.read_to_end(&mut all).await.unwrap();
                read.lock().unwrap().extend(all);
                Ok(7)
            }),
        };
        let client = async {
            let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
            for message in [&b"\x04{\"Width\":80,\"Height\":25}"[..], b"\x00hello", b"\xff\x00"] {
                socket.send(Message::binary(message.to_vec())).await.unwrap();
            }
            let mut got: Vec<Vec<u8>> = Vec::new();
            loop {
                match socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => got.push(bytes.to_vec()),
                    Some(Ok(Message::Close(end))) => break assert_eq!(end.map(|e| e.code), Some(CloseCode::Normal)),
                    other => panic!("{other:?}"),
                }
            }
            got
        };
        let ((), mut got) = tokio::join!(talk(ours, session), client);
        let last: Value = serde_json::from_slice(&got.pop().unwrap()[1..]).unwrap();
        assert_eq!(last["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        got.sort();
        assert_eq!(got, [b"\x01".to_vec(), b"\x01out".to_vec(), b"\x02err".to_vec()]);
        assert_eq!(*seen.lock().unwrap(), b"hello");
        assert_eq!(*sizes.lock().unwrap(), [(25, 80)]);
    }

    #[tokio::test]
    async fn a_command_ends_when_nobody_listens_any_more() {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (silent, held) = tokio::io::duplex(1);
        let session = CommandSession {
            stdin: None,
            stdout: Box::pin(silent),
            stderr: None,
            resize: None,
            exit: Box::pin(std::future::pending()),
        };
        let client = async {
            let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![STDOUT]));
        };
        tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(talk(ours, session), client) })
            .await
            .unwrap();
        drop(held);
    }
}
