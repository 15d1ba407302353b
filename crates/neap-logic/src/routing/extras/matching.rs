//! What a path may ask of a request beyond what an Ingress can say.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What a path asks for beyond its prefix and the headers of its Ingress, and what becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathMore {
    /// The whole path, not its beginning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// All of these hold. Names are lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FieldTest>,
    /// All of these hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<FieldTest>,
    /// What the matched part of the path is replaced with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
}

/// One header or one parameter of the query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldTest {
    /// Its name.
    pub name: String,
    /// How it must look.
    #[serde(flatten)]
    pub test: Test,
}

/// How a value must look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Test {
    /// Like this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// This is part of it.
    Contains(String),
    /// It is there, or is not.
    Present(bool),
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::Exact(wanted), Some(value)) => value == wanted,
            (Self::Prefix(wanted), Some(value)) => value.starts_with(&**wanted),
            (Self::Contains(wanted), Some(value)) => value.contains(&**wanted),
            (Self::Present(wanted), value) => *wanted == value.is_some(),
            (_, None) => false,
        }
    }
}

impl PathMore {
    /// How much it asks for: of two paths of the same length the one that asks for more is tried first.
    pub(crate) fn weight(&self) -> usize {
        self.headers.len() + self.query.len()
    }

    /// Whether a request that begins with the prefix is one for this path.
    pub(crate) fn matches<'h>(
        &self,
        prefix: &str,
        path: &str,
        query: Option<&str>,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> bool {
        let rest = path.get(prefix.len()..).unwrap_or_default();
        // `/api` is for `/api` and `/api/x`, not for `/apiary`.
        let fits = if self.exact { rest.is_empty() } else { rest.is_empty() || rest.starts_with('/') };
        fits && self.headers.iter().all(|field| field.test.holds(header(&field.name)))
            && self.query.iter().all(|field| {
                let value = query.and_then(|query| parameter(query, &field.name));
                field.test.holds(value.as_deref())
            })
    }

    /// The path a request goes on with; `None` when it keeps its own.
    pub fn rewritten(&self, prefix: &str, path: &str) -> Option<String> {
        let base = self.rewrite.as_deref()?.trim_end_matches('/');
        let rest = path.get(prefix.len()..)?;
        let whole = match rest {
            "" | "/" if base.is_empty() => "/".to_owned(),
            rest if rest.is_empty() || rest.starts_with('/') => format!("{base}{rest}"),
            rest => format!("{base}/{rest}"),
        };
        Some(whole)
    }
}

/// The value of the first parameter of that name, decoded.
fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

/// `+` is a space and `%41` an A, as forms are written; what is neither stays as it is.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let (byte, step) = match (byte, hex(at + 1), hex(at + 2)) {
            (b'+', ..) => (b' ', 1),
            (b'%', Some(high), Some(low)) => (u8::try_from(high * 16 + low).expect("two digits"), 3),
            (other, ..) => (other, 1),
        };
        out.push(byte);
        at += step;
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}
