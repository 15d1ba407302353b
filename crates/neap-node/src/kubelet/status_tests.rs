use super::*;
use neap_runtime::pod::PodId;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn pod(spec: Value, status: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec, "status": status}),
    )
    .unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn running(name: &str, ready: bool) -> ContainerStatus {
    ContainerStatus {
        name: name.into(),
        state: ContainerState::Running { since: at(5) },
        last: None,
        trouble: None,
        ready,
        started: true,
        restarts: 0,
        image: "app:1".into(),
        image_id: "app@sha256:1".into(),
        volume_images: Vec::new(),
    }
}

fn runtime(phase: PodPhase, containers: Vec<ContainerStatus>) -> PodStatus {
    PodStatus {
        id: PodId("u".into()),
        name: "p".into(),
        namespace: "n".into(),
        labels: BTreeMap::new(),
        phase,
        ready: phase == PodPhase::Running && containers.iter().all(|c| c.ready),
        ip: Some([198, 19, 0, 2].into()),
        ports: BTreeMap::new(),
        init_containers: Vec::new(),
        containers,
        evicted: None,
        started: Some(at(3)),
    }
}

/// `Type=Status:Reason` of each condition, in short.
fn shown(status: &ApiStatus) -> String {
    let short = |c: &PodCondition| {
        let reason = c.reason.as_ref().map(|r| format!(":{r}")).unwrap_or_default();
        format!("{}={}{reason}", c.type_, c.status)
    };
    let conditions: Vec<String> = status.conditions.iter().flatten().map(short).collect();
    format!("{} {}", status.phase.as_deref().unwrap_or("-"), conditions.join(" "))
}

fn one() -> Value {
    json!({"containers": [{"name": "c", "image": "app:1"}]})
}

#[test]
fn a_pod_climbs_to_ready() {
    let check = |known: Option<PodStatus>, want: &str| {
        let got =
            status(&pod(one(), json!({})), None, known.as_ref(), Progress::Accepted, &NodeFacts::example(), at(10));
        assert_eq!(shown(&got), want);
        got
    };
    let new = check(
        None,
        "Pending PodReadyToStartContainers=False Initialized=True Ready=False:ContainersNotReady \
         ContainersReady=False:ContainersNotReady PodScheduled=True",
    );
    let waiting = new.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    check(
        Some(runtime(PodPhase::Running, vec![running("c", false)])),
        "Running PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady \
         ContainersReady=False:ContainersNotReady PodScheduled=True",
    );
    let ready = check(
        Some(runtime(PodPhase::Running, vec![running("c", true)])),
        "Running PodReadyToStartContainers=True Initialized=True Ready=True ContainersReady=True PodScheduled=True",
    );
    assert_eq!(ready.pod_ip.as_deref(), Some("198.19.0.2"));
    assert_eq!(ready.start_time, Some(Time(at(3))));
    let c = &ready.container_statuses.unwrap()[0];
    assert_eq!((c.container_id.as_deref(), c.image_id.as_str()), (Some("neap://u/c/0"), "app@sha256:1"));
}

#[test]
fn times_of_change_and_foreign_conditions_stay() {
    let known = runtime(PodPhase::Running, vec![running("c", true)]);
    let first = status(&pod(one(), json!({})), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(10));
    let mut written = serde_json::to_value(&first).unwrap();
    let gate = json!({"type": "Gate", "status": "True", "lastTransitionTime": null});
    written["conditions"].as_array_mut().unwrap().push(gate);
    let again =
        status(&pod(one(), written.clone()), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(99));
    let mut conditions = again.conditions.clone().unwrap();
    assert_eq!(conditions.remove(5).type_, "Gate");
    assert_eq!(Some(conditions), first.conditions);
    assert!(same(&again, &first));
    // What was written counts before what the watch has shown so far.
    let stale =
        status(&pod(one(), json!({})), Some(&first), Some(&known), Progress::Accepted, &NodeFacts::example(), at(99));
    assert_eq!(stale, first);
    // Written once, the same input changes nothing any more.
    let settled = serde_json::to_value(&again).unwrap();
    let third = status(&pod(one(), settled), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(200));
    assert_eq!(third, again);
}

#[test]
fn ends_and_failures_are_told() {
    let exit = |code: i32| {
        let t = Terminated {
            exit_code: code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: "bye".into(),
            started: Some(at(5)),
            finished: at(7),
        };
        ContainerStatus { state: ContainerState::Terminated(t), ready: false, ..running("c", false) }
    };
    for (phase, code, want) in [
        (
            PodPhase::Succeeded,
            0,
            "Succeeded PodReadyToStartContainers=False Initialized=True Ready=False:PodCompleted ContainersReady=False:PodCompleted PodScheduled=True",
        ),
        (
            PodPhase::Failed,
            3,
            "Failed PodReadyToStartContainers=False Initialized=True Ready=False:PodFailed ContainersReady=False:PodFailed PodScheduled=True",
        ),
    ] {
        let known = runtime(phase, vec![exit(code)]);
        let got = status(&pod(one(), json!({})), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(10));
        assert_eq!(shown(&got), want);
        let t = got.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!((t.exit_code, t.message.as_deref()), (code, Some("bye")));
    }
}

#[test]
fn what_stands_in_the_way_is_shown() {
    let unplaced =
        status(&pod(one(), json!({})), None, None, Progress::Unschedulable("no room"), &NodeFacts::example(), at(1));
    assert_eq!(shown(&unplaced), "Pending PodScheduled=False:Unschedulable");
    assert_eq!(unplaced.conditions.unwrap()[0].message.as_deref(), Some("no room"));
    let error = SpecError::Container { container: "c".into(), message: "secret \"s\" not found".into() };
    let refused = status(&pod(one(), json!({})), None, None, Progress::Refused(&error), &NodeFacts::example(), at(1));
    let waiting = refused.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(
        (waiting.reason.as_deref(), waiting.message.as_deref()),
        (Some("CreateContainerConfigError"), Some("secret \"s\" not found"))
    );
}

#[test]
fn readiness_gates_and_init_containers_hold_a_pod_back() {
    let spec = json!({"containers": [{"name": "c"}], "readinessGates": [{"conditionType": "Gate"}]});
    let known = runtime(PodPhase::Running, vec![running("c", true)]);
    let got = status(&pod(spec, json!({})), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(1));
    assert!(shown(&got).contains("Ready=False:ReadinessGatesNotReady ContainersReady=True"), "{}", shown(&got));
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let mut known = runtime(PodPhase::Pending, Vec::new());
    known.init_containers = vec![running("i", false)];
    let got = status(&pod(spec, json!({})), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(1));
    assert!(shown(&got).contains("Initialized=False:ContainersNotInitialized"), "{}", shown(&got));
    let waiting = got.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
}

#[test]
fn the_class_of_service_follows_requests_and_limits() {
    let check = |resources: Value, want: &str| {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        assert_eq!(qos_class(&serde_json::from_value(spec).unwrap()), want);
    };
    check(json!({}), "BestEffort");
    check(json!({"requests": {"cpu": "1"}}), "Burstable");
    check(json!({"limits": {"cpu": "1"}}), "Burstable");
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
    check(
        json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
        "Guaranteed",
    );
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
}

#[test]
fn an_evicted_pod_says_so() {
    let mut known = runtime(PodPhase::Failed, vec![running("c", false)]);
    known.evicted = Some("too much".into());
    let got = status(&pod(one(), json!({})), None, Some(&known), Progress::Accepted, &NodeFacts::example(), at(10));
    let words = [got.phase, got.reason, got.message].map(Option::unwrap_or_default);
    assert_eq!(words, ["Failed", "Evicted", "too much"]);
}

#[test]
fn a_sidecar_has_done_its_part_when_it_has_started() {
    let spec = json!({"initContainers": [{"name": "s", "image": "x:1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "app:1"}]});
    let check = |ready: bool, want: &str| {
        let mut known = runtime(PodPhase::Running, vec![running("c", true)]);
        known.ready = ready;
        known.init_containers = vec![running("s", ready)];
        let got = status(
            &pod(spec.clone(), json!({})),
            None,
            Some(&known),
            Progress::Accepted,
            &NodeFacts::example(),
            at(10),
        );
        assert!(shown(&got).contains(want), "{}", shown(&got));
    };
    check(true, "Initialized=True Ready=True ContainersReady=True");
    check(false, "Initialized=True Ready=False:ContainersNotReady");
}
