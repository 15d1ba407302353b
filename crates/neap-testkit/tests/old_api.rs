//! The API of 2018 to 2020 through the real API server: written in old words, kept in v1, read in either (facts I1 to I7).

use futures::{StreamExt, TryStreamExt};
use http::{Method, Request};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use neap_testkit::Api;
use serde_json::{Value, json};

const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

fn kind(api: &Api, version: &str, kind: &str) -> kube::Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("serving.knative.dev", version, kind));
    kube::Api::namespaced_with(api.client(), "default", &resource)
}

fn services(api: &Api, version: &str) -> kube::Api<DynamicObject> {
    kind(api, version, "Service")
}

fn object(version: &str, kind: &str, name: &str, spec: Value) -> DynamicObject {
    let object = json!({"apiVersion": format!("serving.knative.dev/{version}"), "kind": kind,
        "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).expect("an object")
}

fn run_latest(image: &str) -> Value {
    json!({"runLatest": {"configuration": {"revisionTemplate": {"spec": {
        "container": {"image": image}, "concurrencyModel": "Single", "timeoutSeconds": 60}}}}})
}

async fn get(api: &Api, path: &str) -> Value {
    let request = Request::get(path).body(Vec::new()).expect("a request");
    api.client().request(request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}", status.code, status.message),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn i1_written_in_old_words_kept_in_v1_and_read_in_either() {
    let api = Api::start().await;
    for version in ["v1alpha1", "v1beta1"] {
        let old = services(&api, version);
        let wish = object(version, "Service", version, run_latest("app"));
        let made = old.create(&PostParams::default(), &wish).await.expect("it is accepted");
        let container = &made.data["spec"]["runLatest"]["configuration"]["revisionTemplate"]["spec"]["container"];
        assert_eq!(container["name"], "user-container", "defaults show in old words too");
        assert_eq!(made.types.expect("types").api_version, format!("serving.knative.dev/{version}"));
        let new = services(&api, "v1").get(version).await.expect("it is there");
        assert_eq!(new.data["spec"]["template"]["spec"]["containerConcurrency"], 1);
        assert_eq!(new.data["spec"]["traffic"], json!([{"latestRevision": true, "percent": 100}]));
        assert_eq!(new.metadata.generation, Some(1));
        // An edit in v1, seen in old words.
        let edit = json!({"spec": {"template": {"spec": {"timeoutSeconds": 30}}}});
        let v1 = services(&api, "v1");
        v1.patch(version, &PatchParams::default(), &Patch::Merge(&edit)).await.expect("a patch");
        let read = old.get(version).await.expect("it is there");
        let spec = &read.data["spec"]["runLatest"]["configuration"]["revisionTemplate"]["spec"];
        assert_eq!((&spec["timeoutSeconds"], &spec["concurrencyModel"]), (&json!(30), &json!("Single")));
        assert!(read.metadata.annotations.expect("creator").keys().all(|key| !key.starts_with("neap.dev/")));
        // And one in old words, seen in v1.
        let edit = json!([{"op": "replace", "value": "other",
            "path": "/spec/runLatest/configuration/revisionTemplate/spec/container/image"}]);
        let patch: Patch<Value> = Patch::Json(serde_json::from_value(edit).expect("a patch"));
        old.patch(version, &PatchParams::default(), &patch).await.expect("a patch");
        let new = v1.get(version).await.expect("it is there");
        assert_eq!(new.data["spec"]["template"]["spec"]["containers"][0]["image"], "other");
        assert_eq!(new.metadata.generation, Some(3));
        let list = old.list(&Default::default()).await.expect("a list");
        assert!(list.items.iter().all(|service| service.data["spec"]["runLatest"].is_object()));
    }
}

#[tokio::test(start_paused = true)]
async fn i4_a_manual_service_is_kept_without_a_template() {
    let api = Api::start().await;
    let old = services(&api, "v1alpha1");
    old.create(&PostParams::default(), &object("v1alpha1", "Service", "m", json!({"manual": {}})))
        .await
        .expect("accepted");
    let new = services(&api, "v1").get("m").await.expect("it is there");
    assert_eq!(new.data["spec"], json!({}));
    assert_eq!(old.get("m").await.expect("it is there").data["spec"], json!({"manual": {}}));
    // To a way that runs something, and back.
    let mut wish = old.get("m").await.expect("it is there");
    wish.data["spec"] = run_latest("app");
    old.replace("m", &PostParams::default(), &wish).await.expect("an update");
    let new = services(&api, "v1").get("m").await.expect("it is there");
    assert_eq!(new.data["spec"]["template"]["spec"]["containers"][0]["image"], "app");
    assert!(!new.metadata.annotations.expect("some").contains_key("neap.dev/service-mode"));
}

#[tokio::test(start_paused = true)]
async fn i5_i6_i7_the_other_kinds() {
    let api = Api::start().await;
    let make = async |name: &str, spec: Value| {
        let wish = object("v1alpha1", name, "x", spec);
        kind(&api, "v1alpha1", name).create(&PostParams::default(), &wish).await.unwrap_or_else(|e| panic!("{e}"));
        let (new, old) = (kind(&api, "v1", name).get("x").await, kind(&api, "v1alpha1", name).get("x").await);
        (new.expect("there"), old.expect("there"))
    };
    let (new, old) =
        make("Configuration", json!({"revisionTemplate": {"spec": {"container": {"image": "app"}}}})).await;
    assert_eq!(new.data["spec"]["template"]["spec"]["containers"][0]["image"], "app");
    assert_eq!(old.data["spec"]["revisionTemplate"]["spec"]["container"]["image"], "app");
    let (new, old) = make("Route", json!({"traffic": [{"name": "a", "configurationName": "x", "percent": 100}]})).await;
    assert_eq!(new.data["spec"]["traffic"][0]["tag"], "a");
    assert_eq!(old.data["spec"]["traffic"][0]["name"], "a");
    let spec = json!({"container": {"image": "app"}, "concurrencyModel": "Multi", "servingState": "Active"});
    let (new, old) = make("Revision", spec).await;
    assert_eq!(new.metadata.labels.expect("one")["serving.knative.dev/routingState"], "active");
    assert_eq!((&old.data["spec"]["servingState"], old.metadata.labels), (&json!("Active"), None));
    // A status written in v1 is read in old words.
    let status = json!({"status": {"url": "http://x.default.example.com", "address": {"url": "http://x.default.svc"}}});
    let routes = kind(&api, "v1", "Route");
    routes.patch_status("x", &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
    let old = kind(&api, "v1alpha1", "Route").get("x").await.expect("there");
    assert_eq!(old.data["status"]["domain"], "x.default.example.com");
    assert_eq!(old.data["status"]["address"]["hostname"], "x.default.svc");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_converted_is_named() {
    let api = Api::start().await;
    let refused = async |spec: Value, want: &str| {
        let wish = object("v1alpha1", "Service", "x", spec);
        let error = services(&api, "v1alpha1").create(&PostParams::default(), &wish).await.expect_err(want);
        assert!(message(&error).contains(want), "{} does not say {want}", message(&error));
    };
    let mut both = run_latest("app");
    both["template"] = json!({"spec": {"containers": [{"image": "app"}]}});
    refused(both, "expected exactly one, got both: spec.runLatest, spec.template").await;
    let mut built = run_latest("app");
    built["runLatest"]["configuration"]["build"] = json!({"source": {}});
    refused(built, "spec.runLatest.configuration.build").await;
    refused(json!({"runLatest": {}}), "missing field(s): spec.template.spec.containers").await;
    // A misspelled word is found by strict clients, as everywhere.
    let mut misspelled = run_latest("app");
    misspelled["runLatest"]["speed"] = 3.into();
    let wish = serde_json::to_vec(&object("v1alpha1", "Service", "x", misspelled)).expect("JSON");
    let path = "/apis/serving.knative.dev/v1alpha1/namespaces/default/services?fieldValidation=Strict";
    let request = Request::builder().method(Method::POST).uri(path).body(wish).expect("a request");
    let error = api.client().request::<Value>(request).await.expect_err("speed is nothing");
    assert!(message(&error).contains("unknown field \"spec.runLatest\""), "{}", message(&error));
}

/// As kubectl does it: what was applied is remembered in an annotation, and the difference is sent as a merge patch.
#[tokio::test(start_paused = true)]
async fn applying_a_file_twice_changes_nothing() {
    let api = Api::start().await;
    let old = services(&api, "v1alpha1");
    let mut file = object("v1alpha1", "Service", "hello", run_latest("app"));
    let text = serde_json::to_string(&file).expect("JSON");
    file.metadata.annotations = Some([("kubectl.kubernetes.io/last-applied-configuration".to_owned(), text)].into());
    old.create(&PostParams::default(), &file).await.expect("accepted");
    let before = old.get("hello").await.expect("there");
    // Everything the file says is in what is read, so kubectl finds nothing to send; if it did, nothing would change.
    let patch = serde_json::to_value(&file).expect("JSON");
    let mut merged = serde_json::to_value(&before).expect("JSON");
    merge(&mut merged, &patch);
    assert_eq!(merged, serde_json::to_value(&before).expect("JSON"));
    let after = old.patch("hello", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

#[tokio::test(start_paused = true)]
async fn server_side_apply_in_old_words_owns_the_fields_of_v1() {
    let api = Api::start().await;
    let old = services(&api, "v1alpha1");
    let by = |name: &str| PatchParams::apply(name);
    let file = object("v1alpha1", "Service", "hello", run_latest("app"));
    let first = old.patch("hello", &by("ann"), &Patch::Apply(&file)).await.expect("applied");
    let again = old.patch("hello", &by("ann"), &Patch::Apply(&file)).await.expect("applied again");
    assert_eq!(first.metadata.resource_version, again.metadata.resource_version);
    assert_eq!(
        again.data["spec"]["runLatest"]["configuration"]["revisionTemplate"]["spec"]["container"]["image"],
        "app"
    );
    // Somebody else, in v1, is told whose the field is.
    let other = object("v1", "Service", "hello", json!({"template": {"spec": {"timeoutSeconds": 5}}}));
    let error = services(&api, "v1").patch("hello", &by("bob"), &Patch::Apply(&other)).await.expect_err("it is ann's");
    assert!(message(&error).contains("conflict with \"ann\""), "{}", message(&error));
    assert!(message(&error).contains(".spec.template.spec.timeoutSeconds"), "{}", message(&error));
    // Only labels, in old words: nothing of the spec is touched, and nobody is in the way.
    let mut labels: Value = json!({"apiVersion": "serving.knative.dev/v1alpha1", "kind": "Service"});
    labels["metadata"] = json!({"name": "hello", "labels": {"team": "a"}});
    let labelled = old.patch("hello", &by("carl"), &Patch::Apply(&labels)).await.expect("no conflict");
    assert_eq!(labelled.data["spec"], again.data["spec"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_speaks_the_version_of_its_path() {
    let api = Api::start().await;
    let old = services(&api, "v1alpha1");
    let mut events = old.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    let wish = object(
        "v1alpha1",
        "Service",
        "hello",
        json!({"release": {"revisions": ["@latest"],
        "configuration": {"revisionTemplate": {"spec": {"container": {"image": "app"}}}}}}),
    );
    old.create(&PostParams::default(), &wish).await.expect("accepted");
    let edit = json!({"spec": {"traffic": [{"latestRevision": true, "percent": 100}]}});
    services(&api, "v1").patch("hello", &PatchParams::default(), &Patch::Merge(&edit)).await.expect("a patch");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match events.try_next().await.expect("no error").expect("an event") {
            WatchEvent::Added(object) => seen.push(("added", object)),
            WatchEvent::Modified(object) => seen.push(("modified", object)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.iter().map(|(what, _)| *what).collect::<Vec<_>>(), ["added", "modified"]);
    assert_eq!(seen[0].1.data["spec"]["release"]["revisions"], json!(["@latest"]));
    // A release cannot say the new traffic any more, so v1's words do.
    assert_eq!(seen[1].1.data["spec"]["traffic"], edit["spec"]["traffic"]);
    assert_eq!(seen[1].1.data["spec"]["revisionTemplate"]["spec"]["container"]["image"], "app");
    for (_, object) in seen {
        assert_eq!(object.types.expect("types").api_version, "serving.knative.dev/v1alpha1");
    }
}

#[tokio::test(start_paused = true)]
async fn discovery_prefers_v1_and_old_versions_can_be_explained() {
    let api = Api::start().await;
    let group = get(&api, "/apis/serving.knative.dev").await;
    let versions: Vec<&str> =
        group["versions"].as_array().expect("versions").iter().filter_map(|v| v["version"].as_str()).collect();
    assert_eq!((versions.as_slice(), &group["preferredVersion"]["version"]), (VERSIONS.as_slice(), &json!("v1")));
    for (version, want) in [("v1", 8), ("v1beta1", 10), ("v1alpha1", 10)] {
        let list = get(&api, &format!("/apis/serving.knative.dev/{version}")).await;
        assert_eq!(list["resources"].as_array().expect("resources").len(), want, "{version}");
    }
    let document = get(&api, "/openapi/v3/apis/serving.knative.dev/v1alpha1").await.to_string();
    for word in ["runLatest", "rolloutPercent", "revisionTemplate", "concurrencyModel", "domainInternal"] {
        assert!(document.contains(&format!("\"{word}\"")), "{word} cannot be explained");
    }
    // A table in the old version, and the warning that it is old.
    let old = services(&api, "v1alpha1");
    old.create(&PostParams::default(), &object("v1alpha1", "Service", "hello", run_latest("app")))
        .await
        .expect("accepted");
    let request = Request::get("/apis/serving.knative.dev/v1alpha1/namespaces/default/services")
        .header("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
        .body(kube::client::Body::empty())
        .expect("a request");
    let response = api.client().send(request).await.expect("an answer");
    let warning = response.headers().get("warning").and_then(|w| w.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!(
        warning,
        "299 - \"serving.knative.dev/v1alpha1 Service is deprecated; use serving.knative.dev/v1 Service\""
    );
    let body = response.into_body().collect_bytes().await.expect("a body");
    let table: Value = serde_json::from_slice(&body).expect("JSON");
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().expect("columns").iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(columns, ["Name", "URL", "LatestCreated", "LatestReady", "Ready", "Reason"]);
}
