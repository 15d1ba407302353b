//! The words between a kubelet and a machine: what a pod is, and what became of it.
//!
//! Everything here is plain data plus one trait. A pod is named by its UID; every call may be repeated.
//! This module never touches the kernel, a registry or an API object.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Stands for the pod's own address in commands, arguments, environment variables and sub-paths. Who writes the
/// specification cannot know the address: the runtime makes the network, and puts the address in at the start.
pub const POD_IP: &str = "$(neap.dev/pod-ip)";

/// A pod's UID as the API server gave it; unique for ever on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodId(pub String);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything a machine must know to run a pod. Config-maps, secrets and env references are already resolved.
/// What is added later has a default, so that pods outlive the upgrade that adds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSpec {
    pub id: PodId,
    pub name: String,
    pub namespace: String,
    pub hostname: String,
    pub init_containers: Vec<ContainerSpec>,
    pub containers: Vec<ContainerSpec>,
    pub volumes: BTreeMap<String, Volume>,
    pub restart: RestartPolicy,
    pub dns: Dns,
    pub share_process_namespace: bool,
    pub host_network: bool,
    /// The machine's processes are seen, and the containers' are among them.
    #[serde(default)]
    pub host_pid: bool,
    #[serde(default)]
    pub host_ipc: bool,
    /// What a container may take to end after SIGTERM before SIGKILL.
    pub grace: Duration,
    /// Labels that the owner wants back from `list` after a restart (never interpreted here).
    pub labels: BTreeMap<String, String>,
    /// Further lines of `/etc/hosts`: an address and its names.
    #[serde(default)]
    pub host_aliases: Vec<(IpAddr, Vec<String>)>,
    /// Its users are nobody outside of it: a user namespace, with numbers that no other pod has.
    #[serde(default)]
    pub own_users: bool,
    /// Group that the pod's own volumes belong to, and every process of the pod to it.
    #[serde(default)]
    pub fs_group: Option<u32>,
    /// Further groups of every process.
    #[serde(default)]
    pub supplemental_groups: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// Reference as written, with a digest where one was resolved.
    pub image: String,
    pub pull: PullPolicy,
    /// Registry credentials to try, most specific first.
    pub credentials: Vec<Credentials>,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty (or when `command` is given).
    pub args: Vec<String>,
    /// In order; a later name wins. `$(NAME)` references are already expanded.
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    pub user: Option<i64>,
    pub group: Option<i64>,
    pub run_as_non_root: bool,
    pub read_only_root: bool,
    pub privileged: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub resources: Resources,
    /// How soon it goes when the machine is short of memory: the highest first, 1000 at most.
    #[serde(default)]
    pub oom_score: Option<u16>,
    pub mounts: Vec<Mount>,
    pub ports: Vec<Port>,
    pub startup: Option<Probe>,
    pub readiness: Option<Probe>,
    pub liveness: Option<Probe>,
    /// Of an init container: it does not end, but runs beside the others and ends after them.
    #[serde(default)]
    pub sidecar: bool,
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Its standard input is open for whoever attaches; otherwise it is at its end from the beginning.
    #[serde(default)]
    pub stdin: bool,
    /// The input ends when the first who attached to it leaves.
    #[serde(default)]
    pub stdin_once: bool,
    /// A terminal in place of the streams.
    #[serde(default)]
    pub terminal: bool,
    /// Run right after the start; the container counts as started only then, and is ended when it fails.
    #[serde(default)]
    pub post_start: Option<Hook>,
    /// Ran to its end before SIGTERM is sent, within the grace period.
    #[serde(default)]
    pub pre_stop: Option<Hook>,
    /// File inside the container whose end becomes the termination message.
    pub termination_message_path: PathBuf,
    /// Take the log's last lines when the file is empty and the container failed.
    pub termination_message_from_logs: bool,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// What programs need, and nothing that reaches for the machine.
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON format, by its path below the runtime's directory of profiles.
    Local(PathBuf),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// A user name and password for registries whose host (with an optional path prefix) begins with `registry`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub registry: String,
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}@{}, password hidden)", self.username, self.registry)
    }
}

/// Limits and requests; `None` means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_request_milli: Option<u64>,
    pub cpu_limit_milli: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<u64>,
    pub pids_limit: Option<u64>,
    /// Bytes of the writable layer and the logs.
    #[serde(default)]
    pub storage_limit: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub volume: String,
    pub path: PathBuf,
    pub sub_path: Option<PathBuf>,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Volume {
    /// A directory that lives as long as the pod; `memory` puts it on a tmpfs. `size_limit` in bytes.
    EmptyDir {
        memory: bool,
        size_limit: Option<u64>,
    },
    /// Files with content and mode, relative paths; written anew when `ensure` brings other content.
    Files(BTreeMap<PathBuf, VolumeFile>),
    HostPath(PathBuf),
    /// What an image holds, read-only and without programs that can be run.
    Image {
        reference: String,
        pull: PullPolicy,
        credentials: Vec<Credentials>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFile {
    pub content: Vec<u8>,
    pub mode: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub container_port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub nameservers: Vec<IpAddr>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub action: ProbeAction,
    pub initial_delay: Duration,
    /// Time between tries once the first verdict is in. Until the first success tries come at millisecond cadence.
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
    /// What the container may take to end when this probe ends it, where that differs from the pod's.
    #[serde(default)]
    pub grace: Option<Duration>,
}

/// What is done at a turn of a container's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    Act(ProbeAction),
    Sleep(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    Exec(Vec<String>),
    Http { port: u16, path: String, https: bool, host: Option<String>, headers: Vec<(String, String)> },
    Tcp { port: u16 },
    Grpc { port: u16, service: String },
}

/// What is known of a pod now. A newer status replaces an older one whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodStatus {
    pub id: PodId,
    pub name: String,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    pub phase: PodPhase,
    /// Every container is running and passes its readiness probe.
    pub ready: bool,
    pub ip: Option<IpAddr>,
    /// In `process` mode: port name to the real port on `ip`. Empty where the pod has its own network.
    pub ports: BTreeMap<String, u16>,
    pub init_containers: Vec<ContainerStatus>,
    pub containers: Vec<ContainerStatus>,
    /// Why the machine ended the pod, if it did.
    pub evicted: Option<String>,
    /// When the runtime took the pod, when its sandbox (network, cgroup) stood.
    pub started: Option<jiff::Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub name: String,
    pub state: ContainerState,
    pub last: Option<Terminated>,
    /// What is wrong with this run, as far as its probes and hooks tell.
    pub trouble: Option<Trouble>,
    pub ready: bool,
    /// The startup probe (if any) has passed.
    pub started: bool,
    pub restarts: u32,
    pub image: String,
    /// `repository@sha256:…` of what really runs, once known.
    pub image_id: String,
    /// The same of the images that are volumes of it.
    #[serde(default)]
    pub volume_images: Vec<String>,
}

/// In words for whoever looks why a container is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// A probe failed, and what it found.
    Unhealthy(String),
    /// It is being ended for that.
    Ending(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// `ContainerCreating`, `PodInitializing`, `ErrImagePull`, `ImagePullBackOff`, `CrashLoopBackOff`, `CreateContainerError`, ….
    Waiting {
        reason: String,
        message: String,
    },
    Running {
        since: jiff::Timestamp,
    },
    Terminated(Terminated),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terminated {
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ….
    pub reason: String,
    pub message: String,
    pub started: Option<jiff::Timestamp>,
    pub finished: jiff::Timestamp,
}

/// What the containers of a pod have used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub id: PodId,
    pub name: String,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// By the container's name.
    pub containers: Vec<(String, Usage)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Since its start.
    pub cpu: Duration,
    /// Bytes that could not be taken from it now: without the files' pages that nobody has touched lately.
    pub memory_bytes: u64,
}

/// Which part of a container's log to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// The instance before the last restart.
    pub previous: bool,
    pub follow: bool,
    /// Last lines only.
    pub tail: Option<u64>,
    pub since: Option<jiff::Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
}

/// A command that somebody wants to talk with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandOptions {
    pub argv: Vec<String>,
    /// A terminal in place of the streams.
    pub terminal: bool,
    /// Otherwise its input is at the end from the beginning.
    pub stdin: bool,
}

/// A command running in a container, and the ends of its streams. Dropping `exit` ends the command; of a container that
/// somebody attached to it ends only the attachment.
pub struct CommandSession {
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// With a terminal: all that it shows.
    pub stdout: Pin<Box<dyn AsyncRead + Send>>,
    pub stderr: Option<Pin<Box<dyn AsyncRead + Send>>>,
    /// Tells the terminal its size: rows, columns. Missing without a terminal.
    pub resize: Option<Resize>,
    /// The command's exit code; 128 and the signal's number when a signal ended it.
    pub exit: BoxFuture<'static, Result<i32, Error>>,
}

pub type Resize = Box<dyn Fn(u16, u16) -> std::io::Result<()> + Send + Sync>;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub type LogStream = Pin<Box<dyn futures::Stream<Item = Result<bytes::Bytes, Error>> + Send>>;

/// Runs pods on this machine. Keyed by [`PodId`] and idempotent: `ensure` of a pod that runs changes only what may
/// change (files of volumes), `remove` of a pod that is gone succeeds. Progress is reported by `changes`, never by a call that waits.
pub trait PodRuntime: Send + Sync + 'static {
    /// Takes the pod; returns as soon as it is recorded on disk. Pulling, creating, probing, restarting go on behind.
    fn ensure(&self, pod: PodSpec) -> BoxFuture<'_, Result<(), Error>>;
    /// preStop, SIGTERM, grace, SIGKILL, then everything but the logs is taken away. Resolves when the pod is gone.
    fn remove(&self, id: &PodId, grace: Duration) -> BoxFuture<'_, Result<(), Error>>;
    /// Every pod that is here, those adopted after a restart among them.
    fn list(&self) -> Vec<PodStatus>;
    fn status(&self, id: &PodId) -> Option<PodStatus>;
    /// Pods whose status changed. A slow reader may see `Lagged` and must then read `list` again.
    fn changes(&self) -> tokio::sync::broadcast::Receiver<PodId>;
    /// The log of one container, also after the pod is gone, as long as the log files are kept.
    fn logs(&self, id: &PodId, container: &str, options: LogOptions) -> BoxFuture<'_, Result<LogStream, Error>>;
    /// Begins a command inside a running container, with its user, groups, limits and environment.
    fn exec(
        &self,
        id: &PodId,
        container: &str,
        command: CommandOptions,
    ) -> BoxFuture<'_, Result<CommandSession, Error>>;
    /// The streams of a running container's own process, from now on. Streams that the container does not have open are
    /// missing. A reader that is too slow for a container without a terminal is cut off: nothing holds that up.
    fn attach(&self, id: &PodId, container: &str, stdin: bool) -> BoxFuture<'_, Result<CommandSession, Error>>;
    /// A connection to a port of the pod as its own processes would make it, over its loopback interface.
    fn connect(&self, id: &PodId, port: u16) -> BoxFuture<'_, Result<TcpStream, Error>>;
    /// What running containers have used so far, where the machine counts it by control groups.
    fn usage(&self) -> BoxFuture<'_, Vec<PodUsage>>;
    /// Ends the pod's containers for good and keeps the reason in its status. Nothing happens to a pod that is gone.
    fn evict(&self, id: &PodId, why: &str);
    /// What this pod asks for and does not get here, in one sentence.
    fn unkept(&self, _pod: &PodSpec) -> Option<String> {
        None
    }
    /// One sentence: which runtime, which isolation.
    fn describe(&self) -> String;
}

/// What a call on the runtime may answer. What goes wrong later is in the [`PodStatus`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("pod {0} is not on this machine")]
    NoSuchPod(PodId),
    #[error("pod {pod} has no container {container}")]
    NoSuchContainer { pod: PodId, container: String },
    #[error("pod {pod} has no log of an earlier run of container {container}")]
    NoPreviousLog { pod: PodId, container: String },
    #[error("container {container} of pod {pod} does not run")]
    NotRunning { pod: PodId, container: String },
    #[error("the pod specification is not usable: {0}")]
    Invalid(String),
    #[error("cannot {what} at {path}")]
    Disk { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot {what} for pod {pod}")]
    Machine { what: &'static str, pod: PodId, source: std::io::Error },
    #[error("cannot connect to port {port} of pod {pod}")]
    Connect { port: u16, pod: PodId, source: std::io::Error },
    #[error("how the command ended is not known")]
    Command { source: std::io::Error },
    #[error("the runtime is shutting down")]
    ShuttingDown,
}
