//! Every way a request can fail, and the one table from a failure to the `Status` body that Kubernetes clients parse.
//!
//! Clients branch on `reason` and `code`, and people read `message`, so the words are Kubernetes' own. This module
//! never looks at a request and never logs.

use crate::limits::{self, cut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube_core::response::{Status, StatusCause, StatusDetails, StatusSummary};
use serde_json::{Value, json};

/// The resource a failure speaks about: `deployments.apps`, or `pods` in the core group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceId {
    pub group: String,
    pub plural: String,
}

impl ResourceId {
    pub fn new(group: &str, plural: &str) -> Self {
        Self { group: group.to_owned(), plural: plural.to_owned() }
    }
}

impl std::fmt::Display for ResourceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    #[error("{resource} {name:?} not found")]
    NotFound { resource: ResourceId, name: String },
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// As `NoSuchPath`, where nobody says in which form: below no known group and version of a compiled-in kind.
    #[error("404 page not found")]
    NoSuchPage,
    #[error("{}{resource} {name:?} already exists", if *.dying { "object is being deleted: " } else { "" })]
    AlreadyExists {
        resource: ResourceId,
        name: String,
        /// It is on its way out, so waiting helps.
        dying: bool,
    },
    #[error("Operation cannot be fulfilled on {resource} {name:?}: {why}")]
    Conflict { resource: ResourceId, name: String, why: String },
    #[error("{kind}{} {name:?} is invalid: {}", dotted(group), aggregate(causes))]
    Invalid { group: String, kind: String, name: String, causes: Vec<StatusCause> },
    #[error("{0}")]
    BadRequest(String),
    /// The body is no object of its kind: `told` is what it says it is.
    #[error("{told} in version {version:?} cannot be handled as a {kind}: {why}")]
    Undecodable { told: String, version: String, kind: String, why: String },
    #[error("{resource}{} is forbidden: {why}", quoted(name))]
    Forbidden { resource: ResourceId, name: String, why: String, causes: Vec<StatusCause> },
    #[error("forbidden: {0}")]
    ForbiddenPath(String),
    #[error("Unauthorized")]
    Unauthorized,
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    #[error("{verb} is not supported on resources of kind {:?}", resource.to_string())]
    NotSupported { resource: ResourceId, verb: &'static str },
    #[error("only the following media types are accepted: {accepted}")]
    NotAcceptable { accepted: &'static str },
    #[error("you requested {view}, but the requested object is {what}")]
    WrongView { view: &'static str, what: &'static str },
    /// As `NotAcceptable` and as `UnsupportedMediaType`, where it is found before anybody looks at the kind.
    #[error("406: Not Acceptable\n\nAvailable representations: {accepted}")]
    NoRepresentation { accepted: &'static str },
    #[error("415: Unsupported Media Type")]
    UnsupportedPatch,
    /// What Kubernetes answers with code 422 when a JSON patch does not fit.
    #[error("the server rejected our request due to an error in our request")]
    PatchRejected,
    #[error("the body of the request was in an unknown format - accepted media types include: {accepted}")]
    UnsupportedMediaType { accepted: String },
    #[error("{0}")]
    Expired(String),
    #[error("Timeout: Too large resource version: {asked}, current: {current}")]
    FutureRevision { asked: u64, current: u64 },
    #[error("Request entity too large: limit is {limit}")]
    TooLarge { limit: usize },
    #[error("{message}")]
    TooManyRequests { message: String, retry_after_seconds: u32, causes: Vec<StatusCause> },
    #[error("Internal error occurred: {0}")]
    Internal(String),
    /// What Kubernetes answers with code 500 and no reason: an error it has no name for.
    #[error("{0}")]
    Unnamed(String),
    #[error("{0}")]
    Unavailable(String),
    /// An admission function's own answer, passed on as it is.
    #[error("{}", .0.message)]
    Denied(Box<Status>),
}

pub type Result<T> = std::result::Result<T, ApiError>;

/// Every cause is made here: what it shows of the request is bounded.
pub fn cause(reason: &str, field: &str, message: String) -> StatusCause {
    let message = if message.len() > limits::FAULT { cut(&message, limits::FAULT).into_owned() } else { message };
    StatusCause { reason: reason.to_owned(), message, field: cut(field, limits::FAULT).into_owned() }
}

pub fn required(field: &str, detail: &str) -> StatusCause {
    let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
    cause("FieldValueRequired", field, message)
}

pub fn invalid(field: &str, value: &Value, detail: &str) -> StatusCause {
    cause("FieldValueInvalid", field, format!("Invalid value: {}: {detail}", cut(&value.to_string(), limits::VALUE)))
}

pub fn forbidden(field: &str, detail: &str) -> StatusCause {
    cause("FieldValueForbidden", field, format!("Forbidden: {detail}"))
}

pub fn not_supported(field: &str, value: &Value, allowed: &[&str]) -> StatusCause {
    let list = allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
    let shown = cut(&value.to_string(), limits::VALUE).into_owned();
    cause("FieldValueNotSupported", field, format!("Unsupported value: {shown}: supported values: {list}"))
}

impl ApiError {
    pub fn internal(why: impl std::fmt::Display) -> Self {
        Self::Internal(why.to_string())
    }

    pub fn bad_request(why: impl std::fmt::Display) -> Self {
        Self::BadRequest(why.to_string())
    }

    pub fn status(&self) -> Status {
        let (code, reason, details) = self.parts();
        if let Self::Denied(status) = self {
            return completed((**status).clone());
        }
        Status {
            status: Some(StatusSummary::Failure),
            code,
            message: self.to_string(),
            metadata: Some(ListMeta::default()),
            reason: reason.to_owned(),
            details,
        }
    }

    fn parts(&self) -> (u16, &'static str, Option<StatusDetails>) {
        match self {
            Self::NotFound { resource, name } => (404, "NotFound", of(resource, name, &[])),
            Self::NoSuchPath | Self::NoSuchPage => (404, "NotFound", Some(empty())),
            Self::AlreadyExists { resource, name, .. } => (409, "AlreadyExists", of(resource, name, &[])),
            Self::Conflict { resource, name, .. } => (409, "Conflict", of(resource, name, &[])),
            Self::Invalid { group, kind, name, causes } => (
                422,
                "Invalid",
                Some(StatusDetails {
                    name: name.clone(),
                    group: group.clone(),
                    kind: kind.clone(),
                    causes: causes.clone(),
                    ..empty()
                }),
            ),
            Self::BadRequest(_) | Self::Undecodable { .. } => (400, "BadRequest", None),
            Self::Forbidden { resource, name, causes, .. } => (403, "Forbidden", of(resource, name, causes)),
            Self::ForbiddenPath(_) => (403, "Forbidden", Some(empty())),
            Self::Unauthorized => (401, "Unauthorized", None),
            Self::MethodNotAllowed => (405, "MethodNotAllowed", Some(empty())),
            Self::NotSupported { resource, .. } => (405, "MethodNotAllowed", of(resource, "", &[])),
            Self::NotAcceptable { .. } | Self::WrongView { .. } => (406, "NotAcceptable", None),
            Self::NoRepresentation { .. } => (406, "NotAcceptable", Some(empty())),
            Self::UnsupportedPatch => (415, "UnsupportedMediaType", Some(empty())),
            Self::PatchRejected => (422, "Invalid", Some(empty())),
            Self::UnsupportedMediaType { .. } => (415, "UnsupportedMediaType", None),
            Self::Expired(_) => (410, "Expired", None),
            Self::FutureRevision { .. } => (
                504,
                "Timeout",
                Some(StatusDetails {
                    causes: vec![cause("ResourceVersionTooLarge", "", "Too large resource version".into())],
                    retry_after_seconds: 1,
                    ..empty()
                }),
            ),
            Self::TooLarge { .. } => (413, "RequestEntityTooLarge", None),
            Self::TooManyRequests { retry_after_seconds, causes, .. } => (
                429,
                "TooManyRequests",
                Some(StatusDetails { retry_after_seconds: *retry_after_seconds, causes: causes.clone(), ..empty() }),
            ),
            Self::Internal(why) => {
                (500, "InternalError", Some(StatusDetails { causes: vec![cause("", "", why.clone())], ..empty() }))
            }
            Self::Unnamed(_) => (500, "", None),
            Self::Unavailable(_) => (503, "ServiceUnavailable", None),
            Self::Denied(_) => (400, "", None),
        }
    }
}

/// `Status` as a JSON object; `kube_core::Status` carries neither kind nor apiVersion.
pub fn to_value(status: &Status) -> Value {
    let mut value = serde_json::to_value(status).expect("Status holds only strings and numbers");
    value["kind"] = json!("Status");
    value["apiVersion"] = json!("v1");
    if value.get("metadata").is_none() {
        value["metadata"] = json!({});
    }
    value
}

/// The answer to a delete that removed the object.
pub fn deleted(resource: &ResourceId, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource.plural, "uid": uid});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn completed(mut status: Status) -> Status {
    if status.status.is_none() {
        status.status = Some(StatusSummary::Failure);
    }
    if status.code == 0 {
        status.code = 400;
    }
    if status.reason.is_empty() && status.code == 400 {
        status.reason = "BadRequest".to_owned();
    }
    status
}

fn empty() -> StatusDetails {
    StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    }
}

fn of(resource: &ResourceId, name: &str, causes: &[StatusCause]) -> Option<StatusDetails> {
    Some(StatusDetails {
        name: name.to_owned(),
        group: resource.group.clone(),
        kind: resource.plural.clone(),
        causes: causes.to_vec(),
        ..empty()
    })
}

fn dotted(group: &str) -> String {
    if group.is_empty() { String::new() } else { format!(".{group}") }
}

fn quoted(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" {name:?}") }
}

fn line(cause: &StatusCause) -> String {
    if cause.field.is_empty() { cause.message.clone() } else { format!("{}: {}", cause.field, cause.message) }
}

fn aggregate(causes: &[StatusCause]) -> String {
    let mut seen = std::collections::HashSet::new();
    let mut lines: Vec<String> = causes.iter().map(line).filter(|line| seen.insert(line.clone())).collect();
    if lines.len() > TOLD {
        let more = lines.len() - TOLD;
        lines.truncate(TOLD);
        lines.push(format!("and {more} more"));
    }
    match lines.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Faults that one message tells.
const TOLD: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording_code_and_reason() {
        let services = ResourceId::new("serving.knative.dev", "services");
        let pods = ResourceId::new("", "pods");
        let check = |error: ApiError, code: u16, reason: &str, message: &str| {
            let status = error.status();
            assert_eq!((status.code, status.reason.as_str(), status.message.as_str()), (code, reason, message));
        };
        check(
            ApiError::NotFound { resource: services, name: "a".into() },
            404,
            "NotFound",
            r#"services.serving.knative.dev "a" not found"#,
        );
        check(
            ApiError::AlreadyExists { resource: pods.clone(), name: "a".into(), dying: false },
            409,
            "AlreadyExists",
            r#"pods "a" already exists"#,
        );
        check(
            ApiError::Invalid {
                group: "serving.knative.dev".into(),
                kind: "Service".into(),
                name: "a".into(),
                causes: vec![required("spec.x", "")],
            },
            422,
            "Invalid",
            r#"Service.serving.knative.dev "a" is invalid: spec.x: Required value"#,
        );
        check(
            ApiError::Forbidden { resource: pods, name: String::new(), why: "no".into(), causes: vec![] },
            403,
            "Forbidden",
            "pods is forbidden: no",
        );
        check(
            ApiError::FutureRevision { asked: 9, current: 3 },
            504,
            "Timeout",
            "Timeout: Too large resource version: 9, current: 3",
        );
    }

    #[test]
    fn a_denial_without_a_code_is_a_bad_request() {
        let status = ApiError::Denied(Box::new(Status::failure("validation failed: x", ""))).status();
        assert_eq!((status.code, status.reason.as_str()), (400, "BadRequest"));
        assert_eq!(to_value(&status)["kind"], "Status");
    }
}
