//! The controllers on the real API: objects that appear, and how many writes that took.
//!
//! The autoscaler, the pods and the gateway are played by hand, so that each story stays short.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret, Service as CoreService};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt as _};
use neap_api::autoscaling::PodAutoscaler;
use neap_api::condition::{READY, find};
use neap_api::networking::{Certificate, ClusterDomainClaim, Ingress};
use neap_api::serving::{Configuration, DomainMapping, Revision, Route, Service};
use neap_logic::plan::ingress::Served;
use neap_logic::routing::network_hash;
use neap_testkit::{Api, eventually};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Clock, Controllers, Credentials, DigestResolver, Key, Metrics, ServedBoard, SettingsFollower};

/// A registry that knows some images.
#[derive(Default)]
struct Registry {
    digests: Mutex<BTreeMap<String, String>>,
}

impl DigestResolver for Registry {
    fn resolve(&self, image: String, _: Credentials) -> BoxFuture<'static, Result<String, String>> {
        let known = self.digests.lock().unwrap().get(&image).cloned();
        std::future::ready(known.ok_or_else(|| "MANIFEST_UNKNOWN".to_owned())).boxed()
    }
}

/// A platform without pods.
struct Stage {
    api: Api,
    board: Arc<ServedBoard>,
    registry: Arc<Registry>,
    _tasks: JoinSet<()>,
}

impl Stage {
    async fn set() -> Self {
        let api = Api::start().await;
        let (board, registry) = (Arc::new(ServedBoard::default()), Arc::new(Registry::default()));
        registry.digests.lock().unwrap().insert("example.com/app:v1".into(), "sha256:abc".into());
        let mut tasks = JoinSet::new();
        let (stop, read, ready) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let clock = Clock::starting_at(api.now());
        let (follower, settings) = SettingsFollower::new(api.client(), clock.clone());
        tasks.spawn(follower.run(read.clone(), stop.clone()));
        read.cancelled().await;
        let controllers = Controllers {
            client: api.client(),
            settings,
            digests: registry.clone(),
            gateway: board.clone(),
            clock,
            metrics: Metrics::unregistered(),
            autoscaler: None,
        };
        let running = ready.clone();
        tasks.spawn(async move { controllers.run(running, stop).await.expect("they run") });
        ready.cancelled().await;
        api.writes();
        Self { api, board, registry, _tasks: tasks }
    }

    fn of<K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> kube::Api<K> {
        kube::Api::namespaced(self.api.client(), "default")
    }

    async fn create(&self, service: Value) {
        let service: Service = serde_json::from_value(service).expect("a Service");
        self.of::<Service>().create(&PostParams::default(), &service).await.expect("admitted");
    }

    async fn wait<K>(&self, name: &str, what: &str, holds: impl Fn(&K) -> bool) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api = self.of::<K>();
        eventually(what, || async { api.get_opt(name).await.expect("the API answers").filter(|object| holds(object)) })
            .await
    }

    async fn status<K>(&self, name: &str, status: Value)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let patch = json!({"status": status});
        self.of::<K>().patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a status");
    }

    /// The autoscaler says that every instance wanted at first has been ready.
    async fn scaled(&self, revision: &str) {
        self.wait::<PodAutoscaler>(revision, "an autoscaler is asked for", |_| true).await;
        let conditions: Vec<Value> = ["Active", "Ready", "SKSReady", "ScaleTargetInitialized"]
            .iter()
            .map(|type_| json!({"type": type_, "status": "True", "lastTransitionTime": "2023-01-01T00:00:00Z"}))
            .collect();
        self.status::<PodAutoscaler>(
            revision,
            json!({"observedGeneration": 1, "actualScale": 1, "desiredScale": 1, "conditions": conditions}),
        )
        .await;
    }

    /// The gateway serves what is written now.
    async fn served(&self, ingress: &str, what: impl Fn(&Ingress) -> bool) {
        let held = self.wait::<Ingress>(ingress, "an Ingress is written", what).await;
        self.board.set(Key::new("default", ingress), Served { hash: Some(network_hash(&held)), conflicts: Vec::new() });
    }

    async fn ready(&self, service: &str, revision: &str) -> Service {
        self.wait::<Service>(service, "the Service is ready on the revision", |s| {
            let status = s.status.clone().unwrap_or_default();
            let ready = find(&status.conditions, READY).is_some_and(|c| c.status == neap_api::ConditionStatus::True);
            ready
                && status.latest_ready_revision_name == revision
                && status.observed_generation == s.metadata.generation.unwrap_or_default()
        })
        .await
    }

    async fn deploy(&self) {
        self.create(hello()).await;
        self.scaled("hello-00001").await;
        self.served("hello", |_| true).await;
        self.ready("hello", "hello-00001").await;
    }

    /// Lets everything that is due happen.
    async fn rest(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn hello() -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"},
        "spec": {"template": {"spec": {"containers": [{"image": "example.com/app:v1"}]}}},
    })
}

fn leads_to(revision: &'static str) -> impl Fn(&Ingress) -> bool {
    move |ingress| serde_json::to_string(&ingress.spec).expect("JSON").contains(revision)
}

fn message<'a>(conditions: &'a [neap_api::Condition], type_: &str) -> &'a str {
    find(conditions, type_).map_or("", |c| c.message.as_str())
}

#[tokio::test(start_paused = true)]
async fn a_service_becomes_ready_with_few_writes() {
    let stage = Stage::set().await;
    stage.deploy().await;
    stage.rest().await;
    let service = stage.ready("hello", "hello-00001").await;
    assert_eq!(service.status.and_then(|s| s.url).as_deref(), Some("http://hello.default.example.com"));
    let events = stage.of::<Event>().list(&Default::default()).await.expect("listed").items.len() as u64;
    // One for the Service itself and one for the played autoscaler.
    let writes = stage.api.writes() - events - 2;
    assert!(writes <= 27, "{writes} writes beside {events} events");

    // Nothing is left to do, now or when everything is looked at again.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage.api.writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_image_becomes_a_new_revision() {
    let stage = Stage::set().await;
    stage.registry.digests.lock().unwrap().insert("example.com/app:v2".into(), "sha256:def".into());
    stage.deploy().await;
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "user-container", "image": "example.com/app:v2"}]}}}});
    stage.of::<Service>().patch("hello", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("admitted");
    stage.scaled("hello-00002").await;
    stage.served("hello", leads_to("hello-00002")).await;
    stage.ready("hello", "hello-00002").await;
    let old = stage
        .wait::<Revision>("hello-00001", "the old revision is let go", |r| {
            r.labels().get("serving.knative.dev/routingState").is_some_and(|state| state == "reserve")
        })
        .await;
    assert!(!old.annotations().contains_key("serving.knative.dev/routes"));
    stage
        .wait::<PodAutoscaler>("hello-00001", "its autoscaler knows", |pa| pa.spec.reachability == "Unreachable")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_explained_everywhere_and_recovers() {
    let stage = Stage::set().await;
    let mut service = hello();
    service["spec"]["template"]["spec"]["containers"][0]["image"] = json!("example.com/late:v1");
    stage.create(service).await;
    let says = "Unable to fetch image \"example.com/late:v1\": failed to resolve image to digest: MANIFEST_UNKNOWN";
    stage
        .wait::<Service>("hello", "the Service says what is missing", |s| {
            s.status.as_ref().is_some_and(|s| message(&s.conditions, READY).contains(says))
        })
        .await;
    let configuration = stage.of::<Configuration>().get("hello").await.expect("there").status.expect("a status");
    assert!(message(&configuration.conditions, READY).contains(says));
    let says = "Configuration \"hello\" does not have any ready Revision.";
    stage
        .wait::<Route>("hello", "so does the Route", |r| {
            r.status.as_ref().is_some_and(|s| message(&s.conditions, READY) == says)
        })
        .await;

    stage.registry.digests.lock().unwrap().insert("example.com/late:v1".into(), "sha256:abc".into());
    stage.scaled("hello-00001").await;
    stage.served("hello", |_| true).await;
    stage.ready("hello", "hello-00001").await;
}

#[tokio::test(start_paused = true)]
async fn what_others_change_is_put_right() {
    let stage = Stage::set().await;
    stage.deploy().await;
    stage.of::<CoreService>().delete("hello", &DeleteParams::default()).await.expect("deleted");
    stage.wait::<CoreService>("hello", "the placeholder is back", |_| true).await;
    stage.of::<Deployment>().delete("hello-00001-deployment", &DeleteParams::default()).await.expect("deleted");
    stage.wait::<Deployment>("hello-00001-deployment", "the Deployment is back", |_| true).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_takes_its_marks_with_it() {
    let stage = Stage::set().await;
    stage.deploy().await;
    // On its own: the Service would write it anew.
    stage.of::<Service>().delete("hello", &DeleteParams::background()).await.expect("deleted");
    stage.of::<Route>().delete("hello", &DeleteParams::background()).await.expect("deleted");
    stage
        .wait::<Revision>("hello-00001", "its revision is let go", |r| {
            r.labels().get("serving.knative.dev/routingState").is_some_and(|state| state == "reserve")
        })
        .await;
    let routes = stage.of::<Route>();
    eventually("the Route is gone", || async {
        routes.get_opt("hello").await.expect("answers").is_none().then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn settings_take_effect_at_once_and_mistakes_never() {
    let stage = Stage::set().await;
    stage.deploy().await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(stage.api.client(), "knative-serving");
    let patch = json!({"data": {"external-http-port": "8080"}});
    maps.patch("config-neap", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("admitted");
    stage
        .wait::<Service>("hello", "the URL names the port", |s| {
            s.status.as_ref().and_then(|s| s.url.as_deref()) == Some("http://hello.default.example.com:8080")
        })
        .await;
    let patch = json!({"data": {"external-http-port": "none"}});
    maps.patch("config-neap", &PatchParams::default(), &Patch::Merge(&patch)).await.expect_err("refused at the door");
}

#[tokio::test(start_paused = true)]
async fn a_domain_leads_to_a_service() {
    let stage = Stage::set().await;
    stage.deploy().await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(stage.api.client(), "knative-serving");
    let patch = json!({"data": {"autocreate-cluster-domain-claims": "true"}});
    maps.patch("config-network", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("admitted");
    let mapping: DomainMapping = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping", "metadata": {"name": "shop.example.org"},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello"}},
    }))
    .expect("a DomainMapping");
    stage.of::<DomainMapping>().create(&PostParams::default(), &mapping).await.expect("admitted");
    stage.served("shop.example.org", |_| true).await;
    stage
        .wait::<DomainMapping>("shop.example.org", "the mapping is ready", |m| {
            let conditions = m.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            find(conditions, READY).is_some_and(|c| c.status == neap_api::ConditionStatus::True)
        })
        .await;
    stage.of::<DomainMapping>().delete("shop.example.org", &DeleteParams::default()).await.expect("deleted");
    let claims = kube::Api::<ClusterDomainClaim>::all(stage.api.client());
    eventually("the claim is given up", || async {
        claims.get_opt("shop.example.org").await.expect("answers").is_none().then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_name_taken_by_somebody_else_is_explained() {
    let stage = Stage::set().await;
    // Without our labels, so that no watch of ours shows it.
    let foreign: Deployment = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hello-00001-deployment"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    }))
    .expect("a Deployment");
    stage.of::<Deployment>().create(&PostParams::default(), &foreign).await.expect("created");
    stage.create(hello()).await;
    stage
        .wait::<Service>("hello", "the Service says who is in the way", |s| {
            s.status.as_ref().is_some_and(|s| message(&s.conditions, READY).contains("There is an existing Deployment"))
        })
        .await;
    let name = "hello-00001-deployment";
    stage.of::<Deployment>().delete(name, &DeleteParams::default()).await.expect("deleted");
    let ours = |d: &Deployment| d.metadata.owner_references.is_some();
    stage.wait::<Deployment>(name, "the name is taken as soon as it is free", ours).await;
}

#[tokio::test(start_paused = true)]
async fn a_label_that_was_taken_off_comes_back() {
    let stage = Stage::set().await;
    stage.deploy().await;
    let name = "hello-00001-deployment";
    let label = "serving.knative.dev/revisionUID";
    let patch = json!({"metadata": {"labels": {label: null}}});
    stage.of::<Deployment>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patched");
    stage.wait::<Deployment>(name, "it is ours again", |d| d.labels().contains_key(label)).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_has_a_wildcard_certificate_that_its_routes_use() {
    let stage = Stage::set().await;
    stage.deploy().await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(stage.api.client(), "knative-serving");
    let selector = "matchLabels: {kubernetes.io/metadata.name: default}";
    let patch = json!({"data": {"external-domain-tls": "Enabled", "namespace-wildcard-cert-selector": selector}});
    maps.patch("config-network", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("admitted");
    let name = "default.example.com";
    let wildcard = stage.wait::<Certificate>(name, "a certificate is asked for", |_| true).await;
    assert_eq!(wildcard.spec.dns_names, ["*.default.example.com"]);
    let ready = json!({"observedGeneration": 1,
        "conditions": [{"type": READY, "status": "True", "lastTransitionTime": "2023-01-01T00:00:00Z"}]});
    stage.status::<Certificate>(name, ready).await;
    stage
        .wait::<Route>("hello", "the route is called by https", |r| {
            r.status.as_ref().and_then(|s| s.url.as_deref()) == Some("https://hello.default.example.com")
        })
        .await;
    let all = kube::Api::<Certificate>::all(stage.api.client()).list(&Default::default()).await.expect("a list");
    let names: Vec<String> = all.items.iter().map(kube::ResourceExt::name_any).collect();
    assert_eq!(names, [name], "no route needs one of its own, and no other namespace has one");
}

#[tokio::test(start_paused = true)]
async fn certificates_of_our_class_are_made_here() {
    let stage = Stage::set().await;
    stage.deploy().await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(stage.api.client(), "knative-serving");
    let class = neap_api::keys::networking::NEAP_CERTIFICATE_CLASS;
    let patch = json!({"data": {"external-domain-tls": "Enabled", "certificate-class": class}});
    maps.patch("config-network", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("admitted");
    let route = stage
        .wait::<Route>("hello", "the route is called by https", |r| {
            r.status.as_ref().and_then(|s| s.url.as_deref()) == Some("https://hello.default.example.com")
        })
        .await;
    let name = format!("route-{}", route.uid().expect("a uid"));
    let ready = |c: &Certificate| {
        let conditions = c.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        find(conditions, READY).is_some_and(|c| c.status == neap_api::ConditionStatus::True)
    };
    let certificate = stage.wait::<Certificate>(&name, "it is ready", ready).await;
    let first = stage.wait::<Secret>(&name, "its Secret is filled", |_| true).await;
    let held = crate::certificates::held(&first).expect("a certificate");
    assert_eq!(held.names, ["hello.default.example.com"]);
    assert_eq!(certificate.status.and_then(|s| s.not_after).map(|t| t.0), Some(held.life.to));
    assert_eq!(first.metadata.owner_references.as_ref().map(|o| o[0].name.clone()), Some(name.clone()));
    // Nothing more is written, however often it is looked at.
    stage.rest().await;
    stage.api.writes();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage.api.writes(), 0);
    // What somebody broke is mended.
    let broken = json!({"data": {"tls.key": "bm9uc2Vuc2U="}});
    stage.of::<Secret>().patch(&name, &PatchParams::default(), &Patch::Merge(&broken)).await.expect("admitted");
    stage.wait::<Secret>(&name, "it is made anew", |s| crate::certificates::held(s).is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_goes_with_its_certificate() {
    let stage = Stage::set().await;
    let secrets: kube::Api<Secret> = kube::Api::namespaced(stage.api.client(), "knative-serving");
    let order: Secret = serde_json::from_value(json!({"type": "neap.dev/acme-order", "metadata": {"name": "acme-gone",
        "labels": {"networking.internal.knative.dev/certificate-uid": "gone"},
        "annotations": {"neap.dev/certificate": "default/gone"}}}))
    .expect("a Secret");
    secrets.create(&PostParams::default(), &order).await.expect("admitted");
    eventually("the order is removed", || async {
        secrets.get_opt("acme-gone").await.expect("the API answers").is_none().then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_manual_service_owns_nothing() {
    let stage = Stage::set().await;
    let service = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {},
        "metadata": {"name": "by-hand", "annotations": {"neap.dev/service-mode": "manual"}}});
    stage.create(service).await;
    stage
        .wait::<Service>("by-hand", "its conditions say so", |s| {
            let conditions = s.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            find(conditions, READY).is_some_and(|c| c.reason == "Manual")
        })
        .await;
    stage.rest().await;
    assert!(stage.of::<Configuration>().get_opt("by-hand").await.expect("the API answers").is_none());
    assert!(stage.of::<Route>().get_opt("by-hand").await.expect("the API answers").is_none());
}
