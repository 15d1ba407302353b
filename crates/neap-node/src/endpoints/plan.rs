//! From a Service and its pods to its slices and endpoints. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as CorePort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

/// Label of a slice: its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SLICE_MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const ENDPOINTS_MANAGER: &str = "endpoints.kubernetes.io/managed-by";
const FROM_PODS: &str = "endpointslice-controller.k8s.io";
const FROM_ENDPOINTS: &str = "endpointslicemirroring-controller.k8s.io";
const ENDPOINTS_FROM_PODS: &str = "endpoint-controller";

pub(super) struct Observed<'a> {
    pub(super) service: Option<&'a Service>,
    /// Those the Service selects.
    pub(super) pods: Vec<&'a Pod>,
    /// Those of the Service that this loop keeps.
    pub(super) slices: Vec<&'a EndpointSlice>,
    pub(super) endpoints: Option<&'a Endpoints>,
}

pub(super) struct Wanted {
    pub(super) slices: Vec<EndpointSlice>,
    pub(super) endpoints: WantedEndpoints,
}

pub(super) enum WantedEndpoints {
    Keep(Endpoints),
    Remove,
    /// Somebody else's, or none.
    NotOurs,
}

pub(super) fn plan(observed: &Observed<'_>) -> Wanted {
    let Some(service) = observed.service.filter(|s| s.metadata.deletion_timestamp.is_none()) else {
        let ours = observed
            .endpoints
            .is_some_and(|e| e.labels().get(ENDPOINTS_MANAGER).is_some_and(|m| m == ENDPOINTS_FROM_PODS));
        return Wanted {
            slices: Vec::new(),
            endpoints: if ours { WantedEndpoints::Remove } else { WantedEndpoints::NotOurs },
        };
    };
    if selector(service).is_none() {
        let slices = observed.endpoints.map(|endpoints| mirror(service, endpoints)).unwrap_or_default();
        return Wanted { slices, endpoints: WantedEndpoints::NotOurs };
    }
    let groups = groups(service, &observed.pods);
    let slices = if groups.is_empty() {
        // One slice stays, empty: the first pod then needs one write and no new object.
        let ports = observed.slices.first().and_then(|s| s.ports.clone()).unwrap_or_default();
        let name = observed.slices.first().map_or_else(|| slice_name(service, &ports), |s| s.name_any());
        vec![slice(service, name, ports, Vec::new(), FROM_PODS)]
    } else {
        let endpoints = |pods: &[&Pod]| pods.iter().filter_map(|pod| endpoint(service, pod)).collect();
        groups
            .iter()
            .map(|group| {
                slice(
                    service,
                    slice_name(service, &group.ports),
                    group.ports.clone(),
                    endpoints(&group.pods),
                    FROM_PODS,
                )
            })
            .collect()
    };
    Wanted { slices, endpoints: WantedEndpoints::Keep(endpoints_of(service, &groups)) }
}

/// Whether this loop keeps the slice.
pub(super) fn managed(slice: &EndpointSlice) -> bool {
    slice.labels().get(SLICE_MANAGER).is_some_and(|by| by == FROM_PODS || by == FROM_ENDPOINTS)
}

/// Whether a Service selects a pod; one without a selector selects none.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    service.namespace() == pod.namespace()
        && selector(service).is_some_and(|s| s.iter().all(|(k, v)| pod.labels().get(k) == Some(v)))
}

/// Equal in everything this loop decides.
pub(super) fn same_slice(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    a.labels() == b.labels()
        && a.endpoints.as_deref().unwrap_or_default() == b.endpoints.as_deref().unwrap_or_default()
        && a.ports.as_deref().unwrap_or_default() == b.ports.as_deref().unwrap_or_default()
}

/// Equal in everything this loop decides.
pub(super) fn same_endpoints(a: &Endpoints, b: &Endpoints) -> bool {
    a.labels() == b.labels() && a.subsets.as_deref().unwrap_or_default() == b.subsets.as_deref().unwrap_or_default()
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Pods on which the Service's ports come out at the same numbers.
struct Group<'a> {
    ports: Vec<EndpointPort>,
    pods: Vec<&'a Pod>,
}

fn groups<'a>(service: &Service, pods: &[&'a Pod]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for pod in pods.iter().filter(|pod| address(pod).is_some() && !is_finished(pod)) {
        let ports = ports(service, pod);
        match groups.iter_mut().find(|group| group.ports == ports) {
            Some(group) => group.pods.push(pod),
            None => groups.push(Group { ports, pods: vec![pod] }),
        }
    }
    groups
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let named = crate::ports::of(pod);
    let wanted = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    wanted
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(i32::from(target(port, pod, &named)?)),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The number a Service's port has on a pod; `None` when the pod has no port of that name.
fn target(port: &ServicePort, pod: &Pod, real: &BTreeMap<String, u16>) -> Option<u16> {
    let declared = || pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    match &port.target_port {
        Some(IntOrString::String(name)) => real
            .get(name)
            .copied()
            .or_else(|| number(declared().find(|p| p.name.as_ref() == Some(name))?.container_port)),
        plain => {
            let wanted = match plain {
                Some(IntOrString::Int(n)) if *n > 0 => *n,
                _ => port.port,
            };
            let name = declared().find(|p| p.container_port == wanted).and_then(|p| p.name.clone());
            name.and_then(|name| real.get(&name).copied()).or_else(|| number(wanted))
        }
    }
}

fn slice_name(service: &Service, ports: &[EndpointPort]) -> String {
    let digest = Sha256::digest(serde_json::to_vec(ports).expect("ports serialise"));
    let mut name = service.name_any();
    // Object names have at most 253 characters.
    name.truncate(240);
    format!("{name}-{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

fn slice(
    service: &Service,
    name: String,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    by: &str,
) -> EndpointSlice {
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(SLICE_MANAGER.into(), by.into());
    EndpointSlice {
        address_type: "IPv4".into(),
        endpoints: Some(endpoints),
        ports: Some(ports),
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![owner(service)]),
            ..Default::default()
        },
    }
}

fn owner(service: &Service) -> OwnerReference {
    OwnerReference {
        api_version: Service::api_version(&()).into_owned(),
        kind: Service::kind(&()).into_owned(),
        name: service.name_any(),
        uid: service.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn endpoint(service: &Service, pod: &Pod) -> Option<Endpoint> {
    let serving = is_ready(pod) || publishes_unready(service);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    Some(Endpoint {
        addresses: vec![address(pod)?.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(reference(pod)),
        hostname: host_name(service, pod),
        ..Default::default()
    })
}

/// The name that a pod has below its Service's, if it asks to be known by one.
fn host_name(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let asked = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    spec.hostname.clone().filter(|name| asked && !name.is_empty())
}

fn endpoints_of(service: &Service, groups: &[Group<'_>]) -> Endpoints {
    let subsets = groups.iter().filter_map(|group| {
        let living = group.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let (ready, unready): (Vec<_>, Vec<_>) = living.partition(|pod| is_ready(pod) || publishes_unready(service));
        let addresses = |pods: Vec<&&Pod>| {
            let found: Vec<_> = pods.into_iter().filter_map(|pod| core_address(service, pod)).collect();
            (!found.is_empty()).then_some(found)
        };
        let (addresses, not_ready_addresses) = (addresses(ready), addresses(unready));
        (addresses.is_some() || not_ready_addresses.is_some()).then(|| EndpointSubset {
            addresses,
            not_ready_addresses,
            ports: Some(
                group
                    .ports
                    .iter()
                    .map(|p| CorePort {
                        name: p.name.clone().filter(|n| !n.is_empty()),
                        port: p.port.unwrap_or_default(),
                        protocol: p.protocol.clone(),
                        app_protocol: p.app_protocol.clone(),
                    })
                    .collect(),
            ),
        })
    });
    let subsets: Vec<_> = subsets.collect();
    let mut labels = service.labels().clone();
    labels.insert(ENDPOINTS_MANAGER.into(), ENDPOINTS_FROM_PODS.into());
    Endpoints {
        metadata: ObjectMeta {
            name: Some(service.name_any()),
            namespace: service.namespace(),
            labels: Some(labels),
            ..Default::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn core_address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    Some(EndpointAddress {
        ip: address(pod)?.to_owned(),
        hostname: host_name(service, pod),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(reference(pod)),
    })
}

/// Slices of Endpoints that somebody else keeps: one for all subsets of the same ports, since a slice is named after
/// those.
fn mirror(service: &Service, endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let subsets = endpoints.subsets.iter().flatten();
    let mut slices: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    subsets
        .map(|subset| {
            let ports: Vec<_> = subset
                .ports
                .iter()
                .flatten()
                .map(|p| EndpointPort {
                    name: Some(p.name.clone().unwrap_or_default()),
                    port: Some(p.port),
                    protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                    app_protocol: p.app_protocol.clone(),
                })
                .collect();
            let of = |addresses: &Option<Vec<EndpointAddress>>, ready: bool| {
                let each = addresses.clone().unwrap_or_default().into_iter();
                each.map(move |address| Endpoint {
                    addresses: vec![address.ip],
                    conditions: Some(EndpointConditions {
                        ready: Some(ready),
                        serving: Some(ready),
                        terminating: Some(false),
                    }),
                    node_name: address.node_name,
                    target_ref: address.target_ref,
                    ..Default::default()
                })
            };
            (ports, of(&subset.addresses, true).chain(of(&subset.not_ready_addresses, false)).collect::<Vec<_>>())
        })
        .for_each(|(ports, all)| match slices.iter_mut().find(|(known, _)| *known == ports) {
            Some((_, known)) => known.extend(all),
            None => slices.push((ports, all)),
        });
    let named =
        |(ports, all): (Vec<EndpointPort>, _)| slice(service, slice_name(service, &ports), ports, all, FROM_ENDPOINTS);
    slices.into_iter().map(named).collect()
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.namespace(),
        uid: pod.uid(),
        ..Default::default()
    }
}

fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(target: Value, selector: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "su"},
            "spec": {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": target}]}}))
        .expect("a service")
    }

    /// Name, ready, terminating, real port of a pod without a network of its own.
    fn pod(name: &str, ready: bool, going: bool, real: Option<u16>) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "user-port", "containerPort": 8080}]}]},
            "status": {"podIP": "198.19.0.2", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        if going {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if let Some(port) = real {
            pod["metadata"]["annotations"] = json!({"neap.dev/ports": json!({"user-port": port}).to_string()});
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn check(target: Value, pods: &[Pod], want: &[&str]) {
        let service = service(target, json!({"app": "a"}));
        let selected: Vec<_> = pods.iter().filter(|p| selects(&service, p)).collect();
        let seen = Observed { service: Some(&service), pods: selected, slices: Vec::new(), endpoints: None };
        let wanted = plan(&seen);
        let mut rows: Vec<String> = Vec::new();
        for slice in &wanted.slices {
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.as_ref().expect("conditions");
                rows.push(format!(
                    "{}:{} ready={:?} terminating={:?}",
                    endpoint.target_ref.as_ref().and_then(|t| t.name.as_deref()).unwrap_or_default(),
                    slice
                        .ports
                        .iter()
                        .flatten()
                        .filter_map(|p| p.port)
                        .map(|p| p.to_string())
                        .collect::<Vec<_>>()
                        .join(","),
                    conditions.ready.unwrap_or_default(),
                    conditions.terminating.unwrap_or_default(),
                ));
            }
        }
        assert_eq!(rows, want);
        // Given its own slices, the plan wants the same again.
        let seen = Observed { slices: wanted.slices.iter().collect(), ..seen };
        let again = plan(&seen).slices;
        assert!(again.len() == wanted.slices.len() && again.iter().zip(&wanted.slices).all(|(a, b)| same_slice(a, b)));
    }

    #[test]
    fn pods_become_endpoints() {
        check(json!("user-port"), &[pod("a", true, false, None)], &["a:8080 ready=true terminating=false"]);
        check(json!(8080), &[pod("a", true, true, None)], &["a:8080 ready=false terminating=true"]);
        check(json!(9000), &[pod("a", false, false, None)], &["a:9000 ready=false terminating=false"]);
        check(
            json!("user-port"),
            &[pod("a", true, false, Some(40001)), pod("b", true, false, Some(40002))],
            &["a:40001 ready=true terminating=false", "b:40002 ready=true terminating=false"],
        );
        check(json!("user-port"), &[], &[]);
    }

    #[test]
    fn endpoints_of_others_are_mirrored() {
        let service = service(json!(80), json!({}));
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "subsets": [{"addresses": [{"ip": "10.1.1.1"}], "ports": [{"name": "http", "port": 8012}]}]}))
        .expect("endpoints");
        let wanted =
            plan(&Observed { service: Some(&service), pods: vec![], slices: vec![], endpoints: Some(&endpoints) });
        assert_eq!(wanted.slices[0].endpoints.as_ref().expect("endpoints")[0].addresses, ["10.1.1.1"]);
        assert!(matches!(wanted.endpoints, WantedEndpoints::NotOurs));
        // Two subsets of one port are two halves of one slice: they would have the same name.
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "subsets": [{"addresses": [{"ip": "10.1.1.1"}], "ports": [{"name": "http", "port": 8012}]},
                {"addresses": [{"ip": "10.1.1.3"}], "ports": [{"name": "http", "port": 8013}]},
                {"notReadyAddresses": [{"ip": "10.1.1.2"}], "ports": [{"name": "http", "port": 8012}]}]}))
        .expect("endpoints");
        let wanted =
            plan(&Observed { service: Some(&service), pods: vec![], slices: vec![], endpoints: Some(&endpoints) });
        let addresses = |slice: &EndpointSlice| {
            slice.endpoints.iter().flatten().map(|e| e.addresses.join(" ")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(wanted.slices.iter().map(addresses).collect::<Vec<_>>(), ["10.1.1.1 10.1.1.2", "10.1.1.3"]);
    }
}
