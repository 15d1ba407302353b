//! The kubelet on a real API server and a runtime of paper, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event as ApiEvent, Node, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use neap_runtime::pod::{
    BoxFuture, CommandOptions, CommandSession, ContainerState, ContainerStatus, Error, LogOptions, LogStream, PodPhase,
    PodSpec, PodStatus, Volume,
};
use neap_testkit::{Api as TestApi, eventually};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::*;

/// A runtime that remembers what it was told and shows what it is told to show.
struct Paper {
    pods: Mutex<BTreeMap<PodId, (PodSpec, PodStatus)>>,
    /// `ensure NAME` and `remove NAME GRACE`, in order.
    calls: Mutex<Vec<String>>,
    changes: broadcast::Sender<PodId>,
    used: Mutex<Vec<neap_runtime::pod::PodUsage>>,
}

impl Paper {
    fn new() -> Arc<Self> {
        let changes = broadcast::channel(16).0;
        Arc::new(Self { pods: Mutex::default(), calls: Mutex::default(), changes, used: Mutex::default() })
    }

    /// Changes what is known of a pod and says so.
    fn show(&self, name: &str, change: impl FnOnce(&mut PodStatus)) {
        let mut pods = self.pods.lock().unwrap();
        let (id, (_, status)) = pods.iter_mut().find(|(_, (spec, _))| spec.name == name).expect("the pod was ensured");
        change(status);
        // Nobody listens before the kubelet runs.
        let _ = self.changes.send(id.clone());
    }

    fn spec(&self, name: &str) -> Option<PodSpec> {
        self.pods.lock().unwrap().values().find(|(spec, _)| spec.name == name).map(|(spec, _)| spec.clone())
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl PodRuntime for Paper {
    fn ensure(&self, pod: PodSpec) -> BoxFuture<'_, Result<(), Error>> {
        self.calls.lock().unwrap().push(format!("ensure {}", pod.name));
        let container = |c: &neap_runtime::pod::ContainerSpec| ContainerStatus {
            name: c.name.clone(),
            state: ContainerState::Waiting { reason: "ContainerCreating".into(), message: String::new() },
            last: None,
            trouble: None,
            ready: false,
            started: false,
            restarts: 0,
            image: c.image.clone(),
            image_id: String::new(),
            volume_images: Vec::new(),
        };
        let status = PodStatus {
            id: pod.id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            phase: PodPhase::Pending,
            ready: false,
            ip: None,
            ports: BTreeMap::new(),
            init_containers: Vec::new(),
            containers: pod.containers.iter().map(container).collect(),
            evicted: None,
            started: None,
        };
        let mut pods = self.pods.lock().unwrap();
        let status = pods.remove(&pod.id).map_or(status, |(_, known)| known);
        pods.insert(pod.id.clone(), (pod, status));
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(&self, id: &PodId, grace: Duration) -> BoxFuture<'_, Result<(), Error>> {
        if let Some((spec, _)) = self.pods.lock().unwrap().remove(id) {
            self.calls.lock().unwrap().push(format!("remove {} {}", spec.name, grace.as_secs()));
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn list(&self) -> Vec<PodStatus> {
        self.pods.lock().unwrap().values().map(|(_, status)| status.clone()).collect()
    }

    fn status(&self, id: &PodId) -> Option<PodStatus> {
        self.pods.lock().unwrap().get(id).map(|(_, status)| status.clone())
    }

    fn changes(&self) -> broadcast::Receiver<PodId> {
        self.changes.subscribe()
    }

    fn logs(&self, id: &PodId, container: &str, _options: LogOptions) -> BoxFuture<'_, Result<LogStream, Error>> {
        let text = bytes::Bytes::from(format!("log of {id} {container}"));
        let stream: LogStream = Box::pin(futures::stream::iter([Ok(text)]));
        Box::pin(std::future::ready(Ok(stream)))
    }

    fn exec(
        &self,
        id: &PodId,
        container: &str,
        command: CommandOptions,
    ) -> BoxFuture<'_, Result<CommandSession, Error>> {
        let said = format!("{} in {id} {container}", command.argv.join(" "));
        let session = CommandSession {
            stdin: None,
            stdout: Box::pin(std::io::Cursor::new(said.into_bytes())),
            stderr: None,
            resize: None,
            exit: Box::pin(std::future::ready(Ok(0))),
        };
        Box::pin(std::future::ready(Ok(session)))
    }

    fn attach(&self, id: &PodId, container: &str, _stdin: bool) -> BoxFuture<'_, Result<CommandSession, Error>> {
        let argv = vec!["attached".to_owned()];
        self.exec(id, container, CommandOptions { argv, ..CommandOptions::default() })
    }

    fn connect(&self, _id: &PodId, port: u16) -> BoxFuture<'_, Result<tokio::net::TcpStream, Error>> {
        Box::pin(async move {
            let pod = PodId("u".into());
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|source| Error::Connect {
                port,
                pod,
                source,
            })
        })
    }

    fn usage(&self) -> BoxFuture<'_, Vec<neap_runtime::pod::PodUsage>> {
        Box::pin(std::future::ready(self.used.lock().unwrap().clone()))
    }

    fn evict(&self, id: &PodId, why: &str) {
        let name = self.pods.lock().unwrap()[id].0.name.clone();
        self.show(&name, |status| {
            status.evicted = Some(why.to_owned());
            status.phase = PodPhase::Failed;
        });
    }

    fn unkept(&self, pod: &PodSpec) -> Option<String> {
        pod.containers[0].read_only_root.then(|| "no read-only root on paper".to_owned())
    }

    fn describe(&self) -> String {
        "paper".to_owned()
    }
}

/// A gateway that lets go when it is told to.
#[derive(Default)]
struct Gate {
    asked: Mutex<Vec<Leaving>>,
    open: tokio::sync::Notify,
}

impl Drain for Gate {
    fn drained(&self, pod: Leaving, _deadline: Instant) -> BoxFuture<'_, ()> {
        self.asked.lock().unwrap().push(pod);
        Box::pin(self.open.notified())
    }
}

struct Stage {
    api: TestApi,
    runtime: Arc<Paper>,
    kubelet: Kubelet,
    dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Stage {
    async fn start() -> Self {
        Self::with(TestApi::start().await, Paper::new(), Arc::new(NoDrain)).await
    }

    async fn with(api: TestApi, runtime: Arc<Paper>, drain: Arc<dyn Drain>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let facts = NodeFacts::example();
        let machine = Machine {
            facts: facts.clone(),
            pods: 100,
            os_image: "Paper".into(),
            kernel: "0".into(),
            machine_id: "m".into(),
            runtime: "paper".into(),
        };
        let clock = api.clone();
        let config = Config {
            machine,
            around: Surroundings::new(facts, dir.path().join("claims")),
            schedule: true,
            drain,
            clock: Arc::new(move || clock.now()),
            past: dir.path().join("past.json"),
        };
        let kubelet = Kubelet::new(config, api.client(), runtime.clone(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let running = kubelet.clone();
        tasks.spawn(async move { running.run().await });
        Self { api, runtime, kubelet, dir, _tasks: tasks }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.api.client(), "default")
    }

    async fn create(&self, name: &str, spec: Value) -> Pod {
        self.pods().create(&PostParams::default(), &pod(name, spec)).await.unwrap()
    }

    async fn pod_where(&self, what: &str, name: &str, test: impl Fn(&Pod) -> bool) -> Pod {
        let pods = self.pods();
        eventually(what, || async { pods.get_opt(name).await.unwrap().filter(&test) }).await
    }

    async fn ensured(&self, name: &str) -> PodSpec {
        eventually("the runtime gets the pod", || async { self.runtime.spec(name) }).await
    }

    /// A pod that runs and is ready.
    async fn ready(&self, name: &str) -> Pod {
        self.create(name, one()).await;
        self.ensured(name).await;
        self.runtime.show(name, run);
        self.pod_where("the pod is ready", name, is_ready).await
    }

    async fn events(&self, reason: &str) -> Vec<String> {
        let all: Api<ApiEvent> = Api::namespaced(self.api.client(), "default");
        let found = || async {
            let list = all.list(&ListParams::default()).await.unwrap().items;
            let messages: Vec<String> =
                list.into_iter().filter(|e| e.reason.as_deref() == Some(reason)).filter_map(|e| e.message).collect();
            Some(messages).filter(|m| !m.is_empty())
        };
        eventually(&format!("an event {reason}"), found).await
    }
}

fn one() -> Value {
    json!({"enableServiceLinks": false, "containers": [{"name": "c", "image": "app:1"}]})
}

fn pod(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap()
}

/// All containers running and ready.
fn run(status: &mut PodStatus) {
    status.phase = PodPhase::Running;
    status.ready = true;
    status.ip = Some([198, 19, 0, 2].into());
    status.started = Some(neap_testkit::at(0));
    for c in &mut status.containers {
        c.state = ContainerState::Running { since: neap_testkit::at(0) };
        c.ready = true;
        c.started = true;
        c.image_id = "app@sha256:1".into();
    }
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_placed_run_and_shown_ready() {
    let stage = Stage::start().await;
    stage.create("p", one()).await;
    stage.ensured("p").await;
    let waiting = stage.pod_where("the pod is placed", "p", |p| condition(p, "PodScheduled").is_some()).await;
    assert_eq!(waiting.spec.unwrap().node_name.as_deref(), Some("box"));
    assert!(condition(&stage.pods().get("p").await.unwrap(), "Ready").is_some_and(|c| c.status == "False"));
    // Let everything settle, events among it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.api.writes();
    let before = Instant::now();
    stage.runtime.show("p", run);
    let ready = stage.pod_where("the pod is ready", "p", is_ready).await;
    assert!(before.elapsed() <= Duration::from_millis(2), "{:?}", before.elapsed());
    let status = ready.status.unwrap();
    assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("198.19.0.2")));
    assert_eq!((status.host_ip.as_deref(), status.qos_class.as_deref()), (Some("10.0.0.1"), Some("BestEffort")));
    // One write of the status; the events come beside it.
    assert_eq!(stage.events("Started").await, ["Started container c"]);
    assert_eq!(stage.events("Scheduled").await, ["Successfully assigned default/p to box"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.api.writes(), 1 + 3);
    // What changes nothing is not written.
    stage.runtime.show("p", |_| {});
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((stage.api.writes(), stage.runtime.calls()), (0, vec!["ensure p".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn real_ports_are_shown_before_the_pod_is_ready() {
    let stage = Stage::start().await;
    stage.create("p", one()).await;
    stage.ensured("p").await;
    stage.runtime.show("p", |status| {
        run(status);
        status.ports = BTreeMap::from([("user-port".to_owned(), 34567)]);
    });
    let ready = stage.pod_where("the pod is ready", "p", is_ready).await;
    assert_eq!(crate::ports::of(&ready), BTreeMap::from([("user-port".to_owned(), 34567)]));
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_stopped_only_after_the_gateway_let_go() {
    let gate = Arc::new(Gate::default());
    let stage = Stage::with(TestApi::start().await, Paper::new(), gate.clone()).await;
    stage.ready("p").await;
    stage.runtime.calls();
    stage.pods().delete("p", &DeleteParams::default()).await.unwrap();
    let asked = eventually("the gateway is asked", || async { gate.asked.lock().unwrap().first().cloned() }).await;
    assert_eq!((asked.name.as_str(), asked.ip), ("p", Some([198, 19, 0, 2].into())));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.runtime.calls(), [""; 0]);
    assert!(stage.pods().get_opt("p").await.unwrap().is_some());
    gate.open.notify_one();
    let gone = || async { stage.pods().get_opt("p").await.unwrap().is_none().then_some(()) };
    eventually("the pod is gone", gone).await;
    // What is left of the thirty seconds belongs to the containers.
    assert_eq!(stage.runtime.calls(), ["remove p 26"]);
    assert_eq!(stage.events("Killing").await, ["Stopping container c"]);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_never_lets_go_is_waited_for_no_longer_than_the_grace_period() {
    let stage = Stage::with(TestApi::start().await, Paper::new(), Arc::new(Gate::default())).await;
    stage.ready("p").await;
    stage.runtime.calls();
    let begun = Instant::now();
    stage.pods().delete("p", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(stage.runtime.calls(), [""; 0]);
    let gone = || async { stage.pods().get_opt("p").await.unwrap().is_none().then_some(()) };
    eventually("the pod is gone", gone).await;
    assert_eq!((begun.elapsed().as_secs(), stage.runtime.calls()), (30, vec!["remove p 1".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_by_force_is_stopped_at_once() {
    let stage = Stage::with(TestApi::start().await, Paper::new(), Arc::new(Gate::default())).await;
    stage.ready("p").await;
    stage.runtime.calls();
    stage.pods().delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    let stopped = || async { stage.runtime.spec("p").is_none().then_some(()) };
    eventually("the pod is stopped", stopped).await;
    assert_eq!(stage.runtime.calls(), ["remove p 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_waits_until_another_ends() {
    let stage = Stage::start().await;
    let asking = |cpu: &str| json!({"enableServiceLinks": false, "containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": cpu}}}]});
    stage.create("big", asking("1500m")).await;
    stage.ensured("big").await;
    stage.create("second", asking("1")).await;
    let scheduled = |p: &Pod| condition(p, "PodScheduled").is_some();
    let second = stage.pod_where("it waits", "second", scheduled).await;
    let why = condition(&second, "PodScheduled").unwrap();
    assert_eq!(
        (why.status.as_str(), why.reason.as_deref(), why.message.as_deref()),
        ("False", Some("Unschedulable"), Some("0/1 nodes are available: 1 Insufficient cpu."))
    );
    assert_eq!(stage.events("FailedScheduling").await, ["0/1 nodes are available: 1 Insufficient cpu."]);
    assert_eq!(stage.runtime.spec("second"), None);
    stage.pods().delete("big", &DeleteParams::default()).await.unwrap();
    stage.ensured("second").await;
    stage
        .pod_where("it is placed", "second", |p| condition(p, "PodScheduled").is_some_and(|c| c.status == "True"))
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_adopted_and_what_belongs_to_nobody_is_stopped() {
    let first = Stage::start().await;
    first.ready("p").await;
    let orphan = PodSpec { id: PodId("orphan".into()), name: "orphan".into(), ..first.runtime.spec("p").unwrap() };
    first.runtime.ensure(orphan).await.unwrap();
    let Stage { api, runtime, kubelet, .. } = first;
    drop(kubelet);
    tokio::time::sleep(Duration::from_millis(100)).await;
    runtime.calls();
    api.writes();
    let stage = Stage::with(api, runtime, Arc::new(NoDrain)).await;
    let stopped = || async { stage.runtime.spec("orphan").is_none().then_some(()) };
    eventually("the orphan is stopped", stopped).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut calls = stage.runtime.calls();
    calls.sort();
    assert_eq!(calls, ["ensure p", "remove orphan 10"]);
    // The node's own three writes, and none about the pod.
    assert_eq!(stage.api.writes(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_changed_config_map_reaches_the_volume() {
    let stage = Stage::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(stage.api.client(), "default");
    let map = |text: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"k": text}})).unwrap()
    };
    maps.create(&PostParams::default(), &map("old")).await.unwrap();
    let mut spec = one();
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "m"}}]);
    stage.create("p", spec).await;
    let content = |spec: PodSpec| match spec.volumes.get("v") {
        Some(Volume::Files(files)) => String::from_utf8(files[std::path::Path::new("k")].content.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(content(stage.ensured("p").await), "old");
    let patch = Patch::Merge(json!({"data": {"k": "new"}}));
    maps.patch("m", &PatchParams::default(), &patch).await.unwrap();
    let new = || async { stage.runtime.spec("p").map(content).filter(|text| text == "new") };
    eventually("the new content arrives", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_secret_and_goes_on_when_it_appears() {
    let stage = Stage::start().await;
    let spec = json!({"enableServiceLinks": false, "containers": [{"name": "c", "image": "app:1",
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]});
    stage.create("p", spec).await;
    let reason = |p: &Pod| {
        let status = p.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?.waiting.clone()?;
        Some((status.reason?, status.message?))
    };
    let waiting = stage.pod_where("it says why", "p", |p| reason(p).is_some()).await;
    assert_eq!(
        reason(&waiting).unwrap(),
        ("CreateContainerConfigError".to_owned(), "secret \"s\" not found".to_owned())
    );
    let secret: Secret = serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"k": "eA=="}})).unwrap();
    let before = Instant::now();
    Api::<Secret>::namespaced(stage.api.client(), "default").create(&PostParams::default(), &secret).await.unwrap();
    assert_eq!(stage.ensured("p").await.containers[0].env, [("A".to_owned(), "x".to_owned())]);
    // It was the secret that woke it, not a timer.
    assert!(before.elapsed() <= Duration::from_millis(2), "{:?}", before.elapsed());
    stage.pod_where("the reason goes", "p", |p| reason(p).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_a_directory_of_its_own() {
    let stage = Stage::start().await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claims: Api<k8s_openapi::api::core::v1::PersistentVolumeClaim> = Api::namespaced(stage.api.client(), "default");
    claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    let mut spec = one();
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    stage.create("p", spec).await;
    let want = stage.dir.path().join("claims/default/data");
    assert_eq!(stage.ensured("p").await.volumes["v"], Volume::HostPath(want.clone()));
    assert!(want.is_dir());
    // Its data outlives it as long as a pod uses it.
    std::fs::write(want.join("secret"), "x").unwrap();
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(want.join("secret").exists());
    stage.pods().delete("p", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    eventually("the data goes", || async { (!want.exists()).then_some(()) }).await;
}

#[tokio::test(start_paused = true)]
async fn a_claims_name_leads_nowhere_else() {
    let stage = Stage::start().await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claims: Api<k8s_openapi::api::core::v1::PersistentVolumeClaim> = Api::namespaced(stage.api.client(), "default");
    claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    let mut spec = one();
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data?x=/../../../elsewhere"}}]);
    stage.create("p", spec).await;
    let said = stage.events("FailedMount").await;
    assert!(said[0].ends_with("not found"), "{said:?}");
    assert!(stage.runtime.spec("p").is_none());
    assert!(!stage.dir.path().join("elsewhere").exists());
}

#[tokio::test(start_paused = true)]
async fn a_pull_secret_that_comes_late_reaches_its_pod() {
    let stage = Stage::start().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(stage.api.client(), "default");
    let account = json!({"metadata": {"name": "default"}, "imagePullSecrets": [{"name": "pull"}]});
    accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    // The account is seen before the pod.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.create("p", one()).await;
    assert_eq!(stage.ensured("p").await.containers[0].credentials, []);
    let config = json!({"auths": {"app.example": {"username": "me", "password": "secret"}}}).to_string();
    let secret = json!({"metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}});
    let secrets: Api<Secret> = Api::namespaced(stage.api.client(), "default");
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let given = || async { stage.runtime.spec("p").filter(|spec| spec.containers[0].credentials.len() == 1) };
    eventually("the credentials arrive", given).await;
}

#[tokio::test(start_paused = true)]
async fn the_log_of_a_pod_that_is_gone_can_still_be_read() {
    let stage = Stage::start().await;
    let uid = stage.ready("p").await.metadata.uid.unwrap();
    let read = async |pod: &str| {
        let mut stream =
            stage.kubelet.logs("default", pod, None, LogOptions::default()).await.map_err(|e| e.to_string())?;
        let text = stream.next().await.unwrap().unwrap();
        Ok::<_, String>(String::from_utf8(text.to_vec()).unwrap())
    };
    assert_eq!(read("p").await.unwrap(), format!("log of {uid} c"));
    stage.pods().delete("p", &DeleteParams::default()).await.unwrap();
    let gone = || async { stage.pods().get_opt("p").await.unwrap().is_none().then_some(()) };
    eventually("the pod is gone", gone).await;
    for name in ["p", &uid] {
        assert_eq!(read(name).await.unwrap(), format!("log of {uid} c"));
    }
    assert_eq!(read("never").await.unwrap_err(), "pods \"never\" not found");
}

#[tokio::test(start_paused = true)]
async fn the_machine_is_a_node_with_a_heartbeat() {
    let stage = Stage::start().await;
    let nodes: Api<Node> = Api::all(stage.api.client());
    let ready = |n: &Node| {
        let conditions = n.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let node = eventually("the node is ready", || async { nodes.get_opt("box").await.unwrap().filter(ready) }).await;
    let status = node.status.unwrap();
    assert_eq!(status.allocatable.unwrap()["cpu"].0, "2");
    assert_eq!(status.addresses.unwrap()[0].address, "10.0.0.1");
    let leases: Api<Lease> = Api::namespaced(stage.api.client(), "kube-node-lease");
    let renewed = || async { leases.get_opt("box").await.unwrap()?.spec?.renew_time };
    let first = eventually("a lease", renewed).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(renewed().await.unwrap() > first);
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_does_not_get_is_an_event_of_its_own() {
    let stage = Stage::start().await;
    let mut spec = one();
    spec["containers"][0]["securityContext"] = json!({"readOnlyRootFilesystem": true});
    stage.create("p", spec).await;
    stage.ensured("p").await;
    assert_eq!(stage.events("NotOffered").await, ["no read-only root on paper"]);
}

#[tokio::test(start_paused = true)]
async fn too_many_ended_pods_go_the_oldest_first() {
    let stage = Stage::start().await;
    for n in 0..ended::KEPT + 2 {
        let mut pod = pod(&format!("p{n:03}"), one());
        pod.spec.as_mut().unwrap().node_name = Some("box".into());
        let pods = stage.pods();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        pods.patch_status(&format!("p{n:03}"), &PatchParams::default(), &ended).await.unwrap();
    }
    let left = || async {
        let all = stage.pods().list(&ListParams::default()).await.unwrap().items;
        (all.len() == ended::KEPT).then_some(all.len())
    };
    eventually("the surplus is gone", left).await;
}
