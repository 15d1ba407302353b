//! From the targets of a Route to the revisions that get its requests (facts A5, E6).
//!
//! Resolving never changes anything and never waits: a target that has no revision yet is a [`BadTarget`],
//! which says whether that may still change.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::keys;
use neap_api::serving::{Configuration, Revision, Route, TrafficTarget};

use crate::conditions;
use crate::names::hosts::{HostError, RouteName};

pub mod rollout;
#[cfg(test)]
mod tests;
pub mod visibility;

pub use rollout::Rollout;
pub use visibility::Visibility;

/// Which protocol a revision's container speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS.
    H2c,
}

impl Protocol {
    /// The word used in API objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2c => "h2c",
        }
    }

    /// The word, read back; anything unknown is HTTP/1.1, as upstream reads it.
    pub fn parse(text: &str) -> Self {
        if text == "h2c" { Self::H2c } else { Self::Http1 }
    }

    /// The port of a revision's public Service.
    pub fn service_port(self) -> i32 {
        match self {
            Self::Http1 => 80,
            Self::H2c => 81,
        }
    }

    /// The name of that port.
    pub fn port_name(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::H2c => "http2",
        }
    }
}

/// The protocol of a revision: that of its one port (A4.31).
pub fn protocol(revision: &Revision) -> Protocol {
    let ports = revision.spec.pod.containers.iter().filter_map(|c| c.ports.as_ref()).flatten();
    let names: Vec<&str> = ports.filter_map(|p| p.name.as_deref()).collect();
    if names.contains(&"h2c") { Protocol::H2c } else { Protocol::Http1 }
}

/// A target with its revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The tag it was given under; empty in a group of its own kind.
    pub tag: String,
    /// The revision that gets the requests.
    pub revision: String,
    /// The configuration it belongs to, when the target follows its latest revision.
    pub configuration: String,
    /// Whether the target follows the latest ready revision.
    pub latest: bool,
    /// Share of the group's requests, 0 to 100.
    pub percent: i64,
    /// What the revision's container speaks.
    pub protocol: Protocol,
}

/// A Route's targets, resolved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Traffic {
    /// One entry per target, in the Route's order; what the status shows.
    pub revisions: Vec<Target>,
    /// By tag, with the empty tag for the Route's own host: which revisions share the requests.
    pub groups: BTreeMap<String, Vec<Target>>,
}

/// A target that cannot be routed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTarget {
    /// One CamelCase word for the condition.
    pub reason: String,
    /// A sentence for the condition.
    pub message: String,
    /// Whether it will stay so until somebody changes something.
    pub failed: bool,
}

/// The objects targets may refer to, of one namespace.
pub trait Lookup {
    /// A configuration by name.
    fn configuration(&self, name: &str) -> Option<Arc<Configuration>>;
    /// A revision by name.
    fn revision(&self, name: &str) -> Option<Arc<Revision>>;
}

/// A lookup in two plain maps.
#[derive(Debug, Default, Clone)]
pub struct Known {
    /// Configurations by name.
    pub configurations: BTreeMap<String, Arc<Configuration>>,
    /// Revisions by name.
    pub revisions: BTreeMap<String, Arc<Revision>>,
}

impl Lookup for Known {
    fn configuration(&self, name: &str) -> Option<Arc<Configuration>> {
        self.configurations.get(name).cloned()
    }

    fn revision(&self, name: &str) -> Option<Arc<Revision>> {
        self.revisions.get(name).cloned()
    }
}

/// Resolves a Route's targets. Of several bad targets one that has failed outweighs those that may still
/// come.
pub fn resolve(route: &Route, lookup: &dyn Lookup) -> Result<Traffic, BadTarget> {
    let mut traffic = Traffic::default();
    let mut bad: Option<BadTarget> = None;
    for target in &route.spec.traffic {
        let resolved = match target.revision_name.as_str() {
            "" => follow(target, lookup),
            name => pinned(target, name, route, lookup),
        };
        match resolved {
            Ok(target) => traffic.revisions.push(target),
            Err(error) if bad.as_ref().is_none_or(|b| !b.failed && error.failed) => bad = Some(error),
            Err(_) => {}
        }
    }
    if let Some(bad) = bad {
        return Err(bad);
    }
    for target in &traffic.revisions {
        let plain = Target { tag: String::new(), ..target.clone() };
        if target.percent > 0 {
            traffic.groups.entry(String::new()).or_default().push(plain.clone());
        }
        if !target.tag.is_empty() {
            traffic.groups.entry(target.tag.clone()).or_default().push(plain);
        }
    }
    traffic.groups.entry(String::new()).or_default();
    for group in traffic.groups.values_mut() {
        *group = consolidate(std::mem::take(group));
    }
    Ok(traffic)
}

fn follow(target: &TrafficTarget, lookup: &dyn Lookup) -> Result<Target, BadTarget> {
    let name = &target.configuration_name;
    let configuration = lookup.configuration(name).ok_or_else(|| missing("Configuration", name))?;
    let status = configuration.status.as_ref();
    let latest = status.map(|s| s.latest_ready_revision_name.clone()).unwrap_or_default();
    if latest.is_empty() {
        let failed = status.is_some_and(|s| {
            conditions::is_failed(&s.conditions, s.observed_generation, configuration.metadata.generation)
        });
        return Err(unready(
            if failed {
                format!("Configuration {name:?} does not have any ready Revision.")
            } else {
                format!("Configuration {name:?} is waiting for a Revision to become ready.")
            },
            failed,
        ));
    }
    let revision = lookup.revision(&latest).ok_or_else(|| missing("Revision", &latest))?;
    Ok(Target {
        tag: target.tag.clone(),
        revision: latest,
        configuration: name.clone(),
        latest: true,
        percent: target.percent.unwrap_or_default(),
        protocol: protocol(&revision),
    })
}

fn pinned(target: &TrafficTarget, name: &str, route: &Route, lookup: &dyn Lookup) -> Result<Target, BadTarget> {
    let revision = lookup.revision(name).ok_or_else(|| missing("Revision", name))?;
    let label = |meta: &ObjectMeta| {
        meta.labels.as_ref().and_then(|l| l.get(keys::serving::SERVICE)).filter(|v| !v.is_empty()).cloned()
    };
    if let Some(service) = label(&route.metadata) {
        let not_owned = |message: String| BadTarget { reason: "RevisionNotOwned".into(), message, failed: true };
        match label(&revision.metadata) {
            None => return Err(not_owned(format!("Revision {name:?} does not belong to Service {service:?}."))),
            Some(other) if other != service => {
                return Err(not_owned(format!(
                    "Revision {name:?} belongs to Service {other:?}, not Service {service:?}."
                )));
            }
            Some(_) => {}
        }
    }
    let status = revision.status.clone().unwrap_or_default();
    let generation = revision.metadata.generation;
    if !conditions::is_ready(&status.conditions, status.observed_generation, generation) {
        let failed = conditions::is_failed(&status.conditions, status.observed_generation, generation);
        return Err(unready(
            if failed {
                format!("Revision {name:?} failed to become ready.")
            } else {
                format!("Revision {name:?} is not yet ready.")
            },
            failed,
        ));
    }
    Ok(Target {
        tag: target.tag.clone(),
        revision: name.to_owned(),
        configuration: String::new(),
        latest: false,
        percent: target.percent.unwrap_or_default(),
        protocol: protocol(&revision),
    })
}

fn missing(kind: &str, name: &str) -> BadTarget {
    BadTarget {
        reason: format!("{kind}Missing"),
        message: format!("{kind} {name:?} referenced in traffic not found."),
        failed: true,
    }
}

fn unready(message: String, failed: bool) -> BadTarget {
    BadTarget { reason: "RevisionMissing".into(), message, failed }
}

/// One entry per revision; a revision alone in its group gets everything.
fn consolidate(targets: Vec<Target>) -> Vec<Target> {
    let mut merged: Vec<Target> = Vec::with_capacity(targets.len());
    for target in targets {
        // A pinned target and one that follows stay apart: only the latter takes part in a rollout.
        match merged.iter_mut().find(|m| m.revision == target.revision && m.latest == target.latest) {
            Some(same) => same.percent = same.percent.saturating_add(target.percent),
            None => merged.push(target),
        }
    }
    if let [only] = merged.as_mut_slice() {
        only.percent = 100;
    }
    merged
}

/// A Route as its host names are made from it.
pub fn route_name<'a>(meta: &'a ObjectMeta, empty: &'a BTreeMap<String, String>) -> RouteName<'a> {
    RouteName {
        name: meta.name.as_deref().unwrap_or_default(),
        namespace: meta.namespace.as_deref().unwrap_or_default(),
        labels: meta.labels.as_ref().unwrap_or(empty),
        annotations: meta.annotations.as_ref().unwrap_or(empty),
    }
}

/// What the status shows for each target: always a revision, `url` where there is a tag.
pub fn status_targets(
    traffic: &Traffic,
    rollout: &Rollout,
    url_of_tag: &dyn Fn(&str) -> Result<String, HostError>,
) -> Result<Vec<TrafficTarget>, HostError> {
    let mut shown = Vec::with_capacity(traffic.revisions.len());
    for target in &traffic.revisions {
        let url = if target.tag.is_empty() { None } else { Some(url_of_tag(&target.tag)?) };
        let entry = |revision: &str, percent: i64| TrafficTarget {
            tag: target.tag.clone(),
            revision_name: revision.to_owned(),
            configuration_name: String::new(),
            latest_revision: Some(target.latest),
            percent: Some(percent),
            url: url.clone(),
        };
        // During a rollout the target's share is spread over several revisions.
        match rollout
            .of(&target.configuration, "")
            .filter(|c| target.latest && target.tag.is_empty() && c.revisions.len() > 1)
        {
            Some(config) if config.percent == target.percent => {
                shown.extend(config.revisions.iter().map(|r| entry(&r.revision_name, r.percent)));
            }
            _ => shown.push(entry(&target.revision, target.percent)),
        }
    }
    Ok(shown)
}
