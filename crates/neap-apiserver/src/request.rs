//! From method, path and query to what is asked. Pure: no registry, no store, so that every shape of URL is a table row.

use crate::status::{ApiError, Result, cause, forbidden};
use http::Method;

/// Longest field manager, in bytes (Kubernetes: `FieldManagerMaxLength`).
const MANAGER_LIMIT: usize = 128;

/// What a URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Resource(Resource),
    /// Discovery, health, version, OpenAPI and everything unknown.
    Other(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows the subresource (`/proxy/a/b`).
    pub rest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// The query of a request, typed. Unknown keys are kept only in `pairs`, for subresources with options of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    pub label_selector: String,
    pub field_selector: String,
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    pub version_match: Option<VersionMatch>,
    pub watch: bool,
    pub bookmarks: bool,
    pub initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    pub dry_run: bool,
    pub field_manager: Option<String>,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
    pub pretty: bool,
    pub include_object: Option<String>,
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub pairs: Vec<(String, String)>,
}

impl Query {
    pub fn first(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// Splits a path. Percent-encoding is undone per segment, so an encoded slash stays inside its segment.
pub fn target(path: &str) -> Target {
    let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(|s| decode(s, false)).collect();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Target::Other(segments),
    };
    let mut out = Resource { group: group.to_owned(), version: version.to_owned(), ..Resource::default() };
    let tail: &[&str] = match rest {
        // `/namespaces/x/status` and `/finalize` are parts of the namespace itself, not a collection in it.
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            out.plural = "namespaces".into();
            out.name = Some((*name).to_owned());
            out.subresource = Some((*sub).to_owned());
            return Target::Resource(out);
        }
        ["namespaces", namespace, plural, tail @ ..] => {
            out.namespace = Some((*namespace).to_owned());
            out.plural = (*plural).to_owned();
            tail
        }
        [plural, tail @ ..] => {
            out.plural = (*plural).to_owned();
            tail
        }
        [] => return Target::Other(segments),
    };
    out.name = tail.first().map(|s| (*s).to_owned());
    out.subresource = tail.get(1).map(|s| (*s).to_owned());
    out.rest = tail.get(2..).map(|t| t.join("/")).unwrap_or_default();
    Target::Resource(out)
}

pub fn verb(method: &Method, has_name: bool, watch: bool) -> Result<Verb> {
    Ok(match (method, has_name) {
        (&Method::GET | &Method::HEAD, _) if watch => Verb::Watch,
        (&Method::GET | &Method::HEAD, true) => Verb::Get,
        (&Method::GET | &Method::HEAD, false) => Verb::List,
        (&Method::POST, _) => Verb::Create,
        (&Method::PUT, true) => Verb::Update,
        (&Method::PATCH, true) => Verb::Patch,
        (&Method::DELETE, true) => Verb::Delete,
        (&Method::DELETE, false) => Verb::DeleteCollection,
        _ => return Err(ApiError::MethodNotAllowed),
    })
}

pub fn query(raw: &str) -> Result<Query> {
    let mut q = Query::default();
    for pair in raw.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key, true), decode(value, true));
        set(&mut q, &key, &value)?;
        q.pairs.push((key, value));
    }
    Ok(q)
}

fn set(q: &mut Query, key: &str, value: &str) -> Result<()> {
    match key {
        "labelSelector" => q.label_selector = value.to_owned(),
        "fieldSelector" => q.field_selector = value.to_owned(),
        "limit" => q.limit = number::<i64>(key, value)?.max(0) as usize,
        "continue" => q.continue_token = value.to_owned(),
        "resourceVersion" => q.resource_version = value.to_owned(),
        "resourceVersionMatch" => {
            q.version_match = match value {
                "" => None,
                "Exact" => Some(VersionMatch::Exact),
                "NotOlderThan" => Some(VersionMatch::NotOlderThan),
                other => {
                    return Err(bad_options(cause(
                        "FieldValueNotSupported",
                        "resourceVersionMatch",
                        format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""),
                    )));
                }
            }
        }
        "watch" => q.watch = flag(key, value)?,
        "allowWatchBookmarks" => q.bookmarks = flag(key, value)?,
        "sendInitialEvents" => q.initial_events = Some(flag(key, value)?),
        "timeoutSeconds" if !value.is_empty() => q.timeout_seconds = Some(number(key, value)?),
        "dryRun" => match value {
            "All" => q.dry_run = true,
            "" => {}
            other => {
                return Err(ApiError::Invalid {
                    group: "meta.k8s.io".into(),
                    kind: "Options".into(),
                    name: String::new(),
                    causes: vec![cause(
                        "FieldValueNotSupported",
                        "dryRun",
                        format!("Unsupported value: {other:?}: supported values: \"All\""),
                    )],
                });
            }
        },
        "fieldManager" if !value.is_empty() => {
            if value.len() > MANAGER_LIMIT || value.chars().any(char::is_control) {
                return Err(ApiError::Invalid {
                    group: "meta.k8s.io".into(),
                    kind: "PatchOptions".into(),
                    name: String::new(),
                    causes: vec![cause(
                        "FieldValueInvalid",
                        "fieldManager",
                        format!(
                            "Invalid value: {value:?}: must be at most {MANAGER_LIMIT} bytes and contain only printable \
                             characters"
                        ),
                    )],
                });
            }
            q.field_manager = Some(value.to_owned());
        }
        "fieldValidation" => {
            q.field_validation = match value {
                "" | "Warn" => FieldValidation::Warn,
                "Ignore" => FieldValidation::Ignore,
                "Strict" => FieldValidation::Strict,
                other => return Err(ApiError::bad_request(format!("invalid fieldValidation {other:?}"))),
            }
        }
        "force" => q.force = Some(flag(key, value)?),
        "pretty" => q.pretty = flag(key, value).unwrap_or(false),
        "includeObject" => q.include_object = Some(value.to_owned()),
        "gracePeriodSeconds" if !value.is_empty() => q.grace_period_seconds = Some(number(key, value)?),
        "propagationPolicy" if !value.is_empty() => q.propagation_policy = Some(value.to_owned()),
        "orphanDependents" if !value.is_empty() => q.orphan_dependents = Some(flag(key, value)?),
        _ => {}
    }
    Ok(())
}

/// What may be combined with what in a list or watch; the words are Kubernetes'.
pub fn check_list(q: &Query, watch: bool) -> Result<()> {
    if watch {
        match q.initial_events {
            Some(_) if q.version_match != Some(VersionMatch::NotOlderThan) => {
                return Err(bad_options(forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                )));
            }
            None if q.version_match.is_some() => {
                return Err(bad_options(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )));
            }
            _ => return Ok(()),
        }
    }
    if q.initial_events.is_some() {
        return Err(bad_options(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list")));
    }
    if q.version_match.is_some() {
        if q.resource_version.is_empty() {
            return Err(bad_options(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )));
        }
        if !q.continue_token.is_empty() {
            return Err(bad_options(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            )));
        }
        if q.version_match == Some(VersionMatch::Exact) && q.resource_version == "0" {
            return Err(bad_options(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            )));
        }
    }
    if !q.continue_token.is_empty() && !matches!(q.resource_version.as_str(), "" | "0") {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(())
}

/// A resource version as clients give it back to us: empty is `None`.
pub fn revision(text: &str) -> Result<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        bad_options(cause(
            "FieldValueInvalid",
            "resourceVersion",
            format!("Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"),
        ))
    })
}

fn bad_options(cause: kube_core::response::StatusCause) -> ApiError {
    ApiError::Invalid {
        group: "meta.k8s.io".into(),
        kind: "ListOptions".into(),
        name: String::new(),
        causes: vec![cause],
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| ApiError::bad_request(format!("{key}: {value:?} is not a number")))
}

fn flag(key: &str, value: &str) -> Result<bool> {
    match value {
        "" | "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        other => Err(ApiError::bad_request(format!("{key}: {other:?} is not true or false"))),
    }
}

fn decode(text: &str, plus: bool) -> String {
    if !text.contains(|c| c == '%' || (plus && c == '+')) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => {
                let pair = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
                if let Some(byte) = pair.and_then(|h| u8::from_str_radix(h, 16).ok()) {
                    out.push(byte);
                    i += 3;
                    continue;
                }
                out.push(b'%');
            }
            b'+' if plus => out.push(b' '),
            b => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(path: &str) -> String {
        match target(path) {
            Target::Other(segments) => format!("other {}", segments.join("|")),
            Target::Resource(r) => format!(
                "{}/{} {} ns={} name={} sub={} rest={}",
                r.group,
                r.version,
                r.plural,
                r.namespace.as_deref().unwrap_or("-"),
                r.name.as_deref().unwrap_or("-"),
                r.subresource.as_deref().unwrap_or("-"),
                r.rest,
            ),
        }
    }

    #[test]
    fn paths() {
        let check = |path: &str, want: &str| assert_eq!(shape(path), want, "{path}");
        check("/api/v1/pods", "/v1 pods ns=- name=- sub=- rest=");
        check("/api/v1/namespaces", "/v1 namespaces ns=- name=- sub=- rest=");
        check("/api/v1/namespaces/x", "/v1 namespaces ns=- name=x sub=- rest=");
        check("/api/v1/namespaces/x/status", "/v1 namespaces ns=- name=x sub=status rest=");
        check("/api/v1/namespaces/x/finalize", "/v1 namespaces ns=- name=x sub=finalize rest=");
        check("/api/v1/namespaces/x/pods", "/v1 pods ns=x name=- sub=- rest=");
        check("/api/v1/namespaces/x/pods/a/log", "/v1 pods ns=x name=a sub=log rest=");
        check("/api/v1/namespaces/x/services/a/proxy/b/c", "/v1 services ns=x name=a sub=proxy rest=b/c");
        check("/apis/apps/v1/namespaces/x/deployments/a%2Fb", "apps/v1 deployments ns=x name=a/b sub=- rest=");
        check("/apis/apps/v1", "other apis|apps|v1");
        check("/api", "other api");
        check("/", "other ");
    }

    #[test]
    fn queries() {
        let q = query("labelSelector=a%3Db%2Cc&limit=5&watch=1&timeoutSeconds=9&dryRun=All&fieldManager=me").unwrap();
        assert_eq!((q.label_selector.as_str(), q.limit, q.watch, q.dry_run), ("a=b,c", 5, true, true));
        assert_eq!((q.timeout_seconds, q.field_manager.as_deref()), (Some(9), Some("me")));
        assert!(query("limit=x").is_err());
        assert!(query("dryRun=Some").is_err());
        assert!(query("resourceVersionMatch=Sometimes").is_err());
    }

    #[test]
    fn list_options_that_contradict() {
        let check = |raw: &str, watch: bool, ok: bool| {
            assert_eq!(check_list(&query(raw).unwrap(), watch).is_ok(), ok, "{raw} watch={watch}");
        };
        check("", false, true);
        check("resourceVersionMatch=Exact", false, false);
        check("resourceVersionMatch=Exact&resourceVersion=0", false, false);
        check("resourceVersionMatch=NotOlderThan&resourceVersion=0", false, true);
        check("sendInitialEvents=true", false, false);
        check("sendInitialEvents=true", true, false);
        check("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, true);
        check("resourceVersionMatch=NotOlderThan", true, false);
        check("continue=x&resourceVersion=5", false, false);
    }
}
