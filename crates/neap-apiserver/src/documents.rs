//! OpenAPI documents, made when somebody asks and kept only compressed, until the kinds change.
//!
//! kubectl asks for the index and one group at a time; older clients for everything at once. Nothing of this is needed by
//! controllers, so an idle server holds at most a few compressed hundred kilobytes.

use crate::codec::{self, Body};
use crate::kind::{Document, Kind, Semantics, Version};
use crate::openapi::{self, KindDoc};
use crate::registry::Kinds;
use crate::server::Inner;
use crate::status::{ApiError, Result};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Documents kept at a time: the index, v2 in two forms and the groups that `kubectl explain` was asked about.
const KEPT: usize = 24;

#[derive(Default)]
pub(crate) struct Cache(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    /// Of the kinds the documents were made from.
    generation: u64,
    /// Gzip, by address and form.
    documents: HashMap<String, Bytes>,
}

pub(crate) fn answer(
    server: &Arc<Inner>,
    kinds: &Kinds,
    path: &[&str],
    request: &Request<Bytes>,
) -> Result<Response<Body>> {
    let protobuf = accepts_protobuf(request);
    let ranges = codec::media_ranges(request.headers());
    let known = |media: &str| matches!(media, "*/*" | "application/*" | "application/json");
    if path == ["v2"] && !protobuf && !ranges.is_empty() && !ranges.iter().any(|range| known(range.media)) {
        return Err(ApiError::NotAcceptable { accepted: "application/json" });
    }
    match path {
        ["v2"] if protobuf => {
            let made = || openapi::v2_protobuf(&borrow(&docs(kinds, |_, _| true)));
            cached(server, kinds, "v2 protobuf".into(), openapi::V2_PROTOBUF_TYPE, request, made)
        }
        ["v2"] => {
            let made = || bytes(&openapi::v2(&borrow(&docs(kinds, |_, _| true))));
            cached(server, kinds, "v2".into(), "application/json", request, made)
        }
        ["v3"] => {
            let made = || bytes(&index(kinds));
            cached(server, kinds, "v3".into(), "application/json", request, made)
        }
        ["v3", "api", version] => group(server, kinds, "", version, request),
        ["v3", "apis", name, version] => group(server, kinds, name, version, request),
        _ => Err(ApiError::NoSuchPage),
    }
}

fn group(
    server: &Arc<Inner>,
    kinds: &Kinds,
    group: &str,
    version: &str,
    request: &Request<Bytes>,
) -> Result<Response<Body>> {
    let wanted = |k: &Kind, v: &Version| k.group == group && v.name == version;
    if !kinds.of_group(group).iter().any(|k| k.versions.iter().any(|v| v.served && wanted(k, v))) {
        return Err(ApiError::NoSuchPage);
    }
    let made = || bytes(&openapi::v3_group_version(&borrow(&docs(kinds, wanted))));
    cached(server, kinds, format!("v3 {group}/{version}"), "application/json", request, made)
}

/// Where each group's document is. The address carries a hash of what the document is made of, so that clients keep it
/// until that changes; schemas are hashed packed, since kubectl asks for the index far more often than for a document.
fn index(kinds: &Kinds) -> Value {
    let mut hashes: BTreeMap<String, Sha256> = BTreeMap::new();
    for kind in kinds.all() {
        for version in kind.versions.iter().filter(|v| v.served) {
            let path = if kind.group.is_empty() {
                format!("api/{}", version.name)
            } else {
                format!("apis/{}/{}", kind.group, version.name)
            };
            let hash = hashes.entry(path).or_default();
            hash.update(format!(
                "{} {} {} {} {}\n",
                kind.kind,
                kind.plural,
                kind.namespaced,
                version.status,
                version.scale.is_some()
            ));
            match kind.document.get(&version.name) {
                Some(Document::Packed(packed)) => hash.update(packed),
                Some(Document::None) | None => {}
            }
        }
    }
    let paths: Map<String, Value> = hashes
        .into_iter()
        .map(|(path, hash)| {
            let address = format!("/openapi/v3/{path}?hash={}", hex(&hash.finalize()));
            (path, json!({"serverRelativeURL": address}))
        })
        .collect();
    json!({"paths": paths})
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02X}")).collect()
}

fn accepts_protobuf(request: &Request<Bytes>) -> bool {
    request
        .headers()
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("proto-openapi.spec.v2") && !v.starts_with("application/json"))
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value is serialisable")
}

/// What a document says of one kind, owned.
struct Doc {
    group: String,
    version: String,
    kind: String,
    plural: String,
    namespaced: bool,
    verbs: &'static [&'static str],
    subresources: Vec<&'static str>,
    strategic: bool,
    schema: Value,
}

fn docs(kinds: &Kinds, wanted: impl Fn(&Kind, &Version) -> bool) -> Vec<Doc> {
    let mut out = Vec::new();
    for kind in kinds.all() {
        for version in kind.versions.iter().filter(|v| v.served && wanted(kind, v)) {
            let mut subresources = Vec::new();
            subresources.extend(version.scale.is_some().then_some("scale"));
            subresources.extend(version.status.then_some("status"));
            out.push(Doc {
                group: kind.group.clone(),
                version: version.name.clone(),
                kind: kind.kind.clone(),
                plural: kind.plural.clone(),
                namespaced: kind.namespaced,
                verbs: crate::discovery::verbs(kind),
                subresources,
                strategic: kind.semantics == Semantics::Native,
                schema: kind
                    .schema_document(&version.name)
                    .unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
            });
        }
    }
    out
}

fn borrow(docs: &[Doc]) -> Vec<KindDoc<'_>> {
    docs.iter()
        .map(|d| KindDoc {
            group: &d.group,
            version: &d.version,
            kind: &d.kind,
            plural: &d.plural,
            namespaced: d.namespaced,
            verbs: d.verbs,
            subresources: &d.subresources,
            strategic: d.strategic,
            schema: &d.schema,
        })
        .collect()
}

fn cached(
    server: &Arc<Inner>,
    kinds: &Kinds,
    key: String,
    media: &'static str,
    request: &Request<Bytes>,
    make: impl FnOnce() -> Vec<u8>,
) -> Result<Response<Body>> {
    let kept = {
        let mut slots = server.documents.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.generation != kinds.generation {
            *slots = Slots { generation: kinds.generation, documents: HashMap::new() };
        }
        slots.documents.get(&key).cloned()
    };
    // Made outside the lock; two that ask at once make it twice, and both are right.
    let packed = match kept {
        Some(packed) => packed,
        None => {
            let packed = Bytes::from(gzip(&make()));
            let mut slots = server.documents.0.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.documents.len() < KEPT && slots.generation == kinds.generation {
                slots.documents.insert(key, packed.clone());
            }
            packed
        }
    };
    respond(&packed, media, request)
}

fn respond(packed: &Bytes, media: &'static str, request: &Request<Bytes>) -> Result<Response<Body>> {
    let tag = etag(packed);
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let mut response = if header(IF_NONE_MATCH) == tag {
        let mut response = Response::new(codec::full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if header(ACCEPT_ENCODING).contains("gzip") {
        let mut response = Response::new(codec::full(packed.clone()));
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_ref()).read_to_end(&mut plain).map_err(ApiError::internal)?;
        Response::new(codec::full(plain))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    headers.insert(ETAG, HeaderValue::from_str(&tag).map_err(ApiError::internal)?);
    Ok(response)
}

fn etag(packed: &[u8]) -> String {
    format!("\"{}\"", hex(&Sha256::digest(packed)[..16]))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("writing to memory cannot fail");
    out.finish().expect("writing to memory cannot fail")
}
