//! When to look at which Revision again: one moment each, the earliest asked for.

use std::collections::{BTreeSet, HashMap};

use neap_logic::routing::RevisionKey;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Instant, RevisionKey)>,
    by_key: HashMap<RevisionKey, Instant>,
}

impl Timers {
    /// Replaces the moment of a Revision; `None` forgets it.
    pub(super) fn set(&mut self, key: &RevisionKey, at: Option<Instant>) {
        if let Some(before) = self.by_key.remove(key) {
            self.by_time.remove(&(before, key.clone()));
        }
        if let Some(at) = at {
            self.by_key.insert(key.clone(), at);
            self.by_time.insert((at, key.clone()));
        }
    }

    /// The next moment.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// A Revision whose moment has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<RevisionKey> {
        let (_, key) = self.by_time.first().filter(|(at, _)| *at <= now)?.clone();
        self.set(&key, None);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_moment_each_in_order() {
        let (start, key) = (Instant::now(), |name| RevisionKey::new("n", name));
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(&key("a"), Some(after(3)));
        timers.set(&key("b"), Some(after(2)));
        timers.set(&key("a"), Some(after(1)));
        timers.set(&key("c"), Some(after(1)));
        timers.set(&key("c"), None);
        assert_eq!(timers.next(), Some(after(1)));
        assert_eq!(timers.pop(start), None);
        assert_eq!(timers.pop(after(9)), Some(key("a")));
        assert_eq!(timers.pop(after(1)), None);
        assert_eq!(timers.pop(after(2)), Some(key("b")));
        assert_eq!((timers.next(), timers.pop(after(9))), (None, None));
    }
}
