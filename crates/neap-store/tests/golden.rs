//! Files of every format there ever was, and what must be found in them. A golden file is never made
//! again: if this test fails, the store has forgotten how to read what users have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

use neap_store::{Expect, Options, Store, Txn};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What the golden file of format 1 holds, as key, value, created, modified.
fn content(store: &Store) -> Vec<(String, String, u64, u64)> {
    let page = store.range(b"", None, usize::MAX, None).unwrap();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let entries = page.entries.into_iter();
    entries.map(|entry| (text(&entry.key), text(&entry.value), entry.created, entry.modified)).collect()
}

#[test]
fn format_1() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    fs::copy(golden("format-1.redb"), &path).unwrap();
    let store = Store::open(&path, Options::default()).unwrap();
    assert_eq!((store.revision(), store.compacted()), (7, 7));
    let long = "long ".repeat(2_000);
    let expected = [
        ("", "the empty key", 2, 2),
        ("\\x00\\xff", "", 4, 4),
        ("/a/replaced", "second", 3, 5),
        ("/b/long", &long, 7, 7),
    ];
    let expected =
        expected.map(|(key, value, created, modified)| (key.to_owned(), value.to_owned(), created, modified));
    assert_eq!(content(&store), expected);
    // And it can be written on.
    let revision = store.commit(Txn::new().put("new", Expect::Absent, "")).unwrap().revision;
    assert_eq!(revision, 8);
    store.close().unwrap();
    assert_eq!(content(&Store::open(&path, Options::default()).unwrap()).len(), 5);
}

/// Made the golden file of format 1. For a new format, add its like and leave the old file alone.
#[test]
#[ignore = "makes a golden file where there is none"]
fn make_format_1() {
    let path = golden("format-1.redb");
    assert!(!path.exists(), "a golden file is never made again");
    let store = Store::open(&path, Options::default()).unwrap();
    let put = |key: &'static [u8], value: String| {
        let _ = store.commit(Txn::new().put(key, Expect::Any, value)).unwrap();
    };
    put(b"", "the empty key".to_owned());
    put(b"/a/replaced", "first".to_owned());
    let two = Txn::new().put(&b"\0\xff"[..], Expect::Any, "").put("/gone", Expect::Any, "x");
    let _ = store.commit(two).unwrap();
    put(b"/a/replaced", "second".to_owned());
    let _ = store.commit(Txn::new().delete("/gone", Expect::Any)).unwrap();
    put(b"/b/long", "long ".repeat(2_000));
    store.close().unwrap();
}
