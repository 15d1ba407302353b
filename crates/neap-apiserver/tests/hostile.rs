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
use neap_apiserver::auth::token::Signer;
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
    "9223372036854775807",
    "-9223372036854775808",
    "{\"op\":\"copy\",\"from\":\"\",\"path\":\"/x\"}",
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
    registry.configure("", "pods", |kind| {
        kind.grace = Some(Arc::new(|pod| pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30)));
    });
    let now: neap_apiserver::Now = Arc::new(|| Timestamp::from_second(1_767_225_600).unwrap());
    let mut config = Config::new(now, 1);
    config.signer = Some(Arc::new(Signer::new(&Signer::generate().unwrap(), "https://here", "here").unwrap()));
    let server = ApiServer::new(Store::memory(), registry, config);
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

/// What one request may come to, in bytes of its answer and in time. Each of those below came to gigabytes or to hours.
const ANSWER: usize = 1 << 20;
const TIME: Duration = Duration::from_secs(20);

const PODS: &str = "/api/v1/namespaces/ns/pods";
const MAPS: &str = "/api/v1/namespaces/ns/configmaps";
const WIDGETS: &str = "/apis/ex.dev/v1/namespaces/ns/widgets";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Sends a request and insists on the code, on a short answer and on little time.
#[track_caller]
fn send(
    api: &ApiServer,
    method: &str,
    path: &str,
    media: &str,
    body: impl Into<Bytes>,
    want: u16,
) -> impl Future<Output = Value> {
    let at = std::panic::Location::caller();
    let request = Request::builder().method(method).uri(path).header("content-type", media).body(body.into()).unwrap();
    async move {
        let begun = Instant::now();
        let (code, _, answer) = ask(api, request).await;
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(400)]).into_owned();
        assert_eq!(code, want, "{at}: {shown}");
        assert!(answer.len() < ANSWER || code < 300, "{at}: an answer of {} bytes: {shown}", answer.len());
        println!("{at}: {code} after {:?}", begun.elapsed());
        assert!(begun.elapsed() < TIME, "{at}: answered after {:?}", begun.elapsed());
        serde_json::from_slice(&answer).unwrap_or_default()
    }
}

fn repeat(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

/// A value of so many levels of containers.
fn deep(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({"a": inner}))
}

#[tokio::test(start_paused = true)]
async fn small_texts_that_come_to_much() {
    let api = &server().await;
    let bomb = format!("a: &x [{}]\nb: [{}]\n", "y,".repeat(3_000), "*x,".repeat(3_000));
    send(api, "POST", REVIEWS, YAML, bomb.clone(), 400).await;
    send(api, "PATCH", &format!("{MAPS}/a?fieldManager=m"), APPLY, bomb, 400).await;

    let map = json!({"metadata": {"name": "a"}, "data": {"a": "x"}}).to_string();
    send(api, "POST", MAPS, JSON, map, 201).await;
    let at = format!("{MAPS}/a?dryRun=All");
    let doubled = repeat(24, |n| json!({"op": "copy", "from": "/data", "path": format!("/data/a{n}")}));
    send(api, "PATCH", &at, JSON_PATCH, doubled.to_string(), 413).await;
    let nested = repeat(500, |_| json!({"op": "copy", "from": "", "path": "/x"}));
    send(api, "PATCH", &at, JSON_PATCH, nested.to_string(), 422).await;
    // What is carried about is not looked at again and again.
    let mut moves = vec![json!({"op": "add", "path": "/x", "value": repeat(200_000, |_| json!(1))})];
    moves.extend((0..4_000).flat_map(|_| {
        [json!({"op": "move", "from": "/x", "path": "/y"}), json!({"op": "move", "from": "/y", "path": "/x"})]
    }));
    send(api, "PATCH", &at, JSON_PATCH, json!(moves).to_string(), 200).await;
    let sinking = repeat(9_000, |n| match n % 2 {
        0 => json!({"op": "move", "from": "/x", "path": "/data/x"}),
        _ => json!({"op": "move", "from": "/data/x", "path": "/x"}),
    });
    let mut sunk = vec![moves[0].clone()];
    sunk.extend(sinking.as_array().unwrap().iter().cloned());
    send(api, "PATCH", &at, JSON_PATCH, json!(sunk).to_string(), 413).await;

    let name = "n".repeat(1_400_000);
    let repeated = format!("{{\"{name}\": {{{}\"a\":1}}}}", "\"a\":1,".repeat(200_000));
    send(api, "POST", MAPS, JSON, repeated, 422).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_can_be_read_and_deleted() {
    let api = &server().await;
    let pod = |name: &str, levels: usize| {
        let container = json!({"name": "c", "resources": deep(levels)});
        json!({"metadata": {"name": name}, "spec": {"containers": [container]}}).to_string()
    };
    send(api, "POST", PODS, JSON, pod("a", 117), 400).await;
    send(api, "POST", PODS, JSON, pod("b", 90), 201).await;
    let under = (0..70).map(|_| "/a").collect::<String>();
    let sink = json!([{"op": "add", "path": format!("/spec/containers/0/resources{under}"), "value": deep(80)}]);
    send(api, "PATCH", &format!("{PODS}/b"), JSON_PATCH, sink.to_string(), 422).await;
    let fields = json!({"metadata": {"managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "fieldsV1": (0..110).fold(json!({}), |inner, _| json!({"f:a": inner}))}]}});
    send(api, "PATCH", &format!("{PODS}/b"), MERGE, fields.to_string(), 400).await;
    for media in ["application/json", "application/json;as=Table;g=meta.k8s.io;v=v1"] {
        let request = Request::get(PODS).header("accept", media).body(Bytes::new()).unwrap();
        assert_eq!(ask(api, request).await.0, 200, "{media}");
    }
    send(api, "DELETE", &format!("{PODS}/b?gracePeriodSeconds=0"), JSON, "", 200).await;
}

#[tokio::test(start_paused = true)]
async fn complaints_are_shorter_than_what_they_complain_of() {
    let api = &server().await;
    let map = |meta: Value| json!({"metadata": meta}).to_string();
    let labels: serde_json::Map<String, Value> = (0..20_000).map(|n| (format!("!{n}"), json!(""))).collect();
    send(api, "POST", MAPS, JSON, map(json!({"name": "a", "labels": labels, "annotations": labels})), 422).await;
    let owner = json!({"apiVersion": "v", "kind": "k", "name": "n", "uid": "u", "controller": true});
    let owners = json!({"name": "a", "ownerReferences": repeat(2_000, |_| owner.clone())});
    let told = send(api, "POST", MAPS, JSON, map(owners), 422).await;
    assert!(told["message"].as_str().unwrap().contains("references for k/n and k/n"));
    let nobody = json!({"name": "a", "ownerReferences": repeat(10_000, |_| json!({"apiVersion": "", "kind": "", "name": "", "uid": ""}))});
    send(api, "POST", MAPS, JSON, map(nobody), 422).await;
    let finalizers = json!({"name": "a", "finalizers": repeat(10_000, |n| json!(format!("!{n}")))});
    send(api, "POST", MAPS, JSON, map(finalizers), 422).await;

    let manager = format!("{MAPS}?fieldManager={}", "%01".repeat(3_000));
    send(api, "POST", &manager, JSON, map(json!({"name": "a"})), 422).await;

    let tags = json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {"size": 1, "tags": repeat(20_000, |_| json!(1))}});
    send(api, "POST", WIDGETS, JSON, tags.to_string(), 422).await;

    let env = repeat(2_000, |n| json!({"name": format!("v{n}"), "value": 1}));
    let long = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "n".repeat(50_000), "env": env}]}});
    send(api, "PATCH", &format!("{PODS}/p?fieldManager=m"), APPLY, long.to_string(), 500).await;

    let rules = json!({"metadata": {"name": "r"}, "rules": repeat(20_000, |_| json!({"verbs": []}))});
    send(api, "POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/roles", JSON, rules.to_string(), 422).await;
    let subjects = json!({"metadata": {"name": "r"}, "subjects": repeat(20_000, |_| json!({"kind": "x", "name": ""})),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}});
    send(api, "POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/rolebindings", JSON, subjects.to_string(), 422)
        .await;
}

#[tokio::test(start_paused = true)]
async fn long_lists_are_merged_in_good_time() {
    const MANY: usize = 20_000;
    let api = &server().await;
    let finalizers = |from: usize| repeat(MANY, |n| json!(format!("ex.dev/f{}", from + n)));
    let map = json!({"metadata": {"name": "a", "finalizers": finalizers(0)}});
    send(api, "POST", MAPS, JSON, map.to_string(), 201).await;
    let at = format!("{MAPS}/a");
    let one = json!({"metadata": {"finalizers": ["ex.dev/one"]}});
    let made = send(api, "PATCH", &at, STRATEGIC, one.to_string(), 200).await;
    assert_eq!(made["metadata"]["finalizers"].as_array().unwrap().len(), MANY + 1);
    let more = json!({"metadata": {"finalizers": finalizers(MANY)}});
    send(api, "PATCH", &format!("{at}?dryRun=All"), STRATEGIC, more.to_string(), 200).await;
    let gone = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": finalizers(1)}});
    send(api, "PATCH", &format!("{at}?dryRun=All"), STRATEGIC, gone.to_string(), 200).await;
    let order = json!({"metadata": {"$setElementOrder/finalizers": finalizers(0), "finalizers": finalizers(0)}});
    send(api, "PATCH", &format!("{at}?dryRun=All"), STRATEGIC, order.to_string(), 200).await;
    let applied =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "finalizers": finalizers(7)}});
    send(api, "PATCH", &format!("{at}?fieldManager=m&dryRun=All"), APPLY, applied.to_string(), 200).await;

    let containers = |from: usize| repeat(8_000, |n| json!({"name": format!("c{}", from + n), "image": "x"}));
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": containers(0)}});
    send(api, "POST", PODS, JSON, pod.to_string(), 201).await;
    let wish = json!({"spec": {"containers": containers(4_000)}});
    send(api, "PATCH", &format!("{PODS}/p?dryRun=All"), STRATEGIC, wish.to_string(), 200).await;

    // A record of managers whose names sort otherwise than their texts.
    let fields: serde_json::Map<String, Value> = (0..MANY).map(|n| (format!("v:{n}"), json!({}))).collect();
    let record = json!({"metadata": {"managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:finalizers": fields}}}]}});
    send(api, "PATCH", &format!("{at}?dryRun=All"), MERGE, record.to_string(), 200).await;

    // A merge patch replaces lists whole, however long they are.
    let widget = json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 1}});
    send(api, "POST", WIDGETS, JSON, widget.to_string(), 201).await;
    let tags = json!({"spec": {"tags": repeat(MANY, |n| json!(n.to_string()))}});
    send(api, "PATCH", &format!("{WIDGETS}/w"), MERGE, tags.to_string(), 200).await;
}

#[tokio::test(start_paused = true)]
async fn numbers_at_their_ends_and_bodies_of_other_shapes() {
    let api = &server().await;
    let most = i64::MAX;
    send(api, "GET", &format!("{PODS}?watch=1&timeoutSeconds={most}"), JSON, "", 200).await;
    for (name, grace) in [("a", most), ("b", i64::MIN), ("c", 30)] {
        let spec = json!({"containers": [], "terminationGracePeriodSeconds": grace});
        send(api, "POST", PODS, JSON, json!({"metadata": {"name": name}, "spec": spec}).to_string(), 201).await;
        let marked = send(api, "DELETE", &format!("{PODS}/{name}"), JSON, "", 200).await;
        assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
        let options = json!({"gracePeriodSeconds": most}).to_string();
        send(api, "DELETE", &format!("{PODS}/{name}"), JSON, options, 200).await;
        send(api, "DELETE", &format!("{PODS}/{name}?gracePeriodSeconds=0"), JSON, "", 200).await;
    }
    let accounts = "/api/v1/namespaces/ns/serviceaccounts";
    send(api, "POST", accounts, JSON, r#"{"metadata":{"name":"s"}}"#, 201).await;
    for body in ["[]", "1", "\"x\"", r#"{"spec":[]}"#, r#"{"spec":1}"#] {
        send(api, "POST", &format!("{accounts}/s/token"), JSON, body, 400).await;
    }
    let widget = json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3}});
    send(api, "POST", WIDGETS, JSON, widget.to_string(), 201).await;
    for body in ["{}", "[]", "\"x\"", "1"] {
        send(api, "PUT", &format!("{WIDGETS}/w/scale"), JSON, body, 400).await;
    }
    let scale = send(api, "GET", &format!("{WIDGETS}/w/scale"), JSON, "", 200).await;
    assert_eq!(scale["spec"]["replicas"], 3);
    let twice = "apiVersion: ex.dev/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 1, size: 2}\n";
    send(api, "PATCH", &format!("{WIDGETS}/w?fieldManager=m&force=true&fieldValidation=Strict"), APPLY, twice, 400)
        .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_stranger_is_read() {
    let api = server().await;
    let body = http_body_util::StreamBody::new(futures::stream::poll_fn(
        |_| -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> { panic!("it was read") },
    ));
    let request = Request::post(MAPS).body(body).unwrap();
    assert_eq!(api.answer(request, Caller::outside(None)).await.status(), 401);
}

#[tokio::test(start_paused = true)]
async fn who_sends_slowly_keeps_nobody_else_out() {
    let api = server().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..700 {
        let api = api.clone();
        tasks.spawn(async move {
            let body = http_body_util::StreamBody::new(futures::stream::pending::<
                Result<http_body::Frame<Bytes>, std::io::Error>,
            >());
            let request = Request::post(MAPS).body(body).unwrap();
            api.answer(request, Caller::outside(Some(auth::admin("slow")))).await.status().as_u16()
        });
    }
    tokio::task::yield_now().await;
    let map = json!({"metadata": {"name": "a"}}).to_string();
    let request = Request::post(MAPS).body(Full::from(map)).unwrap();
    let response = api.answer(request, Caller::outside(Some(auth::admin("other")))).await;
    assert_eq!(response.status(), 201);
    assert_eq!(tasks.join_next().await.unwrap().unwrap(), 429, "beyond their share they are told at once");
}

#[tokio::test(start_paused = true)]
async fn rules_that_come_to_deep_trees_are_refused() {
    let api = &server().await;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let define = |rule: &str| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "gadgets.my.dev"},
            "spec": {"group": "my.dev", "scope": "Namespaced", "names": {"plural": "gadgets", "kind": "Gadget"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "x-kubernetes-validations": [{"rule": rule, "message": "no"}]}}}]}})
        .to_string()
    };
    for chain in ["+1", " in [1]", "-1", "&&true", "||true", "<1", ".a", "[0]", "?1:1"] {
        send(api, "POST", path, JSON, define(&format!("1{}", chain.repeat(200_000))), 422).await;
        send(api, "POST", path, JSON, define(&format!("1{}", chain.repeat(400))), 422).await;
    }
    for before in ["!", "-", "(", "["] {
        send(api, "POST", path, JSON, define(&before.repeat(200_000)), 422).await;
    }
    send(api, "POST", &format!("{path}?dryRun=All"), JSON, define("1 + 1 == 2"), 201).await;
}
