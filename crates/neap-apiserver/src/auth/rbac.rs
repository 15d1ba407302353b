//! Role-based access: whether the stored roles and bindings let a user do something. Additive only; nothing denies.
//!
//! Roles are read from the store for each decision: only people and service accounts come this way (controllers of
//! this process are masters), and a decision must never be older than the binding it rests on.

use super::is_master;
use crate::limits::{FAULTS, NAME, cut};
use crate::selector::LabelSelector;
use crate::server::{Exchange, Inner};
use crate::status::{ApiError, ResourceId, Result, invalid, not_supported, required};
use crate::storage;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as MetaSelector;
use kube_core::response::StatusCause;
use serde::Deserialize;
use serde_json::Value;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// Single permissions of a role that are compared with the caller's own, one by one. The largest role that Kubernetes
/// ships comes to some hundreds.
const PERMISSIONS: usize = 20_000;

/// What somebody wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub verb: String,
    pub group: String,
    /// With the subresource after a slash.
    pub resource: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// Set for a request that is about no resource; then the four above are empty.
    pub path: Option<String>,
}

impl Attributes {
    pub(crate) fn resource(verb: &str, group: &str, resource: &str, ns: Option<&str>, name: Option<&str>) -> Self {
        Self {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: ns.filter(|n| !n.is_empty()).map(str::to_owned),
            name: name.filter(|n| !n.is_empty()).map(str::to_owned),
            path: None,
        }
    }

    pub(crate) fn path(verb: &str, path: &str) -> Self {
        Self { verb: verb.to_owned(), path: Some(path.to_owned()), ..Self::default() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Role {
    #[serde(default)]
    rules: Option<Vec<PolicyRule>>,
    #[serde(default)]
    aggregation_rule: Option<Aggregation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Aggregation {
    #[serde(default)]
    cluster_role_selectors: Vec<MetaSelector>,
}

pub(crate) fn allowed(server: &Inner, user: &UserInfo, what: &Attributes) -> bool {
    is_master(user) || reason(server, user, what).is_some()
}

/// Why a user who is no master may do something, if so: the binding that grants it, in Kubernetes' words.
pub(crate) fn reason(server: &Inner, user: &UserInfo, what: &Attributes) -> Option<String> {
    let found = grants(server, user, what.namespace.as_deref());
    found.into_iter().find(|grant| grant.rules.iter().any(|rule| covers(rule, what))).map(|grant| grant.reason)
}

/// The rules that hold for a user in a namespace, and everywhere.
pub(crate) fn rules(server: &Inner, user: &UserInfo, namespace: Option<&str>) -> Vec<PolicyRule> {
    if is_master(user) {
        let star = || Some(vec!["*".to_owned()]);
        let all =
            PolicyRule { verbs: vec!["*".into()], api_groups: star(), resources: star(), ..PolicyRule::default() };
        let paths = PolicyRule { verbs: vec!["*".into()], non_resource_urls: star(), ..PolicyRule::default() };
        return vec![all, paths];
    }
    grants(server, user, namespace).into_iter().flat_map(|grant| grant.rules).collect()
}

/// What one binding gives.
struct Grant {
    rules: Vec<PolicyRule>,
    reason: String,
}

fn grants(server: &Inner, user: &UserInfo, namespace: Option<&str>) -> Vec<Grant> {
    let mut out = Vec::new();
    let mut add = |kind: &str, name: String, binding: &Binding, at: Option<&str>| {
        let Some(subject) = binding.subjects.iter().flatten().find(|s| is_subject(s, user, at.unwrap_or(""))) else {
            return;
        };
        let role = &binding.role_ref;
        let whom = match (subject.kind.as_str(), subject.namespace.as_deref().or(at)) {
            ("ServiceAccount", Some(ns)) => format!("{}/{ns}", subject.name),
            _ => subject.name.clone(),
        };
        let reason =
            format!("RBAC: allowed by {kind} {name:?} of {} {:?} to {} {whom:?}", role.kind, role.name, subject.kind);
        out.push(Grant { rules: rules_of(server, role, at).unwrap_or_default(), reason });
    };
    for (name, binding) in read::<Binding>(server, "clusterrolebindings", None) {
        add("ClusterRoleBinding", name, &binding, None);
    }
    if let Some(namespace) = namespace {
        for (name, binding) in read::<Binding>(server, "rolebindings", Some(namespace)) {
            add("RoleBinding", format!("{name}/{namespace}"), &binding, Some(namespace));
        }
    }
    out
}

/// The stored objects of a kind with their names; one that cannot be read grants nothing.
fn read<T: for<'de> Deserialize<'de>>(server: &Inner, plural: &str, namespace: Option<&str>) -> Vec<(String, T)> {
    let mut prefix = storage::root(GROUP, plural);
    if let Some(namespace) = namespace {
        prefix.push_str(namespace);
        prefix.push('/');
    }
    let page = server.store.range(prefix.as_bytes(), None, usize::MAX, None);
    let entries = page.map(|p| p.entries).unwrap_or_default();
    let named = |e: &neap_store::Entry| {
        let name = String::from_utf8_lossy(&e.key[prefix.len()..]).into_owned();
        Some((name, serde_json::from_slice(&e.value).ok()?))
    };
    entries.iter().filter_map(named).collect()
}

/// The rules of a role; `None` when there is no such role.
fn rules_of(server: &Inner, role: &RoleRef, namespace: Option<&str>) -> Option<Vec<PolicyRule>> {
    let key = match (role.kind.as_str(), namespace) {
        ("ClusterRole", _) => format!("{}{}", storage::root(GROUP, "clusterroles"), role.name),
        ("Role", Some(ns)) => format!("{}{ns}/{}", storage::root(GROUP, "roles"), role.name),
        _ => return None,
    };
    let role: Role = serde_json::from_slice(&server.store.get(key.as_bytes())?.value).ok()?;
    let mut rules = role.rules.unwrap_or_default();
    let selectors = role.aggregation_rule.map(|a| a.cluster_role_selectors).unwrap_or_default();
    if !selectors.is_empty()
        && let Ok(page) = server.store.range(storage::root(GROUP, "clusterroles").as_bytes(), None, usize::MAX, None)
    {
        for entry in page.entries {
            let labels = storage::labels(&entry.value);
            let chosen = selectors.iter().any(|s| selector(s).is_some_and(|s| s.matches(&labels)));
            if chosen && let Ok(other) = serde_json::from_slice::<Role>(&entry.value) {
                rules.extend(other.rules.unwrap_or_default());
            }
        }
    }
    Some(rules)
}

fn selector(meta: &MetaSelector) -> Option<LabelSelector> {
    let mut terms: Vec<String> = meta.match_labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    for e in meta.match_expressions.iter().flatten() {
        let values = e.values.clone().unwrap_or_default().join(",");
        terms.push(match e.operator.as_str() {
            "In" => format!("{} in ({values})", e.key),
            "NotIn" => format!("{} notin ({values})", e.key),
            "Exists" => e.key.clone(),
            _ => format!("!{}", e.key),
        });
    }
    LabelSelector::parse(&terms.join(",")).ok()
}

fn is_subject(subject: &Subject, user: &UserInfo, binding_namespace: &str) -> bool {
    let name = user.username.as_deref().unwrap_or("");
    match subject.kind.as_str() {
        "User" => subject.name == name,
        "Group" => user.groups.iter().flatten().any(|g| *g == subject.name),
        "ServiceAccount" => {
            let namespace = subject.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(binding_namespace);
            name == format!("system:serviceaccount:{namespace}:{}", subject.name)
        }
        _ => false,
    }
}

fn covers(rule: &PolicyRule, what: &Attributes) -> bool {
    holds(
        rule,
        &Asked {
            verb: &what.verb,
            group: &what.group,
            resource: &what.resource,
            name: what.name.as_deref(),
            path: what.path.as_deref(),
        },
    )
}

/// One permission, borrowed: what of [`Attributes`] a rule speaks about.
#[derive(Default, Clone, Copy)]
struct Asked<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    name: Option<&'a str>,
    path: Option<&'a str>,
}

fn holds(rule: &PolicyRule, what: &Asked<'_>) -> bool {
    let has = |list: &[String], item: &str| list.iter().any(|x| x == "*" || x == item);
    if !has(&rule.verbs, what.verb) {
        return false;
    }
    if let Some(path) = what.path {
        return rule.non_resource_urls.iter().flatten().any(|url| match url.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => url == path,
        });
    }
    let resources = rule.resources.as_deref().unwrap_or_default();
    let subresource = what.resource.split_once('/').map(|(_, sub)| sub);
    let names = rule.resource_names.as_deref().unwrap_or_default();
    has(rule.api_groups.as_deref().unwrap_or_default(), what.group)
        && (has(resources, what.resource)
            || subresource.is_some_and(|sub| resources.iter().any(|r| r.strip_prefix("*/") == Some(sub))))
        && (names.is_empty() || what.name.is_some_and(|name| names.iter().any(|n| n == name)))
}

/// What must hold for roles and bindings beyond their schema.
pub(crate) fn validate(object: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let namespaced = !crate::metadata::text(object, "namespace").is_empty();
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    for (i, rule) in items(object, "rules").iter().enumerate() {
        if causes.len() >= FAULTS {
            break;
        }
        let mut missing = |key: &str, why: &str| causes.push(required(&format!("rules[{i}].{key}"), why));
        let paths = !items(rule, "nonResourceURLs").is_empty();
        if items(rule, "verbs").is_empty() {
            missing("verbs", "verbs must contain at least one value");
        }
        if !paths && items(rule, "apiGroups").is_empty() {
            missing("apiGroups", "resource rules must supply at least one api group");
        }
        if !paths && items(rule, "resources").is_empty() {
            missing("resources", "resource rules must supply at least one resource");
        }
        if paths && namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            causes.push(invalid(&format!("rules[{i}].nonResourceURLs"), &rule["nonResourceURLs"], why));
        } else if paths && !(items(rule, "apiGroups").is_empty() && items(rule, "resources").is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            causes.push(invalid(&format!("rules[{i}].nonResourceURLs"), &rule["nonResourceURLs"], why));
        }
    }
    let Some(role) = object.get("roleRef") else { return causes };
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if text(role, "apiGroup") != GROUP {
        causes.push(not_supported("roleRef.apiGroup", &Value::from(text(role, "apiGroup")), &[GROUP]));
    }
    if !kinds.contains(&text(role, "kind").as_str()) {
        causes.push(not_supported("roleRef.kind", &Value::from(text(role, "kind")), kinds));
    }
    if text(role, "name").is_empty() {
        causes.push(required("roleRef.name", ""));
    }
    for (i, subject) in items(object, "subjects").iter().enumerate() {
        if causes.len() >= FAULTS {
            break;
        }
        let at = |key: &str| format!("subjects[{i}].{key}");
        if text(subject, "name").is_empty() {
            causes.push(required(&at("name"), ""));
        }
        match text(subject, "kind").as_str() {
            "ServiceAccount" if !namespaced && text(subject, "namespace").is_empty() => {
                causes.push(required(&at("namespace"), ""));
            }
            "ServiceAccount" | "User" | "Group" => {}
            other => causes.push(not_supported(&at("kind"), &Value::from(other), &["ServiceAccount", "User", "Group"])),
        }
    }
    if old.and_then(|old| old.get("roleRef")).is_some_and(|before| before != role) {
        causes.push(invalid("roleRef", role, "cannot change roleRef"));
    }
    causes
}

fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Nobody may grant what they do not have: a role's rules, or a binding's role, must be covered by the caller's own.
pub(crate) fn check_escalation(x: &Exchange, object: &Value, old: Option<&Value>) -> Result<()> {
    // Who leaves the rights as they are grants nothing.
    let same = |key: &str| old.is_some_and(|old| old.get(key) == object.get(key));
    if is_master(&x.user) || ["rules", "aggregationRule", "roleRef", "subjects"].into_iter().all(same) {
        return Ok(());
    }
    let namespace = x.namespace();
    let (granted, verb, on, name) = match x.kind().plural.as_str() {
        "roles" | "clusterroles" => {
            let role: Role = Role::deserialize(object).map_err(ApiError::bad_request)?;
            let name = crate::metadata::text(object, "name").to_owned();
            let mut rules = role.rules.unwrap_or_default();
            if role.aggregation_rule.is_some() && !same("aggregationRule") {
                // What it will gather nobody knows today, so it takes every right.
                let star = || Some(vec!["*".to_owned()]);
                let verbs = vec!["*".to_owned()];
                rules.push(PolicyRule { verbs, api_groups: star(), resources: star(), ..PolicyRule::default() });
                rules.push(PolicyRule {
                    verbs: vec!["*".to_owned()],
                    non_resource_urls: star(),
                    ..PolicyRule::default()
                });
            }
            (Some(rules), "escalate", x.kind().plural.clone(), name)
        }
        "rolebindings" | "clusterrolebindings" => {
            let binding = Binding::deserialize(object).map_err(ApiError::bad_request)?;
            let on = if binding.role_ref.kind == "ClusterRole" { "clusterroles" } else { "roles" };
            let rules = rules_of(&x.server, &binding.role_ref, namespace);
            (rules, "bind", on.to_owned(), binding.role_ref.name)
        }
        _ => return Ok(()),
    };
    let own = rules(&x.server, &x.user, namespace);
    let excused = Attributes::resource(verb, GROUP, &on, namespace, Some(&name));
    if own.iter().any(|r| covers(r, &excused)) {
        return Ok(());
    }
    // A role that comes later would give what nobody judged.
    let Some(granted) = granted else {
        return Err(ApiError::NotFound { resource: ResourceId::new(GROUP, &on), name });
    };
    let refused = |why: String| {
        let name = crate::metadata::text(object, "name").to_owned();
        Err(ApiError::Forbidden { resource: x.kind().id(), name, why, causes: Vec::new() })
    };
    let count = granted.iter().map(permissions).fold(0, usize::saturating_add);
    if count > PERMISSIONS {
        return refused(format!(
            "its rules come to {count} permissions (verbs times groups times resources times names), more than the \
             {PERMISSIONS} that are compared with your own"
        ));
    }
    let missing = granted.iter().find_map(|rule| first_missing(rule, |atom| own.iter().any(|r| holds(r, atom))));
    match missing {
        None => Ok(()),
        Some(Asked { verb, group, resource, path, .. }) => refused(format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held: {} {} in {:?}",
            x.user.username.as_deref().unwrap_or(""),
            x.user.groups.as_deref().unwrap_or_default(),
            cut(verb, NAME),
            cut(path.unwrap_or(resource), NAME),
            cut(group, NAME)
        )),
    }
}

/// How many single permissions a rule comes to.
fn permissions(rule: &PolicyRule) -> usize {
    let of = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
    let names = of(&rule.resource_names).max(1);
    let objects = of(&rule.api_groups).saturating_mul(of(&rule.resources)).saturating_mul(names);
    rule.verbs.len().saturating_mul(objects.saturating_add(of(&rule.non_resource_urls)))
}

/// The first single permission of a rule that is not held, without making a list of them: a rule of some kilobytes may
/// come to millions. A `*` in it stays a `*`, which only another `*` covers.
fn first_missing<'a>(rule: &'a PolicyRule, is_held: impl Fn(&Asked<'_>) -> bool) -> Option<Asked<'a>> {
    let nameless = [None];
    let named: Vec<Option<&str>> = rule.resource_names.iter().flatten().map(|name| Some(name.as_str())).collect();
    let names = if named.is_empty() { &nameless[..] } else { &named[..] };
    for verb in &rule.verbs {
        for path in rule.non_resource_urls.iter().flatten() {
            let asked = Asked { verb, path: Some(path), ..Asked::default() };
            if !is_held(&asked) {
                return Some(asked);
            }
        }
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for name in names {
                    let asked = Asked { verb, group, resource, name: *name, path: None };
                    if !is_held(&asked) {
                        return Some(asked);
                    }
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn coverage() {
        let check = |rule: Value, what: Attributes, want: bool| {
            let rule: PolicyRule = serde_json::from_value(rule).unwrap();
            assert_eq!(covers(&rule, &what), want, "{rule:?} {what:?}");
        };
        let get = |resource: &str, name: Option<&str>| Attributes::resource("get", "apps", resource, Some("ns"), name);
        let rule = json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["deployments", "*/status"]});
        check(rule.clone(), get("deployments", None), true);
        check(rule.clone(), get("deployments/scale", None), false);
        check(rule.clone(), get("replicasets/status", None), true);
        check(rule.clone(), Attributes::resource("get", "", "deployments", None, None), false);
        check(rule, Attributes::resource("list", "apps", "deployments", None, None), false);
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]});
        check(named.clone(), get("deployments", Some("a")), true);
        check(named.clone(), get("deployments", Some("b")), false);
        check(named, get("deployments", None), false);
        let path = json!({"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]});
        check(path.clone(), Attributes::path("get", "/metrics"), true);
        check(path.clone(), Attributes::path("get", "/logs/x"), true);
        check(path, Attributes::path("get", "/other"), false);
    }

    #[test]
    fn subjects() {
        let user = super::super::user("system:serviceaccount:ns:sa", &["g"]);
        let check = |kind: &str, name: &str, ns: Option<&str>, want: bool| {
            let subject =
                Subject { kind: kind.into(), name: name.into(), namespace: ns.map(Into::into), api_group: None };
            assert_eq!(is_subject(&subject, &user, "ns"), want, "{subject:?}");
        };
        check("ServiceAccount", "sa", Some("ns"), true);
        check("ServiceAccount", "sa", None, true);
        check("ServiceAccount", "sa", Some("other"), false);
        check("Group", "g", None, true);
        check("User", "sa", None, false);
    }
}
