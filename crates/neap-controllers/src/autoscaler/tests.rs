//! The engine on paused time: changes are fed by hand, the API is a function that answers writes as a server would
//! and remembers them. A moment of the story is one `check`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use neap_logic::config::Settings;
use neap_logic::routing::RevisionKey;
use neap_logic::scale::InPath;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::ports::{ActivationProbe, AlwaysInPath, ProbeTarget, Sample, Stat, StatSource, Wake, WakeSet};
use super::watch::Changes;
use super::world::{Change, Delta};
use super::{Clock, Metrics};

/// Counters that the test sets.
#[derive(Default)]
struct Counters {
    load: Mutex<BTreeMap<RevisionKey, f64>>,
    wakes: WakeSet,
    collects: Mutex<u32>,
}

impl StatSource for Counters {
    fn collect(&self, _: Vec<RevisionKey>) -> BoxFuture<'static, Vec<(RevisionKey, Sample)>> {
        *self.collects.lock().unwrap() += 1;
        let load = self.load.lock().unwrap().clone();
        let sample = |load| Sample::Stat(Stat { concurrency: load, requests: load });
        let samples = load.into_iter().map(|(key, load)| (key, sample(load))).collect();
        std::future::ready(samples).boxed()
    }

    fn woken(&self) -> BoxFuture<'_, Vec<Wake>> {
        self.wakes.woken().boxed()
    }
}

/// What the API holds and was told.
#[derive(Default)]
struct Api {
    objects: BTreeMap<String, Value>,
    version: u64,
    said: Vec<String>,
    failing: bool,
}

impl Api {
    fn put(&mut self, path: &str, mut value: Value) -> Value {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let uid =
            self.objects.get(path).map_or_else(|| json!(format!("uid-{path}")), |old| old["metadata"]["uid"].clone());
        value["metadata"]["uid"] = uid;
        self.objects.insert(path.to_owned(), value.clone());
        value
    }

    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let short = path.rsplit_once("/namespaces/n/").map_or(path, |(_, short)| short).to_owned();
        if self.failing {
            self.said.push(format!("{method} {short} failed"));
            return (
                500,
                json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "InternalError", "code": 500}),
            );
        }
        if let Some(path) = path.strip_suffix("/scale") {
            let replicas = body[0]["value"].clone();
            self.said.push(format!("{short} {replicas}"));
            self.objects.insert(path.to_owned(), json!({"replicas": replicas}));
            return (
                200,
                json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {"replicas": replicas}}),
            );
        }
        let say = match (method, body["kind"].as_str()) {
            ("POST", Some(kind)) => format!("create {kind}"),
            (_, Some(kind)) if path.ends_with("/status") => format!("status {kind}"),
            (_, Some("ServerlessService")) => {
                format!("update ServerlessService {}", body["spec"]["mode"].as_str().unwrap())
            }
            (_, kind) => format!("update {}", kind.unwrap_or(path)),
        };
        self.said.push(say);
        let path = match method {
            "POST" => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()),
            _ => path.trim_end_matches("/status").to_owned(),
        };
        (200, self.put(&path, body.clone()))
    }
}

/// A probe that answers what it is told to, after a while.
struct SlowProbe(Arc<Mutex<InPath>>);

impl ActivationProbe for SlowProbe {
    fn probe(&self, _: ProbeTarget) -> BoxFuture<'static, InPath> {
        let answer = self.0.clone();
        async move {
            sleep(Duration::from_millis(100)).await;
            *answer.lock().unwrap()
        }
        .boxed()
    }
}

struct Rig {
    api: Arc<Mutex<Api>>,
    counters: Arc<Counters>,
    settings: latest::Sender<Arc<Settings>>,
    changes: mpsc::Sender<Change>,
    _engine: JoinSet<()>,
}

fn key(name: &str) -> RevisionKey {
    RevisionKey::new("n", name)
}

fn typed<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A PodAutoscaler, asleep for long or not yet looked at.
fn pa(name: &str, annotations: Value, asleep: bool) -> Value {
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let conditions = json!([
        condition("Active", "False", "NoTraffic"),
        condition("Ready", "False", "NoTraffic"),
        condition("SKSReady", "Unknown", "NotReady"),
        condition("ScaleTargetInitialized", "True", ""),
    ]);
    let status = if asleep {
        json!({"observedGeneration": 1, "desiredScale": 0, "actualScale": 0, "serviceName": name, "metricsServiceName": format!("{name}-private"),
            "conditions": conditions})
    } else {
        json!({})
    };
    json!({
        "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
        "metadata": {"namespace": "n", "name": name, "uid": format!("uid-{name}"), "generation": 1, "annotations": annotations},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")},
            "protocolType": "http1", "reachability": "Reachable"},
        "status": status,
    })
}

impl Rig {
    /// An engine that has listed these PodAutoscalers; their Deployments have so many replicas.
    async fn new(pas: &[(Value, i32)], probe: Arc<dyn ActivationProbe>) -> Self {
        let rig = Self::silent(probe);
        rig.list(pas).await;
        rig.settle().await;
        rig
    }

    fn silent(probe: Arc<dyn ActivationProbe>) -> Self {
        let api = Arc::new(Mutex::new(Api::default()));
        let shared = api.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = shared.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (code, answer) = api.lock().unwrap().answer(head.method.as_str(), head.uri.path(), &body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(http::Response::builder().status(code).body(answer).unwrap())
            }
        });
        let (changes, receiver) = mpsc::channel(64);
        let (settings, latest_settings) = latest::channel(Arc::new(Settings::default()));
        let counters = Arc::new(Counters::default());
        let clock = Clock::starting_at("2026-02-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let engine =
            Engine::new(Client::new(service, "n"), latest_settings, counters.clone(), probe, clock, Metrics::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { engine.run(&mut Changes::of(receiver), CancellationToken::new()).await });
        Self { api, counters, settings, changes, _engine: tasks }
    }

    async fn list(&self, pas: &[(Value, i32)]) {
        let pa_path =
            |name: &str| format!("/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/n/podautoscalers/{name}");
        let (mut listed, mut targets) = (Vec::new(), Vec::new());
        for (pa, replicas) in pas {
            let name = pa["metadata"]["name"].as_str().unwrap();
            listed.push(typed(self.api.lock().unwrap().put(&pa_path(name), pa.clone())));
            targets.push(Self::target(name, *replicas));
        }
        for change in [
            Change::Pa(Delta::Reset(listed)),
            Change::Sks(Delta::Reset(vec![])),
            Change::Metric(Delta::Reset(vec![])),
            Change::Hpa(Delta::Reset(vec![])),
            Change::Target(Delta::Reset(targets)),
            Change::Slice(Delta::Reset(vec![])),
        ] {
            self.changes.send(change).await.unwrap();
        }
    }

    fn target(name: &str, replicas: i32) -> super::world::Target {
        let deployment: k8s_openapi::api::apps::v1::Deployment = typed(json!({
            "metadata": {"namespace": "n", "name": format!("{name}-deployment")},
            "spec": {"replicas": replicas, "selector": {}, "template": {}},
        }));
        deployment.into()
    }

    /// So many pods are ready now.
    async fn pods(&self, name: &str, ready: usize) {
        let endpoints: Vec<Value> = (0..ready)
            .map(|n| json!({"addresses": ["127.0.0.1"], "conditions": {"ready": true}, "targetRef": {"name": format!("pod-{n}")}}))
            .collect();
        let slice: k8s_openapi::api::discovery::v1::EndpointSlice = typed(json!({
            "metadata": {"namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": format!("{name}-private")}},
            "addressType": "IPv4", "endpoints": endpoints,
        }));
        self.changes.send(Change::Slice(Delta::Apply(slice.into()))).await.unwrap();
        self.settle().await;
    }

    /// The shell of ServerlessServices makes Services and says who is behind them.
    async fn serve(&self, name: &str, ready: bool) {
        let path = format!("/apis/networking.internal.knative.dev/v1alpha1/namespaces/n/serverlessservices/{name}");
        let sks = {
            let mut api = self.api.lock().unwrap();
            let mut sks = api.objects[&path].clone();
            let status = if ready { "True" } else { "Unknown" };
            sks["status"] = json!({"serviceName": name, "privateServiceName": format!("{name}-private"), "conditions": [
                {"type": "Ready", "status": status}, {"type": "EndpointsPopulated", "status": status}]});
            api.put(&path, sks)
        };
        self.changes.send(Change::Sks(Delta::Apply(typed(sks)))).await.unwrap();
        self.settle().await;
    }

    fn load(&self, name: &str, load: f64) {
        self.counters.load.lock().unwrap().insert(key(name), load);
    }

    /// Lets everything that is ready to run do so. Takes no time.
    async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, seconds: f64) {
        sleep(Duration::from_secs_f64(seconds)).await;
        self.settle().await;
    }

    /// What the API was told since the last look.
    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.api.lock().unwrap().said)
    }

    fn scales(&self) -> Vec<String> {
        self.said().into_iter().filter(|say| say.contains("/scale")).collect()
    }

    fn condition(&self, name: &str, kind: &str) -> String {
        let path = format!("/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/n/podautoscalers/{name}");
        let api = self.api.lock().unwrap();
        let conditions = api.objects[&path]["status"]["conditions"].as_array().unwrap().clone();
        let found = conditions.iter().find(|condition| condition["type"] == kind).unwrap();
        format!("{}({})", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap_or_default())
    }
}

const SCALE: &str = "deployments/r-deployment/scale";

#[tokio::test(start_paused = true)]
async fn a_life() {
    let rig = Rig::new(&[(pa("r", json!({}), false), 1)], Arc::new(AlwaysInPath)).await;
    let mut said = rig.said();
    said.sort();
    assert_eq!(said, ["create Metric", "create ServerlessService", "status Metric", "status PodAutoscaler"]);
    rig.serve("r", false).await;
    assert_eq!(rig.said(), ["status PodAutoscaler"]);
    assert_eq!(rig.condition("r", "Active"), "Unknown(Queued)");

    rig.pods("r", 1).await;
    rig.serve("r", true).await;
    assert_eq!((rig.condition("r", "Active"), rig.condition("r", "Ready")), ("True()".into(), "True()".into()));
    rig.said();

    // Load: at the next tick, by the target of 70.
    rig.load("r", 300.0);
    rig.pass(8.0).await;
    assert_eq!(rig.scales().last(), Some(&format!("{SCALE} 5")));
    rig.pods("r", 5).await;

    // Idle: for a stable window the panic holds; then the count halves, and goes to zero without a grace period, since
    // there is no way around the gateway.
    rig.load("r", 0.0);
    rig.pass(55.0).await;
    assert_eq!(rig.scales(), Vec::<String>::new());
    let mut way = Vec::new();
    for _ in 0..30 {
        rig.pass(1.0).await;
        for scale in rig.scales() {
            let replicas = scale.rsplit(' ').next().unwrap().parse().unwrap();
            way.push(replicas);
            rig.pods("r", replicas).await;
        }
    }
    assert_eq!(way, [2, 1, 0]);
    assert_eq!(rig.condition("r", "Active"), "False(NoTraffic)");
    rig.serve("r", false).await;
    rig.pass(5.0).await;
    rig.said();

    // Asleep: an hour without a word, and hardly a look.
    *rig.counters.collects.lock().unwrap() = 0;
    rig.pass(3600.0).await;
    assert_eq!(rig.said(), Vec::<String>::new());
    assert!(*rig.counters.collects.lock().unwrap() <= 361);

    // A request wakes it at once.
    let before = Instant::now();
    rig.counters.wakes.wake(&key("r"), 1.0);
    rig.settle().await;
    assert_eq!(Instant::now(), before);
    let said = rig.said();
    assert_eq!((said[0].as_str(), said.len()), (format!("{SCALE} 1").as_str(), 2), "{said:?}");
    assert_eq!(rig.condition("r", "Active"), "Unknown(Queued)");
    // More of the same changes nothing.
    rig.counters.wakes.wake(&key("r"), 5.0);
    rig.settle().await;
    assert_eq!(rig.said(), Vec::<String>::new());
    rig.pods("r", 1).await;
    assert_eq!(rig.condition("r", "Active"), "True()");
}

#[tokio::test(start_paused = true)]
async fn many_asleep_cost_nothing() {
    let pas: Vec<_> = (0..50).map(|n| (pa(&format!("r{n}"), json!({}), true), 0)).collect();
    let rig = Rig::new(&pas, Arc::new(AlwaysInPath)).await;
    for n in 0..50 {
        rig.serve(&format!("r{n}"), false).await;
    }
    rig.pass(20.0).await;
    rig.said();
    *rig.counters.collects.lock().unwrap() = 0;
    rig.pass(1000.0).await;
    assert_eq!(rig.said(), Vec::<String>::new());
    assert!(*rig.counters.collects.lock().unwrap() <= 101);

    // All at once.
    for n in 0..50 {
        rig.counters.wakes.wake(&key(&format!("r{n}")), 1.0);
    }
    let before = Instant::now();
    rig.settle().await;
    assert_eq!(Instant::now(), before);
    assert_eq!(rig.scales().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_wake_is_never_lost() {
    // Before anything is known.
    let rig = Rig::silent(Arc::new(AlwaysInPath));
    rig.counters.wakes.wake(&key("r"), 1.0);
    rig.counters.wakes.wake(&key("later"), 1.0);
    rig.settle().await;
    rig.list(&[(pa("r", json!({}), true), 0)]).await;
    rig.settle().await;
    assert_eq!(rig.scales(), [format!("{SCALE} 1")]);

    // Before the Revision is known.
    rig.changes.send(Change::Target(Delta::Apply(Rig::target("later", 0)))).await.unwrap();
    rig.changes.send(Change::Pa(Delta::Apply(typed(pa("later", json!({}), true))))).await.unwrap();
    rig.settle().await;
    assert_eq!(rig.scales(), ["deployments/later-deployment/scale 1"]);

    // Not even told: found when everybody is counted.
    let rig = Rig::new(&[(pa("r", json!({}), true), 0)], Arc::new(AlwaysInPath)).await;
    rig.load("r", 1.0);
    rig.pass(11.0).await;
    assert_eq!(rig.scales().first(), Some(&format!("{SCALE} 1")));
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_made_again() {
    let rig = Rig::new(&[(pa("r", json!({}), true), 0)], Arc::new(AlwaysInPath)).await;
    rig.serve("r", false).await;
    rig.pass(1.0).await;
    rig.said();
    rig.api.lock().unwrap().failing = true;
    rig.counters.wakes.wake(&key("r"), 1.0);
    rig.load("r", 1.0);
    rig.pass(1.0).await;
    let tries = rig.said().iter().filter(|say| say.contains("/scale")).count();
    // After 0, 200, 600 ms.
    assert_eq!(tries, 3);
    rig.api.lock().unwrap().failing = false;
    rig.pass(1.0).await;
    assert_eq!(rig.scales(), [format!("{SCALE} 1")]);
    assert_eq!(rig.condition("r", "Active"), "Unknown(Queued)");
}

#[tokio::test(start_paused = true)]
async fn the_last_instance_waits_for_the_path() {
    let answer = Arc::new(Mutex::new(InPath::NotYet));
    let rig = Rig::new(&[(pa("r", json!({}), false), 1)], Arc::new(SlowProbe(answer.clone()))).await;
    rig.pods("r", 1).await;
    rig.serve("r", true).await;
    rig.pass(70.0).await;
    assert_eq!(rig.condition("r", "Active"), "False(NoTraffic)");
    assert_eq!(rig.scales(), Vec::<String>::new());
    *answer.lock().unwrap() = InPath::Seen;
    // Seen: and then the grace period, here shortened in the settings.
    rig.pass(3.0).await;
    assert_eq!(rig.scales(), Vec::<String>::new());
    rig.settings.send_modify(|settings| {
        Arc::make_mut(settings).autoscaler.scale_to_zero_grace_period = Duration::from_secs(1);
    });
    rig.settle().await;
    assert_eq!(rig.scales(), [format!("{SCALE} 0")]);
}

#[tokio::test(start_paused = true)]
async fn settings_and_annotations_take_effect_at_once() {
    let asleep = pa("r", json!({}), true);
    let rig = Rig::new(&[(asleep.clone(), 0)], Arc::new(AlwaysInPath)).await;
    rig.pass(1.0).await;
    rig.said();
    rig.settings.send_modify(|settings| Arc::make_mut(settings).autoscaler.min_scale = 2);
    rig.settle().await;
    assert_eq!(rig.scales(), [format!("{SCALE} 2")]);

    let hpa = pa("h", json!({"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"}), false);
    let other = pa("o", json!({"autoscaling.knative.dev/class": "mine"}), false);
    let rig = Rig::new(&[(hpa, 1), (other, 1)], Arc::new(AlwaysInPath)).await;
    assert_eq!(rig.said(), ["create HorizontalPodAutoscaler", "create ServerlessService", "status PodAutoscaler"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_is_forgotten() {
    let rig = Rig::new(&[(pa("r", json!({}), false), 1)], Arc::new(AlwaysInPath)).await;
    rig.said();
    let path = "/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/n/podautoscalers/r";
    let last = rig.api.lock().unwrap().objects[path].clone();
    rig.changes.send(Change::Pa(Delta::Delete(typed(last)))).await.unwrap();
    // The wake comes before the deletion is seen, its writes end after.
    rig.load("r", 500.0);
    rig.counters.wakes.wake(&key("r"), 1.0);
    rig.settle().await;
    rig.said();
    rig.pass(30.0).await;
    assert_eq!(rig.said(), Vec::<String>::new());
}
