//! Watching: waking, resuming, lagging, ending. What is watched in which order is the model test's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use neap_store::{Error, Event, Expect, Lagged, Options, Revision, Store, Txn, Watch};

fn put(store: &Store, key: &str, value: &str) -> Revision {
    let txn = Txn::new().put(key.to_owned(), Expect::Any, value.to_owned());
    store.commit(txn).unwrap().revision
}

fn text(event: Option<Result<Event, Lagged>>) -> String {
    match event {
        None => "end".to_owned(),
        Some(Err(Lagged { seen })) => format!("lagged after {seen}"),
        Some(Ok(event)) => {
            let show = |value: Option<bytes::Bytes>| match value {
                Some(value) => value.escape_ascii().to_string(),
                None => "-".to_owned(),
            };
            let key = event.key.escape_ascii().to_string();
            format!("{} {key}: {} > {}", event.revision, show(event.previous), show(event.value))
        }
    }
}

/// Counts how often a watcher's task would be woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_watcher_is_woken_by_its_keys() {
    let store = Store::memory();
    let mut watch = store.watch(b"a/", store.revision()).unwrap();
    let reader = async {
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(text(watch.next().await));
        }
        seen
    };
    let writer = async {
        put(&store, "a/1", "x");
        tokio::task::yield_now().await;
        put(&store, "b/1", "x");
        put(&store, "a/1", "y");
        tokio::task::yield_now().await;
        let _ = store.commit(Txn::new().delete("a/1", Expect::Any)).unwrap();
    };
    let (seen, ()) = tokio::join!(reader, writer);
    assert_eq!(seen, ["2 a/1: - > x", "4 a/1: x > y", "5 a/1: y > -"]);
}

#[test]
fn a_write_wakes_only_whom_it_concerns() {
    let store = Store::memory();
    let mut watches: Vec<Watch> = Vec::new();
    for number in 0..3_000 {
        watches.push(store.watch(format!("key-{number}/").as_bytes(), 1).unwrap());
    }
    watches.push(store.watch(b"key-7", 1).unwrap());
    let wakes: Vec<Arc<Count>> = watches.iter().map(|_| Arc::default()).collect();
    let mut waiting: Vec<_> = watches.iter_mut().map(|watch| Box::pin(watch.next())).collect();
    for (next, count) in waiting.iter_mut().zip(&wakes) {
        let waker = Waker::from(count.clone());
        assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    put(&store, "key-7/x", "");
    put(&store, "key/x", "");
    let woken: Vec<usize> = (0..wakes.len()).filter(|&at| wakes[at].0.load(Ordering::Relaxed) > 0).collect();
    assert_eq!(woken, [7, 3_000]);
}

#[test]
fn resuming_at_progress_misses_nothing_and_repeats_nothing() {
    let store = Store::memory();
    let mut watch = store.watch(b"a", 0).unwrap();
    assert_eq!(watch.progress(), 1);
    put(&store, "b", "");
    assert_eq!(watch.progress(), 2, "what does not concern it counts as seen");
    let both = Txn::new().put("a1", Expect::Any, "").put("a2", Expect::Any, "");
    let _ = store.commit(both).unwrap();
    put(&store, "c", "");
    assert_eq!(watch.progress(), 2);
    assert!(watch.try_next().is_ready());
    assert_eq!(watch.progress(), 2, "half a transaction does not count as seen");
    let mut resumed = store.watch(b"a", watch.progress()).unwrap();
    assert!(watch.try_next().is_ready());
    assert_eq!(watch.progress(), 4);
    let replay: Vec<String> = std::iter::from_fn(|| match resumed.try_next() {
        Poll::Ready(next) => Some(text(next)),
        Poll::Pending => None,
    })
    .collect();
    assert_eq!(replay, ["3 a1: - > ", "3 a2: - > "]);
}

#[test]
fn a_slow_watcher_is_told_and_a_quiet_one_is_not() {
    let store = Store::memory_with(Options { history_events: 10, history_burst: 1, ..Options::default() });
    let mut slow = store.watch(b"busy/", 1).unwrap();
    let mut quiet = store.watch(b"quiet/", 1).unwrap();
    let mut current = store.watch(b"busy/", 1).unwrap();
    for number in 0..50 {
        put(&store, &format!("busy/{number}"), "");
        assert!(matches!(current.try_next(), Poll::Ready(Some(Ok(_)))));
    }
    assert_eq!(slow.progress(), 1);
    assert_eq!(slow.try_next(), Poll::Ready(Some(Err(Lagged { seen: 1 }))));
    assert_eq!(slow.try_next(), Poll::Ready(None));
    assert!(quiet.try_next().is_pending(), "others' noise is no lag");
    put(&store, "quiet/1", "");
    assert!(matches!(quiet.try_next(), Poll::Ready(Some(Ok(_)))));
    assert!(current.try_next().is_pending());
    assert!(matches!(store.watch(b"", 5), Err(Error::Compacted { requested: 5, .. })));
}

#[test]
fn what_a_watcher_has_yet_to_read_is_kept_for_a_while() {
    let store = Store::memory_with(Options { history_events: 10, history_burst: 8, ..Options::default() });
    let mut slow = store.watch(b"busy/", 1).unwrap();
    let quiet = store.watch(b"quiet/", 1).unwrap();
    let many = |from: u32, to: u32| {
        (from..to).for_each(|number| {
            put(&store, &format!("busy/{number}"), "");
        });
    };
    many(0, 70);
    assert_eq!(store.stats().history_events, 70, "the slow one has yet to read all of it");
    for _ in 0..70 {
        assert!(matches!(slow.try_next(), Poll::Ready(Some(Ok(_)))));
    }
    many(70, 71);
    assert_eq!(store.stats().history_events, 10, "the quiet one has nothing to read");
    many(71, 171);
    assert_eq!(slow.try_next(), Poll::Ready(Some(Err(Lagged { seen: 70 }))), "whoever stops reading is left behind");
    many(171, 172);
    assert_eq!(store.stats().history_events, 10, "and is waited for no longer");
    drop(quiet);
}

#[test]
fn a_moment_when_all_was_read_does_not_end_the_waiting() {
    const EVENTS: u32 = 160;
    let store = Store::memory_with(Options { history_events: EVENTS as usize, history_burst: 8, ..Options::default() });
    let mut slow = store.watch(b"busy/", 1).unwrap();
    let fill = |from: u32, to: u32| (from..to).for_each(|n| _ = put(&store, &format!("busy/{n}"), ""));
    fill(0, EVENTS + 1);
    while let Poll::Ready(Some(event)) = slow.try_next() {
        event.unwrap();
    }
    // Nobody watches these, and everybody has read all there is.
    (0..EVENTS).for_each(|n| _ = put(&store, &format!("other/{n}"), ""));
    fill(EVENTS, 4 * EVENTS);
    assert!(matches!(slow.try_next(), Poll::Ready(Some(Ok(_)))), "what came since then is kept");
    // Whoever joins further back is waited for as well.
    let middle = store.revision() - u64::from(EVENTS);
    while let Poll::Ready(Some(event)) = slow.try_next() {
        event.unwrap();
    }
    fill(4 * EVENTS, 4 * EVENTS + 1);
    let mut late = store.watch(b"busy/", middle.max(store.compacted())).unwrap();
    fill(4 * EVENTS + 1, 6 * EVENTS);
    assert!(matches!(late.try_next(), Poll::Ready(Some(Ok(_)))), "and what a newcomer began with");
}

#[test]
fn history_is_bounded_in_bytes() {
    const BYTES: usize = 100_000;
    let store = Store::memory_with(Options { history_bytes: BYTES, ..Options::default() });
    for _ in 0..100 {
        put(&store, "a", &"x".repeat(10_000));
        assert!(store.stats().history_bytes <= BYTES);
    }
    assert!(store.stats().history_events >= 9);
    store.compact(store.revision());
    assert_eq!((store.stats().history_events, store.stats().history_bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn closing_ends_a_watch_after_its_last_event() {
    let store = Store::memory();
    let mut reading = store.watch(b"", 1).unwrap();
    let mut sleeping = store.watch(b"", 1).unwrap();
    put(&store, "a", "x");
    assert!(sleeping.next().await.is_some());
    let close = async { store.clone().close().unwrap() };
    let (last, ()) = tokio::join!(sleeping.next(), close);
    assert_eq!(text(last), "end");
    assert_eq!(text(reading.next().await), "2 a: - > x");
    assert_eq!(text(reading.next().await), "end");
    assert!(matches!(store.commit(Txn::new()), Err(Error::Closed)));
    assert_eq!(store.get(b"a").unwrap().value, "x");
}

/// The memory store must not need another thread: under a paused clock a task that waits for one looks idle.
#[tokio::test(start_paused = true)]
async fn a_memory_store_is_durable_at_once() {
    let store = Store::memory();
    let committed = store.commit(Txn::new().put("a", Expect::Absent, "x")).unwrap();
    let mut wait = pin!(committed.durable.wait());
    let outcome = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(outcome, Poll::Ready(Ok(()))));
}

#[test]
fn limits_are_refusals() {
    let store = Store::memory();
    let refused = |txn: Txn| matches!(store.commit(txn), Err(Error::TooLarge { .. }));
    let key = vec![b'k'; neap_store::MAX_KEY_BYTES + 1];
    assert!(refused(Txn::new().put(key.clone(), Expect::Any, "")));
    assert!(!refused(Txn::new().put(key[1..].to_vec(), Expect::Any, "")));
    let value = vec![0; neap_store::MAX_VALUE_BYTES + 1];
    assert!(refused(Txn::new().put("a", Expect::Any, value.clone())));
    let value = bytes::Bytes::from(value).slice(1..);
    let full = Txn::new().put("a", Expect::Any, value.clone()).put("b", Expect::Any, value);
    assert!(refused(full));
    let many =
        (0..=neap_store::MAX_TXN_STEPS).fold(Txn::new(), |txn, number| txn.check(number.to_string(), Expect::Any));
    assert!(refused(many));
    assert_eq!(store.revision(), 2);
}

fn assert_shareable<T: Send + Sync + Clone + 'static>(_: &T) {}

#[test]
fn handles_can_be_shared() {
    let store = Store::memory();
    assert_shareable(&store);
    let watch = store.watch(b"", 1).unwrap();
    fn is_send<T: Send + 'static>(_: T) {}
    is_send(store.flush().wait());
    is_send(watch);
}
