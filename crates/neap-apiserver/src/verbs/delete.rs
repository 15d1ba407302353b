//! Delete: at once, or marked and left to finalizers and grace; one object, a collection, or by eviction.

use super::list::{self, Filter};
use super::write;
use crate::codec::{self, Body};
use crate::kind::Role;
use crate::metadata;
use crate::namespace;
use crate::request::{self, Query, Verb};
use crate::server::Exchange;
use crate::status::{ApiError, ResourceId, Result};
use crate::{status, storage, time};
use bytes::Bytes;
use http::{Request, Response};
use neap_store::{Committed, Error, Expect, Txn};
use serde::Deserialize;
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Lost races before a delete gives up; see `write`.
const RETRIES: usize = 32;
/// Objects of a collection deleted without letting others run.
const TOGETHER: usize = 50;
/// Namespaces that stay (Kubernetes: NamespaceLifecycle).
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];
/// The longest grace, in seconds: what still fits a timestamp.
const MOST_GRACE: i64 = i32::MAX as i64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Foreground,
    Background,
    Orphan,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// What `policy` and the older `orphan` come to.
    propagation: Option<Propagation>,
    policy: Option<String>,
    orphan: Option<bool>,
    grace: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: Vec<String>,
}

/// What became of an object.
pub(crate) enum Fate {
    Gone {
        uid: String,
    },
    /// It stays until its finalizers or its grace are over.
    Marked(Value),
    /// It is gone, and the caller sees it once more.
    Shown(Value),
}

pub(crate) async fn answer(x: &mut Exchange, request: &Request<Bytes>) -> Result<Response<Body>> {
    let options = wish(&x.query, request)?;
    let name = x.name().to_owned();
    let (fate, committed) = one(x, &name, &options)?;
    write::settle(x, committed, !options.dry_run.is_empty()).await?;
    match fate {
        Fate::Gone { uid } => Ok(codec::respond(200, &status::deleted(&x.kind().id(), &name, &uid), x.wanted)),
        // Only those who asked in the old way are told that this is not over.
        Fate::Marked(object) => super::value_response(x, if options.orphan == Some(false) { 202 } else { 200 }, object),
        Fate::Shown(object) => super::value_response(x, 200, object),
    }
}

pub(crate) async fn collection(x: &mut Exchange, request: &Request<Bytes>) -> Result<Response<Body>> {
    request::check_list(&x.query, false)?;
    let options = wish(&x.query, request)?;
    let filter = Filter::of(x)?;
    let found = list::find(x, &filter, None, None)?;
    let mut last = None;
    for (n, entry) in found.entries.iter().enumerate() {
        if n % TOGETHER == TOGETHER - 1 {
            // Thousands of objects must not hold up everybody else on this thread.
            tokio::task::yield_now().await;
        }
        let (namespace, name) = storage::parse_key(x.kind(), &entry.key);
        let name = name.to_owned();
        let mut each = x.clone();
        each.at.namespace = x.kind().namespaced.then(|| namespace.to_owned());
        each.at.name = Some(name.clone());
        match one(&mut each, &name, &options) {
            Ok((_, committed)) => last = committed.or(last),
            Err(ApiError::NotFound { .. }) => {}
            Err(other) => return Err(other),
        }
        x.warnings.append(&mut each.warnings);
    }
    write::settle(x, last, !options.dry_run.is_empty()).await?;
    // What was to be deleted, as it was.
    list::render(x, &found)
}

/// `POST …/pods/NAME/eviction`: a delete with the options the eviction carries.
pub(crate) async fn eviction(x: &mut Exchange, verb: Verb, request: &Request<Bytes>) -> Result<Response<Body>> {
    if verb != Verb::Create {
        return Err(ApiError::MethodNotAllowed);
    }
    let eviction = codec::parse(request.headers(), request.body())?;
    request::check_write(&x.query, request::Write::Create)?;
    let mut wish = told(eviction.get("deleteOptions").unwrap_or(&Value::Null))?;
    wish.dry_run.extend(x.query.dry_run.iter().cloned());
    let options = options(wish)?;
    let name = x.name().to_owned();
    let of = metadata::text(&eviction, "name");
    if !of.is_empty() && of != name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let (_, committed) = one(x, &name, &options)?;
    write::settle(x, committed, !options.dry_run.is_empty()).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(codec::respond(201, &success, x.wanted))
}

/// The options of a delete: those in the body, or without a body those of the query.
fn wish(query: &Query, sent: &Request<Bytes>) -> Result<Options> {
    if sent.body().is_empty() {
        query.check_numbers(&["gracePeriodSeconds"])?;
        return options(Options {
            grace: query.grace_period_seconds,
            dry_run: query.dry_run.clone(),
            policy: query.propagation_policy.clone(),
            orphan: query.orphan_dependents,
            ..Options::default()
        });
    }
    let body = codec::parse(sent.headers(), sent.body())?;
    options(told(&body)?)
}

fn told(body: &Value) -> Result<Options> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Told {
        kind: Option<String>,
        propagation_policy: Option<String>,
        orphan_dependents: Option<bool>,
        grace_period_seconds: Option<i64>,
        preconditions: Option<Preconditions>,
        dry_run: Option<Vec<String>>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Preconditions {
        uid: Option<String>,
        resource_version: Option<String>,
    }
    let told = Option::<Told>::deserialize(body)
        .map_err(|e| ApiError::bad_request(format!("the delete options cannot be read: {e}")))?
        .unwrap_or_default();
    if told.kind.is_some_and(|kind| !kind.is_empty() && kind != "DeleteOptions") {
        return Err(ApiError::bad_request("decoded object cannot be converted to DeleteOptions"));
    }
    let preconditions = told.preconditions.unwrap_or_default();
    Ok(Options {
        policy: told.propagation_policy,
        orphan: told.orphan_dependents,
        grace: told.grace_period_seconds,
        uid: preconditions.uid,
        resource_version: preconditions.resource_version,
        dry_run: told.dry_run.unwrap_or_default(),
        ..Options::default()
    })
}

/// Judges options and draws the propagation from them.
fn options(mut told: Options) -> Result<Options> {
    let mut causes = Vec::new();
    let shown = json!(told.policy);
    if told.policy.is_some() && told.orphan.is_some() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        causes.push(status::invalid("propagationPolicy", &shown, why));
    }
    told.propagation = match (told.policy.as_deref(), told.orphan) {
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some(_), _) => {
            let allowed = ["Foreground", "Background", "Orphan", "nil"];
            causes.push(status::not_supported("propagationPolicy", &shown, &allowed));
            None
        }
        (None, None) => None,
    };
    causes.extend(request::dry_run_fault(&told.dry_run));
    request::options("DeleteOptions", causes)?;
    Ok(told)
}

/// Deletes one object of the exchange's kind and namespace.
pub(crate) fn one(x: &mut Exchange, name: &str, options: &Options) -> Result<(Fate, Option<Committed>)> {
    if x.working.kind.role() == Role::Namespaces && IMMORTAL.contains(&name) {
        let why = "this namespace may not be deleted".to_owned();
        return Err(ApiError::Forbidden { resource: x.kind().id(), name: name.to_owned(), why, causes: Vec::new() });
    }
    let mut tries = 0;
    loop {
        x.warnings.clear();
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
        let gone = || match x.working.kind.shows_deleted {
            true => Fate::Shown(last_sight(x, &old)),
            false => Fate::Gone { uid: metadata::text(&old, "uid").to_owned() },
        };
        let expect = Expect::Revision(entry.modified);
        let (txn, result) = match new {
            Some(new) if waits => {
                if new == old {
                    // Whoever was interrupted after the mark goes on now.
                    if options.dry_run.is_empty() {
                        write::after(x, Some(&old), name);
                    }
                    return Ok((Fate::Marked(old), None));
                }
                (Txn::new().put(entry.key.clone(), expect, storage::encode(&new)), Some(new))
            }
            _ => (Txn::new().delete(entry.key.clone(), expect), None),
        };
        if !options.dry_run.is_empty() {
            return Ok((result.map_or_else(gone, Fate::Marked), None));
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
                        gone()
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
            // By its kind, not its plural, as everybody else says it.
            resource: ResourceId::new(&x.kind().group, &x.kind().kind),
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

/// An object that went at once, with the marks of its deletion where its kind gives time.
fn last_sight(x: &Exchange, old: &Value) -> Value {
    let mut object = old.clone();
    if x.working.kind.grace.is_some() {
        begin(x, &mut object, old, 0);
    }
    object
}

/// Marks the beginning of a deletion.
fn begin(x: &Exchange, object: &mut Value, old: &Value, grace: i64) {
    let meta = metadata::of_mut(object);
    if !metadata::is_deleting(old) {
        let at = x.now + std::time::Duration::from_secs(grace.unsigned_abs());
        meta.insert("deletionTimestamp".into(), json!(time::rfc3339(at)));
        if write::raises_on_delete(x.working.kind.shape(x.working.version()).generation) {
            metadata::raise(object, old);
        }
    }
    // A namespace takes the time it takes.
    if x.working.kind.role() != Role::Namespaces {
        metadata::of_mut(object).insert("deletionGracePeriodSeconds".into(), json!(grace));
    }
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
    // Less than nothing means as soon as possible, but in order.
    let sane = |seconds: i64| if seconds < 0 { 1 } else { seconds.min(MOST_GRACE) };
    let natural = kind.grace.as_ref().map_or(0, |grace| sane(grace(old)));
    let grace = if kind.grace.is_some() { options.grace.map_or(natural, sane) } else { 0 };
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
            if let Ok(at) = metadata::text(old, "deletionTimestamp").parse::<jiff::Timestamp>() {
                let sooner = at - jiff::SignedDuration::from_secs(grace_of(old) - grace);
                meta.insert("deletionTimestamp".into(), json!(time::rfc3339(sooner)));
            }
        }
    } else {
        begin(x, &mut new, old, grace);
        if kind.role() == Role::Namespaces {
            namespace::mark(&mut new);
        }
    }
    Some(new)
}
