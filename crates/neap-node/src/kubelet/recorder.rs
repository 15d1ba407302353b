//! Writes events, beside everything else: a full queue drops them, a pod never waits for them.
//!
//! The same event of the same object is counted instead of written again, and events are removed after an hour as on
//! any cluster.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Clock;
use super::tell::Told;

/// Events that may wait to be written. A pod's start makes about four.
const QUEUE: usize = 1024;
/// Kubernetes' default life of an event.
const LIFE: Duration = Duration::from_secs(3600);
/// Time between two looks for events whose time is over.
const SWEEP: Duration = Duration::from_secs(300);
const COMPONENT: &str = "kubelet";
/// New events about one object: so many at once, and then one in so long (Kubernetes' bounds). A probe whose words
/// differ each time would write for ever.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// An object that events can be about.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Clone)]
pub(super) struct Recorder {
    queue: mpsc::Sender<(About, Told)>,
}

pub(super) struct Writer {
    client: Client,
    node: String,
    clock: Clock,
    queue: mpsc::Receiver<(About, Told)>,
    /// What was written: by object, reason and message.
    written: HashMap<(String, &'static str, String), Written>,
    /// How many events were new, by object, and since when.
    fresh: HashMap<String, (u32, Instant)>,
    /// In the order of their last writing.
    aging: VecDeque<(Instant, String, String)>,
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
}

pub(super) fn recorder(client: Client, node: &str, clock: Clock) -> (Recorder, Writer) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let node = node.to_owned();
    let writer =
        Writer { client, node, clock, queue, written: HashMap::new(), fresh: HashMap::new(), aging: VecDeque::new() };
    (Recorder { queue: sender }, writer)
}

impl Recorder {
    pub(super) fn tell(&self, about: &About, told: Told) {
        if self.queue.try_send((about.clone(), told)).is_err() {
            tracing::debug!(pod = about.name, "an event is dropped: too many are waiting to be written");
        }
    }
}

impl Writer {
    /// Runs until every recorder is gone.
    pub(super) async fn run(mut self) {
        self.adopt().await;
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                next = self.queue.recv() => match next {
                    Some((about, told)) => self.write(about, told).await,
                    None => return,
                },
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    /// Events an earlier run left: they grow old like ours.
    async fn adopt(&mut self) {
        let Ok(list) = Api::<Event>::all(self.client.clone()).list(&ListParams::default()).await else { return };
        let now = Instant::now();
        for event in list.items {
            if event.reporting_component.as_deref() == Some(COMPONENT) {
                self.aging.push_back((now, event.namespace().unwrap_or_default(), event.name_any()));
            }
        }
    }

    async fn write(&mut self, about: About, told: Told) {
        let now = (self.clock)();
        let key = (about.uid.clone(), told.reason, told.message.clone());
        if let Some(known) = self.written.get_mut(&key) {
            known.count += 1;
            known.last = Instant::now();
            let patch = serde_json::json!({"count": known.count, "lastTimestamp": Time(now)});
            let api: Api<Event> = Api::namespaced(self.client.clone(), &known.namespace);
            match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => return,
                Err(kube::Error::Api(e)) if e.code == 404 => {
                    self.written.remove(&key);
                }
                Err(error) => return tracing::debug!(%error, "an event could not be counted"),
            }
        }
        if !self.may_write(&about.uid) {
            return tracing::debug!(pod = about.name, reason = told.reason, "an event is dropped: there are too many");
        }
        // Events of objects without a namespace live in `default`.
        let namespace = if about.namespace.is_empty() { "default".to_owned() } else { about.namespace.clone() };
        let name = format!("{}.{:016x}", about.name, fastrand::u64(..));
        let event = self.event(&about, &told, &namespace, &name, now);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                let at = Instant::now();
                self.aging.push_back((at, namespace.clone(), name.clone()));
                self.written.insert(key, Written { namespace, name, count: 1, last: at });
            }
            Err(error) => tracing::debug!(%error, reason = told.reason, "an event could not be written"),
        }
    }

    fn may_write(&mut self, uid: &str) -> bool {
        let now = Instant::now();
        let (count, since) = self.fresh.entry(uid.to_owned()).or_insert((0, now));
        let back = u32::try_from(since.elapsed().as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if back > 0 {
            (*count, *since) = (count.saturating_sub(back), *since + REFILL * back.min(BURST));
        }
        let may = *count < BURST;
        *count += u32::from(may);
        may
    }

    fn event(&self, about: &About, told: &Told, namespace: &str, name: &str, now: Timestamp) -> Event {
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
        Event {
            metadata,
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(about.kind.to_owned()),
                name: Some(about.name.clone()),
                namespace: Some(about.namespace.clone()).filter(|n| !n.is_empty()),
                uid: Some(about.uid.clone()),
                ..ObjectReference::default()
            },
            reason: Some(told.reason.to_owned()),
            message: Some(told.message.clone()),
            type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            event_time: None::<MicroTime>,
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(self.node.clone()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        }
    }

    async fn sweep(&mut self) {
        let fresh = |at: Instant| at.elapsed() < LIFE;
        let mut kept = VecDeque::new();
        while self.aging.front().is_some_and(|(at, ..)| !fresh(*at)) {
            let Some((_, namespace, name)) = self.aging.pop_front() else { break };
            let counted_lately = self.written.values().find(|w| w.name == name && fresh(w.last)).map(|w| w.last);
            if let Some(at) = counted_lately {
                kept.push_back((at, namespace, name));
                continue;
            }
            let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            if let Err(error) = api.delete(&name, &DeleteParams::default()).await {
                // Most likely somebody was faster.
                tracing::debug!(%error, name, "an old event could not be removed");
            }
        }
        self.aging.extend(kept);
        self.written.retain(|_, w| fresh(w.last));
        self.fresh.retain(|_, (count, since)| since.elapsed() < REFILL.saturating_mul(*count + 1));
    }
}
