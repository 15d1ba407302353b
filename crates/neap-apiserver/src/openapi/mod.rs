//! The OpenAPI documents of the served kinds, which `kubectl explain`, client-side validation and
//! strategic merge on the client's side are made from.
//!
//! Documents are built on request from the raw schemas; `documents` keeps the last few. Nothing here knows a concrete kind.

mod common;
mod paths;
mod proto;
#[cfg(test)]
mod tests;
mod v2;
mod v3;

use serde_json::Value;

pub use v2::{v2, v2_protobuf};
pub use v3::v3_group_version;

/// The media type the v2 document in protobuf is answered with: clients refuse the one they ask for
/// (`…v2@v1.0+protobuf`), which is not well-formed.
pub const V2_PROTOBUF_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// One kind at one version, as the documents need to know it.
#[derive(Debug, Clone, Copy)]
pub struct KindDoc<'a> {
    /// API group; empty for the core group.
    pub group: &'a str,
    /// API version (`v1`).
    pub version: &'a str,
    /// Kind (`Service`).
    pub kind: &'a str,
    /// Resource name (`services`).
    pub plural: &'a str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Discovery verbs that are served (`get`, `list`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`, `watch`).
    pub verbs: &'a [&'a str],
    /// Subresources (`status`, `scale`).
    pub subresources: &'a [&'a str],
    /// Whether a strategic merge patch is taken: clients choose their way to patch by this.
    pub strategic: bool,
    /// The raw OpenAPI v3 schema, with descriptions.
    pub schema: &'a Value,
}

impl KindDoc<'_> {
    /// The path of the group's version: `api/v1`, `apis/apps/v1`.
    pub fn group_version_path(&self) -> String {
        if self.group.is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group, self.version)
        }
    }
}
