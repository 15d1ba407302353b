use serde_json::{Value, json};

use crate::patch::{json_patch, merge_patch};

#[track_caller]
fn check(patch: Value, expected: Result<Value, (u16, &str)>) {
    let original = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"list": [1, 2]}});
    let mut object = original.clone();
    match (json_patch(&mut object, &patch), expected) {
        (Ok(()), Ok(expected)) => assert_eq!(object, expected),
        (Err(error), Err((code, text))) => {
            assert_eq!((error.code(), error.to_string().as_str()), (code, text));
            assert_eq!(object, original, "a failed patch must change nothing");
        }
        (found, expected) => panic!("{found:?} where {expected:?} was expected, object {object}"),
    }
}

#[test]
fn operations() {
    check(
        json!([
            {"op": "test", "path": "/metadata/labels/a", "value": "b"},
            {"op": "replace", "path": "/metadata/labels/a", "value": "c"},
            {"op": "add", "path": "/metadata/labels/x~1y", "value": "z"},
            {"op": "add", "path": "/spec/list/-", "value": 3},
            {"op": "remove", "path": "/spec/list/0"},
            {"op": "copy", "from": "/metadata/labels", "path": "/spec/copy"},
            {"op": "move", "from": "/spec/list", "path": "/spec/moved"},
            {"op": "replace", "path": "/spec/none", "value": "there now"},
        ]),
        Ok(json!({
            "metadata": {"labels": {"a": "c", "x/y": "z"}},
            "spec": {"copy": {"a": "c", "x/y": "z"}, "moved": [2, 3], "none": "there now"},
        })),
    );
}

#[test]
fn what_does_not_fit() {
    check(
        json!([{"op": "add", "path": "/spec/x", "value": 1}, {"op": "test", "path": "/metadata/labels/a", "value": "z"}]),
        Err((422, "testing value /metadata/labels/a failed: test failed")),
    );
    check(
        json!([{"op": "add", "path": "/spec/annotations/x", "value": "z"}]),
        Err((422, "add operation does not apply: doc is missing path: \"/spec/annotations/x\": missing value")),
    );
    check(
        json!([{"op": "remove", "path": "/spec/none"}]),
        Err((422, "error in remove for path: '/spec/none': Unable to remove nonexistent key: none: missing value")),
    );
    check(
        json!([{"op": "replace", "path": "/spec/list/7", "value": 1}]),
        Err((422, "replace operation does not apply: doc is missing key: /spec/list/7: missing value")),
    );
}

#[test]
fn what_is_no_patch() {
    check(json!({}), Err((400, "error decoding patch: json: a JSON patch is a list of operations")));
    let unknown = "Unexpected kind: frob: unknown variant `frob`, expected one of `add`, `remove`, `replace`, `move`, `copy`, \
                   `test`";
    check(json!([{"op": "frob", "path": "/x"}]), Err((422, unknown)));
    let many = Value::Array(vec![json!({"op": "test", "path": "/x", "value": 1}); 10_001]);
    check(many, Err((413, "The allowed maximum operations in a JSON patch is 10000, got 10001")));
}

#[test]
fn a_failed_operation_is_a_cause() {
    let error = json_patch(&mut json!({}), &json!([{"op": "test", "path": "/x", "value": 1}])).expect_err("no x");
    let status = error.to_status();
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert_eq!(status.message, "the server rejected our request due to an error in our request");
    let cause = &status.details.expect("details").causes[0];
    assert_eq!(cause.reason, "UnexpectedServerResponse");
    assert_eq!(cause.message, "error in test for path: '/x': missing path: missing value");
}

#[test]
fn merging() {
    let mut object = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
    merge_patch(&mut object, &json!({"a": {"b": null, "d": 3}, "list": [3], "gone": null}));
    assert_eq!(object, json!({"a": {"c": 2, "d": 3}, "list": [3]}));
}
