//! `config-deployment`: how a revision becomes pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::quantity;
use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-deployment";

/// `registries-skipping-tag-resolving`: registries that only exist inside a developer's machine.
pub const SKIPPED_REGISTRIES: &str = "kind.local,ko.local,dev.local";
/// `digest-resolution-timeout`.
pub const DIGEST_RESOLUTION_TIMEOUT: Duration = Duration::from_secs(10);
/// `progress-deadline`: how long a revision may take to become available.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);
/// `queue-sidecar-cpu-request`.
pub const SIDECAR_CPU_REQUEST: &str = "25m";
/// Sidecar resources while `queueproxy.resource-defaults` is on: CPU limit, memory request, memory limit.
pub const SIDECAR_RESOURCE_DEFAULTS: [&str; 3] = ["1000m", "400Mi", "800Mi"];

/// How pods of one revision are spread where the user does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// Leave it to the scheduler.
    None,
    /// Prefer different nodes.
    PreferSpreadRevisionOverNodes,
}

/// Resources and trust of the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sidecar {
    /// Resource requests by resource name.
    pub requests: BTreeMap<String, String>,
    /// Resource limits by resource name.
    pub limits: BTreeMap<String, String>,
    /// Audiences a token is mounted for.
    pub token_audiences: BTreeSet<String>,
    /// Extra root certificates, PEM.
    pub root_ca: String,
    /// TLS bounds in Go's spelling: minimum version, maximum version, cipher suites, curves.
    pub tls: [String; 4],
}

/// Settings for making Deployments.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Image of the sidecar; `None` runs the user's containers alone and leaves its work to the gateway.
    pub queue_sidecar_image: Option<String>,
    /// Registries whose tags are used as they are.
    pub registries_skipping_tag_resolving: BTreeSet<String>,
    /// Longest wait for a digest.
    pub digest_resolution_timeout: Duration,
    /// How long a revision may take to become available.
    pub progress_deadline: Duration,
    /// The sidecar's settings.
    pub sidecar: Sidecar,
    /// Spread of pods where the user does not say.
    pub default_affinity: Affinity,
    /// Runtime class → labels a revision must carry for it; empty labels match every revision.
    pub runtime_classes: BTreeMap<String, BTreeMap<String, String>>,
    /// Whether an unschedulable pod is only a matter of time (a cluster that grows by itself).
    pub pod_is_always_schedulable: bool,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            queue_sidecar_image: None,
            registries_skipping_tag_resolving: comma_set(SKIPPED_REGISTRIES),
            digest_resolution_timeout: DIGEST_RESOLUTION_TIMEOUT,
            progress_deadline: PROGRESS_DEADLINE,
            sidecar: Sidecar {
                requests: BTreeMap::from([("cpu".into(), SIDECAR_CPU_REQUEST.into())]),
                ..Sidecar::default()
            },
            default_affinity: Affinity::PreferSpreadRevisionOverNodes,
            runtime_classes: BTreeMap::new(),
            pod_is_always_schedulable: false,
        }
    }
}

impl Deployment {
    /// The runtime class for a revision with these labels: the most specific match, then the first by name.
    pub fn runtime_class(&self, labels: &BTreeMap<String, String>) -> Option<&str> {
        let mut best: Option<(usize, &str)> = None;
        for (class, selector) in &self.runtime_classes {
            let matches = selector.iter().all(|(k, v)| labels.get(k) == Some(v));
            if matches && best.is_none_or(|(specific, _)| selector.len() > specific) {
                best = Some((selector.len(), class));
            }
        }
        best.map(|(_, class)| class).filter(|class| !class.is_empty())
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Deployment {
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Deployment::default();
    let parsed = Deployment {
        queue_sidecar_image: Some(r.text(&["queue-sidecar-image", "queueSidecarImage"], ""))
            .filter(|image| !image.trim().is_empty()),
        registries_skipping_tag_resolving: comma_set(
            &r.text(&["registries-skipping-tag-resolving", "registriesSkippingTagResolving"], SKIPPED_REGISTRIES),
        ),
        digest_resolution_timeout: r
            .duration(&["digest-resolution-timeout", "digestResolutionTimeout"], d.digest_resolution_timeout),
        progress_deadline: r.duration(&["progress-deadline", "progressDeadline"], d.progress_deadline),
        sidecar: sidecar(&mut r),
        default_affinity: r.with(
            &["default-affinity-type"],
            d.default_affinity,
            "none or prefer-spread-revision-over-nodes",
            |v| match v {
                "none" => Some(Affinity::None),
                "prefer-spread-revision-over-nodes" => Some(Affinity::PreferSpreadRevisionOverNodes),
                _ => None,
            },
        ),
        runtime_classes: r.with(
            &["runtime-class-name"],
            BTreeMap::new(),
            "a YAML map of runtime class to `selector`",
            runtime_classes,
        ),
        pod_is_always_schedulable: r.boolean(&["pod-is-always-schedulable"], false),
    };
    r.require(
        !parsed.progress_deadline.is_zero() && parsed.progress_deadline.subsec_nanos() == 0,
        "progress-deadline",
        || "must be whole seconds and longer than nothing".into(),
    );
    r.require(!parsed.digest_resolution_timeout.is_zero(), "digest-resolution-timeout", || {
        "must be longer than nothing".into()
    });
    parsed
}

fn sidecar(r: &mut Reader<'_>) -> Sidecar {
    const KEYS: [(&str, &str, &str); 3] = [
        ("cpu", "queue-sidecar-cpu-request", "queue-sidecar-cpu-limit"),
        ("memory", "queue-sidecar-memory-request", "queue-sidecar-memory-limit"),
        ("ephemeral-storage", "queue-sidecar-ephemeral-storage-request", "queue-sidecar-ephemeral-storage-limit"),
    ];
    let mut sidecar =
        Sidecar { requests: BTreeMap::from([("cpu".into(), SIDECAR_CPU_REQUEST.into())]), ..Sidecar::default() };
    for (resource, request, limit) in KEYS {
        for (key, into) in [(request, &mut sidecar.requests), (limit, &mut sidecar.limits)] {
            let value = r.with(&[key], None, "a quantity such as 500m or 64Mi", |v| {
                quantity::parse(v).map(|_| Some(v.to_owned()))
            });
            into.extend(value.map(|value| (resource.to_owned(), value)));
        }
    }
    sidecar.token_audiences = comma_set(&r.text(&["queue-sidecar-token-audiences"], ""));
    sidecar.root_ca = r.text(&["queue-sidecar-rootca"], "");
    sidecar.tls = [
        "queue-sidecar-tls-min-version",
        "queue-sidecar-tls-max-version",
        "queue-sidecar-tls-cipher-suites",
        "queue-sidecar-tls-curve-preferences",
    ]
    .map(|key| r.text(&[key], ""));
    sidecar
}

fn runtime_classes(text: &str) -> Option<BTreeMap<String, BTreeMap<String, String>>> {
    #[derive(serde::Deserialize, Default)]
    struct Class {
        #[serde(default)]
        selector: BTreeMap<String, String>,
    }
    if text.is_empty() {
        return Some(BTreeMap::new());
    }
    let classes: BTreeMap<String, Option<Class>> = serde_yaml::from_str(text).ok()?;
    Some(classes.into_iter().map(|(name, class)| (name, class.unwrap_or_default().selector)).collect())
}

fn comma_set(text: &str) -> BTreeSet<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}
