//! A command that joins a running container: the same namespaces, groups, user and limits, another program.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::init::{Started, step};
use super::process;
use super::wire::Exec;
use crate::launch::Isolation;
use crate::sys::{self, Fork};

/// Exit code for a command that could not be run at all (as shells have it).
const NOT_RUN: i32 = 126;

/// Runs in a child of the spawner; ends with the command's exit code. Killing it kills the command.
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
    use std::os::fd::AsFd;
    // Until exec, errors go to the command's standard error.
    sys::dup_onto(stdio[2].as_fd(), 2).or_else(step("connect the standard streams"))?;
    let target = sys::pidfd_open(Pid::from_raw(exec.pid)).or_else(step("find the container's process"))?;
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
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    match sys::fork().or_else(step("fork"))? {
        Fork::Child => {
            let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
            let outcome = process::prepare(&exec.process, exec.isolation).and_then(|ready| ready.execute(stdio));
            let Err(error) = outcome;
            let _ = nix::unistd::write(io::stderr(), format!("{}\n", error.message).as_bytes());
            sys::exit_now(NOT_RUN)
        }
        Fork::Parent(child) => {
            drop(stdio);
            loop {
                match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                    Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return step("wait for the command")(error.into()),
                }
            }
        }
    }
}
