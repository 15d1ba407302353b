//! Metrics of requests for users (E2.11), under the names that upstream's have once Prometheus has scraped them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use http::header::HeaderMap;
use http::{Method, StatusCode};
use neap_api::keys::headers as names;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::settings::Owner;
use crate::stats::BUCKETS;

/// Tags told apart in metrics. A client chooses the header, so without a bound it could fill our memory.
const TAGS: usize = 64;
const TAG_DEFAULT: &str = "kn:default";
const TAG_UNDEFINED: &str = "kn:undefined";
const TAG_DISABLED: &str = "kn:disabled";

pub(super) struct Metrics {
    registry: Registry,
    invocations: Family<Invocation, Histogram, fn() -> Histogram>,
    requests: Family<Served, Histogram, fn() -> Histogram>,
    depth: Gauge,
    tags: RefCell<HashSet<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Invocation {
    http_response_status_code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    http_request_method: &'static str,
    http_response_status_code: u16,
    kn_route_tag: String,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    pub(super) fn new(owner: &Owner) -> Self {
        let mut registry = Registry::default();
        let invocations = Family::new_with_constructor(histogram as fn() -> Histogram);
        let requests = Family::new_with_constructor(histogram as fn() -> Histogram);
        let depth = Gauge::default();
        let labels = [
            ("k8s_container_name", "queue-proxy"),
            ("k8s_namespace_name", &owner.namespace),
            ("k8s_pod_name", &owner.pod),
            ("kn_service_name", &owner.service),
            ("kn_configuration_name", &owner.configuration),
            ("kn_revision_name", &owner.revision),
        ];
        let labels: Vec<(String, String)> =
            labels.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        registry.register("target", "Whose measurements these are", Info::new(labels));
        registry.register_with_unit(
            "kn_serving_invocation_duration",
            "From a request's going to the application to the end of its answer",
            Unit::Seconds,
            invocations.clone(),
        );
        registry.register_with_unit(
            "http_server_request_duration",
            "From a request's arrival to the end of its answer",
            Unit::Seconds,
            requests.clone(),
        );
        registry.register("kn_serving_queue_depth", "Requests that wait or are at the application", depth.clone());
        Self { registry, invocations, requests, depth, tags: RefCell::default() }
    }

    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a string takes everything");
        out
    }

    pub(super) fn depth(&self, now: usize) {
        self.depth.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub(super) fn invocation(&self, status: StatusCode, took: Duration) {
        let labels = Invocation { http_response_status_code: status.as_u16() };
        self.invocations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn served(&self, method: &'static str, status: StatusCode, tag: String, took: Duration) {
        let labels =
            Served { http_request_method: method, http_response_status_code: status.as_u16(), kn_route_tag: tag };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The route a request came by, as it is told by its headers.
    pub(super) fn tag(&self, headers: &HeaderMap) -> String {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let default = text(names::DEFAULT_ROUTE);
        match text(names::TAG) {
            "" if default.is_empty() => TAG_DISABLED.to_owned(),
            "" => TAG_DEFAULT.to_owned(),
            _ if default == "true" => TAG_UNDEFINED.to_owned(),
            tag => {
                let mut tags = self.tags.borrow_mut();
                if tags.contains(tag) || (tags.len() < TAGS && tags.insert(tag.to_owned())) {
                    tag.to_owned()
                } else {
                    TAG_UNDEFINED.to_owned()
                }
            }
        }
    }
}

/// Methods of the standards by their names, all others as one: a client makes up as many as it likes.
pub(super) fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "PATCH" => "PATCH",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn e2_11_route_tags() {
        let metrics = Metrics::new(&Owner::default());
        let check = |tag: &str, default: &str, want: &str| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(names::TAG, tag), (names::DEFAULT_ROUTE, default)] {
                if !value.is_empty() {
                    headers.insert(name, HeaderValue::from_str(value).expect("a value"));
                }
            }
            assert_eq!(metrics.tag(&headers), want, "{tag:?} {default:?}");
        };
        check("", "", "kn:disabled");
        check("", "true", "kn:default");
        check("blue", "true", "kn:undefined");
        check("blue", "", "blue");
        for n in 0..TAGS {
            check(&format!("t{n}"), "", if n < TAGS - 1 { format!("t{n}") } else { TAG_UNDEFINED.into() }.as_str());
        }
        check("blue", "", "blue");
    }

    #[test]
    fn e2_11_names() {
        let owner = Owner { namespace: "ns".into(), revision: "r".into(), ..Owner::default() };
        let metrics = Metrics::new(&owner);
        metrics.depth(3);
        metrics.invocation(StatusCode::OK, Duration::from_millis(6));
        metrics.served(method(&Method::GET), StatusCode::OK, "kn:default".into(), Duration::from_millis(6));
        let text = metrics.render();
        for line in [
            "target_info{k8s_container_name=\"queue-proxy\",k8s_namespace_name=\"ns\",kn_revision_name=\"r\"} 1",
            "kn_serving_queue_depth 3",
            "kn_serving_invocation_duration_seconds_bucket{le=\"0.01\",http_response_status_code=\"200\"} 1",
            "kn_serving_invocation_duration_seconds_count{http_response_status_code=\"200\"} 1",
            "http_server_request_duration_seconds_count{http_request_method=\"GET\",http_response_status_code=\"200\",\
             kn_route_tag=\"kn:default\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
