//! Which kinds exist. A snapshot is read by every request and replaced whole by every registration, so a request sees
//! one consistent set. Knows no concrete kind.

use crate::kind::{Admit, Connect, Convert, Kind, KindError, Origin, Semantics, Version};
use crate::status::{ApiError, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// The kinds at one moment.
#[derive(Clone, Default)]
pub struct Kinds {
    by_group: HashMap<String, HashMap<String, Arc<Kind>>>,
    /// Group names in order of first registration: discovery lists them so.
    groups: Vec<String>,
    /// Grows by one with each change; caches are keyed by it.
    pub generation: u64,
}

impl Kinds {
    pub fn get(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_group.get(group)?.get(plural)
    }

    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.by_group.get(group)?.values().find(|k| k.kind == kind)
    }

    /// The kind and version behind a URL; a version that is not served does not exist for clients.
    pub fn resolve(&self, group: &str, version: &str, plural: &str) -> Result<(Arc<Kind>, usize)> {
        let found = self.get(group, plural).and_then(|kind| {
            let at = kind.versions.iter().position(|v| v.name == version && v.served)?;
            Some((kind.clone(), at))
        });
        found.ok_or_else(|| self.missing(group))
    }

    /// The answer for what is not there below a group. Kubernetes has two: one of the server of its own
    /// kinds, and one of whoever comes last.
    pub fn missing(&self, group: &str) -> ApiError {
        let native = |kind: &Arc<Kind>| kind.semantics == Semantics::Native;
        match self.by_group.get(group).is_some_and(|kinds| kinds.values().any(native)) {
            true => ApiError::NoSuchPath,
            false => ApiError::NoSuchPage,
        }
    }

    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The kinds of a group, by plural.
    pub fn of_group(&self, group: &str) -> Vec<&Arc<Kind>> {
        let mut kinds: Vec<_> = self.by_group.get(group).into_iter().flat_map(HashMap::values).collect();
        kinds.sort_by(|a, b| a.plural.cmp(&b.plural));
        kinds
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.groups.iter().flat_map(|g| self.of_group(g))
    }

    fn insert(&mut self, kind: Arc<Kind>) {
        if !self.groups.contains(&kind.group) {
            self.groups.push(kind.group.clone());
        }
        self.by_group.entry(kind.group.clone()).or_default().insert(kind.plural.clone(), kind);
        self.generation += 1;
    }

    fn remove(&mut self, group: &str, plural: &str) {
        if let Some(kinds) = self.by_group.get_mut(group) {
            kinds.remove(plural);
            if kinds.is_empty() {
                self.by_group.remove(group);
                self.groups.retain(|g| g != group);
            }
        }
        self.generation += 1;
    }
}

/// Shared and cheap to clone; kinds may be added while requests run.
#[derive(Clone, Default)]
pub struct Registry(Arc<RwLock<Arc<Kinds>>>);

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry of the same kinds that goes its own way from here.
    pub fn fork(&self) -> Self {
        Self(Arc::new(RwLock::new(self.kinds())))
    }

    pub fn kinds(&self) -> Arc<Kinds> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, f: impl FnOnce(&mut Kinds) -> T) -> T {
        let mut slot = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut kinds = (**slot).clone();
        let out = f(&mut kinds);
        *slot = Arc::new(kinds);
        out
    }

    /// Adds a kind that ships with the program.
    pub fn register(&self, crd: &CustomResourceDefinition) -> std::result::Result<(), KindError> {
        let kind = Kind::from_crd(crd, Origin::Compiled)?;
        self.insert(kind);
        Ok(())
    }

    /// Adds many kinds; the first that cannot be served ends it.
    pub fn register_all<'a>(
        &self,
        crds: impl IntoIterator<Item = &'a CustomResourceDefinition>,
    ) -> std::result::Result<(), KindError> {
        let kinds = crds
            .into_iter()
            .map(|crd| Kind::from_crd(crd, Origin::Compiled))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        self.change(|all| kinds.into_iter().for_each(|k| all.insert(Arc::new(k))));
        Ok(())
    }

    pub fn insert(&self, kind: Kind) {
        self.change(|kinds| kinds.insert(Arc::new(kind)));
    }

    pub fn remove(&self, group: &str, plural: &str) {
        self.change(|kinds| kinds.remove(group, plural));
    }

    /// Changes a registered kind: its columns, selectable fields, name rule, grace, and so on. False when there is no
    /// such kind.
    pub fn configure(&self, group: &str, plural: &str, f: impl FnOnce(&mut Kind)) -> bool {
        self.change(|kinds| {
            let Some(kind) = kinds.get(group, plural) else { return false };
            let mut kind = (**kind).clone();
            f(&mut kind);
            kinds.insert(Arc::new(kind));
            true
        })
    }

    /// Adds an admission function to a kind (by its Kind, not its plural). It sees writes to the object, not to its
    /// subresources. False when there is no such kind.
    pub fn admit(&self, group: &str, kind: &str, f: Admit) -> bool {
        let Some(plural) = self.kinds().by_kind(group, kind).map(|k| k.plural.clone()) else { return false };
        self.configure(group, &plural, |k| k.admit.push(f))
    }

    /// Adds a subresource that is served by a function.
    pub fn connect(&self, group: &str, plural: &str, subresource: &str, f: Connect) -> bool {
        self.configure(group, plural, |k| {
            k.connects.insert(subresource.to_owned(), f);
        })
    }

    /// Sets how the versions of a kind turn into each other.
    pub fn convert(&self, group: &str, plural: &str, f: Convert) -> bool {
        self.configure(group, plural, |k| k.convert = Some(f))
    }

    /// Serves the objects of a registered kind under another group and version too.
    pub fn alias(&self, group: &str, plural: &str, to_group: &str, to_version: &str, f: Convert) -> bool {
        let Some(kind) = self.kinds().get(group, plural).cloned() else { return false };
        self.configure(group, plural, |k| k.convert = Some(f.clone()));
        self.insert(kind.alias_of(to_group, to_version, f));
        true
    }
}

/// A kind together with the version a request speaks.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) kind: Arc<Kind>,
    at: usize,
}

impl Served {
    pub(crate) fn new(kind: Arc<Kind>, at: usize) -> Self {
        Self { kind, at }
    }

    pub(crate) fn version(&self) -> &Version {
        &self.kind.versions[self.at]
    }
}
