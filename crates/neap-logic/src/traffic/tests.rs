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
fn a5_1_targets_become_groups() {
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
fn a5_5_bad_targets_say_why() {
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

#[test]
fn a_step_takes_from_the_next_older_revision() {
    // E6.3: r2 gave one percent to r3; each step of r3 empties r2 before it touches r1.
    let mut state: Rollout = serde_json::from_value(json!({"configurations": [{
        "configurationName": "c", "percent": 100,
        "revisions": [
            {"revisionName": "r1", "percent": 60}, {"revisionName": "r2", "percent": 39}, {"revisionName": "r3", "percent": 1},
        ],
        "stepParams": {"starttime": 1, "nextStepTime": 5, "stepDuration": 5, "stepSize": 25},
    }]}))
    .expect("a rollout");
    for (now, want) in
        [(4, "r1:60 r2:39 r3:1"), (5, "r1:60 r2:14 r3:26"), (10, "r1:49 r3:51"), (15, "r1:24 r3:76"), (20, "r3:100")]
    {
        state = goal("r3", 100).step(&state, now).0;
        assert_eq!(spread(&state), want, "at {now}");
    }
}

#[test]
fn the_pace_is_measured_in_whole_seconds() {
    // E6.2: (duration, ready after, percent) to (step size, nanoseconds between steps).
    let check = |seconds: u64, ready: i64, percent: i64, want: (i64, i64)| {
        let (mut state, _) = goal("r2", percent).step(&goal("r1", percent), 1);
        state.observe_ready(1 + ready, Duration::from_secs(seconds));
        let pace = &state.configurations[0].step_params;
        assert_eq!((pace.step_size, pace.step_duration), want);
        assert_eq!(pace.next_step_time, 1 + ready + want.1);
    };
    check(10, 2_100_000_000, 100, (42, 3_000_000_000));
    check(10, 20_000_000_000, 100, (99, 1_000_000_000));
    check(1000, 1, 3, (1, 499_500_000_000));
}

#[test]
fn a_rollout_that_does_not_add_up_is_forgotten() {
    let check = |revision: i64, size: i64, good: bool| {
        let mut rollout = goal("r1", 50);
        rollout.configurations[0].revisions[0].percent = revision;
        rollout.configurations[0].step_params.step_size = size;
        assert_eq!(rollout.is_consistent(), good);
    };
    check(50, 0, true);
    check(49, 0, false);
    check(50, 51, false);
    check(50, -1, false);
}
