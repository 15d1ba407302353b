//! Section A of the facts at the door: what is let in, what is filled in and what is refused, by row.

use serde_json::json;

use super::tests::{admitted, refused, request, run, service, with_annotation, with_container, with_pod};
use super::*;
use crate::config::Flag;
use crate::config::features::SecurePodDefaults;

fn merged(mut into: Value, fields: &Value) -> Value {
    let all = fields.as_object().into_iter().flatten();
    all.for_each(|(key, value)| into[key] = value.clone());
    into
}

/// Everything open that a flag can open.
fn open() -> Settings {
    let flags = crate::config::features::FLAGS.iter().map(|(key, _)| ((*key).to_owned(), "Enabled".to_owned()));
    let maps = crate::config::Maps::from([("config-features".to_owned(), flags.collect())]);
    Settings::parse(&maps).expect("flags")
}

/// The refusal is about this field, and only about fields of that beginning.
fn names(value: &Value, settings: &Settings, field: &str) {
    let error = run(value, None, settings).expect_err(field);
    assert!(error.contains(field), "{error} does not name {field}");
}

#[test]
fn a2_1_a3_1_a3_2_a_template_is_what_a_revision_is_made_from() {
    let template = json!({"metadata": {"name": "hello-a", "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e"],
        "odd": {"kept": true}}, "spec": {"containers": [{"image": "app"}]}});
    for (kind, traffic) in [("Service", true), ("Configuration", false)] {
        let mut value = service(template.clone());
        value["kind"] = kind.into();
        let got = admitted(&value, &Settings::default());
        assert_eq!(got["spec"]["template"]["metadata"], template["metadata"], "{kind}");
        assert_eq!(got["spec"]["traffic"].is_array(), traffic);
        assert_eq!(got["spec"]["template"]["spec"]["timeoutSeconds"], 300);
    }
}

#[test]
fn a2_8_what_is_checked_of_a_service() {
    let s = Settings::default();
    let with = |meta: Value| merged(with_container(json!({})), &json!({"metadata": meta}));
    let annotated = |key: &str, value: &str| with(json!({"name": "hello", "annotations": {key: value}}));
    names(&with(json!({"name": "A"})), &s, "metadata.name");
    names(&with(json!({})), &s, "name or generateName is required: metadata.name");
    names(&annotated("autoscaling.knative.dev/min-scale", "1"), &s, "metadata.annotations");
    names(
        &annotated("serving.knative.dev/rolloutDuration", "x"),
        &s,
        "metadata.annotations.serving.knative.dev/rolloutDuration",
    );
    names(&merged(with_container(json!({})), &json!({"spec": {"traffic": [{"percent": 100}]}})), &s, "spec.template");
    // A status is not looked at.
    let mut bad = with(json!({"name": "A"}));
    bad["spec"] = json!({});
    let mut status = request(&bad, Some(&bad));
    status.sub_resource = Some("status".into());
    assert!(admit(&status, &s).is_ok());
}

#[test]
fn a3_6_an_owned_configuration_is_its_owners() {
    let s = Settings::default();
    let mut value = with_container(json!({}));
    value["kind"] = "Configuration".into();
    value["metadata"]["labels"] = json!({"serving.knative.dev/service": "hello"});
    refused(&value, None, &s, "missing field(s): metadata.labels.serving.knative.dev/service");
    let owner = |kind: &str, name: &str| json!([{"apiVersion": "serving.knative.dev/v1", "kind": kind, "name": name, "uid": "u"}]);
    value["metadata"]["ownerReferences"] = owner("Service", "other");
    assert!(run(&value, None, &s).is_err());
    value["metadata"]["ownerReferences"] = owner("Service", "hello");
    let got = admitted(&value, &s);
    assert!(got["metadata"]["annotations"].is_null(), "who made it is said of its owner");
    let mut free = with_container(json!({}));
    free["kind"] = "Configuration".into();
    assert_eq!(admitted(&free, &s)["metadata"]["annotations"]["serving.knative.dev/creator"], "ann");
}

#[test]
fn a4_1_to_4_numbers_of_a_revision() {
    let s = Settings::default();
    let got =
        |fields: Value, settings: &Settings| admitted(&with_pod(fields), settings)["spec"]["template"]["spec"].clone();
    // "A4.1"
    assert_eq!(got(json!({}), &s)["containerConcurrency"], 0);
    assert_eq!(got(json!({"containerConcurrency": 1000}), &s)["containerConcurrency"], 1000);
    let mut strict = s.clone();
    strict.defaults.allow_container_concurrency_zero = false;
    strict.defaults.container_concurrency = 7;
    assert_eq!(got(json!({}), &strict)["containerConcurrency"], 7);
    names(
        &with_pod(json!({"containerConcurrency": 0})),
        &strict,
        "expected 1 <= 0 <= 1000: spec.template.spec.containerConcurrency",
    );
    for (row, field) in [("A4.1", "containerConcurrency"), ("A4.2", "timeoutSeconds")] {
        names(&with_pod(json!({field: -1})), &s, &format!("spec.template.spec.{field}"));
        assert!(run(&with_pod(json!({field: 5})), None, &s).is_ok(), "{row}");
    }
    assert_eq!(got(json!({"timeoutSeconds": 0}), &s)["timeoutSeconds"], 300, "{}", "A4.2");
    // A default of a shorter timeout counts only where it is shorter.
    let mut timed = s.clone();
    timed.defaults.response_start_timeout_seconds = 20;
    timed.defaults.idle_timeout_seconds = 30;
    for (row, field, want) in [("A4.3", "responseStartTimeoutSeconds", 20), ("A4.4", "idleTimeoutSeconds", 30)] {
        assert_eq!(got(json!({"timeoutSeconds": 100}), &timed)[field], want, "{row}");
        assert!(got(json!({"timeoutSeconds": 10}), &timed)[field].is_null(), "{row}");
        assert!(got(json!({}), &s)[field].is_null(), "{row}");
    }
}

#[test]
fn a4_5_a4_6_a4_7_fields_of_the_pod() {
    let s = Settings::default();
    let always = json!({"serviceAccountName": "sa", "imagePullSecrets": [{"name": "s"}], "enableServiceLinks": true,
        "automountServiceAccountToken": false});
    admitted(&with_pod(always), &s);
    let flagged = json!({"affinity": {"podAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "k", "whenUnsatisfiable": "x"}],
        "hostAliases": [{"ip": "1.1.1.1"}], "nodeSelector": {"a": "b"}, "runtimeClassName": "r", "tolerations": [{"key": "k"}],
        "securityContext": {"fsGroup": 1}, "shareProcessNamespace": true, "priorityClassName": "p", "schedulerName": "s",
        "initContainers": [{"image": "i"}], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}, "hostIPC": true,
        "hostPID": true, "hostNetwork": true});
    for (field, value) in flagged.as_object().expect("fields") {
        let pod = with_pod(json!({field: value}));
        names(&pod, &s, &format!("spec.template.spec.{field}"));
        assert!(run(&pod, None, &open()).is_ok(), "{field}: {:?}", run(&pod, None, &open()));
    }
    let never = json!({"restartPolicy": "Always", "terminationGracePeriodSeconds": 5, "activeDeadlineSeconds": 5,
        "nodeName": "n", "hostname": "h", "subdomain": "s", "priority": 5, "readinessGates": [{"conditionType": "c"}]});
    for (field, value) in never.as_object().expect("fields") {
        refused(
            &with_pod(json!({field: value})),
            None,
            &open(),
            &format!("must not set the field(s): spec.template.spec.{field}"),
        );
    }
}

#[test]
fn a4_8_a4_9_fields_of_a_container() {
    let s = Settings::default();
    let allowed = json!({"name": "n", "args": ["a"], "command": ["c"], "env": [{"name": "A", "value": "b"}], "workingDir": "/w",
        "envFrom": [{"configMapRef": {"name": "m"}}], "imagePullPolicy": "Always", "livenessProbe": {"tcpSocket": {"port": 8080}},
        "ports": [{"containerPort": 8080}], "readinessProbe": {"tcpSocket": {"port": 8080}}, "resources": {"limits": {"cpu": "1"}},
        "securityContext": {"runAsUser": 1}, "startupProbe": {"tcpSocket": {"port": 8080}}, "terminationMessagePath": "/t",
        "terminationMessagePolicy": "File"});
    admitted(&with_container(allowed), &s);
    let never = json!({"lifecycle": {"preStop": {}}, "stdin": true, "stdinOnce": true, "tty": true,
        "volumeDevices": [{"name": "d", "devicePath": "/d"}]});
    for (field, value) in never.as_object().expect("fields") {
        refused(
            &with_container(json!({field: value})),
            None,
            &s,
            &format!("must not set the field(s): spec.template.spec.containers[0].{field}"),
        );
    }
}

#[test]
fn a4_10_security_contexts() {
    let s = Settings::default();
    let context = |fields: Value| with_container(json!({"securityContext": fields}));
    admitted(
        &context(
            json!({"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true, "runAsUser": 1, "runAsGroup": 2,
            "runAsNonRoot": true, "allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"}, "privileged": false}),
        ),
        &s,
    );
    let at = "spec.template.spec.containers[0].securityContext";
    names(&context(json!({"privileged": true})), &s, &format!("{at}.privileged"));
    names(&context(json!({"procMount": "Default"})), &s, &format!("{at}.procMount"));
    names(&context(json!({"runAsUser": 2_147_483_648_i64})), &s, &format!("{at}.runAsUser"));
    names(&context(json!({"runAsGroup": -1})), &s, &format!("{at}.runAsGroup"));
    let add = |what: &str| context(json!({"capabilities": {"drop": ["ALL"], "add": [what]}}));
    names(&add("NET_BIND_SERVICE"), &s, &format!("{at}.capabilities.add"));
    let mut secure = Settings::default();
    secure.features.secure_pod_defaults = SecurePodDefaults::Enabled;
    assert!(run(&add("NET_BIND_SERVICE"), None, &secure).is_ok());
    names(&add("SYS_ADMIN"), &secure, &format!("{at}.capabilities.add"));
    assert!(run(&add("SYS_ADMIN"), None, &open()).is_ok());
}

#[test]
fn a4_12_ports() {
    let s = Settings::default();
    let ports = |ports: Value| with_container(json!({"ports": ports}));
    for name in ["", "h2c", "http1"] {
        admitted(&ports(json!([{"containerPort": 8080, "name": name, "protocol": "TCP"}])), &s);
    }
    for reserved in [8012, 8013, 8022, 9090, 9091, 8008] {
        names(&ports(json!([{"containerPort": reserved}])), &s, "is a reserved port");
    }
    names(&ports(json!([{"containerPort": 80, "hostIP": "1.1.1.1"}])), &s, "ports.hostIP");
    let two = |second: Value| {
        service(json!({"spec": {"containers": [{"image": "a", "ports": [{"containerPort": 80}]}, second]}}))
    };
    admitted(&two(json!({"image": "b"})), &s);
    names(&two(json!({"image": "b", "ports": [{"containerPort": 81}]})), &s, "more than one container port is set");
}

#[test]
fn a4_13_a4_14_a4_15_variables() {
    let s = Settings::default();
    let env = |one: Value| with_container(json!({"env": [one]}));
    for name in ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"] {
        names(&env(json!({"name": name, "value": "x"})), &s, &format!("{name:?} is a reserved environment variable"));
    }
    let sidecar = json!({"image": "b", "env": [{"name": "PORT", "value": "1"}]});
    admitted(
        &service(json!({"spec": {"containers": [{"image": "a", "ports": [{"containerPort": 80}]}, sidecar]}})),
        &s,
    );
    for from in
        [json!({"configMapKeyRef": {"name": "m", "key": "k"}}), json!({"secretKeyRef": {"name": "s", "key": "k"}})]
    {
        admitted(&env(json!({"name": "A", "valueFrom": from})), &s);
    }
    for from in [json!({"fieldRef": {"fieldPath": "p"}}), json!({"resourceFieldRef": {"resource": "r"}})] {
        let value = env(json!({"name": "A", "valueFrom": from}));
        names(&value, &s, "env[0].valueFrom");
        assert!(run(&value, None, &open()).is_ok());
    }
    let from = |one: Value| with_container(json!({"envFrom": [one]}));
    admitted(&from(json!({"prefix": "P", "secretRef": {"name": "s"}})), &s);
    names(&from(json!({"prefix": "P"})), &s, "expected exactly one, got neither");
    names(
        &from(json!({"secretRef": {"name": "s"}, "configMapRef": {"name": "m"}})),
        &s,
        "expected exactly one, got both",
    );
}

#[test]
fn a4_16_a4_17_names_and_images() {
    let s = Settings::default();
    names(&with_container(json!({"name": "queue-proxy"})), &s, "is a reserved container name");
    let twins = json!([{"image": "a", "name": "x", "ports": [{"containerPort": 80}]}, {"image": "b", "name": "x"}]);
    names(&service(json!({"spec": {"containers": twins}})), &s, "duplicate container name \"x\"");
    names(
        &service(json!({"spec": {"containers": [{}]}})),
        &s,
        "missing field(s): spec.template.spec.containers[0].image",
    );
    names(&with_container(json!({"image": "a:b:c"})), &s, "Failed to parse image reference");
    for image in
        ["app", "example.com:5000/a/b:v1", "a@sha256:deadb33fdeadb33fdeadb33fdeadb33fdeadb33fdeadb33fdeadb33fdeadb33f"]
    {
        admitted(&with_container(json!({"image": image})), &s);
    }
}

#[test]
fn a4_26_what_the_schema_lets_through_is_judged_here() {
    // Unknown fields are the server's to drop; those of a flag are kept for the flag to judge.
    let s = Settings::default();
    let volume = json!([{"name": "v", "csi": {"driver": "d"}}]);
    let mut value = with_pod(json!({"volumes": volume, "affinity": {"anything": 1}}));
    value["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/v", "readOnly": true}]);
    names(&value, &s, "spec.template.spec.affinity");
    names(&value, &s, "CSI volume support is disabled");
    assert!(run(&value, None, &open()).is_ok());
}

fn internal(group: &str, kind: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("{group}.internal.knative.dev/v1alpha1"), "kind": kind,
        "metadata": {"name": "r", "namespace": "ns"}, "spec": spec})
}

#[test]
fn a6_2_a6_3_a6_4_a6_6_internal_kinds() {
    let s = Settings::default();
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let check = |group: &str, kind: &str, good: Value, bad: &[(Value, &str)]| {
        admitted(&internal(group, kind, good.clone()), &s);
        for (change, want) in bad {
            names(&internal(group, kind, merged(good.clone(), change)), &s, want);
        }
    };
    check(
        "autoscaling",
        "PodAutoscaler",
        json!({"scaleTargetRef": target, "protocolType": "http1"}),
        &[
            (json!({"protocolType": ""}), "missing field(s): spec.protocolType"),
            (
                json!({"scaleTargetRef": {}}),
                "spec.scaleTargetRef.apiVersion, spec.scaleTargetRef.kind, spec.scaleTargetRef.name",
            ),
            (json!({"containerConcurrency": -1}), "expected 0 <= -1 <= 1000: spec.containerConcurrency"),
        ],
    );
    names(&internal("autoscaling", "Metric", json!({})), &s, "missing field(s): spec");
    check("autoscaling", "Metric", json!({"scrapeTarget": "t"}), &[]);
    check(
        "networking",
        "ServerlessService",
        json!({"mode": "Proxy", "objectRef": target, "protocolType": "h2c"}),
        &[
            (json!({"mode": ""}), "missing field(s): spec.mode"),
            (json!({"mode": "Sleep"}), "invalid value: Sleep: spec.mode"),
            (json!({"numActivators": -1}), "invalid value: -1: spec.numActivators"),
            (json!({"objectRef": {"kind": "D"}}), "spec.objectRef.apiVersion, spec.objectRef.name"),
            (json!({"protocolType": ""}), "missing field(s): spec.protocolType"),
        ],
    );
    check(
        "networking",
        "Certificate",
        json!({"dnsNames": ["a.b.com"], "secretName": "s", "domain": "b.com"}),
        &[
            (json!({"dnsNames": []}), "missing field(s): spec.dnsNames"),
            (json!({"dnsNames": [""]}), "spec.dnsNames[0]"),
            (json!({"secretName": ""}), "missing field(s): spec.secretName"),
            (json!({"domain": "c.com"}), "invalid value: c.com: spec.domain"),
        ],
    );
}

#[test]
fn a7_5_a7_6_who_is_asked_and_who_asks() {
    let s = Settings::default();
    assert_eq!(KINDS.len(), 11);
    // What no rule speaks of passes as it is.
    let other = json!({"apiVersion": "caching.internal.knative.dev/v1alpha1", "kind": "Image", "metadata": {"name": "A"}, "spec": {"odd": 1}});
    assert_eq!(run(&other, None, &s).expect("it passes").0["spec"], other["spec"]);
    let first = admitted(&with_container(json!({})), &s);
    assert_eq!(first["metadata"]["annotations"]["serving.knative.dev/creator"], "ann");
    let mut changed = first.clone();
    changed["spec"]["template"]["spec"]["timeoutSeconds"] = 5.into();
    let mut by_bob = request(&changed, Some(&first));
    by_bob.user_info.username = Some("bob".into());
    let (after, _) = admit(&by_bob, &s).expect("it is let in");
    let annotations = after.metadata.annotations.expect("some");
    assert_eq!(annotations["serving.knative.dev/lastModifier"], "bob");
    assert_eq!(annotations["serving.knative.dev/creator"], "ann");
}

/// C2: each annotation is checked under each of its spellings.
#[test]
fn c2_annotations_are_checked_in_every_spelling() {
    let s = Settings::default();
    let rows: [(&str, &[&str], &str, &str); 13] = [
        ("C2.1", &["class"], "hpa.autoscaling.knative.dev", "x.knative.dev"),
        ("C2.2", &["metric"], "rps", "cpu"),
        ("C2.3", &["target"], "0.01", "0"),
        ("C2.4", &["target-utilization-percentage", "targetUtilizationPercentage"], "100", "101"),
        ("C2.5", &["target-burst-capacity", "targetBurstCapacity"], "-1", "-2"),
        ("C2.6", &["min-scale", "minScale"], "1", "-1"),
        ("C2.6", &["max-scale", "maxScale"], "0", "x"),
        ("C2.7", &["initial-scale", "initialScale"], "1", "0"),
        ("C2.7", &["activation-scale"], "2", "1"),
        ("C2.8", &["window"], "6s", "2h"),
        ("C2.9", &["panic-window-percentage", "panicWindowPercentage"], "1", "0.5"),
        ("C2.9", &["panic-threshold-percentage", "panicThresholdPercentage"], "110", "109"),
        ("C2.10", &["scale-down-delay", "scaleDownDelay"], "1h", "1500ms"),
    ];
    let more: [(&str, &[&str], &str, &str); 2] = [
        ("C2.11", &["scale-to-zero-pod-retention-period", "scaleToZeroPodRetentionPeriod"], "1500ms", "61m"),
        ("C2.12", &["metric-aggregation-algorithm", "metricAggregationAlgorithm"], "linear", "quick"),
    ];
    for (row, spellings, good, bad) in rows.into_iter().chain(more) {
        for spelling in spellings {
            let with = |value: &str| {
                let key = format!("autoscaling.knative.dev/{spelling}");
                let mut annotations = json!({key: value});
                // Aggregation is our own autoscaler's alone.
                if row == "C2.12" {
                    annotations["autoscaling.knative.dev/class"] = "kpa.autoscaling.knative.dev".into();
                }
                service(json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"image": "app"}]}}))
            };
            assert!(run(&with(good), None, &s).is_ok(), "{row} {spelling}: {good}");
            let error = run(&with(bad), None, &s).expect_err(row);
            assert!(error.contains(spelling), "{row}: {error}");
        }
    }
}

#[test]
fn c1_10_c1_13_c1_16_c1_17_durations_and_amounts() {
    let s = Settings::default();
    let on_template = |key: &str, value: &str| with_annotation(key, value);
    assert!(run(&on_template("serving.knative.dev/progress-deadline", "10m"), None, &s).is_ok());
    names(&on_template("serving.knative.dev/progress-deadline", "-1s"), &s, "must be positive");
    let prefix = "queue.sidecar.serving.knative.dev";
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        for kind in ["request", "limit"] {
            let key = format!("{prefix}/{resource}-resource-{kind}");
            assert!(run(&on_template(&key, "100m"), None, &s).is_ok(), "{key}");
            names(&on_template(&key, "much"), &s, &key);
        }
    }
    for key in ["resource-percentage", "resourcePercentage"] {
        let key = format!("{prefix}/{key}");
        let (_, warnings) = run(&on_template(&key, "10"), None, &s).expect("it is let in");
        assert!(warnings.iter().any(|w| w.contains("deprecated")), "{warnings:?}");
        names(&on_template(&key, "101"), &s, &key);
    }
    for key in ["rollout-duration", "rolloutDuration"] {
        let mut value = with_container(json!({}));
        value["metadata"]["annotations"] = json!({format!("serving.knative.dev/{key}"): "-5s"});
        names(&value, &s, "must be positive");
    }
    assert_eq!(s.features.queueproxy_resource_defaults, Flag::Disabled);
}
