//! Texts that nobody means well with, thrown at what the gateway's rules read: annotations, lists of routes, authorities,
//! paths and queries. Nothing panics, what is accepted is bounded and comes back as it was, and what is found matches.
//!
//! Short in the tests, with a fixed seed; `HOSTILE_SECONDS=600` makes a long run, whose seed is printed, and `HOSTILE_SEED`
//! repeats one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]
#![expect(clippy::disallowed_methods, reason = "how long to go on is no matter of the code under test")]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use neap_api::networking::Ingress;
use neap_logic::routing::extras::{
    Affinity, PathExtra, Quantile, Rate, extras, is_key_address, read_paths, rules, write_paths,
};
use neap_logic::routing::{Door, HostBuf, Index, IngressKey, Lookup, compile, host_of};
use serde::Deserialize;
use serde_json::json;

const SHORT: usize = 1_000;
const SEED: u64 = 5;
/// What random bytes rarely are.
const WORDS: &[&str] = &[
    "",
    " ",
    "/",
    "//",
    "..",
    "%",
    "%2",
    "%ff",
    "é",
    "\u{0}",
    "*",
    "*.",
    ".",
    ":",
    "[",
    "]",
    "::",
    "@",
    "#",
    "?",
    "&",
    "=",
    "|",
    ",",
    "header:",
    "https://",
    "burst",
    "0",
    "-1",
    "1e9",
    "99999999999999999999",
    "/s",
    "p95",
    "ms",
    "true",
    "null",
    "{",
    "- ",
    "&a",
    "*a",
    "!!binary",
    "exact",
    "present",
    "prefix",
];

#[derive(Deserialize)]
struct Corpus {
    annotations: Vec<BTreeMap<String, String>>,
    lists: Vec<String>,
    texts: Vec<String>,
    found: Vec<String>,
}

/// A text with pieces put in, taken out, doubled, or of another text.
fn bent(random: &mut Rng, text: &str, all: &[String]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..random.usize(0..4) {
        let at = random.usize(..=chars.len());
        let to = random.usize(at..=chars.len().min(at + 6));
        let piece: Vec<char> = match random.u8(0..5) {
            0 => Vec::new(),
            1 => random.choice(WORDS).unwrap().chars().collect(),
            2 => random.choice(all).unwrap().chars().take(random.usize(..40)).collect(),
            3 => chars[at..to].repeat(random.usize(..20)),
            _ => vec![random.char(..)],
        };
        chars.splice(at..to, piece);
    }
    chars.into_iter().collect()
}

#[derive(Debug, Default)]
struct Count {
    tried: usize,
    accepted: usize,
    found: usize,
}

fn judge(random: &mut Rng, corpus: &Corpus, all: &[String], count: &mut Count) -> String {
    count.tried += 1;
    let text = |random: &mut Rng| {
        let text = random.choice(all).unwrap().clone();
        bent(random, &text, all)
    };
    let mut map: BTreeMap<String, String> = random.choice(&corpus.annotations).unwrap().clone();
    for value in map.values_mut() {
        if random.bool() {
            *value = bent(random, value, all);
        }
    }
    let list = random.choice(&corpus.lists).unwrap();
    let list = bent(random, list, all);
    let (host, path, query, other) = (text(random), text(random), text(random), text(random));
    let told = format!("{map:?} {list:?} {host:?} {path:?} {query:?} {other:?}");
    let run = AssertUnwindSafe(|| {
        hold(&map, &list, [&host, &path, &query, &other], random, count);
    });
    assert!(catch_unwind(run).is_ok(), "the rules fail on {told}");
    told
}

fn hold(map: &BTreeMap<String, String>, list: &str, texts: [&str; 4], random: &mut Rng, count: &mut Count) {
    let [host, path, query, other] = texts;
    let (read, problems) = extras(&IngressKey::new("ns", "i"), |key| map.get(key).map(String::as_str));
    if map.contains_key("neap.dev/auth") {
        assert!(read.auth.is_some(), "who asks for protection has some");
    }
    if let Some(rate) = &read.rate {
        assert!(rate.rate.burst > 0 && rate.rate.interval > 0);
    }
    for domain in [true, false] {
        let Ok(rules) = rules(list, domain) else { continue };
        count.accepted += 1;
        let extra: Vec<PathExtra> =
            rules.iter().enumerate().map(|(path, rule)| PathExtra { rule: 0, path, more: rule.more.clone() }).collect();
        let back = read_paths(&write_paths(&extra)).unwrap();
        assert!(rules.len() <= 64 && back.len() == rules.len());
        for (rule, more) in rules.iter().zip(back.values()) {
            assert_eq!(&rule.more, more);
            if path.starts_with(&rule.path)
                && let Some(rewritten) = rule.more.rewritten(&rule.path, path)
            {
                assert!(rewritten.starts_with('/'));
            }
        }
    }
    let _ = read_paths(other);
    let _ = is_key_address(other);
    let mut buf: HostBuf = [0; _];
    if let Some(host) = host_of(host, &mut buf) {
        assert!(!host.is_empty() && host.len() <= 255 && !host.bytes().any(|b| b.is_ascii_uppercase()));
    }
    // Any of it as an Ingress, and asked for.
    let spec = json!({ "httpOption": "Redirected", "tls": [{ "hosts": [host], "secretName": "s", "secretNamespace": "ns" }],
        "rules": [{ "hosts": [host, other], "http": { "paths": [
            { "path": path, "rewriteHost": other, "headers": { "X-A": { "exact": query } }, "splits":
                [{ "serviceName": other, "servicePort": 80, "percent": random.i64(-1..102) }] },
            { "splits": [{ "serviceName": "rest", "servicePort": random.i32(-1..70_000) }] }] } }] });
    let ingress: Ingress = serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": { "namespace": "ns", "name": "i", "annotations": map }, "spec": spec,
    }))
    .unwrap();
    let mut ingress = ingress;
    ingress
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("networking.knative.dev/ingress.class".into(), "c".into());
    let compiled = compile(&ingress);
    assert_eq!(compiled.extras.as_deref().cloned().unwrap_or_default(), read);
    assert!(compiled.problems.len() >= problems.len());
    let mut index = Index::new("c");
    index.apply(&ingress);
    let table = index.table();
    for door in [Door::External, Door::Local] {
        for secure in [false, true] {
            if let Lookup::Found(found) = table.find(door, secure, host, path, Some(query), |_| Some(query)) {
                count.found += 1;
                assert!(path.starts_with(&*found.path.prefix));
                let _ = found.path.choose(random.u32(..));
            }
        }
    }
    index.delete(&IngressKey::new("ns", "i"));
    assert!(index.table().is_empty() && index.is_empty());
    // Numbers at their ends.
    let number = |random: &mut Rng| *random.choice(&[0, 1, u64::MAX, u64::MAX / 2, random.clone().u64(..)]).unwrap();
    let rate = Rate { interval: number(random).max(1), burst: random.u32(1..) };
    let (booked, now) = (number(random), number(random));
    match rate.admit(booked, now) {
        Ok(next) => assert!(next >= now),
        Err(after) => assert!(after > Duration::ZERO),
    }
    let quantile = Quantile { nanos: number(random), seen: random.u8(..) }.after(95, number(random));
    assert!(quantile.nanos > 0);
    let _ = Affinity::score(number(random), other.as_bytes());
}

#[test]
fn whatever_is_written_nothing_panics_and_what_is_accepted_holds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("HOSTILE_SECONDS");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = number("HOSTILE_SEED").unwrap_or_else(|| if seconds.is_some() { now() } else { SEED });
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    println!("seed {seed}");
    let corpus: Corpus = serde_yaml::from_str(include_str!("corpus/routing.yaml")).unwrap();
    let mut all: Vec<String> = corpus.texts.iter().chain(&corpus.lists).chain(&corpus.found).cloned().collect();
    all.extend(corpus.annotations.iter().flat_map(|map| map.values().cloned()));
    let (mut random, mut count) = (Rng::with_seed(seed), Count::default());
    for text in &all {
        hold(&BTreeMap::new(), text, [text, text, text, text], &mut random, &mut count);
    }
    while until.map_or(count.tried < SHORT, |until| Instant::now() < until) {
        judge(&mut random, &corpus, &all, &mut count);
    }
    println!("{count:?}");
    assert!(
        count.accepted * 10 > count.tried && count.found > 0,
        "bent so far that nothing is left to judge: {count:?}"
    );
}
