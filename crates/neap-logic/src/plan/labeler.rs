//! Labeler: marks the Configurations and Revisions a Route leads to (facts D3, A4.30, C1.7, C1.8).
//!
//! The marks tell the autoscaler what can still get requests and the collector what cannot. Marks are taken
//! away only once the Route has settled, so that nothing it still leads to looks unused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube_core::Resource;
use neap_api::keys::serving as keys;
use neap_api::serving::{Configuration, Revision, Route};
use serde_json::{Map, Value, json};

use super::cache::{Cache, Cached};
use super::configuration::rfc3339;
use super::{Context, ObjectRef, Patch, Plan, Write, meta};
use crate::conditions;

/// The finalizer by which a Route's marks are taken away before it goes.
pub const FINALIZER: &str = "routes.serving.knative.dev";

/// A Route, what it leads to, and what carries its mark.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Route.
    pub route: Arc<Route>,
    /// Configurations it leads to or that carry its mark.
    pub configurations: BTreeMap<String, Arc<Configuration>>,
    /// Revisions it leads to or that carry its mark.
    pub revisions: BTreeMap<String, Arc<Revision>>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, context: Context) -> Option<Observed> {
    let route = cache.get::<Route>(namespace, name)?;
    let mut configurations: BTreeMap<String, Arc<Configuration>> = marked(cache, namespace, name);
    let mut revisions: BTreeMap<String, Arc<Revision>> = marked(cache, namespace, name);
    let shown = route.status.iter().flat_map(|s| &s.traffic);
    for target in route.spec.traffic.iter().chain(shown) {
        let mut configuration_name = target.configuration_name.clone();
        if let Some(revision) = cache.get::<Revision>(namespace, &target.revision_name) {
            if let Some(owner) = configuration_of(&revision) {
                configuration_name = owner;
            }
            revisions.insert(target.revision_name.clone(), revision);
        }
        let Some(configuration) = cache.get::<Configuration>(namespace, &configuration_name) else { continue };
        let latest = configuration.status.as_ref().map(|s| s.latest_created_revision_name.clone()).unwrap_or_default();
        if let Some(revision) = cache.get::<Revision>(namespace, &latest) {
            revisions.insert(latest, revision);
        }
        configurations.insert(configuration_name, configuration);
    }
    Some(Observed { route, configurations, revisions, context })
}

fn marked<C: Cache, K: Cached>(cache: &C, namespace: &str, route: &str) -> BTreeMap<String, Arc<K>> {
    let objects = cache.listing::<K>(namespace, keys::ROUTES, route);
    objects.into_iter().map(|object| (object.meta().name.clone().unwrap_or_default(), object)).collect()
}

fn configuration_of(revision: &Revision) -> Option<String> {
    let owners = revision.metadata.owner_references.iter().flatten();
    owners.filter(|o| o.controller == Some(true) && o.kind == "Configuration").map(|o| o.name.clone()).next()
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let route = o.route.as_ref();
    let name = meta::name(&route.metadata);
    let finalizers = route.metadata.finalizers.clone().unwrap_or_default();
    let has_finalizer = finalizers.iter().any(|f| f == FINALIZER);
    let deleting = route.metadata.deletion_timestamp.is_some();
    // A Route nobody has looked at yet leads nowhere, and its first status is on its way.
    if deleting && !has_finalizer || !deleting && route.status.is_none() {
        return plan;
    }
    let (configurations, revisions) = if deleting { Default::default() } else { targets(o) };
    let status = route.status.clone().unwrap_or_default();
    let settled = deleting
        || conditions::is_ready(&status.conditions, status.observed_generation, route.metadata.generation)
        || conditions::is_failed(&status.conditions, status.observed_generation, route.metadata.generation);
    if !deleting && !has_finalizer {
        let mut finalizers = finalizers.clone();
        finalizers.push(FINALIZER.to_owned());
        plan.write(Some(set_finalizers(route, &finalizers)));
        plan.normal("FinalizerUpdate", format!("Updated {name:?} finalizers"));
    }
    for (target, configuration) in &o.configurations {
        let led_to = configurations.contains(target);
        if led_to || settled {
            plan.write(mark_configuration(configuration, name, led_to));
        }
    }
    for (target, revision) in &o.revisions {
        let led_to = revisions.contains(target);
        if led_to || settled {
            plan.write(mark_revision(revision, name, led_to, &rfc3339(o.context.now)));
        }
    }
    if deleting {
        let left: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
        plan.write(Some(set_finalizers(route, &left)));
    }
    plan
}

/// The names of what the Route leads to, by its spec and by what it still shows.
fn targets(o: &Observed) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut configurations, mut revisions) = (BTreeSet::new(), BTreeSet::new());
    let shown = o.route.status.iter().flat_map(|s| &s.traffic);
    for target in o.route.spec.traffic.iter().chain(shown) {
        let mut configuration_name = target.configuration_name.clone();
        if let Some(revision) = o.revisions.get(&target.revision_name) {
            configuration_name = configuration_of(revision).unwrap_or(configuration_name);
            revisions.insert(target.revision_name.clone());
        }
        if let Some(configuration) = o.configurations.get(&configuration_name) {
            // The coming revision is marked before it is ready, so that it starts with its full scale.
            if target.latest_revision == Some(true) {
                let latest = configuration.status.as_ref().map(|s| s.latest_created_revision_name.clone());
                revisions.extend(latest.filter(|name| !name.is_empty()));
            }
            configurations.insert(configuration_name);
        }
    }
    (configurations, revisions)
}

fn set_finalizers(route: &Route, finalizers: &[String]) -> Write {
    Write::Patch(Patch {
        target: ObjectRef::of(route),
        subresource: None,
        // The version guards against two writers of the same list.
        merge: json!({"metadata": {"finalizers": finalizers, "resourceVersion": route.metadata.resource_version}}),
    })
}

/// The version a change of the list was decided on, where another Route may be writing it too: two that took themselves
/// off at the same moment would each put the other back, and nobody looks at the mark of a Route that is gone. The first
/// mark of all needs none; were it lost, its Route would see that.
fn guard<K: Resource<DynamicType = ()>>(object: &K, metadata: &mut Map<String, Value>) {
    if !meta::list(object.meta(), keys::ROUTES).is_empty() {
        metadata.insert("resourceVersion".into(), json!(object.meta().resource_version));
    }
}

/// The wanted value of the annotation, when it has to change.
fn routes_after<K: Resource<DynamicType = ()>>(object: &K, route: &str, led_to: bool) -> Option<BTreeSet<String>> {
    let before = meta::list(object.meta(), keys::ROUTES);
    let mut after = before.clone();
    match led_to {
        true => drop(after.insert(route.to_owned())),
        false => drop(after.remove(route)),
    }
    (after != before).then_some(after)
}

fn annotation(routes: &BTreeSet<String>) -> Value {
    if routes.is_empty() { Value::Null } else { Value::String(meta::join(routes)) }
}

fn mark_configuration(configuration: &Configuration, route: &str, led_to: bool) -> Option<Write> {
    let routes = routes_after(configuration, route, led_to)?;
    let mut metadata = Map::from_iter([("annotations".to_owned(), json!({keys::ROUTES: annotation(&routes)}))]);
    guard(configuration, &mut metadata);
    let merge = json!({"metadata": metadata});
    Some(Write::Patch(Patch { target: ObjectRef::of(configuration), subresource: None, merge }))
}

fn mark_revision(revision: &Revision, route: &str, led_to: bool, now: &str) -> Option<Write> {
    let routes = routes_after(revision, route, led_to);
    let none_left = meta::list(&revision.metadata, keys::ROUTES).iter().all(|r| r == route);
    let wanted = match (led_to, none_left) {
        (true, _) => Some("active"),
        (false, true) => Some("reserve"),
        (false, false) => None,
    };
    let state = meta::label(&revision.metadata, keys::ROUTING_STATE);
    let wanted = wanted.filter(|wanted| state != Some(*wanted) && (led_to || routes.is_some()));
    let mut annotations = Map::new();
    if let Some(routes) = &routes {
        annotations.insert(keys::ROUTES.into(), annotation(routes));
    }
    let mut metadata = Map::new();
    if let Some(wanted) = wanted {
        annotations.insert(keys::ROUTING_STATE_MODIFIED.into(), now.into());
        metadata.insert("labels".into(), json!({keys::ROUTING_STATE: wanted}));
    }
    if annotations.is_empty() {
        return None;
    }
    metadata.insert("annotations".into(), Value::Object(annotations));
    guard(revision, &mut metadata);
    Some(Write::Patch(Patch {
        target: ObjectRef::of(revision),
        subresource: None,
        merge: json!({"metadata": metadata}),
    }))
}

#[cfg(test)]
#[path = "labeler_tests.rs"]
mod tests;
