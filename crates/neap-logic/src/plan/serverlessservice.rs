//! ServerlessService: a private Service that selects a revision's pods, and a public one whose endpoints are
//! either those pods or whoever buffers requests while there are none (facts D6, A6.4).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_api::keys::networking;
use neap_api::networking::ServerlessService;

use super::cache::Cache;
use super::deployment::USER_PORT_NAME;
use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::{Context, Plan, meta, sidecar};
use crate::conditions::{self, Conditions};
use crate::names::{self, hash};
use crate::traffic::Protocol;

const ENDPOINTS_POPULATED: &str = "EndpointsPopulated";
const ACTIVATOR_ENDPOINTS_POPULATED: &str = "ActivatorEndpointsPopulated";
/// The port of a gateway's Service that takes plain HTTP.
const PLAIN: &str = "http2";
/// The label by which slices name their Service.
pub const SLICE_SERVICE: &str = "kubernetes.io/service-name";

/// A ServerlessService, what it owns, and who can stand in for pods.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The ServerlessService.
    pub serverless_service: Arc<ServerlessService>,
    /// The Deployment whose pods are selected.
    pub deployment: Option<Arc<Deployment>>,
    /// The Service of the private name, whoever owns it.
    pub private_service: Option<Arc<Service>>,
    /// The Service of the public name, whoever owns it.
    pub public_service: Option<Arc<Service>>,
    /// The Endpoints of the public name.
    pub public_endpoints: Option<Arc<Endpoints>>,
    /// The slices of the private Service.
    pub private_slices: Vec<Arc<EndpointSlice>>,
    /// Who takes requests while there are no pods.
    pub stand_ins: StandIns,
    /// Everything else.
    pub context: Context,
}

/// Who takes requests for pods that are not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandIns {
    /// Their addresses.
    pub addresses: Vec<String>,
    /// Where they listen, whatever the protocol; `None` for activators, which have a port for each (D6.2).
    pub port: Option<i32>,
}

impl StandIns {
    /// Activators, as the slices of their Service name them.
    pub fn activators(slices: &[Arc<EndpointSlice>]) -> Self {
        Self { addresses: ready_addresses(slices), port: None }
    }

    /// A gateway, which activates by itself; it speaks HTTP/1.1 and HTTP/2 on one port.
    pub fn gateway(slices: &[Arc<EndpointSlice>]) -> Self {
        let ports = slices.iter().flat_map(|slice| slice.ports.iter().flatten());
        let plain = ports.filter(|port| port.name.as_deref() == Some(PLAIN)).find_map(|port| port.port);
        Self { addresses: ready_addresses(slices), port: plain }
    }
}

/// Gathers what [`plan`] needs; `stand_ins` come from elsewhere since they are the same for all.
pub fn observe<C: Cache>(
    cache: &C,
    namespace: &str,
    name: &str,
    stand_ins: StandIns,
    context: Context,
) -> Option<Observed> {
    let serverless_service = cache.get::<ServerlessService>(namespace, name)?;
    let private = names::private_service(name);
    let deployment = serverless_service.spec.object_ref.name.clone().unwrap_or_default();
    Some(Observed {
        deployment: cache.get(namespace, &deployment),
        private_service: cache.get(namespace, &private),
        public_service: cache.get(namespace, name),
        public_endpoints: cache.get(namespace, name),
        private_slices: cache.labelled(namespace, SLICE_SERVICE, &private),
        stand_ins,
        serverless_service,
        context,
    })
}

/// The ready addresses of some slices, in order.
pub fn ready_addresses(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    let mut addresses: Vec<String> = ready.flat_map(|e| e.addresses.iter().cloned()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let sks = o.serverless_service.as_ref();
    if sks.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = sks.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::SERVERLESS_SERVICE, &status.conditions, o.context.now);
    status.observed_generation = sks.metadata.generation.unwrap_or_default();
    let name = meta::name(&sks.metadata).to_owned();
    let private = names::private_service(&name);
    let owned = |service: &Option<Arc<Service>>| service.as_ref().is_none_or(|s| is_controlled_by(&s.metadata, sks));
    if !owned(&o.private_service) || !owned(&o.public_service) {
        let taken = if owned(&o.private_service) { &name } else { &private };
        plan.taken_name::<Service>(meta::namespace(&sks.metadata), taken);
        c.mark_false(
            ENDPOINTS_POPULATED,
            "NotOwned",
            &format!("There is an existing Service {taken:?} that we do not own."),
        );
    } else if let Some(refusal) = o.context.refusal::<Service>(&name).or_else(|| o.context.refusal::<Service>(&private))
    {
        plan.warning("InternalError", format!("Failed to write Service: {}", refusal.message));
        c.mark_false(ENDPOINTS_POPULATED, "FailedCreate", &refusal.message);
    } else {
        services(o, &private, &mut plan);
        endpoints(o, &mut plan, &mut c);
        status.service_name = name;
        status.private_service_name = private;
    }
    status.conditions = c.into_vec();
    plan.set_status(sks.status.as_ref(), &status);
    plan
}

fn services(o: &Observed, private: &str, plan: &mut Plan) {
    let sks = o.serverless_service.as_ref();
    let protocol = Protocol::parse(&sks.spec.protocol_type);
    if let Some(selector) =
        o.deployment.as_ref().and_then(|d| d.spec.as_ref()).and_then(|s| s.selector.match_labels.clone())
    {
        let wanted = service(sks, private, "Private", private_ports(o, protocol), Some(selector));
        plan.write(ensure(o.private_service.as_deref(), &wanted, Match::Contains));
    } else {
        plan.because("the Deployment to select pods of does not exist yet");
    }
    let wanted = service(sks, meta::name(&sks.metadata), "Public", public_ports(o, protocol), None);
    plan.write(ensure(o.public_service.as_deref(), &wanted, Match::Contains));
}

fn has_sidecar(o: &Observed) -> bool {
    o.context.settings.deployment.queue_sidecar_image.is_some()
}

fn port(name: &str, number: i32, target: IntOrString) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number,
        target_port: Some(target),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}

fn public_ports(o: &Observed, protocol: Protocol) -> Vec<ServicePort> {
    let mut ports = vec![ServicePort {
        app_protocol: (protocol == Protocol::H2c).then(|| "kubernetes.io/h2c".to_owned()),
        ..port(protocol.port_name(), protocol.service_port(), IntOrString::Int(sidecar::serving_port(protocol)))
    }];
    if has_sidecar(o) {
        ports.push(port("https", 443, IntOrString::Int(sidecar::HTTPS_PORT)));
    }
    ports
}

fn private_ports(o: &Observed, protocol: Protocol) -> Vec<ServicePort> {
    let app_protocol = (protocol == Protocol::H2c).then(|| "kubernetes.io/h2c".to_owned());
    if !has_sidecar(o) {
        // Nothing stands between the gateway and the container, so the pod's own port is the target.
        let target = IntOrString::String(USER_PORT_NAME.into());
        return vec![ServicePort { app_protocol, ..port(protocol.port_name(), 80, target) }];
    }
    let serving = sidecar::serving_port(protocol);
    vec![
        ServicePort { app_protocol, ..port(protocol.port_name(), 80, IntOrString::Int(serving)) },
        port("https", 443, IntOrString::Int(sidecar::HTTPS_PORT)),
        port("http-autometric", sidecar::STATS_PORT, IntOrString::String("http-autometric".into())),
        port("http-usermetric", sidecar::METRICS_PORT, IntOrString::String("http-usermetric".into())),
        port(&format!("{}-istio", protocol.port_name()), serving, IntOrString::Int(serving)),
    ]
}

fn metadata(sks: &ServerlessService, name: &str, kind: &str) -> ObjectMeta {
    let mut labels = meta::labels(&sks.metadata);
    labels.insert(networking::SERVERLESS_SERVICE.into(), meta::name(&sks.metadata).into());
    labels.insert(networking::SERVICE_TYPE.into(), kind.into());
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: sks.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: meta::some(meta::annotations(&sks.metadata, &[])),
        owner_references: Some(vec![controller_ref(sks)]),
        ..ObjectMeta::default()
    }
}

fn service(
    sks: &ServerlessService,
    name: &str,
    kind: &str,
    ports: Vec<ServicePort>,
    selector: Option<BTreeMap<String, String>>,
) -> Service {
    Service {
        metadata: metadata(sks, name, kind),
        spec: Some(ServiceSpec { ports: Some(ports), selector, ..ServiceSpec::default() }),
        status: None,
    }
}

/// Who takes the requests, and the state of that.
fn endpoints(o: &Observed, plan: &mut Plan, c: &mut Conditions) {
    let sks = o.serverless_service.as_ref();
    let pods = ready_addresses(&o.private_slices);
    let proxied = sks.spec.mode == "Proxy";
    let activators = subset(meta::name(&sks.metadata), &o.stand_ins.addresses, sks.spec.num_activators);
    let through_activators = (proxied || pods.is_empty()) && !activators.is_empty();
    let addresses = if through_activators { &activators } else { &pods };
    let protocol = Protocol::parse(&sks.spec.protocol_type);
    let subsets = (!addresses.is_empty()).then(|| {
        let mut ports = vec![endpoint_port(o, protocol, through_activators)];
        // A gateway has no port for encrypted requests between Knative's own parts.
        if has_sidecar(o) && !(through_activators && o.stand_ins.port.is_some()) {
            ports.push(EndpointPort {
                name: Some("https".into()),
                port: sidecar::HTTPS_PORT,
                protocol: Some("TCP".into()),
                ..EndpointPort::default()
            });
        }
        let address = |ip: &String| EndpointAddress { ip: ip.clone(), ..EndpointAddress::default() };
        vec![EndpointSubset {
            addresses: Some(addresses.iter().map(address).collect()),
            ports: Some(ports),
            ..EndpointSubset::default()
        }]
    });
    let wanted = Endpoints { metadata: metadata(sks, meta::name(&sks.metadata), "Public"), subsets };
    if o.public_endpoints.as_ref().is_none_or(|held| is_controlled_by(&held.metadata, sks)) {
        let mut write = ensure(o.public_endpoints.as_deref(), &wanted, Match::Content);
        // `subsets` is absent when empty, and an absent field is not compared.
        if wanted.subsets.is_none()
            && let Some(held) = o.public_endpoints.as_deref().filter(|held| held.subsets.is_some())
        {
            let emptied = Endpoints { metadata: held.metadata.clone(), subsets: None };
            write = Some(super::Write::Update(super::Object::of(&emptied)));
        }
        plan.write(write);
    }
    if pods.is_empty() {
        c.mark_unknown(ENDPOINTS_POPULATED, "NoHealthyBackends", "K8s Service is not ready");
    } else {
        c.mark_true(ENDPOINTS_POPULATED);
    }
    if pods.is_empty() || proxied {
        c.mark_true(ACTIVATOR_ENDPOINTS_POPULATED);
    } else {
        c.mark_false(ACTIVATOR_ENDPOINTS_POPULATED, "ServeMode", "Revision is backed by the pods themselves");
    }
}

fn endpoint_port(o: &Observed, protocol: Protocol, through_activators: bool) -> EndpointPort {
    // Without a sidecar the pods' real port is the one their slices name.
    let sliced = o
        .private_slices
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .find(|p| p.name.as_deref() == Some(protocol.port_name()));
    let real =
        if through_activators { o.stand_ins.port } else { sliced.and_then(|p| p.port).filter(|_| !has_sidecar(o)) };
    EndpointPort {
        name: Some(protocol.port_name().into()),
        port: real.unwrap_or_else(|| sidecar::serving_port(protocol)),
        protocol: Some("TCP".into()),
        ..EndpointPort::default()
    }
}

/// `wanted` of the activators, the same ones for a name as long as they are there; 0 means all.
fn subset(name: &str, activators: &[String], wanted: i32) -> Vec<String> {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let mut chosen: Vec<&String> = activators.iter().collect();
    if wanted > 0 && wanted < chosen.len() {
        // Rendezvous hashing: one activator more or less moves only its own share of the names.
        chosen.sort_by_key(|address| hash::fnv32a(format!("{name}\0{address}").as_bytes()));
        chosen.truncate(wanted);
    }
    let mut chosen: Vec<String> = chosen.into_iter().cloned().collect();
    chosen.sort();
    chosen
}

#[cfg(test)]
#[path = "serverlessservice_tests.rs"]
mod tests;
