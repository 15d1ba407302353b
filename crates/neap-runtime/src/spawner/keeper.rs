//! A keeper: the small process that stands over one run of one container, whether the runtime lives or not.
//!
//! It is forked before it is needed, with the container's future first process waiting beside it in its own PID
//! namespace and control groups, because moving a process between groups may cost milliseconds. It takes one order,
//! copies what the container says into log files, and writes down how it ended. It holds no policy: no restart,
//! no probe, no network. It ends when its container has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::guests::{self, Guests, STALL_STEP_MS};
use super::init;
use super::wire::{self, Cell, Order, Outcome, StartError};
use crate::launch::{Isolation, LAUNCH_VERSION, Launch, Streams};
use crate::logs::write::{LogWriter, Stream};
use crate::record::{self, Exit, Run};
use crate::sys::{self, Fork};

/// Bytes read from a container at once.
const READ_BYTES: usize = 16 * 1024;
/// Milliseconds that a container's last processes may take to be gone.
const REMOVE_TRIES: u32 = 200;

/// The keeper's whole life. Never returns to the spawner's loop.
pub(super) fn run(control: &OwnedFd, cell: &Cell) -> ! {
    let _ = nix::sys::prctl::set_name(c"pod-keeper");
    let _ = nix::unistd::setsid();
    let code = match keep(control, cell) {
        Ok(()) => 0,
        Err(error) => {
            // Nobody may be listening any more; the missing record of the exit tells the same.
            let _ = wire::send(control.as_fd(), &Outcome::Broken(format!("keeper: {error}")), &[]);
            1
        }
    };
    sys::exit_now(code)
}

fn keep(control: &OwnedFd, cell: &Cell) -> io::Result<()> {
    if let Some(group) = &cell.group {
        group.create()?;
    }
    let result = prepare_and_serve(control, cell);
    if let Some(group) = &cell.group {
        // The container's first process is gone and with it its PID namespace; the rest dies here. What does not within
        // the time is the runtime's, which is told of this process' end; without a runtime, the next one's.
        group.remove_within(REMOVE_TRIES);
    }
    result
}

fn prepare_and_serve(control: &OwnedFd, cell: &Cell) -> io::Result<()> {
    let (ours, theirs) = sys::socket_pair()?;
    let mut flags = CloneFlags::empty();
    match cell.isolation {
        Isolation::Full => flags |= CloneFlags::CLONE_NEWPID,
        Isolation::User => flags |= CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER,
        Isolation::None => {}
    }
    if let Some(pid) = cell.share_pids_of {
        let join = || {
            nix::sched::setns(sys::pidfd_open(Pid::from_raw(pid))?, CloneFlags::CLONE_NEWPID).map_err(io::Error::from)
        };
        join().map_err(|e| io::Error::other(format!("cannot join the pod's processes, is their holder gone? {e}")))?;
        flags -= CloneFlags::CLONE_NEWPID;
    }
    let child = match sys::clone(flags)? {
        Fork::Child => sys::contained(|| {
            drop(ours);
            sys::close_all_but(&[theirs.as_raw_fd()]);
            init::run(&theirs, cell.isolation)
        }),
        Fork::Parent(child) => child,
    };
    drop(theirs);
    let guard = KillOnDrop(child);
    if cell.isolation == Isolation::User {
        map_user(child)?;
    }
    if let Some(group) = &cell.group {
        group.add(child.as_raw())?;
    }
    let Some((order, _)) = wire::receive::<Order>(control.as_fd())? else {
        return Ok(());
    };
    match order.hold {
        Some(join) => stand_by(control, cell, &order.dir, guard, &ours, join),
        None => serve(control, cell, &order.dir, guard, &ours),
    }
}

/// For a first process that only holds its namespace.
fn stand_by(
    control: &OwnedFd,
    cell: &Cell,
    dir: &Path,
    child: KillOnDrop,
    init: &OwnedFd,
    join: Vec<PathBuf>,
) -> io::Result<()> {
    wire::send(init.as_fd(), &init::Order { dir: dir.to_owned(), hold: Some(join) }, &[])?;
    let failed =
        |message: String| wire::send(control.as_fd(), &Outcome::Failed(StartError { config: false, message }), &[]);
    match report(init)? {
        Report::Built(_) => {}
        Report::Failed(error) => return failed(error.message),
        Report::Silence => return failed("the process that holds the pod's PID namespace ended early".to_owned()),
    }
    let run = run_of(cell, child.0, crate::clock::now())?;
    record::write(&dir.join("run.json"), &run)?;
    wire::send(control.as_fd(), &Outcome::Started(Box::new(run)), &[])?;
    child.wait().map(drop)
}

fn run_of(cell: &Cell, child: Pid, started: jiff::Timestamp) -> io::Result<Run> {
    Ok(Run {
        version: record::VERSION,
        boot: record::boot_id(),
        keeper: record::ProcessId::of(nix::unistd::getpid())?,
        process: record::ProcessId::of(child)?,
        isolation: cell.isolation,
        group: cell.group.clone(),
        started,
    })
}

fn serve(control: &OwnedFd, cell: &Cell, dir: &Path, child: KillOnDrop, init: &OwnedFd) -> io::Result<()> {
    let (mut stdout, container_stdout) = fifo(&dir.join("stdout"))?;
    let (mut stderr, container_stderr) = fifo(&dir.join("stderr"))?;
    let order = init::Order { dir: dir.to_owned(), hold: None };
    wire::send(init.as_fd(), &order, &[container_stdout.as_raw_fd(), container_stderr.as_raw_fd()])?;
    drop((container_stdout, container_stderr));
    // While the container's process builds its view of the world, this one does what must be there before exec.
    let launch: Launch = record::read(&dir.join("launch.json"))?;
    if launch.version != LAUNCH_VERSION {
        return Err(io::Error::other("launch.json is of another version"));
    }
    let mut log = LogWriter::open(launch.log)?;
    let mut oom_before = 0;
    if let Some(group) = &cell.group {
        group.set_bounds(&launch.limits)?;
        oom_before = group.oom_kills();
    }
    let pidfd = sys::pidfd_open(child.0)?;
    let mut theirs = None;
    let mut failure = match report(init)? {
        Report::Failed(error) => Some(error),
        Report::Built(end) => {
            theirs = end;
            None
        }
        // It did not get as far as to say so: most likely for want of memory.
        Report::Silence => Some(StartError {
            config: false,
            message: "the container's first process was killed while it was made; is its memory limit too low?".into(),
        }),
    };
    if failure.is_none() {
        if let Some(group) = &cell.group {
            // Only now: what builds the container should not wait for a share that is meant for its program.
            group.set_cpu(&launch.limits)?;
        }
        wire::send(init.as_fd(), &init::Go, &[])?;
        failure = match report(init)? {
            Report::Failed(error) => Some(error),
            // Its end of the connection closed when it became the program.
            Report::Built(_) | Report::Silence => None,
        };
    }
    if let Some(error) = failure {
        let _ = child.wait();
        let mut nobody = Guests::none();
        drain(&mut log, &mut nobody, &mut stdout, Stream::Stdout);
        drain(&mut log, &mut nobody, &mut stderr, Stream::Stderr);
        record::write(&dir.join("exit.json"), &Exit::not_started(error.clone(), crate::clock::now()))?;
        let _ = wire::send(control.as_fd(), &Outcome::Failed(error), &[]);
        return Ok(());
    }
    let started = crate::clock::now();
    let run = run_of(cell, child.0, started)?;
    record::write(&dir.join("run.json"), &run)?;
    // The runtime may have ended since its order: then it finds the record.
    let _ = wire::send(control.as_fd(), &Outcome::Started(Box::new(run)), &[]);
    // After that: nobody waits for the socket.
    let mut guests = Guests::new(dir, launch.streams, theirs.as_ref());
    let mut held = None;
    if let (Streams::Terminal { .. }, Some(master)) = (launch.streams, &theirs) {
        (stdout, held) = guests::terminal_reader(master).map(|(reader, held)| (reader, Some(held)))?;
    }
    // A pipe's other end is the guests' alone: it is closed when they close it.
    drop(theirs);
    copy_until_end(&mut log, &mut guests, &mut stdout, &mut stderr, &pidfd)?;
    if cell.isolation == Isolation::None {
        // No PID namespace ends its children with it. Its number stands for its group until it is waited for.
        let _ = nix::sys::signal::killpg(child.0, nix::sys::signal::SIGKILL);
    }
    let status = child.wait()?;
    drain(&mut log, &mut guests, &mut stdout, Stream::Stdout);
    drain(&mut log, &mut guests, &mut stderr, Stream::Stderr);
    drop((guests, held));
    // A full disk must not keep the end from being recorded.
    let _ = log.finish(crate::clock::now());
    let (code, signal) = match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => (255, None),
    };
    let oom_killed = cell.group.as_ref().is_some_and(|g| g.oom_kills() > oom_before);
    let finished = crate::clock::now();
    record::write(
        &dir.join("exit.json"),
        &Exit { version: record::VERSION, code, signal, oom_killed, started: Some(started), finished, error: None },
    )
}

/// What the first process says next.
enum Report {
    Built(Option<OwnedFd>),
    Failed(StartError),
    Silence,
}

fn report(init: &OwnedFd) -> io::Result<Report> {
    Ok(match wire::receive::<init::Report>(init.as_fd())? {
        Some((init::Report::Failed(error), _)) => Report::Failed(error),
        Some((init::Report::Built, fds)) => Report::Built(fds.into_iter().next()),
        None => Report::Silence,
    })
}

/// A named pipe that never breaks and never ends: each side holds it open both ways, so the container may outlive
/// its keeper, and a container that closes its output does not wake the keeper for ever.
fn fifo(path: &Path) -> io::Result<(File, File)> {
    match nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let mut both_ways = OpenOptions::new();
    both_ways.read(true).write(true);
    let container = both_ways.open(path)?;
    let keeper = both_ways.custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    Ok((keeper, container))
}

fn copy_until_end(
    log: &mut LogWriter,
    guests: &mut Guests,
    stdout: &mut File,
    stderr: &mut File,
    process: &OwnedFd,
) -> io::Result<()> {
    loop {
        let (read, write, held_up) = guests.interests();
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if !held_up {
            fds.push(PollFd::new(stdout.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(stderr.as_fd(), PollFlags::POLLIN));
        }
        let own = fds.len();
        fds.extend(read.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(write.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        let timeout = if held_up { PollTimeout::from(STALL_STEP_MS) } else { PollTimeout::NONE };
        let turned = match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let happened: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|e| !e.is_empty())).collect();
        drop(fds);
        let (own, theirs) = happened.split_at(own);
        if held_up || theirs.contains(&true) {
            guests.attend(turned == 0);
        }
        if let [_, out, err] = own {
            if *out {
                copy_once(log, guests, stdout, Stream::Stdout);
            }
            if *err {
                copy_once(log, guests, stderr, Stream::Stderr);
            }
        }
        if own[0] {
            return Ok(());
        }
    }
}

/// One read's worth. A log that cannot be written (full disk) loses lines; the container is not held up by it.
fn copy_once(log: &mut LogWriter, guests: &mut Guests, pipe: &mut File, stream: Stream) -> bool {
    let mut buffer = [0_u8; READ_BYTES];
    match pipe.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(n) => {
            let _ = log.write(stream, &buffer[..n], crate::clock::now());
            guests.tell(stream, &buffer[..n]);
            true
        }
    }
}

/// What is still in the pipe when the container has ended. Bounded: in a mode without a PID namespace some
/// straggler may go on writing.
fn drain(log: &mut LogWriter, guests: &mut Guests, pipe: &mut File, stream: Stream) {
    for _ in 0..256 {
        if !copy_once(log, guests, pipe, stream) {
            break;
        }
        guests.let_read();
    }
}

/// Whoever runs this is root inside, and nobody else outside.
fn map_user(child: Pid) -> io::Result<()> {
    let proc = |file: &str| format!("/proc/{child}/{file}");
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    fs::write(proc("uid_map"), format!("0 {uid} 1"))?;
    fs::write(proc("setgroups"), "deny")?;
    fs::write(proc("gid_map"), format!("0 {gid} 1"))
}

/// Ends a first process that never got an order, or whose order failed half-way.
struct KillOnDrop(Pid);

impl KillOnDrop {
    /// Waits for its end; afterwards its number may be another's.
    fn wait(self) -> io::Result<WaitStatus> {
        let child = self.0;
        std::mem::forget(self);
        Ok(waitpid(child, None)?)
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
