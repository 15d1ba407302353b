//! What many objects come to: deletes that leave nothing behind, pages that stand still while others write, lines that
//! thousands of watchers share; and definitions whose rules are kept.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod kinds;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use neap_apiserver::{ApiServer, Body, Caller, Config, Registry, audit, auth};
use neap_store::Store;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const WIDGETS: &str = "/apis/ex.dev/v1/namespaces/ns/widgets";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

struct Cluster {
    server: ApiServer,
    clock: Arc<AtomicI64>,
}

impl Cluster {
    async fn new(audit: Option<audit::Audit>) -> Self {
        let registry = Registry::new();
        registry.register_all(&kinds::kubernetes()).unwrap();
        registry.register(&kinds::widgets()).unwrap();
        let clock = Arc::new(AtomicI64::new(1_767_225_600));
        let reader = clock.clone();
        let now: neap_apiserver::Now =
            Arc::new(move || Timestamp::from_second(reader.load(Ordering::Relaxed)).unwrap());
        let mut config = Config::new(now, 1);
        config.audit = audit;
        let cluster = Self { server: ApiServer::new(Store::memory(), registry, config), clock };
        cluster.ask(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "ns"}})).await;
        cluster
    }

    async fn open(&self, method: Method, path: &str, body: &Value) -> http::Response<Body> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let request = request.body(Full::new(body)).unwrap();
        self.server.answer(request, Caller::outside(Some(auth::admin("tester")))).await
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let response = self.open(method, path, &body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn widget(&self, name: &str, size: u32) -> (u16, Value) {
        let body =
            json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}});
        self.ask(Method::POST, WIDGETS, body).await
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_deletes_leave_nothing_behind() {
    let c = Cluster::new(None).await;
    let before = c.server.store().stats();
    let mut watch = c.open(Method::GET, &format!("{WIDGETS}?watch=1"), &Value::Null).await.into_body();
    for n in 0..1_000 {
        assert_eq!(c.widget(&format!("w{n}"), n).await.0, 201);
        let status = json!({"status": {"size": n}});
        assert_eq!(c.ask(Method::PATCH, &format!("{WIDGETS}/w{n}/status"), status).await.0, 200);
    }
    assert_eq!(c.server.store().stats().keys, before.keys + 1_000);
    for n in 0..1_000 {
        assert_eq!(c.ask(Method::DELETE, &format!("{WIDGETS}/w{n}"), Value::Null).await.0, 200);
    }
    let mut events = 0;
    while events < 3_000 {
        let frame = watch.frame().await.unwrap().unwrap().into_data().unwrap();
        events += frame.iter().filter(|byte| **byte == b'\n').count();
    }
    drop(watch);
    // History ends at the second cut after it was made.
    for _ in 0..2 {
        c.clock.fetch_add(301, Ordering::Relaxed);
        c.ask(Method::GET, WIDGETS, Value::Null).await;
    }
    assert_eq!(
        c.server.store().stats(),
        neap_store::Stats { durable: c.server.store().revision(), ..before_of(before) }
    );
    assert_eq!(c.ask(Method::GET, WIDGETS, Value::Null).await.1["items"], json!([]));
}

/// What the store holds when nothing of the test is left, not even its history.
fn before_of(before: neap_store::Stats) -> neap_store::Stats {
    neap_store::Stats { history_events: 0, history_bytes: 0, ..before }
}

#[tokio::test]
async fn pages_show_one_moment_whatever_is_written_between_them() {
    let c = Cluster::new(None).await;
    for n in 0..25 {
        c.widget(&format!("w{n:02}"), 1).await;
    }
    let want: Vec<String> = (0..25).map(|n| format!("w{n:02}")).collect();
    let (mut seen, mut token, mut revision) = (Vec::new(), String::new(), None);
    for page in 0.. {
        let (code, list) = c.ask(Method::GET, &format!("{WIDGETS}?limit=10&continue={token}"), Value::Null).await;
        assert_eq!(code, 200, "{list}");
        assert_eq!(
            *revision.get_or_insert(list["metadata"]["resourceVersion"].clone()),
            list["metadata"]["resourceVersion"]
        );
        seen.extend(names(&list));
        // Whoever writes before, at and behind the place where the next page begins changes nothing about it.
        c.widget(&format!("a{page}"), 1).await;
        c.widget(&format!("w{}5", page + 1), 1).await;
        c.ask(Method::DELETE, &format!("{WIDGETS}/w{}1", page + 1), Value::Null).await;
        c.ask(Method::DELETE, &format!("{WIDGETS}/{}", seen.last().unwrap()), Value::Null).await;
        token = list["metadata"]["continue"].as_str().unwrap_or("").to_owned();
        if token.is_empty() {
            break;
        }
        assert_eq!(list["metadata"]["remainingItemCount"], 25 - seen.len());
    }
    assert_eq!(seen, want);
    // A token outlives its history only to be told so.
    let (_, list) = c.ask(Method::GET, &format!("{WIDGETS}?limit=2"), Value::Null).await;
    let token = list["metadata"]["continue"].as_str().unwrap();
    c.widget("later", 1).await;
    c.server.store().compact(c.server.store().revision());
    let (code, status) = c.ask(Method::GET, &format!("{WIDGETS}?limit=2&continue={token}"), Value::Null).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")), "{status}");
}

#[tokio::test]
async fn ten_thousand_watchers_share_the_bytes_of_an_event() {
    let c = Cluster::new(None).await;
    let mut watches = Vec::new();
    for _ in 0..10_000 {
        watches.push(c.open(Method::GET, &format!("{WIDGETS}?watch=1"), &Value::Null).await.into_body());
    }
    c.widget("a", 1).await;
    let mut places = std::collections::HashSet::new();
    for watch in &mut watches {
        let frame = watch.frame().await.unwrap().unwrap().into_data().unwrap();
        places.insert(frame.as_ptr());
    }
    assert_eq!(places.len(), 1);
}

#[tokio::test]
async fn objects_that_are_computed_when_they_are_read() {
    let c = Cluster::new(None).await;
    let usage = |namespace: &str, name: &str, app: &str| json!({"metadata": {"namespace": namespace, "name": name, "labels": {"app": app}}, "window": "10s"});
    let all = vec![usage("ns", "b", "x"), usage("ns", "a", "y"), usage("other", "c", "x")];
    let registry = c.server.registry();
    registry.register(&kinds::crd("metrics.dev", "usages", "Usage", true, json!([{"name": "v1", "served": true,
        "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}])))
        .unwrap();
    let read: neap_apiserver::Read = Arc::new(move || {
        let all = all.clone();
        Box::pin(async move { all })
    });
    assert!(registry.configure("metrics.dev", "usages", |kind| kind.read = Some(read)));
    let path = "/apis/metrics.dev/v1/namespaces/ns/usages";
    let (code, list) = c.ask(Method::GET, path, Value::Null).await;
    assert_eq!((code, &list["kind"], names(&list)), (200, &json!("UsageList"), vec!["a".to_owned(), "b".to_owned()]));
    let (_, list) = c.ask(Method::GET, "/apis/metrics.dev/v1/usages?labelSelector=app%3Dx", Value::Null).await;
    assert_eq!(names(&list), ["b", "c"]);
    let (code, one) = c.ask(Method::GET, &format!("{path}/a"), Value::Null).await;
    assert_eq!((code, &one["kind"], &one["window"]), (200, &json!("Usage"), &json!("10s")));
    assert_eq!(c.ask(Method::GET, &format!("{path}/c"), Value::Null).await.0, 404);
    assert_eq!(c.ask(Method::DELETE, &format!("{path}/a"), Value::Null).await.0, 405);
    assert_eq!(c.ask(Method::GET, &format!("{path}?watch=1"), Value::Null).await.0, 405);
    let (_, group) = c.ask(Method::GET, "/apis/metrics.dev/v1", Value::Null).await;
    assert_eq!(group["resources"][0]["verbs"], json!(["get", "list"]));
}

fn gadgets(rules: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.rules.dev"},
        "spec": {"group": "rules.dev", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules,
                    "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"}}}}}}}]}})
}

#[tokio::test]
async fn rules_of_definitions_are_kept() {
    let c = Cluster::new(None).await;
    let (code, status) = c.ask(Method::POST, DEFINITIONS, gadgets(&json!([{"rule": "self.nothing > 1"}]))).await;
    assert_eq!(code, 422, "{status}");
    let cause = &status["details"]["causes"][0];
    assert!(cause["message"].as_str().unwrap().contains("undefined field 'nothing'"), "{cause}");
    assert!(cause["field"].as_str().unwrap().ends_with("properties[spec].x-kubernetes-validations[0].rule"), "{cause}");
    let rules = json!([
        {"rule": "self.min <= self.max", "messageExpression": "'%d is more than %d'.format([self.min, self.max])"},
        {"rule": "self.name == oldSelf.name", "message": "name is immutable", "fieldPath": ".name"},
    ]);
    let response = c.open(Method::POST, DEFINITIONS, &gadgets(&rules)).await;
    assert_eq!((response.status().as_u16(), response.headers().get("warning")), (201, None));
    let path = "/apis/rules.dev/v1/namespaces/ns/gadgets";
    let gadget = |min: i64, name: &str| {
        json!({"apiVersion": "rules.dev/v1", "kind": "Gadget", "metadata": {"name": "g"},
            "spec": {"min": min, "max": 5, "name": name}})
    };
    let (code, status) = c.ask(Method::POST, path, gadget(6, "a")).await;
    assert_eq!(code, 422);
    let message = "Gadget.rules.dev \"g\" is invalid: spec: Invalid value: \"object\": 6 is more than 5";
    assert_eq!(status["message"], message);
    assert_eq!(c.ask(Method::POST, path, gadget(1, "a")).await.0, 201);
    let (code, status) = c.ask(Method::PATCH, &format!("{path}/g"), json!({"spec": {"name": "b"}})).await;
    assert_eq!(code, 422);
    assert_eq!(status["details"]["causes"][0]["field"], "spec.name");
    assert_eq!(c.ask(Method::PATCH, &format!("{path}/g"), json!({"spec": {"min": 2}})).await.0, 200);
    // What is not even of its shape is not asked further.
    let (code, status) = c.ask(Method::PATCH, &format!("{path}/g"), json!({"spec": {"min": "x"}})).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("some validation rules were not checked"), "{status}");
}

#[tokio::test]
async fn requests_are_noted_on_request() {
    let (audit, mut lines) = audit::queue(audit::Policy::default());
    let c = Cluster::new(Some(audit.clone())).await;
    c.widget("a", 1).await;
    assert_eq!(c.ask(Method::GET, &format!("{WIDGETS}/none"), Value::Null).await.0, 404);
    let request = Request::get("/api/v1/pods").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(c.server.ask(request, None, "127.0.0.9".parse().ok()).await.status(), 401);
    drop(c.open(Method::GET, &format!("{WIDGETS}?watch=1"), &Value::Null).await);
    let inside = Request::get(WIDGETS).body(Full::new(Bytes::new())).unwrap();
    c.server.answer(inside, Caller::inside(auth::admin("controller"))).await;
    drop((c, audit));
    let mut told = Vec::new();
    while let Some(line) = lines.next().await {
        let event: Value = serde_json::from_slice(&line).unwrap();
        let code = &event["responseStatus"]["code"];
        told.push(format!("{} {} {code}", event["verb"].as_str().unwrap(), event["stage"].as_str().unwrap()));
    }
    assert_eq!(
        told,
        [
            "create RequestReceived null",
            "create ResponseComplete 201",
            "create RequestReceived null",
            "create ResponseComplete 201",
            "get RequestReceived null",
            "get ResponseComplete 404",
            "list RequestReceived null",
            "list ResponseComplete 401",
            "watch RequestReceived null",
            "watch ResponseStarted 200",
            "watch ResponseComplete 200",
        ]
    );
}
