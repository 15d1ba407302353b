//! `POST /neap/load`: a whole archive (`docker save`, or a tar of an OCI layout) in one request, for those who have a
//! file and no client that pushes. `?name=` replaces the names in the archive.

use std::io;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use neap_runtime::image::{Images, StoreError};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::Query;
use super::reply::{self, Code, Refusal, Reply};

pub(super) async fn load(images: &Images, query: &Query, body: Incoming) -> Result<Reply, Refusal> {
    // The store reads as archives are read, blocking; a pipe stands between, so that nothing is kept in memory.
    let (reader, writer) =
        io::pipe().map_err(|error| Refusal::new(Code::Unknown, format!("no pipe can be had: {error}")))?;
    let feeding = feed(body, writer.into());
    let loading = images.load(reader, query.get("name").map(str::to_owned));
    let (fed, loaded) = tokio::join!(feeding, loading);
    let loaded = loaded.map_err(|error| refuse(&error, fed.as_ref().err()))?;
    let names: Vec<&str> = loaded.iter().map(|image| image.name.as_str()).collect();
    Ok(reply::json(&serde_json::json!({ "images": names })))
}

async fn feed(mut body: Incoming, pipe: std::os::fd::OwnedFd) -> io::Result<()> {
    let mut pipe = pipe::Sender::from_owned_fd(pipe)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        if let Some(bytes) = frame.data_ref() {
            match pipe.write_all(bytes).await {
                // The store has read all it wants, or has said why it stopped.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
    }
    Ok(())
}

/// A body that broke off looks like a truncated archive; the first is the cause of the second.
fn refuse(error: &StoreError, broken: Option<&io::Error>) -> Refusal {
    match broken {
        Some(cause) => Refusal::new(Code::SizeInvalid, format!("the archive did not arrive whole: {cause}")),
        None => Refusal::new(Code::ManifestInvalid, crate::report::chain(error)),
    }
}
