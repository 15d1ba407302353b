//! The admission door: defaults, validation and immutability of everything that is written (facts A2 to A7).
//!
//! One function serves both the API server of a single machine and the webhook of a cluster. It must be
//! idempotent: what it returned passes through it unchanged. It works on JSON, so that fields this platform
//! does not know are neither lost nor in the way.

use kube_core::Status;
use kube_core::admission::{AdmissionRequest, Operation};
use kube_core::dynamic::DynamicObject;
use kube_core::response::StatusSummary;
use neap_api::{autoscaling, networking, serving as serving_api};
use serde_json::Value;

use crate::config::Settings;

mod annotations;
mod configmap;
mod container;
mod defaults;
#[cfg(test)]
mod facts_tests;
pub mod field_error;
mod internal;
mod podspec;
mod serving;
mod shape;
mod template;
#[cfg(test)]
mod tests;
mod view;

use field_error::Errors;
use serving::Incoming;

/// Fills in defaults and checks one write. The result is the object to store and warnings for the writer, or
/// the refusal. A deletion and a write to a subresource pass as they are, as does a kind without rules.
#[expect(clippy::result_large_err, reason = "the shape every door of the API server has")]
pub fn admit(
    request: &AdmissionRequest<DynamicObject>,
    settings: &Settings,
) -> Result<(DynamicObject, Vec<String>), Status> {
    let Some(object) = request.object.as_ref().or(request.old_object.as_ref()) else {
        return Err(refusal("the request holds no object to admit".into()));
    };
    let writes = matches!(request.operation, Operation::Create | Operation::Update) && request.object.is_some();
    let is_part = request.sub_resource.as_deref().is_some_and(|s| !s.is_empty());
    // What is on its way out needs nobody's approval; its finalizers only have to go.
    if !writes || is_part || object.metadata.deletion_timestamp.is_some() {
        return Ok((object.clone(), Vec::new()));
    }
    let unreadable = |error: serde_json::Error| refusal(format!("the object cannot be read: {error}"));
    let mut value = serde_json::to_value(object).map_err(unreadable)?;
    // The path names the namespace even where the object does not.
    if let Some(namespace) = request.namespace.as_deref().filter(|n| !n.is_empty())
        && value["metadata"]["namespace"].is_null()
    {
        value["metadata"]["namespace"] = namespace.into();
    }
    shape::check(&request.kind.group, &request.kind.kind, &mut value).map_err(refusal)?;
    let old = match (&request.operation, &request.old_object) {
        (Operation::Update, Some(old)) => Some(serde_json::to_value(old).map_err(unreadable)?),
        _ => None,
    };
    let mut incoming = Incoming {
        value,
        old: old.as_ref(),
        user: request.user_info.username.as_deref().unwrap_or_default(),
        settings,
    };
    let errors = judge(&request.kind.group, &request.kind.kind, &mut incoming);
    if !errors.is_ok() {
        return Err(refusal(format!("validation failed: {}", errors.refusals())));
    }
    let admitted = serde_json::from_value(incoming.value).map_err(unreadable)?;
    Ok((admitted, errors.warnings()))
}

/// The kinds with rules, by group and kind.
pub const KINDS: [(&str, &str); 11] = [
    (serving_api::GROUP, "Service"),
    (serving_api::GROUP, "Configuration"),
    (serving_api::GROUP, "Revision"),
    (serving_api::GROUP, "Route"),
    (serving_api::GROUP, "DomainMapping"),
    (autoscaling::GROUP, "PodAutoscaler"),
    (autoscaling::GROUP, "Metric"),
    (networking::GROUP, "ServerlessService"),
    (networking::GROUP, "Certificate"),
    (networking::GROUP, "Ingress"),
    ("", "ConfigMap"),
];

fn judge(group: &str, kind: &str, x: &mut Incoming<'_>) -> Errors {
    match (group, kind) {
        (serving_api::GROUP, "Service") => serving::service(x),
        (serving_api::GROUP, "Configuration") => serving::configuration(x),
        (serving_api::GROUP, "Revision") => serving::revision(x),
        (serving_api::GROUP, "Route") => serving::route(x),
        (serving_api::GROUP, "DomainMapping") => serving::domain_mapping(x),
        (autoscaling::GROUP, "PodAutoscaler") => internal::pod_autoscaler(x),
        (autoscaling::GROUP, "Metric") => internal::metric(x),
        (networking::GROUP, "ServerlessService") => internal::serverless_service(x),
        (networking::GROUP, "Certificate") => internal::certificate(x),
        (networking::GROUP, "Ingress") => internal::ingress(x),
        ("", "ConfigMap") if configmap::is_ours(&x.value) => configmap::validate(&x.value),
        _ => Errors::none(),
    }
}

/// The refusal as upstream's webhook words it.
fn refusal(message: String) -> Status {
    Status {
        status: Some(StatusSummary::Failure),
        code: 400,
        message,
        metadata: None,
        reason: "BadRequest".into(),
        details: None,
    }
}

/// A revision template with this platform's defaults, as a Service or Configuration of that metadata would
/// get them. For those who compare a wanted object with an admitted one.
pub fn with_defaults(mut configuration: Value, settings: &Settings) -> Value {
    template::default(&mut configuration, None, settings);
    configuration
}
