//! Patch: the four ways to change an object without sending it whole. What each does is the `patch` module's matter.

use super::write::{self, Ownership, Part};
use crate::codec::{self, Body};
use crate::kind::Semantics;
use crate::metadata;
use crate::patch::{self, ApplyError, Operation};
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

pub(crate) enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

pub(crate) async fn answer(x: &mut Exchange, part: Part, request: &Request<Bytes>) -> Result<Response<Body>> {
    let patch = parse(x, request)?;
    let written = match patch {
        Patch::Apply(applied) => apply(x, part, applied)?,
        patch => {
            if x.query.force.is_some() {
                return Err(only_for_apply("force"));
            }
            write::update(x, part, Ownership::Tracked, |x, old| {
                let mut object = super::to_served(x, old.clone())?;
                change(x, &mut object, &patch)?;
                super::to_working(x, object)
            })?
        }
    };
    write::respond(x, written).await
}

pub(crate) fn parse(x: &Exchange, request: &Request<Bytes>) -> Result<Patch> {
    let body = request.body();
    let strategic = x.kind().semantics == Semantics::Native;
    match codec::content_type(request.headers()) {
        JSON => Ok(Patch::Json(decode(body)?)),
        MERGE => Ok(Patch::Merge(object(decode(body)?)?)),
        STRATEGIC if strategic => Ok(Patch::Strategic(object(decode(body)?)?)),
        APPLY | "application/apply-patch+json" => Ok(Patch::Apply(object(codec::yaml(body)?)?)),
        _ => {
            let mut accepted = vec![JSON, MERGE];
            accepted.extend(strategic.then_some(STRATEGIC));
            accepted.push(APPLY);
            Err(ApiError::UnsupportedMediaType { accepted: accepted.join(", ") })
        }
    }
}

fn decode(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))
}

fn object(patch: Value) -> Result<Value> {
    if patch.is_object() { Ok(patch) } else { Err(ApiError::bad_request("error decoding patch: not an object")) }
}

/// Applies one of the three plain patches to an object as the URL's version shows it.
pub(crate) fn change(x: &Exchange, object: &mut Value, patch: &Patch) -> Result<()> {
    let fail = |e: patch::PatchError| ApiError::Denied(Box::new(e.to_status()));
    match patch {
        Patch::Json(operations) => patch::json_patch(object, operations).map_err(fail),
        Patch::Merge(wish) => {
            patch::merge_patch(object, wish);
            Ok(())
        }
        Patch::Strategic(wish) => patch::strategic_merge(object, wish, &x.served.version().schema).map_err(fail),
        Patch::Apply(_) => Err(ApiError::internal("a server-side apply is no plain patch")),
    }
}

fn only_for_apply(field: &str) -> ApiError {
    ApiError::Invalid {
        group: "meta.k8s.io".into(),
        kind: "PatchOptions".into(),
        name: String::new(),
        causes: vec![crate::status::forbidden(field, "may not be specified for non-apply patch")],
    }
}

fn apply(x: &mut Exchange, part: Part, mut applied: Value) -> Result<write::Written> {
    if x.query.field_manager.is_none() {
        return Err(ApiError::Invalid {
            group: "meta.k8s.io".into(),
            kind: "PatchOptions".into(),
            name: String::new(),
            causes: vec![crate::status::required("fieldManager", "is required for apply patch")],
        });
    }
    let shape = x.served.kind.shape(x.served.version());
    metadata::check_decoded(&mut applied, &shape)?;
    if applied.pointer("/metadata/managedFields").is_some() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let told = metadata::text(&applied, "name");
    if !told.is_empty() && told != x.name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({told}) does not match the name on the URL ({})",
            x.name()
        )));
    }
    let name = x.name().to_owned();
    let meta = metadata::of_mut(&mut applied);
    meta.insert("name".into(), name.into());
    if let Some(namespace) = x.at.namespace.clone() {
        metadata::of_mut(&mut applied).entry("namespace").or_insert_with(|| namespace.into());
    }
    let applied = super::to_working(x, applied)?;
    let force = x.query.force.unwrap_or(false);
    let schema = x.working.version().schema.clone();
    let by = write::manager(x, Operation::Apply, part.subresource());
    // Applying to nothing creates, except on a subresource. Whoever loses the race to create applies to what is there.
    loop {
        if super::lookup(x).is_none() && part == Part::Main {
            if !metadata::text(&applied, "resourceVersion").is_empty() || !metadata::text(&applied, "uid").is_empty() {
                return Err(x.not_found());
            }
            let object = patch::apply(None, &applied, &by, &schema, force).map_err(conflict)?;
            match write::create(x, object, Ownership::Applied) {
                Err(ApiError::AlreadyExists { .. }) => continue,
                other => return other,
            }
        }
        return write::update(x, part, Ownership::Applied, |_, old| {
            patch::apply(Some(old), &applied, &by, &schema, force).map_err(conflict)
        });
    }
}

fn conflict(error: ApplyError) -> ApiError {
    ApiError::Denied(Box::new(error.to_status()))
}
