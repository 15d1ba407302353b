//! The store on disks that misbehave: one that forgets what was not synced, one that fills up, one that
//! fails, one that hangs.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::*;
use crate::store::{Options, Store};
use crate::txn::{Expect, Txn};
use crate::writer::{PENDING_CHANGES, Pace};

/// Sectors are written whole or not at all; which of several, a power cut decides.
const SECTOR: usize = 512;

/// A disk in memory.
#[derive(Debug)]
struct Fake {
    state: Mutex<State>,
    /// Held by a test to make syncs hang.
    gate: Mutex<()>,
    syncs: AtomicU64,
    /// What the test knows to be durable, and to have been given out; noted in the images.
    durable: AtomicU64,
    given: AtomicU64,
}

#[derive(Debug)]
struct State {
    live: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
    random: fastrand::Rng,
    /// Whether to keep images, and those kept.
    images: Option<Vec<Image>>,
    /// Operations until this failure begins, and lasts.
    failure: Option<(u64, Failing)>,
}

#[derive(Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

/// What a power cut at some moment would have left.
#[derive(Debug)]
struct Image {
    bytes: Vec<u8>,
    durable: Revision,
    given: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failing {
    /// Writes find no room; syncs still work.
    Full,
    /// Only syncs fail.
    Sync,
    /// Everything fails.
    All,
}

impl Fake {
    fn new(seed: u64, bytes: Vec<u8>) -> Arc<Fake> {
        let state = State {
            live: bytes.clone(),
            synced: bytes,
            unsynced: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            images: None,
            failure: None,
        };
        Arc::new(Fake {
            state: Mutex::new(state),
            gate: Mutex::new(()),
            syncs: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            given: AtomicU64::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn fail(&self, after: u64, how: Failing) {
        self.state().failure = Some((after, how));
    }

    fn heal(&self) {
        self.state().failure = None;
    }

    /// Before each operation: perhaps an image, perhaps a failure.
    fn enter(&self, writes: bool, syncs: bool) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.images.is_some() && state.random.u32(0..10) == 0 {
            let bytes = state.after_power_cut();
            let durable = self.durable.load(Ordering::SeqCst);
            let given = self.given.load(Ordering::SeqCst);
            state.images.as_mut().unwrap().push(Image { bytes, durable, given });
        }
        let Some((after, how)) = &mut state.failure else {
            return Ok(state);
        };
        if *after > 0 {
            *after -= 1;
            return Ok(state);
        }
        match how {
            Failing::Full if writes => Err(ErrorKind::StorageFull.into()),
            Failing::Sync if syncs => Err(io::Error::other("the disk does not sync")),
            Failing::All => Err(io::Error::other("the disk is gone")),
            Failing::Full | Failing::Sync => Ok(state),
        }
    }
}

impl State {
    fn after_power_cut(&mut self) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let random = &mut self.random;
        let odds = random.u32(0..=4);
        let mut survives = || random.u32(0..4) < odds;
        for unsynced in &self.unsynced {
            match unsynced {
                Unsynced::Write(offset, data) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if survives() {
                            put(&mut bytes, offset + number * SECTOR, sector);
                        }
                    }
                }
                Unsynced::SetLen(len) => {
                    if survives() {
                        bytes.resize(*len, 0);
                    }
                }
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

impl Device for Fake {
    fn len(&self) -> io::Result<u64> {
        Ok(self.enter(false, false)?.live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.enter(false, false)?;
        let from = offset as usize;
        let source = state.live.get(from..from + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(source);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.enter(true, false)?;
        put(&mut state.live, offset as usize, data);
        state.unsynced.push(Unsynced::Write(offset as usize, data.to_vec()));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.enter(true, false)?;
        state.live.resize(len as usize, 0);
        state.unsynced.push(Unsynced::SetLen(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let _gate = self.gate.lock().unwrap();
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut state = self.enter(false, true)?;
        state.unsynced.clear();
        state.synced = state.live.clone();
        Ok(())
    }
}

const PACE: Pace = Pace { linger: Duration::from_millis(1), retry: Duration::from_millis(1) };

fn path() -> &'static Path {
    Path::new("/fake/store")
}

fn create(device: &Arc<Fake>, pace: Pace) -> Store {
    Disk::create(device.clone(), path()).unwrap().finish(FIRST_REVISION).unwrap();
    open(device, pace).unwrap()
}

fn open(device: &Arc<Fake>, pace: Pace) -> Result<Store, Error> {
    Store::open_on(device.clone(), path(), Options::default(), pace)
}

type Map = BTreeMap<Bytes, Entry>;

fn content(store: &Store) -> Map {
    let entries = store.range(b"", None, usize::MAX, None).unwrap().entries;
    entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect()
}

/// Random commits, until `count` or one fails; the content after each revision.
struct Workload<'a> {
    store: &'a Store,
    device: &'a Fake,
    random: fastrand::Rng,
    contents: BTreeMap<Revision, Map>,
}

impl<'a> Workload<'a> {
    fn new(store: &'a Store, device: &'a Fake, seed: u64) -> Workload<'a> {
        let contents = BTreeMap::from([(store.revision(), content(store))]);
        Workload { store, device, random: fastrand::Rng::with_seed(seed), contents }
    }

    fn run(&mut self, count: usize) -> Result<(), Error> {
        for _ in 0..count {
            let mut txn = Txn::new();
            for name in ["x", "y"] {
                let key = format!("{name}-{}", self.random.u32(0..25));
                txn = if self.random.u32(0..5) == 0 {
                    txn.delete(key, Expect::Any)
                } else {
                    let size = self.random.usize(0..6_000);
                    txn.put(key, Expect::Any, vec![self.random.u8(..); size])
                };
            }
            let committed = self.store.commit(txn)?;
            self.device.given.store(committed.revision, Ordering::SeqCst);
            self.contents.insert(committed.revision, content(self.store));
            if self.random.u32(0..3) > 0 {
                committed.durable.wait_blocking()?;
                self.device.durable.store(committed.revision, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// The image must hold the content of one revision, at least the one that was durable.
    #[track_caller]
    fn check(&self, image: Image, what: &str) {
        let device = Fake::new(1, image.bytes);
        let store = open(&device, PACE).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let revision = store.revision();
        assert!(revision >= image.given, "{what}: {revision} after {} was given", image.given);
        let found = content(&store);
        let durable = self.contents.range(..=image.durable).next_back().map_or(0, |(at, _)| *at);
        let sound = self.contents.range(durable..).any(|(_, content)| *content == found);
        assert!(sound, "{what}: not the content of any revision from {durable} on");
        // And it goes on from there.
        let committed = store.commit(Txn::new().put("after", Expect::Any, "")).unwrap();
        assert!(committed.revision > image.given);
        committed.durable.wait_blocking().unwrap();
        store.close().unwrap();
    }
}

#[test]
fn a_power_cut_loses_nothing_durable_and_tears_nothing() {
    let mut checked = 0;
    for seed in 0..5 {
        let device = Fake::new(seed, Vec::new());
        let store = create(&device, PACE);
        device.state().images = Some(Vec::new());
        let mut workload = Workload::new(&store, &device, seed);
        workload.run(60).unwrap();
        store.clone().close().unwrap();
        let images = device.state().images.take().unwrap();
        for (number, image) in images.into_iter().enumerate() {
            workload.check(image, &format!("seed {seed}, image {number}"));
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} power cuts were tried");
}

#[test]
fn a_failure_at_any_operation_is_told_and_loses_nothing_durable() {
    for how in [Failing::Full, Failing::Sync, Failing::All] {
        let mut failures = 0;
        for after in (0..).step_by(7) {
            let device = Fake::new(after, Vec::new());
            let store = create(&device, PACE);
            let mut workload = Workload::new(&store, &device, 5);
            device.fail(after, how);
            let what = format!("{how:?} after {after} operations");
            let outcome = workload.run(12).and_then(|()| store.flush().wait_blocking());
            if outcome.is_ok() {
                break;
            }
            failures += 1;
            let Err(Error::Broken { heals, path: of, .. }) = &outcome else {
                panic!("{what}: {outcome:?}");
            };
            assert_eq!((*heals, of.as_path()), (how == Failing::Full, path()), "{what}");
            // Reads go on, with everything that was visible; writes are refused with the same error.
            let (revision, last) = workload.contents.last_key_value().unwrap();
            assert_eq!((store.revision(), &content(&store)), (*revision, last), "{what}");
            let refused = store.commit(Txn::new().put("more", Expect::Any, "")).unwrap_err();
            assert_eq!(refused.to_string(), outcome.unwrap_err().to_string());
            assert!(matches!(store.clone().close(), Err(Error::Broken { .. })), "{what}");
            let image = Image {
                bytes: device.state().after_power_cut(),
                durable: device.durable.load(Ordering::SeqCst),
                given: device.given.load(Ordering::SeqCst),
            };
            workload.check(image, &what);
        }
        assert!(failures > 10, "{how:?}: only {failures} failures were tried");
    }
}

#[test]
fn a_full_disk_heals_by_itself() {
    let device = Fake::new(1, Vec::new());
    let store = create(&device, PACE);
    let mut workload = Workload::new(&store, &device, 1);
    workload.run(10).unwrap();
    device.fail(0, Failing::Full);
    let mut watch = store.watch(b"lost?", store.revision()).unwrap();
    let committed = store.commit(Txn::new().put("lost?", Expect::Any, "no")).unwrap();
    let error = committed.durable.wait_blocking().unwrap_err();
    assert!(matches!(error, Error::Broken { heals: true, .. }), "{error:?}");
    assert!(watch.try_next().is_ready());
    let retry = || store.commit(Txn::new().put("after", Expect::Any, ""));
    assert!(matches!(retry(), Err(Error::Broken { heals: true, .. })));
    device.heal();
    // The writer tries again each millisecond; the bound is some seconds of trying.
    let healed = (0..100_000_000).find_map(|_| {
        std::thread::yield_now();
        retry().ok()
    });
    let healed = healed.expect("it never healed");
    assert_eq!(healed.revision, committed.revision + 1, "no revision was used by a refused write");
    healed.durable.wait_blocking().unwrap();
    let expected = content(&store);
    let image = device.state().synced.clone();
    drop(store);
    let store = open(&Fake::new(1, image), PACE).unwrap();
    assert_eq!(content(&store), expected);
    assert_eq!(store.get(b"lost?").unwrap().value, "no");
}

#[test]
fn closing_a_store_that_could_heal_tries_once_more() {
    let device = Fake::new(1, Vec::new());
    let store = create(&device, Pace { retry: Duration::from_secs(3_600), ..PACE });
    device.fail(0, Failing::Full);
    let committed = store.commit(Txn::new().put("a", Expect::Any, "b")).unwrap();
    assert!(committed.durable.wait_blocking().is_err());
    device.heal();
    store.close().unwrap();
    assert_eq!(open(&device, PACE).unwrap().get(b"a").unwrap().value, "b");
}

#[test]
fn writes_share_a_sync_and_a_waiter_does_not_linger() {
    let device = Fake::new(1, Vec::new());
    let store = create(&device, Pace { linger: Duration::from_secs(3_600), ..PACE });
    let before = device.syncs.load(Ordering::SeqCst);
    for number in 0..1_000 {
        let key = format!("key-{}", number % 100);
        let _ = store.commit(Txn::new().put(key, Expect::Any, number.to_string())).unwrap();
    }
    assert_eq!(device.syncs.load(Ordering::SeqCst), before, "nobody waits yet");
    assert_eq!(store.stats().pending_changes, 100);
    store.flush().wait_blocking().unwrap();
    let syncs = device.syncs.load(Ordering::SeqCst) - before;
    assert!((1..=3).contains(&syncs), "{syncs} syncs for one batch");
    assert_eq!(store.stats().durable, store.revision());
}

/// With the disk hanging, commits go on until the backlog is full, then are refused, then go on.
#[test]
fn a_hanging_disk_is_told_as_busy() {
    let device = Fake::new(1, Vec::new());
    let store = create(&device, PACE);
    let commit = |key: String| store.commit(Txn::new().put(key, Expect::Any, "")).map(drop);

    let gate = device.gate.lock().unwrap();
    let many = (0..3 * PENDING_CHANGES).find_map(|number| commit(format!("{number:06}")).err());
    let Some(Error::Busy { waiting, .. }) = many else {
        panic!("{many:?}");
    };
    assert_eq!(waiting, PENDING_CHANGES);
    drop(gate);
    store.flush().wait_blocking().unwrap();
    commit("again".to_owned()).unwrap();
    store.flush().wait_blocking().unwrap();

    // One key never fills the backlog, but it uses up the reserved revisions.
    let gate = device.gate.lock().unwrap();
    let start = store.revision();
    let one = (0..3 * RESERVED_REVISIONS).find_map(|_| commit("one".to_owned()).err());
    assert!(matches!(one, Some(Error::Busy { waiting: 0..=1, .. })), "{one:?}");
    let given = store.revision();
    assert!(given > start);
    let image = device.state().after_power_cut();
    drop(gate);
    assert!(open(&Fake::new(1, image), PACE).unwrap().revision() >= given);
    store.flush().wait_blocking().unwrap();
    commit("again".to_owned()).unwrap();
}
