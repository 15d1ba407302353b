//! A process that writes is killed at random moments, a hundred times. Afterwards the store must open,
//! hold every write that was acknowledged, and never give out a revision again.
//!
//! The child is this test binary itself, told by the environment to write. It prints a line
//! for each revision it was given and for each write it was told is durable; what reached the pipe
//! before the kill is what somebody outside may have seen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use neap_store::{Error, Expect, Options, Revision, Store, Txn};

const CHILD: &str = "NEAP_STORE_CRASH_CHILD";
const KILLS: u64 = 100;
/// Rounds on one file before the next begins with none, so that its creation is hit too.
const ROUNDS_PER_FILE: u64 = 10;
const KEYS: u64 = 40;

/// What a child was told is durable.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    number: u64,
    revision: Revision,
}

/// Not a test of its own: what the child runs.
#[test]
fn child() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let mut random = fastrand::Rng::with_seed(0x6e656170);
    let mut killed_in_open = 0;
    let mut acknowledged_in_all = 0;
    let mut directory = tempfile::tempdir().unwrap();
    // The last of each key.
    let mut known: HashMap<u64, Acknowledged> = HashMap::new();
    let mut given: Revision = 0;
    for round in 0..KILLS {
        if round % ROUNDS_PER_FILE == 0 {
            directory = tempfile::tempdir().unwrap();
            known.clear();
            given = 0;
        }
        let path = directory.path().join("store");
        let mut child = spawn(&path);
        // Some are killed while they start, create or open the file, the others somewhere on their way.
        let early = round % ROUNDS_PER_FILE < 3;
        let lines = if early { 0 } else { random.usize(0..120) };
        let spins = if round % ROUNDS_PER_FILE == 0 { 0 } else { random.u64(0..300_000) };
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = Vec::new();
        heard.extend(output.by_ref().take(lines).map(Result::unwrap));
        if heard.iter().any(|line| line.starts_with("given")) {
            let second = Store::open(&path, Options::default());
            assert!(matches!(second, Err(Error::InUse { .. })), "round {round}: {second:?}");
        }
        for _ in 0..spins {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        heard.extend(output.map(Result::unwrap));
        if !heard.iter().any(|line| line.starts_with("given")) {
            killed_in_open += 1;
        }
        for line in heard {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["given", revision, "."] => {
                    let revision = revision.parse().unwrap();
                    assert!(revision > given, "round {round}: {revision} was given out twice");
                    given = revision;
                }
                ["durable", revision, number, "."] => {
                    acknowledged_in_all += 1;
                    let (revision, number) = (revision.parse().unwrap(), number.parse().unwrap());
                    known.insert(number % KEYS, Acknowledged { number, revision });
                }
                // The line that was being written, or the test harness's own output.
                _ => {}
            }
        }
        inspect(&path, round, &known, given);
    }
    assert!(killed_in_open > 0, "some kills were meant to hit the opening");
    assert!(acknowledged_in_all > 1_000, "only {acknowledged_in_all} writes were acknowledged");
}

/// Opens the store a killed child left and compares it with what the child had said.
fn inspect(path: &Path, round: u64, known: &HashMap<u64, Acknowledged>, given: Revision) {
    let store = Store::open(path, Options::default()).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
    assert!(store.revision() >= given, "round {round}: {given} would be given out again");
    if given > 0 {
        // What was seen before the crash may be gone, so nobody may go on from there.
        assert!(matches!(store.watch(b"", given - 1), Err(Error::Compacted { .. })), "round {round}");
    }
    // Each transaction notes its number, and what a number writes is fixed, so the last one says what must
    // be there: all of the transactions up to it, nothing of any other.
    let last = number(&store);
    for key in 0..KEYS {
        let writer = (0..=last).rev().find(|number| *number > 0 && number % KEYS == key);
        let expected = writer.and_then(value);
        let found = store.get(key.to_string().as_bytes());
        let same = found.as_ref().map(|entry| &entry.value[..]) == expected.as_deref().map(str::as_bytes);
        assert!(same, "round {round}: {writer:?} of {last} wrote key {key}, but it is {found:?}");
        if let Some(Acknowledged { number, revision }) = known.get(&key).copied() {
            assert!(last >= number, "round {round}: {number} was acknowledged, the last is {last}");
            if let (Some(entry), true) = (found, writer == Some(number)) {
                assert_eq!(entry.modified, revision, "round {round}, number {number}");
            }
        }
    }
    // Every other time the next child finds the file as an orderly end left it, else as this one did.
    if round.is_multiple_of(2) {
        store.close().unwrap();
    }
}

fn spawn(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the write with this number puts at its key; `None`: it removes the key. Values of up to some pages,
/// so that the file's trees change shape.
fn value(number: u64) -> Option<String> {
    let removes = (number / KEYS) % 5 == 4;
    (!removes).then(|| format!("{number}{}", ".".repeat((number * 97 % 9_000) as usize)))
}

/// The last number written.
fn number(store: &Store) -> u64 {
    store.get(b"number").map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap())
}

fn write_until_killed(path: &Path) {
    let store = Store::open(path, Options::default()).unwrap();
    let mut stdout = std::io::stdout();
    // One write to the pipe per line; the dot shows that a line is whole.
    let mut say = |line: String| {
        stdout.write_all(format!("{line} .\n").as_bytes()).unwrap();
        stdout.flush().unwrap();
    };
    // Goes on where the last child ended, so that every key sees both puts and removals.
    let mut number = number(&store);
    loop {
        // A few writes are begun before the first is waited for, so that they share a sync.
        let mut burst = Vec::new();
        for _ in 0..1 + number % 4 {
            number += 1;
            let key = (number % KEYS).to_string();
            let txn = Txn::new().put("number", Expect::Any, number.to_string());
            let txn = match value(number) {
                Some(value) => txn.put(key, Expect::Any, value),
                None => txn.delete(key, Expect::Any),
            };
            let committed = store.commit(txn).unwrap();
            say(format!("given {}", committed.revision));
            burst.push((number, committed));
        }
        for (number, committed) in burst {
            committed.durable.wait_blocking().unwrap();
            say(format!("durable {} {number}", committed.revision));
        }
    }
}
