//! What a sidecar is told by its environment (C5.3), read once and whole.
//!
//! Every mistake is reported at once; whoever starts a pod by hand fixes them in one go. Nothing here reads the
//! environment itself.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use neap_logic::config::go;
use neap_logic::config::observability::REQUEST_LOG_TEMPLATE;
use neap_logic::names::template::Template;
use neap_proxy::Limits;
use neap_proxy::tls::TlsPolicy;
use serde_json::Value;

/// Where user metrics are served when `OBSERVABILITY_CONFIG` asks for Prometheus and names no endpoint (B7.7).
const METRICS_PORT: u16 = 9091;

/// The environment, understood.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose pod this is.
    pub owner: Owner,
    /// `QUEUE_SERVING_PORT`: HTTP/1.1 and h2c.
    pub serving_port: u16,
    /// `QUEUE_SERVING_TLS_PORT`, used when certificates are mounted.
    pub tls_port: u16,
    /// `USER_PORT`: the application, on loopback.
    pub user_port: u16,
    /// `CONTAINER_CONCURRENCY`; 0 is no limit.
    pub container_concurrency: usize,
    /// The three timeouts.
    pub limits: Limits,
    /// `SERVING_READINESS_PROBE`: all of them have to pass.
    pub probes: Vec<Probe>,
    /// `ENABLE_HTTP2_AUTO_DETECTION`: whether probes try h2c first.
    pub detect_http2: bool,
    /// The template of request logs, when they are wanted.
    pub request_log: Option<Template>,
    /// Whether probes are logged too.
    pub log_probes: bool,
    /// The port of user metrics, when they are wanted.
    pub metrics_port: Option<u16>,
    /// `QUEUE_PROXY_TLS_*`.
    pub tls: TlsPolicy,
    /// `SERVING_LOGGING_LEVEL`, else the level of `SERVING_LOGGING_CONFIG`, else `info`.
    pub log_level: String,
}

/// Names for logs and metrics.
#[derive(Debug, Clone, Default)]
pub struct Owner {
    /// `SERVING_NAMESPACE`
    pub namespace: String,
    /// `SERVING_SERVICE`; empty for a Configuration without one.
    pub service: String,
    /// `SERVING_CONFIGURATION`
    pub configuration: String,
    /// `SERVING_REVISION`
    pub revision: String,
    /// `SERVING_POD`
    pub pod: String,
    /// `SERVING_POD_IP`
    pub pod_ip: String,
}

/// Everything that is wrong with the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError(pub Vec<String>);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the environment is not that of a queue-proxy: {}", self.0.join("; "))
    }
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// All that is missing or not understood.
    pub fn from_env(vars: &BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let mut env = Env { vars, mistakes: Vec::new() };
        let observability = env.observability();
        let settings = Self {
            owner: Owner {
                namespace: env.required("SERVING_NAMESPACE"),
                service: env.optional("SERVING_SERVICE"),
                configuration: env.required("SERVING_CONFIGURATION"),
                revision: env.required("SERVING_REVISION"),
                pod: env.required("SERVING_POD"),
                pod_ip: env.required("SERVING_POD_IP"),
            },
            serving_port: env.port("QUEUE_SERVING_PORT"),
            tls_port: env.port("QUEUE_SERVING_TLS_PORT"),
            user_port: env.port("USER_PORT"),
            container_concurrency: usize::try_from(env.number("CONTAINER_CONCURRENCY", true)).unwrap_or(usize::MAX),
            limits: Limits {
                total: env.seconds("REVISION_TIMEOUT_SECONDS", true),
                response_start: env.seconds("REVISION_RESPONSE_START_TIMEOUT_SECONDS", false),
                idle: env.seconds("REVISION_IDLE_TIMEOUT_SECONDS", false),
            },
            probes: env.probes(),
            detect_http2: env.flag("ENABLE_HTTP2_AUTO_DETECTION"),
            request_log: observability.request_log,
            log_probes: observability.log_probes,
            metrics_port: observability.metrics_port,
            tls: env.tls(),
            log_level: env.log_level(),
        };
        // Bodies always stream both ways here, so this asks for what is there anyway; but it has to be a flag.
        env.flag("ENABLE_HTTP_FULL_DUPLEX");
        env.flag("ENABLE_MULTI_CONTAINER_PROBES");
        if env.mistakes.is_empty() { Ok(settings) } else { Err(SettingsError(env.mistakes)) }
    }
}

#[derive(Default)]
struct Observability {
    request_log: Option<Template>,
    log_probes: bool,
    metrics_port: Option<u16>,
}

struct Env<'a> {
    vars: &'a BTreeMap<String, String>,
    mistakes: Vec<String>,
}

impl Env<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    fn optional(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// Set, even if to nothing.
    fn required(&mut self, name: &str) -> String {
        if !self.vars.contains_key(name) {
            self.mistakes.push(format!("{name} is missing"));
        }
        self.optional(name)
    }

    fn number(&mut self, name: &str, required: bool) -> u64 {
        match self.get(name) {
            None if required => self.mistakes.push(format!("{name} is missing")),
            None => {}
            Some(text) => match text.parse() {
                Ok(number) => return number,
                Err(_) => {
                    let mistake = format!("{name} is {text:?}: a whole number from 0 is wanted");
                    self.mistakes.push(mistake);
                }
            },
        }
        0
    }

    fn seconds(&mut self, name: &str, required: bool) -> Option<Duration> {
        Some(self.number(name, required)).filter(|seconds| *seconds > 0).map(Duration::from_secs)
    }

    fn port(&mut self, name: &str) -> u16 {
        let before = self.mistakes.len();
        let number = self.number(name, true);
        match u16::try_from(number) {
            Ok(port) if port > 0 => return port,
            _ if self.mistakes.len() == before => self.mistakes.push(format!("{name} is {number}: a port is wanted")),
            _ => {}
        }
        0
    }

    fn flag(&mut self, name: &str) -> bool {
        let Some(text) = self.get(name) else { return false };
        let flag = go::parse_bool(text);
        if flag.is_none() {
            let mistake = format!("{name} is {text:?}: true or false is wanted");
            self.mistakes.push(mistake);
        }
        flag.unwrap_or_default()
    }

    /// One probe, or a list of them when several containers have one (E2.5).
    fn probes(&mut self) -> Vec<Probe> {
        let Some(text) = self.get("SERVING_READINESS_PROBE").filter(|text| !text.is_empty()) else { return Vec::new() };
        let probes = if text.trim_start().starts_with('[') {
            serde_json::from_str(text)
        } else {
            serde_json::from_str(text).map(|probe| vec![probe])
        };
        probes.unwrap_or_else(|error| {
            self.mistakes.push(format!("SERVING_READINESS_PROBE is no probe: {error}"));
            Vec::new()
        })
    }

    fn tls(&mut self) -> TlsPolicy {
        let text = |name: &str| self.get(name).unwrap_or_default();
        let policy = TlsPolicy::parse(
            text("QUEUE_PROXY_TLS_MIN_VERSION"),
            text("QUEUE_PROXY_TLS_MAX_VERSION"),
            text("QUEUE_PROXY_TLS_CIPHER_SUITES"),
            text("QUEUE_PROXY_TLS_CURVE_PREFERENCES"),
        );
        policy.unwrap_or_else(|error| {
            self.mistakes.push(format!("QUEUE_PROXY_TLS_*: {error}"));
            TlsPolicy::default()
        })
    }

    fn log_level(&mut self) -> String {
        let config = self.required("SERVING_LOGGING_CONFIG");
        let level = self.required("SERVING_LOGGING_LEVEL");
        if !level.is_empty() {
            return level;
        }
        let config: Option<Value> = serde_json::from_str(&config).ok();
        config.and_then(|config| Some(config.get("level")?.as_str()?.to_owned())).unwrap_or_else(|| "info".into())
    }

    /// Names count without their case, as for whoever wrote it.
    fn observability(&mut self) -> Observability {
        let Some(text) = self.get("OBSERVABILITY_CONFIG").filter(|text| !text.is_empty()) else {
            return Observability::default();
        };
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                self.mistakes.push(format!("OBSERVABILITY_CONFIG is no JSON: {error}"));
                return Observability::default();
            }
        };
        let flag = |name| field(&value, name).and_then(Value::as_bool).unwrap_or_default();
        let template = field(&value, "requestLogTemplate").and_then(Value::as_str).unwrap_or(REQUEST_LOG_TEMPLATE);
        let request_log = if flag("enableRequestLog") && !template.is_empty() {
            template.parse().map_err(|error| self.mistakes.push(format!("the request log's {error}"))).ok()
        } else {
            None
        };
        let metrics = field(&value, "requestMetrics");
        let of_metrics = |name| metrics.and_then(|metrics| field(metrics, name)).and_then(Value::as_str);
        let metrics_port = (of_metrics("protocol") == Some("prometheus")).then(|| {
            let endpoint = of_metrics("endpoint").unwrap_or_default();
            endpoint.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(METRICS_PORT)
        });
        Observability { request_log, log_probes: flag("enableProbeRequestLog"), metrics_port }
    }
}

fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The environment the deployment's author writes, with changes.
    pub(in crate::queue) fn vars(changes: &[(&str, &str)]) -> BTreeMap<String, String> {
        let plain = [
            ("SERVING_NAMESPACE", "ns"),
            ("SERVING_SERVICE", "hello"),
            ("SERVING_CONFIGURATION", "hello"),
            ("SERVING_REVISION", "hello-00001"),
            ("QUEUE_SERVING_PORT", "8012"),
            ("QUEUE_SERVING_TLS_PORT", "8112"),
            ("CONTAINER_CONCURRENCY", "0"),
            ("REVISION_TIMEOUT_SECONDS", "300"),
            ("REVISION_RESPONSE_START_TIMEOUT_SECONDS", "0"),
            ("REVISION_IDLE_TIMEOUT_SECONDS", "0"),
            ("SERVING_POD", "hello-00001-deployment-1"),
            ("SERVING_POD_IP", "198.19.0.7"),
            ("SERVING_LOGGING_CONFIG", ""),
            ("SERVING_LOGGING_LEVEL", ""),
            ("USER_PORT", "8080"),
        ];
        plain.iter().chain(changes).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn c5_3_the_environment_is_understood() {
        let settings = Settings::from_env(&vars(&[
            ("CONTAINER_CONCURRENCY", "7"),
            ("REVISION_IDLE_TIMEOUT_SECONDS", "5"),
            ("SERVING_READINESS_PROBE", r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}"#),
            ("ENABLE_HTTP2_AUTO_DETECTION", "true"),
            ("ENABLE_HTTP_FULL_DUPLEX", "1"),
            ("QUEUE_PROXY_TLS_MIN_VERSION", "1.2"),
            ("SERVING_LOGGING_CONFIG", r#"{"level":"warn"}"#),
            (
                "OBSERVABILITY_CONFIG",
                r#"{"EnableRequestLog":true,"requestLogTemplate":"{{.Request.Method}}","requestMetrics":{"protocol":"prometheus"}}"#,
            ),
        ]))
        .expect("is understood");
        assert_eq!((settings.serving_port, settings.tls_port, settings.user_port), (8012, 8112, 8080));
        assert_eq!(settings.container_concurrency, 7);
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(settings.limits, Limits { total: seconds(300), response_start: None, idle: seconds(5) });
        assert_eq!(settings.probes.len(), 1);
        assert!(settings.detect_http2 && !settings.log_probes);
        assert_eq!(settings.request_log.expect("is wanted").source(), "{{.Request.Method}}");
        assert_eq!(settings.metrics_port, Some(9091));
        assert_eq!(settings.log_level, "warn");
        assert_eq!(settings.owner.revision, "hello-00001");
    }

    #[test]
    fn c5_3_every_mistake_is_told_at_once() {
        let mut bad = vars(&[
            ("CONTAINER_CONCURRENCY", "many"),
            ("USER_PORT", "70000"),
            ("ENABLE_HTTP_FULL_DUPLEX", "perhaps"),
            ("SERVING_READINESS_PROBE", "{"),
            ("QUEUE_PROXY_TLS_MAX_VERSION", "1.1"),
            ("OBSERVABILITY_CONFIG", "nonsense"),
        ]);
        bad.remove("SERVING_POD");
        let SettingsError(mistakes) = Settings::from_env(&bad).expect_err("is refused");
        let about = |name: &str| assert!(mistakes.iter().any(|mistake| mistake.contains(name)), "{name}: {mistakes:?}");
        for name in [
            "SERVING_POD is missing",
            "CONTAINER_CONCURRENCY",
            "USER_PORT",
            "ENABLE_HTTP_FULL_DUPLEX",
            "SERVING_READINESS_PROBE",
            "QUEUE_PROXY_TLS_",
            "OBSERVABILITY_CONFIG",
        ] {
            about(name);
        }
        assert_eq!(mistakes.len(), 7, "{mistakes:?}");
    }

    #[test]
    fn b7_7_where_user_metrics_are() {
        let check = |config: &str, port: Option<u16>| {
            let settings = Settings::from_env(&vars(&[("OBSERVABILITY_CONFIG", config)])).expect("is understood");
            assert_eq!(settings.metrics_port, port, "{config}");
        };
        check("", None);
        check("{}", None);
        check(r#"{"requestMetrics":{"protocol":"none"}}"#, None);
        check(r#"{"requestMetrics":{"protocol":"prometheus","endpoint":""}}"#, Some(9091));
        check(r#"{"requestMetrics":{"protocol":"prometheus","endpoint":":9099"}}"#, Some(9099));
    }
}
