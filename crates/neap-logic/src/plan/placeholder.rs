//! The Kubernetes Services that make a Route's names resolve inside the cluster (fact D5.1).
//!
//! Each name points to the gateway; what the gateway does with it is the Ingress' business.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::keys::{networking::VISIBILITY, serving as keys};
use neap_api::networking::{Ingress, LoadBalancerIngress};
use neap_api::serving::Route;

use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::{Context, ObjectRef, Plan, Write, meta};
use crate::names::hosts::{self, HostError};
use crate::traffic::{Traffic, route_name};

/// The port placeholders publish.
const PORT: i32 = 80;

/// What exists already, labelled with the Route's name.
#[derive(Debug, Clone, Default)]
pub struct Placeholders {
    /// Kubernetes Services.
    pub services: Vec<Arc<Service>>,
    /// Endpoints of those without a selector.
    pub endpoints: Vec<Arc<Endpoints>>,
}

/// A placeholder that cannot be written because somebody else has its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOwned {
    /// The name.
    pub name: String,
}

/// Writes the placeholder of every group and removes those no group needs. `foreign` tells whether a Service
/// of that name exists and is not the Route's.
pub fn plan(
    route: &Route,
    traffic: &Traffic,
    held: &Placeholders,
    foreign: &dyn Fn(&str) -> bool,
    ingress: Option<&Ingress>,
    context: &Context,
    plan: &mut Plan,
) -> Result<Option<NotOwned>, HostError> {
    let empty = BTreeMap::new();
    let name = route_name(&route.metadata, &empty);
    let mut wanted_names = Vec::new();
    for tag in traffic.groups.keys() {
        let service_name = hosts::tag_service(&name, tag, &context.settings)?;
        if foreign(&service_name) {
            return Ok(Some(NotOwned { name: service_name }));
        }
        let held_service = held.services.iter().find(|s| meta::name(&s.metadata) == service_name).map(AsRef::as_ref);
        let address = ingress.and_then(address);
        let host = hosts::host(&name, tag, false, &context.settings)?;
        let (service, endpoints) = make(route, &service_name, &host, address, held_service);
        plan.write(ensure(held_service, &service, Match::Contains));
        let held_endpoints = held.endpoints.iter().find(|e| meta::name(&e.metadata) == service_name).map(AsRef::as_ref);
        match (endpoints, held_endpoints) {
            (Some(endpoints), held) => plan.write(ensure(held, &endpoints, Match::Content)),
            (None, Some(stale)) => plan.write(Some(Write::Delete(ObjectRef::of(stale)))),
            (None, None) => {}
        }
        wanted_names.push(service_name);
    }
    let orphaned =
        |own: &ObjectMeta| is_controlled_by(own, route) && !wanted_names.iter().any(|name| name == meta::name(own));
    for service in held.services.iter().filter(|s| orphaned(&s.metadata)) {
        plan.write(Some(Write::Delete(ObjectRef::of(service.as_ref()))));
    }
    for endpoints in held.endpoints.iter().filter(|e| orphaned(&e.metadata)) {
        plan.write(Some(Write::Delete(ObjectRef::of(endpoints.as_ref()))));
    }
    Ok(None)
}

/// Where the Ingress is served inside the cluster: the private side when it says so.
fn address(ingress: &Ingress) -> Option<&LoadBalancerIngress> {
    let status = ingress.status.as_ref()?;
    let side = status.private_load_balancer.as_ref().or(status.public_load_balancer.as_ref())?;
    side.ingress.first()
}

fn make(
    route: &Route,
    name: &str,
    host: &str,
    address: Option<&LoadBalancerIngress>,
    held: Option<&Service>,
) -> (Service, Option<Endpoints>) {
    let mut labels = meta::labels(&route.metadata);
    labels.remove(VISIBILITY);
    labels.insert(keys::ROUTE.into(), meta::name(&route.metadata).into());
    // Hiding one tag is done by labelling its Service, so that label is the user's.
    if let Some(visibility) = held.and_then(|held| meta::label(&held.metadata, VISIBILITY)) {
        labels.insert(VISIBILITY.into(), visibility.to_owned());
    }
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: route.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: meta::some(meta::annotations(&route.metadata, &[])),
        owner_references: Some(vec![controller_ref(route)]),
        ..ObjectMeta::default()
    };
    let port = |name: &str, protocol: Option<&str>| ServicePort {
        name: Some(name.into()),
        port: PORT,
        app_protocol: protocol.map(str::to_owned),
        ..ServicePort::default()
    };
    let h2c = || vec![port("http2", Some("kubernetes.io/h2c"))];
    let external = |target: &str| ServiceSpec {
        type_: Some("ExternalName".into()),
        external_name: Some(target.to_owned()),
        session_affinity: Some("None".into()),
        ports: Some(h2c()),
        ..ServiceSpec::default()
    };
    let (spec, endpoints) = match address {
        Some(at) if !at.ip.is_empty() => {
            let spec = ServiceSpec {
                type_: Some("ClusterIP".into()),
                cluster_ip: Some("None".into()),
                ports: Some(h2c()),
                ..ServiceSpec::default()
            };
            let subset = EndpointSubset {
                addresses: Some(vec![EndpointAddress { ip: at.ip.clone(), ..EndpointAddress::default() }]),
                ports: Some(vec![EndpointPort {
                    name: Some("http2".into()),
                    port: PORT,
                    // As the API server would fill it in.
                    protocol: Some("TCP".into()),
                    ..EndpointPort::default()
                }]),
                ..EndpointSubset::default()
            };
            (spec, Some(Endpoints { metadata: metadata.clone(), subsets: Some(vec![subset]) }))
        }
        Some(at) if !at.domain_internal.is_empty() => (external(&at.domain_internal), None),
        Some(at) if !at.domain.is_empty() => (external(&at.domain), None),
        Some(at) if at.mesh_only => (
            ServiceSpec {
                type_: Some("ClusterIP".into()),
                ports: Some(vec![port("http", None)]),
                ..ServiceSpec::default()
            },
            None,
        ),
        _ => (external(host), None),
    };
    (Service { metadata, spec: Some(spec), status: None }, endpoints)
}
