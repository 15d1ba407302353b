//! The objects that exist from the first start: namespaces, config-maps, accounts, roles, the gateway's Services.
//! Only what is missing is made: what users changed stays as they left it, except where a flag of this start says otherwise.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ConfigMap, EndpointAddress, EndpointPort, EndpointSubset, Endpoints, LoadBalancerIngress, LoadBalancerStatus,
    Namespace, Service, ServiceAccount, ServicePort, ServiceSpec, ServiceStatus,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use neap_api::keys;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Kubernetes' annotation of roles that a start brings up to date: `false` keeps them as they are.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Name of the Service in front of public hosts.
pub const GATEWAY: &str = "neap-gateway";
/// Name of the Service in front of cluster-local hosts.
pub const GATEWAY_INTERNAL: &str = "neap-gateway-internal";

/// Services get their names here until somebody says otherwise: such names lead to this machine by themselves.
const DOMAIN: &str = "localhost";

/// What this start decided and the objects must say.
pub struct Facts {
    /// `None`: no flag said one.
    pub domain: Option<String>,
    /// Where the gateway is reached from outside.
    pub listen: IpAddr,
    pub http_port: u16,
    pub https_port: u16,
    /// Where pods reach the gateway: address and port.
    pub internal: (IpAddr, u16),
    /// The same with TLS.
    pub internal_https_port: u16,
    pub version: String,
}

/// Makes what is missing.
///
/// # Errors
/// The API refused; nothing was taken away.
pub async fn run(client: &Client, facts: &Facts) -> kube::Result<()> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease", keys::config::NAMESPACE] {
        let mut namespace = Namespace { metadata: named(name), ..Default::default() };
        if name == keys::config::NAMESPACE {
            namespace.metadata.labels = Some(BTreeMap::from([
                ("app.kubernetes.io/name".to_owned(), "knative-serving".to_owned()),
                ("app.kubernetes.io/version".to_owned(), facts.version.clone()),
            ]));
        }
        ensure(&Api::all(client.clone()), &namespace).await?;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), keys::config::NAMESPACE);
    for map in neap_logic::config::examples(facts.domain.as_deref().unwrap_or(DOMAIN)) {
        ensure(&maps, &map).await?;
    }
    follow_flags(&maps, facts).await?;
    for account in ["controller", "activator"] {
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), keys::config::NAMESPACE);
        ensure(&api, &ServiceAccount { metadata: named(account), ..Default::default() }).await?;
    }
    for role in roles() {
        renew_role(&Api::all(client.clone()), &role).await?;
    }
    ensure(&Api::all(client.clone()), &administrators()).await?;
    ensure(&Api::all(client.clone()), &local_storage()).await?;
    gateway(client, facts).await
}

/// The keys that a flag decides are set anew at each start that gives the flag.
async fn follow_flags(maps: &Api<ConfigMap>, facts: &Facts) -> kube::Result<()> {
    let ports = json!({"data": {
        "external-http-port": facts.http_port.to_string(),
        "external-https-port": facts.https_port.to_string(),
    }});
    match maps.patch(keys::config::NEAP, &PatchParams::default(), &Patch::Merge(ports)).await {
        // Something else in it is wrong. It can only be mended through the API, so that has to start.
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            tracing::warn!(
                error = status.message,
                "config-neap does not take the ports of this start: mend it with `kubectl -n knative-serving edit configmap config-neap`"
            );
        }
        other => drop(other?),
    }
    // Nobody else makes certificates here. What a user wrote stays.
    let network = maps.get(keys::config::NETWORK).await?.data.unwrap_or_default();
    if !["certificate-class", "certificate.class"].iter().any(|key| network.contains_key(*key)) {
        let class = json!({"data": {"certificate-class": keys::networking::NEAP_CERTIFICATE_CLASS}});
        maps.patch(keys::config::NETWORK, &PatchParams::default(), &Patch::Merge(class)).await?;
    }
    let Some(wanted) = &facts.domain else { return Ok(()) };
    let domains = maps.get(keys::config::DOMAIN).await?.data.unwrap_or_default();
    let written: Vec<_> = domains.iter().filter(|(name, _)| *name != neap_logic::config::EXAMPLE_KEY).collect();
    // One domain for everything is what a start writes; anything else is a user's own arrangement.
    if let [(name, selector)] = written.as_slice()
        && selector.trim().is_empty()
        && *name != wanted
    {
        let patch = json!({"data": { (**name).clone(): null, wanted.clone(): "" }});
        maps.patch(keys::config::DOMAIN, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

async fn gateway(client: &Client, facts: &Facts) -> kube::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), keys::config::NAMESPACE);
    let port = |name: &str, port: i32, real: u16| ServicePort {
        name: Some(name.into()),
        port,
        target_port: Some(IntOrString::Int(i32::from(real))),
        node_port: Some(i32::from(real)),
        protocol: Some("TCP".into()),
        ..Default::default()
    };
    let external = Service {
        metadata: ObjectMeta {
            labels: Some(BTreeMap::from([
                (keys::neap::GATEWAY.to_owned(), "external".to_owned()),
                ("networking.knative.dev/ingress-provider".to_owned(), "neap".to_owned()),
            ])),
            ..named(GATEWAY)
        },
        spec: Some(ServiceSpec {
            type_: Some("LoadBalancer".into()),
            ports: Some(vec![port("http2", 80, facts.http_port), port("https", 443, facts.https_port)]),
            ..Default::default()
        }),
        status: None,
    };
    replace(&services, &external).await?;
    let status = ServiceStatus {
        load_balancer: Some(LoadBalancerStatus {
            ingress: Some(vec![LoadBalancerIngress {
                ip: Some(reachable(facts.listen).to_string()),
                ..Default::default()
            }]),
        }),
        ..Default::default()
    };
    services.patch_status(GATEWAY, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await?;

    let (address, real) = facts.internal;
    let internal = Service {
        metadata: ObjectMeta {
            labels: Some(BTreeMap::from([(keys::neap::GATEWAY.to_owned(), "internal".to_owned())])),
            ..named(GATEWAY_INTERNAL)
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            ports: Some(vec![
                ServicePort { node_port: None, ..port("http2", 80, real) },
                ServicePort { node_port: None, ..port("https", 443, facts.internal_https_port) },
            ]),
            ..Default::default()
        }),
        status: None,
    };
    replace(&services, &internal).await?;
    let endpoint_port = |name: &str, port: u16| EndpointPort {
        name: Some(name.into()),
        port: i32::from(port),
        protocol: Some("TCP".into()),
        ..Default::default()
    };
    let endpoints = Endpoints {
        metadata: named(GATEWAY_INTERNAL),
        subsets: Some(vec![EndpointSubset {
            addresses: Some(vec![EndpointAddress { ip: address.to_string(), ..Default::default() }]),
            ports: Some(vec![endpoint_port("http2", real), endpoint_port("https", facts.internal_https_port)]),
            ..Default::default()
        }]),
    };
    replace(&Api::namespaced(client.clone(), keys::config::NAMESPACE), &endpoints).await
}

/// Makes a role, or gives it the rules of this version, unless its owner has said that they stay.
async fn renew_role(api: &Api<ClusterRole>, role: &ClusterRole) -> kube::Result<()> {
    ensure(api, role).await?;
    let held = api.get(&role.name_any()).await?;
    let is_kept = held.annotations().get(AUTOUPDATE).is_some_and(|value| value == "false");
    if is_kept || held.rules == role.rules {
        return Ok(());
    }
    let patch = json!({"rules": role.rules});
    api.patch(&role.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// An address one can dial: listening everywhere is listening on loopback too.
fn reachable(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        other => other,
    }
}

/// Makes an object unless there is one of its name.
async fn ensure<K>(api: &Api<K>, object: &K) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes an object, or sets all that is said here in the one there is.
async fn replace<K>(api: &Api<K>, object: &K) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(object)).await.map(drop)
        }
        result => result.map(drop),
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..Default::default() }
}

/// Knative's kinds, as far as users work with them.
const SERVING: &[&str] = &["services", "configurations", "revisions", "routes", "domainmappings"];

/// The roles that a cluster has for its users, and Knative's additions to them in one place.
fn roles() -> Vec<ClusterRole> {
    let all = ["*"];
    let write = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let read = ["get", "list", "watch"];
    let workloads =
        ["pods", "pods/log", "services", "configmaps", "persistentvolumeclaims", "serviceaccounts", "events"];
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| PolicyRule {
        api_groups: Some(owned(groups)),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..Default::default()
    };
    let mut everything = rule(&all, &all, &all);
    everything.non_resource_urls = None;
    let urls = PolicyRule { non_resource_urls: Some(owned(&all)), verbs: owned(&all), ..Default::default() };
    let on_workloads = |verbs: &[&str]| {
        vec![
            rule(&[""], &workloads, verbs),
            rule(&["apps"], &["deployments", "replicasets", "deployments/scale"], verbs),
            // Read only, as on Kubernetes (CVE-2021-25740): an address is another namespace's as easily as one's own.
            rule(&[""], &["endpoints"], &read),
            rule(&["discovery.k8s.io"], &["endpointslices"], &read),
            rule(&[neap_api::serving::GROUP], SERVING, verbs),
            rule(&[neap_api::serving::GROUP], &["revisions/log"], &["get"]),
        ]
    };
    let mut editing = on_workloads(&write);
    editing.push(rule(&[""], &["secrets"], &write));
    editing.push(rule(&[""], &["pods/exec", "pods/attach", "pods/portforward"], &["get", "create"]));
    let mut administering = editing.clone();
    administering.push(rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &write));
    let role = |name: &str, rules| ClusterRole { metadata: named(name), rules: Some(rules), ..Default::default() };
    vec![
        role("cluster-admin", vec![everything, urls]),
        role("admin", administering),
        role("edit", editing),
        role("view", on_workloads(&read)),
    ]
}

fn administrators() -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: named("cluster-admin"),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: "cluster-admin".into(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Group".into(),
            name: "system:masters".into(),
            ..Default::default()
        }]),
    }
}

/// Claims are directories of the data directory.
fn local_storage() -> StorageClass {
    StorageClass {
        metadata: ObjectMeta {
            annotations: Some(BTreeMap::from([(
                "storageclass.kubernetes.io/is-default-class".to_owned(),
                "true".to_owned(),
            )])),
            ..named("local")
        },
        provisioner: "neap.dev/directory".into(),
        ..Default::default()
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_of_an_older_version_gets_the_rules_of_this_one() {
        let api = neap_testkit::Api::start().await;
        let client = api.client();
        let held: Api<ClusterRole> = Api::all(client.clone());
        let role = roles().into_iter().find(|role| role.name_any() == "edit").expect("there is one");
        let old = ClusterRole { rules: Some(Vec::new()), ..role.clone() };
        held.create(&PostParams::default(), &old).await.expect("made");
        renew_role(&held, &role).await.expect("renewed");
        assert_eq!(held.get("edit").await.expect("there").rules, role.rules);

        let mut kept = ClusterRole { rules: Some(Vec::new()), ..role.clone() };
        kept.metadata.annotations = Some(BTreeMap::from([(AUTOUPDATE.to_owned(), "false".to_owned())]));
        held.patch("edit", &PatchParams::default(), &Patch::Merge(&kept)).await.expect("kept by its owner");
        renew_role(&held, &role).await.expect("left alone");
        assert!(held.get("edit").await.expect("there").rules.is_none_or(|rules| rules.is_empty()));
    }

    #[test]
    fn no_tenant_says_where_a_service_leads() {
        for role in roles() {
            let rules = role.rules.iter().flatten();
            let writes = rules
                .filter(|rule| rule.resources.iter().flatten().any(|r| r == "endpoints" || r == "endpointslices"))
                .any(|rule| rule.verbs.iter().any(|verb| !["get", "list", "watch"].contains(&verb.as_str())));
            assert!(!writes, "{}", role.name_any());
        }
    }
}
