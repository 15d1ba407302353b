//! Reads one config-map key by key and keeps every mistake it meets.
//!
//! A section parser asks for its keys through a `Reader` and always gets a usable value back, so one pass
//! over a map finds all its mistakes. Keys nobody asks for are ignored, as they are in Knative.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use super::go;

/// The data of one config-map.
pub type Data = BTreeMap<String, String>;

/// One setting that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The config-map.
    pub map: String,
    /// The key inside it; empty when the mistake concerns the map as a whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.map, self.problem),
            key => write!(f, "{} {key}: {}", self.map, self.problem),
        }
    }
}

impl std::error::Error for Mistake {}

/// The door through which a section's parser sees its config-map.
pub(super) struct Reader<'a> {
    map: &'static str,
    data: &'a Data,
    mistakes: &'a mut Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(map: &'static str, data: &'a Data, mistakes: &'a mut Vec<Mistake>) -> Self {
        Self { map, data, mistakes }
    }

    /// Keys and values of a map whose keys are free, without the example.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a String)> + use<'a> {
        self.data.iter().filter(|(key, _)| key.as_str() != super::EXAMPLE_KEY)
    }

    pub(super) fn mistake(&mut self, key: &str, problem: impl Into<String>) {
        self.mistakes.push(Mistake { map: self.map.into(), key: key.into(), problem: problem.into() });
    }

    /// The text under the first of `keys` that is present (later ones are old spellings), with its key.
    pub(super) fn raw(&self, keys: &[&'static str]) -> Option<(&'static str, &'a str)> {
        keys.iter().find_map(|key| self.data.get(*key).map(|value| (*key, value.as_str())))
    }

    pub(super) fn text(&self, keys: &[&'static str], default: &str) -> String {
        self.raw(keys).map_or(default, |(_, value)| value).to_owned()
    }

    /// A value read by `read`; on refusal the default stands in and the mistake says what was expected.
    pub(super) fn with<T>(
        &mut self,
        keys: &[&'static str],
        default: T,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        let Some((key, value)) = self.raw(keys) else { return default };
        match read(value.trim()) {
            Some(read) => read,
            None => {
                self.mistake(key, format!("{value:?} is not {expected}"));
                default
            }
        }
    }

    pub(super) fn parse<T: FromStr>(&mut self, keys: &[&'static str], default: T, expected: &str) -> T {
        self.with(keys, default, expected, |value| value.parse().ok())
    }

    pub(super) fn float(&mut self, keys: &[&'static str], default: f64) -> f64 {
        self.with(keys, default, "a number", |value| value.parse().ok().filter(|number: &f64| number.is_finite()))
    }

    pub(super) fn boolean(&mut self, keys: &[&'static str], default: bool) -> bool {
        self.with(keys, default, "true or false", go::parse_bool)
    }

    pub(super) fn duration(&mut self, keys: &[&'static str], default: Duration) -> Duration {
        self.with(keys, default, "a duration such as 60s or 1m30s that is not negative", |value| {
            go::parse_duration(value)?.positive()
        })
    }

    /// Reports `problem` against `key` unless `holds`.
    pub(super) fn require(&mut self, holds: bool, key: &str, problem: impl FnOnce() -> String) {
        if !holds {
            self.mistake(key, problem());
        }
    }
}
