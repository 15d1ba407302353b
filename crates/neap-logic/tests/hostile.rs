//! Objects that nobody means well with, thrown at the admission door and at the conversion of old versions: nothing
//! panics, what was let in is let in again as it is, and what was converted survives the way back and forth.
//!
//! A short run with a fixed seed is part of the tests; `HOSTILE_SECONDS=600` makes a long one, whose seed is printed.
//! `HOSTILE_SEED` repeats one. What a long run found is kept in `corpus/found.yaml`, and is tried first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]
#![expect(clippy::disallowed_methods, reason = "how long to go on is no matter of the code under test")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use kube_core::DynamicObject;
use kube_core::admission::{AdmissionRequest, Operation};
use kube_core::gvk::{GroupVersionKind, GroupVersionResource};
use neap_api::keys::neap;
use neap_logic::admit::{KINDS, admit};
use neap_logic::config::features::{FLAGS, SecurePodDefaults};
use neap_logic::config::{Data, Maps, Settings, examples};
use neap_logic::convert::{OLD, convert, review};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Objects of a short run.
const SHORT: usize = 3_000;
const SEED: u64 = 11;
/// What random values rarely are by themselves.
const WORDS: &[&str] = &[
    "",
    " ",
    "..",
    "/",
    "\u{0}",
    "é",
    "@latest",
    "100",
    "-1",
    "1e999",
    "60s",
    "-1s",
    "9999999h",
    "true",
    "Enabled",
    "{{.Name}}",
    "{{",
    "{{.Name.x}}",
    "a.b.c",
    "cluster.local",
    "PORT",
    "K_SERVICE",
    "queue-proxy",
    "user-port",
    "null",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];
const NUMBERS: &[i64] = &[0, 1, -1, 2, 99, 100, 101, 600, 8012, 65_535, 65_536, i64::MAX, i64::MIN, 4_294_967_296];

fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|value| !value.is_null())
        .collect()
}

/// The shapes to bend, and the words in them.
struct Stock {
    seeds: Vec<Value>,
    keys: Vec<String>,
    texts: Vec<String>,
}

impl Stock {
    fn new() -> Self {
        let mut seeds = documents(include_str!("corpus/seeds.yaml"));
        for map in examples("example.com") {
            let mut value = serde_json::to_value(&map).unwrap();
            let example = map.data.unwrap()["_example"].clone();
            let said: Option<Map<String, Value>> = serde_yaml::from_str(&example).unwrap();
            for (key, held) in said.into_iter().flatten() {
                value["data"][key] = held;
            }
            seeds.push(value);
        }
        let (mut keys, mut texts) = (BTreeSet::new(), BTreeSet::new());
        seeds.iter().for_each(|seed| gather(seed, &mut keys, &mut texts));
        texts.extend(WORDS.iter().map(|word| (*word).to_owned()));
        Self { seeds, keys: keys.into_iter().collect(), texts: texts.into_iter().collect() }
    }

    fn value(&self, random: &mut Rng, depth: usize) -> Value {
        match random.u8(0..if depth > 2 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => random.bool().into(),
            2 => (*random.choice(NUMBERS).unwrap()).into(),
            3 | 4 => self.text(random).into(),
            5 => (0..random.usize(0..3)).map(|_| self.value(random, depth + 1)).collect(),
            6 => {
                let count = random.usize(0..3);
                Value::Object((0..count).map(|_| (self.key(random), self.value(random, depth + 1))).collect())
            }
            _ => {
                // A part of another object, where it does not belong.
                let mut part = random.choice(&self.seeds).unwrap().clone();
                for _ in 0..random.usize(1..5) {
                    part = match part {
                        Value::Object(map) if !map.is_empty() => {
                            map.values().nth(random.usize(..map.len())).unwrap().clone()
                        }
                        Value::Array(list) if !list.is_empty() => list[random.usize(..list.len())].clone(),
                        other => other,
                    };
                }
                part
            }
        }
    }

    fn key(&self, random: &mut Rng) -> String {
        random.choice(&self.keys).unwrap().clone()
    }

    fn text(&self, random: &mut Rng) -> String {
        random.choice(&self.texts).unwrap().clone()
    }

    fn bent(&self, random: &mut Rng) -> Value {
        let mut object = random.choice(&self.seeds).unwrap().clone();
        if random.u8(0..8) == 0 {
            object = self.torn(random, &object);
        }
        for _ in 0..random.usize(0..5) {
            self.bend(random, &mut object);
        }
        object
    }

    /// The text of an object with a piece out of another in it, where that is still JSON.
    fn torn(&self, random: &mut Rng, object: &Value) -> Value {
        let other = random.choice(&self.seeds).unwrap().to_string();
        let text: Vec<char> = object.to_string().chars().collect();
        for _ in 0..20 {
            let at = random.usize(..text.len());
            let to = random.usize(at..text.len().min(at + 30));
            let piece: String = other.chars().skip(random.usize(..other.len())).take(random.usize(..30)).collect();
            let torn: String =
                text[..at].iter().chain(piece.chars().collect::<Vec<_>>().iter()).chain(&text[to..]).collect();
            if let Ok(torn) = serde_json::from_str(&torn) {
                return torn;
            }
        }
        object.clone()
    }

    /// Walks to some place and changes it.
    fn bend(&self, random: &mut Rng, at: &mut Value) {
        let deeper = random.u8(0..8) > 0;
        match at {
            Value::Object(map) if deeper && !map.is_empty() => {
                let place = random.usize(..map.len());
                self.bend(random, map.values_mut().nth(place).unwrap());
            }
            Value::Array(list) if deeper && !list.is_empty() => {
                let place = random.usize(..list.len());
                self.bend(random, &mut list[place]);
            }
            Value::Object(map) => match random.u8(0..4) {
                0 => drop(map.insert(self.key(random), self.value(random, 0))),
                1 if !map.is_empty() => {
                    let key = map.keys().nth(random.usize(..map.len())).unwrap().clone();
                    map.remove(&key);
                }
                2 if !map.is_empty() => {
                    let key = map.keys().nth(random.usize(..map.len())).unwrap().clone();
                    let held = map.remove(&key).unwrap();
                    map.insert(self.key(random), held);
                }
                _ => *at = self.value(random, 0),
            },
            Value::Array(list) => match random.u8(0..3) {
                0 => list.push(self.value(random, 0)),
                1 if !list.is_empty() => {
                    let copy = list[random.usize(..list.len())].clone();
                    list.push(copy);
                }
                _ => list.truncate(random.usize(..=list.len())),
            },
            Value::String(text) if random.bool() => {
                // Not at a place that is inside a character.
                let cut = text.char_indices().map(|(i, _)| i).nth(random.usize(..=text.chars().count().max(1)));
                text.insert_str(cut.unwrap_or(text.len()), random.choice(WORDS).unwrap());
            }
            _ => *at = self.value(random, 0),
        }
    }
}

fn gather(value: &Value, keys: &mut BTreeSet<String>, texts: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, held)| {
            keys.insert(key.clone());
            gather(held, keys, texts);
        }),
        Value::Array(list) => list.iter().for_each(|held| gather(held, keys, texts)),
        Value::String(text) => drop(texts.insert(text.clone())),
        _ => {}
    }
}

/// Settings as they come, with everything open, and as strict as they can be.
fn settings() -> Vec<Settings> {
    let flags: Data = FLAGS.iter().map(|(key, _)| ((*key).to_owned(), "Enabled".to_owned())).collect();
    let mut open = Settings::parse(&Maps::from([("config-features".to_owned(), flags)])).unwrap();
    open.features.secure_pod_defaults = SecurePodDefaults::Enabled;
    open.defaults.requests.insert("cpu".into(), "100m".into());
    open.defaults.limits.insert("memory".into(), "1Gi".into());
    open.defaults.idle_timeout_seconds = 10;
    open.defaults.container_name = "{{.Name}}-app".parse().unwrap();
    let mut strict = Settings::default();
    strict.defaults.allow_container_concurrency_zero = false;
    strict.defaults.container_concurrency = 3;
    strict.defaults.enable_service_links = None;
    strict.autoscaler.max_scale_limit = 3;
    strict.autoscaler.max_scale = 2;
    strict.features.secure_pod_defaults = SecurePodDefaults::AllowRootBounded;
    vec![Settings::default(), open, strict]
}

fn request(value: &Value, old: Option<&Value>, operation: Operation) -> Option<AdmissionRequest<DynamicObject>> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let object = |value: &Value| DynamicObject::deserialize(value).ok();
    let deletes = operation == Operation::Delete;
    Some(AdmissionRequest {
        types: Default::default(),
        uid: String::new(),
        kind: GroupVersionKind::gvk(group, version, text("kind")),
        resource: GroupVersionResource::gvr(group, version, ""),
        sub_resource: None,
        request_kind: None,
        request_resource: None,
        request_sub_resource: None,
        name: String::new(),
        namespace: Some("ns".into()),
        operation,
        user_info: serde_json::from_value(json!({"username": "ann"})).unwrap(),
        object: if deletes { None } else { Some(object(value)?) },
        old_object: match old {
            Some(old) => Some(object(old)?),
            None => deletes.then(|| object(value)).flatten(),
        },
        dry_run: false,
        options: None,
    })
}

/// What became of the objects.
#[derive(Debug, Default)]
struct Count {
    tried: usize,
    admitted: usize,
    converted: usize,
}

fn admission(value: &Value, old: Option<&Value>, operation: Operation, settings: &Settings) -> Option<Value> {
    let (object, _) = admit(&request(value, old, operation)?, settings).ok()?;
    Some(serde_json::to_value(object).unwrap())
}

/// What must hold of any object, with any settings.
fn judge(value: &Value, other: &Value, settings: &Settings, count: &mut Count) {
    count.tried += 1;
    let _ = admission(value, None, Operation::Delete, settings);
    if let Some(first) = admission(value, None, Operation::Create, settings) {
        count.admitted += 1;
        let again = admission(&first, None, Operation::Create, settings);
        assert_eq!(again.as_ref(), Some(&first), "what was let in is let in again as it is");
        let kept = admission(&first, Some(&first), Operation::Update, settings);
        assert_eq!(kept.as_ref(), Some(&first), "an update that changes nothing changes nothing");
        let changed = admission(other, Some(&first), Operation::Update, settings);
        if let Some(changed) = changed {
            let again = admission(&changed, Some(&first), Operation::Update, settings);
            assert_eq!(again.as_ref(), Some(&changed), "an update that was let in is let in again as it is");
        }
        if first["kind"] == "ConfigMap"
            && first["apiVersion"] == "v1"
            && first["metadata"]["namespace"] == "knative-serving"
        {
            let data: Data = first["data"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(key, held)| Some((key.clone(), held.as_str()?.to_owned())))
                .collect();
            let name = first["metadata"]["name"].as_str().unwrap_or_default();
            assert!(Settings::check_map(name, &data).is_empty(), "what was let in can be read");
        }
        there_and_back(&pruned(first), count);
    }
    let from = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    // Whatever an object says of itself, it can be asked for in any version.
    for (from, to) in [("v1", "v1alpha1"), ("v1alpha1", "v1"), ("v1beta1", "v1alpha1"), (from, "v1"), ("v1", from)] {
        let _ = convert(value.clone(), from, to);
    }
    let _ = review(&json!({"request": {"desiredAPIVersion": "serving.knative.dev/v1", "objects": [value, other]}}));
    let _ = review(value);
    if let Some(version) = from.strip_prefix("serving.knative.dev/").filter(|version| OLD.contains(version))
        && let Ok(kept) = convert(value.clone(), version, "v1")
    {
        there_and_back(&pruned(kept), count);
    }
}

/// An object of v1 survives being shown in old versions.
fn there_and_back(kept: &Value, count: &mut Count) {
    let from = kept["apiVersion"].as_str().unwrap_or_default();
    if from != "serving.knative.dev/v1" || !kept["metadata"].is_object() {
        return;
    }
    count.converted += 1;
    for version in OLD {
        let to = format!("serving.knative.dev/{version}");
        let shown = convert(kept.clone(), from, &to).expect("v1 can always be shown");
        let back = convert(shown.clone(), &to, from)
            .unwrap_or_else(|errors| panic!("{} is refused: {}", shown, errors.refusals()));
        assert_eq!(unmemorable(&back), unmemorable(kept), "by way of {shown}");
    }
}

/// The fields of v1 and no others, as the schema leaves them.
fn pruned(mut kept: Value) -> Value {
    let only = |value: Option<&mut Value>, known: &[&str]| {
        if let Some(map) = value.and_then(Value::as_object_mut) {
            map.retain(|key, held| known.contains(&key.as_str()) && !held.is_null());
        }
    };
    let not = |value: Option<&mut Value>, old: &[&str]| {
        if let Some(map) = value.and_then(Value::as_object_mut) {
            map.retain(|key, held| !old.contains(&key.as_str()) && !held.is_null());
        }
    };
    const REVISION: &[&str] =
        &["container", "concurrencyModel", "servingState", "buildName", "buildRef", "build", "generation"];
    const TARGET: &[&str] = &["tag", "revisionName", "configurationName", "latestRevision", "percent", "url"];
    match kept["kind"].as_str().unwrap_or_default() {
        "Revision" => not(kept.get_mut("spec"), REVISION),
        _ => {
            only(kept.get_mut("spec"), &["template", "traffic"]);
            only(kept.pointer_mut("/spec/template"), &["metadata", "spec"]);
            not(kept.pointer_mut("/spec/template/spec"), REVISION);
        }
    }
    not(kept.get_mut("status"), &["domain", "domainInternal", "serviceName", "imageDigest"]);
    not(kept.pointer_mut("/status/address"), &["hostname"]);
    for list in ["/spec/traffic", "/status/traffic"] {
        let targets = kept.pointer_mut(list).and_then(Value::as_array_mut);
        targets.into_iter().flatten().for_each(|target| only(Some(target), TARGET));
    }
    kept
}

/// Without what is remembered of old words, and without the difference between nothing and empty.
fn unmemorable(object: &Value) -> Value {
    fn without_empties(value: &mut Value) {
        if let Some(map) = value.as_object_mut() {
            map.values_mut().for_each(without_empties);
            map.retain(|_, held| match held {
                Value::Null => false,
                Value::Object(map) => !map.is_empty(),
                Value::Array(list) => !list.is_empty(),
                _ => true,
            });
        }
    }
    let mut object = object.clone();
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(neap::WRITTEN_AS);
    }
    without_empties(&mut object);
    object
}

/// Runs the judgement and says which object it failed on.
fn must_hold(value: &Value, other: &Value, settings: &Settings, count: &mut Count) {
    if catch_unwind(AssertUnwindSafe(|| judge(value, other, settings, count))).is_err() {
        panic!("the rules fail on\n{value}\nchanged to\n{other}");
    }
}

#[test]
fn the_seeds_are_good_and_what_was_found_holds() {
    let stock = Stock::new();
    let mut count = Count::default();
    let found = documents(include_str!("corpus/found.yaml"));
    for settings in settings() {
        for object in stock.seeds.iter().chain(&found) {
            must_hold(object, object, &settings, &mut count);
        }
    }
    let kinds: BTreeSet<&str> = stock.seeds.iter().filter_map(|seed| seed["kind"].as_str()).collect();
    for (_, kind) in KINDS {
        assert!(kinds.contains(kind), "no seed is a {kind}");
    }
    assert!(count.admitted > stock.seeds.len() / 2 && count.converted > 0, "{count:?}");
}

#[test]
fn whatever_comes_nothing_panics_and_what_is_let_in_stays() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("HOSTILE_SECONDS");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = number("HOSTILE_SEED").unwrap_or_else(|| if seconds.is_some() { now() } else { SEED });
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    println!("seed {seed}");
    let (mut random, stock, settings) = (Rng::with_seed(seed), Stock::new(), settings());
    let mut count = Count::default();
    while until.map_or(count.tried < SHORT, |until| Instant::now() < until) {
        let object = stock.bent(&mut random);
        let mut other = object.clone();
        stock.bend(&mut random, &mut other);
        let settings = random.choice(&settings).unwrap();
        must_hold(&object, &other, settings, &mut count);
    }
    println!("{count:?}");
    assert!(count.admitted * 20 > count.tried, "bent so far that nothing is left to judge: {count:?}");
}
