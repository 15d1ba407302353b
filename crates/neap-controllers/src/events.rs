//! Events: what a plan wants users to be told, written beside the objects, counted when it repeats.
//!
//! Telling must never hold up doing: events wait in a bounded queue, and are dropped when it is full.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event as CoreEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use neap_logic::names::hash::fnv32a;
use neap_logic::plan::{Event, Object};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

/// Events that may wait to be written.
const QUEUE: usize = 1024;
/// Events remembered so that a repetition counts up instead of being written anew.
const REMEMBERED: usize = 4096;
/// The namespace of events about objects without one.
const DEFAULT_NAMESPACE: &str = "default";

/// An event about an object.
#[derive(Debug)]
struct Note {
    controller: &'static str,
    about: ObjectReference,
    event: Event,
    at: Timestamp,
}

/// Where plans leave their events.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    notes: mpsc::Sender<Note>,
}

/// The task that writes them.
pub(crate) struct Writer {
    client: Client,
    notes: mpsc::Receiver<Note>,
    seen: HashMap<Same, Seen>,
    order: VecDeque<Same>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    reason: String,
    message: String,
}

#[derive(Debug)]
struct Seen {
    name: String,
    count: i32,
}

/// A recorder and its writer.
pub(crate) fn channel(client: Client) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Recorder { notes: sender }, Writer { client, notes: receiver, seen: HashMap::new(), order: VecDeque::new() })
}

impl Recorder {
    /// Records events about an object.
    pub(crate) fn record(&self, controller: &'static str, subject: &Object, events: Vec<Event>, at: Timestamp) {
        for event in events {
            let text = |field: &str| subject.value["metadata"][field].as_str().map(str::to_owned);
            let about = ObjectReference {
                api_version: Some(subject.resource.api_version.clone()),
                kind: Some(subject.resource.kind.clone()),
                namespace: subject.namespace.clone(),
                name: Some(subject.name.clone()),
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                field_path: None,
            };
            if self.notes.try_send(Note { controller, about, event, at }).is_err() {
                debug!(object = %subject.reference(), "too many events at once; one is dropped");
            }
        }
    }
}

impl Writer {
    /// Writes until every recorder is gone.
    pub(crate) async fn run(mut self) {
        while let Some(note) = self.notes.recv().await {
            let object = note.about.name.clone().unwrap_or_default();
            if let Err(error) = self.write(note).await {
                debug!(%object, %error, "an event could not be written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let namespace = note.about.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.into());
        let api = Api::<CoreEvent>::namespaced(self.client.clone(), &namespace);
        let same = Same {
            uid: note.about.uid.clone().unwrap_or_default(),
            reason: note.event.reason.clone(),
            message: note.event.message.clone(),
        };
        if let Some(seen) = self.seen.get_mut(&same) {
            seen.count = seen.count.saturating_add(1);
            let patch = json!({"count": seen.count, "lastTimestamp": Time(note.at)});
            match api.patch(&seen.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                // It has grown old and was removed: tell it anew.
                Err(kube::Error::Api(status)) if status.code == 404 => drop(self.seen.remove(&same)),
                other => return other.map(drop),
            }
        }
        let event = make(&note, namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.seen.insert(same.clone(), Seen { name, count: 1 }).is_none() {
            self.order.push_back(same);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        Ok(())
    }
}

fn make(note: &Note, namespace: String) -> CoreEvent {
    let object = note.about.name.clone().unwrap_or_default();
    // The instant alone is not unique among events made in the same one.
    let told = fnv32a(format!("{}{}{}", note.controller, note.event.reason, note.event.message).as_bytes());
    CoreEvent {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{:x}{told:08x}", note.at.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        reason: Some(note.event.reason.clone()),
        message: Some(note.event.message.clone()),
        type_: Some(note.event.severity.as_str().into()),
        source: Some(EventSource { component: Some(note.controller.into()), host: None }),
        first_timestamp: Some(Time(note.at)),
        last_timestamp: Some(Time(note.at)),
        count: Some(1),
        reporting_component: Some(note.controller.into()),
        ..CoreEvent::default()
    }
}
