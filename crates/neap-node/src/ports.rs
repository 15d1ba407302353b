//! The annotation by which a pod without a network of its own says where its ports really are.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// Annotation of a Pod: JSON, port name to port number on the pod's address.
pub const PORTS: &str = "neap.dev/ports";

/// Real ports by name; empty for a pod that has its own network, where every port is what it says.
pub fn of(pod: &Pod) -> BTreeMap<String, u16> {
    pod.annotations().get(PORTS).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}
