//! From what is known of the containers to what is said of the pod. Pure.

use crate::pod::{ContainerState, ContainerStatus, PodPhase, PodSpec, PodStatus, RestartPolicy, Terminated};

use super::state::State;

/// The pod's status as its owner sees it.
pub(crate) fn summarize(spec: &PodSpec, state: &State) -> PodStatus {
    let statuses = |specs: &[crate::pod::ContainerSpec]| -> Vec<ContainerStatus> {
        specs.iter().filter_map(|c| state.containers.get(&c.name)).map(|c| c.status.clone()).collect()
    };
    let (init_containers, containers) = (statuses(&spec.init_containers), statuses(&spec.containers));
    let is_sidecar = |c: &&ContainerStatus| spec.init_containers.iter().any(|s| s.sidecar && s.name == c.name);
    let (sidecars, init): (Vec<&ContainerStatus>, Vec<&ContainerStatus>) = init_containers.iter().partition(is_sidecar);
    let main: Vec<&ContainerStatus> = containers.iter().collect();
    let phase = match state.record.evicted {
        Some(_) => PodPhase::Failed,
        None => phase(spec.restart, &init, &sidecars, &main),
    };
    let ready = phase == PodPhase::Running
        && main.iter().chain(&sidecars).all(|c| c.ready && matches!(c.state, ContainerState::Running { .. }));
    PodStatus {
        id: spec.id.clone(),
        name: spec.name.clone(),
        namespace: spec.namespace.clone(),
        labels: spec.labels.clone(),
        phase,
        ready,
        ip: state.record.sandbox.as_ref().map(|s| s.address.into()),
        ports: state.record.ports.clone(),
        init_containers,
        containers,
        evicted: state.record.evicted.clone(),
        started: state.record.started,
    }
}

fn phase(
    policy: RestartPolicy,
    init: &[&ContainerStatus],
    sidecars: &[&ContainerStatus],
    main: &[&ContainerStatus],
) -> PodPhase {
    let ended = |c: &ContainerStatus| match &c.state {
        ContainerState::Terminated(t) => Some(t.exit_code),
        _ => None,
    };
    if policy == RestartPolicy::Never && init.iter().any(|c| ended(c).is_some_and(|code| code != 0)) {
        return PodPhase::Failed;
    }
    if init.iter().any(|c| ended(c) != Some(0)) {
        return PodPhase::Pending;
    }
    let begun = |c: &ContainerStatus| !matches!(c.state, ContainerState::Waiting { .. }) || c.last.is_some();
    // Once others run, a sidecar that is started again does not set the pod back.
    if sidecars.iter().any(|c| !c.started) && !main.iter().any(|c| begun(c)) {
        return PodPhase::Pending;
    }
    if !main.iter().all(|c| begun(c)) {
        return PodPhase::Pending;
    }
    let codes: Option<Vec<i32>> = main.iter().map(|c| ended(c)).collect();
    match (policy, codes) {
        (RestartPolicy::Always, _) | (_, None) => PodPhase::Running,
        (_, Some(codes)) if codes.iter().all(|code| *code == 0) => PodPhase::Succeeded,
        (RestartPolicy::OnFailure, _) => PodPhase::Running,
        (RestartPolicy::Never, _) => PodPhase::Failed,
    }
}

/// Kubernetes' word for how a container ended.
pub(crate) fn reason(exit_code: i32, oom_killed: bool, started: bool) -> &'static str {
    match (exit_code, oom_killed, started) {
        (_, _, false) => "StartError",
        (_, true, _) => "OOMKilled",
        (0, ..) => "Completed",
        _ => "Error",
    }
}

/// Where nothing better is known: what a container of a pod that is only just here shows.
pub(crate) fn waiting(reason: &str, message: impl Into<String>) -> ContainerState {
    ContainerState::Waiting { reason: reason.to_owned(), message: message.into() }
}

/// The wait between restarts, in kubelet's words.
pub(crate) fn crash_loop(spec: &PodSpec, container: &str, wait: std::time::Duration) -> ContainerState {
    let message = format!(
        "back-off {} restarting failed container={container} pod={}_{}({})",
        go_duration(wait),
        spec.name,
        spec.namespace,
        spec.id
    );
    waiting("CrashLoopBackOff", message)
}

/// `10s`, `1m20s`, `5m0s`.
fn go_duration(time: std::time::Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

/// The last thing a container left, bounded as Kubernetes bounds it.
pub(crate) fn cut_message(text: &str, lines: usize, bytes: usize) -> String {
    let from = text.lines().count().saturating_sub(lines);
    let joined = text.lines().skip(from).collect::<Vec<_>>().join("\n");
    let mut start = joined.len().saturating_sub(bytes);
    while !joined.is_char_boundary(start) {
        start += 1;
    }
    joined[start..].to_owned()
}

/// A run that is over, in the words of the status.
pub(crate) fn terminated(exit: &crate::record::Exit, message: String) -> Terminated {
    Terminated {
        exit_code: exit.code,
        signal: exit.signal,
        reason: reason(exit.code, exit.oom_killed, exit.error.is_none()).to_owned(),
        message,
        started: exit.started,
        finished: exit.finished,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: &str) -> ContainerStatus {
        let terminated = |exit_code| Terminated {
            exit_code,
            signal: None,
            reason: String::new(),
            message: String::new(),
            started: None,
            finished: jiff::Timestamp::UNIX_EPOCH,
        };
        let (state, last) = match state {
            "waiting" => (waiting("", ""), None),
            "crashed" => (waiting("", ""), Some(terminated(1))),
            "running" => (ContainerState::Running { since: jiff::Timestamp::UNIX_EPOCH }, None),
            code => (ContainerState::Terminated(terminated(code.parse().expect("a code"))), None),
        };
        ContainerStatus {
            name: String::new(),
            state,
            last,
            trouble: None,
            ready: false,
            started: false,
            restarts: 0,
            image: String::new(),
            image_id: String::new(),
            volume_images: Vec::new(),
        }
    }

    #[test]
    fn phases() {
        use RestartPolicy::{Always, Never, OnFailure};
        let of = |policy, init: &[&str], sidecars: &[&str], main: &[&str]| {
            let all = |names: &[&str]| names.iter().map(|n| container(n)).collect::<Vec<_>>();
            let (init, sidecars, main) = (all(init), all(sidecars), all(main));
            phase(
                policy,
                &init.iter().collect::<Vec<_>>(),
                &sidecars.iter().collect::<Vec<_>>(),
                &main.iter().collect::<Vec<_>>(),
            )
        };
        let check = |policy, init: &[&str], main: &[&str], expected| {
            assert_eq!(of(policy, init, &[], main), expected, "{policy:?} {init:?} {main:?}");
        };
        assert_eq!(of(Always, &["0"], &["waiting"], &["waiting"]), PodPhase::Pending);
        assert_eq!(of(Always, &["0"], &["waiting"], &["running"]), PodPhase::Running);
        assert_eq!(of(Never, &[], &["running"], &["0"]), PodPhase::Succeeded);
        check(Always, &[], &["waiting"], PodPhase::Pending);
        check(Always, &[], &["running"], PodPhase::Running);
        check(Always, &[], &["running", "waiting"], PodPhase::Pending);
        check(Always, &[], &["crashed"], PodPhase::Running);
        check(Always, &[], &["1"], PodPhase::Running);
        check(Always, &["running"], &["waiting"], PodPhase::Pending);
        check(Always, &["0"], &["running"], PodPhase::Running);
        check(OnFailure, &[], &["0", "0"], PodPhase::Succeeded);
        check(OnFailure, &[], &["0", "1"], PodPhase::Running);
        check(Never, &[], &["0", "1"], PodPhase::Failed);
        check(Never, &[], &["0", "running"], PodPhase::Running);
        check(Never, &["1"], &["waiting"], PodPhase::Failed);
        check(Never, &[], &["0"], PodPhase::Succeeded);
    }

    #[test]
    fn words() {
        let check = |seconds, expected| assert_eq!(go_duration(std::time::Duration::from_secs(seconds)), expected);
        check(10, "10s");
        check(80, "1m20s");
        check(300, "5m0s");
        assert_eq!(cut_message("a\nb\nc", 2, 100), "b\nc");
        assert_eq!(cut_message("aé", 9, 2), "é");
        assert_eq!(cut_message("aé", 9, 1), "");
        assert_eq!(reason(0, false, true), "Completed");
        assert_eq!(reason(137, true, true), "OOMKilled");
        assert_eq!(reason(128, false, false), "StartError");
    }
}
