//! What pods and the machine use now, as `kubectl top` asks for it (metrics.k8s.io): the difference between what the
//! kernel counted a while ago and what it counts now. Nothing of it is stored.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use neap_runtime::pod::{PodId, PodUsage};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Kubelet;

/// What the objects are served under.
pub const GROUP_VERSION: &str = "metrics.k8s.io/v1beta1";
/// Time between two counts (metrics-server's default).
const STEP: Duration = Duration::from_secs(15);
/// Ticks of the processor's time in `/proc/stat` a second: the same on every Linux.
const TICKS: u64 = 100;

/// Who counts: a container of a pod, or the machine.
type Key = Option<(PodId, String)>;

/// The counts of some moments ago.
#[derive(Default)]
pub(super) struct Counts {
    /// The last two rounds, so that a question right after a count has something to compare with.
    rounds: Mutex<[HashMap<Key, Count>; 2]>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    at: Instant,
    cpu: Duration,
}

impl Counts {
    fn take(&self, round: HashMap<Key, Count>) {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.swap(0, 1);
        rounds[1] = round;
    }

    /// Part of one processor that was used since an earlier count, and how long ago that was. `None` for what was not
    /// there yet, or has begun anew since.
    fn rate(&self, key: &Key, now: Count) -> Option<(f64, Duration)> {
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let before = rounds.iter().filter_map(|round| round.get(key)).find(|count| count.at < now.at)?;
        let (time, cpu) = (now.at - before.at, now.cpu.checked_sub(before.cpu)?);
        Some((cpu.as_secs_f64() / time.as_secs_f64(), time))
    }
}

impl Kubelet {
    /// Counts from time to time, until the shutdown signal.
    pub(super) async fn count(&self) {
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = steps.tick() => {}
                () = self.shared.shutdown.cancelled() => return,
            }
            let used = self.shared.runtime.usage().await;
            let at = Instant::now();
            let mut round: HashMap<Key, Count> = HashMap::new();
            for pod in used {
                let counts = pod
                    .containers
                    .iter()
                    .map(|(name, usage)| (Some((pod.id.clone(), name.clone())), Count { at, cpu: usage.cpu }));
                round.extend(counts);
            }
            if let Some((cpu, _)) = machine() {
                round.insert(None, Count { at, cpu });
            }
            self.shared.counts.take(round);
        }
    }

    /// `PodMetrics` of all pods whose containers were counted before.
    pub async fn pod_metrics(&self) -> Vec<Value> {
        let used = self.shared.runtime.usage().await;
        let (at, now) = (Instant::now(), (self.shared.clock)());
        used.iter().filter_map(|pod| pod_metrics(&self.shared.counts, pod, at, now)).collect()
    }

    /// `NodeMetrics` of this machine.
    pub async fn node_metrics(&self) -> Vec<Value> {
        let Some((cpu, memory)) = machine() else { return Vec::new() };
        let count = Count { at: Instant::now(), cpu };
        let Some((rate, window)) = self.shared.counts.rate(&None, count) else { return Vec::new() };
        let node = &self.shared.around.node.name;
        let mut object = head("NodeMetrics", json!({"name": node}), window, (self.shared.clock)());
        object["usage"] = amounts(rate, memory);
        vec![object]
    }
}

fn pod_metrics(counts: &Counts, pod: &PodUsage, at: Instant, now: Timestamp) -> Option<Value> {
    let mut window = Duration::ZERO;
    let mut containers = Vec::new();
    for (name, usage) in &pod.containers {
        // All of a pod or nothing of it, as metrics-server has it: a sum of parts would mislead.
        let (rate, since) = counts.rate(&Some((pod.id.clone(), name.clone())), Count { at, cpu: usage.cpu })?;
        window = window.max(since);
        containers.push(json!({"name": name, "usage": amounts(rate, usage.memory_bytes)}));
    }
    let metadata = json!({"name": pod.name, "namespace": pod.namespace, "labels": pod.labels});
    let mut object = head("PodMetrics", metadata, window, now);
    object["containers"] = containers.into();
    Some(object)
}

fn head(kind: &str, mut metadata: Value, window: Duration, now: Timestamp) -> Value {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    metadata["creationTimestamp"] = time.clone().into();
    let window = format!("{}.{:03}s", window.as_secs(), window.subsec_millis());
    json!({"kind": kind, "apiVersion": GROUP_VERSION, "metadata": metadata, "timestamp": time, "window": window})
}

fn amounts(rate: f64, memory_bytes: u64) -> Value {
    json!({"cpu": format!("{}n", (rate * 1e9) as u64), "memory": format!("{}Ki", memory_bytes >> 10)})
}

/// What the machine's processors have worked since its start, and the memory that is not available.
fn machine() -> Option<(Duration, u64)> {
    let cpu = worked(&std::fs::read_to_string("/proc/stat").ok()?)?;
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        memory.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    Some((cpu, kib("MemTotal:")?.saturating_sub(kib("MemAvailable:")?) << 10))
}

/// From the text of `/proc/stat`: all but idling and waiting. Guests' time is within the first two numbers already.
fn worked(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, irq, softirq, ..] = numbers[..] else { return None };
    let ticks = user + nice + system + irq + softirq + numbers.get(7).unwrap_or(&0);
    Some(Duration::from_millis(ticks * 1000 / TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_runtime::pod::Usage;

    #[tokio::test(start_paused = true)]
    async fn use_is_the_difference_of_two_counts() {
        let counts = Counts::default();
        let begun = Instant::now();
        let key = |name: &str| Some((PodId("u".into()), name.to_owned()));
        let count = |seconds: u64, cpu: u64| Count {
            at: begun + Duration::from_secs(seconds),
            cpu: Duration::from_millis(cpu),
        };
        let check = |at: u64, cpu: &[(&str, u64)], want: Option<Value>| {
            let containers = cpu.iter().map(|(name, cpu)| {
                ((*name).to_owned(), Usage { cpu: Duration::from_millis(*cpu), memory_bytes: 3 << 20 })
            });
            let pod = PodUsage {
                id: PodId("u".into()),
                name: "p".into(),
                namespace: "n".into(),
                containers: containers.collect(),
                ..PodUsage::default()
            };
            let now: Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
            let got = pod_metrics(&counts, &pod, begun + Duration::from_secs(at), now);
            let parts = got.map(|mut object| json!([object["window"].take(), object["containers"].take()]));
            assert_eq!(parts, want);
        };
        let used = |name: &str, cpu: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": "3072Ki"}});
        check(1, &[("a", 500)], None);
        counts.take([(key("a"), count(0, 500))].into());
        check(2, &[("a", 1500)], Some(json!(["2.000s", [used("a", "500000000n")]])));
        // At the moment of a count the one before it is compared with.
        counts.take([(key("a"), count(10, 1000))].into());
        check(10, &[("a", 1000)], Some(json!(["10.000s", [used("a", "50000000n")]])));
        // One that was not there yet, and one that began anew.
        check(12, &[("a", 1000), ("b", 5)], None);
        check(12, &[("a", 3)], None);
    }

    #[test]
    fn the_machines_work_is_all_but_waiting() {
        let stat = "cpu  100 10 50 9000 900 1 2 3 4 0\ncpu0 1 1 1 1\n";
        assert_eq!(worked(stat), Some(Duration::from_millis(1660)));
        assert_eq!(worked("cpu  x\n"), None);
    }
}
