//! Services to addresses: EndpointSlices (what the gateway reads) and Endpoints (what older tools read) for Services
//! with a selector, and slices that mirror the Endpoints somebody else keeps for Services without one.

mod index;
mod plan;

use std::collections::BTreeSet;
use std::time::Duration;

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

/// Before what could not be written is looked at again.
const RETRY: Duration = Duration::from_millis(500);

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
    let mut failed: Vec<Key> = Vec::new();
    loop {
        let retry = async {
            match failed.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(RETRY).await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(event) => index.take(event),
                None => return,
            },
            () = retry => index.look_at(std::mem::take(&mut failed)),
        }
        while let Some(Some(event)) = events.next().now_or_never() {
            index.take(event);
        }
        if !index.synced() {
            continue;
        }
        for key in index.due() {
            if !reconcile(&client, &mut index, &key).await {
                failed.push(key);
            }
        }
    }
}

/// Whether everything is as it should be, or will be looked at by an event of its own.
async fn reconcile(client: &Client, index: &mut Index, key: &Key) -> bool {
    let mut well = true;
    let Wanted { slices, endpoints } = plan(&index.observed(key));
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.0);
    let mut kept = BTreeSet::new();
    for slice in slices {
        kept.insert(slice.name_any());
        let known = index.slice(&key.0, &slice.name_any());
        match write(&api, known, slice, plan::same_slice).await {
            Ok(Some(written)) => index.take(Event::Slice(Change::Apply(written))),
            Ok(None) => {}
            Err(Unwritten) => well = false,
        }
    }
    let stale: Vec<_> = index.slices_of(key).into_iter().filter(|name| !kept.contains(name)).collect();
    for name in stale {
        if gone(api.delete(&name, &DeleteParams::default()).await.map(drop), "EndpointSlice", &name) {
            index.forget_slice(&key.0, &name);
        } else {
            well = false;
        }
    }
    let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.0);
    match endpoints {
        plan::WantedEndpoints::Keep(wanted) => {
            match write(&api, index.endpoints(key), wanted, plan::same_endpoints).await {
                Ok(Some(written)) => index.take(Event::Endpoints(Change::Apply(written))),
                Ok(None) => {}
                Err(Unwritten) => well = false,
            }
        }
        plan::WantedEndpoints::Remove => {
            if gone(api.delete(&key.1, &DeleteParams::default()).await.map(drop), "Endpoints", &key.1) {
                index.forget_endpoints(key);
            } else {
                well = false;
            }
        }
        plan::WantedEndpoints::NotOurs => {}
    }
    well
}

/// It was said in the log why.
struct Unwritten;

/// Creates, or replaces what differs. A conflict is no failure: the newer object comes as an event and is looked at then.
async fn write<K>(
    api: &Api<K>,
    known: Option<&K>,
    mut wanted: K,
    same: fn(&K, &K) -> bool,
) -> Result<Option<K>, Unwritten>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let name = wanted.name_any();
    let result = match known {
        Some(known) if same(known, &wanted) => return Ok(None),
        Some(known) => {
            wanted.meta_mut().resource_version = known.resource_version();
            api.replace(&name, &PostParams::default(), &wanted).await
        }
        None => api.create(&PostParams::default(), &wanted).await,
    };
    match result {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(None),
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), %name, %error, "addresses could not be written; trying again");
            Err(Unwritten)
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

#[cfg(test)]
mod tests {
    use super::*;
    use neap_testkit::Api as TestApi;
    use serde_json::json;

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later() {
        let api = TestApi::start().await;
        let service = json!({"metadata": {"name": "s", "namespace": "default", "uid": "u"},
            "spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}});
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"podIP": "198.19.0.2", "conditions": [{"type": "Ready", "status": "True"}]}});
        let mut index = Index::default();
        index.take(Event::Service(Change::Reset(vec![serde_json::from_value(service).unwrap()])));
        index.take(Event::Pod(Change::Reset(vec![serde_json::from_value(pod).unwrap()])));
        let key = ("default".to_owned(), "s".to_owned());
        // Nobody listens there.
        let away = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        assert!(!reconcile(&away, &mut index, &key).await, "it is to be looked at again");
        index.due();
        index.look_at(vec![key.clone()]);
        assert_eq!(index.due(), std::slice::from_ref(&key));
        assert!(reconcile(&api.client(), &mut index, &key).await);
        let slices: Api<EndpointSlice> = Api::namespaced(api.client(), "default");
        let written = slices.list(&kube::api::ListParams::default()).await.unwrap().items;
        assert_eq!(written.len(), 1);
        assert!(reconcile(&away, &mut index, &key).await, "it is as it should be");
    }
}
