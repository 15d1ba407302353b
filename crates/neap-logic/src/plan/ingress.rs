//! Ingress of our own class: whether the gateway serves what is written (facts F1.8, F2, F4.5).
//!
//! The gateway says which version it serves; no request is sent to find out.

use std::sync::Arc;

use neap_api::ConditionStatus;
use neap_api::condition::READY;
use neap_api::keys::networking;
use neap_api::networking::{Ingress, LoadBalancerIngress, LoadBalancerStatus};

use super::cache::Cache;
use super::{Context, Plan, meta};
use crate::conditions::{self, Conditions};
use crate::config::neap::ServiceName;
use crate::names::hosts;
use crate::routing::network_hash;

const NETWORK_CONFIGURED: &str = "NetworkConfigured";
const LOAD_BALANCER_READY: &str = "LoadBalancerReady";

/// What the gateway says about one Ingress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// The hash of the version every gateway serves; `None` while it serves none.
    pub hash: Option<String>,
    /// Hosts another, older Ingress has, with that Ingress' namespace and name.
    pub conflicts: Vec<(String, String)>,
}

/// An Ingress and what the gateway says about it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Ingress.
    pub ingress: Arc<Ingress>,
    /// What the gateway says.
    pub served: Served,
    /// Everything else.
    pub context: Context,
}

/// Whether our gateway is the one to serve it.
pub fn is_ours(ingress: &Ingress) -> bool {
    meta::annotation_of(&ingress.metadata, &[networking::INGRESS_CLASS, networking::INGRESS_CLASS_ALT])
        == Some(networking::NEAP_INGRESS_CLASS)
}

/// Gathers what [`plan`] needs; nothing for an Ingress of another class.
pub fn observe<C: Cache>(cache: &C, namespace: &str, name: &str, served: Served, context: Context) -> Option<Observed> {
    let ingress = cache.get::<Ingress>(namespace, name).filter(|ingress| is_ours(ingress))?;
    Some(Observed { ingress, served, context })
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let ingress = o.ingress.as_ref();
    if ingress.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = ingress.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::INGRESS, &status.conditions, o.context.now);
    status.observed_generation = ingress.metadata.generation.unwrap_or_default();
    c.mark_true(NETWORK_CONFIGURED);
    if let Some((host, owner)) = o.served.conflicts.first() {
        c.mark_false(LOAD_BALANCER_READY, "DomainConflict", &format!("{host} is already in use by Ingress {owner}"));
    } else if o.served.hash.as_deref() == Some(network_hash(ingress).as_str()) {
        let settings = &o.context.settings;
        let at = |service: &ServiceName| {
            Some(LoadBalancerStatus {
                ingress: vec![LoadBalancerIngress {
                    domain_internal: hosts::service_host(&service.name, &service.namespace, settings),
                    ..LoadBalancerIngress::default()
                }],
            })
        };
        status.public_load_balancer = at(&settings.neap.external_gateway);
        status.private_load_balancer = at(&settings.neap.local_gateway);
        c.mark_true(LOAD_BALANCER_READY);
    } else {
        c.mark_unknown(LOAD_BALANCER_READY, "Uninitialized", "Waiting for load balancer to be ready");
        plan.because("the gateway does not serve this version yet");
    }
    if c.status(READY) == ConditionStatus::True {
        plan.because("the gateway serves this version");
    }
    status.conditions = c.into_vec();
    plan.set_status(ingress.status.as_ref(), &status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ObjectRef;
    use crate::plan::testing::{World, now};

    const INGRESS: &str = r#"
apiVersion: networking.internal.knative.dev/v1alpha1
kind: Ingress
metadata: {name: i, namespace: ns, annotations: {networking.knative.dev/ingress.class: CLASS}}
spec: {rules: [{hosts: [a.example.com], http: {paths: []}}]}
"#;

    fn check(class: &str, served: impl Fn(&Ingress) -> Served, want: &str) {
        let mut world = World::of(&INGRESS.replace("CLASS", class));
        let value = world.value("Ingress", "ns", "i").expect("there").clone();
        let ingress: Ingress = serde_json::from_value(value).expect("an Ingress");
        let served = served(&ingress);
        let context = Context { now: now(), settings: Default::default(), refusals: Vec::new() };
        world.settle(&ObjectRef::of(&ingress), |w| observe(w, "ns", "i", served.clone(), context.clone()), plan);
        let status = &world.value("Ingress", "ns", "i").expect("there")["status"];
        let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
        let words =
            ready.map(|c| format!("{} {}", c["status"].as_str().unwrap_or(""), c["message"].as_str().unwrap_or("")));
        let at = status["privateLoadBalancer"]["ingress"][0]["domainInternal"].as_str().unwrap_or("-");
        assert_eq!(format!("{} {at}", words.unwrap_or_default()), want);
    }

    #[test]
    fn a6_5_it_is_ready_when_this_version_is_served() {
        let ours = networking::NEAP_INGRESS_CLASS;
        let hash = |i: &Ingress| Served { hash: Some(network_hash(i)), conflicts: Vec::new() };
        check(ours, hash, "True  neap-gateway-internal.knative-serving.svc.cluster.local");
        check(ours, |_| Served::default(), "Unknown Waiting for load balancer to be ready -");
        check(
            ours,
            |_| Served { hash: Some("old".into()), conflicts: Vec::new() },
            "Unknown Waiting for load balancer to be ready -",
        );
        let taken = |i: &Ingress| Served { conflicts: vec![("a.example.com".into(), "ns/first".into())], ..hash(i) };
        check(ours, taken, "False a.example.com is already in use by Ingress ns/first -");
        check("kourier.ingress.networking.knative.dev", hash, " -");
    }
}
