//! Sets of field paths, and their JSON form `FieldsV1`.
//!
//! A set is a trie whose children are kept sorted, so union, intersection and difference are merges. Names
//! borrow from the objects and managed fields they came from: tracking a write allocates little.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::limits::{NAME, cut};
use crate::schema::Schema;

/// One step from a container to a child.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step<'a> {
    /// A field of an object (`f:name`).
    Field(Cow<'a, str>),
    /// An item of a list with keys (`k:{"name":"x"}`); the keys are sorted.
    Key(Box<[(Cow<'a, str>, Scalar<'a>)]>),
    /// An item of a set (`v:"x"`).
    Item(Scalar<'a>),
    /// An item by its place (`i:0`).
    Index(usize),
}

/// A JSON value used as a name.
#[derive(Debug, Clone)]
pub(super) struct Scalar<'a>(pub(super) Cow<'a, Value>);

impl PartialEq for Scalar<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scalar<'_> {}

impl PartialOrd for Scalar<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scalar<'_> {
    /// Numbers before texts before booleans before the rest, as Kubernetes sorts them.
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |value: &Value| match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        };
        match (&*self.0, &*other.0) {
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or(f64::MAX).total_cmp(&b.as_f64().unwrap_or(f64::MAX)),
            },
            (a, b) if rank(a) == rank(b) => a.to_string().cmp(&b.to_string()),
            (a, b) => rank(a).cmp(&rank(b)),
        }
    }
}

impl<'a> Step<'a> {
    fn decode(text: &'a str) -> Option<Step<'a>> {
        let (kind, rest) = text.split_at_checked(2)?;
        Some(match kind {
            "f:" => Step::Field(Cow::Borrowed(rest)),
            "k:" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
                let mut keys: Vec<_> =
                    keys.into_iter().map(|(name, value)| (Cow::Owned(name), Scalar(Cow::Owned(value)))).collect();
                keys.sort();
                Step::Key(keys.into_boxed_slice())
            }
            "v:" => Step::Item(Scalar(Cow::Owned(serde_json::from_str(rest).ok()?))),
            "i:" => Step::Index(rest.parse().ok()?),
            _ => return None,
        })
    }

    fn encode(&self) -> String {
        match self {
            Step::Field(name) => format!("f:{name}"),
            Step::Key(keys) => {
                let keys: Map<String, Value> =
                    keys.iter().map(|(name, value)| (name.to_string(), value.0.clone().into_owned())).collect();
                format!("k:{}", Value::Object(keys))
            }
            Step::Item(value) => format!("v:{}", value.0),
            Step::Index(index) => format!("i:{index}"),
        }
    }

    fn to_owned_step(&self) -> Step<'static> {
        let scalar = |value: &Scalar<'_>| Scalar(Cow::Owned(value.0.clone().into_owned()));
        match self {
            Step::Field(name) => Step::Field(Cow::Owned(name.to_string())),
            Step::Key(keys) => {
                Step::Key(keys.iter().map(|(name, value)| (Cow::Owned(name.to_string()), scalar(value))).collect())
            }
            Step::Item(value) => Step::Item(scalar(value)),
            Step::Index(index) => Step::Index(*index),
        }
    }

    /// As a message shows it: `.spec`, `[name="x"]`, `[="x"]`, `[0]`.
    pub(super) fn show(&self, out: &mut String) {
        // A name may be as long as a request, and stands in the path of everything below it.
        let short = |value: &Scalar<'_>| cut(&value.0.to_string(), NAME).into_owned();
        let written = match self {
            Step::Field(name) => write!(out, ".{}", cut(name, NAME)),
            Step::Key(keys) => {
                out.push('[');
                for (index, (name, value)) in keys.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(out, "{comma}{name}={}", short(value)).expect("writing to a String cannot fail");
                }
                write!(out, "]")
            }
            Step::Item(value) => write!(out, "[={}]", short(value)),
            Step::Index(index) => write!(out, "[{index}]"),
        };
        written.expect("writing to a String cannot fail");
    }
}

/// A set of paths. The path of the whole object is never a member.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Set<'a>(Vec<Entry<'a>>);

/// A child that is a member, or has members below it, or both.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry<'a> {
    step: Step<'a>,
    member: bool,
    below: Set<'a>,
}

impl<'a> Set<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a child that sorts after all there are, or fills its place in; what says nothing is not added.
    pub(super) fn push(&mut self, step: Step<'a>, member: bool, below: Set<'a>) {
        if !member && below.is_empty() {
            return;
        }
        let entry = Entry { step, member, below };
        match self.0.last() {
            Some(last) if last.step >= entry.step => match self.find(&entry.step) {
                Ok(at) => {
                    let there = &mut self.0[at];
                    there.member |= entry.member;
                    there.below = there.below.union(&entry.below);
                }
                Err(at) => self.0.insert(at, entry),
            },
            _ => self.0.push(entry),
        }
    }

    fn find(&self, step: &Step<'_>) -> Result<usize, usize> {
        // Comparing needs one lifetime for both sides; `Step` is covariant, so both shorten.
        fn order<'s>(a: &Step<'s>, b: &Step<'s>) -> Ordering {
            a.cmp(b)
        }
        self.0.binary_search_by(|entry| order(&entry.step, step))
    }

    /// The child at a step: whether it is a member, and what is below.
    pub(super) fn child(&self, step: &Step<'_>) -> Option<(bool, &Set<'a>)> {
        self.find(step).ok().map(|at| (self.0[at].member, &self.0[at].below))
    }

    /// Paths in either.
    pub(super) fn union(&self, other: &Set<'a>) -> Set<'a> {
        self.zip(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => (a.member || b.member, a.below.union(&b.below)),
            (Some(one), None) | (None, Some(one)) => (one.member, one.below.clone()),
            (None, None) => (false, Set::default()),
        })
    }

    /// Paths in both.
    pub(super) fn intersection(&self, other: &Set<'a>) -> Set<'a> {
        self.zip(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => (a.member && b.member, a.below.intersection(&b.below)),
            _ => (false, Set::default()),
        })
    }

    /// Paths here and not there. Members only: a parent in `other` does not take its children along.
    pub(super) fn difference(&self, other: &Set<'a>) -> Set<'a> {
        self.zip(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => (a.member && !b.member, a.below.difference(&b.below)),
            (Some(a), None) => (a.member, a.below.clone()),
            (None, _) => (false, Set::default()),
        })
    }

    /// Whether a path is in both.
    pub(super) fn intersects(&self, other: &Set<'_>) -> bool {
        self.0.iter().any(|entry| {
            other.child(&entry.step).is_some_and(|(member, below)| {
                (entry.member && member) || (!below.is_empty() && entry.below.intersects(below))
            })
        })
    }

    /// Whether a path is in both, the other still being `FieldsV1`: what a write changes is little, what
    /// its owners own is much.
    pub(super) fn meets(&self, fields: &Value) -> bool {
        let Value::Object(fields) = fields else { return false };
        self.0.iter().any(|entry| {
            fields.get(&entry.step.encode()).is_some_and(|inner| {
                let is_member = inner.as_object().is_some_and(|map| map.is_empty() || map.contains_key("."));
                (entry.member && is_member) || entry.below.meets(inner)
            })
        })
    }

    /// Whether every path here is also there.
    pub(super) fn is_within(&self, other: &Set<'_>) -> bool {
        self.0.iter().all(|entry| match other.child(&entry.step) {
            Some((member, below)) => (member || !entry.member) && entry.below.is_within(below),
            None => false,
        })
    }

    /// Walks both in step, building what `decide` says of each child.
    fn zip(
        &self,
        other: &Set<'a>,
        decide: impl Fn(Option<&Entry<'a>>, Option<&Entry<'a>>) -> (bool, Set<'a>),
    ) -> Set<'a> {
        let mut out = Set(Vec::with_capacity(self.0.len().max(other.0.len())));
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let order = match (ours.peek(), theirs.peek()) {
                (None, None) => return out,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.step.cmp(&b.step),
            };
            let a = if order.is_le() { ours.next() } else { None };
            let b = if order.is_ge() { theirs.next() } else { None };
            let (member, below) = decide(a, b);
            if member || !below.is_empty() {
                let step = a.or(b).expect("one side was taken").step.clone();
                out.0.push(Entry { step, member, below });
            }
        }
    }

    /// The same set with every named field above a member added. Fields of objects are normally implied by
    /// what is below them; entries of maps and lists are not.
    pub(super) fn with_named_parents(&self, schema: Option<&Schema>) -> Set<'a> {
        let node = schema.map(Schema::node);
        Set(self
            .0
            .iter()
            .map(|entry| {
                let (named, below) = match &entry.step {
                    Step::Field(name) => {
                        (node.is_some_and(|node| node.property(name).is_some()), node.and_then(|node| node.field(name)))
                    }
                    _ => (false, node.and_then(|node| node.items.as_ref())),
                };
                Entry {
                    step: entry.step.clone(),
                    member: entry.member || (named && !entry.below.is_empty()),
                    below: entry.below.with_named_parents(below),
                }
            })
            .collect())
    }

    /// A copy that borrows nothing.
    pub(super) fn to_owned_set(&self) -> Set<'static> {
        Set(self
            .0
            .iter()
            .map(|entry| Entry {
                step: entry.step.to_owned_step(),
                member: entry.member,
                below: entry.below.to_owned_set(),
            })
            .collect())
    }

    /// The members as a message shows them, `most` at the most, those of one level before those below.
    pub(super) fn paths(&self, most: usize) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", most, &mut out);
        out
    }

    fn collect(&self, prefix: &str, most: usize, out: &mut Vec<String>) {
        let shown = |entry: &Entry<'_>| {
            let mut path = prefix.to_owned();
            entry.step.show(&mut path);
            path
        };
        let room = most.saturating_sub(out.len());
        out.extend(self.0.iter().filter(|entry| entry.member).take(room).map(shown));
        for entry in self.0.iter().filter(|entry| !entry.below.is_empty()) {
            if out.len() >= most {
                return;
            }
            entry.below.collect(&shown(entry), most, out);
        }
    }

    /// Reads `FieldsV1`; `None` when it is not one.
    pub(super) fn decode(fields: &'a Value) -> Option<Set<'a>> {
        let fields = fields.as_object()?;
        let mut found = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            if name == "." {
                continue;
            }
            let inner = value.as_object()?;
            let member = inner.is_empty() || inner.contains_key(".");
            found.push((Step::decode(name)?, member, Set::decode(value)?));
        }
        // The names of items sort otherwise than the texts they are written as.
        found.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut out = Set(Vec::with_capacity(found.len()));
        for (step, member, below) in found {
            out.push(step, member, below);
        }
        Some(out)
    }

    /// Writes `FieldsV1`.
    pub(super) fn encode(&self) -> Value {
        let mut out = Map::new();
        for entry in &self.0 {
            let mut value = entry.below.encode();
            if let (true, false, Value::Object(map)) = (entry.member, entry.below.is_empty(), &mut value) {
                map.insert(".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(entry.step.encode(), value);
        }
        Value::Object(out)
    }
}
