//! `caching.internal.knative.dev/v1alpha1`: Image, the request to keep an image near. Fact A6.8.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::serving::is_zero;

/// API group of the caching kinds.
pub const GROUP: &str = "caching.internal.knative.dev";

/// Asks for an image to be kept on the nodes.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "caching.internal.knative.dev",
    version = "v1alpha1",
    kind = "Image",
    plural = "images",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    derive = "Default",
    category = "knative-internal",
    category = "caching",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// The image reference.
    pub image: String,
    /// Whose pull secrets to use.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account_name: String,
    /// Further pull secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// What was observed of an Image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The generation of the spec this status speaks of.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// The latest observations of the object's state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Additional fields for tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
