//! What this server serves, as clients find out: `/api`, `/apis` and below, in the plain and in the aggregated form,
//! and the small documents beside them (version, health, OpenAPI).

use crate::codec::{self, Body, View, Wanted};
use crate::kind::{Kind, Semantics, Version};
use crate::registry::Kinds;
use crate::request::Query;
use crate::server::Inner;
use crate::status::{ApiError, Result};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::sync::Arc;

const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// Kubernetes' order of versions: v2 before v1 before v1beta2 before v1beta1 before v1alpha1, then by name.
pub(crate) fn version_order(a: &str, b: &str) -> Ordering {
    rank(b).cmp(&rank(a)).then_with(|| a.cmp(b))
}

fn rank(name: &str) -> (bool, u8, u64, u64) {
    let parse = || {
        let rest = name.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..end].parse().ok()?;
        let (stage, minor) = match &rest[end..] {
            "" => (2, "0"),
            s if s.starts_with("beta") => (1, &s[4..]),
            s if s.starts_with("alpha") => (0, &s[5..]),
            _ => return None,
        };
        Some((true, stage, major, minor.parse().ok()?))
    };
    parse().unwrap_or((false, 0, 0, 0))
}

pub(crate) fn answer(
    server: &Arc<Inner>,
    path: &[String],
    request: &Request<Bytes>,
    query: &Query,
) -> Result<Response<Body>> {
    let of_api = matches!(path.first().map(String::as_str), Some("api" | "apis"));
    if *request.method() != Method::GET && (of_api || *request.method() != Method::HEAD) {
        return Err(ApiError::MethodNotAllowed);
    }
    let kinds = server.registry.kinds();
    let pretty = Wanted { pretty: true, ..Wanted::default() };
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let value = match path.as_slice() {
        [] => json!({"paths": paths(&kinds)}),
        ["api"] | ["apis"] if aggregated(request).is_some() => {
            return Ok(aggregate(&kinds, path[0] == "api", aggregated(request).unwrap_or(AGGREGATED_V2)));
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs":
            [{"clientCIDR": "0.0.0.0/0", "serverAddress": server.config.address}]}),
        ["apis"] => {
            let groups: Vec<Value> =
                kinds.groups().iter().filter(|g| !g.is_empty()).map(|g| group(&kinds, g)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", version] => resources(&kinds, "", version)?,
        ["apis", name] if kinds.groups().iter().any(|g| g == name) => {
            let mut value = group(&kinds, name);
            value["kind"] = json!("APIGroup");
            value["apiVersion"] = json!("v1");
            value
        }
        ["apis", name, version] => resources(&kinds, name, version)?,
        ["version"] => return Ok(codec::respond(200, &version(&server.config.git_version), pretty)),
        ["readyz" | "livez" | "healthz", ..] => return Ok(health(server, &path, query)),
        ["openapi", rest @ ..] => return crate::documents::answer(server, &kinds, rest, request),
        [".well-known", "openid-configuration"] => signer(server)?.discovery(),
        ["openid", "v1", "jwks"] => signer(server)?.jwks(),
        _ => return Err(ApiError::NoSuchPage),
    };
    match codec::wanted(request.headers(), query.pretty, true) {
        Ok(wanted) if wanted.view == View::Whole => Ok(codec::respond(200, &value, wanted)),
        _ => Err(ApiError::NotAcceptable { accepted: codec::NATIVE }),
    }
}

fn signer(server: &Inner) -> Result<&crate::auth::token::Signer> {
    server.config.signer.as_deref().ok_or(ApiError::NoSuchPage)
}

fn paths(kinds: &Kinds) -> Vec<String> {
    let mut out = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for group in kinds.groups().iter().filter(|g| !g.is_empty()) {
        out.push(format!("/apis/{group}"));
        out.extend(versions(kinds, group).into_iter().map(|v| format!("/apis/{group}/{v}")));
    }
    out.extend(["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    out
}

fn versions(kinds: &Kinds, group: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for kind in kinds.of_group(group) {
        for v in kind.versions.iter().filter(|v| v.served) {
            if !out.contains(&v.name) {
                out.push(v.name.clone());
            }
        }
    }
    out.sort_by(|a, b| version_order(a, b));
    out
}

fn group(kinds: &Kinds, name: &str) -> Value {
    let list: Vec<Value> =
        versions(kinds, name).iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "preferredVersion": list.first(), "versions": list})
}

pub(crate) fn verbs(kind: &Kind) -> &'static [&'static str] {
    if kind.read.is_some() {
        return crate::verbs::computed::VERBS;
    }
    if kind.answer.is_some() {
        &["create"]
    } else if kind.semantics == Semantics::Custom {
        &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
    } else if !kind.delete_collection {
        &["create", "delete", "get", "list", "patch", "update", "watch"]
    } else {
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    }
}

/// The group, version and kind that a subresource speaks.
type Speaks = (String, String, String);

/// Subresources of a version: name, what it speaks, verbs.
fn subresources(kind: &Kind, version: &Version) -> Vec<(String, Speaks, Vec<&'static str>)> {
    use crate::kind::Role;
    let own = || (kind.group.clone(), version.name.clone(), kind.kind.clone());
    let of = |g: &str, v: &str, k: &str| (g.to_owned(), v.to_owned(), k.to_owned());
    let mut out = Vec::new();
    if kind.role() == Role::Pods {
        out.push(("binding".to_owned(), of("", "v1", "Binding"), vec!["create"]));
        out.push(("eviction".to_owned(), of("policy", "v1", "Eviction"), vec!["create"]));
    }
    if kind.role() == Role::Namespaces {
        out.push(("finalize".to_owned(), own(), vec!["update"]));
    }
    let custom = kind.semantics == Semantics::Custom;
    let status = ("status".to_owned(), own(), vec!["get", "patch", "update"]);
    out.extend((version.status && custom).then(|| status.clone()));
    if version.scale.is_some() {
        out.push(("scale".to_owned(), of("autoscaling", "v1", "Scale"), vec!["get", "patch", "update"]));
    }
    out.extend((version.status && !custom).then_some(status));
    if kind.role() == Role::ServiceAccounts {
        out.push(("token".to_owned(), of("authentication.k8s.io", "v1", "TokenRequest"), vec!["create"]));
    }
    for name in kind.connects.keys() {
        // A conversation with a pod begins with options of its own kind; a log is only read.
        let options = match (kind.role(), name.as_str()) {
            (Role::Pods, "exec") => Some("PodExecOptions"),
            (Role::Pods, "attach") => Some("PodAttachOptions"),
            (Role::Pods, "portforward") => Some("PodPortForwardOptions"),
            _ => None,
        };
        let speaks = options.map_or_else(own, |options| of(&kind.group, &version.name, options));
        out.push((name.clone(), speaks, if name == "log" { vec!["get"] } else { vec!["create", "get"] }));
    }
    out
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Result<Value> {
    let mut list = Vec::new();
    for kind in kinds.of_group(group) {
        let Some(v) = kind.versions.iter().find(|v| v.served && v.name == version) else { continue };
        let mut entry = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": verbs(kind)});
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        list.push(entry);
        for (name, (g, gv, k), verbs) in subresources(kind, v) {
            let mut entry = json!({"name": format!("{}/{name}", kind.plural), "singularName": "",
                "namespaced": kind.namespaced, "kind": k, "verbs": verbs});
            if (g.as_str(), gv.as_str()) != (group, version) {
                entry["group"] = json!(g);
                entry["version"] = json!(gv);
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return Err(kinds.missing(group));
    }
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": crate::kind::api_version(group, version), "resources": list}))
}

/// The aggregated form the client asks for, in its order of preference.
fn aggregated(request: &Request<Bytes>) -> Option<&'static str> {
    for range in codec::media_ranges(request.headers()) {
        if range.media == "application/json" {
            match (range.param("as"), range.param("v")) {
                (Some("APIGroupDiscoveryList"), Some("v2")) => return Some(AGGREGATED_V2),
                (Some("APIGroupDiscoveryList"), Some("v2beta1")) => return Some(AGGREGATED_V2BETA1),
                (None, _) => return None,
                _ => {}
            }
        }
    }
    None
}

fn aggregate(kinds: &Kinds, core: bool, media: &'static str) -> Response<Body> {
    let groups = kinds.groups().iter().filter(|g| g.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|g| {
            let versions: Vec<Value> = versions(kinds, g)
                .iter()
                .map(|v| json!({"version": v, "freshness": "Current", "resources": aggregated_resources(kinds, g, v)}))
                .collect();
            let metadata = if g.is_empty() { json!({}) } else { json!({"name": g}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let version = if media == AGGREGATED_V2 { "v2" } else { "v2beta1" };
    let value = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items});
    let mut response = codec::respond(200, &value, Wanted::default());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_resources(kinds: &Kinds, group: &str, version: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for kind in kinds.of_group(group) {
        let Some(v) = kind.versions.iter().find(|v| v.served && v.name == version) else { continue };
        let gvk = |g: &str, v: &str, k: &str| json!({"group": g, "version": v, "kind": k});
        let subs: Vec<Value> = subresources(kind, v)
            .into_iter()
            .map(|(name, (g, v, k), verbs)| json!({"subresource": name, "responseKind": gvk(&g, &v, &k), "verbs": verbs}))
            .collect();
        let mut entry = json!({"resource": kind.plural, "responseKind": gvk(group, version, &kind.kind),
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": kind.singular, "verbs": verbs(kind)});
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        if !subs.is_empty() {
            entry["subresources"] = json!(subs);
        }
        out.push(entry);
    }
    out
}

fn version(git: &str) -> Value {
    let mut numbers = git.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    json!({"major": major, "minor": minor, "gitVersion": git, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform())})
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn health(server: &Inner, path: &[&str], query: &Query) -> Response<Body> {
    // A transaction without steps changes nothing, and is refused exactly when writes are.
    let broken = server.store.commit(neap_store::Txn::new()).err().map(|e| e.to_string());
    if let Some(why) = &broken {
        tracing::warn!(why, "the store takes no writes");
    }
    let ok = broken.is_none();
    let code = if ok { 200 } else { 500 };
    let verbose = query.first("verbose").is_some() || !ok;
    let mut text = String::new();
    if verbose && path.len() == 1 {
        text.push_str("[+]ping ok\n");
        match &broken {
            None => text.push_str("[+]store ok\n"),
            // Anybody may ask, so only the log knows more.
            Some(_) => text.push_str("[-]store failed: reason withheld\n"),
        }
        text.push_str(&format!("{} check {}\n", path[0], if ok { "passed" } else { "failed" }));
    } else {
        text.push_str("ok");
    }
    codec::typed(code, "text/plain; charset=utf-8", codec::full(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_kubernetes_order() {
        let mut all = ["v1alpha1", "foo", "v1", "v11beta2", "v10", "v2", "v1beta1", "bar", "v12alpha1", "v10beta3"];
        all.sort_by(|a, b| version_order(a, b));
        assert_eq!(all, ["v10", "v2", "v1", "v11beta2", "v10beta3", "v1beta1", "v12alpha1", "v1alpha1", "bar", "foo"]);
    }
}
