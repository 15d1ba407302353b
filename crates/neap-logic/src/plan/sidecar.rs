//! The request sidecar of a pod, where there is one (facts C5.3, E2): same ports, environment and probes as
//! upstream's, so that either image runs in its place.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, HTTPGetAction, HTTPHeader, Lifecycle, LifecycleHandler, ObjectFieldSelector, PodSpec, Probe,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_api::keys::{self, serving};
use neap_api::serving::Revision;
use serde_json::json;

use super::deployment::{env, serving_container, user_port};
use super::{meta, serving_certs};
use crate::config::features::Flag;
use crate::config::{Settings, deployment::SIDECAR_RESOURCE_DEFAULTS, quantity};
use crate::traffic::{Protocol, protocol};

/// The sidecar's name; users may not take it.
pub const NAME: &str = "queue-proxy";
/// Where HTTP/1 requests come in.
pub const HTTP_PORT: i32 = 8012;
/// Where HTTP/2 requests come in.
pub const HTTP2_PORT: i32 = 8013;
/// Where TLS requests come in.
pub const HTTPS_PORT: i32 = 8112;
/// Where the pod asks for a drain.
pub const ADMIN_PORT: i32 = 8022;
/// Where the autoscaler reads statistics.
pub const STATS_PORT: i32 = 9090;
/// Where users read metrics.
pub const METRICS_PORT: i32 = 9091;

const POD_INFO_VOLUME: &str = "pod-info";
const POD_INFO_PATH: &str = "/etc/podinfo";
const CERTS_VOLUME: &str = "server-certs";
const CERTS_PATH: &str = "/var/lib/knative/certs";
const TOKEN_VOLUME: &str = "knative-token-volume";
const TOKEN_PATH: &str = "/var/run/secrets/tokens";
/// How long a mounted token is good for, in seconds; the kubelet replaces it in time.
const TOKEN_SECONDS: i64 = 3600;
/// Volume that the logs of containers are collected from (facts B7.1).
pub const VAR_LOG_VOLUME: &str = "knative-var-log";
/// Where containers see it.
pub const VAR_LOG_PATH: &str = "/var/log";

/// The sidecar's port for a protocol.
pub fn serving_port(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Http1 => HTTP_PORT,
        Protocol::H2c => HTTP2_PORT,
    }
}

/// Puts the sidecar into a pod, behind the user's containers.
pub fn add(pod: &mut PodSpec, revision: &Revision, image: &str, settings: &Settings) {
    let port = serving_port(protocol(revision));
    let named = |name: &str, container_port: i32| ContainerPort {
        name: Some(name.into()),
        container_port,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    let user_probe = serving_container(&revision.spec.pod).and_then(|c| c.readiness_probe.clone());
    let container = Container {
        name: NAME.into(),
        image: Some(image.into()),
        resources: Some(resources(revision, settings)),
        ports: Some(vec![
            named("http-queueadm", ADMIN_PORT),
            named("http-autometric", STATS_PORT),
            named("http-usermetric", METRICS_PORT),
            named("queue-port", port),
            named("https-port", HTTPS_PORT),
        ]),
        readiness_probe: Some(readiness(user_probe.as_ref(), port)),
        security_context: Some(SecurityContext {
            run_as_non_root: Some(true),
            read_only_root_filesystem: Some(true),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        env: Some(environment(revision, port, user_probe.as_ref(), settings)),
        ..Container::default()
    };
    pod.containers.push(container);
    if shows_annotations(revision, settings) {
        mount(pod, POD_INFO_VOLUME, POD_INFO_PATH, pod_info());
    }
    if serving_certs::is_needed(settings) {
        let source =
            SecretVolumeSource { secret_name: Some(serving_certs::NAME.into()), ..SecretVolumeSource::default() };
        mount(pod, CERTS_VOLUME, CERTS_PATH, Volume { secret: Some(source), ..Volume::default() });
    }
    if !settings.deployment.sidecar.token_audiences.is_empty() {
        mount(pod, TOKEN_VOLUME, TOKEN_PATH, tokens(&settings.deployment.sidecar.token_audiences));
    }
}

/// Whether the sidecar may read the annotations of its pod (B3.10, C3.13).
fn shows_annotations(revision: &Revision, settings: &Settings) -> bool {
    let asked = || {
        meta::annotation(&revision.metadata, "features.knative.dev/queueproxy-podinfo")
            .is_some_and(|v| v.eq_ignore_ascii_case("enabled"))
    };
    match settings.features.queueproxy_mount_podinfo {
        Flag::Enabled => true,
        Flag::Allowed => asked(),
        Flag::Disabled => false,
    }
}

/// Mounts a volume into the sidecar, the last of the containers, and nowhere else.
fn mount(pod: &mut PodSpec, name: &str, path: &str, source: Volume) {
    pod.volumes.get_or_insert_default().push(Volume { name: name.into(), ..source });
    let Some(sidecar) = pod.containers.last_mut() else { return };
    sidecar.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
}

fn pod_info() -> Volume {
    let annotations = DownwardAPIVolumeFile {
        path: "annotations".into(),
        field_ref: Some(ObjectFieldSelector { field_path: "metadata.annotations".into(), api_version: None }),
        ..DownwardAPIVolumeFile::default()
    };
    let source = DownwardAPIVolumeSource { items: Some(vec![annotations]), default_mode: None };
    Volume { downward_api: Some(source), ..Volume::default() }
}

/// One token for each audience, in a file of its name.
fn tokens(audiences: &BTreeSet<String>) -> Volume {
    let source = |audience: &String| VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(audience.clone()),
            expiration_seconds: Some(TOKEN_SECONDS),
            path: audience.clone(),
        }),
        ..VolumeProjection::default()
    };
    let sources = Some(audiences.iter().map(source).collect());
    Volume { projected: Some(ProjectedVolumeSource { sources, default_mode: None }), ..Volume::default() }
}

/// Asks whether the user's container and the sidecar are ready, at the pace of the user's own probe.
fn readiness(user: Option<&Probe>, port: i32) -> Probe {
    let mut probe = user.cloned().unwrap_or_default();
    probe.exec = None;
    probe.tcp_socket = None;
    probe.grpc = None;
    probe.http_get = Some(HTTPGetAction {
        port: IntOrString::Int(port),
        http_headers: Some(vec![HTTPHeader { name: "K-Network-Probe".into(), value: "queue".into() }]),
        ..HTTPGetAction::default()
    });
    probe
}

fn environment(revision: &Revision, port: i32, probe: Option<&Probe>, settings: &Settings) -> Vec<EnvVar> {
    let own = &revision.metadata;
    let label = |key: &str| meta::label(own, key).unwrap_or_default();
    let seconds = |value: Option<i64>, default: i64| value.unwrap_or(default).to_string();
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: None }),
            ..EnvVarSource::default()
        }),
    };
    let user_port = user_port(&revision.spec.pod);
    let mut probe = probe.cloned().unwrap_or_default();
    super::deployment::fill_port(&mut probe, user_port);
    // A command can only be run in its own container; from here only the port can be tried.
    if probe.exec.take().is_some() {
        probe.tcp_socket = serde_json::from_value(json!({"host": "127.0.0.1", "port": user_port})).ok();
    }
    let flag = |on: bool| if on { "true" } else { "false" };
    let full_duplex = meta::annotation(own, "features.knative.dev/http-full-duplex")
        .is_some_and(|v| v.eq_ignore_ascii_case("enabled"));
    let spec = &revision.spec;
    let observability = &settings.observability;
    let observability = json!({
        "EnableRequestLog": observability.enable_request_log,
        "EnableProbeRequestLog": observability.enable_probe_request_log,
        "RequestLogTemplate": observability.request_log_template,
        "EnableVarLogCollection": observability.enable_var_log_collection,
    });
    let [min_version, max_version, ciphers, curves] = &settings.deployment.sidecar.tls;
    vec![
        env("SERVING_NAMESPACE", meta::namespace(own)),
        env("SERVING_SERVICE", label(serving::SERVICE)),
        env("SERVING_CONFIGURATION", label(serving::CONFIGURATION)),
        env("SERVING_REVISION", meta::name(own)),
        env("QUEUE_SERVING_PORT", &port.to_string()),
        env("QUEUE_SERVING_TLS_PORT", &HTTPS_PORT.to_string()),
        env("CONTAINER_CONCURRENCY", &seconds(spec.container_concurrency, settings.defaults.container_concurrency)),
        env("REVISION_TIMEOUT_SECONDS", &seconds(spec.timeout_seconds, settings.defaults.timeout_seconds)),
        env("REVISION_RESPONSE_START_TIMEOUT_SECONDS", &seconds(spec.response_start_timeout_seconds, 0)),
        env("REVISION_IDLE_TIMEOUT_SECONDS", &seconds(spec.idle_timeout_seconds, 0)),
        field("SERVING_POD", "metadata.name"),
        field("SERVING_POD_IP", "status.podIP"),
        env("SERVING_LOGGING_CONFIG", &settings.logging.zap_logger_config),
        env("SERVING_LOGGING_LEVEL", settings.logging.levels.get("queueproxy").map_or("", String::as_str)),
        env("USER_PORT", &user_port.to_string()),
        env("SYSTEM_NAMESPACE", keys::config::NAMESPACE),
        env("SERVING_READINESS_PROBE", &serde_json::to_string(&probe).expect("a probe serialises")),
        field("HOST_IP", "status.hostIP"),
        env("ENABLE_HTTP2_AUTO_DETECTION", flag(settings.features.autodetect_http2 == Flag::Enabled)),
        env("ENABLE_HTTP_FULL_DUPLEX", flag(full_duplex)),
        env("ROOT_CA", &settings.deployment.sidecar.root_ca),
        env("QUEUE_PROXY_TLS_MIN_VERSION", min_version),
        env("QUEUE_PROXY_TLS_MAX_VERSION", max_version),
        env("QUEUE_PROXY_TLS_CIPHER_SUITES", ciphers),
        env("QUEUE_PROXY_TLS_CURVE_PREFERENCES", curves),
        env("ENABLE_MULTI_CONTAINER_PROBES", flag(settings.features.multi_container_probing == Flag::Enabled)),
        env("OBSERVABILITY_CONFIG", &observability.to_string()),
    ]
}

/// Bounds of `resource-percentage`: resource, whether it is a limit, smallest and largest in base units.
const PERCENTAGE_BOUNDS: [(&str, bool, f64, f64); 4] = [
    ("cpu", false, 0.025, 0.1),
    ("cpu", true, 0.04, 0.5),
    ("memory", false, 50.0 * 1_048_576.0, 200.0 * 1_048_576.0),
    ("memory", true, 200.0 * 1_048_576.0, 500.0 * 1_048_576.0),
];

fn resources(revision: &Revision, settings: &Settings) -> ResourceRequirements {
    let sidecar = &settings.deployment.sidecar;
    let (mut requests, mut limits) = (sidecar.requests.clone(), sidecar.limits.clone());
    if settings.features.queueproxy_resource_defaults == Flag::Enabled {
        let [cpu_limit, memory_request, memory_limit] = SIDECAR_RESOURCE_DEFAULTS;
        limits.entry("cpu".into()).or_insert_with(|| cpu_limit.into());
        requests.entry("memory".into()).or_insert_with(|| memory_request.into());
        limits.entry("memory".into()).or_insert_with(|| memory_limit.into());
    }
    let percentage_keys = [
        "queue.sidecar.serving.knative.dev/resource-percentage",
        "queue.sidecar.serving.knative.dev/resourcePercentage",
    ];
    let share = meta::annotation_of(&revision.metadata, &percentage_keys)
        .and_then(|v| v.parse::<f64>().ok())
        .map(|v| v / 100.0);
    let user = serving_container(&revision.spec.pod).and_then(|c| c.resources.as_ref());
    if let (Some(share), Some(user)) = (share, user) {
        for (resource, is_limit, least, most) in PERCENTAGE_BOUNDS {
            let of_user = if is_limit { &user.limits } else { &user.requests };
            let Some(amount) = of_user.as_ref().and_then(|m| m.get(resource)).and_then(|q| quantity::parse(&q.0))
            else {
                continue;
            };
            let amount = (amount * share).clamp(least, most);
            let text =
                if resource == "cpu" { format!("{}m", (amount * 1000.0).ceil()) } else { format!("{}", amount.ceil()) };
            if is_limit { &mut limits } else { &mut requests }.insert(resource.into(), text);
        }
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        for (kind, into) in [("request", &mut requests), ("limit", &mut limits)] {
            let key = format!("queue.sidecar.serving.knative.dev/{resource}-resource-{kind}");
            if let Some(value) = meta::annotation(&revision.metadata, &key) {
                into.insert(resource.into(), value.to_owned());
            }
        }
    }
    let quantities = |map: BTreeMap<String, String>| -> Option<BTreeMap<String, Quantity>> {
        (!map.is_empty()).then(|| map.into_iter().map(|(k, v)| (k, Quantity(v))).collect())
    };
    ResourceRequirements { requests: quantities(requests), limits: quantities(limits), claims: None }
}

/// Makes a container wait, before it is stopped, until the sidecar has no request left for it.
pub fn wait_for_drain(container: &mut Container) {
    container.lifecycle = Some(Lifecycle {
        pre_stop: Some(LifecycleHandler {
            http_get: Some(HTTPGetAction {
                path: Some("/wait-for-drain".into()),
                port: IntOrString::Int(ADMIN_PORT),
                ..HTTPGetAction::default()
            }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    });
}

/// Gives a container its part of the volume logs are collected from.
pub fn collect_var_log(container: &mut Container) {
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: None }),
            ..EnvVarSource::default()
        }),
    };
    container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: VAR_LOG_VOLUME.into(),
        mount_path: VAR_LOG_PATH.into(),
        sub_path_expr: Some(format!("$(K_INTERNAL_POD_NAMESPACE)_$(K_INTERNAL_POD_NAME)_{}", container.name)),
        ..VolumeMount::default()
    });
    container.env.get_or_insert_default().extend([
        field("K_INTERNAL_POD_NAME", "metadata.name"),
        field("K_INTERNAL_POD_NAMESPACE", "metadata.namespace"),
    ]);
}

/// Adds that volume to the pod.
pub fn add_var_log_volume(pod: &mut PodSpec) {
    pod.volumes.get_or_insert_default().push(Volume {
        name: VAR_LOG_VOLUME.into(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    });
}
