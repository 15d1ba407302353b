//! The fence around `unsafe`: every kernel call that has no safe wrapper elsewhere, and nothing else.
//!
//! The process calls (`fork`, `clone`) must only be made by the single-threaded spawner and its
//! children: after a fork in a process with threads, the allocator's locks may be held by nobody.
#![expect(unsafe_code, reason = "the one module that may; each block says why it is sound")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Which side of a fork the caller is on.
pub(crate) enum Fork {
    Parent(Pid),
    Child,
}

/// A child with the same memory. Only for single-threaded callers.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: callers are single-threaded (module rule), so the child may use the allocator and everything else.
    match unsafe { nix::unistd::fork() }.map_err(io::Error::from)? {
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
    }
}

/// A child in new namespaces. Like [`fork`], with `CLONE_NEW*` flags.
pub(crate) fn clone(flags: CloneFlags) -> io::Result<Fork> {
    let flags = libc::c_long::from(flags.bits() | libc::SIGCHLD);
    // SAFETY: a null stack means "copy of the parent's", as with fork; the pointers are unused with these flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match check(pid)? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid as i32))),
    }
}

/// Does the work of a forked child. A panic in it ends the child: unwinding would run on into what the parent's frames
/// below hold, which is not the child's.
pub(crate) fn contained(work: impl FnOnce() -> std::convert::Infallible) -> ! {
    const PANICKED: i32 = 101;
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(never) => match never {},
        Err(_) => exit_now(PANICKED),
    }
}

/// Ends this process at once, running no destructors and no exit handlers (they belong to the parent).
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// A descriptor that names a process for good: its number may be reused, this may not.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: plain integers in, a new descriptor out.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

pub(crate) fn pidfd_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means "as kill(2) does".
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) })
        .map(drop)
}

/// A private copy of the mount at `path` that hangs nowhere yet.
pub(crate) fn open_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Hangs a mount made by [`open_tree`] or [`new_filesystem`] at `target`.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both strings are NUL-terminated and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Like [`move_mount`], at what the open descriptor `target` names: nobody can put a link in between.
pub(crate) fn move_mount_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both strings are static and NUL-terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Sets mount attributes (`MOUNT_ATTR_*`) on a mount that hangs nowhere yet.
pub(crate) fn mount_set(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    set_attributes(mount, attributes, 0, recursive)
}

/// Shows the files of a mount that hangs nowhere yet with the owners they have inside a user namespace: root's are those
/// of root in there.
pub(crate) fn mount_for(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    set_attributes(mount, libc::MOUNT_ATTR_IDMAP, users.as_raw_fd() as u64, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, users: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: users };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attr` is a live struct of exactly the size passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// A new filesystem instance that hangs nowhere yet. Options without a value have an empty one.
pub(crate) fn new_filesystem(kind: &CStr, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: `kind` is NUL-terminated; flag 1 is FSOPEN_CLOEXEC.
    let context = new_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) })?;
    let config = |command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>| {
        let null = std::ptr::null();
        // SAFETY: key and value are null or NUL-terminated strings that outlive the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                key.map_or(null, CStr::as_ptr),
                value.map_or(null, CStr::as_ptr),
                0,
            )
        })
    };
    // What the table of mounts shows as the device; without it that reads "none".
    config(FSCONFIG_SET_STRING, Some(c"source"), Some(kind))?;
    for (key, value) in options {
        let (key, value) = (CString::new(*key)?, CString::new(*value)?);
        match value.is_empty() {
            true => config(FSCONFIG_SET_FLAG, Some(&key), None)?,
            false => config(FSCONFIG_SET_STRING, Some(&key), Some(&value))?,
        };
    }
    config(FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: plain integers in, a new descriptor out; flag 1 is FSMOUNT_CLOEXEC.
    new_fd(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, attributes) })
}

/// Opens `path` as if `root` were "/": no symbolic link and no ".." leads out of it.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: `path` is NUL-terminated, `how` is live and of the size passed.
    new_fd(unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<libc::open_how>())
    })
}

/// Makes `new_root` the root and lets the old one go. The working directory is the new root afterwards.
pub(crate) fn swap_root(new_root: &Path) -> io::Result<()> {
    nix::unistd::chdir(new_root)?;
    // The old root lands on top of the new one and is then let go: no directory for it is needed.
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}

/// Closes every descriptor above standard error but those in `keep`.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter(|fd| **fd > 2).map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    let mut first = 3_u32;
    for fd in keep.iter().copied().chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: the caller is a fresh child that uses none of the values that own these descriptors, and drops none of
            // them: it ends by `exit_now`, also when it panics (`contained`).
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// Descriptor `to` becomes a copy of `from` that survives exec.
pub(crate) fn dup_onto(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: dup2 on integers; `to` is 0, 1 or 2, which no Rust value of ours owns.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) }.into()).map(drop)
}

/// The descriptor with this number, which was given to this process at exec.
pub(crate) fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: on a number that is not open this fails; on one that is it only sets the flag, as all of ours have it.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open (checked above), and by contract with the parent nobody else in this process owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that arrived with a message.
pub(crate) fn received(raw: RawFd) -> Option<OwnedFd> {
    // SAFETY: the kernel just put this descriptor into this process for us; nobody else owns it.
    (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes capabilities not in `keep` (bits) out of what this process and its programs can ever have.
pub(crate) fn drop_bounding(keep: u64) -> io::Result<()> {
    for capability in (0..64).filter(|c| keep & (1 << c) == 0) {
        // SAFETY: integers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped < 0 {
            let error = io::Error::last_os_error();
            // EINVAL: the kernel knows no such capability, nor any with a higher number.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

/// Sets the capabilities this process has now; what its programs inherit follows from the bounding set.
pub(crate) fn set_capabilities(bits: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // Bits that the kernel does not know are refused only when they are not permitted already; all come from there.
    let bits = bits & permitted_capabilities()?;
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [half(bits), half(bits >> 32)];
    // SAFETY: header and data are live and laid out as version 3 wants them.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

fn permitted_capabilities() -> io::Result<u64> {
    let mut data = [[0_u32; 3]; 2];
    let mut header = [0x2008_0522_u32, 0];
    // SAFETY: header and data are live and laid out as version 3 wants them; the kernel may write to both.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[0][1]) | u64::from(data[1][1]) << 32)
}

/// Lets this process and its programs have up to `most` open files, as far as its hard limit goes.
pub(crate) fn raise_file_limit(most: u64) {
    if let Some(hard) = hard_file_limit() {
        let both = hard.min(most);
        let limit = libc::rlimit { rlim_cur: both, rlim_max: both };
        // SAFETY: as above. Lowering to a smaller hard limit is always allowed.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// Lets this process have as many open files as its hard limit says: a service manager's or a shell's soft one is 1024,
/// for programs that cannot count further. To be called early in `main`; the runtime does so, too. Returns the limit.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live; nothing else is touched.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return 0;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: as above.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => raised.rlim_cur,
        _ => limit.rlim_cur,
    }
}

/// How many open files this process could have at most.
pub(crate) fn hard_file_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live; nothing else is touched.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    known.then_some(limit.rlim_max)
}

/// From now on this process and its programs may make only the system calls that the filter allows. Without the
/// capability SYS_ADMIN, `set_no_new_privs` must come first.
pub(crate) fn filter_calls(program: &crate::seccomp::Program) -> io::Result<()> {
    let mut code: Vec<libc::sock_filter> = program
        .iter()
        .map(|packed| {
            let (code, jt, jf, k) = crate::seccomp::unpack(*packed);
            libc::sock_filter { code, jt, jf, k }
        })
        .collect();
    let len = u16::try_from(code.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let filter = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    // SAFETY: `filter` points to `len` live instructions; the kernel copies and checks them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    check(set.into()).map(drop)
}

/// Leaves the keys of whoever started neap behind: a container shares the user numbers of the machine, and would find
/// them by those.
pub(crate) fn fresh_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for a new keyring without one.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match check(joined) {
        // A kernel without keys has none to leave behind.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}

/// The other end of a terminal whose master this is.
pub(crate) fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: `unlock` is live; the call only reads it.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    // SAFETY: flags in, a new descriptor out.
    new_fd(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) }
            .into(),
    )
}

/// Makes a terminal the controlling one of this process, which must lead its session.
pub(crate) fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Tells a terminal its size in characters.
pub(crate) fn resize_terminal(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is live; the call only reads it.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// Signals as a fresh program expects them: none blocked, none ignored.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: the default disposition runs no code of ours; signals that cannot be set (KILL, STOP) are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = nix::sys::signal::SigSet::empty();
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&none), None);
}

/// A number without meaning, from the kernel. Where that gives none (a sandbox around neap may forbid the call) the map's
/// own seed, which the standard library takes from elsewhere if it must.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is live and of the length passed; eight bytes are never cut short.
    match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } {
        8 => u64::from_ne_bytes(bytes),
        _ => std::hash::RandomState::new().build_hasher().finish(),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = check(result)? as RawFd;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Two connected sockets that keep message borders and are closed on exec.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A TCP socket that lives in another network namespace. Blocks.
pub(crate) fn socket_in(namespace: &Path) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    in_network(namespace, || Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?))
}

/// Does something in another network namespace. Blocks; the thread that goes there for it ends there.
pub(crate) fn in_network<T: Send>(namespace: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = std::fs::File::open(namespace)?;
    let there = || {
        nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(there).join()).map_err(|_| io::Error::other("the thread ended early"))?
}

/// Standard streams to /dev/null.
pub(crate) fn silence() {
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for to in 0..3 {
            let _ = dup_onto(null.as_fd(), to);
        }
    }
}

/// Starts this same program again as `name` with one argument and with `fd` as its descriptor number `number`.
/// As root, it runs from a read-only view of its file, so that nothing it later becomes part of can write to it.
pub(crate) fn start_self(name: &str, argument: &str, fd: OwnedFd, number: RawFd) -> io::Result<tokio::process::Child> {
    use std::os::unix::process::CommandExt;
    let read_only = open_tree(Path::new("/proc/self/exe"), false)
        .and_then(|tree| mount_set(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, false).map(|()| tree));
    let program = match &read_only {
        Ok(tree) => format!("/proc/self/fd/{}", tree.as_raw_fd()),
        Err(_) => "/proc/self/exe".to_owned(),
    };
    let mut command = std::process::Command::new(program);
    command.arg0(name).arg(argument).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.env_clear();
    let source = fd.as_raw_fd();
    // SAFETY: dup2 and fcntl are async-signal-safe, and the closure touches nothing else.
    unsafe {
        command.pre_exec(move || {
            if source == number {
                return check(libc::fcntl(source, libc::F_SETFD, 0).into()).map(drop);
            }
            check(libc::dup2(source, number).into()).map(drop)
        });
    }
    let child = tokio::process::Command::from(command).spawn();
    drop((fd, read_only));
    child
}

/// The descriptor, watched by the async runtime of the calling task.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open file until it is dropped, and the watcher owns it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Whether this process could make such namespaces, mount namespace included, and act in them. Tried in a child.
pub(crate) fn try_namespaces(flags: CloneFlags) -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sys::wait::{WaitStatus, waitpid};
    match clone(flags)? {
        Fork::Child => {
            // The parent may have threads: nothing here allocates or locks.
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            let done = mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(io::Error::from);
            // Where parts of /proc are hidden from us, no fresh one may be mounted either.
            let done = done.and_then(|()| new_filesystem(c"proc", &[], 0).map(drop));
            exit_now(done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EPERM)))
        }
        Fork::Parent(child) => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, code)) => return Err(io::Error::from_raw_os_error(code)),
                Err(nix::errno::Errno::EINTR) => {}
                _ => return Err(io::Error::other("the attempt ended strangely")),
            }
        },
    }
}
