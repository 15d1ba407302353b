//! Service: one Configuration and one Route of its own name, and their state as one (facts D1, A2).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::ConditionStatus;
use neap_api::condition::{READY, find};
use neap_api::keys::serving as keys;
use neap_api::serving::{
    Configuration, ConfigurationSpec, Revision, Route, RouteSpec, Service, ServiceStatus, TrafficTarget,
};

use super::cache::Cache;
use super::configuration::NameClaim;
use super::ensure::{Match, controller_ref, ensure, is_controlled_by};
use super::{Context, Plan, Write, meta};
use crate::conditions::{self, Conditions};
use crate::convert;

const CONFIGURATIONS_READY: &str = "ConfigurationsReady";
const ROUTES_READY: &str = "RoutesReady";

/// A Service and what it owns.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Service.
    pub service: Arc<Service>,
    /// The Configuration of its name, whoever owns it.
    pub configuration: Option<Arc<Configuration>>,
    /// The Route of its name, whoever owns it.
    pub route: Option<Arc<Route>>,
    /// The Revision its template names, when it names one.
    pub named_revision: Option<Arc<Revision>>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, context: Context) -> Option<Observed> {
    let service = cache.get::<Service>(namespace, name)?;
    let named = service.spec.template.metadata.as_ref().and_then(|m| m.name.as_deref());
    Some(Observed {
        configuration: cache.get(namespace, name),
        route: cache.get(namespace, name),
        named_revision: named.and_then(|revision| cache.get(namespace, revision)),
        service,
        context,
    })
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let service = o.service.as_ref();
    if service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = service.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::SERVICE, &status.conditions, o.context.now);
    status.observed_generation = service.metadata.generation.unwrap_or_default();

    if convert::is_manual_service(service) {
        by_hand(&mut plan, &mut c, &mut status);
    } else if configuration(o, &mut plan, &mut c, &mut status) {
        plan.only_then();
        route(o, &mut plan, &mut c, &mut status);
    }
    // A Route fails because of a failed Configuration, never the other way round: the cause is what to show.
    if let Some(cause) = c.get(CONFIGURATIONS_READY).filter(|c| c.status == ConditionStatus::False).cloned() {
        c.copy(CONFIGURATIONS_READY, &cause);
    }
    status.conditions = c.into_vec();
    plan.set_status(service.status.as_ref(), &status);
    plan
}

/// A Service that owns nothing: whatever Configuration and Route there are belong to whoever cares for them by hand, and
/// nothing is said of them, since it may not be true.
fn by_hand(plan: &mut Plan, c: &mut Conditions, status: &mut ServiceStatus) {
    for dependent in [CONFIGURATIONS_READY, ROUTES_READY] {
        c.mark_unknown(dependent, "Manual", "The Service is manual: it does not manage its Configuration and Route.");
    }
    *status = ServiceStatus { observed_generation: status.observed_generation, ..ServiceStatus::default() };
    plan.because("the Service is manual and owns nothing");
}

/// Handles the Configuration; says whether the Route may be looked at.
fn configuration(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut ServiceStatus) -> bool {
    let service = o.service.as_ref();
    let name = meta::name(&service.metadata);
    let held = o.configuration.as_deref();
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, service)) {
        c.mark_false(CONFIGURATIONS_READY, "NotOwned", &not_owned("Configuration", name));
        plan.taken_name::<Configuration>(meta::namespace(&service.metadata), name);
        return false;
    }
    let wanted = make_configuration(service, held);
    let write = ensure(held, &wanted, Match::Exact);
    if let Some(refusal) = o.context.refusal::<Configuration>(name) {
        plan.warning("CreationFailed", format!("Failed to write Configuration {name:?}: {}", refusal.message));
        c.mark_false(CONFIGURATIONS_READY, "CreationFailed", &refusal.message);
        return false;
    }
    if matches!(write, Some(Write::Create(_))) {
        plan.normal("Created", format!("Created Configuration {name:?}"));
    }
    let current = held.filter(|held| {
        held.spec == wanted.spec
            && held
                .status
                .as_ref()
                .is_some_and(|s| s.observed_generation == held.metadata.generation.unwrap_or_default())
    });
    plan.write(write);
    let named = wanted.spec.template.metadata.as_ref().and_then(|m| m.name.as_deref());
    match current.and_then(|current| current.status.as_ref()) {
        None => {
            c.mark_unknown(
                CONFIGURATIONS_READY,
                "OutOfDate",
                "The Configuration is still working to reflect the latest desired specification.",
            );
            plan.because(format!("Configuration {name} has not been looked at since it changed"));
            // A Route that names the coming revision must not be written before that revision is ours.
            if named.is_some() {
                return false;
            }
        }
        Some(held) => {
            status.latest_created_revision_name.clone_from(&held.latest_created_revision_name);
            status.latest_ready_revision_name.clone_from(&held.latest_ready_revision_name);
            if let Some(ready) = find(&held.conditions, READY) {
                c.copy(CONFIGURATIONS_READY, ready);
            }
        }
    }
    let taken = match (named, o.named_revision.as_deref(), held) {
        (Some(_), Some(revision), Some(held)) => NameClaim::of(revision, held) == NameClaim::Taken,
        _ => false,
    };
    if let (true, Some(named)) = (taken, named) {
        let message =
            format!("The revision name {named:?} is taken by a conflicting Revision, so traffic will not be migrated");
        c.mark_false(ROUTES_READY, "RevisionNameTaken", &message);
        plan.taken_name::<Revision>(meta::namespace(&service.metadata), named);
        return false;
    }
    true
}

fn route(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut ServiceStatus) {
    let service = o.service.as_ref();
    let name = meta::name(&service.metadata);
    let held = o.route.as_deref();
    if held.is_some_and(|held| !is_controlled_by(&held.metadata, service)) {
        c.mark_false(ROUTES_READY, "NotOwned", &not_owned("Route", name));
        plan.taken_name::<Route>(meta::namespace(&service.metadata), name);
        return;
    }
    let wanted = make_route(service);
    let write = ensure(held, &wanted, Match::Exact);
    if let Some(refusal) = o.context.refusal::<Route>(name) {
        plan.warning("CreationFailed", format!("Failed to write Route {name:?}: {}", refusal.message));
        c.mark_false(ROUTES_READY, "CreationFailed", &refusal.message);
        return;
    }
    if matches!(write, Some(Write::Create(_))) {
        plan.normal("Created", format!("Created Route {name:?}"));
    }
    plan.write(write);
    let current = held.filter(|held| {
        held.spec == wanted.spec
            && held
                .status
                .as_ref()
                .is_some_and(|s| s.observed_generation == held.metadata.generation.unwrap_or_default())
    });
    let Some((held, routed)) = current.and_then(|held| Some((held, held.status.as_ref()?))) else {
        c.mark_unknown(
            ROUTES_READY,
            "OutOfDate",
            "The Route is still working to reflect the latest desired specification.",
        );
        plan.because(format!("Route {name} has not been looked at since it changed"));
        return;
    };
    status.url.clone_from(&routed.url);
    status.address.clone_from(&routed.address);
    status.traffic.clone_from(&routed.traffic);
    if let Some(ready) = find(&routed.conditions, READY) {
        c.copy(ROUTES_READY, ready);
    }
    let latest =
        o.configuration.as_ref().and_then(|c| c.status.as_ref()).map(|s| s.latest_ready_revision_name.as_str());
    if c.status(ROUTES_READY) == ConditionStatus::True
        && !is_migrated(&held.spec.traffic, &routed.traffic, name, latest.unwrap_or_default())
    {
        c.mark_unknown(ROUTES_READY, "TrafficNotMigrated", "Traffic is not yet migrated to the latest revision.");
        plan.because(format!("Route {name} still shows traffic of an earlier revision"));
    }
}

/// Whether what the Route shows is what it was asked for, following targets taken at the latest revision.
fn is_migrated(wanted: &[TrafficTarget], shown: &[TrafficTarget], configuration: &str, latest: &str) -> bool {
    let plain = |target: &TrafficTarget| {
        let revision = if target.configuration_name == configuration { latest } else { &target.revision_name };
        (target.tag.clone(), revision.to_owned(), target.percent.unwrap_or_default())
    };
    wanted.len() == shown.len() && wanted.iter().zip(shown).all(|(wanted, shown)| plain(wanted) == plain(shown))
}

fn not_owned(kind: &str, name: &str) -> String {
    format!("There is an existing {kind} {name:?} that we do not own.")
}

fn make_configuration(service: &Service, held: Option<&Configuration>) -> Configuration {
    let name = meta::name(&service.metadata);
    let mut labels = meta::labels(&service.metadata);
    labels.insert(keys::SERVICE.into(), name.into());
    labels.insert(keys::SERVICE_UID.into(), service.metadata.uid.clone().unwrap_or_default());
    let mut annotations = meta::annotations(&service.metadata, &[keys::ROLLOUT_DURATION, keys::ROLLOUT_DURATION_ALT]);
    // Said at once rather than by the labeler, so that the first revision begins as active.
    let mut routes = held.map(|held| meta::list(&held.metadata, keys::ROUTES)).unwrap_or_default();
    routes.insert(name.to_owned());
    annotations.insert(keys::ROUTES.into(), meta::join(&routes));
    Configuration {
        metadata: child(service, labels, annotations),
        spec: ConfigurationSpec { template: service.spec.template.clone() },
        status: None,
    }
}

fn make_route(service: &Service) -> Route {
    let name = meta::name(&service.metadata);
    let mut labels = meta::labels(&service.metadata);
    labels.insert(keys::SERVICE.into(), name.into());
    let mut traffic = service.spec.traffic.clone();
    for target in traffic.iter_mut().filter(|target| target.revision_name.is_empty()) {
        target.configuration_name = name.to_owned();
    }
    Route {
        metadata: child(service, labels, meta::annotations(&service.metadata, &[])),
        spec: RouteSpec { traffic },
        status: None,
    }
}

fn child(service: &Service, labels: meta::Words, annotations: meta::Words) -> ObjectMeta {
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: meta::some(labels),
        annotations: meta::some(annotations),
        owner_references: Some(vec![controller_ref(service)]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
