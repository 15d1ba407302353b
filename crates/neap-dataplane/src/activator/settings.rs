//! What an activator is told by its environment (C5.4).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use neap_logic::config::go;

use crate::config::DEFAULT_CLUSTER_DOMAIN;

/// `PROBE_TIMEOUT`: an instance on the same network answers in a millisecond or is not there yet.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// `PROBE_FREQUENCY`: what a wake loses at most by being looked at, not told.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// `MAX_IDLE_PROXY_CONNS_PER_HOST`
const IDLE_PER_INSTANCE: usize = 100;
/// `SYSTEM_NAMESPACE`
const SYSTEM_NAMESPACE: &str = "knative-serving";

/// The environment, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `POD_NAME`: who it is in statistics.
    pub pod: String,
    /// `POD_IP`: how it finds itself among the activators of a Revision.
    pub ip: IpAddr,
    /// `SYSTEM_NAMESPACE`: where the autoscaler is.
    pub namespace: String,
    /// `CLUSTER_DOMAIN`
    pub cluster_domain: String,
    /// How long one probe of an instance may take.
    pub probe_timeout: Duration,
    /// How often instances are probed that have not been proved yet.
    pub probe_interval: Duration,
    /// Idle connections kept to each instance and worker.
    pub idle_per_instance: usize,
}

/// Everything that is wrong with the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the environment is not that of an activator: {}", .0.join("; "))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// All that is missing or not understood.
    pub fn from_env(vars: &BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let mut mistakes = Vec::new();
        let get = |name: &str| vars.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let pod = get("POD_NAME").unwrap_or_default().to_owned();
        if pod.is_empty() {
            mistakes.push("POD_NAME is missing".to_owned());
        }
        let ip = get("POD_IP").map(str::parse);
        match &ip {
            None => mistakes.push("POD_IP is missing".to_owned()),
            Some(Err(_)) => mistakes.push(format!("POD_IP is {:?}: an address is wanted", get("POD_IP"))),
            Some(Ok(_)) => {}
        }
        let mut duration = |name: &str, default: Duration| match get(name) {
            None => default,
            Some(text) => go::parse_duration(text).and_then(go::GoDuration::positive).unwrap_or_else(|| {
                mistakes.push(format!("{name} is {text:?}: a duration such as 300ms is wanted"));
                default
            }),
        };
        let probe_timeout = duration("PROBE_TIMEOUT", PROBE_TIMEOUT);
        let probe_interval = duration("PROBE_FREQUENCY", PROBE_INTERVAL);
        let idle = get("MAX_IDLE_PROXY_CONNS_PER_HOST").map(str::parse);
        if let Some(Err(_)) = idle {
            mistakes.push("MAX_IDLE_PROXY_CONNS_PER_HOST is no number".to_owned());
        }
        match ip {
            Some(Ok(ip)) if mistakes.is_empty() => Ok(Self {
                pod,
                ip,
                namespace: get("SYSTEM_NAMESPACE").unwrap_or(SYSTEM_NAMESPACE).to_owned(),
                cluster_domain: get("CLUSTER_DOMAIN").unwrap_or(DEFAULT_CLUSTER_DOMAIN).to_owned(),
                probe_timeout,
                probe_interval,
                idle_per_instance: idle.and_then(Result::ok).unwrap_or(IDLE_PER_INSTANCE),
            }),
            _ => Err(SettingsError(mistakes)),
        }
    }

    /// Where statistics go: host and port.
    pub fn autoscaler(&self) -> (String, u16) {
        (format!("autoscaler.{}.svc.{}", self.namespace, self.cluster_domain), 8080)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn c5_4_the_environment_is_understood() {
        let plain = [("POD_NAME", "activator-1"), ("POD_IP", "198.19.0.9")];
        let settings = Settings::from_env(&vars(&plain)).expect("is understood");
        assert_eq!(settings.autoscaler(), ("autoscaler.knative-serving.svc.cluster.local".into(), 8080));
        assert_eq!((settings.probe_timeout, settings.probe_interval), (PROBE_TIMEOUT, PROBE_INTERVAL));
        let more = [("PROBE_TIMEOUT", "1s"), ("MAX_IDLE_PROXY_CONNS_PER_HOST", "7"), ("SYSTEM_NAMESPACE", "sys")];
        let settings = Settings::from_env(&vars(&[&plain[..], &more].concat())).expect("is understood");
        assert_eq!((settings.probe_timeout.as_secs(), settings.idle_per_instance), (1, 7));
        assert_eq!(settings.autoscaler().0, "autoscaler.sys.svc.cluster.local");
        let bad = vars(&[("POD_IP", "here"), ("PROBE_FREQUENCY", "often"), ("MAX_IDLE_PROXY_CONNS_PER_HOST", "x")]);
        assert_eq!(Settings::from_env(&bad).expect_err("is refused").0.len(), 4);
    }
}
