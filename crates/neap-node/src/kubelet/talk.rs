//! Streams of a command, or of a container itself, as kubectl speaks them. Over a WebSocket (`v5.channel.k8s.io`, and
//! `v4` without half-closing) every message begins with the number of its stream; over SPDY, which older clients speak,
//! each has a stream of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{BoxStream, SelectAll};
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use neap_runtime::pod::{CommandOptions, CommandSession, Error};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::Kubelet;
use super::exec::ExecError;
use super::spdy::{self, Output};
use super::upgrade::{self, Bytewise, Carrier, PodRequest, Refusal};
use crate::report::chain;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How it ended, as a Status.
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Followed by the number of the stream that is closed.
const CLOSE: u8 = 255;

/// Best first.
const WEBSOCKET: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const SPDY: [&str; 1] = ["v4.channel.k8s.io"];
/// Read of a stream at once.
const PIECE: usize = 16 << 10;
/// A command that has ended may have left somebody behind who holds its output open: after so long without a word from
/// there it is over.
const REST: Duration = Duration::from_millis(200);
/// How often a client is looked for while a command is silent: one that vanished is noticed by the connection then.
const ALIVE: Duration = Duration::from_secs(30);
/// How long a client may take to open the streams it asks for (the kubelet's `DefaultStreamCreationTimeout`).
const OPENING: Duration = Duration::from_secs(30);
/// How long a client may take to hear the end and close its connection.
const LEAVING: Duration = Duration::from_secs(10);

/// What the other side does.
enum Heard {
    Typed(Bytes),
    /// Nothing more will be typed.
    Closed,
    Size(Bytes),
}

/// Which streams the other side wants.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    terminal: bool,
}

impl Kubelet {
    /// Answers a request for `exec`: begins the command, and talks once the connection is made for it.
    ///
    /// # Errors
    /// It asks for no protocol that is known, or for a command that cannot be run.
    pub async fn answer_exec(&self, mut asked: PodRequest<'_>) -> Result<Response<()>, Refusal> {
        let terminal = asked.yes("tty");
        let command = CommandOptions { argv: asked.all("command"), terminal, stdin: asked.yes("stdin") };
        let (answer, carrier, container) = self.prepare(&asked)?;
        let session =
            self.exec(asked.namespace, asked.pod, Some(&container), command).await.map_err(|e| refused(&e))?;
        self.talk_over(&mut asked, carrier, session);
        Ok(answer)
    }

    /// Answers a request for `attach`, in the same way.
    ///
    /// # Errors
    /// It asks for no protocol that is known, or for a container that does not run.
    pub async fn answer_attach(&self, mut asked: PodRequest<'_>) -> Result<Response<()>, Refusal> {
        let (answer, carrier, container) = self.prepare(&asked)?;
        let stdin = asked.yes("stdin");
        let session =
            self.attach(asked.namespace, asked.pod, Some(&container), stdin).await.map_err(|e| refused(&e))?;
        self.talk_over(&mut asked, carrier, session);
        Ok(answer)
    }

    /// What can be refused before anything is begun.
    fn prepare(&self, asked: &PodRequest<'_>) -> Result<(Response<()>, Carrier, String), Refusal> {
        let container = asked.all("container").into_iter().next();
        // Before the rest: a client that is refused asks again in an older way, and shows the answer to that.
        let found = self.find_container(asked.namespace, asked.pod, container.as_deref());
        let (_, container) = found.map_err(|e| refused(&e))?;
        let (answer, carrier) = upgrade::accept(asked.request.headers(), &WEBSOCKET, &SPDY)?;
        Ok((answer, carrier, container))
    }

    fn talk_over(&self, asked: &mut PodRequest<'_>, carrier: Carrier, session: CommandSession) {
        let terminal = asked.yes("tty");
        let stderr = asked.yes("stderr") && !terminal;
        let wanted = Wanted { stdin: asked.yes("stdin"), stdout: asked.yes("stdout"), stderr, terminal };
        let upgraded = hyper::upgrade::on(&mut asked.request);
        let shared = Arc::clone(&self.shared);
        self.shared.talks.spawn(async move {
            let talk = async {
                match upgraded.await.map(TokioIo::new) {
                    Ok(socket) if carrier == Carrier::WebSocket => over_websocket(socket, session).await,
                    Ok(socket) => over_spdy(upgrade::bytewise(socket, carrier).await, session, wanted).await,
                    Err(error) => tracing::debug!(%error, "a connection for a command was not made"),
                }
            };
            tokio::select! {
                () = talk => {}
                // Dropping the session ends the command.
                () = shared.shutdown.cancelled() => {}
            }
        });
    }
}

fn refused(error: &ExecError) -> Refusal {
    let status = match error {
        ExecError::NotFound(super::LogsError::NoSuchPod { .. }) => StatusCode::NOT_FOUND,
        ExecError::NotFound(_) | ExecError::NoCommand => StatusCode::BAD_REQUEST,
        ExecError::NotRunning { .. } | ExecError::Runtime { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal { status, message: chain(error) }
}

async fn over_websocket(socket: impl AsyncRead + AsyncWrite + Unpin + Send, session: CommandSession) {
    let (mut sink, stream) = upgrade::websocket(socket).await.split();
    let ended = {
        let mut said = (&mut sink).sink_map_err(io::Error::other).with(|(to, bytes): (u8, Bytes)| {
            std::future::ready(io::Result::Ok(Message::binary([&[to], &bytes[..]].concat())))
        });
        // Clients take the first message for the sign that the command runs.
        match said.send((STDOUT, Bytes::new())).await {
            Ok(()) => talk(said, messages(stream), session).await,
            Err(_) => false,
        }
    };
    if ended {
        // Without a code kubectl takes the end for an accident.
        let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
        drop(sink.send(Message::Close(Some(end))).await);
    }
}

fn messages<E>(stream: impl Stream<Item = Result<Message, E>>) -> impl Stream<Item = Heard> {
    let open = stream.take_while(|message| std::future::ready(!matches!(message, Err(_) | Ok(Message::Close(_)))));
    open.filter_map(|message| {
        let bytes = match message {
            Ok(Message::Binary(bytes)) => Some(bytes),
            // The protocol's sister in base64 sends text; ours has none.
            Ok(Message::Text(text)) => STANDARD.decode(text.as_bytes()).ok().map(Bytes::from),
            _ => None,
        };
        std::future::ready(bytes.and_then(|bytes| match (bytes.first(), bytes.get(1..)) {
            (Some(&STDIN), _) => Some(Heard::Typed(bytes.slice(1..))),
            (Some(&CLOSE), Some([STDIN])) => Some(Heard::Closed),
            (Some(&RESIZE), _) => Some(Heard::Size(bytes.slice(1..))),
            _ => None,
        }))
    })
}

async fn over_spdy((incoming, outgoing): Bytewise, session: CommandSession, wanted: Wanted) {
    let (sender, opened) = mpsc::channel(1);
    let talking = async {
        let Ok(Some((outputs, heard))) = timeout(OPENING, streams(opened, wanted)).await else {
            tracing::debug!("a client did not open the streams it asked for");
            return;
        };
        let said = futures::sink::unfold(&outputs, |outputs, (to, bytes): (u8, Bytes)| async move {
            let output = outputs.iter().find(|(stream, _)| *stream == to);
            match output {
                Some((_, output)) if !output.say(bytes).await => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
                _ => Ok(outputs),
            }
        });
        talk(said, heard, session).await;
        for (_, output) in outputs {
            output.end().await;
        }
        // Until the client has heard it; its leaving ends this earlier.
        tokio::time::sleep(LEAVING).await;
    };
    tokio::select! {
        () = talking => {}
        spoken = spdy::run(incoming, outgoing, sender) => if let Err(error) = spoken {
            tracing::debug!(error = chain(&error), "whoever talked with a command went away");
        }
    }
}

/// The streams that were asked for, once all of them are open.
async fn streams(
    mut opened: mpsc::Receiver<spdy::Stream>,
    wanted: Wanted,
) -> Option<(Vec<(u8, Output)>, SelectAll<BoxStream<'static, Heard>>)> {
    let Wanted { stdin, stdout, stderr, terminal } = wanted;
    let wanted = 1 + [stdin, stdout, stderr, terminal].into_iter().filter(|one| *one).count();
    let (mut outputs, mut heard) = (Vec::new(), SelectAll::new());
    while outputs.len() < wanted {
        let spdy::Stream { headers, input, output } = opened.recv().await?;
        let pieces = futures::stream::unfold(input, |mut input| async { Some((input.recv().await?, input)) });
        let stream = match headers.get("streamtype").map(String::as_str) {
            Some("stdin") => {
                let end = futures::stream::once(std::future::ready(Heard::Closed));
                heard.push(pieces.map(Heard::Typed).chain(end).boxed());
                STDIN
            }
            Some("resize") => {
                heard.push(pieces.map(Heard::Size).boxed());
                RESIZE
            }
            Some("stdout") => STDOUT,
            Some("stderr") => STDERR,
            Some("error") => ERROR,
            _ => return None,
        };
        outputs.push((stream, output));
    }
    // Ends with the connection, not when nothing more is typed.
    heard.push(futures::stream::pending().boxed());
    Some((outputs, heard))
}

/// Until the command has ended and all it said is sent, or until the other side is gone: then the command ends.
/// Whether it came to the end.
async fn talk(
    said: impl Sink<(u8, Bytes), Error = io::Error>,
    heard: impl Stream<Item = Heard>,
    session: CommandSession,
) -> bool {
    let CommandSession { stdin, stdout, stderr, resize, exit } = session;
    let mut said = std::pin::pin!(said);
    let output = async {
        let ended = say_all(&mut said, stdout, stderr, exit).await?;
        said.send((ERROR, ended.to_string().into())).await
    };
    tokio::select! {
        sent = output => {
            if let Err(error) = &sent {
                tracing::debug!(%error, "whoever talked with a command went away");
            }
            sent.is_ok()
        }
        () = hear(heard, stdin, resize) => false,
    }
}

/// Sends what the command says, to its end; then how it ended.
async fn say_all<S>(
    said: &mut S,
    mut stdout: impl AsyncRead + Unpin,
    stderr: Option<impl AsyncRead + Unpin>,
    exit: impl Future<Output = Result<i32, Error>>,
) -> io::Result<Value>
where
    S: Sink<(u8, Bytes), Error = io::Error> + Unpin,
{
    let mut exit = std::pin::pin!(exit);
    let mut ended = None;
    let (mut out, mut err) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut open, mut stderr) = (true, stderr);
    let mut last = Instant::now();
    let mut alive = interval(ALIVE);
    alive.reset();
    while open || stderr.is_some() {
        let read_err = async {
            match &mut stderr {
                Some(stream) => stream.read(&mut err).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What was said before anything else: the end may not overtake it.
            biased;
            read = stdout.read(&mut out), if open => match read {
                Ok(n @ 1..) => {
                    said.send((STDOUT, Bytes::copy_from_slice(&out[..n]))).await?;
                    last = Instant::now() + REST;
                }
                Ok(0) | Err(_) => open = false,
            },
            read = read_err => match read {
                Ok(n @ 1..) => {
                    said.send((STDERR, Bytes::copy_from_slice(&err[..n]))).await?;
                    last = Instant::now() + REST;
                }
                Ok(0) | Err(_) => stderr = None,
            },
            code = &mut exit, if ended.is_none() => {
                ended = Some(code);
                last = Instant::now() + REST;
            }
            () = sleep_until(last), if ended.is_some() => break,
            // Nothing, which is enough to find out that nobody is there any more.
            _ = alive.tick() => said.send((STDOUT, Bytes::new())).await?,
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
    heard: impl Stream<Item = Heard>,
    mut stdin: Option<impl AsyncWrite + Unpin>,
    resize: Option<neap_runtime::pod::Resize>,
) {
    let mut heard = std::pin::pin!(heard);
    while let Some(one) = heard.next().await {
        match one {
            Heard::Typed(typed) => {
                if let Some(input) = &mut stdin
                    && (input.write_all(&typed).await.is_err() || input.flush().await.is_err())
                {
                    // The command reads no more; what it says still counts.
                    stdin = None;
                }
            }
            Heard::Closed => {
                if let Some(mut input) = stdin.take() {
                    // Gone already is as good.
                    let _ = input.shutdown().await;
                }
            }
            Heard::Size(size) => {
                // SPDY's clients end each with a line break.
                if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice::<Size>(size.trim_ascii()))
                    && let Err(error) = resize(size.height, size.width)
                {
                    tracing::debug!(%error, "a terminal does not take its size");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    #[tokio::test]
    async fn streams_sizes_and_the_exit_code_cross_the_socket() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (command_in, typed) = tokio::io::duplex(1 << 16);
        let (sizes, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let told = sizes.clone();
        let read = seen.clone();
        let session = CommandSession {
            stdin: Some(Box::pin(command_in)),
            stdout: Box::pin(io::Cursor::new(b"out".to_vec())),
            stderr: Some(Box::pin(io::Cursor::new(b"err".to_vec()))),
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
        let ((), mut got) = tokio::join!(over_websocket(ours, session), client);
        let last: Value = serde_json::from_slice(&got.pop().unwrap()[1..]).unwrap();
        assert_eq!(last["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        got.sort();
        assert_eq!(got, [b"\x01".to_vec(), b"\x01out".to_vec(), b"\x02err".to_vec()]);
        assert_eq!(*seen.lock().unwrap(), b"hello");
        assert_eq!(*sizes.lock().unwrap(), [(25, 80)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_hears_all_that_was_said_before_the_end() {
        let (ours, theirs) = tokio::io::duplex(256);
        let session = CommandSession {
            stdin: None,
            stdout: Box::pin(io::Cursor::new(vec![7; 10 * PIECE])),
            stderr: None,
            resize: None,
            exit: Box::pin(std::future::ready(Ok(0))),
        };
        let client = async {
            let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
            let mut heard = 0;
            while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
                heard += bytes.iter().filter(|byte| **byte == 7).count();
                tokio::time::sleep(2 * REST).await;
            }
            heard
        };
        let ((), heard) = tokio::join!(over_websocket(ours, session), client);
        assert_eq!(heard, 10 * PIECE);
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
        timeout(Duration::from_secs(30), async { tokio::join!(over_websocket(ours, session), client) }).await.unwrap();
        drop(held);
    }
}
