//! The subresources of pods that are conversations: from a request of the API to the kubelet, which talks with the
//! command, the container or the port itself.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Response, header};
use neap_apiserver::codec::full;
use neap_apiserver::{Body, Connect, Registry};
use neap_node::kubelet::{Kubelet, PodRequest, Refusal};

type Answer = Result<Response<()>, Refusal>;

/// Adds them to the API.
pub(super) fn attach(registry: &Registry, kubelet: &Kubelet) {
    add(registry, kubelet, "exec", |kubelet, asked| Box::pin(kubelet.answer_exec(asked)));
    add(registry, kubelet, "attach", |kubelet, asked| Box::pin(kubelet.answer_attach(asked)));
    add(registry, kubelet, "portforward", |kubelet, asked| Box::pin(kubelet.answer_forward(asked)));
}

fn add(
    registry: &Registry,
    kubelet: &Kubelet,
    name: &str,
    answer: for<'a> fn(&'a Kubelet, PodRequest<'a>) -> BoxFuture<'a, Answer>,
) {
    let kubelet = kubelet.clone();
    let connect: Connect = Arc::new(move |call| {
        let kubelet = kubelet.clone();
        Box::pin(async move {
            let asked =
                PodRequest { namespace: &call.namespace, pod: &call.name, query: &call.query, request: call.request };
            match answer(&kubelet, asked).await {
                Ok(switching) => switching.map(|()| full(Bytes::new())),
                Err(refusal) => refused(&refusal),
            }
        })
    });
    registry.connect("", "pods", name, connect);
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
