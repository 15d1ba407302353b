//! `config-defaults`: what a revision gets that does not say.

use std::collections::BTreeMap;

use super::quantity;
use super::reader::{Data, Mistake, Reader};
use crate::names::template::Template;

/// The config-map's name.
pub const MAP: &str = "config-defaults";

/// `revision-timeout-seconds`.
pub const TIMEOUT_SECONDS: i64 = 300;
/// `max-revision-timeout-seconds`.
pub const MAX_TIMEOUT_SECONDS: i64 = 600;
/// `container-concurrency`: 0 means no limit.
pub const CONTAINER_CONCURRENCY: i64 = 0;
/// `container-concurrency-max-limit`.
pub const CONTAINER_CONCURRENCY_MAX: i64 = 1000;
/// `container-name-template`.
pub const CONTAINER_NAME: &str = "user-container";
/// `init-container-name-template`.
pub const INIT_CONTAINER_NAME: &str = "init-container";

/// Defaults of revisions.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Seconds a request may take.
    pub timeout_seconds: i64,
    /// The largest `timeoutSeconds` anybody may ask for.
    pub max_timeout_seconds: i64,
    /// Seconds until the first byte.
    pub response_start_timeout_seconds: i64,
    /// Seconds without a byte; 0 is off.
    pub idle_timeout_seconds: i64,
    /// Resource requests by resource name.
    pub requests: BTreeMap<String, String>,
    /// Resource limits by resource name.
    pub limits: BTreeMap<String, String>,
    /// Name of a container without one, over the parent's metadata.
    pub container_name: Template,
    /// Name of an init container without one.
    pub init_container_name: Template,
    /// Requests one instance handles at once; 0 means no limit.
    pub container_concurrency: i64,
    /// The largest `containerConcurrency` anybody may ask for.
    pub container_concurrency_max_limit: i64,
    /// Whether `containerConcurrency: 0` is allowed.
    pub allow_container_concurrency_zero: bool,
    /// Value of `enableServiceLinks` on new revisions; `None` leaves it to Kubernetes.
    pub enable_service_links: Option<bool>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            timeout_seconds: TIMEOUT_SECONDS,
            max_timeout_seconds: MAX_TIMEOUT_SECONDS,
            response_start_timeout_seconds: TIMEOUT_SECONDS,
            idle_timeout_seconds: 0,
            requests: BTreeMap::new(),
            limits: BTreeMap::new(),
            container_name: Template::literal(CONTAINER_NAME),
            init_container_name: Template::literal(INIT_CONTAINER_NAME),
            container_concurrency: CONTAINER_CONCURRENCY,
            container_concurrency_max_limit: CONTAINER_CONCURRENCY_MAX,
            allow_container_concurrency_zero: true,
            enable_service_links: Some(false),
        }
    }
}

/// Resources that have a default request and limit, with their keys.
const RESOURCES: [(&str, &str, &str); 3] = [
    ("cpu", "revision-cpu-request", "revision-cpu-limit"),
    ("memory", "revision-memory-request", "revision-memory-limit"),
    ("ephemeral-storage", "revision-ephemeral-storage-request", "revision-ephemeral-storage-limit"),
];

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Defaults {
    let mut r = Reader::new(MAP, data, mistakes);
    let mut d = Defaults::default();
    let whole = "a whole number";
    d.timeout_seconds = r.parse(&["revision-timeout-seconds"], d.timeout_seconds, whole);
    d.max_timeout_seconds = r.parse(&["max-revision-timeout-seconds"], d.max_timeout_seconds, whole);
    d.response_start_timeout_seconds = r.parse(&["revision-response-start-timeout-seconds"], d.timeout_seconds, whole);
    d.idle_timeout_seconds = r.parse(&["revision-idle-timeout-seconds"], 0, whole);
    for (resource, request, limit) in RESOURCES {
        for (key, into) in [(request, &mut d.requests), (limit, &mut d.limits)] {
            let value = r.with(&[key], None, "a quantity such as 500m or 64Mi", |v| {
                quantity::parse(v).map(|_| Some(v.to_owned()))
            });
            into.extend(value.map(|value| (resource.to_owned(), value)));
        }
    }
    d.container_name =
        r.with(&["container-name-template"], d.container_name, "a template this platform can fill in", |v| {
            v.parse().ok()
        });
    d.init_container_name =
        r.with(&["init-container-name-template"], d.init_container_name, "a template this platform can fill in", |v| {
            v.parse().ok()
        });
    d.container_concurrency = r.parse(&["container-concurrency"], d.container_concurrency, whole);
    d.container_concurrency_max_limit =
        r.parse(&["container-concurrency-max-limit"], d.container_concurrency_max_limit, whole);
    d.allow_container_concurrency_zero = r.boolean(&["allow-container-concurrency-zero"], true);
    d.enable_service_links =
        r.with(&["enable-service-links"], d.enable_service_links, "true, false or default", |v| match v {
            "default" => Some(None),
            other => super::go::parse_bool(other).map(Some),
        });
    bounds(&d, &mut r);
    d
}

fn bounds(d: &Defaults, r: &mut Reader<'_>) {
    r.require(d.timeout_seconds <= d.max_timeout_seconds, "revision-timeout-seconds", || {
        format!("{} exceeds max-revision-timeout-seconds {}", d.timeout_seconds, d.max_timeout_seconds)
    });
    r.require(d.timeout_seconds >= 0, "revision-timeout-seconds", || format!("{} is negative", d.timeout_seconds));
    for (key, value) in [
        ("revision-response-start-timeout-seconds", d.response_start_timeout_seconds),
        ("revision-idle-timeout-seconds", d.idle_timeout_seconds),
    ] {
        r.require((0..=d.timeout_seconds).contains(&value), key, || {
            format!("{value} must be between 0 and revision-timeout-seconds {}", d.timeout_seconds)
        });
    }
    r.require(d.container_concurrency_max_limit >= 1, "container-concurrency-max-limit", || {
        format!("{} must be at least 1", d.container_concurrency_max_limit)
    });
    r.require(
        (0..=d.container_concurrency_max_limit).contains(&d.container_concurrency),
        "container-concurrency",
        || {
            format!(
                "{} must be between 0 and container-concurrency-max-limit {}",
                d.container_concurrency, d.container_concurrency_max_limit
            )
        },
    );
}
