//! `config-logging`: how loud each part of the platform is.

use std::collections::BTreeMap;

use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-logging";

/// Prefix of the keys that set one part's level.
const LEVEL_PREFIX: &str = "loglevel.";
/// Levels of Knative's logger.
const LEVELS: [&str; 7] = ["debug", "info", "warn", "error", "dpanic", "panic", "fatal"];

/// `zap-logger-config`: lines of JSON on standard output, with the keys that log collectors of clusters look for.
pub const ZAP_LOGGER_CONFIG: &str = concat!(
    r#"{"level": "info", "development": false, "outputPaths": ["stdout"], "errorOutputPaths": ["stderr"], "encoding": "json", "#,
    r#""encoderConfig": {"timeKey": "timestamp", "levelKey": "severity", "nameKey": "logger", "callerKey": "caller", "#,
    r#""messageKey": "message", "stacktraceKey": "stacktrace", "lineEnding": "", "levelEncoder": "", "#,
    r#""timeEncoder": "iso8601", "durationEncoder": "", "callerEncoder": ""}}"#
);

/// Log levels by component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// `zap-logger-config`, JSON, handed to sidecars as it is.
    pub zap_logger_config: String,
    /// Component → level.
    pub levels: BTreeMap<String, String>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { zap_logger_config: ZAP_LOGGER_CONFIG.into(), levels: BTreeMap::new() }
    }
}

impl Logging {
    /// A component's level; `info` where nothing is said.
    pub fn level(&self, component: &str) -> &str {
        self.levels.get(component).map_or("info", String::as_str)
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Logging {
    let mut r = Reader::new(MAP, data, mistakes);
    let zap_logger_config = r.with(&["zap-logger-config"], ZAP_LOGGER_CONFIG.to_owned(), "JSON", |text| {
        (text.is_empty() || serde_json::from_str::<serde_json::Value>(text).is_ok()).then(|| text.to_owned())
    });
    let mut levels = BTreeMap::new();
    for (key, level) in r.entries() {
        let Some(component) = key.strip_prefix(LEVEL_PREFIX) else { continue };
        match LEVELS.contains(&level.as_str()) {
            true => drop(levels.insert(component.to_owned(), level.clone())),
            false => r.mistake(key, format!("{level:?} is none of {}", LEVELS.join(", "))),
        }
    }
    Logging { zap_logger_config, levels }
}
