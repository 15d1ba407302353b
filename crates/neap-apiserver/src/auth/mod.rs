//! Who asks, and whether they may.

pub mod identity;
pub(crate) mod rbac;
pub(crate) mod review;
pub mod token;

use crate::request::{Resource, Verb};
use crate::server::Inner;
use crate::status::{ApiError, ResourceId, Result};
use http::{HeaderMap, Method};
use k8s_openapi::api::authentication::v1::UserInfo;
use std::collections::BTreeMap;

/// Members may do everything; nothing can take it from them.
pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";

pub fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo {
        username: Some(name.to_owned()),
        groups: Some(groups.iter().map(|g| (*g).to_owned()).collect()),
        ..UserInfo::default()
    }
}

/// The user that controllers of this process are.
pub fn admin(name: &str) -> UserInfo {
    user(name, &[MASTERS, AUTHENTICATED])
}

pub(crate) fn anonymous() -> UserInfo {
    user("system:anonymous", &["system:unauthenticated"])
}

/// What anybody may ask.
pub(crate) fn is_public(path: &str) -> bool {
    matches!(path, "/version" | "/version/")
        || ["/readyz", "/livez", "/healthz"]
            .iter()
            .any(|p| path == *p || path.strip_prefix(p).is_some_and(|r| r.starts_with('/')))
}

pub(crate) fn is_master(user: &UserInfo) -> bool {
    user.groups.iter().flatten().any(|g| g == MASTERS)
}

/// The user the caller wants to be, if the caller may.
pub(crate) fn impersonate(server: &Inner, user: UserInfo, headers: &HeaderMap) -> Result<UserInfo> {
    let Some(name) = header(headers, "impersonate-user")? else {
        let others = |key: &http::HeaderName| key.as_str().starts_with("impersonate-");
        if headers.keys().any(others) {
            return Err(ApiError::bad_request("requested groups, uid or extras without impersonating a user"));
        }
        return Ok(user);
    };
    let groups = headers.get_all("impersonate-group").iter().map(readable).collect::<Result<Vec<String>>>()?;
    let may = |group: &str, resource: &str, namespace: Option<&str>, name: &str| {
        let what = rbac::Attributes::resource("impersonate", group, resource, namespace, Some(name));
        match rbac::allowed(server, &user, &what) {
            true => Ok(()),
            false => Err(forbidden(&user, &what)),
        }
    };
    match name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':')) {
        Some((namespace, account)) => may("", "serviceaccounts", Some(namespace), account)?,
        None => may("", "users", None, &name)?,
    }
    for group in &groups {
        may("", "groups", None, group)?;
    }
    let uid = header(headers, "impersonate-uid")?;
    if let Some(uid) = &uid {
        may(review::AUTHENTICATION, "uids", None, uid)?;
    }
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in headers {
        if let Some(key) = key.as_str().strip_prefix("impersonate-extra-") {
            let value = readable(value)?;
            may(review::AUTHENTICATION, &format!("userextras/{key}"), None, &value)?;
            extra.entry(key.to_owned()).or_default().push(value);
        }
    }
    let mut groups = groups;
    if groups.is_empty()
        && let Some((ns, _)) = name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'))
    {
        groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{ns}")]);
    }
    if name != "system:anonymous" && !groups.iter().any(|g| g == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    Ok(UserInfo { username: Some(name), groups: Some(groups), uid, extra: (!extra.is_empty()).then_some(extra) })
}

/// A header as text. One that is there and cannot be read must not be taken for one that is not there.
fn readable(value: &http::HeaderValue) -> Result<String> {
    String::from_utf8(value.as_bytes().to_vec())
        .map_err(|_| ApiError::bad_request("a header that says whom to impersonate is not UTF-8"))
}

fn header(headers: &HeaderMap, name: &str) -> Result<Option<String>> {
    let text = headers.get(name).map(readable).transpose()?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Whether the user may do this to a resource.
pub(crate) fn check(server: &Inner, user: &UserInfo, verb: Verb, at: &Resource) -> Result<()> {
    // Everybody may ask about themselves, as Kubernetes' role `system:basic-user` says.
    let about_self = verb == Verb::Create
        && at.plural.starts_with("selfsubject")
        && matches!(at.group.as_str(), review::AUTHENTICATION | review::AUTHORIZATION);
    if is_master(user) || about_self {
        return Ok(());
    }
    let resource = match &at.subresource {
        Some(sub) => format!("{}/{sub}", at.plural),
        None => at.plural.clone(),
    };
    let what =
        rbac::Attributes::resource(verb.as_str(), &at.group, &resource, at.namespace.as_deref(), at.name.as_deref());
    if rbac::allowed(server, user, &what) { Ok(()) } else { Err(forbidden(user, &what)) }
}

/// Whether the user may ask for a path that is no resource. Discovery is open to everybody who is somebody.
pub(crate) fn check_path(server: &Inner, user: &UserInfo, method: &Method, path: &str) -> Result<()> {
    // The issuer's documents hold public keys; Kubernetes shows them to every service account.
    let discovery =
        ["/api", "/apis", "/openapi", "/version", "/.well-known/openid-configuration", "/openid/v1/jwks", "/"]
            .iter()
            .any(|p| path == *p || (p.len() > 1 && path.strip_prefix(p).is_some_and(|rest| rest.starts_with('/'))));
    if discovery || is_public(path) || is_master(user) {
        return Ok(());
    }
    let what = rbac::Attributes::path(&method.as_str().to_lowercase(), path);
    if rbac::allowed(server, user, &what) {
        return Ok(());
    }
    let name = user.username.as_deref().unwrap_or("");
    Err(ApiError::ForbiddenPath(format!("User {name:?} cannot {} path {path:?}", what.verb)))
}

fn forbidden(user: &UserInfo, what: &rbac::Attributes) -> ApiError {
    let name = user.username.as_deref().unwrap_or("");
    let scope = match what.namespace.as_deref() {
        Some(ns) => format!("in the namespace {ns:?}"),
        None => "at the cluster scope".to_owned(),
    };
    ApiError::Forbidden {
        resource: ResourceId::new(&what.group, what.resource.split('/').next().unwrap_or("")),
        name: what.name.clone().unwrap_or_default(),
        why: format!(
            "User {name:?} cannot {} resource {:?} in API group {:?} {scope}",
            what.verb, what.resource, what.group
        ),
        causes: Vec::new(),
    }
}
