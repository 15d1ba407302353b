//! `autoscaling.internal.knative.dev/v1alpha1`: PodAutoscaler and Metric. Facts A6.2, A6.3.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::{is_zero, status};

/// API group of the autoscaling kinds.
pub const GROUP: &str = "autoscaling.internal.knative.dev";

/// Asks for one revision to be scaled.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "PodAutoscaler",
    plural = "podautoscalers",
    namespaced,
    status = "PodAutoscalerStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "kpa",
    shortname = "pa",
    category = "knative-internal",
    category = "autoscaling",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct PodAutoscalerSpec {
    /// Requests one instance may handle at the same time; 0 means no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub container_concurrency: i64,
    /// What to scale.
    #[serde(default)]
    pub scale_target_ref: ScaleTargetRef,
    /// Whether a Route refers to the revision: empty (not known), `Reachable`, `Unreachable`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reachability: String,
    /// `http1` or `h2c`.
    #[serde(default)]
    pub protocol_type: String,
}

/// `apiVersion`, `kind` and `name` of a scalable object in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleTargetRef {
    /// API version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

status! {
    /// What was observed of a PodAutoscaler.
    pub struct PodAutoscalerStatus {
        /// The Kubernetes Service through which the revision is called.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub service_name: String,
        /// The Kubernetes Service that selects exactly the revision's pods.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub metrics_service_name: String,
        /// Instances wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub desired_scale: Option<i32>,
        /// Instances ready.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub actual_scale: Option<i32>,
    }
}

/// Asks for the metrics of one revision to be collected.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "Metric",
    plural = "metrics",
    namespaced,
    status = "MetricStatus",
    derive = "PartialEq",
    derive = "Default",
    category = "knative-internal",
    category = "autoscaling",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct MetricSpec {
    /// Nanoseconds over which the stable average is taken.
    #[serde(default)]
    pub stable_window: i64,
    /// Nanoseconds over which the panic average is taken.
    #[serde(default)]
    pub panic_window: i64,
    /// The Kubernetes Service to scrape; empty: do not scrape.
    #[serde(default)]
    pub scrape_target: String,
}

status! {
    /// What was observed of a Metric.
    pub struct MetricStatus {}
}
