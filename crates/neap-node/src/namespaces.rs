//! Namespaces: what every new one holds from its first moment, and the clearing out of one that is to go.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes};

/// The account pods run as when they name none.
const DEFAULT_ACCOUNT: &str = "default";
/// Where pods find the certificate authority of the API server.
const CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Between two looks at a namespace that still holds something: finalizers of others take their time.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Runs until `shutdown`. `ca` is the authority's certificate, PEM.
pub async fn run(client: Client, ca: String, shutdown: CancellationToken) {
    let mut namespaces = Box::pin(changes::<Namespace>(Api::all(client.clone()), watcher::Config::default()));
    let mut clearing: BTreeMap<String, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let change = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = tasks.join_next() => continue,
            change = namespaces.next() => change,
        };
        let found = match change {
            None => return,
            Some(Change::Apply(namespace)) => vec![namespace],
            Some(Change::Reset(all)) => all,
            Some(Change::Delete(namespace)) => {
                clearing.remove(&namespace.name_any());
                continue;
            }
        };
        for namespace in found {
            let name = namespace.name_any();
            if namespace.metadata.deletion_timestamp.is_none() {
                furnish(&client, &name, &ca).await;
            } else if clearing.get(&name).is_none_or(tokio::task::AbortHandle::is_finished) {
                let handle = tasks.spawn(clear(client.clone(), name.clone()));
                clearing.insert(name, handle);
            }
        }
    }
}

async fn furnish(client: &Client, namespace: &str, ca: &str) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(DEFAULT_ACCOUNT.into());
    made(accounts.create(&PostParams::default(), &account).await.map(drop), namespace, DEFAULT_ACCOUNT);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut map = ConfigMap { data: Some([("ca.crt".to_owned(), ca.to_owned())].into()), ..Default::default() };
    map.metadata.name = Some(CA_CONFIG_MAP.into());
    made(maps.create(&PostParams::default(), &map).await.map(drop), namespace, CA_CONFIG_MAP);
}

fn made(result: kube::Result<()>, namespace: &str, name: &str) {
    match result {
        Ok(()) => {}
        // There already, or the namespace is on its way out: both as it should be.
        Err(kube::Error::Api(status)) if [403, 404, 409].contains(&status.code) => {}
        Err(error) => tracing::warn!(%namespace, %name, %error, "a new namespace could not be furnished"),
    }
}

/// Deletes what is in a namespace until nothing is left, then lets the namespace go.
async fn clear(client: Client, namespace: String) {
    let mut wait = FIRST_LOOK;
    loop {
        match sweep(&client, &namespace).await {
            Ok(0) => match release(&client, &namespace).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%namespace, %error, "an empty namespace could not be released"),
            },
            Ok(left) => tracing::debug!(%namespace, left, "a namespace still holds objects"),
            Err(error) => tracing::warn!(%namespace, %error, "a namespace could not be cleared"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_LOOK);
    }
}

/// Asks for everything to go; how many objects are still there.
async fn sweep(client: &Client, namespace: &str) -> kube::Result<usize> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut left = 0;
    for group in discovery.groups() {
        // Not the recommended resources: those leave out kinds that the group's first version does not have.
        for (resource, capabilities) in group.resources_by_stability() {
            let listable =
                capabilities.supports_operation(verbs::LIST) && capabilities.supports_operation(verbs::DELETE);
            // Both groups of Events show the same objects.
            let twice = resource.group == "events.k8s.io";
            if capabilities.scope != Scope::Namespaced || !listable || twice {
                continue;
            }
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
            for object in api.list(&ListParams::default()).await? {
                left += 1;
                if object.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                match api.delete(&object.name_any(), &DeleteParams::background()).await {
                    Ok(either) if either.is_right() => left -= 1,
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => left -= 1,
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(left)
}

/// Takes the mark off that keeps an emptied namespace.
async fn release(client: &Client, name: &str) -> kube::Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(()) };
    namespace.spec.get_or_insert_default().finalizers = Some(Vec::new());
    match api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
