//! Delete: at once, or marked and left to finalizers and grace; one object, a collection, or by eviction.

use super::list::{self, Filter};
use super::write;
use crate::codec::{self, Body};
use crate::kind::Role;
use crate::metadata;
use crate::namespace;
use crate::request::{self, Query, Verb};
use crate::server::Exchange;
use crate::status::{ApiError, Result, cause};
use crate::{status, storage, time};
use bytes::Bytes;
use http::{Request, Response};
use neap_store::{Committed, Error, Expect, Txn};
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Lost races before a delete gives up; see `write`.
const RETRIES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Foreground,
    Background,
    Orphan,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    propagation: Option<Propagation>,
    grace: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

/// What became of an object.
pub(crate) enum Fate {
    Gone {
        uid: String,
    },
    /// It stays until its finalizers or its grace are over.
    Marked(Value),
}

pub(crate) async fn answer(x: &mut Exchange, request: &Request<Bytes>) -> Result<Response<Body>> {
    let options = options(&x.query, &body(request)?)?;
    let explicit = matches!(options.propagation, Some(Propagation::Foreground | Propagation::Orphan));
    let name = x.name().to_owned();
    let (fate, committed) = one(x, &name, &options)?;
    x.server.acknowledge(x.ack, committed).await?;
    match fate {
        Fate::Gone { uid } => Ok(codec::respond(200, &status::deleted(&x.kind().id(), &name, &uid), x.wanted)),
        // 202 tells a caller who asked for dependents to be looked after that this is not over.
        Fate::Marked(object) => super::value_response(x, if explicit { 202 } else { 200 }, object),
    }
}

pub(crate) async fn collection(x: &mut Exchange, request: &Request<Bytes>) -> Result<Response<Body>> {
    request::check_list(&x.query, false)?;
    let options = options(&x.query, &body(request)?)?;
    let filter = Filter::of(x)?;
    let found = list::find(x, &filter, None, None)?;
    let mut items = Vec::with_capacity(found.entries.len());
    let mut last = None;
    for entry in &found.entries {
        let (namespace, name) = storage::parse_key(x.kind(), &entry.key);
        let name = name.to_owned();
        let mut each = x.clone();
        each.at.namespace = x.kind().namespaced.then(|| namespace.to_owned());
        each.at.name = Some(name.clone());
        match one(&mut each, &name, &options) {
            Ok((fate, committed)) => {
                last = committed.or(last);
                items.push(match fate {
                    Fate::Gone { .. } => super::get::decode_served(x, entry)?,
                    Fate::Marked(object) => super::to_served(x, object)?,
                });
            }
            Err(ApiError::NotFound { .. }) => {}
            Err(other) => return Err(other),
        }
        x.warnings.append(&mut each.warnings);
    }
    x.server.acknowledge(x.ack, last).await?;
    let list = json!({
        "apiVersion": x.served.version().api_version,
        "kind": x.kind().list_kind,
        "metadata": {"resourceVersion": x.server.store.revision().to_string()},
        "items": items,
    });
    Ok(codec::respond(200, &list, x.wanted))
}

/// `POST …/pods/NAME/eviction`: a delete with the options the eviction carries.
pub(crate) async fn eviction(x: &mut Exchange, verb: Verb, request: &Request<Bytes>) -> Result<Response<Body>> {
    if verb != Verb::Create {
        return Err(ApiError::MethodNotAllowed);
    }
    let eviction = codec::parse(request.headers(), request.body())?;
    let none = json!({});
    let options = options(&x.query, eviction.get("deleteOptions").unwrap_or(&none))?;
    let name = x.name().to_owned();
    let (_, committed) = one(x, &name, &options)?;
    x.server.acknowledge(x.ack, committed).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(codec::respond(201, &success, x.wanted))
}

fn body(request: &Request<Bytes>) -> Result<Value> {
    if request.body().is_empty() { Ok(json!({})) } else { codec::parse(request.headers(), request.body()) }
}

fn options(query: &Query, body: &Value) -> Result<Options> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let policy = text("propagationPolicy").or_else(|| query.propagation_policy.clone());
    let orphan = body.get("orphanDependents").and_then(Value::as_bool).or(query.orphan_dependents);
    let propagation = match (policy.as_deref(), orphan) {
        (Some(_), Some(_)) => {
            return Err(invalid_options("orphanDependents and deletionPropagation cannot be both set"));
        }
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some(other), _) => {
            return Err(ApiError::Invalid {
                group: "meta.k8s.io".into(),
                kind: "DeleteOptions".into(),
                name: String::new(),
                causes: vec![status::not_supported(
                    "propagationPolicy",
                    &json!(other),
                    &["Foreground", "Background", "Orphan", "nil"],
                )],
            });
        }
        (None, None) => None,
    };
    let preconditions = body.get("preconditions");
    let condition = |key: &str| preconditions.and_then(|p| p.get(key)).and_then(Value::as_str).map(str::to_owned);
    Ok(Options {
        propagation,
        grace: body.get("gracePeriodSeconds").and_then(Value::as_i64).or(query.grace_period_seconds),
        uid: condition("uid"),
        resource_version: condition("resourceVersion"),
        dry_run: query.dry_run || body.get("dryRun").and_then(Value::as_array).is_some_and(|d| !d.is_empty()),
    })
}

fn invalid_options(why: &str) -> ApiError {
    ApiError::Invalid {
        group: "meta.k8s.io".into(),
        kind: "DeleteOptions".into(),
        name: String::new(),
        causes: vec![cause("FieldValueInvalid", "", why.to_owned())],
    }
}

/// Deletes one object of the exchange's kind and namespace.
pub(crate) fn one(x: &mut Exchange, name: &str, options: &Options) -> Result<(Fate, Option<Committed>)> {
    let mut tries = 0;
    loop {
        let entry = super::get::find(x)?;
        let old = super::get::decode_working(x, &entry)?;
        preconditions(x, &old, options)?;
        write::admit_delete(x, &old)?;
        let new = marked(x, &old, options);
        let waits = new.as_ref().is_some_and(|new| {
            !metadata::finalizers(new).is_empty()
                || !namespace::is_finalized(x.working.kind.role(), new)
                || grace_of(new) > 0
        });
        let uid = metadata::text(&old, "uid").to_owned();
        let expect = Expect::Revision(entry.modified);
        let (txn, result) = match new {
            Some(new) if waits => {
                if new == old {
                    return Ok((Fate::Marked(old), None));
                }
                (Txn::new().put(entry.key.clone(), expect, storage::encode(&new)), Some(new))
            }
            _ => (Txn::new().delete(entry.key.clone(), expect), None),
        };
        if options.dry_run {
            return Ok((result.map_or(Fate::Gone { uid }, Fate::Marked), None));
        }
        match x.server.store.commit(txn) {
            Err(Error::Conflict { .. }) if tries < RETRIES => tries += 1,
            Err(error) => return Err(storage::store_error(&error, &x.kind().id(), name)),
            Ok(committed) => {
                let fate = match result {
                    Some(mut new) => {
                        metadata::of_mut(&mut new)
                            .insert("resourceVersion".into(), json!(committed.revision.to_string()));
                        write::after(x, Some(&new), name);
                        Fate::Marked(new)
                    }
                    None => {
                        write::after(x, None, name);
                        Fate::Gone { uid }
                    }
                };
                return Ok((fate, Some(committed)));
            }
        }
    }
}

fn preconditions(x: &Exchange, old: &Value, options: &Options) -> Result<()> {
    let check = |want: &Option<String>, key: &str, words: (&str, &str)| match want {
        Some(want) if want != metadata::text(old, key) => Err(ApiError::Conflict {
            resource: x.kind().id(),
            name: x.name().to_owned(),
            why: format!(
                "the {} in the precondition ({want}) does not match the {} in record ({}). The object might have been \
                 {}",
                words.0,
                words.0,
                metadata::text(old, key),
                words.1
            ),
        }),
        _ => Ok(()),
    };
    check(&options.uid, "uid", ("UID", "deleted and then recreated"))?;
    check(&options.resource_version, "resourceVersion", ("ResourceVersion", "modified"))
}

fn grace_of(object: &Value) -> i64 {
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0)
}

/// The object with its deletion begun, or `None` when nothing has to be waited for.
fn marked(x: &Exchange, old: &Value, options: &Options) -> Option<Value> {
    let kind = &x.working.kind;
    let mut new = old.clone();
    let mut finalizers: Vec<String> = metadata::finalizers(old).into_iter().map(str::to_owned).collect();
    let mut want = |name: &str, on: bool| {
        finalizers.retain(|f| f != name);
        if on {
            finalizers.push(name.to_owned());
        }
    };
    if let Some(choice) = options.propagation {
        want(ORPHAN, choice == Propagation::Orphan);
        want(FOREGROUND, choice == Propagation::Foreground);
    }
    let natural = kind.grace.as_ref().map_or(0, |grace| grace(old));
    let grace = if kind.grace.is_some() { options.grace.unwrap_or(natural).max(0) } else { 0 };
    // An object that needs no time (a pod that never ran) is not made to wait by a caller's generous grace.
    let grace = if natural == 0 { 0 } else { grace };
    let waits_for_role = !namespace::is_finalized(kind.role(), old);
    if finalizers.is_empty() && grace == 0 && !waits_for_role {
        return None;
    }
    let meta = metadata::of_mut(&mut new);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), json!(finalizers));
    }
    if metadata::is_deleting(old) {
        // A second delete can only shorten the grace.
        if kind.grace.is_some() && options.grace.is_some() && grace < grace_of(old) {
            meta.insert("deletionGracePeriodSeconds".into(), json!(grace));
        }
    } else {
        let at = x.now + std::time::Duration::from_secs(grace.unsigned_abs());
        meta.insert("deletionTimestamp".into(), json!(time::rfc3339(at)));
        meta.insert("deletionGracePeriodSeconds".into(), json!(grace));
        if write::raises_on_delete(kind.shape(x.working.version()).generation) {
            metadata::raise(&mut new, old);
        }
        if kind.role() == Role::Namespaces {
            namespace::mark(&mut new);
        }
    }
    Some(new)
}
