//! What a Metric's status says about the collection of its measurements (A6.3, D12).

use jiff::Timestamp;
use neap_api::autoscaling::Metric;
use neap_api::condition::READY;

use super::Plan;
use crate::conditions::{Conditions, METRIC};

/// How the collection for one Revision goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collection {
    /// Measurements come in, or would if there were requests.
    Working,
    /// The pods to ask could not be found out.
    NoEndpoints,
    /// Pods are there, but none answered.
    Silent,
    /// It failed otherwise.
    Failed(String),
}

/// Plans the status of a Metric.
pub fn plan(metric: &Metric, collection: &Collection, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if metric.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = metric.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(METRIC, &status.conditions, now);
    match collection {
        Collection::Working => conditions.mark_true(READY),
        Collection::NoEndpoints => conditions.mark_unknown(READY, "NoEndpoints", "failed to get endpoints"),
        Collection::Silent => {
            conditions.mark_false(READY, "DidNotReceiveStat", "did not receive stat from an unscraped pod");
        }
        Collection::Failed(why) => {
            let message = format!("Failed to reconcile metric collection: {why}");
            conditions.mark_false(READY, "CollectionFailed", &message);
        }
    }
    status.conditions = conditions.into_vec();
    status.observed_generation = metric.metadata.generation.unwrap_or_default();
    plan.set_status(metric.status.as_ref(), &status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a6_3_d12_1_ready_says_how_it_goes() {
        let check = |collection, wanted: &str| {
            let now = Timestamp::from_second(1).unwrap();
            let mut metric = Metric::default();
            let planned = plan(&metric, &collection, now).status.expect("a first status");
            let ready = &planned["conditions"][0];
            assert_eq!(
                format!("{} {}", ready["status"].as_str().unwrap(), ready["reason"].as_str().unwrap_or("-")),
                wanted
            );
            metric.status = Some(serde_json::from_value(planned).unwrap());
            assert!(plan(&metric, &collection, now).is_empty());
        };
        check(Collection::Working, "True -");
        check(Collection::NoEndpoints, "Unknown NoEndpoints");
        check(Collection::Silent, "False DidNotReceiveStat");
        check(Collection::Failed("no route".to_owned()), "False CollectionFailed");
    }
}
