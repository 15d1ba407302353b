//! The pod runtime itself: opens the machine as far as it allows, takes pods, adopts those of an earlier run.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::image::{self, Images, Layout, StoreError};
use crate::launch::{Isolation, Launch};
use crate::lifecycle::state::{Loaded, PodCell};
use crate::lifecycle::{World, pod, storage};
use crate::linux::LinuxMachine;
use crate::logs::read::LogReader;
use crate::logs::shelf::Shelf;
use crate::machine::{Handle, Machine};
use crate::net::own::OwnPorts;
use crate::net::{Network, NetworkError, PortMap};
use crate::oci::{self, Bundle};
use crate::pod::{
    BoxFuture, CommandOptions, CommandSession, ContainerSpec, ContainerState, Error, LogOptions, LogStream, PodId,
    PodRuntime, PodSpec, PodStatus, PodUsage,
};
use crate::record::{self, Run};
use crate::{clock, linux, mode};

/// Status changes that a slow reader may be behind before it must read everything again.
const CHANGES: usize = 1024;
/// How often a followed log is looked at when nothing is new.
const FOLLOW_STEP: Duration = Duration::from_millis(100);

/// Which runtime is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The best one that this machine allows.
    #[default]
    Auto,
    /// Root, with every namespace, a network per pod, limits.
    Container,
    /// Namespaces of an ordinary user; the machine's network.
    Rootless,
    /// No isolation.
    Process,
}

/// What the runtime must be told.
#[derive(Clone)]
pub struct Config {
    /// Everything durable lives below it: `pods`, `logs`, `images`, `run`; and `seccomp`, where profiles may be put
    /// that containers name.
    pub data_dir: PathBuf,
    pub mode: Mode,
    /// Range for pod addresses, like `198.19.0.0/16`; a block of it is claimed.
    pub pod_cidr: String,
    /// The layout is chosen by the mode.
    pub images: image::Config,
}

/// Why the runtime cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {what} {path}")]
    Disk { what: &'static str, path: PathBuf, source: io::Error },
    #[error("--runtime {mode} does not work on this machine: {why}")]
    Unfit { mode: &'static str, why: String },
    #[error("cannot set up the pod network")]
    Network(#[from] NetworkError),
    #[error("cannot start the pod spawner")]
    Spawner(#[source] io::Error),
    #[error("cannot open the image store")]
    Images(#[from] StoreError),
}

type Pods = HashMap<PodId, Arc<PodCell>>;

/// Pods on this machine.
pub struct Runtime {
    world: Arc<World>,
    machine: Arc<LinuxMachine>,
    images: Images,
    description: String,
    choice: mode::Choice,
    /// Whether containers can be held to their limits.
    limits: bool,
    own_ports: OwnPorts,
    pods_dir: PathBuf,
    pods: Arc<Mutex<Pods>>,
    changes: broadcast::Sender<PodId>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Runtime {
    /// Opens the runtime and adopts what runs already. Called within an async runtime, in a program whose `main`
    /// begins with [`crate::spawner::main_if_requested`].
    pub async fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        // Each container and each of its streams costs one.
        tracing::debug!(open_files = crate::sys::raise_open_files(), "the limit of open files is raised");
        let data_dir = made(&config.data_dir)?;
        let (choice, network) = choose(&config, &data_dir)?;
        let run_dir = made(&data_dir.join("run"))?;
        // Environments and volumes hold secrets.
        let pods_dir = closed(&data_dir.join("pods"))?;
        let logs_dir = made(&data_dir.join("logs"))?;
        // Layers hold programs that run as root wherever they are run; other users of the machine must not reach them
        // (CVE-2021-41103).
        let images_dir = closed(&data_dir.join("images"))?;
        let tree = choice.tree(&data_dir);
        let description = choice.describe(network.as_ref().map(|n| n.block().to_string()), tree.as_ref());
        let tree_is_there = tree.is_some();
        let layout = match choice.isolation {
            Isolation::Full => Layout::Overlay,
            Isolation::User => Layout::UserOverlay,
            Isolation::None => Layout::Merged,
        };
        let images = Images::open(images_dir, image::Config { layout, ..config.images })?;
        let machine = LinuxMachine::open(choice.isolation, tree, network, run_dir).await.map_err(OpenError::Spawner)?;
        let machine = Arc::new(machine);
        let world = Arc::new(World {
            machine: machine.clone(),
            images: Arc::new(images.clone()),
            isolation: choice.isolation,
            logs: Arc::new(Shelf::new(logs_dir, pods_dir.clone())),
            profiles: data_dir.join("seccomp"),
        });
        let (changes, _) = broadcast::channel(CHANGES);
        let runtime = Arc::new(Self {
            world,
            machine,
            images,
            description,
            limits: tree_is_there,
            choice,
            own_ports: OwnPorts::default(),
            pods_dir,
            pods: Arc::default(),
            changes,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        runtime.adopt()?;
        let (pods, shutdown) = (runtime.pods.clone(), runtime.shutdown.clone());
        runtime.tasks.spawn(async move {
            let here = || pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            tokio::select! {
                () = storage::watch(here, data_dir) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(runtime)
    }

    /// The images of this machine.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The logs of this machine.
    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.world.logs
    }

    /// The machine as pods see it, where they have a network of their own: services for pods listen here.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.machine.network().map(Network::gateway)
    }

    /// Closes the machine to its pods but for these ports of [`Self::gateway`]. Until this is called pods reach whatever
    /// listens on the machine. Where pods have no network of their own nothing can be closed.
    ///
    /// # Errors
    /// The kernel does not take the packet filter.
    pub fn guard(&self, tcp: &[u16], udp: &[u16]) -> io::Result<()> {
        self.machine.network().map_or(Ok(()), |network| network.guard(tcp, udp))
    }

    /// Replaces the ports by which pods may reach each other beside those that they listen on, and those by which each may
    /// reach itself. Where pods have no network of their own there is nothing to map.
    ///
    /// # Errors
    /// The kernel does not take it; the next call begins anew.
    pub fn map_ports(&self, wanted: PortMap, own: &PortMap) -> io::Result<()> {
        let Some(network) = self.machine.network() else { return Ok(()) };
        let cells: Vec<_> = self.pods().values().cloned().collect();
        let sandboxes = cells.iter().filter_map(|cell| cell.read(|s| s.record.sandbox.clone()));
        let inside = self.own_ports.set(sandboxes.filter_map(|s| Some((s.dir?, s.address))), own);
        network.map_ports(wanted).and(inside)
    }

    /// Writes a running container as an OCI bundle into an empty directory, for another runtime to run beside it: in the
    /// pod's namespaces, from the same layers, with a writable layer of its own.
    ///
    /// # Errors
    /// It does not run, or has something that no bundle can say.
    pub fn bundle(&self, id: &PodId, container: &str, dir: &Path) -> Result<Bundle, Error> {
        let handle = self.running(id, container)?;
        let failed = |source| Error::Machine { what: "write a bundle", pod: id.clone(), source };
        let launch: Launch = record::read(&handle.dir.join("launch.json")).map_err(failed)?;
        oci::write(dir, &launch).map_err(failed)
    }

    /// Stops looking after the pods; they run on, and the next runtime adopts them. When there are none, nothing is
    /// left on the machine but the data directory.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let cells: Vec<_> = self.pods().values().cloned().collect();
        let sandboxes: Vec<_> = cells.iter().filter_map(|c| c.read(|s| s.record.sandbox.clone())).collect();
        self.machine.close(&sandboxes, cells.is_empty()).await;
    }

    fn adopt(&self) -> Result<(), OpenError> {
        // A directory that cannot be read is not an empty one: what runs would be taken away.
        let fault = |source| OpenError::Disk { what: "read the pods of", path: self.pods_dir.clone(), source };
        let entries = fs::read_dir(&self.pods_dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(fault)?;
        let mut cells = Vec::new();
        let mut groups = Vec::new();
        for dir in entries.iter().map(fs::DirEntry::path) {
            let fault = |source| OpenError::Disk { what: "read the record of the pod in", path: dir.clone(), source };
            match PodCell::load(&dir, &self.world.logs, self.changes.clone()).map_err(fault)? {
                Loaded::Pod(cell) => {
                    groups.extend(pod::live_groups(&cell));
                    cells.push(cell);
                }
                Loaded::Foreign(format) => {
                    groups.extend(groups_in(&dir));
                    tracing::error!(
                        dir = %dir.display(),
                        format,
                        "leaving a pod alone that another version of neap wrote down; start that version to end it"
                    );
                }
                Loaded::Nothing => {
                    tracing::warn!(dir = %dir.display(), "removing what is left of a pod without a readable record");
                    crate::volumes::release(&dir);
                    let _ = crate::trees::remove(&dir);
                }
            }
        }
        let sandboxes: Vec<_> = cells.iter().filter_map(|c| c.read(|s| s.record.sandbox.clone())).collect();
        self.own_ports.adopt(sandboxes.iter().filter_map(|s| s.dir.clone()));
        self.machine.begin(&sandboxes, &groups);
        for cell in cells {
            self.describe(&cell);
            self.start(cell);
        }
        Ok(())
    }

    fn describe(&self, cell: &PodCell) {
        if let Err(error) = self.world.logs.describe(&cell.spec()) {
            tracing::warn!(pod = %cell.id, %error, "cannot write down whose logs these are");
        }
    }

    fn start(&self, cell: Arc<PodCell>) {
        self.pods().insert(cell.id.clone(), cell.clone());
        let (world, pods, shutdown) = (self.world.clone(), self.pods.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = pod::live_on(&world, &cell) => {
                    pods.lock().unwrap_or_else(PoisonError::into_inner).remove(&cell.id);
                    cell.announce_gone();
                }
                () = shutdown.cancelled() => {}
            }
        });
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &PodId) -> Result<Arc<PodCell>, Error> {
        self.pods().get(id).cloned().ok_or_else(|| Error::NoSuchPod(id.clone()))
    }

    fn take(&self, spec: PodSpec) -> Result<(), Error> {
        if self.shutdown.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        check(&spec)?;
        let dir = self.pods_dir.join(&spec.id.0);
        let disk = |source| Error::Disk { what: "write down the pod", path: dir.clone(), source };
        // Bound before the match: the map must not stay locked while a pod is written down.
        let known = self.pods().get(&spec.id).cloned();
        if let Some(cell) = known {
            if cell.stop.borrow().is_some() {
                return Err(Error::Invalid(format!("pod {} is being removed", cell.id)));
            }
            let old = cell.spec();
            let new = renewed(&old, spec);
            if new == *old {
                return Ok(());
            }
            let volumes_changed = new.volumes != old.volumes;
            cell.replace_spec(new).map_err(disk)?;
            if volumes_changed {
                let root = self.world.isolation == Isolation::Full;
                cell.prepare_volumes(root).map_err(disk)?;
            }
            return Ok(());
        }
        let log_dir = self.world.logs.dir_of(&spec);
        let cell = PodCell::create(dir.clone(), log_dir, spec, self.changes.clone()).map_err(disk)?;
        self.start(cell.clone());
        // After the start: nobody waits for it.
        self.describe(&cell);
        Ok(())
    }

    /// The log file of a container's current (or previous) run, and whether that run may still write.
    fn find_log(
        &self,
        id: &PodId,
        container: &str,
        previous: bool,
    ) -> Result<(PathBuf, Option<Arc<PodCell>>, u32), Error> {
        let cell = self.pods().get(id).cloned();
        let dir = match &cell {
            Some(cell) => cell.log_dir.clone(),
            None => self.world.logs.find(id).ok_or_else(|| Error::NoSuchPod(id.clone()))?,
        };
        let known = cell.as_ref().is_some_and(|c| c.read(|s| s.containers.contains_key(container)));
        let dir = dir.join(container);
        if !is_plain(container) || !known && !dir.is_dir() {
            return Err(Error::NoSuchContainer { pod: id.clone(), container: container.to_owned() });
        }
        let mut runs: Vec<u32> = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        runs.sort_unstable();
        let newest = runs.pop();
        let wanted = if previous {
            runs.pop().ok_or_else(|| Error::NoPreviousLog { pod: id.clone(), container: container.to_owned() })?
        } else {
            newest.unwrap_or(0)
        };
        Ok((dir.join(format!("{wanted}.log")), cell.filter(|_| !previous), wanted))
    }
}

impl Drop for Runtime {
    /// Pods run on, but nobody here looks after them any more.
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl PodRuntime for Runtime {
    fn ensure(&self, pod: PodSpec) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.take(pod) })
    }

    fn remove(&self, id: &PodId, grace: Duration) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(async move {
            let Ok(cell) = self.find(&id) else { return Ok(()) };
            cell.remove(clock::now().saturating_add(grace).unwrap_or(Timestamp::MAX));
            let mut gone = cell.gone.subscribe();
            tokio::select! {
                _ = gone.wait_for(|gone| *gone) => Ok(()),
                () = self.shutdown.cancelled() => Err(Error::ShuttingDown),
            }
        })
    }

    fn list(&self) -> Vec<PodStatus> {
        let cells: Vec<_> = self.pods().values().cloned().collect();
        cells.iter().map(|c| c.status()).collect()
    }

    fn status(&self, id: &PodId) -> Option<PodStatus> {
        Some(self.find(id).ok()?.status())
    }

    fn changes(&self) -> broadcast::Receiver<PodId> {
        self.changes.subscribe()
    }

    fn logs(&self, id: &PodId, container: &str, options: LogOptions) -> BoxFuture<'_, Result<LogStream, Error>> {
        let (id, container) = (id.clone(), container.to_owned());
        Box::pin(async move {
            let (path, cell, run) = self.find_log(&id, &container, options.previous)?;
            let follow = options.follow.then_some(()).and(cell);
            Ok(stream_log(path, options, follow, container, run, self.shutdown.clone()))
        })
    }

    fn exec(
        &self,
        id: &PodId,
        container: &str,
        command: CommandOptions,
    ) -> BoxFuture<'_, Result<CommandSession, Error>> {
        let (id, container) = (id.clone(), container.to_owned());
        Box::pin(async move {
            let handle = self.running(&id, &container)?;
            self.machine.talk(&handle, &command).await.map_err(|source| Error::Machine {
                what: "run a command",
                pod: id,
                source,
            })
        })
    }

    fn attach(&self, id: &PodId, container: &str, stdin: bool) -> BoxFuture<'_, Result<CommandSession, Error>> {
        let (id, container) = (id.clone(), container.to_owned());
        Box::pin(async move {
            let handle = self.running(&id, &container)?;
            let failed = |source| Error::Machine { what: "attach to a container", pod: id.clone(), source };
            self.machine.attach(&handle, stdin).await.map_err(failed)
        })
    }

    fn connect(&self, id: &PodId, port: u16) -> BoxFuture<'_, Result<TcpStream, Error>> {
        let id = id.clone();
        Box::pin(async move {
            let cell = self.find(&id)?;
            let spec = cell.spec();
            let (sandbox, ports) = cell.read(|s| (s.record.sandbox.clone(), s.record.ports.clone()));
            let failed = |source| Error::Connect { port, pod: id.clone(), source };
            let sandbox = sandbox.ok_or_else(|| failed(io::Error::other("the pod has no network yet")))?;
            // Where pods share the machine's network, the port is called otherwise there.
            let declared = spec.containers.iter().flat_map(|c| &c.ports).find(|p| p.container_port == port);
            let real = declared.and_then(|p| ports.get(&p.name)).copied().unwrap_or(port);
            self.machine.connect(&sandbox, real).await.map_err(failed)
        })
    }

    fn usage(&self) -> BoxFuture<'_, Vec<PodUsage>> {
        let cells: Vec<_> = self.pods().values().cloned().collect();
        let look = move || {
            let of = |cell: &Arc<PodCell>| {
                let spec = cell.spec();
                let groups: Vec<_> = cell.read(|s| {
                    let running = s.containers.iter().filter_map(|(name, live)| Some((name, live.handle.as_ref()?)));
                    running.filter_map(|(name, handle)| Some((name.clone(), handle.run.group.clone()?))).collect()
                });
                PodUsage {
                    id: spec.id.clone(),
                    name: spec.name.clone(),
                    namespace: spec.namespace.clone(),
                    labels: spec.labels.clone(),
                    containers: groups.into_iter().filter_map(|(name, group)| Some((name, group.usage()?))).collect(),
                }
            };
            cells.iter().map(of).filter(|pod| !pod.containers.is_empty()).collect()
        };
        Box::pin(async move { tokio::task::spawn_blocking(look).await.unwrap_or_default() })
    }

    fn evict(&self, id: &PodId, why: &str) {
        if let Ok(cell) = self.find(id) {
            cell.evict(why.to_owned(), clock::now());
        }
    }

    fn unkept(&self, pod: &PodSpec) -> Option<String> {
        self.choice.unkept(pod, self.limits)
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

impl Runtime {
    fn running(&self, id: &PodId, container: &str) -> Result<Handle, Error> {
        let (pod, container) = (id.clone(), container.to_owned());
        match self.find(id)?.read(|s| s.containers.get(&container).cloned()) {
            None => Err(Error::NoSuchContainer { pod, container }),
            Some(live) => live.handle.ok_or(Error::NotRunning { pod, container }),
        }
    }
}

/// Reads to the end, and while it is followed, on to the end of the run.
fn stream_log(
    path: PathBuf,
    options: LogOptions,
    follow: Option<Arc<PodCell>>,
    container: String,
    run: u32,
    shutdown: CancellationToken,
) -> LogStream {
    let ended = move |cell: &PodCell| {
        *cell.gone.borrow()
            || cell.read(|s| {
                let newer = s.record.containers.get(&container).is_some_and(|c| c.runs > run + 1 || c.accounted > run);
                newer
                    || s.containers
                        .get(&container)
                        .is_some_and(|c| matches!(c.status.state, ContainerState::Terminated(_)))
            })
    };
    struct Following<E> {
        path: PathBuf,
        options: LogOptions,
        reader: Option<LogReader>,
        cell: Option<Arc<PodCell>>,
        ended: E,
        shutdown: CancellationToken,
        last_look: bool,
    }
    let start = Following { path, options, reader: None, cell: follow, ended, shutdown, last_look: false };
    Box::pin(futures::stream::unfold(Some(start), |state| async move {
        let mut state = state?;
        loop {
            let read = match &mut state.reader {
                Some(reader) => reader.next(),
                None => match LogReader::open(&state.path, state.options.clone()) {
                    Ok(reader) => state.reader.insert(reader).next(),
                    // Nothing was said yet.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Vec::new())),
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(Some(bytes)) if !bytes.is_empty() => return Some((Ok(bytes.into()), Some(state))),
                Ok(None) => return None,
                Err(source) => {
                    let error = Error::Disk { what: "read the log", path: state.path, source };
                    return Some((Err(error), None));
                }
                Ok(Some(_)) => {}
            }
            let cell = state.cell.as_ref()?;
            if state.last_look || state.shutdown.is_cancelled() {
                return None;
            }
            // What was written between the last read and the end is read once more.
            state.last_look = (state.ended)(cell);
            if !state.last_look {
                tokio::time::sleep(FOLLOW_STEP).await;
            }
        }
    }))
}

/// The best that works here: that root may make namespaces does not yet mean that it may make networks.
fn choose(config: &Config, data_dir: &Path) -> Result<(mode::Choice, Option<Network>), OpenError> {
    let choice = mode::choose(config.mode, None)?;
    if choice.isolation != Isolation::Full {
        return Ok((choice, None));
    }
    let bury_pods = |dead: &Path| {
        tracing::warn!(dir = %dead.display(), "taking away what is left of the pods of a neap whose directory is gone");
        linux::bury(mode::tree_of(dead), dead);
    };
    match Network::open(&config.pod_cidr, data_dir, &bury_pods) {
        Ok(network) => Ok((choice, Some(network))),
        Err(NetworkError::Kernel { what, source }) if config.mode == Mode::Auto => {
            Ok((mode::choose(config.mode, Some(format!("cannot {what}: {source}")))?, None))
        }
        Err(error) => Err(error.into()),
    }
}

/// Groups in which containers of a pod may live whose record we cannot read, by the keepers' own in its directory.
fn groups_in(dir: &Path) -> Vec<String> {
    let runs = fs::read_dir(dir.join("c")).into_iter().flatten().flatten();
    let runs = runs.flat_map(|c| fs::read_dir(c.path()).into_iter().flatten().flatten());
    runs.filter_map(|run| record::read_if_whole::<Run>(&run.path().join("run.json")))
        .filter_map(|run| Some(run.group?.name().to_owned()))
        .collect()
}

/// The old specification with what of a known pod may change. What containers get at their start (environment,
/// credentials for their image) counts from the next one on: config-maps and secrets are changed, and made late.
fn renewed(old: &PodSpec, new: PodSpec) -> PodSpec {
    let mut renewed = PodSpec { volumes: new.volumes, labels: new.labels, grace: new.grace, ..old.clone() };
    let given: HashMap<String, ContainerSpec> =
        new.init_containers.into_iter().chain(new.containers).map(|c| (c.name.clone(), c)).collect();
    for container in renewed.init_containers.iter_mut().chain(&mut renewed.containers) {
        if let Some(given) = given.get(&container.name) {
            container.env.clone_from(&given.env);
            container.credentials.clone_from(&given.credentials);
        }
    }
    renewed
}

/// What cannot be run is refused before it is written down.
fn check(spec: &PodSpec) -> Result<(), Error> {
    let invalid = |message: &str| Err(Error::Invalid(message.to_owned()));
    if !is_plain(&spec.id.0) || !is_plain(&spec.name) || !is_plain(&spec.namespace) {
        return invalid("a pod needs a UID, a name and a namespace that can be directory names");
    }
    if spec.containers.is_empty() {
        return invalid("a pod needs at least one container");
    }
    let mut names = std::collections::BTreeSet::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        if !is_plain(&container.name) || !names.insert(&container.name) {
            return Err(Error::Invalid(format!(
                "the container name {:?} is empty, not plain, or used twice",
                container.name
            )));
        }
    }
    Ok(())
}

/// Can be one part of a path.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// A directory that only its owner enters.
fn closed(dir: &Path) -> Result<PathBuf, OpenError> {
    let dir = made(dir)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    let fault = |source| OpenError::Disk { what: "close to others the directory", path: dir.clone(), source };
    fs::set_permissions(&dir, mode).map_err(fault)?;
    Ok(dir)
}

fn made(dir: &Path) -> Result<PathBuf, OpenError> {
    let fault = |what| move |source| OpenError::Disk { what, path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(fault("make the directory"))?;
    dir.canonicalize().map_err(fault("find the directory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Credentials;

    #[test]
    fn what_a_container_gets_at_its_start_may_change() {
        let spec = |password: &str, value: &str, image: &str| {
            let key = Credentials { registry: "r".into(), username: "me".into(), password: password.into() };
            let container = ContainerSpec {
                name: "c".into(),
                image: image.into(),
                credentials: vec![key],
                env: vec![("A".into(), value.into())],
                ..ContainerSpec::default()
            };
            PodSpec { containers: vec![container], ..PodSpec::default() }
        };
        let known = renewed(&spec("old", "1", "app:1"), spec("new", "2", "app:2"));
        assert_eq!(known, spec("new", "2", "app:1"), "a pod does not change its image");
    }
}
