//! The settings, live: the config-maps of the platform's namespace, read again whenever one changes.
//!
//! A mistake never takes effect: the last good settings stay in force, and the mistake is reported once in
//! the log and as an Event on its config-map.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event as Watched, watcher};
use kube::{Api, Client};
use neap_api::keys::config;
use neap_logic::config::{Maps, Mistake, Settings};
use neap_logic::plan::{Event, Object, Severity};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::autoscaler::Clock;
use crate::events;

/// Follows the config-maps.
pub struct SettingsFollower {
    client: Client,
    clock: Clock,
    sender: watch::Sender<Arc<Settings>>,
}

/// The name events about settings are reported under.
const REPORTER: &str = "settings";

impl SettingsFollower {
    /// A follower, and where its settings appear; until [`Self::run`] has read the config-maps these are
    /// the defaults.
    pub fn new(client: Client, clock: Clock) -> (Self, watch::Receiver<Arc<Settings>>) {
        let (sender, receiver) = watch::channel(Arc::new(Settings::default()));
        (Self { client, clock, sender }, receiver)
    }

    /// Follows until `stop`; `read` is cancelled when the settings have been read for the first time.
    pub async fn run(self, read: CancellationToken, stop: CancellationToken) {
        let Self { client, clock, sender } = self;
        let (recorder, writer) = events::channel(client.clone());
        let follow = async {
            let api = Api::<ConfigMap>::namespaced(client, config::NAMESPACE);
            let mut changes = pin!(watcher(api, watcher::Config::default()).default_backoff());
            let mut maps: BTreeMap<String, ConfigMap> = BTreeMap::new();
            let mut told: Vec<Mistake> = Vec::new();
            let mut listing = false;
            while let Some(change) = changes.next().await {
                match change {
                    Ok(Watched::Init) => {
                        listing = true;
                        maps.clear();
                    }
                    Ok(Watched::InitApply(map) | Watched::Apply(map)) => drop(maps.insert(name(&map), map)),
                    Ok(Watched::Delete(map)) => drop(maps.remove(&name(&map))),
                    Ok(Watched::InitDone) => listing = false,
                    Err(error) => {
                        warn!(%error, "the config-maps cannot be watched; it is tried again");
                        continue;
                    }
                }
                if listing {
                    continue;
                }
                let mistakes = publish(&maps, &sender);
                for mistake in mistakes.iter().filter(|m| !told.contains(m)) {
                    warn!(%mistake, "a setting cannot be used; the last good settings stay in force");
                    if let Some(map) = maps.get(&mistake.map) {
                        let event = Event {
                            severity: Severity::Warning,
                            reason: "InvalidSetting".into(),
                            message: mistake.to_string(),
                        };
                        recorder.record(REPORTER, &Object::of(map), vec![event], clock.now());
                    }
                }
                told = mistakes;
                read.cancel();
            }
        };
        tokio::select! {
            () = follow => {}
            () = writer.run() => {}
            () = stop.cancelled() => {}
        }
    }
}

fn name(map: &ConfigMap) -> String {
    map.metadata.name.clone().unwrap_or_default()
}

/// Publishes the settings when they are good and new; returns what is wrong with them.
fn publish(maps: &BTreeMap<String, ConfigMap>, sender: &watch::Sender<Arc<Settings>>) -> Vec<Mistake> {
    let data: Maps = maps.iter().map(|(name, map)| (name.clone(), map.data.clone().unwrap_or_default())).collect();
    match Settings::parse(&data) {
        Ok(settings) => {
            let changed = sender.send_if_modified(|held| {
                let changed = **held != settings;
                if changed {
                    *held = Arc::new(settings);
                }
                changed
            });
            if changed {
                info!("settings read");
            }
            Vec::new()
        }
        Err(mistakes) => mistakes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, key: &str, value: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.data = Some([(key.to_owned(), value.to_owned())].into());
        map
    }

    #[test]
    fn the_last_good_settings_stay() {
        let (sender, receiver) = watch::channel(Arc::new(Settings::default()));
        let mut maps = BTreeMap::new();
        maps.insert("config-neap".to_owned(), map("config-neap", "external-http-port", "8080"));
        assert!(publish(&maps, &sender).is_empty());
        assert_eq!(receiver.borrow().neap.external_http_port, 8080);
        maps.insert("config-gc".to_owned(), map("config-gc", "min-non-active-revisions", "x"));
        assert_eq!(publish(&maps, &sender).len(), 1);
        assert_eq!(receiver.borrow().neap.external_http_port, 8080);
        assert_eq!(receiver.borrow().gc, Settings::default().gc);
    }
}
