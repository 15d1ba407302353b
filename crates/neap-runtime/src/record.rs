//! What is written down so that another run of the runtime finds its way: formats, and files replaced in one step.
//!
//! Files are not flushed to the platter: they tell about processes, and those do not outlive the machine's memory
//! either. A file that a power cut left torn is treated as missing. Every record carries the version of its format.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::launch::Isolation;
use crate::spawner::wire::StartError;

pub(crate) const VERSION: u8 = 1;

/// A container process that was started. Written by its keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub version: u8,
    /// The machine's boot; a record of an earlier one tells about processes that are gone.
    pub boot: String,
    pub keeper: ProcessId,
    pub process: ProcessId,
    pub isolation: Isolation,
    pub group: Option<Group>,
    pub started: Timestamp,
}

/// How a container process ended. Written by its keeper, or by the runtime for a process that never was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub version: u8,
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub started: Option<Timestamp>,
    pub finished: Timestamp,
    /// It did not even start.
    pub error: Option<StartError>,
}

impl Exit {
    /// Exit code of a container that could not be started (as Docker and Kubernetes have it).
    const NOT_STARTED: i32 = 128;

    pub(crate) fn not_started(error: StartError, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            code: Self::NOT_STARTED,
            signal: None,
            oom_killed: false,
            started: None,
            finished: now,
            error: Some(error),
        }
    }
}

/// A process number that cannot be mistaken for a later process of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub pid: i32,
    /// Clock ticks from boot to the start of the process.
    pub start: u64,
}

impl ProcessId {
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        Self::look(pid).map(|(id, _)| id)
    }

    /// Not so is one that has ended and that nobody has asked about yet: its number is taken, and that is all.
    pub(crate) fn is_alive(&self) -> bool {
        Self::look(Pid::from_raw(self.pid)).is_ok_and(|(now, runs)| runs && now == *self)
    }

    fn look(pid: Pid) -> io::Result<(Self, bool)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything. After it: the state, and numbers; field 20 counts the threads,
        // field 22 is the start.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let start =
            number(19).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has no start time"))?;
        // A first thread may end before the others do.
        let ended = matches!(fields.first(), Some(&("Z" | "X"))) && number(17).is_none_or(|threads| threads <= 1);
        Ok((Self { pid: pid.as_raw(), start }, !ended))
    }
}

pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Replaces the file in one step: a reader sees the old content or the new.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    write_new(Path::new(&aside), &serde_json::to_vec(value)?)?;
    fs::rename(&aside, path)
}

/// A value that is written anew again and again. Each version is a file of its own, the older ones go once it is whole:
/// replacing one file in place makes some filesystems (ext4) start writing to the disk then and there, which costs
/// milliseconds while somebody waits for a container.
pub(crate) struct Ledger {
    dir: PathBuf,
    stem: &'static str,
    generation: u64,
}

impl Ledger {
    /// A ledger that is empty until the first write.
    pub(crate) fn new(dir: &Path, stem: &'static str) -> Self {
        Self { dir: dir.to_owned(), stem, generation: 0 }
    }

    /// The newest whole version, with the ledger to go on writing.
    ///
    /// # Errors
    /// It cannot be read now, which is not to say that there is none.
    pub(crate) fn open<T: DeserializeOwned>(dir: &Path, stem: &'static str) -> io::Result<Option<(Self, T)>> {
        let number = |name: &std::ffi::OsStr| -> Option<u64> {
            name.to_str()?.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".json")?.parse().ok()
        };
        let mut generations = Vec::new();
        for entry in fs::read_dir(dir)? {
            generations.extend(number(&entry?.file_name()));
        }
        generations.sort_unstable();
        let Some(newest) = generations.last() else { return Ok(None) };
        let ledger = Self { dir: dir.to_owned(), stem, generation: *newest };
        for generation in generations.iter().rev() {
            if let Some(value) = read_if_there(&ledger.file(*generation))? {
                return Ok(Some((ledger, value)));
            }
        }
        Ok(None)
    }

    pub(crate) fn write<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let next = self.generation + 1;
        write_new(&self.file(next), &serde_json::to_vec(value)?)?;
        // The first write has no predecessor; one that stays is ignored, being older.
        let _ = fs::remove_file(self.file(self.generation));
        self.generation = next;
        Ok(())
    }

    fn file(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("{}.{generation}.json", self.stem))
    }
}

/// Records hold environments, which hold secrets: only their owner reads them.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Like [`read`]; a missing, torn or foreign file is `None`, one that cannot be read now (too many open files, a disk in
/// trouble) is not.
pub(crate) fn read_if_there<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Like [`read`]; whatever cannot be read is `None`.
pub(crate) fn read_if_whole<T: DeserializeOwned>(path: &Path) -> Option<T> {
    read(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_keeps_the_newest_whole_version() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = || {
            let opened = Ledger::open::<u32>(dir.path(), "state").expect("the directory is there");
            opened.map(|(ledger, value)| (ledger.generation, value))
        };
        assert_eq!(open(), None);
        let mut ledger = Ledger::new(dir.path(), "state");
        for value in [7, 8, 9] {
            ledger.write(&value).expect("written");
        }
        assert_eq!(open(), Some((3, 9)));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "older versions are gone");
        fs::write(dir.path().join("state.4.json"), "").expect("torn");
        assert_eq!(open(), Some((4, 9)), "a torn version does not count");
        let (mut ledger, _) = Ledger::open::<u32>(dir.path(), "state").expect("readable").expect("there");
        ledger.write(&10).expect("written");
        assert_eq!(open(), Some((5, 10)));
    }

    #[test]
    fn processes_are_told_apart_by_their_start() {
        let me = ProcessId::of(nix::unistd::getpid()).expect("alive");
        assert!(me.is_alive());
        assert!(!ProcessId { start: me.start + 1, ..me }.is_alive());
        let mut child = std::process::Command::new("sleep").arg("0").spawn().expect("starts");
        let pid = Pid::from_raw(child.id() as i32);
        let process = ProcessId::of(pid).expect("there");
        // Without asking how it ended, which would let its number go.
        let waiting = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), waiting).expect("it ends");
        assert!(ProcessId::of(pid).is_ok() && !process.is_alive(), "what has ended is not alive");
        child.wait().expect("it ended");
    }
}
