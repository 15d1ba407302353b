//! A Configuration's life.

use serde_json::json;

use super::super::ObjectRef;
use super::super::testing::{World, now};
use super::*;

const CONFIGURATION: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Configuration
metadata:
  name: hello
  namespace: ns
  labels: {serving.knative.dev/service: hello}
  annotations: {serving.knative.dev/routes: hello, serving.knative.dev/lastModifier: ann}
spec:
  template:
    metadata: {labels: {team: a}}
    spec:
      containers: [{image: app}]
"#;

fn subject() -> ObjectRef {
    let configuration: Configuration = serde_yaml::from_str(CONFIGURATION).expect("YAML");
    ObjectRef::of(&configuration)
}

fn run(world: &mut World) -> Plan {
    let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
    world.settle(&subject(), |w| observe(w, "ns", "hello", context.clone()), plan)
}

fn ready(world: &World) -> String {
    let status = &world.value("Configuration", "ns", "hello").expect("there")["status"];
    let ready = &status["conditions"][0];
    format!(
        "{} {} {} created={} ready={}",
        ready["status"].as_str().unwrap_or("-"),
        ready["reason"].as_str().unwrap_or("-"),
        ready["message"].as_str().unwrap_or("-"),
        status["latestCreatedRevisionName"].as_str().unwrap_or("-"),
        status["latestReadyRevisionName"].as_str().unwrap_or("-"),
    )
}

fn mark(world: &mut World, revision: &str, status: &str, message: &str) {
    let generation = world.value("Revision", "ns", revision).expect("there")["metadata"]["generation"].clone();
    world.patch(
        "Revision",
        "ns",
        revision,
        json!({"status": {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": status, "reason": "R", "message": message}]}}),
    );
}

#[test]
fn d2_1_d2_2_c1_1_c1_2_c1_3_a_generation_becomes_a_revision() {
    let mut world = World::of(CONFIGURATION);
    run(&mut world);
    assert_eq!(ready(&world), "Unknown - - created=hello-00001 ready=-");
    let revision = world.value("Revision", "ns", "hello-00001").expect("created");
    assert_eq!(
        revision["metadata"]["labels"],
        json!({
            "team": "a", "serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello",
            "serving.knative.dev/configurationGeneration": "1", "serving.knative.dev/configurationUID": "uid-configuration-hello",
            "serving.knative.dev/routingState": "active",
        })
    );
    assert_eq!(revision["metadata"]["annotations"]["serving.knative.dev/creator"], "ann");

    mark(&mut world, "hello-00001", "True", "");
    let plan = run(&mut world);
    assert_eq!(ready(&world), "True - - created=hello-00001 ready=hello-00001");
    assert_eq!(
        plan.events.iter().map(|e| e.reason.as_str()).collect::<Vec<_>>(),
        ["ConfigurationReady", "LatestReadyUpdate"]
    );
}

#[test]
fn a3_4_a3_5_d2_2_a_failing_revision_leaves_the_last_good_one() {
    let mut world = World::of(CONFIGURATION);
    run(&mut world);
    mark(&mut world, "hello-00001", "True", "");
    run(&mut world);
    world.patch("Configuration", "ns", "hello", json!({"spec": {"template": {"metadata": {"labels": {"team": "b"}}}}}));
    run(&mut world);
    assert_eq!(ready(&world), "Unknown - - created=hello-00002 ready=hello-00001");
    mark(&mut world, "hello-00002", "False", "exit 1");
    let plan = run(&mut world);
    assert_eq!(plan.events[0].reason, "LatestCreatedFailed");
    assert_eq!(
        ready(&world),
        r#"False RevisionFailed Revision "hello-00002" failed with message: exit 1. created=hello-00002 ready=hello-00001"#
    );
    mark(&mut world, "hello-00002", "True", "");
    run(&mut world);
    assert_eq!(ready(&world), "True - - created=hello-00002 ready=hello-00002");
}

#[test]
fn d2_1_a3_5_names_given_by_the_user() {
    let named = CONFIGURATION.replace("metadata: {labels: {team: a}}", "metadata: {name: hello-x}");
    let mut world = World::of(&named);
    run(&mut world);
    mark(&mut world, "hello-x", "True", "");
    run(&mut world);
    assert_eq!(ready(&world), "True - - created=hello-x ready=hello-x");

    let mut world = World::of(&named);
    world.put_yaml("apiVersion: serving.knative.dev/v1\nkind: Revision\nmetadata: {name: hello-x, namespace: ns}\nspec: {containers: []}");
    run(&mut world);
    assert_eq!(
        ready(&world),
        r#"False RevisionFailed Revision creation failed with message: revisions.serving.knative.dev "hello-x" already exists. created=- ready=-"#
    );
}

#[test]
fn a3_5_a_refused_revision_is_explained() {
    let world = World::of(CONFIGURATION);
    let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
    let first = plan(&observe(&world, "ns", "hello", context.clone()).expect("there"));
    let refusals = vec![super::super::Refusal { target: first.writes[0].target(), message: "quota exceeded".into() }];
    let second = plan(&observe(&world, "ns", "hello", Context { refusals, ..context }).expect("there"));
    assert!(second.writes.is_empty());
    assert_eq!(
        second.status.expect("a status")["conditions"][0]["message"],
        "Revision creation failed with message: quota exceeded."
    );
    assert_eq!(second.events[0].reason, "CreationFailed");
}
