//! The HTTP contract, told as requests and answers over the in-process service on a memory store.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod kinds;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use neap_apiserver::{Ack, ApiServer, Caller, Config, Managed, Registry, auth};
use neap_store::Store;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A server of its own for each test, with a clock that the test moves.
struct Cluster {
    server: ApiServer,
    clock: Arc<AtomicI64>,
    user: k8s_openapi::api::authentication::v1::UserInfo,
}

/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600;

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Cluster {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(prepare: impl FnOnce(&Registry)) -> Self {
        let registry = Registry::new();
        registry.register_all(&kinds::kubernetes()).unwrap();
        registry.register(&kinds::widgets()).unwrap();
        prepare(&registry);
        let clock = Arc::new(AtomicI64::new(START));
        let reader = clock.clone();
        let now: neap_apiserver::Now =
            Arc::new(move || Timestamp::from_second(reader.load(Ordering::Relaxed)).unwrap());
        let server = ApiServer::new(Store::memory(), registry, Config::new(now, 1));
        let cluster = Self { server, clock, user: auth::admin("tester") };
        cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "ns"}})).await.code(201);
        cluster
    }

    fn tick(&self, seconds: i64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let caller = Caller { user: Some(self.user.clone()), ack: Ack::Visible, managed: Managed::Shown, source: None };
        let response = self.server.answer(request, caller).await;
        let code = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        Answer { code, warnings, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], typed(path, body).to_string()).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], typed(path, body).to_string()).await
    }

    async fn patch(&self, path: &str, media: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", media)], body.to_string()).await
    }

    async fn delete(&self, path: &str, body: Value) -> Answer {
        self.send(Method::DELETE, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// The lines of a watch that ends by its own timeout.
    async fn watch(&self, path: &str) -> Vec<Value> {
        let answer = self.get(path).await.code(200);
        match answer.body {
            Value::String(lines) => lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
            one => vec![one],
        }
    }
}

/// Custom resources have to say what they are; most tests do not care.
fn typed(path: &str, mut body: Value) -> Value {
    let kind = [("/widgets", "Widget"), ("/gadgets", "Gadget")].into_iter().find(|(plural, _)| path.contains(plural));
    let parts: Vec<&str> = path.split('/').collect();
    if let (Some((_, kind)), Some(body), ["", "apis", group, version, ..]) = (kind, body.as_object_mut(), &parts[..])
        && !path.ends_with("/scale")
    {
        body.entry("kind").or_insert_with(|| json!(kind));
        body.entry("apiVersion").or_insert_with(|| json!(format!("{group}/{version}")));
    }
    body
}

impl Answer {
    #[track_caller]
    fn code(self, want: u16) -> Self {
        assert_eq!(self.code, want, "{}", self.body);
        self
    }

    #[track_caller]
    fn says(self, code: u16, reason: &str, message: &str) -> Self {
        let this = self.code(code);
        assert_eq!(this.body["kind"], "Status", "{}", this.body);
        assert_eq!(this.body["reason"], reason, "{}", this.body);
        assert!(this.body["message"].as_str().unwrap_or("").contains(message), "{}", this.body);
        this
    }
}

const WIDGETS: &str = "/apis/ex.dev/v1/namespaces/ns/widgets";
const MERGE: &str = "application/merge-patch+json";

fn widget(name: &str, size: i64) -> Value {
    json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_object_lives_and_dies() {
    let c = Cluster::new().await;
    let made = c.post(WIDGETS, widget("a", 1)).await.code(201).body;
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(made["spec"]["color"], "red", "defaulted");
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Update");
    assert_eq!(c.get(&format!("{WIDGETS}/a")).await.code(200).body, made);
    c.post(WIDGETS, widget("a", 1)).await.says(409, "AlreadyExists", r#"widgets.ex.dev "a" already exists"#);

    let mut change = made.clone();
    change["spec"]["size"] = json!(2);
    let changed = c.put(&format!("{WIDGETS}/a"), change.clone()).await.code(200).body;
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    c.put(&format!("{WIDGETS}/a"), change).await.says(409, "Conflict", "the object has been modified");

    let same = c.put(&format!("{WIDGETS}/a"), changed.clone()).await.code(200).body;
    assert_eq!(same, changed, "a write that changes nothing is none");

    let gone = c.delete(&format!("{WIDGETS}/a"), json!({})).await.code(200).body;
    assert_eq!(gone["status"], "Success");
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
    c.get(&format!("{WIDGETS}/a")).await.says(404, "NotFound", r#"widgets.ex.dev "a" not found"#);
}

#[tokio::test(start_paused = true)]
async fn status_is_apart() {
    let c = Cluster::new().await;
    let mut body = widget("a", 1);
    body["status"] = json!({"ready": true});
    let made = c.post(WIDGETS, body).await.code(201).body;
    assert!(made.get("status").is_none(), "status is dropped at birth");
    let at = format!("{WIDGETS}/a");
    let status = format!("{at}/status");
    let mut wish = made.clone();
    wish["spec"]["size"] = json!(9);
    wish["status"] = json!({"ready": true});
    let set = c.put(&status, wish).await.code(200).body;
    assert_eq!((&set["spec"]["size"], &set["status"]["ready"]), (&json!(1), &json!(true)));
    assert_eq!(set["metadata"]["generation"], 1);
    let patched = c.patch(&status, MERGE, json!({"status": {"size": 4}})).await.code(200).body;
    assert_eq!(patched["status"], json!({"ready": true, "size": 4}));
    let main = c.patch(&at, MERGE, json!({"status": {"ready": false}, "spec": {"size": 2}})).await.code(200).body;
    assert_eq!((&main["status"]["ready"], &main["metadata"]["generation"]), (&json!(true), &json!(2)));
    assert_eq!(c.get(&status).await.code(200).body["status"]["size"], 4);
}

#[tokio::test(start_paused = true)]
async fn bad_objects_are_refused_in_kubernetes_words() {
    let c = Cluster::new().await;
    let mut bad = widget("a", -1);
    bad["spec"]["color"] = json!("green");
    let said = c.post(WIDGETS, bad).await.says(422, "Invalid", r#"Widget.ex.dev "a" is invalid: ["#);
    assert_eq!(said.body["details"]["causes"].as_array().unwrap().len(), 2, "{}", said.body);
    c.post(WIDGETS, json!({"metadata": {"name": "a"}})).await.code(201);
    c.post(WIDGETS, json!({"metadata": {"name": "b"}, "spec": {}})).await.says(
        422,
        "Invalid",
        "spec.size: Required value",
    );
    c.post(WIDGETS, json!({"metadata": {"name": "B"}, "spec": {"size": 1}})).await.says(
        422,
        "Invalid",
        "a lowercase RFC 1123 subdomain",
    );
    c.send(Method::POST, WIDGETS, &[("content-type", "application/cbor")], "k8s").await.says(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format",
    );
    let unknown = b"k8s\0\x0a\x13\x0a\x09ex.dev/v1\x12\x06Widget".as_slice();
    c.send(Method::POST, WIDGETS, &[("content-type", "application/vnd.kubernetes.protobuf")], unknown).await.says(
        415,
        "UnsupportedMediaType",
        "",
    );
    c.send(Method::POST, WIDGETS, &[], "{").await.says(400, "BadRequest", "");
    // Where nobody of its own kinds is asked, Kubernetes answers with a page.
    assert_eq!(c.get("/apis/ex.dev/v2/widgets").await.code(404).body, "404 page not found\n");
    c.get("/api/v1/nothings").await.says(404, "NotFound", "the server could not find the requested resource");
    c.post("/apis/ex.dev/v1/namespaces/none/widgets", widget("a", 1)).await.says(
        404,
        "NotFound",
        r#"namespaces "none" not found"#,
    );
}

#[tokio::test(start_paused = true)]
async fn unknown_fields_are_told_as_asked() {
    let c = Cluster::new().await;
    let mut body = widget("a", 1);
    body["spec"]["wrong"] = json!(1);
    let warned = c.post(WIDGETS, body.clone()).await.code(201);
    assert_eq!(warned.warnings, [r#"299 - "unknown field \"spec.wrong\"""#]);
    assert!(warned.body["spec"].get("wrong").is_none());
    body["metadata"]["name"] = json!("b");
    c.post(&format!("{WIDGETS}?fieldValidation=Strict"), body.clone()).await.says(
        400,
        "BadRequest",
        r#"strict decoding error: unknown field "spec.wrong""#,
    );
    let quiet = c.post(&format!("{WIDGETS}?fieldValidation=Ignore"), body).await.code(201);
    assert!(quiet.warnings.is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_are_generated() {
    let c = Cluster::new().await;
    let body = json!({"metadata": {"generateName": "w-"}, "spec": {"size": 1}});
    let one = c.post(WIDGETS, body.clone()).await.code(201).body;
    let two = c.post(WIDGETS, body).await.code(201).body;
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
    assert!(one["metadata"]["name"].as_str().unwrap().starts_with("w-"));
}

#[tokio::test(start_paused = true)]
async fn dry_runs_leave_no_trace() {
    let c = Cluster::new().await;
    let made = c.post(&format!("{WIDGETS}?dryRun=All"), widget("a", 1)).await.code(201).body;
    assert_eq!(made["spec"]["color"], "red");
    c.get(&format!("{WIDGETS}/a")).await.code(404);
    c.post(WIDGETS, widget("a", 1)).await.code(201);
    let at = format!("{WIDGETS}/a");
    let patched = c.patch(&format!("{at}?dryRun=All"), MERGE, json!({"spec": {"size": 5}})).await.code(200).body;
    assert_eq!(patched["spec"]["size"], 5);
    c.delete(&at, json!({"dryRun": ["All"]})).await.code(200);
    assert_eq!(c.get(&at).await.code(200).body["spec"]["size"], 1);
}

#[tokio::test(start_paused = true)]
async fn lists_select_and_page() {
    let c = Cluster::new().await;
    for (name, size, color, label) in
        [("a", 1, "red", "x"), ("b", 2, "blue", "y"), ("c", 3, "red", "y"), ("d", 4, "blue", "x"), ("e", 5, "red", "x")]
    {
        let body = json!({"metadata": {"name": name, "labels": {"l": label}}, "spec": {"size": size, "color": color}});
        c.post(WIDGETS, body).await.code(201);
    }
    let check = async |query: &str, want: &[&str]| {
        let list = c.get(&format!("{WIDGETS}?{query}")).await.code(200).body;
        assert_eq!(names(&list), want, "{query}");
    };
    check("", &["a", "b", "c", "d", "e"]).await;
    check("labelSelector=l%3Dx", &["a", "d", "e"]).await;
    check("labelSelector=l%20in%20(y)", &["b", "c"]).await;
    check("labelSelector=!l", &[]).await;
    check("fieldSelector=metadata.name%3Db", &["b"]).await;
    check("fieldSelector=spec.color%3Dblue&labelSelector=l%3Dx", &["d"]).await;
    c.get(&format!("{WIDGETS}?fieldSelector=spec.none%3D1")).await.says(400, "BadRequest", "field label not supported");

    let first = c.get(&format!("{WIDGETS}?limit=2")).await.code(200).body;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    c.post(WIDGETS, widget("bb", 1)).await.code(201);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = c.get(&format!("{WIDGETS}?limit=2&continue={token}")).await.code(200).body;
    assert_eq!(names(&second), ["c", "d"], "later pages show the revision of the first");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = c.get(&format!("{WIDGETS}?limit=2&continue={token}")).await.code(200).body;
    assert_eq!(names(&last), ["e"]);
    assert!(last["metadata"]["continue"] == "");

    let filtered = c.get(&format!("{WIDGETS}?limit=2&labelSelector=l%3Dx")).await.code(200).body;
    assert_eq!(names(&filtered), ["a", "d"]);
    assert!(filtered["metadata"].get("remainingItemCount").is_none());

    let old = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = c.get(&format!("{WIDGETS}?resourceVersion={old}&resourceVersionMatch=Exact")).await.code(200).body;
    assert_eq!(names(&exact).len(), 5);
    c.get(&format!("{WIDGETS}?resourceVersion=99999")).await.says(504, "Timeout", "Too large resource version: 99999");
    c.server.store().compact(c.server.store().revision());
    let token = first["metadata"]["continue"].as_str().unwrap();
    c.get(&format!("{WIDGETS}?limit=2&continue={token}")).await.says(410, "Expired", "continue parameter is too old");
}

#[tokio::test(start_paused = true)]
async fn watches_tell_every_change_once() {
    let c = Cluster::new().await;
    let made = c.post(WIDGETS, widget("a", 1)).await.code(201).body;
    let from = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let at = format!("{WIDGETS}/a");
    c.patch(&at, MERGE, json!({"metadata": {"labels": {"l": "x"}}})).await.code(200);
    c.patch(&at, MERGE, json!({"metadata": {"labels": {"l": "y"}}})).await.code(200);
    let last = c.delete(&at, json!({})).await.code(200);
    assert_eq!(last.body["status"], "Success");
    let kinds =
        |events: &[Value]| -> Vec<String> { events.iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect() };
    let all = c.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={from}")).await;
    assert_eq!(kinds(&all), ["MODIFIED", "MODIFIED", "DELETED"]);
    let version = |e: &Value| e["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(version(&all[2]) > version(&all[1]), "a deletion has its own version");
    let selected =
        c.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={from}&labelSelector=l%3Dx")).await;
    assert_eq!(kinds(&selected), ["ADDED", "DELETED"], "what leaves a selection is deleted for its watcher");
    assert_eq!(selected[1]["object"]["metadata"]["labels"]["l"], "x");

    c.post(WIDGETS, widget("b", 1)).await.code(201);
    let state = c.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion=0")).await;
    assert_eq!(kinds(&state), ["ADDED"]);
    let listed = c
        .watch(&format!(
            "{WIDGETS}?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        ))
        .await;
    assert_eq!(kinds(&listed), ["ADDED", "BOOKMARK", "BOOKMARK"]);
    assert_eq!(listed[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(listed[1]["object"]["kind"], "Widget");

    c.server.store().compact(c.server.store().revision());
    let late = c.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={from}")).await;
    assert_eq!(kinds(&late), ["ERROR"]);
    assert_eq!((&late[0]["object"]["code"], &late[0]["object"]["reason"]), (&json!(410), &json!("Expired")));
}

#[tokio::test(start_paused = true)]
async fn finalizers_hold_an_object() {
    let c = Cluster::new().await;
    let mut body = widget("a", 1);
    body["metadata"]["finalizers"] = json!(["ex.dev/hold"]);
    c.post(WIDGETS, body).await.code(201);
    let at = format!("{WIDGETS}/a");
    let marked = c.delete(&at, json!({})).await.code(200).body;
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(marked["metadata"]["generation"], 2);
    c.patch(&at, MERGE, json!({"metadata": {"finalizers": ["ex.dev/hold", "ex.dev/more"]}})).await.says(
        422,
        "Invalid",
        "no new finalizers can be added",
    );
    let freed = c.patch(&at, MERGE, json!({"metadata": {"finalizers": null}})).await.code(200);
    assert_eq!(freed.body["kind"], "Widget");
    c.get(&at).await.code(404);

    c.post(WIDGETS, widget("b", 1)).await.code(201);
    let at = format!("{WIDGETS}/b");
    c.delete(&at, json!({"preconditions": {"uid": "other"}})).await.says(
        409,
        "Conflict",
        "the UID in the precondition",
    );
    let fore = c.delete(&at, json!({"propagationPolicy": "Foreground"})).await.code(200).body;
    assert_eq!(fore["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    c.patch(&at, MERGE, json!({"metadata": {"finalizers": []}})).await.code(200);
    c.get(&at).await.code(404);
    c.post(WIDGETS, widget("c", 1)).await.code(201);
    // The query counts only where there is no body.
    let orphan = c.send(Method::DELETE, &format!("{WIDGETS}/c?propagationPolicy=Orphan"), &[], "").await.code(200).body;
    assert_eq!(orphan["metadata"]["finalizers"], json!(["orphan"]));
}

#[tokio::test(start_paused = true)]
async fn collections_are_deleted_by_selection() {
    let c = Cluster::new().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        c.post(WIDGETS, json!({"metadata": {"name": name, "labels": {"l": label}}, "spec": {"size": 1}}))
            .await
            .code(201);
    }
    let gone = c.delete(&format!("{WIDGETS}?labelSelector=l%3Dx"), json!({})).await.code(200).body;
    assert_eq!(names(&gone), ["a", "c"]);
    assert_eq!(names(&c.get(WIDGETS).await.body), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn patches_of_four_kinds() {
    let c = Cluster::new().await;
    c.post(WIDGETS, widget("a", 1)).await.code(201);
    let at = format!("{WIDGETS}/a");
    let json_patch =
        json!([{"op": "test", "path": "/spec/size", "value": 1}, {"op": "replace", "path": "/spec/size", "value": 2}]);
    let two = c.patch(&at, "application/json-patch+json", json_patch.clone()).await.code(200).body;
    assert_eq!(two["spec"]["size"], 2);
    c.patch(&at, "application/json-patch+json", json_patch).await.code(422);
    c.patch(&at, "application/strategic-merge-patch+json", json!({})).await.says(
        415,
        "UnsupportedMediaType",
        "apply-patch",
    );
    c.patch(&at, MERGE, json!({"metadata": {"resourceVersion": "1"}})).await.says(409, "Conflict", "modified");
    c.patch(&at, "application/apply-patch+yaml", json!({})).await.says(422, "Invalid", "fieldManager");

    let apply = "application/apply-patch+yaml";
    let wish = json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "s"}, "spec": {"size": 7}});
    let made = c.patch(&format!("{WIDGETS}/s?fieldManager=one"), apply, wish.clone()).await.code(201).body;
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    let again = c.patch(&format!("{WIDGETS}/s?fieldManager=one"), apply, wish).await.code(200).body;
    assert_eq!(again, made, "applying twice changes nothing");
    let other = json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "s"}, "spec": {"size": 8}});
    let clash = c.patch(&format!("{WIDGETS}/s?fieldManager=two"), apply, other.clone()).await;
    let clash = clash.says(409, "Conflict", "Apply failed with 1 conflict").body;
    assert_eq!(clash["details"]["causes"][0]["field"], ".spec.size");
    let forced = c.patch(&format!("{WIDGETS}/s?fieldManager=two&force=true"), apply, other).await.code(200).body;
    assert_eq!(forced["spec"]["size"], 8);

    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}});
    c.post("/api/v1/namespaces/ns/pods", pod).await.code(201);
    let merged = c
        .patch(
            "/api/v1/namespaces/ns/pods/p",
            "application/strategic-merge-patch+json",
            json!({"spec": {"containers": [{"name": "b", "image": "3"}]}}),
        )
        .await
        .code(200)
        .body;
    let images: Vec<_> = merged["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["image"]).collect();
    assert!(images.contains(&&json!("1")) && images.contains(&&json!("3")), "{merged}");
}

#[tokio::test(start_paused = true)]
async fn scale_is_three_numbers() {
    let c = Cluster::new().await;
    c.post(WIDGETS, widget("a", 3)).await.code(201);
    let at = format!("{WIDGETS}/a/scale");
    let scale = c.get(&at).await.code(200).body;
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!("autoscaling/v1"), &json!(3))
    );
    let mut wish = scale.clone();
    wish["spec"]["replicas"] = json!(5);
    assert_eq!(c.put(&at, wish.clone()).await.code(200).body["spec"]["replicas"], 5);
    c.put(&at, wish).await.says(409, "Conflict", "modified");
    let patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 6}]);
    assert_eq!(c.patch(&at, "application/json-patch+json", patch).await.code(200).body["spec"]["replicas"], 6);
    c.patch(&at, MERGE, json!({"spec": {"replicas": -1}})).await.says(422, "Invalid", ".spec.size");
    assert_eq!(c.get(&format!("{WIDGETS}/a")).await.body["spec"]["size"], 6);
}

#[tokio::test(start_paused = true)]
async fn tables_and_partial_objects() {
    let c = Cluster::new().await;
    c.post(WIDGETS, widget("a", 3)).await.code(201);
    c.tick(150);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let shown = c.send(Method::GET, WIDGETS, &[("accept", table)], "").await.code(200).body;
    assert_eq!(shown["rows"][0]["cells"], json!(["a", 3, "red", "2m30s"]));
    assert_eq!(shown["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let columns: Vec<_> =
        shown["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Size", "Color", "Age"]);
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let shown = c.send(Method::GET, WIDGETS, &[("accept", partial)], "").await.code(200).body;
    assert_eq!(shown["kind"], "PartialObjectMetadataList");
    assert!(shown["items"][0].get("spec").is_none());
    let yaml = c.send(Method::GET, &format!("{WIDGETS}/a"), &[("accept", "application/yaml")], "").await.code(200).body;
    assert!(yaml.as_str().unwrap().contains("kind: Widget"), "{yaml}");
}

#[tokio::test(start_paused = true)]
async fn a_dying_namespace_takes_nothing_new() {
    let c = Cluster::new().await;
    let ns = c.get("/api/v1/namespaces/ns").await.code(200).body;
    assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "ns");
    assert_eq!((&ns["spec"]["finalizers"], &ns["status"]["phase"]), (&json!(["kubernetes"]), &json!("Active")));
    let marked = c.delete("/api/v1/namespaces/ns", json!({})).await.code(200).body;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let said = c.post(WIDGETS, widget("a", 1)).await.says(403, "Forbidden", "because it is being terminated");
    assert_eq!(said.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut empty = marked.clone();
    empty["spec"]["finalizers"] = json!([]);
    c.put("/api/v1/namespaces/ns/finalize", empty).await.code(200);
    c.get("/api/v1/namespaces/ns").await.code(404);
}

#[tokio::test(start_paused = true)]
async fn users_define_kinds() {
    let c = Cluster::new().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer", "default": 4}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.my.dev"},
        "spec": {"group": "my.dev", "scope": "Namespaced", "names": {"plural": "gadgets", "kind": "Gadget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}},
                {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}}]}});
    let made = c.post(crds, definition.clone()).await.code(201).body;
    let states: Vec<_> = made["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap()))
        .collect();
    assert_eq!(states, [("NamesAccepted", "True"), ("Established", "True")]);
    let gadgets = "/apis/my.dev/v1/namespaces/ns/gadgets";
    let gadget = c
        .post(gadgets, json!({"metadata": {"name": "g", "finalizers": ["my.dev/x"]}, "spec": {"z": 1}}))
        .await
        .code(201)
        .body;
    assert_eq!(gadget["spec"], json!({"n": 4}));
    let other = c.get("/apis/my.dev/v2/namespaces/ns/gadgets/g").await.code(200).body;
    assert_eq!(other["apiVersion"], "my.dev/v2");
    assert_eq!(c.get("/apis/my.dev").await.code(200).body["preferredVersion"]["version"], "v2");

    let mut wrong = definition.clone();
    wrong["metadata"]["name"] = json!("other.my.dev");
    c.post(crds, wrong).await.says(422, "Invalid", "must be spec.names.plural");
    let mut unstructural = definition;
    unstructural["metadata"]["name"] = json!("things.my.dev");
    unstructural["spec"]["names"] = json!({"plural": "things", "kind": "Thing"});
    unstructural["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"properties": {"a": {}}});
    c.post(crds, unstructural).await.code(422);

    c.delete(&format!("{crds}/gadgets.my.dev"), json!({})).await.code(200);
    c.get(&format!("{crds}/gadgets.my.dev")).await.code(200);
    c.post(gadgets, json!({"metadata": {"name": "h"}})).await.code(405);
    c.patch(&format!("{gadgets}/g"), MERGE, json!({"metadata": {"finalizers": null}})).await.code(200);
    c.get(&format!("{crds}/gadgets.my.dev")).await.says(404, "NotFound", "");
    c.get(gadgets).await.code(404);
}

#[tokio::test(start_paused = true)]
async fn roles_decide_for_whoever_is_no_master() {
    let mut c = Cluster::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    c.post(
        &format!("{rbac}/namespaces/ns/roles"),
        json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": ["ex.dev"], "resources": ["widgets"], "verbs": ["get", "list"]}]}),
    )
    .await
    .code(201);
    c.post(
        &format!("{rbac}/namespaces/ns/rolebindings"),
        json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]}),
    )
    .await
    .code(201);
    let admin = std::mem::replace(&mut c.user, auth::user("eve", &["system:authenticated"]));
    c.get(WIDGETS).await.code(200);
    c.get("/apis/ex.dev/v1/widgets").await.says(
        403,
        "Forbidden",
        r#"widgets.ex.dev is forbidden: User "eve" cannot list resource "widgets" in API group "ex.dev" at the cluster scope"#,
    );
    c.post(WIDGETS, widget("a", 1)).await.code(403);
    let ask = |verb: &str| json!({"spec": {"resourceAttributes": {"namespace": "ns", "verb": verb, "group": "ex.dev", "resource": "widgets"}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    c.user = admin.clone();
    assert_eq!(c.post(reviews, ask("delete")).await.code(201).body["status"]["allowed"], true);
    let review = c
        .send(
            Method::POST,
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &[("impersonate-user", "eve"), ("impersonate-group", "dev"), ("content-type", "application/json")],
            "{}",
        )
        .await
        .code(201)
        .body;
    assert_eq!(review["status"]["userInfo"]["groups"], json!(["dev", "system:authenticated"]));
    let whoami = c.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await.code(201).body;
    assert_eq!(whoami["status"]["userInfo"]["username"], "tester");
}

#[tokio::test(start_paused = true)]
async fn discovery_lists_what_is_served() {
    let c = Cluster::new().await;
    let groups = c.get("/apis").await.code(200).body;
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "ex.dev"));
    let list = c.get("/apis/ex.dev/v1").await.code(200).body;
    let found: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(found, ["widgets", "widgets/status", "widgets/scale"]);
    let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = c.send(Method::GET, "/apis", &[("accept", media)], "").await.code(200).body;
    assert_eq!(all["kind"], "APIGroupDiscoveryList");
    assert_eq!(c.get("/version").await.body["gitVersion"], "v1.36.0+neap");
    assert_eq!(c.get("/readyz").await.code(200).body, "ok");
    assert!(c.get("/readyz?verbose").await.body.as_str().unwrap().contains("[+]store ok"));
    let index = c.get("/openapi/v3").await.code(200).body;
    assert!(index["paths"].get("apis/ex.dev/v1").is_some(), "{index}");
    let document = c.get("/openapi/v3/apis/ex.dev/v1").await.code(200).body;
    assert!(document["components"]["schemas"].is_object());
}

#[tokio::test(start_paused = true)]
async fn a_kube_client_works_on_it() {
    use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
    let c = Cluster::new().await;
    let client = kube::Client::new(c.server.client_service(auth::admin("controller")), "ns");
    let kind = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("ex.dev", "v1", "Widget"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "ns", &kind);
    let made = api.create(&PostParams::default(), &serde_json::from_value(widget("a", 1)).unwrap()).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let patched = api
        .patch(
            "a",
            &PatchParams::apply("me").force(),
            &Patch::Apply(
                json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 4}}),
            ),
        )
        .await
        .unwrap();
    assert_eq!(patched.data["spec"]["size"], 4);
    let scale = api.get_scale("a").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(4));
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
    let error = api.get("none").await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(s) if s.is_not_found()));
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client);
    assert_eq!(pods.get("ns").await.unwrap().status.unwrap().phase.as_deref(), Some("Active"));
}

#[tokio::test(start_paused = true)]
async fn the_last_finalizer_takes_the_object_in_one_step() {
    let c = Cluster::new().await;
    let mut body = widget("a", 1);
    body["metadata"]["finalizers"] = json!(["ex.dev/hold"]);
    c.post(WIDGETS, body).await.code(201);
    let at = format!("{WIDGETS}/a");
    let marked = c.delete(&at, json!({})).await.code(200).body;
    let from = marked["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    c.patch(&at, MERGE, json!({"metadata": {"finalizers": null}})).await.code(200);
    let events = c.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={from}")).await;
    assert_eq!(events.iter().map(|e| &e["type"]).collect::<Vec<_>>(), ["DELETED"]);
}

#[tokio::test(start_paused = true)]
#[expect(clippy::result_large_err, reason = "the shape of admission functions")]
async fn admission_changes_warns_and_refuses() {
    use kube::core::Status;
    let c = Cluster::with(|registry| {
        registry.admit(
            "ex.dev",
            "Widget",
            Arc::new(|request| {
                if request.operation == kube::core::admission::Operation::Delete {
                    return Err(Status::failure("widgets are kept", "Forbidden").with_code(403));
                }
                let mut object = request.object.clone().expect("an object is created or changed");
                if object.data["spec"]["size"] == 13 {
                    return Err(Status::failure("validation failed: 13", "BadRequest").with_code(400));
                }
                let old = request.old_object.as_ref().map_or(0, |o| o.data["spec"]["size"].as_i64().unwrap_or(0));
                let user = request.user_info.username.clone().unwrap_or_default();
                object.metadata.annotations.get_or_insert_default().insert("by".into(), format!("{user} {old}"));
                Ok((object, vec!["look out".into()]))
            }),
        );
        registry.configure("ex.dev", "widgets", |kind| kind.admit_deletes = true);
    })
    .await;
    let made = c.post(WIDGETS, widget("a", 1)).await.code(201);
    assert_eq!(made.warnings, [r#"299 - "look out""#]);
    assert_eq!(made.body["metadata"]["annotations"]["by"], "tester 0");
    let at = format!("{WIDGETS}/a");
    let changed = c.patch(&at, MERGE, json!({"spec": {"size": 2}})).await.code(200).body;
    assert_eq!(changed["metadata"]["annotations"]["by"], "tester 1");
    c.patch(&at, MERGE, json!({"spec": {"size": 13}})).await.says(400, "BadRequest", "validation failed: 13");
    c.delete(&at, json!({})).await.says(403, "Forbidden", "widgets are kept");
}

#[tokio::test(start_paused = true)]
async fn one_storage_under_two_groups() {
    let c = Cluster::with(|registry| {
        let convert = |mut object: Value, _: &str, to: &str| {
            let (from, into) = if to == "v1" { ("note", "message") } else { ("message", "note") };
            if let Some(text) = object.as_object_mut().and_then(|o| o.remove(from)) {
                object[into] = text;
            }
            Ok(object)
        };
        assert!(registry.alias("", "events", "events.k8s.io", "v1", Arc::new(convert)));
    })
    .await;
    let old = "/api/v1/namespaces/ns/events";
    let new = "/apis/events.k8s.io/v1/namespaces/ns/events";
    c.post(new, json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "hi"}))
        .await
        .code(201);
    let core = c.get(&format!("{old}/e")).await.code(200).body;
    assert_eq!((&core["apiVersion"], &core["message"]), (&json!("v1"), &json!("hi")));
    c.patch(&format!("{old}/e"), MERGE, json!({"message": "ho"})).await.code(200);
    let list = c.get(new).await.code(200).body;
    assert_eq!(
        (&list["items"][0]["note"], &list["items"][0]["apiVersion"]),
        (&json!("ho"), &json!("events.k8s.io/v1"))
    );
    let events = c.watch(&format!("{new}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(events[0]["object"]["note"], "ho");
}

#[tokio::test(start_paused = true)]
async fn subresources_may_be_conversations() {
    let c = Cluster::with(|registry| {
        registry.connect(
            "",
            "pods",
            "log",
            Arc::new(|call| {
                Box::pin(async move {
                    let text = format!("{}/{} {}", call.namespace, call.name, call.query("container").unwrap_or("-"));
                    http::Response::new(neap_apiserver::codec::full(text))
                })
            }),
        );
        registry.configure("", "pods", |kind| {
            kind.grace = Some(Arc::new(|pod| pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30)));
        });
    })
    .await;
    let pods = "/api/v1/namespaces/ns/pods";
    c.post(pods, json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}})).await.code(201);
    assert_eq!(c.get(&format!("{pods}/p/log?container=c")).await.code(200).body, "ns/p c");
    c.get(&format!("{pods}/q/log")).await.says(404, "NotFound", r#"pods "q" not found"#);

    let binding = json!({"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "n"}});
    c.post(&format!("{pods}/p/binding"), binding.clone()).await.code(201);
    c.post(&format!("{pods}/p/binding"), binding).await.says(409, "Conflict", "already assigned to node");

    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    c.post(&format!("{pods}/p/eviction"), eviction).await.code(201);
    let going = c.get(&format!("{pods}/p")).await.code(200).body;
    assert_eq!(going["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let sooner = c.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 5})).await.code(200).body;
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    c.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await.code(200);
    c.get(&format!("{pods}/p")).await.code(404);
}

#[tokio::test(start_paused = true)]
async fn service_accounts_have_tokens() {
    use neap_apiserver::auth::token::Signer;
    let clock = Arc::new(AtomicI64::new(START));
    let reader = clock.clone();
    let registry = Registry::new();
    registry.register_all(&kinds::kubernetes()).unwrap();
    let mut config = Config::new(Arc::new(move || Timestamp::from_second(reader.load(Ordering::Relaxed)).unwrap()), 1);
    config.signer = Some(Arc::new(Signer::new(&Signer::generate().unwrap(), "https://here", "here").unwrap()));
    let c = Cluster { server: ApiServer::new(Store::memory(), registry, config), clock, user: auth::admin("tester") };
    c.post("/api/v1/namespaces", json!({"metadata": {"name": "ns"}})).await.code(201);
    let accounts = "/api/v1/namespaces/ns/serviceaccounts";
    c.post(accounts, json!({"metadata": {"name": "sa"}})).await.code(201);
    let token = async || {
        let made = c.post(&format!("{accounts}/sa/token"), json!({"spec": {"expirationSeconds": 600}})).await.code(201);
        made.body["status"]["token"].as_str().unwrap().to_owned()
    };
    let whoami = async |token: &str| {
        let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(Bytes::from("{}")))
            .unwrap();
        let response = c.server.ask(request, None, None).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        (code, body["status"]["userInfo"]["username"].as_str().unwrap_or("").to_owned())
    };
    let first = token().await;
    assert_eq!(whoami(&first).await, (201, "system:serviceaccount:ns:sa".to_owned()));
    let review =
        c.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": first}})).await.code(201);
    assert_eq!(review.body["status"]["authenticated"], true);
    c.tick(600);
    assert_eq!(whoami(&first).await.0, 401, "expired");
    let second = token().await;
    assert_eq!(whoami(&second).await.0, 201);
    c.delete(&format!("{accounts}/sa"), json!({})).await.code(200);
    assert_eq!(whoami(&second).await.0, 401, "the account is gone");
}

#[tokio::test(start_paused = true)]
async fn who_is_nobody_sees_only_the_doorplate() {
    let c = Cluster::new().await;
    let ask = async |path: &str| {
        let request = Request::get(path).body(Full::new(Bytes::new())).unwrap();
        let response = c
            .server
            .answer(request, Caller { user: None, ack: Ack::Visible, managed: Managed::Shown, source: None })
            .await;
        response.status().as_u16()
    };
    for (path, want) in
        [("/version", 200), ("/readyz", 200), ("/livez/ping", 200), ("/api", 401), ("/apis/ex.dev/v1/widgets", 401)]
    {
        assert_eq!(ask(path).await, want, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn definitions_are_served_again_after_a_restart() {
    let store = Store::memory();
    let now: neap_apiserver::Now = Arc::new(|| Timestamp::from_second(START).unwrap());
    let start = || {
        let server = ApiServer::new(store.clone(), Registry::new(), Config::new(now.clone(), 1));
        Cluster { server, clock: Arc::new(AtomicI64::new(START)), user: auth::admin("tester") }
    };
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let c = start();
    c.post(crds, serde_json::to_value(kinds::widgets()).unwrap()).await.code(201);
    c.post(WIDGETS, widget("a", 1)).await.code(201);
    let c = start();
    assert_eq!(c.get(&format!("{WIDGETS}/a")).await.code(200).body["spec"]["size"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_kube_watcher_follows() {
    use futures::TryStreamExt;
    use kube::api::{Api, DynamicObject};
    use kube::runtime::{WatchStreamExt, watcher};
    let c = Cluster::new().await;
    c.post(WIDGETS, widget("a", 1)).await.code(201);
    let client = kube::Client::new(c.server.client_service(auth::admin("controller")), "ns");
    let kind = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("ex.dev", "v1", "Widget"));
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        let mut events = std::pin::pin!(watcher(api, config).applied_objects());
        assert_eq!(events.try_next().await.unwrap().unwrap().data["spec"]["size"], 1);
        c.patch(&format!("{WIDGETS}/a"), MERGE, json!({"spec": {"size": 2}})).await.code(200);
        assert_eq!(events.try_next().await.unwrap().unwrap().data["spec"]["size"], 2);
        c.patch(&format!("{WIDGETS}/a"), MERGE, json!({"spec": {"size": 1}})).await.code(200);
    }
}

#[tokio::test(start_paused = true)]
async fn watchers_of_one_kind_share_their_lines() {
    let c = Cluster::new().await;
    let open = || async {
        let request =
            Request::get(format!("{WIDGETS}?watch=1&timeoutSeconds=60")).body(Full::<Bytes>::default()).unwrap();
        c.server.answer(request, Caller::outside(Some(c.user.clone()))).await.into_body()
    };
    let (mut one, mut other) = (open().await, open().await);
    c.post(WIDGETS, widget("a", 1)).await.code(201);
    let first = one.frame().await.unwrap().unwrap().into_data().unwrap();
    let second = other.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first.as_ptr(), second.as_ptr(), "{first:?}");
}
