//! Manifests of the old days: what becomes of them, how they read afterwards, and what is refused.

use fastrand::Rng;
use serde_json::json;

use super::*;

const V1: &str = "serving.knative.dev/v1";
const ALPHA: &str = "serving.knative.dev/v1alpha1";
const BETA: &str = "serving.knative.dev/v1beta1";

fn object(api_version: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "hello"}, "spec": spec})
}

fn stored(object: &Value) -> Value {
    convert(object.clone(), ALPHA, V1).unwrap_or_else(|errors| panic!("{}\nof {object}", errors.refusals()))
}

fn shown(object: &Value) -> Value {
    convert(object.clone(), V1, ALPHA).expect("v1 can always be shown")
}

/// An old spec, the v1 spec it stands for, and back again word for word, in both old versions.
fn check(kind: &str, old: Value, new: Value) {
    for version in [ALPHA, BETA] {
        let written = object(version, kind, &old);
        let kept = convert(written.clone(), version, V1).unwrap_or_else(|errors| panic!("{}", errors.refusals()));
        assert_eq!(kept["apiVersion"], V1);
        assert_eq!(kept["spec"], new, "of {old}");
        let read = convert(kept.clone(), V1, version).expect("v1 can always be shown");
        assert_eq!(read, written);
        assert_eq!(convert(read, version, V1).expect("it was accepted before"), kept);
    }
}

fn refused(kind: &str, old: Value, want: &str) {
    let errors = convert(object(ALPHA, kind, &old), ALPHA, V1).expect_err(want);
    assert_eq!(errors.refusals(), want);
}

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"container": {"image": "app"}}})
}

fn new_template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"image": "app"}]}})
}

#[test]
fn i1_run_latest() {
    check(
        "Service",
        json!({"runLatest": {"configuration": {"revisionTemplate": template()}}}),
        json!({"template": new_template(), "traffic": [{"latestRevision": true, "percent": 100}]}),
    );
    check(
        "Service",
        json!({"runLatest": {"configuration": {"template": new_template(), "generation": 2}}, "generation": 3}),
        json!({"template": new_template(), "traffic": [{"latestRevision": true, "percent": 100}]}),
    );
}

#[test]
fn i2_pinned() {
    check(
        "Service",
        json!({"pinned": {"revisionName": "hello-00003", "configuration": {"revisionTemplate": template()}}}),
        json!({"template": new_template(), "traffic": [{"revisionName": "hello-00003", "latestRevision": false, "percent": 100}]}),
    );
    let pinned =
        |name: Value| json!({"pinned": {"revisionName": name, "configuration": {"revisionTemplate": template()}}});
    refused("Service", pinned(Value::Null), "missing field(s): spec.pinned.revisionName");
    refused("Service", pinned(json!("A b")), "invalid key name \"A b\": spec.pinned.revisionName");
    refused("Service", pinned(json!(3)), "invalid value: 3: spec.pinned.revisionName");
}

fn release(revisions: Value, percent: Value) -> Value {
    let mut spec = json!({"release": {"revisions": revisions, "configuration": {"revisionTemplate": template()}}});
    if !percent.is_null() {
        spec["release"]["rolloutPercent"] = percent;
    }
    spec
}

#[test]
fn i3_release() {
    let latest = json!({"tag": "latest", "latestRevision": true, "percent": 0});
    let target = |tag: &str, name: &str, percent: i64| json!({"tag": tag, "revisionName": name, "latestRevision": false, "percent": percent});
    for percent in [Value::Null, json!(0)] {
        check(
            "Service",
            release(json!(["a-1"]), percent),
            json!({"template": new_template(), "traffic": [target("current", "a-1", 100), latest]}),
        );
    }
    check(
        "Service",
        release(json!(["a-1", "a-2"]), json!(20)),
        json!({"template": new_template(), "traffic": [target("current", "a-1", 80), target("candidate", "a-2", 20), latest]}),
    );
    check(
        "Service",
        release(json!(["a-1", "@latest"]), json!(5)),
        json!({"template": new_template(), "traffic": [
            target("current", "a-1", 95), {"tag": "candidate", "latestRevision": true, "percent": 5}, latest]}),
    );
    let none = Value::Null;
    refused("Service", release(none.clone(), none.clone()), "missing field(s): spec.release.revisions");
    refused("Service", release(json!([]), none.clone()), "expected 1 <= 0 <= 2: spec.release.revisions");
    refused("Service", release(json!(["a", "b", "c"]), none.clone()), "expected 1 <= 3 <= 2: spec.release.revisions");
    refused("Service", release(json!("a"), none.clone()), "invalid value: \"a\": spec.release.revisions");
    refused(
        "Service",
        release(json!(["a", "B", 3]), json!(100)),
        "expected 0 <= 100 <= 99: spec.release.rolloutPercent\nexpected 1 <= 3 <= 2: spec.release.revisions",
    );
    refused("Service", release(json!(["a", "B"]), none.clone()), "invalid key name \"B\": spec.release.revisions[1]");
    refused("Service", release(json!([7]), none), "invalid value: 7: spec.release.revisions[0]");
    refused("Service", release(json!(["a"]), json!(10)), "invalid value: 10: spec.release.rolloutPercent");
}

#[test]
fn i4_manual() {
    check("Service", json!({"manual": {}}), json!({}));
    let kept = stored(&object(ALPHA, "Service", &json!({"manual": {}})));
    assert_eq!(kept["metadata"]["annotations"], json!({"neap.dev/service-mode": "manual"}));
    assert!(is_manual(&kept));
    // Who then says what to run, in v1, has an ordinary Service.
    let mut edited = kept;
    edited["spec"] = json!({"template": new_template()});
    assert!(!is_manual(&edited));
    assert_eq!(shown(&edited)["spec"], edited["spec"]);
}

#[test]
fn i5_configurations() {
    check("Configuration", json!({"revisionTemplate": template()}), json!({"template": new_template()}));
    check("Configuration", json!({"template": template(), "generation": 7}), json!({"template": new_template()}));
    check("Configuration", json!({"template": new_template()}), json!({"template": new_template()}));
    // What the server counts is what is shown.
    let mut counted = stored(&object(ALPHA, "Configuration", &json!({"template": template(), "generation": 7})));
    counted["metadata"]["generation"] = json!(9);
    assert_eq!(shown(&counted)["spec"]["generation"], 9);
    let build = json!({"revisionTemplate": template(), "build": {"source": {"git": {"url": "u"}}}});
    let why =
        "cannot be converted, nothing builds images here (build it beforehand and name the image in the container)";
    refused("Configuration", build.clone(), &format!("{why}: spec.build"));
    refused(
        "Service",
        json!({"runLatest": {"configuration": build}}),
        &format!("{why}: spec.runLatest.configuration.build"),
    );
    refused(
        "Configuration",
        json!({"revisionTemplate": {"spec": {"buildName": "b", "buildRef": {"name": "b"}}}}),
        &format!("{why}: spec.revisionTemplate.spec.buildName, spec.revisionTemplate.spec.buildRef"),
    );
}

#[test]
fn i6_revisions() {
    let spec = |fields: Value| {
        let mut spec = json!({"container": {"image": "app"}});
        spec.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
        spec
    };
    let new = |fields: Value| {
        let mut spec = spec(fields);
        spec.as_object_mut().expect("fields").remove("container");
        spec["containers"] = json!([{"image": "app"}]);
        spec
    };
    check("Revision", spec(json!({"timeoutSeconds": 9})), new(json!({"timeoutSeconds": 9})));
    check("Revision", spec(json!({"concurrencyModel": "Single"})), new(json!({"containerConcurrency": 1})));
    check("Revision", spec(json!({"concurrencyModel": "Multi"})), new(json!({"containerConcurrency": 0})));
    check(
        "Revision",
        spec(json!({"concurrencyModel": "Multi", "containerConcurrency": 5})),
        new(json!({"containerConcurrency": 5})),
    );
    for state in ["Active", "Reserve", "Retired"] {
        check("Revision", spec(json!({"servingState": state})), new(json!({})));
    }
    let label = |state: &str| {
        let kept = stored(&object(ALPHA, "Revision", &spec(json!({"servingState": state}))));
        kept["metadata"]["labels"]["serving.knative.dev/routingState"].clone()
    };
    assert_eq!(["Active", "Reserve", "Retired"].map(label), [json!("active"), json!("reserve"), json!("reserve")]);
    refused(
        "Revision",
        spec(json!({"containers": [{"image": "x"}], "concurrencyModel": "Some", "servingState": "Asleep"})),
        "expected exactly one, got both: spec.container, spec.containers\ninvalid value: Asleep: spec.servingState\n\
         invalid value: Some: spec.concurrencyModel",
    );
    for (model, limit) in [("Single", 2), ("Multi", 1)] {
        refused(
            "Revision",
            spec(json!({"concurrencyModel": model, "containerConcurrency": limit})),
            "expected exactly one, got both: spec.concurrencyModel, spec.containerConcurrency",
        );
    }
}

#[test]
fn i7_routes() {
    check(
        "Route",
        json!({"generation": 1, "traffic": [
            {"name": "current", "revisionName": "a", "percent": 90}, {"tag": "next", "configurationName": "c", "percent": 10}]}),
        json!({"traffic": [
            {"tag": "current", "revisionName": "a", "percent": 90}, {"tag": "next", "configurationName": "c", "percent": 10}]}),
    );
    refused(
        "Route",
        json!({"traffic": [{"percent": 1}, {"name": "a", "tag": "a"}]}),
        "expected exactly one, got both: spec.traffic[1].name, spec.traffic[1].tag",
    );
}

#[test]
fn i7_status() {
    let check = |kind: &str, new: Value, old: Value| {
        let kept = json!({"apiVersion": V1, "kind": kind, "metadata": {"name": "hello-00001"}, "status": new});
        let read = shown(&kept);
        assert_eq!(read["status"], old);
        assert_eq!(stored(&read), kept, "the old words are only said beside the new ones");
    };
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    check(
        "Service",
        json!({"conditions": conditions, "url": "http://hello.ns.example.com:8080", "observedGeneration": 2,
            "latestCreatedRevisionName": "hello-00001", "latestReadyRevisionName": "hello-00001",
            "address": {"url": "http://hello.ns.svc.cluster.local"},
            "traffic": [{"revisionName": "hello-00001", "percent": 100}, {"revisionName": "a", "tag": "t", "percent": 0}]}),
        json!({"conditions": conditions, "url": "http://hello.ns.example.com:8080", "observedGeneration": 2,
            "latestCreatedRevisionName": "hello-00001", "latestReadyRevisionName": "hello-00001",
            "domain": "hello.ns.example.com", "domainInternal": "hello.ns.svc.cluster.local",
            "address": {"url": "http://hello.ns.svc.cluster.local", "hostname": "hello.ns.svc.cluster.local"},
            "traffic": [{"revisionName": "hello-00001", "percent": 100},
                {"revisionName": "a", "tag": "t", "name": "t", "percent": 0}]}),
    );
    check(
        "Revision",
        json!({"conditions": conditions, "containerStatuses": [{"name": "c", "imageDigest": "r@sha256:1"}]}),
        json!({"conditions": conditions, "containerStatuses": [{"name": "c", "imageDigest": "r@sha256:1"}],
            "imageDigest": "r@sha256:1", "serviceName": "hello-00001"}),
    );
    check("Configuration", json!({"latestReadyRevisionName": "a"}), json!({"latestReadyRevisionName": "a"}));
    // A status of an old controller, which knew only the old words.
    let written = |kind: &str, status: Value| {
        let old = json!({"apiVersion": ALPHA, "kind": kind, "metadata": {"name": "hello"}, "status": status});
        stored(&old)["status"].clone()
    };
    assert_eq!(
        written(
            "Route",
            json!({"domain": "a.b", "domainInternal": "a.svc", "traffic": [{"name": "t", "percent": 100}]})
        ),
        json!({"url": "http://a.b", "address": {"url": "http://a.svc"}, "traffic": [{"tag": "t", "percent": 100}]})
    );
    assert_eq!(
        written("Service", json!({"address": {"hostname": "a.svc"}})),
        json!({"address": {"url": "http://a.svc"}})
    );
    assert_eq!(
        written("Revision", json!({"imageDigest": "r@sha256:1", "serviceName": "s"})),
        json!({"containerStatuses": [{"imageDigest": "r@sha256:1"}]})
    );
}

#[test]
fn only_one_way_at_a_time() {
    let latest = json!({"configuration": {"revisionTemplate": template()}});
    refused(
        "Service",
        json!({"runLatest": latest, "manual": {}}),
        "expected exactly one, got both: spec.manual, spec.runLatest",
    );
    refused(
        "Service",
        json!({"runLatest": latest, "template": new_template()}),
        "expected exactly one, got both: spec.runLatest, spec.template",
    );
    refused(
        "Service",
        json!({"manual": {}, "traffic": [{"percent": 100}]}),
        "expected exactly one, got both: spec.manual, spec.traffic",
    );
    refused(
        "Service",
        json!({"runLatest": {"configuration": {"template": new_template(), "revisionTemplate": template()}}}),
        "expected exactly one, got both: spec.runLatest.configuration.revisionTemplate, spec.runLatest.configuration.template",
    );
    refused("Service", json!({"runLatest": 3}), "must be an object: spec.runLatest");
    refused("Service", json!({"runLatest": {"configuration": 3}}), "must be an object: spec.runLatest.configuration");
    // What a generated file spells out as nothing is nothing.
    let kept = stored(&object(ALPHA, "Service", &json!({"runLatest": latest, "manual": null, "template": null})));
    assert_eq!(kept["spec"]["template"], new_template());
}

#[test]
fn what_nobody_knows_stays_for_the_schema_to_name() {
    let kept = stored(&object(
        ALPHA,
        "Service",
        &json!({"runLatest": {"speed": 3, "configuration": {"colour": 1, "revisionTemplate": template()}}}),
    ));
    assert_eq!(kept["spec"]["runLatest"], json!({"speed": 3, "configuration": {"colour": 1}}));
    assert_eq!(
        convert(json!({"kind": "Service"}), "serving.knative.dev/v2", V1).expect_err("no such version").refusals(),
        "invalid value: serving.knative.dev/v2: apiVersion"
    );
}

#[test]
fn a_clusters_api_server_is_answered() {
    let ask = |spec: Value| {
        review(&json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "request": {"uid": "u", "desiredAPIVersion": V1, "objects": [object(ALPHA, "Service", &spec)]}}))
    };
    let answer = ask(json!({"manual": {}}));
    assert_eq!((&answer["kind"], &answer["response"]["uid"]), (&json!("ConversionReview"), &json!("u")));
    assert_eq!(answer["response"]["result"]["status"], "Success");
    assert_eq!(answer["response"]["convertedObjects"][0]["apiVersion"], V1);
    let answer = ask(json!({"manual": {}, "runLatest": {}}));
    assert_eq!(
        answer["response"],
        json!({"uid": "u", "convertedObjects": [], "result": {"status": "Failure",
            "message": "expected exactly one, got both: spec.manual, spec.runLatest"}})
    );
}

/// An edit in v1, and what the old words say afterwards.
#[test]
fn v1_wins() {
    let after = |kind: &str, old: Value, edit: fn(&mut Value)| {
        let mut kept = stored(&object(ALPHA, kind, &old));
        edit(&mut kept);
        let read = shown(&kept);
        let mut again = stored(&read);
        again["metadata"]["annotations"] = kept["metadata"]["annotations"].clone();
        if again["metadata"]["annotations"].is_null() {
            again["metadata"].as_object_mut().expect("metadata").remove("annotations");
        }
        assert_eq!(again, kept, "an edited object survives being shown");
        read["spec"].clone()
    };
    let latest = json!({"runLatest": {"configuration": {"revisionTemplate": template()}}});
    assert_eq!(
        after("Service", latest.clone(), |o| o["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other")),
        json!({"runLatest": {"configuration": {"revisionTemplate": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"container": {"image": "other"}}}}}})
    );
    // Split by hand, so no longer what runLatest says.
    let split = after("Service", latest.clone(), |o| {
        o["spec"]["traffic"] = json!([{"revisionName": "a", "percent": 100, "tag": "t"}]);
    });
    assert_eq!(split["traffic"], json!([{"revisionName": "a", "percent": 100, "tag": "t"}]));
    assert_eq!(split["revisionTemplate"]["spec"]["container"]["image"], "app");
    let two = after("Service", latest, |o| {
        o["spec"]["template"]["spec"]["containers"] = json!([{"image": "a"}, {"image": "b"}]);
    });
    let shown_as = &two["runLatest"]["configuration"]["revisionTemplate"]["spec"];
    assert_eq!(*shown_as, json!({"containers": [{"image": "a"}, {"image": "b"}]}));

    let moved = after("Service", release(json!(["a", "b"]), json!(10)), |o| {
        o["spec"]["traffic"][0]["percent"] = json!(40);
        o["spec"]["traffic"][1]["percent"] = json!(60);
    });
    assert_eq!(moved["release"]["rolloutPercent"], 60);
    let finished = after("Service", release(json!(["a", "b"]), json!(10)), |o| {
        o["spec"]["traffic"][0]["percent"] = json!(0);
        o["spec"]["traffic"][1]["percent"] = json!(100);
    });
    assert!(finished["release"].is_null(), "a release gives its second revision 99 percent at most");

    let model = json!({"container": {"image": "app"}, "concurrencyModel": "Single"});
    let limited = after("Configuration", json!({"template": {"spec": model}}), |o| {
        o["spec"]["template"]["spec"]["containerConcurrency"] = json!(4);
    });
    assert_eq!(limited["template"]["spec"], json!({"container": {"image": "app"}, "containerConcurrency": 4}));
    let reserved = after("Revision", json!({"servingState": "Active"}), |o| {
        o["metadata"]["labels"]["serving.knative.dev/routingState"] = json!("reserve");
    });
    assert_eq!(reserved["servingState"], "Reserve");
    let renamed = after("Route", json!({"traffic": [{"name": "a"}]}), |o| o["spec"]["traffic"][0]["tag"] = json!("b"));
    assert_eq!(renamed["traffic"], json!([{"tag": "b"}]));
}

fn any(random: &mut Rng, chance: f64) -> bool {
    random.f64() < chance
}

fn word(random: &mut Rng) -> String {
    random.choice(["a", "hello-00001", "b-2", "current", "latest", "x9"]).expect("some").to_owned()
}

fn put(random: &mut Rng, into: &mut Value, key: &str, make: impl FnOnce(&mut Rng) -> Value) {
    if any(random, 0.5) {
        into[key] = make(random);
    }
}

fn random_revision(random: &mut Rng, old: bool) -> Value {
    let mut spec = json!({});
    let container = |random: &mut Rng| json!({"image": word(random), "env": [{"name": "A", "value": word(random)}]});
    if old && any(random, 0.6) {
        spec["container"] = container(random);
    } else {
        spec["containers"] = (0..random.usize(1..3)).map(|_| container(random)).collect();
    }
    put(random, &mut spec, "timeoutSeconds", |r| r.i64(0..600).into());
    put(random, &mut spec, "serviceAccountName", |r| word(r).into());
    put(random, &mut spec, "containerConcurrency", |r| r.i64(2..9).into());
    if old {
        if any(random, 0.3) {
            let single = any(random, 0.5);
            spec["concurrencyModel"] = json!(if single { "Single" } else { "Multi" });
            if single {
                spec.as_object_mut().expect("fields").remove("containerConcurrency");
            }
        }
        if any(random, 0.2) {
            spec["servingState"] = json!(random.choice(["Active", "Reserve", "Retired"]));
        }
        if any(random, 0.2) {
            spec["generation"] = random.i64(1..99).into();
        }
    }
    spec
}

fn random_configuration(random: &mut Rng, old: bool) -> Value {
    let mut template = json!({"spec": random_revision(random, old)});
    put(random, &mut template, "metadata", |r| json!({"annotations": {"note": word(r)}}));
    let field = if old && any(random, 0.5) { "revisionTemplate" } else { "template" };
    json!({field: template})
}

fn random_traffic(random: &mut Rng, old: bool) -> Value {
    let mut left = 100;
    let count = random.usize(1..4);
    let targets = (0..count).map(|i| {
        let percent = if i + 1 == count { left } else { random.i64(0..=left) };
        left -= percent;
        let mut target = json!({"percent": percent});
        match random.u8(0..3) {
            0 => target["latestRevision"] = true.into(),
            1 => target["revisionName"] = word(random).into(),
            _ => target["configurationName"] = word(random).into(),
        }
        if any(random, 0.5) {
            let field = if old && any(random, 0.5) { "name" } else { "tag" };
            target[field] = format!("t{i}").into();
        }
        target
    });
    targets.collect()
}

fn random_object(random: &mut Rng, version: &str) -> Value {
    let old = version != V1;
    let kind = *random.choice(&["Service", "Configuration", "Revision", "Route"]).expect("some");
    let mut spec = match kind {
        "Revision" => random_revision(random, old),
        "Configuration" => random_configuration(random, old),
        "Route" => json!({"traffic": random_traffic(random, old)}),
        _ => {
            let way = if old { random.u8(0..6) } else { 5 };
            let configuration = random_configuration(random, old);
            match way {
                0 => json!({"manual": {}}),
                1 => json!({"pinned": {"revisionName": word(random), "configuration": configuration}}),
                2 => json!({"runLatest": {"configuration": configuration}}),
                3 => json!({"release": {"revisions": [word(random)], "configuration": configuration}}),
                4 => {
                    let second = random.choice(["@latest", "hello-00002"]);
                    json!({"release": {"revisions": [word(random), second], "rolloutPercent": random.i64(0..100),
                        "configuration": configuration}})
                }
                _ => {
                    let mut spec = configuration;
                    spec["traffic"] = random_traffic(random, old);
                    spec
                }
            }
        }
    };
    if old && any(random, 0.2) {
        spec["generation"] = random.i64(1..99).into();
    }
    let mut object = object(version, kind, &spec);
    put(random, &mut object["metadata"], "labels", |r| json!({"team": word(r)}));
    put(random, &mut object["metadata"], "annotations", |r| json!({"note": word(r)}));
    object
}

/// Property: what is written in an old version reads the same in it, and its v1 form is a fixed point.
#[test]
fn old_objects_survive_the_way_to_v1_and_back() {
    let mut random = Rng::with_seed(3);
    for _ in 0..20_000 {
        let written = random_object(&mut random, ALPHA);
        let kept = stored(&written);
        let read = shown(&kept);
        assert_eq!(read, written, "by way of {kept}");
        assert_eq!(stored(&read), kept);
    }
}

/// Property: an object of v1 survives being shown in an old version.
#[test]
fn new_objects_survive_the_way_to_old_versions_and_back() {
    let mut random = Rng::with_seed(4);
    for _ in 0..20_000 {
        let kept = random_object(&mut random, V1);
        assert_eq!(stored(&shown(&kept)), kept);
    }
}

/// Property: whatever is remembered of whatever object, showing it and taking it back changes nothing but the memory.
#[test]
fn an_edit_in_v1_is_never_lost() {
    let mut random = Rng::with_seed(5);
    let spec_of = |object: &Value| (object["spec"].clone(), object["metadata"]["labels"].clone());
    for _ in 0..20_000 {
        let mut kept = random_object(&mut random, V1);
        let memo = stored(&random_object(&mut random, ALPHA));
        if let Some(text) = memo["metadata"]["annotations"][neap::WRITTEN_AS].as_str() {
            annotate(&mut kept, neap::WRITTEN_AS, text.to_owned());
        }
        let again = stored(&shown(&kept));
        let (mut spec, labels) = spec_of(&again);
        let (before, before_labels) = spec_of(&kept);
        // The limit a model implies is the one thing that is spelled out.
        for at in ["/containerConcurrency", "/template/spec/containerConcurrency"] {
            if before.pointer(at).is_none() && spec.pointer(at) == Some(&json!(0)) {
                let (parent, key) = at.rsplit_once('/').expect("a path");
                spec.pointer_mut(parent).and_then(Value::as_object_mut).expect("fields").remove(key);
            }
        }
        for target in spec.pointer_mut("/traffic").and_then(Value::as_array_mut).into_iter().flatten() {
            if target["latestRevision"] == false {
                target.as_object_mut().expect("fields").remove("latestRevision");
            }
        }
        assert_eq!((spec, labels), (before, before_labels), "{kept}");
    }
}
