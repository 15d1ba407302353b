//! What the data plane reads out of objects.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::keys::{networking, serving};
use neap_api::serving::Revision;
use neap_proxy::{Limits, Protocol};

use crate::gate::Settings;

/// Name of a Revision's container port that speaks h2c (A4.31).
const PORT_H2C: &str = "h2c";
/// `appProtocol` of a Service port that speaks h2c (F1.14).
const APP_PROTOCOL_H2C: &str = "kubernetes.io/h2c";
/// Names of Service ports that speak h2c (F1.14).
const PORT_NAMES_H2C: [&str; 2] = ["http2", "h2c"];

/// Namespace and name.
pub(crate) fn key_of(meta: &ObjectMeta) -> (&str, &str) {
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Limits and protocol of a Revision (A4.1 to A4.4, A4.31). Zero is no limit.
pub(super) fn revision_settings(revision: &Revision, depth: usize) -> Settings {
    let spec = &revision.spec;
    let seconds = |value: Option<i64>| {
        value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).map(Duration::from_secs)
    };
    let limits = Limits {
        total: seconds(spec.timeout_seconds),
        response_start: seconds(spec.response_start_timeout_seconds),
        idle: seconds(spec.idle_timeout_seconds),
    };
    let h2c = serving_container(&spec.pod.containers)
        .and_then(|container| container.ports.as_ref()?.first()?.name.as_deref())
        .is_some_and(|name| name == PORT_H2C);
    let concurrency = spec.container_concurrency.unwrap_or_default();
    Settings {
        limits,
        protocol: if h2c { Protocol::H2c } else { Protocol::Http1 },
        container_concurrency: u32::try_from(concurrency.max(0)).unwrap_or(u32::MAX),
        depth,
        service: revision
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(serving::SERVICE))
            .map(|name| (**name).into()),
    }
}

/// Whether the sidecar's word is enough that an instance takes requests (E1.8): not where a kubelet has to run a command
/// for it, or has to see a start through first.
pub(super) fn is_believed_early(revision: &Revision) -> bool {
    revision.spec.pod.containers.iter().all(|container| {
        let by_command = container.readiness_probe.as_ref().is_some_and(|probe| probe.exec.is_some());
        !by_command && container.startup_probe.is_none()
    })
}

/// Of several containers, the one with a port (A4.12).
fn serving_container(containers: &[Container]) -> Option<&Container> {
    let has_port = |container: &&Container| container.ports.as_ref().is_some_and(|ports| !ports.is_empty());
    containers.iter().find(has_port).or_else(|| containers.first())
}

/// Whether a Service is one of the two that a Revision has.
pub(super) fn is_of_a_revision(service: &Service) -> bool {
    service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(networking::SERVICE_TYPE))
}

/// A port of a plain Service.
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) settings: Settings,
}

/// The name the Service stands for, if it is but an alias, and its ports.
pub(super) fn service_ports(service: &Service) -> (Option<String>, Vec<Port>) {
    let Some(spec) = &service.spec else { return (None, Vec::new()) };
    let alias = (spec.type_.as_deref() == Some("ExternalName")).then(|| spec.external_name.clone()).flatten();
    let ports = spec.ports.as_deref().unwrap_or_default().iter().filter_map(|port| {
        let name = port.name.clone().unwrap_or_default();
        let protocol = protocol_of(&name, port.app_protocol.as_deref());
        Some(Port { number: u16::try_from(port.port).ok()?, name, settings: Settings::of_service(protocol) })
    });
    (alias, ports.collect())
}

/// What is spoken on a port of this name.
pub(super) fn protocol_of(name: &str, app_protocol: Option<&str>) -> Protocol {
    if app_protocol == Some(APP_PROTOCOL_H2C) || PORT_NAMES_H2C.contains(&name) {
        Protocol::H2c
    } else {
        Protocol::Http1
    }
}
