//! Which events a change of a pod's state is worth. Values in, values out; `recorder` writes them.

use neap_runtime::pod::{ContainerState, ContainerStatus, PodStatus, Trouble};

use super::status::reason_for_end;

/// An event about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Told {
    pub(super) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    pub(super) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

pub(super) fn changes(before: Option<&PodStatus>, now: &PodStatus) -> Vec<Told> {
    let mut told = Vec::new();
    let old = |name: &str| {
        let before = before?;
        before.init_containers.iter().chain(&before.containers).find(|c| c.name == name)
    };
    if let Some(why) = now.evicted.as_ref().filter(|_| before.is_none_or(|b| b.evicted.is_none())) {
        told.push(Told::warning(reason_for_end(why), why.clone()));
    }
    for container in now.init_containers.iter().chain(&now.containers) {
        of_container(old(&container.name), container, &now.name, &mut told);
    }
    told
}

fn of_container(before: Option<&ContainerStatus>, now: &ContainerStatus, pod: &str, told: &mut Vec<Told>) {
    let same_state = before.is_some_and(|b| b.state == now.state);
    let name = &now.name;
    let had_image = before.is_some_and(|b| !b.image_id.is_empty());
    if !had_image && !now.image_id.is_empty() {
        told.push(Told::normal("Pulled", format!("Container image {:?} is present on the machine", now.image)));
    }
    match &now.state {
        ContainerState::Waiting { reason, message } if !same_state => match reason.as_str() {
            "Pulling" => told.push(Told::normal("Pulling", format!("Pulling image {:?}", now.image))),
            "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => {
                let what =
                    if message.is_empty() { format!("Failed to pull image {:?}", now.image) } else { message.clone() };
                told.push(Told::warning("Failed", what));
                told.push(Told::warning("Failed", format!("Error: {reason}")));
            }
            "ImagePullBackOff" => {
                told.push(Told::normal("BackOff", format!("Back-off pulling image {:?}", now.image)));
            }
            "CrashLoopBackOff" => {
                told.push(Told::warning(
                    "BackOff",
                    format!("Back-off restarting failed container {name} in pod {pod}"),
                ));
            }
            "CreateContainerError" | "CreateContainerConfigError" | "RunContainerError" => {
                told.push(Told::warning("Failed", format!("Error: {message}")));
            }
            _ => {}
        },
        ContainerState::Running { .. } => {
            let was_running =
                before.is_some_and(|b| matches!(b.state, ContainerState::Running { .. }) && b.restarts == now.restarts);
            if !was_running {
                told.push(Told::normal("Created", format!("Created container: {name}")));
                told.push(Told::normal("Started", format!("Started container {name}")));
            }
            match &now.trouble {
                trouble if before.is_some_and(|b| b.trouble == *trouble) => {}
                Some(Trouble::Unhealthy(why)) => told.push(Told::warning("Unhealthy", why.clone())),
                Some(Trouble::Ending(why)) => told.push(Told::normal("Killing", why.clone())),
                None => {}
            }
        }
        ContainerState::Terminated(t) if !same_state && t.reason == "StartError" => {
            told.push(Told::warning("Failed", format!("Error: {}", t.message)));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_runtime::pod::{PodId, PodPhase};
    use std::collections::BTreeMap;

    fn waiting(reason: &str) -> ContainerState {
        ContainerState::Waiting { reason: reason.into(), message: String::new() }
    }

    fn running() -> ContainerState {
        ContainerState::Running { since: jiff::Timestamp::UNIX_EPOCH }
    }

    fn pod(state: ContainerState, ready: bool, restarts: u32) -> PodStatus {
        let image_id = if matches!(state, ContainerState::Running { .. }) { "app@sha256:1" } else { "" };
        let container = ContainerStatus {
            name: "c".into(),
            state,
            last: None,
            trouble: None,
            ready,
            started: true,
            restarts,
            image: "app".into(),
            image_id: image_id.into(),
            volume_images: Vec::new(),
        };
        PodStatus {
            id: PodId("u".into()),
            name: "p".into(),
            namespace: "n".into(),
            labels: BTreeMap::new(),
            phase: PodPhase::Running,
            ready,
            ip: None,
            ports: BTreeMap::new(),
            init_containers: Vec::new(),
            containers: vec![container],
            evicted: None,
            started: None,
        }
    }

    fn check(before: Option<PodStatus>, now: PodStatus, want: &[&str]) {
        let got: Vec<String> =
            changes(before.as_ref(), &now).into_iter().map(|t| format!("{} {}", t.reason, t.message)).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn each_change_is_told_once() {
        check(None, pod(waiting("ContainerCreating"), false, 0), &[]);
        check(
            Some(pod(waiting("ContainerCreating"), false, 0)),
            pod(running(), false, 0),
            &[
                "Pulled Container image \"app\" is present on the machine",
                "Created Created container: c",
                "Started Started container c",
            ],
        );
        check(Some(pod(running(), false, 0)), pod(running(), true, 0), &[]);
        let mut evicted = pod(running(), true, 0);
        evicted.evicted = Some("too much".into());
        check(Some(pod(running(), true, 0)), evicted.clone(), &["Evicted too much"]);
        check(Some(evicted.clone()), evicted, &[]);
        let troubled = |trouble: Trouble| {
            let mut pod = pod(running(), false, 0);
            pod.containers[0].trouble = Some(trouble);
            pod
        };
        let unhealthy = || troubled(Trouble::Unhealthy("Liveness probe failed: no".into()));
        check(Some(pod(running(), true, 0)), unhealthy(), &["Unhealthy Liveness probe failed: no"]);
        check(Some(unhealthy()), unhealthy(), &[]);
        check(Some(unhealthy()), troubled(Trouble::Ending("it goes".into())), &["Killing it goes"]);
        check(Some(unhealthy()), pod(running(), true, 0), &[]);
        check(
            Some(pod(running(), true, 0)),
            pod(running(), true, 1),
            &["Created Created container: c", "Started Started container c"],
        );
        check(
            None,
            pod(waiting("ErrImagePull"), false, 0),
            &["Failed Failed to pull image \"app\"", "Failed Error: ErrImagePull"],
        );
        check(Some(pod(waiting("ErrImagePull"), false, 0)), pod(waiting("ErrImagePull"), false, 0), &[]);
        check(
            Some(pod(running(), true, 0)),
            pod(waiting("CrashLoopBackOff"), false, 1),
            &["BackOff Back-off restarting failed container c in pod p"],
        );
    }
}
