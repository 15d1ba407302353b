//! A handful of objects that plans are made from and carried out on, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cache::{Cache, Cached};
use super::{ObjectRef, Plan, Write};
use crate::check;

type Key = (String, String, String);

/// Objects by kind, namespace and name, kept as an API server keeps them.
#[derive(Debug, Default, Clone)]
pub(crate) struct World {
    objects: BTreeMap<Key, Value>,
    next: u64,
}

/// The instant tests plan at, unless they say otherwise.
pub(crate) fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a timestamp")
}

fn key(kind: &str, namespace: Option<&str>, name: &str) -> Key {
    (kind.to_owned(), namespace.unwrap_or_default().to_owned(), name.to_owned())
}

impl World {
    /// A world with these objects, given as YAML documents.
    pub(crate) fn of(yaml: &str) -> Self {
        let mut world = Self::default();
        world.put_yaml(yaml);
        world
    }

    pub(crate) fn put_yaml(&mut self, yaml: &str) {
        for document in serde_yaml::Deserializer::from_str(yaml) {
            let value: Value = serde::Deserialize::deserialize(document).expect("YAML");
            let kind = value["kind"].as_str().expect("a kind").to_owned();
            let name = value["metadata"]["name"].as_str().expect("a name").to_owned();
            let namespace = value["metadata"]["namespace"].as_str().map(str::to_owned);
            self.store(key(&kind, namespace.as_deref(), &name), value, true);
        }
    }

    /// Stores as an API server does: uid once, generation with the spec.
    fn store(&mut self, key: Key, mut value: Value, with_status: bool) {
        self.next += 1;
        let old = self.objects.get(&key);
        let meta = &mut value["metadata"];
        let uid = old
            .map_or_else(|| json!(format!("uid-{}-{}", key.0.to_lowercase(), key.2)), |o| o["metadata"]["uid"].clone());
        if meta["uid"].is_null() {
            meta["uid"] = uid;
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
        }
        meta["resourceVersion"] = json!(self.next.to_string());
        let before = old.map_or(0, |o| o["metadata"]["generation"].as_i64().unwrap_or(1));
        let same_spec = old.is_some_and(|o| o["spec"] == value["spec"]);
        if value["metadata"]["generation"].is_null() || old.is_some() {
            value["metadata"]["generation"] = json!(if same_spec { before } else { before + 1 });
        }
        if !with_status {
            let status = old.map_or(Value::Null, |o| o["status"].clone());
            match status {
                Value::Null => drop(value.as_object_mut().expect("an object").remove("status")),
                status => value["status"] = status,
            }
        }
        self.objects.insert(key, value);
    }

    /// Carries a plan out.
    pub(crate) fn apply(&mut self, plan: &Plan, subject: &ObjectRef) {
        for write in &plan.writes {
            let target = write.target();
            let key = key(&target.resource.kind, target.namespace.as_deref(), &target.name);
            match write {
                Write::Create(object) => {
                    assert!(!self.objects.contains_key(&key), "{target} exists already");
                    self.store(key, object.value.clone(), false);
                }
                Write::Update(object) => {
                    assert!(self.objects.contains_key(&key), "{target} does not exist");
                    self.store(key, object.value.clone(), false);
                }
                Write::Patch(patch) => {
                    let mut value = self.objects.get(&key).unwrap_or_else(|| panic!("{target} does not exist")).clone();
                    merge(&mut value, &patch.merge);
                    if value["metadata"]["deletionTimestamp"].is_string()
                        && value["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
                    {
                        self.objects.remove(&key);
                    } else {
                        self.store(key, value, false);
                    }
                }
                Write::Delete(_) | Write::DeleteSeen(_) => drop(self.objects.remove(&key)),
            }
        }
        if let Some(status) = &plan.status {
            let key = key(&subject.resource.kind, subject.namespace.as_deref(), &subject.name);
            self.objects.get_mut(&key).expect("the subject exists")["status"] = status.clone();
        }
    }

    pub(crate) fn value(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn patch(&mut self, kind: &str, namespace: &str, name: &str, change: Value) {
        let key = key(kind, Some(namespace), name);
        let mut value = self.objects.get(&key).unwrap_or_else(|| panic!("no {kind} {namespace}/{name}")).clone();
        merge(&mut value, &change);
        self.store(key, value, true);
    }

    /// The kinds and names of all objects, for short assertions.
    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.keys().map(|(kind, _, name)| format!("{kind}/{name}")).collect()
    }

    /// Plans, checks the plan, carries it out, and insists that planning again changes nothing.
    pub(crate) fn settle<O>(
        &mut self,
        subject: &ObjectRef,
        observe: impl Fn(&Self) -> Option<O>,
        plan: impl Fn(&O) -> Plan,
    ) -> Plan {
        let Some(observed) = observe(self) else { return Plan::default() };
        let first = plan(&observed);
        assert_eq!(check::lint(&first), Vec::<String>::new(), "{first:#?}");
        self.apply(&first, subject);
        if let Some(observed) = observe(self) {
            let second = plan(&observed);
            assert!(second.is_empty(), "planning again is not a fixed point:\n{second:#?}\nafter\n{first:#?}");
        }
        first
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let fields = into.as_object_mut().expect("made an object above");
    for (key, value) in patch {
        match value {
            Value::Null => drop(fields.remove(key)),
            value => merge(fields.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

impl Cache for World {
    fn get<K: Cached>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let value =
            self.value(&K::kind(&()), namespace, name).filter(|v| v["apiVersion"] == K::api_version(&()).as_ref())?;
        Some(Arc::new(serde_json::from_value(value.clone()).expect("of its kind")))
    }

    fn labelled<K: Cached>(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>> {
        let of_kind = self.objects.iter().filter(|((kind, ns, _), object)| {
            *kind == K::kind(&()) && ns == namespace && object["apiVersion"] == K::api_version(&()).as_ref()
        });
        of_kind
            .filter(|(_, object)| object["metadata"]["labels"][label] == value)
            .map(|(_, object)| Arc::new(serde_json::from_value(object.clone()).expect("of its kind")))
            .collect()
    }

    fn listing<K: Cached>(&self, namespace: &str, annotation: &str, member: &str) -> Vec<Arc<K>> {
        let of_kind = self.objects.iter().filter(|((kind, ns, _), _)| *kind == K::kind(&()) && ns == namespace);
        of_kind
            .filter(|(_, object)| {
                object["metadata"]["annotations"][annotation]
                    .as_str()
                    .is_some_and(|list| list.split(',').any(|m| m == member))
            })
            .map(|(_, object)| Arc::new(serde_json::from_value(object.clone()).expect("of its kind")))
            .collect()
    }
}
