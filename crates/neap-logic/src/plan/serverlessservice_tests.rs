//! The two Services of a revision and who stands behind the public one.

use serde_json::{Value, json};

use super::super::ObjectRef;
use super::super::testing::{World, now};
use super::*;

const WORLD: &str = r#"
apiVersion: networking.internal.knative.dev/v1alpha1
kind: ServerlessService
metadata: {name: r, namespace: ns, labels: {app: r}}
spec: {mode: Serve, protocolType: http1, objectRef: {apiVersion: apps/v1, kind: Deployment, name: r-deployment}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: r-deployment, namespace: ns}
spec: {selector: {matchLabels: {serving.knative.dev/revisionUID: u}}, template: {}}
"#;

fn run(world: &mut World, activators: &[&str]) -> Plan {
    run_with(world, StandIns { addresses: activators.iter().map(|a| (*a).to_owned()).collect(), port: None })
}

fn run_with(world: &mut World, stand_ins: StandIns) -> Plan {
    let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
    let sks: ServerlessService =
        serde_json::from_value(world.value("ServerlessService", "ns", "r").expect("there").clone()).expect("an SKS");
    world.settle(&ObjectRef::of(&sks), |w| observe(w, "ns", "r", stand_ins.clone(), context.clone()), plan)
}

fn pods(world: &mut World, addresses: &[&str]) {
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "r-private-x", "namespace": "ns", "labels": {"kubernetes.io/service-name": "r-private"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
    });
    world.put_yaml(&slice.to_string());
}

fn backends(world: &World) -> String {
    let subsets = &world.value("Endpoints", "ns", "r").expect("there")["subsets"][0];
    let ips: Vec<&str> =
        subsets["addresses"].as_array().into_iter().flatten().filter_map(|a| a["ip"].as_str()).collect();
    format!("{}:{}", ips.join(","), subsets["ports"][0]["port"])
}

fn ready(world: &World) -> String {
    let sks = world.value("ServerlessService", "ns", "r").expect("there");
    sks["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .map(|c| format!("{}={}", c["type"].as_str().unwrap_or(""), c["status"].as_str().unwrap_or("")))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn d6_1_d6_2_d6_3_a6_4_pods_stand_behind_it_while_there_are_any() {
    let mut world = World::of(WORLD);
    run(&mut world, &["10.0.0.1"]);
    let private = world.value("Service", "ns", "r-private").expect("created");
    assert_eq!(private["spec"]["selector"], json!({"serving.knative.dev/revisionUID": "u"}));
    assert_eq!(
        private["spec"]["ports"],
        json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "user-port"}])
    );
    assert_eq!(backends(&world), "10.0.0.1:8012");
    assert_eq!(ready(&world), "ActivatorEndpointsPopulated=True EndpointsPopulated=Unknown Ready=Unknown");

    pods(&mut world, &["10.1.0.2", "10.1.0.1"]);
    run(&mut world, &["10.0.0.1"]);
    assert_eq!(backends(&world), "10.1.0.1,10.1.0.2:8080");
    assert_eq!(ready(&world), "ActivatorEndpointsPopulated=False EndpointsPopulated=True Ready=True");

    world.patch("ServerlessService", "ns", "r", json!({"spec": {"mode": "Proxy", "numActivators": 2}}));
    run(&mut world, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(backends(&world).split(',').count(), 2);
    // With nobody to stand in, the pods do.
    run(&mut world, &[]);
    assert_eq!(backends(&world), "10.1.0.1,10.1.0.2:8080");
    pods(&mut world, &[]);
    run(&mut world, &[]);
    assert_eq!(backends(&world), ":null");
}

#[test]
fn a_gateway_stands_in_at_its_own_port() {
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "g"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.9"], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": 8443}, {"name": "http2", "port": 8081}],
    }))
    .expect("a slice");
    let gateway = StandIns::gateway(&[Arc::new(slice)]);
    let mut world = World::of(WORLD);
    run_with(&mut world, gateway.clone());
    assert_eq!(backends(&world), "10.0.0.9:8081");
    // One that speaks h2c too, and pods again as soon as there are any.
    world.patch("ServerlessService", "ns", "r", json!({"spec": {"protocolType": "h2c"}}));
    run_with(&mut world, gateway.clone());
    assert_eq!(backends(&world), "10.0.0.9:8081");
    world.patch("ServerlessService", "ns", "r", json!({"spec": {"protocolType": "http1"}}));
    pods(&mut world, &["10.1.0.1"]);
    run_with(&mut world, gateway);
    assert_eq!(backends(&world), "10.1.0.1:8080");
}

#[test]
fn a6_4_a_foreign_service_is_left_alone() {
    let mut world = World::of(WORLD);
    world.put_yaml("{apiVersion: v1, kind: Service, metadata: {name: r, namespace: ns}, spec: {}}");
    assert!(run(&mut world, &[]).writes.is_empty());
    assert_eq!(ready(&world), "EndpointsPopulated=False Ready=False");
}

#[test]
fn d6_marks_of_others_stay() {
    let mut world = World::of(WORLD);
    run(&mut world, &["10.0.0.1"]);
    for (kind, name) in [("Service", "r"), ("Service", "r-private"), ("Endpoints", "r")] {
        let theirs = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"cloud.google.com/neg": "{}"}}});
        world.patch(kind, "ns", name, theirs);
    }
    assert!(run(&mut world, &["10.0.0.1"]).writes.is_empty());
}

#[test]
fn c3_12_services_say_whose_they_are() {
    let mut world = World::of(WORLD);
    run(&mut world, &[]);
    for (name, kind) in [("r", "Public"), ("r-private", "Private")] {
        let labels = &world.value("Service", "ns", name).expect("made")["metadata"]["labels"];
        assert_eq!(labels["networking.internal.knative.dev/serverlessservice"], "r");
        assert_eq!(labels["networking.internal.knative.dev/serviceType"], kind);
    }
}
