//! One layer's tar, made into a directory.
//!
//! A layer is somebody else's data: a path never leaves the target, whatever symbolic links the layer has laid
//! before (parents are walked one component at a time from an open directory, links are followed inside the target
//! only). Whiteouts become overlayfs's own marks, or, when merging, what they stand for.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstatat, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, mkfifoat, symlinkat, unlinkat};
use sha2::{Digest as _, Sha256};
use xattr::FileExt as _;

use super::budget::{self, Budget, Watched};
use super::digest::hex;
use super::error::StoreError;

/// A file of this name marks its directory as hiding what lower layers have in it.
const OPAQUE: &str = ".wh..wh..opq";
const WHITEOUT: &str = ".wh.";
/// aufs's own files begin like this; they mean nothing here.
const WHITEOUT_META: &str = ".wh..wh.";
/// Symbolic links followed in one path at most, as in the kernel.
const LINKS_MAX: u32 = 40;
/// Directories within each other at most: each open one costs a descriptor, here and wherever the image is removed.
const DEPTH_MAX: usize = 512;
/// Directories made because a layer names only what is in them.
const IMPLIED_MODE: u32 = 0o755;
/// Two blocks of zeros end a tar.
const END_OF_ARCHIVE: u64 = 1024;
const PAX_XATTR: &str = "SCHILY.xattr.";

/// What whiteouts become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whiteouts {
    /// Device 0/0 and `trusted.overlay.opaque`.
    Trusted,
    /// Device 0/0 and `user.overlay.opaque`.
    User,
    /// The target already holds the lower layers: remove from them.
    Apply,
}

/// What unpacking found out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// `sha256:…` of the uncompressed tar.
    pub(super) diff_id: String,
    /// Directories the layer did not describe; their owner and mode are the lower layers' business.
    pub(super) implied: Vec<PathBuf>,
}

/// Unpacks one layer, compressed or not, into an existing directory. Only a `diff_id` that is the expected one says
/// that the layer was whole.
pub(super) fn unpack(
    what: &str,
    layer: impl Read,
    target: &Path,
    whiteouts: Whiteouts,
    budget: Budget,
) -> Result<Unpacked, StoreError> {
    let broken = |e: io::Error| match e.raw_os_error() {
        // An errno is this machine's trouble, anything else is the archive's.
        Some(_) => StoreError::disk("unpack into", target)(e),
        None if e.kind() == io::ErrorKind::StorageFull => StoreError::disk("unpack into", target)(e),
        None => StoreError::Broken { what: what.to_owned(), problem: e.to_string() },
    };
    let mut reader = Hashing { inner: decompress(layer).map_err(broken)?, hash: Sha256::new() };
    let mut extractor = Extractor::new(target, whiteouts, budget).map_err(broken)?;
    let allowance = Cell::new(u64::MAX);
    // Some tools leave out the end of the archive, padding of the last file included. Zeros that are not hashed stand
    // in for it: content that is cut short is still found out by the digest.
    let whole = (&mut reader).chain(io::repeat(0).take(END_OF_ARCHIVE));
    let mut archive = tar::Archive::new(Watched { inner: whole, allowance: &allowance });
    let mut entries = archive.entries().map_err(broken)?;
    loop {
        // To the next file's content there is nothing but descriptions.
        budget::limit(&allowance);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(broken)?;
        budget::unlimit(&allowance);
        extractor.entry(&mut entry).map_err(broken)?;
        // What the kind of file had no use for.
        extractor.budget.copy(&mut entry, &mut io::sink(), &extractor.root).map_err(broken)?;
    }
    // The tar ends before the stream does; the digest counts to the last byte.
    extractor.budget.copy(&mut reader, &mut io::sink(), &extractor.root).map_err(broken)?;
    extractor.finish().map_err(broken)?;
    Ok(Unpacked { diff_id: format!("sha256:{}", hex(&reader.hash.finalize())), implied: extractor.implied })
}

/// Recognizes gzip and zstd by their first bytes: media types lie more often than magic numbers.
pub(super) fn decompress<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 4];
    let mut have = 0;
    while have < magic.len() {
        match stream.read(&mut magic[have..])? {
            0 => break,
            n => have += n,
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(stream);
    Ok(match &magic[..have] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Gives an implied directory of an upper layer the looks it has in the nearest lower one.
pub(super) fn adopt_implied(layer: &Path, implied: &[PathBuf], lower: &[PathBuf]) -> io::Result<()> {
    for path in implied {
        let Some(from) = lower.iter().rev().find_map(|l| fs::symlink_metadata(l.join(path)).ok()) else { continue };
        let own = layer.join(path);
        if !from.is_dir() || !fs::symlink_metadata(&own)?.is_dir() {
            continue;
        }
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::lchown(&own, Some(from.uid()), Some(from.gid()))?;
        }
        fs::set_permissions(&own, fs::Permissions::from_mode(from.mode() & 0o7777))?;
    }
    Ok(())
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

struct Extractor {
    root: Arc<OwnedFd>,
    whiteouts: Whiteouts,
    /// Owners, devices and privileged attributes can be set.
    privileged: bool,
    implied: Vec<PathBuf>,
    /// Modes and times of directories are set last: a read-only directory must still be filled.
    directories: Vec<(PathBuf, u32, TimeSpec)>,
    /// What this layer brought, so that its own whiteouts spare it (only when merging).
    brought: HashSet<PathBuf>,
    /// The last parent: archives go directory by directory.
    parent: Option<(PathBuf, Arc<OwnedFd>)>,
    budget: Budget,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Extractor {
    fn new(target: &Path, whiteouts: Whiteouts, budget: Budget) -> io::Result<Self> {
        let root = nix::fcntl::open(target, DIRECTORY, Mode::empty())?;
        Ok(Self {
            root: Arc::new(root),
            whiteouts,
            privileged: nix::unistd::geteuid().is_root(),
            implied: Vec::new(),
            directories: Vec::new(),
            brought: HashSet::new(),
            parent: None,
            budget,
        })
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        use tar::EntryType as T;
        self.budget.entry()?;
        let kind = entry.header().entry_type();
        if kind == T::XGlobalHeader {
            return Ok(());
        }
        let path = clean(&entry.path_bytes())?;
        let attributes = Attributes::read(entry)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // "./" describes the root directory itself.
            return if kind == T::Directory { self.directory_attributes(PathBuf::new(), &attributes) } else { Ok(()) };
        };
        let parent_path = path.parent().map(Path::to_owned).unwrap_or_default();
        let parent = self.parent(&parent_path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT.as_bytes()) {
            return self.whiteout(&parent_path, &parent, &name, OsStr::from_bytes(hidden));
        }
        let replaced = self.make_room(&parent, &name, kind == T::Directory)?;
        if self.whiteouts == Whiteouts::Apply {
            self.brought.extend(path.ancestors().map(Path::to_owned));
        }
        match kind {
            T::Directory => {
                if replaced != Replaced::KeptDirectory {
                    mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o700))?;
                }
                if replaced == Replaced::Whiteout {
                    // Whited out and made anew in one layer: nothing from below may shine through.
                    self.mark_opaque(&parent, &name)?;
                }
                return self.directory_attributes(path, &attributes);
            }
            T::Regular | T::Continuous | T::GNUSparse => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = openat(&parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o600))?;
                let mut file = File::from(fd);
                self.budget.copy(entry, &mut file, &self.root)?;
                if self.privileged {
                    fchownat(&file, "", Some(attributes.uid), Some(attributes.gid), AtFlags::AT_EMPTY_PATH)?;
                }
                // After the owner: chown takes set-uid bits and capabilities away.
                file.set_permissions(fs::Permissions::from_mode(attributes.mode))?;
                self.set_xattrs(&file, &attributes)?;
                futimens(&file, &attributes.mtime, &attributes.mtime)?;
                return Ok(());
            }
            T::Link => return self.hard_link(entry, &parent, &name),
            T::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| bad("a symbolic link without a target"))?;
                symlinkat(OsStr::from_bytes(&target), &parent, name.as_os_str())?;
                // Paths that were walked may lead elsewhere now.
                self.parent = None;
            }
            T::Fifo => mkfifoat(&parent, name.as_os_str(), Mode::from_bits_truncate(attributes.mode))?,
            T::Char | T::Block => {
                if !self.privileged {
                    // Nobody but root can make devices; a container gets its own /dev.
                    return Ok(());
                }
                let device = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0).into();
                let (major, minor) = (device(entry.header().device_major()), device(entry.header().device_minor()));
                let flag = if kind == T::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                if self.whiteouts != Whiteouts::Apply && kind == T::Char && (major, minor) == (0, 0) {
                    return Err(bad("a character device 0/0, which would hide files of other layers"));
                }
                mknodat(&parent, name.as_os_str(), flag, Mode::empty(), nix::sys::stat::makedev(major, minor))?;
            }
            _ => return Ok(()),
        }
        self.node_attributes(&parent, &name, kind, &attributes)
    }

    /// Owner, mode and time of what is neither file nor directory.
    fn node_attributes(&self, parent: &OwnedFd, name: &OsStr, kind: tar::EntryType, a: &Attributes) -> io::Result<()> {
        if self.privileged {
            fchownat(parent, name, Some(a.uid), Some(a.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        if kind != tar::EntryType::Symlink {
            nix::sys::stat::fchmodat(
                parent,
                name,
                Mode::from_bits_truncate(a.mode),
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )?;
        }
        Ok(utimensat(parent, name, &a.mtime, &a.mtime, UtimensatFlags::NoFollowSymlink)?)
    }

    fn directory_attributes(&mut self, path: PathBuf, a: &Attributes) -> io::Result<()> {
        let fd = self.walk(&path)?;
        if self.privileged {
            fchownat(&fd, "", Some(a.uid), Some(a.gid), AtFlags::AT_EMPTY_PATH)?;
        }
        if !a.xattrs.is_empty() {
            let readable = openat(&fd, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            self.set_xattrs(&File::from(readable), a)?;
        }
        self.implied.retain(|p| *p != path);
        self.directories.push((path, a.mode, a.mtime));
        Ok(())
    }

    fn set_xattrs(&self, file: &File, a: &Attributes) -> io::Result<()> {
        for (name, value) in &a.xattrs {
            // Overlay's own marks would let a layer hide or redirect what is not its own.
            if name.as_bytes().starts_with(b"trusted.overlay.") || name.as_bytes().starts_with(b"user.overlay.") {
                continue;
            }
            match file.set_xattr(name, value) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => {}
                Err(e) if !self.privileged && e.kind() == io::ErrorKind::PermissionDenied => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn hard_link<R: Read>(&mut self, entry: &tar::Entry<'_, R>, parent: &Arc<OwnedFd>, name: &OsStr) -> io::Result<()> {
        let target = clean(&entry.link_name_bytes().ok_or_else(|| bad("a hard link without a target"))?)?;
        let target_name = target.file_name().ok_or_else(|| bad("a hard link to the root directory"))?;
        let from = self.walk(target.parent().unwrap_or(Path::new("")))?;
        linkat(&from, target_name, parent, name, LinkatFlags::empty()).map_err(|e| match e {
            nix::errno::Errno::ENOENT => {
                bad(&format!("a hard link to {}, which is not in the layer", target.display()))
            }
            e => e.into(),
        })
    }

    fn whiteout(&mut self, parent_path: &Path, parent: &Arc<OwnedFd>, name: &OsStr, hidden: &OsStr) -> io::Result<()> {
        if name == OPAQUE {
            return match self.whiteouts {
                Whiteouts::Apply => self.clear(parent_path, parent),
                _ => self.mark_opaque(parent, OsStr::new(".")),
            };
        }
        if name.as_bytes().starts_with(WHITEOUT_META.as_bytes()) {
            return Ok(());
        }
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(bad("a whiteout that names nothing"));
        }
        let there = stat(parent, hidden)?;
        match (self.whiteouts, there) {
            (Whiteouts::Apply, Some(_)) if !self.brought.contains(&parent_path.join(hidden)) => {
                self.remove(parent, hidden)
            }
            (Whiteouts::Apply, _) => Ok(()),
            (_, None) => Ok(mknodat(parent, hidden, SFlag::S_IFCHR, Mode::empty(), 0)?),
            // The layer's own directory stays, but nothing from below may shine through.
            (_, Some(node)) if is_directory(&node) => self.mark_opaque(parent, hidden),
            // The layer's own file hides the lower one already.
            (_, Some(_)) => Ok(()),
        }
    }

    fn mark_opaque(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let attribute = match self.whiteouts {
            Whiteouts::Trusted => "trusted.overlay.opaque",
            Whiteouts::User => "user.overlay.opaque",
            Whiteouts::Apply => return Ok(()),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        File::from(openat(parent, name, flags, Mode::empty())?).set_xattr(attribute, b"y")
    }

    /// Empties a directory of what lower layers put there.
    fn clear(&mut self, path: &Path, directory: &Arc<OwnedFd>) -> io::Result<()> {
        for entry in fs::read_dir(proc_path(directory))? {
            let name = entry?.file_name();
            if !self.brought.contains(&path.join(&name)) {
                self.remove(directory, &name)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        self.parent = None;
        match stat(parent, name)? {
            // `remove_dir_all` does not follow links below the directory it is given.
            Some(node) if is_directory(&node) => fs::remove_dir_all(proc_path(parent).join(name)),
            Some(_) => Ok(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?),
            None => Ok(()),
        }
    }

    /// A later entry of the same name replaces the earlier one, except that directories are filled up.
    fn make_room(&mut self, parent: &OwnedFd, name: &OsStr, directory: bool) -> io::Result<Replaced> {
        match stat(parent, name)? {
            None => Ok(Replaced::Nothing),
            Some(node) if directory && is_directory(&node) => Ok(Replaced::KeptDirectory),
            Some(node) => {
                self.remove(parent, name)?;
                Ok(if is_whiteout(&node) { Replaced::Whiteout } else { Replaced::Other })
            }
        }
    }

    fn parent(&mut self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        if let Some((known, fd)) = &self.parent
            && known == path
        {
            return Ok(fd.clone());
        }
        let fd = self.walk(path)?;
        self.parent = Some((path.to_owned(), fd.clone()));
        Ok(fd)
    }

    /// Opens a directory below the root, making what is missing. `..` and absolute links end at the root.
    fn walk(&mut self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        let mut stack: Vec<(OsString, Arc<OwnedFd>)> = Vec::new();
        let mut rest: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            match name.as_bytes() {
                b"/" => {
                    stack.clear();
                    continue;
                }
                b"." | b"" => continue,
                b".." => {
                    stack.pop();
                    continue;
                }
                _ => {}
            }
            let top = stack.last().map_or(&self.root, |(_, fd)| fd).clone();
            let node = stat(&top, &name)?;
            match node {
                Some(node) if is_directory(&node) => {}
                Some(node) if SFlag::from_bits_truncate(node.st_mode & libc::S_IFMT) == SFlag::S_IFLNK => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(bad("a path through too many symbolic links"));
                    }
                    let target = PathBuf::from(readlinkat(&top, name.as_os_str())?);
                    for part in target.iter().collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(part.to_owned());
                    }
                    continue;
                }
                Some(node) if is_whiteout(&node) && self.whiteouts != Whiteouts::Apply => {
                    unlinkat(&top, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
                    mkdirat(&top, name.as_os_str(), Mode::from_bits_truncate(IMPLIED_MODE))?;
                    self.mark_opaque(&top, &name)?;
                }
                Some(_) => return Err(bad(&format!("a path through {}, which is no directory", path.display()))),
                None => {
                    mkdirat(&top, name.as_os_str(), Mode::from_bits_truncate(IMPLIED_MODE))?;
                    let made: PathBuf = stack.iter().map(|(n, _)| n.as_os_str()).chain([name.as_os_str()]).collect();
                    self.implied.push(made);
                }
            }
            if stack.len() >= DEPTH_MAX {
                return Err(bad(&format!("a path of more than {DEPTH_MAX} directories")));
            }
            let fd = openat(&top, name.as_os_str(), DIRECTORY, Mode::empty())?;
            stack.push((name, Arc::new(fd)));
        }
        Ok(stack.pop().map_or_else(|| self.root.clone(), |(_, fd)| fd))
    }

    /// A directory by its plain path, if it is still one.
    fn open_directory(&self, path: &Path) -> io::Result<Option<Arc<OwnedFd>>> {
        let mut top = self.root.clone();
        for name in path {
            top = match openat(&top, name, DIRECTORY, Mode::empty()) {
                Ok(fd) => Arc::new(fd),
                Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR | nix::errno::Errno::ELOOP) => {
                    return Ok(None);
                }
                Err(e) => return Err(e.into()),
            };
        }
        Ok(Some(top))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.parent = None;
        // Deepest last in the archive, first here: setting a child's time must not touch its parent's.
        for (path, mode, mtime) in std::mem::take(&mut self.directories).into_iter().rev() {
            // What a later entry replaced has no looks left to set.
            let Some(fd) = self.open_directory(&path)? else { continue };
            fs::set_permissions(proc_path(&fd), fs::Permissions::from_mode(mode))?;
            utimensat(&fd, &proc_path(&fd), &mtime, &mtime, UtimensatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replaced {
    Nothing,
    KeptDirectory,
    Whiteout,
    Other,
}

struct Attributes {
    mode: u32,
    uid: Uid,
    gid: Gid,
    mtime: TimeSpec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    fn read<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Self> {
        let mut xattrs = Vec::new();
        // Fields left blank count as zero, as in every other reader; the header's checksum was right.
        let mut mtime = entry.header().mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0);
        let (mut uid, mut gid) = (entry.header().uid().unwrap_or(0), entry.header().gid().unwrap_or(0));
        let mode = entry.header().mode().unwrap_or(0) & 0o7777;
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            let Ok(key) = extension.key() else { continue };
            let number = || extension.value().ok().and_then(|v| v.parse::<f64>().ok());
            match key {
                "mtime" => mtime = number().map_or(mtime, |n| n as i64),
                "uid" => uid = number().map_or(uid, |n| n as u64),
                "gid" => gid = number().map_or(gid, |n| n as u64),
                _ => {
                    if let Some(name) = key.strip_prefix(PAX_XATTR) {
                        xattrs.push((OsString::from(name), extension.value_bytes().to_owned()));
                    }
                }
            }
        }
        let id = |n: u64| u32::try_from(n).map_err(|_| bad(&format!("an owner {n}, which is no user id")));
        Ok(Self {
            mode,
            uid: Uid::from_raw(id(uid)?),
            gid: Gid::from_raw(id(gid)?),
            mtime: TimeSpec::new(mtime, 0),
            xattrs,
        })
    }
}

/// A path of the archive relative to the target. Absolute ones are meant relative; `..` is refused.
fn clean(bytes: &[u8]) -> io::Result<PathBuf> {
    let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(bad(&format!("the path {}, which leaves the image", path.display())));
            }
        }
    }
    Ok(clean)
}

fn stat(parent: &impl AsFd, name: &OsStr) -> io::Result<Option<libc::stat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(node) => Ok(Some(node)),
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_directory(node: &libc::stat) -> bool {
    node.st_mode & libc::S_IFMT == libc::S_IFDIR
}

fn is_whiteout(node: &libc::stat) -> bool {
    node.st_mode & libc::S_IFMT == libc::S_IFCHR && node.st_rdev == 0
}

/// A path to an open directory that no rename can redirect.
fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn bad(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it contains {problem}"))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
