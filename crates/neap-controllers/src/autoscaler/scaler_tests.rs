use neap_logic::scale::Reason;
use serde_json::json;

use super::*;

fn pa(annotations: serde_json::Value) -> Arc<PodAutoscaler> {
    let pa = json!({"metadata": {"name": "r", "annotations": annotations}, "spec": {"containerConcurrency": 1, "protocolType": "http1"}});
    Arc::new(serde_json::from_value(pa).unwrap())
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn stat(concurrency: f64, requests: f64) -> Stat {
    Stat { concurrency, requests }
}

#[test]
fn parked_it_neither_measures_nor_decides() {
    let (mut scaler, errors) = Scaler::new(&pa(json!({})), &Arc::default());
    assert!(errors.is_empty() && !scaler.is_live());
    scaler.record(at(0), stat(5.0, 5.0));
    assert!(scaler.decide(0, at(0), 9.0).is_none());

    // Live, but nothing measured and nothing known.
    scaler.unpark(0, at(0));
    assert!(scaler.decide(0, at(0), 0.0).is_none());
    let (load, decision) = scaler.decide(0, at(0), 1.0).unwrap();
    // One request where an instance takes one and 0.7 is aimed at.
    assert_eq!((load.stable, decision.desired), (1.0, 2));
    assert_eq!(scaler.decided.map(|decided| decided.desired), Some(2));
    scaler.park();
    scaler.unpark(0, at(100));
    assert!(scaler.decide(0, at(100), 0.0).is_none(), "what was measured before is forgotten");
}

#[test]
fn it_keeps_its_mode_between_decisions() {
    let (mut scaler, _) = Scaler::new(&pa(json!({})), &Arc::default());
    scaler.unpark(3, at(0));
    scaler.record(at(0), stat(0.0, 0.0));
    let (_, first) = scaler.decide(3, at(0), 0.0).unwrap();
    assert!(first.in_panic() && first.desired == 3, "several ready at the start: the count is kept");
    scaler.record(at(62), stat(0.0, 0.0));
    let (_, last) = scaler.decide(3, at(62), 0.0).unwrap();
    assert!(last.reasons.contains(&Reason::PanicEnds) && last.desired == 1, "{last:?}");
}

#[test]
fn it_measures_what_it_is_told_to() {
    let settings = Arc::default();
    let (mut scaler, _) = Scaler::new(&pa(json!({})), &settings);
    scaler.unpark(1, at(0));
    scaler.record(at(0), stat(2.0, 50.0));
    assert_eq!(scaler.decide(1, at(0), 0.0).unwrap().0.stable, 2.0);

    // The same words in another object change nothing.
    assert!(scaler.configure(&pa(json!({})), &settings, at(1)).is_empty());
    assert_eq!(scaler.decide(1, at(0), 0.0).unwrap().0.stable, 2.0);

    assert!(scaler.configure(&pa(json!({"autoscaling.knative.dev/metric": "rps"})), &settings, at(1)).is_empty());
    assert_eq!(scaler.measured_since(), Some(at(1)));
    assert!(scaler.decide(1, at(0), 0.0).is_none(), "requests in flight say nothing about requests per second");
    scaler.record(at(1), stat(2.0, 50.0));
    assert_eq!(scaler.decide(1, at(1), 0.0).unwrap().0.stable, 50.0);

    let errors = scaler.configure(&pa(json!({"autoscaling.knative.dev/window": "never"})), &settings, at(2));
    assert_eq!(errors.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn lanes_take_one_call_at_a_time_and_pause_after_failures() {
    let start = Instant::now();
    let after = |millis| start + Duration::from_millis(millis);
    let mut lane = Lane::default();
    assert!(lane.is_open(start));
    lane.begin();
    assert!(!lane.is_open(start));
    lane.end(true, start);
    assert!(!lane.is_open(start) && lane.opens_at() == Some(after(200)));
    assert!(lane.is_open(after(200)));
    lane.begin();
    lane.end(true, after(200));
    assert_eq!(lane.opens_at(), Some(after(600)));
    for _ in 0..40 {
        lane.end(true, start);
    }
    assert_eq!(lane.opens_at(), Some(start + LONGEST_PAUSE));
    lane.end(false, start);
    assert!(lane.is_open(start));
    lane.rest();

    // Calls that all go through and yet never suffice are slowed down too.
    for _ in 0..CALLS_WITHOUT_PAUSE {
        assert!(lane.is_open(start));
        lane.begin();
        lane.end(false, start);
    }
    assert!(lane.is_open(start));
    lane.begin();
    lane.end(false, start);
    assert_eq!(lane.opens_at(), Some(after(200)));
}
