//! `caching.internal.knative.dev/v1alpha1`: Image, the request to keep an image near. Fact A6.8.

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::status;

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

status! {
    /// What was observed of an Image.
    pub struct ImageStatus {}
}
