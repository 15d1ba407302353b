//! The API of tests is the API of users: kinds, defaults, refusals.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use neap_api::serving::Service;
use neap_testkit::Api;
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn a_service_is_admitted_with_its_defaults() {
    let api = Api::start().await;
    let services: kube::Api<Service> = kube::Api::namespaced(api.client(), "default");
    let hello: Service = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"},
        "spec": {"template": {"spec": {"containers": [{"image": "i"}]}}},
    }))
    .expect("a service");
    let made = services.create(&PostParams::default(), &hello).await.expect("it is admitted");
    assert_eq!(made.spec.template.spec.timeout_seconds, Some(300));
    assert_eq!(made.spec.traffic[0].percent, Some(100));
    assert_eq!(api.writes(), 1);
    let mut bad = hello;
    bad.metadata.name = Some("Bad_Name".into());
    let refused = services.create(&PostParams::default(), &bad).await.expect_err("the name is bad");
    assert!(matches!(refused, kube::Error::Api(status) if (400..=422).contains(&status.code)));
}

#[tokio::test(start_paused = true)]
async fn pods_get_kubernetes_defaults() {
    let api = Api::start().await;
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), "default");
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}}))
    .expect("a pod");
    let made = pods.create(&PostParams::default(), &pod).await.expect("it is admitted");
    assert_eq!(made.spec.expect("a spec").containers[0].image_pull_policy.as_deref(), Some("IfNotPresent"));
    let pending =
        pods.list(&ListParams::default().fields("status.phase=Pending")).await.expect("the field can be selected");
    assert_eq!(pending.items.len(), 1);
}

/// Written by hand, amounts are often numbers. What is stored must be what a typed client can read.
#[tokio::test(start_paused = true)]
async fn amounts_given_as_numbers_are_kept_as_texts() {
    let api = Api::start().await;
    let resource = kube::core::ApiResource::erase::<Service>(&());
    let raw: kube::Api<kube::core::DynamicObject> = kube::Api::namespaced_with(api.client(), "default", &resource);
    let hello: kube::core::DynamicObject = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"},
        "spec": {"traffic": null, "template": {"spec": {"containers": [{"image": "i", "resources": {"limits": {"cpu": 1}}}]}}},
    }))
    .expect("a service");
    raw.create(&PostParams::default(), &hello).await.expect("it is admitted");
    let services: kube::Api<Service> = kube::Api::namespaced(api.client(), "default");
    let read = services.get("hello").await.expect("it can be read");
    let limits = read.spec.template.spec.pod.containers[0].resources.clone().and_then(|r| r.limits).expect("limits");
    assert_eq!(limits["cpu"].0, "1");
}
