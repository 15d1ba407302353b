//! Many threads on one store: no update is lost, and every watcher sees all of them in order.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::thread;

use neap_store::{Error, Expect, Options, Revision, Store, Txn};

const WRITERS: u64 = 4;
const INCREMENTS: u64 = 500;

fn counter(store: &Store, key: &str) -> (Expect, u64) {
    match store.get(key.as_bytes()) {
        None => (Expect::Absent, 0),
        Some(entry) => {
            let number = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
            (Expect::Revision(entry.modified), number)
        }
    }
}

/// Adds one to a shared and to an own counter in one transaction, again and again.
fn write(store: &Store, writer: u64) -> u64 {
    let own = format!("own/{writer}");
    let mut conflicts = 0;
    for _ in 0..INCREMENTS {
        loop {
            let (expect, number) = counter(store, "shared");
            let (own_expect, own_number) = counter(store, &own);
            let txn = Txn::new().put("shared", expect, (number + 1).to_string()).put(
                own.clone(),
                own_expect,
                (own_number + 1).to_string(),
            );
            match store.commit(txn) {
                Ok(_) => break,
                Err(Error::Conflict { .. } | Error::Busy { .. }) => conflicts += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    conflicts
}

/// Reads events of `prefix` until `count` were seen; checks that none is missing or out of order.
fn read(store: &Store, prefix: &str, from: Revision, count: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut watch = store.watch(prefix.as_bytes(), from).unwrap();
    runtime.block_on(async {
        let mut last = from;
        for number in 1..=count {
            let event = watch.next().await.unwrap().unwrap();
            assert!(event.revision > last);
            last = event.revision;
            assert_eq!(event.value.unwrap(), number.to_string(), "{prefix}");
        }
    });
}

fn check(store: Store) {
    let from = store.revision();
    thread::scope(|scope| {
        for reader in 0..WRITERS {
            let store = &store;
            scope.spawn(move || read(store, "shared", from, WRITERS * INCREMENTS));
            scope.spawn(move || read(store, &format!("own/{reader}"), from, INCREMENTS));
        }
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || write(store, writer));
        }
    });
    assert_eq!(store.revision(), from + WRITERS * INCREMENTS);
    assert_eq!(store.stats().watchers, 0);
    store.flush().wait_blocking().unwrap();
    store.close().unwrap();
}

#[test]
fn memory() {
    check(Store::memory());
}

#[test]
fn file() {
    let directory = tempfile::tempdir().unwrap();
    check(Store::open(&directory.path().join("store"), Options::default()).unwrap());
}
