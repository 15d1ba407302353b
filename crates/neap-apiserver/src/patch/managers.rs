//! `metadata.managedFields`: who set which field, kept up to date on every write that is not an apply.
//!
//! A write that changes nothing leaves the record as it was, to the byte; a manager whose fields a write
//! does not touch keeps its entry verbatim and is not re-encoded.

use std::borrow::Cow;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fieldset::{Set, Step};
use super::typed;
use crate::schema::Schema;

/// How a manager made its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Create, update, or any other patch.
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who makes a change, through what, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Manager {
    /// The field manager's name; an empty one is recorded as `unknown`.
    pub name: String,
    /// How the change is made.
    pub operation: Operation,
    /// The version of the object in the request (`apps/v1`).
    pub api_version: String,
    /// The subresource the request went to (`status`), if any.
    pub subresource: Option<String>,
    /// When; recorded in whole seconds.
    pub time: Timestamp,
}

/// Update managers an object may have, as in Kubernetes; beyond that the oldest share one entry.
const MAX_UPDATE_MANAGERS: usize = 10;

/// The name of the entry the oldest update managers share.
const ANCIENT: &str = "ancient-changes";

/// One entry of `managedFields`.
#[derive(Debug, Clone)]
pub(super) struct Owner<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) operation: Operation,
    pub(super) api_version: Cow<'a, str>,
    pub(super) subresource: Cow<'a, str>,
    pub(super) time: Option<Cow<'a, str>>,
    fields: Fields<'a>,
}

/// The fields of an entry: as they came, as long as nobody needs to take them apart, or as a set.
#[derive(Debug, Clone)]
enum Fields<'a> {
    Encoded(&'a Value),
    Set(Set<'a>),
}

impl<'a> Owner<'a> {
    /// The entry a manager's change is recorded in.
    pub(super) fn new(manager: &'a Manager, set: Set<'a>) -> Owner<'a> {
        Owner {
            name: Cow::Borrowed(if manager.name.is_empty() { "unknown" } else { &manager.name }),
            operation: manager.operation,
            api_version: Cow::Borrowed(&manager.api_version),
            subresource: Cow::Borrowed(manager.subresource.as_deref().unwrap_or_default()),
            time: Some(Cow::Owned(stamp(manager.time))),
            fields: Fields::Set(set),
        }
    }

    /// Whether both are entries of one manager. The version tells update entries apart, not apply entries.
    pub(super) fn is(&self, other: &Owner<'_>) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The fields as a set; what cannot be read owns nothing.
    pub(super) fn set(&self) -> Cow<'_, Set<'a>> {
        match &self.fields {
            Fields::Encoded(encoded) => Cow::Owned(Set::decode(encoded).unwrap_or_default()),
            Fields::Set(set) => Cow::Borrowed(set),
        }
    }

    pub(super) fn replace(&mut self, set: Set<'a>) {
        self.fields = Fields::Set(set);
    }

    /// Whether one of these fields is owned.
    pub(super) fn owns_any(&self, fields: &Set<'_>) -> bool {
        match &self.fields {
            Fields::Encoded(encoded) => fields.meets(encoded),
            Fields::Set(set) => set.intersects(fields),
        }
    }

    /// Takes fields away; an entry they are not in stays as it is.
    pub(super) fn lose(&mut self, fields: &Set<'a>) {
        if self.owns_any(fields) {
            let rest = self.set().difference(fields);
            self.replace(rest);
        }
    }

    fn is_empty(&self) -> bool {
        match &self.fields {
            Fields::Encoded(encoded) => encoded.as_object().is_none_or(Map::is_empty),
            Fields::Set(set) => set.is_empty(),
        }
    }

    fn decode(entry: &'a Value) -> Option<Owner<'a>> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let operation = match text("operation")? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if text("fieldsType") != Some("FieldsV1") {
            return None;
        }
        Some(Owner {
            name: Cow::Borrowed(text("manager").unwrap_or_default()),
            operation,
            api_version: Cow::Borrowed(text("apiVersion").filter(|version| !version.is_empty())?),
            subresource: Cow::Borrowed(text("subresource").unwrap_or_default()),
            time: text("time").map(Cow::Borrowed),
            fields: entry.get("fieldsV1").map_or(Fields::Set(Set::default()), Fields::Encoded),
        })
    }

    fn encode(&self) -> Value {
        let mut out = Map::new();
        out.insert("manager".to_owned(), self.name.as_ref().into());
        out.insert("operation".to_owned(), self.operation.name().into());
        out.insert("apiVersion".to_owned(), self.api_version.as_ref().into());
        if let Some(time) = &self.time {
            out.insert("time".to_owned(), time.as_ref().into());
        }
        out.insert("fieldsType".to_owned(), "FieldsV1".into());
        let fields = match &self.fields {
            Fields::Encoded(encoded) => (*encoded).clone(),
            Fields::Set(set) => set.encode(),
        };
        out.insert("fieldsV1".to_owned(), fields);
        if !self.subresource.is_empty() {
            out.insert("subresource".to_owned(), self.subresource.as_ref().into());
        }
        Value::Object(out)
    }

    fn seconds(&self) -> i64 {
        self.time.as_ref().and_then(|time| time.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_second)
    }
}

/// A time as `managedFields` spells it: whole seconds, UTC.
fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads `managedFields`; `None` when any entry is not understood.
pub(super) fn decode(managed: &Value) -> Option<Vec<Owner<'_>>> {
    managed.as_array()?.iter().map(Owner::decode).collect()
}

/// Writes `managedFields` in Kubernetes' order; `None` when nobody owns anything.
pub(super) fn encode(mut owners: Vec<Owner<'_>>) -> Option<Value> {
    owners.retain(|owner| !owner.is_empty());
    owners.sort_by_cached_key(|owner| {
        let names = (owner.name.to_string(), owner.api_version.to_string(), owner.subresource.to_string());
        (owner.operation, owner.seconds(), names)
    });
    (!owners.is_empty()).then(|| Value::Array(owners.iter().map(Owner::encode).collect()))
}

/// The fields nobody owns: the object's identity and what the server alone sets.
pub(super) static UNOWNED: LazyLock<Set<'static>> = LazyLock::new(|| {
    let field = |name: &'static str| Step::Field(Cow::Borrowed(name));
    let mut meta = Set::default();
    for name in [
        "clusterName",
        "creationTimestamp",
        "generation",
        "managedFields",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
        "uid",
    ] {
        meta.push(field(name), true, Set::default());
    }
    let mut out = Set::default();
    out.push(field("apiVersion"), true, Set::default());
    out.push(field("kind"), true, Set::default());
    out.push(field("metadata"), true, meta);
    out
});

/// Takes `managedFields` out of an object.
pub(super) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Puts `managedFields` into an object that has metadata.
pub(super) fn put(object: &mut Value, managed: Option<Value>) {
    if let (Some(managed), Some(meta)) = (managed, object.get_mut("metadata").and_then(Value::as_object_mut)) {
        meta.insert("managedFields".to_owned(), managed);
    }
}

/// Whether a client asks for the record to be thrown away: an empty list, or one empty entry.
fn is_reset(sent: &Value) -> bool {
    sent.as_array().is_some_and(|entries| entries.is_empty() || (entries.len() == 1 && entries[0] == json!({})))
}

/// Whether a record a client sent can be used: every entry is understood, down to its fields.
fn is_readable(sent: &Value) -> bool {
    let fields_are = |owner: &Owner<'_>| match &owner.fields {
        Fields::Encoded(encoded) => Set::decode(encoded).is_some(),
        Fields::Set(_) => true,
    };
    decode(sent).is_some_and(|owners| !owners.is_empty() && owners.iter().all(fields_are))
}

/// Records in `new` who set what, for a create (`old` is `None`), an update, or a patch that is not an apply.
///
/// `new` may carry the record the client sent: it is honoured when it is readable (so that tools can edit
/// it), ignored on a subresource, and `[{}]` removes the record.
pub fn track_update(old: Option<&Value>, new: &mut Value, manager: &Manager, schema: &Schema) {
    let sent = take(new);
    let kept = old.and_then(|old| old.pointer("/metadata/managedFields"));
    let record = match &sent {
        Some(sent) if manager.subresource.is_none() && Some(sent) != kept => {
            if is_reset(sent) {
                None
            } else if is_readable(sent) {
                Some(sent)
            } else {
                kept
            }
        }
        _ => kept,
    };
    // An object that is not tracked stays so until it is first applied.
    let tracked = old.is_none() || record.and_then(Value::as_array).is_some_and(|entries| !entries.is_empty());
    if tracked {
        let managed = record_update(old, new, record, manager, schema);
        put(new, managed);
    }
}

fn record_update<'a>(
    old: Option<&'a Value>,
    new: &'a Value,
    record: Option<&'a Value>,
    manager: &'a Manager,
    schema: &Schema,
) -> Option<Value> {
    // The old object still holds its record, the new one does not: what nobody owns includes it.
    let nothing = Value::Object(Map::new());
    let difference = typed::compare(Some(schema), Some(old.unwrap_or(&nothing)), Some(new));
    let changed = difference.modified.union(&difference.added).difference(&UNOWNED);
    let removed = difference.removed.difference(&UNOWNED);
    if changed.is_empty() && removed.is_empty() {
        return record.cloned();
    }
    let mut owners = record.and_then(decode).unwrap_or_default();
    // A record that cannot be read is as good as none.
    if owners.is_empty() && old.is_some() {
        return None;
    }
    let mut own = Owner::new(manager, Set::default());
    for owner in &mut owners {
        if !owner.is(&own) {
            owner.lose(&changed);
        }
        owner.lose(&removed);
    }
    if !changed.is_empty() {
        let all = match owners.iter().position(|owner| owner.is(&own)) {
            Some(at) => owners.swap_remove(at).set().union(&changed),
            None => changed,
        };
        own.replace(all);
        owners.push(own);
    }
    owners.retain(|owner| !owner.is_empty());
    cap(&mut owners);
    encode(owners)
}

/// Folds the oldest update entries of a version into one until there are few enough.
fn cap(owners: &mut Vec<Owner<'_>>) {
    let mut updates = owners.iter().filter(|owner| owner.operation == Operation::Update).count();
    if updates <= MAX_UPDATE_MANAGERS {
        return;
    }
    owners.sort_by_cached_key(|owner| (owner.seconds(), owner.name.to_string(), owner.api_version.to_string()));
    let mut at = 0;
    while at < owners.len() && updates > MAX_UPDATE_MANAGERS {
        let version = owners[at].api_version.clone();
        let first =
            owners[..at].iter().position(|owner| owner.operation == Operation::Update && owner.api_version == version);
        match first {
            Some(first) if owners[at].operation == Operation::Update => {
                let newer = owners.remove(at);
                let bucket = &mut owners[first];
                bucket.name = Cow::Borrowed(ANCIENT);
                bucket.subresource = Cow::Borrowed("");
                let union = bucket.set().union(&newer.set());
                bucket.time = newer.time;
                bucket.replace(union);
                updates -= 1;
            }
            _ => at += 1,
        }
    }
}
