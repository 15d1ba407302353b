//! Requests that nobody means well with: the transcript of `conformance/kubernetes`, bent at random. Whatever comes, there
//! is an answer in Kubernetes' form, nothing panics, and the server goes on.
//!
//! A short run with a fixed seed is part of the tests; `HOSTILE_SECONDS=600` makes a long one, whose seed is printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]
#![expect(clippy::disallowed_methods, reason = "how long to go on is no matter of the code under test")]

mod kinds;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use neap_apiserver::{ApiServer, Caller, Config, Registry, auth};
use neap_store::Store;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests of a short run.
const SHORT: usize = 6_000;
/// Requests after which the server is thrown away: what they leave behind shall not grow without end.
const LIFE: usize = 2_000;
const MEDIA: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;as=Table;g=meta.k8s.io;v=v1",
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    "text/\u{7f}",
    "",
];
/// What random bytes rarely make by themselves.
const WORDS: &[&str] = &[
    "null",
    "[]",
    "{}",
    "-1",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "..",
    "%",
    "%00",
    "%ff",
    "/",
    "?",
    "&",
    "=",
    ",",
    "\\",
    "\u{0}",
    "$patch",
    "delete",
    "metadata",
    "labels",
    "ns",
    "é",
    "~1",
    "~2",
    "k8s-magic\u{0}",
    ": ",
    "\n",
    "- ",
    "&a *a",
];

struct Line {
    verb: String,
    path: String,
    body: String,
}

/// The requests of the transcript, with its names put in.
fn transcript() -> Vec<Line> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/kubernetes/transcript");
    let mut out = Vec::new();
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let text = std::fs::read_to_string(file.path()).unwrap();
        for line in text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase())) {
            let mut words = line.splitn(3, ' ').map(|word| {
                word.replace("$core", "/api/v1/namespaces/ns")
                    .replace("$apps", "/apis/apps/v1/namespaces/ns")
                    .replace("$rbac", "/apis/rbac.authorization.k8s.io/v1/namespaces/ns")
                    .replace("$diff", "/apis/ex.dev/v1/namespaces/ns")
                    .replace("$ns", "ns")
                    .replace("diff.example.com", "ex.dev")
            });
            let mut next = || words.next().unwrap_or_default();
            out.push(Line { verb: next(), path: next(), body: next() });
        }
    }
    out.sort_by(|a, b| (&a.path, &a.body).cmp(&(&b.path, &b.body)));
    assert!(out.len() > 500, "the transcript was not found");
    out
}

fn bend(random: &mut Rng, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.usize(0..4) {
        let at = random.usize(0..=bytes.len());
        let to = random.usize(at..=bytes.len().min(at + 20));
        match random.u8(0..5) {
            0 => drop(bytes.drain(at..to)),
            1 => {
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            2 => drop(bytes.splice(at..to, WORDS[random.usize(..WORDS.len())].bytes())),
            3 => bytes.insert(at, random.u8(..)),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

async fn server() -> ApiServer {
    let registry = Registry::new();
    registry.register_all(&kinds::kubernetes()).unwrap();
    registry.register(&kinds::widgets()).unwrap();
    let now: neap_apiserver::Now = Arc::new(|| Timestamp::from_second(1_767_225_600).unwrap());
    let server = ApiServer::new(Store::memory(), registry, Config::new(now, 1));
    let namespace = json!({"metadata": {"name": "ns"}}).to_string();
    assert_eq!(ask(&server, Request::post("/api/v1/namespaces").body(namespace.into()).unwrap()).await.0, 201);
    server
}

async fn ask(server: &ApiServer, request: Request<Bytes>) -> (u16, Option<String>, Bytes) {
    let response = server.answer(request.map(Full::new), Caller::outside(Some(auth::admin("mallory")))).await;
    let media = response.headers().get("content-type").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let code = response.status().as_u16();
    // A watch goes on: its first lines are enough.
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_millis(1), body.frame()).await {
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    (code, media, bytes.into())
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_is_answered() {
    let lines = transcript();
    let seconds: Option<u64> = std::env::var("HOSTILE_SECONDS").ok().and_then(|s| s.parse().ok());
    let seed = if seconds.is_some() { Rng::new().u64(..) } else { 7 };
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let begun = Instant::now();
    let mut count = 0;
    let mut api = server().await;
    while seconds.map_or(count < SHORT, |s| begun.elapsed() < Duration::from_secs(s)) {
        count += 1;
        if count % LIFE == 0 {
            assert_eq!(ask(&api, Request::get("/readyz").body(Bytes::new()).unwrap()).await.0, 200);
            api = server().await;
        }
        let line = &lines[random.usize(..lines.len())];
        let other = &lines[random.usize(..lines.len())];
        let (method, media) = match line.verb.as_str() {
            "MERGE" => (Method::PATCH, MEDIA[2]),
            "JSONPATCH" => (Method::PATCH, MEDIA[3]),
            "STRATEGIC" => (Method::PATCH, MEDIA[4]),
            "APPLY" => (Method::PATCH, MEDIA[5]),
            "WATCH" => (Method::GET, MEDIA[0]),
            verb => (verb.parse().unwrap(), MEDIA[0]),
        };
        let path = if random.u8(..) < 128 { line.path.clone().into_bytes() } else { bend(&mut random, &line.path) };
        let body = if random.u8(..) < 230 { &line.body } else { &other.body };
        let body = bend(&mut random, body);
        let media = if random.u8(..) < 230 { media } else { MEDIA[random.usize(..MEDIA.len())] };
        let mut request = Request::builder().method(method.clone()).uri(&path[..]).header("content-type", media);
        if random.u8(..) < 40 {
            request = request.header("accept", MEDIA[random.usize(..MEDIA.len())]);
        }
        // What is no HTTP does not get this far.
        let Ok(request) = request.body(Bytes::from(body.clone())) else { continue };
        let (code, media, answer) = ask(&api, request).await;
        let told = || {
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(400)]).into_owned();
            let (path, body) = (String::from_utf8_lossy(&path), String::from_utf8_lossy(&body));
            format!("seed {seed}, request {count}: {method} {path} {body}\n{code} {shown}")
        };
        assert!((200..600).contains(&code), "{}", told());
        if code >= 400 && media.as_deref() == Some("application/json") {
            let status: Value = serde_json::from_slice(&answer).unwrap_or_else(|e| panic!("{e}: {}", told()));
            assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{}", told());
            // The one failure that means a fault of ours; a custom resource without replicas is told so in these words.
            let ours = status["reason"] == "InternalError" && !status["message"].to_string().contains("does not exist");
            assert!(!ours, "{}", told());
        }
    }
    println!("{count} requests");
}
