//! Feeds the data plane from watches. The only module that knows a Kubernetes client.
//!
//! Each kind has one endless watch, which lists again by itself after an error. What arrives is handed on as it is:
//! whatever can be decided is decided in the indexes.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use neap_api::networking::Ingress;
use neap_api::serving::Revision;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::plane::{DataPlane, Feed, Indexed};

/// Watches until `shutdown` is cancelled. `listed` is cancelled when the plane knows all that there is; who serves before
/// that answers 404 for what is merely not known yet.
pub async fn run(client: Client, plane: Arc<DataPlane>, listed: CancellationToken, shutdown: CancellationToken) {
    let left = Lists::new(5, listed);
    let all = async {
        tokio::join!(
            watch::<Revision>(&client, &plane, &left),
            watch::<EndpointSlice>(&client, &plane, &left),
            watch::<Service>(&client, &plane, &left),
            watch::<Secret>(&client, &plane, &left),
            watch::<Ingress>(&client, &plane, &left),
        )
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        _ = all => {}
    }
}

/// The same for an activator, which has no routes.
pub async fn activator(client: Client, plane: Arc<DataPlane>, listed: CancellationToken, shutdown: CancellationToken) {
    let left = Lists::new(2, listed);
    let all = async {
        tokio::join!(watch::<Revision>(&client, &plane, &left), watch::<EndpointSlice>(&client, &plane, &left))
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        _ = all => {}
    }
}

/// Kinds that have not been listed yet.
struct Lists {
    left: AtomicUsize,
    listed: CancellationToken,
}

impl Lists {
    fn new(kinds: usize, listed: CancellationToken) -> Self {
        Self { left: AtomicUsize::new(kinds), listed }
    }

    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.listed.cancel();
        }
    }
}

async fn watch<K>(client: &Client, plane: &DataPlane, lists: &Lists)
where
    K: Resource<DynamicType = ()> + Indexed + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let kind = K::kind(&());
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listed = Vec::new();
    let mut first = true;
    while let Some(event) = events.next().await {
        let feed = match event {
            Ok(Event::Apply(object)) => Feed::Apply(object),
            Ok(Event::Delete(object)) => Feed::Delete(object),
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed.push(object);
                continue;
            }
            Ok(Event::InitDone) => Feed::Reset(std::mem::take(&mut listed)),
            Err(error) => {
                tracing::warn!(%kind, error = &error as &dyn std::error::Error, "watch interrupted; trying again");
                continue;
            }
        };
        let whole = matches!(feed, Feed::Reset(_));
        plane.feed(feed, Instant::now());
        if whole && std::mem::take(&mut first) {
            lists.one_less();
        }
    }
}
