//! Blobs: sent in ranges, received whole, in chunks or by mounting.
//!
//! An upload lives in memory and in a scratch file; it ends with its digest checked, cancelled, or forgotten after an
//! hour without a byte. A restart forgets all: clients begin again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use http::header::{CONTENT_RANGE, RANGE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use neap_runtime::image::{BlobUpload, Images};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::Query;
use super::reply::{self, Code, Refusal, Reply, header};
use super::route::digest;

/// Uploads at once. Each holds a file and at most a megabyte of memory.
const UPLOADS_MAX: usize = 256;
/// An upload without a byte for this long is forgotten.
const IDLE: Duration = Duration::from_secs(3600);
/// Bytes read from the disk at once when a blob is sent.
const SEND_PIECE: usize = 128 << 10;

pub(super) async fn get(images: &Images, digest: &str, request: &Request<Incoming>) -> Result<Reply, Refusal> {
    let (file, size) = images
        .open_blob(digest)
        .await?
        .ok_or_else(|| Refusal::new(Code::BlobUnknown, format!("there is no blob {digest}")))?;
    let range = request.headers().get(RANGE).and_then(|r| r.to_str().ok());
    let (status, start, length) = match range.map(|text| parse_range(text, size)) {
        None | Some(Range::Whole) => (StatusCode::OK, 0, size),
        Some(Range::Part { start, length }) => (StatusCode::PARTIAL_CONTENT, start, length),
        Some(Range::Outside) => {
            let mut reply = Refusal::new(Code::RangeInvalid, format!("the blob has {size} bytes")).reply();
            header(&mut reply, "content-range", &format!("bytes */{size}"));
            return Ok(reply);
        }
    };
    let mut reply = if request.method() == Method::HEAD {
        reply::empty(status)
    } else {
        let mut file = tokio::fs::File::from_std(file);
        if start > 0 {
            let seek = file.seek(std::io::SeekFrom::Start(start)).await;
            seek.map_err(|e| Refusal::new(Code::Unknown, format!("cannot read {digest}: {e}")))?;
        }
        let stream = ReaderStream::with_capacity(file.take(length), SEND_PIECE);
        reply::with_body(status, StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync())
    };
    header(&mut reply, "content-type", "application/octet-stream");
    header(&mut reply, "content-length", &length.to_string());
    header(&mut reply, "accept-ranges", "bytes");
    header(&mut reply, "docker-content-digest", digest);
    header(&mut reply, "etag", &format!("\"{digest}\""));
    if status == StatusCode::PARTIAL_CONTENT {
        header(&mut reply, "content-range", &format!("bytes {start}-{}/{size}", start + length - 1));
    }
    Ok(reply)
}

pub(super) async fn delete(images: &Images, digest: &str) -> Result<Reply, Refusal> {
    if images.delete_blob(digest).await? {
        return Ok(reply::empty(StatusCode::ACCEPTED));
    }
    Err(Refusal::new(Code::BlobUnknown, format!("there is no blob {digest}")))
}

#[derive(Default)]
pub(super) struct Uploads {
    open: Mutex<HashMap<String, Entry>>,
}

#[derive(Clone)]
struct Entry {
    repository: String,
    last_byte: Instant,
    /// `None` once it was finished or given up.
    upload: Arc<tokio::sync::Mutex<Option<BlobUpload>>>,
}

impl Uploads {
    /// A mount, a whole blob in one request, or the beginning of an upload.
    pub(super) async fn begin(
        &self,
        images: &Images,
        name: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        if let Some(mount) = query.get("mount")
            && let Ok(digest) = digest(mount)
            && images.open_blob(&digest).await?.is_some()
        {
            return Ok(created(name, &digest));
        }
        let mut upload = images.begin_blob().await?;
        if let Some(wanted) = query.get("digest") {
            let wanted = digest(wanted)?;
            receive(&mut upload, request.into_body()).await?;
            upload.finish(&wanted).await?;
            return Ok(created(name, &wanted));
        }
        let id = format!("{:032x}", fastrand::u128(..));
        let entry = Entry {
            repository: name.to_owned(),
            last_byte: Instant::now(),
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
        };
        let mut open = self.open();
        // One that is being received, however slowly, is not idle.
        open.retain(|_, e| e.last_byte.elapsed() < IDLE || e.upload.try_lock().is_err());
        if open.len() >= UPLOADS_MAX {
            return Err(Refusal::new(Code::TooManyUploads, format!("{UPLOADS_MAX} uploads are under way; try later")));
        }
        open.insert(id.clone(), entry);
        Ok(progress(StatusCode::ACCEPTED, name, &id, 0))
    }

    pub(super) async fn append(&self, name: &str, id: &str, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let entry = self.find(name, id)?;
        let mut slot = entry.upload.lock().await;
        let upload = slot.as_mut().ok_or_else(|| gone(id))?;
        check_order(&request, upload.len())?;
        let received = receive(upload, request.into_body()).await;
        self.stamp(id);
        received?;
        Ok(progress(StatusCode::ACCEPTED, name, id, upload.len()))
    }

    pub(super) async fn finish(
        &self,
        name: &str,
        id: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let wanted = query
            .get("digest")
            .ok_or_else(|| Refusal::new(Code::DigestInvalid, "the last request of an upload names its digest"))?;
        let wanted = digest(wanted)?;
        let entry = self.find(name, id)?;
        let mut slot = entry.upload.lock().await;
        let upload = slot.as_mut().ok_or_else(|| gone(id))?;
        check_order(&request, upload.len())?;
        receive(upload, request.into_body()).await?;
        let upload = slot.take().expect("it was there one line ago, under the same lock");
        self.open().remove(id);
        upload.finish(&wanted).await?;
        Ok(created(name, &wanted))
    }

    pub(super) async fn status(&self, name: &str, id: &str) -> Result<Reply, Refusal> {
        let entry = self.find(name, id)?;
        let slot = entry.upload.lock().await;
        let upload = slot.as_ref().ok_or_else(|| gone(id))?;
        Ok(progress(StatusCode::NO_CONTENT, name, id, upload.len()))
    }

    pub(super) fn cancel(&self, name: &str, id: &str) -> Result<Reply, Refusal> {
        self.find(name, id)?;
        self.open().remove(id).map(|_| reply::empty(StatusCode::NO_CONTENT)).ok_or_else(|| gone(id))
    }

    fn find(&self, name: &str, id: &str) -> Result<Entry, Refusal> {
        self.open().get(id).filter(|e| e.repository == name).cloned().ok_or_else(|| gone(id))
    }

    fn stamp(&self, id: &str) {
        if let Some(entry) = self.open().get_mut(id) {
            entry.last_byte = Instant::now();
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn receive(upload: &mut BlobUpload, mut body: Incoming) -> Result<(), Refusal> {
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| Refusal::new(Code::BlobUploadInvalid, format!("the blob did not arrive whole: {e}")))?;
        if let Ok(bytes) = frame.into_data() {
            upload.write(bytes).await?;
        }
    }
    Ok(())
}

/// A chunk that says where it begins must begin where the last one ended.
fn check_order(request: &Request<Incoming>, have: u64) -> Result<(), Refusal> {
    let Some(range) = request.headers().get(CONTENT_RANGE).and_then(|r| r.to_str().ok()) else { return Ok(()) };
    let start = range.strip_prefix("bytes ").unwrap_or(range).split('-').next().and_then(|s| s.parse::<u64>().ok());
    if start == Some(have) {
        return Ok(());
    }
    Err(Refusal::new(Code::RangeInvalid, format!("{have} bytes are here; the chunk says it is {range}")))
}

fn created(name: &str, digest: &str) -> Reply {
    let mut reply = reply::empty(StatusCode::CREATED);
    header(&mut reply, "location", &format!("/v2/{name}/blobs/{digest}"));
    header(&mut reply, "docker-content-digest", digest);
    reply
}

fn progress(status: StatusCode, name: &str, id: &str, have: u64) -> Reply {
    let mut reply = reply::empty(status);
    header(&mut reply, "location", &format!("/v2/{name}/blobs/uploads/{id}"));
    // Inclusive, so an empty upload reads the same as one of one byte; that is how the specification has it.
    header(&mut reply, "range", &format!("0-{}", have.saturating_sub(1)));
    header(&mut reply, "docker-upload-uuid", id);
    reply
}

fn gone(id: &str) -> Refusal {
    Refusal::new(Code::BlobUploadUnknown, format!("there is no upload {id}; begin again"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    /// Not a range we know how to serve: the whole is a correct answer (RFC 9110, 14.2).
    Whole,
    Part {
        start: u64,
        length: u64,
    },
    Outside,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some(spec) = text.strip_prefix("bytes=") else { return Range::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Range::Whole };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.min(size.saturating_sub(1))),
        (Ok(start), Err(_)) if last.is_empty() => (start, size.saturating_sub(1)),
        // The last so many bytes.
        (Err(_), Ok(suffix)) if first.is_empty() && suffix > 0 => (size.saturating_sub(suffix), size.saturating_sub(1)),
        _ => return Range::Whole,
    };
    if start >= size {
        return Range::Outside;
    }
    Range::Part { start, length: end - start + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_by_rfc_9110() {
        let part = |start, length| Range::Part { start, length };
        for (text, want) in [
            ("bytes=0-", part(0, 10)),
            ("bytes=3-", part(3, 7)),
            ("bytes=3-4", part(3, 2)),
            ("bytes=3-99", part(3, 7)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Range::Outside),
            ("bytes=4-3", Range::Whole),
            ("lines=1-2", Range::Whole),
            ("bytes=1-2,4-5", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), want, "{text}");
        }
    }
}
