//! Targets, visibility and rollout, by example.

use std::time::Duration;

use neap_api::serving::{ConfigurationStatus, RevisionStatus};
use neap_api::{Condition, ConditionStatus};
use serde_json::json;

use super::*;

fn known() -> Known {
    let revision = |name: &str, service: &str, ready: ConditionStatus| {
        let revision = Revision {
            metadata: serde_json::from_value(
                json!({"name": name, "generation": 1, "labels": {"serving.knative.dev/service": service}}),
            )
            .expect("metadata"),
            spec: Default::default(),
            status: Some(RevisionStatus {
                observed_generation: 1,
                conditions: vec![Condition { type_: "Ready".into(), status: ready, ..Condition::default() }],
                ..RevisionStatus::default()
            }),
        };
        (name.to_owned(), Arc::new(revision))
    };
    let configuration = |name: &str, latest: &str, ready: ConditionStatus| {
        let configuration = Configuration {
            metadata: serde_json::from_value(json!({"name": name, "generation": 1})).expect("metadata"),
            spec: Default::default(),
            status: Some(ConfigurationStatus {
                observed_generation: 1,
                latest_ready_revision_name: latest.into(),
                conditions: vec![Condition { type_: "Ready".into(), status: ready, ..Condition::default() }],
                ..ConfigurationStatus::default()
            }),
        };
        (name.to_owned(), Arc::new(configuration))
    };
    use ConditionStatus::{False, True, Unknown};
    Known {
        configurations: [
            configuration("c", "r2", True),
            configuration("slow", "", Unknown),
            configuration("bad", "", False),
        ]
        .into(),
        revisions: [
            revision("r1", "s", True),
            revision("r2", "s", True),
            revision("coming", "s", Unknown),
            revision("broken", "s", False),
            revision("alien", "other", True),
        ]
        .into(),
    }
}

fn route(traffic: serde_json::Value) -> Route {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route",
        "metadata": {"name": "s", "namespace": "ns", "labels": {"serving.knative.dev/service": "s"}},
        "spec": {"traffic": traffic},
    }))
    .expect("a Route")
}

fn check(traffic: serde_json::Value, want: Result<&str, &str>) {
    let got = resolve(&route(traffic), &known());
    let got = got.map(|t| {
        let group = |(tag, targets): (&String, &Vec<Target>)| {
            let shares: Vec<String> = targets.iter().map(|t| format!("{}:{}", t.revision, t.percent)).collect();
            format!("[{tag}] {}", shares.join(" "))
        };
        t.groups.iter().map(group).collect::<Vec<_>>().join(" ")
    });
    let got = got.map_err(|b| format!("{} {} {}", b.reason, b.failed, b.message));
    assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
}

#[test]
fn targets_become_groups() {
    check(json!([{"configurationName": "c", "latestRevision": true, "percent": 100}]), Ok("[] r2:100"));
    check(
        json!([{"revisionName": "r1", "percent": 90, "tag": "current"}, {"configurationName": "c", "percent": 10, "tag": "next"}]),
        Ok("[] r1:90 r2:10 [current] r1:100 [next] r2:100"),
    );
    check(
        json!([{"revisionName": "r1", "percent": 100}, {"configurationName": "c", "percent": 0, "tag": "next"}]),
        Ok("[] r1:100 [next] r2:100"),
    );
    check(json!([{"revisionName": "r1", "percent": 40}, {"revisionName": "r1", "percent": 60}]), Ok("[] r1:100"));
}

#[test]
fn bad_targets_say_why() {
    check(
        json!([{"configurationName": "no"}]),
        Err(r#"ConfigurationMissing true Configuration "no" referenced in traffic not found."#),
    );
    check(
        json!([{"revisionName": "no"}]),
        Err(r#"RevisionMissing true Revision "no" referenced in traffic not found."#),
    );
    check(
        json!([{"configurationName": "slow"}]),
        Err(r#"RevisionMissing false Configuration "slow" is waiting for a Revision to become ready."#),
    );
    check(
        json!([{"configurationName": "bad"}]),
        Err(r#"RevisionMissing true Configuration "bad" does not have any ready Revision."#),
    );
    check(json!([{"revisionName": "coming"}]), Err(r#"RevisionMissing false Revision "coming" is not yet ready."#));
    check(
        json!([{"revisionName": "coming"}, {"revisionName": "broken"}]),
        Err(r#"RevisionMissing true Revision "broken" failed to become ready."#),
    );
    check(
        json!([{"revisionName": "alien"}]),
        Err(r#"RevisionNotOwned true Revision "alien" belongs to Service "other", not Service "s"."#),
    );
}

fn spread(rollout: &Rollout) -> String {
    let of = |c: &ConfigurationRollout| {
        c.revisions.iter().map(|r| format!("{}:{}", r.revision_name, r.percent)).collect::<Vec<_>>().join(" ")
    };
    rollout.configurations.iter().map(of).collect::<Vec<_>>().join(" | ")
}

use super::rollout::ConfigurationRollout;

fn goal(revision: &str, percent: i64) -> Rollout {
    let target = Target {
        tag: String::new(),
        revision: revision.into(),
        configuration: "c".into(),
        latest: true,
        percent,
        protocol: Protocol::Http1,
    };
    Rollout::goal(&Traffic { revisions: vec![target.clone()], groups: [(String::new(), vec![target])].into() })
}

#[test]
fn a_rollout_moves_in_steps_and_ends() {
    let second = 1_000_000_000i64;
    let old = goal("r1", 100);
    let (mut state, next) = goal("r2", 100).step(&old, second);
    assert_eq!((spread(&state).as_str(), next), ("r1:99 r2:1", None));
    // Ready two seconds later, ten seconds in all: four steps of about 25 percent, two seconds apart.
    state.observe_ready(3 * second, Duration::from_secs(10));
    let mut now = 3 * second;
    let mut seen = Vec::new();
    while !state.is_done() {
        let (after, next) = goal("r2", 100).step(&state, now);
        state = after;
        seen.push(spread(&state));
        assert_eq!(state.configurations[0].revisions.iter().map(|r| r.percent).sum::<i64>(), 100);
        now = next.unwrap_or(now);
    }
    assert_eq!(seen, ["r1:99 r2:1", "r1:74 r2:26", "r1:49 r2:51", "r1:24 r2:76", "r2:100"]);
    let text = serde_json::to_string(&state).expect("JSON");
    assert_eq!(serde_json::from_str::<Rollout>(&text).expect("read back"), state);
}

#[test]
fn a_rollout_is_changed_on_its_way() {
    let (first, _) = goal("r2", 100).step(&goal("r1", 100), 1);
    let check = |goal: Rollout, want: &str| assert_eq!(spread(&goal.step(&first, 2).0), want);
    check(goal("r3", 100), "r1:99 r3:1");
    check(goal("r2", 50), "r1:49 r2:1");
    check(goal("r1", 100), "r2:1 r1:99");
    check(goal("r2", 1), "r2:1");
}
