//! Each row of the facts has a test that carries its id, or a reason why it has none here.
//!
//! The facts are a table of what Knative does, kept outside of this repository; A is its API, B its config-maps, C its
//! labels, headers and variables, D its controllers. A test carries an id in its name (`a4_12_…`) or as the text of a
//! row (`"A4.12"`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Section and number of rows.
const SECTIONS: [(&str, usize); 34] = [
    ("A0", 15),
    ("A1", 13),
    ("A2", 9),
    ("A3", 6),
    ("A4", 31),
    ("A5", 7),
    ("A6", 8),
    ("A7", 11),
    ("B1", 21),
    ("B2", 12),
    ("B3", 12),
    ("B4", 13),
    ("B5", 10),
    ("B6", 14),
    ("B7", 10),
    ("C1", 21),
    ("C2", 13),
    ("C3", 16),
    ("C4", 13),
    ("C5", 8),
    ("D1", 3),
    ("D2", 2),
    ("D3", 1),
    ("D4", 5),
    ("D5", 4),
    ("D6", 3),
    ("D7", 1),
    ("D8", 1),
    ("D9", 4),
    ("D10", 1),
    ("D11", 3),
    ("D12", 1),
    ("D13", 1),
    ("I", 8),
];

/// Rows that no rule in here carries out, and who does.
const ELSEWHERE: &[(&str, &str)] = &[
    ("A0.13", "a Decider is no API object: the autoscaler's own state, tested with E4"),
    ("A1.7", "URLs are texts here"),
    ("A1.9", "a look at an object does not wait for anything, so it needs no bound"),
    ("A2.9", "no dry run of pods yet: admission cannot ask the API"),
    ("A7.2", "webhooks are registered on Kubernetes only"),
    ("A7.3", "webhooks are registered on Kubernetes only"),
    ("A7.7", "webhooks are registered on Kubernetes only"),
    ("B5.10", "with D10.1"),
    ("C2.13", "gone before v1"),
    ("C3.8", "no bundles of further roots yet: the sidecar has queue-sidecar-rootca"),
    ("C3.9", "labels of upstream's installation"),
    ("C3.14", "another implementation's"),
    ("C3.16", "the node's and Kubernetes' own affair"),
    ("C4.10", "the data plane: who probes"),
    ("C4.11", "the data plane: Forwarded"),
    ("C4.12", "the autoscaler's scrapes"),
    ("C4.13", "the data plane: traces"),
    ("C5.4", "variables of the activator's role"),
    ("C5.5", "variables of the autoscaler's role"),
    ("C5.6", "variables of the controller's role"),
    ("C5.7", "variables of the webhook's role"),
    ("D10.1", "no bridge to cert-manager yet"),
    ("D11.3", "the autoscaler's scaler, in neap-controllers"),
];

/// Where tests with ids live.
const SOURCES: [&str; 5] = ["src", "tests", "../neap-api/src", "../neap-testkit/tests", "../neap-controllers/src"];

fn read(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            read(&entry, text);
        } else if entry.extension().is_some_and(|e| e == "rs") && !entry.ends_with("rows.rs") {
            text.push_str(&fs::read_to_string(&entry).expect("a file"));
        }
    }
}

/// The ids that tests carry: of `fn a4_12_a4_13_name`, and of `"A4.12"`.
fn carried(text: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for name in text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
        let words: Vec<&str> = name.split('_').collect();
        let is_section = |word: &str| {
            let (letter, number) = word.split_at(word.len().min(1));
            matches!(letter, "a" | "b" | "c" | "d" | "i") && number.parse::<u8>().is_ok()
        };
        for (i, word) in words.iter().enumerate() {
            let number = words.get(i + 1).filter(|number| number.parse::<u8>().is_ok());
            match number {
                Some(number) if is_section(word) => drop(ids.insert(format!("{}.{number}", word.to_uppercase()))),
                None if is_section(word) && word.starts_with('i') => drop(ids.insert(word.to_uppercase())),
                _ => {}
            }
        }
    }
    ids.extend(text.split('"').filter(|part| part.len() < 8 && part.contains('.')).map(str::to_owned));
    ids
}

#[test]
fn every_row_has_a_test_or_a_reason() {
    let mut text = String::new();
    for source in SOURCES {
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(source), &mut text);
    }
    let carried = carried(&text);
    let id = |section: &str, row: usize| if section == "I" { format!("I{row}") } else { format!("{section}.{row}") };
    let all: Vec<String> =
        SECTIONS.iter().flat_map(|(section, rows)| (1..=*rows).map(|row| id(section, row))).collect();
    let missing: Vec<&String> =
        all.iter().filter(|id| !carried.contains(*id) && !ELSEWHERE.iter().any(|(row, _)| row == id)).collect();
    assert!(missing.is_empty(), "no test carries {missing:?}");
    for (row, why) in ELSEWHERE {
        assert!(all.iter().any(|id| id == row), "{row} is no row");
        assert!(!carried.contains(*row), "{row} has a test, so it needs no reason: {why}");
    }
}
