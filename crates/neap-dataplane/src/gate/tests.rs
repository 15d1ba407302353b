//! A gate under a paused clock.

use tokio::sync::mpsc;
use tokio::time::{Duration, advance};

use super::*;

fn addr(n: u16) -> SocketAddr {
    ([198, 19, 0, 1], n).into()
}

fn gate(container_concurrency: u32, depth: usize) -> (Arc<Gate>, mpsc::Receiver<RevisionKey>) {
    let (wakes, woken) = Wakes::new();
    let settings =
        Settings { limits: Limits::default(), protocol: Protocol::Http1, container_concurrency, depth, service: None };
    let name = GateName::Revision(RevisionKey::new("ns", "rev"));
    (Arc::new(Gate::new(name, settings, wakes, Instant::now())), woken)
}

fn enter(gate: &Gate) -> Entry {
    gate.enter(Instant::now(), Comes::First, None)
}

fn entered(gate: &Gate) -> Leave {
    match enter(gate) {
        Entry::Enter(leave) => leave,
        Entry::Wait(_) => panic!("has to wait"),
        Entry::Full { .. } => panic!("is full"),
        Entry::Gone(_) => panic!("is out of service"),
    }
}

fn waits(gate: &Gate) -> Waiting {
    match enter(gate) {
        Entry::Wait(waiting) => waiting,
        Entry::Enter(leave) => panic!("goes to {}", leave.instance),
        Entry::Full { .. } => panic!("is full"),
        Entry::Gone(_) => panic!("is out of service"),
    }
}

fn end(gate: &Gate, leave: Leave) {
    gate.end(Some(leave), Instant::now(), Instant::now(), Some(http::StatusCode::OK));
}

fn set(gate: &Gate, instances: &[u16]) {
    gate.set_instances(instances.iter().map(|n| addr(*n)).collect(), Instant::now());
}

#[tokio::test(start_paused = true)]
async fn an_empty_gate_asks_for_an_instance_once_a_second() {
    let (gate, mut woken) = gate(0, 10);
    let first = waits(&gate);
    let _second = waits(&gate);
    assert!(first.empty);
    assert_eq!(woken.try_recv().expect("asked at once"), RevisionKey::new("ns", "rev"));
    assert!(woken.try_recv().is_err(), "but not for each request");
    advance(Duration::from_secs(1)).await;
    let _third = waits(&gate);
    assert!(woken.try_recv().is_ok());
    set(&gate, &[1]);
    let leave = entered(&gate);
    end(&gate, leave);
    assert!(woken.try_recv().is_err());
    set(&gate, &[]);
    let _fourth = waits(&gate);
    assert!(woken.try_recv().is_ok(), "asleep again: asked at once");
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_go_when_an_instance_comes_in_order() {
    let (gate, _woken) = gate(1, 10);
    let (mut a, mut b, mut c) = (waits(&gate), waits(&gate), waits(&gate));
    set(&gate, &[1, 2]);
    let (first, second) = (a.leave.try_recv().expect("goes"), b.leave.try_recv().expect("goes"));
    assert_ne!(first.instance, second.instance);
    assert!(c.leave.try_recv().is_err(), "one request per instance");
    end(&gate, second);
    assert_eq!(c.leave.try_recv().expect("goes").instance, addr(2));
    end(&gate, first);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let (gate, _woken) = gate(1, 2);
    set(&gate, &[1]);
    let inside = entered(&gate);
    let (a, mut b) = (waits(&gate), waits(&gate));
    assert!(matches!(enter(&gate), Entry::Full { depth: 2 }));
    gate.cancel(a);
    let mut d = waits(&gate);
    end(&gate, inside);
    end(&gate, b.leave.try_recv().expect("the oldest that is still there"));
    assert!(d.leave.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_place_reaches_the_next_when_its_owner_has_gone() {
    let (gate, _woken) = gate(1, 10);
    let (a, b, mut c) = (waits(&gate), waits(&gate), waits(&gate));
    // Gone without a word before it was woken, as when the task is dropped between two polls …
    drop(a.leave);
    set(&gate, &[1]);
    // … and gone in the moment after.
    gate.cancel(b);
    assert_eq!(c.leave.try_recv().expect("goes").instance, addr(1));
}

#[tokio::test(start_paused = true)]
async fn who_refuses_is_left_alone_for_a_while() {
    let (gate, _woken) = gate(1, 10);
    set(&gate, &[1, 2]);
    let refuse = |gate: &Arc<Gate>| {
        let leave = entered(gate);
        assert_eq!(leave.instance, addr(1), "filled in order");
        gate.refused(leave, Instant::now(), None);
    };
    refuse(&gate);
    let other = entered(&gate);
    assert_eq!(other.instance, addr(2));
    let waiting = waits(&gate);
    assert_eq!(waiting.retry.expect("some time") - Instant::now(), SUSPEND_FIRST);
    assert!(!waiting.empty);
    gate.cancel(waiting);
    advance(SUSPEND_FIRST).await;
    refuse(&gate);
    let waiting = waits(&gate);
    assert_eq!(waiting.retry.expect("some time") - Instant::now(), SUSPEND_FIRST * 2, "longer each time");
    gate.cancel(waiting);
    // An instance that was gone and has come back is tried at once.
    set(&gate, &[2]);
    set(&gate, &[1, 2]);
    refuse(&gate);
    advance(SUSPEND_FORGET + SUSPEND_FIRST).await;
    refuse(&gate);
    assert_eq!(waits(&gate).retry.expect("some time") - Instant::now(), SUSPEND_FIRST, "old refusals are forgotten");
    end(&gate, other);
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_drained_when_it_is_out_and_idle() {
    let (gate, _woken) = gate(0, 10);
    set(&gate, &[1]);
    let leave = entered(&gate);
    let is = |other: &SocketAddr| *other == addr(1);
    let drained = gate.drained(&is);
    tokio::pin!(drained);
    assert!(futures::poll!(&mut drained).is_pending(), "it serves");
    set(&gate, &[2]);
    assert!(futures::poll!(&mut drained).is_pending(), "it has a request");
    assert_eq!(entered(&gate).instance, addr(2), "no new ones");
    end(&gate, leave);
    assert!(futures::poll!(&mut drained).is_ready());
    assert!(!gate.is_busy(&|other| *other == addr(7)), "one that was never here");
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_demand() {
    let (gate, _woken) = gate(0, 10);
    let waiting = waits(&gate);
    advance(Duration::from_secs(1)).await;
    let stat = gate.collect(Instant::now()).expect("a Revision");
    assert_eq!((stat.average_concurrency, stat.request_count), (1.0, 1));
    assert_eq!((stat.concurrency, stat.waiting, stat.instances), (1, 1, 0));
    gate.cancel(waiting);
    gate.end(None, Instant::now(), Instant::now(), None);
    advance(Duration::from_secs(1)).await;
    let stat = gate.collect(Instant::now()).expect("a Revision");
    assert_eq!((stat.average_concurrency, stat.request_count, stat.waiting), (0.0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_left_alone_for_as_long_as_that_took() {
    let (gate, _woken) = gate(1, 10);
    set(&gate, &[1]);
    let silence = Duration::from_secs(5);
    for pause in [5, 10, 10] {
        gate.refused(entered(&gate), Instant::now(), Some(silence));
        let waiting = waits(&gate);
        assert_eq!((waiting.retry.expect("some time") - Instant::now()).as_secs(), pause);
        gate.cancel(waiting);
        advance(Duration::from_secs(pause)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_woken_though_whoever_was_refused_has_gone() {
    let (gate, _woken) = gate(1, 10);
    set(&gate, &[1]);
    let first = entered(&gate);
    let mut second = waits(&gate);
    gate.refused(first, Instant::now(), None);
    // Back at once, before those that came later; and gone before its time.
    let Entry::Wait(mut again) = gate.enter(Instant::now(), Comes::Again, None) else { panic!("has to wait") };
    assert!(again.retry.is_some() && again.ticket < second.ticket);
    gate.try_again(&mut again, Instant::now());
    gate.cancel(again);
    gate.end(None, Instant::now(), Instant::now(), None);
    gate.wakes.suspended.sweep(Instant::now());
    assert!(second.leave.try_recv().is_err(), "not yet");
    advance(SUSPEND_FIRST).await;
    gate.wakes.suspended.sweep(Instant::now());
    end(&gate, second.leave.try_recv().expect("goes"));
    assert!(gate.wakes.suspended.lock().is_empty(), "nobody is left out");
    gate.refused(entered(&gate), Instant::now(), None);
    assert_eq!(gate.wakes.suspended.lock().len(), 1, "and again");
}

#[tokio::test(start_paused = true)]
async fn who_waits_at_a_retired_gate_is_sent_on() {
    let (old, _woken) = gate(1, 10);
    let (new, _woken) = gate(2, 10);
    let mut waiting = waits(&old);
    old.retire(Some(new.clone()), Instant::now());
    assert!(matches!(waiting.leave.try_recv(), Err(oneshot::error::TryRecvError::Closed)), "let go of");
    let Entry::Gone(Some(next)) = enter(&old) else { panic!("is still in service") };
    assert!(Arc::ptr_eq(&next, &new));
    new.retire(None, Instant::now());
    assert!(matches!(enter(&new), Entry::Gone(None)));
}
