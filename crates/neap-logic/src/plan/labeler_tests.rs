//! Marks follow a Route and go with it.

use serde_json::json;

use super::super::testing::{World, now};
use super::*;

const WORLD: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Route
metadata: {name: r, namespace: ns}
spec: {traffic: [{configurationName: c, latestRevision: true, percent: 100}]}
status: {traffic: [{revisionName: c-1, percent: 100}]}
---
apiVersion: serving.knative.dev/v1
kind: Configuration
metadata: {name: c, namespace: ns}
spec: {}
status: {latestCreatedRevisionName: c-2, latestReadyRevisionName: c-1}
---
apiVersion: serving.knative.dev/v1
kind: Revision
metadata:
  name: c-1
  namespace: ns
  labels: {serving.knative.dev/routingState: pending}
  ownerReferences: [{apiVersion: serving.knative.dev/v1, kind: Configuration, name: c, uid: uid-configuration-c, controller: true}]
spec: {containers: []}
---
apiVersion: serving.knative.dev/v1
kind: Revision
metadata: {name: c-2, namespace: ns, labels: {serving.knative.dev/routingState: pending}}
spec: {containers: []}
"#;

fn run(world: &mut World) -> Plan {
    let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
    let value = world.value("Route", "ns", "r").expect("there").clone();
    let route: Route = serde_json::from_value(value).expect("a Route");
    world.settle(&ObjectRef::of(&route), |w| observe(w, "ns", "r", context.clone()), plan)
}

fn marks(world: &World) -> String {
    let show = |kind: &str, name: &str| {
        let meta = &world.value(kind, "ns", name).expect("there")["metadata"];
        let state = meta["labels"]["serving.knative.dev/routingState"].as_str().unwrap_or("-").to_owned();
        format!("{name}:{state}:{}", meta["annotations"]["serving.knative.dev/routes"].as_str().unwrap_or("-"))
    };
    [show("Configuration", "c"), show("Revision", "c-1"), show("Revision", "c-2")].join(" ")
}

#[test]
fn d3_1_c1_7_c1_8_marks_follow_the_route() {
    let mut world = World::of(WORLD);
    run(&mut world);
    assert_eq!(marks(&world), "c:-:r c-1:active:r c-2:active:r");
    // Pinned to the new one; until the Route is ready the old one stays marked.
    world.patch("Route", "ns", "r", json!({"spec": {"traffic": [{"revisionName": "c-2", "percent": 100}]}, "status": {"traffic": [{"revisionName": "c-2", "percent": 100}]}}));
    run(&mut world);
    assert_eq!(marks(&world), "c:-:r c-1:active:r c-2:active:r");
    let generation = world.value("Route", "ns", "r").expect("there")["metadata"]["generation"].clone();
    world.patch(
        "Route",
        "ns",
        "r",
        json!({"status": {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    run(&mut world);
    assert_eq!(marks(&world), "c:-:- c-1:reserve:- c-2:active:r");
}

#[test]
fn two_routes_cannot_put_each_other_back() {
    let mut world = World::of(WORLD);
    run(&mut world);
    let guarded = |world: &World| {
        let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
        let plan = plan(&observe(world, "ns", "r", context).expect("there"));
        let patches = plan.writes.into_iter().filter_map(|write| match write {
            Write::Patch(patch) if patch.target.resource.kind != "Route" => Some(patch.merge["metadata"].clone()),
            _ => None,
        });
        patches.map(|metadata| metadata["resourceVersion"].is_string()).collect::<Vec<_>>()
    };
    world.patch("Route", "ns", "r", json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}));
    assert_eq!(guarded(&world), [true, true, true], "taking a mark off");
    assert_eq!(guarded(&World::of(WORLD)), [false, false, false], "the first mark");
}

#[test]
fn d3_1_marks_go_with_the_route() {
    let mut world = World::of(WORLD);
    run(&mut world);
    world.patch("Route", "ns", "r", json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}));
    run(&mut world);
    assert_eq!(marks(&world), "c:-:- c-1:reserve:- c-2:reserve:-");
    assert!(world.value("Route", "ns", "r").is_none());
}
