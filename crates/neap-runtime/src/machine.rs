//! What a pod's life needs of the machine, as a trait, so that the life can be tested without one.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::launch::Launch;
use crate::pod::{BoxFuture, CommandOptions, CommandSession, ProbeAction};
use crate::record::{Exit, Run};
use crate::spawner::wire::StartError;

/// The namespaces and the address of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// Where the namespaces are held; `None` where pods live in the machine's own.
    pub dir: Option<PathBuf>,
    pub address: Ipv4Addr,
    /// Name of the machine's end of the cable.
    pub cable: Option<String>,
    /// First of the user numbers that are its own, where its user namespace begins.
    #[serde(default)]
    pub users: Option<u32>,
}

/// What a command in a container said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandOutput {
    pub code: i32,
    /// Standard output and error, mixed as they came, cut at a bound.
    pub output: String,
}

/// One container's run, as the runtime holds it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub run: Run,
    pub dir: PathBuf,
}

/// The machine under the pods.
pub(crate) trait Machine: Send + Sync + 'static {
    /// Namespaces and an address for a new pod; on the machine's own network if it so wishes, with users of its own if
    /// it so wishes.
    fn open_sandbox(&self, host_network: bool, own_users: bool) -> BoxFuture<'_, io::Result<Sandbox>>;
    /// Takes a sandbox away; nothing runs in it any more. Succeeds when it is gone.
    fn close_sandbox<'a>(&'a self, sandbox: &'a Sandbox) -> BoxFuture<'a, io::Result<()>>;
    /// Whether a sandbox of an earlier run still stands. What is left of one that does not is taken away.
    fn adopt_sandbox(&self, sandbox: &Sandbox) -> bool;
    /// The process in whose PID namespace all containers of a pod live, if they share one: made in `dir`, in the pod's
    /// other namespaces, where there is none that lives. It has no program, and cleans up after those who live there.
    fn hold_pids<'a>(&'a self, dir: &'a Path, join: &'a [PathBuf]) -> BoxFuture<'a, io::Result<i32>>;
    /// Starts a container. `launch` is completed with the control group and written into `dir`.
    fn start<'a>(
        &'a self,
        dir: &'a Path,
        launch: Launch,
        share_pids_of: Option<i32>,
    ) -> BoxFuture<'a, io::Result<Result<Handle, StartError>>>;
    /// Ends what is left of a run that cannot be looked after.
    fn abandon(&self, run: &Run);
    /// Resolves when the container has ended.
    fn ended<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Exit>;
    fn signal(&self, handle: &Handle, signal: i32) -> io::Result<()>;
    /// Ends a container that cannot hear `signal`: the kernel drops signals to a first process that has no
    /// handler for them. Only when nothing else runs in the container; otherwise nothing happens.
    fn end_if_deaf(&self, handle: &Handle, signal: i32) -> io::Result<()>;
    /// Runs a command inside a container, as who and with what its first process was started; bounded in time.
    fn exec<'a>(
        &'a self,
        handle: &'a Handle,
        argv: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, io::Result<CommandOutput>>;
    /// Begins a command inside a container, for somebody who talks with it.
    fn talk<'a>(&'a self, handle: &'a Handle, options: &'a CommandOptions)
    -> BoxFuture<'a, io::Result<CommandSession>>;
    /// The streams of a container's own process, for somebody who attaches to them.
    fn attach<'a>(&'a self, handle: &'a Handle, stdin: bool) -> BoxFuture<'a, io::Result<CommandSession>>;
    /// A connection to a port on the loopback interface of a pod.
    fn connect<'a>(&'a self, sandbox: &'a Sandbox, port: u16) -> BoxFuture<'a, io::Result<TcpStream>>;
    /// One try of a probe that goes over the network. `Err` says why the container is not well.
    fn probe<'a>(
        &'a self,
        address: Ipv4Addr,
        action: &'a ProbeAction,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<(), String>>;
}
