//! The spawner: a small single-threaded process of the same binary that makes keepers, sandboxes and commands.
//!
//! Forking a process that has threads and much memory is slow and dangerous; this one has neither. It is started by
//! the runtime, answers one request after another, and ends when the runtime does. What it forked lives on.

mod client;
mod direct;
mod exec;
pub(crate) mod guests;
mod init;
mod keeper;
mod process;
mod rootfs;
pub(crate) mod sandbox;
pub(crate) mod wire;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What a container sees or gets, for whoever describes it to others.
pub(crate) mod paths {
    pub(crate) use super::process::{DEFAULT_PATH, MAX_FILES};
    pub(crate) use super::rootfs::{MASKED, READ_ONLY};
}

pub(crate) use client::{Keeper, Spawner};
use wire::{PROTOCOL, Reply, Request};

use crate::sys::{self, Fork};

/// First argument of a process that is to be the spawner.
pub(crate) const MARK: &str = "--pod-spawner";
/// Name it runs under. Not "neap": whoever kills that by name must not meet the keepers of running containers.
pub(crate) const NAME: &str = "pod-spawner";
/// Where it finds its socket.
pub(crate) const SOCKET: RawFd = 3;

/// To be called first thing in `main`, before any thread exists: does not return in the process that the runtime
/// started as its spawner, and does nothing in every other.
pub fn main_if_requested() {
    let mut arguments = std::env::args_os();
    let _ = arguments.next();
    if arguments.next().is_none_or(|first| first != MARK) {
        return;
    }
    let Some(socket) = sys::inherited(SOCKET) else {
        eprintln!("{MARK} is for neap's own use");
        sys::exit_now(2);
    };
    let code = match serve(&socket) {
        Ok(()) => 0,
        // The runtime ended between its question and our answer.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("pod spawner: {error}");
            1
        }
    };
    sys::exit_now(code)
}

/// Children whose end somebody waits for: their request.
type Commands = HashMap<Pid, u64>;

fn serve(socket: &OwnedFd) -> io::Result<()> {
    let _ = nix::sys::prctl::set_name(c"pod-spawner");
    // Whatever directory neap was started in may be unmounted while its containers live on.
    let _ = nix::unistd::chdir("/");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // A session of its own: Ctrl-C in neap's terminal is neap's business.
    let _ = nix::unistd::setsid();
    // The keys of whoever started neap are no business of containers, nor of commands that join them.
    let _ = sys::fresh_keyring();
    // What a killed keeper leaves comes here and is asked about, not to whoever is the machine's first process: that may
    // be neap itself, which would let its number stand for ever.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    // When memory is short, containers go first: they say so themselves. Needs privilege; without it, so be it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut commands = Commands::new();
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let [asked, ended] = fds.map(|fd| fd.revents().is_some_and(|e| !e.is_empty()));
        if ended {
            while let Ok(Some(_)) = children.read_signal() {}
            reap(socket, &mut commands)?;
        }
        if asked {
            let Some((request, fds)) = wire::receive::<Request>(socket.as_fd())? else {
                return Ok(());
            };
            handle(socket, request, fds, &mut commands)?;
        }
    }
}

fn reap(socket: &OwnedFd, commands: &mut Commands) -> io::Result<()> {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(id) = commands.remove(&pid) {
            wire::send(socket.as_fd(), &Reply::Exited { id, code }, &[])?;
        }
    }
}

fn handle(socket: &OwnedFd, request: Request, fds: Vec<OwnedFd>, commands: &mut Commands) -> io::Result<()> {
    match request {
        Request::Hello => wire::send(socket.as_fd(), &Reply::Hello { protocol: PROTOCOL }, &[]),
        Request::Keeper { id, cell } => {
            let (ours, theirs) = sys::socket_pair()?;
            match sys::fork() {
                Ok(Fork::Child) => sys::contained(|| {
                    forget_spawner(&[theirs.as_raw_fd()]);
                    // It outlives whoever reads neap's standard error, and must not keep that open.
                    sys::silence();
                    keeper::run(&theirs, &cell)
                }),
                Ok(Fork::Parent(pid)) => {
                    wire::send(socket.as_fd(), &Reply::Keeper { id, pid: pid.as_raw() }, &[ours.as_raw_fd()])
                }
                Err(error) => {
                    wire::send(socket.as_fd(), &Reply::Done { id, error: Some(format!("cannot fork: {error}")) }, &[])
                }
            }
        }
        Request::Sandbox { id, sandbox } => {
            let error = in_child(|| sandbox::build(&sandbox)).err().map(|e| e.to_string());
            wire::send(socket.as_fd(), &Reply::Done { id, error }, &[])
        }
        Request::Users { id, users } => {
            let error = in_child(|| sandbox::hold_users(&users)).err().map(|e| e.to_string());
            wire::send(socket.as_fd(), &Reply::Done { id, error }, &[])
        }
        Request::Exec { id, exec } => {
            let Ok(stdio) = <[OwnedFd; 3]>::try_from(fds) else {
                return wire::send(
                    socket.as_fd(),
                    &Reply::Done { id, error: Some("three streams are needed".into()) },
                    &[],
                );
            };
            match sys::fork() {
                Ok(Fork::Child) => sys::contained(|| {
                    forget_spawner(&stdio.each_ref().map(|fd| fd.as_raw_fd()));
                    exec::run(&exec, stdio)
                }),
                Ok(Fork::Parent(pid)) => {
                    commands.insert(pid, id);
                    Ok(())
                }
                Err(error) => {
                    wire::send(socket.as_fd(), &Reply::Done { id, error: Some(format!("cannot fork: {error}")) }, &[])
                }
            }
        }
        Request::Settle { id } => wire::send(socket.as_fd(), &Reply::Done { id, error: None }, &[]),
        Request::KillExec { id } => {
            if let Some((pid, _)) = commands.iter().find(|(_, one)| **one == id) {
                // The child ends the command, which it alone can do.
                let _ = kill(*pid, Signal::SIGTERM);
            }
            Ok(())
        }
    }
}

/// A child keeps only its own descriptors; the spawner's signals are no concern of it.
fn forget_spawner(keep: &[RawFd]) {
    sys::close_all_but(keep);
    sys::reset_signals();
}

/// Does something in a child, so that what it changes about its process goes with it. Waits for it.
fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    use io::{Read, Write};
    let (mut reader, mut writer) = io::pipe()?;
    match sys::fork()? {
        Fork::Child => sys::contained(|| {
            if let Err(error) = work() {
                let _ = writer.write_all(error.to_string().as_bytes());
            }
            sys::exit_now(0)
        }),
        Fork::Parent(child) => {
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text)?;
            let status = loop {
                match waitpid(child, None) {
                    Err(nix::errno::Errno::EINTR) => {}
                    other => break other?,
                }
            };
            match status {
                _ if !text.is_empty() => Err(io::Error::other(text)),
                WaitStatus::Exited(_, 0) => Ok(()),
                other => Err(io::Error::other(format!("the helper process ended early: {other:?}"))),
            }
        }
    }
}
