//! This machine's own registry: the OCI distribution protocol over the runtime's image store.
//!
//! What is pushed here runs at once, because there is only one store. The registry decides nothing about images: it
//! translates HTTP to the store's calls and the store's answers to the specification's codes. It has no users of its own:
//! `access` tells this machine from others, and the platform's tokens from guesses.

mod access;
mod blobs;
mod inventory;
mod load;
mod manifests;
mod reply;
mod route;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use neap_runtime::image::Images;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use access::Ends;
pub use access::{Access, Check};
use blobs::Uploads;
use reply::{Code, Refusal, Reply};
use route::{Route, parse};

/// Connections at once. Docker and skopeo open about six each; beyond this new ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 256;
/// A client that sends no complete request head for this long is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// After the shutdown signal running requests get this long.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after `accept` failed (out of file descriptors, most likely), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then lets running requests end within a few seconds. Only this machine may push.
pub async fn serve(listener: TcpListener, images: Images, shutdown: CancellationToken) {
    serve_with(listener, images, Access::default(), shutdown).await;
}

/// Like [`serve`], with other rules.
pub async fn serve_with(listener: TcpListener, images: Images, access: Access, shutdown: CancellationToken) {
    let registry = Arc::new(Registry { images, access, uploads: Uploads::default() });
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
        };
        let accepted = accepted.and_then(|(stream, peer)| Ok((Ends { peer, own: stream.local_addr()? }, stream)));
        let (ends, stream) = match accepted {
            Ok(both) => both,
            Err(error) => {
                tracing::warn!(%error, "the registry cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (registry, shutdown) = (registry.clone(), shutdown.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let registry = registry.clone();
                async move { Ok::<_, Infallible>(registry.answer(ends, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                // Clients hang up whenever they like.
                tracing::debug!(%error, "a connection to the registry ended early");
            }
            drop(slot);
        });
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!("the registry cut off requests that did not end in time");
    }
}

struct Registry {
    images: Images,
    access: Access,
    uploads: Uploads,
}

impl Registry {
    async fn answer(&self, ends: Ends, request: Request<Incoming>) -> Reply {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let reply = match self.dispatch(ends, request).await {
            Ok(reply) => reply,
            Err(refusal) => {
                if refusal.is_ours() {
                    tracing::warn!(%method, path, error = %refusal.message, "the registry failed");
                }
                refusal.reply()
            }
        };
        tracing::debug!(%method, path, status = reply.status().as_u16(), "registry");
        reply
    }

    async fn dispatch(&self, ends: Ends, request: Request<Incoming>) -> Result<Reply, Refusal> {
        self.access.admit(ends, request.method(), request.uri().path(), request.headers()).await?;
        let (images, uploads) = (&self.images, &self.uploads);
        let route = parse(request.uri().path())?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let method = request.method().clone();
        match (route, method.as_str()) {
            (Route::Base, "GET" | "HEAD") => Ok(reply::json(&serde_json::json!({}))),
            (Route::Catalog, "GET") => manifests::catalog(images, &query),
            (Route::Tags { name }, "GET") => manifests::tags(images, &name, &query),
            (Route::Manifest { name, reference }, "GET" | "HEAD") => {
                manifests::get(images, &name, &reference, method == Method::HEAD).await
            }
            (Route::Manifest { name, reference }, "PUT") => {
                manifests::put(images, &name, &reference, &query, request.into_body()).await
            }
            (Route::Manifest { name, reference }, "DELETE") => manifests::delete(images, &name, &reference).await,
            (Route::Referrers { name, digest }, "GET") => manifests::referrers(images, &name, &digest, &query).await,
            (Route::Blob { digest, .. }, "GET" | "HEAD") => blobs::get(images, &digest, &request).await,
            (Route::Blob { digest, .. }, "DELETE") => blobs::delete(images, &digest).await,
            (Route::Uploads { name }, "POST") => uploads.begin(images, &name, &query, request).await,
            (Route::Upload { name, id }, "PATCH") => uploads.append(&name, &id, request).await,
            (Route::Upload { name, id }, "PUT") => uploads.finish(&name, &id, &query, request).await,
            (Route::Upload { name, id }, "GET") => uploads.status(&name, &id).await,
            (Route::Upload { name, id }, "DELETE") => uploads.cancel(&name, &id),
            (Route::Load, "POST") => load::load(images, &query, request.into_body()).await,
            (Route::Images, "GET") => inventory::list(images).await,
            (Route::Images, "DELETE") => inventory::remove(images, &query).await,
            (_, method) => Err(Refusal::new(Code::Unsupported, format!("{method} is not offered here"))),
        }
    }
}

/// The query's parameters, decoded; the last of a name wins.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    /// The last value of that name.
    fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// `%3A` and `+`; what is malformed stays as it is and is refused where it is used.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        rest = match (first, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                &tail[2..]
            }
            (b'+', _) => {
                bytes.push(b' ');
                tail
            }
            _ => {
                bytes.push(first);
                tail
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
