//! The `log` subresource of pods, and of revisions: the latter holds what their instances wrote, also after they went.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SelectAll;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use neap_apiserver::{Body, Connect, ConnectRequest, Registry};
use neap_node::kubelet::{Kubelet, LogsError};
use neap_runtime::pod::{LogOptions, LogStream};

use crate::process::now;

/// How often instances that have come are looked for while a Revision's log is followed.
const LOOK: Duration = Duration::from_millis(500);

/// Adds both to the API.
pub(super) fn attach(registry: &Registry, kubelet: Kubelet) {
    let of_pods = kubelet.clone();
    let pods: Connect = Arc::new(move |request| {
        let kubelet = of_pods.clone();
        Box::pin(async move {
            let asked = options(&request, now());
            let found = kubelet.logs(&request.namespace, &request.name, request.query("container"), asked).await;
            respond(found)
        })
    });
    registry.connect("", "pods", "log", pods);
    let revisions: Connect = Arc::new(move |request| {
        let kubelet = kubelet.clone();
        Box::pin(async move {
            let asked = options(&request, now());
            if asked.follow {
                return respond(Ok(followed(kubelet, request, asked)));
            }
            let mut streams = Vec::new();
            for pod in kubelet.pods_named(&request.namespace, &format!("{}-deployment-", request.name)) {
                // An instance without a log, or whose log is gone, adds nothing.
                if let Ok(stream) =
                    kubelet.logs(&request.namespace, &pod, request.query("container"), asked.clone()).await
                {
                    streams.push(stream);
                }
            }
            respond(Ok(Box::pin(futures::stream::iter(streams).flatten())))
        })
    });
    registry.connect(neap_api::serving::GROUP, "revisions", "log", revisions);
}

/// What a Revision's instances write, those included that come later, until nobody reads any more. It may be asleep now.
fn followed(kubelet: Kubelet, request: ConnectRequest, asked: LogOptions) -> LogStream {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let state = (SelectAll::<LogStream>::new(), BTreeSet::new(), look, true);
    Box::pin(futures::stream::unfold((state, kubelet, request, asked), |(state, kubelet, request, asked)| async move {
        let (mut logs, mut seen, mut look, mut first) = state;
        loop {
            let chunk = tokio::select! {
                Some(chunk) = logs.next(), if !logs.is_empty() => chunk,
                _ = look.tick() => {
                    // What begins after the reader came is shown from its beginning.
                    let options = if first { asked.clone() } else { LogOptions { tail: None, ..asked.clone() } };
                    for pod in kubelet.pods_named(&request.namespace, &format!("{}-deployment-", request.name)) {
                        if seen.contains(&pod) {
                            continue;
                        }
                        let found = kubelet.logs(&request.namespace, &pod, request.query("container"), options.clone());
                        // One that has no log yet is asked again.
                        if let Ok(stream) = found.await {
                            seen.insert(pod);
                            logs.push(stream);
                        }
                    }
                    first = false;
                    continue;
                }
            };
            return Some((chunk, ((logs, seen, look, first), kubelet, request, asked)));
        }
    }))
}

fn options(request: &ConnectRequest, now: Timestamp) -> LogOptions {
    let yes = |key| request.query(key).is_some_and(|value| value == "true" || value == "1");
    let number = |key| request.query(key).and_then(|value| value.parse::<u64>().ok());
    let since = number("sinceSeconds")
        .map(|seconds| ago(now, seconds))
        .or_else(|| request.query("sinceTime").and_then(|time| time.parse().ok()));
    LogOptions {
        previous: yes("previous"),
        follow: yes("follow"),
        tail: number("tailLines"),
        since,
        timestamps: yes("timestamps"),
        limit_bytes: number("limitBytes"),
    }
}

/// Longer ago than there are dates is from the beginning.
fn ago(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    now.checked_sub(seconds).unwrap_or(Timestamp::MIN)
}

fn respond(found: Result<LogStream, LogsError>) -> Response<Body> {
    match found {
        Ok(stream) => {
            let frames = stream.map(|chunk| chunk.map(Frame::data).map_err(|error| error.to_string().into()));
            answer(StatusCode::OK, "text/plain", BodyExt::boxed_unsync(StreamBody::new(frames)))
        }
        Err(error) => {
            let (code, reason) = match &error {
                LogsError::NoSuchPod { .. } => (StatusCode::NOT_FOUND, "NotFound"),
                LogsError::Runtime { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
                _ => (StatusCode::BAD_REQUEST, "BadRequest"),
            };
            let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": error.to_string(), "reason": reason, "code": code.as_u16()});
            answer(code, "application/json", neap_apiserver::codec::full(Bytes::from(status.to_string())))
        }
    }
}

fn answer(status: StatusCode, type_: &'static str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, type_)
        .body(body)
        .expect("status and type are legal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_seconds_is_too_long_ago() {
        let now = Timestamp::from_second(1000).expect("in range");
        assert_eq!(ago(now, 10), Timestamp::from_second(990).expect("in range"));
        assert_eq!(ago(now, 9_000_000_000_000_000_000), Timestamp::MIN);
        assert_eq!(ago(now, u64::MAX), Timestamp::MIN);
    }
}
