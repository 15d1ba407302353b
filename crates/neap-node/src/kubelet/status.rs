//! From what the runtime knows of a pod to the status in the API. Values in, values out: the same input gives the same
//! status, so a write is needed exactly when the result differs from what was written last.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus as ApiContainer, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus as ApiStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use neap_runtime::pod::{ContainerState, ContainerStatus, PodPhase, PodStatus, Terminated};

use super::env::NodeFacts;
use super::spec::SpecError;
use crate::quantity;

/// Conditions that are the kubelet's to write; all others are kept as they are found.
const OWN: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Kubernetes' words for a pod that was active for longer than its `activeDeadlineSeconds`.
pub(super) const OVERDUE: &str = "Pod was active on the node longer than the specified deadline";

/// How far this machine has come with a pod.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress<'a> {
    /// It cannot be placed; why.
    Unschedulable(&'a str),
    /// It cannot be handed to the runtime yet.
    Refused(&'a SpecError),
    /// It was handed over, or is about to be.
    Accepted,
}

/// `written` is what this kubelet wrote last; the pod's own status may be older than that.
pub(super) fn status(
    pod: &Pod,
    written: Option<&ApiStatus>,
    runtime: Option<&PodStatus>,
    progress: Progress<'_>,
    node: &NodeFacts,
    now: Timestamp,
) -> ApiStatus {
    let empty = (PodSpec::default(), ApiStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&empty.0);
    let found = pod.status.as_ref().unwrap_or(&empty.1);
    let before = written.unwrap_or(found);
    let mut status = ApiStatus {
        qos_class: Some(qos_class(spec).to_owned()),
        nominated_node_name: found.nominated_node_name.clone(),
        observed_generation: pod.metadata.generation,
        ..ApiStatus::default()
    };
    if let Progress::Unschedulable(why) = progress {
        status.phase = Some("Pending".to_owned());
        let condition = condition("PodScheduled", false, "Unschedulable", why);
        status.conditions = Some(merged(found, before, vec![condition], now));
        return status;
    }
    let phase = runtime.map_or(PodPhase::Pending, |r| r.phase);
    status.phase = Some(format!("{phase:?}"));
    if let Some(why) = runtime.and_then(|r| r.evicted.as_ref()) {
        status.reason = Some(reason_for_end(why).to_owned());
        status.message = Some(why.clone());
    }
    status.host_ip = Some(node.address.to_string());
    status.host_ips = Some(vec![HostIP { ip: node.address.to_string() }]);
    status.start_time =
        before.start_time.clone().or_else(|| Some(Time(runtime.and_then(|r| r.started).unwrap_or(now))));
    if let Some(ip) = runtime.and_then(|r| r.ip) {
        status.pod_ip = Some(ip.to_string());
        status.pod_ips = Some(vec![PodIP { ip: ip.to_string() }]);
    } else if phase == PodPhase::Succeeded || phase == PodPhase::Failed {
        // An ended pod keeps the address it had, for whoever reads its story.
        status.pod_ip = before.pod_ip.clone();
        status.pod_ips = before.pod_ips.clone();
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let known = |list: Option<&[ContainerStatus]>, declared: &[Container], initial: &str| -> Vec<ApiContainer> {
        let find = |name: &str| list.and_then(|l| l.iter().find(|s| s.name == name));
        declared.iter().map(|c| container(pod, c, find(&c.name), progress, initial)).collect()
    };
    if !init.is_empty() {
        let containers = known(runtime.map(|r| r.init_containers.as_slice()), init, "PodInitializing");
        status.init_container_statuses = Some(containers);
    }
    let waiting_for = if init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let containers = known(runtime.map(|r| r.containers.as_slice()), &spec.containers, waiting_for);
    status.container_statuses = Some(containers);
    let own = conditions(pod, spec, &status, runtime, phase);
    status.conditions = Some(merged(found, before, own, now));
    status
}

/// What is left to say of a pod whose containers are gone, by what was said of it last: it failed, unless all of them
/// had ended well by themselves.
pub(super) fn ended_status(mut status: ApiStatus, now: Timestamp) -> ApiStatus {
    let well = |c: &ApiContainer| {
        c.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|ended| ended.exit_code == 0)
    };
    let containers = status.container_statuses.iter().flatten();
    let phase = match status.container_statuses.iter().flatten().next().is_some() && containers.clone().all(well) {
        true => "Succeeded",
        false => "Failed",
    };
    status.phase = Some(phase.to_owned());
    let all = status.container_statuses.iter_mut().flatten().chain(status.init_container_statuses.iter_mut().flatten());
    for container in all {
        container.ready = false;
        container.started = Some(false);
        let state = container.state.get_or_insert_default();
        if let Some(running) = state.running.take() {
            state.terminated = Some(ContainerStateTerminated {
                container_id: container.container_id.clone(),
                exit_code: KILLED,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was deleted.".to_owned()),
                started_at: running.started_at,
                finished_at: Some(Time(now)),
                ..ContainerStateTerminated::default()
            });
        }
    }
    for condition in status.conditions.iter_mut().flatten() {
        let over = ["Ready", "ContainersReady", "PodReadyToStartContainers"].contains(&condition.type_.as_str());
        if over && condition.status != "False" {
            condition.status = "False".to_owned();
            condition.last_transition_time = Some(Time(now));
        }
    }
    status
}

/// Exit code of a container whose own is not known (Kubernetes' value).
const KILLED: i32 = 137;

/// Whether two statuses say the same of what is the kubelet's to say.
pub(super) fn same(a: &ApiStatus, b: &ApiStatus) -> bool {
    let own = |status: &ApiStatus| {
        let mut status = status.clone();
        status.conditions.get_or_insert_default().retain(|c| OWN.contains(&c.type_.as_str()));
        status
    };
    own(a) == own(b)
}

fn conditions(
    pod: &Pod,
    spec: &PodSpec,
    status: &ApiStatus,
    runtime: Option<&PodStatus>,
    phase: PodPhase,
) -> Vec<PodCondition> {
    let sandbox = runtime.is_some_and(|r| r.ip.is_some() || spec.host_network == Some(true) && r.started.is_some());
    let ended = matches!(phase, PodPhase::Succeeded | PodPhase::Failed);
    let completed = |s: &ApiContainer| {
        s.state.as_ref().and_then(|state| state.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
    };
    let is_sidecar = |name: &str| {
        let init = spec.init_containers.iter().flatten();
        init.into_iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    // A sidecar has done its part when it has started.
    let incomplete = names(status.init_container_statuses.as_deref(), |s| {
        !(completed(s) || is_sidecar(&s.name) && s.started == Some(true))
    });
    let mut unready = names(status.container_statuses.as_deref(), |s| !s.ready);
    unready.extend(names(status.init_container_statuses.as_deref(), |s| is_sidecar(&s.name) && !s.ready));
    let initialized = match (incomplete.is_empty(), phase) {
        (true, _) => condition("Initialized", true, "", ""),
        (false, PodPhase::Succeeded) => condition("Initialized", true, "PodCompleted", ""),
        (false, _) => {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            condition("Initialized", false, "ContainersNotInitialized", &message)
        }
    };
    let all_ready = unready.is_empty() && runtime.is_some_and(|r| r.ready) && !ended;
    let unready_message = format!("containers with unready status: [{}]", unready.join(" "));
    let not_ready = |kind: &str| match phase {
        PodPhase::Succeeded => condition(kind, false, "PodCompleted", ""),
        PodPhase::Failed => condition(kind, false, "PodFailed", ""),
        _ => condition(kind, false, "ContainersNotReady", &unready_message),
    };
    let containers_ready =
        if all_ready { condition("ContainersReady", true, "", "") } else { not_ready("ContainersReady") };
    let gate_open = |kind: &str| {
        let found = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == kind);
        found.is_some_and(|c| c.status == "True")
    };
    let closed: Vec<&str> = spec
        .readiness_gates
        .iter()
        .flatten()
        .map(|g| g.condition_type.as_str())
        .filter(|kind| !gate_open(kind))
        .collect();
    let ready = match (all_ready, closed.is_empty()) {
        (true, true) => condition("Ready", true, "", ""),
        (true, false) => {
            let message = format!("the status of pod readiness gate {:?} is not \"True\"", closed[0]);
            condition("Ready", false, "ReadinessGatesNotReady", &message)
        }
        (false, _) => not_ready("Ready"),
    };
    let sandbox = condition("PodReadyToStartContainers", sandbox && !ended, "", "");
    vec![sandbox, initialized, ready, containers_ready, condition("PodScheduled", true, "", "")]
}

/// The kubelet's conditions among those of others, in the order they are found; the time of the last change stays
/// when nothing changed.
fn merged(found: &ApiStatus, before: &ApiStatus, own: Vec<PodCondition>, now: Timestamp) -> Vec<PodCondition> {
    let old = |c: &PodCondition| {
        let same = |b: &&PodCondition| b.type_ == c.type_ && b.status == c.status;
        before.conditions.iter().flatten().find(same).and_then(|b| b.last_transition_time.clone())
    };
    let mut own: Vec<PodCondition> = own
        .into_iter()
        .map(|c| PodCondition { last_transition_time: Some(old(&c).unwrap_or(Time(now))), ..c })
        .collect();
    let mut all = Vec::new();
    for c in found.conditions.iter().flatten() {
        match own.iter().position(|o| o.type_ == c.type_) {
            Some(i) => all.push(own.remove(i)),
            None if OWN.contains(&c.type_.as_str()) => {}
            None => all.push(c.clone()),
        }
    }
    all.extend(own);
    all
}

fn condition(kind: &str, ok: bool, reason: &str, message: &str) -> PodCondition {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PodCondition {
        type_: kind.to_owned(),
        status: if ok { "True" } else { "False" }.to_owned(),
        reason: given(reason),
        message: given(message),
        ..PodCondition::default()
    }
}

fn names(list: Option<&[ApiContainer]>, which: impl Fn(&ApiContainer) -> bool) -> Vec<String> {
    list.into_iter().flatten().filter(|s| which(s)).map(|s| s.name.clone()).collect()
}

fn container(
    pod: &Pod,
    declared: &Container,
    known: Option<&ContainerStatus>,
    progress: Progress<'_>,
    initial: &str,
) -> ApiContainer {
    let Some(known) = known else {
        let (reason, message) = match progress {
            Progress::Refused(SpecError::Container { container, message }) if *container == declared.name => {
                ("CreateContainerConfigError", Some(message.clone()))
            }
            _ => (initial, None),
        };
        let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
        return ApiContainer {
            name: declared.name.clone(),
            image: declared.image.clone().unwrap_or_default(),
            state: Some(ApiState { waiting: Some(waiting), ..ApiState::default() }),
            started: Some(false),
            ..ApiContainer::default()
        };
    };
    let id = |restarts: u32| {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        format!("neap://{uid}/{}/{restarts}", known.name)
    };
    let state = match &known.state {
        ContainerState::Waiting { reason, message } => ApiState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: Some(message.clone()).filter(|m| !m.is_empty()),
            }),
            ..ApiState::default()
        },
        ContainerState::Running { since } => {
            let running = ContainerStateRunning { started_at: Some(Time(*since)) };
            ApiState { running: Some(running), ..ApiState::default() }
        }
        ContainerState::Terminated(t) => ended(t, id(known.restarts)),
    };
    let created = !matches!(known.state, ContainerState::Waiting { .. }) || known.last.is_some();
    ApiContainer {
        name: known.name.clone(),
        image: known.image.clone(),
        image_id: known.image_id.clone(),
        container_id: created.then(|| id(known.restarts)),
        state: Some(state),
        last_state: known.last.as_ref().map(|t| ended(t, id(known.restarts.saturating_sub(1)))),
        ready: known.ready,
        started: Some(known.started),
        restart_count: i32::try_from(known.restarts).unwrap_or(i32::MAX),
        ..ApiContainer::default()
    }
}

fn ended(t: &Terminated, id: String) -> ApiState {
    let terminated = ContainerStateTerminated {
        container_id: Some(id),
        exit_code: t.exit_code,
        signal: t.signal,
        reason: Some(t.reason.clone()),
        message: Some(t.message.clone()).filter(|m| !m.is_empty()),
        started_at: t.started.map(Time),
        finished_at: Some(Time(t.finished)),
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

/// Kubernetes' class: guaranteed when every container's limits equal its requests, best effort without any.
pub(super) fn qos_class(spec: &PodSpec) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for resource in ["cpu", "memory"] {
            let amount = |limits: bool| {
                let r = container.resources.as_ref()?;
                let map = if limits { r.limits.as_ref() } else { r.requests.as_ref() };
                let amount = quantity::parse(&map?.get(resource)?.0)?.thousandths();
                (amount > 0).then_some(amount)
            };
            let (limit, request) = (amount(true), amount(false));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Kubernetes' word for why a pod was ended by the machine.
pub(super) fn reason_for_end(why: &str) -> &'static str {
    if why == OVERDUE { "DeadlineExceeded" } else { "Evicted" }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
