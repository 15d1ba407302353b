//! List: a range at one revision, filtered, in pages. Objects that need no filter are never parsed.

use crate::codec::{Body, View, respond, respond_raw};
use crate::kind::Semantics;
use crate::request::{self, VersionMatch};
use crate::selector::{FieldSelector, LabelSelector, SelectableField};
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use crate::{storage, table};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use neap_store::{Entry, Revision};
use serde_json::{Value, json};

/// Entries read from the store at a time while filtering; a bound on what a sparse match holds in memory.
const CHUNK: usize = 500;

/// Which objects of a range a request is about.
pub(crate) struct Filter {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
    pub(crate) offered: Vec<SelectableField>,
    /// `metadata.name` in the path of a watch on one object.
    pub(crate) name: Option<String>,
}

impl Filter {
    pub(crate) fn of(x: &Exchange) -> Result<Self> {
        let version = x.served.version();
        let offered = x.kind().selectable(version);
        let labels = LabelSelector::parse(&x.query.label_selector)?;
        let fields = FieldSelector::parse(&x.query.field_selector)?;
        fields.check(&offered)?;
        Ok(Self { labels, fields, offered, name: x.at.name.clone() })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    /// The keys that can match: where one name is asked for in one place, hardly more than that one.
    pub(crate) fn prefix(&self, x: &Exchange) -> String {
        let mut prefix = storage::prefix(x.kind(), x.namespace());
        if x.namespace().is_some() || !x.kind().namespaced {
            prefix.push_str(self.name.as_deref().or(self.fields.exact_name()).unwrap_or(""));
        }
        prefix
    }

    pub(crate) fn matches(&self, x: &Exchange, key: &[u8], stored: &[u8]) -> bool {
        if self.is_empty() {
            return true;
        }
        let (namespace, name) = storage::parse_key(x.kind(), key);
        if self.name.as_deref().is_some_and(|n| n != name) {
            return false;
        }
        if !self.labels.is_empty() && !self.labels.matches(&storage::labels(stored)) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        let mut object = Value::Null;
        if self.fields.needs_object() {
            let working = storage::decode(stored, x.working.version(), &x.working.kind.kind, 0);
            object = working.and_then(|o| super::to_served(x, o)).unwrap_or_default();
        }
        self.fields.matches(namespace, name, &object, &self.offered)
    }
}

pub(crate) struct Found {
    pub(crate) entries: Vec<Entry>,
    pub(crate) revision: Revision,
    /// The key after which the next page begins.
    pub(crate) next: Option<Vec<u8>>,
    pub(crate) remaining: Option<usize>,
}

pub(crate) fn answer(x: &Exchange) -> Result<Response<Body>> {
    request::check_list(&x.query, false)?;
    let filter = Filter::of(x)?;
    let (after, at) = position(x)?;
    let found = find(x, &filter, after, at)?;
    render(x, &found)
}

/// Everything from `after` on that matches, up to the limit of the request.
pub(crate) fn find(
    x: &Exchange,
    filter: &Filter,
    mut after: Option<Vec<u8>>,
    mut at: Option<Revision>,
) -> Result<Found> {
    let prefix = filter.prefix(x);
    let limit = if x.query.limit == 0 { usize::MAX } else { x.query.limit };
    let mut entries = Vec::new();
    loop {
        let (prefix, start) = (prefix.as_bytes(), after.as_deref());
        let page = match filter.is_empty() {
            true => x.server.store.range(prefix, start, limit, at),
            false => x.server.store.range_uncounted(prefix, start, CHUNK, at),
        };
        let page = page.map_err(|e| expired(&e, x))?;
        at = Some(page.revision);
        let last = page.entries.last().map(|e| e.key.to_vec());
        let total = page.entries.len();
        for (i, entry) in page.entries.into_iter().enumerate() {
            if !filter.matches(x, &entry.key, &entry.value) {
                continue;
            }
            let key = entry.key.to_vec();
            entries.push(entry);
            if entries.len() == limit {
                let more = page.more || i + 1 < total;
                let remaining = (more && filter.is_empty()).then_some(page.remaining);
                return Ok(Found { entries, revision: page.revision, next: more.then_some(key), remaining });
            }
        }
        if !page.more {
            return Ok(Found { entries, revision: page.revision, next: None, remaining: None });
        }
        after = last;
    }
}

/// Where a list begins and at which revision.
fn position(x: &Exchange) -> Result<(Option<Vec<u8>>, Option<Revision>)> {
    let q = &x.query;
    if !q.continue_token.is_empty() {
        let (revision, start) = parse_token(&q.continue_token)
            .ok_or_else(|| ApiError::bad_request("invalid continue token: continue key is not valid"))?;
        let mut key = storage::prefix(x.kind(), x.namespace()).into_bytes();
        key.extend_from_slice(&start);
        return Ok((Some(key), Some(revision)));
    }
    let current = x.server.store.revision();
    let asked = request::revision(&q.resource_version)
        .map_err(|why| ApiError::bad_request(format!("invalid resource version: {why}")))?;
    let at = match asked {
        None | Some(0) => None,
        Some(asked) if asked > current => return Err(ApiError::FutureRevision { asked, current }),
        // Without a match rule, a page at a revision means exactly that revision.
        Some(asked) => match q.version_match {
            VersionMatch::Exact => Some(asked),
            VersionMatch::None if q.limit > 0 => Some(asked),
            _ => None,
        },
    };
    Ok((None, at))
}

fn expired(error: &neap_store::Error, x: &Exchange) -> ApiError {
    match error {
        neap_store::Error::Compacted { .. } if !x.query.continue_token.is_empty() => ApiError::Expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter."
                .into(),
        ),
        neap_store::Error::Compacted { .. } => {
            ApiError::Expired("The resourceVersion for the provided list is too old.".into())
        }
        other => storage::store_error(other, &x.kind().id(), ""),
    }
}

fn token(revision: Revision, key: &[u8], prefix: usize) -> String {
    let start = String::from_utf8_lossy(&key[prefix..]);
    let text = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string();
    URL_SAFE_NO_PAD.encode(text)
}

fn parse_token(token: &str) -> Option<(Revision, Vec<u8>)> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    (value["v"] == "meta.k8s.io/v1").then_some(())?;
    Some((value["rv"].as_u64()?, value["start"].as_str()?.as_bytes().to_vec()))
}

/// The answer that carries what was found.
pub(crate) fn render(x: &Exchange, found: &Found) -> Result<Response<Body>> {
    let entries = &found.entries;
    let native = x.kind().semantics == Semantics::Native;
    let mut meta = json!({"resourceVersion": found.revision.to_string()});
    if let Some(next) = &found.next {
        meta["continue"] = json!(token(found.revision, next, storage::prefix(x.kind(), x.namespace()).len()));
        if let Some(n) = found.remaining {
            meta["remainingItemCount"] = json!(n);
        }
    } else if !native && x.wanted.view == View::Whole {
        // Lists of custom resources always have the field.
        meta["continue"] = json!("");
    }
    let version = x.served.version();
    match x.wanted.view {
        View::Whole => {
            let size: usize = entries.iter().map(|e| e.value.len() + version.head.len() + 24).sum();
            let mut out = Vec::with_capacity(size + 256);
            let head = json!([version.api_version, x.kind().list_kind, meta]);
            out.extend_from_slice(
                format!(r#"{{"apiVersion":{},"kind":{},"metadata":{},"items":["#, head[0], head[1], head[2]).as_bytes(),
            );
            for (i, entry) in entries.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                // The items of a list of a compiled-in kind do not say again what the list says.
                match native && super::same_version(x) {
                    true => storage::splice_item(&mut out, entry.modified, &entry.value, x.managed),
                    false => super::served_bytes(x, &mut out, &entry.value, entry.modified)?,
                }
            }
            out.extend_from_slice(b"]}");
            Ok(respond_raw(200, out, x.wanted))
        }
        View::Table => {
            let objects = decode(x, entries)?;
            Ok(respond(200, &table::table(x, &objects, meta, true), x.wanted))
        }
        View::Partial => Err(ApiError::WrongView { view: "PartialObjectMetadata", what: "a list" }),
        View::PartialList => {
            let items: Vec<Value> = decode(x, entries)?.into_iter().map(|object| table::partial(x, object)).collect();
            let list = json!({"apiVersion": table::api_version(x), "kind": "PartialObjectMetadataList", "metadata": meta,
                "items": items});
            Ok(respond(200, &list, x.wanted))
        }
    }
}

fn decode(x: &Exchange, entries: &[Entry]) -> Result<Vec<Value>> {
    entries.iter().map(|e| super::get::decode_served(x, e)).collect()
}
