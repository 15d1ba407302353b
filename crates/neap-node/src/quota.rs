//! ResourceQuota: what a namespace uses of what it may, and whether one more pod fits. Pure, but for the loop that
//! writes the status.

use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes, merged};
use crate::quantity::{self, Amount};

type Used = BTreeMap<String, Amount>;
/// A resource that does not suffice: asked for, used, allowed.
type Over = (String, Amount, Amount, Quantity);

/// Whether the pod fits in every quota of its namespace.
///
/// # Errors
/// The sentence Kubernetes has for it.
pub(crate) fn admits<'a>(
    pod: &Pod,
    quotas: impl Iterator<Item = &'a ResourceQuota>,
    pods: impl Iterator<Item = &'a Pod>,
) -> Result<(), String> {
    let quotas: Vec<_> = quotas.collect();
    if quotas.is_empty() {
        return Ok(());
    }
    let used = total(pods);
    let asked = of_pod(pod);
    for quota in quotas {
        let mut over = Vec::new();
        let mut missing = Vec::new();
        for (name, hard) in hard(quota) {
            let Some(limit) = quantity::parse(&hard.0) else { continue };
            let Some(more) = asked.get(&name) else {
                // A quota on a resource obliges every pod to say how much of it it wants.
                if is_of_pods(&name) && name != "pods" {
                    missing.push(name);
                }
                continue;
            };
            let before = used.get(&name).copied().unwrap_or_default();
            if before + *more > limit {
                over.push((name, *more, before, hard));
            }
        }
        let quota = quota.name_any();
        if !missing.is_empty() {
            return Err(format!("failed quota: {quota}: must specify {}", missing.join(" for: ")));
        }
        if !over.is_empty() {
            let list = |f: &dyn Fn(&Over) -> String| {
                over.iter().map(|row| format!("{}={}", row.0, f(row))).collect::<Vec<_>>().join(",")
            };
            return Err(format!(
                "exceeded quota: {quota}, requested: {}, used: {}, limited: {}",
                list(&|row| quantity::print(&row.0, row.1)),
                list(&|row| quantity::print(&row.0, row.2)),
                list(&|row| row.3.0.clone()),
            ));
        }
    }
    Ok(())
}

fn hard(quota: &ResourceQuota) -> BTreeMap<String, Quantity> {
    quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default()
}

fn is_of_pods(resource: &str) -> bool {
    ["pods", "cpu", "memory"].contains(&resource)
        || resource.starts_with("requests.")
        || resource.starts_with("limits.")
}

fn total<'a>(pods: impl Iterator<Item = &'a Pod>) -> Used {
    let mut used = Used::new();
    for pod in pods {
        let ended = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"));
        if !ended {
            for (name, amount) in of_pod(pod) {
                *used.entry(name).or_default() += amount;
            }
        }
    }
    used
}

/// What one pod counts for. `cpu` and `requests.cpu` are the same thing.
fn of_pod(pod: &Pod) -> Used {
    let mut used = Used::from([("pods".to_owned(), Amount::whole(1))]);
    for container in pod.spec.iter().flat_map(|s| &s.containers) {
        let Some(resources) = &container.resources else { continue };
        for (prefix, map) in [("requests.", &resources.requests), ("limits.", &resources.limits)] {
            for (name, quantity) in map.iter().flatten() {
                let Some(amount) = quantity::parse(&quantity.0) else { continue };
                *used.entry(format!("{prefix}{name}")).or_default() += amount;
                if prefix == "requests." {
                    *used.entry(name.clone()).or_default() += amount;
                }
            }
        }
    }
    used
}

enum Event {
    Quota(Change<ResourceQuota>),
    Pod(Change<Pod>),
}

/// Keeps `status.used` of every quota true, until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let mut quotas: BTreeMap<(String, String), ResourceQuota> = BTreeMap::new();
    let mut pods: BTreeMap<(String, String), Pod> = BTreeMap::new();
    let mut events = merged(vec![
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Quota).boxed(),
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Pod).boxed(),
    ]);
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Event::Quota(change)) => keep(&mut quotas, change),
            Some(Event::Pod(change)) => keep(&mut pods, change),
        }
        for quota in quotas.values_mut() {
            let namespace = quota.namespace().unwrap_or_default();
            let used = total(pods.iter().filter(|(key, _)| key.0 == namespace).map(|(_, pod)| pod));
            let hard = hard(quota);
            let used = hard.keys().map(|name| {
                (name.clone(), Quantity(quantity::print(name, used.get(name).copied().unwrap_or_default())))
            });
            let status = ResourceQuotaStatus { used: Some(used.collect()), hard: Some(hard.clone()) };
            if quota.status.as_ref() == Some(&status) {
                continue;
            }
            let api: Api<ResourceQuota> = Api::namespaced(client.clone(), &namespace);
            let patch = serde_json::json!({ "status": status });
            match api.patch_status(&quota.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(written) => *quota = written,
                Err(kube::Error::Api(error)) if error.code == 404 => {}
                Err(error) => tracing::warn!(quota = %quota.name_any(), %error, "the status could not be written"),
            }
        }
    }
}

fn keep<K: kube::Resource>(map: &mut BTreeMap<(String, String), K>, change: Change<K>) {
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match change {
        Change::Apply(object) => {
            map.insert(key(&object), object);
        }
        Change::Delete(object) => {
            map.remove(&key(&object));
        }
        Change::Reset(all) => *map = all.into_iter().map(|object| (key(&object), object)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(cpu: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [
            {"name": "c", "resources": if cpu.is_empty() { json!({}) } else { json!({"requests": {"cpu": cpu}}) }}]}}))
        .expect("a pod")
    }

    fn quota() -> ResourceQuota {
        serde_json::from_value(json!({"metadata": {"name": "q", "namespace": "n"}, "spec": {"hard": {"cpu": "50m"}}}))
            .expect("a quota")
    }

    #[test]
    fn a_pod_must_fit_and_must_say_what_it_wants() {
        let quotas = [quota()];
        assert_eq!(admits(&pod("20m"), quotas.iter(), [pod("20m")].iter()), Ok(()));
        assert_eq!(
            admits(&pod("40m"), quotas.iter(), [pod("20m")].iter()),
            Err("exceeded quota: q, requested: cpu=40m, used: cpu=20m, limited: cpu=50m".into())
        );
        assert_eq!(admits(&pod(""), quotas.iter(), [].iter()), Err("failed quota: q: must specify cpu".into()));
        assert_eq!(admits(&pod(""), [].iter(), [].iter()), Ok(()));
    }
}
