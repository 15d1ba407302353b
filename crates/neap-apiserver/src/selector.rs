//! Label and field selectors: text to requirements, requirements against an object. Pure.

use crate::jsonpath::JsonPath;
use crate::status::{ApiError, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// All requirements must hold; none holds for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl LabelSelector {
    pub fn parse(text: &str) -> Result<Self> {
        let mut out = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (requirement, after) = requirement(rest)
                .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why} (in {text:?})")))?;
            out.push(requirement);
            rest = match after.strip_prefix(',') {
                Some(next) if !next.trim().is_empty() => next.trim_start(),
                Some(_) => return Err(ApiError::bad_request("found '', expected: identifier after ','")),
                None if after.is_empty() => "",
                None => {
                    return Err(ApiError::bad_request(format!(
                        "unable to parse requirement: found '{after}', expected: ',' or 'end of string'"
                    )));
                }
            };
        }
        Ok(Self(out))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches<V: AsRef<str>>(&self, labels: &BTreeMap<String, V>) -> bool {
        self.0.iter().all(|r| {
            let value = labels.get(&r.key).map(AsRef::as_ref);
            match &r.op {
                Op::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
                Op::NotIn(set) => value.is_none_or(|v| !set.iter().any(|s| s == v)),
                Op::Exists => value.is_some(),
                Op::Absent => value.is_none(),
                Op::Greater(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
                Op::Less(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
            }
        })
    }
}

/// One requirement, and the text after it.
fn requirement(text: &str) -> std::result::Result<(Requirement, &str), String> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = key(rest.trim_start())?;
        return Ok((Requirement { key, op: Op::Absent }, rest.trim_start()));
    }
    let (key, rest) = key(text)?;
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with(',') {
        return Ok((Requirement { key, op: Op::Exists }, rest));
    }
    for (sign, negate) in [("==", false), ("=", false), ("!=", true)] {
        if let Some(after) = rest.strip_prefix(sign) {
            let end = after.find(',').unwrap_or(after.len());
            let value = after[..end].trim().to_owned();
            check_value(&value)?;
            let op = if negate { Op::NotIn(vec![value]) } else { Op::In(vec![value]) };
            return Ok((Requirement { key, op }, &after[end..]));
        }
    }
    for (sign, greater) in [('>', true), ('<', false)] {
        if let Some(after) = rest.strip_prefix(sign) {
            let end = after.find(',').unwrap_or(after.len());
            let n = after[..end]
                .trim()
                .parse()
                .map_err(|_| "for 'Gt', 'Lt' operators, the value must be an integer".to_owned())?;
            let op = if greater { Op::Greater(n) } else { Op::Less(n) };
            return Ok((Requirement { key, op }, &after[end..]));
        }
    }
    for (word, negate) in [("notin", true), ("in", false)] {
        let Some(after) = rest.strip_prefix(word) else { continue };
        let Some(inner) = after.trim_start().strip_prefix('(') else {
            return Err(format!("found '{}', expected: '('", after.trim_start()));
        };
        let Some(end) = inner.find(')') else { return Err("found '', expected: ',' or ')'".to_owned()) };
        let set: Vec<String> = inner[..end].split(',').map(|v| v.trim().to_owned()).collect();
        for value in &set {
            check_value(value)?;
        }
        let op = if negate { Op::NotIn(set) } else { Op::In(set) };
        return Ok((Requirement { key, op }, inner[end + 1..].trim_start()));
    }
    Err(format!("found '{rest}', expected: in, notin, =, ==, !=, gt, lt"))
}

fn key(text: &str) -> std::result::Result<(String, &str), String> {
    let end = text.find([',', '=', '!', '<', '>', '(', ')', ' ', '\t']).unwrap_or(text.len());
    let key = &text[..end];
    if key.is_empty() {
        return Err(format!("found '{text}', expected: !, identifier, or 'end of string'"));
    }
    if let Some(why) = crate::metadata::label_key_fault(key) {
        return Err(format!("<nil>: Invalid value: {key:?}: {why}"));
    }
    Ok((key.to_owned(), &text[end..]))
}

fn check_value(value: &str) -> std::result::Result<(), String> {
    match crate::metadata::label_value_fault(value) {
        Some(why) => Err(format!("values[0][x]: Invalid value: {value:?}: {why}")),
        None => Ok(()),
    }
}

/// `path=value` and `path!=value` terms; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    negate: bool,
}

/// What a kind lets clients select by, beside the name and namespace that every kind has.
#[derive(Debug, Clone)]
pub struct SelectableField {
    pub label: String,
    pub path: JsonPath,
}

impl SelectableField {
    /// A label that is itself the path: `spec.nodeName`.
    pub fn plain(label: &str) -> Self {
        Self { label: label.to_owned(), path: JsonPath::parse(&format!(".{label}")).unwrap_or_default() }
    }
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self> {
        let mut out = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (path, value, negate) = if let Some((p, v)) = term.split_once("!=") {
                (p, v, true)
            } else if let Some((p, v)) = term.split_once("==") {
                (p, v, false)
            } else if let Some((p, v)) = term.split_once('=') {
                (p, v, false)
            } else {
                return Err(ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            out.push(FieldTerm { path: path.to_owned(), value: unescape(value), negate });
        }
        Ok(Self(out))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails on a path that the kind does not offer.
    pub fn check(&self, group_version: &str, kind: &str, fields: &[SelectableField]) -> Result<()> {
        for term in &self.0 {
            let known = matches!(term.path.as_str(), "metadata.name" | "metadata.namespace")
                || fields.iter().any(|f| f.label == term.path);
            if !known {
                return Err(ApiError::bad_request(format!(
                    "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not supported: {}",
                    format!("{group_version}, Kind={kind}"),
                    "",
                    self.to_string(),
                    term.path
                )));
            }
        }
        Ok(())
    }

    /// The one name this selector admits, if it says so: then a list is a lookup.
    pub fn exact_name(&self) -> Option<&str> {
        self.0.iter().find(|t| t.path == "metadata.name" && !t.negate).map(|t| t.value.as_str())
    }

    pub fn needs_object(&self) -> bool {
        self.0.iter().any(|t| !matches!(t.path.as_str(), "metadata.name" | "metadata.namespace"))
    }

    /// `object` is only read for other paths than name and namespace; see [`Self::needs_object`].
    pub fn matches(&self, namespace: &str, name: &str, object: &Value, fields: &[SelectableField]) -> bool {
        self.0.iter().all(|term| {
            let equal = match term.path.as_str() {
                "metadata.name" => name == term.value,
                "metadata.namespace" => namespace == term.value,
                path => {
                    let found = fields.iter().find(|f| f.label == path).and_then(|f| f.path.first(object));
                    match found {
                        None | Some(Value::Null) => term.value.is_empty(),
                        Some(Value::String(s)) => *s == term.value,
                        Some(other) => {
                            let shown = other.to_string();
                            shown == term.value
                        }
                    }
                }
            };
            equal != term.negate
        })
    }
}

impl std::fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, t) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let sign = if t.negate { "!=" } else { "=" };
            write!(f, "{comma}{}{sign}{}", t.path, t.value)?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            out.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        out.last_mut().expect("starts with one term").push(c);
    }
    out
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "1"), ("a.b/c", "")].map(|(k, v)| (k.into(), v.into())).into();
        let check = |text: &str, want: Option<bool>| {
            let got = LabelSelector::parse(text).ok().map(|s| s.matches(&labels));
            assert_eq!(got, want, "{text}");
        };
        check("", Some(true));
        check("app=web", Some(true));
        check("app==web,tier=1", Some(true));
        check("app = web , tier != 2", Some(true));
        check("app!=web", Some(false));
        check("other!=web", Some(true));
        check("app in (web, db)", Some(true));
        check("app notin (web,db)", Some(false));
        check("other notin (web)", Some(true));
        check("app,!other", Some(true));
        check("!app", Some(false));
        check("a.b/c", Some(true));
        check("a.b/c=", Some(true));
        check("tier>0", Some(true));
        check("tier<1", Some(false));
        check("app in web", None);
        check("app in (web", None);
        check("=x", None);
        check("app=we b", None);
        check("app,", None);
        check("a b", None);
    }

    #[test]
    fn fields() {
        let offered = [SelectableField::plain("status.phase"), SelectableField::plain("spec.n")];
        let object = json!({"status": {"phase": "Running"}, "spec": {"n": 3}});
        let check = |text: &str, want: Option<bool>| {
            let got = FieldSelector::parse(text)
                .and_then(|s| s.check("/v1", "Pod", &offered).map(|()| s.matches("ns", "a", &object, &offered)));
            assert_eq!(got.ok(), want, "{text}");
        };
        check("metadata.name=a", Some(true));
        check("metadata.name=b", Some(false));
        check("metadata.namespace=ns,status.phase=Running", Some(true));
        check("status.phase!=Running", Some(false));
        check("spec.n=3", Some(true));
        check("status.podIP=1", None);
        check("metadata.name", None);
    }
}
