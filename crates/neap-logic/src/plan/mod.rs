//! What to write, decided from what was observed: one module per kind.
//!
//! A plan function gets everything it may consider in one value and returns a [`Plan`]. It must never assume
//! that an earlier plan was carried out: planning again on the state a plan made yields an empty plan.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube_core::Resource;
use kube_core::discovery::ApiResource;
use serde::Serialize;
use serde_json::Value;

use crate::config::Settings;

pub mod cache;
pub mod certificate;
pub mod configuration;
pub mod deployment;
pub mod domainmapping;
pub mod ensure;
pub mod garbage;
pub mod ingress;
pub mod labeler;
pub mod meta;
pub mod metric;
pub mod placeholder;
pub mod podautoscaler;
pub mod revision;
pub mod route;
pub mod serverlessservice;
pub mod service;
pub mod serving_certs;
pub mod sidecar;
#[cfg(test)]
pub(crate) mod testing;
pub mod wildcard;

/// What every plan may consider beside the objects.
#[derive(Debug, Clone)]
pub struct Context {
    /// The instant of the look.
    pub now: Timestamp,
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// Writes of the plan made just before that the API refused for good.
    pub refusals: Vec<Refusal>,
}

impl Context {
    /// The refusal of a write to the named object of kind `K`, when there was one.
    pub fn refusal<K: Resource<DynamicType = ()>>(&self, name: &str) -> Option<&Refusal> {
        let of_kind = |r: &&Refusal| r.target.resource.kind == K::kind(&()) && r.target.resource.group == K::group(&());
        self.refusals.iter().filter(of_kind).find(|r| r.target.name == name)
    }
}

/// How soon a name that somebody else has is looked at again: nothing tells when it becomes free.
const TAKEN: Duration = Duration::from_secs(15);

/// What one look at an object led to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Objects to write and remove, in this order.
    pub writes: Vec<Write>,
    /// Where not all before it went through, a write from this place on is not made; 0 says that each stands alone.
    pub barrier: usize,
    /// The object's whole status, when it has to change; written last.
    pub status: Option<Value>,
    /// What to tell the user about.
    pub events: Vec<Event>,
    /// When to look again without being told to.
    pub again: Option<Duration>,
    /// Objects of somebody else that are in the way. Where they lack our labels no watch shows that they are gone.
    pub taken: Vec<ObjectRef>,
    /// Why, in words, for logs and for `explain`.
    pub reasons: Vec<String>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.status.is_none()
    }

    /// Adds a write when there is one.
    pub fn write(&mut self, write: Option<Write>) {
        self.writes.extend(write);
    }

    /// What is added from here on is made only when everything before it was.
    pub fn only_then(&mut self) {
        self.barrier = self.writes.len();
    }

    /// Notes that an object of somebody else has a name that is needed here.
    pub fn taken_by<K: Resource<DynamicType = ()>>(&mut self, object: &K) {
        self.taken.push(ObjectRef::of(object));
        self.again_in(TAKEN);
    }

    /// The same, where only the name is known.
    pub fn taken_name<K: Resource<DynamicType = ()>>(&mut self, namespace: &str, name: &str) {
        self.taken.push(ObjectRef {
            resource: ApiResource::erase::<K>(&()),
            namespace: Some(namespace.to_owned()),
            name: name.to_owned(),
        });
        self.again_in(TAKEN);
    }

    /// Adds an event that tells of something as it should be.
    pub fn normal(&mut self, reason: &str, message: impl Into<String>) {
        self.events.push(Event { severity: Severity::Normal, reason: reason.into(), message: message.into() });
    }

    /// Adds an event that tells of trouble.
    pub fn warning(&mut self, reason: &str, message: impl Into<String>) {
        self.events.push(Event { severity: Severity::Warning, reason: reason.into(), message: message.into() });
    }

    /// Adds a reason.
    pub fn because(&mut self, reason: impl Into<String>) {
        self.reasons.push(reason.into());
    }

    /// Looks again after `delay`, or sooner when something else asked for that.
    pub fn again_in(&mut self, delay: Duration) {
        self.again = Some(self.again.map_or(delay, |again| again.min(delay)));
    }

    /// Takes `wanted` as the status unless `observed` says the same already.
    pub fn set_status<S: Serialize>(&mut self, observed: Option<&S>, wanted: &S) {
        let wanted = serde_json::to_value(wanted).expect("a status serialises");
        let observed = observed.map(|s| serde_json::to_value(s).expect("a status serialises"));
        if observed.as_ref() != Some(&wanted) {
            self.status = Some(wanted);
        }
    }
}

/// One change to one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// It does not exist yet.
    Create(Object),
    /// It exists and shall look like this; carries the resource version it was decided on.
    Update(Object),
    /// A merge patch, for objects others write too.
    Patch(Patch),
    /// It shall go.
    Delete(ObjectRef),
    /// It shall go if it still is what was decided on: its loss could not be made good.
    DeleteSeen(Seen),
}

/// An object as it was when something was decided about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Which.
    pub target: ObjectRef,
    /// Its identity.
    pub uid: Option<String>,
    /// Its version.
    pub resource_version: Option<String>,
}

impl Seen {
    /// An object at hand.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let (uid, resource_version) = (object.meta().uid.clone(), object.meta().resource_version.clone());
        Self { target: ObjectRef::of(object), uid, resource_version }
    }
}

impl Write {
    /// What is written.
    pub fn target(&self) -> ObjectRef {
        match self {
            Write::Create(object) | Write::Update(object) => object.reference(),
            Write::Patch(patch) => patch.target.clone(),
            Write::Delete(target) => target.clone(),
            Write::DeleteSeen(seen) => seen.target.clone(),
        }
    }
}

/// An object to write, as JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its kind, and the path it is served under.
    pub resource: ApiResource,
    /// Its namespace; `None` for a kind of the whole cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// All of it.
    pub value: Value,
}

impl Object {
    /// An object from its type.
    pub fn of<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            namespace: object.meta().namespace.clone(),
            name: object.meta().name.clone().unwrap_or_default(),
            value: serde_json::to_value(object).expect("an API object serialises"),
        }
    }

    /// Which object it is.
    pub fn reference(&self) -> ObjectRef {
        ObjectRef { resource: self.resource.clone(), namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectRef {
    /// Its kind, and the path it is served under.
    pub resource: ApiResource,
    /// Its namespace; `None` for a kind of the whole cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// A reference to an object at hand.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            namespace: object.meta().namespace.clone(),
            name: object.meta().name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.resource.kind, self.name),
            None => write!(f, "{} {}", self.resource.kind, self.name),
        }
    }
}

/// A merge patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// What is patched.
    pub target: ObjectRef,
    /// Which part of it: the object, or a subresource such as `scale`.
    pub subresource: Option<&'static str>,
    /// The patch; `null` removes.
    pub merge: Value,
}

/// Something to tell the user about, shown beside the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether it is trouble.
    pub severity: Severity,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Whether an event is trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Trouble.
    Warning,
}

impl Severity {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// A write the API refused for good: no repetition will help until something else changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// What was to be written.
    pub target: ObjectRef,
    /// The API's words.
    pub message: String,
}
