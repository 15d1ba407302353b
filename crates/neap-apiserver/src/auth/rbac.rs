//! Role-based access: whether the stored roles and bindings let a user do something. Additive only; nothing denies.
//!
//! Roles are read from the store for each decision: only people and service accounts come this way (controllers of
//! this process are masters), and a decision must never be older than the binding it rests on.

use super::is_master;
use crate::selector::LabelSelector;
use crate::server::{Exchange, Inner};
use crate::status::{ApiError, Result, invalid, not_supported, required};
use crate::storage;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as MetaSelector;
use kube_core::response::StatusCause;
use serde::Deserialize;
use serde_json::Value;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

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
        out.push(Grant { rules: rules_of(server, role, at), reason });
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

fn rules_of(server: &Inner, role: &RoleRef, namespace: Option<&str>) -> Vec<PolicyRule> {
    let key = match (role.kind.as_str(), namespace) {
        ("ClusterRole", _) => format!("{}{}", storage::root(GROUP, "clusterroles"), role.name),
        ("Role", Some(ns)) => format!("{}{ns}/{}", storage::root(GROUP, "roles"), role.name),
        _ => return Vec::new(),
    };
    let Some(role) = server.store.get(key.as_bytes()).and_then(|e| serde_json::from_slice::<Role>(&e.value).ok())
    else {
        return Vec::new();
    };
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
    rules
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
    let has = |list: &[String], item: &str| list.iter().any(|x| x == "*" || x == item);
    if !has(&rule.verbs, &what.verb) {
        return false;
    }
    if let Some(path) = &what.path {
        return rule.non_resource_urls.iter().flatten().any(|url| match url.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => url == path,
        });
    }
    let resources = rule.resources.as_deref().unwrap_or_default();
    let subresource = what.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let names = rule.resource_names.as_deref().unwrap_or_default();
    has(rule.api_groups.as_deref().unwrap_or_default(), &what.group)
        && (has(resources, &what.resource) || subresource.is_some_and(|s| resources.contains(&s)))
        && (names.is_empty() || what.name.as_ref().is_some_and(|n| names.contains(n)))
}

/// What must hold for roles and bindings beyond their schema.
pub(crate) fn validate(object: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let namespaced = !crate::metadata::text(object, "namespace").is_empty();
    let list = |v: &Value, key: &str| v.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    for (i, rule) in list(object, "rules").iter().enumerate() {
        let mut missing = |key: &str, why: &str| causes.push(required(&format!("rules[{i}].{key}"), why));
        let paths = !list(rule, "nonResourceURLs").is_empty();
        if list(rule, "verbs").is_empty() {
            missing("verbs", "verbs must contain at least one value");
        }
        if !paths && list(rule, "apiGroups").is_empty() {
            missing("apiGroups", "resource rules must supply at least one api group");
        }
        if !paths && list(rule, "resources").is_empty() {
            missing("resources", "resource rules must supply at least one resource");
        }
        if paths && namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            causes.push(invalid(&format!("rules[{i}].nonResourceURLs"), &rule["nonResourceURLs"], why));
        } else if paths && !(list(rule, "apiGroups").is_empty() && list(rule, "resources").is_empty()) {
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
    for (i, subject) in list(object, "subjects").iter().enumerate() {
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

/// Nobody may grant what they do not have: a role's rules, or a binding's role, must be covered by the caller's own.
pub(crate) fn check_escalation(x: &Exchange, object: &Value) -> Result<()> {
    if is_master(&x.user) {
        return Ok(());
    }
    let namespace = x.namespace();
    let (granted, verb, on, name) = match x.kind().plural.as_str() {
        "roles" | "clusterroles" => {
            let role: Role = Role::deserialize(object).map_err(ApiError::bad_request)?;
            let name = crate::metadata::text(object, "name").to_owned();
            (role.rules.unwrap_or_default(), "escalate", x.kind().plural.clone(), name)
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
    let missing = granted.iter().flat_map(atoms).find(|atom| !own.iter().any(|r| covers(r, atom)));
    match missing {
        None => Ok(()),
        Some(atom) => Err(ApiError::Forbidden {
            resource: x.kind().id(),
            name: crate::metadata::text(object, "name").to_owned(),
            why: format!(
                "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held: {} {} in {:?}",
                x.user.username.as_deref().unwrap_or(""),
                x.user.groups.as_deref().unwrap_or_default(),
                atom.verb,
                atom.path.as_deref().unwrap_or(&atom.resource),
                atom.group
            ),
            causes: Vec::new(),
        }),
    }
}

/// A rule as single permissions. A `*` in it stays a `*`, which only another `*` covers.
fn atoms(rule: &PolicyRule) -> Vec<Attributes> {
    let mut out = Vec::new();
    for verb in &rule.verbs {
        for path in rule.non_resource_urls.iter().flatten() {
            out.push(Attributes::path(verb, path));
        }
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                match rule.resource_names.as_deref() {
                    None | Some([]) => out.push(Attributes::resource(verb, group, resource, None, None)),
                    Some(names) => {
                        out.extend(names.iter().map(|n| Attributes::resource(verb, group, resource, None, Some(n))));
                    }
                }
            }
        }
    }
    out
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
