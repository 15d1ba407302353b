//! `neap install`: what a cluster must have before the roles can run on it or against it. Everything is applied on the
//! server's side under one field manager, so that it can be run again, and what users set stays theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client};
use neap_api::keys::config;
use neap_api::{autoscaling, caching, networking, serving};
use serde_json::{Value, json};

use super::{Error, connect, webhook};
use crate::args;

const MANAGER: &str = "neap-install";
/// How long the API server may take to serve a new kind.
const ESTABLISHED: Duration = Duration::from_secs(60);
/// The account of controllers, autoscaler and webhook; the gateway's only reads.
const CONTROLLER: &str = "controller";
const GATEWAY: &str = "gateway";

pub(super) async fn run(flags: args::Install, env: &BTreeMap<String, String>) -> Result<(), Error> {
    if let Some(domain) = flags.domain.as_ref().filter(|domain| !neap_logic::names::is_dns1123_subdomain(domain)) {
        return Err(Error::Domain(domain.clone()));
    }
    let definitions = definitions();
    let objects = objects(flags.domain.as_deref());
    if flags.print {
        return print(definitions.iter().chain(&objects));
    }
    let client = connect(&flags.cluster, env).await?;
    for definition in &definitions {
        apply(&client, definition).await?;
    }
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        match tokio::time::timeout(ESTABLISHED, established).await {
            Ok(Ok(_)) => {}
            _ => return Err(Error::NotEstablished(name)),
        }
    }
    for object in &objects {
        apply(&client, object).await?;
    }
    println!("{} definitions and {} objects are in place", definitions.len(), objects.len());
    Ok(())
}

fn print<'a>(objects: impl Iterator<Item = &'a Value>) -> Result<(), Error> {
    let mut out = String::new();
    for object in objects {
        out.push_str("---\n");
        out.push_str(&serde_yaml::to_string(object).expect("JSON is YAML"));
    }
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes()).map_err(Error::Print)
}

/// Knative's kinds. Those with old versions are converted by the webhook, which puts its certificate in when it runs.
fn definitions() -> Vec<Value> {
    let ours = neap_api::crds().filter(|definition| OURS.contains(&definition.spec.group.as_str()));
    ours.map(|definition| {
        let is_converted = definition.spec.versions.len() > 1;
        let mut value = serde_json::to_value(definition).expect("a definition is JSON");
        value["apiVersion"] = "apiextensions.k8s.io/v1".into();
        value["kind"] = "CustomResourceDefinition".into();
        if is_converted {
            value["spec"]["conversion"] = json!({
                "strategy": "Webhook",
                "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"service": {
                    "namespace": config::NAMESPACE, "name": webhook::SERVICE, "port": 443, "path": webhook::CONVERSION,
                }}},
            });
        }
        value
    })
    .collect()
}

async fn apply(client: &Client, object: &Value) -> Result<(), Error> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = match object.pointer("/metadata/namespace").and_then(Value::as_str) {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let written = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await;
    written.map(drop).map_err(|source| Error::Install { kind, name, source: Box::new(source) })
}

/// Namespace, accounts, roles, config-maps; in an order in which each finds what it needs.
fn objects(domain: Option<&str>) -> Vec<Value> {
    let labels =
        json!({"app.kubernetes.io/name": "knative-serving", "app.kubernetes.io/version": env!("CARGO_PKG_VERSION")});
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": config::NAMESPACE, "labels": labels},
    })];
    for account in [CONTROLLER, GATEWAY] {
        objects.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": config::NAMESPACE, "labels": labels},
        }));
    }
    for (name, account, rules) in [("neap-controller", CONTROLLER, acting()), ("neap-gateway", GATEWAY, reading())] {
        objects.push(json!({
            "apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": rules,
        }));
        objects.push(json!({
            "apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": {"name": name, "labels": labels},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": config::NAMESPACE}],
        }));
    }
    objects.extend(for_people());
    for map in neap_logic::config::examples(domain.unwrap_or(NO_DOMAIN)) {
        let mut map = serde_json::to_value(map).expect("a config-map is JSON");
        map["apiVersion"] = "v1".into();
        map["kind"] = "ConfigMap".into();
        map["metadata"]["namespace"] = config::NAMESPACE.into();
        if domain.is_none()
            && let Some(data) = map["data"].as_object_mut()
        {
            data.remove(NO_DOMAIN);
        }
        objects.push(map);
    }
    objects
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// Stands for a domain where none was given.
const NO_DOMAIN: &str = "invalid";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete"];
/// Every group of Knative's own kinds.
const OURS: &[&str] = &[serving::GROUP, autoscaling::GROUP, networking::GROUP, caching::GROUP];

/// What controllers, autoscaler and webhook do (D17.1).
fn acting() -> Value {
    json!([
        rule(&[""], &["configmaps", "endpoints", "endpoints/restricted", "events", "secrets", "services"], WRITE),
        rule(&[""], &["namespaces", "pods", "serviceaccounts"], READ),
        // Only dryly: whether the cluster would take a Service's pods.
        rule(&[""], &["pods"], &["create"]),
        rule(&[""], &["namespaces/finalizers", "services/finalizers"], &["update"]),
        rule(&["discovery.k8s.io"], &["endpointslices", "endpointslices/restricted"], WRITE),
        rule(&["apps"], &["deployments", "deployments/finalizers", "deployments/scale"], WRITE),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], WRITE),
        rule(&["coordination.k8s.io"], &["leases"], WRITE),
        rule(&["events.k8s.io"], &["events"], &["create", "patch", "update"]),
        rule(
            &["admissionregistration.k8s.io"],
            &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
            &["get", "create", "update", "patch"],
        ),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &["get", "list", "watch", "patch"]),
        rule(
            OURS,
            &["*", "*/status", "*/finalizers"],
            &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
        ),
    ])
}

/// What a gateway looks at.
fn reading() -> Value {
    json!([
        rule(&[""], &["configmaps", "secrets", "services"], READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(OURS, &["ingresses", "revisions"], READ),
        rule(&[""], &["events"], &["create", "patch"]),
    ])
}

/// Knative's kinds in the roles that a cluster has for its users.
fn for_people() -> Vec<Value> {
    let kinds = &["*"];
    [("admin", &["*"][..]), ("edit", WRITE), ("view", READ)]
        .into_iter()
        .map(|(role, verbs)| {
            json!({
                "apiVersion": RBAC, "kind": "ClusterRole",
                "metadata": {
                    "name": format!("knative-serving-namespaced-{role}"),
                    "labels": {
                        "app.kubernetes.io/name": "knative-serving",
                        format!("rbac.authorization.k8s.io/aggregate-to-{role}"): "true",
                    },
                },
                "rules": [rule(OURS, kinds, verbs)],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_can_be_applied() {
        for object in objects(Some("example.com")) {
            let has = |pointer: &str| object.pointer(pointer).is_some_and(Value::is_string);
            assert!(has("/apiVersion") && has("/kind") && has("/metadata/name"), "{object}");
        }
    }

    #[test]
    fn a_domain_is_written_only_when_one_was_given() {
        let data = |domain: Option<&str>| {
            let map = objects(domain).into_iter().find(|o| o["metadata"]["name"] == "config-domain");
            map.expect("there is one")["data"].as_object().expect("data").keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(data(Some("apps.example.com")), ["_example", "apps.example.com"]);
        assert_eq!(data(None), ["_example"]);
    }
}
