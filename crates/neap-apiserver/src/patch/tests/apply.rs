use serde_json::{Value, json};

use super::{bare, configuration, manager, object, owners, schema};
use crate::patch::{ApplyError, Operation, apply, track_update};

/// Applies as a manager at second `at`.
fn by(name: &str, at: i64, live: Option<&Value>, spec: Value, force: bool) -> Result<Value, ApplyError> {
    apply(live, &configuration(spec), &manager(name, Operation::Apply, at), &schema(), force)
}

fn create(name: &str, spec: Value) -> Value {
    let mut made = by(name, 0, None, spec, false).expect("nobody to conflict with");
    made["metadata"]["uid"] = "u".into();
    made
}

/// Updates the live object as a controller would.
fn update(name: &str, at: i64, live: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut new = live.clone();
    change(&mut new);
    track_update(Some(live), &mut new, &manager(name, Operation::Update, at), &schema());
    new
}

#[test]
fn the_applier_owns_what_it_sets() {
    let made = create("kubectl", json!({"replicas": 3, "containers": [{"name": "c", "image": "nginx"}]}));
    assert_eq!(
        owners(&made),
        [
            r#"kubectl/Apply: {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}},"f:replicas":{}}}"#
        ]
    );
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(entry["time"], "2026-01-02T00:00:00Z");
    assert_eq!((&entry["fieldsType"], &entry["apiVersion"]), (&json!("FieldsV1"), &json!("apps/v1")));
}

#[test]
fn one_conflict() {
    let live = update("kubectl-client-side-apply", 1, &create("kubectl", json!({"replicas": 1})), |new| {
        new["spec"]["replicas"] = 2.into();
    });
    let error = by("kubectl", 2, Some(&live), json!({"replicas": 3}), false).expect_err("someone else owns it");
    let text =
        r#"Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas"#;
    assert_eq!(error.to_string(), text);
    let status = error.to_status();
    assert_eq!((status.code, status.reason.as_str(), status.message.as_str()), (409, "Conflict", text));
    let cause = &status.details.expect("details").causes[0];
    assert_eq!(cause.reason, "FieldManagerConflict");
    assert_eq!(cause.message, r#"conflict with "kubectl-client-side-apply" using apps/v1"#);
    assert_eq!(cause.field, ".spec.replicas");
}

#[test]
fn several_conflicts() {
    let live = create("one", json!({"replicas": 1, "containers": [{"name": "c", "image": "a"}]}));
    let live = by("two", 1, Some(&live), json!({"selector": {"app": "x"}}), false).expect("no overlap");
    let error = by(
        "three",
        2,
        Some(&live),
        json!({"replicas": 2, "selector": {"app": "y"}, "containers": [{"name": "c", "image": "b"}]}),
        false,
    )
    .expect_err("both own something");
    assert_eq!(
        error.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"one\":\n- .spec.replicas\n- .spec.containers[name=\"c\"].image\nconflicts with \"two\":\n- .spec.selector"
    );
}

#[test]
fn a_subresource_is_named_in_a_conflict() {
    let live = create("kubectl", json!({"replicas": 1}));
    let mut new = live.clone();
    new["status"] = json!({"phase": "x"});
    let mut controller = manager("controller", Operation::Update, 1);
    controller.subresource = Some("status".to_owned());
    track_update(Some(&live), &mut new, &controller, &schema());
    let mut applied = configuration(json!({"replicas": 1}));
    applied["status"] = json!({"phase": "y"});
    let error = apply(Some(&new), &applied, &manager("kubectl", Operation::Apply, 2), &schema(), false)
        .expect_err("the controller owns the phase");
    assert_eq!(
        error.to_string(),
        r#"Apply failed with 1 conflict: conflict with "controller" with subresource "status" using apps/v1: .status.phase"#
    );
}

#[test]
fn force_takes_ownership() {
    let live = create("one", json!({"replicas": 1, "selector": {"a": "b"}}));
    let live = by("two", 1, Some(&live), json!({"replicas": 2}), true).expect("forced");
    assert_eq!(live["spec"]["replicas"], 2);
    assert_eq!(
        owners(&live),
        [r#"one/Apply: {"f:spec":{"f:selector":{}}}"#, r#"two/Apply: {"f:spec":{"f:replicas":{}}}"#]
    );
}

#[test]
fn equal_values_are_shared() {
    let live = create("one", json!({"replicas": 1}));
    let live = by("two", 1, Some(&live), json!({"replicas": 1}), false).expect("no conflict over an equal value");
    assert_eq!(
        owners(&live),
        [r#"one/Apply: {"f:spec":{"f:replicas":{}}}"#, r#"two/Apply: {"f:spec":{"f:replicas":{}}}"#]
    );
    // One gives it up: the other keeps it alive. Both give it up: it goes.
    let live = by("one", 2, Some(&live), json!({}), false).expect("giving up");
    assert_eq!(live["spec"]["replicas"], 1);
    let live = by("two", 3, Some(&live), json!({}), false).expect("giving up");
    assert_eq!(live.pointer("/spec/replicas"), None);
}

#[test]
fn transferring_to_a_controller() {
    // The documentation's story: the user hands `replicas` to an autoscaler.
    let live = create("kubectl", json!({"replicas": 3, "selector": {"a": "b"}}));
    let live = update("autoscaler", 1, &live, |new| new["spec"]["replicas"] = 5.into());
    let live = by("kubectl", 2, Some(&live), json!({"selector": {"a": "b"}}), false).expect("replicas is left out");
    assert_eq!(live["spec"]["replicas"], 5);
    assert_eq!(
        owners(&live),
        [r#"kubectl/Apply: {"f:spec":{"f:selector":{}}}"#, r#"autoscaler/Update: {"f:spec":{"f:replicas":{}}}"#]
    );
}

#[test]
fn what_is_applied_no_longer_is_removed() {
    let live = create("kubectl", json!({"replicas": 3, "colors": ["red", "green"], "selector": {"a": "b"}}));
    let live = by("kubectl", 1, Some(&live), json!({"colors": ["green"]}), false).expect("own fields");
    assert_eq!(bare(&live)["spec"], json!({"colors": ["green"]}));
}

#[test]
fn items_belong_to_who_applied_them() {
    let live = create("one", json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}));
    let live =
        by("two", 1, Some(&live), json!({"containers": [{"name": "c", "image": "i"}]}), false).expect("a new item");
    let names = |object: &Value| -> Vec<String> {
        let list = object["spec"]["containers"].as_array().expect("a list");
        list.iter().map(|c| c["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&live), ["a", "b", "c"]);
    let live =
        by("one", 2, Some(&live), json!({"containers": [{"name": "b", "image": "j"}]}), false).expect("own items");
    assert_eq!(names(&live), ["b", "c"]);
    // An item goes with what others put into it: they own fields of it, not the item.
    let live = update("injector", 3, &live, |new| new["spec"]["containers"][0]["args"] = json!(["x"]));
    let live = by("one", 4, Some(&live), json!({"containers": []}), false).expect("own items");
    assert_eq!(names(&live), ["c"]);
}

#[test]
fn the_order_of_items() {
    let live = create("one", json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}));
    let names = |object: &Value| -> String {
        let list = object["spec"]["containers"].as_array().expect("a list");
        list.iter().map(|c| c["name"].as_str().expect("a name")).collect()
    };
    for (order, expected) in [("cba", "cba"), ("bd", "abcd"), ("dc", "abdc"), ("xb", "axbc")] {
        let list: Vec<Value> = order.chars().map(|name| json!({"name": name.to_string()})).collect();
        let merged = by("two", 1, Some(&live), json!({"containers": list}), false).expect("no values change");
        assert_eq!(names(&merged), expected, "applying {order}");
    }
}

#[test]
fn defaulted_keys_name_the_same_item() {
    let live =
        create("one", json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}));
    let live = by(
        "one",
        1,
        Some(&live),
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}]}]}),
        false,
    )
    .expect("own fields");
    assert_eq!(
        live["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "name": "http"}]),
        "one item; its key is implied again, and defaulting will spell it out"
    );
}

#[test]
fn atomic_values_are_owned_whole() {
    let live = create("one", json!({"selector": {"a": "1", "b": "2"}, "tolerations": [{"key": "x"}]}));
    assert_eq!(owners(&live), [r#"one/Apply: {"f:spec":{"f:selector":{},"f:tolerations":{}}}"#]);
    let live =
        by("one", 1, Some(&live), json!({"selector": {"c": "3"}, "tolerations": [{"key": "y"}]}), false).expect("own");
    assert_eq!(bare(&live)["spec"], json!({"selector": {"c": "3"}, "tolerations": [{"key": "y"}]}));
    let error = by("two", 2, Some(&live), json!({"selector": {"c": "4"}}), false).expect_err("owned whole");
    assert!(error.to_string().ends_with(": .spec.selector"), "{error}");
}

#[test]
fn unknown_structure_merges_by_field() {
    let live = create("one", json!({"free": {"a": {"x": 1}, "list": [1]}}));
    let live = by("two", 1, Some(&live), json!({"free": {"a": {"y": 2}}}), false).expect("another field");
    assert_eq!(live["spec"]["free"], json!({"a": {"x": 1, "y": 2}, "list": [1]}));
    let error = by("two", 2, Some(&live), json!({"free": {"list": [2]}}), false).expect_err("lists are whole");
    assert!(error.to_string().ends_with(r#""one": .spec.free.list"#), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    for (spec, problem) in [
        (json!({"unknown": 1}), ".spec.unknown: field not declared in schema"),
        (json!({"replicas": "x"}), r#".spec.replicas: expected numeric (int or float), got "x""#),
        (json!({"containers": {}}), ".spec.containers: expected list, got {}"),
        (
            json!({"containers": [{"name": "a"}, {"name": "a"}]}),
            r#".spec.containers: duplicate entries for key [name="a"]"#,
        ),
        (json!({"colors": ["red", "red"]}), r#".spec.colors: duplicate entries for key [="red"]"#),
        (
            json!({"containers": [{"image": "a"}]}),
            r#".spec.containers: element 0: associative list with keys has an element that omits all key fields ["name"] (and doesn't have default values for any key fields)"#,
        ),
    ] {
        let error = by("kubectl", 0, None, spec, true).expect_err(problem);
        let expected = format!("failed to create typed patch object (default/d; apps/v1, Kind=Deployment): {problem}");
        assert_eq!((error.code(), error.to_string()), (400, expected));
    }
}

#[test]
fn bad_requests() {
    let schema = schema();
    let manager = manager("kubectl", Operation::Apply, 0);
    let mut other = configuration(json!({}));
    other["apiVersion"] = "apps/v2".into();
    assert_eq!(
        apply(None, &other, &manager, &schema, false).expect_err("another version").to_string(),
        "Incorrect version specified in apply patch. Specified patch version: apps/v2, expected: apps/v1"
    );
    let mut managed = configuration(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    assert_eq!(
        apply(None, &managed, &manager, &schema, false).expect_err("managed fields").to_string(),
        "metadata.managedFields must be nil"
    );
}

#[test]
fn the_first_apply_finds_an_untracked_object() {
    let live = object(json!({"replicas": 1, "colors": ["red"]}));
    let applied = by("kubectl", 1, Some(&live), json!({"colors": ["red"]}), false).expect("an equal value");
    assert_eq!(
        owners(&applied),
        [
            r#"kubectl/Apply: {"f:spec":{"f:colors":{"v:\"red\"":{}}}}"#,
            r#"before-first-apply/Update: {"f:spec":{".":{},"f:colors":{".":{},"v:\"red\"":{}},"f:replicas":{}}}"#,
        ]
    );
    let error = by("kubectl", 1, Some(&live), json!({"replicas": 2}), false).expect_err("not kubectl's");
    assert!(error.to_string().contains(r#"conflict with "before-first-apply" using apps/v1: .spec.replicas"#));
}

#[test]
fn moving_from_client_side_apply() {
    let last = configuration(json!({"replicas": 1, "selector": {"a": "b"}}));
    let mut live = object(json!({"replicas": 1, "selector": {"a": "b"}}));
    live["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{last}\n")});
    track_update(None, &mut live, &manager("kubectl-client-side-apply", Operation::Update, 0), &schema());
    // Nobody touched it since: kubectl takes over without force.
    let moved =
        by("kubectl", 1, Some(&live), json!({"replicas": 2, "selector": {"a": "b"}}), false).expect("taken over");
    assert_eq!(moved["spec"]["replicas"], 2);
    let annotation = &moved["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    let kept: Value = serde_json::from_str(annotation.as_str().expect("text")).expect("JSON");
    assert_eq!(kept["spec"]["replicas"], 2);
    // Another name gets no such favour, nor does kubectl for what changed since.
    by("other", 1, Some(&live), json!({"replicas": 2}), false).expect_err("not kubectl");
    let scaled = update("autoscaler", 1, &live, |new| new["spec"]["replicas"] = 5.into());
    let error = by("kubectl", 2, Some(&scaled), json!({"replicas": 2}), false).expect_err("changed since");
    assert!(error.to_string().contains("autoscaler"), "{error}");
}

#[test]
fn applying_again_changes_nothing() {
    let live = create("kubectl", json!({"replicas": 3, "containers": [{"name": "c", "image": "nginx"}]}));
    let again =
        by("kubectl", 99, Some(&live), json!({"replicas": 3, "containers": [{"name": "c", "image": "nginx"}]}), false)
            .expect("own fields");
    assert_eq!(again, live, "not even the time");
}

/// A random spec for the test kind.
pub(super) fn random_spec(rng: &mut fastrand::Rng) -> Value {
    let mut spec = json!({});
    let pick = |rng: &mut fastrand::Rng| ["a", "b", "c"][rng.usize(0..3)];
    if rng.bool() {
        spec["replicas"] = rng.u8(0..4).into();
    }
    if rng.bool() {
        spec["selector"] = json!({pick(rng): pick(rng)});
    }
    if rng.bool() {
        let mut colors: Vec<&str> = ["a", "b", "c"].into_iter().filter(|_| rng.bool()).collect();
        rng.shuffle(&mut colors);
        spec["colors"] = json!(colors);
    }
    if rng.bool() {
        spec["free"] = json!({pick(rng): {pick(rng): rng.u8(0..3)}, pick(rng): [rng.u8(0..3)]});
    }
    if rng.bool() {
        let mut names: Vec<&str> = ["a", "b", "c"].into_iter().filter(|_| rng.bool()).collect();
        rng.shuffle(&mut names);
        let containers: Vec<Value> = names
            .into_iter()
            .map(|name| {
                let mut one = json!({"name": name});
                if rng.bool() {
                    one["image"] = pick(rng).into();
                }
                if rng.bool() {
                    one["env"] = json!([{"name": pick(rng), "value": pick(rng)}]);
                }
                if rng.bool() {
                    one["ports"] = json!([{"containerPort": rng.u8(1..4)}]);
                }
                one
            })
            .collect();
        spec["containers"] = json!(containers);
    }
    spec
}

#[test]
fn properties_of_random_histories() {
    let mut rng = fastrand::Rng::with_seed(5);
    // Who owns nothing is not recorded, and an object without a record is untracked: keep one field owned.
    let spec = |rng: &mut fastrand::Rng| {
        let mut spec = random_spec(rng);
        spec["strategy"] = json!({"type": "x"});
        spec
    };
    for _ in 0..60 {
        let mut live = create("one", spec(&mut rng));
        for at in 1..6 {
            let spec = spec(&mut rng);
            let name = ["one", "two"][rng.usize(0..2)];
            live = by(name, at, Some(&live), spec.clone(), true).expect("forced");
            let again = by(name, at + 50, Some(&live), spec.clone(), false).expect("nothing changes any more");
            assert_eq!(again, live, "apply twice is a fixed point: {spec}");
        }
        // When everybody gives up everything, nothing that was applied is left.
        for name in ["one", "two"] {
            live = by(name, 9, Some(&live), json!({}), true).expect("giving up");
        }
        assert_eq!(bare(&live)["spec"], json!({}), "{live}");
    }
}
