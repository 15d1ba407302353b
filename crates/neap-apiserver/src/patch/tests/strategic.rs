use serde_json::{Value, json};

use super::{object, schema};
use crate::patch::strategic_merge;

#[track_caller]
fn check(spec: Value, patch: Value, expected: Value) {
    let mut value = object(spec);
    strategic_merge(&mut value, &json!({"spec": patch}), &schema()).expect("a good patch");
    assert_eq!(value["spec"], expected);
    assert_eq!(value["metadata"], object(json!({}))["metadata"]);
}

#[track_caller]
fn check_error(spec: Value, patch: Value, expected: &str) {
    let mut value = object(spec.clone());
    let error = strategic_merge(&mut value, &json!({"spec": patch}), &schema()).expect_err("a bad patch");
    assert_eq!((error.code(), error.to_string().as_str()), (400, expected));
    assert_eq!(value["spec"], spec, "a failed patch must change nothing");
}

fn two_containers() -> Value {
    json!({"containers": [{"name": "a", "image": "nginx", "args": ["x"]}, {"name": "b", "image": "redis"}]})
}

#[test]
fn maps_merge_and_null_removes() {
    check(
        json!({"replicas": 1, "selector": {"app": "x", "tier": "y"}, "free": {"a": {"b": 1}}}),
        json!({"replicas": null, "selector": {"tier": "z", "none": null}, "free": {"a": {"c": 2}}}),
        json!({"selector": {"app": "x", "tier": "z"}, "free": {"a": {"b": 1, "c": 2}}}),
    );
}

#[test]
fn lists_with_a_key_merge() {
    // The documentation's example: patching a Deployment with one more container.
    check(
        two_containers(),
        json!({"containers": [{"name": "patch-demo-ctr-2", "image": "redis"}]}),
        json!({"containers": [
            {"name": "patch-demo-ctr-2", "image": "redis"},
            {"name": "a", "image": "nginx", "args": ["x"]},
            {"name": "b", "image": "redis"},
        ]}),
    );
    check(
        two_containers(),
        json!({"containers": [{"name": "b", "image": "redis:8", "env": [{"name": "X", "value": "1"}]}]}),
        json!({"containers": [
            {"name": "a", "image": "nginx", "args": ["x"]},
            {"name": "b", "image": "redis:8", "env": [{"name": "X", "value": "1"}]},
        ]}),
    );
}

#[test]
fn plain_lists_are_replaced() {
    // The documentation's second example: tolerations have no merge strategy.
    check(
        json!({"tolerations": [{"key": "dedicated"}, {"key": "other"}]}),
        json!({"tolerations": [{"key": "disktype"}]}),
        json!({"tolerations": [{"key": "disktype"}]}),
    );
    check(
        two_containers(),
        json!({"containers": [{"name": "a", "args": ["y", "z"]}]}),
        json!({"containers": [
            {"name": "a", "image": "nginx", "args": ["y", "z"]},
            {"name": "b", "image": "redis"},
        ]}),
    );
}

#[test]
fn items_are_deleted_by_key() {
    check(
        two_containers(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b", "image": "redis"}]}),
    );
    // Deleting what is not there, in a list that is not there, is no content.
    check(json!({}), json!({"containers": [{"name": "a", "$patch": "delete"}]}), json!({"containers": []}));
}

#[test]
fn lists_and_maps_are_replaced_on_request() {
    check(
        two_containers(),
        json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check(
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"strategy": {"$patch": "replace", "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    check(
        json!({"strategy": {"type": "RollingUpdate"}}),
        json!({"strategy": {"$patch": "delete"}}),
        json!({"strategy": {}}),
    );
    check(
        json!({"strategy": {"type": "A"}}),
        json!({"strategy": {"$patch": "merge", "rollingUpdate": {"maxSurge": 2}}}),
        json!({"strategy": {"type": "A", "rollingUpdate": {"maxSurge": 2}}}),
    );
}

#[test]
fn kept_keys() {
    // The documentation's retainKeys example.
    check(
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "30%"}}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    check_error(
        json!({"strategy": {"type": "RollingUpdate"}}),
        json!({"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}),
        "invalid patch format of retainKeys",
    );
}

#[test]
fn sets_merge_and_lose_members() {
    check(
        json!({"colors": ["red", "green"]}),
        json!({"colors": ["blue", "red"]}),
        json!({"colors": ["blue", "red", "green"]}),
    );
    check(
        json!({"colors": ["red", "green", "blue"]}),
        json!({"$deleteFromPrimitiveList/colors": ["green"]}),
        json!({"colors": ["red", "blue"]}),
    );
    check(
        json!({"colors": ["red", "green", "blue"]}),
        json!({
            "$setElementOrder/colors": ["yellow", "blue", "red"],
            "$deleteFromPrimitiveList/colors": ["green"],
            "colors": ["yellow"],
        }),
        json!({"colors": ["yellow", "blue", "red"]}),
    );
}

#[test]
fn order_on_request() {
    check(
        two_containers(),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
        json!({"containers": [{"name": "b", "image": "redis"}, {"name": "a", "image": "nginx", "args": ["x"]}]}),
    );
    // What kubectl sends when an item is inserted between two and one is removed.
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "injected"}]}),
        json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}],
            "containers": [{"name": "c", "image": "i"}, {"name": "a", "$patch": "delete"}],
        }),
        json!({"containers": [{"name": "b"}, {"name": "c", "image": "i"}, {"name": "injected"}]}),
    );
    check_error(
        two_containers(),
        json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "c"}]}),
        "The order in patch list:\n[{\"name\":\"c\"}]\n doesn't match $setElementOrder list:\n[{\"name\":\"a\"}]\n",
    );
}

#[test]
fn contradictions() {
    check_error(
        two_containers(),
        json!({"containers": [{"image": "x"}]}),
        "map: map[image:x] does not contain declared merge key: name",
    );
    check_error(two_containers(), json!({"containers": ["x"]}), "list element types are not identical");
    check_error(
        json!({"strategy": {"type": "x"}}),
        json!({"strategy": {"$patch": "frob"}}),
        "unknown patch type: frob in map: map[$patch:frob]",
    );
    check_error(
        json!({"colors": []}),
        json!({"$deleteFromPrimitiveList/colors": "x"}),
        "invalid patch format of primitive list",
    );
}

#[test]
fn metadata_has_its_own_lists() {
    let mut value = object(json!({}));
    value["metadata"]["finalizers"] = json!(["a"]);
    value["metadata"]["ownerReferences"] = json!([{"uid": "1", "name": "x"}]);
    let patch = json!({"metadata": {
        "labels": {"l": "1"},
        "finalizers": ["b"],
        "ownerReferences": [{"uid": "2", "name": "y"}, {"uid": "1", "name": "z"}],
    }});
    strategic_merge(&mut value, &patch, &schema()).expect("a good patch");
    assert_eq!(value["metadata"]["finalizers"], json!(["b", "a"]));
    assert_eq!(value["metadata"]["ownerReferences"], json!([{"uid": "2", "name": "y"}, {"uid": "1", "name": "z"}]));
    assert_eq!(value["metadata"]["labels"], json!({"l": "1"}));
}

#[test]
fn an_empty_patch_is_identity_and_patching_twice_changes_nothing() {
    let schema = schema();
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..300 {
        let before = object(super::apply::random_spec(&mut rng));
        let mut value = before.clone();
        strategic_merge(&mut value, &json!({}), &schema).expect("the empty patch");
        assert_eq!(value, before);
        let patch = json!({"spec": super::apply::random_spec(&mut rng)});
        strategic_merge(&mut value, &patch, &schema).expect("a patch without directives");
        let once = value.clone();
        strategic_merge(&mut value, &patch, &schema).expect("the same patch");
        assert_eq!(value, once, "patch {patch} on {before}");
    }
}
