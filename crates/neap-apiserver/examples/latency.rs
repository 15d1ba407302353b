//! What one request costs inside the process: `cargo run --release --example latency`.
//!
//! Calls the service itself, and through a `kube::Client` as controllers do, on a memory store.

#[path = "../tests/kinds/mod.rs"]
mod kinds;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use neap_apiserver::{ApiServer, Caller, Config, Registry, auth};
use neap_store::Store;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: u32 = 2_000;
const OBJECTS: u32 = 1_000;
const WIDGETS: &str = "/apis/ex.dev/v1/namespaces/ns/widgets";

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let registry = Registry::new();
    registry.register_all(&kinds::kubernetes())?;
    registry.register(&kinds::widgets())?;
    let server = ApiServer::new(Store::memory(), registry, Config::new(Arc::new(Timestamp::now), 1));
    let send = async |method: Method, path: String, body: String| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/merge-patch+json").body(Full::new(Bytes::from(body)));
        let caller = Caller::inside(auth::admin("bench"));
        let response = server.answer(request.expect("a request"), caller).await;
        assert!(response.status().is_success(), "{}", response.status());
        response.into_body().collect().await.expect("a body").to_bytes().len()
    };
    let client = kube::Client::new(server.client_service(auth::admin("bench")), "ns");
    let post = |path: &str, body: serde_json::Value| {
        let request = Request::post(path).body(Full::new(Bytes::from(body.to_string()))).expect("a request");
        server.answer(request, Caller::inside(auth::admin("bench")))
    };
    post("/api/v1/namespaces", json!({"metadata": {"name": "ns"}})).await;
    let started = Instant::now();
    for n in 0..OBJECTS {
        let body = json!({"metadata": {"name": format!("w{n}"), "labels": {"n": format!("{}", n % 10)}},
            "spec": {"size": 1, "tags": ["a", "b"], "ports": [{"name": "http", "port": 80}]}});
        post(WIDGETS, body).await;
    }
    report("create", started, OBJECTS);

    let started = Instant::now();
    for n in 0..ROUNDS {
        send(Method::GET, format!("{WIDGETS}/w{}", n % OBJECTS), String::new()).await;
    }
    report("get", started, ROUNDS);
    let started = Instant::now();
    for n in 0..ROUNDS {
        send(Method::PATCH, format!("{WIDGETS}/w{}", n % OBJECTS), json!({"spec": {"size": n}}).to_string()).await;
    }
    report("merge patch", started, ROUNDS);
    let started = Instant::now();
    for _ in 0..100 {
        send(Method::GET, WIDGETS.to_owned(), String::new()).await;
    }
    report("list of 1000", started, 100);
    let started = Instant::now();
    for _ in 0..100 {
        send(Method::GET, format!("{WIDGETS}?labelSelector=n%3D3"), String::new()).await;
    }
    report("list of 1000, 100 selected by label", started, 100);

    let kind = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("ex.dev", "v1", "Widget"));
    let api: Api<DynamicObject> = Api::namespaced_with(client, "ns", &kind);
    let started = Instant::now();
    for n in 0..ROUNDS {
        api.get(&format!("w{}", n % OBJECTS)).await?;
    }
    report("get by kube client", started, ROUNDS);
    let started = Instant::now();
    for n in 0..ROUNDS {
        let patch = Patch::Merge(json!({"status": {"size": n}}));
        api.patch_status(&format!("w{}", n % OBJECTS), &PatchParams::default(), &patch).await?;
    }
    report("status patch by kube client", started, ROUNDS);
    let started = Instant::now();
    for n in 0..ROUNDS {
        let body = json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "spec": {"size": n}});
        api.patch(&format!("w{}", n % OBJECTS), &PatchParams::apply("bench").force(), &Patch::Apply(body)).await?;
    }
    report("server-side apply by kube client", started, ROUNDS);
    let started = Instant::now();
    for _ in 0..20 {
        api.list(&ListParams::default()).await?;
    }
    report("list of 1000 by kube client", started, 20);
    Ok(())
}

fn report(what: &str, started: Instant, rounds: u32) {
    println!("{what:40} {:8.1} µs", started.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
}
