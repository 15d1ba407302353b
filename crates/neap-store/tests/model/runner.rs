//! The model and the random operations on it.

use std::collections::BTreeMap;
use std::task::Poll;

use bytes::Bytes;
use neap_store::{Entry, Error, Event, Expect, Lagged, Op, Options, Revision, Store, Txn, Watch};

/// Small limits, so that trimming happens all the time.
const EVENTS: usize = 60;
const BYTES: usize = 30_000;

pub(crate) enum Backing {
    Memory,
    File(tempfile::TempDir),
}

impl Backing {
    pub(crate) fn file() -> Backing {
        Backing::File(tempfile::tempdir().unwrap())
    }

    fn open(&self, burst: usize) -> Store {
        let options = Options { history_events: EVENTS, history_bytes: BYTES, history_burst: burst };
        match self {
            Backing::Memory => Store::memory_with(options),
            Backing::File(directory) => Store::open(&directory.path().join("store"), options).unwrap(),
        }
    }
}

pub(crate) struct Runner {
    random: fastrand::Rng,
    seed: u64,
    burst: usize,
    /// The newest revision that history was cut at on demand.
    cut: Revision,
    backing: Backing,
    store: Store,
    /// The map at each revision, from the first on.
    maps: BTreeMap<Revision, BTreeMap<Bytes, Entry>>,
    /// All events there ever were.
    events: Vec<Event>,
    watchers: Vec<Watcher>,
    compacted: Revision,
}

struct Watcher {
    watch: Watch,
    prefix: Bytes,
    /// How many of `events` it has passed.
    passed: usize,
    progress: Revision,
}

/// As the store weighs an event.
fn weight(event: &Event) -> usize {
    256 + event.key.len() + event.previous.as_ref().map_or(0, Bytes::len)
}

impl Runner {
    pub(crate) fn new(seed: u64, backing: Backing) -> Runner {
        // Half of the runs keep for a while what a watcher has yet to read.
        let burst = if seed.is_multiple_of(2) { 4 } else { 1 };
        let store = backing.open(burst);
        Runner {
            random: fastrand::Rng::with_seed(seed),
            seed,
            burst,
            cut: 0,
            backing,
            maps: BTreeMap::from([(store.revision(), BTreeMap::new())]),
            store,
            events: Vec::new(),
            watchers: Vec::new(),
            compacted: 0,
        }
    }

    pub(crate) fn run(mut self, steps: usize) {
        for _ in 0..steps {
            match self.random.u32(0..100) {
                0..55 => self.commit(),
                55..70 => self.read(),
                70..76 => self.open_watch(),
                76..90 => self.drain_watch(),
                90..93 => self.drop_watch(),
                93..96 => self.compact(),
                96..98 => self.get(),
                _ => self.restart(),
            }
            self.look();
        }
        self.watchers.clear();
        let stats = self.store.stats();
        assert_eq!((stats.watchers, stats.keys), (0, self.now().len()), "seed {}", self.seed);
    }

    fn now(&self) -> &BTreeMap<Bytes, Entry> {
        self.maps.last_key_value().unwrap().1
    }

    /// What must hold after every step.
    fn look(&mut self) {
        assert_eq!(self.store.revision(), *self.maps.last_key_value().unwrap().0);
        let compacted = self.store.compacted();
        assert!(self.compacted <= compacted, "seed {}: history came back", self.seed);
        self.compacted = compacted;
        let stats = self.store.stats();
        assert!(stats.history_events <= EVENTS * self.burst, "seed {}", self.seed);
        let kept = self.events.iter().filter(|event| event.revision > compacted).count();
        assert_eq!(stats.history_events, kept, "seed {}: the log begins where it says", self.seed);
    }

    fn key(&mut self) -> Bytes {
        const KEYS: [&str; 12] = ["", "a", "a/", "a/b", "a/b/c", "a/b/d", "a/c", "ab", "b", "b/a", "b/\u{ff}", "c"];
        if self.random.bool() {
            return Bytes::from(self.random.choice(KEYS).unwrap());
        }
        Bytes::from(format!("a/b/{}", self.random.u32(0..20)))
    }

    fn commit(&mut self) {
        let count = *self.random.choice([1, 1, 1, 2, 3].iter()).unwrap();
        let mut txn = Txn::new();
        let mut steps = Vec::new();
        for _ in 0..count {
            let key = self.key();
            let current = self.now().get(&key).map(|entry| entry.modified);
            let expect = match self.random.u32(0..10) {
                0..4 => Expect::Any,
                4 => Expect::Absent,
                5 => Expect::Revision(self.random.u64(0..=self.store.revision())),
                _ => current.map_or(Expect::Absent, Expect::Revision),
            };
            let op = match self.random.u32(0..10) {
                0..6 => {
                    let size = self.random.usize(0..600);
                    Op::Put(Bytes::from(vec![self.random.u8(..); size]))
                }
                6..9 => Op::Delete,
                _ => Op::Check,
            };
            txn = txn.step(key.clone(), expect, op.clone());
            steps.push((key, expect, op));
        }
        let before = self.store.revision();
        let outcome = self.store.commit(txn);
        match (self.apply(before, steps), outcome) {
            (Ok(revision), Ok(committed)) => {
                assert_eq!(committed.revision, revision, "seed {}", self.seed);
                if self.random.u32(0..20) == 0 {
                    committed.durable.wait_blocking().unwrap();
                    assert!(self.store.stats().durable >= revision);
                }
            }
            (Err(expected), Err(error)) => assert_eq!(expected, format!("{error:?}")),
            (expected, outcome) => panic!("seed {}: {expected:?}, got {outcome:?}", self.seed),
        }
    }

    /// The model's own commit: the new revision, or the error in its debug form.
    fn apply(&mut self, before: Revision, steps: Vec<(Bytes, Expect, Op)>) -> Result<Revision, String> {
        let mut keys: Vec<&Bytes> = steps.iter().map(|step| &step.0).collect();
        keys.sort();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{:?}", Error::DuplicateKey { key: pair[0].clone() }));
        }
        let mut map = self.now().clone();
        for (key, expect, _) in &steps {
            let current = map.get(key).map(|entry| entry.modified);
            let holds = match expect {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::Revision(revision) => current == Some(*revision),
            };
            if !holds {
                return Err(format!("{:?}", Error::Conflict { key: key.clone(), current }));
            }
        }
        let revision = before + 1;
        let mut events = Vec::new();
        for (key, _, op) in steps {
            let old = map.get(&key).cloned();
            let previous = old.as_ref().map(|entry| entry.value.clone());
            match op {
                Op::Put(value) => {
                    let created = old.map_or(revision, |entry| entry.created);
                    let entry = Entry { key: key.clone(), value: value.clone(), created, modified: revision };
                    map.insert(key.clone(), entry);
                    events.push(Event { revision, key, value: Some(value), previous });
                }
                Op::Delete if old.is_some() => {
                    map.remove(&key);
                    events.push(Event { revision, key, value: None, previous });
                }
                Op::Delete | Op::Check => {}
            }
        }
        if events.is_empty() {
            return Ok(before);
        }
        self.events.extend(events);
        self.maps.insert(revision, map);
        Ok(revision)
    }

    fn get(&mut self) {
        let key = self.key();
        assert_eq!(self.store.get(&key).as_ref(), self.now().get(&key), "seed {}", self.seed);
    }

    /// Reads a range page by page, at now or some revision, and compares it with the model's.
    fn read(&mut self) {
        let prefix = self.prefix();
        let newest = self.store.revision();
        let at = match self.random.u32(0..4) {
            0 => None,
            1 => Some(self.random.u64(0..newest + 3)),
            _ => Some(self.random.u64(self.compacted..=newest)),
        };
        let moment = at.unwrap_or(newest);
        let first = self.store.range(&prefix, None, 0, at);
        if moment < self.compacted {
            assert!(matches!(first, Err(Error::Compacted { requested, compacted })
                if requested == moment && compacted == self.compacted));
            return;
        }
        if moment > newest {
            assert!(matches!(first, Err(Error::Future { requested, current })
                if requested == moment && current == newest));
            return;
        }
        // Revision 0 and the gaps that a restart leaves show what was there before them.
        let empty = BTreeMap::new();
        let map = self.maps.range(..=moment).next_back().map_or(&empty, |(_, map)| map);
        let expected: Vec<&Entry> =
            map.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, entry)| entry).collect();
        assert_eq!(first.unwrap().remaining, expected.len(), "seed {}", self.seed);
        let mut read: Vec<Entry> = Vec::new();
        loop {
            let limit = self.random.usize(1..8);
            let after = read.last().map(|entry| entry.key.clone());
            let page = self.store.range(&prefix, after.as_deref(), limit, at).unwrap();
            assert_eq!(page.revision, moment);
            assert!(page.entries.len() <= limit);
            assert_eq!(page.more, page.remaining > 0);
            read.extend(page.entries);
            assert_eq!(read.len() + page.remaining, expected.len());
            if !page.more {
                break;
            }
        }
        assert_eq!(read.iter().collect::<Vec<_>>(), expected, "seed {}, at {at:?}", self.seed);
    }

    fn prefix(&mut self) -> Bytes {
        let key = self.key();
        let length = self.random.usize(0..=key.len());
        key.slice(..length)
    }

    fn open_watch(&mut self) {
        let prefix = self.prefix();
        let newest = self.store.revision();
        let from = match self.random.u32(0..4) {
            0 => self.random.u64(0..newest + 3),
            1 => newest,
            _ => self.random.u64(self.compacted..=newest),
        };
        match self.store.watch(&prefix, from) {
            Ok(watch) => {
                assert!((self.compacted..=newest).contains(&from), "seed {}", self.seed);
                let passed = self.events.partition_point(|event| event.revision <= from);
                self.watchers.push(Watcher { watch, prefix, passed, progress: 0 });
            }
            Err(Error::Compacted { .. }) => assert!(from < self.compacted),
            Err(Error::Future { .. }) => assert!(from > newest),
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    fn drain_watch(&mut self) {
        let Some(at) = (!self.watchers.is_empty()).then(|| self.random.usize(..self.watchers.len())) else {
            return;
        };
        let watcher = &mut self.watchers[at];
        for _ in 0..self.random.usize(1..60) {
            let progress = watcher.watch.progress();
            assert!(progress >= watcher.progress, "seed {}: progress went back", self.seed);
            watcher.progress = progress;
            let next = self.events[watcher.passed..]
                .iter()
                .position(|event| event.key.starts_with(&watcher.prefix))
                .map(|skipped| watcher.passed + skipped);
            match (watcher.watch.try_next(), next) {
                (Poll::Pending, None) => {
                    assert_eq!(progress, self.store.revision(), "seed {}", self.seed);
                    return;
                }
                (Poll::Ready(Some(Ok(event))), Some(next)) => {
                    assert_eq!(event, self.events[next], "seed {}", self.seed);
                    assert_eq!(progress.max(event.revision - 1), progress, "seed {}", self.seed);
                    assert!(progress < event.revision, "seed {}", self.seed);
                    watcher.passed = next + 1;
                }
                (Poll::Ready(Some(Err(Lagged { seen }))), Some(next)) => {
                    let missed = self.events[next].revision;
                    assert!(missed <= self.compacted && seen < missed, "seed {}", self.seed);
                    // Nobody is left behind who could have been waited for.
                    let since = &self.events[self.events.partition_point(|event| event.revision < missed)..];
                    let weight: usize = since.iter().map(weight).sum();
                    let too_much = since.len() > EVENTS * self.burst || weight > BYTES * self.burst;
                    assert!(missed <= self.cut || too_much, "seed {}: {} events", self.seed, since.len());
                    assert_eq!(watcher.watch.try_next(), Poll::Ready(None));
                    self.watchers.swap_remove(at);
                    return;
                }
                (got, next) => panic!("seed {}: {got:?}, expected event {next:?}", self.seed),
            }
        }
    }

    fn drop_watch(&mut self) {
        if !self.watchers.is_empty() {
            let at = self.random.usize(..self.watchers.len());
            self.watchers.swap_remove(at);
        }
    }

    fn compact(&mut self) {
        let to = self.random.u64(0..self.store.revision() + 3);
        self.store.compact(to);
        self.cut = self.cut.max(to);
        assert_eq!(self.store.compacted(), self.compacted.max(to.min(self.store.revision())));
    }

    /// Closes and opens a file store; a memory store is left alone.
    fn restart(&mut self) {
        if matches!(self.backing, Backing::Memory) {
            return;
        }
        let revision = self.store.revision();
        self.store.clone().close().unwrap();
        assert!(matches!(self.store.commit(Txn::new().delete("a", Expect::Any)), Err(Error::Closed)));
        for watcher in &mut self.watchers {
            while let Poll::Ready(Some(Ok(_))) = watcher.watch.try_next() {}
            assert_eq!(watcher.watch.try_next(), Poll::Ready(None));
        }
        self.watchers.clear();
        self.store = self.backing.open(self.burst);
        assert_eq!(self.store.revision(), revision, "seed {}", self.seed);
        if revision > 1 {
            assert_eq!(self.store.compacted(), revision);
        }
    }
}
