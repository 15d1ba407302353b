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
