//! Table tests of the rules on ObjectMeta.

use super::*;

const SHAPE: Shape<'static> = Shape {
    group: "ex.dev",
    kind: "Thing",
    plural: "things",
    api_version: "ex.dev/v1",
    namespaced: true,
    name_rule: NameRule::Subdomain,
    generation: Generation::Content { status_apart: true },
    conditional_updates: false,
};

#[test]
fn names() {
    let check = |name: &str, rule: NameRule, ok: bool| assert_eq!(name_fault(name, rule).is_none(), ok, "{name}");
    check("a", NameRule::Subdomain, true);
    check("a.b-c.d0", NameRule::Subdomain, true);
    check("a..b", NameRule::Subdomain, false);
    check("A", NameRule::Subdomain, false);
    check("-a", NameRule::Subdomain, false);
    check("a.b", NameRule::Label, false);
    check("0a", NameRule::Label, true);
    check("0a", NameRule::Label1035, false);
    check("system:x", NameRule::Segment, true);
    check("a/b", NameRule::Segment, false);
    check(&"a".repeat(64), NameRule::Label, false);
    check(&"a".repeat(254), NameRule::Subdomain, false);
}

#[test]
fn label_syntax() {
    for (key, ok) in [("a", true), ("a.b/c_d", true), ("/a", false), ("a/", false), ("a b", false), ("A/b", false)] {
        assert_eq!(label_key_fault(key).is_none(), ok, "{key}");
    }
    for (value, ok) in [("", true), ("a_b.c", true), ("-a", false), ("a/b", false)] {
        assert_eq!(label_value_fault(value).is_none(), ok, "{value}");
    }
}

#[test]
fn create_sets_what_only_the_server_may_set() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut object = json!({"metadata": {"generateName": "a-", "uid": "mine", "generation": 9, "selfLink": "x",
        "creationTimestamp": null}});
    check_decoded(&mut object, &SHAPE).unwrap();
    prepare_create(&mut object, &SHAPE, Some("ns"), "2024-01-01T00:00:00Z", "u-1", &mut rng).unwrap();
    let name = text(&object, "name").to_owned();
    assert!(name.starts_with("a-") && name.len() == 7, "{name}");
    of_mut(&mut object).remove("name");
    assert_eq!(
        object,
        json!({"apiVersion": "ex.dev/v1", "kind": "Thing", "metadata": {"generateName": "a-", "uid": "u-1",
            "namespace": "ns", "generation": 1, "creationTimestamp": "2024-01-01T00:00:00Z"}})
    );
}

#[test]
fn create_refuses() {
    let check = |object: Value, want: &str| {
        let mut object = object;
        let mut rng = fastrand::Rng::with_seed(1);
        let got = check_decoded(&mut object, &SHAPE)
            .and_then(|()| prepare_create(&mut object, &SHAPE, Some("ns"), "t", "u", &mut rng))
            .map(|()| validate(&object, None, &SHAPE));
        let text = match got {
            Ok(causes) => causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect(),
            Err(error) => error.to_string(),
        };
        assert!(text.contains(want), "{object}: {text}");
    };
    check(json!({}), "metadata.name: Required value: name or generateName is required");
    check(json!({"kind": "Other"}), "the kind in the data (Other) does not match the expected kind (Thing)");
    check(json!({"apiVersion": "v2"}), "the API version in the data (v2) does not match");
    check(json!({"metadata": {"name": "a", "namespace": "b"}}), "does not match the namespace sent on the request");
    check(json!({"metadata": {"name": "a", "resourceVersion": "1"}}), "resourceVersion should not be set");
    check(json!({"metadata": {"name": "a", "labels": {"x": 1}}}), "cannot be handled as a Thing");
    check(json!({"metadata": {"name": "a", "labels": {"x y": "1"}}}), "metadata.labels: Invalid value: \"x y\"");
    check(
        json!({"metadata": {"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": ""}]}}),
        "metadata.ownerReferences.uid",
    );
    check(json!({"metadata": {"name": "a", "finalizers": ["a b"]}}), "metadata.finalizers: Invalid value");
}

#[test]
fn update_keeps_what_is_the_servers() {
    let old = json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "5", "generation": 2,
        "creationTimestamp": "t"}, "spec": {"n": 1}});
    let check = |change: Value, want: std::result::Result<(), &str>| {
        let mut new = change.clone();
        match (prepare_update(&mut new, &old, &SHAPE, Some("ns"), "a"), want) {
            (Ok(()), Ok(())) => {
                assert_eq!((text(&new, "uid"), text(&new, "creationTimestamp")), ("u", "t"), "{change}");
                assert_eq!(new["metadata"]["generation"], 2, "{change}");
            }
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
            (got, want) => panic!("{change}: {got:?}, wanted {want:?}"),
        }
    };
    check(json!({"metadata": {"name": "a", "generation": 7}}), Ok(()));
    check(json!({"metadata": {"resourceVersion": "5"}}), Ok(()));
    check(json!({"metadata": {"resourceVersion": "4"}}), Err("the object has been modified"));
    check(json!({"metadata": {"uid": "v"}}), Err("UID in precondition: v, UID in object meta: u"));
    check(json!({"metadata": {"name": "b"}}), Err("the name of the object (b) does not match"));
}

#[test]
fn generation_follows_content() {
    let old = json!({"metadata": {"generation": 2, "labels": {"a": "b"}}, "spec": {"n": 1}, "status": {"s": 1}});
    let check = |new: Value, apart: bool, want: i64| {
        let mut new = new;
        carry(&mut new, &old);
        bump(&mut new, &old, Generation::Content { status_apart: apart });
        assert_eq!(new["metadata"]["generation"], want, "{new}");
    };
    check(json!({"spec": {"n": 1}, "status": {"s": 1}}), true, 2);
    check(json!({"spec": {"n": 2}, "status": {"s": 1}}), true, 3);
    check(json!({"spec": {"n": 1}, "status": {"s": 2}}), true, 2);
    check(json!({"spec": {"n": 1}, "status": {"s": 2}}), false, 3);
}

#[test]
fn no_new_finalizer_on_a_dying_object() {
    let old = json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["x.y/z"]}});
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!([]);
    assert_eq!(validate(&new, Some(&old), &SHAPE), vec![]);
    new["metadata"]["finalizers"] = json!(["x.y/z", "x.y/w"]);
    assert!(validate(&new, Some(&old), &SHAPE)[0].message.contains("[]string{\"x.y/w\"}"));
}

#[test]
fn uids_are_version_4() {
    let uid = random_uid(&mut fastrand::Rng::with_seed(7));
    assert_eq!(uid.len(), 36);
    assert_eq!(&uid[14..15], "4");
    assert!("89ab".contains(&uid[19..20]), "{uid}");
}
