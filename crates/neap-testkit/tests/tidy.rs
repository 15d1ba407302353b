//! House rules that no manifest and no lint can hold: headers, sizes, words that must not occur in a room.

use std::fs;
use std::path::{Path, PathBuf};

/// Files over this many lines begin by saying why they exist.
const HEADER_FROM: usize = 60;
/// Code lines after which a file is more than one idea.
const LONGEST: usize = 800;
/// Homogeneous tables that may be longer, each with its reason.
const LONG: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut queue = vec![root().join("crates")];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                queue.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                found.push((name, fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// A file of tests says by its name what it is.
fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("tests.rs")
}

fn check(what: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{what}:\n  {}", faults.join("\n  "));
}

#[test]
fn files_say_why_they_exist() {
    let long = |text: &str| text.lines().count() > HEADER_FROM;
    let silent = sources().into_iter().filter(|(name, text)| long(text) && !is_test(name) && !text.starts_with("//!"));
    check("a file of this length needs a `//!` header", silent.map(|(name, _)| name).collect());
}

#[test]
fn a_file_holds_one_idea() {
    let long = sources().into_iter().filter_map(|(name, text)| {
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().lines().count();
        let allowed = LONG.iter().any(|(file, _)| name.ends_with(file));
        (code > LONGEST && !allowed && !is_test(&name)).then(|| format!("{name}: {code} lines"))
    });
    check("split it", long.collect());
}

#[test]
fn rooms_do_not_know_what_they_must_not() {
    // room, word, where it is allowed nevertheless
    let rules: &[(&str, &str, &[&str])] = &[
        ("crates/neap-controllers/src", "embedded", &[]),
        ("crates/neap-dataplane/src", "embedded", &[]),
        ("crates/neap-dataplane/src", "kube::", &["crates/neap-dataplane/src/watch"]),
        ("crates/neap-node/src", "knative", &[]),
        ("crates/neap-apiserver/src", "knative", &[]),
        ("crates/neap-store/src", "serde_json", &[]),
        ("crates/neap-proxy/src", "knative", &[]),
    ];
    let mut faults = Vec::new();
    for (name, text) in sources() {
        for (room, word, except) in rules {
            if !name.starts_with(room) || except.iter().any(|e| name.starts_with(e)) || name.contains("tests") {
                continue;
            }
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (at, line) in code.lines().enumerate() {
                let comment = line.trim_start().starts_with("//");
                if !comment && line.to_lowercase().contains(word) {
                    faults.push(format!("{name}:{}: {word:?}", at + 1));
                }
            }
        }
    }
    check("a word that this room must not know", faults);
}

#[test]
fn nothing_is_left_to_do_without_an_issue() {
    let marks = ["TODO", "FIXME", "XXX", "HACK"];
    let mut faults = Vec::new();
    for (name, text) in sources() {
        if name.ends_with("neap-testkit/tests/tidy.rs") {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) && !line.contains('#') {
                faults.push(format!("{name}:{}", at + 1));
            }
        }
    }
    check("name the issue", faults);
}

#[test]
fn unsafe_code_has_one_room_and_a_reason() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let opens = line.contains("unsafe {") || line.trim_start().starts_with("unsafe impl");
            if !opens || name.ends_with("neap-testkit/tests/tidy.rs") {
                continue;
            }
            if !name.starts_with("crates/neap-runtime/") {
                faults.push(format!("{name}:{}: unsafe outside of neap-runtime", at + 1));
            }
            let argued = lines[at.saturating_sub(8)..=at].iter().any(|l| l.contains("SAFETY:"));
            if !argued {
                faults.push(format!("{name}:{}: no SAFETY comment", at + 1));
            }
        }
    }
    check("unsafe", faults);
}
