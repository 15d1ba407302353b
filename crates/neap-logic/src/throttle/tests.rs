//! Scripts of requests against a throttle, and its invariants under random ones.

use super::*;

type Small = Throttle<&'static str, u32>;

fn throttle(concurrency: u32, depth: usize, instances: &[&'static str]) -> Small {
    let mut throttle = Small::new(concurrency, depth);
    let woken = set(&mut throttle, concurrency, instances);
    assert!(woken.is_empty());
    throttle
}

fn set(throttle: &mut Small, concurrency: u32, instances: &[&'static str]) -> Vec<Woken<&'static str, u32>> {
    let capacity = Capacity::of_instance(concurrency);
    throttle.set_instances(instances.iter().map(|key| (*key, capacity)), || 0)
}

fn granted(acquired: Acquired<&'static str>) -> Grant<&'static str> {
    match acquired {
        Acquired::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

#[test]
fn requests_go_wait_and_are_refused() {
    let mut t = throttle(1, 2, &["a", "b"]);
    let a = granted(t.acquire(0, || 0));
    let b = granted(t.acquire(0, || 0));
    assert_eq!((a.instance, b.instance), ("a", "b"));
    let Acquired::Wait(first) = t.acquire(0, || 1) else { panic!() };
    let Acquired::Wait(_) = t.acquire(0, || 2) else { panic!() };
    assert!(matches!(t.acquire(0, || 3), Acquired::Full));
    assert_eq!((t.in_flight(), t.waiting(), t.has_room()), (2, 2, false));

    // The one who waited longest goes first, to the instance that has become free.
    let woken = t.release(b, 0).unwrap();
    assert_eq!((woken.waiter, woken.grant.instance), (1, "b"));
    assert_eq!(t.cancel(first), None);
    let woken = t.release(a, 0).unwrap();
    assert_eq!((woken.waiter, woken.grant.instance), (2, "a"));
    assert!(t.release(woken.grant, 0).is_none());
    assert_eq!((t.in_flight(), t.waiting(), t.has_room()), (1, 0, true));
}

#[test]
fn a_cancelled_wait_is_skipped() {
    let mut t = throttle(1, 9, &["a"]);
    let a = granted(t.acquire(0, || 0));
    let Acquired::Wait(one) = t.acquire(0, || 1) else { panic!() };
    let Acquired::Wait(_) = t.acquire(0, || 2) else { panic!() };
    assert_eq!(t.cancel(one), Some(1));
    assert_eq!(t.cancel(one), None);
    assert_eq!(t.release(a, 0).unwrap().waiter, 2);
}

#[test]
fn who_was_refused_elsewhere_goes_before_those_who_wait() {
    let mut t = throttle(1, 1, &["a"]);
    let a = granted(t.acquire(0, || 0));
    let Acquired::Wait(_) = t.acquire(0, || 1) else { panic!() };
    let Acquired::Wait(again) = t.acquire_again(0, || 2) else { panic!("the queue is full, but not for it") };
    let Acquired::Wait(_) = t.acquire_again(0, || 3) else { panic!() };
    let woken = t.release(a, 0).unwrap();
    assert_eq!(woken.waiter, 3);
    assert_eq!(t.cancel(again), Some(2));
    assert_eq!(t.dismiss(), [1]);
    assert!(t.release(woken.grant, 0).is_none());
}

#[test]
fn from_zero_the_first_instance_wakes_as_many_as_fit() {
    for (concurrency, woken) in [(0, 5), (2, 2), (10, 5)] {
        let mut t = Small::new(concurrency, 100);
        for n in 0..5 {
            assert!(matches!(t.acquire(0, || n), Acquired::Wait(_)));
        }
        let got: Vec<u32> = set(&mut t, concurrency, &["a"]).into_iter().map(|w| w.waiter).collect();
        assert_eq!(got, (0..woken).collect::<Vec<_>>(), "{concurrency}");
        assert_eq!((t.in_flight(), t.waiting()), (woken as usize, 5 - woken as usize));
    }
}

#[test]
fn an_instance_that_left_gives_back_what_it_had() {
    let mut t = throttle(1, 9, &["a", "b"]);
    let a = granted(t.acquire(0, || 0));
    assert!(set(&mut t, 1, &["b"]).is_empty());
    assert_eq!(t.leaving().collect::<Vec<_>>(), [(&"a", 1)]);
    let b = granted(t.acquire(0, || 0));
    assert_eq!(b.instance, "b");
    let Acquired::Wait(_) = t.acquire(0, || 1) else { panic!() };

    // Its return frees no room.
    assert!(t.release(a, 0).is_none());
    assert_eq!(t.leaving().count(), 0);
    // It comes back empty, and takes the waiter.
    let woken = set(&mut t, 1, &["a", "b"]);
    assert_eq!(woken[0].grant.instance, "a");
}

#[test]
fn an_instance_that_comes_back_still_has_its_requests() {
    let mut t = throttle(2, 9, &["a"]);
    let one = granted(t.acquire(0, || 0));
    t.withdraw(&"a");
    assert!(!t.has_room());
    assert_eq!(t.in_flight_of(&"a"), 1);
    assert!(set(&mut t, 2, &["a"]).is_empty());
    let two = granted(t.acquire(0, || 0));
    assert!(!t.has_room());
    assert!(t.release(one, 0).is_none() && t.release(two, 0).is_none());
    assert_eq!((t.in_flight(), t.capacity()), (0, Capacity::Of(2)));
}

#[test]
fn policies() {
    let check = |concurrency: u32, randoms: &[u64], wanted: &[&str]| {
        let mut t = throttle(concurrency, 0, &["a", "b", "c"]);
        let got: Vec<&str> = randoms.iter().map(|random| granted(t.acquire(*random, || 0)).instance).collect();
        assert_eq!(got, wanted, "concurrency {concurrency}");
    };
    check(1, &[0; 3], &["a", "b", "c"]);
    check(3, &[0; 5], &["a", "a", "a", "b", "b"]);
    check(4, &[0; 5], &["a", "b", "c", "a", "b"]);
    // Low half draws the first of two, high half the second among the rest.
    check(0, &[0, 0, 0, 1, 2], &["a", "b", "a", "c", "c"]);
    check(0, &[1 << 32, 1 << 32], &["a", "c"]);
}

#[test]
fn round_robin_passes_over_full_instances() {
    let mut t = throttle(4, 0, &["a", "b"]);
    let grants: Vec<_> = (0..8).map(|_| granted(t.acquire(0, || 0))).collect();
    assert!(matches!(t.acquire(0, || 0), Acquired::Full));
    for grant in grants.into_iter().filter(|grant| grant.instance == "a") {
        assert!(t.release(grant, 0).is_none());
    }
    for _ in 0..4 {
        assert_eq!(granted(t.acquire(0, || 0)).instance, "a");
    }
}

#[test]
fn capacities() {
    let check = |(concurrency, pods, activators), wanted| {
        assert_eq!(cluster_ip_capacity(concurrency, pods, activators), wanted, "{concurrency} {pods} {activators}");
    };
    check((10, 4, 2), Capacity::Of(20));
    check((1, 1, 3), Capacity::Of(1));
    check((10, 0, 2), Capacity::Of(0));
    check((0, 2, 2), Capacity::Unlimited);
    check((10, 2, 0), Capacity::Of(20));
    assert_eq!(Capacity::of_instance(0).plus(Capacity::Of(1)), Capacity::Unlimited);
}

#[test]
fn subsets() {
    let pods: Vec<u32> = (0..7).collect();
    let check = |pods: &[u32], index, activators, wanted: &[u32]| {
        assert_eq!(subset(pods, index, activators), wanted, "{index:?} of {activators}");
    };
    check(&pods, None, 3, &pods);
    check(&pods, Some(0), 1, &pods);
    check(&pods, Some(0), 3, &[0, 1, 6]);
    check(&pods, Some(2), 3, &[4, 5]);
    check(&pods[..2], Some(2), 3, &[0]);
    check(&[], Some(0), 3, &[]);
    for activators in 1..10 {
        let mut seen: Vec<u32> = (0..activators).flat_map(|index| subset(&pods, Some(index), activators)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, pods, "{activators} activators use every pod");
    }
}

/// Whatever happens: capacity is kept, nobody waits beside a free place, and the queue is first come, first served.
#[test]
fn invariants() {
    const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
    for concurrency in [0, 1, 2, 5] {
        let mut rng = fastrand::Rng::with_seed(u64::from(concurrency));
        let mut t = Small::new(concurrency, 10);
        let (mut out, mut queue, mut next) = (Vec::new(), Vec::new(), 0);
        for _ in 0..5000 {
            match rng.u8(..10) {
                0 => {
                    let some: Vec<_> = KEYS.into_iter().filter(|_| rng.bool()).collect();
                    for woken in set(&mut t, concurrency, &some) {
                        assert_eq!(woken.waiter, queue.remove(0));
                        out.push(woken.grant);
                    }
                }
                1 if !queue.is_empty() => {
                    t.withdraw(&KEYS[rng.usize(..KEYS.len())]);
                }
                2..=5 => {
                    next += 1;
                    match t.acquire(rng.u64(..), || next) {
                        Acquired::Granted(grant) => out.push(grant),
                        Acquired::Wait(_) => queue.push(next),
                        Acquired::Full => assert_eq!(queue.len(), 10),
                    }
                }
                _ if !out.is_empty() => {
                    let grant = out.swap_remove(rng.usize(..out.len()));
                    if let Some(woken) = t.release(grant, rng.u64(..)) {
                        assert_eq!(woken.waiter, queue.remove(0));
                        out.push(woken.grant);
                    }
                }
                _ => {}
            }
            assert_eq!((t.in_flight(), t.waiting()), (out.len(), queue.len()));
            assert!(queue.is_empty() || !t.has_room(), "somebody waits beside a free place");
            for key in KEYS {
                let mine = out.iter().filter(|grant| grant.instance == key).count();
                assert_eq!(t.in_flight_of(&key) as usize, mine);
                assert!(concurrency == 0 || mine <= concurrency as usize);
            }
        }
    }
}

#[test]
fn the_best_of_those_with_room() {
    let mut throttle: Throttle<u8, ()> = Throttle::new(1, 10);
    let woken = throttle.set_instances([(1, Capacity::Of(1)), (2, Capacity::Of(1)), (3, Capacity::Of(1))], || 0);
    assert!(woken.is_empty());
    let by_number = |key: &u8, _busy: u32| (*key < 3).then_some(u64::from(*key));
    let first = throttle.acquire_best(by_number).expect("has room");
    let second = throttle.acquire_best(by_number).expect("has room");
    assert_eq!((first.instance, second.instance), (2, 1), "the best, then the next that has room");
    assert!(throttle.acquire_best(by_number).is_none(), "the third has no score");
    assert!(throttle.has_room() && throttle.in_flight() == 2);
    let Acquired::Granted(third) = throttle.acquire(0, || ()) else { panic!("has room") };
    assert!(!throttle.has_room());
    for grant in [first, second, third] {
        assert!(throttle.release(grant, 0).is_none());
    }
    assert_eq!(throttle.in_flight(), 0);
}
