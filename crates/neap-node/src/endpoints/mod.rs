//! Services to addresses: EndpointSlices (what the gateway reads) and Endpoints (what older tools read) for Services
//! with a selector, and slices that mirror the Endpoints somebody else keeps for Services without one.

mod index;
mod plan;

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes, merged};
use index::{Index, Key};
use plan::{Wanted, plan};

enum Event {
    Service(Change<Service>),
    Pod(Change<Pod>),
    Slice(Change<EndpointSlice>),
    Endpoints(Change<Endpoints>),
}

/// Runs until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let mut index = Index::default();
    let all = watcher::Config::default;
    let mut events = merged(vec![
        changes(Api::all(client.clone()), all()).map(Event::Service).boxed(),
        changes(Api::all(client.clone()), all()).map(Event::Pod).boxed(),
        changes(Api::all(client.clone()), all()).map(Event::Slice).boxed(),
        changes(Api::all(client.clone()), all()).map(Event::Endpoints).boxed(),
    ]);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(event) => index.take(event),
                None => return,
            },
        }
        while let Some(Some(event)) = events.next().now_or_never() {
            index.take(event);
        }
        if !index.synced() {
            continue;
        }
        for key in index.due() {
            reconcile(&client, &mut index, &key).await;
        }
    }
}

async fn reconcile(client: &Client, index: &mut Index, key: &Key) {
    let Wanted { slices, endpoints } = plan(&index.observed(key));
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.0);
    let mut kept = BTreeSet::new();
    for slice in slices {
        kept.insert(slice.name_any());
        let known = index.slice(&key.0, &slice.name_any());
        if let Some(written) = write(&api, known, slice, plan::same_slice).await {
            index.take(Event::Slice(Change::Apply(written)));
        }
    }
    let stale: Vec<_> = index.slices_of(key).into_iter().filter(|name| !kept.contains(name)).collect();
    for name in stale {
        if gone(api.delete(&name, &DeleteParams::default()).await.map(drop), "EndpointSlice", &name) {
            index.forget_slice(&key.0, &name);
        }
    }
    let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.0);
    match endpoints {
        plan::WantedEndpoints::Keep(wanted) => {
            if let Some(written) = write(&api, index.endpoints(key), wanted, plan::same_endpoints).await {
                index.take(Event::Endpoints(Change::Apply(written)));
            }
        }
        plan::WantedEndpoints::Remove => {
            if gone(api.delete(&key.1, &DeleteParams::default()).await.map(drop), "Endpoints", &key.1) {
                index.forget_endpoints(key);
            }
        }
        plan::WantedEndpoints::NotOurs => {}
    }
}

/// Creates, or replaces what differs. A conflict is no failure: the newer object comes as an event and is looked at then.
async fn write<K>(api: &Api<K>, known: Option<&K>, mut wanted: K, same: fn(&K, &K) -> bool) -> Option<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let name = wanted.name_any();
    let result = match known {
        Some(known) if same(known, &wanted) => return None,
        Some(known) => {
            wanted.meta_mut().resource_version = known.resource_version();
            api.replace(&name, &PostParams::default(), &wanted).await
        }
        None => api.create(&PostParams::default(), &wanted).await,
    };
    match result {
        Ok(written) => Some(written),
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => None,
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), %name, %error, "addresses could not be written");
            None
        }
    }
}

fn gone(result: kube::Result<()>, kind: &str, name: &str) -> bool {
    match result {
        Ok(()) => true,
        Err(kube::Error::Api(error)) if error.code == 404 => true,
        Err(error) => {
            tracing::warn!(%kind, %name, %error, "stale addresses could not be removed");
            false
        }
    }
}
