//! From method, path and query to what is asked. Pure: no registry, no store, so that every shape of URL is a table row.

use crate::status::{ApiError, Result, cause, forbidden, invalid, not_supported, required};
use http::Method;
use kube_core::response::StatusCause;
use serde_json::json;
use std::collections::HashSet;

/// Longest field manager, in bytes (Kubernetes: `FieldManagerMaxLength`).
pub(crate) const MANAGER_LIMIT: usize = 128;

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
    /// The old way to ask for a watch, `/api/v1/watch/…`.
    pub watch: bool,
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

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VersionMatch {
    #[default]
    None,
    Exact,
    NotOlderThan,
    /// What the caller wrote instead.
    Unknown(String),
}

/// The query of a request, typed. What a verb does not use may be wrong: each verb judges its own part (`check_list`,
/// `check_write`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    pub label_selector: String,
    pub field_selector: String,
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    pub version_match: VersionMatch,
    pub watch: bool,
    pub bookmarks: bool,
    pub initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    pub dry_run: Vec<String>,
    pub field_manager: Option<String>,
    pub field_validation: String,
    pub force: Option<bool>,
    pub pretty: bool,
    pub include_object: String,
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub pairs: Vec<(String, String)>,
    /// Numbers that are none: the key and what is wrong.
    misfits: Vec<(&'static str, String)>,
}

impl Query {
    pub fn first(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }

    pub fn field_validation(&self) -> FieldValidation {
        match self.field_validation.as_str() {
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            _ => FieldValidation::Warn,
        }
    }

    /// Fails if one of the keys holds something that is no number.
    pub fn check_numbers(&self, keys: &[&str]) -> Result<()> {
        match self.misfits.iter().find(|(key, _)| keys.contains(key)) {
            Some((_, why)) => Err(ApiError::bad_request(why)),
            None => Ok(()),
        }
    }

    fn number<T: std::str::FromStr + Default>(&mut self, key: &'static str, text: &str) -> T {
        text.parse().unwrap_or_else(|_| {
            self.misfits.push((key, format!("strconv.ParseInt: parsing {text:?}: invalid syntax")));
            T::default()
        })
    }
}

/// The options of a write, whose kind names them in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Create,
    Update,
    Patch,
    Apply,
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
    let rest = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => {
            out.watch = true;
            rest
        }
        rest => rest,
    };
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

/// `watch` is what the query says; it means nothing to a request for one object.
pub fn verb(method: &Method, at: &Resource, watch: bool) -> Result<Verb> {
    Ok(match (method, at.name.is_some()) {
        (&Method::GET, _) if at.watch => Verb::Watch,
        (&Method::GET, true) => Verb::Get,
        (&Method::GET, false) if watch => Verb::Watch,
        (&Method::GET, false) => Verb::List,
        (&Method::POST, _) => Verb::Create,
        (&Method::PUT, true) => Verb::Update,
        (&Method::PATCH, true) => Verb::Patch,
        (&Method::DELETE, true) => Verb::Delete,
        (&Method::DELETE, false) => Verb::DeleteCollection,
        _ => return Err(ApiError::MethodNotAllowed),
    })
}

pub fn query(raw: &str) -> Query {
    let mut q = Query::default();
    let mut seen = HashSet::new();
    for pair in raw.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key, true), decode(value, true));
        // The first of several counts, but for lists.
        if seen.insert(key.clone()) || key == "dryRun" {
            set(&mut q, &key, &value);
        }
        q.pairs.push((key, value));
    }
    q
}

fn set(q: &mut Query, key: &str, value: &str) {
    let given = || Some(value.to_owned()).filter(|v| !v.is_empty());
    match key {
        "labelSelector" => q.label_selector = value.to_owned(),
        "fieldSelector" => q.field_selector = value.to_owned(),
        "limit" => q.limit = usize::try_from(q.number::<i64>("limit", value)).unwrap_or(0),
        "continue" => q.continue_token = value.to_owned(),
        "resourceVersion" => q.resource_version = value.to_owned(),
        "resourceVersionMatch" => {
            q.version_match = match value {
                "" => VersionMatch::None,
                "Exact" => VersionMatch::Exact,
                "NotOlderThan" => VersionMatch::NotOlderThan,
                other => VersionMatch::Unknown(other.to_owned()),
            }
        }
        "watch" => q.watch = flag(value),
        "allowWatchBookmarks" => q.bookmarks = flag(value),
        "sendInitialEvents" => q.initial_events = Some(flag(value)),
        "timeoutSeconds" => q.timeout_seconds = u64::try_from(q.number::<i64>("timeoutSeconds", value)).ok(),
        "dryRun" => q.dry_run.push(value.to_owned()),
        "fieldManager" => q.field_manager = given(),
        "fieldValidation" => q.field_validation = value.to_owned(),
        "force" => q.force = Some(flag(value)),
        "pretty" => q.pretty = flag(value),
        "includeObject" => q.include_object = value.to_owned(),
        "gracePeriodSeconds" => q.grace_period_seconds = Some(q.number("gracePeriodSeconds", value)),
        "propagationPolicy" => q.propagation_policy = given(),
        "orphanDependents" => q.orphan_dependents = Some(flag(value)),
        _ => {}
    }
}

/// What may be asked of a write.
pub fn check_write(q: &Query, write: Write) -> Result<()> {
    let mut causes = Vec::new();
    match write {
        Write::Apply if q.field_manager.is_none() => {
            causes.push(required("fieldManager", "is required for apply patch"));
        }
        Write::Patch if q.force.is_some() => {
            causes.push(forbidden("force", "may not be specified for non-apply patch"));
        }
        _ => {}
    }
    let manager = q.field_manager.as_deref().unwrap_or("");
    if manager.len() > MANAGER_LIMIT {
        let why = format!("Too long: may not be more than {MANAGER_LIMIT} bytes");
        causes.push(cause("FieldValueTooLong", "fieldManager", why));
    }
    // Each of these shows the whole name, so not of one that is refused for its length already.
    let judged = if manager.len() > MANAGER_LIMIT { "" } else { manager };
    for (at, c) in judged.char_indices().filter(|(_, c)| c.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", c as u32);
        causes.push(invalid("fieldManager", &json!(manager), &why));
    }
    causes.extend(dry_run_fault(&q.dry_run));
    if !matches!(q.field_validation.as_str(), "" | "Ignore" | "Warn" | "Strict") {
        let allowed = ["", "Ignore", "Strict", "Warn"];
        causes.push(not_supported("fieldValidation", &json!(q.field_validation), &allowed));
    }
    let kind = match write {
        Write::Create => "CreateOptions",
        Write::Update => "UpdateOptions",
        Write::Patch | Write::Apply => "PatchOptions",
    };
    options(kind, causes)
}

pub fn dry_run_fault(values: &[String]) -> Option<StatusCause> {
    values.iter().any(|v| v != "All").then(|| not_supported("dryRun", &json!(values), &["All"]))
}

/// What may be combined with what in a list or watch.
pub fn check_list(q: &Query, watch: bool) -> Result<()> {
    q.check_numbers(&["limit", "timeoutSeconds"])?;
    let mut causes = Vec::new();
    let field = "resourceVersionMatch";
    let mut forbid = |when: bool, why: &str| causes.extend(when.then(|| forbidden(field, why)));
    let asked = q.version_match != VersionMatch::None;
    let (allowed, unknown): (&[&str], bool) = if watch {
        (&["NotOlderThan"], q.version_match != VersionMatch::NotOlderThan)
    } else {
        (&["Exact", "NotOlderThan", ""], matches!(q.version_match, VersionMatch::Unknown(_)))
    };
    if watch {
        let other = q.version_match != VersionMatch::NotOlderThan;
        forbid(
            q.initial_events.is_some() && other,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        forbid(
            q.initial_events.is_none() && asked,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    } else {
        forbid(
            asked && q.resource_version.is_empty(),
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
        forbid(asked && !q.continue_token.is_empty(), "resourceVersionMatch is forbidden when continue is provided");
    }
    if asked && unknown {
        let told = match &q.version_match {
            VersionMatch::Unknown(text) => text,
            _ => "Exact",
        };
        causes.push(not_supported(field, &json!(told), allowed));
    }
    if watch && asked && !q.continue_token.is_empty() {
        causes.push(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
    }
    if !watch && q.version_match == VersionMatch::Exact && q.resource_version == "0" {
        let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
        causes.push(forbidden(field, why));
    }
    if !watch && q.initial_events.is_some() {
        causes.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    options("ListOptions", causes)?;
    if !watch && !q.continue_token.is_empty() && !matches!(q.resource_version.as_str(), "" | "0") {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(())
}

/// A resource version as clients give it back to us: empty is `None`.
pub fn revision(text: &str) -> Result<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    let why =
        || invalid("resourceVersion", &json!(text), &format!("strconv.ParseUint: parsing {text:?}: invalid syntax"));
    text.parse().map(Some).map_err(|_| ApiError::Unnamed(format!("resourceVersion: {}", why().message)))
}

/// The refusal of a request's options, if anything is wrong with them.
pub fn options(kind: &str, causes: Vec<StatusCause>) -> Result<()> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid { group: "meta.k8s.io".into(), kind: kind.to_owned(), name: String::new(), causes })
}

/// Anything but `0` and `false` is true.
fn flag(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
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
        check("/api/v1/watch/namespaces/x/pods/a", "/v1 pods ns=x name=a sub=- rest=");
        check("/apis/apps/v1", "other apis|apps|v1");
        check("/api", "other api");
        check("/", "other ");
    }

    #[test]
    fn queries() {
        let q = query("labelSelector=a%3Db%2Cc&limit=5&watch=1&timeoutSeconds=9&dryRun=All&fieldManager=me&limit=7");
        assert_eq!((q.label_selector.as_str(), q.limit, q.watch, q.is_dry_run()), ("a=b,c", 5, true, true));
        assert_eq!((q.timeout_seconds, q.field_manager.as_deref()), (Some(9), Some("me")));
        assert!(query("watch=False").watch == query("watch=0").watch && query("watch").watch);
    }

    #[test]
    fn write_options() {
        let check = |raw: &str, write: Write, want: &str| {
            let got = check_write(&query(raw), write).err().map_or(String::new(), |e| e.to_string());
            assert_eq!(got, want, "{raw} {write:?}");
        };
        check("dryRun=All&fieldManager=me&fieldValidation=Strict", Write::Create, "");
        check(
            "dryRun=Some",
            Write::Create,
            r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All""#,
        );
        check(
            "fieldManager=a%01",
            Write::Update,
            "UpdateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\u0001\": invalid character U+0001 (at \
             position 1)",
        );
        check(
            "",
            Write::Apply,
            r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#,
        );
        check("force=1&fieldManager=me", Write::Apply, "");
        check(
            "force=1",
            Write::Patch,
            r#"PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch"#,
        );
    }

    #[test]
    fn list_options_that_contradict() {
        let check = |raw: &str, watch: bool, ok: bool| {
            assert_eq!(check_list(&query(raw), watch).is_ok(), ok, "{raw} watch={watch}");
        };
        check("", false, true);
        check("limit=x", false, false);
        check("resourceVersionMatch=Sometimes&resourceVersion=1", false, false);
        check("resourceVersionMatch=Exact", false, false);
        check("resourceVersionMatch=Exact&resourceVersion=0", false, false);
        check("resourceVersionMatch=NotOlderThan&resourceVersion=0", false, true);
        check("sendInitialEvents=true", false, false);
        check("sendInitialEvents=true", true, false);
        check("sendInitialEvents=true&resourceVersionMatch=Exact", true, false);
        check("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, true);
        check("resourceVersionMatch=NotOlderThan", true, false);
        check("continue=x&resourceVersion=5", false, false);
    }
}
