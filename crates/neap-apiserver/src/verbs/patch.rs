//! Patch: the four ways to change an object without sending it whole. What each does is the `patch` module's matter.

use super::write::{self, Meant, Ownership, Part};
use crate::auth;
use crate::codec::{self, Body};
use crate::kind::Semantics;
use crate::metadata;
use crate::patch::{self, ApplyError, Operation};
use crate::request::{self, Verb, Write};
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

impl Patch {
    /// Whether it is for one version of the object.
    pub(crate) fn meant(&self) -> Meant {
        match self {
            Self::Json(operations) => {
                let names = |operation: &Value| operation["path"] == "/metadata/resourceVersion";
                match operations.as_array().is_some_and(|list| list.iter().any(names)) {
                    true => Meant::Version,
                    false => Meant::Whatever,
                }
            }
            Self::Merge(wish) | Self::Strategic(wish) | Self::Apply(wish) => Meant::by(wish),
        }
    }
}

pub(crate) async fn answer(x: &mut Exchange, part: Part, request: &Request<Bytes>) -> Result<Response<Body>> {
    let patch = parse(x, request)?;
    let written = match patch {
        Patch::Apply(applied) => apply(x, part, applied)?,
        patch => {
            request::check_write(&x.query, Write::Patch)?;
            let meant = patch.meant();
            let written = write::update(x, part, Ownership::Tracked, meant, |x, old| {
                let mut object = super::to_served(x, old.clone())?;
                change(x, &mut object, &patch)?;
                same_uid(x, &object, old)?;
                let served = x.served.clone();
                metadata::check_decoded(&mut object, &served.kind.shape(served.version()))?;
                super::to_working(x, object)
            });
            written.map_err(|error| unfit(request.body(), error))?
        }
    };
    write::respond(x, written).await
}

pub(crate) fn parse(x: &mut Exchange, request: &Request<Bytes>) -> Result<Patch> {
    let body = request.body();
    let strategic = x.kind().semantics == Semantics::Native;
    match codec::content_type(request.headers()) {
        JSON => Ok(Patch::Json(decode(body)?)),
        MERGE => Ok(Patch::Merge(object(decode(body)?)?)),
        STRATEGIC if strategic => Ok(Patch::Strategic(object(decode(body)?)?)),
        APPLY | "application/apply-patch+json" => Ok(Patch::Apply(object(codec::yaml(body, &mut x.faults)?)?)),
        _ => {
            let accepted = [JSON, MERGE, APPLY].join(", ");
            Err(if strategic { ApiError::UnsupportedPatch } else { ApiError::UnsupportedMediaType { accepted } })
        }
    }
}

fn decode(body: &[u8]) -> Result<Value> {
    let why = |e| ApiError::bad_request(format!("error decoding patch: {}", codec::json_fault(&e)));
    serde_json::from_slice(body).map_err(why)
}

/// A patch whose outcome is no object of its kind.
pub(crate) fn unfit(patch: &[u8], error: ApiError) -> ApiError {
    let ApiError::Undecodable { why, .. } = error else { return error };
    let shown = Value::from(String::from_utf8_lossy(patch));
    let causes = vec![crate::status::invalid("patch", &shown, &why)];
    ApiError::Invalid { group: String::new(), kind: String::new(), name: String::new(), causes }
}

fn object(patch: Value) -> Result<Value> {
    if patch.is_object() { Ok(patch) } else { Err(ApiError::bad_request("error decoding patch: not an object")) }
}

/// Applies one of the three plain patches to an object as the URL's version shows it.
pub(crate) fn change(x: &Exchange, object: &mut Value, patch: &Patch) -> Result<()> {
    let fail = |e: patch::PatchError| match e {
        patch::PatchError::Failed { .. } => ApiError::PatchRejected,
        patch::PatchError::BadDirective { reason } => ApiError::Unnamed(reason),
        other => ApiError::Denied(Box::new(other.to_status())),
    };
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

fn apply(x: &mut Exchange, part: Part, mut applied: Value) -> Result<write::Written> {
    request::check_write(&x.query, Write::Apply)?;
    let shape = x.served.kind.shape(x.served.version());
    let told = |key: &str| applied.get(key).and_then(Value::as_str).unwrap_or("");
    if told("kind") != shape.kind || told("apiVersion").is_empty() {
        let (group, version) = told("apiVersion").split_once('/').unwrap_or(("", told("apiVersion")));
        let kind = told("kind");
        return Err(ApiError::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    metadata::check_decoded(&mut applied, &shape)?;
    if applied.pointer("/metadata/managedFields").is_some() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let told = metadata::text(&applied, "name");
    if told.is_empty() {
        return Err(metadata::nameless(x.name()));
    }
    if told != x.name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({told}) does not match the name on the URL ({})",
            x.name()
        )));
    }
    let named = applied.pointer("/metadata/namespace").is_some();
    reset(&mut applied, part, x.served.version().status);
    if let Some(namespace) = x.at.namespace.clone() {
        metadata::of_mut(&mut applied).entry("namespace").or_insert_with(|| namespace.into());
    }
    let applied = super::to_working(x, applied)?;
    let force = x.query.force.unwrap_or(false);
    let schema = x.working.version().schema.clone();
    let by = write::manager(x, Operation::Apply, part.subresource());
    // Applying to nothing creates, except on a subresource. Whoever loses the race to create applies to what is there, and
    // whoever finds it gone by then creates it.
    let mut tries = 0;
    loop {
        tries += 1;
        if super::lookup(x).is_none() && part == Part::Main {
            same_uid(x, &applied, &Value::Null)?;
            let mut object = patch::apply(None, &applied, &by, &schema, force).map_err(|e| conflict(e, named))?;
            metadata::of_mut(&mut object).remove("resourceVersion");
            // Whoever may only change objects may not make them this way.
            auth::check(&x.server, &x.user, Verb::Create, &x.at)?;
            match write::create(x, object, Ownership::Applied) {
                Err(ApiError::AlreadyExists { .. }) if tries < write::RETRIES => continue,
                other => return other,
            }
        }
        let written = write::update(x, part, Ownership::Applied, Meant::by(&applied), |x, old| {
            same_uid(x, &applied, old)?;
            patch::apply(Some(old), &applied, &by, &schema, force).map_err(|e| conflict(e, named))
        });
        match written {
            Err(ApiError::NotFound { .. }) if part == Part::Main && tries < write::RETRIES => {}
            other => return other,
        }
    }
}

/// Takes out of an applied object what its endpoint does not change: nobody owns it for having sent it, and nobody
/// conflicts over it.
fn reset(applied: &mut Value, part: Part, status_apart: bool) {
    let Some(fields) = applied.as_object_mut() else { return };
    match part {
        Part::Main if status_apart => {
            fields.remove("status");
        }
        Part::Status => fields.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status")),
        _ => {}
    }
}

/// A patch that names a uid is for that object; unlike an update, it is not told of a conflict.
fn same_uid(x: &Exchange, wish: &Value, old: &Value) -> Result<()> {
    let uid = metadata::text(wish, "uid");
    if uid.is_empty() || uid == metadata::text(old, "uid") {
        return Ok(());
    }
    let causes = vec![crate::status::invalid("metadata.uid", &uid.into(), "field is immutable")];
    let (group, kind, name) = (x.kind().group.clone(), x.kind().kind.clone(), x.name().to_owned());
    Err(ApiError::Invalid { group, kind, name, causes })
}

/// `named`: the caller gave the namespace, and sees it in the message.
pub(crate) fn conflict(error: ApplyError, named: bool) -> ApiError {
    match error {
        ApplyError::DoesNotFit { object, problems } => {
            let object =
                if named { object } else { object.split_once('/').map_or(String::new(), |(_, o)| format!("/{o}")) };
            ApiError::Unnamed(ApplyError::DoesNotFit { object, problems }.to_string())
        }
        other => ApiError::Denied(Box::new(other.to_status())),
    }
}
