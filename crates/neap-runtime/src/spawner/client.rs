//! The runtime's end of the spawner: requests as futures, and a new spawner when the old one is gone.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::wire::{self, Cell, Exec, Order, Outcome, PROTOCOL, Reply, Request, Sandbox, StartError, Terminal, Users};
use super::{MARK, NAME, SOCKET};
use crate::cgroup::Group;
use crate::record::Run;
use crate::sys;

/// A spawner that does not greet within this time is not one: the program lacks the call in its `main`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The spawner's answers take milliseconds; a machine that is this slow has other troubles.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A container's mounts take milliseconds. What takes this long (a network filesystem that is away) may take for ever.
const START_TIMEOUT: Duration = Duration::from_secs(120);

type Answer = (Reply, Vec<OwnedFd>);
/// Who waits for which request; `None` once the spawner is gone.
type Waiting = Option<HashMap<u64, oneshot::Sender<Answer>>>;

/// The door to the spawner. Starts it on first use and again after its death.
pub(crate) struct Spawner {
    /// Where it and everything it forks lives, until moved elsewhere.
    group: Option<Group>,
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
    next: AtomicU64,
}

/// A keeper with a container process waiting in it.
pub(crate) struct Keeper {
    control: Channel,
}

/// A command running in a container. Dropping it ends the command.
pub(crate) struct Running {
    id: u64,
    connection: Arc<Connection>,
    answer: oneshot::Receiver<Answer>,
    done: bool,
}

impl Spawner {
    pub(crate) fn new(group: Option<Group>) -> Self {
        Self { group, connection: tokio::sync::Mutex::default(), next: AtomicU64::new(0) }
    }

    /// Lets the spawner go; what it forked stays.
    pub(crate) async fn stop(&self) {
        *self.connection.lock().await = None;
    }

    pub(crate) async fn keeper(&self, cell: Cell) -> io::Result<Keeper> {
        let id = self.next_id();
        let (reply, fds) = self.ask(id, &Request::Keeper { id, cell }, &[]).await?;
        let Reply::Keeper { .. } = reply else { return Err(refused(reply)) };
        let control = fds.into_iter().next().ok_or_else(|| io::Error::other("the spawner sent no socket"))?;
        Ok(Keeper { control: Channel::new(control)? })
    }

    /// Pins a user namespace.
    pub(crate) async fn users(&self, users: Users) -> io::Result<()> {
        let id = self.next_id();
        match self.ask(id, &Request::Users { id, users }, &[]).await?.0 {
            Reply::Done { error: None, .. } => Ok(()),
            other => Err(refused(other)),
        }
    }

    pub(crate) async fn sandbox(&self, sandbox: Sandbox) -> io::Result<()> {
        let id = self.next_id();
        match self.ask(id, &Request::Sandbox { id, sandbox }, &[]).await?.0 {
            Reply::Done { error: None, .. } => Ok(()),
            other => Err(refused(other)),
        }
    }

    pub(crate) async fn exec(&self, exec: Exec, stdio: [OwnedFd; 3]) -> io::Result<Running> {
        let connection = self.connection().await?;
        let id = self.next_id();
        let answer = connection.expect(id);
        let fds = stdio.each_ref().map(|fd| fd.as_raw_fd());
        let running = Running { id, connection, answer, done: false };
        running.connection.channel.send(&Request::Exec { id, exec }, &fds).await?;
        Ok(running)
    }

    /// Like [`Self::exec`], on a terminal whose master comes back. `theirs`: one socket three times, whose other end is
    /// `ours`; errors from before the terminal are written to it.
    pub(crate) async fn exec_on_terminal(
        &self,
        exec: Exec,
        theirs: [OwnedFd; 3],
        ours: OwnedFd,
    ) -> io::Result<(Running, OwnedFd)> {
        let channel = Channel::new(ours)?;
        let running = self.exec(exec, theirs).await?;
        let terminal = tokio::time::timeout(ANSWER_TIMEOUT, channel.receive::<Terminal>()).await;
        match terminal.map_err(|_| slow())? {
            Ok(Some((Terminal, fds))) => {
                let master = fds.into_iter().next().ok_or_else(|| io::Error::other("the command sent no terminal"))?;
                Ok((running, master))
            }
            Ok(None) => Err(io::Error::other("the container cannot be joined, or has no terminals")),
            // Not a message but a sentence.
            Err(error) => Err(error),
        }
    }

    /// Resolves when everything that was asked before is done.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        let id = self.next_id();
        match self.ask(id, &Request::Settle { id }, &[]).await?.0 {
            Reply::Done { error: None, .. } => Ok(()),
            other => Err(refused(other)),
        }
    }

    /// Starts the spawner if it does not run, and so finds out early whether it can.
    pub(crate) async fn check(&self) -> io::Result<()> {
        self.connection().await.map(drop)
    }

    fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn ask(&self, id: u64, request: &Request, fds: &[RawFd]) -> io::Result<Answer> {
        let connection = self.connection().await?;
        let answer = connection.expect(id);
        let asked = async {
            connection.channel.send(request, fds).await?;
            answer.await.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the spawner ended before it answered"))
        };
        let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, asked).await else {
            // It does one thing after another: if this one hangs, so does everything behind it. Keepers live on.
            tracing::warn!("the pod spawner hangs; a new one will be started");
            connection.give_up();
            return Err(slow());
        };
        if answer.is_err() {
            connection.forget(id);
        }
        answer
    }

    async fn connection(&self) -> io::Result<Arc<Connection>> {
        let mut slot = self.connection.lock().await;
        match &*slot {
            Some(connection) if !connection.is_gone() => Ok(connection.clone()),
            _ => {
                let fresh = Connection::start(self.group.as_ref()).await?;
                *slot = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }
}

fn slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the spawner did not answer within 30 s")
}

impl Keeper {
    /// Gives the keeper its order and waits until the container runs or cannot. One that takes too long is given up:
    /// it must be ended with its group.
    pub(crate) async fn run(&self, order: &Order) -> io::Result<Result<Run, StartError>> {
        match self.control.send(order, &[]).await {
            // It is gone already, and may have said why.
            Err(error) if is_closed(&error) => {}
            sent => sent?,
        }
        let answer = tokio::time::timeout(START_TIMEOUT, self.control.receive::<Outcome>()).await;
        match answer
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the container did not start within 2 min"))??
        {
            Some((Outcome::Broken(why), _)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, why)),
            Some((Outcome::Started(run), _)) => Ok(Ok(*run)),
            Some((Outcome::Failed(error), _)) => Ok(Err(error)),
            None => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the container's keeper ended before it answered")),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl Running {
    /// The command's exit code.
    pub(crate) async fn wait(mut self) -> io::Result<i32> {
        let answer = (&mut self.answer).await;
        self.done = true;
        match answer {
            Ok((Reply::Exited { code, .. }, _)) => Ok(code),
            Ok((other, _)) => Err(refused(other)),
            Err(_) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the spawner ended before the command did")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            self.connection.forget(self.id);
            // Non-blocking: a spawner that takes no more messages is gone, and its commands with it.
            let _ = wire::send(self.connection.channel.0.as_fd(), &Request::KillExec { id: self.id }, &[]);
        }
    }
}

struct Connection {
    channel: Arc<Channel>,
    waiting: Arc<Mutex<Waiting>>,
    over: CancellationToken,
    _reader: AbortOnDropHandle<()>,
}

impl Connection {
    async fn start(group: Option<&Group>) -> io::Result<Arc<Self>> {
        let (ours, theirs) = sys::socket_pair()?;
        let mut child = sys::start_self(NAME, MARK, theirs, SOCKET)?;
        let channel = Arc::new(Channel::new(ours)?);
        channel.send(&Request::Hello, &[]).await?;
        let hello = tokio::time::timeout(HELLO_TIMEOUT, channel.receive::<Reply>()).await;
        if !matches!(hello, Ok(Ok(Some((Reply::Hello { protocol: PROTOCOL }, _))))) {
            let _ = child.start_kill();
            return Err(io::Error::other(
                "the pod spawner did not start: this program's main must call neap_runtime::spawner::main_if_requested first",
            ));
        }
        if let (Some(group), Some(pid)) = (group, child.id()) {
            group.create()?;
            group.add(pid as i32)?;
        }
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let over = CancellationToken::new();
        let reader = read_answers(child, channel.clone(), waiting.clone(), over.clone());
        #[expect(clippy::disallowed_methods, reason = "owned by the connection, aborted with it")]
        let reader = AbortOnDropHandle::new(tokio::spawn(reader));
        Ok(Arc::new(Self { channel, waiting, over, _reader: reader }))
    }

    fn expect(&self, id: u64) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        // When the spawner is gone the sender is dropped here, and the receiver says so.
        if let Some(waiting) = self.lock().as_mut() {
            waiting.insert(id, sender);
        }
        receiver
    }

    fn forget(&self, id: u64) {
        if let Some(waiting) = self.lock().as_mut() {
            waiting.remove(&id);
        }
    }

    /// Whoever still waits is told so; the reader's end kills the process.
    fn give_up(&self) {
        *self.lock() = None;
        self.over.cancel();
    }

    fn is_gone(&self) -> bool {
        self.lock().is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_answers(
    mut child: tokio::process::Child,
    channel: Arc<Channel>,
    waiting: Arc<Mutex<Waiting>>,
    over: CancellationToken,
) {
    loop {
        let received = tokio::select! {
            received = channel.receive::<Reply>() => received,
            () = over.cancelled() => break,
        };
        match received {
            Ok(Some((reply, fds))) => {
                let id = match reply {
                    Reply::Hello { .. } => continue,
                    Reply::Keeper { id, .. } | Reply::Done { id, .. } | Reply::Exited { id, .. } => id,
                };
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(sender) = waiting.as_mut().and_then(|w| w.remove(&id)) {
                    // Who asked may have given up.
                    let _ = sender.send((reply, fds));
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the pod spawner cannot be understood; a new one will be started");
                break;
            }
        }
    }
    *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let _ = child.start_kill();
    let _ = child.wait().await;
}

/// A message socket that does not block.
struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(socket.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(socket.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(sys::watched(socket)?))
    }

    async fn send<T: Serialize>(&self, message: &T, fds: &[RawFd]) -> io::Result<()> {
        loop {
            let mut guard = self.0.writable().await?;
            if let Ok(result) = guard.try_io(|socket| wire::send(socket.as_fd(), message, fds)) {
                return result;
            }
        }
    }

    async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(result) = guard.try_io(|socket| wire::receive(socket.as_fd())) {
                return result;
            }
        }
    }
}

fn refused(reply: Reply) -> io::Error {
    match reply {
        Reply::Done { error: Some(error), .. } => io::Error::other(error),
        other => io::Error::other(format!("the spawner answered something else: {other:?}")),
    }
}
