//! Whoever attached to a container, as its keeper sees them: what the container says goes to all of them as well as to
//! its log, what they type goes to its input or terminal.
//!
//! They come over a socket beside the run's records; messages have a kind and a length in front. A container never waits
//! for a guest, except on a terminal: there it is a person who reads, and a fast program is held up for a while.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::launch::Streams;
use crate::logs::write::Stream;
use crate::sys;

/// Name of the socket in the directory of the run.
pub(crate) const SOCKET: &str = "attach";
/// Kinds of messages. From a guest: what is typed (also nothing, to say that something will be), the terminal's size as
/// two numbers, the end of the input.
pub(crate) const TYPED: u8 = 0;
pub(crate) const SIZE: u8 = 4;
pub(crate) const CLOSE: u8 = 255;
/// To a guest.
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
/// Kind and length, in front of a message.
pub(crate) const HEAD: usize = 3;
/// Longest message without its head.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024;
/// Guests of one container at once.
const MAX_GUESTS: usize = 8;
/// Bytes that wait for a guest to read, beside those on its socket, before it is cut off.
const MAX_UNSENT: usize = 1 << 20;
/// How often a terminal's program is held up for a guest that does not read, at [`STALL_STEP_MS`] each.
const MAX_STALLS: u32 = 100;
pub(super) const STALL_STEP_MS: u16 = 100;

struct Guest {
    socket: UnixStream,
    /// Said that it will type.
    types: bool,
    /// Of a message that has not come whole.
    heard: Vec<u8>,
    unsent: Vec<u8>,
    stalls: u32,
}

/// The guests of one container and what they talk to.
pub(super) struct Guests {
    listener: Option<UnixListener>,
    guests: Vec<Guest>,
    /// The container's input, or its terminal; gone once it was closed.
    input: Option<File>,
    /// Typed and not taken by the container yet.
    typed: Vec<u8>,
    terminal: bool,
    once: bool,
}

/// A message with its head.
pub(crate) fn message(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("messages are short");
    let mut all = Vec::with_capacity(HEAD + bytes.len());
    all.push(kind);
    all.extend(length.to_be_bytes());
    all.extend_from_slice(bytes);
    all
}

impl Guests {
    /// `theirs`: the end of the container's input or terminal. Without a socket the container runs all the same.
    pub(super) fn new(dir: &Path, streams: Streams, theirs: Option<&OwnedFd>) -> Self {
        let (input, terminal, once) = match streams {
            Streams::Output => (None, false, false),
            Streams::Input { once } => (theirs, false, once),
            // A terminal takes a size, if nothing else.
            Streams::Terminal { once, .. } => (theirs, true, once),
        };
        let input = input.and_then(|fd| fd.try_clone().ok()).map(File::from);
        if let Some(input) = &input {
            let _ = unblocking(input.as_fd());
        }
        Self { listener: listen(dir).ok(), guests: Vec::new(), input, typed: Vec::new(), terminal, once }
    }

    /// For a container that never was.
    pub(super) fn none() -> Self {
        let (listener, guests, input) = (None, Vec::new(), None);
        Self { listener, guests, input, typed: Vec::new(), terminal: false, once: false }
    }

    /// What to wait for: descriptors to read from, those to write to, and whether the container must wait for a guest.
    pub(super) fn interests(&self) -> (Vec<BorrowedFd<'_>>, Vec<BorrowedFd<'_>>, bool) {
        let mut read: Vec<_> = self.listener.iter().map(AsFd::as_fd).collect();
        // What cannot be passed on is not taken.
        if self.typed.is_empty() {
            read.extend(self.guests.iter().map(|guest| guest.socket.as_fd()));
        }
        let mut write: Vec<_> = self.input.iter().filter(|_| !self.typed.is_empty()).map(AsFd::as_fd).collect();
        write.extend(self.guests.iter().filter(|g| !g.unsent.is_empty()).map(|g| g.socket.as_fd()));
        (read, write, self.holds_up())
    }

    /// Does what can be done without waiting. `waited`: a step of waiting for a guest has passed.
    pub(super) fn attend(&mut self, waited: bool) {
        self.pass_on();
        self.guests.retain_mut(|guest| {
            let before = guest.unsent.len();
            let here = guest.send();
            let stands = !guest.unsent.is_empty() && guest.unsent.len() == before;
            guest.stalls = if stands { guest.stalls + u32::from(waited) } else { 0 };
            here && guest.stalls < MAX_STALLS
        });
        if self.typed.is_empty() {
            self.listen_to_all();
        }
        if let Some(Ok((socket, _))) = self.listener.as_ref().map(UnixListener::accept)
            && socket.set_nonblocking(true).is_ok()
        {
            // The newest is a person who waits; of the oldest it may not even have been noticed that they left.
            if self.guests.len() >= MAX_GUESTS {
                self.guests.remove(0);
            }
            self.guests.push(Guest { socket, types: false, heard: Vec::new(), unsent: Vec::new(), stalls: 0 });
        }
    }

    /// The container said this. Who is too far behind is cut off rather than the container held up; on a terminal the
    /// container has waited before it said more.
    pub(super) fn tell(&mut self, stream: Stream, bytes: &[u8]) {
        let kind = match stream {
            Stream::Stdout => STDOUT,
            Stream::Stderr => STDERR,
        };
        for piece in bytes.chunks(MAX_MESSAGE) {
            self.guests.retain_mut(|guest| {
                guest.unsent.extend(message(kind, piece));
                guest.send() && guest.unsent.len() <= MAX_UNSENT
            });
        }
    }

    /// Waits, within bounds, until every guest has taken what it was told.
    pub(super) fn let_read(&mut self) {
        while self.guests.iter().any(|guest| !guest.unsent.is_empty()) {
            let unsent = self.guests.iter().filter(|guest| !guest.unsent.is_empty());
            let mut fds: Vec<_> = unsent.map(|g| PollFd::new(g.socket.as_fd(), PollFlags::POLLOUT)).collect();
            let turned = poll(&mut fds, PollTimeout::from(STALL_STEP_MS));
            drop(fds);
            self.attend(!matches!(turned, Ok(1..)));
        }
    }

    fn holds_up(&self) -> bool {
        self.terminal && self.guests.iter().any(|guest| !guest.unsent.is_empty())
    }

    fn listen_to_all(&mut self) {
        let mut at = 0;
        while at < self.guests.len() && self.typed.is_empty() {
            match self.listen_to(at) {
                true => at += 1,
                false => {
                    let left = self.guests.remove(at);
                    if left.types && self.once {
                        self.input = None;
                    }
                }
            }
        }
    }

    /// Takes what a guest says; `false`: it left.
    fn listen_to(&mut self, at: usize) -> bool {
        let mut buffer = [0_u8; HEAD + MAX_MESSAGE];
        let here = match self.guests[at].socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.guests[at].heard.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        loop {
            let heard = &mut self.guests[at].heard;
            let [kind, high, low, rest @ ..] = &heard[..] else { return here };
            let (kind, length) = (*kind, usize::from(u16::from_be_bytes([*high, *low])));
            if rest.len() < length {
                // It will not come whole if it is longer than any may be.
                return here && length <= MAX_MESSAGE;
            }
            let rest = heard.split_off(HEAD + length);
            let message = std::mem::replace(heard, rest).split_off(HEAD);
            self.take(at, kind, &message);
        }
    }

    fn take(&mut self, guest: usize, kind: u8, message: &[u8]) {
        match (kind, message) {
            (TYPED, typed) => {
                self.guests[guest].types = true;
                if self.input.is_some() {
                    self.typed.extend_from_slice(typed);
                    self.pass_on();
                }
            }
            // Another may still type, unless the input is for the first only.
            (CLOSE, _) if self.once && !self.terminal => self.input = None,
            (SIZE, [a, b, c, d]) if self.terminal => {
                if let Some(terminal) = &self.input {
                    let number = |high: &u8, low: &u8| u16::from_be_bytes([*high, *low]);
                    let _ = sys::resize_terminal(terminal.as_fd(), number(a, b), number(c, d));
                }
            }
            _ => {}
        }
    }

    fn pass_on(&mut self) {
        let Some(input) = &mut self.input else {
            self.typed.clear();
            return;
        };
        while !self.typed.is_empty() {
            match input.write(&self.typed) {
                Ok(written @ 1..) => drop(self.typed.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The container closed its input.
                Ok(_) | Err(_) => self.typed.clear(),
            }
        }
    }
}

impl Guest {
    /// Sends what goes without waiting; `false`: it is gone.
    fn send(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// Reads what a terminal shows without waiting.
pub(super) fn terminal_reader(master: &OwnedFd) -> io::Result<(File, OwnedFd)> {
    unblocking(master.as_fd())?;
    // Held open, so that a container that closes its own end does not wake the keeper for ever.
    let held = sys::terminal_peer(master.as_fd())?;
    Ok((File::from(master.try_clone()?), held))
}

fn listen(dir: &Path) -> io::Result<UnixListener> {
    // The path of a socket is short by law; that of a run may be long. The keeper has one thread, so nobody else is led
    // astray meanwhile.
    nix::unistd::chdir(dir)?;
    let listener = UnixListener::bind(SOCKET);
    let _ = nix::unistd::chdir("/");
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn unblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
