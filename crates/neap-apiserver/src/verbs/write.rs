//! What happens to an object between the caller's wish and the store: defaults, admission, validation, generation,
//! field ownership, compare-and-set. Create, update, patch, apply, scale and eviction all end here.
//!
//! Nothing in here awaits, so an object is read, judged and written without another request in between on this task;
//! races with other threads are found by the store and tried again.

use crate::auth;
use crate::cel::rules::is_blocking;
use crate::crd;
use crate::kind::{Origin, Role, Semantics};
use crate::limits;
use crate::metadata::{self, Generation};
use crate::namespace;
use crate::patch::{Manager, Operation as Owning, track_update};
use crate::request::FieldValidation;
use crate::schema::{FieldError, FieldErrorKind};
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use crate::{storage, time};
use kube_core::admission::{AdmissionRequest, Operation};
use kube_core::gvk::{GroupVersionKind, GroupVersionResource};
use kube_core::metadata::TypeMeta;
use kube_core::{DynamicObject, Status};
use neap_store::{Committed, Entry, Error, Expect, Revision, Txn};
use serde_json::{Value, json};

/// How often a write without a resource version is tried again after it lost a race.
pub(crate) const RETRIES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Main,
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// Only the number that the scale subresource shows; the caller changed nothing else.
    Scale,
}

impl Part {
    pub(crate) fn subresource(self) -> Option<&'static str> {
        match self {
            Self::Main => None,
            Self::Status => Some("status"),
            Self::Finalize => Some("finalize"),
            Self::Scale => Some("scale"),
        }
    }

    /// As admission functions are told: a Scale is no object of the kind, but its change is one.
    fn admitted_as(self) -> Option<&'static str> {
        self.subresource().filter(|_| self != Self::Scale)
    }
}

/// What became of a write.
pub(crate) struct Written {
    /// In the version whose rules apply.
    pub object: Value,
    /// As stored; `None` for a dry run or an object that this write removed.
    pub stored: Option<(Vec<u8>, Revision)>,
    pub created: bool,
    pub committed: Option<Committed>,
}

/// Who is recorded as the owner of the fields.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Computed here from the difference between old and new.
    Tracked,
    /// Already in the object: a server-side apply computed it.
    Applied,
}

pub(crate) fn manager(x: &Exchange, operation: Owning, part: Option<&str>) -> Manager {
    Manager {
        name: x.manager(),
        operation,
        api_version: x.working.version().api_version.clone(),
        subresource: part.map(str::to_owned),
        time: x.now,
    }
}

/// Creates an object given in the version whose rules apply.
pub(crate) fn create(x: &mut Exchange, object: Value, ownership: Ownership) -> Result<Written> {
    let mut tries = 0;
    loop {
        match create_once(x, object.clone(), ownership) {
            // Another attempt draws another name; a namespace that changed is looked at again.
            Err(ApiError::AlreadyExists { .. }) if generates(&object) && tries < RETRIES => tries += 1,
            Err(ApiError::Conflict { .. }) if tries < RETRIES => tries += 1,
            other => return other,
        }
    }
}

fn generates(object: &Value) -> bool {
    metadata::text(object, "name").is_empty() && !metadata::text(object, "generateName").is_empty()
}

fn create_once(x: &mut Exchange, mut object: Value, ownership: Ownership) -> Result<Written> {
    let working = x.working.clone();
    let (kind, version) = (&*working.kind, working.version());
    let shape = kind.shape(version);
    x.warnings.clear();
    let now = time::rfc3339(x.now);
    let namespace = x.at.namespace.clone();
    x.server.chance(|rng| {
        let uid = metadata::random_uid(rng);
        metadata::prepare_create(&mut object, &shape, namespace.as_deref(), &now, &uid, rng)
    })?;
    let home = home(x, metadata::text(&object, "name"))?;
    if version.status
        && !kind.keep_created_status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    normalise(x, &mut object)?;
    defaulted(x, &mut object, None);
    if ownership == Ownership::Tracked {
        // The caller owns what was sent and its defaults: not the status, and nothing that is decided from here on.
        let status = if version.status { object.as_object_mut().and_then(|map| map.remove("status")) } else { None };
        track_update(None, &mut object, &manager(x, Owning::Update, None), &version.schema);
        if let (Some(status), Some(map)) = (status, object.as_object_mut()) {
            map.insert("status".into(), status);
        }
    }
    special(x, &mut object, None);
    let mut object = admitted(x, Operation::Create, None, object, None)?;
    judge(x, &mut object, None)?;
    limits::check_depth(&object, None)?;
    let name = metadata::text(&object, "name").to_owned();
    let key = storage::key(kind, namespace.as_deref(), &name);
    let exists = |stored: &[u8]| ApiError::AlreadyExists {
        resource: x.kind().id(),
        name: name.clone(),
        dying: storage::is_deleting(stored),
    };
    if let Some(entry) = x.server.store.get(key.as_bytes()) {
        return Err(exists(&entry.value));
    }
    if x.query.is_dry_run() {
        return Ok(Written { object, stored: None, created: true, committed: None });
    }
    let bytes = storage::encode(&object);
    let mut txn = Txn::new().put(key, Expect::Absent, bytes.clone());
    if let Some((ns_key, revision)) = home {
        txn = txn.check(ns_key, Expect::Revision(revision));
    }
    let committed = match x.server.store.commit(txn) {
        Ok(committed) => committed,
        // Either somebody was faster, or the namespace changed: then the caller of this function looks again.
        Err(error) if matches!(error, Error::Conflict { .. }) => {
            return Err(match x.server.store.get(storage::key(kind, namespace.as_deref(), &name).as_bytes()) {
                Some(entry) => exists(&entry.value),
                None => storage::store_error(&error, &x.kind().id(), &name),
            });
        }
        Err(error) => return Err(storage::store_error(&error, &x.kind().id(), &name)),
    };
    let revision = committed.revision;
    metadata::of_mut(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
    after(x, Some(&object), &name);
    Ok(Written { object, stored: Some((bytes, revision)), created: true, committed: Some(committed) })
}

/// The namespace a new object goes to must exist, and stay as it was looked at until the commit.
fn home(x: &Exchange, name: &str) -> Result<Option<(String, Revision)>> {
    crd::check_accepting(x)?;
    let Some(namespace) = x.namespace().filter(|_| x.kind().namespaced) else { return Ok(None) };
    if x.kinds.get("", "namespaces").is_none() {
        return Ok(None);
    }
    let key = format!("{}{namespace}", storage::root("", "namespaces"));
    match x.server.store.get(key.as_bytes()) {
        None => Err(namespace::missing(namespace)),
        Some(entry) if storage::is_deleting(&entry.value) => {
            Err(namespace::terminating(x.kind().id(), namespace, name))
        }
        Some(entry) => Ok(Some((key, entry.modified))),
    }
}

/// Changes an object. `wish` turns the present object into the wanted one (both in the version whose rules apply) and
/// is called again after a lost race, unless the caller meant one version of the object (`meant`).
pub(crate) fn update(
    x: &mut Exchange,
    part: Part,
    ownership: Ownership,
    meant: Meant,
    mut wish: impl FnMut(&mut Exchange, &Value) -> Result<Value>,
) -> Result<Written> {
    let mut tries = 0;
    loop {
        let entry = super::get::find(x)?;
        let old = super::get::decode_working(x, &entry)?;
        let wanted = wish(x, &old)?;
        match update_once(x, part, ownership, &entry, &old, wanted) {
            Err(Lost::Race) if meant == Meant::Whatever && tries < RETRIES => {
                tries += 1;
                x.warnings.clear();
            }
            Err(Lost::Race) => {
                return Err(ApiError::Conflict {
                    resource: x.kind().id(),
                    name: x.name().to_owned(),
                    why: metadata::MODIFIED.to_owned(),
                });
            }
            Err(Lost::Refused(error)) => return Err(error),
            Ok(written) => return Ok(written),
        }
    }
}

/// Which state of an object the caller wants to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meant {
    /// As it is, whichever version that is.
    Whatever,
    /// The version named in what was sent: a lost race is the caller's conflict.
    Version,
}

impl Meant {
    /// As the object, or the part of one, that the caller sent says.
    pub(crate) fn by(sent: &Value) -> Self {
        match metadata::text(sent, "resourceVersion") {
            "" | "0" => Self::Whatever,
            _ => Self::Version,
        }
    }
}

enum Lost {
    Race,
    Refused(ApiError),
}

impl From<ApiError> for Lost {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

fn update_once(
    x: &mut Exchange,
    part: Part,
    ownership: Ownership,
    entry: &Entry,
    old: &Value,
    mut new: Value,
) -> std::result::Result<Written, Lost> {
    let working = x.working.clone();
    let (kind, version) = (&*working.kind, working.version());
    let shape = kind.shape(version);
    let (namespace, name) = (x.at.namespace.clone(), x.name().to_owned());
    metadata::prepare_update(&mut new, old, &shape, namespace.as_deref(), &name)?;
    confine(&mut new, old, part, version.status, kind.semantics);
    normalise(x, &mut new)?;
    defaulted(x, &mut new, Some(old));
    if ownership == Ownership::Tracked {
        track_update(Some(old), &mut new, &manager(x, Owning::Update, part.subresource()), &version.schema);
    }
    special(x, &mut new, Some(old));
    let mut new = admitted(x, Operation::Update, part.admitted_as(), new, Some(old))?;
    judge(x, &mut new, Some(old))?;
    limits::check_depth(&new, Some(old))?;
    metadata::bump(&mut new, old, shape.generation);
    let dies = metadata::is_deleting(&new)
        && metadata::finalizers(&new).is_empty()
        && namespace::is_finalized(kind.role(), &new)
        && new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0;
    if x.query.is_dry_run() {
        return Ok(Written { object: new, stored: None, created: false, committed: None });
    }
    if new == *old && !dies {
        // Nothing changed, so nothing is written and no watcher wakes.
        let stored = Some((entry.value.to_vec(), entry.modified));
        return Ok(Written { object: new, stored, created: false, committed: None });
    }
    let expect = Expect::Revision(entry.modified);
    if dies {
        // One step, so that no crash leaves an object behind that nothing holds any more.
        let committed = lost(x, x.server.store.commit(Txn::new().delete(entry.key.clone(), expect)))?;
        after(x, None, &name);
        // With the resource version it had: nothing was stored that could have another.
        return Ok(Written { object: new, stored: None, created: false, committed: Some(committed) });
    }
    let bytes = storage::encode(&new);
    let committed = lost(x, x.server.store.commit(Txn::new().put(entry.key.clone(), expect, bytes.clone())))?;
    let revision = committed.revision;
    metadata::of_mut(&mut new).insert("resourceVersion".into(), json!(revision.to_string()));
    after(x, Some(&new), &name);
    Ok(Written { object: new, stored: Some((bytes, revision)), created: false, committed: Some(committed) })
}

fn lost(x: &Exchange, result: std::result::Result<Committed, Error>) -> std::result::Result<Committed, Lost> {
    result.map_err(|error| match error {
        Error::Conflict { .. } => Lost::Race,
        other => Lost::Refused(storage::store_error(&other, &x.kind().id(), x.name())),
    })
}

/// A subresource changes only its own part; the object itself never changes its status subresource.
fn confine(new: &mut Value, old: &Value, part: Part, status_apart: bool, semantics: Semantics) {
    match part {
        Part::Main if status_apart => keep(new, old, "status"),
        Part::Main | Part::Scale => {}
        Part::Status => {
            let whole = std::mem::replace(new, old.clone());
            keep(new, &whole, "status");
            let meta = metadata::of_mut(new);
            let sent = |key: &str| whole.get("metadata").and_then(|m| m.get(key)).cloned();
            if let Some(managed) = sent("managedFields") {
                meta.insert("managedFields".into(), managed);
            }
            // Compiled-in kinds take a little more than the status.
            for key in ["annotations", "finalizers"].into_iter().filter(|_| semantics == Semantics::Native) {
                match sent(key) {
                    Some(value) => meta.insert(key.into(), value),
                    None => meta.remove(key),
                };
            }
        }
        Part::Finalize => {
            let finalizers = new.pointer("/spec/finalizers").cloned();
            *new = old.clone();
            if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
                match finalizers.filter(|f| f.as_array().is_some_and(|list| !list.is_empty())) {
                    Some(finalizers) => spec.insert("finalizers".to_owned(), finalizers),
                    None => spec.remove("finalizers"),
                };
            }
        }
    }
}

/// Gives `new` the field that `old` has, or takes it away.
fn keep(new: &mut Value, old: &Value, key: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(key) {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

/// Unknown fields go, defaults come; what went, and what was said twice, is told as the caller asked.
fn normalise(x: &mut Exchange, object: &mut Value) -> Result<()> {
    let version = x.working.version().clone();
    let mut faults = x.faults.clone();
    let mut unknown = version.schema.prune(object);
    // Metadata is read first, and that of embedded objects last.
    unknown.sort_by_key(|path| match path.find("metadata.") {
        Some(0) => 0,
        Some(_) => 2,
        None => 1,
    });
    faults.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
    version.schema.default(object);
    if x.working.kind.semantics == Semantics::Native {
        version.schema.tidy(object);
    }
    if faults.is_empty() {
        return Ok(());
    }
    match x.query.field_validation() {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            x.warnings.extend(faults);
            Ok(())
        }
        FieldValidation::Strict => Err(undecodable(x, format!("strict decoding error: {}", faults.join(", ")))),
    }
}

fn undecodable(x: &Exchange, why: String) -> ApiError {
    let (kind, version) = (x.kind().kind.clone(), x.working.version().name.clone());
    ApiError::Undecodable { told: kind.clone(), version, kind, why }
}

/// The defaults that a schema cannot say.
fn defaulted(x: &Exchange, object: &mut Value, old: Option<&Value>) {
    if x.working.kind.role() == Role::Namespaces {
        namespace::default(object, old, x.at.subresource.as_deref() == Some("finalize"));
    }
    if let Some(prepare) = &x.working.kind.prepare {
        prepare(object, old);
    }
}

/// What the server itself decides about the kinds that the contract speaks of.
fn special(x: &mut Exchange, object: &mut Value, old: Option<&Value>) {
    match x.working.kind.role() {
        Role::Namespaces if old.is_none() => namespace::prepare(object),
        Role::Definitions => {
            crd::prepare(&x.server, object, old, &time::rfc3339(x.now));
        }
        _ => {}
    }
}

/// Runs the admission functions in order of registration; each sees what the one before made.
fn admitted(
    x: &mut Exchange,
    operation: Operation,
    subresource: Option<&str>,
    object: Value,
    old: Option<&Value>,
) -> Result<Value> {
    let working = x.working.clone();
    // As a webhook whose rules name the resource: its subresources are not asked about.
    if working.kind.admit.is_empty() || subresource.is_some() {
        return Ok(object);
    }
    let mut request = admission(x, operation, subresource, Some(&object), old)?;
    for admit in &working.kind.admit {
        let (object, warnings) = admit(&request).map_err(denied)?;
        x.warnings.extend(warnings);
        request.object = Some(object);
    }
    let mut after = serde_json::to_value(&request.object).map_err(ApiError::internal)?;
    if after == object {
        return Ok(object);
    }
    metadata::check_decoded(&mut after, &working.kind.shape(working.version()))?;
    working.version().schema.prune(&mut after);
    working.version().schema.default(&mut after);
    Ok(after)
}

fn denied(status: Status) -> ApiError {
    ApiError::Denied(Box::new(status))
}

fn admission(
    x: &Exchange,
    operation: Operation,
    subresource: Option<&str>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<AdmissionRequest<DynamicObject>> {
    let kind = &x.working.kind;
    let version = &x.working.version().name;
    let dynamic = |v: Option<&Value>| -> Result<Option<DynamicObject>> {
        use serde::Deserialize;
        v.map(|v| DynamicObject::deserialize(v).map_err(ApiError::bad_request)).transpose()
    };
    let gvk = GroupVersionKind::gvk(&kind.group, version, &kind.kind);
    let gvr = GroupVersionResource::gvr(&kind.group, version, &kind.plural);
    Ok(AdmissionRequest {
        types: TypeMeta { api_version: "admission.k8s.io/v1".into(), kind: "AdmissionReview".into() },
        uid: x.server.chance(metadata::random_uid),
        kind: gvk.clone(),
        resource: gvr.clone(),
        sub_resource: subresource.map(str::to_owned),
        request_kind: Some(gvk),
        request_resource: Some(gvr),
        request_sub_resource: subresource.map(str::to_owned),
        name: object.or(old).map(|o| metadata::text(o, "name").to_owned()).unwrap_or_default(),
        namespace: x.at.namespace.clone(),
        operation,
        user_info: x.user.clone(),
        object: dynamic(object)?,
        old_object: dynamic(old)?,
        dry_run: x.query.is_dry_run(),
        options: None,
    })
}

/// Asks the admission functions that want to see deletions.
pub(crate) fn admit_delete(x: &mut Exchange, old: &Value) -> Result<()> {
    let kind = x.working.kind.clone();
    if !kind.admit_deletes {
        return Ok(());
    }
    let request = admission(x, Operation::Delete, None, None, Some(old))?;
    for admit in &kind.admit {
        let (_, warnings) = admit(&request).map_err(denied)?;
        x.warnings.extend(warnings);
    }
    Ok(())
}

fn judge(x: &Exchange, object: &mut Value, old: Option<&Value>) -> Result<()> {
    let working = &x.working;
    let shape = working.kind.shape(working.version());
    let schema = &working.version().schema;
    let mut faults = schema.validate(object);
    if faults.is_empty() {
        faults = schema.check_rules(object, old);
    } else if schema.has_rules() && faults.iter().any(|fault| is_blocking(fault.kind)) {
        let why = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                   complete validation";
        faults.push(FieldError::invalid("<nil>", Value::Null, why));
    }
    let mut causes = metadata::validate(object, old, &shape);
    match working.kind.semantics {
        Semantics::Custom => causes.extend(faults.iter().map(FieldError::cause)),
        Semantics::Native => {
            // A value of the wrong type is not even an object of its kind.
            if let Some(fault) = faults.iter().find(|f| f.kind == FieldErrorKind::TypeInvalid) {
                let found = fault.value.as_ref().and_then(Value::as_str).unwrap_or("value");
                let why = fault.detail.rsplit(" must be of type ").next().unwrap_or_default();
                let wanted = why.split(':').next().unwrap_or_default();
                let (kind, path) = (&working.kind.kind, &fault.path);
                let why = match wanted {
                    // What somebody forgot to encode is most often a password.
                    "byte" => format!("illegal base64 data in field {kind}.{path}"),
                    _ => format!("json: cannot unmarshal {found} into field {kind}.{path} of type {wanted}"),
                };
                return Err(undecodable(x, why));
            }
            // Their own rules say more than their schema does.
            if working.kind.group == auth::rbac::GROUP {
                causes.extend(auth::rbac::validate(object, old));
            }
            if causes.is_empty() {
                causes.extend(faults.iter().map(FieldError::cause));
            }
        }
    }
    if let (true, Some(check)) = (causes.is_empty(), &working.kind.check) {
        causes.extend(check(object, old));
    }
    if causes.is_empty() {
        match working.kind.role() {
            Role::Definitions => causes.extend(crd::validate(object, old)),
            Role::Namespaces => causes.extend(namespace::validate(object)),
            _ if working.kind.group == auth::rbac::GROUP => auth::rbac::check_escalation(x, object, old)?,
            _ => {}
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid {
        group: working.kind.group.clone(),
        kind: working.kind.kind.clone(),
        name: metadata::text(object, "name").to_owned(),
        causes,
    })
}

/// What the server itself does after an object changed (`object`) or went (`None`).
pub(crate) fn after(x: &Exchange, object: Option<&Value>, name: &str) {
    if x.working.kind.role() == Role::Definitions {
        crd::changed(&x.server, object, name);
    } else if let (None, Origin::Stored(definition)) = (object, &x.working.kind.origin) {
        crd::instance_gone(&x.server, definition);
    }
}

/// The generation rule decides whether the start of a deletion counts as one.
pub(crate) fn raises_on_delete(rule: Generation) -> bool {
    rule != Generation::Never
}

/// Waits for the disk where the caller wants that; what was found as wished may not be there yet either.
pub(crate) async fn settle(x: &Exchange, committed: Option<Committed>, dry_run: bool) -> Result<()> {
    match committed {
        None if !dry_run => x.server.settle(x.ack).await,
        committed => x.server.acknowledge(x.ack, committed).await,
    }
}

/// The response to a write that may still have to wait for the disk.
pub(crate) async fn respond(x: &Exchange, written: Written) -> Result<http::Response<crate::codec::Body>> {
    settle(x, written.committed, x.query.is_dry_run()).await?;
    let code = if written.created { 201 } else { 200 };
    match written.stored {
        Some((bytes, revision)) => super::object_response(x, code, &bytes, revision),
        None => super::value_response(x, code, written.object),
    }
}
