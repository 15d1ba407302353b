//! Events are news, and news gets old: each goes an hour after it was last seen, as in any cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use kube::api::DeleteParams;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes};

/// How long an event is kept (`--event-ttl` of Kubernetes' API server).
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// How often old ones are looked for.
const LOOK: Duration = Duration::from_secs(60);

/// Runs until `shutdown`.
pub async fn run(client: Client, now: fn() -> Timestamp, shutdown: CancellationToken) {
    let mut events = Box::pin(changes::<Event>(Api::all(client.clone()), watcher::Config::default()));
    let mut seen: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
    let mut timer = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            change = events.next() => match change {
                None => return,
                Some(Change::Apply(event)) => drop(seen.insert(key(&event), last_seen(&event))),
                Some(Change::Delete(event)) => drop(seen.remove(&key(&event))),
                Some(Change::Reset(all)) => seen = all.iter().map(|event| (key(event), last_seen(event))).collect(),
            },
            _ = timer.tick() => {
                let old = now() - KEPT;
                let gone: Vec<_> = seen.iter().filter(|(_, at)| **at < old).map(|(key, _)| key.clone()).collect();
                for (namespace, name) in gone {
                    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                    match api.delete(&name, &DeleteParams::default()).await {
                        Ok(_) => {}
                        Err(kube::Error::Api(status)) if status.code == 404 => {}
                        Err(error) => tracing::warn!(%namespace, %name, %error, "an old event could not be removed"),
                    }
                }
            }
        }
    }
}

fn key(event: &Event) -> (String, String) {
    (event.namespace().unwrap_or_default(), event.name_any())
}

fn last_seen(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    let once = event.event_time.as_ref().map(|t| t.0);
    let made = event.creation_timestamp().map(|t| t.0);
    [series, last, once, made].into_iter().flatten().max().unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_latest_of_its_times_counts() {
        let event = |value| serde_json::from_value::<Event>(value).expect("an event");
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let repeated = event(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "involvedObject": {},
            "lastTimestamp": "2026-01-01T02:00:00Z"}));
        assert_eq!(last_seen(&repeated), at("2026-01-01T02:00:00Z"));
        let fresh = event(json!({"metadata": {"creationTimestamp": "2026-01-01T03:00:00Z"}, "involvedObject": {},
            "eventTime": "2026-01-01T02:59:59.000000Z"}));
        assert_eq!(last_seen(&fresh), at("2026-01-01T03:00:00Z"));
    }
}
