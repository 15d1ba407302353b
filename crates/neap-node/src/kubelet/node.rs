//! The machine as a Node: registered, kept alive by a lease, its size and state in the status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    Namespace, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::Clock;
use super::env::NodeFacts;
use super::schedule::Amounts;
use crate::quantity;

/// Where Kubernetes keeps the nodes' heartbeats.
const LEASES: &str = "kube-node-lease";
/// Seconds without a heartbeat after which the machine counts as lost (Kubernetes: 40).
const LEASE_SECONDS: i32 = 40;
/// Time between heartbeats (Kubernetes: a quarter of the lease).
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The whole status is written again this often even when nothing changed (Kubernetes: 5 minutes).
const STATUS_EVERY: u32 = 30;
/// Pause after the API server did not take what it was sent.
const RETRY: Duration = Duration::from_secs(1);

/// What this machine is, as far as it does not change while we run.
#[derive(Clone, Debug)]
pub struct Machine {
    pub facts: NodeFacts,
    /// Pods at most, as the node's capacity says.
    pub pods: u32,
    pub os_image: String,
    pub kernel: String,
    pub machine_id: String,
    /// One sentence of the runtime about itself; what the node says while it is ready.
    pub runtime: String,
}

impl Machine {
    /// Reads the machine's size and names from the system. `disk_bytes`: the size of the disk that pods write to.
    pub fn read(name: &str, address: IpAddr, pods: u32, disk_bytes: u64, runtime: String) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory_bytes = memory_of(&file("/proc/meminfo"));
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpu_milli = u64::try_from(cpus).unwrap_or(1) * 1000;
        Self {
            facts: NodeFacts { name: name.to_owned(), address, cpu_milli, memory_bytes, disk_bytes },
            pods,
            os_image: pretty_name(&file("/etc/os-release")),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            machine_id: file("/etc/machine-id").trim().to_owned(),
            runtime,
        }
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("kubernetes.io/hostname", self.facts.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            ("node-role.kubernetes.io/control-plane", ""),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    pub(super) fn allocatable(&self) -> Amounts {
        let pairs = self.capacity().into_iter();
        pairs.filter_map(|(name, q)| Some((name, quantity::parse(&q.0)?.thousandths()))).collect()
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        let pairs = [
            ("cpu", format!("{}", self.facts.cpu_milli / 1000)),
            ("memory", format!("{}Ki", self.facts.memory_bytes >> 10)),
            ("ephemeral-storage", format!("{}Ki", self.facts.disk_bytes >> 10)),
            ("pods", self.pods.to_string()),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), Quantity(v))).collect()
    }

    fn node(&self) -> Node {
        let metadata =
            ObjectMeta { name: Some(self.facts.name.clone()), labels: Some(self.labels()), ..ObjectMeta::default() };
        Node { metadata, ..Node::default() }
    }

    fn status(&self, since: Timestamp, now: Timestamp) -> NodeStatus {
        let condition = |kind: &str, ok: bool, reason: &str, message: &str| NodeCondition {
            type_: kind.to_owned(),
            status: if ok { "True" } else { "False" }.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(Time(since)),
        };
        let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
        NodeStatus {
            capacity: Some(self.capacity()),
            allocatable: Some(self.capacity()),
            addresses: Some(vec![
                address("InternalIP", self.facts.address.to_string()),
                address("Hostname", self.facts.name.clone()),
            ]),
            conditions: Some(vec![
                condition(
                    "MemoryPressure",
                    false,
                    "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available",
                ),
                condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", true, "KubeletReady", &self.runtime),
            ]),
            daemon_endpoints: Some(NodeDaemonEndpoints::default()),
            node_info: Some(NodeSystemInfo {
                architecture: architecture().to_owned(),
                operating_system: "linux".to_owned(),
                os_image: self.os_image.clone(),
                kernel_version: self.kernel.clone(),
                machine_id: self.machine_id.clone(),
                system_uuid: self.machine_id.clone(),
                boot_id: String::new(),
                container_runtime_version: concat!("neap://", env!("CARGO_PKG_VERSION")).to_owned(),
                kubelet_version: format!("v1.36.0-neap.{}", env!("CARGO_PKG_VERSION")),
                kube_proxy_version: String::new(),
                swap: None,
            }),
            ..NodeStatus::default()
        }
    }
}

/// Registers the machine and keeps its heartbeat until `shutdown`.
pub(super) async fn run(client: Client, machine: Machine, clock: Clock, shutdown: CancellationToken) {
    let since = clock();
    let mut beats = 0;
    loop {
        let result = beat(&client, &machine, beats, since, clock()).await;
        let pause = match result {
            Ok(()) => {
                beats += 1;
                HEARTBEAT
            }
            Err(error) => {
                tracing::warn!(%error, node = machine.facts.name, "the node could not be written; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn beat(client: &Client, machine: &Machine, beats: u32, since: Timestamp, now: Timestamp) -> kube::Result<()> {
    let name = &machine.facts.name;
    if beats.is_multiple_of(STATUS_EVERY) {
        let nodes: Api<Node> = Api::all(client.clone());
        let labels = Patch::Merge(serde_json::json!({"metadata": {"labels": machine.labels()}}));
        match nodes.patch(name, &PatchParams::default(), &labels).await {
            Err(kube::Error::Api(e)) if e.code == 404 => {
                nodes.create(&PostParams::default(), &machine.node()).await?;
            }
            other => drop(other?),
        }
        let status = Patch::Merge(serde_json::json!({"status": machine.status(since, now)}));
        nodes.patch_status(name, &PatchParams::default(), &status).await?;
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let renew = Patch::Merge(serde_json::json!({"spec": {"renewTime": MicroTime(now)}}));
    match leases.patch(name, &PatchParams::default(), &renew).await {
        Err(kube::Error::Api(e)) if e.code == 404 => {
            let spec = LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            };
            let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
            create_lease(client, &leases, &Lease { metadata, spec: Some(spec) }).await
        }
        other => other.map(drop),
    }
}

/// The namespace of the leases is made when it is missing.
async fn create_lease(client: &Client, leases: &Api<Lease>, lease: &Lease) -> kube::Result<()> {
    match leases.create(&PostParams::default(), lease).await {
        Err(kube::Error::Api(e)) if e.code == 404 => {
            let metadata = ObjectMeta { name: Some(LEASES.to_owned()), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
            leases.create(&PostParams::default(), lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn memory_of(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn pretty_name(os_release: &str) -> String {
    let line = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read() {
        assert_eq!(memory_of("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16 << 20);
        assert_eq!(memory_of("nonsense"), 0);
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(pretty_name(""), "Linux");
    }

    #[test]
    fn what_is_allocatable_is_what_is_there() {
        let facts = NodeFacts::example();
        let machine = Machine {
            facts,
            pods: 7,
            os_image: String::new(),
            kernel: String::new(),
            machine_id: String::new(),
            runtime: "test".into(),
        };
        let got: Vec<(String, i128)> = machine.allocatable().into_iter().collect();
        let want = [("cpu", 2000), ("ephemeral-storage", 1000 << 34), ("memory", 1000 << 30), ("pods", 7000)]
            .map(|(n, a)| (n.to_owned(), a));
        assert_eq!(got, want);
    }
}
