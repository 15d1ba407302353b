//! The first process of a container, from its birth beside the keeper to the exec of the user's program.
//!
//! The order of things is the safety: sources are opened while the machine's tree is visible, the root is swapped,
//! and every path of the container is looked up only after that, so that no link inside an image leads outside.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use super::rootfs;
use super::wire::{self, StartError};
use super::{direct, process};
use crate::launch::{Isolation, Launch, Root, Streams};
use crate::record;
use crate::sys;

/// Keeper to first process; standard output and error come along.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub dir: PathBuf,
    /// As in [`wire::Order`]; then no streams come along.
    pub hold: Option<Vec<PathBuf>>,
}

/// Keeper to first process: limits are set, exec.
#[derive(Serialize, Deserialize)]
pub(super) struct Go;

/// First process to keeper. That it became the program is told by the end of the connection.
#[derive(Serialize, Deserialize)]
pub(super) enum Report {
    /// Everything but exec is done. The other end of its input or terminal comes along, if it has one.
    Built,
    Failed(StartError),
}

/// What went wrong while starting, with the step in words.
pub(super) type Started<T> = Result<T, StartError>;

/// Names the step in an error of the machine.
pub(super) fn step<T>(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Started<T> {
    move |error| Err(StartError { config: false, message: format!("cannot {what}: {error}") })
}

/// The first process's life before exec. Ends without a word when the keeper goes away.
pub(super) fn run(keeper: &OwnedFd, isolation: Isolation) -> ! {
    let _ = nix::sys::prctl::set_name(c"pod-init");
    let _ = nix::unistd::setsid();
    let Ok(Some((order, fds))) = wire::receive::<Order>(keeper.as_fd()) else {
        sys::exit_now(0);
    };
    let result = match &order.hold {
        None => start(keeper, isolation, &order.dir, fds),
        Some(join) => hold(keeper, join),
    };
    let Err(error) = result;
    let _ = wire::send(keeper.as_fd(), &Report::Failed(error), &[]);
    sys::exit_now(1)
}

fn start(keeper: &OwnedFd, isolation: Isolation, dir: &Path, fds: Vec<OwnedFd>) -> Started<Infallible> {
    let launch: Launch = record::read(&dir.join("launch.json")).or_else(step("read the launch record"))?;
    if launch.isolation != isolation {
        return Err(StartError { config: false, message: "the keeper was made for another kind of container".into() });
    }
    let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|_| StartError { config: false, message: "the keeper sent no output pipes".into() })?;
    // A container that runs the machine short goes before neap and its keepers do.
    let _ = fs::write("/proc/self/oom_score_adj", launch.oom_score.to_string());
    // Opened while the machine's files are in sight.
    let users = process::own_users(&launch)?;
    let process = match &launch.root {
        Root::None(root) => direct::resolve(root, &launch.process)?,
        _ => {
            sys::fresh_keyring().or_else(step("leave the machine's keys behind"))?;
            enter_namespaces(&launch)?;
            rootfs::build(&launch, users.as_ref().map(|(namespace, _)| namespace))?;
            launch.process.clone()
        }
    };
    let (stdio, theirs) = streams(launch.streams, [stdout, stderr])?;
    let ready = process::prepare(&process, isolation, users)?;
    let theirs_raw: Vec<_> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
    wire::send(keeper.as_fd(), &Report::Built, &theirs_raw).or_else(step("report to the keeper"))?;
    drop(theirs);
    let go = wire::receive::<Go>(keeper.as_fd());
    if !matches!(go, Ok(Some(_))) {
        sys::exit_now(0);
    }
    ready.execute(stdio)
}

/// Who holds this is nobody and may do nothing: every container that shares the PID namespace sees it.
const NOBODY: u32 = 65534;

/// The life of a first process without a program: the containers that live in its PID namespace come and go, and what
/// they leave behind is its to ask about. It ends by being killed.
fn hold(keeper: &OwnedFd, join: &[PathBuf]) -> Started<Infallible> {
    let retire = || -> io::Result<()> {
        // Nothing of the machine is to be found through it: neither files nor what its keeper's memory holds.
        nix::sys::prctl::set_dumpable(false)?;
        sys::fresh_keyring()?;
        for path in join {
            setns(fs::File::open(path)?, CloneFlags::empty())?;
        }
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        // Any directory that is always there will do, to be covered by an empty one.
        let empty = sys::new_filesystem(c"tmpfs", &[("size", "0")], libc::MOUNT_ATTR_RDONLY)?;
        sys::move_mount(empty.as_fd(), Path::new("/proc"))?;
        sys::swap_root(Path::new("/proc"))?;
        sys::drop_bounding(0)?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(NOBODY.into(), NOBODY.into(), NOBODY.into())?;
        nix::unistd::setresuid(NOBODY.into(), NOBODY.into(), NOBODY.into())?;
        sys::set_capabilities(0)?;
        nix::sys::prctl::set_no_new_privs()?;
        Ok(())
    };
    retire().or_else(step("make the process that holds the pod's PID namespace"))?;
    wire::send(keeper.as_fd(), &Report::Built, &[]).or_else(step("report to the keeper"))?;
    let mut children = nix::sys::signal::SigSet::empty();
    children.add(nix::sys::signal::Signal::SIGCHLD);
    // A first process hears no signal that it has no handler for; this one it waits for.
    nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_BLOCK, Some(&children), None)
        .map_err(io::Error::from)
        .or_else(step("listen for the end of processes"))?;
    loop {
        let any = nix::sys::wait::WaitPidFlag::WNOHANG;
        while matches!(nix::sys::wait::waitpid(None, Some(any)), Ok(status) if status.pid().is_some()) {}
        let _ = children.wait();
    }
}

/// The three standard streams, and the end of them that the keeper takes.
fn streams(streams: Streams, [stdout, stderr]: [OwnedFd; 2]) -> Started<([OwnedFd; 3], Option<OwnedFd>)> {
    match streams {
        Streams::Output => {
            // The container's own, where it has one.
            let null: OwnedFd = fs::File::open("/dev/null").or_else(step("open /dev/null"))?.into();
            Ok(([null, stdout, stderr], None))
        }
        Streams::Input { .. } => {
            let (reader, writer) = io::pipe().or_else(step("make the standard input"))?;
            Ok(([reader.into(), stdout, stderr], Some(writer.into())))
        }
        Streams::Terminal { .. } => {
            let (master, terminal) = open_terminal().or_else(step("make a terminal"))?;
            sys::take_terminal(terminal.as_fd()).or_else(step("take the terminal"))?;
            let copy = || terminal.try_clone().or_else(step("make a terminal"));
            Ok(([copy()?, copy()?, copy()?], Some(master)))
        }
    }
}

/// A terminal of whose view this is: its master and its other end.
pub(super) fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let master: OwnedFd = fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx")?.into();
    let terminal = sys::terminal_peer(master.as_fd())?;
    Ok((master, terminal))
}

fn enter_namespaces(launch: &Launch) -> Started<()> {
    for path in &launch.join {
        let file = fs::File::open(path).or_else(step(format_args!("open the pod's namespace {}", path.display())))?;
        setns(file, CloneFlags::empty())
            .map_err(io::Error::from)
            .or_else(step(format_args!("join the pod's namespace {}", path.display())))?;
    }
    let mut new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    if launch.join.is_empty() {
        // On the machine's network; the rest is the container's own.
        new |= CloneFlags::CLONE_NEWUTS;
        if !launch.host_ipc {
            new |= CloneFlags::CLONE_NEWIPC;
        }
    }
    unshare(new).map_err(io::Error::from).or_else(step("make new namespaces"))?;
    nix::unistd::sethostname(&launch.hostname).map_err(io::Error::from).or_else(step("set the host name"))?;
    // Nothing mounted from here on may show outside, nothing mounted outside may show in here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(io::Error::from)
        .or_else(step("make the mounts private"))
}
