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
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes};

/// The account pods run as when they name none.
const DEFAULT_ACCOUNT: &str = "default";
/// Where pods find the certificate authority of the API server.
const CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Between two looks at a namespace that still holds something: finalizers of others take their time.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(5);
/// Before what could not be made in a namespace is tried again; and how often at most what is missing is looked for.
const FURNISH_AGAIN: Duration = Duration::from_secs(1);
const RESYNC: Duration = Duration::from_secs(300);

/// Runs until `shutdown`. `ca` is the authority's certificate, PEM.
pub async fn run(client: Client, ca: String, shutdown: CancellationToken) {
    let mut namespaces = Box::pin(changes::<Namespace>(Api::all(client.clone()), watcher::Config::default()));
    let mut clearing: BTreeMap<String, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    // Which are to be looked at again, when.
    let mut again = BTreeMap::<String, Instant>::new();
    loop {
        let due = again.values().min().copied();
        let change = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = tasks.join_next() => continue,
            change = namespaces.next() => change,
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                let now = Instant::now();
                for (name, at) in again.iter_mut().filter(|(_, at)| **at <= now) {
                    *at = next_look(furnish(&client, name, &ca).await);
                }
                continue;
            }
        };
        let found = match change {
            None => return,
            Some(Change::Apply(namespace)) => vec![namespace],
            Some(Change::Reset(all)) => {
                again.retain(|name, _| all.iter().any(|n| n.metadata.name.as_ref() == Some(name)));
                all
            }
            Some(Change::Delete(namespace)) => {
                again.remove(&namespace.name_any());
                if let Some(task) = clearing.remove(&namespace.name_any()) {
                    // The next one of that name is not the one it was for.
                    task.abort();
                }
                continue;
            }
        };
        for namespace in found {
            let name = namespace.name_any();
            if namespace.metadata.deletion_timestamp.is_none() {
                again.insert(name.clone(), next_look(furnish(&client, &name, &ca).await));
                continue;
            }
            again.remove(&name);
            if clearing.get(&name).is_none_or(tokio::task::AbortHandle::is_finished) {
                let uid = namespace.uid().unwrap_or_default();
                let handle = tasks.spawn(clear(client.clone(), name.clone(), uid));
                clearing.insert(name, handle);
            }
        }
    }
}

/// What somebody takes away is made again by and by, what could not be made is tried again soon.
fn next_look(furnished: bool) -> Instant {
    Instant::now() + if furnished { RESYNC } else { FURNISH_AGAIN }
}

/// Returns whether everything is there.
async fn furnish(client: &Client, namespace: &str, ca: &str) -> bool {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(DEFAULT_ACCOUNT.into());
    let accounted = made(accounts.create(&PostParams::default(), &account).await.map(drop), namespace, DEFAULT_ACCOUNT);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut map = ConfigMap { data: Some([("ca.crt".to_owned(), ca.to_owned())].into()), ..Default::default() };
    map.metadata.name = Some(CA_CONFIG_MAP.into());
    made(maps.create(&PostParams::default(), &map).await.map(drop), namespace, CA_CONFIG_MAP) && accounted
}

fn made(result: kube::Result<()>, namespace: &str, name: &str) -> bool {
    match result {
        Ok(()) => true,
        // There already, or the namespace is on its way out: both as it should be.
        Err(kube::Error::Api(status)) if [403, 404, 409].contains(&status.code) => true,
        Err(error) => {
            tracing::warn!(%namespace, %name, %error, "a namespace could not be furnished; trying again");
            false
        }
    }
}

/// Deletes what is in a namespace until nothing is left, then lets the namespace go. Touches no other of that name.
async fn clear(client: Client, namespace: String, uid: String) {
    let mut wait = FIRST_LOOK;
    loop {
        match is_going(&client, &namespace, &uid).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%namespace, %error, "a namespace could not be looked at");
                tokio::time::sleep(LAST_LOOK).await;
                continue;
            }
        }
        match sweep(&client, &namespace).await {
            Ok(0) => match release(&client, &namespace, &uid).await {
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

async fn is_going(client: &Client, name: &str, uid: &str) -> kube::Result<bool> {
    let found = Api::<Namespace>::all(client.clone()).get_opt(name).await?;
    Ok(found.is_some_and(|n| n.metadata.uid.as_deref() == Some(uid) && n.metadata.deletion_timestamp.is_some()))
}

/// Asks for everything to go; how many objects are still there. What one object or one kind refuses does not keep the
/// others.
async fn sweep(client: &Client, namespace: &str) -> kube::Result<usize> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut left = 0;
    let mut failed = None;
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
            let found = match api.list(&ListParams::default()).await {
                Ok(found) => found,
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            };
            for object in found {
                left += 1;
                if object.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                match api.delete(&object.name_any(), &DeleteParams::background()).await {
                    Ok(either) if either.is_right() => left -= 1,
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => left -= 1,
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
    }
    failed.map_or(Ok(left), Err)
}

/// Takes the mark off that keeps an emptied namespace.
async fn release(client: &Client, name: &str, uid: &str) -> kube::Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api.get_opt(name).await?.filter(|found| found.metadata.uid.as_deref() == Some(uid));
    // It is written back with its version: if it is another by then, that is a conflict.
    let Some(mut namespace) = found else { return Ok(()) };
    namespace.spec.get_or_insert_default().finalizers = Some(Vec::new());
    match api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_testkit::Api as TestApi;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn what_a_namespace_lost_is_made_again() {
        let api = TestApi::start().await;
        let client = api.client();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(client.clone(), "ca".into(), shutdown.clone()));
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let there = || async { accounts.get_opt(DEFAULT_ACCOUNT).await.unwrap() };
        neap_testkit::eventually("an account", there).await;
        accounts.delete(DEFAULT_ACCOUNT, &DeleteParams::default()).await.unwrap();
        tokio::time::sleep(RESYNC + Duration::from_secs(1)).await;
        neap_testkit::eventually("the account again", there).await;
        shutdown.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_made_anew_is_left_alone() {
        let api = TestApi::start().await;
        let client = api.client();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let made: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
        let uid = namespaces.create(&PostParams::default(), &made).await.unwrap().metadata.uid.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "team");
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "kept"}})).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
        // The tasks of an earlier one of that name, and of this one before anybody deleted it.
        for uid in ["an earlier one", &uid] {
            clear(client.clone(), "team".into(), uid.to_owned()).await;
            assert!(maps.get_opt("kept").await.unwrap().is_some(), "{uid}");
        }
        release(&client, "team", "an earlier one").await.unwrap();
        namespaces.delete("team", &DeleteParams::default()).await.unwrap();
        assert!(is_going(&client, "team", &uid).await.unwrap(), "its mark is still on it");
        clear(client.clone(), "team".into(), uid).await;
        assert!(namespaces.get_opt("team").await.unwrap().is_none());
    }
}
