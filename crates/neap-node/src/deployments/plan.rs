//! From a deployment and its pods to what must be made and what must go. Pure: time, load and refusals are given.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

/// Label that tells pods of one template from those of another.
const HASH_LABEL: &str = "pod-template-hash";
/// Annotation by which a user says which pod to spare: the lower goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Pods made in one go at most (Kubernetes' bound): the rest are made when these were seen, and nobody else waits long.
const BATCH: usize = 500;
/// Knative's and Kubernetes' default, seconds.
const PROGRESS_DEADLINE: i32 = 600;

pub(super) struct Observed<'a> {
    pub(super) deployment: &'a Deployment,
    /// Every pod it owns, in order of name.
    pub(super) pods: Vec<&'a Pod>,
    pub(super) in_flight: Box<dyn Fn(SocketAddr) -> usize + 'a>,
    /// Why the last pod could not be made, in the API's words.
    pub(super) refusal: Option<String>,
    pub(super) now: Timestamp,
}

pub(super) struct Decision {
    pub(super) create: Vec<Pod>,
    /// Name and UID.
    pub(super) delete: Vec<(String, String)>,
    pub(super) status: DeploymentStatus,
    pub(super) again: Option<Duration>,
}

pub(super) fn plan(observed: &Observed<'_>) -> Decision {
    let deployment = observed.deployment;
    let hash = hash_of(deployment);
    let live: Vec<&Pod> =
        observed.pods.iter().copied().filter(|pod| !is_terminating(pod) && !is_finished(pod)).collect();
    let (new, old): (Vec<&Pod>, Vec<&Pod>) =
        live.iter().copied().partition(|pod| pod.labels().get(HASH_LABEL) == Some(&hash));
    let wanted = replicas(deployment);
    let going = deployment.metadata.deletion_timestamp.is_some();
    let paused = deployment.spec.as_ref().is_some_and(|s| s.paused == Some(true));

    let mut create = 0;
    let mut victims: Vec<&Pod> = Vec::new();
    if !going {
        // A pod that has ended is replaced, since a deployment's pods run for ever.
        victims.extend(observed.pods.iter().filter(|pod| is_finished(pod) && !is_terminating(pod)));
        if paused {
            // A pause holds the change of versions: how many there are is still kept.
            create = wanted.saturating_sub(live.len());
            victims.extend(least_missed(&live, observed).into_iter().take(live.len().saturating_sub(wanted)));
        } else if old.is_empty() {
            // Old ones on their way out have their grace, and hold what two must not share.
            let waits = is_recreate(deployment) && observed.pods.iter().any(|pod| is_leaving(pod, &hash));
            create = if waits { 0 } else { wanted.saturating_sub(new.len()) };
            victims.extend(least_missed(&new, observed).into_iter().take(new.len().saturating_sub(wanted)));
        } else {
            let (made, gone) = roll(deployment, wanted, &new, &old, observed);
            create = made;
            victims.extend(gone);
        }
    }
    // While paused a lost pod is replaced by its like, as long as one is left to take after.
    let model = old.first().filter(|_| paused && new.is_empty());
    let made = |_| model.map_or_else(|| pod_of(deployment, &hash), |model| like(deployment, model));
    let again_ready = settle(deployment, &live, observed.now);
    let status = status(observed, wanted, &new, &old);
    let again = [again_ready, deadline(deployment, &status, observed.now)].into_iter().flatten().min();
    Decision {
        create: (0..create.min(BATCH)).map(made).collect(),
        delete: victims.iter().map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect(),
        status,
        again,
    }
}

/// How many to make and which old ones to take away, within the strategy's bounds.
fn roll<'a>(
    deployment: &Deployment,
    wanted: usize,
    new: &[&'a Pod],
    old: &[&'a Pod],
    observed: &Observed<'a>,
) -> (usize, Vec<&'a Pod>) {
    if is_recreate(deployment) {
        return (0, old.to_vec());
    }
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let mut surge = share(rolling.and_then(|r| r.max_surge.as_ref()), wanted, true);
    let unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false);
    if surge == 0 && unavailable == 0 {
        // Neither one more nor one less would stand still for ever.
        surge = 1;
    }
    let create = wanted.saturating_sub(new.len()).min((wanted + surge).saturating_sub(new.len() + old.len()));
    let serves = |pod: &&Pod| is_available(deployment, pod, observed.now);
    let (serving, idle): (Vec<&Pod>, Vec<&Pod>) = old.iter().copied().partition(serves);
    let new_serving = new.iter().copied().filter(serves).count();
    let needed = wanted.saturating_sub(unavailable);
    // An old pod that serves nobody now may do so again in a moment; a new one that never did is not to drive it out.
    let idle_may_go = (new_serving + old.len()).saturating_sub(needed);
    let spare = (new_serving + serving.len()).saturating_sub(needed);
    let mut victims: Vec<&Pod> = least_missed(&idle, observed).into_iter().take(idle_may_go).collect();
    victims.extend(least_missed(&serving, observed).into_iter().take(spare));
    // Scaled down while rolling: surplus new ones go as well.
    victims.extend(least_missed(new, observed).into_iter().take(new.len().saturating_sub(wanted)));
    (create, victims)
}

/// In the order in which they may go: not ready before ready, cheap before dear, idle before busy, young before old.
fn least_missed<'a>(pods: &[&'a Pod], observed: &Observed<'_>) -> Vec<&'a Pod> {
    let mut pods = pods.to_vec();
    pods.sort_by_cached_key(|pod| {
        let cost = pod.annotations().get(DELETION_COST).and_then(|c| c.parse::<i32>().ok()).unwrap_or(0);
        let load = addresses(pod).into_iter().map(|a| (observed.in_flight)(a)).sum::<usize>();
        let born = pod.creation_timestamp().map(|t| t.0);
        (is_ready(pod), cost, load, std::cmp::Reverse(born), pod.name_any())
    });
    pods
}

/// Every address at which the pod may be called.
fn addresses(pod: &Pod) -> Vec<SocketAddr> {
    let Some(ip) = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse().ok()) else {
        return Vec::new();
    };
    let named = crate::ports::of(pod);
    if !named.is_empty() {
        return named.values().map(|port| SocketAddr::new(ip, *port)).collect();
    }
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|p| u16::try_from(p.container_port).ok());
    ports.map(|port| SocketAddr::new(ip, port)).collect()
}

/// A pod as another of an earlier template was asked for, as far as that shows.
fn like(deployment: &Deployment, model: &Pod) -> Pod {
    let hash = model.labels().get(HASH_LABEL).cloned().unwrap_or_default();
    let mut pod = pod_of(deployment, &hash);
    pod.metadata.labels = model.metadata.labels.clone();
    pod.metadata.annotations = model.metadata.annotations.clone();
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(crate::ports::PORTS);
    }
    pod.spec = model.spec.clone();
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
    }
    pod
}

fn pod_of(deployment: &Deployment, hash: &str) -> Pod {
    const SUFFIX: usize = 5;
    /// Without vowels and look-alikes, so that no word comes of it.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let template = deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut metadata = template.metadata.unwrap_or_default();
    let suffix: String = (0..SUFFIX).map(|_| char::from(LETTERS[fastrand::usize(..LETTERS.len())])).collect();
    // A pod's name becomes its host name, which has at most 63 characters.
    let mut base = format!("{}-{hash}", deployment.name_any());
    base.truncate(63 - SUFFIX - 1);
    metadata.name = Some(format!("{base}-{suffix}"));
    metadata.namespace = deployment.namespace();
    metadata.creation_timestamp = None;
    metadata.labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.into());
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: Deployment::api_version(&()).into_owned(),
        kind: Deployment::kind(&()).into_owned(),
        name: deployment.name_any(),
        uid: deployment.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    Pod { metadata, spec: template.spec, status: None }
}

/// Ten hexadecimal digits of the template's content.
pub fn template_hash(template: &PodTemplateSpec) -> String {
    let bytes = serde_json::to_vec(template).expect("a template serialises");
    Sha256::digest(&bytes).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

fn hash_of(deployment: &Deployment) -> String {
    deployment.spec.as_ref().map(|s| template_hash(&s.template)).unwrap_or_default()
}

fn status(observed: &Observed<'_>, wanted: usize, new: &[&Pod], old: &[&Pod]) -> DeploymentStatus {
    let deployment = observed.deployment;
    let before = deployment.status.clone().unwrap_or_default();
    let all = new.iter().chain(old);
    let ready = all.clone().filter(|pod| is_ready(pod)).count();
    let available = all.filter(|pod| is_available(deployment, pod, observed.now)).count();
    let available_new = new.iter().filter(|pod| is_available(deployment, pod, observed.now)).count();
    let terminating = observed.pods.iter().filter(|pod| is_terminating(pod)).count();
    let count = |n: usize| (n > 0).then(|| i32::try_from(n).unwrap_or(i32::MAX));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: count(new.len() + old.len()),
        updated_replicas: count(new.len()),
        ready_replicas: count(ready),
        available_replicas: count(available),
        unavailable_replicas: count(wanted.saturating_sub(available)),
        terminating_replicas: count(terminating),
        collision_count: before.collision_count,
        conditions: None,
    };
    let complete = old.is_empty() && new.len() == wanted && available_new >= wanted;
    let mut conditions = before.conditions.clone().unwrap_or_default();
    let enough = available >= wanted.saturating_sub(max_unavailable(deployment, wanted));
    let word = if enough {
        ("True", "MinimumReplicasAvailable", "has")
    } else {
        ("False", "MinimumReplicasUnavailable", "does not have")
    };
    set(
        &mut conditions,
        "Available",
        word.0,
        word.1,
        &format!("Deployment {} minimum availability.", word.2),
        observed.now,
        false,
    );
    progress(&mut conditions, &before, &status, complete, !old.is_empty(), observed);
    match &observed.refusal {
        Some(why) => set(&mut conditions, "ReplicaFailure", "True", "FailedCreate", why, observed.now, false),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure" || (new.len() < wanted && !complete)),
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    status.conditions = Some(conditions);
    status
}

fn progress(
    conditions: &mut Vec<DeploymentCondition>,
    before: &DeploymentStatus,
    after: &DeploymentStatus,
    complete: bool,
    rolling: bool,
    observed: &Observed<'_>,
) {
    let name = observed.deployment.name_any();
    let now = observed.now;
    let known = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    let done_before = known.as_ref().is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if complete || (done_before && !rolling) {
        // Once it stood, fewer pods than wanted is a matter of availability, not of progress.
        let message = format!("Deployment \"{name}\" has successfully progressed.");
        set(conditions, "Progressing", "True", "NewReplicaSetAvailable", &message, now, complete && !done_before);
        return;
    }
    let moved = known.is_none()
        || done_before
        || after.updated_replicas > before.updated_replicas
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas;
    let deadline =
        observed.deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).unwrap_or(PROGRESS_DEADLINE);
    let stuck = known
        .as_ref()
        .and_then(|c| c.last_update_time.as_ref())
        .is_some_and(|since| now.duration_since(since.0).as_secs() >= i64::from(deadline));
    if stuck && !moved {
        let message = format!("Deployment \"{name}\" has timed out progressing.");
        set(conditions, "Progressing", "False", "ProgressDeadlineExceeded", &message, now, false);
    } else {
        let message = format!("Deployment \"{name}\" is progressing.");
        set(conditions, "Progressing", "True", "ReplicaSetUpdated", &message, now, moved);
    }
}

/// When the progress deadline must be looked at.
fn deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Progressing")?;
    if condition.reason.as_deref() != Some("ReplicaSetUpdated") {
        return None;
    }
    let seconds = deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).unwrap_or(PROGRESS_DEADLINE);
    let at = condition.last_update_time.as_ref()?.0 + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// When the next ready pod will have been ready for `minReadySeconds`.
fn settle(deployment: &Deployment, pods: &[&Pod], now: Timestamp) -> Option<Duration> {
    let needed = min_ready(deployment)?;
    let waits = pods.iter().filter_map(|pod| ready_since(pod)).map(|since| {
        let at = since + needed;
        Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
    });
    waits.filter(|wait| !wait.is_zero()).min()
}

fn set(
    conditions: &mut Vec<DeploymentCondition>,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
    touch: bool,
) {
    let known = conditions.iter().position(|c| c.type_ == type_);
    let before = known.map(|at| conditions.remove(at));
    let same = |c: &DeploymentCondition| {
        c.status == status && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
    };
    if let Some(before) = before.as_ref().filter(|c| same(c) && !touch) {
        conditions.push(before.clone());
        return;
    }
    let turned = before.as_ref().is_none_or(|c| c.status != status);
    conditions.push(DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: if turned { Some(Time(now)) } else { before.and_then(|c| c.last_transition_time) },
        last_update_time: Some(Time(now)),
    });
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// A pod of another template whose containers have not all ended.
fn is_leaving(pod: &Pod, hash: &str) -> bool {
    pod.labels().get(HASH_LABEL).is_none_or(|of| of != hash) && !is_finished(pod)
}

fn replicas(deployment: &Deployment) -> usize {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    usize::try_from(wanted).unwrap_or(0)
}

fn max_unavailable(deployment: &Deployment, wanted: usize) -> usize {
    let rolling = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    share(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false)
}

/// A number, or a percentage of the replicas rounded up (surge) or down (unavailable).
fn share(value: Option<&IntOrString>, of: usize, up: bool) -> usize {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => usize::try_from(*n).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent = text.trim_end_matches('%').parse::<usize>().unwrap_or(0);
            let part = of.saturating_mul(percent);
            if up { part.div_ceil(100) } else { part / 100 }
        }
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
}

fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|c| c.status == "True")
}

fn is_available(deployment: &Deployment, pod: &Pod, now: Timestamp) -> bool {
    match (ready_since(pod), min_ready(deployment)) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(since), Some(needed)) => since + needed <= now,
    }
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = ready_condition(pod).filter(|c| c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

fn ready_condition(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == "Ready")
}

fn min_ready(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs)
}
