//! Whether a pod fits on this machine, which is the only one. Values in, values out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::quantity;

/// What pods may ask for together, by resource name, in thousandths.
pub(super) type Amounts = BTreeMap<String, i128>;

/// Each pod takes one of these, whatever else it asks for.
pub(super) const PODS: &str = "pods";

/// What a pod asks for: its containers and sidecars together, or an init container with the sidecars that run beside it
/// where that is more.
pub(super) fn requests(spec: &PodSpec) -> Amounts {
    let mut sum = Amounts::from([(PODS.to_owned(), 1000)]);
    let add = |sum: &mut Amounts, more: Amounts| more.into_iter().for_each(|(n, a)| *sum.entry(n).or_default() += a);
    for container in &spec.containers {
        add(&mut sum, of_container(container));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        add(&mut now, of_container(container));
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.clone_from(&now);
        }
        for (name, amount) in now {
            let entry = starting.entry(name).or_default();
            *entry = (*entry).max(amount);
        }
    }
    add(&mut sum, sidecars);
    for (name, amount) in starting {
        let entry = sum.entry(name).or_default();
        *entry = (*entry).max(amount);
    }
    for (name, overhead) in spec.overhead.iter().flatten() {
        if let Some(amount) = quantity::parse(&overhead.0) {
            *sum.entry(name.clone()).or_default() += amount.thousandths();
        }
    }
    sum
}

/// A limit without a request is also the request.
fn of_container(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::new() };
    let limits = resources.limits.iter().flatten();
    let requests = resources.requests.iter().flatten();
    let parsed =
        limits.chain(requests).filter_map(|(name, q)| Some((name.clone(), quantity::parse(&q.0)?.thousandths())));
    parsed.collect()
}

/// What all pods on the machine hold.
#[derive(Default)]
pub(super) struct Held(Amounts);

impl Held {
    pub(super) fn add(&mut self, asked: &Amounts) {
        for (name, amount) in asked {
            *self.0.entry(name.clone()).or_default() += amount;
        }
    }

    pub(super) fn release(&mut self, asked: &Amounts) {
        for (name, amount) in asked {
            *self.0.entry(name.clone()).or_default() -= amount;
        }
    }
}

/// Still holds what it asked for.
pub(super) fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Somebody asked this pod to wait before it is placed.
pub(super) fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()))
}

/// Why the pod does not fit beside what others hold, in the scheduler's words; `None` when it fits.
pub(super) fn obstacle(
    pod: &Pod,
    held: &Held,
    allocatable: &Amounts,
    labels: &BTreeMap<String, String>,
) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    if !selected {
        return Some(sentence("1 node(s) didn't match Pod's node affinity/selector"));
    }
    let lacks = |(name, asked): (&String, &i128)| {
        let there = allocatable.get(name).copied().unwrap_or_default();
        let taken = held.0.get(name).copied().unwrap_or_default();
        (*asked > 0 && taken + *asked > there).then(|| format!("1 Insufficient {name}"))
    };
    let lacking: Vec<String> = requests(spec).iter().filter_map(lacks).collect();
    (!lacking.is_empty()).then(|| sentence(&lacking.join(", ")))
}

fn sentence(why: &str) -> String {
    format!("0/1 nodes are available: {why}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn amounts(list: &[(&str, &str)]) -> Amounts {
        list.iter().map(|(name, text)| ((*name).to_owned(), quantity::parse(text).unwrap().thousandths())).collect()
    }

    fn check(spec: Value, held: &[(&str, &str)], want: Option<&str>) {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let allocatable = amounts(&[("cpu", "2"), ("memory", "1Gi"), ("pods", "5")]);
        let labels = BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())]);
        let mut taken = Held::default();
        taken.add(&amounts(held));
        let got = obstacle(&pod, &taken, &allocatable, &labels);
        assert_eq!(got.as_deref(), want);
    }

    fn asking(requests: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
    }

    #[test]
    fn a_pod_fits_or_the_lack_is_named() {
        check(asking(json!({})), &[("cpu", "9")], None);
        check(asking(json!({"cpu": "2"})), &[], None);
        check(asking(json!({})), &[("pods", "5")], Some("0/1 nodes are available: 1 Insufficient pods."));
        check(asking(json!({"cpu": "3"})), &[], Some("0/1 nodes are available: 1 Insufficient cpu."));
        check(
            asking(json!({"cpu": "1500m"})),
            &[("cpu", "600m")],
            Some("0/1 nodes are available: 1 Insufficient cpu."),
        );
        check(
            asking(json!({"cpu": "3", "memory": "2Gi"})),
            &[],
            Some("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."),
        );
        check(
            asking(json!({"nvidia.com/gpu": "1"})),
            &[],
            Some("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
        );
        let mut elsewhere = asking(json!({}));
        elsewhere["nodeSelector"] = json!({"kubernetes.io/os": "plan9"});
        check(elsewhere, &[], Some("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."));
    }

    #[test]
    fn limits_stand_in_for_requests_and_init_containers_count_apart() {
        let spec = json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "900m", "memory": "10Mi"}}}],
            "containers": [
                {"name": "a", "resources": {"limits": {"cpu": "500m"}, "requests": {"memory": "100Mi"}}},
                {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}}},
            ],
        });
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(requests(&spec), amounts(&[("cpu", "900m"), ("memory", "100Mi"), ("pods", "1")]));
        let spec = json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "300m"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "1Mi"}}}],
        });
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(requests(&spec), amounts(&[("cpu", "400m"), ("memory", "1Mi"), ("pods", "1")]));
    }
}
