//! A mapping: claim, reference, Ingress, and their failures.

use serde_json::json;

use super::super::testing::{World, now};
use super::*;
use crate::config::Settings;

const WORLD: &str = r#"
apiVersion: serving.knative.dev/v1beta1
kind: DomainMapping
metadata: {name: shop.example.org, namespace: ns}
spec: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: shop}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: shop, namespace: ns}
spec: {template: {spec: {containers: []}}}
status: {address: {url: "http://shop.ns.svc.cluster.local"}}
"#;

fn run(world: &mut World, autocreate: bool) -> Plan {
    let mut settings = Settings::default();
    settings.network.autocreate_cluster_domain_claims = autocreate;
    let context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
    let mapping: DomainMapping =
        serde_json::from_value(world.value("DomainMapping", "ns", "shop.example.org").expect("there").clone())
            .expect("a mapping");
    world.settle(&ObjectRef::of(&mapping), |w| observe(w, "ns", "shop.example.org", context.clone()), plan)
}

fn condition(world: &World, type_: &str) -> String {
    let mapping = world.value("DomainMapping", "ns", "shop.example.org").expect("there");
    let conditions = mapping["status"]["conditions"].as_array().expect("conditions");
    let condition = conditions.iter().find(|c| c["type"] == type_).expect("that condition");
    format!("{} {}", condition["status"].as_str().unwrap_or(""), condition["reason"].as_str().unwrap_or(""))
}

#[test]
fn d9_1_d9_2_c1_15_a_mapping_leads_to_the_service() {
    let mut world = World::of(WORLD);
    run(&mut world, true);
    assert_eq!(world.value("ClusterDomainClaim", "", "shop.example.org").expect("claimed")["spec"]["namespace"], "ns");
    let ingress = world.value("Ingress", "ns", "shop.example.org").expect("created").clone();
    let path = &ingress["spec"]["rules"][0]["http"]["paths"][0];
    assert_eq!(path["rewriteHost"], "shop.ns.svc.cluster.local");
    assert_eq!(path["appendHeaders"], json!({"K-Original-Host": "shop.example.org"}));
    assert_eq!(path["splits"][0]["serviceName"], "shop");
    world.patch(
        "Ingress",
        "ns",
        "shop.example.org",
        json!({"status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    run(&mut world, true);
    assert_eq!(condition(&world, "Ready"), "True ");

    world.patch(
        "DomainMapping",
        "ns",
        "shop.example.org",
        json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}),
    );
    run(&mut world, true);
    assert!(world.value("ClusterDomainClaim", "", "shop.example.org").is_none());
    assert!(world.value("DomainMapping", "ns", "shop.example.org").is_none());
}

#[test]
fn a6_1_d9_4_a_mapping_says_what_is_missing() {
    let mut world = World::of(WORLD);
    run(&mut world, false);
    assert_eq!(condition(&world, "DomainClaimed"), "False DomainClaimFailed");
    world.put_yaml("{apiVersion: networking.internal.knative.dev/v1alpha1, kind: ClusterDomainClaim, metadata: {name: shop.example.org}, spec: {namespace: other}}");
    run(&mut world, false);
    assert_eq!(condition(&world, "DomainClaimed"), "False DomainAlreadyClaimed");

    let check = |change: serde_json::Value, want: &str| {
        let mut world = World::of(WORLD);
        world.patch("DomainMapping", "ns", "shop.example.org", json!({"spec": {"ref": change}}));
        run(&mut world, true);
        assert_eq!(condition(&world, "ReferenceResolved"), want);
    };
    check(json!({"name": "nothing"}), "False ResolveFailed");
    check(json!({"kind": "Pod", "apiVersion": "v1"}), "False ResolveFailed");
}

#[test]
fn a6_1_nothing_is_made_for_a_name_that_could_not_be_claimed() {
    let world = World::of(WORLD);
    let mut settings = Settings::default();
    settings.network.autocreate_cluster_domain_claims = true;
    let mut context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
    let look = |context: &Context| plan(&observe(&world, "ns", "shop.example.org", context.clone()).expect("there"));
    let kinds = |plan: &Plan| plan.writes.iter().map(|w| w.target().resource.kind).collect::<Vec<_>>();
    let first = look(&context);
    assert_eq!(kinds(&first), ["DomainMapping", "ClusterDomainClaim", "Ingress"]);
    assert_eq!(first.barrier, 2);

    context.refusals = vec![crate::plan::Refusal { target: first.writes[1].target(), message: "no".into() }];
    let refused = look(&context);
    assert_eq!(kinds(&refused), ["DomainMapping"]);
    let conditions = &refused.status.expect("a status")["conditions"];
    let claimed = conditions.as_array().expect("conditions").iter().find(|c| c["type"] == "DomainClaimed");
    assert_eq!(claimed.expect("there")["reason"], "DomainClaimFailed");
}

#[test]
fn d9_3_a_mapping_has_a_certificate_while_there_is_tls() {
    let mut world = World::of(WORLD);
    let mut settings = Settings::default();
    settings.network.autocreate_cluster_domain_claims = true;
    settings.network.external_domain_tls = true;
    let look = |world: &mut World| {
        let context = Context { now: now(), settings: Arc::new(settings.clone()), refusals: Vec::new() };
        let mapping: DomainMapping =
            serde_json::from_value(world.value("DomainMapping", "ns", "shop.example.org").expect("there").clone())
                .expect("a mapping");
        world.settle(&ObjectRef::of(&mapping), |w| observe(w, "ns", "shop.example.org", context.clone()), plan)
    };
    look(&mut world);
    assert_eq!(condition(&world, "CertificateProvisioned"), "True HTTPDowngrade");
    let made = world.value("Certificate", "ns", "shop.example.org").expect("asked for");
    assert_eq!(made["spec"]["dnsNames"], json!(["shop.example.org"]));
    let challenge = json!([{"url": "http://shop.example.org/.well-known/acme-challenge/tok", "serviceName": "neap-acme",
        "serviceNamespace": "ns", "servicePort": 80}]);
    let open = json!({"status": {"http01Challenges": challenge}});
    world.patch("Certificate", "ns", "shop.example.org", open);
    look(&mut world);
    let paths = &world.value("Ingress", "ns", "shop.example.org").expect("made")["spec"]["rules"][0]["http"]["paths"];
    assert_eq!(paths[0]["path"], "/.well-known/acme-challenge/tok");
    assert_eq!(paths[0]["splits"][0]["serviceName"], "neap-acme");
    assert_eq!(paths[1]["rewriteHost"], "shop.ns.svc.cluster.local");
    let ready = json!({"status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}});
    world.patch("Certificate", "ns", "shop.example.org", ready);
    look(&mut world);
    assert_eq!(condition(&world, "CertificateProvisioned"), "True ");
    let ingress = world.value("Ingress", "ns", "shop.example.org").expect("made");
    assert_eq!(ingress["spec"]["tls"][0]["hosts"], json!(["shop.example.org"]));
}

fn annotate(world: &mut World, key: &str, value: &str) {
    world.patch("DomainMapping", "ns", "shop.example.org", json!({"metadata": {"annotations": {key: value}}}));
}

#[test]
fn several_services_share_the_domain() {
    let mut world = World::of(WORLD);
    annotate(
        &mut world,
        "neap.dev/routes",
        "- {path: /api, service: api, rewritePath: /}\n- {query: {v: '2'}, service: shop}",
    );
    annotate(&mut world, "neap.dev/wildcard", "true");
    annotate(&mut world, "neap.dev/rate-limit", "5/s");
    run(&mut world, true);
    let ingress = world.value("Ingress", "ns", "shop.example.org").expect("created").clone();
    let rules = &ingress["spec"]["rules"];
    let paths = |rule: usize| &rules[rule]["http"]["paths"];
    assert_eq!(
        (&rules[0]["hosts"], &rules[1]["hosts"]),
        (&json!(["shop.example.org"]), &json!(["*.shop.example.org"]))
    );
    // What is not there yet keeps its path, so that nobody else answers for it.
    assert_eq!(
        (&paths(0)[0]["path"], &paths(0)[0]["rewriteHost"]),
        (&json!("/api"), &json!("api.ns.svc.cluster.local"))
    );
    assert_eq!(paths(0)[1]["rewriteHost"], "shop.ns.svc.cluster.local");
    assert_eq!(paths(0)[2]["rewriteHost"], "shop.ns.svc.cluster.local");
    assert_eq!(paths(0)[2]["appendHeaders"], json!({"K-Original-Host": "shop.example.org"}));
    assert!(paths(1)[2].get("appendHeaders").is_none(), "below a wildcard each request has a name of its own");
    let annotations = &ingress["metadata"]["annotations"];
    assert_eq!(annotations["neap.dev/rate-limit"], "5/s");
    assert!(annotations.get("neap.dev/routes").is_none());
    let extra = annotations["neap.dev/paths"].as_str().expect("a text");
    assert!(
        extra.contains(r#"{"rule":0,"path":0,"rewrite":"/"}"#) && extra.contains(r#""rule":1,"path":1"#),
        "{extra}"
    );
    assert_eq!(condition(&world, "ReferenceResolved"), "False ResolveFailed");
    let mapping = world.value("DomainMapping", "ns", "shop.example.org").expect("there");
    let text = mapping["status"]["conditions"].to_string();
    assert!(text.contains(r#"neap.dev/routes, entry 1: services.serving.knative.dev \"api\" not found"#), "{text}");

    world.put_yaml(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: api, namespace: ns}\nspec: {}\nstatus: {address: {url: \"http://api.ns.svc.cluster.local\"}}\n",
    );
    run(&mut world, true);
    assert_eq!(condition(&world, "ReferenceResolved"), "True ");
    assert_eq!(world.value("Ingress", "ns", "shop.example.org").expect("there")["spec"], ingress["spec"]);
}

#[test]
fn another_gateway_serves_the_reference_alone() {
    let mut world = World::of(WORLD);
    annotate(&mut world, "neap.dev/routes", "- {path: /api, service: api}");
    annotate(&mut world, "neap.dev/wildcard", "true");
    annotate(&mut world, "networking.knative.dev/ingress.class", "kourier.ingress.networking.knative.dev");
    run(&mut world, true);
    let ingress = world.value("Ingress", "ns", "shop.example.org").expect("created");
    assert_eq!(ingress["spec"]["rules"].as_array().map(Vec::len), Some(1));
    assert_eq!(ingress["spec"]["rules"][0]["http"]["paths"].as_array().map(Vec::len), Some(1));
    assert!(ingress["metadata"]["annotations"].get("neap.dev/paths").is_none());
    assert_eq!(condition(&world, "ReferenceResolved"), "True ");
}

#[test]
fn a_list_nobody_can_read_changes_nothing() {
    let mut world = World::of(WORLD);
    run(&mut world, true);
    let before = world.value("Ingress", "ns", "shop.example.org").expect("created").clone();
    annotate(&mut world, "neap.dev/routes", "- {path: api, service: api}");
    run(&mut world, true);
    assert_eq!(condition(&world, "ReferenceResolved"), "False ResolveFailed");
    assert_eq!(world.value("Ingress", "ns", "shop.example.org"), Some(&before));
}
