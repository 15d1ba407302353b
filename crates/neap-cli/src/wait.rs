//! Waiting for a service to be ready, with a sentence for every step on the way.

use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, ResourceExt};
use neap_api::serving::{Revision, Service};
use neap_api::{Condition, ConditionStatus, condition};

use crate::connect::Connection;
use crate::error::Error;
use crate::progress::Progress;

/// A failure must stand this long to be believed: a controller may still be about to try again.
const SURE: Duration = Duration::from_secs(2);

/// Until the service's newest spec is ready.
///
/// # Errors
/// It failed, or took longer than `patience`.
pub(crate) async fn ready(
    connection: &Connection,
    name: &str,
    patience: Duration,
    progress: &mut Progress,
) -> Result<Service, Error> {
    let api: Api<Service> = Api::namespaced(connection.patient.clone(), &connection.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut services = std::pin::pin!(watch(api, only).default_backoff());
    let deadline = tokio::time::Instant::now() + patience;
    let mut failed: Option<(tokio::time::Instant, String)> = None;
    let mut why = "nothing was heard of it".to_owned();
    loop {
        let until = failed.as_ref().map_or(deadline, |(since, _)| (*since + SURE).min(deadline));
        let next = tokio::time::timeout_at(until, services.next()).await;
        let service = match next {
            Ok(Some(Ok(Event::Apply(service) | Event::InitApply(service)))) => service,
            Ok(Some(Ok(Event::Delete(_)))) => return Err(Error::Deleted { name: name.into() }),
            Ok(Some(Ok(Event::Init | Event::InitDone))) => continue,
            // A broken watch is made again, with back-off; one that is not allowed never will be.
            Ok(Some(Err(error))) => match refusal(error) {
                Some(refused) => return Err(connection.explain(refused)),
                None => continue,
            },
            Ok(None) | Err(_) => {
                let stands = failed.take().filter(|(since, _)| *since + SURE <= tokio::time::Instant::now());
                if let Some((_, why)) = stands {
                    return Err(Error::Failed { name: name.into(), why });
                }
                return Err(Error::Late { name: name.into(), seconds: patience.as_secs(), why });
            }
        };
        match state(&service) {
            State::Ready => return Ok(service),
            State::Going(sentence) => {
                failed = None;
                why = detail(connection, &service).await.unwrap_or(sentence);
                progress.say(&why);
            }
            State::Failed(sentence) => {
                progress.say(&sentence);
                failed.get_or_insert_with(|| (tokio::time::Instant::now(), sentence));
            }
        }
    }
}

/// What no repetition will change.
fn refusal(error: watcher::Error) -> Option<kube::Error> {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return None;
    };
    matches!(&cause, kube::Error::Api(status) if matches!(status.code, 401 | 403)).then_some(cause)
}

pub(crate) enum State {
    Ready,
    Going(String),
    Failed(String),
}

/// Where a service stands, in words.
pub(crate) fn state(service: &Service) -> State {
    let Some(status) = &service.status else { return State::Going("waiting for the controllers".into()) };
    if Some(status.observed_generation) != service.metadata.generation {
        return State::Going("waiting for the controllers to see the change".into());
    }
    match condition::find(&status.conditions, condition::READY) {
        Some(ready) if ready.status == ConditionStatus::True => State::Ready,
        Some(ready) if ready.status == ConditionStatus::False => State::Failed(sentence(ready)),
        _ => {
            let open =
                status.conditions.iter().find(|c| c.type_ != condition::READY && c.status != ConditionStatus::True);
            State::Going(open.map_or_else(|| "waiting".into(), sentence))
        }
    }
}

fn sentence(condition: &Condition) -> String {
    match (condition.message.is_empty(), condition.reason.is_empty()) {
        (false, _) => condition.message.trim_end_matches('.').to_owned(),
        (true, false) => condition.reason.clone(),
        (true, true) => format!("{} is {}", condition.type_, condition.status.as_str()),
    }
}

/// What the newest revision says, since a service says little about its own parts.
async fn detail(connection: &Connection, service: &Service) -> Option<String> {
    let name = &service.status.as_ref()?.latest_created_revision_name;
    if name.is_empty() {
        return None;
    }
    let api: Api<Revision> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let revision = api.get_opt(name).await.ok()??;
    let conditions = revision.status.as_ref()?.conditions.iter();
    let open = conditions.filter(|c| c.severity.is_empty() && c.status != ConditionStatus::True);
    let said = open.filter(|c| !c.message.is_empty() || !c.reason.is_empty()).map(sentence).next()?;
    Some(format!("revision {}: {said}", revision.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(status: serde_json::Value) -> Service {
        let value = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "s", "generation": 2},
            "spec": {"template": {"spec": {"containers": []}}}, "status": status});
        serde_json::from_value(value).expect("a service")
    }

    #[test]
    fn a_state_is_of_the_newest_generation() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        assert!(matches!(state(&service(json!({"observedGeneration": 1, "conditions": ready}))), State::Going(_)));
        assert!(matches!(state(&service(json!({"observedGeneration": 2, "conditions": ready}))), State::Ready));
        let failed =
            json!([{"type": "Ready", "status": "False", "reason": "RevisionFailed", "message": "no such image."}]);
        let State::Failed(why) = state(&service(json!({"observedGeneration": 2, "conditions": failed}))) else {
            panic!()
        };
        assert_eq!(why, "no such image");
    }
}
