//! The words between the runtime, the spawner and the keepers, and how they cross a socket with descriptors.
//!
//! Message-keeping Unix sockets, one JSON value per message. Large things (a [`crate::launch::Launch`]) go by file.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::launch::Isolation;
use crate::record::{ProcessId, Run};

/// Changes whenever the words below do: runtime and spawner are the same binary, so a difference is a mistake.
pub(crate) const PROTOCOL: u32 = 6;
/// Longest message. A socket takes about 200 KiB in one piece by default.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;
const MAX_FDS: usize = 4;

/// Runtime to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Answered by [`Reply::Hello`].
    Hello,
    /// A keeper with a container process waiting inside. Answered by [`Reply::Keeper`] with the control socket.
    Keeper { id: u64, cell: Cell },
    /// Network, IPC and UTS namespaces for a pod. Answered by [`Reply::Done`].
    Sandbox { id: u64, sandbox: Sandbox },
    /// A user namespace for a pod. Answered by [`Reply::Done`].
    Users { id: u64, users: Users },
    /// Runs a command in a container; stdin, stdout, stderr come as descriptors. Answered by [`Reply::Exited`].
    Exec { id: u64, exec: Exec },
    /// Answered by [`Reply::Done`], after everything that was asked before.
    Settle { id: u64 },
    /// Ends a command that was begun with this id.
    KillExec { id: u64 },
}

/// Spawner to runtime.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Hello { protocol: u32 },
    Keeper { id: u64, pid: i32 },
    Done { id: u64, error: Option<String> },
    Exited { id: u64, code: i32 },
}

/// Runtime to keeper: the one order a keeper takes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Directory of this run: `launch.json` is in it, the keeper's records go there.
    pub dir: PathBuf,
    /// No program: the first process only holds its PID namespace, for the containers of a pod that share one, in these
    /// namespaces of that pod.
    pub hold: Option<Vec<PathBuf>>,
}

/// Keeper to runtime: what became of the order. Everything later is told by files and by the keeper's end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Started(Box<Run>),
    Failed(StartError),
    /// The keeper could not do its part; another one may.
    Broken(String),
}

/// Why a container's process could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartError {
    /// The specification or the image is at fault, not the machine.
    pub config: bool,
    pub message: String,
}

/// What a keeper prepares before it has an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub isolation: Isolation,
    pub group: Option<Group>,
    /// Live in the PID namespace of this process instead of a new one.
    pub share_pids_of: Option<i32>,
}

/// Addresses of one pod's network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// Where the namespaces are held: `net`, `ipc`, `uts` below it.
    pub dir: PathBuf,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// Name of the machine's end of the cable.
    pub interface: String,
}

/// Users of a pod's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Users {
    /// Where the namespace is held.
    pub file: PathBuf,
    /// Root inside is this number outside, and the rest follow it.
    pub first: u32,
    pub count: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub process: ProcessId,
    pub isolation: Isolation,
    pub group: Option<Group>,
    /// Of the container's run: its `launch.json` says who the command is and in what environment, which may be large.
    pub dir: PathBuf,
    pub argv: Vec<String>,
    /// In place of the standard streams a terminal; standard input is then a socket that its master is sent over.
    pub terminal: bool,
}

/// Command to asker: the master of its terminal comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Terminal;

/// Sends one message with descriptors.
pub(crate) fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message to the spawner is too long"));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message with its descriptors. `None`: the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0_u8; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            // A reset only says that the other side ended without reading all; what it sent before is still here.
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNRESET) => continue,
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = item {
            fds.extend(raw.into_iter().filter_map(crate::sys::received));
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Ok(None);
    }
    // What is no message is a sentence about why there is none.
    let sentence = |_| io::Error::other(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    Ok(Some((serde_json::from_slice(&buffer[..length]).map_err(sentence)?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_and_its_descriptors_arrive_and_the_end_is_seen() {
        let (ours, theirs) = crate::sys::socket_pair().expect("a pair");
        let (reader, writer) = io::pipe().expect("a pipe");
        send(ours.as_fd(), &Request::KillExec { id: 7 }, &[writer.as_raw_fd()]).expect("sends");
        drop((ours, writer));
        let (request, fds) = receive::<Request>(theirs.as_fd()).expect("receives").expect("a message");
        assert!(matches!(request, Request::KillExec { id: 7 }));
        assert_eq!(fds.len(), 1);
        io::Write::write_all(&mut io::PipeWriter::from(fds.into_iter().next().expect("one")), b"x").expect("writes");
        let mut text = String::new();
        io::Read::read_to_string(&mut { reader }, &mut text).expect("reads");
        assert_eq!(text, "x");
        assert!(receive::<Request>(theirs.as_fd()).expect("receives").is_none());
    }
}
