//! The Deployment of a Revision: the user's containers as pods (facts D4.1, C5, E2).
//!
//! Must come out the same for the same Revision and settings, since a difference restarts every pod.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, EnvVar, PodAffinityTerm, PodAntiAffinity, PodSpec, PodTemplateSpec, Probe,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_api::keys::{autoscaling, serving as keys};
use neap_api::serving::{ContainerStatus, Revision};
use serde_json::json;

use super::ensure::controller_ref;
use super::{Object, Write, meta, sidecar};
use crate::config::Settings;
use crate::config::deployment::Affinity as Spread;
use crate::config::go::parse_duration;
use crate::names;

/// The port a container is told to serve on when it names none.
pub const DEFAULT_USER_PORT: i32 = 8080;
/// The name of the serving container's port in its pod.
pub const USER_PORT_NAME: &str = "user-port";

/// Annotations about the Revision itself, of no meaning to what is made from it.
const OWN_ANNOTATIONS: [&str; 4] = [keys::LAST_PINNED, keys::NO_GC, keys::ROUTING_STATE_MODIFIED, keys::ROUTES];

/// The labels of everything made for a Revision.
pub fn labels(revision: &Revision) -> meta::Words {
    let mut labels = meta::labels(&revision.metadata);
    labels.remove(keys::ROUTE);
    labels.remove(keys::ROUTING_STATE);
    let name = meta::name(&revision.metadata);
    labels.insert(keys::REVISION.into(), name.into());
    labels.insert(keys::REVISION_UID.into(), revision.metadata.uid.clone().unwrap_or_default());
    labels.entry(keys::APP.into()).or_insert_with(|| name.into());
    labels
}

/// The annotations of everything made for a Revision.
pub fn annotations(revision: &Revision) -> meta::Words {
    meta::annotations(&revision.metadata, &OWN_ANNOTATIONS)
}

/// The same without those about its scale, which are for the autoscaler only.
pub fn plain_annotations(revision: &Revision) -> meta::Words {
    let mut annotations = annotations(revision);
    annotations.retain(|key, _| !key.starts_with(autoscaling::GROUP));
    annotations
}

/// Metadata of a child of the Revision.
pub fn child(revision: &Revision, name: String, annotations: meta::Words) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: revision.metadata.namespace.clone(),
        labels: Some(labels(revision)),
        annotations: meta::some(annotations),
        owner_references: Some(vec![controller_ref(revision)]),
        ..ObjectMeta::default()
    }
}

/// The one container that serves requests: that with a port, or the only one.
pub fn serving_container(pod: &PodSpec) -> Option<&Container> {
    let has_port = |c: &&Container| c.ports.as_ref().is_some_and(|p| !p.is_empty());
    pod.containers.iter().find(has_port).or_else(|| pod.containers.first())
}

/// The port requests are served on.
pub fn user_port(pod: &PodSpec) -> i32 {
    let port = serving_container(pod).and_then(|c| c.ports.as_ref()).and_then(|p| p.first()).map(|p| p.container_port);
    port.filter(|port| *port != 0).unwrap_or(DEFAULT_USER_PORT)
}

/// How long the Revision may take to become available, in seconds.
pub fn progress_deadline(revision: &Revision, settings: &Settings) -> i32 {
    let own = meta::annotation(&revision.metadata, keys::PROGRESS_DEADLINE)
        .and_then(parse_duration)
        .and_then(|d| d.positive());
    let deadline = own.unwrap_or(settings.deployment.progress_deadline);
    i32::try_from(deadline.as_secs()).unwrap_or(i32::MAX)
}

/// The instances a new Deployment begins with.
fn initial_scale(revision: &Revision, settings: &Settings) -> i32 {
    let asked = meta::annotation_of(&revision.metadata, &[autoscaling::INITIAL_SCALE, autoscaling::INITIAL_SCALE_ALT]);
    let asked = asked
        .and_then(|text| text.parse::<i32>().ok())
        .filter(|n| *n > 0 || *n == 0 && settings.autoscaler.allow_zero_initial_scale);
    asked.unwrap_or(settings.autoscaler.initial_scale)
}

/// The Deployment as it should be, hash included.
pub fn make(revision: &Revision, statuses: &Images<'_>, settings: &Settings) -> Deployment {
    let name = names::deployment(meta::name(&revision.metadata));
    let annotations = plain_annotations(revision);
    let pod = pod_spec(revision, statuses, settings);
    let mut pod_annotations = annotations.clone();
    if let Some(serving) = serving_container(&revision.spec.pod) {
        pod_annotations.insert(keys::DEFAULT_CONTAINER.into(), serving.name.clone());
    }
    let mut deployment = Deployment {
        metadata: child(revision, name, annotations),
        spec: Some(DeploymentSpec {
            replicas: Some(initial_scale(revision, settings)),
            selector: LabelSelector {
                match_labels: Some(BTreeMap::from([(
                    keys::REVISION_UID.to_owned(),
                    revision.metadata.uid.clone().unwrap_or_default(),
                )])),
                ..LabelSelector::default()
            },
            progress_deadline_seconds: Some(progress_deadline(revision, settings)),
            revision_history_limit: Some(0),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: None,
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(revision)),
                    annotations: meta::some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    let hash = hash(&deployment);
    deployment.metadata.labels.get_or_insert_default().insert(keys::DEPLOYMENT_HASH.into(), hash);
    deployment
}

/// What is written to make the observed Deployment the wanted one: nothing while its hash fits and it can be found,
/// whatever others wrote into it.
pub fn update(observed: &Deployment, wanted: &Deployment) -> Option<Write> {
    // By its other label it is found; without that no watch tells of it.
    let same = |label| meta::label(&observed.metadata, label) == meta::label(&wanted.metadata, label);
    if same(keys::DEPLOYMENT_HASH) && same(keys::REVISION_UID) {
        return None;
    }
    let mut next = observed.clone();
    next.metadata.labels.get_or_insert_default().extend(meta::labels(&wanted.metadata));
    if let Some(annotations) = &wanted.metadata.annotations {
        next.metadata.annotations.get_or_insert_default().extend(annotations.clone());
    }
    let held = next.spec.take().unwrap_or_default();
    // The number of instances is the autoscaler's, and a selector cannot change.
    next.spec =
        wanted.spec.clone().map(|spec| DeploymentSpec { replicas: held.replicas, selector: held.selector, ..spec });
    Some(Write::Update(Object::of(&next)))
}

fn hash(deployment: &Deployment) -> String {
    let parts = json!([deployment.spec, deployment.metadata.annotations, deployment.metadata.labels]);
    format!("{:08x}", names::hash::fnv32a(parts.to_string().as_bytes()))
}

/// Resolved images by container name.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// Of the containers.
    pub containers: &'a [ContainerStatus],
    /// Of the init containers.
    pub init_containers: &'a [ContainerStatus],
}

fn image_of(container: &Container, statuses: &[ContainerStatus]) -> Option<String> {
    let resolved = statuses.iter().find(|s| s.name == container.name).map(|s| s.image_digest.as_str());
    resolved.filter(|digest| !digest.is_empty()).map(str::to_owned).or_else(|| container.image.clone())
}

fn pod_spec(revision: &Revision, images: &Images<'_>, settings: &Settings) -> PodSpec {
    let mut pod = revision.spec.pod.clone();
    let with_sidecar = settings.deployment.queue_sidecar_image.is_some();
    let serving = serving_container(&pod).map(|c| c.name.clone()).unwrap_or_default();
    let port = user_port(&pod);
    for container in &mut pod.containers {
        container.image = image_of(container, images.containers);
        let serves = container.name == serving;
        user_container(container, revision, serves.then_some(port), with_sidecar);
        if settings.observability.enable_var_log_collection {
            sidecar::collect_var_log(container);
        }
    }
    for container in pod.init_containers.iter_mut().flatten() {
        container.image = image_of(container, images.init_containers);
        add_identity(container, revision);
    }
    if settings.observability.enable_var_log_collection {
        sidecar::add_var_log_volume(&mut pod);
    }
    pod.termination_grace_period_seconds = revision.spec.timeout_seconds.or(Some(settings.defaults.timeout_seconds));
    if pod.affinity.is_none() && settings.deployment.default_affinity == Spread::PreferSpreadRevisionOverNodes {
        pod.affinity = Some(spread(meta::name(&revision.metadata)));
    }
    if pod.runtime_class_name.is_none() {
        pod.runtime_class_name =
            settings.deployment.runtime_class(&meta::labels(&revision.metadata)).map(str::to_owned);
    }
    if let Some(image) = &settings.deployment.queue_sidecar_image {
        sidecar::add(&mut pod, revision, image, settings);
    }
    pod
}

fn user_container(container: &mut Container, revision: &Revision, serves: Option<i32>, with_sidecar: bool) {
    add_identity(container, revision);
    container.termination_message_policy.get_or_insert_with(|| "FallbackToLogsOnError".into());
    container.ports = serves.map(|port| {
        vec![ContainerPort {
            name: Some(USER_PORT_NAME.into()),
            container_port: port,
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]
    });
    if let Some(port) = serves {
        container.env.get_or_insert_default().push(env("PORT", &port.to_string()));
        for probe in [&mut container.readiness_probe, &mut container.liveness_probe, &mut container.startup_probe]
            .into_iter()
            .flatten()
        {
            fill_port(probe, port);
        }
    }
    if with_sidecar {
        sidecar::wait_for_drain(container);
        // The sidecar probes the container itself, except for commands, which only the container can run.
        if serves.is_some() && container.readiness_probe.as_ref().is_some_and(|p| p.exec.is_none()) {
            container.readiness_probe = None;
        }
    }
}

fn add_identity(container: &mut Container, revision: &Revision) {
    let label = |key: &str| meta::label(&revision.metadata, key).unwrap_or_default();
    container.env.get_or_insert_default().extend([
        env("K_REVISION", meta::name(&revision.metadata)),
        env("K_CONFIGURATION", label(keys::CONFIGURATION)),
        env("K_SERVICE", label(keys::SERVICE)),
    ]);
}

pub(super) fn env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

/// A probe that names no port means the one requests are served on, be it by number 0 or by its name.
pub(super) fn fill_port(probe: &mut Probe, port: i32) {
    let unset = |p: &IntOrString| match p {
        IntOrString::Int(n) => *n == 0,
        IntOrString::String(_) => true,
    };
    if let Some(http) = &mut probe.http_get
        && unset(&http.port)
    {
        http.port = IntOrString::Int(port);
    }
    if let Some(tcp) = &mut probe.tcp_socket
        && unset(&tcp.port)
    {
        tcp.port = IntOrString::Int(port);
    }
    if let Some(grpc) = &mut probe.grpc
        && grpc.port == 0
    {
        grpc.port = port;
    }
}

fn spread(revision: &str) -> Affinity {
    let term = PodAffinityTerm {
        topology_key: "kubernetes.io/hostname".into(),
        label_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(keys::REVISION.to_owned(), revision.to_owned())])),
            ..LabelSelector::default()
        }),
        ..PodAffinityTerm::default()
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}
