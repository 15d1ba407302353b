//! Section B of the facts, row by row: each key exists, has Knative's default, is read, and is documented in the example of
//! its config-map.

use super::features::FLAGS;
use super::*;

/// A key: fact, config-map, key, older spellings, default (`None`: nothing unless it is set), another valid value.
type Key = (&'static str, &'static str, &'static str, &'static [&'static str], Option<&'static str>, &'static str);

const KEYS: &[Key] = &[
    ("B1.1", "config-autoscaler", "container-concurrency-target-percentage", &[], Some("70"), "50"),
    ("B1.2", "config-autoscaler", "container-concurrency-target-default", &[], Some("100"), "10"),
    ("B1.3", "config-autoscaler", "requests-per-second-target-default", &[], Some("200"), "10"),
    ("B1.4", "config-autoscaler", "target-burst-capacity", &[], Some("211"), "-1"),
    ("B1.5", "config-autoscaler", "stable-window", &[], Some("60s"), "6s"),
    ("B1.6", "config-autoscaler", "panic-window-percentage", &[], Some("10.0"), "100"),
    ("B1.7", "config-autoscaler", "panic-threshold-percentage", &[], Some("200.0"), "110"),
    ("B1.8", "config-autoscaler", "max-scale-up-rate", &[], Some("1000.0"), "1.1"),
    ("B1.9", "config-autoscaler", "max-scale-down-rate", &[], Some("2.0"), "1.1"),
    ("B1.10", "config-autoscaler", "enable-scale-to-zero", &[], Some("true"), "false"),
    ("B1.11", "config-autoscaler", "scale-to-zero-grace-period", &[], Some("30s"), "1s"),
    ("B1.12", "config-autoscaler", "scale-to-zero-pod-retention-period", &[], Some("0s"), "1s"),
    ("B1.13", "config-autoscaler", "pod-autoscaler-class", &[], Some("kpa.autoscaling.knative.dev"), "x"),
    ("B1.14", "config-autoscaler", "activator-capacity", &[], Some("100.0"), "1"),
    ("B1.15", "config-autoscaler", "initial-scale", &[], Some("1"), "2"),
    ("B1.16", "config-autoscaler", "allow-zero-initial-scale", &[], Some("false"), "true"),
    ("B1.17", "config-autoscaler", "min-scale", &[], Some("0"), "1"),
    ("B1.18", "config-autoscaler", "max-scale", &[], Some("0"), "1"),
    ("B1.19", "config-autoscaler", "scale-down-delay", &[], Some("0s"), "1s"),
    // A limit needs a max-scale within it.
    ("B1.20", "config-autoscaler", "max-scale-limit", &[], Some("0"), "5"),
    ("B2.1", "config-defaults", "revision-timeout-seconds", &[], Some("300"), "600"),
    ("B2.2", "config-defaults", "max-revision-timeout-seconds", &[], Some("600"), "900"),
    ("B2.3", "config-defaults", "revision-response-start-timeout-seconds", &[], Some("300"), "10"),
    ("B2.4", "config-defaults", "revision-idle-timeout-seconds", &[], Some("0"), "10"),
    ("B2.5", "config-defaults", "revision-cpu-request", &[], None, "1"),
    ("B2.5", "config-defaults", "revision-memory-request", &[], None, "1Mi"),
    ("B2.5", "config-defaults", "revision-ephemeral-storage-request", &[], None, "1Mi"),
    ("B2.6", "config-defaults", "revision-cpu-limit", &[], None, "1"),
    ("B2.6", "config-defaults", "revision-memory-limit", &[], None, "1Mi"),
    ("B2.6", "config-defaults", "revision-ephemeral-storage-limit", &[], None, "1Mi"),
    ("B2.7", "config-defaults", "container-name-template", &[], Some("user-container"), "{{.Name}}"),
    ("B2.8", "config-defaults", "init-container-name-template", &[], Some("init-container"), "{{.Name}}"),
    ("B2.9", "config-defaults", "container-concurrency", &[], Some("0"), "1000"),
    ("B2.10", "config-defaults", "container-concurrency-max-limit", &[], Some("1000"), "1"),
    ("B2.11", "config-defaults", "allow-container-concurrency-zero", &[], Some("true"), "false"),
    ("B2.12", "config-defaults", "enable-service-links", &[], Some("false"), "default"),
    ("B3.3", "config-features", "secure-pod-defaults", &[], Some("disabled"), "AllowRootBounded"),
    ("B4.1", "config-deployment", "queue-sidecar-image", &["queueSidecarImage"], Some(""), "queue:1"),
    (
        "B4.2",
        "config-deployment",
        "registries-skipping-tag-resolving",
        &["registriesSkippingTagResolving"],
        Some("kind.local,ko.local,dev.local"),
        "a.local",
    ),
    ("B4.3", "config-deployment", "digest-resolution-timeout", &["digestResolutionTimeout"], Some("10s"), "1s"),
    ("B4.4", "config-deployment", "progress-deadline", &["progressDeadline"], Some("600s"), "1s"),
    ("B4.5", "config-deployment", "queue-sidecar-cpu-request", &[], Some("25m"), "1"),
    ("B4.6", "config-deployment", "queue-sidecar-cpu-limit", &[], None, "1"),
    ("B4.6", "config-deployment", "queue-sidecar-memory-request", &[], None, "1Mi"),
    ("B4.6", "config-deployment", "queue-sidecar-memory-limit", &[], None, "1Mi"),
    ("B4.7", "config-deployment", "queue-sidecar-ephemeral-storage-request", &[], None, "1Mi"),
    ("B4.7", "config-deployment", "queue-sidecar-ephemeral-storage-limit", &[], None, "1Mi"),
    ("B4.8", "config-deployment", "queue-sidecar-token-audiences", &[], Some(""), "a,b"),
    ("B4.9", "config-deployment", "queue-sidecar-rootca", &[], Some(""), "PEM"),
    ("B4.10", "config-deployment", "queue-sidecar-tls-min-version", &[], Some(""), "1.2"),
    ("B4.10", "config-deployment", "queue-sidecar-tls-max-version", &[], Some(""), "1.3"),
    ("B4.10", "config-deployment", "queue-sidecar-tls-cipher-suites", &[], Some(""), "x"),
    ("B4.10", "config-deployment", "queue-sidecar-tls-curve-preferences", &[], Some(""), "x"),
    ("B4.11", "config-deployment", "default-affinity-type", &[], Some("prefer-spread-revision-over-nodes"), "none"),
    ("B4.12", "config-deployment", "runtime-class-name", &[], Some(""), "gvisor: {selector: {a: b}}"),
    ("B4.13", "config-deployment", "pod-is-always-schedulable", &[], Some("false"), "true"),
    ("B5.2", "config-gc", "retain-since-create-time", &[], Some("48h"), "disabled"),
    ("B5.3", "config-gc", "retain-since-last-active-time", &[], Some("15h"), "1m"),
    ("B5.4", "config-gc", "min-non-active-revisions", &[], Some("20"), "0"),
    ("B5.5", "config-gc", "max-non-active-revisions", &[], Some("1000"), "20"),
    ("B5.6", "config-leader-election", "lease-duration", &[], Some("60s"), "50s"),
    ("B5.6", "config-leader-election", "renew-deadline", &[], Some("40s"), "50s"),
    ("B5.6", "config-leader-election", "retry-period", &[], Some("10s"), "1s"),
    ("B5.6", "config-leader-election", "buckets", &[], Some("1"), "10"),
    ("B5.7", "config-logging", "zap-logger-config", &[], Some(logging::ZAP_LOGGER_CONFIG), "{}"),
    // The one default that is ours: the gateway of this platform.
    ("B6.1", "config-network", "ingress-class", &["ingress.class"], Some("neap.ingress.networking.knative.dev"), "x"),
    (
        "B6.2",
        "config-network",
        "certificate-class",
        &["certificate.class"],
        Some("cert-manager.certificate.networking.knative.dev"),
        "x",
    ),
    (
        "B6.3",
        "config-network",
        "domain-template",
        &["domainTemplate"],
        Some("{{.Name}}.{{.Namespace}}.{{.Domain}}"),
        "{{.Name}}.{{.Domain}}",
    ),
    ("B6.4", "config-network", "tag-template", &["tagTemplate"], Some("{{.Tag}}-{{.Name}}"), "{{.Name}}-{{.Tag}}"),
    ("B6.5", "config-network", "external-domain-tls", &["auto-tls", "autoTLS"], Some("disabled"), "Enabled"),
    ("B6.6", "config-network", "cluster-local-domain-tls", &[], Some("disabled"), "Enabled"),
    ("B6.7", "config-network", "system-internal-tls", &[], Some("disabled"), "Enabled"),
    ("B6.8", "config-network", "http-protocol", &["httpProtocol"], Some("enabled"), "Redirected"),
    ("B6.9", "config-network", "namespace-wildcard-cert-selector", &[], Some(""), "{}"),
    ("B6.10", "config-network", "rollout-duration", &["rolloutDuration"], Some("0"), "10"),
    (
        "B6.11",
        "config-network",
        "autocreate-cluster-domain-claims",
        &["autocreateClusterDomainClaims"],
        Some("false"),
        "true",
    ),
    ("B6.12", "config-network", "enable-mesh-pod-addressability", &[], Some("false"), "true"),
    ("B6.13", "config-network", "mesh-compatibility-mode", &[], Some("auto"), "disabled"),
    ("B6.14", "config-network", "default-external-scheme", &["defaultExternalScheme"], Some("http"), "https"),
    ("B7.1", "config-observability", "logging.enable-var-log-collection", &[], Some("false"), "true"),
    ("B7.2", "config-observability", "logging.revision-url-template", &[], Some(""), "http://logs/${REVISION_UID}"),
    (
        "B7.3",
        "config-observability",
        "logging.request-log-template",
        &[],
        Some(observability::REQUEST_LOG_TEMPLATE),
        "x",
    ),
    ("B7.4", "config-observability", "logging.enable-request-log", &[], Some("false"), "true"),
    ("B7.5", "config-observability", "logging.enable-probe-request-log", &[], Some("false"), "true"),
    ("B7.6", "config-observability", "metrics-protocol", &[], Some("none"), "prometheus"),
    ("B7.6", "config-observability", "metrics-endpoint", &[], Some(""), "x"),
    ("B7.6", "config-observability", "metrics-export-interval", &[], Some(""), "1s"),
    ("B7.7", "config-observability", "request-metrics-protocol", &[], Some("none"), "prometheus"),
    ("B7.7", "config-observability", "request-metrics-endpoint", &[], Some(""), "x"),
    ("B7.7", "config-observability", "request-metrics-export-interval", &[], Some(""), "1s"),
    ("B7.8", "config-observability", "runtime-profiling", &[], Some("disabled"), "enabled"),
    ("B7.8", "config-observability", "runtime-export-interval", &[], Some("15s"), "1s"),
    ("B7.9", "config-observability", "tracing-protocol", &[], Some("none"), "stdout"),
    ("B7.9", "config-observability", "tracing-endpoint", &[], Some(""), "x"),
    ("B7.9", "config-observability", "tracing-sampling-rate", &[], Some("0"), "0.5"),
];

/// B3.1, B3.2, B3.4 to B3.11: what is open; every other flag is not.
const OPEN: [&str; 2] = ["multi-container", "kubernetes.podspec-volumes-emptydir"];
/// Fact, what the keys begin with, how they end.
const FLAG_KEYS: [(&str, &str, &[&str]); 13] = [
    ("B3.1", "", &["multi-container"]),
    ("B3.2", "", &["multi-container-probing"]),
    ("B3.4", "", &["tag-header-based-routing"]),
    ("B3.5", "", &["autodetect-http2"]),
    (
        "B3.6",
        "kubernetes.podspec-",
        &["affinity", "topologyspreadconstraints", "hostaliases", "nodeselector", "tolerations"],
    ),
    (
        "B3.6",
        "kubernetes.podspec-",
        &["fieldref", "runtimeclassname", "dnspolicy", "dnsconfig", "securitycontext", "hostipc"],
    ),
    (
        "B3.6",
        "kubernetes.podspec-",
        &["shareprocessnamespace", "hostpid", "hostnetwork", "priorityclassname", "schedulername"],
    ),
    ("B3.6", "kubernetes.podspec-", &["init-containers", "persistent-volume-claim", "persistent-volume-write"]),
    ("B3.7", "kubernetes.podspec-volumes-", &["emptydir"]),
    ("B3.8", "kubernetes.podspec-volumes-", &["hostpath", "csi", "ephemeral", "image", "mount-propagation"]),
    ("B3.9", "kubernetes.", &["containerspec-addcapabilities"]),
    ("B3.10", "queueproxy.", &["mount-podinfo"]),
    ("B3.11", "queueproxy.", &["resource-defaults"]),
];
/// B5.8.
const LOGGERS: [&str; 10] = [
    "controller",
    "autoscaler",
    "queueproxy",
    "webhook",
    "activator",
    "hpaautoscaler",
    "net-istio-controller",
    "net-contour-controller",
    "net-kourier-controller",
    "net-gateway-api-controller",
];

fn read(map: &str, pairs: &[(&str, &str)]) -> Settings {
    let data: Data = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Settings::parse(&Maps::from([(map.to_owned(), data)])).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

/// The example block of each config-map, as what it says.
fn documented() -> BTreeMap<String, BTreeMap<String, String>> {
    let maps = examples("example.com").into_iter().map(|map| {
        let example = map.data.unwrap_or_default().remove(EXAMPLE_KEY).expect("an example");
        let said: Option<BTreeMap<String, String>> = serde_yaml::from_str(&example).expect("the example is YAML");
        (map.metadata.name.expect("a name"), said.unwrap_or_default())
    });
    maps.collect()
}

#[test]
fn b1_to_b7_every_key_has_its_default_and_is_read() {
    let documented = documented();
    let none = Settings::default();
    for (fact, map, key, old, default, other) in KEYS {
        let at = format!("{fact} {map} {key}");
        // What else must be said for the other value to be allowed.
        let with: &[(&str, &str)] = match *key {
            "max-scale-limit" => &[("max-scale", "2")],
            _ => &[],
        };
        let set = |key: &str| read(map, &[with, &[(key, *other)]].concat());
        if let Some(default) = default {
            assert_eq!(read(map, &[(key, default)]), none, "{at}: the default is another");
        }
        assert_ne!(set(key), read(map, with), "{at} is not read");
        for spelling in *old {
            assert_eq!(set(spelling), set(key), "{at}: {spelling} is not read");
        }
        let said = documented[*map].get(*key).unwrap_or_else(|| panic!("{at} is not documented"));
        assert!(default.is_none_or(|default| default == said), "{at} is documented as {said:?}");
    }
}

#[test]
fn b3_12_flags() {
    let mut want: Vec<String> =
        FLAG_KEYS.iter().flat_map(|(_, prefix, keys)| keys.iter().map(move |key| format!("{prefix}{key}"))).collect();
    let mut have: Vec<String> = FLAGS.iter().map(|(key, _)| (*key).to_owned()).collect();
    want.sort();
    have.sort();
    // So there is none for a dry run of pods either.
    assert_eq!(have, want);
    let documented = &documented()["config-features"];
    for (key, default) in FLAGS {
        let value = if OPEN.contains(key) { "enabled" } else { "disabled" };
        assert_eq!(default.is_open(), OPEN.contains(key), "{key}");
        assert_eq!(documented[*key], value);
        // B3: whatever the case.
        assert_eq!(read("config-features", &[(key, &value.to_uppercase())]), Settings::default(), "{key}");
        assert_ne!(read("config-features", &[(key, "Allowed")]), Settings::default(), "{key} is not read");
    }
}

#[test]
fn b5_8_levels() {
    let documented = &documented()["config-logging"];
    for logger in LOGGERS {
        let key = format!("loglevel.{logger}");
        assert_eq!(documented[&key], "info");
        assert_eq!(Settings::default().logging.level(logger), "info");
        assert_eq!(read("config-logging", &[(&key, "debug")]).logging.level(logger), "debug");
    }
}

#[test]
fn b5_1_and_b5_9_maps_without_keys_of_their_own() {
    assert!(documented().contains_key("config-domain"));
    assert!(documented()["config-tracing"].is_empty());
    assert!(Settings::default().domain.domains.is_empty());
    assert_eq!(read("config-tracing", &[("backend", "zipkin")]), Settings::default());
}

/// B1.21 and B7.10: what no key changes.
#[test]
fn b1_21_and_b7_10_keys_that_are_not_read() {
    assert_eq!(read("config-autoscaler", &[("tick-interval", "1s")]), Settings::default());
    assert_eq!(
        read("config-observability", &[("metrics.backend-destination", "x"), ("profiling.enable", "true")]),
        Settings::default()
    );
}
