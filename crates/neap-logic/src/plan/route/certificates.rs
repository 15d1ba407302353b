//! Certificates of a Route's hosts (facts D5.3, A5.7): of the public ones while `external-domain-tls` is on, of those inside
//! the cluster while `cluster-local-domain-tls` is.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::condition::{READY, find};
use neap_api::keys::{networking, serving as keys};
use neap_api::networking::{Certificate, CertificateSpec, Http01Challenge, IngressTls};
use neap_api::{Condition, ConditionStatus};

use super::{CERTIFICATE_PROVISIONED, Observed};
use crate::conditions::{self, Conditions};
use crate::config::network::HttpProtocol;
use crate::names::hash::adler32;
use crate::names::hosts::{self, HostError};
use crate::plan::certificate;
use crate::plan::ensure::{Match, controller_ref, ensure, is_controlled_by};
use crate::plan::wildcard::EXTERNAL_DOMAIN;
use crate::plan::{ObjectRef, Plan, Write, meta};
use crate::traffic::{Traffic, Visibility, route_name};

/// What certificates of hosts inside the cluster carry as their type (C3.7).
const CLUSTER_LOCAL_DOMAIN: &str = "cluster-local-domain";

/// What the Ingress and the status need to know.
#[derive(Debug, Default)]
pub(super) struct Tls {
    pub(super) entries: Vec<IngressTls>,
    pub(super) https_hosts: BTreeSet<String>,
    /// Whether the Route's own host is served with a certificate, or will be and must not be called without.
    pub(super) https_main: bool,
    /// Whether the Route's host inside the cluster is served with a certificate.
    pub(super) https_local: bool,
    /// Challenges to answer before there is a certificate, or another one.
    pub(super) challenges: Vec<Http01Challenge>,
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
    let external = !main_local && settings.network.external_domain_tls && !is_disabled(&o.route.metadata);
    let local = settings.network.cluster_local_domain_tls;
    if main_local && !local {
        c.mark_true_because(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "TLS is not enabled for cluster-local");
    } else if !external && !local {
        c.mark_true_because(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");
    } else {
        let wanted = wanted(o, traffic, visibilities, external, local)?;
        let mut state = State::Ready;
        for one in wanted {
            let name = meta::name(&one.certificate.metadata).to_owned();
            // A certificate of the whole namespace saves the time and the quota of another.
            let shared = o.wildcards.iter().find(|held| !one.is_local && covers(held, &one.hosts));
            let own = o.certificates.iter().find(|held| meta::name(&held.metadata) == name);
            let held = match (shared, own) {
                (Some(shared), _) => {
                    let name = meta::name(&shared.metadata);
                    state = state.worse(judge(Some(shared), shared, name));
                    shared.as_ref()
                }
                (None, Some(own)) if !is_controlled_by(&own.metadata, o.route.as_ref()) => {
                    plan.taken_by(own.as_ref());
                    state = state.worse(State::Foreign { name });
                    continue;
                }
                (None, own) => {
                    let own = own.map(AsRef::as_ref);
                    plan.write(ensure(own, &one.certificate, Match::Exact));
                    state = state.worse(judge(own, &one.certificate, &name));
                    wanted_names.insert(name);
                    own.unwrap_or(&one.certificate)
                }
            };
            if is_wanted_from(held) {
                tls.challenges.extend(held.status.iter().flat_map(|s| s.http01_challenges.clone()));
            }
            if is_ready(held) {
                tls.entries.push(IngressTls {
                    hosts: one.hosts.clone(),
                    secret_name: held.spec.secret_name.clone(),
                    secret_namespace: meta::namespace(&o.route.metadata).to_owned(),
                });
                tls.https_main |= one.is_main && one.is_local == main_local;
                tls.https_local |= one.is_main && one.is_local;
                tls.https_hosts.extend(one.hosts);
            }
        }
        tls.https_main |= conclude(state, settings.network.http_protocol == HttpProtocol::Enabled, c);
    }
    for stale in o.certificates.iter().filter(|held| is_controlled_by(&held.metadata, o.route.as_ref())) {
        if !wanted_names.contains(meta::name(&stale.metadata)) {
            plan.write(Some(Write::Delete(ObjectRef::of(stale.as_ref()))));
        }
    }
    Ok(tls)
}

/// Says what the certificates add up to; whether the Route must not be called without TLS although there is none yet.
fn conclude(state: State, downgrade: bool, c: &mut Conditions) -> bool {
    match state {
        State::Ready => c.mark_true(CERTIFICATE_PROVISIONED),
        State::Waiting { name, .. } if downgrade => {
            let message = format!("Certificate {name} is not ready downgrade HTTP.");
            c.mark_true_because(CERTIFICATE_PROVISIONED, "HTTPDowngrade", &message);
        }
        State::Failed { name, reason } if downgrade => {
            let message = format!("Certificate {name} is not ready downgrade HTTP: {reason}");
            c.mark_true_because(CERTIFICATE_PROVISIONED, "HTTPDowngrade", &message);
        }
        State::Waiting { name, reason } => {
            let message = format!("Certificate {name} is not ready: {reason}");
            c.mark_unknown(CERTIFICATE_PROVISIONED, "CertificateNotReady", &message);
            return true;
        }
        State::Foreign { name } => {
            let message = format!("There is an existing certificate {name} that we don't own.");
            c.mark_false(CERTIFICATE_PROVISIONED, "CertificateNotOwned", &message);
            return true;
        }
        State::Failed { name, reason } => {
            let message = format!("Certificate {name} fails to be provisioned: {reason}");
            c.mark_false(CERTIFICATE_PROVISIONED, "CertificateProvisionFailed", &message);
            return true;
        }
    }
    false
}

/// A certificate to have.
struct Wanted {
    certificate: Certificate,
    hosts: Vec<String>,
    /// For the Route itself, not for one of its tags.
    is_main: bool,
    /// For hosts inside the cluster.
    is_local: bool,
}

fn wanted(
    o: &Observed,
    traffic: &Traffic,
    visibilities: &BTreeMap<String, Visibility>,
    external: bool,
    local: bool,
) -> Result<Vec<Wanted>, HostError> {
    let settings = &o.context.settings;
    let empty = BTreeMap::new();
    let name = route_name(&o.route.metadata, &empty);
    let mut wanted = Vec::new();
    for tag in traffic.groups.keys() {
        let is_public = visibilities.get(tag) != Some(&Visibility::ClusterLocal);
        if external && is_public {
            let hosts = vec![hosts::host(&name, tag, false, settings)?];
            let domain = settings.domain.lookup(name.labels, &settings.neap.cluster_domain);
            let certificate = make(o, tag, &hosts, &domain, EXTERNAL_DOMAIN, "");
            wanted.push(Wanted { certificate, hosts, is_main: tag.is_empty(), is_local: false });
        }
        if local {
            let host = hosts::host(&name, tag, true, settings)?;
            let hosts = hosts::local_names(&host, settings);
            let domain = format!("svc.{}", settings.neap.cluster_domain);
            let certificate = make(o, tag, &hosts, &domain, CLUSTER_LOCAL_DOMAIN, "-local");
            wanted.push(Wanted { certificate, hosts, is_main: tag.is_empty(), is_local: true });
        }
    }
    Ok(wanted)
}

/// Whether a wildcard certificate is for all these hosts: `*.ns.example.com` is for `a.ns.example.com`.
fn covers(certificate: &Certificate, hosts: &[String]) -> bool {
    let named = |host: &String| {
        host.split_once('.').is_some_and(|(_, rest)| {
            certificate.spec.dns_names.iter().any(|name| name.strip_prefix("*.").is_some_and(|name| name == rest))
        })
    };
    hosts.iter().all(named)
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
    let reason = ready.map(said).unwrap_or_default();
    match ready.map(|c| c.status) {
        Some(ConditionStatus::True) if is_ready(held) => State::Ready,
        Some(ConditionStatus::False) => State::Failed { name, reason },
        _ => State::Waiting { name, reason },
    }
}

/// Its words, where it has some.
fn said(condition: &Condition) -> String {
    if condition.message.is_empty() { condition.reason.clone() } else { condition.message.clone() }
}

/// Whether challenges have to be answered for a certificate: there is none, or another one is being had.
fn is_wanted_from(certificate: &Certificate) -> bool {
    let renews = certificate
        .status
        .as_ref()
        .is_some_and(|s| conditions::status_of(&s.conditions, certificate::RENEWING) == ConditionStatus::True);
    renews || !is_ready(certificate)
}

fn is_ready(certificate: &Certificate) -> bool {
    let status = certificate.status.as_ref();
    status.is_some_and(|s| conditions::is_ready(&s.conditions, s.observed_generation, certificate.metadata.generation))
}

fn is_disabled(route: &ObjectMeta) -> bool {
    let spellings = [networking::DISABLE_TLS, networking::DISABLE_AUTO_TLS, networking::DISABLE_AUTO_TLS_ALT];
    meta::annotation_of(route, &spellings).is_some_and(|v| v.eq_ignore_ascii_case("true"))
}

fn make(o: &Observed, tag: &str, hosts: &[String], domain: &str, kind: &str, suffix: &str) -> Certificate {
    let own = &o.route.metadata;
    let uid = own.uid.as_deref().unwrap_or_default();
    let name = match tag {
        "" => format!("route-{uid}{suffix}"),
        tag => format!("route-{uid}-{}{suffix}", adler32(tag.as_bytes())),
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
                (networking::CERTIFICATE_TYPE.to_owned(), kind.to_owned()),
            ])),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(o.route.as_ref())]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec { dns_names: hosts.to_vec(), domain: domain.to_owned(), secret_name: name },
        status: None,
    }
}
