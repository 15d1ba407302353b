//! A Service and its two children.

use serde_json::json;

use super::super::ObjectRef;
use super::super::testing::{World, now};
use super::*;

const SERVICE: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: hello
  namespace: ns
  labels: {team: a}
  annotations: {note: x, kubectl.kubernetes.io/last-applied-configuration: "{}", serving.knative.dev/rollout-duration: 10s}
spec:
  template:
    spec:
      containers: [{image: app}]
  traffic: [{latestRevision: true, percent: 100}]
"#;

fn run(world: &mut World) -> Plan {
    let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
    let service: Service = serde_yaml::from_str(SERVICE).expect("YAML");
    world.settle(&ObjectRef::of(&service), |w| observe(w, "ns", "hello", context.clone()), plan)
}

fn conditions_of(world: &World) -> String {
    let status = &world.value("Service", "ns", "hello").expect("there")["status"];
    let show = |c: &serde_json::Value| {
        format!(
            "{}={}({})",
            c["type"].as_str().unwrap_or(""),
            c["status"].as_str().unwrap_or(""),
            c["reason"].as_str().unwrap_or("")
        )
    };
    status["conditions"].as_array().expect("conditions").iter().map(show).collect::<Vec<_>>().join(" ")
}

fn report(world: &mut World, kind: &str, extra: serde_json::Value) {
    let generation = world.value(kind, "ns", "hello").expect("there")["metadata"]["generation"].clone();
    world.patch(
        kind,
        "ns",
        "hello",
        json!({"status": {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    world.patch(kind, "ns", "hello", json!({"status": extra}));
}

#[test]
fn d1_1_d1_2_c1_4_a_service_owns_a_configuration_and_a_route() {
    let mut world = World::of(SERVICE);
    let plan = run(&mut world);
    assert_eq!(plan.events.len(), 2);
    assert_eq!(
        conditions_of(&world),
        "ConfigurationsReady=Unknown(OutOfDate) Ready=Unknown(OutOfDate) RoutesReady=Unknown(OutOfDate)"
    );
    let configuration = world.value("Configuration", "ns", "hello").expect("created");
    assert_eq!(
        configuration["metadata"]["labels"],
        json!({"team": "a", "serving.knative.dev/service": "hello", "serving.knative.dev/serviceUID": "uid-service-hello"})
    );
    assert_eq!(configuration["metadata"]["annotations"], json!({"note": "x", "serving.knative.dev/routes": "hello"}));
    let route = world.value("Route", "ns", "hello").expect("created");
    assert_eq!(route["metadata"]["annotations"], json!({"note": "x", "serving.knative.dev/rollout-duration": "10s"}));
    assert_eq!(
        route["spec"]["traffic"],
        json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}])
    );
}

#[test]
fn a2_4_a2_6_it_is_ready_when_both_are_and_traffic_has_moved() {
    let mut world = World::of(SERVICE);
    run(&mut world);
    report(
        &mut world,
        "Configuration",
        json!({"latestReadyRevisionName": "hello-00001", "latestCreatedRevisionName": "hello-00001"}),
    );
    report(
        &mut world,
        "Route",
        json!({"url": "http://hello", "traffic": [{"revisionName": "hello-00001", "latestRevision": true, "percent": 100}]}),
    );
    run(&mut world);
    assert_eq!(conditions_of(&world), "ConfigurationsReady=True() Ready=True() RoutesReady=True()");
    report(
        &mut world,
        "Configuration",
        json!({"latestReadyRevisionName": "hello-00002", "latestCreatedRevisionName": "hello-00002"}),
    );
    run(&mut world);
    assert_eq!(
        conditions_of(&world),
        "ConfigurationsReady=True() Ready=Unknown(TrafficNotMigrated) RoutesReady=Unknown(TrafficNotMigrated)"
    );
}

#[test]
fn d1_1_labels_removed_above_are_removed_below() {
    let mut world = World::of(SERVICE);
    run(&mut world);
    world.patch("Service", "ns", "hello", json!({"metadata": {"labels": {"team": null, "new": "b"}}}));
    let plan = run(&mut world);
    assert_eq!(plan.writes.len(), 2);
    let labels = &world.value("Route", "ns", "hello").expect("there")["metadata"]["labels"];
    assert_eq!(*labels, json!({"new": "b", "serving.knative.dev/service": "hello"}));
}

#[test]
fn a2_5_a2_6_foreign_children_are_left_alone() {
    let mut world = World::of(SERVICE);
    world.put_yaml(
        "apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: hello, namespace: ns}\nspec: {}",
    );
    let plan = run(&mut world);
    assert!(plan.writes.is_empty());
    assert_eq!(
        conditions_of(&world),
        "ConfigurationsReady=False(NotOwned) Ready=False(NotOwned) RoutesReady=Unknown()"
    );
}

#[test]
fn d1_3_a2_6_a_named_revision_is_waited_for_and_must_be_ours() {
    let named = SERVICE.replace("  template:\n", "  template:\n    metadata: {name: hello-x}\n");
    let mut world = World::of(&named);
    run(&mut world);
    assert!(world.value("Route", "ns", "hello").is_none(), "the Route waits for the Configuration");
    world.put_yaml("apiVersion: serving.knative.dev/v1\nkind: Revision\nmetadata: {name: hello-x, namespace: ns}\nspec: {containers: []}");
    report(&mut world, "Configuration", json!({}));
    run(&mut world);
    assert!(conditions_of(&world).contains("RoutesReady=False(RevisionNameTaken)"), "{}", conditions_of(&world));
}

#[test]
fn a2_5_a_failure_shows_its_cause() {
    let mut world = World::of(SERVICE);
    run(&mut world);
    for (kind, reason) in [("Configuration", "RevisionFailed"), ("Route", "RevisionMissing")] {
        let generation = world.value(kind, "ns", "hello").expect("there")["metadata"]["generation"].clone();
        let ready = json!({"type": "Ready", "status": "False", "reason": reason, "message": reason});
        world.patch(kind, "ns", "hello", json!({"status": {"observedGeneration": generation, "conditions": [ready]}}));
    }
    run(&mut world);
    assert_eq!(
        conditions_of(&world),
        "ConfigurationsReady=False(RevisionFailed) Ready=False(RevisionFailed) RoutesReady=False(RevisionMissing)"
    );
}

/// I4: a manual Service owns nothing, and lets go of nothing that it owned.
#[test]
fn i4_a_manual_service_leaves_its_children_alone() {
    let says = "ConfigurationsReady=Unknown(Manual) Ready=Unknown(Manual) RoutesReady=Unknown(Manual)";
    let manual = json!({"metadata": {"annotations": {"neap.dev/service-mode": "manual"}},
        "spec": {"template": null, "traffic": null}});
    let mut world = World::of(SERVICE);
    world.patch("Service", "ns", "hello", manual.clone());
    let plan = run(&mut world);
    assert!(plan.writes.is_empty() && plan.events.is_empty());
    assert_eq!(world.names(), ["Service/hello"]);
    assert_eq!(conditions_of(&world), says);

    let mut world = World::of(SERVICE);
    run(&mut world);
    report(&mut world, "Configuration", json!({"latestReadyRevisionName": "hello-00001"}));
    report(&mut world, "Route", json!({"url": "http://hello"}));
    run(&mut world);
    world.patch("Service", "ns", "hello", manual);
    let plan = run(&mut world);
    assert!(plan.writes.is_empty());
    assert_eq!(world.names(), ["Configuration/hello", "Route/hello", "Service/hello"]);
    assert_eq!(conditions_of(&world), says);
    assert_eq!(world.value("Service", "ns", "hello").expect("there")["status"]["url"], json!(null));
    // Saying what to run again takes them up again.
    world.put_yaml(SERVICE);
    run(&mut world);
    assert_eq!(
        conditions_of(&world),
        "ConfigurationsReady=True() Ready=Unknown(TrafficNotMigrated) RoutesReady=Unknown(TrafficNotMigrated)"
    );
}

#[test]
fn c1_20_what_is_said_of_the_service_alone_is_not_handed_down() {
    let mut world = World::of(SERVICE);
    let own = json!({"neap.dev/written-as": "{}", "kubectl.kubernetes.io/last-applied-configuration": "{}", "neap.dev/service-mode": "manual", "kept": "yes"});
    world.patch("Service", "ns", "hello", json!({"metadata": {"annotations": own}}));
    run(&mut world);
    for kind in ["Configuration", "Route"] {
        let annotations = &world.value(kind, "ns", "hello").expect("made")["metadata"]["annotations"];
        assert_eq!(annotations["kept"], "yes");
        assert!(
            annotations.as_object().expect("some").keys().all(|key| !key.starts_with("neap.dev/")),
            "{annotations}"
        );
    }
}
