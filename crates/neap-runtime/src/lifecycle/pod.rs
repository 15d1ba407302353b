//! One pod's life: its sandbox, its init containers one after another, its containers side by side, its end.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join, join_all};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use super::container::Place;
use super::restart::Backoff;
use super::state::{ContainerRecord, PodCell};
use super::{World, container, status};
use crate::launch::Isolation;
use crate::pod::{ContainerSpec, ContainerState, PodPhase, PodSpec};
use crate::record::{self, Exit, Run};
use crate::spawner::wire::StartError;
use crate::{clock, trees, volumes};

/// Before a life that broke off is taken up again.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// A pod's whole life. A fault of ours in it neither touches other pods nor leaves this one to itself: its life is taken
/// up again from what is written down.
pub(crate) async fn live_on(world: &World, cell: &Arc<PodCell>) {
    while AssertUnwindSafe(live(world, cell)).catch_unwind().await.is_err() {
        tracing::error!(pod = %cell.id, "a pod's life broke off by a fault of neap's; it is taken up again");
        sleep(AFTER_FAULT).await;
    }
}

/// Lives a pod's life to its end, after which nothing of it is left but its logs. Dropping it leaves the containers
/// running for the next runtime.
async fn live(world: &World, cell: &Arc<PodCell>) {
    let mut stop = cell.stop.subscribe();
    if !has_retired(cell) && open_sandbox(world, cell).await {
        let spec = cell.spec();
        let sidecars: Vec<Sidecar<'_>> = spec.init_containers.iter().filter(|c| c.sidecar).map(Sidecar::new).collect();
        let main = async {
            if run_init(world, cell, &spec, &sidecars).await {
                let lives = spec.containers.iter().map(|c| container::live(world, cell, &c.name, Place::Main));
                join_all(lives).await;
            }
            // Sidecars serve the others, so they end after them; those that were not begun never are.
            let deadline = *cell.ending.borrow();
            let deadline = deadline.or_else(|| clock::now().saturating_add(spec.grace).ok());
            cell.stop_sidecars.send_replace(deadline.or(Some(Timestamp::MAX)));
            sidecars.iter().for_each(Sidecar::begin);
        };
        join(main, join_all(sidecars.iter().map(|sidecar| sidecar.live(world, cell)))).await;
    }
    if stop.borrow().is_none() {
        retire(world, cell).await;
    }
    // All containers are done, or somebody asked for the end; it is always somebody who asks.
    let _ = stop.wait_for(Option::is_some).await;
    close(world, cell).await;
}

/// Whether an earlier life of it ended with [`retire`].
fn has_retired(cell: &PodCell) -> bool {
    let ended = matches!(cell.status().phase, PodPhase::Succeeded | PodPhase::Failed);
    ended && cell.read(|s| s.record.sandbox.is_none() && s.record.containers.values().all(|c| c.runs == c.accounted))
}

/// No container of it will ever run again: what only running containers need goes to others, its address before all.
/// The record and the logs stay until somebody removes the pod.
async fn retire(world: &World, cell: &PodCell) {
    close_sandbox(world, cell).await;
    cell.update(|state| state.record.sandbox = None);
    let (dir, logs, spec) = (cell.dir.clone(), world.logs.clone(), cell.spec());
    let removed = tokio::task::spawn_blocking(move || {
        volumes::release(&dir);
        logs.keep(&dir, &spec);
        ["volumes", "c"].into_iter().try_for_each(|part| trees::remove(&dir.join(part)))
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(pod = %cell.id, %error, "cannot remove what an ended pod leaves on the disk; it goes with the pod");
    }
}

/// Where the process is recorded in whose PID namespace the containers of a pod live: among its runs, by a name that
/// no container has.
pub(super) fn pids_dir(pod_dir: &Path) -> PathBuf {
    pod_dir.join("c/.pids/0")
}

/// A container that begins at its turn among the init containers and lives on beside the others.
struct Sidecar<'a> {
    name: &'a str,
    turn: watch::Sender<bool>,
}

impl<'a> Sidecar<'a> {
    fn new(spec: &'a ContainerSpec) -> Self {
        Self { name: &spec.name, turn: watch::Sender::new(false) }
    }

    fn begin(&self) {
        self.turn.send_replace(true);
    }

    async fn live(&self, world: &World, cell: &Arc<PodCell>) {
        // The sender lives in here.
        let _ = self.turn.subscribe().wait_for(|turn| *turn).await;
        container::live(world, cell, self.name, Place::Sidecar).await;
    }
}

/// `false`: the pod's end came first.
async fn open_sandbox(world: &World, cell: &PodCell) -> bool {
    let spec = cell.spec();
    if let Some(sandbox) = cell.read(|s| s.record.sandbox.clone()) {
        if world.machine.adopt_sandbox(&sandbox) {
            return true;
        }
        // Lost with the machine's last boot, mostly; the containers are, too, and what init containers did to memory.
        // But the range of addresses may be another now, or a cable was cut: what runs then reaches nobody.
        end_stranded(world, cell);
        cell.update(|state| {
            state.record.sandbox = None;
            for one in &spec.init_containers {
                if let Some(record) = state.record.containers.get_mut(&one.name) {
                    record.done = None;
                }
            }
        });
    }
    let mut backoff = Backoff::default();
    let mut ending = cell.ending.subscribe();
    loop {
        if cell.ending.borrow().is_some() {
            return false;
        }
        match world.machine.open_sandbox(spec.host_network, spec.own_users).await {
            Ok(sandbox) => {
                let ports = if world.isolation == Isolation::Full { BTreeMap::new() } else { pick_ports(&spec) };
                if let Err(error) = volumes::write_etc(&cell.dir, &spec, &sandbox) {
                    tracing::warn!(pod = %cell.id, %error, "cannot write the pod's files for /etc");
                }
                cell.update(|state| {
                    state.record.sandbox = Some(sandbox);
                    state.record.ports = ports;
                    state.record.started.get_or_insert_with(clock::now);
                });
                return true;
            }
            Err(error) => {
                tracing::warn!(pod = %cell.id, %error, "cannot make the pod's network");
                let message = format!("failed to create pod sandbox: {error}");
                cell.update(|state| {
                    for live in state.containers.values_mut() {
                        live.status.state = status::waiting("ContainerCreating", &message);
                    }
                });
            }
        }
        tokio::select! {
            () = sleep(backoff.retry()) => {}
            _ = ending.wait_for(Option::is_some) => {}
        }
    }
}

/// Where the newest run of each container is, as far as its end is not accounted for.
fn open_runs(cell: &PodCell) -> Vec<PathBuf> {
    let newest = |(name, record): (&String, &ContainerRecord)| {
        let number = record.runs.checked_sub(1).filter(|_| record.runs != record.accounted)?;
        Some(cell.dir.join("c").join(name).join(number.to_string()))
    };
    cell.read(|s| s.record.containers.iter().filter_map(newest).collect())
}

/// The groups in which something of a pod may live that an earlier runtime began. All others of it are nobody's.
pub(crate) fn live_groups(cell: &PodCell) -> Vec<String> {
    let runs = open_runs(cell).into_iter().chain([pids_dir(&cell.dir)]);
    runs.filter_map(|dir| record::read_if_whole::<Run>(&dir.join("run.json")))
        .filter_map(|run| Some(run.group?.name().to_owned()))
        .collect()
}

/// Ends what still runs in a network that is no more, so that nobody adopts it.
fn end_stranded(world: &World, cell: &PodCell) {
    for dir in open_runs(cell) {
        let Some(run) = record::read_if_whole::<Run>(&dir.join("run.json")) else { continue };
        let exit = dir.join("exit.json");
        if run.boot != record::boot_id() || exit.exists() {
            continue;
        }
        tracing::warn!(pod = %cell.id, dir = %dir.display(), "ending a container whose network is gone");
        world.machine.abandon(&run);
        let error = StartError { config: false, message: "the pod's network was lost".to_owned() };
        let ended =
            Exit { code: 255, started: Some(run.started), error: None, ..Exit::not_started(error, clock::now()) };
        if let Err(error) = record::write(&exit, &ended) {
            tracing::warn!(pod = %cell.id, %error, "cannot write down the end of a container");
        }
    }
}

/// `false`: one failed for good, or the pod's end came first.
async fn run_init(world: &World, cell: &Arc<PodCell>, spec: &PodSpec, sidecars: &[Sidecar<'_>]) -> bool {
    for one in &spec.init_containers {
        if let Some(sidecar) = sidecars.iter().find(|s| s.name == one.name) {
            sidecar.begin();
            if !has_started(cell, &one.name).await {
                return false;
            }
            continue;
        }
        container::live(world, cell, &one.name, Place::Init).await;
        let well = cell.read(|s| {
            let state = s.containers.get(&one.name).map(|c| &c.status.state);
            matches!(state, Some(ContainerState::Terminated(t)) if t.exit_code == 0)
        });
        if !well || cell.ending.borrow().is_some() {
            return false;
        }
    }
    true
}

/// Waits until a sidecar has started, startup probe included. `false`: the pod's end came first.
async fn has_started(cell: &PodCell, name: &str) -> bool {
    let mut ending = cell.ending.subscribe();
    loop {
        let turned = cell.turned.notified();
        if cell.read(|s| s.containers.get(name).is_some_and(|c| c.status.started)) {
            return true;
        }
        tokio::select! {
            () = turned => {}
            _ = ending.wait_for(Option::is_some) => return false,
        }
    }
}

/// A free port for each container's first port. Another program may take it before the container does; then the
/// container fails to listen, and is restarted on the same port.
fn pick_ports(spec: &PodSpec) -> BTreeMap<String, u16> {
    let wanted = spec.containers.iter().filter_map(|c| c.ports.first());
    let mut held = Vec::new();
    let mut ports = BTreeMap::new();
    for port in wanted {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            && let Ok(address) = listener.local_addr()
        {
            ports.insert(port.name.clone(), address.port());
            // Held until all are picked, so that no two are the same.
            held.push(listener);
        }
    }
    ports
}

/// The pod's network and whatever holds its namespaces.
async fn close_sandbox(world: &World, cell: &PodCell) {
    if let Some(run) = record::read_if_whole::<Run>(&pids_dir(&cell.dir).join("run.json"))
        && run.boot == record::boot_id()
    {
        world.machine.abandon(&run);
    }
    let mut backoff = Duration::from_millis(100);
    if let Some(sandbox) = cell.read(|s| s.record.sandbox.clone()) {
        while let Err(error) = world.machine.close_sandbox(&sandbox).await {
            tracing::warn!(pod = %cell.id, %error, "cannot take the pod's network away; trying again");
            sleep(backoff).await;
            backoff = (backoff * 2).min(Duration::from_secs(60));
        }
    }
}

async fn close(world: &World, cell: &PodCell) {
    close_sandbox(world, cell).await;
    let (dir, logs, spec) = (cell.dir.clone(), world.logs.clone(), cell.spec());
    let removed = tokio::task::spawn_blocking(move || {
        volumes::release(&dir);
        logs.keep(&dir, &spec);
        // The record goes first: what is left of a directory without one is removed at the next start.
        let _ = fs::remove_file(dir.join("spec.json"));
        let removed = trees::remove(&dir);
        logs.prune();
        removed
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(pod = %cell.id, %error, "cannot remove the pod's directory; the next start tries again");
    }
}
