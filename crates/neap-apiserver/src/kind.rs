//! One registered kind: names, versions, and the few functions by which a kind may differ from the generic behaviour.
//!
//! Built from a CustomResourceDefinition, for compiled-in kinds and for those that users define alike.

use crate::codec::Body;
use crate::jsonpath::JsonPath;
use crate::metadata::{Generation, NameRule, Shape};
use crate::schema::Schema;
use crate::selector::SelectableField;
use crate::status::{ApiError, ResourceId, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use kube_core::DynamicObject;
use kube_core::admission::AdmissionRequest;
use kube_core::response::{Status, StatusCause};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An admission function: the object as it shall be stored and warnings for the caller, or a refusal.
pub type Admit = Arc<
    dyn Fn(&AdmissionRequest<DynamicObject>) -> std::result::Result<(DynamicObject, Vec<String>), Status> + Send + Sync,
>;
/// Serves a subresource that is a conversation and not an object (`log`, `exec`, `proxy`).
pub type Connect = Arc<dyn Fn(ConnectRequest) -> BoxFuture<'static, http::Response<Body>> + Send + Sync>;
/// Turns an object of one apiVersion into another of the same storage: (object, from, to).
pub type Convert = Arc<dyn Fn(Value, &str, &str) -> std::result::Result<Value, String> + Send + Sync>;
/// How many seconds an object may take to go away when the caller does not say; 0 removes it at once.
pub type Grace = Arc<dyn Fn(&Value) -> i64 + Send + Sync>;
/// Last touches on a create or update of a compiled-in kind: (new, old). Runs before admission functions.
pub type Prepare = Arc<dyn Fn(&mut Value, Option<&Value>) + Send + Sync>;
/// Rules of a compiled-in kind beyond its schema: (new, old) to what is wrong.
pub type Check = Arc<dyn Fn(&Value, Option<&Value>) -> Vec<StatusCause> + Send + Sync>;
/// Answers a create of a kind that is never stored (reviews).
pub type Answer = Arc<dyn Fn(Value, &UserInfo) -> Result<Value> + Send + Sync>;
/// Computes all objects of a kind that is never stored, as they are now.
pub type Read = Arc<dyn Fn() -> BoxFuture<'static, Vec<Value>> + Send + Sync>;
/// A cell of a table computed from the object and the present time.
pub type Cell = Arc<dyn Fn(&Value, jiff::Timestamp) -> Value + Send + Sync>;

pub struct ConnectRequest {
    pub user: UserInfo,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource in the path.
    pub rest: String,
    /// The query, decoded, in order.
    pub query: Vec<(String, String)>,
    /// The object as stored.
    pub object: Value,
    /// The request itself; an upgrade (hyper's `OnUpgrade`) is among its extensions.
    pub request: http::Request<Bytes>,
}

impl ConnectRequest {
    pub fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// Whose semantics a kind follows where Kubernetes treats its own kinds and custom resources differently: strategic
/// merge patch, unconditional updates, pruning warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semantics {
    Native,
    Custom,
}

/// The few kinds the HTTP contract itself speaks of: namespaces hold others, definitions make others, and three
/// subresources exist on one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Plain,
    Namespaces,
    Definitions,
    ServiceAccounts,
    Pods,
}

/// Where a kind came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Registered by the program.
    Compiled,
    /// Defined by the stored CustomResourceDefinition of this name.
    Stored(String),
}

#[derive(Clone)]
pub enum ColumnValue {
    Path(JsonPath),
    Cell(Cell),
}

/// One column of `kubectl get`.
#[derive(Clone)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    pub format: String,
    pub description: String,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
    pub value: ColumnValue,
}

impl Column {
    pub fn new(name: &str, kind: &str, value: ColumnValue) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            value,
        }
    }

    pub fn path(name: &str, kind: &str, path: &str) -> Self {
        Self::new(name, kind, ColumnValue::Path(JsonPath::parse(path).unwrap_or_default()))
    }

    pub fn cell(name: &str, kind: &str, f: impl Fn(&Value, jiff::Timestamp) -> Value + Send + Sync + 'static) -> Self {
        Self::new(name, kind, ColumnValue::Cell(Arc::new(f)))
    }

    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    pub fn describe(mut self, text: &str) -> Self {
        self.description = text.to_owned();
        self
    }
}

/// Where the three numbers of a Scale live in an object; plain field names only.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalePaths {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    pub selector: Option<Vec<String>>,
}

#[derive(Clone)]
pub struct Version {
    pub name: String,
    pub api_version: String,
    pub served: bool,
    pub storage: bool,
    /// The warning for users of a version that is on its way out.
    pub deprecated: Option<String>,
    pub schema: Schema,
    pub status: bool,
    /// Whether the schema names a `spec`; a kind without one and without status has no generation.
    pub has_spec: bool,
    pub scale: Option<ScalePaths>,
    pub columns: Vec<Column>,
    pub selectable: Vec<SelectableField>,
    /// What a served object begins with, up to the value of its resource version; see `storage`.
    pub(crate) head: Arc<str>,
}

/// The schema of a version as a document, for OpenAPI. Kept packed: documents are large and rarely read.
#[derive(Clone)]
pub enum Document {
    Packed(Arc<[u8]>),
    None,
}

#[derive(Clone)]
pub struct Kind {
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub origin: Origin,
    pub semantics: Semantics,
    /// In order of preference.
    pub versions: Vec<Version>,
    pub name_rule: NameRule,
    /// Replaces the columns of every version.
    pub columns: Option<Vec<Column>>,
    pub selectable: Vec<SelectableField>,
    pub connects: BTreeMap<String, Connect>,
    pub admit: Vec<Admit>,
    /// Admission functions that also want to see deletions.
    pub admit_deletes: bool,
    pub prepare: Option<Prepare>,
    pub check: Option<Check>,
    pub convert: Option<Convert>,
    pub grace: Option<Grace>,
    /// Set for kinds that are answered and never stored.
    pub answer: Option<Answer>,
    /// Set for kinds whose objects are computed when they are read.
    pub read: Option<Read>,
    pub create_on_update: bool,
    /// Whether a delete that removes the object answers with it, and not with a Status.
    pub shows_deleted: bool,
    /// Whether the kind as a whole can be deleted from a namespace, or the cluster.
    pub delete_collection: bool,
    /// Says whether objects have a generation, where the schema does not tell.
    pub has_generation: Option<bool>,
    /// Whether a status sent with a create is kept although status is a subresource (nodes register with theirs).
    pub keep_created_status: bool,
    /// The (group, plural) under whose keys objects are stored: another kind's for an alias.
    pub stored_as: (String, String),
    pub document: BTreeMap<String, Document>,
}

impl Kind {
    /// Schemas that ship with the program (`Origin::Compiled`) are compiled without the checks for structure.
    pub fn from_crd(crd: &CustomResourceDefinition, origin: Origin) -> std::result::Result<Self, KindError> {
        let spec = &crd.spec;
        // Whom users of a version that is on its way out are sent to: the best that is not, and is better.
        let successor = |name: &str| {
            let fresh = spec.versions.iter().filter(|v| v.served && !v.deprecated.unwrap_or(false));
            let best = fresh.map(|v| v.name.as_str()).min_by(|a, b| crate::discovery::version_order(a, b))?;
            crate::discovery::version_order(best, name).is_lt().then(|| api_version(&spec.group, best))
        };
        let names = &spec.names;
        let fail = |why: String| KindError { name: format!("{}.{}", names.plural, spec.group), why };
        let trusted = origin == Origin::Compiled;
        let semantics = if trusted && is_kubernetes_group(&spec.group) { Semantics::Native } else { Semantics::Custom };
        let mut versions = Vec::with_capacity(spec.versions.len());
        let mut document = BTreeMap::new();
        for v in &spec.versions {
            let (mut version, packed) =
                version(&spec.group, &names.kind, v, trusted).map_err(|why| fail(format!("{}: {why}", v.name)))?;
            if v.deprecation_warning.is_none()
                && let (Some(text), Some(better)) = (&mut version.deprecated, successor(&v.name))
            {
                text.push_str(&format!("; use {better} {}", names.kind));
            }
            document.insert(v.name.clone(), packed);
            versions.push(version);
        }
        if versions.is_empty() {
            return Err(fail("has no version".into()));
        }
        versions.sort_by(|a, b| crate::discovery::version_order(&a.name, &b.name));
        let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        let mut kind = Self::bare(&spec.group, &names.kind, &names.plural, versions);
        kind.singular = given(&names.singular).unwrap_or(kind.singular);
        kind.list_kind = given(&names.list_kind).unwrap_or(kind.list_kind);
        kind.short_names = names.short_names.clone().unwrap_or_default();
        kind.categories = names.categories.clone().unwrap_or_default();
        kind.namespaced = spec.scope == "Namespaced";
        kind.origin = origin;
        kind.semantics = semantics;
        kind.name_rule = match (spec.group.as_str(), names.plural.as_str()) {
            ("", "namespaces") => NameRule::Label,
            (crate::auth::rbac::GROUP, _) => NameRule::Segment,
            _ => NameRule::Subdomain,
        };
        // Emptying a cluster of its namespaces is nothing to be done by one request.
        kind.delete_collection = kind.role() != Role::Namespaces;
        kind.document = document;
        Ok(kind)
    }

    /// A kind that is only ever created and answered at once (reviews): no storage, no schema.
    pub fn answered(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool, answer: Answer) -> Self {
        let api_version = api_version(group, version);
        let version = Version {
            name: version.to_owned(),
            served: true,
            storage: true,
            deprecated: None,
            schema: Schema::permissive(),
            status: false,
            has_spec: true,
            scale: None,
            columns: Vec::new(),
            selectable: Vec::new(),
            head: head(&api_version, kind),
            api_version,
        };
        Self { namespaced, answer: Some(answer), ..Self::bare(group, kind, plural, vec![version]) }
    }

    /// Names and versions; nothing special about it.
    fn bare(group: &str, kind: &str, plural: &str, versions: Vec<Version>) -> Self {
        Self {
            group: group.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: false,
            origin: Origin::Compiled,
            semantics: Semantics::Native,
            versions,
            name_rule: NameRule::default(),
            columns: None,
            selectable: Vec::new(),
            connects: BTreeMap::new(),
            admit: Vec::new(),
            admit_deletes: false,
            prepare: None,
            check: None,
            convert: None,
            grace: None,
            answer: None,
            read: None,
            create_on_update: false,
            shows_deleted: false,
            delete_collection: true,
            has_generation: None,
            keep_created_status: false,
            stored_as: (group.to_owned(), plural.to_owned()),
            document: BTreeMap::new(),
        }
    }

    /// The same objects under another group and version; `convert` is called with both apiVersions.
    pub fn alias_of(&self, group: &str, version: &str, convert: Convert) -> Self {
        let mut alias = self.clone();
        alias.group = group.to_owned();
        let mut v = alias.versions[0].clone();
        v.name = version.to_owned();
        v.api_version = api_version(group, version);
        v.head = head(&v.api_version, &alias.kind);
        v.schema = Schema::permissive();
        alias.versions = vec![v];
        alias.stored_as = self.stored_as.clone();
        alias.convert = Some(convert);
        alias.document = BTreeMap::new();
        alias
    }

    pub fn id(&self) -> ResourceId {
        ResourceId::new(&self.group, &self.plural)
    }

    pub fn role(&self) -> Role {
        match (self.group.as_str(), self.plural.as_str()) {
            ("", "namespaces") => Role::Namespaces,
            ("", "serviceaccounts") => Role::ServiceAccounts,
            ("", "pods") => Role::Pods,
            ("apiextensions.k8s.io", "customresourcedefinitions") => Role::Definitions,
            _ => Role::Plain,
        }
    }

    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }

    pub fn storage_version(&self) -> &Version {
        self.versions.iter().find(|v| v.storage).unwrap_or(&self.versions[0])
    }

    pub fn columns<'a>(&'a self, version: &'a Version) -> &'a [Column] {
        self.columns.as_deref().unwrap_or(&version.columns)
    }

    pub fn selectable<'a>(&'a self, version: &'a Version) -> Vec<SelectableField> {
        self.selectable.iter().chain(&version.selectable).cloned().collect()
    }

    pub fn shape<'a>(&'a self, version: &'a Version) -> Shape<'a> {
        let counted = self.semantics == Semantics::Custom || version.status || version.has_spec;
        let generation = match self.has_generation.unwrap_or(counted) {
            false => Generation::Never,
            true => Generation::Content { status_apart: version.status },
        };
        Shape {
            group: &self.group,
            kind: &self.kind,
            plural: &self.plural,
            api_version: &version.api_version,
            namespaced: self.namespaced,
            name_rule: self.name_rule,
            generation,
            conditional_updates: self.semantics == Semantics::Custom,
        }
    }

    /// The schema document of a version, unpacked; `None` when nothing is known of its shape.
    pub fn schema_document(&self, version: &str) -> Option<Value> {
        match self.document.get(version)? {
            Document::Packed(bytes) => unpack(bytes),
            Document::None => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the kind {name} cannot be served: {why}")]
pub struct KindError {
    pub name: String,
    pub why: String,
}

impl From<KindError> for ApiError {
    fn from(error: KindError) -> Self {
        Self::internal(error)
    }
}

/// Kubernetes reserves groups without a dot and below `k8s.io` for itself; kubectl patches exactly those by strategic
/// merge.
pub fn is_kubernetes_group(group: &str) -> bool {
    !group.contains('.') || group.ends_with(".k8s.io")
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

pub(crate) fn head(api_version: &str, kind: &str) -> Arc<str> {
    format!(r#"{{"apiVersion":{},"kind":{},"metadata":{{"resourceVersion":""#, json!(api_version), json!(kind)).into()
}

fn version(
    group: &str,
    kind: &str,
    v: &CustomResourceDefinitionVersion,
    trusted: bool,
) -> std::result::Result<(Version, Document), String> {
    let document = match v.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()) {
        Some(schema) => Some(serde_json::to_value(schema).map_err(|e| e.to_string())?),
        None => None,
    };
    let schema = match &document {
        None => Schema::permissive(),
        Some(document) if trusted => Schema::compile_trusted(document),
        Some(document) => Schema::compile(document).map_err(|e| e.to_string())?,
    };
    let scale = match v.subresources.as_ref().and_then(|s| s.scale.as_ref()) {
        None => None,
        Some(scale) => Some(ScalePaths {
            spec_replicas: plain(&scale.spec_replicas_path)?,
            status_replicas: plain(&scale.status_replicas_path)?,
            selector: scale.label_selector_path.as_deref().filter(|p| !p.is_empty()).map(plain).transpose()?,
        }),
    };
    let mut columns = Vec::new();
    for c in v.additional_printer_columns.iter().flatten() {
        columns.push(Column {
            name: c.name.clone(),
            kind: c.type_.clone(),
            format: c.format.clone().unwrap_or_default(),
            description: c.description.clone().unwrap_or_default(),
            priority: c.priority.unwrap_or(0),
            value: ColumnValue::Path(JsonPath::parse(&c.json_path).map_err(|e| e.to_string())?),
        });
    }
    if columns.is_empty() {
        columns.push(Column::path("Age", "date", ".metadata.creationTimestamp"));
    }
    let mut selectable = Vec::new();
    for field in v.selectable_fields.iter().flatten() {
        let path = JsonPath::parse(&field.json_path).map_err(|e| e.to_string())?;
        selectable.push(SelectableField {
            label: field.json_path.trim_start_matches('.').to_owned(),
            path,
            absent: "",
        });
    }
    let api_version = api_version(group, &v.name);
    let deprecated = v
        .deprecated
        .unwrap_or(false)
        .then(|| v.deprecation_warning.clone().unwrap_or_else(|| format!("{api_version} {kind} is deprecated")));
    let head = head(&api_version, kind);
    let packed = document.as_ref().map_or(Document::None, pack);
    Ok((
        Version {
            name: v.name.clone(),
            api_version,
            served: v.served,
            storage: v.storage,
            deprecated,
            schema,
            status: v.subresources.as_ref().is_some_and(|s| s.status.is_some()),
            has_spec: document.as_ref().is_some_and(|d| d.pointer("/properties/spec").is_some()),
            scale,
            columns,
            selectable,
            head,
        },
        packed,
    ))
}

fn plain(path: &str) -> std::result::Result<Vec<String>, String> {
    let parsed = JsonPath::parse(path).map_err(|e| e.to_string())?;
    let fields = parsed.fields().ok_or_else(|| format!("{path:?} must be a plain path of field names"))?;
    Ok(fields.into_iter().map(str::to_owned).collect())
}

/// Schema documents compress about twenty to one, and are read only by `kubectl explain` and its like.
fn pack(document: &Value) -> Document {
    use std::io::Write;
    let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    let bytes = serde_json::to_vec(document).expect("a JSON value is serialisable");
    out.write_all(&bytes).expect("writing to memory cannot fail");
    Document::Packed(out.finish().expect("writing to memory cannot fail").into())
}

fn unpack(bytes: &[u8]) -> Option<Value> {
    serde_json::from_reader(flate2::read::DeflateDecoder::new(bytes)).ok()
}
