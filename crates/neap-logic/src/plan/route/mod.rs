//! Route: from targets to an Ingress, placeholders, certificates and a status (facts D5, A5, E6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use neap_api::ConditionStatus;
use neap_api::condition::{READY, find};
use neap_api::keys::{networking, serving as keys};
use neap_api::networking::{Certificate, Ingress};
use neap_api::serving::{Address, Configuration, Revision, Route, RouteStatus};

use super::cache::Cache;
use super::ensure::{Match, ensure, is_controlled_by};
use super::placeholder::{self, Placeholders};
use super::{Context, Plan, Write, meta};
use crate::conditions::{self, Conditions};
use crate::config::go::parse_duration;
use crate::names::{self, hosts};
use crate::traffic::{self, Known, Rollout, Traffic, Visibility, visibility};

mod certificates;
pub(in crate::plan) mod ingress;
#[cfg(test)]
mod tests;

const ALL_TRAFFIC_ASSIGNED: &str = "AllTrafficAssigned";
const INGRESS_READY: &str = "IngressReady";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";

/// A Route, what it refers to and what it owns.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Route.
    pub route: Arc<Route>,
    /// The Configurations and Revisions its targets lead to.
    pub known: Known,
    /// The Services and Endpoints that carry its label.
    pub placeholders: Placeholders,
    /// Names of Services that exist, would be needed, and are somebody else's.
    pub foreign_services: Vec<String>,
    /// The Ingress of its name, whoever owns it.
    pub ingress: Option<Arc<Ingress>>,
    /// The Certificates that carry its label.
    pub certificates: Vec<Arc<Certificate>>,
    /// The wildcard Certificates of its namespace for its domain, while public hosts have certificates.
    pub wildcards: Vec<Arc<Certificate>>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, context: Context) -> Option<Observed> {
    let route = cache.get::<Route>(namespace, name)?;
    let known = lookup(cache, namespace, &route);
    let empty = BTreeMap::new();
    let route_name = traffic::route_name(&route.metadata, &empty);
    let tags = route.spec.traffic.iter().map(|t| t.tag.as_str()).chain([""]);
    let names = tags.filter_map(|tag| hosts::tag_service(&route_name, tag, &context.settings).ok());
    let foreign = |name: &String| {
        let held = cache.get::<k8s_openapi::api::core::v1::Service>(namespace, name);
        held.is_some_and(|service| !is_controlled_by(&service.metadata, route.as_ref()))
    };
    Some(Observed {
        foreign_services: names.filter(foreign).collect(),
        placeholders: Placeholders {
            services: cache.labelled(namespace, keys::ROUTE, name),
            endpoints: cache.labelled(namespace, keys::ROUTE, name),
        },
        ingress: cache.get(namespace, &names::ingress(name)),
        certificates: cache.labelled(namespace, keys::ROUTE, name),
        wildcards: wildcards(cache, &route_name, &context),
        known,
        route,
        context,
    })
}

fn wildcards<C: Cache>(cache: &C, route: &hosts::RouteName<'_>, context: &Context) -> Vec<Arc<Certificate>> {
    let settings = context.settings.as_ref();
    if !settings.network.external_domain_tls {
        return Vec::new();
    }
    let domain = settings.domain.lookup(route.labels, &settings.neap.cluster_domain);
    cache.labelled(route.namespace, networking::WILDCARD_DOMAIN, &domain)
}

/// The Configurations and Revisions a Route's targets lead to.
fn lookup<C: Cache>(cache: &C, namespace: &str, route: &Route) -> Known {
    let mut known = Known::default();
    for target in &route.spec.traffic {
        let mut revision_name = target.revision_name.clone();
        if let Some(configuration) = cache.get::<Configuration>(namespace, &target.configuration_name) {
            revision_name =
                configuration.status.as_ref().map(|s| s.latest_ready_revision_name.clone()).unwrap_or_default();
            known.configurations.insert(target.configuration_name.clone(), configuration);
        }
        if let Some(revision) = cache.get::<Revision>(namespace, &revision_name) {
            known.revisions.insert(revision_name, revision);
        }
    }
    known
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let route = o.route.as_ref();
    if route.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = route.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::ROUTE, &status.conditions, o.context.now);
    let generation = route.metadata.generation.unwrap_or_default();
    if status.observed_generation != generation {
        // What was routed before says nothing about the new spec.
        not_configured(&mut c);
    }
    status.observed_generation = generation;
    if let Err(error) = assign(o, &mut plan, &mut c, &mut status) {
        let text = meta::chain(&error);
        c.mark_false(ALL_TRAFFIC_ASSIGNED, "ErrorConfig", &text);
        plan.because(text);
    }
    status.conditions = c.into_vec();
    plan.set_status(route.status.as_ref(), &status);
    plan
}

fn not_configured(c: &mut Conditions) {
    c.mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
}

fn assign(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut RouteStatus) -> Result<(), hosts::HostError> {
    let route = o.route.as_ref();
    let settings = &o.context.settings;
    let empty = BTreeMap::new();
    let name = traffic::route_name(&route.metadata, &empty);

    let resolved = traffic::resolve(route, &o.known);
    // The URL does not depend on the targets, so it is shown even while they are not there.
    let nothing = Traffic { revisions: Vec::new(), groups: [(String::new(), Vec::new())].into() };
    let labels_of = |service: &str| {
        let held = o.placeholders.services.iter().find(|s| meta::name(&s.metadata) == service)?;
        Some(meta::labels(&held.metadata))
    };
    let visibilities = visibility::resolve(&name, resolved.as_ref().unwrap_or(&nothing), &labels_of, settings)?;
    let main_local = visibilities.get("") == Some(&Visibility::ClusterLocal);
    let main_host = hosts::host(&name, "", main_local, settings)?;
    let scheme = if main_local { "http" } else { settings.network.default_external_scheme.as_str() };
    status.url = Some(hosts::url(scheme, &main_host, settings));

    let traffic = match resolved {
        Ok(traffic) => traffic,
        Err(bad) => {
            match bad.failed {
                true => c.mark_false(ALL_TRAFFIC_ASSIGNED, &bad.reason, &bad.message),
                false => c.mark_unknown(ALL_TRAFFIC_ASSIGNED, &bad.reason, &bad.message),
            }
            plan.because(bad.message);
            return Ok(());
        }
    };
    c.mark_true(ALL_TRAFFIC_ASSIGNED);
    let local_host = hosts::service_host(name.name, name.namespace, settings);
    status.address = Some(Address { url: Some(format!("http://{local_host}")) });

    let foreign = |service: &str| o.foreign_services.iter().any(|f| f == service);
    if let Some(taken) =
        placeholder::plan(route, &traffic, &o.placeholders, &foreign, o.ingress.as_deref(), &o.context, plan)?
    {
        let message = format!("There is an existing placeholder Service {:?} that we do not own.", taken.name);
        c.mark_false(INGRESS_READY, "NotOwned", &message);
        plan.taken_name::<k8s_openapi::api::core::v1::Service>(name.namespace, &taken.name);
        return Ok(());
    }

    let tls = certificates::plan(o, &traffic, &visibilities, plan, c)?;
    if tls.https_main {
        status.url = Some(hosts::url("https", &main_host, settings));
    }
    if tls.https_local {
        status.address = Some(Address { url: Some(format!("https://{local_host}")) });
    }
    let rollout = rollout(o, &traffic, plan);
    let desired = ingress::make(o, &traffic, &visibilities, &rollout, tls.entries, &tls.challenges)?;
    ingress_state(o, &desired, &rollout, plan, c);

    let url_of_tag = |tag: &str| {
        let local = visibilities.get(tag) == Some(&Visibility::ClusterLocal);
        let host = hosts::host(&name, tag, local, settings)?;
        let secure = tls.https_hosts.contains(&host);
        let scheme = if secure {
            "https"
        } else if local {
            "http"
        } else {
            settings.network.default_external_scheme.as_str()
        };
        Ok(hosts::url(scheme, &host, settings))
    };
    status.traffic = traffic::status_targets(&traffic, &rollout, &url_of_tag)?;
    Ok(())
}

/// Where a gradual rollout stands now, and when to look again.
fn rollout(o: &Observed, traffic: &Traffic, plan: &mut Plan) -> Rollout {
    let goal = Rollout::goal(traffic);
    let route = &o.route.metadata;
    let own = meta::annotation_of(route, &[keys::ROLLOUT_DURATION, keys::ROLLOUT_DURATION_ALT]);
    let own = own.and_then(parse_duration).and_then(|d| d.positive()).filter(|d| !d.is_zero());
    let duration = own.unwrap_or(o.context.settings.network.rollout_duration);
    let Some(ingress) = o.ingress.as_deref().filter(|_| !duration.is_zero()) else { return goal };
    let held = meta::annotation(&ingress.metadata, networking::ROLLOUT)
        .and_then(|text| serde_json::from_str::<Rollout>(text).ok())
        .filter(Rollout::is_consistent);
    let Some(mut held) = held else { return goal };
    let now = i64::try_from(o.context.now.as_nanosecond()).unwrap_or(i64::MAX);
    if is_served(ingress) {
        held.observe_ready(now, duration);
    }
    let (state, next) = goal.step(&held, now);
    if let Some(next) = next {
        plan.again_in(Duration::from_nanos(u64::try_from(next - now).unwrap_or_default()));
        plan.because("a gradual rollout is in progress");
    }
    state
}

fn is_served(ingress: &Ingress) -> bool {
    let status = ingress.status.as_ref();
    status.is_some_and(|s| conditions::is_ready(&s.conditions, s.observed_generation, ingress.metadata.generation))
}

/// Writes the Ingress and takes over its state.
fn ingress_state(o: &Observed, desired: &Ingress, rollout: &Rollout, plan: &mut Plan, c: &mut Conditions) {
    let name = meta::name(&desired.metadata);
    let held = o.ingress.as_deref();
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, o.route.as_ref())) {
        c.mark_false(INGRESS_READY, "NotOwned", &format!("There is an existing Ingress {name:?} that we do not own."));
        plan.taken_name::<Ingress>(meta::namespace(&o.route.metadata), name);
        return;
    }
    if let Some(refusal) = o.context.refusal::<Ingress>(name) {
        plan.warning("CreationFailed", format!("Failed to write Ingress {name:?}: {}", refusal.message));
        c.mark_false(INGRESS_READY, "CreationFailed", &refusal.message);
        return;
    }
    let write = ensure(held, desired, Match::Exact);
    if matches!(write, Some(Write::Create(_))) {
        plan.normal("Created", format!("Created Ingress {name:?}"));
    }
    let current = held.filter(|held| held.spec == desired.spec);
    plan.write(write);
    let observed = current.and_then(|held| {
        held.status.as_ref().filter(|s| s.observed_generation == held.metadata.generation.unwrap_or_default())
    });
    if !rollout.is_done() {
        let message = "A gradual rollout of the latest revision(s) is in progress.";
        c.mark_unknown(INGRESS_READY, "RolloutInProgress", message);
        return;
    }
    match observed.and_then(|observed| find(&observed.conditions, READY)) {
        None => not_configured(c),
        Some(ready) if ready.status == ConditionStatus::True => c.mark_true(INGRESS_READY),
        Some(ready) => c.copy(INGRESS_READY, ready),
    }
}
