//! `neap.dev/routes`: several services under one domain, or several tags under one service, by path, header and query;
//! and the form in which an Ingress carries what its own paths cannot say.

use std::collections::BTreeMap;

use neap_api::keys::neap as keys;
use neap_api::serving::KReference;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::matching::{FieldTest, PathMore, Test};
use super::{Problem, is_header_name};

/// Longest list, bytes; a larger one belongs into several mappings.
const LONGEST: usize = 64 * 1024;
/// Most entries: they are tried in turn.
const MOST: usize = 64;
/// Most tests of one entry.
const MOST_TESTS: usize = 16;

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The path, without a slash at its end; empty for every path.
    pub path: String,
    /// What else must hold, and what becomes of the path.
    pub more: PathMore,
    /// Where it leads.
    pub target: RuleTarget,
}

/// Where an entry leads.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleTarget {
    /// To an object with an address (of a DomainMapping).
    To(KReference),
    /// To the traffic target of that tag (of a Service or Route).
    Tag(String),
}

/// Reads the list. `domain` says whether it is a DomainMapping's.
pub fn rules(text: &str, domain: bool) -> Result<Vec<Rule>, Problem> {
    let wrong = |message: String| Problem::new(keys::ROUTES, message);
    if text.len() > LONGEST {
        return Err(wrong(format!("has {} bytes, at most {LONGEST} are allowed", text.len())));
    }
    let list: Value = serde_yaml::from_str(text).map_err(|error| wrong(format!("is no YAML: {error}")))?;
    let Value::Array(list) = list else {
        return Err(wrong("is no list: write \"- {path: /api, service: api}\"".into()));
    };
    if list.len() > MOST {
        return Err(wrong(format!("has {} entries, at most {MOST} are allowed", list.len())));
    }
    let read =
        |(at, entry): (usize, &Value)| rule(entry, domain).map_err(|why| wrong(format!("entry {}: {why}", at + 1)));
    list.iter().enumerate().map(read).collect()
}

fn rule(entry: &Value, domain: bool) -> Result<Rule, String> {
    let fields = entry.as_object().ok_or("is no mapping of fields")?;
    const KNOWN: [&str; 8] = ["path", "pathExact", "headers", "query", "rewritePath", "service", "ref", "tag"];
    if let Some(unknown) = fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!("{unknown:?} is not one of {}", KNOWN.join(", ")));
    }
    let (path, exact) = match (text(fields, "path")?, text(fields, "pathExact")?) {
        (Some(_), Some(_)) => return Err("has both path and pathExact".into()),
        (Some(path), None) => (path.trim_end_matches('/').to_owned(), false),
        (None, Some(path)) => (path.to_owned(), true),
        (None, None) => (String::new(), false),
    };
    if (!path.is_empty() || exact) && !is_path(&path) {
        return Err(format!("path {path:?} must begin with a slash and hold no space, \"?\" or \"#\""));
    }
    let rewrite = text(fields, "rewritePath")?.map(str::to_owned);
    if let Some(bad) = rewrite.as_deref().filter(|path| !is_path(path)) {
        return Err(format!("rewritePath {bad:?} must begin with a slash and hold no space, \"?\" or \"#\""));
    }
    let mut headers = tests(fields, "headers")?;
    for field in &mut headers {
        if !is_header_name(&field.name) {
            return Err(format!("{:?} is no name of a header", field.name));
        }
        field.name.make_ascii_lowercase();
    }
    let query = tests(fields, "query")?;
    if path.is_empty() && headers.is_empty() && query.is_empty() {
        return Err("matches everything: give path, pathExact, headers or query".into());
    }
    let target = target(fields, domain)?;
    Ok(Rule { path, more: PathMore { exact, headers, query, rewrite }, target })
}

/// What can stand in a request target as it is.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'"' | b'<' | b'>'))
}

fn text<'v>(fields: &'v Map<String, Value>, name: &str) -> Result<Option<&'v str>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{name} must be a text")),
    }
}

fn tests(fields: &Map<String, Value>, name: &str) -> Result<Vec<FieldTest>, String> {
    let tests = match fields.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(tests)) => tests,
        Some(_) => return Err(format!("{name} must map names to values")),
    };
    if tests.len() > MOST_TESTS {
        return Err(format!("{name} has {} entries, at most {MOST_TESTS} are allowed", tests.len()));
    }
    let one = |(key, value): (&String, &Value)| {
        test(value).map(|test| FieldTest { name: key.clone(), test }).ok_or_else(|| {
            format!("{name}: {key:?} must be a value, or one of exact, prefix, contains and present with one")
        })
    };
    tests.iter().map(one).collect()
}

fn test(value: &Value) -> Option<Test> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        // Unquoted, YAML makes them what they were not meant to be.
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    let Value::Object(fields) = value else { return plain(value).map(Test::Exact) };
    let mut fields = fields.iter();
    let ((how, value), None) = (fields.next()?, fields.next()) else { return None };
    match how.as_str() {
        "exact" => plain(value).map(Test::Exact),
        "prefix" => plain(value).map(Test::Prefix),
        "contains" => plain(value).map(Test::Contains),
        "present" => value.as_bool().map(Test::Present),
        _ => None,
    }
}

fn target(fields: &Map<String, Value>, domain: bool) -> Result<RuleTarget, String> {
    let (service, tag) = (text(fields, "service")?, text(fields, "tag")?);
    let reference = fields.get("ref").filter(|held| !held.is_null());
    if !domain {
        return match (tag.filter(|tag| !tag.is_empty()), service, reference) {
            (Some(tag), None, None) => Ok(RuleTarget::Tag(tag.to_owned())),
            _ => Err("must lead to a tag of this service's traffic, and to nothing else".into()),
        };
    }
    let to = match (service.filter(|name| !name.is_empty()), reference, tag) {
        (Some(name), None, None) => KReference {
            kind: "Service".into(),
            name: name.into(),
            api_version: format!("{}/v1", neap_api::serving::GROUP),
            ..KReference::default()
        },
        (None, Some(reference), None) => serde_json::from_value(reference.clone()).map_err(|e| format!("ref: {e}"))?,
        _ => return Err("must lead to either a service or a ref".into()),
    };
    if to.name.is_empty() || to.kind.is_empty() || !to.namespace.is_empty() {
        return Err("ref must have kind, name and apiVersion; the namespace is the mapping's own".into());
    }
    Ok(RuleTarget::To(to))
}

/// What one path of an Ingress has beyond its spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathExtra {
    /// Which rule of the spec.
    pub rule: usize,
    /// Which of its paths.
    pub path: usize,
    /// What it has.
    #[serde(flatten)]
    pub more: PathMore,
}

/// For an annotation of the Ingress.
pub fn write_paths(extras: &[PathExtra]) -> String {
    serde_json::to_string(extras).expect("plain values serialise")
}

/// By rule and path.
pub fn read_paths(text: &str) -> Result<BTreeMap<(usize, usize), PathMore>, serde_json::Error> {
    let list: Vec<PathExtra> = serde_json::from_str(text)?;
    Ok(list.into_iter().map(|extra| ((extra.rule, extra.path), extra.more)).collect())
}
