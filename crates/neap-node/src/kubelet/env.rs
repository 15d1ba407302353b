//! A container's environment: literal values, references, whole config-maps, services, and `$(NAME)` in all of them.
//! Values in, values out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, ResourceFieldSelector, Service};
use neap_runtime::pod::POD_IP;

use super::needs::Found;
use crate::quantity;

/// What of the machine a pod can ask for.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    pub name: String,
    pub address: IpAddr,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    /// Of the disk that pods write to.
    pub disk_bytes: u64,
}

#[cfg(test)]
impl NodeFacts {
    /// The machine that tests run their pods on.
    pub(super) fn example() -> Self {
        Self {
            name: "box".into(),
            address: [10, 0, 0, 1].into(),
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 34,
        }
    }
}

/// Why a variable has no value; the container then waits as `CreateContainerConfigError`.
pub(super) fn environment(
    pod: &Pod,
    container: &Container,
    found: &Found,
    node: &NodeFacts,
    api: Option<(&str, u16)>,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    if let Some((host, port)) = api {
        for (name, value) in service_variables("kubernetes", host, &[(Some("https"), port, "tcp")]) {
            env.set(&name, value);
        }
    }
    for service in &found.services {
        for (name, value) in variables_of(service) {
            env.set(&name, value);
        }
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, values) = if let Some(r) = &source.config_map_ref {
            let values = found.config_maps.get(&r.name).map(|m| m.data.clone().unwrap_or_default());
            ("configmap", &r.name, r.optional, values)
        } else if let Some(r) = &source.secret_ref {
            let values = found.secrets.get(&r.name).map(|s| {
                let data = s.data.clone().unwrap_or_default();
                data.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect()
            });
            ("secret", &r.name, r.optional, values)
        } else {
            continue;
        };
        match values {
            None if optional == Some(true) => {}
            None => return Err(format!("{kind} {name:?} not found")),
            Some(values) => {
                for (key, value) in values.iter().filter(|(key, _)| is_variable(key)) {
                    env.set(&format!("{prefix}{key}"), value.clone());
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match referred(pod, container, source, found, node)? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => env.expand(value.as_deref().unwrap_or_default()),
        };
        env.set(&variable.name, value);
    }
    Ok(env.list)
}

/// `$(NAME)` in a command or argument, by the container's finished environment.
pub(super) fn expand_with(text: &str, environment: &[(String, String)]) -> String {
    let last = |name: &str| environment.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    expand(text, last)
}

#[derive(Default)]
struct Environment {
    list: Vec<(String, String)>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value.clone());
        self.list.push((name.to_owned(), value));
    }

    fn expand(&self, text: &str) -> String {
        expand(text, |name| self.values.get(name).map(String::as_str))
    }
}

/// Kubernetes' rules: `$(NAME)` is replaced when NAME is known and stays as written otherwise; `$$` is one dollar.
fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let tail = &rest[dollar + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

/// The value of a reference; `None` when it is optional and absent.
fn referred(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    found: &Found,
    node: &NodeFacts,
) -> Result<Option<String>, String> {
    if let Some(r) = &source.config_map_key_ref {
        let map = found.config_maps.get(&r.name);
        let value = map.and_then(|m| m.data.as_ref()?.get(&r.key).cloned());
        return keyed("configmap", "ConfigMap", &r.name, &r.key, r.optional, map.is_some(), value, pod);
    }
    if let Some(r) = &source.secret_key_ref {
        let secret = found.secrets.get(&r.name);
        let value =
            secret.and_then(|s| s.data.as_ref()?.get(&r.key).map(|v| String::from_utf8_lossy(&v.0).into_owned()));
        return keyed("secret", "Secret", &r.name, &r.key, r.optional, secret.is_some(), value, pod);
    }
    if let Some(r) = &source.field_ref {
        return field(pod, &r.field_path, node).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return resource(pod, container, r, node).map(Some);
    }
    Err("an environment variable refers to a kind of source that is not known here".to_owned())
}

#[expect(clippy::too_many_arguments, reason = "one message for two kinds of objects")]
fn keyed(
    kind: &str,
    title: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    exists: bool,
    value: Option<String>,
    pod: &Pod,
) -> Result<Option<String>, String> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if !exists => Err(format!("{kind} {name:?} not found")),
        None => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            Err(format!("couldn't find key {key} in {title} {namespace}/{name}"))
        }
    }
}

/// A field of the pod itself (the downward API).
pub(super) fn field(pod: &Pod, path: &str, node: &NodeFacts) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => spec.map_or(super::needs::DEFAULT_ACCOUNT, super::needs::account).to_owned(),
        "status.hostIP" | "status.hostIPs" => node.address.to_string(),
        "status.podIP" | "status.podIPs" => match spec {
            Some(spec) if spec.host_network == Some(true) => node.address.to_string(),
            _ => POD_IP.to_owned(),
        },
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// A container's requests and limits as whole numbers of the divisor, rounded up. Without a limit the machine is it.
pub(super) fn resource(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, String> {
    let named = |name: &str| {
        let spec = pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
    };
    let container = match &selector.container_name {
        Some(name) => named(name).ok_or_else(|| format!("container {name:?} not found"))?,
        None => container,
    };
    let (kind, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?;
    let machine = match resource {
        "cpu" => i128::from(node.cpu_milli),
        "memory" => i128::from(node.memory_bytes) * 1000,
        "ephemeral-storage" => i128::from(node.disk_bytes) * 1000,
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(resource));
    let requests = resources.and_then(|r| r.requests.as_ref()).and_then(|r| r.get(resource));
    let amount = match kind {
        "limits" => limits.and_then(|q| quantity::parse(&q.0)).map_or(machine, |a| a.thousandths()),
        "requests" => requests.or(limits).and_then(|q| quantity::parse(&q.0)).map_or(0, |a| a.thousandths()),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let divisor = selector.divisor.as_ref().and_then(|q| quantity::parse(&q.0)).map_or(0, |a| a.thousandths());
    // An empty divisor is written as 0 and means 1.
    let divisor = if divisor > 0 { divisor } else { 1000 };
    Ok((amount.div_euclid(divisor) + i128::from(amount.rem_euclid(divisor) != 0)).to_string())
}

/// What a service is called in the environment, in the old Docker links' manner.
fn variables_of(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(address) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return Vec::new();
    };
    let ports: Vec<(Option<&str>, u16, &str)> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            let port = u16::try_from(p.port).ok()?;
            Some((p.name.as_deref(), port, p.protocol.as_deref().unwrap_or("TCP")))
        })
        .collect();
    service_variables(service.metadata.name.as_deref().unwrap_or_default(), address, &ports)
}

fn service_variables(name: &str, address: &str, ports: &[(Option<&str>, u16, &str)]) -> Vec<(String, String)> {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let Some(first) = ports.first() else { return Vec::new() };
    let mut list = vec![
        (format!("{prefix}_SERVICE_HOST"), address.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), first.1.to_string()),
    ];
    for (name, port, _) in ports {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            list.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.to_string()));
        }
    }
    for (i, (_, port, protocol)) in ports.iter().enumerate() {
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{address}:{port}");
        if i == 0 {
            list.push((format!("{prefix}_PORT"), url.clone()));
        }
        let link = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        list.push((link.clone(), url));
        list.push((format!("{link}_PROTO"), lower));
        list.push((format!("{link}_PORT"), port.to_string()));
        list.push((format!("{link}_ADDR"), address.to_owned()));
    }
    list
}

/// Kubernetes lets almost anything be a name; what a program could never read is skipped.
fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found() -> Found {
        let map = json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"p": "cGFzcw=="}});
        let service = json!({"metadata": {"name": "my-db"}, "spec": {"clusterIP": "10.1.2.3", "ports": [{"name": "sql", "port": 5432}]}});
        let mut found = Found::default();
        found.config_maps.insert("m".into(), std::sync::Arc::new(serde_json::from_value(map).unwrap()));
        found.secrets.insert("s".into(), std::sync::Arc::new(serde_json::from_value(secret).unwrap()));
        found.services.push(serde_json::from_value(service).unwrap());
        found
    }

    fn check(container: serde_json::Value, want: &str) {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"serviceAccountName": "robot", "containers": [container]},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let got = match environment(&pod, container, &found(), &NodeFacts::example(), None) {
            Ok(list) => list
                .iter()
                .filter(|(name, _)| !name.starts_with("MY_DB_"))
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
                .join(" "),
            Err(problem) => problem,
        };
        assert_eq!(got, want);
    }

    fn variable(source: serde_json::Value, want: &str) {
        check(
            json!({"name": "c", "env": [{"name": "X", "valueFrom": source}],
                "resources": {"limits": {"memory": "100Mi"}, "requests": {"cpu": "250m"}}}),
            want,
        );
    }

    #[test]
    fn values_are_expanded_in_order() {
        check(
            json!({"name": "c", "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(C)-$$(A)-$A"}, {"name": "C", "value": "$(B)"},
                {"name": "D"}, {"name": "HOST", "value": "$(MY_DB_SERVICE_HOST)"}]}),
            "A=1 B=1-$(C)-$(A)-$A C=1-$(C)-$(A)-$A D= HOST=10.1.2.3",
        );
    }

    #[test]
    fn references_are_looked_up() {
        variable(json!({"configMapKeyRef": {"name": "m", "key": "a"}}), "X=1");
        variable(json!({"secretKeyRef": {"name": "s", "key": "p"}}), "X=pass");
        variable(json!({"fieldRef": {"fieldPath": "metadata.name"}}), "X=p");
        variable(json!({"fieldRef": {"fieldPath": "metadata.labels['app']"}}), "X=x");
        variable(json!({"fieldRef": {"fieldPath": "spec.serviceAccountName"}}), "X=robot");
        variable(json!({"fieldRef": {"fieldPath": "spec.nodeName"}}), "X=box");
        variable(json!({"fieldRef": {"fieldPath": "status.hostIP"}}), "X=10.0.0.1");
        variable(json!({"fieldRef": {"fieldPath": "status.podIP"}}), "X=$(neap.dev/pod-ip)");
        variable(json!({"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}), "X=100");
        variable(json!({"resourceFieldRef": {"resource": "limits.cpu"}}), "X=2");
        variable(json!({"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}), "X=250");
        variable(json!({"resourceFieldRef": {"resource": "requests.cpu"}}), "X=1");
    }

    #[test]
    fn what_is_missing_is_named_unless_optional() {
        variable(json!({"configMapKeyRef": {"name": "no", "key": "a"}}), "configmap \"no\" not found");
        variable(json!({"configMapKeyRef": {"name": "m", "key": "no"}}), "couldn't find key no in ConfigMap n/m");
        variable(json!({"secretKeyRef": {"name": "no", "key": "a"}}), "secret \"no\" not found");
        variable(json!({"secretKeyRef": {"name": "s", "key": "no"}}), "couldn't find key no in Secret n/s");
        variable(json!({"secretKeyRef": {"name": "s", "key": "no", "optional": true}}), "");
        variable(json!({"fieldRef": {"fieldPath": "spec.x"}}), "unsupported fieldPath: spec.x");
        check(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "no"}}]}), "configmap \"no\" not found");
        check(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "no", "optional": true}}]}), "");
        check(json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}]}), "P_a=1 P_b=2");
    }

    #[test]
    fn services_are_named_in_the_old_manner() {
        let list: BTreeMap<String, String> = variables_of(&found().services[0]).into_iter().collect();
        for (name, value) in [
            ("MY_DB_SERVICE_HOST", "10.1.2.3"),
            ("MY_DB_SERVICE_PORT", "5432"),
            ("MY_DB_SERVICE_PORT_SQL", "5432"),
            ("MY_DB_PORT", "tcp://10.1.2.3:5432"),
            ("MY_DB_PORT_5432_TCP_ADDR", "10.1.2.3"),
        ] {
            assert_eq!(list.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}
