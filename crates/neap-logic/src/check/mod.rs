//! A linter for plans: what must hold for every plan whatever it is about.
//!
//! Tests run it on each plan they make; it never changes one.

use serde_json::Value;

use crate::names;
use crate::plan::{Object, Plan, Write};

/// Kinds that belong to somebody whenever we make them; the others live on their own.
const OWNED: [&str; 14] = [
    "Configuration",
    "Route",
    "Revision",
    "Deployment",
    "PodAutoscaler",
    "Metric",
    "ServerlessService",
    "Service",
    "Endpoints",
    "Ingress",
    "Certificate",
    "Image",
    "HorizontalPodAutoscaler",
    "EndpointSlice",
];

/// Everything that is wrong with a plan; empty for a good one.
pub fn lint(plan: &Plan) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    for write in &plan.writes {
        let target = write.target();
        if seen.contains(&target) {
            faults.push(format!("{target} is written twice"));
        }
        match write {
            Write::Create(object) => {
                created(object, &mut faults);
                written(object, &mut faults);
            }
            Write::Update(object) => {
                updated(object, &mut faults);
                written(object, &mut faults);
            }
            Write::Patch(patch) if patch.merge.as_object().is_none_or(serde_json::Map::is_empty) => {
                faults.push(format!("{target} gets an empty patch"));
            }
            Write::Patch(_) | Write::Delete(_) | Write::DeleteSeen(_) => {}
        }
        seen.push(target);
    }
    if let Some(status) = &plan.status {
        conditions(status, &mut faults);
        traffic(&status["traffic"], "status.traffic", &mut faults);
    }
    if plan.barrier > plan.writes.len() {
        faults.push(format!("{} writes, but a barrier at {}", plan.writes.len(), plan.barrier));
    }
    for event in &plan.events {
        if event.reason.is_empty() || event.message.is_empty() {
            faults.push(format!("an event lacks words: {event:?}"));
        }
    }
    faults
}

fn created(object: &Object, faults: &mut Vec<String>) {
    let at = object.reference();
    let meta = &object.value["metadata"];
    for forbidden in ["resourceVersion", "uid", "creationTimestamp"] {
        if !meta[forbidden].is_null() {
            faults.push(format!("{at} is to be created with metadata.{forbidden}"));
        }
    }
    if OWNED.contains(&object.resource.kind.as_str()) {
        let controllers = meta["ownerReferences"].as_array().into_iter().flatten().filter(|r| r["controller"] == true);
        let with_uid = controllers.filter(|r| r["uid"].as_str().is_some_and(|uid| !uid.is_empty())).count();
        if with_uid != 1 {
            faults.push(format!("{at} is to be created with {with_uid} controllers, not one"));
        }
    }
}

fn updated(object: &Object, faults: &mut Vec<String>) {
    if object.value["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
        faults.push(format!("{} is to be updated without the version it was decided on", object.reference()));
    }
}

fn written(object: &Object, faults: &mut Vec<String>) {
    let at = object.reference();
    let value = &object.value;
    let meta = &value["metadata"];
    if meta["name"] != object.name.as_str() || meta["namespace"].as_str() != object.namespace.as_deref() {
        faults.push(format!("{at} is named otherwise inside"));
    }
    // Those are named by host.
    let limit_applies =
        !matches!(object.resource.kind.as_str(), "ClusterDomainClaim" | "DomainMapping" | "Certificate");
    if limit_applies && object.name.len() > names::MAX_NAME {
        faults.push(format!("{at} has a name of {} characters", object.name.len()));
    }
    if value["kind"] != object.resource.kind.as_str() || value["apiVersion"] != object.resource.api_version.as_str() {
        faults.push(format!("{at} says it is a {} of {}", value["kind"], value["apiVersion"]));
    }
    for (key, label) in meta["labels"].as_object().into_iter().flatten() {
        if !names::is_qualified_name(key) || !label.as_str().is_some_and(names::is_label_value) {
            faults.push(format!("{at} carries the unusable label {key}={label}"));
        }
    }
    match object.resource.kind.as_str() {
        "Ingress" => splits(value, &at.to_string(), faults),
        "Route" => traffic(&value["spec"]["traffic"], &format!("{at} spec.traffic"), faults),
        _ => {}
    }
}

fn splits(ingress: &Value, at: &str, faults: &mut Vec<String>) {
    for rule in ingress["spec"]["rules"].as_array().into_iter().flatten() {
        let hosts = rule["hosts"].as_array().map_or(0, Vec::len);
        if hosts == 0 {
            faults.push(format!("{at} has a rule without hosts"));
        }
        for path in rule["http"]["paths"].as_array().into_iter().flatten() {
            let sum: i64 =
                path["splits"].as_array().into_iter().flatten().map(|s| s["percent"].as_i64().unwrap_or(0)).sum();
            if sum != 100 {
                faults.push(format!("{at} splits {sum} percent of the requests to {}", rule["hosts"]));
            }
        }
    }
}

fn traffic(targets: &Value, at: &str, faults: &mut Vec<String>) {
    let Some(targets) = targets.as_array().filter(|t| !t.is_empty()) else { return };
    let sum: i64 = targets.iter().map(|t| t["percent"].as_i64().unwrap_or(0)).sum();
    if sum != 100 {
        faults.push(format!("{at} sums to {sum}"));
    }
}

fn conditions(status: &Value, faults: &mut Vec<String>) {
    let Some(conditions) = status["conditions"].as_array() else { return };
    let types: Vec<&str> = conditions.iter().filter_map(|c| c["type"].as_str()).collect();
    if !types.is_sorted() {
        faults.push(format!("the status' conditions are not sorted: {types:?}"));
    }
    for condition in conditions {
        if condition["lastTransitionTime"].is_null() {
            faults.push(format!("the condition {} has no time", condition["type"]));
        }
        if condition["status"] == "False" && condition["reason"].as_str().is_none_or(str::is_empty) {
            faults.push(format!("the condition {} is false without a reason", condition["type"]));
        }
    }
    if status["observedGeneration"].as_i64().unwrap_or(0) == 0 {
        faults.push("the status speaks of no generation".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_api::networking::Ingress;
    use serde_json::json;

    #[test]
    fn faults_are_found() {
        let ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "no good"}},
            "spec": {"rules": [{"http": {"paths": [{"splits": [{"percent": 90}]}]}}]},
        }))
        .expect("an Ingress");
        let write = Write::Create(Object::of(&ingress));
        let plan = Plan {
            writes: vec![write.clone(), write],
            status: Some(json!({"conditions": [{"type": "Ready", "status": "False"}]})),
            ..Plan::default()
        };
        let faults = lint(&plan).join("\n");
        for want in [
            "written twice",
            "metadata.uid",
            "0 controllers",
            "x=\"no good\"",
            "without hosts",
            "90 percent",
            "no time",
            "without a reason",
            "no generation",
        ] {
            assert!(faults.contains(want), "{want} not in\n{faults}");
        }
        assert_eq!(lint(&Plan::default()), Vec::<String>::new());
    }
}
