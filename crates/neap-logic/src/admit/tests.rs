//! Everything the door fills in and everything it refuses, one row each.

use kube_core::gvk::{GroupVersionKind, GroupVersionResource};
use serde_json::json;

use super::*;
use crate::config::Flag;
use crate::config::features::SecurePodDefaults;

pub(super) fn request(value: &Value, old: Option<&Value>) -> AdmissionRequest<DynamicObject> {
    let api_version = value["apiVersion"].as_str().unwrap_or("v1");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = value["kind"].as_str().unwrap_or_default();
    let object = |value: &Value| serde_json::from_value::<DynamicObject>(value.clone()).expect("an object");
    AdmissionRequest {
        types: Default::default(),
        uid: String::new(),
        kind: GroupVersionKind::gvk(group, version, kind),
        resource: GroupVersionResource::gvr(group, version, ""),
        sub_resource: None,
        request_kind: None,
        request_resource: None,
        request_sub_resource: None,
        name: String::new(),
        namespace: Some("ns".into()),
        operation: if old.is_some() { Operation::Update } else { Operation::Create },
        user_info: serde_json::from_value(json!({"username": "ann"})).expect("a user"),
        object: Some(object(value)),
        old_object: old.map(object),
        dry_run: false,
        options: None,
    }
}

pub(super) fn run(value: &Value, old: Option<&Value>, settings: &Settings) -> Result<(Value, Vec<String>), String> {
    let admitted = admit(&request(value, old), settings).map_err(|status| status.message)?;
    Ok((serde_json::to_value(admitted.0).expect("JSON"), admitted.1))
}

pub(super) fn admitted(value: &Value, settings: &Settings) -> Value {
    let (first, _) = run(value, None, settings).unwrap_or_else(|error| panic!("{error}"));
    let (second, _) = run(&first, Some(&first), settings).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(first, second, "admitting again changes nothing");
    first
}

pub(super) fn refused(value: &Value, old: Option<&Value>, settings: &Settings, want: &str) {
    let error = run(value, old, settings).expect_err(want);
    assert_eq!(error.strip_prefix("validation failed: ").unwrap_or(&error), want);
}

pub(super) fn service(template: Value) -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "ns"}, "spec": {"template": template}})
}

/// A Service whose only container has these further fields.
pub(super) fn with_container(fields: Value) -> Value {
    let mut container = json!({"image": "app"});
    for (key, value) in fields.as_object().expect("fields") {
        container[key] = value.clone();
    }
    service(json!({"spec": {"containers": [container]}}))
}

/// A Service whose pod has these further fields.
pub(super) fn with_pod(fields: Value) -> Value {
    let mut spec = json!({"containers": [{"image": "app"}]});
    for (key, value) in fields.as_object().expect("fields") {
        spec[key] = value.clone();
    }
    service(json!({"spec": spec}))
}

pub(super) fn with_annotation(key: &str, value: &str) -> Value {
    service(json!({"metadata": {"annotations": {key: value}}, "spec": {"containers": [{"image": "app"}]}}))
}

#[test]
fn a2_7_a_service_is_filled_in() {
    let got = admitted(&with_container(json!({})), &Settings::default());
    assert_eq!(
        got["spec"],
        json!({
            "template": {"spec": {
                "containerConcurrency": 0, "timeoutSeconds": 300, "enableServiceLinks": false,
                "containers": [{"name": "user-container", "image": "app", "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}}}],
            }},
            "traffic": [{"latestRevision": true, "percent": 100}],
        })
    );
    assert_eq!(
        got["metadata"]["annotations"],
        json!({"serving.knative.dev/creator": "ann", "serving.knative.dev/lastModifier": "ann"})
    );
}

#[test]
fn a4_22_details_are_filled_in_where_they_are_missing() {
    let check = |settings: &Settings, spec: Value, path: &str, want: Value| {
        let got = admitted(&service(json!({"spec": spec})), settings);
        assert_eq!(got["spec"]["template"]["spec"].pointer(path).cloned().unwrap_or(Value::Null), want, "{path}");
    };
    let plain = Settings::default();
    let several = json!({"containers": [{"image": "a", "ports": [{"containerPort": 80}]}, {"image": "b"}, {"image": "c", "name": "user-container-1"}]});
    check(&plain, several.clone(), "/containers/0/name", json!("user-container-0"));
    check(&plain, several.clone(), "/containers/1/name", json!("user-container-2"));
    check(&plain, several, "/containers/1/readinessProbe", Value::Null);
    let probe = |probe: Value| json!({"containers": [{"image": "a", "readinessProbe": probe}]});
    check(
        &plain,
        probe(json!({"httpGet": {"path": "/"}, "periodSeconds": 5})),
        "/containers/0/readinessProbe",
        json!({"httpGet": {"path": "/"}, "periodSeconds": 5, "successThreshold": 1, "failureThreshold": 3, "timeoutSeconds": 1}),
    );
    check(&plain, probe(json!({"grpc": {"port": 1}})), "/containers/0/readinessProbe/grpc/service", json!(""));
    let volume = json!({"containers": [{"image": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "secret": {"secretName": "s"}}]});
    check(&plain, volume, "/containers/0/volumeMounts/0/readOnly", json!(true));

    let mut custom = Settings::default();
    custom.defaults.requests.insert("cpu".into(), "400m".into());
    custom.defaults.idle_timeout_seconds = 10;
    custom.defaults.container_name = "{{.Name}}-app".parse().expect("a template");
    check(
        &custom,
        json!({"containers": [{"image": "a"}]}),
        "/containers/0/resources",
        json!({"requests": {"cpu": "400m"}}),
    );
    check(&custom, json!({"containers": [{"image": "a"}]}), "/idleTimeoutSeconds", json!(10));
    check(&custom, json!({"containers": [{"image": "a"}]}), "/containers/0/name", json!("hello-app"));

    let mut secure = Settings::default();
    secure.features.secure_pod_defaults = SecurePodDefaults::Enabled;
    check(
        &secure,
        json!({"containers": [{"image": "a", "ports": [{"containerPort": 80}]}]}),
        "/containers/0/securityContext",
        json!({"allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
    );
}

#[test]
fn what_a_service_may_not_say() {
    let s = Settings::default();
    let check = |value: Value, want: &str| refused(&value, None, &s, want);
    check(service(json!({"spec": {}})), "missing field(s): spec.template.spec.containers");
    check(with_container(json!({"image": ""})), "missing field(s): spec.template.spec.containers[0].image");
    check(
        with_container(json!({"image": "A b"})),
        "Failed to parse image reference: spec.template.spec.containers[0].image\nimage: \"A b\", error: could not parse reference: A b",
    );
    check(with_pod(json!({"timeoutSeconds": 700})), "expected 0 <= 700 <= 600: spec.template.spec.timeoutSeconds");
    check(
        with_pod(json!({"containerConcurrency": 1001})),
        "expected 0 <= 1001 <= 1000: spec.template.spec.containerConcurrency",
    );
    check(with_pod(json!({"restartPolicy": "Never"})), "must not set the field(s): spec.template.spec.restartPolicy");
    check(with_pod(json!({"nodeSelector": {"a": "b"}})), "must not set the field(s): spec.template.spec.nodeSelector");
    check(
        with_pod(json!({"automountServiceAccountToken": true})),
        "must not set the field(s): spec.template.spec.automountServiceAccountToken",
    );
    let error = run(&with_pod(json!({"serviceAccountName": "foo@bar.baz"})), None, &s).expect_err("refused");
    assert!(error.contains("serviceAccountName\na lowercase RFC 1123 subdomain"), "{error}");
    check(
        with_container(json!({"stdin": true, "tty": true})),
        "must not set the field(s): spec.template.spec.containers[0].stdin, spec.template.spec.containers[0].tty",
    );
    check(
        with_container(json!({"lifecycle": {"preStop": {}}})),
        "must not set the field(s): spec.template.spec.containers[0].lifecycle",
    );
    check(
        with_container(json!({"name": "queue-proxy"})),
        "\"queue-proxy\" is a reserved container name: spec.template.spec.containers[0].name",
    );
    check(
        with_container(json!({"env": [{"name": "PORT", "value": "1"}]})),
        "\"PORT\" is a reserved environment variable: spec.template.spec.containers[0].env[0].name",
    );
    check(
        with_container(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]})),
        "must not set the field(s): spec.template.spec.containers[0].env[0].valueFrom.fieldRef",
    );
    check(
        with_container(json!({"envFrom": [{}]})),
        "expected exactly one, got neither: spec.template.spec.containers[0].envFrom.configMapRef, spec.template.spec.containers[0].envFrom.secretRef",
    );
    check(
        with_container(json!({"ports": [{"containerPort": 80, "hostPort": 80}]})),
        "must not set the field(s): spec.template.spec.containers[0].ports.hostPort",
    );
    check(
        with_container(json!({"ports": [{"containerPort": 80, "name": "web"}]})),
        "Port name web is not allowed: spec.template.spec.containers[0].ports\nName must be empty, or one of: 'h2c', 'http1'",
    );
    check(
        with_container(json!({"ports": [{"containerPort": 80}, {"containerPort": 81}]})),
        "more than one container port is set: spec.template.spec.containers[*].ports\nOnly a single port is allowed across all containers",
    );
    check(
        with_container(json!({"securityContext": {"runAsUser": -10}})),
        "expected 0 <= -10 <= 2147483647: spec.template.spec.containers[0].securityContext.runAsUser",
    );
    check(
        with_container(json!({"securityContext": {"capabilities": {"add": ["X"]}}})),
        "must not set the field(s): spec.template.spec.containers[0].securityContext.capabilities.add",
    );
    check(
        with_container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
        "volumeMount has no matching volume: spec.template.spec.containers[0].volumeMounts[0].name",
    );
    check(
        with_pod(json!({"volumes": [{"name": "v", "secret": {}}]})),
        "volume with name \"v\" not mounted: spec.template.spec.volumes[0].name",
    );
    check(
        with_container(json!({"readinessProbe": {"httpGet": {"path": "/"}, "failureThreshold": 2}})),
        "failureThreshold is disallowed when periodSeconds is zero: spec.template.spec.containers[0].readinessProbe.failureThreshold",
    );
    check(
        service(json!({"spec": {"containers": [{"image": "a"}, {"image": "b"}]}})),
        "missing field(s): spec.template.spec.containers[*].ports",
    );
    check(
        with_pod(json!({"initContainers": [{"image": "a"}]})),
        "must not set the field(s): spec.template.spec.initContainers\npod spec support for init-containers is off, but found 1 init containers: ",
    );
}

/// The words of upstream's rows A4.11 to A4.21, as its own tests have them.
#[test]
fn containers_are_refused_in_upstreams_words() {
    let s = Settings::default();
    let at = |want: &str| want.replace('@', "spec.template.spec.containers[0].");
    let check = |row: &str, fields: Value, want: &str| {
        let error = run(&with_container(fields), None, &s).expect_err(row);
        assert_eq!(error.strip_prefix("validation failed: "), Some(at(want).as_str()), "{row}");
    };
    check(
        "A4.12",
        json!({"ports": [{"containerPort": 8012}]}),
        "invalid value: 8012 is a reserved port: @ports.containerPort\n8012 is a reserved port, please use a different value",
    );
    check("A4.12", json!({"ports": [{"containerPort": 70000}]}), "expected 0 <= 70000 <= 65535: @ports.containerPort");
    check("A4.12", json!({"ports": [{"protocol": "UDP"}]}), "invalid value: UDP: @ports.protocol");
    let mount = |fields: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v"});
        fields.as_object().expect("fields").iter().for_each(|(k, v)| mount[k] = v.clone());
        let mut value = with_pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
        value["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "v", "mountPath": "/w"}, mount]);
        value
    };
    let check_mount = |row: &str, fields: Value, want: &str| {
        let error = run(&mount(fields), None, &s).expect_err(row);
        assert_eq!(error.strip_prefix("validation failed: "), Some(at(want).as_str()), "{row}");
    };
    check_mount(
        "A4.19",
        json!({"mountPath": "/x/../w/"}),
        "invalid value: \"/x/../w/\" must be unique: @volumeMounts[1].mountPath",
    );
    check_mount(
        "A4.19",
        json!({"mountPath": "//dev/./log"}),
        "mountPath \"/dev/log\" is a reserved path: @volumeMounts[1].mountPath",
    );
    check_mount("A4.19", json!({"mountPath": "a"}), "invalid value: a: @volumeMounts[1].mountPath");
    check_mount(
        "A4.19",
        json!({"mountPropagation": "Bidirectional"}),
        "Volume Mount Propagation support is disabled, but found volume mount v with mount propagation: \nmount propagation should be set to None or HostToContainer: @volumeMounts[1].mountPropagation\nmust not set the field(s): @volumeMounts[1].mountPropagation",
    );
    check(
        "A4.20",
        json!({"ports": [{"name": "h2c"}], "livenessProbe": {"httpGet": {"port": "http"}}}),
        "invalid value: http: @livenessProbe.httpGet.port\nProbe port must match container port",
    );
    check(
        "A4.20",
        json!({"readinessProbe": {"httpGet": {}, "grpc": {"port": 1}}}),
        "expected exactly one, got both: @readinessProbe.gRPC, @readinessProbe.httpGet",
    );
    check(
        "A4.20",
        json!({"readinessProbe": {"exec": {}, "periodSeconds": 1, "timeoutSeconds": -1, "successThreshold": -1}}),
        "expected 1 <= -1 <= 2147483647: @readinessProbe.successThreshold, @readinessProbe.timeoutSeconds",
    );
    admitted(&with_container(json!({"livenessProbe": {"httpGet": {"port": "http"}}})), &s);
    admitted(&with_pod(json!({"timeoutSeconds": 10, "idleTimeoutSeconds": 11, "responseStartTimeoutSeconds": 20})), &s);
}

/// Rows A4.11, A4.18, A4.20, A4.21: what a feature that is off makes of its fields.
#[test]
fn a4_11_a4_18_a4_21_features_that_are_off_say_so() {
    let s = Settings::default();
    let pod = |volume: Value| {
        let mut value = with_pod(json!({"volumes": [volume]}));
        value["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        value
    };
    let check = |value: Value, want: &str| refused(&value, None, &s, want);
    check(
        pod(json!({"name": "v", "hostPath": {"path": "/"}})),
        "HostPath volume support is disabled, but found HostPath volume v: \nmust not set the field(s): spec.template.spec.volumes[0].hostPath",
    );
    check(
        pod(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}})),
        "Persistent volume claim support is disabled, but found persistent volume claim c: \nmust not set the field(s): spec.template.spec.volumes[0].persistentVolumeClaim\nvolume is readOnly but volume mount is not: spec.template.spec.containers[0].volumeMounts[0].readOnly",
    );
    check(
        pod(json!({"name": "v"})),
        "expected exactly one, got neither: spec.template.spec.volumes[0].configMap, spec.template.spec.volumes[0].emptyDir, spec.template.spec.volumes[0].projected, spec.template.spec.volumes[0].secret",
    );
    check(
        with_pod(json!({"securityContext": {"fsGroup": 1}})),
        "must not set the field(s): spec.template.spec.securityContext, spec.template.spec.securityContext.fsGroup",
    );
    let sidecar = json!({"image": "b", "livenessProbe": {"tcpSocket": {"port": 1}, "timeoutSeconds": 2}});
    check(
        service(json!({"spec": {"containers": [{"image": "a", "ports": [{"containerPort": 80}]}, sidecar]}})),
        "must not set the field(s): spec.template.spec.containers[1].livenessProbe, spec.template.spec.containers[1].livenessProbe.timeoutSeconds",
    );
    let mut single = s.clone();
    single.features.multi_container = Flag::Disabled;
    refused(
        &service(json!({"spec": {"containers": [{"image": "a", "ports": [{}]}, {"image": "b"}]}})),
        None,
        &single,
        "multi-container is off, but found 2 containers: ",
    );
    let mut open = s.clone();
    open.features.podspec_init_containers = Flag::Enabled;
    let init = json!([{"image": "i", "ports": [{"containerPort": 9090}], "lifecycle": {}}]);
    refused(
        &with_pod(json!({"initContainers": init})),
        None,
        &open,
        "field not allowed in an init container: spec.template.spec.initContainers[0].lifecycle\ninvalid value: 9090 is a reserved port: spec.template.spec.initContainers[0].ports.containerPort\n9090 is a reserved port, please use a different value\nmust not set the field(s): spec.template.spec.initContainers[0].lifecycle",
    );
}

#[test]
fn a4_25_a7_1_names_must_fit() {
    let s = Settings::default();
    let named = |name: &str| service(json!({"metadata": {"name": name}, "spec": {"containers": [{"image": "app"}]}}));
    refused(
        &named("other-1"),
        None,
        &s,
        r#"invalid value: "other-1" must have prefix "hello-": spec.template.metadata.name"#,
    );
    let mut generated = named("hello-1");
    generated["metadata"] = json!({"generateName": "hello-", "namespace": "ns"});
    refused(&generated, None, &s, "must not set the field(s): spec.template.metadata.name");
    let mut bad = with_container(json!({}));
    bad["metadata"]["name"] = json!("Hello");
    assert!(
        run(&bad, None, &s)
            .expect_err("refused")
            .starts_with("validation failed: not a DNS 1035 label: [a DNS-1035 label must")
    );
    bad["metadata"]["name"] = json!("x".repeat(64));
    refused(&bad, None, &s, "not a DNS 1035 label: [must be no more than 63 characters]: metadata.name");

    let old = admitted(&named("hello-1"), &s);
    let mut changed = old.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("app2");
    refused(
        &changed,
        Some(&old),
        &s,
        "Saw the following changes without a name change (-old +new): spec.template.metadata.name\n-spec.containers[0].image: \"app\"\n+spec.containers[0].image: \"app2\"",
    );
    changed["spec"]["template"]["metadata"]["name"] = json!("hello-2");
    assert!(run(&changed, Some(&old), &s).is_ok());

    // What `kubectl apply` sends when only the traffic is new: lists as the manifest has them, the rest as it was.
    let mut applied = old.clone();
    let containers = |object: &Value| object["spec"]["template"]["spec"]["containers"].clone();
    applied["spec"]["template"]["spec"]["containers"] = containers(&named("hello-1"));
    assert_ne!(containers(&applied), containers(&old), "something was filled in");
    applied["spec"]["traffic"] = json!([{"revisionName": "hello-1", "percent": 100}]);
    let (admitted, _) = run(&applied, Some(&old), &s).expect("is let in");
    assert_eq!(admitted["spec"]["template"], old["spec"]["template"]);
    assert_eq!(admitted["spec"]["traffic"][0]["revisionName"], "hello-1");
}

#[test]
fn a7_9_a7_10_c1_9_annotations_must_fit() {
    let s = Settings::default();
    let at = "spec.template.metadata.annotations.";
    let check =
        |key: &str, value: &str, want: &str| refused(&with_annotation(key, value), None, &s, &want.replace("@", at));
    check(
        "autoscaling.knative.dev/min-scale",
        "-1",
        "expected 0 <= -1 <= 2147483647: @autoscaling.knative.dev/min-scale",
    );
    check("autoscaling.knative.dev/minScale", "x", "invalid value: x: @autoscaling.knative.dev/minScale");
    // Read as numbers, and no numbers to go by.
    check("autoscaling.knative.dev/target", "NaN", "invalid value: NaN: @autoscaling.knative.dev/target");
    check("autoscaling.knative.dev/target", "inf", "invalid value: inf: @autoscaling.knative.dev/target");
    check(
        "autoscaling.knative.dev/panic-threshold-percentage",
        "NaN",
        "expected 110 <= NaN <= 1000: @autoscaling.knative.dev/panic-threshold-percentage",
    );
    check(
        "autoscaling.knative.dev/class",
        "x.knative.dev",
        "invalid value: x.knative.dev: @autoscaling.knative.dev/class",
    );
    check("autoscaling.knative.dev/window", "5s", "expected 6s <= 5s <= 1h0m0s: @autoscaling.knative.dev/window");
    check(
        "autoscaling.knative.dev/window",
        "6500ms",
        "must be specified with at most second precision: @autoscaling.knative.dev/window",
    );
    check("autoscaling.knative.dev/metric", "cpu", "invalid value: cpu: @autoscaling.knative.dev/metric");
    check("autoscaling.knative.dev/target", "0", "target 0 should be at least 0.01: @autoscaling.knative.dev/target");
    check(
        "autoscaling.knative.dev/initial-scale",
        "0",
        "invalid value: 0: @autoscaling.knative.dev/initial-scale=0 not allowed by cluster",
    );
    check(
        "autoscaling.knative.dev/activation-scale",
        "1",
        "activation-scale=1 must be greater than 1: @autoscaling.knative.dev/activation-scale",
    );
    check(
        "serving.knative.dev/progress-deadline",
        "1.5s",
        "progress-deadline=1.5s is not at second precision: @serving.knative.dev/progress-deadline",
    );
    check(
        "queue.sidecar.serving.knative.dev/cpu-resource-limit",
        "x",
        "invalid value: x: @[queue.sidecar.serving.knative.dev/cpu-resource-limit]",
    );
    check(
        "networking.knative.dev/nonsense",
        "x",
        "invalid key name \"networking.knative.dev/nonsense\": spec.template.metadata.annotations",
    );

    let mut service = with_container(json!({}));
    service["metadata"]["annotations"] = json!({"autoscaling.knative.dev/min-scale": "1"});
    refused(
        &service,
        None,
        &s,
        "invalid key name \"autoscaling.knative.dev/min-scale\": metadata.annotations\nautoscaling annotations must be put under \"spec.template.metadata.annotations\" to work",
    );
    service["metadata"]["annotations"] = json!({"serving.knative.dev/rollout-duration": "1.5s"});
    refused(
        &service,
        None,
        &s,
        "rollout-duration=1.5s is not at second precision: metadata.annotations.serving.knative.dev/rollout-duration",
    );
    let old = admitted(&with_container(json!({})), &s);
    let mut other = old.clone();
    other["metadata"]["annotations"]["serving.knative.dev/creator"] = json!("bob");
    refused(&other, Some(&old), &s, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator");
    let mut other = old.clone();
    other["metadata"]["annotations"]["serving.knative.dev/lastModifier"] = json!("bob");
    refused(&other, Some(&old), &s, "invalid value: bob: metadata.annotations.serving.knative.dev/lastModifier");
}

#[test]
fn a5_2_a2_2_traffic_must_add_up() {
    let s = Settings::default();
    let check = |traffic: Value, want: &str| {
        let mut value = with_container(json!({}));
        value["spec"]["traffic"] = traffic;
        refused(&value, None, &s, want);
    };
    check(json!([{"percent": 90}]), "Traffic targets sum to 90, want 100: spec.traffic");
    check(
        json!([{"percent": 100, "configurationName": "x"}]),
        "must not set the field(s): spec.traffic[0].configurationName",
    );
    check(
        json!([{"percent": 100, "revisionName": "x", "latestRevision": true}]),
        "may not set revisionName \"x\" when latestRevision is true: spec.traffic[0].latestRevision",
    );
    check(
        json!([{"percent": 50, "tag": "a"}, {"percent": 50, "tag": "a"}]),
        "Multiple definitions for \"a\": spec.traffic[0].tag, spec.traffic[1].tag",
    );
    check(json!([{"percent": 100, "url": "x"}]), "must not set the field(s): spec.traffic[0].url");
    check(
        json!([{"percent": 101}, {"percent": -1}]),
        "expected 0 <= -1 <= 100: spec.traffic[1].percent\nexpected 0 <= 101 <= 100: spec.traffic[0].percent",
    );
    check(
        json!([{"percent": 100, "tag": "A"}]),
        "invalid value: not a DNS 1035 label: [a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')]: spec.traffic.tag[0]",
    );
    let empty = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "r"}, "spec": {}});
    refused(&empty, None, &s, "Traffic targets sum to 0, want 100: spec.traffic");
    let route = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "r"}, "spec": {"traffic": [{"percent": 100}]}});
    refused(
        &route,
        None,
        &s,
        "expected exactly one, got neither: spec.traffic[0].configurationName, spec.traffic[0].revisionName",
    );
}

#[test]
fn a4_23_a4_24_revisions_never_change() {
    let s = Settings::default();
    let revision = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": "r"}, "spec": {"containers": [{"image": "a"}]}});
    let old = admitted(&revision, &s);
    let mut changed = old.clone();
    changed["spec"]["timeoutSeconds"] = json!(10);
    refused(
        &changed,
        Some(&old),
        &s,
        "Immutable fields changed (-old +new): spec\n-timeoutSeconds: 300\n+timeoutSeconds: 10",
    );
    let mut orphan = revision;
    orphan["metadata"]["labels"] = json!({"serving.knative.dev/configuration": "c"});
    refused(&orphan, None, &s, "missing field(s): metadata.labels.serving.knative.dev/configuration");
}

#[test]
fn a6_1_mappings_need_a_domain_of_their_own() {
    let s = Settings::default();
    let mapping = |name: &str| {
        json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping", "metadata": {"name": name, "namespace": "ns"},
            "spec": {"ref": {"name": "hello", "kind": "Service", "apiVersion": "serving.knative.dev/v1"}}})
    };
    assert_eq!(admitted(&mapping("a.example.org"), &s)["spec"]["ref"]["namespace"], "ns");
    refused(
        &mapping("a.svc.cluster.local"),
        None,
        &s,
        "invalid name \"a.svc.cluster.local\": must not be a subdomain of cluster local domain \"cluster.local\": metadata.name",
    );
    refused(
        &mapping("plain"),
        None,
        &s,
        "invalid name \"plain\": name: Invalid value: \"plain\": should be a domain with at least two segments separated by dots: metadata.name",
    );
    let mut grouped = mapping("a.example.org");
    grouped["spec"]["ref"]["group"] = json!("serving.knative.dev");
    refused(&grouped, None, &s, "must not set the field(s): spec.ref.group");
    let mut incomplete = mapping("a.example.org");
    incomplete["spec"]["ref"] = json!({"name": "x"});
    refused(&incomplete, None, &s, "missing field(s): spec.ref.apiVersion, spec.ref.kind");
}

#[test]
fn internal_kinds_are_checked() {
    let s = Settings::default();
    let pa = json!({"apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler", "metadata": {"name": "r"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "protocolType": "http1"}});
    assert_eq!(
        admitted(&pa, &s)["metadata"]["annotations"],
        json!({"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "concurrency"})
    );
    let ingress = |splits: Value| {
        json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": {"name": "i", "namespace": "ns"},
        "spec": {"rules": [{"hosts": ["a"], "http": {"paths": [{"splits": splits}]}}]}})
    };
    let one = json!([{"serviceName": "s", "serviceNamespace": "ns", "servicePort": 80}]);
    assert_eq!(
        admitted(&ingress(one.clone()), &s)["spec"]["rules"][0]["http"]["paths"][0]["splits"][0]["percent"],
        100
    );
    let mut half = one.clone();
    half[0]["percent"] = json!(50);
    refused(
        &ingress(half),
        None,
        &s,
        "traffic split percentage must total to 100, but was 50: spec.rules[0].http.paths[0].splits",
    );
    let mut foreign = one;
    foreign[0]["serviceNamespace"] = json!("other");
    refused(
        &ingress(foreign),
        None,
        &s,
        "invalid value: service namespace must match ingress namespace: spec.rules[0].http.paths[0].splits[0].serviceNamespace",
    );
}

#[test]
fn a7_4_c3_15_config_maps_are_checked() {
    let s = Settings::default();
    let map = |data: Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "config-features", "namespace": "knative-serving",
        "annotations": {"knative.dev/example-checksum": "00000000"}}, "data": data})
    };
    refused(
        &map(json!({"multi-container": "maybe"})),
        None,
        &s,
        "\"maybe\" is not enabled, allowed or disabled: data.multi-container",
    );
    assert!(run(&map(json!({"_example": "x"})), None, &s).expect_err("refused").contains("probably not what you want"));
    let mut foreign = map(json!({"multi-container": "maybe"}));
    foreign["metadata"]["namespace"] = json!("ns");
    assert!(run(&foreign, None, &s).is_ok());
}

#[test]
fn a4_6_a4_21_features_open_fields() {
    let mut s = Settings::default();
    s.features.podspec_node_selector = Flag::Allowed;
    s.features.podspec_init_containers = Flag::Enabled;
    admitted(
        &with_pod(
            json!({"nodeSelector": {"a": "b"}, "initContainers": [{"image": "i", "env": [{"name": "PORT", "value": "1"}]}]}),
        ),
        &s,
    );
    refused(
        &with_pod(json!({"initContainers": [{"image": "i", "readinessProbe": {}}]})),
        None,
        &s,
        "field not allowed in an init container: spec.template.spec.initContainers[0].readinessProbe",
    );
}

#[test]
fn a7_11_insecure_defaults_are_warned_about() {
    let (_, warnings) = run(&with_container(json!({})), None, &Settings::default()).expect("admitted");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("spec.template.spec.containers[0].securityContext.runAsNonRoot"), "{warnings:?}");
}

#[test]
fn what_is_on_its_way_out_passes() {
    let mut value = with_container(json!({"image": ""}));
    value["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    assert!(run(&value, Some(&value), &Settings::default()).is_ok());
}

/// I4: a manual Service is given no template and no traffic, and needs none.
#[test]
fn i4_a_manual_service_says_nothing_else() {
    let manual = |spec: Value| {
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": spec,
            "metadata": {"name": "hello", "namespace": "ns", "annotations": {"neap.dev/service-mode": "manual"}}})
    };
    for spec in [json!({}), json!({"template": {"spec": {"containers": []}}}), Value::Null] {
        assert_eq!(admitted(&manual(spec), &Settings::default())["spec"], json!({}));
    }
    let ordinary =
        admitted(&manual(json!({"template": {"spec": {"containers": [{"image": "app"}]}}})), &Settings::default());
    assert_eq!(ordinary["spec"]["traffic"], json!([{"latestRevision": true, "percent": 100}]));
    let mut nameless = manual(json!({}));
    nameless["metadata"]["name"] = "A".into();
    assert!(run(&nameless, None, &Settings::default()).is_err());
}

#[test]
fn what_goes_beyond_knative_says_something_or_is_refused() {
    let s = Settings::default();
    let with = |annotations: Value| {
        let mut object = service(json!({"spec": {"containers": [{"image": "a"}]}}));
        object["metadata"]["annotations"] = annotations;
        object
    };
    let mapping = |annotations: Value| {
        json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
            "metadata": {"name": "shop.example.org", "namespace": "ns", "annotations": annotations},
            "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "shop"}}})
    };
    for (object, want) in [
        (
            with(json!({"neap.dev/rate-limit": "fast"})),
            "invalid value: \"fast\" is no rate: write \"100/s\", \"600/m\" or \"10/h\", and \"burst 20\" behind it if you like: metadata.annotations.neap.dev/rate-limit",
        ),
        (
            with(json!({"neap.dev/rate-limits": "1/s"})),
            "invalid key name \"neap.dev/rate-limits\": metadata.annotations",
        ),
        (
            with(json!({"neap.dev/wildcard": "true"})),
            "invalid value: only a DomainMapping can have it: metadata.annotations.neap.dev/wildcard",
        ),
        (
            with(json!({"neap.dev/routes": "- {path: /a, tag: blue}"})),
            "invalid value: spec.traffic has no tag \"blue\": metadata.annotations.neap.dev/routes",
        ),
        (
            mapping(json!({"neap.dev/routes": "- {path: /a, tag: blue}"})),
            "invalid value: entry 1: must lead to either a service or a ref: metadata.annotations.neap.dev/routes",
        ),
        (
            mapping(json!({"neap.dev/auth": "key"})),
            "invalid value: must name the Secret that holds the keys: metadata.annotations.neap.dev/auth-secret",
        ),
    ] {
        refused(&object, None, &s, want);
    }
    let good = mapping(json!({"neap.dev/routes": "- {path: /a, service: b}", "neap.dev/wildcard": "true"}));
    admitted(&good, &s);
    admitted(&with(json!({"neap.dev/session-affinity": "cookie", "neap.dev/hedge-after": "p95"})), &s);
}
