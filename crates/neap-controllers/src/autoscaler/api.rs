//! The API calls of the autoscaler, each a job of its own. Nothing is decided and nothing is logged here.

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{DeleteParams, DynamicObject, PatchParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use neap_api::autoscaling::PodAutoscaler;
use neap_logic::plan::{Object, ObjectRef, Plan, Refusal, Write};
use neap_logic::routing::RevisionKey;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::world::{Change, Delta, Target};

/// A call that did not go through.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The reference of a PodAutoscaler does not name something that can be scaled.
    #[error("{kind:?} of {api_version:?} is not something to scale")]
    Target {
        /// Its API version.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// The request could not be built.
    #[error("the request for {target} could not be built")]
    Build {
        /// What was to be called.
        target: String,
        /// Why.
        source: kube::core::request::Error,
    },
    /// The API did not do it.
    #[error("{verb} {target} failed")]
    Api {
        /// What was to be done.
        verb: &'static str,
        /// To what.
        target: String,
        /// Why.
        source: kube::Error,
    },
}

/// What became of a plan.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The objects as the API has them now.
    pub(super) changes: Vec<Change>,
    /// Writes that were refused for good.
    pub(super) refusals: Vec<Refusal>,
    /// What went wrong otherwise; the plan is made again later.
    pub(super) errors: Vec<CallError>,
    /// Whether the API knew a newer object than the plan was made on.
    pub(super) stale: bool,
}

/// Sets the replicas of what a PodAutoscaler scales (D11.3).
pub(super) async fn scale(client: Client, pa: &PodAutoscaler, to: u32) -> Result<Target, CallError> {
    let reference = &pa.spec.scale_target_ref;
    let (group, version) = reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
    if version.is_empty() || reference.kind.is_empty() {
        let (api_version, kind) = (reference.api_version.clone(), reference.kind.clone());
        return Err(CallError::Target { api_version, kind });
    }
    let gvk = kube::core::GroupVersionKind::gvk(group, version, &reference.kind);
    let resource = kube::core::ApiResource::from_gvk(&gvk);
    let namespace = pa.metadata.namespace.as_deref();
    let target = format!("{} {}/{}", reference.kind, namespace.unwrap_or_default(), reference.name);

    let path = DynamicObject::url_path(&resource, namespace);
    let patch = json!([{"op": "add", "path": "/spec/replicas", "value": to}]);
    let request = http::Request::patch(format!("{path}/{}/scale", reference.name))
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .body(patch.to_string().into_bytes())
        .map_err(|source| CallError::Build {
            target: target.clone(),
            source: kube::core::request::Error::BuildRequest(source),
        })?;
    let scale: Scale =
        client.request(request).await.map_err(|source| CallError::Api { verb: "scale", target, source })?;
    let replicas = scale.spec.and_then(|spec| spec.replicas).and_then(|n| u32::try_from(n).ok()).unwrap_or(to);
    let key = RevisionKey::new(namespace.unwrap_or_default(), &reference.name);
    Ok(Target { key, replicas })
}

/// Carries out a plan: its writes in order, then the statuses. One that fails does not hold up the others.
pub(super) async fn carry_out(client: Client, plan: Plan, statuses: Vec<Object>) -> Outcome {
    let mut outcome = Outcome::default();
    for (place, write) in plan.writes.into_iter().enumerate() {
        if place >= plan.barrier && plan.barrier > 0 && !outcome.refusals.is_empty() {
            break;
        }
        let target = write.target();
        // What an update takes for there, and is told is not, is gone.
        let held = if let Write::Update(object) = &write { Some(object.value.clone()) } else { None };
        let (verb, request) = request(write);
        outcome.take(verb, &target, held, call(&client, &target, request).await);
    }
    for object in statuses {
        let target = object.reference();
        let request = base(&target).replace_subresource("status", &target.name, &PostParams::default(), body(&object));
        outcome.take("write the status of", &target, Some(object.value), call(&client, &target, request).await);
    }
    outcome
}

enum Failure {
    Build(kube::core::request::Error),
    Call(kube::Error),
}

async fn call(
    client: &Client,
    target: &ObjectRef,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Option<Change>, Failure> {
    let value: Value = client.request(request.map_err(Failure::Build)?).await.map_err(Failure::Call)?;
    Ok(change_of(target, value, ChangeKind::Written))
}

fn request(write: Write) -> (&'static str, Result<http::Request<Vec<u8>>, kube::core::request::Error>) {
    match write {
        Write::Create(object) => ("create", base(&object.reference()).create(&PostParams::default(), body(&object))),
        Write::Update(object) => {
            ("update", base(&object.reference()).replace(&object.name, &PostParams::default(), body(&object)))
        }
        Write::Patch(patch) => {
            let (base, name, params) = (base(&patch.target), &patch.target.name, PatchParams::default());
            let merge = kube::api::Patch::Merge(&patch.merge);
            let request = match patch.subresource {
                Some(part) => base.patch_subresource(part, name, &params, &merge),
                None => base.patch(name, &params, &merge),
            };
            ("patch", request)
        }
        Write::Delete(target) => ("delete", base(&target).delete(&target.name, &DeleteParams::default())),
        Write::DeleteSeen(seen) => {
            ("delete", base(&seen.target).delete(&seen.target.name, &crate::shell::only_if_seen(&seen)))
        }
    }
}

fn base(target: &ObjectRef) -> Request {
    Request::new(DynamicObject::url_path(&target.resource, target.namespace.as_deref()))
}

fn body(object: &Object) -> Vec<u8> {
    serde_json::to_vec(&object.value).expect("JSON can be written")
}

impl Outcome {
    fn take(
        &mut self,
        verb: &'static str,
        target: &ObjectRef,
        held: Option<Value>,
        result: Result<Option<Change>, Failure>,
    ) {
        match result {
            Ok(change) => self.changes.extend(change),
            Err(Failure::Build(source)) => self.errors.push(CallError::Build { target: target.to_string(), source }),
            Err(Failure::Call(source)) => match &source {
                kube::Error::Api(status) if status.code == 404 && held.is_some() => {
                    let gone = held.and_then(|value| change_of(target, value, ChangeKind::Gone));
                    self.changes.extend(gone);
                    self.stale = true;
                }
                // Changed or made since the plan: the watch will tell.
                kube::Error::Api(status) if status.code == 409 => self.stale = true,
                kube::Error::Api(status) if matches!(status.code, 400 | 403 | 405 | 422) => {
                    self.refusals.push(Refusal { target: target.clone(), message: status.message.clone() });
                }
                _ => self.errors.push(CallError::Api { verb, target: target.to_string(), source }),
            },
        }
    }
}

/// What became of an object.
#[derive(Clone, Copy)]
enum ChangeKind {
    Written,
    Gone,
}

/// What an object says about the world, for the kinds that are kept.
fn change_of(target: &ObjectRef, value: Value, kind: ChangeKind) -> Option<Change> {
    fn typed<K: DeserializeOwned>(value: Value, kind: ChangeKind, wrap: fn(Delta<K>) -> Change) -> Option<Change> {
        let object = serde_json::from_value(value).ok()?;
        Some(wrap(match kind {
            ChangeKind::Written => Delta::Apply(object),
            ChangeKind::Gone => Delta::Delete(object),
        }))
    }
    match target.resource.kind.as_str() {
        "PodAutoscaler" => typed(value, kind, Change::Pa),
        "ServerlessService" => typed(value, kind, Change::Sks),
        "Metric" => typed(value, kind, Change::Metric),
        "HorizontalPodAutoscaler" => typed(value, kind, Change::Hpa),
        _ => None,
    }
}
