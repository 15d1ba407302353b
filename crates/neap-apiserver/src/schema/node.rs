//! The compiled form of a schema: small immutable nodes, shared by everyone who says the same thing.
//!
//! Interning makes equality of sub-schemas equality of addresses, so a node can be hashed and compared
//! without walking below it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak};

use regex::Regex;
use serde_json::{Number, Value};

use super::Schema;
use crate::cel::Rule;

/// The declared JSON type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// No type was declared.
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Any => "any",
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
        }
    }
}

/// How the items of a list relate to each other (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ListType {
    /// Owned and replaced as a whole.
    Atomic,
    /// Scalars, each at most once.
    Set,
    /// Objects identified by these fields.
    Map(Box<[Arc<str>]>),
}

/// What is allowed beside the named properties.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Additional {
    /// Anything at all (`additionalProperties: true`).
    Anything,
    /// Values of this shape.
    Of(Schema),
}

/// The value checks of a node; most nodes have none, so they sit behind one pointer.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Checks {
    pub(crate) required: Box<[Arc<str>]>,
    pub(crate) format: Option<Arc<str>>,
    pub(crate) enumeration: Option<Box<[Value]>>,
    pub(crate) minimum: Option<Number>,
    pub(crate) maximum: Option<Number>,
    pub(crate) exclusive_minimum: bool,
    pub(crate) exclusive_maximum: bool,
    pub(crate) multiple_of: Option<Number>,
    pub(crate) min_length: Option<u64>,
    pub(crate) max_length: Option<u64>,
    pub(crate) min_items: Option<u64>,
    pub(crate) max_items: Option<u64>,
    pub(crate) unique_items: bool,
    pub(crate) min_properties: Option<u64>,
    pub(crate) max_properties: Option<u64>,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) all_of: Box<[Schema]>,
    pub(crate) any_of: Box<[Schema]>,
    pub(crate) one_of: Box<[Schema]>,
    pub(crate) not: Option<Schema>,
}

/// One node of a compiled schema.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) nullable: bool,
    pub(crate) int_or_string: bool,
    /// Unknown fields are kept.
    pub(crate) preserve: bool,
    /// A whole object with apiVersion, kind and metadata sits here.
    pub(crate) embedded: bool,
    /// `x-kubernetes-map-type: atomic`.
    pub(crate) atomic_map: bool,
    pub(crate) list: ListType,
    /// `x-kubernetes-patch-merge-key`.
    pub(crate) merge_key: Option<Arc<str>>,
    /// `x-kubernetes-patch-strategy` holds `merge`.
    pub(crate) merge: bool,
    /// `x-kubernetes-patch-strategy` holds `replace`: a map that a strategic merge replaces whole.
    pub(crate) replace: bool,
    /// Sorted by name.
    pub(crate) properties: Box<[(Arc<str>, Schema)]>,
    pub(crate) additional: Option<Additional>,
    pub(crate) items: Option<Schema>,
    pub(crate) default: Option<Box<Value>>,
    pub(crate) checks: Option<Box<Checks>>,
    /// What must hold beyond the shape, as expressions.
    pub(crate) rules: Box<[Rule]>,
    /// Derived: whether there is a rule here or below.
    pub(crate) has_rules: bool,
    /// Derived: where in `properties` the ones with a default are.
    pub(crate) defaulted: Box<[u32]>,
}

impl Node {
    /// A node that says nothing.
    pub(crate) fn empty() -> Node {
        Node {
            kind: Kind::Any,
            nullable: false,
            int_or_string: false,
            preserve: false,
            embedded: false,
            atomic_map: false,
            list: ListType::Atomic,
            merge_key: None,
            merge: false,
            replace: false,
            properties: Box::default(),
            additional: None,
            items: None,
            default: None,
            checks: None,
            rules: Box::default(),
            has_rules: false,
            defaulted: Box::default(),
        }
    }

    /// The schema of a named property.
    pub(crate) fn property(&self, name: &str) -> Option<&Schema> {
        self.properties.binary_search_by(|(known, _)| (**known).cmp(name)).ok().map(|at| &self.properties[at].1)
    }

    /// The schema of a field, named or additional; `None` where nothing is known of it.
    pub(crate) fn field(&self, name: &str) -> Option<&Schema> {
        self.property(name).or(match &self.additional {
            Some(Additional::Of(schema)) => Some(schema),
            _ => None,
        })
    }
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
    }
}

impl Eq for Schema {}

impl Hash for Schema {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// A regular expression, compiled when first used: most are never met in a process's life.
pub(crate) struct Pattern {
    pub(crate) source: Arc<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(crate) fn new(source: &str) -> Pattern {
        Pattern { source: text(source), compiled: OnceLock::new() }
    }

    /// Whether the text matches. An expression that does not compile matches everything: it was refused
    /// when the schema was checked, or it came with a trusted schema.
    pub(crate) fn matches(&self, value: &str) -> bool {
        self.compiled
            .get_or_init(|| super::pattern::compile(&self.source).ok())
            .as_ref()
            .is_none_or(|regex| regex.is_match(value))
    }
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.source.fmt(f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

/// Everything alive, by hash. Weak, so that the schemas of a deleted kind go away with it.
#[derive(Default)]
struct Interner {
    nodes: HashMap<u64, Vec<Weak<Node>>>,
    texts: HashMap<u64, Vec<Weak<str>>>,
    /// Entries (dead ones included) at which the next sweep is due.
    sweep_at: usize,
    entries: usize,
}

/// Below this many entries a sweep is not worth its time.
const SWEEP_FLOOR: usize = 4096;

static INTERNER: LazyLock<Mutex<Interner>> =
    LazyLock::new(|| Mutex::new(Interner { sweep_at: SWEEP_FLOOR, ..Interner::default() }));

fn hash_of(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The shared node equal to this one.
pub(super) fn intern(node: Node) -> Schema {
    let hash = hash_of(&node);
    // A poisoned table still holds only whole entries.
    let mut table = INTERNER.lock().unwrap_or_else(PoisonError::into_inner);
    let bucket = table.nodes.entry(hash).or_default();
    if let Some(known) = bucket.iter().filter_map(Weak::upgrade).find(|known| **known == node) {
        return Schema(known);
    }
    let made = Arc::new(node);
    bucket.push(Arc::downgrade(&made));
    table.added();
    Schema(made)
}

/// The shared text equal to this one.
pub(super) fn text(value: &str) -> Arc<str> {
    let hash = hash_of(value);
    let mut table = INTERNER.lock().unwrap_or_else(PoisonError::into_inner);
    let bucket = table.texts.entry(hash).or_default();
    if let Some(known) = bucket.iter().filter_map(Weak::upgrade).find(|known| **known == *value) {
        return known;
    }
    let made: Arc<str> = Arc::from(value);
    bucket.push(Arc::downgrade(&made));
    table.added();
    made
}

impl Interner {
    fn added(&mut self) {
        self.entries += 1;
        if self.entries < self.sweep_at {
            return;
        }
        self.entries = sweep(&mut self.nodes) + sweep(&mut self.texts);
        self.sweep_at = (self.entries * 2).max(SWEEP_FLOOR);
    }
}

/// Forgets the dead and returns how many live on.
fn sweep<T: ?Sized>(table: &mut HashMap<u64, Vec<Weak<T>>>) -> usize {
    let mut alive = 0;
    table.retain(|_, bucket| {
        bucket.retain(|entry| entry.strong_count() > 0);
        alive += bucket.len();
        !bucket.is_empty()
    });
    alive
}
