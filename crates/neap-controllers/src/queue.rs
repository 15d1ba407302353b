//! A queue of keys to look at. A key is in it once however often it is added, and never handed out twice at
//! the same time; added while it is being worked on, it comes again afterwards.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::index::Key;

/// First wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// Longest wait after failures in a row.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Keys to look at. Bounded by the number of objects there are.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    waiting: HashSet<Key>,
    running: HashSet<Key>,
    /// Added while running.
    again: HashSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look at a key.
    pub(crate) fn add(&self, key: Key) {
        if self.state().add(key) {
            self.changed.notify_one();
        }
    }

    /// Asks for a look after `delay`; of several such requests the earliest counts.
    pub(crate) fn add_after(&self, key: Key, delay: Duration) {
        let at = Instant::now() + delay;
        let mut state = self.state();
        if state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.undue(&key);
        state.due.insert(key.clone(), at);
        state.later.insert((at, key));
        drop(state);
        self.changed.notify_one();
    }

    /// A key's work failed: it comes again, later with each failure in a row.
    pub(crate) fn retry(&self, key: Key) {
        let delay = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            FIRST_RETRY.saturating_mul(1 << (*failures - 1).min(16)).min(LAST_RETRY)
        };
        self.add_after(key, delay);
    }

    /// A key's work succeeded.
    pub(crate) fn forget(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// Keys that wait for a look or are being looked at.
    pub(crate) fn depth(&self) -> usize {
        let state = self.state();
        state.ready.len() + state.running.len()
    }

    /// The next key to look at. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let due = {
                let mut state = self.state();
                state.ripen(Instant::now());
                if let Some(key) = state.take() {
                    return key;
                }
                state.later.first().map(|(at, _)| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(at) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// A key handed out is no longer being worked on.
    pub(crate) fn done(&self, key: &Key) {
        let mut state = self.state();
        state.running.remove(key);
        if state.again.remove(key) {
            state.add(key.clone());
            self.changed.notify_one();
        }
    }
}

impl State {
    fn add(&mut self, key: Key) -> bool {
        if self.running.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if !self.waiting.insert(key.clone()) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn take(&mut self) -> Option<Key> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn ripen(&mut self, now: Instant) {
        while let Some((at, _)) = self.later.first()
            && *at <= now
        {
            let (_, key) = self.later.pop_first().expect("looked at just now");
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn undue(&mut self, key: &Key) {
        if let Some(at) = self.due.remove(key) {
            self.later.remove(&(at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    fn now(queue: &Queue) -> Option<String> {
        queue.next().now_or_never().map(|key| key.name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_on_once_at_a_time() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!((now(&queue), now(&queue), now(&queue)), (Some("a".into()), Some("b".into()), None));
        queue.add(key("a"));
        assert_eq!(now(&queue), None, "it is being worked on");
        queue.done(&key("a"));
        assert_eq!(now(&queue), Some("a".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after(key("a"), Duration::from_secs(9));
        queue.add_after(key("a"), Duration::from_secs(3));
        queue.add_after(key("a"), Duration::from_secs(5));
        assert_eq!(queue.next().await.name, "a");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        queue.done(&key("a"));
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_wait_longer() {
        let queue = Queue::default();
        let mut waited = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            queue.retry(key("a"));
            queue.next().await;
            queue.done(&key("a"));
            waited.push(start.elapsed().as_millis());
        }
        assert_eq!(waited, [5, 10, 20]);
        queue.forget(&key("a"));
        let start = Instant::now();
        queue.retry(key("a"));
        queue.next().await;
        assert_eq!(start.elapsed().as_millis(), 5);
    }
}
