//! What may be found where a store should be, and what is said about it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use neap_store::{Error, Expect, FORMAT, Options, Store, Txn};
use redb::{Database, TableDefinition};

fn open(path: &Path) -> Result<Store, Error> {
    Store::open(path, Options::default())
}

/// A store with some content, as a file's bytes.
fn sound(path: &Path) -> Vec<u8> {
    let store = open(path).unwrap();
    for number in 0..300 {
        let value = vec![number as u8; number * 7];
        let _ = store.commit(Txn::new().put(format!("key-{number}"), Expect::Any, value)).unwrap();
    }
    store.close().unwrap();
    fs::read(path).unwrap()
}

/// Puts `content` at a path, opens it, and expects a refusal that names the file and changes nothing.
#[track_caller]
fn refused(content: &[u8]) -> Error {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("the-store");
    fs::write(&path, content).unwrap();
    let error = open(&path).expect_err("a bad file was opened");
    assert!(error.to_string().contains("the-store"), "{error} does not name the file");
    assert!(fs::read(&path).unwrap() == content, "a refused file was changed: {error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "something was left beside it");
    error
}

#[test]
fn one_owner_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("the-store");
    let store = open(&path).unwrap();
    let second = open(&path).unwrap_err();
    assert!(matches!(&second, Error::InUse { path: of } if *of == path), "{second:?}");
    assert!(second.to_string().contains("the-store"));
    // Any handle keeps it; closing one releases it for all.
    let clone = store.clone();
    drop(store);
    assert!(matches!(open(&path), Err(Error::InUse { .. })));
    clone.close().unwrap();
    drop(open(&path).unwrap());
    // Dropping is closing.
    open(&path).unwrap().close().unwrap();
}

#[test]
fn a_new_file_is_private_and_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    // What a crash during an earlier creation left.
    fs::write(directory.path().join("store.new"), b"half a file").unwrap();
    let store = open(&path).unwrap();
    assert_eq!((store.revision(), store.compacted()), (1, 0));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn an_unused_store_keeps_its_first_revision() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    open(&path).unwrap().close().unwrap();
    let store = open(&path).unwrap();
    assert_eq!((store.revision(), store.compacted()), (1, 0));
}

#[test]
fn a_missing_directory_is_named() {
    let error = open(Path::new("/nonexistent-neap/store")).unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    assert!(error.to_string().contains("/nonexistent-neap/store"));
}

#[test]
fn a_directory_is_not_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Open { .. } | Error::Foreign { .. }), "{error:?}");
}

#[test]
fn foreign_files_are_refused() {
    assert!(matches!(refused(b"apiVersion: v1\nkind: List\n"), Error::Foreign { .. }));
    assert!(matches!(refused(&[0; 100_000]), Error::Foreign { .. }));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other");
    let other: TableDefinition<u64, u64> = TableDefinition::new("somebody-elses");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(other).unwrap().insert(1, 2).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(refused(&fs::read(&path).unwrap()), Error::Foreign { .. }));
    // The same name with other types is somebody else's, too.
    let meta: TableDefinition<u64, u64> = TableDefinition::new("neap-meta");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(meta).unwrap().insert(1, 2).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(refused(&fs::read(&path).unwrap()), Error::Foreign { .. }));
}

#[test]
fn another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    sound(&path);
    let meta: TableDefinition<&str, &[u8]> = TableDefinition::new("neap-meta");
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(meta).unwrap().insert("format", [FORMAT + 1].as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = refused(&fs::read(&path).unwrap());
    assert!(matches!(error, Error::Format { found, supported: FORMAT, .. } if found == FORMAT + 1), "{error:?}");
}

#[test]
fn truncated_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let whole = sound(&directory.path().join("store"));
    let mut random = fastrand::Rng::with_seed(11);
    let mut lengths = vec![0, 1, 8, 9, 63, 320, 4_095, 4_096, 8_192, whole.len() / 2, whole.len() - 1];
    lengths.extend((0..40).map(|_| random.usize(..whole.len())));
    for length in lengths {
        let error = refused(&whole[..length]);
        assert!(matches!(error, Error::Corrupt { .. }), "cut to {length}: {error:?}");
    }
}

/// Flipped bits are found, or do not matter; they never become other content, and never a panic.
#[test]
fn damaged_files_are_refused_or_sound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let whole = sound(&path);
    let entries = |store: &Store| store.range(b"", None, usize::MAX, None).unwrap().entries;
    let expected = entries(&open(&path).unwrap());
    let mut random = fastrand::Rng::with_seed(12);
    let mut found = 0;
    for round in 0..150 {
        let mut damaged = whole.clone();
        // Half of the rounds aim at the headers, where most is decided.
        let range = if round % 2 == 0 { 0..320 } else { 0..whole.len() };
        for _ in 0..random.usize(1..4) {
            damaged[random.usize(range.clone())] ^= 1 << random.u32(0..8);
        }
        fs::write(&path, &damaged).unwrap();
        match open(&path) {
            Ok(store) => assert!(entries(&store) == expected, "round {round}: other content"),
            Err(error) => {
                found += 1;
                assert!(matches!(error, Error::Corrupt { .. } | Error::Foreign { .. }), "round {round}: {error:?}");
                assert!(fs::read(&path).unwrap() == damaged, "round {round}: it was changed");
            }
        }
    }
    assert!(found > 20, "only {found} damages were found");
}

/// redb gives room back to the file system by itself; nothing here has to.
#[test]
fn a_file_that_held_much_more_gets_small_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("the-store");
    let store = open(&path).unwrap();
    let value = vec![7u8; 1024 * 1024];
    for number in 0..24 {
        let put = Txn::new().put(format!("key-{number}"), Expect::Any, value.clone());
        store.commit(put).unwrap().durable.wait_blocking().unwrap();
    }
    let full = fs::metadata(&path).unwrap().len();
    for number in 1..24 {
        let delete = Txn::new().delete(format!("key-{number}"), Expect::Any);
        store.commit(delete).unwrap().durable.wait_blocking().unwrap();
    }
    store.close().unwrap();
    let left = fs::metadata(&path).unwrap().len();
    assert!(left < full / 3, "{full} bytes became {left}");
}
