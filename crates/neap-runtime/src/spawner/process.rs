//! From a [`Process`] to exec: who it is, what it may do, what it runs. For a container's first process and for
//! commands that join a container; the root and the namespaces are already the right ones.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{SFlag, fstat, makedev};
use nix::unistd::{Gid, Uid};

use super::init::{Started, step};
use super::wire::StartError;
use crate::launch::{Isolation, Launch, Process};
use crate::seccomp::Program;
use crate::sys;
use crate::users::{self, Identity};

/// Where programs are looked for when the environment does not say (Docker's default).
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files a container may have at most, if the machine allows (Docker's default).
pub(crate) const MAX_FILES: u64 = 1_048_576;
/// Longest list of users that is read. Images are made by others: the list may be a pipe, a device, or endless.
const MAX_USERS: u64 = 4 << 20;

/// Everything that can be found out before the limits stand.
pub(super) struct Ready {
    identity: Option<Identity>,
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: PathBuf,
    capabilities: u64,
    no_new_privileges: bool,
    seccomp: Program,
    isolation: Isolation,
    users: Option<OwnUsers>,
}

/// A user namespace, and what its root is outside.
pub(super) type OwnUsers = (OwnedFd, u32);
/// Users that a pod has of its own.
const USERS: u32 = 65536;

/// Opens the user namespace of the pod, if it has one.
pub(super) fn own_users(launch: &Launch) -> Started<Option<OwnUsers>> {
    let Some(users) = &launch.users else { return Ok(None) };
    let what = format_args!("open the pod's user namespace {}", users.namespace.display());
    let file = fs::File::open(&users.namespace).or_else(step(what))?;
    Ok(Some((file.into(), users.first)))
}

pub(super) fn prepare(process: &Process, isolation: Isolation, own: Option<OwnUsers>) -> Started<Ready> {
    let identity = match isolation {
        Isolation::Full => {
            let (users, groups) = (list("/etc/passwd"), list("/etc/group"));
            let mut identity = users::resolve(&process.user, &users, &groups).map_err(config)?;
            identity.groups.extend(&process.groups);
            if process.non_root && identity.uid == 0 {
                return Err(config("runAsNonRoot is set, and the container would run as root".into()));
            }
            let ids = [identity.uid, identity.gid].into_iter().chain(identity.groups.iter().copied());
            if let Some(beyond) = ids.into_iter().find(|id| own.is_some() && *id >= USERS) {
                let last = USERS - 1;
                let message =
                    format!("with hostUsers: false the users and groups of a pod go to {last}, and it wants {beyond}");
                return Err(config(message));
            }
            Some(identity)
        }
        // One user is mapped; there is nobody else to be.
        Isolation::User | Isolation::None => None,
    };
    let mut env = process.env.clone();
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(n, _)| n == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", identity.as_ref().and_then(|i| i.home.as_deref()).unwrap_or("/"));
    let path = env.iter().rfind(|(n, _)| n == "PATH").map_or(DEFAULT_PATH, |(_, v)| v);
    let name = process.argv.first().filter(|a| !a.is_empty());
    let name = name.ok_or_else(|| config("no command: neither the specification nor the image names one".into()))?;
    let program = find_program(name, path, &process.cwd)?;
    let c_string = |text: &str| CString::new(text).map_err(|_| config(format!("a NUL byte in {text:?}")));
    Ok(Ready {
        program: c_string(&program)?,
        argv: process.argv.iter().map(|a| c_string(a)).collect::<Result<_, _>>()?,
        env: dedup(&env).iter().map(|(n, v)| c_string(&format!("{n}={v}"))).collect::<Result<_, _>>()?,
        cwd: process.cwd.clone(),
        identity,
        capabilities: process.capabilities,
        no_new_privileges: process.no_new_privileges,
        seccomp: process.seccomp.clone(),
        isolation,
        users: own,
    })
}

impl Ready {
    /// Becomes the program. Returns only when that failed.
    pub(super) fn execute(self, stdio: [OwnedFd; 3]) -> Started<Infallible> {
        let stdio = if self.isolation == Isolation::None { stdio } else { stdio.map(own_null) };
        if !self.cwd.as_os_str().is_empty() {
            nix::unistd::chdir(&self.cwd)
                .map_err(io::Error::from)
                .or_else(step(format_args!("change to the working directory {}", self.cwd.display())))?;
        }
        sys::raise_file_limit(MAX_FILES);
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        if let Some(identity) = &self.identity {
            let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
            let first = self.users.as_ref().map_or(0, |(_, first)| *first);
            for fd in &stdio[1..] {
                // Programs open /dev/stdout anew, which asks for permission on the pipe.
                let (uid, gid) = (Uid::from_raw(first + identity.uid), Gid::from_raw(first + identity.gid));
                let _ = nix::unistd::fchown(fd.as_fd(), Some(uid), Some(gid));
            }
            if let Some((namespace, _)) = &self.users {
                // As late as it may be: what was done before, the machine's root had to do.
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWUSER)
                    .map_err(io::Error::from)
                    .or_else(step("enter the pod's user namespace"))?;
            }
            let groups: Vec<_> = identity.groups.iter().map(|g| Gid::from_raw(*g)).collect();
            let become_user = || -> io::Result<()> {
                sys::drop_bounding(self.capabilities)?;
                self.filter_calls(false)?;
                nix::unistd::setgroups(&groups)?;
                nix::unistd::setresgid(gid, gid, gid)?;
                nix::unistd::setresuid(uid, uid, uid)?;
                sys::set_capabilities(if uid.is_root() { self.capabilities } else { 0 })
            };
            become_user().or_else(step("take on the container's user and capabilities"))?;
        } else if self.isolation == Isolation::User {
            let limit = || -> io::Result<()> {
                sys::drop_bounding(self.capabilities)?;
                self.filter_calls(false)?;
                sys::set_capabilities(self.capabilities)
            };
            limit().or_else(step("limit the capabilities"))?;
        }
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().map_err(io::Error::from).or_else(step("give up new privileges"))?;
        }
        sys::reset_signals();
        for (to, fd) in stdio.iter().enumerate() {
            sys::dup_onto(fd.as_fd(), to as i32).or_else(step("connect the standard streams"))?;
        }
        self.filter_calls(true).or_else(step("limit the system calls"))?;
        let Err(error) = nix::unistd::execve(&self.program, &self.argv, &self.env);
        step(format_args!("run {:?}", self.program.to_string_lossy()))(error.into())
    }
}

impl Ready {
    /// The filter comes as late as it may: last of all where privileges are given up for good, and else while there is
    /// still the privilege to set one.
    fn filter_calls(&self, last: bool) -> io::Result<()> {
        if self.seccomp.is_empty() || self.no_new_privileges != last {
            return Ok(());
        }
        sys::filter_calls(&self.seccomp)
    }
}

/// A file of users or groups; empty when there is none, or none that can be one.
fn list(path: &str) -> String {
    // Without waiting: it may be a pipe.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let mut text = Vec::new();
    if let Ok(file) = file
        && file.metadata().is_ok_and(|m| m.is_file())
        && file.take(MAX_USERS).read_to_end(&mut text).is_err()
    {
        // Who is in it is then unknown, which is said where somebody is looked for.
        return String::new();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// In place of the machine's /dev/null the container's: through an open file its mode could be changed for everybody.
fn own_null(fd: OwnedFd) -> OwnedFd {
    let is_null = fstat(fd.as_fd())
        .is_ok_and(|s| s.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && s.st_rdev == makedev(1, 3));
    if !is_null {
        return fd;
    }
    fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_or(fd, OwnedFd::from)
}

fn find_program(name: &str, path: &str, cwd: &Path) -> Started<String> {
    let missing = |why: &str| StartError { config: false, message: format!("cannot run {name:?}: {why}") };
    let runs = |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        let full = cwd.join(name);
        return match fs::metadata(&full) {
            Ok(meta) if meta.is_dir() => Err(missing("it is a directory")),
            Ok(_) if !runs(&full) => Err(missing("it is not executable")),
            Ok(_) => Ok(name.to_owned()),
            Err(error) => Err(missing(&error.to_string())),
        };
    }
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|candidate| runs(candidate))
        .map(|found| found.to_string_lossy().into_owned())
        .ok_or_else(|| missing("executable file not found in $PATH"))
}

/// A later value of the same name wins and keeps its place.
fn dedup(env: &[(String, String)]) -> Vec<&(String, String)> {
    let last = |name: &str| env.iter().rposition(|(n, _)| n == name);
    env.iter().enumerate().filter(|(at, (name, _))| last(name) == Some(*at)).map(|(_, pair)| pair).collect()
}

fn config(message: String) -> StartError {
    StartError { config: true, message }
}
