//! A Revision on its way to ready, and every way to fail.

use serde_json::{Value, json};

use super::super::ObjectRef;
use super::super::testing::{World, now};
use super::*;

const REVISION: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Revision
metadata:
  name: hello-00001
  namespace: ns
  labels: {serving.knative.dev/service: hello, serving.knative.dev/configuration: hello, serving.knative.dev/routingState: active}
  annotations: {autoscaling.knative.dev/min-scale: "1", serving.knative.dev/routes: hello, note: x}
spec:
  timeoutSeconds: 300
  containerConcurrency: 0
  containers:
  - {name: user-container, image: "example.com/app:v1", readinessProbe: {successThreshold: 1, tcpSocket: {port: 0}}}
"#;

fn digests(digest: Digest) -> BTreeMap<String, Digest> {
    [("example.com/app:v1".to_owned(), digest)].into()
}

fn run_with(world: &mut World, digest: Digest) -> Plan {
    let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
    let revision: Revision = serde_yaml::from_str(REVISION).expect("YAML");
    world.settle(
        &ObjectRef::of(&revision),
        |w| observe(w, "ns", "hello-00001", digests(digest.clone()), context.clone()),
        plan,
    )
}

fn run(world: &mut World) -> Plan {
    run_with(world, Digest::Resolved("sha256:abc".into()))
}

fn shown(world: &World) -> String {
    let status = &world.value("Revision", "ns", "hello-00001").expect("there")["status"];
    let show = |c: &Value| {
        format!(
            "{}={}({})",
            c["type"].as_str().unwrap_or(""),
            c["status"].as_str().unwrap_or(""),
            c["reason"].as_str().unwrap_or("")
        )
    };
    status["conditions"].as_array().expect("conditions").iter().map(show).collect::<Vec<_>>().join(" ")
}

fn message(world: &World, type_: &str) -> String {
    let status = &world.value("Revision", "ns", "hello-00001").expect("there")["status"];
    let of_type = |c: &&Value| c["type"] == type_;
    status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(of_type)
        .and_then(|c| c["message"].as_str())
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a4_29_d4_5_images_are_resolved_first() {
    let mut world = World::of(REVISION);
    run_with(&mut world, Digest::Pending);
    assert_eq!(world.names(), ["Revision/hello-00001"]);
    assert_eq!(
        shown(&world),
        "ContainerHealthy=Unknown() Ready=Unknown(ResolvingDigests) ResourcesAvailable=Unknown(ResolvingDigests)"
    );
    run_with(&mut world, Digest::Failed("no such manifest".into()));
    assert_eq!(
        message(&world, "Ready"),
        r#"Unable to fetch image "example.com/app:v1": failed to resolve image to digest: no such manifest"#
    );
    // The registry came back.
    run(&mut world);
    assert!(shown(&world).contains("ContainerHealthy=Unknown(Deploying)"), "{}", shown(&world));
}

#[test]
fn d4_1_d4_2_d4_3_a4_30_a4_31_a_revision_is_deployed_and_becomes_ready() {
    let mut world = World::of(REVISION);
    run(&mut world);
    assert_eq!(
        world.names(),
        [
            "Deployment/hello-00001-deployment",
            "Image/hello-00001-cache-user-container",
            "PodAutoscaler/hello-00001",
            "Revision/hello-00001"
        ]
    );
    let deployment = world.value("Deployment", "ns", "hello-00001-deployment").expect("created").clone();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "example.com/app@sha256:abc");
    assert_eq!(container["ports"], json!([{"name": "user-port", "containerPort": 8080, "protocol": "TCP"}]));
    assert_eq!(container["readinessProbe"]["tcpSocket"]["port"], 8080);
    assert_eq!(deployment["metadata"]["annotations"], json!({"note": "x"}));
    let image = world.value("Image", "ns", "hello-00001-cache-user-container").expect("created");
    assert_eq!(image["metadata"]["annotations"], json!({"note": "x"}));
    let pa = world.value("PodAutoscaler", "ns", "hello-00001").expect("created");
    assert_eq!(pa["spec"]["reachability"], "Reachable");
    assert_eq!(pa["metadata"]["annotations"]["autoscaling.knative.dev/class"], "kpa.autoscaling.knative.dev");
    assert_eq!(pa["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"], "1");

    world.patch(
        "PodAutoscaler",
        "ns",
        "hello-00001",
        json!({"status": {"actualScale": 1, "desiredScale": 1, "serviceName": "hello-00001", "conditions": [
            {"type": "Active", "status": "True"}, {"type": "Ready", "status": "True"}, {"type": "ScaleTargetInitialized", "status": "True"}]}}),
    );
    let plan = run(&mut world);
    assert_eq!(plan.events[0].reason, "RevisionReady");
    assert_eq!(shown(&world), "Active=True() ContainerHealthy=True() Ready=True() ResourcesAvailable=True()");
    // Being routed to or not changes the autoscaler, never the pods.
    world.patch(
        "Revision",
        "ns",
        "hello-00001",
        json!({"metadata": {"labels": {"serving.knative.dev/routingState": "reserve"}}}),
    );
    let plan = run(&mut world);
    assert_eq!(plan.writes.iter().map(|w| w.target().resource.kind).collect::<Vec<_>>(), ["PodAutoscaler"]);
}

#[test]
fn a4_28_progress_alone_makes_nothing_available() {
    // A4.28: one ready instance of three that are wanted first.
    let mut world = World::of(REVISION);
    run(&mut world);
    world.patch(
        "Deployment",
        "ns",
        "hello-00001-deployment",
        json!({"status": {"replicas": 3, "readyReplicas": 1, "availableReplicas": 1, "conditions": [{"type": "Progressing", "status": "True"}]}}),
    );
    let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "Queued"});
    world.patch(
        "PodAutoscaler",
        "ns",
        "hello-00001",
        json!({"status": {"actualScale": 1, "desiredScale": 3, "serviceName": "hello-00001", "conditions": [
            condition("Active", "Unknown"), condition("Ready", "Unknown"), condition("ScaleTargetInitialized", "Unknown")]}}),
    );
    run(&mut world);
    assert_eq!(
        shown(&world),
        "Active=Unknown(Queued) ContainerHealthy=True() Ready=Unknown(Deploying) ResourcesAvailable=Unknown(Deploying)"
    );
}

fn pod(container_status: Value) -> World {
    let mut world = World::of(REVISION);
    run(&mut world);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ns", "labels": {"serving.knative.dev/revisionUID": "uid-revision-hello-00001"}},
        "spec": {"containers": []},
        "status": container_status,
    });
    world.put_yaml(&pod.to_string());
    run(&mut world);
    world
}

#[test]
fn a4_29_d4_5_what_a_pod_suffers_from_is_shown_at_once() {
    let check = |status: Value, want: &str, text: &str| {
        let world = pod(status);
        assert!(shown(&world).contains(want), "{} lacks {want}", shown(&world));
        assert!(message(&world, "Ready").contains(text), "{}", message(&world, "Ready"));
    };
    check(
        json!({"containerStatuses": [{"name": "user-container", "ready": false, "restartCount": 1, "image": "", "imageID": "",
            "lastState": {"terminated": {"exitCode": 7, "message": "boom"}}}]}),
        "ContainerHealthy=False(ExitCode7)",
        "Container failed with: boom",
    );
    check(
        json!({"containerStatuses": [{"name": "user-container", "ready": false, "restartCount": 1, "image": "", "imageID": "",
            "lastState": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
        "ContainerHealthy=False(ExitCode0)",
        "Container failed with: container exited with no error",
    );
    check(
        json!({"containerStatuses": [{"name": "user-container", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "cannot pull"}}}]}),
        "ResourcesAvailable=Unknown(Deploying)",
        "",
    );
    check(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}]}),
        "ResourcesAvailable=False(Unschedulable)",
        "no cpu",
    );
    let world = pod(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}]}),
    );
    assert_eq!(
        world.value("PodAutoscaler", "ns", "hello-00001").expect("there")["spec"]["reachability"],
        "Unreachable"
    );
}

#[test]
fn a_sidecar_is_added_where_one_is_set() {
    let world = World::of(REVISION);
    let mut settings = Settings::default();
    settings.deployment.queue_sidecar_image = Some("queue:1".into());
    let context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
    let o = observe(&world, "ns", "hello-00001", digests(Digest::Resolved(String::new())), context).expect("there");
    let plan = plan(&o);
    let Write::Create(deployment) = &plan.writes[0] else { panic!("{plan:?}") };
    let containers = &deployment.value["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[1]["name"], "queue-proxy");
    assert_eq!(containers[0]["image"], "example.com/app:v1");
    assert_eq!(containers[0]["lifecycle"]["preStop"]["httpGet"]["path"], "/wait-for-drain");
    assert!(containers[0]["readinessProbe"].is_null());
    let probe = containers[1]["env"]
        .as_array()
        .expect("env")
        .iter()
        .find(|e| e["name"] == "SERVING_READINESS_PROBE")
        .expect("set");
    assert_eq!(probe["value"], r#"{"successThreshold":1,"tcpSocket":{"port":8080}}"#);
}

#[test]
fn b4_2_images_nobody_need_be_asked_about() {
    let check = |image: &str, want: usize| {
        let mut revision: Revision = serde_yaml::from_str(REVISION).expect("YAML");
        revision.spec.pod.containers[0].image = Some(image.into());
        assert_eq!(images_to_resolve(&revision, &Settings::default()).len(), want, "{image}");
    };
    check("example.com/app", 1);
    check("dev.local/app", 0);
    check(&format!("example.com/app@sha256:{}", "0".repeat(64)), 0);
}

fn made_with(settings: Settings, change: Value) -> Value {
    let mut world = World::of(REVISION);
    world.patch("Revision", "ns", "hello-00001", change);
    let context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
    let o =
        observe(&world, "ns", "hello-00001", digests(Digest::Resolved("sha256:abc".into())), context).expect("there");
    let plan = plan(&o);
    let deployment = plan.writes.iter().find_map(|write| match write {
        Write::Create(object) if object.resource.kind == "Deployment" => Some(object.value.clone()),
        _ => None,
    });
    deployment.unwrap_or_else(|| panic!("no Deployment in {plan:#?}"))
}

fn with_sidecar() -> Settings {
    let mut settings = Settings::default();
    settings.deployment.queue_sidecar_image = Some("queue:1".into());
    settings
}

fn variables(container: &Value) -> Vec<(&str, &str)> {
    let env = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    env.iter().map(|e| (e["name"].as_str().unwrap_or(""), e["value"].as_str().unwrap_or(""))).collect()
}

#[test]
fn c1_5_c1_12_c1_14_c1_18_c1_19_labels_and_annotations_of_pods() {
    let own = json!({"metadata": {
        "labels": {"serving.knative.dev/route": "r", "team": "a"},
        "annotations": {"serving.knative.dev/lastPinned": "1", "serving.knative.dev/no-gc": "true",
            "serving.knative.dev/routingStateModified": "t", "client.knative.dev/user-image": "app"}}});
    let deployment = made_with(Settings::default(), own);
    let meta = &deployment["metadata"];
    let mut labels = meta["labels"].clone();
    let hash = labels.as_object_mut().and_then(|all| all.remove("serving.knative.dev/deployment-hash"));
    assert!(hash.is_some_and(|hash| hash.as_str().is_some_and(|hash| hash.len() == 8)));
    let want = json!({"app": "hello-00001", "team": "a", "serving.knative.dev/service": "hello",
        "serving.knative.dev/configuration": "hello", "serving.knative.dev/revision": "hello-00001",
        "serving.knative.dev/revisionUID": "uid-revision-hello-00001"});
    assert_eq!(labels, want);
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"], want);
    assert_eq!(deployment["spec"]["selector"]["matchLabels"].as_object().map(serde_json::Map::len), Some(1));
    // C1.21: what kn writes stays.
    assert_eq!(meta["annotations"], json!({"note": "x", "client.knative.dev/user-image": "app"}));
    let pod = &deployment["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(pod["kubectl.kubernetes.io/default-container"], "user-container");
    let named = made_with(Settings::default(), json!({"metadata": {"labels": {"app": "mine"}}}));
    assert_eq!(named["metadata"]["labels"]["app"], "mine");
}

#[test]
fn c1_21_c5_1_c5_2_variables_of_containers() {
    let containers = json!([
        {"name": "user-container", "image": "example.com/app:v1", "ports": [{"containerPort": 80}], "env": [{"name": "A", "value": "b"}]},
        {"name": "side", "image": "example.com/app:v1"}]);
    let mut settings = Settings::default();
    let deployment = made_with(settings.clone(), json!({"spec": {"containers": containers}}));
    let pods = &deployment["spec"]["template"]["spec"]["containers"];
    let identity = [("K_REVISION", "hello-00001"), ("K_CONFIGURATION", "hello"), ("K_SERVICE", "hello")];
    assert_eq!(variables(&pods[0]), [&[("A", "b")][..], &identity, &[("PORT", "80")]].concat());
    assert_eq!(variables(&pods[1]), identity);
    settings.observability.enable_var_log_collection = true;
    let deployment = made_with(settings, json!({}));
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let names: Vec<&str> = variables(container).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"K_INTERNAL_POD_NAME") && names.contains(&"K_INTERNAL_POD_NAMESPACE"));
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/var/log");
}

#[test]
fn c5_3_c5_8_the_sidecar_has_upstreams_variables_and_ports() {
    let deployment = made_with(with_sidecar(), json!({}));
    let sidecar = &deployment["spec"]["template"]["spec"]["containers"][1];
    let names: Vec<&str> = variables(sidecar).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names.join(" "),
        "SERVING_NAMESPACE SERVING_SERVICE SERVING_CONFIGURATION SERVING_REVISION QUEUE_SERVING_PORT \
         QUEUE_SERVING_TLS_PORT CONTAINER_CONCURRENCY REVISION_TIMEOUT_SECONDS REVISION_RESPONSE_START_TIMEOUT_SECONDS \
         REVISION_IDLE_TIMEOUT_SECONDS SERVING_POD SERVING_POD_IP SERVING_LOGGING_CONFIG SERVING_LOGGING_LEVEL USER_PORT \
         SYSTEM_NAMESPACE SERVING_READINESS_PROBE HOST_IP ENABLE_HTTP2_AUTO_DETECTION ENABLE_HTTP_FULL_DUPLEX ROOT_CA \
         QUEUE_PROXY_TLS_MIN_VERSION QUEUE_PROXY_TLS_MAX_VERSION QUEUE_PROXY_TLS_CIPHER_SUITES \
         QUEUE_PROXY_TLS_CURVE_PREFERENCES ENABLE_MULTI_CONTAINER_PROBES OBSERVABILITY_CONFIG"
    );
    let ports: Vec<String> = sidecar["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|p| format!("{} {}", p["name"].as_str().unwrap_or(""), p["containerPort"]))
        .collect();
    assert_eq!(
        ports,
        ["http-queueadm 8022", "http-autometric 9090", "http-usermetric 9091", "queue-port 8012", "https-port 8112"]
    );
    let h2c = json!({"spec": {"containers": [{"name": "user-container", "image": "example.com/app:v1",
        "ports": [{"name": "h2c", "containerPort": 8080}]}]}});
    let deployment = made_with(with_sidecar(), h2c);
    let sidecar = &deployment["spec"]["template"]["spec"]["containers"][1];
    assert!(variables(sidecar).contains(&("QUEUE_SERVING_PORT", "8013")));
}

#[test]
fn c3_13_b4_8_what_the_sidecar_may_read() {
    let mut settings = with_sidecar();
    settings.features.queueproxy_mount_podinfo = crate::config::Flag::Allowed;
    settings.deployment.sidecar.token_audiences.insert("store".into());
    let volumes = |deployment: &Value| -> Vec<String> {
        let all = deployment["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|v| Some(v["name"].as_str()?.to_owned())).collect()
    };
    assert_eq!(volumes(&made_with(settings.clone(), json!({}))), ["knative-token-volume"]);
    let asked = json!({"metadata": {"annotations": {"features.knative.dev/queueproxy-podinfo": "enabled",
        "features.knative.dev/http-full-duplex": "Enabled"}}});
    let deployment = made_with(settings, asked);
    assert_eq!(volumes(&deployment), ["pod-info", "knative-token-volume"]);
    let containers = &deployment["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[1]["volumeMounts"][0]["mountPath"], "/etc/podinfo");
    assert!(containers[0]["volumeMounts"].is_null());
    assert!(variables(&containers[1]).contains(&("ENABLE_HTTP_FULL_DUPLEX", "true")));
}

#[test]
fn d4_4_sidecars_wait_for_their_certificate() {
    let mut settings = with_sidecar();
    settings.network.system_internal_tls = true;
    let mut world = World::of(REVISION);
    world.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: ns}}");
    let look = |world: &mut World| {
        let context = Context { now: now(), settings: Arc::new(settings.clone()), refusals: Vec::new() };
        let revision: Revision = serde_yaml::from_str(REVISION).expect("YAML");
        let known = digests(Digest::Resolved("sha256:abc".into()));
        world.settle(
            &ObjectRef::of(&revision),
            |w| observe(w, "ns", "hello-00001", known.clone(), context.clone()),
            plan,
        )
    };
    look(&mut world);
    assert_eq!(world.names(), ["Certificate/serving-certs", "Namespace/ns", "Revision/hello-00001"]);
    assert!(shown(&world).contains("ResourcesAvailable=Unknown(CertificateNotReady)"), "{}", shown(&world));
    let made = world.value("Certificate", "ns", "serving-certs").expect("asked for");
    assert_eq!(
        made["spec"],
        json!({"dnsNames": ["kn-user-ns", "data-plane.knative.dev"], "secretName": "serving-certs"})
    );
    assert_eq!(made["metadata"]["labels"], json!({"networking.knative.dev/certificate-type": "system-internal"}));
    assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "Namespace");
    let ready = json!({"status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}});
    world.patch("Certificate", "ns", "serving-certs", ready);
    look(&mut world);
    let deployment = world.value("Deployment", "ns", "hello-00001-deployment").expect("deployed");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"], json!([{"name": "server-certs", "secret": {"secretName": "serving-certs"}}]));
    assert_eq!(pod["containers"][1]["volumeMounts"][0]["mountPath"], "/var/lib/knative/certs");
}
