//! What the examples serve: one service with one instance.

use std::net::SocketAddr;
use std::sync::Arc;

use neap_dataplane::{DataPlane, Feed, RevisionKey};
use serde_json::json;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

/// The data plane, and what it asks to be woken.
pub type World = (Arc<DataPlane>, Receiver<RevisionKey>);

/// `hello.default.example.com`, whose instance listens at `origin` and takes so many requests at once (0: any number).
pub fn one_service(origin: SocketAddr, concurrency: i64) -> Result<World, serde_json::Error> {
    let (plane, wakes) = DataPlane::new("bench");
    let now = Instant::now();
    plane.feed::<neap_api::serving::Revision>(
        Feed::Apply(serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": { "namespace": "default", "name": "hello-00001" },
            "spec": { "containerConcurrency": concurrency, "timeoutSeconds": 300, "responseStartTimeoutSeconds": 300,
                      "containers": [{ "image": "x" }] },
        }))?),
        now,
    );
    plane.feed::<k8s_openapi::api::discovery::v1::EndpointSlice>(
        Feed::Apply(serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "default", "name": "hello-00001-private-1",
                          "labels": { "kubernetes.io/service-name": "hello-00001-private" } },
            "ports": [{ "name": "http", "port": origin.port() }],
            "endpoints": [{ "addresses": [origin.ip()], "conditions": { "ready": true } }],
        }))?),
        now,
    );
    plane.feed::<neap_api::networking::Ingress>(
        Feed::Apply(serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": { "namespace": "default", "name": "hello",
                          "annotations": { "networking.knative.dev/ingress.class": "bench" } },
            "spec": { "rules": [{ "hosts": ["hello.default.example.com"], "http": { "paths": [{ "splits": [{
                "serviceName": "hello-00001", "serviceNamespace": "default", "servicePort": 80, "percent": 100,
                "appendHeaders": { "Knative-Serving-Revision": "hello-00001", "Knative-Serving-Namespace": "default" },
            }] }] } }] },
        }))?),
        now,
    );
    Ok((plane, wakes))
}
