//! What the model test cannot see from outside: that nothing is kept that is not needed. The rest of
//! the index is compared with a model in `tests/model`.

use super::*;

const LIMITS: Limits = Limits { events: 100, bytes: 1 << 20, burst: 1 };

fn apply(index: &mut Index, key: &str, value: Option<&str>) {
    let op = match value {
        Some(value) => Op::Put(Bytes::from(value.to_owned())),
        None => Op::Delete,
    };
    let revision = index.revision() + 1;
    index.apply(vec![(Bytes::from(key.to_owned()), Expect::Any, op)], revision);
    index.trim(|_| Seq::MAX);
}

/// Keys with any record, and versions in all.
fn records(index: &Index) -> (usize, usize) {
    let versions = index.keys.values().map(|slot| 1 + slot.older.len());
    (index.keys.len(), versions.sum())
}

#[test]
fn compaction_leaves_one_version_of_each_living_key_and_nothing_of_dead_ones() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut index = Index::new(LIMITS);
    for _ in 0..2_000 {
        let key = format!("key-{}", random.u32(0..30));
        apply(&mut index, &key, random.bool().then_some("value"));
        // At any time: a version per event, and at most one before the first.
        let (keys, versions) = records(&index);
        assert!(versions <= index.log.len() + keys);
        let weight: usize = index.log.iter().map(weight).sum();
        assert_eq!(index.log_bytes, weight);
    }
    index.compact(index.revision());
    assert_eq!(records(&index), (index.live(), index.live()));
    assert_eq!(index.history(), (0, 0));
    assert!(index.keys.values().all(|slot| slot.older.capacity() == 0));
}

#[test]
fn events_share_the_key_and_the_values_of_the_index() {
    let mut index = Index::new(LIMITS);
    apply(&mut index, "key", Some("first"));
    apply(&mut index, "key", Some("second"));
    let (first, second) = (index.event(0), index.event(1));
    assert_eq!(first.key.as_ptr(), second.key.as_ptr());
    assert_eq!(first.value.as_ref().unwrap().as_ptr(), second.previous.as_ref().unwrap().as_ptr());
    let current = index.get(b"key").unwrap();
    assert_eq!(current.value.as_ptr(), second.value.as_ref().unwrap().as_ptr());
}

#[test]
fn the_newest_revision_is_kept_whatever_it_weighs() {
    let mut index = Index::new(Limits { events: 2, bytes: 10, burst: 1 });
    apply(&mut index, "before", Some("x"));
    let steps = (0..5).map(|key| (Bytes::from(vec![key]), Expect::Any, Op::Put(Bytes::new())));
    let events = index.apply(steps.collect(), 3);
    index.trim(|_| Seq::MAX);
    assert_eq!(events, 1..6);
    assert_eq!((index.first_seq(), index.compacted()), (1, 2));
}
