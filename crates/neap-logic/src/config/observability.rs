//! `config-observability`: request logs, metrics, traces, profiles.

use std::time::Duration;

use super::go;
use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-observability";

/// `runtime-export-interval`.
pub const RUNTIME_EXPORT_INTERVAL: Duration = Duration::from_secs(15);

/// `logging.request-log-template`: one JSON line per request.
pub const REQUEST_LOG_TEMPLATE: &str = concat!(
    r#"{"httpRequest": {"requestMethod": "{{.Request.Method}}", "requestUrl": "{{js .Request.RequestURI}}", "#,
    r#""requestSize": "{{.Request.ContentLength}}", "status": {{.Response.Code}}, "responseSize": "{{.Response.Size}}", "#,
    r#""userAgent": "{{js .Request.UserAgent}}", "remoteIp": "{{js .Request.RemoteAddr}}", "serverIp": "{{.Revision.PodIP}}", "#,
    r#""referer": "{{js .Request.Referer}}", "latency": "{{.Response.Latency}}s", "protocol": "{{.Request.Proto}}"}, "#,
    r#""traceId": "{{.TraceID}}"}"#
);

/// How measurements leave the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// They do not.
    None,
    /// Scraped.
    Prometheus,
    /// OTLP over HTTP.
    HttpProtobuf,
    /// OTLP over gRPC.
    Grpc,
    /// Printed.
    Stdout,
}

/// One stream of metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// How they leave.
    pub protocol: Protocol,
    /// Where to.
    pub endpoint: String,
    /// How often; zero takes the protocol's own default.
    pub export_interval: Duration,
}

/// Settings of logs, metrics, traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Observability {
    /// Collect `/var/log` of containers.
    pub enable_var_log_collection: bool,
    /// Where a revision's logs can be read; `${REVISION_UID}` is filled in. Empty: nowhere.
    pub revision_url_template: String,
    /// One line per request, a Go template.
    pub request_log_template: String,
    /// Whether requests are logged.
    pub enable_request_log: bool,
    /// Whether probes are logged too.
    pub enable_probe_request_log: bool,
    /// The platform's own metrics.
    pub metrics: Metrics,
    /// Metrics of requests.
    pub request_metrics: Metrics,
    /// Whether profiles are served.
    pub runtime_profiling: bool,
    /// How often the runtime's own figures are exported.
    pub runtime_export_interval: Duration,
    /// How traces leave.
    pub tracing_protocol: Protocol,
    /// Where traces go.
    pub tracing_endpoint: String,
    /// Share of requests traced, 0 to 1.
    pub tracing_sampling_rate: f64,
}

impl Default for Observability {
    fn default() -> Self {
        let none = Metrics { protocol: Protocol::None, endpoint: String::new(), export_interval: Duration::ZERO };
        Self {
            enable_var_log_collection: false,
            revision_url_template: String::new(),
            request_log_template: REQUEST_LOG_TEMPLATE.into(),
            enable_request_log: false,
            enable_probe_request_log: false,
            metrics: none.clone(),
            request_metrics: none,
            runtime_profiling: false,
            runtime_export_interval: RUNTIME_EXPORT_INTERVAL,
            tracing_protocol: Protocol::None,
            tracing_endpoint: String::new(),
            tracing_sampling_rate: 0.0,
        }
    }
}

const METRICS_PROTOCOLS: &[(&str, Protocol)] = &[
    ("", Protocol::None),
    ("none", Protocol::None),
    ("prometheus", Protocol::Prometheus),
    ("http/protobuf", Protocol::HttpProtobuf),
    ("grpc", Protocol::Grpc),
];
const TRACING_PROTOCOLS: &[(&str, Protocol)] = &[
    ("", Protocol::None),
    ("none", Protocol::None),
    ("http/protobuf", Protocol::HttpProtobuf),
    ("grpc", Protocol::Grpc),
    ("stdout", Protocol::Stdout),
];

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Observability {
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Observability::default();
    let parsed = Observability {
        enable_var_log_collection: r.boolean(&["logging.enable-var-log-collection"], false),
        revision_url_template: r.text(&["logging.revision-url-template"], ""),
        request_log_template: r.text(&["logging.request-log-template"], REQUEST_LOG_TEMPLATE),
        enable_request_log: r.boolean(&["logging.enable-request-log"], false),
        enable_probe_request_log: r.boolean(&["logging.enable-probe-request-log"], false),
        metrics: metrics(&mut r, ["metrics-protocol", "metrics-endpoint", "metrics-export-interval"]),
        request_metrics: metrics(
            &mut r,
            ["request-metrics-protocol", "request-metrics-endpoint", "request-metrics-export-interval"],
        ),
        runtime_profiling: r.with(&["runtime-profiling"], false, "enabled or disabled", |v| match v {
            "enabled" => Some(true),
            "disabled" | "" => Some(false),
            _ => None,
        }),
        runtime_export_interval: r.duration(&["runtime-export-interval"], d.runtime_export_interval),
        tracing_protocol: protocol(&mut r, "tracing-protocol", TRACING_PROTOCOLS),
        tracing_endpoint: r.text(&["tracing-endpoint"], ""),
        tracing_sampling_rate: r.float(&["tracing-sampling-rate"], 0.0),
    };
    r.require((0.0..=1.0).contains(&parsed.tracing_sampling_rate), "tracing-sampling-rate", || {
        format!("{} must be in [0, 1]", parsed.tracing_sampling_rate)
    });
    for (key, protocol, endpoint) in [
        ("metrics-endpoint", parsed.metrics.protocol, &parsed.metrics.endpoint),
        ("request-metrics-endpoint", parsed.request_metrics.protocol, &parsed.request_metrics.endpoint),
        ("tracing-endpoint", parsed.tracing_protocol, &parsed.tracing_endpoint),
    ] {
        let needs = matches!(protocol, Protocol::HttpProtobuf | Protocol::Grpc);
        r.require(!needs || !endpoint.is_empty(), key, || "must be set for this protocol".into());
    }
    parsed
}

fn metrics(r: &mut Reader<'_>, [protocol_key, endpoint, interval]: [&'static str; 3]) -> Metrics {
    Metrics {
        protocol: protocol(r, protocol_key, METRICS_PROTOCOLS),
        endpoint: r.text(&[endpoint], ""),
        export_interval: r.with(&[interval], Duration::ZERO, "a duration such as 60s", |v| match v {
            "" => Some(Duration::ZERO),
            other => go::parse_duration(other)?.positive(),
        }),
    }
}

fn protocol(r: &mut Reader<'_>, key: &'static str, known: &[(&str, Protocol)]) -> Protocol {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    r.with(&[key], Protocol::None, &format!("one of {}", names.join(", ")), |v| {
        known.iter().find(|(name, _)| *name == v).map(|(_, protocol)| *protocol)
    })
}
