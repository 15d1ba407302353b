//! The config-maps of a fresh installation: no setting changed but ours, and an `_example` that documents
//! every key.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::keys;

use super::{
    EXAMPLE_CHECKSUM, EXAMPLE_KEY, autoscaler, checksum, defaults, deployment, domain, features, gc, leader_election,
    logging, neap, network, observability,
};
use crate::config::features::Flag;

/// One documented key: name, value it has when unset, what it means.
type Row = (&'static str, &'static str, &'static str);

/// The config-maps to install at first start. `domain` is the default domain of public hosts.
pub fn examples(default_domain: &str) -> Vec<ConfigMap> {
    let flags: Vec<(&str, &str, &str)> = features::FLAGS
        .iter()
        .map(|(key, default)| {
            let value = match default {
                Flag::Enabled => "enabled",
                Flag::Allowed => "allowed",
                Flag::Disabled => "disabled",
            };
            (*key, value, "")
        })
        .chain([("secure-pod-defaults", "disabled", "Fill in security settings: disabled, allowrootbounded, enabled.")])
        .collect();
    let mut maps = vec![
        config_map(autoscaler::MAP, "autoscaler", AUTOSCALER),
        config_map(defaults::MAP, "controller", DEFAULTS),
        config_map(deployment::MAP, "controller", DEPLOYMENT),
        config_map(domain::MAP, "controller", DOMAIN),
        config_map(features::MAP, "controller", &flags),
        config_map(gc::MAP, "controller", GC),
        config_map(leader_election::MAP, "controller", LEADER_ELECTION),
        config_map(logging::MAP, "logging", LOGGING),
        config_map(network::MAP, "networking", NETWORK),
        config_map(observability::MAP, "observability", OBSERVABILITY),
        config_map(keys::config::TRACING, "tracing", &[]),
        config_map(neap::MAP, "controller", NEAP),
    ];
    for map in &mut maps {
        if map.metadata.name.as_deref() == Some(domain::MAP) {
            map.data.get_or_insert_default().insert(default_domain.to_owned(), String::new());
        }
    }
    maps
}

fn config_map(name: &str, component: &str, rows: &[Row]) -> ConfigMap {
    let mut example = String::from(
        "# Every key with the value it has when it is absent. To change one,\n# write it beside this block, not in it.\n",
    );
    for (key, value, meaning) in rows {
        if !meaning.is_empty() {
            let _ = writeln!(example, "\n# {meaning}");
        }
        let _ = writeln!(example, "{key}: {value:?}");
    }
    let sum = checksum(&example);
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(keys::config::NAMESPACE.into()),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/name".to_owned(), "knative-serving".to_owned()),
                ("app.kubernetes.io/component".to_owned(), component.to_owned()),
            ])),
            annotations: Some(BTreeMap::from([(EXAMPLE_CHECKSUM.to_owned(), sum)])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(EXAMPLE_KEY.to_owned(), example)])),
        ..ConfigMap::default()
    }
}

const AUTOSCALER: &[Row] = &[
    ("container-concurrency-target-percentage", "70", "Share of an instance's concurrency target to aim at."),
    (
        "container-concurrency-target-default",
        "100",
        "Requests in flight per instance where the revision sets no limit.",
    ),
    ("requests-per-second-target-default", "200", "Requests per second per instance, for the metric rps."),
    ("target-burst-capacity", "211", "Requests that must find room at once; -1 always buffers, 0 only at zero."),
    ("stable-window", "60s", "Averaging window outside panic, 6s to 1h."),
    ("panic-window-percentage", "10.0", "Panic window as a share of the stable window."),
    ("panic-threshold-percentage", "200.0", "Load against capacity at which panic begins."),
    ("max-scale-up-rate", "1000.0", "Largest growth per decision, a factor."),
    ("max-scale-down-rate", "2.0", "Largest shrinking per decision, a factor."),
    ("enable-scale-to-zero", "true", "Whether the last instance may go."),
    ("scale-to-zero-grace-period", "30s", "Longest wait for the network before the last instance goes."),
    ("scale-to-zero-pod-retention-period", "0s", "Least time the last instance stays after the decision."),
    ("pod-autoscaler-class", "kpa.autoscaling.knative.dev", "Autoscaler of revisions that name none."),
    ("activator-capacity", "100.0", "Requests one activator is taken to carry."),
    ("initial-scale", "1", "Instances a new revision must reach once."),
    ("allow-zero-initial-scale", "false", "Whether initial-scale may be 0."),
    ("min-scale", "0", "Fewest instances of a reachable revision."),
    ("max-scale", "0", "Most instances; 0 is no bound."),
    ("scale-down-delay", "0s", "How long a smaller decision must hold."),
    ("max-scale-limit", "0", "Highest max-scale anybody may ask for; 0 is no bound."),
];

const DEFAULTS: &[Row] = &[
    ("revision-timeout-seconds", "300", "Seconds a request may take."),
    ("max-revision-timeout-seconds", "600", "The largest timeoutSeconds anybody may ask for."),
    ("revision-response-start-timeout-seconds", "300", "Seconds until the first byte of a response."),
    ("revision-idle-timeout-seconds", "0", "Seconds without a byte of a response; 0 is off."),
    ("revision-cpu-request", "400m", "Resources of containers that name none; unset unless written."),
    ("revision-memory-request", "100M", ""),
    ("revision-ephemeral-storage-request", "500M", ""),
    ("revision-cpu-limit", "1000m", ""),
    ("revision-memory-limit", "200M", ""),
    ("revision-ephemeral-storage-limit", "750M", ""),
    ("container-name-template", "user-container", "Name of a container without one."),
    ("init-container-name-template", "init-container", "Name of an init container without one."),
    ("container-concurrency", "0", "Requests one instance handles at once; 0 is no limit."),
    ("container-concurrency-max-limit", "1000", "The largest containerConcurrency anybody may ask for."),
    ("allow-container-concurrency-zero", "true", "Whether containerConcurrency may be 0."),
    ("enable-service-links", "false", "true, false, or default to leave it to Kubernetes."),
];

const DEPLOYMENT: &[Row] = &[
    ("queue-sidecar-image", "", "Image of the request sidecar; empty runs the containers alone behind Neap's gateway."),
    (
        "registries-skipping-tag-resolving",
        "kind.local,ko.local,dev.local",
        "Registries whose tags are used as they are.",
    ),
    ("digest-resolution-timeout", "10s", "Longest wait for an image digest."),
    ("progress-deadline", "600s", "How long a revision may take to become available."),
    ("queue-sidecar-cpu-request", "25m", "Resources of the sidecar."),
    ("queue-sidecar-cpu-limit", "1000m", ""),
    ("queue-sidecar-memory-request", "400Mi", ""),
    ("queue-sidecar-memory-limit", "800Mi", ""),
    ("queue-sidecar-ephemeral-storage-request", "512Mi", ""),
    ("queue-sidecar-ephemeral-storage-limit", "1024Mi", ""),
    ("queue-sidecar-token-audiences", "", "Audiences a token is mounted into the sidecar for, separated by commas."),
    ("queue-sidecar-rootca", "", "Further root certificates for the sidecar, PEM."),
    (
        "queue-sidecar-tls-min-version",
        "",
        "Bounds of the sidecar's TLS: versions such as 1.3, suites and curves by name.",
    ),
    ("queue-sidecar-tls-max-version", "", ""),
    ("queue-sidecar-tls-cipher-suites", "", ""),
    ("queue-sidecar-tls-curve-preferences", "", ""),
    ("default-affinity-type", "prefer-spread-revision-over-nodes", "Spread of pods: this or none."),
    ("runtime-class-name", "", "YAML: runtime class to the labels a revision must carry for it."),
    ("pod-is-always-schedulable", "false", "Whether an unschedulable pod is only a matter of time."),
];

const DOMAIN: &[Row] =
    &[("example.com", "", "A domain for every route; `selector: {app: shop}` restricts it to routes with that label.")];

const GC: &[Row] = &[
    ("retain-since-create-time", "48h", "Younger revisions stay; or disabled."),
    ("retain-since-last-active-time", "15h", "Revisions used more recently stay; or disabled."),
    ("min-non-active-revisions", "20", "So many unused revisions stay in any case."),
    ("max-non-active-revisions", "1000", "No more unused revisions than this stay; or disabled."),
];

const LEADER_ELECTION: &[Row] = &[
    ("lease-duration", "60s", "How long a lease holds without renewal."),
    ("renew-deadline", "40s", "A holder that could not renew for so long gives up."),
    ("retry-period", "10s", "Time between tries."),
    (
        "buckets",
        "1",
        "Into how many parts the keys are divided, 1 to 10. Neap has one leader for all of them: it has no effect here.",
    ),
];

const LOGGING: &[Row] = &[
    ("loglevel.controller", "info", "Level of each part: debug, info, warn, error."),
    ("loglevel.autoscaler", "info", ""),
    ("loglevel.queueproxy", "info", ""),
    ("loglevel.webhook", "info", ""),
    ("loglevel.activator", "info", ""),
    ("loglevel.hpaautoscaler", "info", ""),
    ("loglevel.net-istio-controller", "info", ""),
    ("loglevel.net-contour-controller", "info", ""),
    ("loglevel.net-kourier-controller", "info", ""),
    ("loglevel.net-gateway-api-controller", "info", ""),
    ("zap-logger-config", logging::ZAP_LOGGER_CONFIG, "How sidecars write their log, JSON."),
];

const NETWORK: &[Row] = &[
    ("ingress-class", "neap.ingress.networking.knative.dev", "Who carries routes that name nobody."),
    (
        "certificate-class",
        "cert-manager.certificate.networking.knative.dev",
        "Who makes certificates for routes that name nobody.",
    ),
    ("domain-template", "{{.Name}}.{{.Namespace}}.{{.Domain}}", "Host of a route."),
    ("tag-template", "{{.Tag}}-{{.Name}}", "First label of a tag's host."),
    ("external-domain-tls", "disabled", "Certificates for public hosts."),
    ("cluster-local-domain-tls", "disabled", "Certificates for cluster-local hosts."),
    ("system-internal-tls", "disabled", "TLS between the platform's parts."),
    ("http-protocol", "enabled", "Plain HTTP on public hosts: enabled or redirected."),
    ("namespace-wildcard-cert-selector", "", "Namespaces that get a wildcard certificate, a label selector."),
    ("rollout-duration", "0", "Seconds over which a new revision takes its share."),
    ("autocreate-cluster-domain-claims", "false", "Whether a DomainMapping may claim its domain by itself."),
    ("enable-mesh-pod-addressability", "false", "Whether pods stay addressable inside a mesh."),
    ("mesh-compatibility-mode", "auto", "auto, enabled or disabled."),
    ("default-external-scheme", "http", "Scheme of a URL without a certificate."),
];

const OBSERVABILITY: &[Row] = &[
    ("logging.enable-var-log-collection", "false", "Collect /var/log of containers."),
    ("logging.revision-url-template", "", "Where a revision's logs can be read; ${REVISION_UID} is filled in."),
    ("logging.enable-request-log", "false", "Whether requests are logged."),
    ("logging.enable-probe-request-log", "false", "Whether probes are logged too."),
    ("logging.request-log-template", observability::REQUEST_LOG_TEMPLATE, "One line per request."),
    ("metrics-protocol", "none", "none, prometheus, http/protobuf or grpc."),
    ("metrics-endpoint", "", ""),
    ("metrics-export-interval", "", ""),
    ("request-metrics-protocol", "none", "The same for metrics of requests."),
    ("request-metrics-endpoint", "", ""),
    ("request-metrics-export-interval", "", ""),
    ("runtime-profiling", "disabled", "Whether profiles are served."),
    ("runtime-export-interval", "15s", ""),
    ("tracing-protocol", "none", "none, http/protobuf, grpc or stdout."),
    ("tracing-endpoint", "", ""),
    ("tracing-sampling-rate", "0", "Share of requests traced, 0 to 1."),
];

const NEAP: &[Row] = &[
    ("external-http-port", "80", "The port on which the world reaches plain HTTP; shown in URLs unless it is 80."),
    ("external-https-port", "443", "The port on which the world reaches HTTPS; shown in URLs unless it is 443."),
    ("cluster-domain", "cluster.local", "Where the names of Kubernetes Services end."),
    ("external-gateway", neap::EXTERNAL_GATEWAY, "Service in front of public hosts, namespace/name."),
    ("local-gateway", neap::LOCAL_GATEWAY, "Service in front of cluster-local hosts, namespace/name."),
    (
        "registries.insecure",
        "",
        "Registries spoken to in plain HTTP: hosts, with or without a port, separated by commas.",
    ),
    (
        "registries.mirrors",
        "",
        "Mirrors asked first, a line for each registry: docker.io=mirror.example:5000/hub,http://10.0.0.1:5000",
    ),
    (
        "acme.directory",
        "",
        "Where public certificates come from: letsencrypt, letsencrypt-staging or the URL of a directory, whose terms you\n\
         # accept by naming it. Empty leaves all certificates to the local authority.",
    ),
    ("acme.email", "", "Where that authority may write to."),
    (
        "acme.challenges",
        "http-01,tls-alpn-01",
        "How control over a name is shown: on port 80, on port 443. After a failure the next one is tried.",
    ),
    ("acme.profile", "", "Profile of the certificates, where the authority has several."),
    (
        "acme.eab-key-id",
        "",
        "External account: its key id, and the Secret in knative-serving with its key as hmac-key.",
    ),
    ("acme.eab-secret", "", ""),
    ("acme.root-ca", "", "Authorities the directory itself may be certified by, beside those the system trusts; PEM."),
    ("acme.max-orders", "10", "Orders open at once."),
    ("logs.container-max-size", "10Mi", "A container's log file turns over at this size."),
    ("logs.container-max-files", "5", "Log files of one run of a container."),
    (
        "logs.ship-to",
        "",
        "Where container logs are sent: file:///var/log/neap/{namespace}/{service}.jsonl, otlp+http://HOST:4318, \
         loki+http://HOST:3100, the latter two also with https; empty for nowhere.",
    ),
    ("logs.headers", "", "Headers for that endpoint, a line for each: X-Scope-OrgID: team"),
    ("logs.headers-secret", "", "A Secret of this namespace whose keys and values are headers, such as authorization."),
    ("logs.ca", "", "Authorities to trust beside the machine's, PEM."),
    ("logs.compression", "gzip", "gzip or none."),
    ("logs.batch-size", "1Mi", "Bytes of lines sent at once at most."),
    ("logs.batch-age", "1s", "How long a line may wait for others."),
    ("logs.timeout", "10s", "How long the endpoint may take to answer."),
    ("logs.json-severity", "true", "Whether a line that is a JSON object is asked for its severity."),
    ("logs.otlp-encoding", "protobuf", "protobuf or json."),
    ("logs.loki-structured-metadata", "true", "Off for a Loki before 3.0."),
    ("logs.file-max-size", "100Mi", "A file that logs are sent to turns over at this size."),
    ("logs.file-max-files", "5", "Files of each path."),
    ("logs.file-max-age", "0", "Age at which such a file turns over; 0 for never."),
];
