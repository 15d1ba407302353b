//! What Kubernetes fills in when one of its built-in kinds is written. A schema default cannot say most of it: it
//! depends on other fields. Knative's kinds are not here: their defaults are admission rules.

use serde_json::{Map, Value, json};

/// Seconds a pod may take to end when its spec does not say (`terminationGracePeriodSeconds`).
const GRACE_SECONDS: i64 = 30;
/// Mode of files in secret, config-map, projected and downward-API volumes: 0644.
const FILE_MODE: i64 = 0o644;
/// Seconds for which a projected token is good.
const TOKEN_SECONDS: i64 = 3600;

type Defaults = fn(&mut Value, Option<&Value>);

/// Group, plural, what to fill in.
pub(crate) fn all() -> [(&'static str, &'static str, Defaults); 10] {
    [
        ("", "pods", pod),
        ("", "services", service),
        ("", "secrets", secret),
        ("", "persistentvolumeclaims", claim),
        ("", "events", event),
        ("apps", "deployments", deployment),
        ("apps", "replicasets", replica_set),
        ("autoscaling", "horizontalpodautoscalers", autoscaler),
        ("rbac.authorization.k8s.io", "rolebindings", binding),
        ("rbac.authorization.k8s.io", "clusterrolebindings", binding),
    ]
}

/// The grace period a deletion gets when the caller does not say. A pod that no node has taken goes at once.
pub(crate) fn pod_grace(pod: &Value) -> i64 {
    let done = matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    let taken = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
    if done || !taken {
        return 0;
    }
    pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(GRACE_SECONDS)
}

pub(crate) fn pod(pod: &mut Value, old: Option<&Value>) {
    let Some(object) = pod.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        pod_spec(spec);
        // Of a pod, not of a template: there it would be a difference between what was written and what is, and would
        // stay when what it was drawn from changes.
        fill(spec, "enableServiceLinks", json!(true));
        for list in ["initContainers", "containers"] {
            for container in items(spec, list) {
                requests(container);
            }
        }
    }
    let class = qos_class(object.get("spec"));
    if let (None, Some(status)) = (old, child(object, "status")) {
        fill(status, "phase", json!("Pending"));
        fill(status, "qosClass", json!(class));
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    fill(spec, "restartPolicy", json!("Always"));
    fill(spec, "terminationGracePeriodSeconds", json!(GRACE_SECONDS));
    fill(spec, "dnsPolicy", json!("ClusterFirst"));
    fill(spec, "schedulerName", json!("default-scheduler"));
    fill(spec, "securityContext", json!({}));
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            self::container(container);
        }
    }
    // The older name of the same field: Kubernetes shows both.
    for (from, to) in [("serviceAccount", "serviceAccountName"), ("serviceAccountName", "serviceAccount")] {
        if let Some(account) = spec.get(from).cloned().filter(|account| *account != json!("")) {
            fill(spec, to, account);
        }
    }
    for volume in items(spec, "volumes") {
        if volume.len() < 2 {
            volume.insert("emptyDir".into(), json!({}));
        }
        for source in ["secret", "configMap", "projected", "downwardAPI"] {
            if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
                fill(source, "defaultMode", json!(FILE_MODE));
            }
        }
        let Some(projected) = volume.get_mut("projected").and_then(Value::as_object_mut) else { continue };
        for source in items(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
                fill(token, "expirationSeconds", json!(TOKEN_SECONDS));
            }
        }
    }
}

fn container(container: &mut Map<String, Value>) {
    fill(container, "terminationMessagePath", json!("/dev/termination-log"));
    fill(container, "terminationMessagePolicy", json!("File"));
    fill(container, "resources", json!({}));
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if moves(image) { "Always" } else { "IfNotPresent" };
    fill(container, "imagePullPolicy", json!(policy));
    for port in items(container, "ports") {
        fill(port, "protocol", json!("TCP"));
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            fill_zero(probe, field, value);
        }
        if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            fill(http, "path", json!("/"));
            fill(http, "scheme", json!("HTTP"));
        }
    }
    for env in items(container, "env") {
        if let Some(field) = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")).and_then(Value::as_object_mut)
        {
            fill(field, "apiVersion", json!("v1"));
        }
    }
}

/// Who limits a resource and does not say how much of it is wanted, wants all of it.
fn requests(container: &mut Map<String, Value>) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let Some(requests) = child(resources, "requests") else { return };
    for (name, limit) in limits {
        fill(requests, &name, limit);
    }
}

/// Whether the same reference may mean another image tomorrow: no digest, and no tag or the tag `latest`.
fn moves(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// `Guaranteed` when every container's limits equal its requests for both resources, `BestEffort` when none says
/// anything, else `Burstable`.
fn qos_class(spec: Option<&Value>) -> &'static str {
    let containers = spec.and_then(|s| s.get("containers")).and_then(Value::as_array);
    let mut any = false;
    let mut guaranteed = true;
    for container in containers.into_iter().flatten() {
        for resource in ["cpu", "memory"] {
            let of = |which: &str| container.pointer(&format!("/resources/{which}/{resource}"));
            any |= of("limits").is_some() || of("requests").is_some();
            guaranteed &= of("limits").is_some() && of("limits") == of("requests");
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn service(service: &mut Value, _: Option<&Value>) {
    let Some(spec) = service.as_object_mut().and_then(|object| child(object, "spec")) else { return };
    fill(spec, "type", json!("ClusterIP"));
    fill(spec, "sessionAffinity", json!("None"));
    let external = spec.get("type") == Some(&json!("ExternalName"));
    if !external {
        fill(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    for port in items(spec, "ports") {
        fill(port, "protocol", json!("TCP"));
        if let Some(number) = port.get("port").cloned() {
            fill(port, "targetPort", number);
        }
    }
}

/// `stringData` is a way to write `data`, and is never read back.
fn secret(secret: &mut Value, _: Option<&Value>) {
    let Some(object) = secret.as_object_mut() else { return };
    fill(object, "type", json!("Opaque"));
    // Base64 written by hand comes in lines; it is kept in one.
    for value in object.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
        if let Value::String(text) = value {
            text.retain(|c| !matches!(c, '\r' | '\n'));
        }
    }
    // What is no text stays, for validation to name.
    let texts =
        object.get("stringData").and_then(Value::as_object).is_some_and(|map| map.values().all(Value::is_string));
    if !texts || child(object, "data").is_none() {
        return;
    }
    let Some(Value::Object(plain)) = object.remove("stringData") else { return };
    let Some(data) = child(object, "data") else { return };
    for (key, value) in plain {
        let bytes = k8s_openapi::ByteString(value.as_str().unwrap_or_default().as_bytes().to_vec());
        data.insert(key, serde_json::to_value(bytes).expect("bytes are JSON"));
    }
}

fn claim(claim: &mut Value, old: Option<&Value>) {
    let Some(object) = claim.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        fill(spec, "volumeMode", json!("Filesystem"));
    }
    if let (None, Some(status)) = (old, child(object, "status")) {
        fill(status, "phase", json!("Pending"));
    }
}

fn event(event: &mut Value, _: Option<&Value>) {
    if let Some(object) = event.as_object_mut() {
        fill(object, "type", json!("Normal"));
    }
}

fn deployment(deployment: &mut Value, _: Option<&Value>) {
    let Some(spec) = deployment.as_object_mut().and_then(|object| child(object, "spec")) else { return };
    fill(spec, "replicas", json!(1));
    fill(spec, "revisionHistoryLimit", json!(10));
    fill(spec, "progressDeadlineSeconds", json!(600));
    if let Some(strategy) = child(spec, "strategy") {
        fill(strategy, "type", json!("RollingUpdate"));
        let rolls = strategy.get("type") == Some(&json!("RollingUpdate"));
        if rolls && let Some(rolling) = child(strategy, "rollingUpdate") {
            fill(rolling, "maxUnavailable", json!("25%"));
            fill(rolling, "maxSurge", json!("25%"));
        }
    }
    template(spec);
}

fn replica_set(set: &mut Value, _: Option<&Value>) {
    let Some(spec) = set.as_object_mut().and_then(|object| child(object, "spec")) else { return };
    fill(spec, "replicas", json!(1));
    template(spec);
}

fn template(spec: &mut Map<String, Value>) {
    if let Some(spec) = child(spec, "template").and_then(|template| child(template, "spec")) {
        pod_spec(spec);
    }
}

fn autoscaler(autoscaler: &mut Value, _: Option<&Value>) {
    if let Some(spec) = autoscaler.as_object_mut().and_then(|object| child(object, "spec")) {
        fill(spec, "minReplicas", json!(1));
    }
}

fn binding(binding: &mut Value, _: Option<&Value>) {
    let Some(object) = binding.as_object_mut() else { return };
    if let Some(role) = child(object, "roleRef") {
        fill(role, "apiGroup", json!("rbac.authorization.k8s.io"));
    }
    for subject in items(object, "subjects") {
        if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
            fill(subject, "apiGroup", json!("rbac.authorization.k8s.io"));
        }
    }
}

fn fill(object: &mut Map<String, Value>, field: &str, value: Value) {
    if object.get(field).is_none_or(Value::is_null) {
        object.insert(field.to_owned(), value);
    }
}

/// For numbers where 0 means "not said".
fn fill_zero(object: &mut Map<String, Value>, field: &str, value: i64) {
    if object.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
        object.insert(field.to_owned(), value.into());
    }
}

/// The object in a field, made if nothing is there. `None` where something else is: that stays, for validation to name.
fn child<'a>(object: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    let value = object.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

fn items<'a>(object: &'a mut Map<String, Value>, field: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(plural: &str, mut object: Value) -> Value {
        let (_, _, fill) = all().into_iter().find(|(_, p, _)| *p == plural).expect("a known kind");
        fill(&mut object, None);
        let once = object.clone();
        fill(&mut object, None);
        assert_eq!(object, once, "filling in twice must change nothing");
        object
    }

    #[test]
    fn pods_get_policies_probes_and_requests() {
        let pod = defaulted(
            "pods",
            json!({"spec": {"containers": [{"name": "a", "image": "localhost:5000/x", "resources": {"limits": {"cpu": "1"}},
                "readinessProbe": {"httpGet": {"port": 80}}}]}}),
        );
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(container["readinessProbe"]["periodSeconds"], 10);
        assert_eq!(pod["status"]["qosClass"], "Burstable");
        assert_eq!(pod_grace(&pod), 0, "no node has it");
    }

    #[test]
    fn what_is_filled_in_is_known_to_the_schema() {
        let pod = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 1}],
                "readinessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}],
            "serviceAccountName": "s", "ports": [{"port": 1}], "volumes": [{"name": "a"}, {"name": "b", "secret": {}},
                {"name": "c", "projected": {"sources": [{"serviceAccountToken": {}}]}}]});
        let mut spec = pod.clone();
        spec["template"] = json!({"spec": pod});
        let all_fields = json!({"spec": spec, "stringData": {"a": "b"}, "subjects": [{"kind": "User", "name": "u"}]});
        let kinds = crate::described().unwrap().kinds();
        for (group, plural, fill) in all() {
            let kind = kinds.get(group, plural).unwrap();
            let mut object = all_fields.clone();
            kind.versions[0].schema.prune(&mut object);
            fill(&mut object, None);
            assert_eq!(kind.versions[0].schema.prune(&mut object), [""; 0], "{plural}");
        }
    }

    #[test]
    fn a_reference_moves_without_tag_and_digest() {
        for (image, want) in [
            ("a", true),
            ("a:latest", true),
            ("h:5000/a", true),
            ("h:5000/a:1", false),
            ("a@sha256:0", false),
            ("a:1", false),
        ] {
            assert_eq!(moves(image), want, "{image}");
        }
    }

    #[test]
    fn secrets_take_plain_text() {
        let secret = defaulted("secrets", json!({"stringData": {"a": "hi"}, "data": {"b": "eA=="}}));
        assert_eq!(secret["data"], json!({"a": "aGk=", "b": "eA=="}));
        assert!(secret.get("stringData").is_none());
        let lines = defaulted("secrets", json!({"data": {"a": "aGVs\nbG8=\n"}}));
        assert_eq!(lines["data"]["a"], "aGVsbG8=");
        let slip = json!({"port": 5432, "user": "x"});
        assert_eq!(defaulted("secrets", json!({"stringData": slip}))["stringData"], slip, "a number is not dropped");
    }

    #[test]
    fn templates_do_not_keep_what_was_drawn_from_their_limits() {
        let spec = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]});
        for plural in ["deployments", "replicasets"] {
            let made = defaulted(plural, json!({"spec": {"template": {"spec": spec}}}));
            let resources = &made["spec"]["template"]["spec"]["containers"][0]["resources"];
            assert_eq!(resources, &json!({"limits": {"cpu": "1"}}), "{plural}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_left_for_validation() {
        for (plural, wrong) in [
            ("pods", json!({"spec": "x", "status": []})),
            (
                "pods",
                json!({"spec": {"containers": [{"resources": "small"}, {"resources": {"limits": {"cpu": 1}, "requests": 1}}]}}),
            ),
            ("services", json!({"spec": []})),
            ("secrets", json!({"stringData": "x"})),
            ("secrets", json!({"stringData": {"a": "b"}, "data": "x"})),
            ("persistentvolumeclaims", json!({"spec": [], "status": 1})),
            ("deployments", json!({"spec": {"strategy": "Recreate", "template": "x"}})),
            ("deployments", json!({"spec": {"strategy": {"rollingUpdate": 1}, "template": {"spec": 1}}})),
            ("replicasets", json!({"spec": 1})),
            ("horizontalpodautoscalers", json!({"spec": 1})),
            ("rolebindings", json!({"roleRef": "x"})),
        ] {
            let made = defaulted(plural, wrong.clone());
            assert!(holds(&made, &wrong), "{plural}: {wrong} became {made}");
        }
    }

    /// Whether every scalar and empty list of `part` is still in its place.
    fn holds(whole: &Value, part: &Value) -> bool {
        match part {
            Value::Object(map) => map.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| holds(whole, part))),
            Value::Array(list) => {
                whole.as_array().is_some_and(|whole| whole.len() == list.len())
                    && list.iter().enumerate().all(|(at, part)| holds(&whole[at], part))
            }
            scalar => whole == scalar,
        }
    }

    #[test]
    fn services_know_their_target_port() {
        let service = defaulted("services", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 80);
        let external = defaulted("services", json!({"spec": {"type": "ExternalName", "ports": [{"port": 80}]}}));
        assert_eq!(external["spec"]["ports"][0]["targetPort"], 80, "of every type");
    }
}
