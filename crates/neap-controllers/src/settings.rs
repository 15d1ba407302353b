//! The settings, live: the config-maps of the platform's namespace, read again whenever one changes.
//!
//! A mistake never takes effect: the last good settings of its config-map stay in force, and the mistake is reported once
//! in the log and as an Event. Where there are none yet, as after a restart, only what cannot be used takes its default. A
//! config-map that is deleted stays in force too, for it is mostly about to be made anew.

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
                    Ok(Watched::Init) => listing = true,
                    Ok(Watched::InitApply(map) | Watched::Apply(map)) => drop(maps.insert(name(&map), map)),
                    Ok(Watched::Delete(map)) => {
                        warn!(map = %name(&map), "a config-map was deleted; what it said stays in force until the next start");
                        continue;
                    }
                    Ok(Watched::InitDone) => listing = false,
                    Err(error) => {
                        warn!(%error, "the config-maps cannot be watched; it is tried again");
                        continue;
                    }
                }
                if listing {
                    continue;
                }
                let mistakes = publish(&maps, read.is_cancelled(), &sender);
                for mistake in mistakes.iter().filter(|m| !told.contains(m)) {
                    warn!(%mistake, "a setting cannot be used; what was in force before stays, or the default");
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

/// Publishes what can be used, when it is new; returns what cannot. `again`: what was published before is a reading too.
fn publish(maps: &BTreeMap<String, ConfigMap>, again: bool, sender: &watch::Sender<Arc<Settings>>) -> Vec<Mistake> {
    let data: Maps = maps.iter().map(|(name, map)| (name.clone(), map.data.clone().unwrap_or_default())).collect();
    let held = sender.borrow().clone();
    let (settings, mistakes) = Settings::read(&data, again.then_some(&*held));
    if *held != settings {
        sender.send_replace(Arc::new(settings));
        info!("settings read");
    }
    mistakes
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
        assert!(publish(&maps, false, &sender).is_empty());
        assert_eq!(receiver.borrow().neap.external_http_port, 8080);
        // One map's mistake is no other's, also at the first reading.
        for again in [true, false] {
            maps.insert("config-gc".to_owned(), map("config-gc", "min-non-active-revisions", "x"));
            assert_eq!(publish(&maps, again, &sender).len(), 1);
            assert_eq!(receiver.borrow().neap.external_http_port, 8080);
            assert_eq!(receiver.borrow().gc, Settings::default().gc);
        }
        maps.insert("config-gc".to_owned(), map("config-gc", "min-non-active-revisions", "7"));
        assert!(publish(&maps, true, &sender).is_empty());
        maps.insert("config-gc".to_owned(), map("config-gc", "min-non-active-revisions", "x"));
        maps.insert("config-neap".to_owned(), map("config-neap", "external-http-port", "8081"));
        assert_eq!(publish(&maps, true, &sender).len(), 1);
        assert_eq!((receiver.borrow().neap.external_http_port, receiver.borrow().gc.min_non_active), (8081, 7));
    }
}
