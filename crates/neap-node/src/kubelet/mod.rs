//! The kubelet: places pods on this machine, gives them to the runtime, tells the API what became of them.
//!
//! One task keeps the index of pods and of what they refer to; each pod has a worker of its own. Nothing here knows how
//! a container is run, and nothing here knows what the pods are for.

mod drain;
mod ended;
mod env;
mod exec;
mod forward;
mod images;
mod logs;
mod needs;
mod node;
mod past;
mod reclaim;
mod recorder;
mod schedule;
mod secrets;
mod sources;
mod spdy;
mod spec;
mod status;
mod talk;
mod tell;
mod top;
mod upgrade;
mod volumes;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use neap_runtime::pod::{PodId, PodRuntime};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use drain::{Drain, Leaving, NoDrain};
pub use env::NodeFacts;
pub use exec::ExecError;
pub use images::collect_images;
pub use logs::LogsError;
pub use node::Machine;
pub use secrets::docker_credentials;
pub use spec::{ApiAccess, Surroundings, read_resolv_conf};
pub use top::GROUP_VERSION as METRICS;
pub use upgrade::{PodRequest, Refusal};

use ended::Ended;
use logs::Names;
use needs::Needs;
use recorder::{About, Recorder, Writer, recorder};
use schedule::{Amounts, Held, is_active, is_gated, obstacle, requests};
use sources::{Key, Sources};
use status::{Progress, same, status};
use tell::Told;
use worker::{Wake, Worker, write_status};

use crate::feed::{Change, changes, merged};

/// What a pod without an object gets to end: nobody is left who could have asked for more.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Before a pod's worker that failed begins again.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// The time of day, for what is written into objects.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock.
#[expect(clippy::disallowed_methods, reason = "the edge: times in objects are told by the system's clock")]
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

pub struct Config {
    pub machine: Machine,
    pub around: Surroundings,
    /// Place pods that have no node yet. Off where a cluster's own scheduler does that.
    pub schedule: bool,
    pub drain: Arc<dyn Drain>,
    pub clock: Clock,
    /// File that remembers the names of past pods for their logs.
    pub past: PathBuf,
}

/// The running kubelet, or the one about to run. Cheap to clone.
#[derive(Clone)]
pub struct Kubelet {
    shared: Arc<Shared>,
    schedule: bool,
    machine: Machine,
    /// Taken by `run`.
    writer: Arc<Mutex<Option<Writer>>>,
}

/// What every worker uses.
struct Shared {
    client: Client,
    runtime: Arc<dyn PodRuntime>,
    around: Surroundings,
    drain: Arc<dyn Drain>,
    clock: Clock,
    recorder: Recorder,
    sources: Sources,
    names: Names,
    /// What pods had used a while ago.
    counts: top::Counts,
    /// Connections on which somebody talks with a command.
    talks: TaskTracker,
    shutdown: CancellationToken,
}

impl Kubelet {
    /// `shutdown` ends it; pods go on running.
    pub fn new(config: Config, client: Client, runtime: Arc<dyn PodRuntime>, shutdown: CancellationToken) -> Self {
        let Config { machine, around, schedule, drain, clock, past } = config;
        let (recorder, writer) = recorder(client.clone(), &around.node.name, clock.clone());
        let names = Names::open(past);
        let sources = Sources::default();
        let (talks, counts) = (TaskTracker::new(), top::Counts::default());
        let shared =
            Shared { client, runtime, around, drain, clock, recorder, sources, names, counts, talks, shutdown };
        Self { shared: Arc::new(shared), schedule, machine, writer: Arc::new(Mutex::new(Some(writer))) }
    }

    /// Runs until the shutdown signal. A second call returns at once.
    pub async fn run(&self) {
        let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let shared = self.shared.clone();
        let mut beside = JoinSet::new();
        beside.spawn(writer.run());
        let counting = self.clone();
        beside.spawn(async move { counting.count().await });
        let (client, clock) = (shared.client.clone(), shared.clock.clone());
        beside.spawn(node::run(client, self.machine.clone(), clock, shared.shutdown.clone()));
        let (client, clock) = (shared.client.clone(), shared.clock.clone());
        beside.spawn(reclaim::run(client, shared.around.claims.clone(), clock, shared.shutdown.clone()));
        let room = Room {
            allocatable: self.machine.allocatable(),
            labels: self.machine.labels(),
            held: Held::default(),
            waiting: BTreeMap::new(),
        };
        let ended = Ended::default();
        Loop { shared, schedule: self.schedule, room, pods: HashMap::new(), ended, tasks: JoinSet::new() }.run().await;
    }
}

enum Event {
    Pod(Box<Change<Pod>>),
    ConfigMap(Change<ConfigMap>),
    Secret(Change<Secret>),
    Account(Change<ServiceAccount>),
}

struct Loop {
    shared: Arc<Shared>,
    schedule: bool,
    room: Room,
    pods: HashMap<PodId, Known>,
    ended: Ended,
    /// What comes of one: a pod whose worker is to begin again.
    tasks: JoinSet<Option<PodId>>,
}

/// What the machine has, and who waits for a place.
struct Room {
    allocatable: Amounts,
    labels: BTreeMap<String, String>,
    held: Held,
    /// By age, so that the longest waiting gets the next place.
    waiting: BTreeMap<(Option<Timestamp>, PodId), Waiting>,
}

struct Waiting {
    pod: Arc<Pod>,
    why: String,
}

/// A pod that has a worker.
struct Known {
    pod: watch::Sender<Arc<Pod>>,
    wake: Arc<Wake>,
    key: Key,
    needs: Needs,
    /// What it holds of the machine; empty once it has ended.
    holds: Amounts,
}

impl Loop {
    async fn run(mut self) {
        let client = self.shared.client.clone();
        let everything = watcher::Config::default;
        let pods = if self.schedule {
            everything()
        } else {
            everything().fields(&format!("spec.nodeName={}", self.shared.around.node.name))
        };
        let mut events = merged(vec![
            changes::<ConfigMap>(Api::all(client.clone()), everything()).map(Event::ConfigMap).boxed(),
            changes::<Secret>(Api::all(client.clone()), everything()).map(Event::Secret).boxed(),
            changes::<ServiceAccount>(Api::all(client.clone()), everything()).map(Event::Account).boxed(),
            changes::<Pod>(Api::all(client), pods).map(|change| Event::Pod(Box::new(change))).boxed(),
        ]);
        let mut runtime = self.shared.runtime.changes();
        let shutdown = self.shared.shutdown.clone();
        loop {
            tokio::select! {
                // A change of the runtime first: somebody's request waits for it.
                biased;
                () = shutdown.cancelled() => break,
                changed = runtime.recv() => match changed {
                    Ok(id) => self.wake(&id),
                    Err(RecvError::Lagged(_)) => self.pods.values().for_each(|known| known.wake.runtime.notify_one()),
                    Err(RecvError::Closed) => break,
                },
                event = events.next() => match event {
                    Some(event) => self.take(event),
                    None => break,
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(Some(id)) = ended {
                        self.begin_again(&id);
                    }
                }
            }
        }
        // Workers see the signal themselves; what they were writing is written again after the next start.
        self.tasks.shutdown().await;
    }

    /// The worker of a pod failed, by a fault of ours.
    fn begin_again(&mut self, id: &PodId) {
        // Unless the pod is gone, or has another worker already.
        if !self.pods.get(id).is_some_and(|known| known.pod.is_closed()) {
            return;
        }
        if let Some(known) = self.pods.remove(id) {
            self.room.held.release(&known.holds);
            let pod = known.pod.borrow().clone();
            self.adopt(id.clone(), pod);
        }
    }

    fn wake(&self, id: &PodId) {
        if let Some(known) = self.pods.get(id) {
            known.wake.runtime.notify_one();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Pod(change) => match *change {
                Change::Apply(pod) => self.pod(pod),
                Change::Delete(pod) => {
                    self.gone(&id_of(&pod));
                    self.place_waiting();
                }
                Change::Reset(all) => self.reset(all),
            },
            Event::ConfigMap(change) => {
                let keys = self.shared.sources.config_maps.take(change);
                self.changed(&keys, |(_, name), needs| needs.config_maps.contains(name));
            }
            Event::Secret(change) => {
                let keys = self.shared.sources.secrets.take(change);
                let shared = self.shared.clone();
                self.changed(&keys, |(namespace, name), needs| {
                    needs.secrets.contains(name) || shared.sources.pulls_with(namespace, &needs.account, name)
                });
            }
            Event::Account(change) => {
                let keys = self.shared.sources.accounts.take(change);
                self.changed(&keys, |(_, name), needs| needs.account == *name);
            }
        }
    }

    /// Wakes the pods that refer to what changed.
    fn changed(&self, keys: &[Key], refers: impl Fn(&Key, &Needs) -> bool) {
        let keys: BTreeSet<&Key> = keys.iter().collect();
        for known in self.pods.values() {
            if keys.iter().any(|key| known.key.0 == key.0 && refers(key, &known.needs)) {
                known.wake.sources.notify_one();
            }
        }
    }

    fn pod(&mut self, pod: Pod) {
        let id = id_of(&pod);
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        if !node.is_empty() && node != self.shared.around.node.name {
            return self.gone(&id);
        }
        self.room.waiting.retain(|(_, waiting), _| *waiting != id);
        if !is_active(&pod) && pod.metadata.deletion_timestamp.is_none() {
            self.ended.note(&pod);
            for surplus in self.ended.surplus(ended::KEPT) {
                self.tasks.spawn(ended::remove(self.shared.client.clone(), surplus).map(|()| None));
            }
        }
        let pod = Arc::new(pod);
        if let Some(known) = self.pods.get_mut(&id) {
            known.needs = needs::of(&pod);
            let ended = !is_active(&pod);
            if known.pod.send(pod.clone()).is_err() {
                // Its worker ended, by its own end or by a failure: the new object needs another.
                let known = self.pods.remove(&id);
                self.room.held.release(&known.map(|k| k.holds).unwrap_or_default());
                return self.first_sight(id, pod, &node);
            }
            if ended {
                self.room.held.release(&std::mem::take(&mut known.holds));
                self.place_waiting();
            }
            return;
        }
        self.first_sight(id, pod, &node);
    }

    fn first_sight(&mut self, id: PodId, pod: Arc<Pod>, node: &str) {
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if !node.is_empty() || leaving {
            let over = !is_active(&pod) && !leaving && self.shared.runtime.status(&id).is_none();
            self.shared.names.here(&pod);
            if !over {
                self.adopt(id, pod);
            }
            return;
        }
        if self.schedule && !is_gated(&pod) && is_active(&pod) {
            self.place(id, pod);
        }
    }

    /// Gives the pod a place, or lets it wait for one and says why.
    fn place(&mut self, id: PodId, pod: Arc<Pod>) {
        match obstacle(&pod, &self.room.held, &self.room.allocatable, &self.room.labels) {
            None => {
                self.shared.names.here(&pod);
                self.adopt(id, pod);
            }
            Some(why) => {
                let age = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
                let saying = say_unschedulable(self.shared.clone(), pod.clone(), why.clone());
                self.tasks.spawn(saying.map(|()| None));
                self.room.waiting.insert((age, id), Waiting { pod, why });
            }
        }
    }

    /// Something ended: who waited longest may fit now.
    fn place_waiting(&mut self) {
        for (place, waiting) in std::mem::take(&mut self.room.waiting) {
            match obstacle(&waiting.pod, &self.room.held, &self.room.allocatable, &self.room.labels) {
                None => {
                    self.shared.names.here(&waiting.pod);
                    self.adopt(place.1, waiting.pod);
                }
                Some(why) => {
                    if why != waiting.why {
                        let (shared, pod) = (self.shared.clone(), waiting.pod.clone());
                        self.tasks.spawn(say_unschedulable(shared, pod, why.clone()).map(|()| None));
                    }
                    self.room.waiting.insert(place, Waiting { pod: waiting.pod, why });
                }
            }
        }
    }

    fn adopt(&mut self, id: PodId, pod: Arc<Pod>) {
        let holds = match &pod.spec {
            Some(spec) if is_active(&pod) => requests(spec),
            _ => Amounts::new(),
        };
        self.room.held.add(&holds);
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let needs = needs::of(&pod);
        let (sender, receiver) = watch::channel(pod);
        let wake = Arc::new(Wake::default());
        let worker = Worker::new(self.shared.clone(), id.clone(), receiver, wake.clone());
        let of = id.clone();
        self.tasks.spawn(async move {
            if AssertUnwindSafe(worker.run()).catch_unwind().await.is_ok() {
                return None;
            }
            tracing::error!(pod = %of, "a pod's worker failed by a fault of neap's; it begins again");
            tokio::time::sleep(AFTER_FAULT).await;
            Some(of)
        });
        self.pods.insert(id, Known { pod: sender, wake, key, needs, holds });
    }

    /// Its worker sees that the object is gone and cleans up.
    fn gone(&mut self, id: &PodId) {
        self.room.waiting.retain(|(_, waiting), _| waiting != id);
        self.ended.forget(id);
        if let Some(known) = self.pods.remove(id) {
            self.room.held.release(&known.holds);
        }
        self.shared.names.gone(id, &mut self.tasks);
    }

    fn reset(&mut self, all: Vec<Pod>) {
        let here: BTreeSet<PodId> = all.iter().map(id_of).collect();
        let known = self.pods.keys().chain(self.ended.ids());
        let missing: Vec<PodId> = known.filter(|id| !here.contains(*id)).cloned().collect();
        for id in missing {
            self.gone(&id);
        }
        for pod in all {
            self.pod(pod);
        }
        for orphan in self.shared.runtime.list() {
            if !here.contains(&orphan.id) && !self.pods.contains_key(&orphan.id) {
                tracing::info!(pod = orphan.name, namespace = orphan.namespace, "stopping a pod that has no object");
                self.tasks.spawn(remove_orphan(self.shared.clone(), orphan.id).map(|()| None));
            }
        }
        self.place_waiting();
    }
}

fn id_of(pod: &Pod) -> PodId {
    PodId(pod.uid().unwrap_or_default())
}

async fn remove_orphan(shared: Arc<Shared>, id: PodId) {
    if let Err(error) = shared.runtime.remove(&id, ORPHAN_GRACE).await {
        tracing::warn!(pod = %id, %error, "a pod that has no object cannot be stopped");
    }
}

async fn say_unschedulable(shared: Arc<Shared>, pod: Arc<Pod>, why: String) {
    let about = About {
        kind: "Pod",
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    };
    shared.recorder.tell(&about, Told::warning("FailedScheduling", why.clone()));
    let next = status(&pod, None, None, Progress::Unschedulable(&why), &shared.around.node, (shared.clock)());
    if pod.status.as_ref().is_some_and(|before| same(before, &next)) {
        return;
    }
    if let Err(error) = write_status(&shared, &about, pod.status.as_ref(), &next).await {
        tracing::warn!(pod = about.name, %error, "a pod's status cannot be written");
    }
}

#[cfg(test)]
mod tests;
