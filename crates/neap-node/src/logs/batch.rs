//! Lines that are sent together, with how far each log has been dealt with once they have arrived.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checkpoint::{LogKey, Position};
use super::record::Record;

/// Pod (by the name of its directory) and log.
pub(super) type Whose = (String, LogKey);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    pub(super) marks: BTreeMap<Whose, Position>,
    /// Bytes, of the text mostly.
    pub(super) size: usize,
}

/// When a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) size: usize,
    pub(super) age: Duration,
}

impl Batch {
    pub(super) fn room(&self, bounds: Bounds) -> usize {
        bounds.size.saturating_sub(self.size)
    }

    /// How long its first line waits already. Nanoseconds since 1970 in.
    pub(super) fn age(&self, now: u64) -> Duration {
        self.records.first().map_or(Duration::ZERO, |first| Duration::from_nanos(now.saturating_sub(first.observed)))
    }

    /// Nothing, or only that positions went on over what is no line.
    pub(super) fn is_due(&self, bounds: Bounds, now: u64) -> bool {
        !self.records.is_empty() && (self.size >= bounds.size || self.age(now) >= bounds.age)
    }

    /// When the earliest of its lines was said.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.records.iter().map(|record| record.time).min()
    }

    /// Two of half the lines; the marks count when the second has arrived. `None`: it is one line.
    pub(super) fn halves(mut self) -> Option<(Self, Self)> {
        if self.records.len() < 2 {
            return None;
        }
        let rest = self.records.split_off(self.records.len() / 2);
        let size = |records: &[Record]| records.iter().map(Record::size).sum();
        let second = Self { size: size(&rest), records: rest, marks: std::mem::take(&mut self.marks) };
        self.size = size(&self.records);
        Some((self, second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::record::{Origin, Stream};

    fn batch(bodies: &[&str]) -> Batch {
        let records: Vec<Record> = bodies
            .iter()
            .map(|body| Record {
                origin: Origin::default().into(),
                time: 5,
                observed: 1_000_000_000,
                stream: Stream::Stdout,
                severity: None,
                body: (*body).to_owned(),
                partial: false,
            })
            .collect();
        let key = LogKey::Run { container: "c".into(), number: 0 };
        let marks = BTreeMap::from([(("p".to_owned(), key), Position::default())]);
        Batch { size: records.iter().map(Record::size).sum(), records, marks }
    }

    #[test]
    fn a_batch_goes_when_it_is_large_or_old() {
        let check = |bodies: &[&str], size, now, want| {
            let bounds = Bounds { size, age: Duration::from_secs(1) };
            assert_eq!(batch(bodies).is_due(bounds, now), want, "{bodies:?} {size} {now}");
        };
        check(&[], 0, 9_000_000_000, false);
        check(&["a"], 1000, 1_500_000_000, false);
        check(&["a"], 1000, 2_000_000_000, true);
        check(&["a"], 100, 1_000_000_000, true);
        // A clock that was set back.
        check(&["a"], 1000, 0, false);
    }

    #[test]
    fn halves_keep_the_order_and_the_marks_come_last() {
        let (first, second) = batch(&["a", "b", "c"]).halves().expect("three lines");
        let bodies = |batch: &Batch| batch.records.iter().map(|r| r.body.clone()).collect::<Vec<_>>();
        assert_eq!((bodies(&first), bodies(&second)), (vec!["a".into()], vec!["b".into(), "c".into()]));
        assert!(first.marks.is_empty() && second.marks.len() == 1);
        assert_eq!((first.size, second.size), (101, 202));
        assert_eq!(batch(&["a"]).halves(), None);
    }
}
