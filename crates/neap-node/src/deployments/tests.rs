//! Tables over the plan: pods in, pods out.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::plan::{Decision, Observed, plan};
use super::template_hash;

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
}

fn deployment(replicas: i32, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 3},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy, "progressDeadlineSeconds": 60,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:2"}]}},
        },
    }))
    .expect("a deployment")
}

/// `new+` is a ready pod of the present template, `old-` one of an earlier template that is not ready, `new!` one on
/// its way out, `new#` one that failed. Names are given in order: p0, p1, ….
fn pods(words: &str, deployment: &Deployment) -> Vec<Pod> {
    let hash = deployment.spec.as_ref().map(|s| template_hash(&s.template)).unwrap_or_default();
    let one = |(n, word): (usize, &str)| {
        let (age, mark) = word.split_at(3);
        let phase = if mark == "#" { "Failed" } else { "Running" };
        let mut pod = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "n", "uid": format!("u{n}"),
                "labels": {"app": "web", "pod-template-hash": if age == "new" { hash.as_str() } else { "before" }}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
            "status": {"phase": phase, "podIP": format!("198.19.0.{}", n + 2), "conditions": [
                {"type": "Ready", "status": if mark == "+" { "True" } else { "False" }, "lastTransitionTime": at(0).to_string()}]},
        });
        if mark == "!" {
            pod["metadata"]["deletionTimestamp"] = json!(at(0).to_string());
        }
        serde_json::from_value(pod).expect("a pod")
    };
    words.split_whitespace().enumerate().map(one).collect()
}

fn decide(deployment: &Deployment, pods: &[Pod], now: Timestamp) -> Decision {
    // The second pod is the busy one.
    let in_flight = |address: std::net::SocketAddr| usize::from(address.to_string() == "198.19.0.3:8080");
    plan(&Observed { deployment, pods: pods.iter().collect(), in_flight: Box::new(in_flight), refusal: None, now })
}

fn rolling() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}})
}

#[test]
fn pods_are_made_and_taken_away() {
    // replicas, pods there, how many to make, which to delete
    let rows: &[(i32, &str, usize, &[&str])] = &[
        (2, "", 2, &[]),
        (0, "", 0, &[]),
        (2, "new+ new+", 0, &[]),
        (2, "new+ new!", 1, &[]),
        (1, "new#", 1, &["p0"]),
        // The idle ones go, the busy p1 stays.
        (1, "new+ new+ new+", 0, &["p0", "p2"]),
        // One that is not ready goes before any ready one.
        (2, "new+ new+ new-", 0, &["p2"]),
        // A rolling update makes one more (25 % of 3, rounded up) and takes none away before it is ready.
        (3, "old+ old+ old+", 1, &[]),
        (3, "old+ old+ old+ new-", 0, &[]),
        (3, "old+ old+ old+ new+", 0, &["p0"]),
        // A new one that never gets ready does not drive out old ones that miss their readiness for a moment.
        (2, "old- old+", 1, &[]),
        (3, "old+ old- old- new-", 0, &[]),
        // Once it is, those go first.
        (3, "old+ old- old+ new+", 0, &["p1"]),
        (0, "old+ new+", 0, &["p0", "p1"]),
    ];
    for (replicas, words, make, gone) in rows {
        let deployment = deployment(*replicas, rolling());
        let decision = decide(&deployment, &pods(words, &deployment), at(0));
        assert_eq!(decision.create.len(), *make, "{replicas} wanted, there are {words:?}");
        let mut deleted: Vec<_> = decision.delete.iter().map(|(name, _)| name.as_str()).collect();
        deleted.sort_unstable();
        assert_eq!(deleted, *gone, "{replicas} wanted, there are {words:?}");
        for pod in &decision.create {
            assert!(pod.name_any().starts_with("web-") && pod.name_any().len() <= 63);
            assert_eq!(pod.owner_references()[0].uid, "d");
        }
    }
}

#[test]
fn a_pause_holds_the_roll_out_and_nothing_else() {
    // replicas, pods there, how many to make, which to delete, image of those that are made
    let rows: &[(i32, &str, usize, &[&str], &str)] = &[
        (2, "old+ old+", 0, &[], ""),
        (3, "old+ old+", 1, &[], "i:1"),
        (1, "old+ old-", 0, &["p1"], ""),
        // In the middle of a roll-out the new ones are what is made.
        (3, "old+ new+", 1, &[], "i:2"),
        (1, "", 1, &[], "i:2"),
        (2, "old+ old#", 1, &["p1"], "i:1"),
    ];
    for (replicas, words, make, gone, image) in rows {
        let mut deployment = deployment(*replicas, rolling());
        deployment.spec.as_mut().expect("there").paused = Some(true);
        let mut there = pods(words, &deployment);
        for pod in &mut there {
            pod.spec.as_mut().expect("there").containers[0].image = Some("i:1".into());
            pod.spec.as_mut().expect("there").node_name = Some("box".into());
        }
        let decision = decide(&deployment, &there, at(0));
        let deleted: Vec<_> = decision.delete.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((decision.create.len(), &deleted[..]), (*make, *gone), "{replicas} wanted, there are {words:?}");
        for pod in &decision.create {
            let spec = pod.spec.as_ref().expect("there");
            assert_eq!((spec.containers[0].image.as_deref(), &spec.node_name), (Some(*image), &None), "{words:?}");
            let hash = template_hash(&deployment.spec.as_ref().expect("there").template);
            assert_eq!(pod.labels()["pod-template-hash"] == hash, *image == "i:2", "{words:?}");
        }
    }
}

#[test]
fn many_pods_are_made_by_and_by() {
    let deployment = deployment(1_000_000, rolling());
    assert_eq!(decide(&deployment, &[], at(0)).create.len(), 500);
}

#[test]
fn recreate_takes_all_old_ones_first() {
    let deployment = deployment(2, json!({"type": "Recreate"}));
    let decision = decide(&deployment, &pods("old+ old+", &deployment), at(0));
    assert_eq!((decision.create.len(), decision.delete.len()), (0, 2));
    // They have their grace; the new ones wait for it.
    for (there, make) in [("old! old!", 0), ("old!", 0), ("old#", 2), ("", 2), ("new! new!", 2)] {
        assert_eq!(decide(&deployment, &pods(there, &deployment), at(0)).create.len(), make, "{there}");
    }
}

#[test]
fn a_new_pod_counts_once_it_was_ready_for_long_enough() {
    let mut deployment = deployment(2, rolling());
    deployment.spec.as_mut().expect("a spec").min_ready_seconds = Some(30);
    let mut soon = pods("old+ old+ new+", &deployment);
    for pod in &mut soon[..2] {
        let ready = &mut pod.status.as_mut().expect("a status").conditions.as_mut().expect("conditions")[0];
        ready.last_transition_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(-100)));
    }
    let early = decide(&deployment, &soon, at(10));
    assert_eq!((early.delete.len(), early.again), (0, Some(std::time::Duration::from_secs(20))));
    assert_eq!(decide(&deployment, &soon, at(31)).delete.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_tried_ever_later_and_when_a_quota_changes() {
    use super::index::Index;
    use crate::feed::Change;
    let key = ("n".to_owned(), "web".to_owned());
    let mut index = Index::default();
    index.take(super::Event::Deployment(Change::Reset(vec![deployment(1, rolling())])));
    assert_eq!(index.due(tokio::time::Instant::now()), std::slice::from_ref(&key));
    let waits: Vec<u64> = (0..9).map(|_| index.refused(&key).as_millis() as u64).collect();
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
    let quota: k8s_openapi::api::core::v1::ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "q", "namespace": "n"}})).expect("a quota");
    index.take(super::Event::Quota(Change::Apply(quota)));
    assert_eq!(index.due(tokio::time::Instant::now()), std::slice::from_ref(&key), "there may be room now");
    index.accepted(&key);
    assert_eq!(index.refused(&key).as_millis(), 500);
}

fn reason(decision: &Decision, type_: &str) -> String {
    let conditions = decision.status.conditions.iter().flatten();
    conditions
        .filter(|c| c.type_ == type_)
        .map(|c| format!("{}/{}", c.status, c.reason.as_deref().unwrap_or_default()))
        .collect()
}

#[test]
fn the_status_counts_and_the_deadline_ends_patience() {
    let mut deployment = deployment(2, rolling());
    let some = pods("new+ new-", &deployment);
    let decision = decide(&deployment, &some, at(0));
    let counts = &decision.status;
    assert_eq!((counts.replicas, counts.ready_replicas, counts.unavailable_replicas), (Some(2), Some(1), Some(1)));
    assert_eq!(counts.observed_generation, Some(3));
    assert_eq!(reason(&decision, "Available"), "False/MinimumReplicasUnavailable");
    assert_eq!(reason(&decision, "Progressing"), "True/ReplicaSetUpdated");
    assert_eq!(decision.again, Some(std::time::Duration::from_secs(60)));

    deployment.status = Some(decision.status);
    let late = decide(&deployment, &some, at(61));
    assert_eq!(reason(&late, "Progressing"), "False/ProgressDeadlineExceeded");

    let all = pods("new+ new+", &deployment);
    let done = decide(&deployment, &all, at(10));
    assert_eq!(reason(&done, "Progressing"), "True/NewReplicaSetAvailable");
    deployment.status = Some(done.status.clone());
    assert_eq!(decide(&deployment, &all, at(20)).status, done.status, "a status that stands is a fixed point");

    // Asleep and awake again: nothing is progressing, only available or not.
    deployment.spec.as_mut().expect("spec").replicas = Some(3);
    assert_eq!(reason(&decide(&deployment, &all, at(30)), "Progressing"), "True/NewReplicaSetAvailable");
}

#[test]
fn what_a_quota_forbids_is_news_once() {
    let mut deployment = deployment(1, rolling());
    let first = super::forbidden(&deployment, "web-1", "exceeded quota: q, requested: cpu=1");
    assert_eq!(first, "pods \"web-1\" is forbidden: exceeded quota: q, requested: cpu=1");
    deployment.status = serde_json::from_value(json!({"conditions": [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": first}]}))
    .expect("a status");
    let say = |exceeded: &str| super::forbidden(&deployment, "web-2", exceeded);
    assert_eq!(say("exceeded quota: q, requested: cpu=1"), first);
    assert!(say("exceeded quota: q, requested: cpu=2").starts_with("pods \"web-2\" is forbidden"));
}
