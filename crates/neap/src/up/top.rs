//! What pods and the machine use now, as `kubectl top` asks for it: the kinds of `metrics.k8s.io`, whose objects the
//! kubelet makes when they are read.

use std::sync::Arc;

use neap_apiserver::{KindError, Read, Registry};
use neap_node::kubelet::Kubelet;
use serde_json::json;

const GROUP: &str = "metrics.k8s.io";

/// Adds them to the API.
pub(super) fn attach(registry: &Registry, kubelet: &Kubelet) -> Result<(), KindError> {
    let of_pods = kubelet.clone();
    let pods: Read = Arc::new(move || {
        let kubelet = of_pods.clone();
        Box::pin(async move { kubelet.pod_metrics().await })
    });
    add(registry, "PodMetrics", "pods", "Namespaced", pods)?;
    let of_nodes = kubelet.clone();
    let nodes: Read = Arc::new(move || {
        let kubelet = of_nodes.clone();
        Box::pin(async move { kubelet.node_metrics().await })
    });
    add(registry, "NodeMetrics", "nodes", "Cluster", nodes)
}

fn add(registry: &Registry, kind: &str, plural: &str, scope: &str, read: Read) -> Result<(), KindError> {
    let definition = json!({
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": scope,
            // metrics-server's kinds have no singular of their own.
            "names": {"kind": kind, "plural": plural, "listKind": format!("{kind}List")},
            "versions": [{
                "name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    registry.register(&serde_json::from_value(definition).expect("a definition as Kubernetes has them"))?;
    registry.configure(GROUP, plural, |kind| kind.read = Some(read));
    Ok(())
}
