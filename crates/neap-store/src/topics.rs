//! Which watchers a changed key concerns. Watchers of one prefix share a topic, so a write
//! costs by the number of registered prefixes that match its key, not by the number of watchers, and a
//! watcher that looks for its next event does not walk over the events of others.
//!
//! A topic holds positions in the index's log, never events: memory stays with the log's bounds.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use crate::index::{Index, Seq};

/// The registered prefixes.
#[derive(Default)]
pub(crate) struct Topics {
    by_prefix: BTreeMap<Bytes, Topic>,
    watchers: usize,
    /// The name of the next watcher.
    next: u64,
}

/// A watcher's place in a topic: its name, and how far it has read. The watcher moves it without the lock.
pub(crate) struct Place {
    id: u64,
    pub(crate) position: Arc<AtomicU64>,
}

/// One prefix with at least one watcher.
struct Topic {
    /// Positions of the matching events, ascending. All that the log still holds are here; some
    /// at the front may have left the log since.
    seqs: VecDeque<Seq>,
    /// Matching events before this position were dropped from `seqs`: a cursor below it missed some.
    lost_before: Seq,
    /// How far each watcher has read.
    positions: BTreeMap<u64, Arc<AtomicU64>>,
    wake: watch::Sender<()>,
}

/// What a cursor finds next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next matching event is at this position.
    At(Seq),
    /// Nothing matching has happened.
    Idle,
    /// A matching event left the log unseen.
    Lagged,
}

impl Topics {
    /// Adds a watcher that reads from `cursor` on; it is woken through the receiver until `leave`.
    pub(crate) fn join(&mut self, prefix: &Bytes, cursor: Seq, index: &Index) -> (watch::Receiver<()>, Place) {
        self.watchers += 1;
        self.next += 1;
        let topic = self.by_prefix.entry(prefix.clone()).or_insert_with(|| {
            let seqs = index.log().filter(|(_, event)| event.key.starts_with(prefix));
            Topic {
                seqs: seqs.map(|(seq, _)| seq).collect(),
                lost_before: 0,
                positions: BTreeMap::new(),
                wake: watch::Sender::new(()),
            }
        });
        let place = Place { id: self.next, position: Arc::new(AtomicU64::new(cursor)) };
        topic.positions.insert(place.id, place.position.clone());
        (topic.wake.subscribe(), place)
    }

    /// Removes a watcher, and the topic with its last one.
    pub(crate) fn leave(&mut self, prefix: &Bytes, place: &Place) {
        let Some(topic) = self.by_prefix.get_mut(prefix) else {
            return;
        };
        if topic.positions.remove(&place.id).is_some() {
            self.watchers -= 1;
        }
        if topic.positions.is_empty() {
            self.by_prefix.remove(prefix);
        }
    }

    /// The first position from `first` on that a watcher has yet to read; the greatest there is when all have read all.
    pub(crate) fn needed(&self, first: Seq) -> Seq {
        let unread = |topic: &Topic| {
            let slowest = topic.positions.values().map(|at| at.load(Ordering::Relaxed)).min()?.max(first);
            topic.seqs.get(topic.seqs.partition_point(|&seq| seq < slowest)).copied()
        };
        self.by_prefix.values().filter_map(unread).min().unwrap_or(Seq::MAX)
    }

    /// Watchers there are.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers
    }

    /// Notes the event at `seq` in every matching topic. The caller fires `wakes` after it released
    /// the lock, so that woken tasks do not pile up on it.
    pub(crate) fn publish(&mut self, key: &[u8], seq: Seq, first: Seq, wakes: &mut Wakes) {
        for_each_prefix(&mut self.by_prefix, key, |topic| {
            while let Some(&front) = topic.seqs.front()
                && front < first
            {
                topic.seqs.pop_front();
                topic.lost_before = front + 1;
            }
            topic.seqs.push_back(seq);
            wakes.0.push(topic.wake.clone());
        });
    }

    /// Finds the first matching event at or after `cursor`.
    pub(crate) fn next(&self, prefix: &Bytes, cursor: Seq, first: Seq) -> Next {
        let Some(topic) = self.by_prefix.get(prefix) else {
            return Next::Idle;
        };
        if cursor < topic.lost_before {
            return Next::Lagged;
        }
        let at = topic.seqs.partition_point(|&seq| seq < cursor);
        match topic.seqs.get(at) {
            None => Next::Idle,
            Some(&seq) if seq < first => Next::Lagged,
            Some(&seq) => Next::At(seq),
        }
    }

    /// Wakes every watcher, for a change that is not an event.
    pub(crate) fn wake_all(&self) {
        for topic in self.by_prefix.values() {
            topic.wake.send_replace(());
        }
    }
}

/// Topics to wake, collected under the lock and fired outside it.
#[derive(Default)]
pub(crate) struct Wakes(Vec<watch::Sender<()>>);

impl Wakes {
    pub(crate) fn fire(self) {
        for wake in self.0 {
            wake.send_replace(());
        }
    }
}

/// Visits the topics whose prefix `key` starts with, longest first.
///
/// The greatest registered prefix not above `key` either is a prefix of it, or shares with it every
/// registered prefix there is: whatever sorts between a prefix of `key` and `key` starts with that
/// prefix too. So each lookup shortens the candidate, and their number is bounded by the matches
/// and near misses, not by the prefixes registered.
fn for_each_prefix<T>(map: &mut BTreeMap<Bytes, T>, key: &[u8], mut visit: impl FnMut(&mut T)) {
    let mut candidate = key;
    let mut bound = Bound::Included(candidate);
    while let Some((prefix, topic)) = map.range_mut::<[u8], _>((Bound::Unbounded, bound)).next_back() {
        let shared = prefix.iter().zip(candidate).take_while(|(a, b)| a == b).count();
        candidate = &candidate[..shared];
        bound = if shared == prefix.len() {
            visit(topic);
            Bound::Excluded(candidate)
        } else {
            Bound::Included(candidate)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exactly_the_prefixes_of_a_key() {
        let mut random = fastrand::Rng::with_seed(7);
        let word = |random: &mut fastrand::Rng| -> Vec<u8> {
            let length = random.usize(0..6);
            (0..length).map(|_| random.u8(b'a'..=b'c')).collect()
        };
        for _ in 0..2_000 {
            let registered: Vec<Vec<u8>> = (0..random.usize(0..12)).map(|_| word(&mut random)).collect();
            let mut map: BTreeMap<Bytes, Vec<u8>> =
                registered.iter().map(|p| (Bytes::from(p.clone()), p.clone())).collect();
            let key = word(&mut random);
            let mut expected: Vec<Vec<u8>> = map.values().filter(|p| key.starts_with(p)).cloned().collect();
            expected.reverse();
            let mut found = Vec::new();
            for_each_prefix(&mut map, &key, |prefix| found.push(prefix.clone()));
            assert_eq!(found, expected, "key {key:?} among {registered:?}");
        }
    }
}
