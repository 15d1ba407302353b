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
        Parser { tokens: tokens(text), at: 0 }.selector().map(Self).map_err(ApiError::bad_request)
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// A key, a value, `in` or `notin`.
    Word(&'a str),
    /// One of `= == != > < ! ( ) ,`.
    Sign(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) | Self::Sign(text) => text,
            Self::End => "",
        }
    }

    fn ends_requirement(self) -> bool {
        matches!(self, Self::End | Self::Sign(","))
    }

    fn begins_requirement(self) -> bool {
        matches!(self, Self::Word(_) | Self::Sign("!"))
    }
}

const SIGNS: &[char] = &['=', '!', '(', ')', ',', '>', '<'];
const BLANKS: &[char] = &[' ', '\t', '\r', '\n'];

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let mut rest = text.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let token = if rest.starts_with(SIGNS) {
            let known = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
            let sign = known.iter().find(|sign| rest.starts_with(**sign)).map_or(1, |sign| sign.len());
            Token::Sign(&rest[..sign])
        } else {
            let end = rest.find(|c| SIGNS.contains(&c) || BLANKS.contains(&c)).unwrap_or(rest.len());
            Token::Word(&rest[..end])
        };
        rest = rest[token.text().len()..].trim_start_matches(BLANKS);
        out.push(token);
    }
    out.push(Token::End);
    out
}

type Parsed<T> = std::result::Result<T, String>;

/// Reads requirements; the complaints are Kubernetes'.
struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Parsed<Vec<Requirement>> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(out),
                token if token.begins_requirement() => {
                    let requirement =
                        self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?;
                    out.push(requirement);
                }
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text())),
            }
            match self.take() {
                Token::End => return Ok(out),
                Token::Sign(",") if self.peek().begins_requirement() => {}
                Token::Sign(",") => {
                    return Err(format!("found '{}', expected: identifier after ','", self.peek().text()));
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Parsed<Requirement> {
        let negated = self.peek() == Token::Sign("!");
        if negated {
            self.take();
        }
        let key = match self.take() {
            Token::Word(key) => key.to_owned(),
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        if let Some(why) = crate::metadata::label_key_fault(&key) {
            return Err(format!("<nil>: Invalid value: {key:?}: {why}"));
        }
        if negated || self.peek().ends_requirement() {
            return Ok(Requirement { key, op: if negated { Op::Absent } else { Op::Exists } });
        }
        let op = match self.take() {
            Token::Word("in") => Op::In(self.set(&key)?),
            Token::Word("notin") => Op::NotIn(self.set(&key)?),
            Token::Sign("=" | "==") => Op::In(vec![self.value(&key)?]),
            Token::Sign("!=") => Op::NotIn(vec![self.value(&key)?]),
            Token::Sign(">") => Op::Greater(self.number(&key)?),
            Token::Sign("<") => Op::Less(self.number(&key)?),
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text())),
        };
        Ok(Requirement { key, op })
    }

    fn value(&mut self, key: &str) -> Parsed<String> {
        if self.peek().ends_requirement() {
            return Ok(String::new());
        }
        match self.take() {
            Token::Word(value) => {
                check_value(key, 0, value)?;
                Ok(value.to_owned())
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn number(&mut self, key: &str) -> Parsed<i64> {
        let value = self.value(key)?;
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        value.parse().map_err(|_| format!("values[0]: Invalid value: {value:?}: {why}"))
    }

    /// `(a, b)`; each comma that stands alone is an empty value.
    fn set(&mut self, key: &str) -> Parsed<Vec<String>> {
        let first = self.take();
        if first != Token::Sign("(") {
            return Err(format!("found '{}' expected: '('", first.text()));
        }
        let mut out = std::collections::BTreeSet::new();
        match self.peek() {
            Token::Sign(")") => {
                self.take();
                return Ok(vec![String::new()]);
            }
            Token::Word(_) | Token::Sign(",") => {}
            other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
        }
        loop {
            match self.take() {
                Token::Word(value) => {
                    out.insert(value.to_owned());
                    match self.peek() {
                        Token::Sign(",") => continue,
                        Token::Sign(")") => break,
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Sign(",") => {
                    let next = self.peek();
                    if out.is_empty() || matches!(next, Token::Sign("," | ")")) {
                        out.insert(String::new());
                    }
                    if next == Token::Sign(")") {
                        break;
                    }
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
        self.take();
        for (i, value) in out.iter().enumerate() {
            check_value(key, i, value)?;
        }
        Ok(out.into_iter().collect())
    }
}

fn check_value(key: &str, at: usize, value: &str) -> Parsed<()> {
    match crate::metadata::label_value_fault(value) {
        Some(why) => Err(format!("values[{at}][{key}]: Invalid value: {value:?}: {why}")),
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
    /// What a field that is not there is taken for: Go's zero value of its type.
    pub absent: &'static str,
}

impl SelectableField {
    /// A label that is itself the path: `spec.nodeName`.
    pub fn plain(label: &str) -> Self {
        Self { label: label.to_owned(), path: JsonPath::parse(&format!(".{label}")).unwrap_or_default(), absent: "" }
    }
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self> {
        let mut terms = split_unescaped(text);
        terms.sort();
        let mut out = Vec::new();
        for term in terms.iter().filter(|term| !term.is_empty()) {
            // The first operator counts; of those that begin at one place the longest.
            let at = term.char_indices().find_map(|(at, _)| {
                let sign = ["!=", "==", "="].into_iter().find(|sign| term[at..].starts_with(sign))?;
                Some((at, sign))
            });
            let Some((at, sign)) = at else {
                return Err(ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            let value = unescape(&term[at + sign.len()..])?;
            out.push(FieldTerm { path: term[..at].to_owned(), value, negate: sign == "!=" });
        }
        Ok(Self(out))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails on a path that the kind does not offer.
    pub fn check(&self, fields: &[SelectableField]) -> Result<()> {
        for term in &self.0 {
            let known = matches!(term.path.as_str(), "metadata.name" | "metadata.namespace")
                || fields.iter().any(|f| f.label == term.path);
            if !known {
                return Err(ApiError::bad_request(match fields {
                    [] => format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        term.path
                    ),
                    _ => format!("field label not supported: {}", term.path),
                }));
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
                    let field = fields.iter().find(|f| f.label == path);
                    match field.and_then(|f| f.path.first(object)) {
                        None | Some(Value::Null) => term.value == field.map_or("", |f| f.absent),
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

fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    let bad = |what: String| Err(ApiError::bad_request(format!("invalid field selector: {what}")));
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    return bad(format!("invalid escape sequence: \\{}", other.map(String::from).unwrap_or_default()));
                }
            },
            c @ (',' | '=') => return bad(format!("unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
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
        check("app in (,web)", Some(true));
        check("app in ()", Some(false));
        check("other notin ()", Some(true));
        check("in in (in)", Some(false));
        check("!app=web", None);
        check("app=in", Some(false));
        check(",app", None);
        check("app===web", None);
    }

    #[test]
    fn fields() {
        let offered = [SelectableField::plain("status.phase"), SelectableField::plain("spec.n")];
        let object = json!({"status": {"phase": "Running"}, "spec": {"n": 3}});
        let check = |text: &str, want: Option<bool>| {
            let got = FieldSelector::parse(text)
                .and_then(|s| s.check(&offered).map(|()| s.matches("ns", "a", &object, &offered)));
            assert_eq!(got.ok(), want, "{text}");
        };
        check("metadata.name=a", Some(true));
        check("metadata.name=b", Some(false));
        check("metadata.namespace=ns,status.phase=Running", Some(true));
        check("status.phase!=Running", Some(false));
        check("spec.n=3", Some(true));
        check("status.podIP=1", None);
        check("metadata.name", None);
        check(r"metadata.name=a\,b", Some(false));
        check(r"metadata.name=a\b", None);
        check("metadata.name=a=b", None);
        check("metadata.name==a", Some(true));
    }
}
