//! Each row of E4 and E5 as cases, and what must hold for any history of load.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use neap_api::autoscaling::PodAutoscaler;
use serde_json::json;

use super::*;
use crate::config::Autoscaler;

const DEADLINE: Duration = Duration::from_secs(600);

/// The time, in seconds of the story.
fn at(second: f64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs_f64(second)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A PodAutoscaler with these annotations, `key=value` without the group.
fn pa(concurrency: i64, annotations: &str) -> PodAutoscaler {
    let mut pa = PodAutoscaler::default();
    pa.spec.container_concurrency = concurrency;
    pa.spec.reachability = "Reachable".to_owned();
    let pairs = annotations.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    let annotations: BTreeMap<_, _> =
        pairs.map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), value.to_owned())).collect();
    pa.metadata.annotations = Some(annotations);
    pa
}

fn scaling(concurrency: i64, annotations: &str) -> Scaling {
    let (scaling, errors) = Scaling::resolve(&pa(concurrency, annotations), &Autoscaler::default(), DEADLINE);
    assert_eq!(errors, []);
    scaling
}

#[test]
fn e4_1_targets() {
    let check = |concurrency, annotations: &str, total, target| {
        let s = scaling(concurrency, annotations);
        assert_eq!((s.total, s.target), (total, target), "concurrency {concurrency}, {annotations}");
    };
    check(0, "", 100.0, 70.0);
    check(10, "", 10.0, 7.0);
    check(0, "target=50", 50.0, 35.0);
    check(10, "target=50", 10.0, 7.0);
    check(10, "target=5", 5.0, 3.5);
    check(10, "target=5 target-utilization-percentage=100", 5.0, 5.0);
    check(0, "metric=rps", 200.0, 140.0);
    check(10, "metric=rps target=50", 50.0, 35.0);
    check(0, "target=0.01", 0.01, 0.01);
    // What admission never saw.
    let (s, errors) =
        Scaling::resolve(&pa(0, "target=NaN target-burst-capacity=inf"), &Autoscaler::default(), DEADLINE);
    assert_eq!((s.target, s.target_burst_capacity, errors.len()), (70.0, 211.0, 2));
}

#[test]
fn e4_2_windows() {
    let check = |annotations: &str, stable, panic| {
        let s = scaling(0, annotations);
        assert_eq!((s.stable_window, s.panic_window), (secs(stable), secs(panic)), "{annotations}");
    };
    check("", 60, 6);
    check("window=1h", 3600, 360);
    check("window=6s", 6, 1);
    check("window=15s", 15, 2);
    check("window=6s panic-window-percentage=1", 6, 1);
    check("window=10s panicWindowPercentage=100", 10, 10);
}

#[test]
fn annotations_over_settings() {
    let s = scaling(
        0,
        "min-scale=2 maxScale=9 initial-scale=3 activation-scale=4 scale-down-delay=1m targetBurstCapacity=-1 \
         panic-threshold-percentage=150 scale-to-zero-pod-retention-period=90s metric-aggregation-algorithm=weighted-exponential",
    );
    assert_eq!((s.min_scale, s.max_scale, s.initial_scale, s.activation_scale), (2, Some(9), 3, 4));
    assert_eq!((s.scale_down_delay, s.retention), (secs(60), secs(90)));
    assert_eq!((s.target_burst_capacity, s.panic_threshold), (-1.0, 1.5));
    assert_eq!(s.aggregation, Aggregation::WeightedExponential);
    assert_eq!(s.activation_timeout, secs(630));

    // Zero is an initial scale only where the platform allows it.
    assert_eq!(scaling(0, "initial-scale=0").initial_scale, 1);
    let zero = Autoscaler { allow_zero_initial_scale: true, ..Autoscaler::default() };
    assert_eq!(Scaling::resolve(&pa(0, "initial-scale=0"), &zero, DEADLINE).0.initial_scale, 0);

    let (s, errors) = Scaling::resolve(&pa(0, "min-scale=many window=soon"), &Autoscaler::default(), DEADLINE);
    assert_eq!((s.min_scale, s.stable_window), (0, secs(60)));
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "annotation autoscaling.knative.dev/window is \"soon\", which is not a duration such as 1m30s; the platform's setting is used",
            "annotation autoscaling.knative.dev/min-scale is \"many\", which is not a number in range; the platform's setting is used",
        ]
    );
}

#[test]
fn classes() {
    let config = Autoscaler::default();
    assert_eq!(class_of(&pa(0, ""), &config), Class::Kpa);
    assert_eq!(class_of(&pa(0, "class=hpa.autoscaling.knative.dev"), &config), Class::Hpa);
    assert_eq!(class_of(&pa(0, "class=mine"), &config), Class::Other("mine".to_owned()));
}

#[test]
fn e3_7_averages() {
    // (records as (second, value), asked at, stable and panic average over 10 s and 2 s)
    let check = |records: &[(f64, f64)], now: f64, wanted: Option<(f64, f64)>| {
        let mut series = Series::new(secs(10), secs(2));
        for (second, value) in records {
            series.record(at(*second), *value);
        }
        let got = series.load(at(now), Aggregation::Linear).map(|load| (load.stable, load.panic));
        assert_eq!(got, wanted, "{records:?} at {now}");
    };
    check(&[], 0.0, None);
    check(&[(0.2, 4.0)], 0.9, Some((4.0, 4.0)));
    check(&[(0.2, 4.0), (0.7, 2.0)], 0.9, Some((6.0, 6.0)));
    check(&[(0.0, 4.0), (1.0, 2.0), (2.0, 0.0)], 2.0, Some((2.0, 1.0)));
    // Silence at the end does not count as zero, silence inside does.
    check(&[(0.0, 4.0)], 1.0, Some((4.0, 4.0)));
    check(&[(0.0, 4.0), (3.0, 4.0)], 3.0, Some((2.0, 4.0)));
    check(&[(0.0, 4.0)], 3.0, Some((4.0, 0.0)));
    check(&[(0.0, 4.0)], 10.0, None);
    // Longer silence: the windows begin anew.
    check(&[(0.0, 4.0), (11.0, 6.0)], 11.0, Some((6.0, 6.0)));
    // The oldest second has left the window.
    check(&[(0.0, 100.0), (1.0, 1.0), (10.0, 1.0)], 10.0, Some((0.2, 1.0)));
    // A late record goes where it belongs; one too late, or one from ahead, does no harm.
    check(&[(5.0, 1.0), (4.0, 3.0)], 5.0, Some((2.0, 2.0)));
    check(&[(20.0, 1.0), (5.0, 50.0)], 20.0, Some((1.0, 1.0)));
    check(&[(5.0, 3.0)], 4.0, Some((3.0, 3.0)));
    // Thirds do not add up to more than one.
    check(&[(0.0, 0.1), (1.0, 0.2), (2.0, 0.0)], 2.0, Some((0.1, 0.1)));
}

#[test]
fn e3_7_weights() {
    let mut series = Series::new(secs(10), secs(2));
    let load = |series: &Series, now| series.load(at(now), Aggregation::WeightedExponential).unwrap();
    series.record(at(0.0), 10.0);
    assert_eq!(load(&series, 0.0), Load { stable: 10.0, panic: 10.0 });
    series.record(at(1.0), 0.0);
    // Ten seconds: the coefficient is 1 − 0.0001^(1/10) = 0.601893; two: 0.99.
    let l = load(&series, 1.0);
    assert!((l.stable - 10.0 * 0.398107 / 1.398107).abs() < 1e-4, "{l:?}");
    assert!((l.panic - 10.0 * 0.01 / 1.01).abs() < 1e-4, "{l:?}");
}

/// A decider in its stable mode, with one load for both windows, once.
fn once(s: &Scaling, load: f64, ready: u32) -> Decision {
    decide(s, Load { stable: load, panic: load }, ready, State::default(), at(0.0))
}

#[test]
fn e4_3_and_e4_4_counts_and_rates() {
    let mut s = scaling(10, "target-utilization-percentage=100 panic-threshold-percentage=1000");
    let check = |s: &Scaling, load, ready, wanted| {
        assert_eq!(once(s, load, ready).desired, wanted, "load {load}, {ready} ready");
    };
    check(&s, 0.0, 0, 0);
    check(&s, 0.0, 1, 0);
    check(&s, 0.1, 0, 1);
    check(&s, 10.0, 1, 1);
    check(&s, 10.01, 1, 2);
    check(&s, 95.0, 9, 10);
    // Down by at most half a step, rounded down; a Revision without a Route falls at once.
    check(&s, 0.0, 9, 4);
    check(&s, 10.0, 9, 4);
    s.reachability = Reachability::Unreachable;
    check(&s, 10.0, 9, 1);
    s.reachability = Reachability::Reachable;
    // Up by at most the rate, rounded up.
    s.max_scale_up_rate = 1.1;
    check(&s, 90.0, 2, 3);
    check(&s, 90.0, 0, 2);
}

#[test]
fn e4_5_activation_scale() {
    let s = scaling(10, "activation-scale=3");
    assert_eq!(once(&s, 0.0, 0).desired, 0);
    assert_eq!(once(&s, 0.1, 0).desired, 3);
    assert_eq!(once(&s, 35.0, 3).desired, 5);
    let reasons = once(&s, 0.1, 0).reasons;
    assert_eq!(reasons.iter().filter(|r| **r == Reason::ActivationScale(3)).count(), 1);
}

#[test]
fn e4_6_panic() {
    let s = scaling(1, "target-utilization-percentage=100 window=10s");
    let mut state = State::default();
    // (second, stable, panic, ready) → (desired, in panic)
    let mut check = |second: f64, stable: f64, panic: f64, ready, wanted| {
        let decision = decide(&s, Load { stable, panic }, ready, state.clone(), at(second));
        assert_eq!((decision.desired, decision.in_panic()), wanted, "at {second}");
        state = decision.next;
    };
    check(0.0, 1.0, 1.0, 1, (1, false));
    check(2.0, 1.0, 1.9, 1, (2, true));
    check(4.0, 2.0, 5.0, 2, (5, true));
    // Not down, for a whole stable window since it was last over the threshold.
    check(6.0, 2.0, 0.0, 5, (5, true));
    check(14.0, 1.0, 0.0, 5, (5, true));
    check(14.5, 3.0, 0.0, 5, (3, false));
    // The stable average counts in panic too, where it is the greater one.
    check(16.0, 9.0, 8.0, 3, (9, true));

    // A decider that begins with several instances begins in panic.
    assert_eq!(State::new(1, at(0.0)).mode, Mode::Stable);
    let begun = decide(&s, Load::default(), 4, State::new(4, at(0.0)), at(2.0));
    assert_eq!((begun.desired, begun.in_panic()), (4, true));
    assert!(begun.reasons.contains(&Reason::HeldByPanic { from: 2, at: 4 }), "{:?}", begun.reasons);
}

#[test]
fn e4_7_scale_down_delay() {
    let story = |annotations: &str, reachability| {
        let mut s = scaling(1, annotations);
        s.target = 1.0;
        s.reachability = reachability;
        s.panic_threshold = 100.0;
        let mut state = State::default();
        let mut got = Vec::new();
        for (tick, load) in [4.0, 2.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0].into_iter().enumerate() {
            let load = Load { stable: load, panic: load };
            let decision = decide(&s, load, 1, state, at(2.0 * tick as f64));
            got.push(decision.desired);
            state = decision.next;
        }
        got
    };
    assert_eq!(story("", Reachability::Reachable), [4, 2, 2, 3, 0, 0, 0, 0]);
    assert_eq!(story("scale-down-delay=6s", Reachability::Reachable), [4, 4, 4, 3, 3, 3, 0, 0]);
    assert_eq!(story("scale-down-delay=6s", Reachability::Unreachable), [4, 2, 2, 3, 0, 0, 0, 0]);
}

#[test]
fn e4_8_and_e4_9_burst() {
    // (annotations, ready, short-window load) → (excess burst capacity, activators)
    let check = |annotations: &str, ready, load, wanted| {
        let decision = once(&scaling(100, annotations), load, ready);
        assert_eq!(
            (decision.excess_burst_capacity, decision.num_activators),
            wanted,
            "{annotations}: {ready} ready, load {load}"
        );
    };
    check("target-burst-capacity=0", 1, 50.0, (0, 2));
    check("target-burst-capacity=-1", 1, 50.0, (-1, 2));
    check("target-burst-capacity=-1", 5, 50.0, (-1, 5));
    check("", 0, 0.0, (-211, 3));
    check("", 2, 0.0, (-11, 5));
    check("", 3, 80.5, (8, 6));
    check("", 3, 89.5, (-1, 6));
    check("", 10, 0.0, (789, 13));
}

#[test]
fn e4_10_bounds() {
    let check = |annotations: &str, reachability, initialized, desired, wanted| {
        let mut s = scaling(0, annotations);
        s.reachability = reachability;
        assert_eq!(
            s.bounds(initialized).apply(desired),
            wanted,
            "{annotations} {reachability:?} {initialized} {desired}"
        );
    };
    use Reachability::{Reachable, Unknown, Unreachable};
    check("", Reachable, true, 0, 0);
    check("min-scale=2", Reachable, true, 0, 2);
    check("min-scale=2", Unknown, true, 0, 2);
    check("min-scale=2", Unreachable, true, 0, 0);
    check("max-scale=3", Reachable, true, 9, 3);
    check("max-scale=0", Reachable, true, 9, 9);
    check("initial-scale=4", Reachable, false, 0, 4);
    check("initial-scale=4", Unreachable, false, 0, 4);
    check("initial-scale=4", Reachable, true, 0, 0);
    check("initial-scale=4 min-scale=5", Reachable, false, 0, 5);
    check("initial-scale=1", Reachable, false, 0, 0);
    check("min-scale=4 max-scale=3", Reachable, true, 9, 4);
}

#[test]
fn e4_13_active_threshold() {
    let check = |annotations: &str, initialized, wanted| {
        assert_eq!(active_threshold(&scaling(0, annotations), initialized), wanted, "{annotations} {initialized}");
    };
    check("", false, 1);
    check("", true, 1);
    check("min-scale=3", true, 3);
    check("initial-scale=5", false, 5);
    check("initial-scale=5", true, 1);
    check("initial-scale=2 min-scale=3", false, 3);
    let zero = Scaling { initial_scale: 0, ..scaling(0, "") };
    assert_eq!((active_threshold(&zero, false), active_threshold(&zero, true)), (0, 1));
}

#[test]
fn e4_11_to_zero() {
    use Activity::{Activating, Active, Inactive};
    let s = scaling(0, "");
    let retained = scaling(0, "scale-to-zero-pod-retention-period=100s");
    let always = scaling(0, "target-burst-capacity=-1");
    let forbidden = Scaling { scale_to_zero: false, ..s };
    let scale = |to, again, why| Step::Scale { to, again, why };
    let retire = |again, why| Step::Retire { again, why };
    let left = |seconds| Some(secs(seconds));

    let base = Situation {
        desired: Some(0),
        activity: Inactive(at(0.0)),
        measured_since: None,
        initialized: true,
        in_path: InPath::Seen,
        proxied_for: Duration::ZERO,
        now: at(0.0),
    };
    let check = |s: &Scaling, situation: Situation, wanted: Step| {
        assert_eq!(step(s, &situation), wanted, "{situation:?}");
    };
    let now = |second, activity| Situation { now: at(second), activity, ..base };

    // Not about zero at all.
    check(&s, Situation { desired: Some(3), ..base }, scale(3, None, None));
    check(&s, Situation { desired: None, ..base }, Step::Keep { again: None, why: Why::NotMeasured });
    check(&forbidden, base, scale(1, None, Some(Why::ZeroForbidden)));

    // Activating: 600 s of deadline and 30 s on top.
    check(&s, now(629.0, Activating(at(0.0))), Step::Keep { again: left(1), why: Why::Activating(secs(1)) });
    check(&s, now(630.0, Activating(at(0.0))), scale(0, None, Some(Why::ActivationTimedOut)));
    let unmeasured = Situation { desired: None, initialized: false, ..now(0.0, Activating(at(0.0))) };
    check(&s, unmeasured, Step::Keep { again: left(630), why: Why::Activating(secs(630)) });
    check(&scaling(0, "initial-scale=2"), unmeasured, scale(2, None, None));

    // Active: for a stable window first; then everybody is told before anything stops.
    check(&s, now(59.0, Active(at(0.0))), scale(1, left(1), Some(Why::ActiveTooShortly(secs(1)))));
    check(&s, now(60.0, Active(at(0.0))), retire(None, Why::Idle));
    // Nobody knows what was before the history began.
    let afresh = |second| Situation { measured_since: Some(at(100.0)), ..now(second, Active(at(0.0))) };
    check(&s, afresh(101.0), scale(1, left(59), Some(Why::ActiveTooShortly(secs(59)))));
    check(&s, afresh(160.0), retire(None, Why::Idle));

    // Inactive: the path, then the grace period unless the activator has been in it all along.
    let proxied = |second, proxied| Situation { proxied_for: secs(proxied), ..now(second, Inactive(at(0.0))) };
    check(&s, Situation { in_path: InPath::NotYet, ..proxied(99.0, 99) }, retire(left(1), Why::PathNotMoved));
    check(&always, Situation { in_path: InPath::NotYet, ..proxied(0.0, 30) }, scale(0, None, None));
    check(&s, proxied(0.0, 0), retire(left(30), Why::Grace(secs(30))));
    check(&s, proxied(2.0, 10), retire(left(20), Why::Grace(secs(20))));
    check(&s, proxied(0.0, 30), scale(0, None, None));
    check(&s, proxied(30.0, 0), scale(0, None, None));
    check(&s, Situation { in_path: InPath::Always, ..proxied(0.0, 0) }, scale(0, None, None));

    // Retention counts from the moment it became inactive, whatever the path.
    check(&retained, proxied(0.0, 99), retire(left(100), Why::Grace(secs(100))));
    check(&retained, Situation { in_path: InPath::Always, ..proxied(40.0, 0) }, retire(left(60), Why::Grace(secs(60))));
    check(&retained, proxied(100.0, 0), scale(0, None, None));
}

#[test]
fn steps_say_what_they_want() {
    let keep = Step::Keep { again: None, why: Why::NotMeasured };
    let retire = Step::Retire { again: Some(secs(5)), why: Why::Grace(secs(5)) };
    let scale = Step::Scale { to: 3, again: None, why: None };
    assert_eq!([keep.want(), retire.want(), scale.want()], [-1, 0, 3]);
    assert_eq!((retire.again(), scale.why()), (Some(secs(5)), None));
    assert_eq!(retire.why().unwrap().to_string(), "idle; the last instance stays for 5s more");
}

#[test]
fn reasons_read_well() {
    let s = scaling(10, "scale-down-delay=10s");
    let first = once(&s, 20.0, 1);
    assert_eq!(
        first.reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "load 20.00 (short window 20.00) at a target of 7.00 per instance takes 3 (3); 1 ready",
            "panic begins: the short window takes 3.00 times the ready instances, the threshold is 2.00",
        ]
    );
}

#[test]
fn e5_1_hpa() {
    let check = |annotations: &str, wanted: serde_json::Value| {
        let mut pa = pa(0, annotations);
        pa.spec.scale_target_ref.kind = "Deployment".to_owned();
        pa.spec.scale_target_ref.name = "d".to_owned();
        let (s, _) = Scaling::resolve(&pa, &Autoscaler::default(), DEADLINE);
        let mut spec = serde_json::to_value(hpa_spec(&pa, &s)).unwrap();
        assert_eq!(
            spec.as_object_mut().unwrap().remove("scaleTargetRef"),
            Some(json!({"kind": "Deployment", "name": "d"}))
        );
        assert_eq!(spec, wanted, "{annotations}");
    };
    check("", json!({"maxReplicas": i32::MAX}));
    check(
        "target=79.5 min-scale=2 max-scale=5",
        json!({"minReplicas": 2, "maxReplicas": 5, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}),
    );
    check(
        "metric=memory target=200",
        json!({"maxReplicas": i32::MAX, "metrics": [
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "200Mi"}}}]}),
    );
    check(
        "metric=queue target=7 window=90s",
        json!({"maxReplicas": i32::MAX,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "7"}}}],
            "behavior": {"scaleUp": {"stabilizationWindowSeconds": 90}, "scaleDown": {"stabilizationWindowSeconds": 90}}}),
    );
}

/// Whatever the load does: bounds are kept, panic never lets the count fall, more load never wants less.
#[test]
fn what_always_holds() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut s = scaling(i64::from(rng.u8(..5)), "window=20s");
        s.min_scale = rng.u32(..4);
        s.max_scale = rng.bool().then(|| s.min_scale + rng.u32(1..20));
        s.initial_scale = rng.u32(1..3);
        s.activation_scale = rng.u32(1..4);
        s.scale_down_delay = secs(rng.u64(..20));
        let (mut ready, mut state) = (rng.u32(..5), State::default());
        let mut panicked_at: Option<u32> = None;
        for tick in 0..100_u32 {
            let now = at(2.0 * f64::from(tick));
            let load = Load { stable: rng.f64() * 50.0 * rng.f64(), panic: rng.f64() * 200.0 * rng.f64() };
            let decision = decide(&s, load, ready, state.clone(), now);

            let more = Load { stable: load.stable * 1.5, panic: load.panic * 1.5 };
            let with_more = decide(&s, more, ready, state.clone(), now).desired;
            assert!(with_more >= decision.desired, "seed {seed}, tick {tick}: {decision:?}, with more {with_more}");

            // A count held back from before the panic may still run out, hence `most` and not `desired`.
            panicked_at = match (decision.next.mode, panicked_at) {
                (Mode::Panic { most, .. }, before) => {
                    assert!(before.is_none_or(|before| most >= before), "seed {seed}: {decision:?} after {before:?}");
                    assert!(decision.desired >= most, "seed {seed}: {decision:?}");
                    Some(most)
                }
                (Mode::Stable, _) => None,
            };

            let situation = Situation {
                desired: Some(decision.desired),
                activity: Activity::Active(at(-1000.0)),
                measured_since: None,
                initialized: true,
                in_path: InPath::Always,
                proxied_for: Duration::ZERO,
                now,
            };
            let want = u32::try_from(step(&s, &situation).want()).unwrap();
            assert!(
                want >= s.min_scale && s.max_scale.is_none_or(|max| want <= max),
                "seed {seed}: {want} outside {s:?}"
            );
            // The greater bound never gives the smaller count.
            for count in 0..30 {
                assert!(s.bounds(true).apply(count) <= s.bounds(true).apply(count + 1));
                assert!(s.bounds(true).apply(count) <= s.bounds(false).apply(count));
            }
            ready = want.saturating_sub(rng.u32(..2));
            state = decision.next;
        }
    }
}
