//! Namespace: one wildcard certificate for each domain its routes may be named under (fact D8.1), so that a new route
//! has TLS at once.
//!
//! Off unless `external-domain-tls` is on and `namespace-wildcard-cert-selector` takes the namespace. A certificate of a
//! namespace or domain that is not wanted any more goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use neap_api::keys::networking;
use neap_api::networking::{Certificate, CertificateSpec};

use super::cache::Cache;
use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::{Context, ObjectRef, Plan, Write, meta};
use crate::config::Settings;
use crate::config::domain::WILDCARD;
use crate::names::hosts;

/// What certificates of public hosts carry as their type (C3.7).
pub const EXTERNAL_DOMAIN: &str = "external-domain";

/// A Namespace and its certificates.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Namespace.
    pub namespace: Arc<Namespace>,
    /// The certificates of public hosts in it, of routes too.
    pub certificates: Vec<Arc<Certificate>>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs. A Namespace has no namespace: only its name counts.
pub fn observe<C: Cache>(cache: &C, _: &str, name: &str, context: Context) -> Option<Observed> {
    Some(Observed {
        namespace: cache.get("", name)?,
        certificates: cache.labelled(name, networking::CERTIFICATE_TYPE, EXTERNAL_DOMAIN),
        context,
    })
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let namespace = o.namespace.as_ref();
    if namespace.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let wanted = wanted(o, &mut plan);
    let ours = |held: &&Arc<Certificate>| {
        meta::label(&held.metadata, networking::WILDCARD_DOMAIN).is_some()
            && is_controlled_by(&held.metadata, namespace)
    };
    for certificate in &wanted {
        let name = meta::name(&certificate.metadata);
        let held = o.certificates.iter().find(|held| meta::name(&held.metadata) == name).map(AsRef::as_ref);
        if let Some(refusal) = o.context.refusal::<Certificate>(name) {
            plan.warning("CreationFailed", format!("Failed to write Certificate {name:?}: {}", refusal.message));
            continue;
        }
        if held.is_some_and(|held| !is_controlled_by(&held.metadata, namespace)) {
            plan.because(format!("there is a Certificate {name} that belongs to somebody else"));
            plan.taken_name::<Certificate>(meta::name(&namespace.metadata), name);
            continue;
        }
        let write = ensure(held, certificate, Match::Exact);
        if matches!(write, Some(Write::Create(_))) {
            plan.normal("Created", format!("Created Knative Certificate {}/{name}", meta::name(&namespace.metadata)));
        }
        plan.write(write);
    }
    for stale in o.certificates.iter().filter(ours) {
        let name = meta::name(&stale.metadata);
        if !wanted.iter().any(|certificate| meta::name(&certificate.metadata) == name) {
            plan.write(Some(Write::Delete(ObjectRef::of(stale.as_ref()))));
        }
    }
    plan
}

fn wanted(o: &Observed, plan: &mut Plan) -> Vec<Certificate> {
    let settings = o.context.settings.as_ref();
    let labels = meta::labels(&o.namespace.metadata);
    let selector = settings.network.namespace_wildcard_cert_selector.as_ref();
    if !settings.network.external_domain_tls || !selector.is_some_and(|selector| selects(selector, &labels)) {
        return Vec::new();
    }
    let namespace = meta::name(&o.namespace.metadata);
    let mut wanted = Vec::new();
    for (domain, rule) in &settings.domain.domains {
        if rule.kind != WILDCARD {
            continue;
        }
        match hosts::wildcard(namespace, domain, settings) {
            Ok(dns_name) => wanted.push(make(o, domain, dns_name, settings)),
            Err(error) => plan.warning("InvalidDomainTemplate", meta::chain(&error)),
        }
    }
    wanted
}

fn make(o: &Observed, domain: &str, dns_name: String, settings: &Settings) -> Certificate {
    let name = dns_name.trim_start_matches("*.").to_owned();
    Certificate {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: o.namespace.metadata.name.clone(),
            labels: Some(BTreeMap::from([
                (networking::WILDCARD_DOMAIN.to_owned(), domain.to_owned()),
                (networking::CERTIFICATE_TYPE.to_owned(), EXTERNAL_DOMAIN.to_owned()),
            ])),
            annotations: Some(BTreeMap::from([(
                networking::CERTIFICATE_CLASS.to_owned(),
                settings.network.certificate_class.clone(),
            )])),
            owner_references: Some(vec![controller_ref(o.namespace.as_ref())]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec { dns_names: vec![dns_name], domain: domain.to_owned(), secret_name: name },
        status: None,
    }
}

/// Whether a label selector takes an object: an empty one takes everything.
pub fn selects(selector: &LabelSelector, labels: &meta::Words) -> bool {
    let exact = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    exact && selector.match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
}

fn meets(requirement: &LabelSelectorRequirement, labels: &meta::Words) -> bool {
    let held = labels.get(&requirement.key);
    let listed = held.is_some_and(|held| requirement.values.iter().flatten().any(|value| value == held));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => held.is_some(),
        "DoesNotExist" => held.is_none(),
        // Refused when the setting was read.
        _ => false,
    }
}

#[cfg(test)]
#[path = "wildcard_tests.rs"]
mod tests;
