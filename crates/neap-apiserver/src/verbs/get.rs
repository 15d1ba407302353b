//! Get: one object, spliced from its stored bytes.

use crate::codec::Body;
use crate::request;
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use crate::storage;
use http::Response;
use neap_store::Entry;
use serde_json::Value;

pub(crate) fn answer(x: &Exchange) -> Result<Response<Body>> {
    if let Some(asked) = request::revision(&x.query.resource_version)? {
        let current = x.server.store.revision();
        if asked > current {
            return Err(ApiError::FutureRevision { asked, current });
        }
    }
    let entry = find(x)?;
    super::object_response(x, 200, &entry.value, entry.modified)
}

pub(crate) fn find(x: &Exchange) -> Result<Entry> {
    super::lookup(x).ok_or_else(|| x.not_found())
}

/// As a value, in the version of the URL.
pub(crate) fn decode_served(x: &Exchange, entry: &Entry) -> Result<Value> {
    super::to_served(x, decode_working(x, entry)?)
}

/// As a value, in the version whose rules apply.
pub(crate) fn decode_working(x: &Exchange, entry: &Entry) -> Result<Value> {
    storage::decode(&entry.value, x.working.version(), &x.working.kind.kind, entry.modified)
}
