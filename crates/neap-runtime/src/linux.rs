//! The machine as it is: Linux, through the spawner, control groups, netlink and a few files.
//!
//! Keeps a few keepers and sandboxes ready, because making them takes several times as long as using them. They
//! are made again only after a quiet moment: while containers start, the machine's cores belong to those.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::attach::attach;
use crate::cgroup::{Group, Tree};
use crate::launch::{Isolation, Launch};
use crate::machine::{CommandOutput, Handle, Machine, Sandbox};
use crate::net::Network;
use crate::pod::{BoxFuture, CommandOptions, CommandSession, Error, ProbeAction};
use crate::probe::Prober;
use crate::record::{self, Exit, ProcessId, Run};
use crate::spawner::sandbox::{NAMESPACES, USER_NAMESPACE};
use crate::spawner::wire::{Cell, Exec, Order, Sandbox as SandboxOrder, StartError, Users};
use crate::spawner::{Keeper, Spawner};
use crate::sys;
use crate::terminal::Master;

/// Keepers and sandboxes that wait for use. Each takes about half a megabyte.
const POOL: usize = 4;
/// No container was started for this long: time to fill the pools.
const QUIET: Duration = Duration::from_millis(250);
/// A machine that cannot make sandboxes now may be able to later.
const POOL_RETRY: Duration = Duration::from_secs(5);
/// Where the numbers of pods' own users begin: between those that systemd gives to containers and those it keeps, room
/// for 4094 pods, which is more than a block of addresses has.
const FIRST_USER: u32 = 0x7000_0000;
/// Of each pod that has its own (Kubernetes' number).
const USERS: u32 = 65536;
/// Where the spawner and the keepers live: not in the group of whoever started neap, or a service manager would end
/// them with it.
const SPAWNER_GROUP: &str = "keepers";
/// Most that is kept of a command's output.
const MAX_OUTPUT: usize = 16 * 1024;
/// A process that was killed is looked at again after this long; it may be in a call that cannot be broken.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at a process that has ended and has not gone.
const ENDING: Duration = Duration::from_millis(20);
/// Milliseconds that a group's last processes may take to be gone.
const REMOVE_TRIES: u32 = 2000;

pub(crate) struct LinuxMachine {
    shared: Arc<Shared>,
    refill: Mutex<Option<AbortOnDropHandle<()>>>,
    closing: CancellationToken,
}

struct Shared {
    isolation: Isolation,
    spawner: Spawner,
    tree: Option<Tree>,
    network: Option<Network>,
    /// Where namespaces are held.
    run_dir: PathBuf,
    keepers: Mutex<VecDeque<ReadyKeeper>>,
    sandboxes: Mutex<VecDeque<Sandbox>>,
    taken: Notify,
    prober: Prober,
}

struct ReadyKeeper {
    keeper: Keeper,
    group: Option<Group>,
}

impl LinuxMachine {
    /// Finds out whether the spawner can work here. Called within an async runtime.
    pub(crate) async fn open(
        isolation: Isolation,
        tree: Option<Tree>,
        network: Option<Network>,
        run_dir: PathBuf,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            isolation,
            spawner: Spawner::new(tree.as_ref().map(|tree| tree.group(SPAWNER_GROUP))),
            tree,
            network,
            run_dir,
            keepers: Mutex::default(),
            sandboxes: Mutex::default(),
            taken: Notify::new(),
            prober: Prober::new(),
        });
        shared.spawner.check().await?;
        Ok(Self { shared, refill: Mutex::default(), closing: CancellationToken::new() })
    }

    pub(crate) fn network(&self) -> Option<&Network> {
        self.shared.network.as_ref()
    }

    /// Keeps what pods of an earlier run own, takes away what nobody owns (namespaces, cables, groups), and only then
    /// begins to make anything new.
    pub(crate) fn begin(&self, sandboxes: &[Sandbox], groups: &[String]) {
        if let Some(network) = &self.shared.network {
            for sandbox in sandboxes {
                network.keep(sandbox.address);
            }
        }
        self.sweep(sandboxes);
        if let Some(tree) = &self.shared.tree {
            for name in tree.groups().into_iter().filter(|name| name != SPAWNER_GROUP && !groups.contains(name)) {
                remove_soon(tree.group(&name));
            }
        }
        let refill = refill(self.shared.clone(), self.closing.clone());
        #[expect(clippy::disallowed_methods, reason = "owned by the machine, aborted with it")]
        let refill = AbortOnDropHandle::new(tokio::spawn(refill));
        *lock(&self.refill) = Some(refill);
    }

    /// Takes away the namespaces and cables that belong to none of these.
    fn sweep(&self, sandboxes: &[Sandbox]) {
        unpin_all(&self.shared.run_dir, |dir| sandboxes.iter().any(|s| s.dir.as_deref() == Some(dir)));
        let Some(network) = &self.shared.network else { return };
        for cable in network.cables().into_iter().filter(|c| sandboxes.iter().all(|s| s.cable.as_ref() != Some(c))) {
            if let Err(error) = network.remove_cable(&cable) {
                tracing::warn!(cable, %error, "cannot remove a cable that no pod owns");
            }
        }
    }

    /// Lets go of what waits for use, and of what was being made for somebody who then gave up; and when no pod is left,
    /// of everything. `sandboxes` are those that pods still have.
    pub(crate) async fn close(&self, sandboxes: &[Sandbox], empty: bool) {
        self.closing.cancel();
        let refill = lock(&self.refill).take();
        if let Some(refill) = refill {
            // It ends after what it is making now.
            let _ = refill.await;
        }
        let ready = std::mem::take(&mut *lock(&self.shared.sandboxes));
        for sandbox in ready {
            if let Err(error) = self.close_sandbox(&sandbox).await {
                tracing::warn!(%error, "a pod network that waited for use cannot be taken away; the next start does");
            }
        }
        // Keepers without an order end when their socket closes, and take their groups with them.
        drop(std::mem::take(&mut *lock(&self.shared.keepers)));
        // The spawner does one thing after another: once it answers this, nothing that was asked before is unfinished.
        if let Err(error) = self.shared.spawner.settle().await {
            tracing::debug!(%error, "the pod spawner does not answer at the end");
        }
        self.sweep(sandboxes);
        if !empty {
            self.shared.network.iter().for_each(Network::leave);
            return;
        }
        if let Some(network) = &self.shared.network
            && let Err(error) = network.close()
        {
            tracing::warn!(%error, "cannot remove the pod network");
        }
        self.shared.spawner.stop().await;
        if let Some(tree) = &self.shared.tree {
            for _ in 0..100 {
                tree.group(SPAWNER_GROUP).remove_if_empty();
                tree.remove_if_empty();
                if tree.groups().is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            tree.remove_if_empty();
        }
    }
}

impl Shared {
    async fn make_keeper(&self, share_pids_of: Option<i32>) -> io::Result<ReadyKeeper> {
        let group = self.tree.as_ref().map(|tree| tree.group(&format!("{:016x}", sys::random_u64())));
        let cell = Cell { isolation: self.isolation, group: group.clone(), share_pids_of };
        let keeper = self.spawner.keeper(cell).await?;
        Ok(ReadyKeeper { keeper, group })
    }

    async fn make_sandbox(&self) -> io::Result<Sandbox> {
        let Some(network) = &self.network else {
            return Ok(Sandbox { dir: None, address: Ipv4Addr::LOCALHOST, cable: None, users: None });
        };
        let address = network.take()?;
        let cable = network.cable(address);
        let dir = self.run_dir.join("ns").join(format!("{:016x}", sys::random_u64()));
        let order = SandboxOrder { dir: dir.clone(), address, gateway: network.gateway(), interface: cable.clone() };
        let sandbox = Sandbox { dir: Some(dir), address, cable: Some(cable), users: None };
        match self.spawner.sandbox(order).await {
            Ok(()) => {
                if let Some(cable) = &sandbox.cable
                    && let Err(error) = network.distrust(cable)
                {
                    tracing::warn!(cable, %error, "a pod that may send raw packets could send them in others' names");
                }
                Ok(sandbox)
            }
            Err(error) => {
                if let Err(error) = remove_sandbox(network, &sandbox) {
                    tracing::warn!(%error, "what was made of a pod's network cannot be taken away; the next start does");
                }
                Err(error)
            }
        }
    }

    /// Numbers for the users of a pod, by its address: as many pods of one neap as have one can have their own.
    async fn add_users(&self, mut sandbox: Sandbox) -> io::Result<Sandbox> {
        let (Some(network), Some(dir)) = (&self.network, &sandbox.dir) else { return Ok(sandbox) };
        let first = FIRST_USER + network.block().offset(sandbox.address) * USERS;
        let order = Users { file: dir.join(USER_NAMESPACE), first, count: USERS };
        match self.spawner.users(order).await {
            Ok(()) => {
                sandbox.users = Some(first);
                Ok(sandbox)
            }
            Err(error) => {
                if let Err(error) = remove_sandbox(network, &sandbox) {
                    tracing::warn!(%error, "what was made of a pod's network cannot be taken away; the next start does");
                }
                let why = format!("this machine cannot give the pod users of its own (hostUsers: false): {error}");
                Err(io::Error::other(why))
            }
        }
    }

    fn pools_are_full(&self) -> bool {
        lock(&self.keepers).len() >= POOL && !self.wants_sandbox()
    }

    fn wants_sandbox(&self) -> bool {
        self.network.is_some() && lock(&self.sandboxes).len() < POOL
    }

    /// One more of each that is short.
    async fn add_to_pools(&self) -> io::Result<()> {
        if self.wants_sandbox() {
            let sandbox = self.make_sandbox().await?;
            lock(&self.sandboxes).push_back(sandbox);
        }
        if lock(&self.keepers).len() < POOL {
            let keeper = self.make_keeper(None).await?;
            lock(&self.keepers).push_back(keeper);
        }
        Ok(())
    }
}

async fn refill(shared: Arc<Shared>, closing: CancellationToken) {
    while !closing.is_cancelled() {
        if let Err(error) = shared.add_to_pools().await {
            tracing::debug!(%error, "cannot make a sandbox ahead of need");
            let _ = tokio::time::timeout(POOL_RETRY, closing.cancelled()).await;
            continue;
        }
        if shared.pools_are_full() {
            let quiet = async {
                shared.taken.notified().await;
                while tokio::time::timeout(QUIET, shared.taken.notified()).await.is_ok() {}
            };
            tokio::select! {
                () = quiet => {}
                () = closing.cancelled() => {}
            }
        }
    }
}

impl Machine for LinuxMachine {
    fn open_sandbox(&self, host_network: bool, own_users: bool) -> BoxFuture<'_, io::Result<Sandbox>> {
        Box::pin(async move {
            if own_users && (host_network || self.shared.network.is_none()) {
                return Err(io::Error::other(
                    "users of its own (hostUsers: false) are only for pods that are walled off from the machine",
                ));
            }
            if host_network {
                return Ok(Sandbox { dir: None, address: Ipv4Addr::LOCALHOST, cable: None, users: None });
            }
            let ready = lock(&self.shared.sandboxes).pop_front();
            self.shared.taken.notify_one();
            let sandbox = match ready {
                Some(sandbox) => sandbox,
                None => self.shared.make_sandbox().await?,
            };
            if own_users { self.shared.add_users(sandbox).await } else { Ok(sandbox) }
        })
    }

    fn close_sandbox<'a>(&'a self, sandbox: &'a Sandbox) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async {
            if sandbox.dir.is_none() {
                return Ok(());
            }
            let (shared, sandbox) = (self.shared.clone(), sandbox.clone());
            // The kernel takes several milliseconds to let an interface go.
            let work = move || shared.network.as_ref().map_or(Ok(()), |network| remove_sandbox(network, &sandbox));
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        })
    }

    fn adopt_sandbox(&self, sandbox: &Sandbox) -> bool {
        match (&sandbox.dir, &self.shared.network) {
            (Some(dir), Some(network)) => {
                let pinned = NAMESPACES.iter().all(|name| is_namespace(&dir.join(name)));
                let wired = sandbox.cable.as_ref().is_some_and(|c| Path::new("/sys/class/net").join(c).exists());
                let mapped = sandbox.users.is_none() || is_namespace(&dir.join(USER_NAMESPACE));
                let stands = pinned && wired && mapped && network.owns(sandbox.address);
                if !stands && let Err(error) = remove_sandbox(network, sandbox) {
                    tracing::warn!(%error, "what is left of a pod's network cannot be taken away");
                }
                stands
            }
            // It lives in the machine's own.
            (None, _) => true,
            // Of a time when pods had networks of their own here.
            (Some(dir), None) => {
                unpin(dir);
                false
            }
        }
    }

    fn hold_pids<'a>(&'a self, dir: &'a Path, join: &'a [PathBuf]) -> BoxFuture<'a, io::Result<i32>> {
        Box::pin(async move {
            let known = record::read_if_whole::<Run>(&dir.join("run.json"));
            if let Some(run) = known {
                if run.boot == record::boot_id() && run.process.is_alive() {
                    return Ok(run.process.pid);
                }
                // Its keeper may have been killed with it; and its record, which says whose group that is, is written anew.
                run.group.into_iter().for_each(remove_soon);
            }
            fs::create_dir_all(dir)?;
            let one = self.shared.make_keeper(None).await?;
            let order = Order { dir: dir.to_owned(), hold: Some(join.to_vec()) };
            match one.keeper.run(&order).await {
                Ok(Ok(run)) => Ok(run.process.pid),
                Ok(Err(error)) => {
                    one.group.into_iter().for_each(remove_soon);
                    Err(io::Error::other(error.message))
                }
                Err(error) => {
                    one.group.into_iter().for_each(remove_soon);
                    Err(error)
                }
            }
        })
    }

    fn start<'a>(
        &'a self,
        dir: &'a Path,
        mut launch: Launch,
        share_pids_of: Option<i32>,
    ) -> BoxFuture<'a, io::Result<Result<Handle, StartError>>> {
        Box::pin(async move {
            let order = Order { dir: dir.to_owned(), hold: None };
            let mut ready = match share_pids_of {
                None => lock(&self.shared.keepers).pop_front(),
                Some(_) => None,
            };
            self.shared.taken.notify_one();
            let mut pooled = ready.is_some();
            loop {
                let one = match ready.take() {
                    Some(one) => one,
                    None => self.shared.make_keeper(share_pids_of).await?,
                };
                launch.group_views = one.group.as_ref().map(Group::views).unwrap_or_default();
                record::write(&dir.join("launch.json"), &launch)?;
                match one.keeper.run(&order).await {
                    Ok(Ok(run)) => return Ok(Ok(Handle { run, dir: dir.to_owned() })),
                    Ok(Err(error)) => {
                        one.group.into_iter().for_each(remove_soon);
                        return Ok(Err(error));
                    }
                    Err(error) => {
                        if let Some(group) = one.group {
                            remove_soon(group);
                        }
                        // One from the pool may have died while it waited.
                        if !pooled || error.kind() == io::ErrorKind::TimedOut {
                            return Err(error);
                        }
                        pooled = false;
                    }
                }
            }
        })
    }

    fn abandon(&self, run: &Run) {
        if let Err(error) = kill(run.process) {
            tracing::warn!(pid = run.process.pid, %error, "cannot end a container that nobody looks after");
        }
        if let Some(group) = &run.group {
            remove_soon(group.clone());
        }
    }

    fn ended<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Exit> {
        Box::pin(async {
            wait_for_end(handle.run.keeper).await;
            let recorded = || record::read_if_whole::<Exit>(&handle.dir.join("exit.json"));
            if let Some(exit) = recorded() {
                // The keeper does not wait for long: of a command that joined the container the machine may still be
                // letting go, a whole view of mounts with it.
                if let Some(group) = handle.run.group.as_ref().filter(|group| group.exists()) {
                    remove_soon(group.clone());
                }
                return exit;
            }
            // The keeper was killed. Without it nobody reads what the container says, and a container that says much
            // would stand still for ever: it ends with its keeper.
            while handle.run.process.is_alive() {
                if let Err(error) = kill(handle.run.process) {
                    tracing::warn!(pid = handle.run.process.pid, %error, "cannot end a container whose keeper is gone");
                }
                if let Some(group) = &handle.run.group {
                    group.kill();
                }
                if tokio::time::timeout(KILL_AGAIN, wait_for_end(handle.run.process)).await.is_ok() {
                    // It is over, or as good as: the group's last may still be on their way.
                    tokio::time::sleep(ENDING).await;
                }
            }
            if let Some(group) = &handle.run.group {
                remove_soon(group.clone());
            }
            let exit = Exit {
                version: record::VERSION,
                code: LOST_EXIT_CODE,
                signal: None,
                oom_killed: false,
                started: Some(handle.run.started),
                finished: crate::clock::now(),
                error: None,
            };
            recorded().unwrap_or(exit)
        })
    }

    fn signal(&self, handle: &Handle, signal: i32) -> io::Result<()> {
        match open_process(handle.run.process)? {
            Some(process) => ignore_gone(sys::pidfd_signal(process.as_fd(), signal)),
            None => Ok(()),
        }
    }

    fn end_if_deaf(&self, handle: &Handle, signal: i32) -> io::Result<()> {
        if handle.run.isolation != Isolation::None && is_immune(&handle.run, signal) {
            return self.signal(handle, libc::SIGKILL);
        }
        Ok(())
    }

    fn exec<'a>(
        &'a self,
        handle: &'a Handle,
        argv: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, io::Result<CommandOutput>> {
        Box::pin(async move {
            let (reader, writer) = io::pipe()?;
            let null = fs::File::open("/dev/null")?;
            let (stdout, stderr) = (OwnedFd::from(writer.try_clone()?), OwnedFd::from(writer));
            let exec = command(handle, argv, false);
            let mut reader = pipe::Receiver::from_owned_fd(reader.into())?;
            let running = self.shared.spawner.exec(exec, [null.into(), stdout, stderr]).await?;
            let mut output = Vec::new();
            let work = async {
                let mut buffer = [0_u8; 4096];
                let reading = async {
                    // To the end, also beyond what is kept: a full pipe would hold the command up.
                    while let Ok(n @ 1..) = reader.read(&mut buffer).await {
                        let room = MAX_OUTPUT.saturating_sub(output.len());
                        output.extend_from_slice(&buffer[..n.min(room)]);
                    }
                };
                let mut reading = std::pin::pin!(reading);
                let mut waiting = std::pin::pin!(running.wait());
                // A command may leave a child behind that holds the pipe: its own end is what counts.
                tokio::select! {
                    () = &mut reading => waiting.await,
                    code = &mut waiting => {
                        let _ = tokio::time::timeout(Duration::from_millis(10), reading).await;
                        code
                    }
                }
            };
            let code = tokio::time::timeout(timeout, work)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the command took too long"))??;
            Ok(CommandOutput { code, output: String::from_utf8_lossy(&output).into_owned() })
        })
    }

    fn talk<'a>(
        &'a self,
        handle: &'a Handle,
        options: &'a CommandOptions,
    ) -> BoxFuture<'a, io::Result<CommandSession>> {
        Box::pin(async move {
            let exec = command(handle, &options.argv, options.terminal);
            let failed = |source| Error::Command { source };
            if options.terminal {
                let (ours, theirs) = sys::socket_pair()?;
                let (stdin, stdout, stderr) = (theirs.try_clone()?, theirs.try_clone()?, theirs);
                let (running, master) =
                    self.shared.spawner.exec_on_terminal(exec, [stdin, stdout, stderr], ours).await?;
                let master = Master::new(master)?;
                let sized = master.clone();
                return Ok(CommandSession {
                    stdin: options.stdin.then(|| Box::pin(master.clone()) as _),
                    stdout: Box::pin(master),
                    stderr: None,
                    resize: Some(Box::new(move |rows, columns| sized.resize(rows, columns))),
                    exit: Box::pin(async move { running.wait().await.map_err(failed) }),
                });
            }
            let ((out, their_out), (err, their_err)) = (io::pipe()?, io::pipe()?);
            let (stdin, their_in): (Option<OwnedFd>, OwnedFd) = if options.stdin {
                let (reader, writer) = io::pipe()?;
                (Some(writer.into()), reader.into())
            } else {
                (None, fs::File::open("/dev/null")?.into())
            };
            let running = self.shared.spawner.exec(exec, [their_in, their_out.into(), their_err.into()]).await?;
            let stdin = stdin.map(pipe::Sender::from_owned_fd).transpose()?;
            Ok(CommandSession {
                stdin: stdin.map(|one| Box::pin(one) as _),
                stdout: Box::pin(pipe::Receiver::from_owned_fd(out.into())?),
                stderr: Some(Box::pin(pipe::Receiver::from_owned_fd(err.into())?)),
                resize: None,
                exit: Box::pin(async move { running.wait().await.map_err(failed) }),
            })
        })
    }

    fn attach<'a>(&'a self, handle: &'a Handle, stdin: bool) -> BoxFuture<'a, io::Result<CommandSession>> {
        Box::pin(async move {
            let launch: Launch = record::read(&handle.dir.join("launch.json"))?;
            attach(&handle.dir, launch.streams, stdin).await
        })
    }

    fn connect<'a>(&'a self, sandbox: &'a Sandbox, port: u16) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let Some(dir) = &sandbox.dir else { return TcpStream::connect(address).await };
            let namespace = dir.join("net");
            let socket = tokio::task::spawn_blocking(move || sys::socket_in(&namespace));
            let socket = socket.await.map_err(io::Error::other)??;
            TcpSocket::from_std_stream(socket.into()).connect(address).await
        })
    }

    fn probe<'a>(
        &'a self,
        address: Ipv4Addr,
        action: &'a ProbeAction,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.shared.prober.check(address, action, timeout))
    }
}

/// What the spawner must know to run a command in a container.
fn command(handle: &Handle, argv: &[String], terminal: bool) -> Exec {
    let run = &handle.run;
    Exec {
        process: run.process,
        isolation: run.isolation,
        group: run.group.clone(),
        dir: handle.dir.clone(),
        argv: argv.to_vec(),
        terminal,
    }
}

fn kill(process: ProcessId) -> io::Result<()> {
    match open_process(process)? {
        Some(process) => ignore_gone(sys::pidfd_signal(process.as_fd(), libc::SIGKILL)),
        None => Ok(()),
    }
}

/// Empties a group and takes it away, beside everything else: what is killed takes a moment to be gone.
fn remove_soon(group: Group) {
    drop(tokio::task::spawn_blocking(move || {
        if !group.remove_within(REMOVE_TRIES) {
            tracing::warn!(group = group.name(), "a control group cannot be removed; the next start tries again");
        }
    }));
}

/// Exit code of a container whose end nobody saw.
const LOST_EXIT_CODE: i32 = 255;

/// A descriptor of the process, if it is still the one meant.
fn open_process(id: ProcessId) -> io::Result<Option<OwnedFd>> {
    match sys::pidfd_open(Pid::from_raw(id.pid)) {
        // The descriptor is opened first: if the number still means the same process now, so does the descriptor.
        Ok(fd) if id.is_alive() => Ok(Some(fd)),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn wait_for_end(id: ProcessId) {
    let end = async {
        let Some(process) = open_process(id)? else { return Ok(()) };
        sys::watched(process)?.readable().await.map(drop)
    };
    if let Err::<(), io::Error>(error) = end.await {
        tracing::warn!(pid = id.pid, %error, "cannot wait for a process; asking once a second instead");
        while id.is_alive() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Whether a first process would not even notice this signal, and nobody else is there to be told.
fn is_immune(run: &Run, signal: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{}/status", run.process.pid)) else { return false };
    let alone = match &run.group {
        Some(group) => group.pids().len() <= 1,
        None => fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.process.pid)).is_ok_and(|c| c.is_empty()),
    };
    alone && unheard(&status, signal)
}

/// From the text of `/proc/PID/status`: neither caught, nor ignored, nor held back to be fetched.
fn unheard(status: &str, signal: i32) -> bool {
    let has = |field: &str| {
        let mask = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
        mask.is_none_or(|mask| mask & (1 << (signal - 1)) != 0)
    };
    !has("SigCgt") && !has("SigIgn") && !has("SigBlk")
}

fn is_namespace(file: &Path) -> bool {
    const NSFS: nix::sys::statfs::FsType = nix::sys::statfs::NSFS_MAGIC;
    nix::sys::statfs::statfs(file).is_ok_and(|s| s.filesystem_type() == NSFS)
}

fn remove_sandbox(network: &Network, sandbox: &Sandbox) -> io::Result<()> {
    if let Some(cable) = &sandbox.cable {
        network.remove_cable(cable)?;
    }
    if let Some(dir) = &sandbox.dir {
        unpin(dir);
    }
    network.release(sandbox.address);
    Ok(())
}

/// Ends the pods of a neap that is no more and takes their groups and namespaces away. Blocks until they are gone.
pub(crate) fn bury(tree: Option<Tree>, data_dir: &Path) {
    if let Some(tree) = tree {
        let groups: Vec<_> = tree.groups().iter().map(|name| tree.group(name)).collect();
        groups.iter().for_each(Group::kill);
        for group in groups {
            if !group.remove_within(REMOVE_TRIES) {
                tracing::warn!(group = group.name(), "a control group of a neap that is no more cannot be removed");
            }
        }
        tree.remove_if_empty();
    }
    // The directory was removed: what is there by its name now may be anybody's.
    let run_dir = data_dir.join("run");
    if [data_dir, &run_dir, &run_dir.join("ns")].into_iter().all(is_roots) {
        unpin_all(&run_dir, |_| false);
    }
}

/// A directory, not a link to one, of the machine's root.
fn is_roots(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == 0)
}

/// Lets go of the namespaces that are held below a directory, but for some.
fn unpin_all(run_dir: &Path, but: impl Fn(&Path) -> bool) {
    let entries = fs::read_dir(run_dir.join("ns")).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|e| e.path()).filter(|dir| !but(dir)).for_each(|dir| unpin(&dir));
}

fn unpin(dir: &Path) {
    for name in NAMESPACES.into_iter().chain([USER_NAMESPACE]) {
        // Not mounted after a reboot, not there after a crash half-way.
        let _ = umount2(&dir.join(name), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_file(dir.join(name));
    }
    let _ = fs::remove_dir(dir);
}

fn ignore_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
