//! A command that joins a running container: the same namespaces, groups, user and limits, another program.
//!
//! The process that joined stays outside of the container's PID namespace and stands over the command: asked to end
//! (SIGTERM, also when the spawner dies), it kills what the command began and says how that ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::init::{Started, open_terminal, step};
use super::wire::{self, Exec, StartError, Terminal};
use super::{direct, process};
use crate::launch::{Isolation, Launch, Process, Root};
use crate::record;
use crate::sys::{self, Fork};

/// Exit code for a command that could not be run at all (as shells have it).
const NOT_RUN: i32 = 126;

/// Runs in a child of the spawner; ends with the command's exit code.
pub(super) fn run(exec: &Exec, stdio: [OwnedFd; 3]) -> ! {
    let _ = nix::sys::prctl::set_name(c"pod-exec");
    let code = match join_and_run(exec, stdio) {
        Ok(code) => code,
        Err(error) => {
            // The command's standard error is where the asker looks.
            let _ = nix::unistd::write(io::stderr(), format!("{}\n", error.message).as_bytes());
            NOT_RUN
        }
    };
    sys::exit_now(code)
}

fn join_and_run(exec: &Exec, stdio: [OwnedFd; 3]) -> Started<i32> {
    // Until exec, errors go to the command's standard error.
    sys::dup_onto(stdio[2].as_fd(), 2).or_else(step("connect the standard streams"))?;
    // Read while the machine's files are in sight.
    let launch: Launch = record::read(&exec.dir.join("launch.json")).or_else(step("read the launch record"))?;
    // While this process's own /proc is in sight, too. Nobody is kept from running for it.
    let _ = fs::write("/proc/self/oom_score_adj", launch.oom_score.to_string());
    let users = process::own_users(&launch)?;
    let process = Process { argv: exec.argv.clone(), ..launch.process };
    let process = match &launch.root {
        Root::None(root) => direct::resolve(root, &process)?,
        Root::Overlay { .. } => process,
    };
    let target = sys::pidfd_open(Pid::from_raw(exec.process.pid)).or_else(step("find the container's process"))?;
    // The descriptor first: if the number still means the same process now, so does the descriptor.
    if !exec.process.is_alive() {
        return Err(StartError { config: false, message: "the container has ended".to_owned() });
    }
    if let Some(group) = &exec.group {
        group.add(nix::unistd::getpid().as_raw()).or_else(step("join the container's control group"))?;
    }
    if exec.isolation != Isolation::None {
        // Not to be looked into by the container between joining it and exec.
        let _ = nix::sys::prctl::set_dumpable(false);
        let mut namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        namespaces |= match exec.isolation {
            Isolation::User => CloneFlags::CLONE_NEWUSER,
            _ => CloneFlags::CLONE_NEWNET,
        };
        setns(target, namespaces).map_err(io::Error::from).or_else(step("join the container's namespaces"))?;
    }
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    let asked = || -> io::Result<SignalFd> {
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?)
    };
    let asked = asked().or_else(step("listen for signals"))?;
    let (stdio, terminal) = if exec.terminal { with_terminal(stdio)? } else { (stdio, None) };
    match sys::fork().or_else(step("fork"))? {
        Fork::Child => {
            let Err(error) = become_command(&process, exec.isolation, users, stdio, terminal);
            let _ = nix::unistd::write(io::stderr(), format!("{}\n", error.message).as_bytes());
            sys::exit_now(NOT_RUN)
        }
        Fork::Parent(child) => {
            drop((stdio, terminal));
            stand_over(child, &asked).or_else(step("wait for the command"))
        }
    }
}

fn become_command(
    process: &Process,
    isolation: Isolation,
    users: Option<process::OwnUsers>,
    stdio: [OwnedFd; 3],
    terminal: Option<OwnedFd>,
) -> Started<std::convert::Infallible> {
    // A group of its own, so that what it begins can be ended with it.
    let _ = nix::unistd::setsid();
    if let Some(terminal) = &terminal {
        sys::take_terminal(terminal.as_fd()).or_else(step("take the terminal"))?;
    }
    process::prepare(process, isolation, users)?.execute(stdio)
}

/// A terminal of the container's own. Its master goes to the asker, over the socket that came as standard input.
fn with_terminal(stdio: [OwnedFd; 3]) -> Started<([OwnedFd; 3], Option<OwnedFd>)> {
    let [socket, ..] = stdio;
    let make = || -> io::Result<OwnedFd> {
        let (master, terminal) = open_terminal()?;
        wire::send(socket.as_fd(), &Terminal, &[master.as_raw_fd()])?;
        Ok(terminal)
    };
    let terminal = make().or_else(step("make a terminal"))?;
    let copy = || terminal.try_clone().or_else(step("make a terminal"));
    Ok(([copy()?, copy()?, copy()?], Some(terminal)))
}

/// Waits for the command's end, or brings it about when asked to.
fn stand_over(child: Pid, asked: &SignalFd) -> io::Result<i32> {
    let process = sys::pidfd_open(child)?;
    loop {
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN), PollFd::new(asked.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let [ended, told] = fds.map(|fd| fd.revents().is_some_and(|e| !e.is_empty()));
        if told && !ended {
            // Before it has its own group it is alone.
            let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL);
            let _ = kill(child, Signal::SIGKILL);
        }
        if told || ended {
            break;
        }
    }
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
