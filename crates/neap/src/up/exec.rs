//! The `exec` subresource of pods: from a request of the API to the kubelet, which talks with the command itself.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, header};
use neap_apiserver::codec::full;
use neap_apiserver::{Body, Connect, Registry};
use neap_node::kubelet::{ExecRequest, Kubelet, Refusal};

/// Adds it to the API.
pub(super) fn attach(registry: &Registry, kubelet: Kubelet) {
    let exec: Connect = Arc::new(move |call| {
        let kubelet = kubelet.clone();
        Box::pin(async move {
            let asked =
                ExecRequest { namespace: &call.namespace, pod: &call.name, query: &call.query, request: call.request };
            match kubelet.answer_exec(asked).await {
                Ok(switching) => switching.map(|()| full(Bytes::new())),
                Err(refusal) => refused(&refusal),
            }
        })
    });
    registry.connect("", "pods", "exec", exec);
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let reason = refusal.status.canonical_reason().unwrap_or_default().replace(' ', "");
    let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refusal.message, "reason": reason, "code": refusal.status.as_u16()});
    Response::builder()
        .status(refusal.status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(full(status.to_string()))
        .expect("status and type are legal")
}
