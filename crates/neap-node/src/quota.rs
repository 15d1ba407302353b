//! ResourceQuota: what a namespace uses of what it may, and whether one more pod fits. Pure, but for the loop that
//! writes the status, and the door ([`Quotas::admit`]) at which it tells what it knows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::admission::{AdmissionRequest, Operation};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;
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
    let Some(spec) = &pod.spec else { return Used::from([("pods".to_owned(), Amount::whole(1))]) };
    let mut used = Used::new();
    spec.containers.iter().for_each(|c| add(&mut used, of_container(c)));
    // Sidecars run beside all that comes after them; other init containers one by one, before the rest.
    let (mut beside, mut most) = (Used::new(), Used::new());
    for container in spec.init_containers.iter().flatten() {
        let mut now = beside.clone();
        add(&mut now, of_container(container));
        for (name, amount) in &now {
            let most = most.entry(name.clone()).or_insert(*amount);
            *most = (*most).max(*amount);
        }
        if container.restart_policy.as_deref() == Some("Always") {
            beside = now;
        }
    }
    add(&mut used, beside);
    for (name, amount) in most {
        let all = used.entry(name).or_default();
        *all = (*all).max(amount);
    }
    for (prefix, map) in [("requests.", &spec.overhead), ("limits.", &spec.overhead)] {
        add(&mut used, amounts(prefix, map.as_ref()));
    }
    used.insert("pods".to_owned(), Amount::whole(1));
    used
}

fn add(to: &mut Used, more: Used) {
    for (name, amount) in more {
        *to.entry(name).or_default() += amount;
    }
}

fn of_container(container: &Container) -> Used {
    let Some(resources) = &container.resources else { return Used::new() };
    let mut used = amounts("requests.", resources.requests.as_ref());
    used.extend(amounts("limits.", resources.limits.as_ref()));
    used
}

fn amounts(prefix: &str, of: Option<&BTreeMap<String, Quantity>>) -> Used {
    let mut used = Used::new();
    for (name, quantity) in of.into_iter().flatten() {
        let Some(amount) = quantity::parse(&quantity.0) else { continue };
        used.insert(format!("{prefix}{name}"), amount);
        if prefix == "requests." {
            used.insert(name.clone(), amount);
        }
    }
    used
}

enum Event {
    Quota(Change<ResourceQuota>),
    Pod(Change<Pod>),
}

/// How long a pod counts that was admitted and not seen: its creation may have failed after that.
const PROMISED: Duration = Duration::from_secs(10);

/// Namespace and name.
type Key = (String, String);

/// What is known of quotas and of what they bound. Cheap to clone.
#[derive(Clone, Default)]
pub struct Quotas(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    quotas: BTreeMap<Key, ResourceQuota>,
    pods: BTreeMap<Key, Pod>,
    /// Admitted and not seen yet: without them two that come together would both fit.
    promised: BTreeMap<Key, (Instant, Pod)>,
}

impl Quotas {
    /// An admission function for Pods: one that does not fit is not created, whoever asks. Anything else passes.
    ///
    /// # Errors
    /// 403, in Kubernetes' words.
    #[expect(clippy::result_large_err, reason = "the shape every door of the API server has")]
    pub fn admit(
        &self,
        request: &AdmissionRequest<DynamicObject>,
    ) -> Result<(DynamicObject, Vec<String>), kube::core::Status> {
        let Some(object) = request.object.as_ref().or(request.old_object.as_ref()) else {
            return Err(refusal("the request holds no object to admit".to_owned()));
        };
        let is_part = request.sub_resource.as_deref().is_some_and(|s| !s.is_empty());
        if request.operation == Operation::Create && !is_part && request.kind.kind == "Pod" {
            let namespace = request.namespace.clone().or_else(|| object.namespace()).unwrap_or_default();
            self.take(namespace, object, request.dry_run)?;
        }
        Ok((object.clone(), Vec::new()))
    }

    #[expect(clippy::result_large_err, reason = "the shape every door of the API server has")]
    fn take(&self, namespace: String, object: &DynamicObject, dry_run: bool) -> Result<(), kube::core::Status> {
        let mut known = self.known();
        let Known { quotas, pods, promised } = &mut *known;
        let of = |key: &&Key| key.0 == namespace;
        if !quotas.keys().any(|key| of(&key)) {
            return Ok(());
        }
        let name = object.name_any();
        let pod = serde_json::to_value(object).and_then(serde_json::from_value::<Pod>);
        let pod = pod.map_err(|error| refusal(format!("pods {name:?} cannot be read: {error}")))?;
        promised.retain(|_, (at, _)| at.elapsed() < PROMISED);
        let there = pods.iter().filter(|(key, _)| of(key)).map(|(_, pod)| pod);
        let coming = promised.iter().filter(|(key, _)| of(key)).map(|(_, (_, pod))| pod);
        let quotas = quotas.iter().filter(|(key, _)| of(key)).map(|(_, quota)| quota);
        admits(&pod, quotas, there.chain(coming))
            .map_err(|exceeded| refusal(format!("pods {name:?} is forbidden: {exceeded}")))?;
        if !dry_run {
            promised.insert((namespace, name), (Instant::now(), pod));
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(message: String) -> kube::core::Status {
    kube::core::Status::failure(&message, "Forbidden").with_code(403)
}

/// Keeps `status.used` of every quota true, until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    keep_true(client, Quotas::default(), shutdown).await;
}

/// Like [`run`], for quotas that are also asked at the API's door.
pub async fn keep_true(client: Client, quotas: Quotas, shutdown: CancellationToken) {
    let mut events = merged(vec![
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Quota).boxed(),
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Pod).boxed(),
    ]);
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        let due = match event {
            None => return,
            Some(event) => quotas.known().learn(event),
        };
        for ((namespace, name), status) in due {
            let api: Api<ResourceQuota> = Api::namespaced(client.clone(), &namespace);
            // A merge patch keeps what it does not name: what the quota does not bound any more is taken out by name.
            let mut patch = serde_json::json!({ "status": status });
            let before = quotas.known().quotas.get(&(namespace.clone(), name.clone())).and_then(|q| q.status.clone());
            for (field, old) in before.iter().flat_map(|s| [("used", &s.used), ("hard", &s.hard)]) {
                for key in old.iter().flatten().map(|(key, _)| key) {
                    if patch["status"][field].get(key).is_none() {
                        patch["status"][field][key] = serde_json::Value::Null;
                    }
                }
            }
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(written) => {
                    // It may have been deleted meanwhile, which its event tells.
                    if let Some(known) = quotas.known().quotas.get_mut(&(namespace, name)) {
                        *known = written;
                    }
                }
                Err(kube::Error::Api(error)) if error.code == 404 => {}
                Err(error) => tracing::warn!(quota = %name, %error, "the status could not be written"),
            }
        }
    }
}

impl Known {
    /// Takes an event; the statuses that are not true any more.
    fn learn(&mut self, event: Event) -> Vec<(Key, ResourceQuotaStatus)> {
        match event {
            Event::Quota(change) => keep(&mut self.quotas, change),
            Event::Pod(change) => keep(&mut self.pods, change),
        }
        self.promised.retain(|key, _| !self.pods.contains_key(key));
        let status = |(key, quota): (&Key, &ResourceQuota)| {
            let used = total(self.pods.iter().filter(|(of, _)| of.0 == key.0).map(|(_, pod)| pod));
            let hard = hard(quota);
            let used = hard.keys().map(|name| {
                (name.clone(), Quantity(quantity::print(name, used.get(name).copied().unwrap_or_default())))
            });
            let status = ResourceQuotaStatus { used: Some(used.collect()), hard: Some(hard.clone()) };
            (quota.status.as_ref() != Some(&status)).then(|| (key.clone(), status))
        };
        self.quotas.iter().filter_map(status).collect()
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

    #[test]
    fn a_pod_counts_for_the_most_it_has_at_a_time() {
        let check = |init: &[(&str, bool)], main: &str, want: &str| {
            let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            let init: Vec<_> = init
                .iter()
                .map(|(cpu, sidecar)| {
                    let mut one = container(cpu);
                    if *sidecar {
                        one["restartPolicy"] = json!("Always");
                    }
                    one
                })
                .collect();
            let spec = json!({"initContainers": init, "containers": [container(main)], "overhead": {"cpu": "1m"}});
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a pod");
            let used = of_pod(&pod);
            assert_eq!(quantity::print("requests.cpu", used["requests.cpu"]), want);
            assert_eq!(used["requests.cpu"], used["cpu"]);
        };
        check(&[], "20m", "21m");
        check(&[("50m", false), ("30m", false)], "20m", "51m");
        check(&[("5m", true)], "20m", "26m");
        check(&[("5m", true), ("50m", false)], "20m", "56m");
        check(&[("50m", false), ("5m", true)], "60m", "66m");
    }

    #[tokio::test(start_paused = true)]
    async fn no_pod_passes_the_door_that_does_not_fit() {
        let quotas = Quotas::default();
        quotas.known().learn(Event::Quota(Change::Reset(vec![quota()])));
        let ask = |name: &str, namespace: &str, dry_run: bool| {
            let mut pod = pod("20m");
            pod.metadata.name = Some(name.to_owned());
            let request = json!({
                "uid": "r", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
                "resource": {"group": "", "version": "v1", "resource": "pods"}, "name": name, "namespace": namespace,
                "userInfo": {}, "dryRun": dry_run, "object": pod,
            });
            let request = serde_json::from_value(request).expect("a request");
            quotas.admit(&request).map(drop).map_err(|status| status.message)
        };
        let over = |name: &str| {
            Err(format!(
                "pods \"{name}\" is forbidden: exceeded quota: q, requested: cpu=20m, used: cpu=40m, limited: cpu=50m"
            ))
        };
        assert_eq!(ask("try", "n", true), Ok(()));
        // They come faster than the watch tells of them.
        assert_eq!((ask("a", "n", false), ask("b", "n", false)), (Ok(()), Ok(())));
        assert_eq!(ask("c", "n", false), over("c"));
        assert_eq!(ask("c", "elsewhere", false), Ok(()));
        // One came to be, one did not.
        let mut seen = pod("20m");
        seen.metadata.name = Some("a".into());
        quotas.known().learn(Event::Pod(Change::Apply(seen)));
        assert_eq!(ask("c", "n", false), over("c"));
        tokio::time::advance(PROMISED).await;
        assert_eq!(ask("c", "n", false), Ok(()));
    }
}
