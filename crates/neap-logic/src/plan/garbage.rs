//! Garbage: deletes the Revisions of a Configuration that nobody will miss (fact D7).

use std::sync::Arc;

use jiff::Timestamp;
use neap_api::keys::serving as keys;
use neap_api::serving::{Configuration, Revision};

use super::cache::Cache;
use super::ensure::is_controlled_by;
use super::{Context, Plan, Seen, Write, meta};
use crate::gc::{Candidate, collect};

/// A Configuration and its Revisions.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Configuration.
    pub configuration: Arc<Configuration>,
    /// The Revisions stamped from it.
    pub revisions: Vec<Arc<Revision>>,
    /// Everything else.
    pub context: Context,
}

/// Gathers what [`plan`] needs.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, context: Context) -> Option<Observed> {
    let configuration = cache.get::<Configuration>(namespace, name)?;
    Some(Observed { revisions: cache.labelled(namespace, keys::CONFIGURATION, name), configuration, context })
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let configuration = o.configuration.as_ref();
    let Some(status) = configuration.status.as_ref().filter(|_| configuration.metadata.deletion_timestamp.is_none())
    else {
        return plan;
    };
    let owned = o
        .revisions
        .iter()
        .filter(|r| is_controlled_by(&r.metadata, configuration) && r.metadata.deletion_timestamp.is_none());
    let candidates: Vec<Candidate> = owned
        .map(|revision| {
            let own = &revision.metadata;
            let created = own.creation_timestamp.as_ref().map_or(o.context.now, |t| t.0);
            let modified =
                meta::annotation(own, keys::ROUTING_STATE_MODIFIED).and_then(|text| text.parse::<Timestamp>().ok());
            let name = meta::name(own);
            Candidate {
                name: name.to_owned(),
                created,
                last_active: modified.unwrap_or(created),
                pinned: name == status.latest_ready_revision_name
                    || name == status.latest_created_revision_name
                    || meta::annotation(own, keys::NO_GC).is_some_and(|v| v.eq_ignore_ascii_case("true"))
                    || meta::label(own, keys::ROUTING_STATE) != Some("reserve"),
            }
        })
        .collect();
    for name in collect(&candidates, &o.context.settings.gc, o.context.now) {
        let revision = o.revisions.iter().find(|r| meta::name(&r.metadata) == name).expect("collected from these");
        plan.because(format!("Revision {name} is old and unused"));
        plan.write(Some(Write::DeleteSeen(Seen::of(revision.as_ref()))));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::plan::testing::{World, now};

    fn revision(name: &str, state: &str, annotation: &str) -> String {
        format!(
            r#"
---
apiVersion: serving.knative.dev/v1
kind: Revision
metadata:
  name: {name}
  namespace: ns
  creationTimestamp: "2025-01-01T00:00:00Z"
  labels: {{serving.knative.dev/configuration: c, serving.knative.dev/routingState: {state}}}
  annotations: {{{annotation}}}
  ownerReferences: [{{apiVersion: serving.knative.dev/v1, kind: Configuration, name: c, uid: uid-configuration-c, controller: true}}]
spec: {{containers: []}}"#
        )
    }

    #[test]
    fn d7_1_c1_11_i8_only_what_nobody_will_miss_goes() {
        let mut yaml = String::from(
            "apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: c, namespace: ns}\nspec: {}\nstatus: {latestReadyRevisionName: latest}",
        );
        for (name, state, annotation) in [
            ("latest", "reserve", ""),
            ("routed", "active", ""),
            ("kept", "reserve", "serving.knative.dev/no-gc: 'true'"),
            ("recent", "reserve", "serving.knative.dev/routingStateModified: '2026-01-02T03:00:00Z'"),
            ("old", "reserve", ""),
        ] {
            yaml.push_str(&revision(name, state, annotation));
        }
        let world = World::of(&yaml);
        let mut settings = Settings::default();
        settings.gc.min_non_active = 0;
        let context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
        let plan = plan(&observe(&world, "ns", "c", context).expect("there"));
        let names: Vec<String> = plan.writes.iter().map(|w| w.target().name).collect();
        assert_eq!(names, ["old"]);
        // One that is routed to in the meantime, or another of its name, must stay.
        let Write::DeleteSeen(seen) = &plan.writes[0] else { panic!("{:?}", plan.writes[0]) };
        assert_eq!(seen.uid.as_deref(), Some("uid-revision-old"));
        assert!(seen.resource_version.is_some());
    }
}
