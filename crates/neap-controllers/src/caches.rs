//! All watched kinds, each watched once and kept in one index that every controller reads.
//!
//! What a controller has written is put in at once, from the API's answer, so that nobody plans on the state
//! before its own write.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use neap_logic::plan::ObjectRef;
use neap_logic::plan::cache::{Cache, Cached};
use serde_json::Value;

use crate::index::{Index, Key, Step, Terms};

/// Called with each step, outside the lock.
type Listener<K> = Box<dyn Fn(&Caches, &Step<K>) + Send + Sync>;

/// One kind.
pub(crate) struct Store<K> {
    index: RwLock<Index<K>>,
    listener: Listener<K>,
}

impl<K: Cached> Store<K> {
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Index<K>) -> T) -> T {
        read(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write<T>(&self, write: impl FnOnce(&mut Index<K>) -> T) -> T {
        write(&mut self.index.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn tell(&self, caches: &Caches, steps: impl IntoIterator<Item = Step<K>>) {
        for step in steps {
            (self.listener)(caches, &step);
        }
    }
}

/// What the API has said about one object outside a watch.
enum Word {
    /// The answer to a write.
    Written(Value),
    /// It was asked for, and this is what it is now.
    Read(Value),
    /// It was asked for, and is not there.
    Gone(Key),
}

type Take = Box<dyn Fn(&Caches, Word) + Send + Sync>;

/// The indexes of all kinds.
#[derive(Default)]
pub(crate) struct Caches {
    stores: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    /// By group and kind: takes in an object the API has answered with.
    take: HashMap<(String, String), Take>,
}

impl Caches {
    /// Adds a kind: by what its objects are found, and who is told about them.
    pub(crate) fn add<K: Cached>(
        &mut self,
        terms_of: fn(&K) -> Terms,
        listener: impl Fn(&Caches, &Step<K>) + Send + Sync + 'static,
    ) -> Arc<Store<K>> {
        let store = Arc::new(Store { index: RwLock::new(Index::new(terms_of)), listener: Box::new(listener) });
        let taking = store.clone();
        let take = move |caches: &Caches, word: Word| {
            let parse = |value: Value| {
                let mut object = serde_json::from_value::<K>(value).ok()?;
                slim(&mut object);
                Some(object)
            };
            let step = taking.write(|index| match word {
                Word::Written(value) => index.apply(parse(value)?),
                Word::Read(value) => index.apply_read(parse(value)?),
                Word::Gone(key) => index.gone(&key),
            });
            taking.tell(caches, step);
        };
        self.take.insert((K::group(&()).into_owned(), K::kind(&()).into_owned()), Box::new(take));
        self.stores.insert(TypeId::of::<K>(), store.clone());
        store
    }

    /// The store of a kind; every kind that is asked for has been added.
    pub(crate) fn store<K: Cached>(&self) -> Option<&Store<K>> {
        self.stores.get(&TypeId::of::<K>())?.downcast_ref()
    }

    /// Takes in what the API answered to a write.
    pub(crate) fn written(&self, target: &ObjectRef, answer: Value) {
        self.hear(target, Word::Written(answer));
    }

    /// Takes in what the API said an object is now, whether or not a watch shows it.
    pub(crate) fn read_anew(&self, target: &ObjectRef, object: Value) {
        self.hear(target, Word::Read(object));
    }

    /// The API said that there is no such object.
    pub(crate) fn gone(&self, target: &ObjectRef) {
        let key = Key::new(target.namespace.clone().unwrap_or_default(), target.name.clone());
        self.hear(target, Word::Gone(key));
    }

    fn hear(&self, target: &ObjectRef, word: Word) {
        let kind = (target.resource.group.clone(), target.resource.kind.clone());
        if let Some(take) = self.take.get(&kind) {
            take(self, word);
        }
    }

    /// The keys of a kind.
    pub(crate) fn keys<K: Cached>(&self) -> Vec<Key> {
        self.store::<K>().map(|store| store.read(|index| index.keys().cloned().collect())).unwrap_or_default()
    }

    /// The keys of objects found by a term.
    pub(crate) fn keys_by<K: Cached>(&self, namespace: &str, term: &'static str, value: &str) -> Vec<Key> {
        let found =
            self.store::<K>().map(|store| store.read(|index| index.find(namespace, term, value))).unwrap_or_default();
        found.iter().map(|object| Key::of(object.as_ref())).collect()
    }
}

/// Nobody here reads who wrote which field, and it is often the largest part of an object.
pub(crate) fn slim<K: Cached>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

impl Cache for Caches {
    fn get<K: Cached>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store::<K>()?.read(|index| index.get(&Key::new(namespace, name)))
    }

    fn labelled<K: Cached>(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>> {
        self.lookup(namespace, label, value, |object, label, value| {
            object.meta().labels.as_ref().and_then(|l| l.get(label)).is_some_and(|held| held == value)
        })
    }

    fn listing<K: Cached>(&self, namespace: &str, annotation: &str, member: &str) -> Vec<Arc<K>> {
        self.lookup(namespace, annotation, member, |object, annotation, member| {
            let list = object.meta().annotations.as_ref().and_then(|a| a.get(annotation));
            list.is_some_and(|list| list.split(',').any(|held| held == member))
        })
    }
}

impl Caches {
    fn lookup<K: Cached>(
        &self,
        namespace: &str,
        term: &str,
        value: &str,
        holds: fn(&K, &str, &str) -> bool,
    ) -> Vec<Arc<K>> {
        let Some(store) = self.store::<K>() else { return Vec::new() };
        store.read(|index| match crate::kinds::INDEXED.iter().find(|indexed| **indexed == term) {
            Some(indexed) => index.find(namespace, indexed, value),
            None => {
                let mut found: Vec<Arc<K>> =
                    index.in_namespace(namespace).filter(|o| holds(o, term, value)).cloned().collect();
                found.sort_by(|a, b| a.meta().name.cmp(&b.meta().name));
                found
            }
        })
    }
}
