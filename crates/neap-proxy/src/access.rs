//! The access log hook: one record per request, after its answer has ended.
//!
//! The engine only measures; how a record is rendered and where it goes is the hook's business.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use crate::body::{OnEnd, Outcome};
use crate::handler::{Connection, Request, Response};
use crate::time::now;

/// What is known of a request that has ended.
#[derive(Debug, Clone)]
pub struct Record {
    /// The client.
    pub peer: SocketAddr,
    /// Whether it spoke TLS.
    pub tls: bool,
    /// The method.
    pub method: Method,
    /// Host and target as asked for.
    pub host: String,
    /// Path and query.
    pub uri: Uri,
    /// The protocol.
    pub version: Version,
    /// The status.
    pub status: StatusCode,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// From the head of the request to the end of the answer.
    pub latency: Duration,
    /// How the answer ended.
    pub outcome: Outcome,
}

/// Takes records. Called on a worker's thread: it must not block.
pub trait AccessLog: Send + Sync + 'static {
    /// One request has ended.
    fn record(&self, record: Record);
}

/// Collects one record.
pub(crate) struct Observation {
    log: std::sync::Arc<dyn AccessLog>,
    arrived: Instant,
    record: Option<Record>,
}

impl Observation {
    pub(crate) fn begin(log: &std::sync::Arc<dyn AccessLog>, request: &Request, connection: &Connection) -> Self {
        let record = Record {
            peer: connection.peer,
            tls: connection.tls,
            method: request.method().clone(),
            host: crate::headers::authority(request).unwrap_or_default().to_owned(),
            uri: request.uri().clone(),
            version: request.version(),
            status: StatusCode::OK,
            bytes: 0,
            latency: Duration::ZERO,
            outcome: Outcome::Dropped,
        };
        Self { log: log.clone(), arrived: now(), record: Some(record) }
    }

    pub(crate) fn watch(mut self, response: Response) -> Response {
        if let Some(record) = &mut self.record {
            record.status = response.status();
        }
        response.map(|body| body.on_end(self))
    }
}

impl OnEnd for Observation {
    fn on_end(&mut self, outcome: Outcome, bytes: u64) {
        if let Some(mut record) = self.record.take() {
            record.outcome = outcome;
            record.bytes = bytes;
            record.latency = now().saturating_duration_since(self.arrived);
            self.log.record(record);
        }
    }
}
