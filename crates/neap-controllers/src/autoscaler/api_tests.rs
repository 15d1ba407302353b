//! The whole autoscaler against the real API server on a memory store, on paused time.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use neap_api::autoscaling::{Metric, PodAutoscaler};
use neap_api::networking::ServerlessService;
use neap_logic::config::Settings;
use neap_logic::routing::RevisionKey;
use neap_testkit::{Api, at, eventually};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{AlwaysInPath, Autoscaler, Clock, Metrics, Sample, StatSource, Wake, WakeSet};

/// A gateway without traffic, but for wakes.
#[derive(Default)]
struct Quiet(WakeSet);

impl StatSource for Quiet {
    fn collect(&self, _: Vec<RevisionKey>) -> BoxFuture<'static, Vec<(RevisionKey, Sample)>> {
        std::future::ready(Vec::new()).boxed()
    }

    fn woken(&self) -> BoxFuture<'_, Vec<Wake>> {
        self.0.woken().boxed()
    }
}

async fn create<K>(api: &Api, value: Value)
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let object: K = serde_json::from_value(value).expect("of its kind");
    kube::Api::<K>::namespaced(api.client(), "default")
        .create(&PostParams::default(), &object)
        .await
        .expect("is taken");
}

/// What the Revision's controller makes: a Deployment with one replica, and a PodAutoscaler.
async fn revision(api: &Api, name: &str) {
    let labels = json!({"serving.knative.dev/revisionUID": name});
    create::<Deployment>(
        api,
        json!({
            "metadata": {"name": format!("{name}-deployment"), "labels": labels},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        }),
    )
    .await;
    create::<PodAutoscaler>(
        api,
        json!({
            "metadata": {"name": name},
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")},
                "protocolType": "http1", "reachability": "Reachable"},
        }),
    )
    .await;
}

async fn pods(api: &Api, name: &str, ready: bool) {
    let slices = kube::Api::<EndpointSlice>::namespaced(api.client(), "default");
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": format!("{name}-private")}},
        "addressType": "IPv4",
        "endpoints": if ready { json!([{"addresses": ["198.19.0.2"], "conditions": {"ready": true}}]) } else { json!([]) },
    }))
    .expect("a slice");
    match slices.get_opt(&format!("{name}-x")).await.expect("the API answers") {
        None => slices.create(&PostParams::default(), &slice).await,
        Some(held) => {
            let mut slice = slice;
            slice.metadata.resource_version = held.metadata.resource_version;
            slices.replace(&format!("{name}-x"), &PostParams::default(), &slice).await
        }
    }
    .expect("is taken");
}

async fn replicas(api: &Api, name: &str) -> Option<i32> {
    let deployments = kube::Api::<Deployment>::namespaced(api.client(), "default");
    deployments.get(&format!("{name}-deployment")).await.expect("is there").spec?.replicas
}

async fn active(api: &Api, name: &str) -> Option<String> {
    let pa = kube::Api::<PodAutoscaler>::namespaced(api.client(), "default").get(name).await.expect("is there");
    let condition = pa.status?.conditions.into_iter().find(|condition| condition.type_ == "Active")?;
    Some(format!("{}({})", condition.status.as_str(), condition.reason))
}

#[tokio::test(start_paused = true)]
async fn from_birth_to_sleep_and_back() {
    let api = Api::start().await;
    let quiet = Arc::new(Quiet::default());
    let (_settings, settings) = watch::channel(Arc::new(Settings::default()));
    let autoscaler = Autoscaler {
        client: api.client(),
        settings,
        stats: quiet.clone(),
        probe: Arc::new(AlwaysInPath),
        clock: Clock::starting_at(at(0)),
        metrics: Metrics::default(),
    };
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(autoscaler.run(stop.clone()));

    revision(&api, "r").await;
    let is = |wanted: &'static str| {
        let api = &api;
        move || async move { active(api, "r").await.filter(|active| active == wanted) }
    };
    eventually("activating", is("Unknown(Queued)")).await;
    let client = api.client();
    let sks = kube::Api::<ServerlessService>::namespaced(client.clone(), "default").get("r").await.expect("made");
    assert_eq!(sks.spec.mode, "Proxy");
    kube::Api::<Metric>::namespaced(client, "default").get("r").await.expect("made");

    pods(&api, "r", true).await;
    eventually("active", is("True()")).await;

    // Nobody calls: it sleeps after a stable window and at most two ticks.
    let active_since = Instant::now();
    sleep(Duration::from_secs(58)).await;
    assert_eq!(replicas(&api, "r").await, Some(1));
    while replicas(&api, "r").await != Some(0) {
        assert!(active_since.elapsed() < Duration::from_secs(65), "still awake");
        sleep(Duration::from_millis(500)).await;
    }
    pods(&api, "r", false).await;
    eventually("inactive", is("False(NoTraffic)")).await;

    // Asleep it writes nothing.
    sleep(Duration::from_secs(10)).await;
    api.writes();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(api.writes(), 0);

    // A wake is one scale call away, and the call one turn of the runtime: no time passes.
    let woken = Instant::now();
    quiet.0.wake(&RevisionKey::new("default", "r"), 1.0);
    eventually("awake", || async { replicas(&api, "r").await.filter(|replicas| *replicas == 1) }).await;
    assert!(woken.elapsed() <= Duration::from_millis(2), "{:?}", woken.elapsed());
    eventually("activating", is("Unknown(Queued)")).await;
    assert!(api.writes() <= 3, "scale, status");

    stop.cancel();
    assert!(tasks.join_next().await.is_some_and(|done| done.is_ok()));
}
