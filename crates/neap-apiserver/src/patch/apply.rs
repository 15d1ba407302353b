//! Server-side apply: a client sends the fields it has an opinion about, and owns them from then on.
//!
//! What it set last time and sets no longer is removed unless someone else owns it; what someone else set
//! to another value is a conflict unless forced.

use std::fmt::Write as _;

use kube_core::response::{Status, StatusCause, StatusDetails, StatusSummary};
use serde_json::{Map, Value};

use super::fieldset::Set;
use super::managers::{self, Manager, Operation, Owner};
use super::typed::{self, Husk};
use crate::limits::{FAULTS, NAME, cut};
use crate::schema::Schema;

/// The manager whose last client-side apply is taken over without conflict.
const KUBECTL: &str = "kubectl";

/// Where client-side apply leaves what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The manager that is given the fields of an object nobody tracked before.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// One field another manager owns and this apply would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager as messages name it: `"kubectl-client-side-apply" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.replicas`.
    pub field: String,
}

/// Why an apply was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields this apply would change (409).
    #[error("{}", conflict_text(.conflicts))]
    Conflicts {
        /// Every such field, by manager.
        conflicts: Vec<Conflict>,
    },
    /// The request itself is wrong (400).
    #[error("{reason}")]
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration does not fit the schema (400).
    #[error("failed to create typed patch object ({object}): {}", misfit_text(.problems))]
    DoesNotFit {
        /// Namespace, name, version and kind.
        object: String,
        /// Every problem with its field.
        problems: Vec<String>,
    },
}

impl ApplyError {
    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        match self {
            Self::Conflicts { .. } => 409,
            Self::BadRequest { .. } | Self::DoesNotFit { .. } => 400,
        }
    }

    /// The whole answer; a conflict names each field in a cause.
    pub fn to_status(&self) -> Status {
        let causes: Vec<StatusCause> = match self {
            Self::Conflicts { conflicts } => conflicts
                .iter()
                .map(|conflict| StatusCause {
                    reason: "FieldManagerConflict".to_owned(),
                    message: format!("conflict with {}", conflict.manager),
                    field: conflict.field.clone(),
                })
                .collect(),
            Self::BadRequest { .. } | Self::DoesNotFit { .. } => Vec::new(),
        };
        Status {
            status: Some(StatusSummary::Failure),
            code: self.code(),
            message: self.to_string(),
            metadata: None,
            reason: if self.code() == 409 { "Conflict" } else { "BadRequest" }.to_owned(),
            details: (!causes.is_empty()).then(|| StatusDetails {
                name: String::new(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes,
                retry_after_seconds: 0,
            }),
        }
    }
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.field);
    }
    let mut out = format!("Apply failed with {} conflicts: ", conflicts.len());
    let mut last: Option<&str> = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            let newline = if last.is_some() { "\n" } else { "" };
            write!(out, "{newline}conflicts with {}:", conflict.manager).expect("writing to a String cannot fail");
            last = Some(&conflict.manager);
        }
        write!(out, "\n- {}", conflict.field).expect("writing to a String cannot fail");
    }
    out
}

fn misfit_text(problems: &[String]) -> String {
    match problems {
        [only] => only.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

/// Applies a configuration to the live object (`None` creates it) and returns the object to store, with
/// its record of owners brought up to date.
///
/// The result is not defaulted, pruned or validated; identity fields the server assigns are untouched.
/// Applying the same configuration again changes nothing.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    manager: &Manager,
    schema: &Schema,
    force: bool,
) -> Result<Value, ApplyError> {
    check_request(applied, manager, schema)?;
    let nothing = Value::Object(Map::new());
    let mut bare = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    managers::take(&mut bare);
    let record = live.and_then(|live| live.pointer("/metadata/managedFields"));
    let mut owners = record.and_then(managers::decode).unwrap_or_default();
    let first = Manager {
        name: BEFORE_FIRST_APPLY.to_owned(),
        operation: Operation::Update,
        api_version: manager.api_version.clone(),
        subresource: manager.subresource.clone(),
        time: manager.time,
    };
    if owners.is_empty() && live.is_some() {
        let added = typed::compare(Some(schema), Some(&nothing), Some(&bare)).added;
        owners.push(Owner::new(&first, added.difference(&managers::UNOWNED)));
    }

    let set = typed::field_set(Some(schema), applied);
    let mut own = Owner::new(manager, set.difference(&managers::UNOWNED));
    own.operation = Operation::Apply;
    let place = owners.iter().position(|owner| owner.is(&own));
    let previous = place.map(|at| owners.swap_remove(at));

    let mut merged = typed::merge(Some(schema), &bare, applied);
    // What is applied again need not be looked for among what is applied no longer.
    if let Some(previous) = previous.as_ref().filter(|previous| !previous.set().is_within(&set)) {
        let kept = drop_abandoned(schema, merged, &set, &previous.set(), &owners);
        // An empty list is applied but owned by nobody, so it may have gone with what it held.
        merged = typed::merge(Some(schema), &kept, applied);
    }

    let difference = typed::compare(Some(schema), Some(&bare), Some(&merged));
    let changed = difference.modified.union(&difference.added);
    if !force {
        let conflicts = conflicts(&owners, &changed, &bare, manager, schema);
        if !conflicts.is_empty() {
            return Err(ApplyError::Conflicts { conflicts });
        }
    }
    for owner in &mut owners {
        owner.lose(&changed);
        owner.lose(&difference.removed);
    }
    if let Some(previous) = previous {
        let unchanged = bare == merged && previous.set() == own.set() && previous.api_version == own.api_version;
        if unchanged {
            own.time = previous.time.clone();
        }
    }
    owners.push(own);
    let managed = managers::encode(owners);
    drop(difference);
    refresh_last_applied(&mut merged, applied, manager);
    managers::put(&mut merged, managed);
    Ok(merged)
}

fn check_request(applied: &Value, manager: &Manager, schema: &Schema) -> Result<(), ApplyError> {
    let bad = |reason: String| Err(ApplyError::BadRequest { reason });
    let text = |pointer: &str| applied.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if !applied.is_object() {
        return bad("error decoding YAML: an applied configuration is an object".to_owned());
    }
    if text("/apiVersion") != manager.api_version {
        return bad(format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {}",
            text("/apiVersion"),
            manager.api_version
        ));
    }
    if applied.pointer("/metadata/managedFields").is_some_and(|managed| !managed.is_null()) {
        return bad("metadata.managedFields must be nil".to_owned());
    }
    let problems = typed::misfits(schema, applied);
    if problems.is_empty() {
        return Ok(());
    }
    Err(ApplyError::DoesNotFit {
        object: format!(
            "{}/{}; {}{}, Kind={}",
            text("/metadata/namespace"),
            text("/metadata/name"),
            // The core group has no name, but its slash.
            if manager.api_version.contains('/') { "" } else { "/" },
            manager.api_version,
            text("/kind")
        ),
        problems,
    })
}

/// Takes out of the merged object what this manager applied last time, applies no longer, and nobody else
/// owns.
fn drop_abandoned(schema: &Schema, merged: Value, now: &Set<'_>, before: &Set<'_>, others: &[Owner<'_>]) -> Value {
    let named = |set: &Set<'_>| -> Set<'static> { own(&set.with_named_parents(Some(schema))) };
    let before = named(before);
    if before.is_empty() {
        return merged;
    }
    let everything = named(&typed::field_set(Some(schema), &merged));
    let without = |gone: &Set<'_>| typed::remove(Some(schema), &merged, gone, Husk::Null);
    let left = |value: &Value| named(&typed::field_set(Some(schema), value));
    let mut owned = named(now);
    for other in others {
        owned = owned.union(&named(&other.set()));
    }
    // First without everything it had, then with back what somebody owns, then with back what it never
    // had: removing a container must not take along what only lies below it.
    let keep = left(&without(&before)).union(&owned);
    let restored = without(&everything.difference(&keep));
    let gone = everything.difference(&left(&restored)).intersection(&before);
    typed::remove(Some(schema), &merged, &gone, Husk::Empty)
}

/// A copy of a set that borrows nothing, so that it outlives the object it was made of.
fn own(set: &Set<'_>) -> Set<'static> {
    set.to_owned_set()
}

/// Fields of other managers that this apply would change, by manager.
fn conflicts(
    owners: &[Owner<'_>],
    changed: &Set<'_>,
    live: &Value,
    manager: &Manager,
    schema: &Schema,
) -> Vec<Conflict> {
    let mut out = Vec::new();
    let mut sorted: Vec<&Owner<'_>> = owners.iter().filter(|owner| owner.owns_any(changed)).collect();
    if sorted.is_empty() {
        return out;
    }
    sorted.sort_by_key(|owner| (owner.name.clone(), owner.operation, owner.api_version.clone()));
    // A field kubectl's own client-side apply set, and that nobody changed since, is kubectl's to take over.
    let last_applied = (manager.name == KUBECTL).then(|| last_applied(live, manager)).flatten();
    let allowed: Set<'static> = last_applied
        .as_ref()
        .map(|last| {
            let difference = typed::compare(Some(schema), Some(last), Some(live));
            let changed = difference.modified.union(&difference.added).union(&difference.removed);
            own(&typed::field_set(Some(schema), last).difference(&changed))
        })
        .unwrap_or_default();
    for owner in sorted {
        let fields = own(&owner.set()).intersection(&own(changed)).difference(&allowed);
        let manager = describe(owner);
        let room = FAULTS.saturating_sub(out.len());
        out.extend(fields.paths(room).into_iter().map(|field| Conflict { manager: manager.clone(), field }));
    }
    out
}

/// A manager as conflicts name it.
fn describe(owner: &Owner<'_>) -> String {
    let mut out = format!("{:?}", cut(&owner.name, NAME));
    if !owner.subresource.is_empty() {
        write!(out, " with subresource {:?}", owner.subresource).expect("writing to a String cannot fail");
    }
    if owner.operation == Operation::Update {
        write!(out, " using {}", owner.api_version).expect("writing to a String cannot fail");
    }
    out
}

/// What client-side apply says it applied, when it is of this version.
fn last_applied(live: &Value, manager: &Manager) -> Option<Value> {
    let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    let last: Value = serde_json::from_str(text).ok()?;
    (last.get("apiVersion")?.as_str()? == manager.api_version).then_some(last)
}

/// Keeps client-side apply usable after kubectl moved to server-side apply: where its annotation exists it
/// follows what is applied.
fn refresh_last_applied(merged: &mut Value, applied: &Value, manager: &Manager) {
    if manager.name != KUBECTL {
        return;
    }
    let annotations = merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    let Some(Value::String(last)) = annotations.and_then(|map| map.get_mut(LAST_APPLIED)) else { return };
    if last.is_empty() {
        return;
    }
    let mut applied = applied.clone();
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    *last = format!("{applied}\n");
}
