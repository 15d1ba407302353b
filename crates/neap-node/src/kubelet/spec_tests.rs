use super::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn around() -> Surroundings {
    let node = NodeFacts::example();
    Surroundings {
        cluster_dns: vec![[198, 19, 0, 10].into()],
        host_dns: read_resolv_conf("nameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch lan\noptions edns0\n", false),
        ..Surroundings::new(node, "/claims")
    }
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u-1"}, "spec": spec})).unwrap()
}

fn made(spec: Value) -> PodSpec {
    pod_spec(&pod(spec), &Found::default(), &around()).unwrap()
}

fn container(mut own: Value) -> ContainerSpec {
    own["name"] = json!("c");
    if own["image"].is_null() {
        own["image"] = json!("app:1");
    }
    made(json!({"enableServiceLinks": false, "containers": [own]})).containers.remove(0)
}

#[test]
fn a_plain_pod_gets_kubernetes_defaults() {
    let spec = made(json!({"containers": [{"name": "c", "image": "app:1"}]}));
    assert_eq!((spec.id.0.as_str(), spec.hostname.as_str(), spec.restart), ("u-1", "p", RestartPolicy::Always));
    assert_eq!(spec.grace, Duration::from_secs(30));
    let c = &spec.containers[0];
    assert_eq!(c.termination_message_path, Path::new("/dev/termination-log"));
    assert_eq!((c.user, c.privileged, c.no_new_privileges, c.pull), (None, false, false, PullPolicy::IfNotPresent));
    assert_eq!(spec.dns.searches, ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"]);
    assert_eq!(spec.dns.options, ["ndots:5"]);
}

#[test]
fn images_without_a_fixed_tag_are_asked_for_each_time() {
    for (image, want) in [
        ("app", PullPolicy::Always),
        ("app:latest", PullPolicy::Always),
        ("localhost:5000/app", PullPolicy::Always),
        ("localhost:5000/app:1", PullPolicy::IfNotPresent),
        ("app@sha256:00", PullPolicy::IfNotPresent),
    ] {
        assert_eq!(container(json!({"image": image})).pull, want, "{image}");
    }
    assert_eq!(container(json!({"image": "a", "imagePullPolicy": "Never"})).pull, PullPolicy::Never);
}

#[test]
fn probes_are_completed_and_ports_found_by_name() {
    let ports = json!([{"name": "user-port", "containerPort": 8080}]);
    let check = |probe: Value, want: Option<ProbeAction>| {
        let c = container(json!({"ports": ports, "readinessProbe": probe}));
        assert_eq!(c.readiness.map(|p| p.action), want, "{probe}");
    };
    let http = |port, path: &str| {
        Some(ProbeAction::Http { port, path: path.into(), https: false, host: None, headers: Vec::new() })
    };
    check(json!({"httpGet": {"path": "/ok", "port": "user-port"}}), http(8080, "/ok"));
    check(json!({"httpGet": {"port": 9}}), http(9, "/"));
    check(json!({"httpGet": {"port": "9"}}), http(9, "/"));
    check(json!({"httpGet": {"port": "none"}}), None);
    check(json!({"tcpSocket": {"port": 0}}), Some(ProbeAction::Tcp { port: 8080 }));
    check(json!({"exec": {"command": ["a", "b"]}}), Some(ProbeAction::Exec(vec!["a".into(), "b".into()])));
    check(json!({"grpc": {"port": 5}}), Some(ProbeAction::Grpc { port: 5, service: String::new() }));
    let c = container(json!({"livenessProbe": {"tcpSocket": {"port": 1}, "timeoutSeconds": 7, "failureThreshold": 0}}));
    let p = c.liveness.unwrap();
    assert_eq!((p.period.as_secs(), p.timeout.as_secs(), p.success_threshold, p.failure_threshold), (10, 7, 1, 3));
}

#[test]
fn the_containers_security_context_wins_over_the_pods() {
    let spec = made(json!({
        "securityContext": {"runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true},
        "containers": [
            {"name": "a", "image": "x:1"},
            {"name": "b", "image": "x:1", "securityContext": {
                "runAsUser": 3, "runAsNonRoot": false, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}},
        ],
    }));
    let [a, b] = &spec.containers[..] else { panic!("two containers") };
    assert_eq!((a.user, a.group, a.run_as_non_root, a.no_new_privileges), (Some(1), Some(2), true, false));
    assert_eq!((b.user, b.group, b.run_as_non_root, b.no_new_privileges), (Some(3), Some(2), false, true));
    assert!(b.read_only_root && b.add_capabilities == ["NET_ADMIN"] && b.drop_capabilities == ["ALL"]);
}

#[test]
fn resources_are_numbers() {
    let c = container(
        json!({"resources": {"limits": {"cpu": "1500m", "memory": "64Mi", "ephemeral-storage": "1Gi"}, "requests": {"cpu": "250m"}}}),
    );
    let want = Resources {
        cpu_request_milli: Some(250),
        cpu_limit_milli: Some(1500),
        memory_limit: Some(64 << 20),
        pids_limit: None,
        storage_limit: Some(1 << 30),
    };
    assert_eq!(c.resources, want);
    assert_eq!(container(json!({})).resources, Resources::default());
}

#[test]
fn commands_and_sub_paths_know_the_environment() {
    let spec = made(json!({
        "enableServiceLinks": false,
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "x:1", "env": [{"name": "A", "value": "1"}], "command": ["run", "$(A)"],
            "args": ["$(B)", "$$(A)"],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "x-$(A)", "readOnly": true}]}],
    }));
    let c = &spec.containers[0];
    assert_eq!((c.command.join(" "), c.args.join(" ")), ("run 1".to_owned(), "$(B) $(A)".to_owned()));
    assert_eq!(c.mounts[0].sub_path.as_deref(), Some(Path::new("x-1")));
    assert!(c.mounts[0].read_only);
}

#[test]
fn name_servers_follow_the_policy_and_the_pods_own_wishes() {
    let check = |spec: Value, want: &str| {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let d = made(spec).dns;
        let servers: Vec<String> = d.nameservers.iter().map(ToString::to_string).collect();
        assert_eq!(format!("{} | {} | {}", servers.join(" "), d.searches.len(), d.options.join(" ")), want);
    };
    check(json!({}), "198.19.0.10 | 4 | ndots:5");
    check(json!({"dnsPolicy": "Default"}), "9.9.9.9 | 1 | edns0");
    check(json!({"hostNetwork": true}), "9.9.9.9 | 1 | edns0");
    check(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), "198.19.0.10 | 4 | ndots:5");
    check(
        json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]}}),
        "1.1.1.1 | 1 | ndots:2",
    );
    check(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}), "198.19.0.10 | 4 | ndots:1");
}

#[test]
fn a_token_is_mounted_where_clients_look_for_it() {
    let mut around = around();
    let authority = b"PEM".to_vec();
    around.api = Some(ApiAccess { host: "198.19.0.1".into(), port: 443, authority });
    let mut found = Found { account: Some(Arc::default()), ..Found::default() };
    found.tokens.insert((String::new(), TOKEN_SECONDS), "ticket".into());
    let spec = json!({"enableServiceLinks": false, "serviceAccountName": "robot", "containers": [{"name": "c", "image": "x:1"}]});
    let pod = pod(spec);
    assert!(unasked_token(&pod, &found, &around));
    let spec = pod_spec(&pod, &found, &around).unwrap();
    let c = &spec.containers[0];
    assert_eq!(c.mounts[0].path, Path::new("/var/run/secrets/kubernetes.io/serviceaccount"));
    assert!(c.env.contains(&("KUBERNETES_SERVICE_HOST".to_owned(), "198.19.0.1".to_owned())));
    assert!(spec.volumes.contains_key("kube-api-access"));
}

#[test]
fn what_is_missing_names_its_container_or_volume() {
    let failed = |spec: Value| pod_spec(&pod(spec), &Found::default(), &around()).unwrap_err().to_string();
    assert_eq!(
        failed(json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]})),
        "secret \"s\" not found"
    );
    assert_eq!(
        failed(json!({"containers": [], "volumes": [{"name": "v", "configMap": {"name": "m"}}]})),
        "MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found"
    );
}

#[test]
fn hooks_sidecars_profiles_groups_and_names_arrive() {
    let spec = made(json!({
        "securityContext": {"fsGroup": 7, "supplementalGroups": [8, 9], "seccompProfile": {"type": "Unconfined"}},
        "hostPID": true,
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a", "b"]}],
        "initContainers": [{"name": "i", "image": "x:1"}, {"name": "s", "image": "x:1", "restartPolicy": "Always"}],
        "containers": [
            {"name": "a", "image": "x:1", "lifecycle": {"postStart": {"exec": {"command": ["go"]}}, "preStop": {"sleep": {"seconds": 3}}}},
            {"name": "b", "image": "x:1", "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p/x.json"}},
             "livenessProbe": {"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 4}},
            {"name": "c", "image": "x:1", "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}},
        ],
    }));
    assert_eq!((spec.host_pid, spec.host_ipc), (true, false));
    assert_eq!((spec.fs_group, &spec.supplemental_groups[..]), (Some(7), &[8, 9][..]));
    assert_eq!(spec.host_aliases, [("192.0.2.1".parse().unwrap(), vec!["a".to_owned(), "b".to_owned()])]);
    assert_eq!(spec.init_containers.iter().map(|c| c.sidecar).collect::<Vec<_>>(), [false, true]);
    let [a, b, c] = &spec.containers[..] else { panic!("three containers") };
    assert_eq!(a.post_start, Some(Hook::Act(ProbeAction::Exec(vec!["go".into()]))));
    assert_eq!(a.pre_stop, Some(Hook::Sleep(Duration::from_secs(3))));
    let profiles = [&a.seccomp, &b.seccomp, &c.seccomp];
    assert_eq!(profiles, [&Seccomp::Unconfined, &Seccomp::Local("p/x.json".into()), &Seccomp::Default]);
    assert_eq!(b.liveness.as_ref().unwrap().grace, Some(Duration::from_secs(4)));
    assert_eq!(container(json!({})).seccomp, Seccomp::Default);
}

#[test]
fn who_was_promised_more_goes_later() {
    // The machine has 1 GiB.
    let check =
        |resources: Value, want: u16| assert_eq!(container(json!({"resources": resources})).oom_score, Some(want));
    check(json!({}), 1000);
    check(json!({"requests": {"cpu": "1m"}}), 999);
    check(json!({"requests": {"memory": "512Mi"}}), 500);
    check(json!({"requests": {"memory": "9Gi"}}), 3);
    check(json!({"limits": {"cpu": "1", "memory": "1Mi"}}), 2);
}
