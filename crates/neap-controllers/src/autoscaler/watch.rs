//! The watches behind the world: each turns the events of one kind into changes, and hands them over in order.

use std::fmt::Debug;
use std::pin::pin;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use neap_api::autoscaling::{Metric, PodAutoscaler};
use neap_api::keys::serving;
use neap_api::networking::ServerlessService;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use super::world::{Change, Delta};

/// Changes on their way to the engine. When it is busy the watches wait, and the API server keeps what they have not
/// read.
const QUEUE: usize = 256;

/// Changes, and the tasks they come from, which end with it.
pub(super) struct Changes {
    receiver: mpsc::Receiver<Change>,
    _watches: JoinSet<()>,
}

impl Changes {
    #[cfg(test)]
    pub(super) fn of(receiver: mpsc::Receiver<Change>) -> Self {
        Self { receiver, _watches: JoinSet::new() }
    }

    /// The next change; `None` when all watches have ended.
    pub(super) async fn next(&mut self) -> Option<Change> {
        self.receiver.recv().await
    }

    /// A change that is there already.
    pub(super) fn try_next(&mut self) -> Option<Change> {
        self.receiver.try_recv().ok()
    }
}

/// Starts all watches.
pub(super) fn all(client: &Client) -> Changes {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut watches = JoinSet::new();
    let all = || watcher::Config::default();
    watches.spawn(one(client, all(), sender.clone(), |pa: PodAutoscaler| pa, Change::Pa));
    watches.spawn(one(client, all(), sender.clone(), |sks: ServerlessService| sks, Change::Sks));
    watches.spawn(one(client, all(), sender.clone(), |metric: Metric| metric, Change::Metric));
    watches.spawn(one(client, all(), sender.clone(), |hpa: HorizontalPodAutoscaler| hpa, Change::Hpa));
    // Only Revisions' Deployments carry the label.
    let ours = all().labels(serving::REVISION_UID);
    watches.spawn(one(client, ours, sender.clone(), |d: Deployment| d.into(), Change::Target));
    watches.spawn(one(client, all(), sender, |slice: EndpointSlice| slice.into(), Change::Slice));
    Changes { receiver, _watches: watches }
}

fn one<K, T>(
    client: &Client,
    config: watcher::Config,
    sender: mpsc::Sender<Change>,
    shape: fn(K) -> T,
    wrap: fn(Delta<T>) -> Change,
) -> impl Future<Output = ()> + Send + use<K, T>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let api = Api::<K>::all(client.clone());
    async move {
        let slim = move |mut object: K| {
            // Nobody here reads who wrote which field, and it is often the largest part of an object.
            object.meta_mut().managed_fields = None;
            shape(object)
        };
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listing = Vec::new();
        while let Some(event) = events.next().await {
            let delta = match event {
                Ok(Event::Apply(object)) => Delta::Apply(slim(object)),
                Ok(Event::Delete(object)) => Delta::Delete(slim(object)),
                Ok(Event::Init) => {
                    listing.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listing.push(slim(object));
                    continue;
                }
                Ok(Event::InitDone) => Delta::Reset(std::mem::take(&mut listing)),
                Err(error) => {
                    warn!(kind = %K::kind(&()), %error, "watch failed; it is tried again");
                    continue;
                }
            };
            if sender.send(wrap(delta)).await.is_err() {
                return;
            }
        }
    }
}
