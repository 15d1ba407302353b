//! What an object of a kind may look like: the compiled form of an OpenAPI v3 schema, and what the API
//! server does with it on every write (drop unknown fields, fill in defaults, judge values).
//!
//! A compiled schema is a tree of shared nodes. Nodes are interned process-wide, so the pod specification
//! that occurs in six kinds exists once; descriptions and examples are not kept. This module must never
//! know a concrete kind, do I/O or read a clock: every function maps values to values.

mod compile;
mod defaults;
mod error;
mod formats;
mod meta;
mod node;
mod path;
mod pattern;
mod prune;
mod structural;
#[cfg(test)]
mod tests;
mod tidy;
mod validate;

use std::sync::Arc;

use serde_json::Value;

pub use error::{FieldError, FieldErrorKind};
pub(crate) use node::{Additional, Kind, ListType, Node};
pub(crate) use path::Path;

/// A compiled schema; cloning is one reference count.
#[derive(Clone)]
pub struct Schema(Arc<Node>);

/// Why a schema was refused: every structural rule it breaks, with the path inside the schema.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the schema is not structural: {}", error::join(.errors))]
pub struct SchemaError {
    /// The broken rules; paths begin at the schema's own root (`properties[spec].type`).
    pub errors: Vec<FieldError>,
}

impl Schema {
    /// Compiles the schema of a user's custom resource, refusing one that is not structural.
    ///
    /// Whatever the schema says of `metadata`, the result knows the whole of ObjectMeta; restrictions on
    /// `metadata.name` and `metadata.generateName` are kept.
    pub fn compile(schema: &Value) -> Result<Schema, SchemaError> {
        let mut errors = structural::check(schema);
        if errors.is_empty() {
            errors = crate::cel::rules::check(schema);
        }
        if errors.is_empty() { Ok(compile::compile(schema)) } else { Err(SchemaError { errors }) }
    }

    /// Compiles the schema of a kind this program ships. Such schemas are generated from Go types and are
    /// not structural in every detail (they spell `metadata` out, and write an arbitrary object as
    /// `type: object` alone), so no rule is enforced; arbitrary objects keep their unknown fields.
    pub fn compile_trusted(schema: &Value) -> Schema {
        compile::compile_trusted(schema)
    }

    /// A schema that accepts and keeps everything; only `metadata` is typed.
    pub fn permissive() -> Schema {
        compile::compile(&serde_json::json!({
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": true,
        }))
    }

    /// Drops nulls where the schema allows none, then fills in the defaults of absent fields.
    pub fn default(&self, object: &mut Value) {
        defaults::apply(self, object);
    }

    /// Removes what the schema does not know and returns the removed paths, sorted
    /// (`spec.foo`, `spec.containers[0].bar`).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        prune::prune(self, object)
    }

    /// Drops optional lists, maps and nulls that hold nothing, as the typed encoding of a compiled-in kind does: two
    /// ways to say nothing must not look like a change.
    pub fn tidy(&self, object: &mut Value) {
        tidy::object(self, object);
    }

    /// Everything that is wrong with the object, in document order.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate::validate(self, object)
    }

    /// What the rules in the schema say of an object; asked when the object is valid in its shape.
    pub(crate) fn check_rules(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if self.0.has_rules { crate::cel::rules::validate(self, object, old) } else { Vec::new() }
    }

    pub(crate) fn has_rules(&self) -> bool {
        self.0.has_rules
    }

    /// The schema of a whole object, for holding its rules against it.
    pub(crate) fn of_root(schema: &Value) -> Schema {
        compile::compile(schema)
    }

    /// The schema of a part of an object.
    pub(crate) fn of_part(schema: &Value) -> Schema {
        compile::fragment(schema)
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0
    }

    /// Whether two handles share one compiled node.
    pub(crate) fn same(&self, other: &Schema) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Schema({:?}, {} properties)", self.0.kind, self.0.properties.len())
    }
}
