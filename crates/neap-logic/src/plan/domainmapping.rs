//! DomainMapping: a host name of one's own for an addressable object (facts D9, A6.1).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_api::ConditionStatus;
use neap_api::condition::{READY, find};
use neap_api::keys::{neap, networking, serving as keys};
use neap_api::networking::{
    Certificate, CertificateSpec, ClusterDomainClaim, ClusterDomainClaimSpec, Http01Challenge, HttpPath, HttpRule,
    Ingress, IngressRule, IngressSpec, IngressSplit, IngressTls,
};
use neap_api::serving::{Address, DomainMapping, DomainMappingStatus, KReference, Route, Service};
use serde_json::json;

use super::cache::Cache;
use super::certificate::RENEWING;
use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::route::ingress::challenge_paths;
use super::{Context, Object, ObjectRef, Patch, Plan, Write, meta};
use crate::conditions::{self, Conditions};
use crate::config::Settings;
use crate::config::network::HttpProtocol;
use crate::names::{self, hosts};
use crate::routing::extras::{self, PathExtra, Problem, Rule, RuleTarget};

/// The finalizer by which an automatic claim is given up before the mapping goes.
pub const FINALIZER: &str = "domainmappings.serving.knative.dev";

const DOMAIN_CLAIMED: &str = "DomainClaimed";
const REFERENCE_RESOLVED: &str = "ReferenceResolved";
const INGRESS_READY: &str = "IngressReady";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";
const ORIGINAL_HOST_HEADER: &str = "K-Original-Host";
/// The port of a placeholder Service.
const BACKEND_PORT: i32 = 80;

/// What a reference led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Referent {
    /// The address it shows.
    Address(String),
    /// It is there but shows no address yet.
    NoAddress,
    /// It is not there.
    Missing,
    /// Its kind is not one that has an address.
    UnknownKind,
}

/// A DomainMapping, what it refers to and what it owns.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The DomainMapping.
    pub mapping: Arc<DomainMapping>,
    /// The claim on its name, whoever has it.
    pub claim: Option<Arc<ClusterDomainClaim>>,
    /// The Ingress of its name, whoever owns it.
    pub ingress: Option<Arc<Ingress>>,
    /// The Certificate of its name, whoever owns it.
    pub certificate: Option<Arc<Certificate>>,
    /// What it refers to.
    pub referent: Referent,
    /// What the entries of `neap.dev/routes` lead to, in their order.
    pub targets: Vec<Referent>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, context: Context) -> Option<Observed> {
    let mapping = cache.get::<DomainMapping>(namespace, name)?;
    Some(Observed {
        claim: cache.get("", name),
        ingress: cache.get(namespace, &names::ingress(name)),
        certificate: cache.get(namespace, &names::child_name(name, "")),
        referent: referent(cache, namespace, &mapping.spec.reference, &context),
        targets: references(&mapping).iter().map(|to| referent(cache, namespace, to, &context)).collect(),
        mapping,
        context,
    })
}

/// What else than its `ref` a mapping leads to.
pub fn references(mapping: &DomainMapping) -> Vec<KReference> {
    let to = |rule: Rule| match rule.target {
        RuleTarget::To(reference) => Some(reference),
        RuleTarget::Tag(_) => None,
    };
    written(mapping).unwrap_or_default().into_iter().filter_map(to).collect()
}

fn written(mapping: &DomainMapping) -> Result<Vec<Rule>, Problem> {
    meta::annotation(&mapping.metadata, neap::ROUTES).map_or(Ok(Vec::new()), |list| extras::rules(list, true))
}

fn referent<C: Cache>(cache: &C, namespace: &str, reference: &KReference, context: &Context) -> Referent {
    let shown = |address: Option<Address>| match address.and_then(|a| a.url) {
        Some(url) => Referent::Address(url),
        None => Referent::NoAddress,
    };
    let group = reference.api_version.split('/').next().unwrap_or_default();
    let group = if reference.group.is_empty() { group } else { &reference.group };
    match (group, reference.kind.as_str()) {
        (neap_api::serving::GROUP, "Service") => match cache.get::<Service>(namespace, &reference.name) {
            Some(service) => shown(service.status.as_ref().and_then(|s| s.address.clone())),
            None => Referent::Missing,
        },
        (neap_api::serving::GROUP, "Route") => match cache.get::<Route>(namespace, &reference.name) {
            Some(route) => shown(route.status.as_ref().and_then(|s| s.address.clone())),
            None => Referent::Missing,
        },
        ("v1", "Service") => match cache.get::<k8s_openapi::api::core::v1::Service>(namespace, &reference.name) {
            Some(_) => Referent::Address(format!(
                "http://{}",
                hosts::service_host(&reference.name, namespace, &context.settings)
            )),
            None => Referent::Missing,
        },
        _ => Referent::UnknownKind,
    }
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mapping = o.mapping.as_ref();
    if mapping.metadata.deletion_timestamp.is_some() {
        release(o, &mut plan);
        return plan;
    }
    let mut status = mapping.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::DOMAIN_MAPPING, &status.conditions, o.context.now);
    let generation = mapping.metadata.generation.unwrap_or_default();
    if status.observed_generation != generation {
        c.mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
    }
    status.observed_generation = generation;
    add_finalizer(mapping, &mut plan);
    map(o, &mut plan, &mut c, &mut status);
    status.conditions = c.into_vec();
    plan.set_status(mapping.status.as_ref(), &status);
    plan
}

fn map(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut DomainMappingStatus) {
    let mapping = o.mapping.as_ref();
    let settings = &o.context.settings;
    let host = meta::name(&mapping.metadata);
    let show = |status: &mut DomainMappingStatus, scheme: &str| {
        let url = hosts::url(scheme, host, settings);
        status.url = Some(url.clone());
        status.address = Some(Address { url: Some(url) });
    };
    show(status, &settings.network.default_external_scheme);
    // Before anything is made for the name it must be ours.
    if !claim(o, plan, c) {
        return;
    }
    plan.only_then();
    let Some(tls) = certificate(o, plan, c) else { return };
    if tls.https {
        show(status, "https");
    }
    let first = match resolve(&mapping.spec.reference, &o.referent, o) {
        Ok(target) => target,
        Err(message) => {
            c.mark_false(REFERENCE_RESOLVED, "ResolveFailed", &message);
            return;
        }
    };
    let rules = match beyond(o) {
        Ok(rules) => rules,
        Err(message) => {
            c.mark_false(REFERENCE_RESOLVED, "ResolveFailed", &message);
            return;
        }
    };
    match rules.iter().find_map(|routed| routed.missing.as_deref()) {
        None => c.mark_true(REFERENCE_RESOLVED),
        // What is there is served; what is not there is answered with 503, and never by somebody else.
        Some(missing) => c.mark_false(REFERENCE_RESOLVED, "ResolveFailed", missing),
    }
    let desired = make_ingress(o, &first, &rules, tls);
    let name = meta::name(&desired.metadata);
    let held = o.ingress.as_deref();
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, mapping)) {
        c.mark_false(INGRESS_READY, "NotOwned", &format!("There is an existing Ingress {name:?} that we do not own."));
        plan.taken_name::<Ingress>(meta::namespace(&mapping.metadata), name);
        return;
    }
    let write = ensure(held, &desired, Match::Exact);
    if matches!(write, Some(Write::Create(_))) {
        plan.normal("Created", format!("Created Ingress {name:?}"));
    }
    plan.write(write);
    let served = held.filter(|held| held.spec == desired.spec).and_then(|held| {
        held.status.as_ref().filter(|s| s.observed_generation == held.metadata.generation.unwrap_or_default())
    });
    match served.and_then(|s| find(&s.conditions, READY)) {
        Some(ready) if ready.status == ConditionStatus::True => c.mark_true(INGRESS_READY),
        Some(ready) => c.copy(INGRESS_READY, ready),
        None => c.mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled."),
    }
}

/// How the name is served.
struct Tls {
    entries: Vec<IngressTls>,
    /// Whether it is called with https; so it may be before there is a certificate.
    https: bool,
    /// Challenges to answer before there is a certificate, or another one.
    challenges: Vec<Http01Challenge>,
}

impl Tls {
    fn new(entries: Vec<IngressTls>, https: bool) -> Self {
        Self { entries, https, challenges: Vec::new() }
    }
}

/// The certificate to serve with; `None` when it is somebody else's.
fn certificate(o: &Observed, plan: &mut Plan, c: &mut Conditions) -> Option<Tls> {
    let mapping = o.mapping.as_ref();
    let namespace = meta::namespace(&mapping.metadata);
    let host = meta::name(&mapping.metadata);
    let entry = |secret: &str| IngressTls {
        hosts: vec![host.to_owned()],
        secret_name: secret.to_owned(),
        secret_namespace: namespace.to_owned(),
    };
    if let Some(tls) = &mapping.spec.tls {
        c.mark_true_because(
            CERTIFICATE_PROVISIONED,
            "CertificateExternallyProvided",
            "TLS certificate was provided externally",
        );
        let mut own = entry(&tls.secret_name);
        if is_wildcard(o) {
            own.hosts.push(format!("*.{host}"));
        }
        return Some(Tls::new(vec![own], true));
    }
    let spellings = [networking::DISABLE_TLS, networking::DISABLE_AUTO_TLS, networking::DISABLE_AUTO_TLS_ALT];
    let disabled = meta::annotation_of(&mapping.metadata, &spellings).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if !o.context.settings.network.external_domain_tls || disabled {
        c.mark_true_because(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");
        return Some(Tls::new(Vec::new(), false));
    }
    let wanted = make_certificate(o);
    let name = meta::name(&wanted.metadata).to_owned();
    let held = o.certificate.as_deref();
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, mapping)) {
        plan.taken_name::<Certificate>(namespace, &name);
        c.mark_false(
            CERTIFICATE_PROVISIONED,
            "CertificateNotOwned",
            &format!("There is an existing certificate {name} that we don't own."),
        );
        return None;
    }
    plan.write(ensure(held, &wanted, Match::Exact));
    let status = held.filter(|held| held.spec == wanted.spec).and_then(|held| held.status.as_ref());
    let ready = status.and_then(|s| find(&s.conditions, READY));
    let challenges = status.map(|s| s.http01_challenges.clone()).unwrap_or_default();
    if ready.is_some_and(|r| r.status == ConditionStatus::True) {
        c.mark_true(CERTIFICATE_PROVISIONED);
        let renews = status.is_some_and(|s| conditions::status_of(&s.conditions, RENEWING) == ConditionStatus::True);
        let challenges = if renews { challenges } else { Vec::new() };
        return Some(Tls { entries: vec![entry(&wanted.spec.secret_name)], https: true, challenges });
    }
    let downgrade = o.context.settings.network.http_protocol == HttpProtocol::Enabled;
    let failed = ready.filter(|r| r.status == ConditionStatus::False);
    let why = failed.map(|r| if r.message.is_empty() { &r.reason } else { &r.message });
    match (downgrade, why) {
        (true, why) => {
            let why = why.map_or_else(|| ".".to_owned(), |why| format!(": {why}"));
            let message = format!("Certificate {name} is not ready downgrade HTTP{why}");
            c.mark_true_because(CERTIFICATE_PROVISIONED, "HTTPDowngrade", &message);
        }
        (false, Some(why)) => {
            let message = format!("Certificate {name} fails to be provisioned: {why}");
            c.mark_false(CERTIFICATE_PROVISIONED, "CertificateProvisionFailed", &message);
        }
        (false, None) => {
            let message = format!("Certificate {name} is not ready.");
            c.mark_unknown(CERTIFICATE_PROVISIONED, "CertificateNotReady", &message);
        }
    }
    Some(Tls { entries: Vec::new(), https: !downgrade, challenges })
}

fn make_certificate(o: &Observed) -> Certificate {
    let own = &o.mapping.metadata;
    let host = meta::name(own);
    let spellings = [networking::CERTIFICATE_CLASS, networking::CERTIFICATE_CLASS_ALT];
    let class =
        meta::annotation_of(own, &spellings).unwrap_or(&o.context.settings.network.certificate_class).to_owned();
    let mut annotations = meta::annotations(own, &spellings);
    annotations.insert(networking::CERTIFICATE_CLASS.into(), class);
    let name = names::child_name(host, "");
    Certificate {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: own.namespace.clone(),
            labels: Some(BTreeMap::from([
                (keys::DOMAIN_MAPPING_UID.to_owned(), own.uid.clone().unwrap_or_default()),
                (networking::CERTIFICATE_TYPE.to_owned(), "external-domain".to_owned()),
            ])),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(o.mapping.as_ref())]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec { dns_names: vec![host.to_owned()], domain: host.to_owned(), secret_name: name },
        status: None,
    }
}

/// Whether the name is ours to use.
fn claim(o: &Observed, plan: &mut Plan, c: &mut Conditions) -> bool {
    let namespace = meta::namespace(&o.mapping.metadata);
    let name = meta::name(&o.mapping.metadata);
    match &o.claim {
        Some(claim) if claim.spec.namespace == namespace => {
            c.mark_true(DOMAIN_CLAIMED);
            true
        }
        Some(_) => {
            c.mark_false(
                DOMAIN_CLAIMED,
                "DomainAlreadyClaimed",
                "The domain name is already in use by another DomainMapping",
            );
            false
        }
        None if o.context.settings.network.autocreate_cluster_domain_claims => {
            if let Some(refusal) = o.context.refusal::<ClusterDomainClaim>(name) {
                plan.warning(
                    "InternalError",
                    format!("Failed to create ClusterDomainClaim {name:?}: {}", refusal.message),
                );
                let message = format!("failed to create ClusterDomainClaim {name:?}: {}", refusal.message);
                c.mark_false(DOMAIN_CLAIMED, "DomainClaimFailed", &message);
                return false;
            }
            let claim = ClusterDomainClaim {
                metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                spec: ClusterDomainClaimSpec { namespace: namespace.to_owned() },
            };
            plan.write(Some(Write::Create(Object::of(&claim))));
            c.mark_true(DOMAIN_CLAIMED);
            true
        }
        None => {
            let message = format!(
                "no ClusterDomainClaim found for domain {name:?}: create one for namespace {namespace:?}, or switch on autocreate-cluster-domain-claims in config-network"
            );
            c.mark_false(DOMAIN_CLAIMED, "DomainClaimFailed", &message);
            false
        }
    }
}

/// Where requests go: a host, and the Kubernetes Service behind it.
struct Target {
    host: String,
    service: String,
}

/// One entry of `neap.dev/routes`.
struct Routed {
    rule: Rule,
    target: Target,
    /// Why its target cannot be reached yet.
    missing: Option<String>,
}

/// The entries, for our own gateway: another could not tell them apart.
fn beyond(o: &Observed) -> Result<Vec<Routed>, String> {
    let mapping = o.mapping.as_ref();
    if class(mapping, &o.context.settings) != networking::NEAP_INGRESS_CLASS {
        return Ok(Vec::new());
    }
    let rules = written(mapping).map_err(|problem| format!("annotation {}: {}", problem.key, problem.message))?;
    let mut routed = Vec::with_capacity(rules.len());
    for (at, (rule, referent)) in rules.into_iter().zip(&o.targets).enumerate() {
        let RuleTarget::To(reference) = &rule.target else { continue };
        let (target, missing) = match resolve(reference, referent, o) {
            Ok(target) => (target, None),
            Err(message) => {
                // Its address is no secret before it is shown.
                let namespace = meta::namespace(&mapping.metadata);
                let host = hosts::service_host(&reference.name, namespace, &o.context.settings);
                let missing = format!("{}, entry {}: {message}", neap::ROUTES, at + 1);
                (Target { host, service: reference.name.clone() }, Some(missing))
            }
        };
        routed.push(Routed { rule, target, missing });
    }
    Ok(routed)
}

/// The host and the Kubernetes Service behind a reference.
fn resolve(reference: &KReference, referent: &Referent, o: &Observed) -> Result<Target, String> {
    let namespace = meta::namespace(&o.mapping.metadata);
    let url = match referent {
        Referent::Address(url) => url,
        Referent::NoAddress => {
            return Err(format!("address not set for {} {:?}", reference.kind, reference.name));
        }
        Referent::Missing => {
            let plural = format!("{}s.{}", reference.kind.to_lowercase(), neap_api::serving::GROUP);
            return Err(format!("{plural} {:?} not found", reference.name));
        }
        Referent::UnknownKind => {
            return Err(format!(
                "{} {} has no address a domain can be mapped to",
                reference.api_version, reference.kind
            ));
        }
    };
    let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !path.trim_end_matches('/').is_empty() {
        return Err(format!("resolved URI {url:?} contains a path"));
    }
    let suffix = format!(".svc.{}", o.context.settings.neap.cluster_domain);
    let parts = host.strip_suffix(&suffix).and_then(|name| name.split_once('.'));
    let Some((service, place)) = parts.filter(|(_, place)| !place.contains('.')) else {
        return Err(format!("resolved URI {url:?} must be of the form {{name}}.{{namespace}}{suffix}"));
    };
    if place != namespace {
        return Err(format!("resolved URI {url:?} must be in same namespace as DomainMapping"));
    }
    Ok(Target { host: host.to_owned(), service: service.to_owned() })
}

/// The kind of gateway that is to serve it.
fn class<'a>(mapping: &'a DomainMapping, settings: &'a Settings) -> &'a str {
    meta::annotation_of(&mapping.metadata, &[networking::INGRESS_CLASS, networking::INGRESS_CLASS_ALT])
        .filter(|class| !class.is_empty())
        .unwrap_or(&settings.network.ingress_class)
}

/// Whether all names below it are served too.
fn is_wildcard(o: &Observed) -> bool {
    let mapping = o.mapping.as_ref();
    meta::annotation(&mapping.metadata, neap::WILDCARD) == Some("true")
        && class(mapping, &o.context.settings) == networking::NEAP_INGRESS_CLASS
}

fn make_ingress(o: &Observed, first: &Target, rules: &[Routed], tls: Tls) -> Ingress {
    let own = &o.mapping.metadata;
    let host = meta::name(own);
    let settings = &o.context.settings;
    let mut labels = meta::labels(own);
    labels.insert(keys::DOMAIN_MAPPING_UID.into(), own.uid.clone().unwrap_or_default());
    labels.insert(keys::DOMAIN_MAPPING_NAMESPACE.into(), meta::namespace(own).into());
    let mut annotations =
        meta::annotations(own, &[networking::INGRESS_CLASS, networking::INGRESS_CLASS_ALT, neap::ROUTES, neap::PATHS]);
    annotations.insert(networking::INGRESS_CLASS.into(), class(&o.mapping, settings).to_owned());
    let redirected = match meta::annotation_of(own, &[networking::HTTP_PROTOCOL, networking::HTTP_OPTION]) {
        Some(option) => option.eq_ignore_ascii_case("redirected"),
        None => settings.network.http_protocol == HttpProtocol::Redirected,
    };
    let path = |target: &Target, prefix: &str, original: Option<&str>| HttpPath {
        path: prefix.to_owned(),
        rewrite_host: target.host.clone(),
        append_headers: original.map(|host| (ORIGINAL_HOST_HEADER.to_owned(), host.to_owned())).into_iter().collect(),
        splits: vec![IngressSplit {
            service_namespace: meta::namespace(own).to_owned(),
            service_name: target.service.clone(),
            service_port: IntOrString::Int(BACKEND_PORT),
            percent: 100,
            append_headers: BTreeMap::new(),
        }],
        ..HttpPath::default()
    };
    // Below a wildcard the gateway tells the application the name it was called by; nobody else knows it.
    let mut sides = vec![(host.to_owned(), Some(host))];
    if is_wildcard(o) {
        sides.push((format!("*.{host}"), None));
    }
    let mut extras = Vec::new();
    let mut ingress_rules = Vec::with_capacity(sides.len());
    for (side, (name, original)) in sides.into_iter().enumerate() {
        let hosts = vec![name];
        let mut paths = challenge_paths(&tls.challenges, &hosts);
        for routed in rules {
            extras.push(PathExtra { rule: side, path: paths.len(), more: routed.rule.more.clone() });
            paths.push(path(&routed.target, &routed.rule.path, original));
        }
        paths.push(path(first, "", original));
        let http = Some(HttpRule { paths });
        ingress_rules.push(IngressRule { hosts, visibility: "ExternalIP".into(), http });
    }
    if !extras.is_empty() {
        annotations.insert(neap::PATHS.into(), extras::write_paths(&extras));
    }
    Ingress {
        metadata: ObjectMeta {
            name: Some(names::ingress(host)),
            namespace: own.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(o.mapping.as_ref())]),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            http_option: if redirected && !tls.entries.is_empty() { "Redirected".into() } else { "Enabled".into() },
            tls: tls.entries,
            rules: ingress_rules,
        },
        status: None,
    }
}

fn add_finalizer(mapping: &DomainMapping, plan: &mut Plan) {
    let mut finalizers = mapping.metadata.finalizers.clone().unwrap_or_default();
    if finalizers.iter().any(|f| f == FINALIZER) {
        return;
    }
    finalizers.push(FINALIZER.to_owned());
    plan.write(Some(set_finalizers(mapping, &finalizers)));
    plan.normal("FinalizerUpdate", format!("Updated {:?} finalizers", meta::name(&mapping.metadata)));
}

/// Gives up a claim that was made for this mapping, then lets the mapping go.
fn release(o: &Observed, plan: &mut Plan) {
    let mapping = o.mapping.as_ref();
    let finalizers = mapping.metadata.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return;
    }
    if let Some(claim) = o.claim.as_deref().filter(|_| o.context.settings.network.autocreate_cluster_domain_claims)
        && claim.spec.namespace == meta::namespace(&mapping.metadata)
    {
        plan.write(Some(Write::Delete(ObjectRef::of(claim))));
    }
    let left: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
    plan.write(Some(set_finalizers(mapping, &left)));
}

fn set_finalizers(mapping: &DomainMapping, finalizers: &[String]) -> Write {
    Write::Patch(Patch {
        target: ObjectRef::of(mapping),
        subresource: None,
        // The version guards against two writers of the same list.
        merge: json!({"metadata": {"finalizers": finalizers, "resourceVersion": mapping.metadata.resource_version}}),
    })
}

#[cfg(test)]
#[path = "domainmapping_tests.rs"]
mod tests;
