use serde_json::{Value, json};

use super::*;

fn key(name: &str) -> RevisionKey {
    RevisionKey::new("n", name)
}

fn pa(name: &str, version: u64) -> PodAutoscaler {
    serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string()},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")}, "protocolType": "http1"},
    }))
    .unwrap()
}

fn deployment(name: &str, replicas: Option<i32>) -> Target {
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": name},
        "spec": {"replicas": replicas, "selector": {}, "template": {}},
    }))
    .unwrap();
    deployment.into()
}

/// `pod:state` with state r(eady), n(ot ready), t(erminating), -(not said).
fn slice(name: &str, service: &str, pods: &str) -> Slice {
    let endpoints: Vec<Value> = pods
        .split_whitespace()
        .map(|pod| {
            let (pod, state) = pod.split_once(':').unwrap();
            let conditions = match state {
                "r" => json!({"ready": true}),
                "n" => json!({"ready": false, "serving": false}),
                "t" => json!({"ready": false, "serving": true, "terminating": true}),
                _ => json!({}),
            };
            json!({"addresses": ["127.0.0.1"], "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod}})
        })
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
    }))
    .unwrap();
    slice.into()
}

#[test]
fn counts_of_targets_and_pods_find_their_revision() {
    let mut world = World::default();
    let touched = |names: &[&str]| names.iter().map(|name| key(name)).collect::<BTreeSet<_>>();
    assert_eq!(world.apply(Change::Pa(Delta::Apply(pa("r", 1)))), touched(&["r"]));
    assert_eq!(world.replicas(&pa("r", 1)), None);

    assert_eq!(world.apply(Change::Target(Delta::Apply(deployment("r-deployment", None)))), touched(&["r"]));
    assert_eq!(world.replicas(&pa("r", 1)), Some(1));
    assert_eq!(world.apply(Change::Target(Delta::Apply(deployment("r-deployment", Some(1))))), touched(&[]));
    assert_eq!(world.apply(Change::Target(Delta::Apply(deployment("other", Some(1))))), touched(&[]));

    // One pod in two slices counts once, and as ready when either says so; one address is no obstacle.
    assert_eq!(world.apply(Change::Slice(Delta::Apply(slice("s4", "r-private", "a:r b:n c:t d:-")))), touched(&["r"]));
    assert_eq!(world.apply(Change::Slice(Delta::Apply(slice("s6", "r-private", "a:r b:r")))), touched(&["r"]));
    assert_eq!(world.apply(Change::Slice(Delta::Apply(slice("s6", "r-private", "a:r b:r")))), touched(&[]));
    assert_eq!(world.apply(Change::Slice(Delta::Apply(slice("x", "r", "z:r")))), touched(&[]));
    assert_eq!(world.pods(&key("r")), Pods { ready: 3, not_ready: 0, terminating: 1 });
    assert_eq!(world.apply(Change::Slice(Delta::Delete(slice("s6", "r-private", "")))), touched(&["r"]));
    assert_eq!(world.pods(&key("r")), Pods { ready: 2, not_ready: 1, terminating: 1 });
    assert_eq!(world.apply(Change::Slice(Delta::Reset(vec![]))), touched(&["r"]));
    assert_eq!(world.pods(&key("r")), Pods::default());
}

#[test]
fn the_watch_does_not_take_back_what_a_response_told() {
    let mut world = World::default();
    world.apply(Change::Pa(Delta::Apply(pa("r", 5))));
    let version = |world: &World| world.pa(&key("r")).and_then(|pa| pa.metadata.resource_version.clone());
    assert!(world.apply(Change::Pa(Delta::Apply(pa("r", 4)))).is_empty());
    assert!(world.apply(Change::Pa(Delta::Apply(pa("r", 5)))).is_empty());
    assert_eq!(version(&world).as_deref(), Some("5"));
    world.apply(Change::Pa(Delta::Apply(pa("r", 6))));
    assert_eq!(version(&world).as_deref(), Some("6"));

    // Made anew under the same name: another object, whatever its version; the late deletion is of the old one.
    let mut anew = pa("r", 2);
    anew.metadata.uid = Some("other".to_owned());
    world.apply(Change::Pa(Delta::Apply(anew)));
    world.apply(Change::Pa(Delta::Delete(pa("r", 7))));
    assert_eq!(version(&world).as_deref(), Some("2"));

    // Nor does a late response bring back what is gone.
    world.apply(Change::Pa(Delta::Apply(pa("r", 8))));
    assert_eq!(version(&world).as_deref(), Some("2"));
}

#[test]
fn it_is_complete_when_every_kind_was_listed() {
    let mut world = World::default();
    let all = [
        Change::Pa(Delta::Reset(vec![pa("r", 1)])),
        Change::Sks(Delta::Reset(vec![])),
        Change::Metric(Delta::Reset(vec![])),
        Change::Hpa(Delta::Reset(vec![])),
        Change::Target(Delta::Reset(vec![deployment("r-deployment", Some(3))])),
        Change::Slice(Delta::Reset(vec![])),
    ];
    for change in all {
        assert!(!world.is_complete());
        world.apply(change);
    }
    assert!(world.is_complete());
    assert_eq!(world.replicas(&pa("r", 1)), Some(3));
    // What a new list does not name is gone, and said to be.
    assert_eq!(world.apply(Change::Pa(Delta::Reset(vec![]))), BTreeSet::from([key("r")]));
    assert!(world.pa(&key("r")).is_none());
    assert!(world.apply(Change::Target(Delta::Apply(deployment("r-deployment", Some(1))))).is_empty());
}
