//! Where lines go: an endpoint that is spoken to in HTTP, or files. One batch at a time; what became of it is the answer.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::answer::{Verdict, judge};
use super::batch::Batch;
use super::files::Files;
use super::{Settings, Target, loki, otlp};

/// Bytes of an answer that are read.
const ANSWER: usize = 64 * 1024;
/// Characters of an answer that are repeated to people.
const SHOWN: usize = 300;

/// Why lines cannot be sent there at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the authorities in logs.ca cannot be read")]
    Authorities(#[source] rustls::pki_types::pem::Error),
    #[error("an authority in logs.ca is not usable")]
    Authority(#[source] rustls::Error),
    #[error("this machine trusts no authority, and logs.ca names none")]
    NoAuthority,
    #[error("{0:?} is no URL")]
    Url(String),
    #[error("the header {0} cannot be sent")]
    Header(String),
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All but so many, for which there is a reason.
    Arrived {
        refused: u64,
        why: String,
    },
    Again {
        after: Option<Duration>,
        why: String,
    },
    TooLarge,
    Refused {
        why: String,
    },
}

#[derive(Clone)]
pub(super) enum Sink {
    Http(Arc<Endpoint>),
    Files(Arc<Mutex<Files>>),
}

pub(super) struct Endpoint {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    protocol: Protocol,
    gzip: bool,
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    OtlpProtobuf,
    OtlpJson,
    Loki { metadata: bool },
}

impl Sink {
    /// Reads certificates from the disk; connects to nothing.
    pub(super) fn open(settings: &Settings, target: &Target) -> Result<Self, OpenError> {
        let (url, protocol) = match target {
            Target::Files(files) => return Ok(Self::Files(Arc::new(Mutex::new(Files::new(files.clone()))))),
            Target::Otlp { url, json: false } => (url, Protocol::OtlpProtobuf),
            Target::Otlp { url, json: true } => (url, Protocol::OtlpJson),
            Target::Loki { url, structured_metadata } => (url, Protocol::Loki { metadata: *structured_metadata }),
        };
        let uri: Uri = url.parse().map_err(|_| OpenError::Url(url.clone()))?;
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static("neap"));
        for (name, value) in &settings.headers {
            let wrong = || OpenError::Header(name.clone());
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?, value);
        }
        let type_ = if protocol == Protocol::OtlpProtobuf { "application/x-protobuf" } else { "application/json" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(type_));
        if settings.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(settings.timeout));
        let roots = roots(&settings.ca, uri.scheme_str() == Some("https"))?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider speaks them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .pool_timer(TokioTimer::new())
            .build(connector.wrap_connector(tcp));
        let (gzip, timeout) = (settings.gzip, settings.timeout);
        Ok(Self::Http(Arc::new(Endpoint { client, uri, headers, protocol, gzip, timeout })))
    }

    /// Whether what has begun goes on although nobody waits for it.
    pub(super) fn is_files(&self) -> bool {
        matches!(self, Self::Files(_))
    }

    /// Sends a batch once. Dropping the future breaks off, but for files.
    pub(super) fn send(&self, batch: Arc<Batch>, now: Timestamp) -> BoxFuture<'static, Outcome> {
        match self.clone() {
            Self::Http(endpoint) => Box::pin(async move { endpoint.send(batch, now).await }),
            Self::Files(files) => Box::pin(async move {
                let write = move || {
                    let now = SystemTime::from(now);
                    files.lock().unwrap_or_else(PoisonError::into_inner).write(&batch.records, now)
                };
                match tokio::task::spawn_blocking(write).await {
                    Ok(Ok(())) => Outcome::Arrived { refused: 0, why: String::new() },
                    Ok(Err(error)) => Outcome::Again { after: None, why: error.to_string() },
                    Err(error) => Outcome::Again { after: None, why: error.to_string() },
                }
            }),
        }
    }
}

/// What the machine trusts and what the settings add.
fn roots(ca: &str, wanted: bool) -> Result<rustls::RootCertStore, OpenError> {
    let mut store = rustls::RootCertStore::empty();
    if !wanted {
        return Ok(store);
    }
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for root in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        store.add(root.map_err(OpenError::Authorities)?).map_err(OpenError::Authority)?;
    }
    if store.is_empty() { Err(OpenError::NoAuthority) } else { Ok(store) }
}

impl Endpoint {
    async fn send(&self, batch: Arc<Batch>, now: Timestamp) -> Outcome {
        match tokio::time::timeout(self.timeout, self.exchange(batch, now)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => Outcome::Again { after: None, why },
            Err(_) => Outcome::Again { after: None, why: format!("no answer within {:?}", self.timeout) },
        }
    }

    async fn exchange(&self, batch: Arc<Batch>, now: Timestamp) -> Result<Outcome, String> {
        let (protocol, gzip) = (self.protocol, self.gzip);
        // Up to milliseconds of work: not among the tasks that answer somebody.
        let body = tokio::task::spawn_blocking(move || encode(&batch, protocol, gzip)).await;
        let body = body.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request).await.map_err(|error| crate::report::chain(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER).collect().await.map(|all| all.to_bytes()).unwrap_or_default();
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let why = || format!("it answered {}{}", head.status, shown(&body));
        Ok(match judge(head.status.as_u16(), retry_after, now) {
            Verdict::Arrived => {
                let is_json = head.headers.get(CONTENT_TYPE).is_some_and(is_json);
                let otlp = !matches!(protocol, Protocol::Loki { .. });
                let (refused, why) = otlp.then(|| otlp::rejected(&body, is_json)).flatten().unwrap_or_default();
                Outcome::Arrived { refused, why: shown(why.as_bytes()).trim_start_matches(": ").to_owned() }
            }
            Verdict::Again(after) => Outcome::Again { after, why: why() },
            Verdict::TooLarge => Outcome::TooLarge,
            Verdict::Refused => Outcome::Refused { why: why() },
        })
    }
}

/// Whether a content type is JSON, whatever parameters follow it.
fn is_json(type_: &HeaderValue) -> bool {
    let essence = type_.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().to_ascii_lowercase().ends_with(b"json")
}

fn encode(batch: &Batch, protocol: Protocol, gzip: bool) -> io::Result<Vec<u8>> {
    let plain = match protocol {
        Protocol::OtlpProtobuf => otlp::protobuf(&batch.records),
        Protocol::OtlpJson => otlp::json(&batch.records),
        Protocol::Loki { metadata } => loki::json(&batch.records, metadata),
    };
    if !gzip {
        return Ok(plain);
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain)?;
    encoder.finish()
}

/// An answer's own words, in one short line.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_type() {
        let check = |type_: &'static str, want| assert_eq!(is_json(&HeaderValue::from_static(type_)), want, "{type_}");
        check("application/json", true);
        check("application/JSON; charset=utf-8", true);
        check("application/problem+json ; a=b", true);
        check("application/x-protobuf", false);
        check("text/plain; for=json", false);
    }
}
