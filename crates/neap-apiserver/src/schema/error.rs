//! One problem of one field, in the words Kubernetes uses, and its way into a `Status`.
//!
//! Clients match on these texts and on the machine-readable reasons, so both are part of the contract.

use std::fmt::{self, Display, Write as _};

use crate::limits;
use kube_core::response::StatusCause;
use serde_json::Value;

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    /// A required field is absent or empty.
    Required,
    /// A reference names nothing.
    NotFound,
    /// A value occurs twice where it must be unique.
    Duplicate,
    /// A value of the right type that is not acceptable.
    Invalid,
    /// A value of the wrong type.
    TypeInvalid,
    /// A value outside an enumeration.
    NotSupported,
    /// A field that may not be set here.
    Forbidden,
    /// A text that is too long.
    TooLong,
    /// A list or map with too many entries.
    TooMany,
}

impl FieldErrorKind {
    /// The `reason` of the cause in a `Status`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::NotFound => "FieldValueNotFound",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::NotFound => "Not found",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong)
    }
}

/// One problem of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Where, as kubectl prints it (`spec.containers[0].name`); `<nil>` is the whole object.
    pub path: String,
    /// What kind of problem.
    pub kind: FieldErrorKind,
    /// The explanation after the value; may be empty.
    pub detail: String,
    /// The offending value, where the kind shows one.
    pub value: Option<Value>,
}

impl FieldError {
    /// A required field is absent.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Required, detail: detail.into(), value: None }
    }

    /// A value that is not acceptable, and why.
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Invalid, detail: detail.into(), value: Some(value.into()) }
    }

    /// A field that may not be set, and why.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Forbidden, detail: detail.into(), value: None }
    }

    /// A value that occurs twice.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Duplicate, detail: String::new(), value: Some(value.into()) }
    }

    /// A value outside an enumeration.
    pub fn not_supported<'a>(
        path: impl Into<String>,
        value: impl Into<Value>,
        supported: impl IntoIterator<Item = &'a Value>,
    ) -> Self {
        let mut detail = String::new();
        for allowed in supported {
            detail.push_str(if detail.is_empty() { "supported values: " } else { ", " });
            match allowed {
                Value::String(text) => quote(&mut detail, text),
                other => quote(&mut detail, &other.to_string()),
            }
        }
        Self { path: path.into(), kind: FieldErrorKind::NotSupported, detail, value: Some(value.into()) }
    }

    /// A list or map with more than `most` entries.
    pub fn too_many(path: impl Into<String>, actual: usize, most: u64) -> Self {
        Self {
            path: path.into(),
            kind: FieldErrorKind::TooMany,
            detail: format!("must have at most {most} item{}", plural(most)),
            value: Some(actual.into()),
        }
    }

    /// A text longer than `most` characters. The message says bytes, as Kubernetes' does.
    pub fn too_long(path: impl Into<String>, most: u64) -> Self {
        Self {
            path: path.into(),
            kind: FieldErrorKind::TooLong,
            detail: format!("may not be more than {most} byte{}", plural(most)),
            value: None,
        }
    }

    /// The message without the path: `Invalid value: "x": why`.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let (true, Some(value)) = (self.kind.shows_value(), &self.value) {
            text.push_str(": ");
            let mut shown = String::new();
            show(&mut shown, value);
            text.push_str(&limits::cut(&shown, limits::VALUE));
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    /// The cause a `Status` carries for this problem.
    pub fn cause(&self) -> StatusCause {
        crate::status::cause(self.kind.reason(), &self.path, self.body())
    }
}

impl From<&FieldError> for StatusCause {
    fn from(error: &FieldError) -> Self {
        error.cause()
    }
}

impl Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Several problems as one text: alone as it is, several in brackets, repetitions once.
pub(super) fn join(errors: &[FieldError]) -> String {
    let mut seen = std::collections::HashSet::new();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).filter(|text| seen.insert(text.clone())).collect();
    match texts.as_slice() {
        [] => "<nil>".to_owned(),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// A value as it appears in a message: text quoted, numbers and booleans bare, the rest as JSON.
fn show(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::String(text) => quote(out, text),
        other => {
            write!(out, "{other}").expect("writing to a String cannot fail");
        }
    }
}

/// Quotes a text the way Go's `%q` does for what occurs in practice.
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                write!(out, "\\x{:02x}", c as u32).expect("writing to a String cannot fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
