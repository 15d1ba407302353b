//! Makes the namespaces that a pod's containers share (network, IPC, host name) and connects them to the machine.
//!
//! Runs in a short-lived child of the spawner, which enters the new namespaces, pins them to files so that they
//! outlive it, and ends.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::wire::{Sandbox, Users};
use crate::net::links;
use crate::net::netlink::Socket;
use crate::sys::{self, Fork};

/// The namespaces of a pod, as files under /proc/self/ns and under the sandbox's directory.
pub(crate) const NAMESPACES: [&str; 3] = ["net", "ipc", "uts"];

/// Beside them, where the pod has users of its own.
pub(crate) const USER_NAMESPACE: &str = "user";

/// Makes a user namespace in which nobody lives, and pins it. Everything else of the pod stays the machine's own root's:
/// what a container may do to it is what any stranger may.
pub(super) fn hold_users(users: &Users) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    match sys::clone(CloneFlags::CLONE_NEWUSER)? {
        Fork::Child => {
            drop(writer);
            // Until the other end is closed.
            let _ = io::Read::read(&mut { reader }, &mut [0]);
            sys::exit_now(0)
        }
        Fork::Parent(child) => {
            drop(reader);
            let proc = |file: &str| format!("/proc/{child}/{file}");
            let map = format!("0 {} {}", users.first, users.count);
            let made = fs::write(proc("uid_map"), &map)
                .and_then(|()| fs::write(proc("gid_map"), &map))
                .and_then(|()| fs::File::create(&users.file).map(drop))
                .and_then(|()| {
                    let source = proc("ns/user");
                    let flags = MsFlags::MS_BIND;
                    Ok(mount(Some(source.as_str()), &users.file, None::<&str>, flags, None::<&str>)?)
                });
            drop(writer);
            let _ = nix::sys::wait::waitpid(child, None);
            made
        }
    }
}

pub(super) fn build(sandbox: &Sandbox) -> io::Result<()> {
    let host = fs::File::open("/proc/self/ns/net")?;
    let mut outside = Socket::route()?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    // As container runtimes do: nothing in a pod is outside the pod, so low ports need no privilege there.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    // Pods speak IPv4; without this every cable would first look for IPv6 neighbours.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let mut inside = Socket::route()?;
    links::connect(&mut inside, &mut outside, host.as_fd(), &sandbox.interface, sandbox.address, sandbox.gateway)?;
    fs::create_dir_all(&sandbox.dir)?;
    for name in NAMESPACES {
        pin(name, &sandbox.dir.join(name))?;
    }
    Ok(())
}

fn pin(name: &str, file: &Path) -> io::Result<()> {
    fs::File::create(file)?;
    let source = format!("/proc/self/ns/{name}");
    Ok(mount(Some(source.as_str()), file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}
