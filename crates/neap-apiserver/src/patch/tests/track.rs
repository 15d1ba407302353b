use serde_json::{Value, json};

use super::{manager, object, owners, schema};
use crate::patch::{Operation, track_update};

/// Updates the live object as a manager at second `at`.
fn update(name: &str, at: i64, live: Option<&Value>, mut new: Value) -> Value {
    track_update(live, &mut new, &manager(name, Operation::Update, at), &schema());
    new
}

#[test]
fn a_create_is_recorded() {
    let mut new = object(json!({"replicas": 1, "colors": ["red"]}));
    new["metadata"]["labels"] = json!({"a": "b"});
    new["metadata"]["resourceVersion"] = "5".into();
    let made = update("curl", 0, None, new);
    assert_eq!(
        owners(&made),
        [
            r#"curl/Update: {"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{".":{},"f:colors":{".":{},"v:\"red\"":{}},"f:replicas":{}}}"#
        ]
    );
    assert_eq!(
        made["metadata"]["managedFields"][0],
        json!({
            "manager": "curl", "operation": "Update", "apiVersion": "apps/v1", "time": "2026-01-02T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": made["metadata"]["managedFields"][0]["fieldsV1"],
        })
    );
}

#[test]
fn an_unnamed_manager_is_unknown() {
    let made = update("", 0, None, object(json!({"replicas": 1})));
    assert!(owners(&made)[0].starts_with("unknown/Update"));
}

#[test]
fn a_change_moves_fields() {
    let live = update("one", 0, None, object(json!({"replicas": 1, "selector": {"a": "b"}})));
    let mut new = live.clone();
    new["spec"]["replicas"] = 2.into();
    let live = update("two", 1, Some(&live), new);
    assert_eq!(
        owners(&live),
        [r#"one/Update: {"f:spec":{".":{},"f:selector":{}}}"#, r#"two/Update: {"f:spec":{"f:replicas":{}}}"#]
    );
    // A removed field is nobody's.
    let mut new = live.clone();
    new["spec"].as_object_mut().expect("a map").remove("replicas");
    let live = update("one", 2, Some(&live), new);
    assert_eq!(owners(&live), [r#"one/Update: {"f:spec":{".":{},"f:selector":{}}}"#]);
}

#[test]
fn a_write_that_changes_nothing_leaves_no_trace() {
    let live = update("one", 0, None, object(json!({"replicas": 1, "containers": [{"name": "c"}]})));
    for name in ["one", "two"] {
        assert_eq!(update(name, 9, Some(&live), live.clone()), live);
        // Clients that know nothing of the record send none.
        assert_eq!(update(name, 9, Some(&live), super::bare(&live)), live);
    }
    // What only the server sets is nobody's change.
    let mut new = live.clone();
    new["metadata"]["resourceVersion"] = "7".into();
    new["metadata"]["generation"] = 2.into();
    let written = update("two", 9, Some(&live), new);
    assert_eq!(owners(&written), owners(&live));
}

#[test]
fn a_subresource_is_a_manager_of_its_own() {
    let live = update("one", 0, None, object(json!({"replicas": 1})));
    let mut new = super::bare(&live);
    new["status"] = json!({"phase": "x"});
    // Whatever record is sent to a subresource is ignored.
    new["metadata"]["managedFields"] = json!([{}]);
    let mut controller = manager("one", Operation::Update, 1);
    controller.subresource = Some("status".to_owned());
    track_update(Some(&live), &mut new, &controller, &schema());
    assert_eq!(
        owners(&new),
        [
            r#"one/Update: {"f:spec":{".":{},"f:replicas":{}}}"#,
            r#"one/Update/status: {"f:status":{".":{},"f:phase":{}}}"#
        ]
    );
}

#[test]
fn the_record_can_be_dropped() {
    let live = update("one", 0, None, object(json!({"replicas": 1})));
    for reset in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = reset;
        new["spec"]["replicas"] = 2.into();
        let cleared = update("one", 1, Some(&live), new);
        assert_eq!(cleared.pointer("/metadata/managedFields"), None);
        // An object that is not tracked stays so.
        let mut new = cleared.clone();
        new["spec"]["replicas"] = 3.into();
        assert_eq!(update("one", 2, Some(&cleared), new).pointer("/metadata/managedFields"), None);
    }
}

#[test]
fn the_record_can_be_edited() {
    let live = update("one", 0, None, object(json!({"replicas": 1})));
    let mut new = live.clone();
    new["metadata"]["managedFields"][0]["manager"] = "renamed".into();
    new["spec"]["selector"] = json!({"a": "b"});
    let edited = update("two", 1, Some(&live), new);
    assert_eq!(
        owners(&edited),
        [r#"renamed/Update: {"f:spec":{".":{},"f:replicas":{}}}"#, r#"two/Update: {"f:spec":{"f:selector":{}}}"#]
    );
    // Nonsense is ignored.
    for nonsense in [
        json!("x"),
        json!(null),
        json!([{"manager": "x"}]),
        json!([{"operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV2"}]),
    ] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = nonsense;
        assert_eq!(update("two", 1, Some(&live), new), live);
    }
}

#[test]
fn old_update_managers_are_folded() {
    let mut live = update("m00", 0, None, object(json!({"colors": []})));
    for at in 1..15 {
        let mut new = live.clone();
        new["spec"]["free"][format!("f{at}")] = at.into();
        live = update(&format!("m{at:02}"), at, Some(&live), new);
    }
    let list = owners(&live);
    assert_eq!(list.len(), 10);
    assert_eq!(
        list[0],
        r#"ancient-changes/Update: {"f:spec":{".":{},"f:colors":{},"f:free":{".":{},"f:f1":{},"f:f2":{},"f:f3":{},"f:f4":{},"f:f5":{}}}}"#
    );
    assert!(list[9].starts_with("m14/Update"));
}

#[test]
fn values_that_change_their_nature() {
    let live = update("one", 0, None, object(json!({"free": {"a": {"b": 1}}})));
    let mut new = live.clone();
    new["spec"]["free"]["a"] = "text".into();
    let live = update("two", 1, Some(&live), new);
    assert_eq!(owners(&live)[1], r#"two/Update: {"f:spec":{"f:free":{"f:a":{}}}}"#);
    let mut new = live.clone();
    new["spec"]["free"]["a"] = json!({"c": 1});
    let live = update("three", 2, Some(&live), new);
    assert_eq!(owners(&live)[1], r#"three/Update: {"f:spec":{"f:free":{"f:a":{".":{},"f:c":{}}}}}"#);
}
