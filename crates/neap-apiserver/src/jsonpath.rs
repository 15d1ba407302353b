//! The part of kubectl's JSONPath that printer columns, selectable fields and scale paths use:
//! `.a.b`, `['a.b']`, `[0]`, `[-1]`, `[*]`, `..`-free, and `[?(@.type=="Ready")]` filters. Pure.

use serde_json::Value;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Filter { path: Vec<Step>, equal: bool, value: Value },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("JSONPath {path:?}: {why}")]
pub struct PathError {
    path: String,
    why: &'static str,
}

impl JsonPath {
    /// Accepts the path with or without the braces of kubectl's templates and with or without a leading `$`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        steps(inner).map(Self).map_err(|why| PathError { path: text.to_owned(), why })
    }

    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        follow(&self.0, root)
    }

    pub fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.find(root).into_iter().next()
    }

    /// The plain field names, when the path has nothing else: what can be written to.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|s| match s {
                Step::Field(name) => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }
}

fn follow<'a>(steps: &[Step], root: &'a Value) -> Vec<&'a Value> {
    let mut here = vec![root];
    for step in steps {
        here = here.into_iter().flat_map(|value| step_into(step, value)).collect();
    }
    here
}

fn step_into<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(i) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let at = if *i < 0 { list.len() as i64 + i } else { *i };
            usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect()
        }
        Step::All => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Filter { path, equal, value: want } => value
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter(|item| follow(path, item).iter().any(|v| (*v == want) == *equal))
            .collect(),
    }
}

fn steps(mut rest: &str) -> Result<Vec<Step>, &'static str> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after).ok_or("a '[' is not closed")?;
            out.push(bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else {
            let after = rest.strip_prefix('.').unwrap_or(rest);
            if after.starts_with('.') {
                return Err("recursive descent '..' is not supported");
            }
            let (name, after) = name(after);
            match name.as_str() {
                "" if after.starts_with('[') || after.is_empty() => {}
                "" => return Err("a field name is missing"),
                "*" => out.push(Step::All),
                _ => out.push(Step::Field(name)),
            }
            rest = after;
        }
    }
    Ok(out)
}

/// A field name up to the next `.` or `[`; a backslash keeps the dot in the name.
fn name(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (out, &text[at..]),
            c => out.push(c),
        }
    }
    (out, "")
}

/// Where the bracket closes, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(at),
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, &'static str> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquoted(text) {
        // Dots need no backslash between quotes, but Knative's own columns have one.
        return Ok(Step::Field(name.replace("\\.", ".")));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, right, equal) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((l, r)), _) => (l, r, true),
            (None, Some((l, r))) => (l, r, false),
            (None, None) => return Err("a filter compares with == or !="),
        };
        let left = left.trim().strip_prefix('@').ok_or("a filter begins with '@'")?;
        let right = right.trim();
        let value = match unquoted(right) {
            Some(text) => Value::String(text.to_owned()),
            None => serde_json::from_str(right).map_err(|_| "a filter's right side is a string, number or boolean")?,
        };
        return Ok(Step::Filter { path: steps(left)?, equal, value });
    }
    text.parse().map(Step::Index).map_err(|_| "a bracket holds an index, a name, '*' or a filter")
}

fn unquoted(text: &str) -> Option<&str> {
    let strip = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    strip('\'').or_else(|| strip('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True", "n": 3}]},
            "spec": {"list": [1, 2, 3]},
        });
        let check = |path: &str, want: Value| {
            let found: Vec<Value> = JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), want, "{path}");
        };
        check(".status.conditions[?(@.type==\"Ready\")].status", json!(["True"]));
        check(".status.conditions[?(@.type=='Ready')].status", json!(["True"]));
        check("{.status.conditions[?(@.n==3)].type}", json!(["Ready"]));
        check(".status.conditions[?(@.type!='Ready')].status", json!(["False"]));
        check(".status.conditions[*].type", json!(["A", "Ready"]));
        check(".spec.list[0]", json!([1]));
        check("$.spec.list[-1]", json!([3]));
        check(".spec.list[7]", json!([]));
        check(".metadata.labels['a.b/c']", json!(["x"]));
        check(".metadata.labels['a\\.b/c']", json!(["x"]));
        check(".metadata.labels.a\\.b/c", json!(["x"]));
        check(".metadata.none.deeper", json!([]));
        check("spec.list[1]", json!([2]));
    }

    #[test]
    fn refuses() {
        for path in [".a[", "..a", ".a[x]", ".a[?(b==1)]", ".a[?(@.b)]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
