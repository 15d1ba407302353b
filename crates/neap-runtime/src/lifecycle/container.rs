//! One container's life within its pod: pull, start, watch, and start again, until it is done or the pod ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::probes::{self, Target, Unwell};
use super::restart::{self, Backoff};
use super::state::PodCell;
use super::{PullFault, World, status};
use crate::bundle::{self, Places};
use crate::image::Image;
use crate::launch::{Isolation, Launch, Root, Users};
use crate::logs::read::LogReader;
use crate::machine::Handle;
use crate::pod::{
    ContainerSpec, ContainerState, Credentials, Hook, LogOptions, PodSpec, PullPolicy, RestartPolicy, Seccomp,
    Terminated, Trouble, Volume,
};
use crate::record::{self, Exit, Run};
use crate::spawner::sandbox::{NAMESPACES, USER_NAMESPACE};
use crate::spawner::wire::StartError;
use crate::{clock, trees};

/// Bounds of a termination message: of the file's, and of what is taken from the log (Kubernetes' values).
const MAX_MESSAGE: usize = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: u64 = 80;
/// How often a container that was told to end is looked at: does it hear at all?
const LISTEN_AGAIN: Duration = Duration::from_millis(100);
/// How long a record of a run may lag behind the order, when the runtime died in between.
const RECORD_LAG: Duration = Duration::from_secs(2);
/// Runs whose logs are kept besides the current one.
const OLD_LOGS: u32 = 2;
/// A postStart hook that takes longer than this has failed. Kubernetes sets no bound.
const LONGEST_HOOK: Duration = Duration::from_secs(3600);
/// Longest seccomp profile. Docker's own has 14 KiB.
const MAX_PROFILE: u64 = 1 << 20;

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Runs to its end before the next begins.
    Init,
    /// Begins among those, and lives on.
    Sidecar,
    Main,
}

/// Lives a container's life. Returns when it is over: done, or the pod's end.
pub(super) async fn live(world: &World, cell: &Arc<PodCell>, name: &str, place: Place) {
    let mut life = Life { world, cell, name, place };
    if cell.read(|s| s.record.containers.get(name).is_some_and(|c| c.done.is_some())) {
        return;
    }
    let mut adopted = life.adopt().await;
    loop {
        if adopted.is_none() && life.is_stopping() {
            return;
        }
        let ended = match adopted.take() {
            Some(begun) => life.watch(begun).await,
            None => match life.start().await {
                Some(begun) => life.watch(begun).await,
                // The pod's end came first.
                None => return,
            },
        };
        if !life.after(ended).await {
            return;
        }
    }
}

struct Life<'a> {
    world: &'a World,
    cell: &'a Arc<PodCell>,
    name: &'a str,
    place: Place,
}

/// A run that has begun, or has ended before it could.
enum Begun {
    Running(Box<Handle>),
    Ended { dir: PathBuf, exit: Exit },
}

/// A run that is over.
struct Ended {
    dir: PathBuf,
    exit: Exit,
    /// Why we ended it, if we did.
    cause: Option<String>,
}

impl Life<'_> {
    fn spec(&self) -> ContainerSpec {
        let spec = self.cell.spec();
        let all = if self.place == Place::Main { &spec.containers } else { &spec.init_containers };
        all.iter().find(|c| c.name == self.name).cloned().expect("the pod's specification names its containers")
    }

    /// Who says that this container is to end.
    fn stop(&self) -> &watch::Sender<Option<Timestamp>> {
        if self.place == Place::Sidecar { &self.cell.stop_sidecars } else { &self.cell.ending }
    }

    fn is_stopping(&self) -> bool {
        self.stop().borrow().is_some()
    }

    fn run_dir(&self, number: u32) -> PathBuf {
        self.cell.dir.join("c").join(self.name).join(number.to_string())
    }

    fn log(&self, number: u32) -> PathBuf {
        self.cell.log_dir.join(self.name).join(format!("{number}.log"))
    }

    fn wait_as(&self, state: ContainerState) {
        self.cell.update_container(self.name, |_, live| {
            live.status.state = state;
            live.status.trouble = None;
            live.status.ready = false;
            live.status.started = false;
            live.handle = None;
        });
    }

    /// Waits, unless the pod's end comes first: then `false`.
    async fn pause(&self, time: Duration) -> bool {
        let mut stop = self.stop().subscribe();
        tokio::select! {
            () = sleep(time) => true,
            _ = stop.wait_for(Option::is_some) => false,
        }
    }

    /// Waits, but not on when there are other credentials than those that were tried.
    async fn pause_as(&self, tried: &ContainerSpec, time: Duration) -> bool {
        let mut specs = self.cell.specs();
        let others = |pod: &Arc<PodSpec>| {
            let now = pod.containers.iter().chain(&pod.init_containers).find(|c| c.name == tried.name);
            now.is_some_and(|now| now.credentials != tried.credentials)
        };
        tokio::select! {
            waited = self.pause(time) => waited,
            _ = specs.wait_for(others) => true,
        }
    }

    /// The run that an earlier runtime began, if it is not yet accounted for.
    async fn adopt(&mut self) -> Option<Begun> {
        let record = self.cell.read(|s| s.record.containers.get(self.name).cloned())?;
        if record.runs == record.accounted {
            return None;
        }
        let dir = self.run_dir(record.runs - 1);
        let until = Instant::now() + RECORD_LAG;
        loop {
            let run: Option<Run> = record::read_if_whole(&dir.join("run.json"));
            let exit: Option<Exit> = record::read_if_whole(&dir.join("exit.json"));
            // Whoever joins the container later needs it.
            let readable = record::read_if_whole::<Launch>(&dir.join("launch.json")).is_some();
            match (run, exit, readable) {
                (run, Some(exit), _) => {
                    // Its keeper may have been killed before it had cleared up.
                    if let Some(run) = run.filter(|run| run.boot == record::boot_id()) {
                        self.world.machine.abandon(&run);
                    }
                    return Some(Begun::Ended { dir, exit });
                }
                (Some(run), None, true) if run.boot == record::boot_id() => {
                    let handle = Box::new(Handle { run, dir });
                    return Some(Begun::Running(handle));
                }
                (Some(run), None, _) => {
                    // The machine was started anew since; or another version began this run, and we cannot read how.
                    // In the first case its numbers may be those of strangers.
                    if run.boot == record::boot_id() {
                        self.world.machine.abandon(&run);
                    }
                    let error = StartError { config: false, message: "the machine restarted".to_owned() };
                    let exit =
                        Exit { started: Some(run.started), error: None, ..Exit::not_started(error, clock::now()) };
                    return Some(Begun::Ended { dir, exit: Exit { code: 255, ..exit } });
                }
                (None, None, _) if !dir.exists() || Instant::now() >= until => return None,
                (None, None, _) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Pulls and starts, as often as it takes. `None`: the pod's end came first.
    async fn start(&mut self) -> Option<Begun> {
        let mut backoff = Backoff::default();
        loop {
            let (spec, image) = self.pull().await?;
            let volumes = self.pull_volumes(&spec).await?;
            match self.start_once(&spec, &image, volumes).await {
                Ok(begun) => return Some(begun),
                Err((reason, message)) => {
                    tracing::warn!(pod = %self.cell.id, container = self.name, reason, message, "cannot create the container");
                    self.wait_as(status::waiting(reason, message));
                    if !self.pause(backoff.retry()).await {
                        return None;
                    }
                }
            }
        }
    }

    /// The image, and the specification it was pulled by.
    async fn pull(&self) -> Option<(ContainerSpec, Image)> {
        self.pull_as(|_, own| Some((own.image.clone(), own.pull, own.credentials.clone()))).await
    }

    /// The images that are volumes of this container, by the volumes' names.
    async fn pull_volumes(&self, spec: &ContainerSpec) -> Option<BTreeMap<String, Image>> {
        let mut all = BTreeMap::new();
        for mount in &spec.mounts {
            let wanted = |pod: &PodSpec, _: &ContainerSpec| match pod.volumes.get(&mount.volume)? {
                Volume::Image { reference, pull, credentials } => Some((reference.clone(), *pull, credentials.clone())),
                _ => None,
            };
            if all.contains_key(&mount.volume) || wanted(&self.cell.spec(), spec).is_none() {
                continue;
            }
            let (_, image) = self.pull_as(wanted).await?;
            all.insert(mount.volume.clone(), image);
        }
        Some(all)
    }

    /// Pulls what the newest specification wants pulled, as often as it takes.
    async fn pull_as(
        &self,
        wanted: impl Fn(&PodSpec, &ContainerSpec) -> Option<(String, PullPolicy, Vec<Credentials>)>,
    ) -> Option<(ContainerSpec, Image)> {
        let mut backoff = Backoff::default();
        let mut stop = self.stop().subscribe();
        loop {
            let spec = self.spec();
            let (reference, policy, credentials) = wanted(&self.cell.spec(), &spec)?;
            let pulled = tokio::select! {
                pulled = self.world.images.ensure(&reference, policy, &credentials) => pulled,
                _ = stop.wait_for(Option::is_some) => return None,
            };
            let PullFault { reason, message } = match pulled {
                Ok(image) => return Some((spec, image)),
                Err(fault) => fault,
            };
            let wait = backoff.retry();
            self.wait_as(status::waiting(&reason, &message));
            // As kubelet: first the error itself, then, while waiting, that it waits.
            if !self.pause_as(&spec, wait / 2).await {
                return None;
            }
            if reason == "ErrImagePull" || reason == "RegistryUnavailable" {
                let text = format!("Back-off pulling image {reference:?}: {reason}: {message}");
                self.wait_as(status::waiting("ImagePullBackOff", text));
            }
            if !self.pause_as(&spec, wait / 2).await {
                return None;
            }
        }
    }

    /// `Err`: reason and message of what keeps the container waiting.
    async fn start_once(
        &mut self,
        spec: &ContainerSpec,
        image: &Image,
        images: BTreeMap<String, Image>,
    ) -> Result<Begun, (&'static str, String)> {
        let root = self.world.isolation == Isolation::Full;
        let volumes = self.cell.prepare_volumes(root);
        let volumes = volumes.map_err(|e| ("CreateContainerConfigError", format!("volumes: {e}")))?;
        let number = self.cell.update_container(self.name, |record, _| {
            record.runs += 1;
            record.image_id = image.id.clone();
            record.volume_images = images.values().map(|image| image.id.clone()).collect();
            record.stop_signal = image.config.stop_signal.clone();
            record.runs - 1
        });
        let dir = self.run_dir(number);
        let images = images.into_iter().map(|(volume, image)| (volume, image.layers)).collect();
        let begun = self.begin_run(spec, image, (&volumes, images), &dir, number).await;
        if begun.is_err() && !dir.join("run.json").exists() {
            // It never ran: neither a number nor a directory is to be left of it for each time it is tried.
            self.cell.update_container(self.name, |record, _| record.runs = number);
            let removed = tokio::task::spawn_blocking(move || trees::remove(&dir));
            if let Ok(Err(error)) = removed.await {
                tracing::warn!(pod = %self.cell.id, container = self.name, %error, "cannot remove what is left of a start");
            }
        }
        begun
    }

    async fn begin_run(
        &self,
        spec: &ContainerSpec,
        image: &Image,
        (volumes, images): (&BTreeMap<String, PathBuf>, BTreeMap<String, Vec<PathBuf>>),
        dir: &Path,
        number: u32,
    ) -> Result<Begun, (&'static str, String)> {
        let pod = self.cell.spec();
        let config = |message: String| ("CreateContainerConfigError", message);
        let (sandbox, ports) = self.cell.read(|s| (s.record.sandbox.clone(), s.record.ports.clone()));
        let isolation = self.world.isolation;
        let join = sandbox.as_ref().and_then(|s| s.dir.as_ref()).map_or_else(Vec::new, |dir| {
            let joined = NAMESPACES.iter().filter(|n| !(pod.host_ipc && **n == "ipc"));
            joined.map(|n| dir.join(n)).collect()
        });
        let users = sandbox
            .as_ref()
            .and_then(|s| Some(Users { namespace: s.dir.as_ref()?.join(USER_NAMESPACE), first: s.users? }));
        let places = Places {
            dir,
            pod_dir: &self.cell.dir,
            volumes,
            log: self.log(number),
            turnover: self.world.logs.turnover(),
            join,
            address: sandbox.as_ref().map_or(Ipv4Addr::LOCALHOST, |s| s.address),
            profile: profile(&self.world.profiles, &spec.seccomp).map_err(config)?,
            users,
            images,
            merged: (isolation == Isolation::None).then(|| image.layers.first().cloned()).flatten(),
        };
        let port = match isolation {
            Isolation::Full => None,
            _ => spec.ports.first().and_then(|p| ports.get(&p.name)).copied(),
        };
        let launch = bundle::launch(&pod, spec, image, isolation, port, places).map_err(config)?;
        self.make_dirs(dir, &launch, number).map_err(|e| ("CreateContainerError", e.to_string()))?;
        let share = self.shared_pids(&pod, &launch.join).await;
        let share = share.map_err(|e| ("CreateContainerError", format!("the pod's shared PID namespace: {e}")))?;
        match self.world.machine.start(dir, launch, share).await {
            Ok(Ok(handle)) => Ok(Begun::Running(Box::new(handle))),
            Ok(Err(StartError { config: true, message })) => Err(config(message)),
            Ok(Err(error)) => Ok(Begun::Ended { dir: dir.to_owned(), exit: Exit::not_started(error, clock::now()) }),
            Err(error) => Err(("CreateContainerError", error.to_string())),
        }
    }

    fn make_dirs(&self, dir: &Path, launch: &Launch, number: u32) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        if let Root::Overlay { upper, work, target, .. } = &launch.root {
            for one in [upper, work, target] {
                fs::create_dir_all(one)?;
            }
            if let Some(Users { first, .. }) = launch.users {
                // It is the container's root directory.
                std::os::unix::fs::chown(upper, Some(first), Some(first))?;
            }
        }
        for image in &launch.images {
            fs::create_dir_all(&image.target)?;
        }
        fs::write(dir.join("termination-log"), "")?;
        // Whoever the container runs as may leave its last words.
        fs::set_permissions(dir.join("termination-log"), std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        fs::create_dir_all(self.cell.log_dir.join(self.name))?;
        if let Some(old) = number.checked_sub(OLD_LOGS + 1) {
            // One after the other, down to the first that is not there.
            let files = (0..crate::logs::MOST_FILES).map(|age| crate::logs::numbered(&self.log(old), age));
            files.map(fs::remove_file).take_while(Result::is_ok).for_each(drop);
        }
        Ok(())
    }

    /// The process in whose PID namespace the containers of this pod live, if they share one.
    async fn shared_pids(&self, pod: &PodSpec, join: &[PathBuf]) -> io::Result<Option<i32>> {
        if pod.host_pid {
            return Ok(i32::try_from(std::process::id()).ok());
        }
        if !pod.share_process_namespace || self.world.isolation != Isolation::Full {
            return Ok(None);
        }
        let _one_at_a_time = self.cell.pids.lock().await;
        self.world.machine.hold_pids(&super::pod::pids_dir(&self.cell.dir), join).await.map(Some)
    }

    /// From the start of a run to its end.
    async fn watch(&mut self, begun: Begun) -> Ended {
        let handle = match begun {
            Begun::Running(handle) => *handle,
            Begun::Ended { dir, exit } => return Ended { dir, exit, cause: None },
        };
        let spec = self.spec();
        let hooked = self.cell.update_container(self.name, |record, live| {
            // Of a run that an earlier runtime began: what its hook and its probes said then still holds.
            let hooked = spec.post_start.is_none() || record.hooked == record.runs;
            live.status.state = ContainerState::Running { since: handle.run.started };
            live.status.trouble = None;
            live.status.started = hooked && (spec.startup.is_none() || record.begun == record.runs);
            live.status.ready = live.status.started && (spec.readiness.is_none() || record.ready == record.runs);
            live.handle = Some(handle.clone());
            hooked
        });
        let target = Target { world: self.world, cell: self.cell, spec: &spec, handle: &handle };
        let mut stop = self.stop().subscribe();
        let mut ended = std::pin::pin!(self.world.machine.ended(&handle));
        let unwell = tokio::select! {
            exit = &mut ended => return Ended { dir: handle.dir.clone(), exit, cause: None },
            unwell = self.tend(&target, hooked) => Some(unwell),
            _ = stop.wait_for(Option::is_some) => None,
        };
        if let Some(unwell) = &unwell {
            tracing::info!(pod = %self.cell.id, container = self.name, cause = unwell.why, "ending the container");
            self.cell.update_container(self.name, |record, live| {
                live.status.trouble = Some(Trouble::Ending(unwell.why.clone()));
                live.status.ready = false;
                record.ready = 0;
            });
        }
        let exit = self.end(&target, &mut ended, unwell.as_ref()).await;
        Ended { dir: handle.dir.clone(), exit, cause: unwell.map(|u| u.why) }
    }

    /// The postStart hook, if it is still to be run, then the probes; comes back when the container is to be ended.
    async fn tend(&self, target: &Target<'_>, hooked: bool) -> Unwell {
        if let Some(hook) = target.spec.post_start.as_ref().filter(|_| !hooked) {
            if let Err(error) = target.hook(hook, LONGEST_HOOK).await {
                let why = format!("Container {} failed its postStart hook: {error}", self.name);
                return Unwell { why, grace: None };
            }
            self.cell.update_container(self.name, |record, live| {
                record.hooked = record.runs;
                live.status.started = target.spec.startup.is_none();
                live.status.ready = live.status.started && target.spec.readiness.is_none();
            });
        }
        if self.place == Place::Init {
            return std::future::pending().await;
        }
        probes::run(target).await
    }

    /// preStop, the stop signal, time, SIGKILL.
    async fn end(
        &self,
        target: &Target<'_>,
        ended: &mut (impl Future<Output = Exit> + Unpin),
        unwell: Option<&Unwell>,
    ) -> Exit {
        let grace = |unwell: &Unwell| unwell.grace.unwrap_or(self.cell.spec().grace);
        let own = unwell.map(|u| clock::now().saturating_add(grace(u)).unwrap_or(Timestamp::MAX));
        let machine = &self.world.machine;
        let mut deadline = std::pin::pin!(self.deadline(own));
        let mut due = false;
        if let Some(hook) = &target.spec.pre_stop {
            let left = self.time_left(own);
            let run_hook = self.hook(target, hook, left);
            tokio::select! {
                exit = &mut *ended => return exit,
                () = run_hook => {}
                () = &mut deadline => due = true,
            }
        }
        let signal = self.stop_signal();
        if let Err(error) = machine.signal(target.handle, signal) {
            tracing::warn!(pod = %self.cell.id, container = self.name, %error, "cannot signal the container");
        }
        while !due {
            // Where the kernel drops the signal (a first process without a handler is immune to it), waiting is idle.
            if let Err(error) = machine.end_if_deaf(target.handle, signal) {
                tracing::warn!(pod = %self.cell.id, container = self.name, %error, "cannot signal the container");
            }
            tokio::select! {
                exit = &mut *ended => return exit,
                () = sleep(LISTEN_AGAIN) => {}
                () = &mut deadline => due = true,
            }
        }
        loop {
            if let Err(error) = machine.signal(target.handle, libc::SIGKILL) {
                tracing::warn!(pod = %self.cell.id, container = self.name, %error, "cannot kill the container");
            }
            tokio::select! {
                exit = &mut *ended => return exit,
                // It may be in a system call that cannot be broken; it dies when that returns.
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    async fn hook(&self, target: &Target<'_>, hook: &Hook, time: Duration) {
        if let Err(error) = target.hook(hook, time).await {
            tracing::warn!(pod = %self.cell.id, container = self.name, error, "the preStop hook failed");
        }
    }

    fn stop_signal(&self) -> i32 {
        let name = self.cell.read(|s| s.record.containers.get(self.name).and_then(|c| c.stop_signal.clone()));
        name.as_deref().and_then(signal_number).unwrap_or(libc::SIGTERM)
    }

    fn time_left(&self, own: Option<Timestamp>) -> Duration {
        let deadline = [*self.stop().borrow(), own].into_iter().flatten().min();
        deadline.map_or(Duration::MAX, |at| Duration::try_from(at - clock::now()).unwrap_or(Duration::ZERO))
    }

    /// Resolves at the deadline, which a later and more impatient asker may bring nearer.
    async fn deadline(&self, own: Option<Timestamp>) {
        let mut stop = self.stop().subscribe();
        loop {
            stop.mark_unchanged();
            let left = self.time_left(own).min(Duration::from_secs(365 * 24 * 3600));
            tokio::select! {
                () = sleep_until(Instant::now() + left) => return,
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Accounts for a run that is over. `true`: there is to be another one, now.
    async fn after(&mut self, ended: Ended) -> bool {
        let Ended { dir, exit, cause } = ended;
        let spec = self.spec();
        let number = self.cell.read(|s| s.record.containers.get(self.name).map_or(0, |c| c.runs)).saturating_sub(1);
        let message = match &exit.error {
            Some(error) => error.message.clone(),
            None => last_words(&spec, &dir, &self.log(number), exit.code),
        };
        let terminated = status::terminated(&exit, message);
        let stopping = self.is_stopping();
        let again = !stopping && self.runs_again(cause.is_some(), exit.code);
        let ran = exit.started.map_or(Duration::ZERO, |at| Duration::try_from(exit.finished - at).unwrap_or_default());
        let wait = self.cell.update_container(self.name, |record, live| {
            live.handle = None;
            live.status.ready = false;
            live.status.started = false;
            live.status.state = ContainerState::Terminated(terminated.clone());
            live.status.trouble = None;
            record.accounted = record.runs;
            if again {
                record.last = Some(terminated.clone());
                Some(record.backoff.restart(ran))
            } else {
                record.done = Some(terminated.clone());
                None
            }
        });
        remove_later(dir);
        let Some(wait) = wait else { return false };
        if !wait.is_zero() {
            self.wait_as(status::crash_loop(&self.cell.spec(), self.name, wait));
            if !self.pause(wait).await {
                // The end came while it waited: what it last was is what it is.
                self.settle(terminated);
                return false;
            }
        }
        if self.is_stopping() {
            self.settle(terminated);
            return false;
        }
        self.cell.update_container(self.name, |record, _| record.restarts += 1);
        true
    }

    fn runs_again(&self, unwell: bool, code: i32) -> bool {
        let policy = match self.place {
            Place::Sidecar => RestartPolicy::Always,
            Place::Init | Place::Main => self.cell.spec().restart,
        };
        // What we ended ourselves did not end well, whatever it answered to the signal.
        let code = if unwell && code == 0 { libc::SIGTERM } else { code };
        restart::again(policy, self.place == Place::Init, code)
    }

    fn settle(&self, terminated: Terminated) {
        self.cell.update_container(self.name, |record, live| {
            live.status.state = ContainerState::Terminated(terminated.clone());
            record.done = Some(terminated);
        });
    }
}

/// What the container wrote as its last message; else, if so wished and it failed, the end of its log.
fn last_words(spec: &ContainerSpec, dir: &Path, log: &Path, code: i32) -> String {
    let written = fs::File::open(dir.join("termination-log")).and_then(|mut file| {
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(end.saturating_sub(MAX_MESSAGE as u64)))?;
        let mut bytes = Vec::new();
        file.take(MAX_MESSAGE as u64).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    match written {
        Ok(text) if !text.is_empty() => return status::cut_message(&text, usize::MAX, MAX_MESSAGE),
        _ if !spec.termination_message_from_logs || code == 0 => return String::new(),
        _ => {}
    }
    let options = LogOptions { tail: Some(MAX_LOG_LINES), ..LogOptions::default() };
    let text = LogReader::open(log, options).and_then(|mut reader| reader.next()).ok().flatten().unwrap_or_default();
    status::cut_message(&String::from_utf8_lossy(&text), MAX_LOG_LINES as usize, MAX_LOG_MESSAGE)
}

/// The text of a profile that a container names; `None` when it names none, or there is none of that name.
fn profile(dir: &Path, wanted: &Seccomp) -> Result<Option<String>, String> {
    let Seccomp::Local(name) = wanted else { return Ok(None) };
    if !name.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(format!("{} is not a path below the directory of seccomp profiles", name.display()));
    }
    let mut text = String::new();
    match fs::File::open(dir.join(name)).and_then(|file| file.take(MAX_PROFILE).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read the seccomp profile {}: {error}", name.display())),
    }
}

/// A writable layer may be large; nobody waits for its removal. What a crash leaves is removed with the pod.
fn remove_later(dir: PathBuf) {
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = trees::remove(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove what a container wrote");
        }
    }));
}

fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn stop_signals_by_name_and_number() {
        let check = |name: &str, expected| assert_eq!(signal_number(name), expected, "{name}");
        check("SIGTERM", Some(15));
        check("quit", Some(3));
        check("SIGUSR1", Some(10));
        check("9", Some(9));
        check("0", None);
        check("SIGNOTHING", None);
    }
}
