//! What is written down so that another run of the runtime finds its way: formats, and files replaced in one step.
//!
//! Files are not flushed to the platter: they tell about processes, and those do not outlive the machine's memory
//! either. A file that a power cut left torn is treated as missing. Every record carries the version of its format.

use std::fs;
use std::io;
use std::path::Path;

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
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything; the fields after the last one are numbers. Field 22 is the start.
        let start = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has no start time"))?;
        Ok(Self { pid: pid.as_raw(), start })
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::of(Pid::from_raw(self.pid)).is_ok_and(|now| now == *self)
    }
}

pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Replaces the file in one step: a reader sees the old content or the new.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_bytes(path, &serde_json::to_vec(value)?)
}

pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    // Records hold environments, which hold secrets.
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&aside, path)
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Like [`read`]; a missing, torn or foreign file is `None`.
pub(crate) fn read_if_whole<T: DeserializeOwned>(path: &Path) -> Option<T> {
    read(path).ok()
}
