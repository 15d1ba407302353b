//! Certificates of a Route's public hosts (facts D5.3, A5.7). Off unless `external-domain-tls` is on.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::ConditionStatus;
use neap_api::condition::{READY, find};
use neap_api::keys::{networking, serving as keys};
use neap_api::networking::{Certificate, CertificateSpec, IngressTls};

use super::{CERTIFICATE_PROVISIONED, Observed};
use crate::conditions::{self, Conditions};
use crate::config::network::HttpProtocol;
use crate::names::hash::adler32;
use crate::names::hosts::{self, HostError};
use crate::plan::ensure::{Match, controller_ref, ensure, is_controlled_by};
use crate::plan::{ObjectRef, Plan, Write, meta};
use crate::traffic::{Traffic, Visibility, route_name};

/// What the Ingress and the status need to know.
#[derive(Debug, Default)]
pub(super) struct Tls {
    pub(super) entries: Vec<IngressTls>,
    pub(super) https_hosts: BTreeSet<String>,
    /// Whether the Route's own host is served with a certificate, or will be and must not be called without.
    pub(super) https_main: bool,
}

pub(super) fn plan(
    o: &Observed,
    traffic: &Traffic,
    visibilities: &BTreeMap<String, Visibility>,
    plan: &mut Plan,
    c: &mut Conditions,
) -> Result<Tls, HostError> {
    let settings = &o.context.settings;
    let mut tls = Tls::default();
    let mut wanted_names = BTreeSet::new();
    let main_local = visibilities.get("") == Some(&Visibility::ClusterLocal);
    if main_local {
        c.mark_true_because(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "TLS is not enabled for cluster-local");
    } else if !settings.network.external_domain_tls || is_disabled(&o.route.metadata) {
        c.mark_true_because(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");
    } else {
        let empty = BTreeMap::new();
        let name = route_name(&o.route.metadata, &empty);
        let mut state = State::Ready;
        for tag in traffic.groups.keys().filter(|tag| visibilities.get(*tag) != Some(&Visibility::ClusterLocal)) {
            let host = hosts::host(&name, tag, false, settings)?;
            let wanted = make(o, tag, &host, &settings.domain.lookup(name.labels, &settings.neap.cluster_domain));
            let name = meta::name(&wanted.metadata).to_owned();
            let held = o.certificates.iter().find(|held| meta::name(&held.metadata) == name).map(AsRef::as_ref);
            if held.is_some_and(|held| !is_controlled_by(&held.metadata, o.route.as_ref())) {
                state = state.worse(State::Foreign { name });
                continue;
            }
            plan.write(ensure(held, &wanted, Match::Exact));
            state = state.worse(judge(held, &wanted, &name));
            wanted_names.insert(name.clone());
            if held.is_some_and(is_ready) {
                tls.entries.push(IngressTls {
                    hosts: vec![host.clone()],
                    secret_name: wanted.spec.secret_name.clone(),
                    secret_namespace: meta::namespace(&o.route.metadata).to_owned(),
                });
                tls.https_main |= tag.is_empty();
                tls.https_hosts.insert(host);
            }
        }
        let downgrade = settings.network.http_protocol == HttpProtocol::Enabled;
        match state {
            State::Ready => c.mark_true(CERTIFICATE_PROVISIONED),
            State::Waiting { name, .. } | State::Failed { name, .. } if downgrade => {
                let message = format!("Certificate {name} is not ready downgrade HTTP.");
                c.mark_true_because(CERTIFICATE_PROVISIONED, "HTTPDowngrade", &message);
            }
            State::Waiting { name, reason } => {
                c.mark_unknown(
                    CERTIFICATE_PROVISIONED,
                    "CertificateNotReady",
                    &format!("Certificate {name} is not ready: {reason}"),
                );
                tls.https_main = true;
            }
            State::Foreign { name } => {
                let message = format!("There is an existing certificate {name} that we don't own.");
                c.mark_false(CERTIFICATE_PROVISIONED, "CertificateNotOwned", &message);
                tls.https_main = true;
            }
            State::Failed { name, reason } => {
                c.mark_false(
                    CERTIFICATE_PROVISIONED,
                    "CertificateProvisionFailed",
                    &format!("Certificate {name} fails to be provisioned: {reason}"),
                );
                tls.https_main = true;
            }
        }
    }
    for stale in o.certificates.iter().filter(|held| is_controlled_by(&held.metadata, o.route.as_ref())) {
        if !wanted_names.contains(meta::name(&stale.metadata)) {
            plan.write(Some(Write::Delete(ObjectRef::of(stale.as_ref()))));
        }
    }
    Ok(tls)
}

enum State {
    Ready,
    Waiting { name: String, reason: String },
    Failed { name: String, reason: String },
    Foreign { name: String },
}

impl State {
    fn badness(&self) -> u8 {
        match self {
            State::Ready => 0,
            State::Waiting { .. } => 1,
            State::Failed { .. } => 2,
            State::Foreign { .. } => 3,
        }
    }

    fn worse(self, other: State) -> State {
        if other.badness() > self.badness() { other } else { self }
    }
}

fn judge(held: Option<&Certificate>, wanted: &Certificate, name: &str) -> State {
    let name = name.to_owned();
    let Some(held) = held.filter(|held| held.spec == wanted.spec) else {
        return State::Waiting { name, reason: String::new() };
    };
    let ready = held.status.as_ref().and_then(|s| find(&s.conditions, READY));
    let reason = ready.map(|c| c.reason.clone()).unwrap_or_default();
    match ready.map(|c| c.status) {
        Some(ConditionStatus::True) if is_ready(held) => State::Ready,
        Some(ConditionStatus::False) => State::Failed { name, reason },
        _ => State::Waiting { name, reason },
    }
}

fn is_ready(certificate: &Certificate) -> bool {
    let status = certificate.status.as_ref();
    status.is_some_and(|s| conditions::is_ready(&s.conditions, s.observed_generation, certificate.metadata.generation))
}

fn is_disabled(route: &ObjectMeta) -> bool {
    let spellings = [networking::DISABLE_TLS, networking::DISABLE_AUTO_TLS, networking::DISABLE_AUTO_TLS_ALT];
    meta::annotation_of(route, &spellings).is_some_and(|v| v.eq_ignore_ascii_case("true"))
}

fn make(o: &Observed, tag: &str, host: &str, domain: &str) -> Certificate {
    let own = &o.route.metadata;
    let uid = own.uid.as_deref().unwrap_or_default();
    let name = match tag {
        "" => format!("route-{uid}"),
        tag => format!("route-{uid}-{}", adler32(tag.as_bytes())),
    };
    let spellings = [networking::CERTIFICATE_CLASS, networking::CERTIFICATE_CLASS_ALT];
    let class =
        meta::annotation_of(own, &spellings).unwrap_or(&o.context.settings.network.certificate_class).to_owned();
    let mut annotations = meta::annotations(own, &spellings);
    annotations.insert(networking::CERTIFICATE_CLASS.into(), class);
    Certificate {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: own.namespace.clone(),
            labels: Some(BTreeMap::from([
                (keys::ROUTE.to_owned(), meta::name(own).to_owned()),
                (networking::CERTIFICATE_TYPE.to_owned(), "external-domain".to_owned()),
            ])),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(o.route.as_ref())]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec { dns_names: vec![host.to_owned()], domain: domain.to_owned(), secret_name: name },
        status: None,
    }
}
