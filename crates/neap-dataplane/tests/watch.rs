//! The watches against the platform's own API server: objects written there become routes, gates and certificates.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use neap_api::networking::Ingress;
use neap_api::serving::Revision;
use neap_dataplane::DataPlane;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

async fn create<K>(client: &kube::Client, object: Value)
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).expect("an object");
    Api::<K>::namespaced(client.clone(), "default").create(&PostParams::default(), &object).await.expect("is taken");
}

/// Waits for a state of the data plane; the clock is virtual.
async fn until(what: &str, is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

#[tokio::test(start_paused = true)]
async fn what_is_written_is_served() {
    let api = neap_testkit::Api::start().await;
    let client = api.client();
    let (plane, _wakes) = DataPlane::new("neap.ingress.networking.knative.dev");
    let shutdown = CancellationToken::new();
    let listed = CancellationToken::new();
    let watches = neap_dataplane::watch::run(client.clone(), plane.clone(), listed.clone(), shutdown.clone());
    let test = async {
        until("all kinds are listed", || listed.is_cancelled()).await;
        create::<Revision>(
            &client,
            json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": { "name": "hello-00001" },
                    "spec": { "containerConcurrency": 3, "containers": [{ "image": "example.com/hello:v1" }] } }),
        )
        .await;
        until("the revision", || plane.revision("default", "hello-00001").is_some()).await;
        assert_eq!(plane.revision("default", "hello-00001").expect("is there").container_concurrency, 3);

        create::<EndpointSlice>(
            &client,
            json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                    "metadata": { "name": "a", "labels": { "kubernetes.io/service-name": "hello-00001-private" } },
                    "ports": [{ "name": "http", "port": 8080 }], "endpoints": [{ "addresses": ["198.19.0.9"] }] }),
        )
        .await;
        let instances = || plane.revision("default", "hello-00001").expect("is there").instances;
        until("the instance", || instances() == [("198.19.0.9:8080".to_owned(), 0)]).await;
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
        slices.delete("a", &DeleteParams::default()).await.expect("is deleted");
        until("no instance", || instances().is_empty()).await;

        create::<Service>(
            &client,
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
                    "spec": { "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] } }),
        )
        .await;
        until("the service", || plane.overview().gates.len() == 2).await;

        create::<Ingress>(
            &client,
            json!({ "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
                    "metadata": { "name": "hello", "annotations": {
                        "networking.knative.dev/ingress.class": "neap.ingress.networking.knative.dev" } },
                    "spec": { "rules": [{ "hosts": ["hello.example.com"], "visibility": "ExternalIP", "http": { "paths": [{
                        "splits": [{ "serviceName": "hello-00001", "serviceNamespace": "default", "servicePort": 80,
                                     "percent": 100 }] }] } }] } }),
        )
        .await;
        let status = plane.ingress_status();
        until("the ingress", || status.borrow().get("default", "hello").is_some_and(|state| state.generation == 1))
            .await;
        assert_eq!(plane.overview().hosts, 1);

        create::<Secret>(
            &client,
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "other" }, "type": "Opaque",
                    "data": { "password": "eA==" } }),
        )
        .await;
        shutdown.cancel();
    };
    tokio::join!(watches, test);
}
