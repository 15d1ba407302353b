//! Configuration: one Revision per generation, and which of them is the newest that works (facts D2, A3).

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use neap_api::condition::{READY, find};
use neap_api::keys::serving as keys;
use neap_api::serving::{Configuration, ConfigurationStatus, Revision};
use neap_api::{Condition, ConditionStatus};

use super::cache::Cache;
use super::ensure::{controller_ref, is_controlled_by};
use super::{Context, Object, Plan, Write, meta};
use crate::conditions::{self, Conditions};
use crate::names;

/// A Configuration and its Revisions.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Configuration.
    pub configuration: Arc<Configuration>,
    /// The Revisions stamped from it.
    pub revisions: Vec<Arc<Revision>>,
    /// The Revision that has the name its newest generation will use, whoever owns it.
    pub named_revision: Option<Arc<Revision>>,
    /// Everything else.
    pub context: Context,
}

/// Whether the Revision of a wanted name may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameClaim {
    /// It is the Configuration's own, of this generation or of an equal spec.
    Ours,
    /// It is something else.
    Taken,
}

impl NameClaim {
    /// Judges a Revision by the Configuration that names it.
    pub fn of(revision: &Revision, configuration: &Configuration) -> Self {
        let generation = configuration.metadata.generation.unwrap_or_default();
        let same_generation = generation_of(revision) == Some(generation);
        // Spec equality covers a Configuration that came back to an earlier template of the same name.
        let ours = is_controlled_by(&revision.metadata, configuration)
            && (same_generation || revision.spec == configuration.spec.template.spec);
        if ours { Self::Ours } else { Self::Taken }
    }
}

/// Gathers what [`plan`] needs.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, context: Context) -> Option<Observed> {
    let configuration = cache.get::<Configuration>(namespace, name)?;
    Some(Observed {
        revisions: cache.labelled(namespace, keys::CONFIGURATION, name),
        named_revision: cache.get(namespace, &revision_name(&configuration)),
        configuration,
        context,
    })
}

/// The name of the Revision of the present generation.
pub fn revision_name(configuration: &Configuration) -> String {
    match template_name(configuration) {
        Some(name) => name.to_owned(),
        None => {
            names::revision(meta::name(&configuration.metadata), configuration.metadata.generation.unwrap_or_default())
        }
    }
}

fn template_name(configuration: &Configuration) -> Option<&str> {
    configuration.spec.template.metadata.as_ref()?.name.as_deref().filter(|name| !name.is_empty())
}

fn generation_of(revision: &Revision) -> Option<i64> {
    meta::label(&revision.metadata, keys::CONFIGURATION_GENERATION)?.parse().ok()
}

fn ready_of(revision: &Revision) -> Option<&Condition> {
    revision.status.as_ref().and_then(|s| find(&s.conditions, READY))
}

fn is_ready(revision: &Revision) -> bool {
    let status = revision.status.as_ref();
    status.is_some_and(|s| conditions::is_ready(&s.conditions, s.observed_generation, revision.metadata.generation))
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let configuration = o.configuration.as_ref();
    if configuration.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = configuration.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::CONFIGURATION, &status.conditions, o.context.now);
    let generation = configuration.metadata.generation.unwrap_or_default();
    status.observed_generation = generation;

    let newest = o
        .revisions
        .iter()
        .find(|r| generation_of(r) == Some(generation) && template_name(configuration).is_none())
        .or(o.named_revision.as_ref());
    match newest {
        None => create(o, &mut plan, &mut c, &mut status),
        Some(revision) if NameClaim::of(revision, configuration) == NameClaim::Taken => {
            let name = meta::name(&revision.metadata);
            let message = format!(
                "Revision creation failed with message: revisions.serving.knative.dev {name:?} already exists."
            );
            c.mark_false(READY, "RevisionFailed", &message);
            plan.taken_by(revision.as_ref());
        }
        Some(revision) => {
            created(&mut status, &mut c, meta::name(&revision.metadata));
            judge_newest(o, &mut plan, &mut c, &status, revision);
            find_latest_ready(o, &mut plan, &mut c, &mut status);
        }
    }
    status.conditions = c.into_vec();
    plan.set_status(configuration.status.as_ref(), &status);
    plan
}

fn create(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut ConfigurationStatus) {
    let revision = make_revision(&o.configuration, o.context.now);
    let name = meta::name(&revision.metadata).to_owned();
    if let Some(refusal) = o.context.refusal::<Revision>(&name) {
        plan.warning("CreationFailed", format!("Failed to create Revision: {}", refusal.message));
        c.mark_false(READY, "RevisionFailed", &format!("Revision creation failed with message: {}.", refusal.message));
        return;
    }
    plan.normal("Created", format!("Created Revision {name:?}"));
    plan.because(format!("generation {} has no Revision yet", status.observed_generation));
    plan.write(Some(Write::Create(Object::of(&revision))));
    created(status, c, &name);
}

fn created(status: &mut ConfigurationStatus, c: &mut Conditions, name: &str) {
    name.clone_into(&mut status.latest_created_revision_name);
    if status.latest_ready_revision_name != name {
        // An earlier failure was about another revision.
        c.mark_unknown(READY, "", "");
    }
}

fn judge_newest(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &ConfigurationStatus, revision: &Revision) {
    let name = meta::name(&revision.metadata);
    match ready_of(revision) {
        Some(ready) if ready.status == ConditionStatus::False => {
            let before = o.configuration.status.as_ref().and_then(|s| find(&s.conditions, READY));
            let message = format!("Revision {name:?} failed with message: {}.", ready.message);
            if before.is_none_or(|before| before.status != ConditionStatus::False || before.message != message) {
                if status.latest_ready_revision_name == name {
                    plan.warning("LatestReadyFailed", format!("Latest ready revision {name:?} has failed"));
                } else {
                    plan.warning("LatestCreatedFailed", format!("Latest created revision {name:?} has failed"));
                }
            }
            c.mark_false(READY, "RevisionFailed", &message);
        }
        Some(ready) if ready.status == ConditionStatus::True => {
            if status.latest_ready_revision_name.is_empty() && is_ready(revision) {
                plan.normal("ConfigurationReady", "Configuration becomes ready");
            }
        }
        _ => plan.because(format!("Revision {name} is not ready yet")),
    }
}

/// The newest ready revision between the one known last and the present generation.
fn find_latest_ready(o: &Observed, plan: &mut Plan, c: &mut Conditions, status: &mut ConfigurationStatus) {
    let known = o.revisions.iter().find(|r| meta::name(&r.metadata) == status.latest_ready_revision_name);
    let from = known.and_then(|r| generation_of(r)).unwrap_or(0);
    let mut candidates: Vec<&Arc<Revision>> = o
        .revisions
        .iter()
        .chain(&o.named_revision)
        .filter(|r| is_controlled_by(&r.metadata, o.configuration.as_ref()))
        .collect();
    let created = status.latest_created_revision_name.clone();
    // The revision named by the template counts as the newest, whatever generation it was first made at.
    candidates.sort_by_key(|r| Reverse((meta::name(&r.metadata) == created, generation_of(r))));
    let ready = candidates
        .into_iter()
        .find(|r| is_ready(r) && (meta::name(&r.metadata) == created || generation_of(r).is_some_and(|g| g >= from)));
    match ready {
        Some(revision) => {
            let name = meta::name(&revision.metadata);
            if status.latest_ready_revision_name != name {
                plan.normal("LatestReadyUpdate", format!("LatestReadyRevisionName updated to {name:?}"));
                name.clone_into(&mut status.latest_ready_revision_name);
            }
            if status.latest_created_revision_name == name {
                c.mark_true(READY);
            }
        }
        None if !status.latest_ready_revision_name.is_empty() && known.is_none() => {
            let message = format!("Revision {:?} was deleted.", status.latest_ready_revision_name);
            c.mark_false(READY, "RevisionDeleted", &message);
        }
        None => {}
    }
}

fn make_revision(configuration: &Configuration, now: Timestamp) -> Revision {
    let own = &configuration.metadata;
    let template = configuration.spec.template.metadata.clone().unwrap_or_default();
    let mut labels = meta::labels(&template);
    let mut annotations = meta::annotations(&template, &[]);
    let inherited = |key: &str| meta::label(own, key).map(str::to_owned);
    let stamped = [
        (keys::CONFIGURATION, own.name.clone()),
        (keys::CONFIGURATION_GENERATION, own.generation.map(|g| g.to_string())),
        (keys::CONFIGURATION_UID, own.uid.clone()),
        (keys::SERVICE, inherited(keys::SERVICE)),
        (keys::SERVICE_UID, inherited(keys::SERVICE_UID)),
    ];
    labels.extend(
        stamped.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.filter(|v| !v.is_empty())?))),
    );
    let state = match meta::annotation(own, keys::ROUTES).filter(|routes| !routes.is_empty()) {
        Some(routes) => {
            annotations.insert(keys::ROUTES.into(), routes.to_owned());
            "active"
        }
        // Tells the labeler that nobody has looked at this revision yet.
        None => "pending",
    };
    labels.insert(keys::ROUTING_STATE.into(), state.into());
    annotations.insert(keys::ROUTING_STATE_MODIFIED.into(), rfc3339(now));
    if let Some(creator) = meta::annotation(own, keys::LAST_MODIFIER) {
        annotations.insert(keys::CREATOR.into(), creator.to_owned());
    }
    Revision {
        metadata: ObjectMeta {
            name: Some(revision_name(configuration)),
            namespace: own.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(configuration)]),
            ..ObjectMeta::default()
        },
        spec: configuration.spec.template.spec.clone(),
        status: None,
    }
}

/// A time as annotations carry it, in whole seconds.
pub(super) fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
#[path = "configuration_tests.rs"]
mod tests;
