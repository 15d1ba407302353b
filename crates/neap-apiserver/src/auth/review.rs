//! The questions about access that Kubernetes answers as objects: who am I, may I, may they, whose token is this.

use super::{identity, rbac, rbac::Attributes};
use crate::kind::Kind;
use crate::server::Inner;
use crate::status::{ApiError, Result};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};

pub(crate) const AUTHENTICATION: &str = "authentication.k8s.io";
pub(crate) const AUTHORIZATION: &str = "authorization.k8s.io";

type Handler = fn(&Inner, Value, &UserInfo) -> Result<Value>;

pub(crate) fn register(server: &Arc<Inner>) {
    let kinds: [(&str, &str, &str, bool, Handler); 6] = [
        (AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews", false, whoami),
        (AUTHENTICATION, "TokenReview", "tokenreviews", false, token),
        (AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews", false, self_access),
        (AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews", false, self_rules),
        (AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", false, access),
        (AUTHORIZATION, "LocalSubjectAccessReview", "localsubjectaccessreviews", true, local_access),
    ];
    for (group, kind, plural, namespaced, handler) in kinds {
        // The registry is part of the server, so an answer must not keep the server alive.
        let weak: Weak<Inner> = Arc::downgrade(server);
        server.registry.insert(Kind::answered(
            group,
            "v1",
            kind,
            plural,
            namespaced,
            Arc::new(move |object, user| match weak.upgrade() {
                Some(server) => handler(&server, object, user),
                None => Err(ApiError::Unavailable("the server is stopping".into())),
            }),
        ));
    }
}

fn whoami(server: &Inner, mut review: Value, user: &UserInfo) -> Result<Value> {
    let now = json!(crate::time::rfc3339(server.now()));
    crate::metadata::of_mut(&mut review).insert("creationTimestamp".into(), now);
    review["status"] = json!({"userInfo": user});
    Ok(review)
}

fn token(server: &Inner, mut review: Value, _: &UserInfo) -> Result<Value> {
    let text = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or("").to_owned();
    if text.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = review
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    review["status"] = match identity::of_token(server, &text, &audiences) {
        Some(user) => {
            let told = super::token::audiences_met(server, &text, audiences);
            json!({"authenticated": true, "user": user, "audiences": told})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    };
    Ok(review)
}

fn self_access(server: &Inner, review: Value, user: &UserInfo) -> Result<Value> {
    decide(server, review, user)
}

/// The review that lives in a namespace answers about that namespace only: whoever may ask it may not ask about others.
fn local_access(server: &Inner, review: Value, user: &UserInfo) -> Result<Value> {
    let asked = review.pointer("/spec/resourceAttributes/namespace").and_then(Value::as_str).unwrap_or("");
    if review.pointer("/spec/nonResourceAttributes").is_some_and(|n| !n.is_null()) {
        let why = "disallowed on this kind of request";
        return Err(refused("spec.nonResourceAttributes", &review["spec"]["nonResourceAttributes"], why));
    }
    if asked != crate::metadata::text(&review, "namespace") {
        let why = "must match metadata.namespace";
        return Err(refused("spec.resourceAttributes.namespace", &json!(asked), why));
    }
    access(server, review, user)
}

fn access(server: &Inner, review: Value, _: &UserInfo) -> Result<Value> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let name = spec.get("user").and_then(Value::as_str).unwrap_or("");
    let groups = spec.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
    if name.is_empty() && groups.is_empty() {
        return Err(refused("spec.user", &json!(""), "at least one of user or group must be specified"));
    }
    let user = UserInfo {
        username: Some(name.to_owned()),
        groups: Some(groups.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        ..UserInfo::default()
    };
    decide(server, review, &user)
}

fn decide(server: &Inner, mut review: Value, user: &UserInfo) -> Result<Value> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let what = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(r), None) => {
            let sub = text(r, "subresource");
            let plural = text(r, "resource");
            let resource = if sub.is_empty() { plural } else { format!("{plural}/{sub}") };
            Attributes::resource(
                &text(r, "verb"),
                &text(r, "group"),
                &resource,
                Some(&text(r, "namespace")),
                Some(&text(r, "name")),
            )
        }
        (None, Some(n)) => Attributes::path(&text(n, "verb"), &text(n, "path")),
        _ => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(refused("spec.resourceAttributes", &Value::Null, why));
        }
    };
    review["status"] = match rbac::reason(server, user, &what) {
        _ if super::is_master(user) => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false}),
    };
    Ok(review)
}

/// Kubernetes does not say which kind of review it refuses.
fn refused(field: &str, value: &Value, why: &str) -> ApiError {
    let causes = vec![crate::status::invalid(field, value, why)];
    ApiError::Invalid { group: AUTHORIZATION.into(), kind: String::new(), name: String::new(), causes }
}

fn self_rules(server: &Inner, mut review: Value, user: &UserInfo) -> Result<Value> {
    let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or("").to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rbac::rules(server, user, Some(&namespace)) {
        match rule.non_resource_urls {
            Some(urls) if !urls.is_empty() => paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": urls})),
            _ => {
                let mut r = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups.unwrap_or_default(),
                    "resources": rule.resources.unwrap_or_default()});
                if let Some(names) = rule.resource_names.filter(|n| !n.is_empty()) {
                    r["resourceNames"] = json!(names);
                }
                resources.push(r);
            }
        }
    }
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    Ok(review)
}
