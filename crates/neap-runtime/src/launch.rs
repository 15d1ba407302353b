//! What the spawner must know to make one container process. Written to a file by the runtime, read by the keeper
//! and by the container's own first process; nothing here is decided there.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::seccomp::Program;

/// How far a container is walled off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Isolation {
    /// All namespaces but the user's; made by root.
    Full,
    /// Mount, PID, IPC, UTS namespaces inside a user namespace; the host's network.
    User,
    /// A plain process of this machine.
    None,
}

/// One run of one container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Format of this file; a keeper refuses what it does not know.
    pub version: u8,
    pub isolation: Isolation,
    pub hostname: String,
    /// Namespaces of the pod to join: `net`, `ipc`, `uts`.
    pub join: Vec<PathBuf>,
    /// Messages and shared memory are the machine's.
    pub host_ipc: bool,
    /// The container's users are nobody outside.
    #[serde(default)]
    pub users: Option<Users>,
    /// Images whose content is mounted; made before `mounts`, which name their places.
    #[serde(default)]
    pub images: Vec<ImageMount>,
    pub root: Root,
    pub read_only_root: bool,
    /// Everything under /proc and /sys visible and writable, all devices.
    pub privileged: bool,
    /// In order; a later one may lie inside an earlier one.
    pub mounts: Vec<Bind>,
    /// The container's own control groups, and where below /sys/fs/cgroup it sees them.
    pub group_views: Vec<(PathBuf, PathBuf)>,
    /// On the kernel's scale.
    pub oom_score: u16,
    pub process: Process,
    #[serde(default)]
    pub streams: Streams,
    pub limits: Limits,
    pub log: LogFiles,
}

pub(crate) const LAUNCH_VERSION: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Root {
    /// Layers, lowest first, under a writable directory; mounted at `target` in the container's own view.
    Overlay { lower: Vec<PathBuf>, upper: PathBuf, work: PathBuf, target: PathBuf, user_xattr: bool },
    /// No change of root: programs and libraries are looked up in this directory, all else is the machine's.
    None(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub source: PathBuf,
    /// Inside `source`, never led out of it by links.
    pub sub_path: Option<PathBuf>,
    pub target: PathBuf,
    pub read_only: bool,
    /// Submounts of the source come along.
    pub recursive: bool,
    /// Part of an image: nothing is made in it, nothing in it can be run.
    #[serde(default)]
    pub image: bool,
}

/// A user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Users {
    pub namespace: PathBuf,
    /// What root inside is outside.
    pub first: u32,
}

/// An image, merged at `target`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageMount {
    /// Lowest first.
    pub layers: Vec<PathBuf>,
    pub target: PathBuf,
}

/// A process inside a container: the first one, or one that joins later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    /// As the image or the specification says it: `user[:group]` by name or number. Looked up inside the root.
    pub user: String,
    pub non_root: bool,
    /// Groups beside those that the image gives the user.
    pub groups: Vec<u32>,
    /// Bits of the capabilities that remain possible.
    pub capabilities: u64,
    pub no_new_privileges: bool,
    /// The system calls it may make; empty for all.
    pub seccomp: Program,
}

/// What the first process's standard streams are, beside the pipes to its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Streams {
    /// The input is at its end.
    #[default]
    Output,
    /// `once`: until the first who attached leaves.
    Input { once: bool },
    /// One for all three. `input`: it takes what is typed, `once` as above.
    Terminal { input: bool, once: bool },
}

/// `None` means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Relative weight in cgroup v1 units (1024 = one core's worth of request).
    pub cpu_shares: u64,
    /// Microseconds per [`crate::cgroup::CPU_PERIOD_US`].
    pub cpu_quota_us: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogFiles {
    /// The newest file; older ones get `.1`, `.2`, … appended.
    pub path: PathBuf,
    pub max_bytes: u64,
    /// How many files in all.
    pub keep: u32,
}
