//! What `kubectl get` shows of the built-in kinds: the same columns a real cluster prints.

use jiff::Timestamp;
use neap_apiserver::kind::Column;
use serde_json::{Value, json};

/// Shown where there is nothing to show.
const NONE: &str = "<none>";

/// Group, plural, columns.
pub(crate) fn all() -> Vec<(&'static str, &'static str, Vec<Column>)> {
    vec![
        ("", "pods", pod()),
        ("", "services", service()),
        ("", "endpoints", vec![name(), text("Endpoints", endpoints), age()]),
        ("", "namespaces", vec![name(), path("Status", ".status.phase"), age()]),
        ("", "nodes", node()),
        ("", "configmaps", vec![name(), number("Data", |o| count(o, &["data", "binaryData"])), age()]),
        ("", "secrets", vec![name(), path("Type", ".type"), number("Data", |o| count(o, &["data"])), age()]),
        ("", "serviceaccounts", vec![name(), age()]),
        ("", "events", event()),
        ("events.k8s.io", "events", event()),
        ("", "persistentvolumeclaims", claim()),
        ("", "persistentvolumes", volume()),
        (
            "",
            "resourcequotas",
            vec![name(), text("Request", |o| quota(o, "")), text("Limit", |o| quota(o, "limits.")), age()],
        ),
        ("", "limitranges", vec![name(), created()]),
        ("apps", "deployments", deployment()),
        ("apps", "replicasets", replica_set()),
        ("discovery.k8s.io", "endpointslices", endpoint_slice()),
        ("coordination.k8s.io", "leases", vec![name(), path("Holder", ".spec.holderIdentity"), age()]),
        ("autoscaling", "horizontalpodautoscalers", autoscaler()),
        ("rbac.authorization.k8s.io", "roles", vec![name(), created()]),
        ("rbac.authorization.k8s.io", "clusterroles", vec![name(), created()]),
        ("rbac.authorization.k8s.io", "rolebindings", binding()),
        ("rbac.authorization.k8s.io", "clusterrolebindings", binding()),
        ("storage.k8s.io", "storageclasses", vec![name(), path("Provisioner", ".provisioner"), age()]),
    ]
}

fn name() -> Column {
    let mut column = Column::path("Name", "string", ".metadata.name");
    column.format = "name".into();
    column
}

fn age() -> Column {
    Column::path("Age", "date", ".metadata.creationTimestamp")
}

fn created() -> Column {
    Column::cell("Created At", "string", |o, _| {
        o.pointer("/metadata/creationTimestamp").cloned().unwrap_or(Value::Null)
    })
}

fn path(name: &str, path: &str) -> Column {
    Column::path(name, "string", path)
}

fn text(name: &str, value: impl Fn(&Value) -> String + Send + Sync + 'static) -> Column {
    Column::cell(name, "string", move |o, _| json!(value(o)))
}

fn number(name: &str, value: impl Fn(&Value) -> i64 + Send + Sync + 'static) -> Column {
    Column::cell(name, "integer", move |o, _| json!(value(o)))
}

fn pod() -> Vec<Column> {
    vec![
        name(),
        text("Ready", |o| {
            let begun =
                list(o, "/status/initContainerStatuses").iter().filter(|s| is_sidecar(o, s) && s["started"] == true);
            let ready = list(o, "/status/containerStatuses").iter().chain(begun).filter(|s| s["ready"] == true).count();
            let sidecars = list(o, "/spec/initContainers").iter().filter(|c| c["restartPolicy"] == "Always").count();
            format!("{ready}/{}", list(o, "/spec/containers").len() + sidecars)
        }),
        text("Status", pod_status),
        Column::cell("Restarts", "string", restarts),
        age(),
        text("IP", |o| or_none(o, "/status/podIP")).wide(),
        text("Node", |o| or_none(o, "/spec/nodeName")).wide(),
        text("Nominated Node", |o| or_none(o, "/status/nominatedNodeName")).wide(),
        text("Readiness Gates", |_| NONE.into()).wide(),
    ]
}

/// Whether this is the status of an init container that lives on beside the others.
fn is_sidecar(pod: &Value, status: &Value) -> bool {
    let own = |c: &&Value| c["name"] == status["name"];
    list(pod, "/spec/initContainers").iter().find(own).is_some_and(|c| c["restartPolicy"] == "Always")
}

/// The one word that says how a pod is: its phase, or what keeps it from being well.
fn pod_status(pod: &Value) -> String {
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return "Terminating".into();
    }
    let mut word =
        string(pod, "/status/reason").or_else(|| string(pod, "/status/phase")).unwrap_or_default().to_owned();
    let inits = list(pod, "/status/initContainerStatuses");
    for (n, status) in inits.iter().enumerate() {
        let done = status.pointer("/state/terminated/exitCode").and_then(Value::as_i64) == Some(0);
        if done || is_sidecar(pod, status) && status["started"] == true {
            continue;
        }
        let reason = state_reason(status).filter(|r| *r != "PodInitializing");
        return reason
            .map_or_else(|| format!("Init:{n}/{}", list(pod, "/spec/initContainers").len()), |r| format!("Init:{r}"));
    }
    let mut running = false;
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        if let Some(reason) = state_reason(status) {
            word = reason.to_owned();
        } else if status.pointer("/state/running").is_some() && status["ready"] == true {
            running = true;
        }
    }
    if word == "Completed" && running { "Running".into() } else { word }
}

fn state_reason(status: &Value) -> Option<&str> {
    ["waiting", "terminated"].iter().find_map(|state| string(status, &format!("/state/{state}/reason")))
}

fn restarts(pod: &Value, now: Timestamp) -> Value {
    let statuses = list(pod, "/status/containerStatuses");
    let count: i64 = statuses.iter().filter_map(|s| s["restartCount"].as_i64()).sum();
    let last = statuses
        .iter()
        .filter_map(|s| string(s, "/lastState/terminated/finishedAt")?.parse::<Timestamp>().ok())
        .max()
        .filter(|_| count > 0);
    json!(last.map_or_else(|| count.to_string(), |at| format!("{count} ({} ago)", since(at, now))))
}

/// As kubectl writes spans: two units at most, the smaller only while it matters.
fn since(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{}m{}s", seconds / 60, seconds % 60),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn service() -> Vec<Column> {
    vec![
        name(),
        path("Type", ".spec.type"),
        text("Cluster-IP", |o| or_none(o, "/spec/clusterIP")),
        text("External-IP", external_address),
        text("Port(s)", |o| joined(list(o, "/spec/ports").iter().map(service_port))),
        age(),
        text("Selector", |o| labels(o.pointer("/spec/selector"))).wide(),
    ]
}

fn external_address(service: &Value) -> String {
    if let Some(name) = string(service, "/spec/externalName") {
        return name.to_owned();
    }
    let addresses = list(service, "/status/loadBalancer/ingress");
    let known =
        joined(addresses.iter().filter_map(|i| string(i, "/ip").or_else(|| string(i, "/hostname")).map(str::to_owned)));
    if known == NONE && string(service, "/spec/type") == Some("LoadBalancer") { "<pending>".into() } else { known }
}

fn service_port(port: &Value) -> String {
    let protocol = string(port, "/protocol").unwrap_or("TCP");
    match port["nodePort"].as_i64() {
        Some(node) => format!("{}:{node}/{protocol}", port["port"]),
        None => format!("{}/{protocol}", port["port"]),
    }
}

fn endpoints(endpoints: &Value) -> String {
    let mut found = Vec::new();
    for subset in list(endpoints, "/subsets") {
        for address in list(subset, "/addresses") {
            for port in list(subset, "/ports") {
                found.push(format!("{}:{}", string(address, "/ip").unwrap_or_default(), port["port"]));
            }
        }
    }
    shortened(found)
}

fn endpoint_slice() -> Vec<Column> {
    vec![
        name(),
        path("AddressType", ".addressType"),
        text("Ports", |o| shortened(list(o, "/ports").iter().map(|p| p["port"].to_string()).collect())),
        text("Endpoints", |o| {
            let addresses = list(o, "/endpoints").iter().flat_map(|e| list(e, "/addresses"));
            shortened(addresses.filter_map(Value::as_str).map(str::to_owned).collect())
        }),
        age(),
    ]
}

/// Three, then how many more.
fn shortened(mut found: Vec<String>) -> String {
    const SHOWN: usize = 3;
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    let shown = joined(found.into_iter());
    if more > 0 { format!("{shown} + {more} more...") } else { shown }
}

fn node() -> Vec<Column> {
    vec![
        name(),
        text("Status", |o| {
            let ready = list(o, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            if ready { "Ready".into() } else { "NotReady".into() }
        }),
        text("Roles", |o| {
            let roles = o.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
            joined(roles.filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/").map(str::to_owned)))
        }),
        age(),
        path("Version", ".status.nodeInfo.kubeletVersion"),
        text("Internal-IP", |o| {
            let addresses = list(o, "/status/addresses");
            let internal = addresses.iter().find(|a| a["type"] == "InternalIP");
            internal.and_then(|a| string(a, "/address")).unwrap_or(NONE).to_owned()
        })
        .wide(),
        text("External-IP", |_| NONE.into()).wide(),
        path("OS-Image", ".status.nodeInfo.osImage").wide(),
        path("Kernel-Version", ".status.nodeInfo.kernelVersion").wide(),
        path("Container-Runtime", ".status.nodeInfo.containerRuntimeVersion").wide(),
    ]
}

fn event() -> Vec<Column> {
    vec![
        Column::cell("Last Seen", "string", |o, now| {
            let at = [
                "/lastTimestamp",
                "/deprecatedLastTimestamp",
                "/series/lastObservedTime",
                "/eventTime",
                "/firstTimestamp",
            ];
            let seen = at.iter().find_map(|p| string(o, p)?.parse::<Timestamp>().ok());
            json!(seen.map_or_else(|| "<unknown>".to_owned(), |at| since(at, now)))
        }),
        path("Type", ".type"),
        path("Reason", ".reason"),
        text("Object", |o| {
            let object = o.get("involvedObject").or_else(|| o.get("regarding")).unwrap_or(&Value::Null);
            let kind = string(object, "/kind").unwrap_or_default().to_lowercase();
            format!("{kind}/{}", string(object, "/name").unwrap_or_default())
        }),
        text("Source", |o| {
            let of =
                ["/source/component", "/reportingComponent", "/reportingController", "/deprecatedSource/component"];
            of.iter().find_map(|p| string(o, p)).unwrap_or_default().to_owned()
        })
        .wide(),
        text("Message", |o| string(o, "/message").or_else(|| string(o, "/note")).unwrap_or_default().trim().to_owned()),
        text("Count", |o| {
            o.get("count").or_else(|| o.get("deprecatedCount")).map_or_else(|| "1".into(), Value::to_string)
        })
        .wide(),
        name().wide(),
    ]
}

fn claim() -> Vec<Column> {
    vec![
        name(),
        path("Status", ".status.phase"),
        path("Volume", ".spec.volumeName"),
        path("Capacity", ".status.capacity.storage"),
        text("Access Modes", |o| access_modes(list(o, "/status/accessModes"))),
        path("StorageClass", ".spec.storageClassName"),
        age(),
        path("VolumeMode", ".spec.volumeMode").wide(),
    ]
}

fn volume() -> Vec<Column> {
    vec![
        name(),
        path("Capacity", ".spec.capacity.storage"),
        text("Access Modes", |o| access_modes(list(o, "/spec/accessModes"))),
        path("Reclaim Policy", ".spec.persistentVolumeReclaimPolicy"),
        path("Status", ".status.phase"),
        text("Claim", |o| {
            let claim = |field| string(o, &format!("/spec/claimRef/{field}"));
            claim("name").map_or_else(String::new, |n| format!("{}/{n}", claim("namespace").unwrap_or_default()))
        }),
        path("StorageClass", ".spec.storageClassName"),
        age(),
    ]
}

fn access_modes(modes: &[Value]) -> String {
    let short = |mode: &Value| match mode.as_str()? {
        "ReadWriteOnce" => Some("RWO"),
        "ReadOnlyMany" => Some("ROX"),
        "ReadWriteMany" => Some("RWX"),
        "ReadWriteOncePod" => Some("RWOP"),
        _ => None,
    };
    modes.iter().filter_map(short).collect::<Vec<_>>().join(",")
}

/// `cpu: 10m/50m, …` for the resources with (or, for the empty prefix, without) the prefix `limits.`.
fn quota(quota: &Value, prefix: &str) -> String {
    let hard = quota.pointer("/status/hard").and_then(Value::as_object);
    let used =
        |name: &str| quota.pointer("/status/used").and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
    let wanted = hard.into_iter().flatten().filter(|(name, _)| name.starts_with("limits.") != prefix.is_empty());
    wanted
        .map(|(name, hard)| format!("{name}: {}/{}", used(name), hard.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn deployment() -> Vec<Column> {
    vec![
        name(),
        text("Ready", |o| format!("{}/{}", whole(o, "/status/readyReplicas"), whole(o, "/spec/replicas"))),
        number("Up-to-date", |o| whole(o, "/status/updatedReplicas")),
        number("Available", |o| whole(o, "/status/availableReplicas")),
        age(),
        text("Containers", |o| containers(o, "name")).wide(),
        text("Images", |o| containers(o, "image")).wide(),
        text("Selector", |o| labels(o.pointer("/spec/selector/matchLabels"))).wide(),
    ]
}

fn replica_set() -> Vec<Column> {
    vec![
        name(),
        number("Desired", |o| whole(o, "/spec/replicas")),
        number("Current", |o| whole(o, "/status/replicas")),
        number("Ready", |o| whole(o, "/status/readyReplicas")),
        age(),
        text("Containers", |o| containers(o, "name")).wide(),
        text("Images", |o| containers(o, "image")).wide(),
        text("Selector", |o| labels(o.pointer("/spec/selector/matchLabels"))).wide(),
    ]
}

fn containers(workload: &Value, field: &str) -> String {
    list(workload, "/spec/template/spec/containers")
        .iter()
        .filter_map(|c| c[field].as_str())
        .collect::<Vec<_>>()
        .join(",")
}

fn autoscaler() -> Vec<Column> {
    vec![
        name(),
        text("Reference", |o| {
            let of = |field| string(o, &format!("/spec/scaleTargetRef/{field}")).unwrap_or_default();
            format!("{}/{}", of("kind"), of("name"))
        }),
        text("Targets", |o| joined(list(o, "/spec/metrics").iter().map(target))),
        text("MinPods", |o| o.pointer("/spec/minReplicas").map_or_else(|| "<unset>".into(), Value::to_string)),
        number("MaxPods", |o| whole(o, "/spec/maxReplicas")),
        number("Replicas", |o| whole(o, "/status/currentReplicas")),
        age(),
    ]
}

fn target(metric: &Value) -> String {
    let source = ["resource", "pods", "object", "external"].iter().find_map(|s| metric.get(*s)).unwrap_or(&Value::Null);
    let name = string(source, "/name").or_else(|| string(source, "/metric/name")).unwrap_or_default();
    match source.pointer("/target/averageUtilization") {
        Some(percent) => format!("{name}: <unknown>/{percent}%"),
        None => format!("{name}: <unknown>/{}", string(source, "/target/averageValue").unwrap_or("<auto>")),
    }
}

fn binding() -> Vec<Column> {
    vec![
        name(),
        text("Role", |o| {
            let of = |field| string(o, &format!("/roleRef/{field}")).unwrap_or_default();
            format!("{}/{}", of("kind"), of("name"))
        }),
        age(),
    ]
}

fn string<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|s| !s.is_empty())
}

fn or_none(value: &Value, pointer: &str) -> String {
    string(value, pointer).unwrap_or(NONE).to_owned()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn whole(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn count(object: &Value, fields: &[&str]) -> i64 {
    let size = |value: &Value| value.as_object().map(serde_json::Map::len).or_else(|| value.as_array().map(Vec::len));
    fields.iter().filter_map(|f| object.get(*f).and_then(size)).map(|n| i64::try_from(n).unwrap_or(i64::MAX)).sum()
}

fn labels(selector: Option<&Value>) -> String {
    let pairs = selector.and_then(Value::as_object).into_iter().flatten();
    joined(pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())))
}

fn joined(words: impl Iterator<Item = String>) -> String {
    let all = words.collect::<Vec<_>>().join(",");
    if all.is_empty() { NONE.into() } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_pod_is_what_keeps_it_from_being_well() {
        let pod = |status: Value| json!({"spec": {"containers": [{}], "initContainers": [{}, {}]}, "status": status});
        let rows = [
            (pod(json!({"phase": "Pending"})), "Pending"),
            (
                pod(json!({"phase": "Running", "containerStatuses": [{"state": {"running": {}}, "ready": true}]})),
                "Running",
            ),
            (
                pod(
                    json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
                ),
                "ImagePullBackOff",
            ),
            (
                pod(
                    json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}),
                ),
                "OOMKilled",
            ),
            (pod(json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]})), "Init:0/2"),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), "Terminating"),
            (beside_a_sidecar(false), "Init:0/1"),
            (beside_a_sidecar(true), "Running"),
        ];
        for (pod, want) in rows {
            assert_eq!(pod_status(&pod), want, "{pod}");
        }
    }

    /// A pod whose sidecar has started, or not.
    fn beside_a_sidecar(started: bool) -> Value {
        let status = json!({"state": {"running": {}}, "ready": true, "started": started, "name": "s"});
        let main = json!({"state": {"running": {}}, "ready": true, "started": true, "name": "c"});
        json!({
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "initContainerStatuses": [status], "containerStatuses": [main]},
        })
    }

    #[test]
    fn spans_are_written_as_kubectl_writes_them() {
        let at = Timestamp::UNIX_EPOCH;
        for (seconds, want) in
            [(5, "5s"), (119, "119s"), (150, "2m30s"), (3600, "60m"), (20_000, "5h"), (200_000, "2d")]
        {
            assert_eq!(since(at, at + jiff::SignedDuration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn ports_and_addresses_of_services() {
        let gateway = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 8080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}});
        assert_eq!(external_address(&gateway), "127.0.0.1");
        assert_eq!(service_port(&gateway["spec"]["ports"][0]), "80:8080/TCP");
        assert_eq!(external_address(&json!({"spec": {"type": "ClusterIP"}})), NONE);
    }
}
