//! Revision: resolved images, a Deployment, an autoscaler for it, and what the pods say (facts D4, A4).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use neap_api::ConditionStatus;
use neap_api::autoscaling::{PodAutoscaler, PodAutoscalerSpec, PodAutoscalerStatus, ScaleTargetRef};
use neap_api::caching::{Image, ImageSpec};
use neap_api::condition::{READY, find};
use neap_api::keys::{autoscaling, serving as keys};
use neap_api::serving::{ContainerStatus, Revision, RevisionStatus};

use super::cache::Cache;
use super::deployment::{self, Images};
use super::ensure::{Match, ensure, is_controlled_by};
use super::{Context, Object, Plan, Write, meta, serving_certs};
use crate::conditions::{self, Conditions};
use crate::config::Settings;
use crate::names::{self, image::Reference};
use crate::traffic::protocol;

const RESOURCES_AVAILABLE: &str = "ResourcesAvailable";
const CONTAINER_HEALTHY: &str = "ContainerHealthy";
const ACTIVE: &str = "Active";
const DEPLOYING: &str = "Deploying";

/// What is known of an image's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digest {
    /// The registry has not answered yet.
    Pending,
    /// `sha256:…`, or empty when the image is to be used as it is written.
    Resolved(String),
    /// The registry's words.
    Failed(String),
}

/// A Revision, what it owns, and what was found out about its images.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Revision.
    pub revision: Arc<Revision>,
    /// The Deployment of its name, whoever owns it.
    pub deployment: Option<Arc<Deployment>>,
    /// The PodAutoscaler of its name, whoever owns it.
    pub pod_autoscaler: Option<Arc<PodAutoscaler>>,
    /// The cached images that exist.
    pub images: Vec<Arc<Image>>,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
    /// Its namespace and the certificate of the sidecars in it, where they have one.
    pub internal_tls: Option<serving_certs::Observed>,
    /// Digests by image as written in the spec; an absent one is pending.
    pub digests: BTreeMap<String, Digest>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs, but for the digests.
pub fn observe<C: Cache>(
    cache: &C,
    namespace: &str,
    name: &str,
    digests: BTreeMap<String, Digest>,
    context: Context,
) -> Option<Observed> {
    let revision = cache.get::<Revision>(namespace, name)?;
    let containers = revision.spec.pod.containers.iter().chain(revision.spec.pod.init_containers.iter().flatten());
    let uid = revision.metadata.uid.clone().unwrap_or_default();
    Some(Observed {
        deployment: cache.get(namespace, &names::deployment(name)),
        pod_autoscaler: cache.get(namespace, name),
        images: containers.filter_map(|c| cache.get(namespace, &names::image_cache(name, &c.name))).collect(),
        pods: cache.labelled(namespace, keys::REVISION_UID, &uid),
        internal_tls: serving_certs::observe(cache, namespace, &context.settings),
        digests,
        revision,
        context,
    })
}

/// The images a registry must be asked about before this Revision can be deployed.
pub fn images_to_resolve(revision: &Revision, settings: &Settings) -> Vec<String> {
    if revision.status.as_ref().is_some_and(|s| !s.container_statuses.is_empty()) {
        return Vec::new();
    }
    let pod = &revision.spec.pod;
    let images = pod.containers.iter().chain(pod.init_containers.iter().flatten()).filter_map(|c| c.image.as_deref());
    let mut images: Vec<String> =
        images.filter(|image| settled(image, settings).is_none()).map(str::to_owned).collect();
    images.sort();
    images.dedup();
    images
}

/// The digest of an image nobody needs to be asked about: empty where the tag is to be used as it is.
fn settled(image: &str, settings: &Settings) -> Option<String> {
    let reference = Reference::parse(image)?;
    if reference.digest.is_some() {
        return Some(image.to_owned());
    }
    settings.deployment.registries_skipping_tag_resolving.contains(reference.registry_or_default()).then(String::new)
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let revision = o.revision.as_ref();
    if revision.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = revision.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::REVISION, &status.conditions, o.context.now);
    let was_ready = c.is_ready();
    status.observed_generation = revision.metadata.generation.unwrap_or_default();
    let template = &o.context.settings.observability.revision_url_template;
    status.log_url = template.replace("${REVISION_UID}", revision.metadata.uid.as_deref().unwrap_or_default());

    let settled = resolve_images(o, &mut plan, &mut c, &mut status) && certified(o, &mut plan, &mut c);
    if settled && deploy(o, &mut plan, &mut c, &status) {
        cache_images(o, &mut plan, &status);
        autoscale(o, &mut plan, &mut c, &mut status);
    }
    if !was_ready && c.is_ready() {
        plan.normal("RevisionReady", "Revision becomes ready upon all resources being ready");
    }
    status.conditions = c.into_vec();
    plan.set_status(revision.status.as_ref(), &status);
    plan
}

/// Whether the sidecars have a certificate to show, where they need one.
fn certified(o: &Observed, plan: &mut Plan, c: &mut Conditions) -> bool {
    let Some(internal) = &o.internal_tls else { return true };
    let known = serving_certs::plan(internal, &o.context.settings, plan);
    let Err(why) = known else { return true };
    c.mark_unknown(RESOURCES_AVAILABLE, "CertificateNotReady", &format!("The sidecars have no certificate: {why}"));
    plan.because(why);
    // What runs goes on running.
    o.deployment.is_some()
}

/// Whether every image has its digest.
fn resolve_images(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut RevisionStatus) -> bool {
    if !status.container_statuses.is_empty() {
        return true;
    }
    let pod = &o.revision.spec.pod;
    let mut pending = false;
    let mut resolved =
        |containers: &[k8s_openapi::api::core::v1::Container], c: &mut Conditions| -> Option<Vec<ContainerStatus>> {
            let mut statuses = Vec::with_capacity(containers.len());
            for container in containers {
                let image = container.image.as_deref().unwrap_or_default();
                let image_digest = match settled(image, &o.context.settings) {
                    Some(digest) => digest,
                    None => match o.digests.get(image) {
                        Some(Digest::Resolved(digest)) if digest.is_empty() => String::new(),
                        Some(Digest::Resolved(digest)) => {
                            let repository = Reference::parse(image).map_or(image, |r| r.repository);
                            format!("{repository}@{digest}")
                        }
                        Some(Digest::Failed(error)) => {
                            let message =
                                format!("Unable to fetch image {image:?}: failed to resolve image to digest: {error}");
                            c.mark_false(CONTAINER_HEALTHY, "ContainerMissing", &message);
                            return None;
                        }
                        Some(Digest::Pending) | None => {
                            pending = true;
                            continue;
                        }
                    },
                };
                statuses.push(ContainerStatus { name: container.name.clone(), image_digest });
            }
            Some(statuses)
        };
    let containers = resolved(&pod.containers, c);
    let init_containers = resolved(pod.init_containers.as_deref().unwrap_or_default(), c);
    let (Some(containers), Some(init_containers)) = (containers, init_containers) else {
        plan.because("an image could not be resolved");
        return false;
    };
    if pending {
        c.mark_unknown(RESOURCES_AVAILABLE, "ResolvingDigests", "");
        plan.because("waiting for image digests");
        return false;
    }
    if c.get(CONTAINER_HEALTHY).is_some_and(|c| c.reason == "ContainerMissing") {
        // An earlier answer of the registry no longer holds.
        c.mark_unknown(CONTAINER_HEALTHY, DEPLOYING, "");
    }
    status.container_statuses = containers;
    status.init_container_statuses = init_containers;
    true
}

/// Whether the Deployment exists or will, and is ours.
fn deploy(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &RevisionStatus) -> bool {
    let revision = o.revision.as_ref();
    let images = Images { containers: &status.container_statuses, init_containers: &status.init_container_statuses };
    let wanted = deployment::make(revision, &images, &o.context.settings);
    let name = meta::name(&wanted.metadata);
    if let Some(refusal) = o.context.refusal::<Deployment>(name) {
        plan.warning("InternalError", format!("Failed to write Deployment {name:?}: {}", refusal.message));
        c.mark_false(RESOURCES_AVAILABLE, "FailedCreate", &refusal.message);
        return false;
    }
    let Some(held) = o.deployment.as_deref() else {
        c.mark_unknown(RESOURCES_AVAILABLE, DEPLOYING, "");
        c.mark_unknown(CONTAINER_HEALTHY, DEPLOYING, "");
        plan.write(Some(Write::Create(Object::of(&wanted))));
        return true;
    };
    if !is_controlled_by(&held.metadata, revision) {
        plan.taken_by(held);
        c.mark_false(
            RESOURCES_AVAILABLE,
            "NotOwned",
            &format!("There is an existing Deployment {name:?} that we do not own."),
        );
        return false;
    }
    plan.write(deployment::update(held, &wanted));
    deployment_state(held, c);
    pod_state(o, held, plan, c);
    if held.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0) > 0 {
        c.mark_true(CONTAINER_HEALTHY);
    }
    true
}

/// The Deployment's own conditions, as one of the Revision's.
fn deployment_state(held: &Deployment, c: &mut Conditions) {
    let conditions = held.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let of = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let words = |c: &k8s_openapi::api::apps::v1::DeploymentCondition| {
        (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())
    };
    if let Some(failure) = of("ReplicaFailure").filter(|c| c.status == "True") {
        let (reason, message) = words(failure);
        c.mark_false(RESOURCES_AVAILABLE, &reason, &message);
        return;
    }
    match of("Progressing") {
        Some(progress) if progress.status == "False" => {
            let (reason, message) = words(progress);
            c.mark_false(RESOURCES_AVAILABLE, &reason, &message);
        }
        Some(progress) if progress.status == "True" => c.mark_true(RESOURCES_AVAILABLE),
        Some(progress) => {
            let (reason, message) = words(progress);
            c.mark_unknown(RESOURCES_AVAILABLE, &reason, &message);
        }
        None => c.mark_unknown(RESOURCES_AVAILABLE, DEPLOYING, ""),
    }
}

/// Why no pod runs although some should: said as soon as a pod knows it.
fn pod_state(o: &Observed, held: &Deployment, plan: &mut Plan, c: &mut Conditions) {
    let wants = held.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1) > 0;
    let available = held.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0) > 0;
    if !wants || available {
        return;
    }
    let timed_out = c
        .get(RESOURCES_AVAILABLE)
        .is_some_and(|c| c.status == ConditionStatus::False && c.reason == "ProgressDeadlineExceeded");
    for pod in o.pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let Some(status) = &pod.status else { continue };
        let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        if let Some(condition) = unscheduled.filter(|_| !o.context.settings.deployment.pod_is_always_schedulable) {
            let (reason, message) = (
                condition.reason.as_deref().unwrap_or("Unschedulable"),
                condition.message.as_deref().unwrap_or_default(),
            );
            c.mark_false(RESOURCES_AVAILABLE, reason, message);
            return;
        }
        let containers =
            status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        for container in containers {
            let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
                state.as_ref().and_then(|s| s.terminated.clone())
            };
            let is_init = status.init_container_statuses.iter().flatten().any(|i| i.name == container.name);
            let last = ended(&container.last_state)
                .or_else(|| ended(&container.state).filter(|t| !is_init || t.exit_code != 0));
            if let Some(exit) = last {
                let words = match exit.message.filter(|m| !m.is_empty()) {
                    Some(message) => message,
                    None if exit.exit_code == 0 => "container exited with no error".to_owned(),
                    None => exit.reason.unwrap_or_default(),
                };
                c.mark_false(
                    CONTAINER_HEALTHY,
                    &format!("ExitCode{}", exit.exit_code),
                    &format!("Container failed with: {words}"),
                );
                plan.because(format!(
                    "container {} of pod {} ended with code {}",
                    container.name,
                    meta::name(&pod.metadata),
                    exit.exit_code
                ));
                return;
            }
            let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
            let reason = waiting.and_then(|w| w.reason.as_deref()).unwrap_or_default();
            // These two are how every pod begins.
            if let Some(waiting) = waiting.filter(|_| !matches!(reason, "" | "ContainerCreating" | "PodInitializing")) {
                let message = waiting.message.as_deref().unwrap_or_default();
                if timed_out {
                    c.mark_false(RESOURCES_AVAILABLE, reason, message);
                } else {
                    c.mark_unknown(RESOURCES_AVAILABLE, reason, message);
                }
                return;
            }
        }
    }
}

fn cache_images(o: &Observed, plan: &mut Plan, status: &RevisionStatus) {
    let revision = o.revision.as_ref();
    let pod = &revision.spec.pod;
    for resolved in status.container_statuses.iter().chain(&status.init_container_statuses) {
        let name = names::image_cache(meta::name(&revision.metadata), &resolved.name);
        if o.images.iter().any(|image| meta::name(&image.metadata) == name) {
            continue;
        }
        let written =
            pod.containers.iter().chain(pod.init_containers.iter().flatten()).find(|c| c.name == resolved.name);
        let image = match resolved.image_digest.as_str() {
            "" => written.and_then(|c| c.image.clone()).unwrap_or_default(),
            digest => digest.to_owned(),
        };
        let image = Image {
            metadata: deployment::child(revision, name, deployment::plain_annotations(revision)),
            spec: ImageSpec {
                image,
                service_account_name: pod.service_account_name.clone().unwrap_or_default(),
                image_pull_secrets: pod.image_pull_secrets.clone().unwrap_or_default(),
            },
            status: None,
        };
        plan.write(Some(Write::Create(Object::of(&image))));
    }
}

fn autoscale(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut RevisionStatus) {
    let revision = o.revision.as_ref();
    let name = meta::name(&revision.metadata);
    let held = o.pod_autoscaler.as_deref();
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, revision)) {
        let message = format!("There is an existing PodAutoscaler {name:?} that we do not own.");
        plan.taken_name::<PodAutoscaler>(meta::namespace(&revision.metadata), name);
        c.mark_false(ACTIVE, "NotOwned", &message);
        c.mark_false(RESOURCES_AVAILABLE, "NotOwned", &message);
        return;
    }
    if let Some(refusal) = o.context.refusal::<PodAutoscaler>(name) {
        plan.warning("InternalError", format!("Failed to write PodAutoscaler {name:?}: {}", refusal.message));
        c.mark_false(RESOURCES_AVAILABLE, "FailedCreate", &refusal.message);
        return;
    }
    let empty = PodAutoscalerStatus::default();
    autoscaler_state(held.and_then(|h| h.status.as_ref()).unwrap_or(&empty), c, status);
    let ready = o.deployment.as_ref().and_then(|d| d.status.as_ref()).and_then(|s| s.ready_replicas).unwrap_or(0);
    let broken = [RESOURCES_AVAILABLE, CONTAINER_HEALTHY].iter().any(|t| c.status(t) == ConditionStatus::False);
    let reachability = match meta::label(&revision.metadata, keys::ROUTING_STATE) {
        _ if broken && ready == 0 => "Unreachable",
        Some("active") => "Reachable",
        Some("reserve") => "Unreachable",
        _ => "",
    };
    plan.write(ensure(held, &make_autoscaler(revision, reachability, &o.context.settings), Match::Exact));
}

fn make_autoscaler(revision: &Revision, reachability: &str, settings: &Settings) -> PodAutoscaler {
    let name = meta::name(&revision.metadata);
    let mut annotations = deployment::annotations(revision);
    let class = annotations
        .entry(autoscaling::CLASS.into())
        .or_insert_with(|| settings.autoscaler.pod_autoscaler_class.clone())
        .clone();
    if let Some(metric) = default_metric(&class) {
        annotations.entry(autoscaling::METRIC.into()).or_insert_with(|| metric.into());
    }
    PodAutoscaler {
        metadata: deployment::child(revision, name.to_owned(), annotations),
        spec: PodAutoscalerSpec {
            container_concurrency: revision
                .spec
                .container_concurrency
                .unwrap_or(settings.defaults.container_concurrency),
            scale_target_ref: ScaleTargetRef {
                api_version: "apps/v1".into(),
                kind: "Deployment".into(),
                name: names::deployment(name),
            },
            reachability: reachability.into(),
            protocol_type: protocol(revision).as_str().into(),
        },
        status: None,
    }
}

/// What a class measures when nothing is said.
pub fn default_metric(class: &str) -> Option<&'static str> {
    match class {
        autoscaling::CLASS_KPA => Some("concurrency"),
        autoscaling::CLASS_HPA => Some("cpu"),
        _ => None,
    }
}

fn autoscaler_state(pa: &PodAutoscalerStatus, c: &mut Conditions, status: &mut RevisionStatus) {
    status.actual_replicas = pa.actual_scale.filter(|n| *n >= 0);
    status.desired_replicas = pa.desired_scale.filter(|n| *n >= 0);
    let unavailable = c.status(RESOURCES_AVAILABLE) == ConditionStatus::False;
    let Some(ready) = find(&pa.conditions, READY) else {
        c.mark_unknown(ACTIVE, DEPLOYING, "");
        if !unavailable {
            c.mark_unknown(RESOURCES_AVAILABLE, DEPLOYING, "");
        }
        return;
    };
    // Once every instance of the initial scale has been ready, a later crash is the autoscaler's business.
    let initialized = conditions::status_of(&pa.conditions, "ScaleTargetInitialized") == ConditionStatus::True;
    if initialized && !unavailable {
        c.mark_true(RESOURCES_AVAILABLE);
        c.mark_true(CONTAINER_HEALTHY);
    }
    // A Deployment that progresses is not yet one that reached its initial scale.
    if c.status(RESOURCES_AVAILABLE) == ConditionStatus::True && (pa.service_name.is_empty() || !initialized) {
        c.mark_unknown(RESOURCES_AVAILABLE, DEPLOYING, "");
    }
    match ready.status {
        ConditionStatus::Unknown => c.mark_unknown(ACTIVE, &ready.reason, &ready.message),
        ConditionStatus::True => {
            c.mark_true(ACTIVE);
            if !unavailable {
                c.mark_true(RESOURCES_AVAILABLE);
                c.mark_true(CONTAINER_HEALTHY);
            }
        }
        ConditionStatus::False => {
            if !initialized && !unavailable && !pa.service_name.is_empty() {
                c.mark_false(RESOURCES_AVAILABLE, "ProgressDeadlineExceeded", "Initial scale was never achieved");
            }
            c.mark_false(ACTIVE, &ready.reason, &ready.message);
        }
    }
}

#[cfg(test)]
#[path = "revision_tests.rs"]
mod tests;
