//! The runtime's end of an attachment to a container: the container's keeper passes on what it says and what is typed.
//! The messages are those of `spawner::guests`.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::sleep;

use crate::launch::Streams;
use crate::pod::{CommandSession, Error};
use crate::spawner::guests::{CLOSE, HEAD, MAX_MESSAGE, SIZE, SOCKET, STDERR, STDOUT, TYPED, message};

/// What waits for a reader here, beside what waits on the socket.
const BUFFER: usize = 4 * MAX_MESSAGE;
/// How long a keeper may take to be reachable.
const TRIES: u32 = 50;
const STEP: Duration = Duration::from_millis(20);

/// Attaches to the run whose records are in `dir`.
pub(crate) async fn attach(dir: &Path, streams: Streams, stdin: bool) -> io::Result<CommandSession> {
    let mut tries = 0..TRIES;
    let socket = loop {
        match connect(dir).await {
            // The keeper makes its socket right after the container has started.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries.next().is_some() => sleep(STEP).await,
            other => break other?,
        }
    };
    let (terminal, takes_input) = match streams {
        Streams::Output => (false, false),
        Streams::Input { .. } => (false, true),
        Streams::Terminal { input, .. } => (true, input),
    };
    let (heard, mut said) = socket.into_split();
    if stdin && takes_input {
        // That it will type, so that its leaving counts.
        said.write_all(&message(TYPED, &[])).await?;
    }
    let said = Input(Arc::new(Mutex::new(Outgoing { socket: said, unsent: Vec::new() })));
    let (stdout, out) = tokio::io::duplex(BUFFER);
    let (stderr, err) = tokio::io::duplex(BUFFER);
    let (sized, held) = (said.0.clone(), said.0.clone());
    let resize = move |rows: u16, columns: u16| {
        let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
        let mut said = sized.lock().unwrap_or_else(PoisonError::into_inner);
        if said.unsent.len() > MAX_MESSAGE * 2 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        said.unsent.extend(message(SIZE, &[a, b, c, d]));
        said.try_send()
    };
    Ok(CommandSession {
        stdin: (stdin && takes_input).then(|| Box::pin(said) as _),
        stdout: Box::pin(stdout),
        stderr: (!terminal).then(|| Box::pin(stderr) as _),
        resize: terminal.then(|| Box::new(resize) as _),
        // Moves what is said for as long as somebody waits for the end. Who has typed all has not left yet.
        exit: Box::pin(async move {
            let ended = hear(heard, out, err).await;
            drop(held);
            ended.map(|()| 0).map_err(|source| Error::Command { source })
        }),
    })
}

async fn connect(dir: &Path) -> io::Result<UnixStream> {
    // By the directory's descriptor: paths of sockets are short by law.
    let dir = fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

async fn hear(mut socket: OwnedReadHalf, mut out: DuplexStream, mut err: DuplexStream) -> io::Result<()> {
    let mut bytes = vec![0_u8; MAX_MESSAGE];
    loop {
        let mut head = [0_u8; HEAD];
        match socket.read_exact(&mut head).await {
            Ok(_) => {}
            // The keeper ended, or had no more patience.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let said = bytes.get_mut(..length).ok_or_else(|| io::Error::other("the keeper's message is too long"))?;
        socket.read_exact(said).await?;
        // A reader that is gone misses it; the others go on.
        match head[0] {
            STDOUT => drop(out.write_all(said).await),
            STDERR => drop(err.write_all(said).await),
            _ => {}
        }
    }
}

/// Messages on their way to the keeper.
struct Outgoing {
    socket: OwnedWriteHalf,
    /// Begun or waiting; what is added goes behind it.
    unsent: Vec<u8>,
}

impl Outgoing {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(context, &self.unsent))?;
            self.unsent.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }

    /// As much as goes at once; the rest goes before what comes next.
    fn try_send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.socket.try_write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What is typed. Shared with whoever tells the terminal its size; nobody holds it while waiting.
struct Input(Arc<Mutex<Outgoing>>);

impl Input {
    fn with<T>(&self, act: impl FnOnce(&mut Outgoing) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|said| {
            ready!(said.poll_send(context))?;
            let taken = bytes.len().min(MAX_MESSAGE);
            said.unsent = message(TYPED, &bytes[..taken]);
            // It counts as taken now; what does not go at once goes with the next call.
            let _ = said.poll_send(context)?;
            Poll::Ready(Ok(taken))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|said| said.poll_send(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|said| {
            ready!(said.poll_send(context))?;
            said.unsent = message(CLOSE, &[]);
            said.poll_send(context)
        })
    }
}
