//! The life of a PodAutoscaler as a story: each line is a moment, what was observed, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use neap_api::networking::ServerlessServiceStatus;
use serde_json::{Value, json};

use super::*;
use crate::config::{Autoscaler, Settings};
use crate::plan::{Refusal, Write};
use crate::scale::Scaling;

/// The objects, and what the rest of the world would do with a plan.
struct World {
    pa: PodAutoscaler,
    sks: Option<ServerlessService>,
    metric: Option<Metric>,
    config: Autoscaler,
    sidecar: bool,
    replicas: Option<u32>,
    ready: u32,
    decided: Option<Decided>,
    in_path: InPath,
    now: Timestamp,
}

fn context(now: Timestamp, refusals: &[Refusal]) -> Context {
    Context { now, settings: Default::default(), refusals: refusals.to_vec() }
}

fn with_sidecar(now: Timestamp) -> Context {
    let mut settings = Settings::default();
    settings.deployment.queue_sidecar_image = Some("queue".into());
    Context { now, settings: Arc::new(settings), refusals: Vec::new() }
}

impl World {
    fn new(annotations: Value) -> Self {
        let pa = json!({
            "metadata": {"name": "r", "namespace": "n", "uid": "1", "generation": 1, "labels": {"app": "r"}, "annotations": annotations},
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "r-deployment"},
                "protocolType": "http1", "reachability": "Reachable"},
        });
        Self {
            pa: serde_json::from_value(pa).unwrap(),
            sks: None,
            metric: None,
            config: Autoscaler::default(),
            sidecar: false,
            replicas: Some(1),
            ready: 0,
            decided: None,
            in_path: InPath::Seen,
            now: Timestamp::from_second(1_800_000_000).unwrap(),
        }
    }

    fn decide(&mut self, desired: u32, excess_burst_capacity: i32) {
        self.decided = Some(Decided { desired, excess_burst_capacity, num_activators: 2 });
    }

    /// The other shells: the ServerlessService gets its Services and follows its mode and the pods.
    fn others(&mut self) {
        let now = self.now;
        let Some(sks) = &mut self.sks else { return };
        let proxy = sks.spec.mode == "Proxy";
        let status = sks.status.get_or_insert_with(ServerlessServiceStatus::default);
        status.service_name = "r".to_owned();
        status.private_service_name = "r-private".to_owned();
        let mut conditions = Conditions::new(crate::conditions::SERVERLESS_SERVICE, &status.conditions, now);
        match self.ready {
            0 => conditions.mark_unknown("EndpointsPopulated", "NoHealthyBackends", "K8s Service is not ready"),
            _ => conditions.mark_true("EndpointsPopulated"),
        }
        match proxy {
            true => conditions.mark_true(ACTIVATOR_ENDPOINTS),
            false => conditions.mark_false(ACTIVATOR_ENDPOINTS, "Serve", ""),
        }
        status.conditions = conditions.into_vec();
    }

    fn plan(&self) -> Scaled {
        let (scaling, errors) = Scaling::resolve(&self.pa, &self.config, Duration::from_secs(600));
        assert_eq!(errors, []);
        plan(&Observed {
            pa: &self.pa,
            sks: self.sks.as_ref(),
            metric: self.metric.as_ref(),
            scaling: &scaling,
            decided: self.decided,
            measured_since: None,
            replicas: self.replicas,
            ready: self.ready,
            in_path: self.in_path,
            context: &if self.sidecar { with_sidecar(self.now) } else { context(self.now, &[]) },
        })
    }

    fn apply(&mut self, scaled: &Scaled) {
        if let Some(to) = scaled.scale {
            self.replicas = Some(to);
        }
        for write in &scaled.plan.writes {
            let (Write::Create(object) | Write::Update(object)) = write else { panic!("{write:?}") };
            let mut value = object.value.clone();
            value["metadata"]["generation"] = json!(0);
            match object.resource.kind.as_str() {
                "ServerlessService" => self.sks = Some(serde_json::from_value(value).unwrap()),
                "Metric" => self.metric = Some(serde_json::from_value(value).unwrap()),
                other => panic!("{other}"),
            }
        }
        if let Some(status) = &scaled.plan.status {
            self.pa.status = Some(serde_json::from_value(status.clone()).unwrap());
        }
    }

    /// Lets some seconds pass, then plans and lets others act until nothing changes, which must be soon.
    fn after(&mut self, seconds: i64) -> &mut Self {
        self.now += SignedDuration::from_secs(seconds);
        for _ in 0..5 {
            let scaled = self.plan();
            self.apply(&scaled);
            self.others();
            if self.plan().plan.is_empty() && self.plan().scale.is_none() {
                return self;
            }
        }
        panic!("no fixed point: {:?}", self.plan());
    }

    /// `replicas desired/actual Active(reason) mode again`.
    fn is(&self, wanted: &str) {
        let status = self.pa.status.as_ref().unwrap();
        let active = find(&status.conditions, ACTIVE).unwrap();
        let ready = find(&status.conditions, READY).unwrap();
        let again = self.plan().plan.again.map_or("-".to_owned(), |again| format!("{}s", again.as_secs()));
        let got = format!(
            "{:?} {}/{} {}({}) {} {} {again}",
            self.replicas.unwrap(),
            status.desired_scale.unwrap(),
            status.actual_scale.unwrap(),
            active.status.as_str(),
            active.reason,
            if ready.status == ConditionStatus::True { "ready" } else { "not-ready" },
            self.sks.as_ref().unwrap().spec.mode,
        );
        assert_eq!(got, wanted);
    }
}

#[test]
fn a6_2_d11_1_from_birth_to_sleep_and_back() {
    let mut w = World::new(json!({}));
    w.after(0).is("1 -1/0 Unknown(Queued) not-ready Proxy 630s");
    w.ready = 1;
    w.after(5).is("1 -1/1 True() ready Proxy -");
    w.decide(1, -211);
    w.after(5).is("1 1/1 True() ready Proxy -");
    w.decide(3, -100);
    w.after(5).is("3 3/1 True() ready Proxy -");
    w.ready = 3;
    w.decide(3, 20);
    w.after(5).is("3 3/3 True() ready Serve -");
    // Idle: everybody is led to the activator first, for the grace period.
    w.decide(0, 20);
    w.after(55).is("3 0/3 False(NoTraffic) not-ready Proxy 30s");
    w.after(29).is("3 0/3 False(NoTraffic) not-ready Proxy 1s");
    w.after(1).is("0 0/3 False(NoTraffic) not-ready Proxy -");
    w.ready = 0;
    w.after(1).is("0 0/0 False(NoTraffic) not-ready Proxy -");
    // A restart of the autoscaler changes nothing, and asleep there is nothing to look at again.
    w.decided = None;
    w.after(100).is("0 0/0 False(NoTraffic) not-ready Proxy -");
    w.decide(0, -211);
    w.in_path = InPath::NotYet;
    w.after(100).is("0 0/0 False(NoTraffic) not-ready Proxy -");
    w.in_path = InPath::Seen;
    // A request.
    w.decide(1, -211);
    assert_eq!(w.plan().scale, Some(1));
    w.after(0).is("1 1/0 Unknown(Queued) not-ready Proxy -");
    w.ready = 1;
    w.after(1).is("1 1/1 True() ready Proxy -");
    // Idle again, but active for less than a stable window.
    w.decide(0, -211);
    w.after(20).is("1 1/1 True() ready Proxy 40s");
    // In the path all along: no grace.
    w.after(40).is("0 0/1 False(NoTraffic) not-ready Proxy -");
}

#[test]
fn one_that_never_comes_up_is_given_up() {
    let mut w = World::new(json!({}));
    w.after(0).is("1 -1/0 Unknown(Queued) not-ready Proxy 630s");
    w.after(629).is("1 -1/0 Unknown(Queued) not-ready Proxy 1s");
    w.after(1).is("0 0/0 False(TimedOut) not-ready Proxy -");
    w.decide(0, -211);
    w.after(9).is("0 0/0 False(TimedOut) not-ready Proxy -");
    w.decide(1, -211);
    w.after(9).is("1 1/0 Unknown(Queued) not-ready Proxy -");
}

#[test]
fn initial_and_minimal_scale() {
    let mut w = World::new(json!({"autoscaling.knative.dev/initial-scale": "3"}));
    w.replicas = Some(3);
    w.ready = 2;
    // Three times a target of 100 covers a burst of 211.
    w.after(0).is("3 3/2 Unknown(Queued) not-ready Serve -");
    w.ready = 3;
    w.after(1).is("3 3/3 True() ready Serve -");
    w.ready = 2;
    w.decide(0, 0);
    w.after(1).is("1 1/2 True() ready Serve 59s");

    let mut w = World::new(json!({"autoscaling.knative.dev/initial-scale": "0"}));
    w.config.allow_zero_initial_scale = true;
    w.replicas = Some(0);
    w.after(0).is("0 -1/0 False(NoTraffic) not-ready Proxy -");
    w.after(9).is("0 -1/0 False(NoTraffic) not-ready Proxy -");

    let mut w = World::new(json!({"autoscaling.knative.dev/min-scale": "2"}));
    w.ready = 1;
    w.after(0).is("2 2/1 Unknown(Queued) not-ready Proxy -");
    w.pa.spec.reachability = "Unreachable".to_owned();
    w.decide(0, 0);
    w.after(1).is("1 1/1 True() ready Serve 60s");
}

#[test]
fn waits_only_for_what_must_spread() {
    let story = |in_path, annotations| {
        let mut w = World::new(annotations);
        (w.in_path, w.ready) = (in_path, 1);
        w.after(0);
        w.decide(0, 20);
        w.after(60);
        w.replicas.unwrap()
    };
    assert_eq!(story(InPath::Always, json!({})), 0);
    assert_eq!(story(InPath::NotYet, json!({})), 1);
    assert_eq!(story(InPath::Always, json!({"autoscaling.knative.dev/scale-to-zero-pod-retention-period": "1m"})), 1);
}

#[test]
fn d11_1_d11_2_children() {
    let mut w = World::new(json!({"autoscaling.knative.dev/metric": "rps", "x": "y"}));
    w.sidecar = true;
    w.after(0);
    let sks = w.sks.as_ref().unwrap();
    assert_eq!(
        serde_json::to_value(&sks.spec).unwrap(),
        json!({"mode": "Proxy", "objectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "r-deployment"}, "protocolType": "http1"})
    );
    assert_eq!(sks.metadata.annotations, Some([("x".to_owned(), "y".to_owned())].into()));
    assert!(is_controlled_by(&sks.metadata, &w.pa));
    let metric = w.metric.as_ref().unwrap();
    assert_eq!(
        serde_json::to_value(&metric.spec).unwrap(),
        json!({"stableWindow": 60_000_000_000_i64, "panicWindow": 6_000_000_000_i64, "scrapeTarget": "r-private"})
    );
    assert_eq!(metric.metadata.labels, w.pa.metadata.labels);
}

#[test]
fn e3_6_pods_are_asked_only_where_something_answers() {
    let check = |annotations: Value, sidecar: bool, want: &str| {
        let mut w = World::new(annotations);
        w.sidecar = sidecar;
        w.after(0);
        assert_eq!(w.metric.unwrap().spec.scrape_target, want);
    };
    check(json!({}), true, "r-private");
    check(json!({"autoscaling.knative.dev/target-burst-capacity": "-1"}), true, "");
    check(json!({}), false, "");
}

#[test]
fn somebody_elses_child_is_left_alone() {
    let mut w = World::new(json!({}));
    w.after(0);
    let sks = w.sks.as_mut().unwrap();
    sks.metadata.owner_references = None;
    sks.spec.mode = "Serve".to_owned();
    let before = w.sks.clone();
    let scaled = w.plan();
    w.apply(&scaled);
    assert_eq!(w.sks, before);
    let conditions = &w.pa.status.as_ref().unwrap().conditions;
    let active = find(conditions, ACTIVE).unwrap();
    assert_eq!(
        (active.reason.as_str(), active.message.as_str()),
        ("NotOwned", "There is an existing ServerlessService \"r\" that we do not own.")
    );
}

#[test]
fn d13_1_hpa() {
    let w = World::new(
        json!({"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev", "autoscaling.knative.dev/target": "70"}),
    );
    let (scaling, _) = Scaling::resolve(&w.pa, &w.config, Duration::from_secs(600));
    let plan = plan_hpa(&w.pa, None, None, &scaling, &context(w.now, &[]));
    let kinds: Vec<_> = plan.writes.iter().map(|write| write.target().to_string()).collect();
    assert_eq!(kinds, ["HorizontalPodAutoscaler n/r", "ServerlessService n/r"]);

    let hpa: HorizontalPodAutoscaler = serde_json::from_value(json!({
        "metadata": {"name": "r", "namespace": "n", "labels": {"app": "r"}, "annotations": w.pa.metadata.annotations,
            "ownerReferences": [controller_ref(&w.pa)]},
        "spec": serde_json::to_value(hpa_spec(&w.pa, &scaling)).unwrap(),
        "status": {"desiredReplicas": 3, "currentReplicas": 2},
    }))
    .unwrap();
    let plan = plan_hpa(&w.pa, Some(&hpa), None, &scaling, &context(w.now, &[]));
    assert_eq!(plan.writes.len(), 1);
    let status: PodAutoscalerStatus = serde_json::from_value(plan.status.unwrap()).unwrap();
    assert_eq!((status.desired_scale, status.actual_scale), (Some(3), Some(2)));
    assert_eq!(status_of(&status.conditions, ACTIVE), ConditionStatus::True);

    let refused = Refusal { target: crate::plan::ObjectRef::of(&hpa), message: "no".to_owned() };
    let plan = plan_hpa(&w.pa, None, None, &scaling, &context(w.now, &[refused]));
    let status: PodAutoscalerStatus = serde_json::from_value(plan.status.unwrap()).unwrap();
    let active = find(&status.conditions, ACTIVE).unwrap();
    assert_eq!(
        (active.reason.as_str(), active.message.as_str()),
        ("FailedCreate", "Failed to create HorizontalPodAutoscaler \"r\": no")
    );
}

#[test]
fn an_object_on_its_way_out_is_left_alone() {
    let mut w = World::new(json!({}));
    w.pa.metadata.deletion_timestamp = Some(Time(w.now));
    assert_eq!(w.plan(), Scaled::default());
}
