//! The keys, their versions and the recent history, as plain data: no lock, no task, no disk.
//! It must never hold more history than its limits say: the usual ones, or `burst` times as much while somebody
//! has yet to read it.
//!
//! # Shape
//!
//! Every event of the log is newer than `compacted`. Each key has its versions in ascending order: at most
//! one that is not newer than `compacted` (what the key was when history begins) and one per
//! event of the log. So a range at any revision from `compacted` on is exact, and dropping
//! the oldest event drops exactly the one version it superseded. Values and keys are shared between
//! the index and the log; the log's own weight is what only it keeps alive.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Range};

use bytes::Bytes;

use crate::store::FIRST_REVISION;
use crate::txn::{Expect, Op};
use crate::{Error, Revision};

/// A position in the log of events, counted from the opening of the store.
pub(crate) type Seq = u64;

/// What an event weighs beyond its key and value: the record, one version, their allocations. Bytes.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// A key and its value at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The revision that created the key; kept when the value is replaced.
    pub created: Revision,
    /// The revision that last changed it.
    pub modified: Revision,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change. The events of one transaction share it, in the order of its steps.
    pub revision: Revision,
    /// The key.
    pub key: Bytes,
    /// The new value, or `None` if the key was removed.
    pub value: Option<Bytes>,
    /// The value before, or `None` if the key was created.
    pub previous: Option<Bytes>,
}

/// A part of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Whether entries follow after the last one.
    pub more: bool,
    /// How many follow.
    pub remaining: usize,
    /// The revision the page shows. Pass it on as `at` to read the next page of the same moment.
    pub revision: Revision,
}

/// How much is found out about the entries that follow after a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    All,
    /// Whether there are any.
    Any,
}

/// How much history is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) burst: usize,
}

/// After how many more events it is asked again who has yet to read what, as a part of the usual limit: asking walks over
/// all watchers.
const LOOKS_PER_LIMIT: usize = 16;

pub(crate) struct Index {
    keys: BTreeMap<Bytes, Slot>,
    log: VecDeque<Event>,
    /// The position of the log's front.
    first: Seq,
    log_bytes: usize,
    live: usize,
    revision: Revision,
    compacted: Revision,
    limits: Limits,
    /// What somebody has yet to read begins here, as far as was known when last asked.
    needed: Seq,
    /// What all events ever weighed together, in bytes.
    logged: u64,
    /// The end of the log, or its weight ever, at which it is worth asking again.
    look_again: (Seq, u64),
}

struct Slot {
    current: Version,
    older: VecDeque<Version>,
}

struct Version {
    /// `None`: the key was removed here.
    value: Option<Bytes>,
    created: Revision,
    modified: Revision,
}

impl Index {
    /// An empty index in which nothing has happened.
    pub(crate) fn new(limits: Limits) -> Index {
        Index {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            first: 0,
            log_bytes: 0,
            live: 0,
            revision: FIRST_REVISION,
            compacted: 0,
            limits,
            needed: 0,
            logged: 0,
            look_again: (0, 0),
        }
    }

    /// Adds a key as it was when history begins. Only before the first `apply`.
    pub(crate) fn load(&mut self, entry: Entry) {
        let current = Version { value: Some(entry.value), created: entry.created, modified: entry.modified };
        self.keys.insert(entry.key, Slot { current, older: VecDeque::new() });
        self.live += 1;
    }

    /// Sets the revision after the last `load`; history begins there. If nothing ever happened, none is missing.
    pub(crate) fn resume(&mut self, revision: Revision) {
        self.revision = revision;
        self.compacted = if revision == FIRST_REVISION { 0 } else { revision };
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Keys that exist now.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Events kept, and their weight in bytes.
    pub(crate) fn history(&self) -> (usize, usize) {
        (self.log.len(), self.log_bytes)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        let (key, slot) = self.keys.get_key_value(key)?;
        slot.current.entry(key)
    }

    pub(crate) fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
        count: Count,
    ) -> Result<Page, Error> {
        let revision = at.unwrap_or(self.revision);
        self.within_history(revision)?;
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = self
            .keys
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, slot)| slot.at(revision)?.entry(key));
        let entries: Vec<Entry> = found.by_ref().take(limit).collect();
        let remaining = match count {
            Count::All => found.count(),
            Count::Any => usize::from(found.next().is_some()),
        };
        Ok(Page { entries, more: remaining > 0, remaining, revision })
    }

    /// Checks every condition of a transaction. `Ok(true)` if applying it would change something.
    pub(crate) fn check(&self, steps: &[(Bytes, Expect, Op)]) -> Result<bool, Error> {
        let mut changes = false;
        for (key, expect, op) in steps {
            let current = self.keys.get(&key[..]).and_then(|slot| slot.current.exists());
            let holds = match expect {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::Revision(revision) => current == Some(*revision),
            };
            if !holds {
                return Err(Error::Conflict { key: key.clone(), current });
            }
            changes |= match op {
                Op::Put(_) => true,
                Op::Delete => current.is_some(),
                Op::Check => false,
            };
        }
        Ok(changes)
    }

    /// Applies a transaction that passed `check` at `revision`, and returns its events' positions.
    /// `trim` is due afterwards.
    pub(crate) fn apply(&mut self, steps: Vec<(Bytes, Expect, Op)>, revision: Revision) -> Range<Seq> {
        debug_assert!(revision > self.revision, "revisions grow");
        self.revision = revision;
        let start = self.end_seq();
        for (key, _, op) in steps {
            let value = match op {
                Op::Put(value) => Some(value),
                Op::Delete => None,
                Op::Check => continue,
            };
            self.set(key, value, revision);
        }
        start..self.end_seq()
    }

    /// Forgets the history up to and including `revision`: it becomes the oldest that can be read.
    pub(crate) fn compact(&mut self, revision: Revision) {
        let revision = revision.min(self.revision);
        while self.log.front().is_some_and(|event| event.revision <= revision) {
            self.forget_oldest();
        }
        self.compacted = self.compacted.max(revision);
    }

    /// As `compact`, but about `most` events at the most; whether that was all.
    pub(crate) fn compact_some(&mut self, revision: Revision, most: usize) -> bool {
        // A revision goes whole, or whoever reads from before it would miss a part.
        let part = self.log.get(most).map_or(revision, |event| event.revision.min(revision));
        self.compact(part);
        part >= revision.min(self.revision)
    }

    /// The position of the oldest event kept.
    pub(crate) fn first_seq(&self) -> Seq {
        self.first
    }

    /// The position that the next event will have.
    pub(crate) fn end_seq(&self) -> Seq {
        self.first + self.log.len() as Seq
    }

    /// The position of the first event after `revision`.
    pub(crate) fn seq_after(&self, revision: Revision) -> Result<Seq, Error> {
        self.within_history(revision)?;
        let skipped = self.log.partition_point(|event| event.revision <= revision);
        Ok(self.first + skipped as Seq)
    }

    /// The event at a position between `first_seq` and the end of the log.
    pub(crate) fn event(&self, seq: Seq) -> &Event {
        &self.log[(seq - self.first) as usize]
    }

    /// All events kept, with their positions.
    pub(crate) fn log(&self) -> impl Iterator<Item = (Seq, &Event)> {
        (self.first..).zip(&self.log)
    }

    fn within_history(&self, requested: Revision) -> Result<(), Error> {
        if requested < self.compacted {
            return Err(Error::Compacted { requested, compacted: self.compacted });
        }
        if requested > self.revision {
            return Err(Error::Future { requested, current: self.revision });
        }
        Ok(())
    }

    fn set(&mut self, key: Bytes, value: Option<Bytes>, revision: Revision) {
        let mut version = Version { value: value.clone(), created: revision, modified: revision };
        let (key, previous) = match self.keys.entry(key) {
            Place::Occupied(mut place) => {
                let slot = place.get_mut();
                let previous = slot.current.value.clone();
                if previous.is_some() {
                    version.created = slot.current.created;
                }
                if previous.is_none() && value.is_none() {
                    return;
                }
                let old = std::mem::replace(&mut slot.current, version);
                slot.older.push_back(old);
                // The index's own copy of the key, so that one allocation serves all events.
                (place.key().clone(), previous)
            }
            Place::Vacant(_) if value.is_none() => return,
            Place::Vacant(place) => {
                let key = place.key().clone();
                place.insert(Slot { current: version, older: VecDeque::new() });
                (key, None)
            }
        };
        match (&previous, &value) {
            (None, Some(_)) => self.live += 1,
            (Some(_), None) => self.live -= 1,
            _ => {}
        }
        let event = Event { revision, key, value, previous };
        self.log_bytes += weight(&event);
        self.logged += weight(&event) as u64;
        self.log.push_back(event);
    }

    /// Notes that somebody begins to read at a position, which may lie before what was needed until now.
    pub(crate) fn expect_reader(&mut self, from: Seq) {
        self.needed = self.needed.min(from);
    }

    /// Keeps the history within its limits. The newest revision stays whatever it weighs, or its own
    /// watchers could not see it; a transaction has a limit too. `needed` tells the first position that
    /// somebody has yet to read, given the first there is; what comes after it stays up to the larger limit.
    pub(crate) fn trim(&mut self, needed: impl Fn(Seq) -> Seq) {
        while self.exceeds(1) {
            let Some(oldest) = self.log.front().map(|event| event.revision) else { return };
            if oldest == self.revision {
                return;
            }
            if !self.exceeds(self.limits.burst) && !self.was_read(oldest) {
                if self.end_seq() < self.look_again.0 && self.logged < self.look_again.1 {
                    return;
                }
                // What is yet to come was read by nobody.
                self.needed = needed(self.first).min(self.end_seq());
                let part = |limit: usize| (limit / LOOKS_PER_LIMIT) as u64;
                self.look_again = (self.end_seq() + part(self.limits.events), self.logged + part(self.limits.bytes));
                if !self.was_read(oldest) {
                    return;
                }
            }
            self.compact(oldest);
        }
    }

    fn exceeds(&self, times: usize) -> bool {
        let more_than = |now: usize, limit: usize| now > limit.saturating_mul(times);
        more_than(self.log.len(), self.limits.events) || more_than(self.log_bytes, self.limits.bytes)
    }

    /// Whether nobody has yet to read an event of the oldest revision.
    fn was_read(&self, oldest: Revision) -> bool {
        let Some(before) = self.needed.checked_sub(self.first) else { return false };
        before > 0 && self.log.get(before as usize).is_none_or(|event| event.revision != oldest)
    }

    fn forget_oldest(&mut self) {
        let Some(event) = self.log.pop_front() else {
            return;
        };
        self.first += 1;
        self.log_bytes -= weight(&event);
        let Place::Occupied(mut place) = self.keys.entry(event.key) else {
            unreachable!("a key stays in the index as long as an event of the log names it");
        };
        let slot = place.get_mut();
        while slot.older.front().is_some_and(|version| version.modified < event.revision) {
            slot.older.pop_front();
        }
        // What the event wrote is now what the key was when history begins; "nothing" needs no record.
        if event.value.is_none() && slot.older.pop_front().is_none() {
            place.remove();
            return;
        }
        // A busy key must not keep the room of its busiest hour.
        if slot.older.is_empty() {
            slot.older = VecDeque::new();
        }
    }
}

impl Slot {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.current.modified <= revision {
            return Some(&self.current);
        }
        let newer = self.older.partition_point(|version| version.modified <= revision);
        self.older.get(newer.checked_sub(1)?)
    }
}

impl Version {
    fn exists(&self) -> Option<Revision> {
        self.value.is_some().then_some(self.modified)
    }

    fn entry(&self, key: &Bytes) -> Option<Entry> {
        let value = self.value.clone()?;
        Some(Entry { key: key.clone(), value, created: self.created, modified: self.modified })
    }
}

/// What only the log keeps alive: the value an event replaced. The new one belongs to the index, or to
/// the event that replaced it.
fn weight(event: &Event) -> usize {
    let replaced = event.previous.as_ref().map_or(0, Bytes::len);
    EVENT_OVERHEAD_BYTES + event.key.len() + replaced
}

#[cfg(test)]
mod tests;
