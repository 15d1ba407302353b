//! The `log` subresource of pods, and of revisions: the latter holds what their instances wrote, also after they went.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use neap_apiserver::{Body, Connect, ConnectRequest, Registry};
use neap_node::kubelet::{Kubelet, LogsError};
use neap_runtime::pod::{LogOptions, LogStream};

use crate::process::now;

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
            let mut streams = Vec::new();
            for pod in kubelet.pods_named(&request.namespace, &format!("{}-deployment-", request.name)) {
                // An instance without a log, or whose log is gone, adds nothing.
                if let Ok(stream) =
                    kubelet.logs(&request.namespace, &pod, request.query("container"), asked.clone()).await
                {
                    streams.push(stream);
                }
            }
            let all: LogStream = if asked.follow {
                Box::pin(futures::stream::select_all(streams))
            } else {
                Box::pin(futures::stream::iter(streams).flatten())
            };
            respond(Ok(all))
        })
    });
    registry.connect(neap_api::serving::GROUP, "revisions", "log", revisions);
}

fn options(request: &ConnectRequest, now: Timestamp) -> LogOptions {
    let yes = |key| request.query(key).is_some_and(|value| value == "true" || value == "1");
    let number = |key| request.query(key).and_then(|value| value.parse::<u64>().ok());
    let since = number("sinceSeconds")
        .and_then(|seconds| i64::try_from(seconds).ok())
        .map(|seconds| now - SignedDuration::from_secs(seconds))
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
