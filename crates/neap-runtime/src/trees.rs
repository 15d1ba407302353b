//! Removing and weighing directories that others filled, or are filling, and may have filled with ill will: nested
//! thousands deep, longer than any path may be. Neither takes a number of descriptors, or a depth of the stack, that
//! depends on what is found.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys;

/// Tries before giving up on a tree that somebody else is still removing or writing.
const TRIES: u32 = 10;
/// Directories within each other that are open at once; what lies deeper is brought up.
const DEPTH: usize = 32;
/// Names that are read before they are dealt with.
const BATCH: usize = 4096;
/// Bytes of a path below an open directory, before the next is opened. The kernel takes 4096.
const STEP: usize = 2048;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Removes a tree. Succeeds when it is gone, by whomever. Directories that their owner may not enter are opened first:
/// without root, overlayfs and containers leave such behind.
pub fn remove(dir: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..TRIES {
        last = remove_once(dir);
        match &last {
            Ok(()) => return Ok(()),
            Err(_) if std::fs::symlink_metadata(dir).is_err() => return Ok(()),
            Err(Errno::ENOENT | Errno::ENOTEMPTY) => {}
            Err(error) => return Err((*error).into()),
        }
    }
    last.map_err(io::Error::from)
}

fn remove_once(dir: &Path) -> nix::Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Err(Errno::EINVAL) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = nix::fcntl::open(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let top = match enter(&parent, &name) {
        Err(Errno::ENOTDIR | Errno::ELOOP) => return unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir),
        other => other?,
    };
    let mut removal = Removal { top: &top, brought: 0 };
    loop {
        let before = removal.brought;
        removal.empty(&top, 0)?;
        // What was brought up may lie there unseen.
        if removal.brought == before {
            break;
        }
    }
    unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir)
}

struct Removal<'a> {
    top: &'a OwnedFd,
    brought: u64,
}

impl Removal<'_> {
    fn empty(&mut self, dir: &OwnedFd, depth: usize) -> nix::Result<()> {
        loop {
            let batch = names(dir)?;
            if batch.is_empty() {
                return Ok(());
            }
            for (name, kind) in batch {
                self.one(dir, &name, kind, depth)?;
            }
        }
    }

    fn one(&mut self, dir: &OwnedFd, name: &CString, kind: Option<Type>, depth: usize) -> nix::Result<()> {
        if kind != Some(Type::Directory) {
            match opened(dir, || unlinkat(dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir)) {
                // A filesystem that does not tell kinds.
                Err(Errno::EISDIR | Errno::EPERM) if kind.is_none() => {}
                Err(Errno::ENOENT) => return Ok(()),
                other => return other,
            }
        }
        if depth >= DEPTH {
            self.brought += 1;
            // A name that nobody could have put there before.
            let up = CString::new(format!("{:016x}", sys::random_u64())).expect("no zero in it");
            // To move a directory is to write to it: it has another parent then.
            let _ = enter(dir, name);
            return opened(dir, || renameat(dir, name.as_c_str(), self.top, up.as_c_str()));
        }
        let inside = match enter(dir, name) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        self.empty(&inside, depth + 1)?;
        match opened(dir, || unlinkat(dir, name.as_c_str(), UnlinkatFlags::RemoveDir)) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// Opens a directory, if need be by force: its owner may have closed it.
fn enter(parent: &OwnedFd, name: &CString) -> nix::Result<OwnedFd> {
    let inside = match openat(parent, name.as_c_str(), DIRECTORY, Mode::empty()) {
        Err(Errno::EACCES) => {
            let by_path = nix::sys::stat::FchmodatFlags::NoFollowSymlink;
            let open = Mode::S_IRWXU;
            nix::sys::stat::fchmodat(parent, name.as_c_str(), open, by_path).or_else(|_| {
                // Not every library knows how; it is a directory, or the next call fails.
                nix::sys::stat::fchmodat(parent, name.as_c_str(), open, nix::sys::stat::FchmodatFlags::FollowSymlink)
            })?;
            openat(parent, name.as_c_str(), DIRECTORY, Mode::empty())?
        }
        other => other?,
    };
    Ok(inside)
}

/// Does something in a directory; where that may not be written to, it is made so.
fn opened(dir: &OwnedFd, work: impl Fn() -> nix::Result<()>) -> nix::Result<()> {
    match work() {
        Err(Errno::EACCES) => {
            fchmod(dir, Mode::S_IRWXU)?;
            work()
        }
        other => other,
    }
}

/// Some of the names in a directory, from its beginning.
pub(crate) fn names(dir: &OwnedFd) -> nix::Result<Vec<(CString, Option<Type>)>> {
    let mut listing = Dir::openat(dir, ".", DIRECTORY, Mode::empty())?;
    let mut found = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            found.push((entry.file_name().to_owned(), entry.file_type()));
            if found.len() >= BATCH {
                break;
            }
        }
    }
    Ok(found)
}

/// Bytes on the disk below a directory, looking at so many files at most. Follows no link out of it, and what
/// containers move about meanwhile may be missed.
pub(crate) fn weigh(dir: &Path, files: &mut u64) -> u64 {
    let mut sum = 0;
    walk(dir, |_, _, meta| {
        let Some(fewer) = files.checked_sub(1) else { return false };
        *files = fewer;
        sum += u64::try_from(meta.st_blocks).unwrap_or(0) * 512;
        true
    });
    sum
}

/// What a group must be able to do with the files of its volumes: read and write, and enter directories, in which what is
/// made belongs to it, too (Kubernetes' modes).
const OF_FILES: u32 = 0o660;
const OF_DIRECTORIES: u32 = 0o2770;

/// Gives a directory and all below it to a group. Links are given as themselves. The directory itself comes last and only
/// when all others are given: by it [`is_of_group`] tells whether this was done.
///
/// # Errors
/// One of them could not be given; the others below were.
pub fn give_to_group(dir: &Path, group: u32) -> io::Result<()> {
    let mut failed = Ok(());
    walk(dir, |parent, name, meta| {
        match give_one(parent, name, meta, group) {
            // Somebody was faster.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => failed = Err(io::Error::from(error)),
        }
        true
    });
    failed?;
    let top: OwnedFd = nix::fcntl::open(dir, DIRECTORY, Mode::empty())?;
    let meta = nix::sys::stat::fstat(&top)?;
    nix::unistd::fchown(&top, None, Some(group.into()))?;
    Ok(fchmod(&top, Mode::from_bits_truncate(meta.st_mode | OF_DIRECTORIES))?)
}

/// Whether a directory itself is as [`give_to_group`] leaves it.
pub fn is_of_group(dir: &Path, group: u32) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(dir)?;
    Ok(meta.gid() == group && meta.mode() & OF_DIRECTORIES == OF_DIRECTORIES)
}

fn give_one(parent: &OwnedFd, name: &CStr, meta: &FileStat, group: u32) -> nix::Result<()> {
    let kind = meta.st_mode & libc::S_IFMT;
    nix::unistd::fchownat(parent, name, None, Some(group.into()), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind == libc::S_IFLNK {
        return Ok(());
    }
    let more = if kind == libc::S_IFDIR { OF_DIRECTORIES } else { OF_FILES };
    if meta.st_mode & more == more {
        return Ok(());
    }
    // By what was opened, not by its name, which may be a link's by now.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(parent, name, flags, Mode::empty())?;
    let now = nix::sys::stat::fstat(&opened)?;
    if now.st_ino != meta.st_ino || now.st_dev != meta.st_dev {
        return Ok(());
    }
    let by_number = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let mode = Mode::from_bits_truncate(now.st_mode | more);
    nix::sys::stat::fchmodat(AT_FDCWD, by_number.as_str(), mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
}

/// Shows everything below a directory, each with the open directory that it is in. `visit` says whether to go on.
fn walk(dir: &Path, mut visit: impl FnMut(&OwnedFd, &CStr, &FileStat) -> bool) {
    let Ok(root) = nix::fcntl::open(dir, DIRECTORY, Mode::empty()) else { return };
    // Directories as paths below an open one, which is another from time to time.
    let mut left = vec![(Arc::new(root), PathBuf::from("."))];
    while let Some((base, path)) = left.pop() {
        let flags = DIRECTORY.bits();
        let Ok(opened) = sys::open_in_root(base.as_fd(), &path, flags) else { continue };
        let (base, path) = match path.as_os_str().len() < STEP {
            true => (base, path),
            false => match opened.try_clone() {
                Ok(opened) => (Arc::new(opened), PathBuf::from(".")),
                Err(_) => continue,
            },
        };
        let Ok(mut listing) = Dir::from_fd(opened) else { continue };
        let Ok(here) = sys::open_in_root(base.as_fd(), &path, flags) else { continue };
        for entry in listing.iter().flatten() {
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            let Ok(meta) = fstatat(&here, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if !visit(&here, name, &meta) {
                return;
            }
            if meta.st_mode & libc::S_IFMT == libc::S_IFDIR {
                left.push((base.clone(), path.join(OsStr::from_bytes(name.to_bytes()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn closed_directories_and_missing_ones_go() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let closed = dir.path().join("a/b");
        fs::create_dir_all(closed.join("c")).expect("made");
        fs::write(closed.join("file"), "x").expect("written");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("closed");
        remove(&dir.path().join("a")).expect("removed");
        assert!(!dir.path().join("a").exists());
        remove(&dir.path().join("a")).expect("gone is gone");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("kept/inside")).expect("made");
        fs::create_dir(dir.path().join("a")).expect("made");
        std::os::unix::fs::symlink(dir.path().join("kept"), dir.path().join("a/link")).expect("linked");
        std::os::unix::fs::symlink(dir.path().join("kept"), dir.path().join("link")).expect("linked");
        for name in ["a", "link"] {
            remove(&dir.path().join(name)).expect("removed");
        }
        assert!(dir.path().join("kept/inside").is_dir());
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }

    /// Deeper than there are descriptors, and longer than a path may be.
    #[test]
    fn what_is_nested_without_end_is_weighed_and_goes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let top = dir.path().join("top");
        fs::create_dir(&top).expect("made");
        let mut at: OwnedFd = fs::File::open(&top).expect("there").into();
        for n in 0..5000 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).expect("made");
            if n % 7 == 0 {
                let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                drop(openat(&at, "file", flags, Mode::S_IRWXU).expect("made"));
            }
            at = openat(&at, "d", DIRECTORY, Mode::empty()).expect("opened");
        }
        let hidden = openat(&at, "hidden", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).expect("made");
        nix::unistd::write(&hidden, &[1; 100_000]).expect("written");
        drop((at, hidden));
        let found = weigh(&top, &mut 1_000_000);
        assert!(found >= 100_000, "{found}");
        remove(&top).expect("removed");
        assert!(!top.exists());
    }

    #[test]
    fn a_group_gets_all_that_is_below_and_nothing_that_links_lead_to() {
        use std::os::unix::fs::MetadataExt;
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root gives files away");
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (outside, top) = (dir.path().join("outside"), dir.path().join("top"));
        fs::write(&outside, "x").expect("written");
        fs::create_dir_all(top.join("a/b")).expect("made");
        fs::write(top.join("a/b/file"), "x").expect("written");
        fs::set_permissions(top.join("a/b/file"), fs::Permissions::from_mode(0o4700)).expect("set");
        std::os::unix::fs::symlink(&outside, top.join("a/link")).expect("linked");
        assert!(!is_of_group(&top, 4242).expect("there"));
        give_to_group(&top, 4242).expect("given");
        let look = |path: &str| {
            let meta = fs::symlink_metadata(dir.path().join(path)).expect("there");
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert!(is_of_group(&top, 4242).expect("there"));
        assert_eq!((look("top/a"), look("top/a/b")), ((4242, 0o2775), (4242, 0o2775)));
        // The kernel takes the set-user bit when a file gets another group.
        assert_eq!((look("top/a/b/file").0, look("top/a/b/file").1 & 0o770), (4242, 0o760));
        assert_eq!((look("top/a/link").0, look("outside").0), (4242, 0));
        fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).expect("set");
        assert!(!is_of_group(&top, 4242).expect("there"));
    }

    #[test]
    fn files_are_weighed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("a/b")).expect("made");
        fs::write(dir.path().join("a/b/file"), vec![1; 100_000]).expect("written");
        std::os::unix::fs::symlink("/", dir.path().join("a/root")).expect("linked");
        let found = weigh(dir.path(), &mut 100);
        assert!((100_000..200_000).contains(&found), "{found}");
        assert_eq!(weigh(&dir.path().join("none"), &mut 100), 0);
        assert!(weigh(dir.path(), &mut 2) < found, "it comes to an end");
    }
}
