//! What is wrong with an object, field by field, in the words users of this API know (facts A1.12, A1.13).
//!
//! Errors of one message are merged and their paths listed together; the text is stable whatever order they
//! were found in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Whether an error refuses the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It does.
    Error,
    /// It only warns.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    message: String,
    details: String,
    paths: Vec<String>,
    level: Level,
}

/// Everything that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// Nothing is wrong.
    pub fn none() -> Self {
        Self::default()
    }

    /// A message about some fields.
    pub fn of(message: impl Into<String>, paths: &[&str]) -> Self {
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        Self(vec![FieldError { message: message.into(), details: String::new(), paths, level: Level::Error }])
    }

    /// Fields that are needed and not there.
    pub fn missing(paths: &[&str]) -> Self {
        Self::of("missing field(s)", paths)
    }

    /// Fields that may not be there.
    pub fn disallowed(paths: &[&str]) -> Self {
        Self::of("must not set the field(s)", paths)
    }

    /// A value a field cannot have.
    pub fn invalid(value: impl fmt::Display, path: &str) -> Self {
        Self::of(format!("invalid value: {value}"), &[path])
    }

    /// A value outside its bounds.
    pub fn out_of_bounds(
        value: impl fmt::Display,
        low: impl fmt::Display,
        high: impl fmt::Display,
        path: &str,
    ) -> Self {
        Self::of(format!("expected {low} <= {value} <= {high}"), &[path])
    }

    /// Several fields of which one at most may be set.
    pub fn both(paths: &[&str]) -> Self {
        Self::of("expected exactly one, got both", paths)
    }

    /// Several fields of which one must be set.
    pub fn neither(paths: &[&str]) -> Self {
        Self::of("expected exactly one, got neither", paths)
    }

    /// A key that may not be used.
    pub fn invalid_key(key: &str, path: &str) -> Self {
        Self::of(format!("invalid key name {key:?}"), &[path])
    }

    /// More about it, on lines of its own.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        let details = details.into();
        self.0.iter_mut().for_each(|e| e.details.clone_from(&details));
        self
    }

    /// Turns it into a warning.
    pub fn warning(mut self) -> Self {
        self.0.iter_mut().for_each(|e| e.level = Level::Warning);
        self
    }

    /// Adds what else is wrong.
    pub fn add(&mut self, other: Errors) {
        self.0.extend(other.0);
    }

    /// Both.
    pub fn and(mut self, other: Errors) -> Self {
        self.add(other);
        self
    }

    /// Inside a field.
    pub fn via_field(mut self, field: &str) -> Self {
        for path in self.0.iter_mut().flat_map(|e| e.paths.iter_mut()) {
            *path = join(field, path);
        }
        self
    }

    /// Inside an element of a list.
    pub fn via_index(self, index: usize) -> Self {
        self.via_field(&format!("[{index}]"))
    }

    /// Inside an element of a field that is a list.
    pub fn via_field_index(self, field: &str, index: usize) -> Self {
        self.via_index(index).via_field(field)
    }

    /// Under a key of a field that is a map.
    pub fn via_key(self, key: &str) -> Self {
        self.via_field(&format!("[{key}]"))
    }

    /// Whether nothing refuses the object.
    pub fn is_ok(&self) -> bool {
        self.0.iter().all(|e| e.level == Level::Warning)
    }

    /// The refusals, as text.
    pub fn refusals(&self) -> String {
        self.text(Level::Error).join("\n")
    }

    /// The warnings, one text each.
    pub fn warnings(&self) -> Vec<String> {
        self.text(Level::Warning)
    }

    fn text(&self, level: Level) -> Vec<String> {
        let mut merged: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for error in self.0.iter().filter(|e| e.level == level) {
            merged.entry((&error.message, &error.details)).or_default().extend(error.paths.iter().map(String::as_str));
        }
        let line = |((message, details), paths): ((&str, &str), BTreeSet<&str>)| {
            let paths: Vec<&str> = paths.into_iter().collect();
            let line = format!("{message}: {}", paths.join(", "));
            if details.is_empty() { line } else { format!("{line}\n{details}") }
        };
        merged.into_iter().map(line).collect()
    }
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, path) if begins_with_index(path) => format!("{prefix}{path}"),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}

/// A key in brackets that has dots of its own is no index: upstream joins it with one more dot.
fn begins_with_index(path: &str) -> bool {
    path.split('.').next().is_some_and(|first| first.starts_with('[') && first.ends_with(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_12_a1_13_paths_and_merging() {
        let errors = Errors::missing(&["image"])
            .via_field_index("containers", 0)
            .and(Errors::missing(&["name"]).via_index(1).via_field("env"))
            .and(Errors::invalid("x", "").via_field("tag").details("why"))
            .and(Errors::of("careful", &["a"]).warning())
            .via_field("spec");
        assert_eq!(
            errors.refusals(),
            "invalid value: x: spec.tag\nwhy\nmissing field(s): spec.containers[0].image, spec.env[1].name"
        );
        assert_eq!(errors.warnings(), ["careful: spec.a"]);
        assert!(!errors.is_ok());
    }
}
