//! All logs of this machine, as somebody sees them who carries them elsewhere: which there are, whose they are, and
//! what may not be taken away before it is read.
//!
//! Containers write into the volumes that are looked through here, and may lay out anything in them: no link is
//! followed, and nothing is opened that is not a plain file.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::dir::Type;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use serde::{Deserialize, Serialize};

use super::{MAX_BYTES, MAX_FILES, MAX_PODS, MAX_TOTAL_BYTES, MOST_FILES, numbered};
use crate::lifecycle::state::log_name;
use crate::pod::{PodId, PodSpec, Volume};
use crate::{record, sys, trees};

/// What a pod's directory of logs says about it.
const DESCRIPTION: &str = ".pod.json";
/// Where the files of an ended pod's volume wait to be read. No container's name begins with a dot.
pub(super) const KEPT: &str = ".volume";
/// Bytes of an ended pod's volume that are kept for reading; more than that is let go at once.
const KEPT_BYTES: u64 = 256 * 1024 * 1024;
/// Files that are counted while a volume is weighed.
pub(super) const WEIGHED: u64 = 100_000;
/// Files of a pod's volume that are told of: those written last.
pub const VOLUME_FILES: usize = 100;
/// Names in a volume that are looked at; what comes after them is not seen.
const VOLUME_NAMES: usize = 4000;
/// Directories within each other in a volume.
const VOLUME_DEPTH: usize = 5;
/// Endings of what programs make of old logs: read once already, and no text.
const PACKED: [&str; 6] = [".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip"];
const FORMAT: u8 = 1;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// How far a container's log grows: for runs that begin from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turnover {
    pub max_bytes: u64,
    /// The newest file included.
    pub max_files: u32,
}

impl Default for Turnover {
    fn default() -> Self {
        Self { max_bytes: MAX_BYTES, max_files: MAX_FILES }
    }
}

/// The directory of all logs.
#[derive(Debug)]
pub struct Shelf {
    logs: PathBuf,
    pods: PathBuf,
    wishes: Mutex<Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    turnover: Turnover,
    volume: Option<String>,
    unread: HashSet<PodId>,
}

/// A pod that has logs here, living or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLogs {
    #[serde(default)]
    format: u8,
    pub id: PodId,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    #[serde(skip)]
    dir: PathBuf,
}

/// The log of one run of a container: a file, and older ones beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLog {
    pub container: String,
    pub number: u32,
    path: PathBuf,
}

/// A plain file that a container wrote into a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    pub container: String,
    /// Below the container's part of the volume.
    pub path: PathBuf,
    pub inode: u64,
    pub len: u64,
    pub written: SystemTime,
    /// Below the volume.
    place: PathBuf,
}

impl Shelf {
    /// `pods`: where each living pod has a directory by its UID.
    pub fn new(logs: PathBuf, pods: PathBuf) -> Self {
        Self { logs, pods, wishes: Mutex::default() }
    }

    pub fn set_turnover(&self, turnover: Turnover) {
        let max_files = turnover.max_files.clamp(1, MOST_FILES);
        self.wishes().turnover = Turnover { max_files, ..turnover };
    }

    pub(crate) fn turnover(&self) -> Turnover {
        self.wishes().turnover
    }

    /// From now on the files of this volume outlive their pod, until somebody has read them ([`Self::let_go`]).
    pub fn keep_volume(&self, name: Option<String>) {
        self.wishes().volume = name;
    }

    /// Pods whose logs somebody has not read to their end. They are kept for as long again as others.
    pub fn hold(&self, unread: HashSet<PodId>) {
        self.wishes().unread = unread;
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn dir_of(&self, spec: &PodSpec) -> PathBuf {
        self.logs.join(log_name(spec))
    }

    /// The directory of a pod that may be gone: its UID ends the name.
    pub(crate) fn find(&self, id: &PodId) -> Option<PathBuf> {
        let suffix = format!("_{id}");
        let entries = fs::read_dir(&self.logs).into_iter().flatten().flatten();
        entries.map(|e| e.path()).find(|p| p.to_string_lossy().ends_with(&suffix))
    }

    /// Writes down whose logs these will be, for the time when nobody else knows.
    pub(crate) fn describe(&self, spec: &PodSpec) -> io::Result<()> {
        let dir = self.dir_of(spec);
        let (id, namespace, name) = (spec.id.clone(), spec.namespace.clone(), spec.name.clone());
        let pod = PodLogs { format: FORMAT, id, namespace, name, labels: spec.labels.clone(), dir: PathBuf::new() };
        let path = dir.join(DESCRIPTION);
        if record::read_if_whole::<PodLogs>(&path).is_some_and(|known| known == pod) {
            return Ok(());
        }
        fs::create_dir_all(&dir)?;
        record::write(&path, &pod)
    }

    pub fn lives(&self, id: &PodId) -> bool {
        self.pods.join(&id.0).is_dir()
    }

    /// Names of the directories of all pods that have logs.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.logs)?;
        Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
    }

    /// Whose directory it is. `None`: of nobody, or it is gone.
    pub fn pod(&self, name: &str) -> Option<PodLogs> {
        let dir = self.logs.join(name);
        if !dir.is_dir() {
            return None;
        }
        let described = record::read_if_whole::<PodLogs>(&dir.join(DESCRIPTION)).filter(|pod| pod.format == FORMAT);
        if let Some(pod) = described {
            return Some(PodLogs { dir, ..pod });
        }
        // Neither names of pods nor of namespaces have a line at the foot.
        let mut parts = name.splitn(3, '_');
        let (namespace, pod, id) = (parts.next()?, parts.next()?, parts.next()?);
        Some(PodLogs {
            id: PodId(id.to_owned()),
            namespace: namespace.to_owned(),
            name: pod.to_owned(),
            dir,
            ..PodLogs::default()
        })
    }

    /// The runs whose logs are there, by container, in their order.
    pub fn runs(&self, pod: &PodLogs) -> Vec<RunLog> {
        let mut runs = Vec::new();
        for container in fs::read_dir(&pod.dir).into_iter().flatten().flatten() {
            let Ok(name) = container.file_name().into_string() else { continue };
            if name.starts_with('.') || !container.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            for file in fs::read_dir(container.path()).into_iter().flatten().flatten() {
                let number = file.file_name().to_str().and_then(|f| f.strip_suffix(".log")?.parse().ok());
                let run = number.map(|number| RunLog { container: name.clone(), number, path: file.path() });
                runs.extend(run);
            }
        }
        runs.sort_by(|a, b| (&a.container, a.number).cmp(&(&b.container, b.number)));
        runs
    }

    fn volume_dir(&self, pod: &PodLogs, volume: &str) -> PathBuf {
        let living = self.pods.join(&pod.id.0).join("volumes").join(volume);
        if living.is_dir() { living } else { pod.dir.join(KEPT) }
    }

    /// Plain files in a volume that is shared out as `NAMESPACE_POD_CONTAINER`, a directory for each container; and
    /// whether there are more than are told of.
    pub fn volume_files(&self, pod: &PodLogs, volume: &str) -> (Vec<VolumeFile>, bool) {
        let Ok(root) = nix::fcntl::open(&self.volume_dir(pod, volume), DIRECTORY, Mode::empty()) else {
            return (Vec::new(), false);
        };
        let prefix = format!("{}_{}_", pod.namespace, pod.name);
        let mut walk = Walk { found: Vec::new(), names: VOLUME_NAMES, more: false };
        for (name, _) in trees::names(&root).unwrap_or_default() {
            let Some(container) = name.to_str().ok().and_then(|name| name.strip_prefix(&prefix)) else { continue };
            if let Ok(dir) = openat(&root, name.as_c_str(), DIRECTORY, Mode::empty()) {
                let place = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
                walk.enter(&dir, container, &place, Path::new(""), 1);
            }
        }
        let Walk { mut found, mut more, .. } = walk;
        if found.len() > VOLUME_FILES {
            found.sort_by_key(|file| std::cmp::Reverse(file.written));
            found.truncate(VOLUME_FILES);
            more = true;
        }
        found.sort_by(|a, b| a.place.cmp(&b.place));
        (found, more)
    }

    /// Opens a file that was told of, and nothing that was put in its place since.
    pub fn open(&self, pod: &PodLogs, volume: &str, file: &VolumeFile) -> io::Result<File> {
        let root = nix::fcntl::open(&self.volume_dir(pod, volume), DIRECTORY, Mode::empty())?;
        let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
        let found = sys::open_in_root(root.as_fd(), &file.place, flags)?;
        let stat = fstat(&found)?;
        if !is_plain(&stat) || stat.st_ino != file.inode {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is another file now"));
        }
        // By its descriptor: what was looked at is what is opened.
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// The files of an ended pod's volume have been read.
    pub fn let_go(&self, pod: &PodLogs) -> io::Result<()> {
        trees::remove(&pod.dir.join(KEPT))
    }

    /// Whether an ended pod's volume waits to be read.
    pub fn keeps(&self, pod: &PodLogs) -> bool {
        pod.dir.join(KEPT).is_dir()
    }

    /// Puts the volume of a pod that ends where its logs are, if it is one that is to be kept. Before the pod's
    /// directory is removed, and after its mounts are.
    pub(crate) fn keep(&self, pod_dir: &Path, spec: &PodSpec) {
        let Some(name) = self.wishes().volume.clone() else { return };
        if !matches!(spec.volumes.get(&name), Some(Volume::EmptyDir { memory: false, .. })) {
            return;
        }
        let (from, to) = (pod_dir.join("volumes").join(&name), self.dir_of(spec).join(KEPT));
        let mut uncounted = WEIGHED;
        let size = trees::weigh(&from, &mut uncounted);
        // Beyond so many files nobody knows what there is.
        if size > KEPT_BYTES || uncounted == 0 {
            tracing::warn!(pod = %spec.id, name = spec.name, bytes = size, "what is unread in an ended pod's volume {name} is lost: it is too large to keep");
            return;
        }
        let parent = to.parent().unwrap_or(&self.logs);
        if let Err(error) = fs::create_dir_all(parent).and_then(|()| fs::rename(&from, &to))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(pod = %spec.id, name = spec.name, %error, "what is unread in an ended pod's volume {name} is lost");
        }
    }

    /// Removes the logs of the longest unwritten dead pods until the rest is within bounds.
    pub(crate) fn prune(&self) {
        let unread = self.wishes().unread.clone();
        super::prune_to(&self.logs, (MAX_PODS, MAX_TOTAL_BYTES), |uid| {
            let id = PodId(uid.to_owned());
            match (self.lives(&id), unread.contains(&id)) {
                // A quiet pod's keeper has its file open, and would write on where nobody looks.
                (true, _) => super::Claim::Lives,
                (false, true) => super::Claim::Unread,
                (false, false) => super::Claim::None,
            }
        });
    }
}

impl PodLogs {
    /// Whether it was written down whose logs these are; otherwise the directory's name tells as much as it does.
    pub fn is_described(&self) -> bool {
        self.format == FORMAT
    }
}

impl RunLog {
    /// The files of this log, newest first, as far as they are there.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        (0..MOST_FILES).map(|age| numbered(&self.path, age))
    }
}

/// Where a file goes on after a hole that was never written to; the offset itself where there is none.
pub fn after_hole(file: &File, offset: u64) -> u64 {
    let at = i64::try_from(offset).unwrap_or(i64::MAX);
    match nix::unistd::lseek(file, at, nix::unistd::Whence::SeekData) {
        Ok(data) => u64::try_from(data).unwrap_or(offset).max(offset),
        // Nothing but a hole up to the end.
        Err(nix::errno::Errno::ENXIO) => file.metadata().map_or(offset, |meta| meta.len()).max(offset),
        Err(_) => offset,
    }
}

struct Walk {
    found: Vec<VolumeFile>,
    /// That may still be looked at.
    names: usize,
    more: bool,
}

impl Walk {
    fn enter(&mut self, dir: &OwnedFd, container: &str, place: &Path, path: &Path, depth: usize) {
        for (name, kind) in trees::names(dir).unwrap_or_default() {
            let Some(left) = self.names.checked_sub(1) else {
                self.more = true;
                return;
            };
            self.names = left;
            if matches!(kind, Some(kind) if kind != Type::Directory && kind != Type::File) {
                continue;
            }
            let Ok(stat) = fstatat(dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let own = std::ffi::OsStr::from_bytes(name.to_bytes());
            let (place, path) = (place.join(own), path.join(own));
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                if depth >= VOLUME_DEPTH {
                    self.more = true;
                } else if let Ok(inside) = openat(dir, name.as_c_str(), DIRECTORY, Mode::empty()) {
                    self.enter(&inside, container, &place, &path, depth + 1);
                }
            } else if is_plain(&stat) && !PACKED.iter().any(|end| name.to_bytes().ends_with(end.as_bytes())) {
                let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
                let nanos = Duration::from_nanos(u64::try_from(stat.st_mtime_nsec).unwrap_or(0));
                self.found.push(VolumeFile {
                    container: container.to_owned(),
                    path,
                    inode: stat.st_ino,
                    len: u64::try_from(stat.st_size).unwrap_or(0),
                    written: SystemTime::UNIX_EPOCH + seconds + nanos,
                    place,
                });
            }
        }
    }
}

fn is_plain(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

#[cfg(test)]
mod tests;
