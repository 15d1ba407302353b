//! What the activator does with a request (E1.2): probes are answered, everything else is for a Revision that its headers
//! name, waits there for an instance, and goes to the sidecar of that one.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use neap_api::keys::headers as names;
use neap_logic::routing::RevisionKey;
use neap_proxy::{
    Body, Connection, Handler, Metrics, Protocol, ProxyError, Request, Response, Upstream, error, forward, headers,
};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::front;
use crate::request;
use crate::snapshot::Snapshot;
use crate::visit::Activator;

const PROBE: HeaderName = HeaderName::from_static(names::PROBE);
const HASH: HeaderName = HeaderName::from_static(names::HASH);
const KUBELET_PROBE: HeaderName = HeaderName::from_static(names::KUBELET_PROBE);
const REVISION: HeaderName = HeaderName::from_static(names::REVISION);
const NAMESPACE: HeaderName = HeaderName::from_static(names::NAMESPACE);
const NAME: &str = "activator";

/// Whether a kubelet should send requests here.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) stopping: AtomicBool,
    pub(super) connected: AtomicBool,
}

impl Health {
    fn verdict(&self) -> Result<(), &'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            Err("received SIGTERM from kubelet\n")
        } else if !self.connected.load(Ordering::Relaxed) {
            Err("the autoscaler is not connected\n")
        } else {
            Ok(())
        }
    }
}

/// One worker's handler.
pub(super) struct Front {
    pub(super) snapshots: Arc<ArcSwap<Snapshot>>,
    pub(super) upstream: Rc<Upstream>,
    pub(super) engine: Metrics,
    pub(super) health: Arc<Health>,
    /// The listener that shows metrics, by its place, and what it shows.
    pub(super) metrics: (usize, Arc<Registry>),
    /// `svc.cluster.local`
    pub(super) suffix: Arc<str>,
    /// Where sidecars take TLS, when traffic inside the cluster is encrypted.
    pub(super) secure_port: Option<u16>,
}

impl Handler for Front {
    async fn handle(&self, request: Request, connection: &Connection) -> Response {
        let arrived = Instant::now();
        if connection.listener == self.metrics.0 {
            return self.show_metrics(&request);
        }
        if let Some(answer) = self.probe(request.headers()) {
            return answer;
        }
        let grpc = error::speaks_grpc(request.headers());
        match self.serve(&mut Some(request), connection, arrived).await {
            Ok(response) => response,
            Err(error) => front::failed(&self.engine, &error, grpc),
        }
    }
}

impl Front {
    fn probe(&self, headers: &HeaderMap) -> Option<Response> {
        let by_agent =
            headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"));
        if by_agent || headers.get(&KUBELET_PROBE).is_some_and(|mark| !mark.is_empty()) {
            return Some(match self.health.verdict() {
                Ok(()) => text(StatusCode::OK, ""),
                Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, why),
            });
        }
        match headers.get(&PROBE)?.as_bytes() {
            b"" => None,
            b"probe" => Some(match headers.get(&HASH) {
                Some(hash) if !hash.is_empty() => {
                    let mut response = text(StatusCode::OK, "");
                    response.headers_mut().insert(HASH, hash.clone());
                    response
                }
                _ => text(
                    StatusCode::BAD_REQUEST,
                    "a probe request must contain a non-empty \"K-Network-Hash\" header\n",
                ),
            }),
            b"activator" => Some(text(StatusCode::OK, NAME)),
            other => {
                let told = format!("unexpected probe header value: {}\n", String::from_utf8_lossy(other));
                Some(text(StatusCode::BAD_REQUEST, told))
            }
        }
    }

    async fn serve(
        &self,
        place: &mut Option<Request>,
        connection: &Connection,
        arrived: Instant,
    ) -> Result<Response, ProxyError> {
        let request = place.as_mut().expect("a request to serve");
        let h2 = request.version() == Version::HTTP_2;
        headers::canonical(request)?;
        let key = self.revision_of(request.headers());
        let gate = key.as_ref().and_then(|key| self.snapshots.load().revisions.get(key).cloned());
        let Some(gate) = gate else {
            let host = key.map_or_else(|| authority(request), |key| format!("revision {key}"));
            return Err(ProxyError::NoRoute { host });
        };
        request::finish_for_sidecar(request.headers_mut(), &connection.peer_value);
        let limits = gate.settings.limits;
        let protocol = if h2 { Protocol::H2c } else { Protocol::Http1 };
        let mut activator = Activator::before_sidecar(gate, arrived, protocol, self.secure_port);
        forward(&self.upstream, &mut activator, place, &limits, arrived).await
    }

    /// Named by headers, else by the host `REVISION.NAMESPACE.svc.cluster.local`.
    fn revision_of(&self, headers: &HeaderMap) -> Option<RevisionKey> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).filter(|v| !v.is_empty());
        if let (Some(namespace), Some(name)) = (text(NAMESPACE), text(REVISION)) {
            return Some(RevisionKey::new(namespace, name));
        }
        let host = text(header::HOST)?;
        let host = host.split_once(':').map_or(host, |(host, _port)| host);
        let (name, rest) = host.split_once('.')?;
        let (namespace, suffix) = rest.split_once('.')?;
        (suffix == &*self.suffix).then(|| RevisionKey::new(namespace, name))
    }

    fn show_metrics(&self, request: &Request) -> Response {
        if request.uri().path() != "/metrics" {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        let mut out = String::new();
        encode(&mut out, &self.metrics.1).expect("a string takes everything");
        let mut response = text(StatusCode::OK, out);
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

fn authority(request: &Request) -> String {
    headers::authority(request).unwrap_or_default().to_owned()
}

fn text(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response {
    let mut response = http::Response::new(Body::full(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
