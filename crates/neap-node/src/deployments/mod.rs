//! Deployments without ReplicaSets: pods are made from the template directly, old ones replaced within the bounds of
//! the strategy. `plan` decides, this file acts. Knows nothing of Knative.

mod index;
mod plan;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes, merged};
use crate::quota;
use index::{Index, Key};
pub use plan::template_hash;
use plan::{Decision, Observed};

/// Back-off after a write that failed: long enough not to spin, short enough for a person to wait.
const RETRY: Duration = Duration::from_millis(500);
/// What is refused again and again is tried this seldom: nobody may change it for months.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// A plan is made again this often even when nothing happened.
const RESYNC: Duration = Duration::from_secs(300);

/// How busy an instance is, as far as the one who sends it requests knows.
pub trait Load: Send + Sync + 'static {
    /// Requests in flight at an address; 0 when nothing is known.
    fn in_flight(&self, address: SocketAddr) -> usize;
}

enum Event {
    Deployment(Change<Deployment>),
    Pod(Change<Pod>),
    Quota(Change<ResourceQuota>),
}

/// Runs until `shutdown`.
pub async fn run(client: Client, load: Arc<dyn Load>, now: fn() -> Timestamp, shutdown: CancellationToken) {
    let mut index = Index::default();
    let mut events = merged(vec![
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Deployment).boxed(),
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Pod).boxed(),
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Quota).boxed(),
    ]);
    loop {
        let due = index.next_due();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(event) => index.take(event),
                None => return,
            },
            () = until(due) => {}
        }
        // What else has arrived already belongs to the same look at the world.
        while let Some(Some(event)) = futures::FutureExt::now_or_never(events.next()) {
            index.take(event);
        }
        if !index.synced() {
            continue;
        }
        for key in index.due(tokio::time::Instant::now()) {
            let again = reconcile(&client, &mut index, &key, &*load, now()).await;
            index.again(key, again);
        }
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn reconcile(client: &Client, index: &mut Index, key: &Key, load: &dyn Load, now: Timestamp) -> Duration {
    let Some(deployment) = index.deployment(key) else { return RESYNC };
    let mut refusal = None;
    let decision = plan::plan(&observed(index, &deployment, load, None, now));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &key.0);
    let mut failed = false;
    for pod in &decision.create {
        if let Err(exceeded) = quota::admits(pod, index.quotas(&key.0), index.pods_of_namespace(&key.0)) {
            refusal = Some(forbidden(&deployment, &pod.name_any(), &exceeded));
            break;
        }
        match pods.create(&PostParams::default(), pod).await {
            Ok(made) => index.take(Event::Pod(Change::Apply(made))),
            // The store's trouble, not a refusal; it passes.
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                refusal = Some(status.message.clone());
                break;
            }
            Err(error) => {
                tracing::warn!(deployment = %key.1, namespace = %key.0, %error, "a pod could not be created");
                failed = true;
                break;
            }
        }
    }
    for (name, uid) in &decision.delete {
        let only_this =
            DeleteParams::default().preconditions(Preconditions { uid: Some(uid.clone()), resource_version: None });
        match pods.delete(name, &only_this).await {
            Ok(either) => {
                // The answer is the pod on its way out, or the news that it is gone; either way it does not count any more.
                if let Some(pod) = either.left() {
                    index.take(Event::Pod(Change::Apply(pod)));
                } else {
                    index.forget_pod(key, name);
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => index.forget_pod(key, name),
            Err(error) => {
                tracing::warn!(pod = %name, namespace = %key.0, %error, "a pod could not be deleted");
                failed = true;
            }
        }
    }
    let wrote = !decision.create.is_empty() || !decision.delete.is_empty();
    let Decision { status, again, .. } = if wrote || refusal.is_some() {
        plan::plan(&observed(index, &deployment, load, refusal.clone(), now))
    } else {
        decision
    };
    failed |= !write_status(client, index, &deployment, status).await;
    if refusal.is_some() {
        return index.refused(key);
    }
    index.accepted(key);
    if failed {
        return RETRY;
    }
    again.map_or(RESYNC, |again| again.min(RESYNC))
}

/// The sentence for a pod that a quota forbids. While the same quota forbids the same, the first pod's name stays in it:
/// each try makes another name, and is no news.
fn forbidden(deployment: &Deployment, pod: &str, exceeded: &str) -> String {
    let end = format!(" is forbidden: {exceeded}");
    let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let said = conditions.filter(|c| c.type_ == "ReplicaFailure").filter_map(|c| c.message.as_ref());
    said.into_iter().find(|m| m.ends_with(&end)).cloned().unwrap_or_else(|| format!("pods {pod:?}{end}"))
}

fn observed<'a>(
    index: &'a Index,
    deployment: &'a Deployment,
    load: &'a dyn Load,
    refusal: Option<String>,
    now: Timestamp,
) -> Observed<'a> {
    let mut pods = index.pods_of(deployment);
    pods.sort_by_key(|pod| pod.name_any());
    Observed { deployment, pods, in_flight: Box::new(move |address| load.in_flight(address)), refusal, now }
}

async fn write_status(client: &Client, index: &mut Index, deployment: &Deployment, status: DeploymentStatus) -> bool {
    let without_zeros = |status: &DeploymentStatus| {
        let mut status = status.clone();
        counts(&mut status).into_iter().for_each(|count| *count = count.filter(|n| *n > 0));
        status
    };
    if deployment.status.as_ref().map(without_zeros) == Some(without_zeros(&status)) {
        return true;
    }
    let api: Api<Deployment> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let mut wanted = deployment.clone();
    wanted.status = Some(status);
    wanted.metadata.managed_fields = None;
    // A whole status, on the version it was computed from: a newer deployment comes with its own event.
    match api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(status_patch(&wanted))).await
    {
        Ok(written) => {
            index.take(Event::Deployment(Change::Apply(written)));
            true
        }
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => true,
        Err(error) => {
            tracing::warn!(deployment = %deployment.name_any(), %error, "the status could not be written");
            false
        }
    }
}

/// Every count of a status.
fn counts(status: &mut DeploymentStatus) -> [&mut Option<i32>; 6] {
    [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
        &mut status.terminating_replicas,
    ]
}

fn status_patch(deployment: &Deployment) -> serde_json::Value {
    let mut status = deployment.status.clone().unwrap_or_default();
    // A merge patch keeps what it does not name, so counts that are gone are named as zero.
    counts(&mut status).into_iter().for_each(|count| *count = Some(count.unwrap_or(0)));
    serde_json::json!({
        "metadata": { "resourceVersion": deployment.metadata.resource_version },
        "status": status,
    })
}
