//! The audit log: who asked what and how it was answered, a line of JSON for each stage of a request, in the words of
//! `audit.k8s.io/v1`.
//!
//! A request never waits for the log: lines go through a bounded queue, and what does not fit is dropped, counted and
//! said. Bodies are noted only where the policy says so, and never those of kinds that hold secrets.

use crate::codec;
use crate::metadata;
use crate::request::{self, Resource, Target};
use crate::server::{Caller, Now};
use crate::status::ApiError;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Lines that may wait to be written. At a kilobyte each some megabytes (with bodies, a hundred at the most); a disk that is behind by more than this will
/// not catch up within a burst.
pub const QUEUE: usize = 8 * 1024;
/// Lines written with one call.
const BATCH: usize = 256;
/// Bytes of a body up to which it is noted. With the queue's length this bounds what waits.
const BODY: usize = 16 * 1024;
/// Bytes of an address that are noted.
const ADDRESS: usize = 2 * 1024;
/// What is noted as the code where nobody was left to be answered.
const NOBODY: u16 = 499;

/// How much is noted of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Who, what, when, and the outcome.
    #[default]
    Metadata,
    /// And what was sent, except for kinds that hold secrets.
    /// A body that is too long is left out, and the line says so by `requestObject` being null.
    Request,
}

/// Which requests are noted, and how much of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    pub level: Level,
    /// Requests of this process' own controllers too: many times as many as everybody else's.
    pub inside: bool,
}

/// Where the server puts its lines.
#[derive(Clone)]
pub struct Audit(Arc<Queue>);

struct Queue {
    policy: Policy,
    lines: mpsc::Sender<Bytes>,
    dropped: AtomicU64,
    /// Whether the last line was dropped; each change is said once.
    failing: AtomicBool,
}

/// The other end: what is to be written.
pub struct Lines(mpsc::Receiver<Bytes>);

/// A queue of [`QUEUE`] lines.
pub fn queue(policy: Policy) -> (Audit, Lines) {
    let (lines, receiver) = mpsc::channel(QUEUE);
    let queue = Queue { policy, lines, dropped: AtomicU64::new(0), failing: AtomicBool::new(false) };
    (Audit(Arc::new(queue)), Lines(receiver))
}

impl Audit {
    /// Lines that found the queue full, or nobody who writes.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    fn offer(&self, line: &Value) {
        let mut bytes = serde_json::to_vec(line).expect("a JSON value is serialisable");
        bytes.push(b'\n');
        match self.0.lines.try_send(bytes.into()) {
            Ok(()) => {
                if self.0.failing.load(Ordering::Relaxed) && self.0.failing.swap(false, Ordering::Relaxed) {
                    tracing::warn!(dropped = self.dropped(), "the audit log is written again; lines were dropped");
                }
            }
            Err(error) => {
                let dropped = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                if !self.0.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(dropped, %error, "the audit log cannot keep up; lines are dropped from now on");
                }
            }
        }
    }
}

impl Lines {
    /// The next line, with its newline; `None` when the server is gone.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }

    /// Writes until the server is gone or `stop`, and then what is still waiting.
    ///
    /// # Errors
    /// The writer's. What it was given last is lost; what comes waits for another writer as far as there is room, beyond
    /// that it is dropped, which [`Audit::dropped`] counts.
    pub async fn write_to(&mut self, mut out: impl AsyncWrite + Unpin, stop: CancellationToken) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let taken = tokio::select! {
                biased;
                taken = self.0.recv_many(&mut batch, BATCH) => taken,
                () = stop.cancelled() => {
                    // What comes from now on finds the queue closed.
                    self.0.close();
                    self.0.recv_many(&mut batch, BATCH).await
                }
            };
            if taken == 0 {
                return out.flush().await;
            }
            out.write_all(&batch.concat()).await?;
            batch.clear();
            if self.0.is_empty() {
                out.flush().await?;
            }
        }
    }
}

/// One request that is noted. One that is dropped, because the client went away, is noted too: it may have been done.
pub(crate) struct Record {
    audit: Audit,
    line: Value,
    now: Now,
    /// What is said of it may show what it holds.
    is_secret: bool,
    is_over: bool,
}

impl Record {
    /// Notes that a request came; `None` where its kind of caller is not noted.
    pub(crate) fn begin(
        audit: &Audit,
        request: &Request<Bytes>,
        caller: &Caller,
        id: impl FnOnce() -> String,
        clock: &Now,
    ) -> Option<Self> {
        if caller.is_inside() && !audit.0.policy.inside {
            return None;
        }
        let (headers, uri, now) = (request.headers(), request.uri(), clock());
        let target = request::target(uri.path());
        let watch = || request::query(uri.query().unwrap_or("")).watch;
        let verb = match &target {
            Target::Resource(at) => request::verb(request.method(), at, watch()).ok().map(request::Verb::as_str),
            Target::Other(_) => None,
        };
        let level = match (&target, audit.0.policy.level) {
            (Target::Resource(at), Level::Request) if !is_secret(at) => "Request",
            _ => "Metadata",
        };
        let mut line = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": level,
            "auditID": id(),
            "stage": "RequestReceived",
            "requestURI": cut(uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str)),
            "verb": verb.map_or_else(|| request.method().as_str().to_lowercase(), str::to_owned),
            "user": user(caller.user.as_ref()),
            "sourceIPs": sources(headers, caller.source),
            "userAgent": cut(&text(headers, "user-agent").unwrap_or_default()),
            "requestReceivedTimestamp": micros(now),
            "stageTimestamp": micros(now),
        });
        if let Some(name) = text(headers, "impersonate-user") {
            let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(readable).collect();
            line["impersonatedUser"] = json!({"username": name, "groups": groups});
        }
        if let Target::Resource(at) = &target {
            line["objectRef"] = reference(at);
        }
        audit.offer(&line);
        if level == "Request" && !request.body().is_empty() {
            let fits = request.body().len() <= BODY;
            let body = fits.then(|| {
                codec::parse(headers, request.body()).or_else(|_| codec::yaml(request.body(), &mut Vec::new()))
            });
            line["requestObject"] = body.and_then(Result::ok).unwrap_or_default();
        }
        if verb == Some("create") && line.pointer("/objectRef/name").is_none() {
            let name = name_of(request.body());
            if !name.is_empty() {
                line["objectRef"]["name"] = name.into();
            }
        }
        let is_secret = matches!(&target, Target::Resource(at) if is_secret(at));
        Some(Self { audit: audit.clone(), line, now: clock.clone(), is_secret, is_over: false })
    }

    /// Notes how a request was refused or failed.
    pub(crate) fn failed(mut self, error: &ApiError) {
        let status = error.status();
        let denied = matches!(error, ApiError::Forbidden { .. } | ApiError::ForbiddenPath(_));
        let message = if self.is_secret { "left out" } else { cut(&status.message) };
        let outcome = json!({"metadata": {}, "status": "Failure", "message": message,
            "reason": status.reason, "code": status.code});
        let decided = !matches!(error, ApiError::Unauthorized);
        self.end(outcome, decided.then_some(!denied));
    }

    /// Notes an answer that is complete.
    pub(crate) fn answered(mut self, code: u16) {
        self.end(json!({"metadata": {}, "code": code}), Some(true));
    }

    /// Notes that an answer began which may go on for long, and later its end.
    pub(crate) fn streams<B>(mut self, response: Response<B>) -> Response<Streamed<B>> {
        let code = response.status().as_u16();
        self.stage("ResponseStarted", json!({"metadata": {}, "code": code}), Some(true));
        response.map(|body| Streamed { body, _end: End { record: Some(self), code } })
    }

    fn end(&mut self, outcome: Value, allowed: Option<bool>) {
        self.is_over = true;
        self.stage("ResponseComplete", outcome, allowed);
    }

    fn stage(&mut self, stage: &str, outcome: Value, allowed: Option<bool>) {
        self.line["stage"] = stage.into();
        self.line["responseStatus"] = outcome;
        self.line["stageTimestamp"] = micros((self.now)()).into();
        if let Some(allowed) = allowed {
            let decision = if allowed { "allow" } else { "forbid" };
            self.line["annotations"] = json!({"authorization.k8s.io/decision": decision});
        }
        self.audit.offer(&self.line);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_over {
            let why = "the request ended before it was answered";
            self.end(json!({"metadata": {}, "status": "Failure", "message": why, "code": NOBODY}), None);
        }
    }
}

/// A body whose end, however it comes, is noted.
pub(crate) struct Streamed<B> {
    body: B,
    _end: End,
}

struct End {
    record: Option<Record>,
    code: u16,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            record.answered(self.code);
        }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for Streamed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Kinds whose bodies are nobody's business who reads logs.
fn is_secret(at: &Resource) -> bool {
    matches!(at.plural.as_str(), "secrets" | "tokenreviews") || at.subresource.as_deref() == Some("token")
}

fn reference(at: &Resource) -> Value {
    let mut out = json!({"resource": at.plural, "apiVersion": at.version});
    let mut put = |key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            out[key] = value.into();
        }
    };
    put("namespace", at.namespace.as_deref());
    put("name", at.name.as_deref());
    put("apiGroup", Some(&at.group));
    put("subresource", at.subresource.as_deref());
    out
}

fn user(user: Option<&UserInfo>) -> Value {
    let Some(user) = user else { return json!({}) };
    let mut out = json!({"username": user.username, "groups": user.groups});
    if let Some(uid) = &user.uid {
        out["uid"] = uid.as_str().into();
    }
    if let Some(extra) = &user.extra {
        out["extra"] = json!(extra);
    }
    out
}

/// Whoever the proxies in between say, and who spoke to us last.
fn sources(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let told = text(headers, "x-forwarded-for").unwrap_or_default();
    let told = told.split(',').map(str::trim);
    let told = told.filter(|ip| ip.parse::<IpAddr>().is_ok()).map(str::to_owned);
    let mut all: Vec<String> = told.collect();
    all.extend(peer.map(|ip| ip.to_canonical().to_string()));
    all.dedup();
    all
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(readable)
}

fn readable(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(ADDRESS)]
}

/// The name in a body, read without building the rest.
fn name_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        name: String,
    }
    serde_json::from_slice::<Object>(body).map(|o| o.metadata.name).unwrap_or_default()
}

fn micros(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// A fresh identity for a request.
pub(crate) fn id(rng: &mut fastrand::Rng) -> String {
    metadata::random_uid(rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth;

    fn begun(audit: &Audit, request: Request<&str>, caller: &Caller) -> Option<Record> {
        let clock: Now = Arc::new(|| Timestamp::from_millisecond(1).unwrap());
        let request = request.map(|body| Bytes::copy_from_slice(body.as_bytes()));
        Record::begin(audit, &request, caller, || "id".to_owned(), &clock)
    }

    #[tokio::test]
    async fn what_is_noted_of_a_request() {
        let (audit, mut lines) = queue(Policy { level: Level::Request, inside: false });
        let mut caller = Caller::outside(Some(auth::user("ann", &["devs"])));
        caller.source = "127.0.0.1".parse().ok();
        let post = |path: &str, body| {
            Request::post(path).header("user-agent", "kubectl/v1").header("x-forwarded-for", "10.0.0.9, x").body(body)
        };
        let path = "/apis/ex.dev/v1/namespaces/ns/widgets?dryRun=All";
        let sent = post(path, r#"{"metadata":{"name":"w"}}"#).unwrap();
        begun(&audit, sent, &caller).unwrap().answered(201);
        let first: Value = serde_json::from_slice(&lines.next().await.unwrap()).unwrap();
        assert_eq!(
            first,
            json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Request", "auditID": "id",
                "stage": "RequestReceived", "requestURI": path, "verb": "create",
                "user": {"username": "ann", "groups": ["devs"]}, "sourceIPs": ["10.0.0.9", "127.0.0.1"],
                "userAgent": "kubectl/v1",
                "objectRef": {"resource": "widgets", "namespace": "ns", "apiGroup": "ex.dev", "apiVersion": "v1"},
                "requestReceivedTimestamp": "1970-01-01T00:00:00.001000Z",
                "stageTimestamp": "1970-01-01T00:00:00.001000Z"})
        );
        let last: Value = serde_json::from_slice(&lines.next().await.unwrap()).unwrap();
        assert_eq!(last["stage"], "ResponseComplete");
        assert_eq!(last["stageTimestamp"], "1970-01-01T00:00:00.001000Z");
        assert_eq!(last["objectRef"]["name"], "w");
        assert_eq!(last["requestObject"], json!({"metadata": {"name": "w"}}));
        assert_eq!(last["responseStatus"], json!({"metadata": {}, "code": 201}));

        let secret = post("/api/v1/namespaces/ns/secrets", r#"{"metadata":{"name":"s"},"data":{"k":"dg=="}}"#).unwrap();
        begun(&audit, secret, &caller).unwrap().failed(&ApiError::NoSuchPath);
        lines.next().await;
        let last: Value = serde_json::from_slice(&lines.next().await.unwrap()).unwrap();
        assert_eq!((&last["level"], last.get("requestObject")), (&json!("Metadata"), None));
        assert_eq!(last["responseStatus"]["code"], 404);

        let large = format!("{{\"metadata\":{{\"name\":\"{}\"}}}}", "x".repeat(BODY));
        drop(begun(&audit, post(path, large.as_str()).unwrap(), &caller));
        lines.next().await;
        let last: Value = serde_json::from_slice(&lines.next().await.unwrap()).unwrap();
        assert_eq!((&last["requestObject"], &last["responseStatus"]["code"]), (&Value::Null, &json!(NOBODY)));

        let inside = Caller::inside(auth::admin("controller"));
        assert!(begun(&audit, post("/api/v1/pods", "").unwrap(), &inside).is_none());
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let (audit, lines) = queue(Policy::default());
        for n in 0..QUEUE + 3 {
            audit.offer(&json!(n));
        }
        assert_eq!(audit.dropped(), 3);
        let (stop, mut out) = (CancellationToken::new(), Vec::new());
        stop.cancel();
        let mut lines = lines;
        lines.write_to(&mut out, stop).await.unwrap();
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), QUEUE, "what waits is written at the end");
        audit.offer(&json!("late"));
        assert_eq!(audit.dropped(), 4);
    }

    #[tokio::test]
    async fn after_a_writer_that_failed_another_goes_on() {
        let (audit, mut lines) = queue(Policy::default());
        audit.offer(&json!("lost"));
        let (reader, writer) = tokio::io::duplex(1);
        drop(reader);
        lines.write_to(writer, CancellationToken::new()).await.expect_err("nobody takes it");
        audit.offer(&json!("kept"));
        let (stop, mut out) = (CancellationToken::new(), Vec::new());
        stop.cancel();
        lines.write_to(&mut out, stop).await.expect("there is room");
        assert_eq!(String::from_utf8_lossy(&out), ""kept"
");
    }
}
