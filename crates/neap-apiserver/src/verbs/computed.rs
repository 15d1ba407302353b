//! Kinds whose objects are computed when somebody reads them, and never stored (what pods use of the machine): get and
//! list, and nothing else.

use super::list::Filter;
use crate::codec::{self, Body};
use crate::kind::Read;
use crate::request::Verb;
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use crate::{metadata, storage};
use http::Response;
use serde_json::{Value, json};

/// What discovery says that one can do with them.
pub(crate) const VERBS: &[&str] = &["get", "list"];

pub(crate) async fn answer(x: &Exchange, verb: Verb, read: Read) -> Result<Response<Body>> {
    if x.at.subresource.is_some() || !matches!(verb, Verb::Get | Verb::List) {
        return Err(ApiError::MethodNotAllowed);
    }
    let filter = Filter::of(x)?;
    let mut items = read().await;
    items.retain(|object| {
        let (namespace, name) = (metadata::text(object, "namespace"), metadata::text(object, "name"));
        if x.namespace().is_some_and(|asked| asked != namespace) {
            return false;
        }
        // As if it were stored, so that selectors mean the same here.
        let key = storage::key(x.kind(), Some(namespace), name);
        filter.matches(x, key.as_bytes(), &storage::encode(object))
    });
    let (version, kind) = (&x.served.version().api_version, x.kind());
    for object in &mut items {
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind.kind);
    }
    if verb == Verb::Get {
        let object = items.pop().ok_or_else(|| x.not_found())?;
        return Ok(codec::respond(200, &object, x.wanted));
    }
    items.sort_by(|a, b| {
        let key = |o: &Value| (metadata::text(o, "namespace").to_owned(), metadata::text(o, "name").to_owned());
        key(a).cmp(&key(b))
    });
    let list = json!({"kind": kind.list_kind, "apiVersion": version, "metadata": {}, "items": items});
    Ok(codec::respond(200, &list, x.wanted))
}
