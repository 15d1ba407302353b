//! The listener as a client outside the process meets it: TLS, a certificate or nobody, durable acknowledgement, drain.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod kinds;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use neap_apiserver::pki::{self, Authority};
use neap_apiserver::{ApiServer, Config, Registry, auth, serve};
use neap_store::{Options, Store};
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_client_with_a_kubeconfig() {
    let dir = tempfile::tempdir().unwrap();
    let now: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
    let clock: neap_apiserver::Now = Arc::new(move || now);
    let registry = Registry::new();
    registry.register_all(&kinds::kubernetes()).unwrap();
    registry.register(&kinds::widgets()).unwrap();
    let store = Store::open(&dir.path().join("store.redb"), Options::default()).unwrap();
    let config = Config::new(clock, 1);
    let watches = config.shutdown.clone();
    let server = ApiServer::new(store, registry, config);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    // rustls compares with the real clock, so the authority is as old as the machine says.
    let real = Timestamp::try_from(file_time(dir.path())).unwrap();
    let authority = Authority::load_or_create(dir.path(), real).unwrap();
    let serving = authority.serving(&["127.0.0.1".into()]).unwrap();
    let tls = pki::server_config(&authority, &serving).unwrap();
    let user = authority.client("somebody", &[auth::MASTERS]).unwrap();
    let text = pki::kubeconfig(&url, &authority, &user);
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve(server, listener, Some(tls), stop.clone()));

    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let kind = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("ex.dev", "v1", "Widget"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &kind);
    let widget = serde_json::from_value(
        json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 1}}),
    )
    .unwrap();
    let made = api.create(&PostParams::default(), &widget).await.unwrap();
    assert_eq!(made.metadata.name.as_deref(), Some("a"));
    assert_eq!(client.apiserver_version().await.unwrap().git_version, neap_apiserver::GIT_VERSION);

    watches.cancel();
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
    assert!(api.get("a").await.is_err(), "nobody listens any more");
}

/// A moment of the machine's clock, without asking it.
fn file_time(path: &std::path::Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}
