//! Manifests, tags, the catalog, referrers.

use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use neap_runtime::image::{Images, MANIFEST_MAX};
use serde_json::json;

use super::Query;
use super::reply::{self, Code, Refusal, Reply, header};

/// Names in one page of a list when the client sets no smaller number.
const PAGE: usize = 1000;
/// Tags that one request may set: the least that the specification asks a registry to take.
const TAGS_MAX: usize = 10;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) async fn get(images: &Images, name: &str, reference: &str, head: bool) -> Result<Reply, Refusal> {
    let manifest = images.get_manifest(name, reference).await?.ok_or_else(|| unknown(name, reference))?;
    let length = manifest.bytes.len();
    let bytes = if head { Vec::new() } else { manifest.bytes };
    let mut reply = reply::bytes_reply(StatusCode::OK, bytes);
    header(&mut reply, "content-type", &manifest.media_type);
    header(&mut reply, "content-length", &length.to_string());
    header(&mut reply, "docker-content-digest", &manifest.digest);
    header(&mut reply, "etag", &format!("\"{}\"", manifest.digest));
    Ok(reply)
}

/// A manifest under a tag or its digest, and under each tag that `?tag=` names beside it.
pub(super) async fn put(
    images: &Images,
    name: &str,
    reference: &str,
    query: &Query,
    body: Incoming,
) -> Result<Reply, Refusal> {
    let tags: Vec<&str> = query.all("tag").take(TAGS_MAX + 1).collect();
    if tags.len() > TAGS_MAX {
        return Err(Refusal::new(Code::ManifestInvalid, format!("a manifest takes at most {TAGS_MAX} tags at once")));
    }
    let limit = usize::try_from(MANIFEST_MAX).expect("a few megabytes");
    let bytes = Limited::new(body, limit).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() {
            return Refusal::new(Code::SizeInvalid, format!("a manifest has at most {limit} bytes"));
        }
        Refusal::new(Code::ManifestInvalid, format!("the manifest did not arrive whole: {e}"))
    })?;
    let (digest, subject) = images.put_manifest(name, reference, &tags, bytes.to_bytes().to_vec()).await?;
    tracing::info!(image = format!("{name}:{reference}"), digest, "pushed");
    let mut reply = reply::empty(StatusCode::CREATED);
    header(&mut reply, "location", &format!("/v2/{name}/manifests/{digest}"));
    header(&mut reply, "docker-content-digest", &digest);
    if let Some(subject) = subject {
        header(&mut reply, "oci-subject", &subject);
    }
    if !tags.is_empty() {
        header(&mut reply, "oci-tag", &tags.join(", "));
    }
    Ok(reply)
}

pub(super) async fn delete(images: &Images, name: &str, reference: &str) -> Result<Reply, Refusal> {
    if images.delete_manifest(name, reference).await? {
        return Ok(reply::empty(StatusCode::ACCEPTED));
    }
    Err(unknown(name, reference))
}

pub(super) fn tags(images: &Images, name: &str, query: &Query) -> Result<Reply, Refusal> {
    let tags =
        images.tags(name).ok_or_else(|| Refusal::new(Code::NameUnknown, format!("there is no repository {name}")))?;
    let (page, more) = paged(tags, query)?;
    let mut reply = reply::json(&json!({"name": name, "tags": page}));
    link(&mut reply, &format!("/v2/{name}/tags/list"), &page, more);
    Ok(reply)
}

pub(super) fn catalog(images: &Images, query: &Query) -> Result<Reply, Refusal> {
    let (page, more) = paged(images.repositories(), query)?;
    let mut reply = reply::json(&json!({"repositories": page}));
    link(&mut reply, "/v2/_catalog", &page, more);
    Ok(reply)
}

pub(super) async fn referrers(images: &Images, name: &str, digest: &str, query: &Query) -> Result<Reply, Refusal> {
    let mut manifests = images.referrers(name, digest).await?;
    let filter = query.get("artifactType");
    if let Some(wanted) = filter {
        manifests.retain(|m| m.artifact_type.as_deref() == Some(wanted));
    }
    let mut reply = reply::json(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}));
    header(&mut reply, "content-type", INDEX);
    if filter.is_some() {
        header(&mut reply, "oci-filters-applied", "artifactType");
    }
    Ok(reply)
}

/// Names after `last`, at most `n`, and whether there are more.
fn paged(mut names: Vec<String>, query: &Query) -> Result<(Vec<String>, bool), Refusal> {
    let limit = match query.get("n") {
        None => PAGE,
        Some(n) => n
            .parse::<usize>()
            .map_err(|_| Refusal::new(Code::Unsupported, format!("n must be a number, not {n:?}")))?
            .min(PAGE),
    };
    // Bytewise order, as the names are kept.
    if let Some(last) = query.get("last") {
        names.retain(|name| name.as_str() > last);
    }
    let more = names.len() > limit;
    names.truncate(limit);
    Ok((names, more))
}

fn link(reply: &mut Reply, path: &str, page: &[String], more: bool) {
    if let (true, Some(last)) = (more, page.last()) {
        header(reply, "link", &format!("<{path}?n={}&last={last}>; rel=\"next\"", page.len()));
    }
}

fn unknown(name: &str, reference: &str) -> Refusal {
    Refusal::new(Code::ManifestUnknown, format!("there is no {reference} in {name}"))
}
