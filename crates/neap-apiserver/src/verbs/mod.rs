//! One file per verb, and the dispatch between them. A verb reads the typed request and answers; rules live elsewhere.

pub(crate) mod computed;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod lines;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod update;
pub(crate) mod watch;
pub(crate) mod write;

use crate::auth::{self, token};
use crate::codec::{Body, View, respond_raw};
use crate::kind::{ConnectRequest, Role, Semantics};
use crate::request::Verb;
use crate::scale;
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use crate::{storage, table};
use bytes::Bytes;
use http::{Request, Response};
use neap_store::{Entry, Revision};
use serde_json::Value;

pub(crate) async fn dispatch(x: &mut Exchange, verb: Verb, request: Request<Bytes>) -> Result<Response<Body>> {
    let name = x.at.subresource.clone().unwrap_or_default();
    // The old way to ask for a watch is for objects only; by it a `watch` would do what takes another verb.
    if x.at.watch && !name.is_empty() {
        return Err(ApiError::NoSuchPath);
    }
    if let Some(connect) = x.kind().connects.get(&name).cloned() {
        match verb {
            Verb::Get if name == "log" => {}
            // What starts something may not be had by who may only look, though it begins with a GET.
            Verb::Get | Verb::Create if name != "log" => auth::check(&x.server, &x.user, Verb::Create, &x.at)?,
            _ => return Err(ApiError::MethodNotAllowed),
        }
        let entry = get::find(x)?;
        let object = get::decode_served(x, &entry)?;
        let call = ConnectRequest {
            user: x.user.clone(),
            namespace: x.namespace().unwrap_or("").to_owned(),
            name: x.name().to_owned(),
            subresource: name,
            rest: x.at.rest.clone(),
            query: x.query.pairs.clone(),
            object,
            request,
        };
        return Ok(connect(call).await);
    }
    if let Some(read) = x.kind().read.clone() {
        return computed::answer(x, verb, read).await;
    }
    if x.wanted.view == View::Table {
        table::check(x)?;
    }
    let part = match name.as_str() {
        "" => write::Part::Main,
        "status" if x.served.version().status => write::Part::Status,
        "finalize" if x.kind().role() == Role::Namespaces => write::Part::Finalize,
        "scale" if x.served.version().scale.is_some() => return scale::answer(x, verb, &request).await,
        "token" if x.kind().role() == Role::ServiceAccounts => return token::answer(x, verb, &request).await,
        "binding" if x.kind().role() == Role::Pods => return create::binding(x, verb, &request).await,
        "eviction" if x.kind().role() == Role::Pods => return delete::eviction(x, verb, &request).await,
        _ if x.kind().semantics == Semantics::Custom => return Err(x.not_found()),
        _ => return Err(ApiError::NoSuchPath),
    };
    if x.kind().answer.is_some() {
        return if verb == Verb::Create { create::answered(x, &request) } else { Err(ApiError::MethodNotAllowed) };
    }
    match (verb, part) {
        (Verb::Get, _) => get::answer(x),
        (Verb::List, write::Part::Main) => list::answer(x),
        (Verb::Watch, write::Part::Main) => watch::answer(x),
        (Verb::Create, write::Part::Main) if x.at.name.is_none() => create::answer(x, &request).await,
        (Verb::Update, part) => update::answer(x, part, &request).await,
        (Verb::Patch, part) => patch::answer(x, part, &request).await,
        (Verb::Delete, write::Part::Main) => delete::answer(x, &request).await,
        (Verb::DeleteCollection, write::Part::Main) if x.kind().delete_collection => {
            delete::collection(x, &request).await
        }
        _ => Err(ApiError::MethodNotAllowed),
    }
}

/// A stored object as the URL's version serves it.
pub(crate) fn served_bytes(x: &Exchange, out: &mut Vec<u8>, stored: &[u8], revision: Revision) -> Result<()> {
    if same_version(x) {
        storage::splice(out, x.served.version(), revision, stored, x.managed);
        return Ok(());
    }
    let value = to_served(x, storage::decode(stored, x.working.version(), &x.working.kind.kind, revision)?)?;
    serde_json::to_writer(out, &value).map_err(ApiError::internal)
}

pub(crate) fn same_version(x: &Exchange) -> bool {
    x.served.version().api_version == x.working.version().api_version
}

/// From the version whose rules apply to the version of the URL.
pub(crate) fn to_served(x: &Exchange, object: Value) -> Result<Value> {
    convert(x, object, &x.working.version().api_version, &x.served.version().api_version)
}

pub(crate) fn to_working(x: &Exchange, object: Value) -> Result<Value> {
    convert(x, object, &x.served.version().api_version, &x.working.version().api_version)
}

fn convert(x: &Exchange, object: Value, from: &str, to: &str) -> Result<Value> {
    if from == to {
        return Ok(object);
    }
    let Some(f) = &x.kind().convert else { return Ok(object) };
    let mut out = f(object, from, to).map_err(|why| {
        ApiError::bad_request(format!("conversion of {} from {from} to {to} failed: {why}", x.kind().kind))
    })?;
    if let Some(map) = out.as_object_mut() {
        map.insert("apiVersion".into(), to.into());
    }
    Ok(out)
}

const NO_LIST: ApiError = ApiError::WrongView { view: "PartialObjectMetadataList", what: "not a list" };

/// The answer that carries one object.
pub(crate) fn object_response(x: &Exchange, code: u16, stored: &[u8], revision: Revision) -> Result<Response<Body>> {
    let mut bytes = Vec::new();
    served_bytes(x, &mut bytes, stored, revision)?;
    match x.wanted.view {
        View::Whole => Ok(respond_raw(code, bytes, x.wanted)),
        View::Partial => {
            let object: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
            Ok(crate::codec::respond(code, &table::partial(x, object), x.wanted))
        }
        View::PartialList => Err(NO_LIST),
        View::Table => {
            let object: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
            let meta = serde_json::json!({"resourceVersion": revision.to_string()});
            Ok(crate::codec::respond(code, &table::table(x, &[object], meta, true), x.wanted))
        }
    }
}

/// As [`object_response`], for an object that is not stored (dry runs).
pub(crate) fn value_response(x: &Exchange, code: u16, object: Value) -> Result<Response<Body>> {
    let object = to_served(x, object)?;
    Ok(match x.wanted.view {
        View::Whole => crate::codec::respond(code, &object, x.wanted),
        View::Partial => crate::codec::respond(code, &table::partial(x, object), x.wanted),
        View::PartialList => return Err(NO_LIST),
        View::Table => crate::codec::respond(code, &table::table(x, &[object], serde_json::json!({}), true), x.wanted),
    })
}

pub(crate) fn entry_key(x: &Exchange) -> String {
    storage::key(x.kind(), x.namespace(), x.name())
}

pub(crate) fn lookup(x: &Exchange) -> Option<Entry> {
    x.server.store.get(entry_key(x).as_bytes())
}
