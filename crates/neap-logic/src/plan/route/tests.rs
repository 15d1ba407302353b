//! A Route from its targets to what it shows.

use serde_json::{Value, json};

use super::*;
use crate::config::Flag;
use crate::config::Settings;
use crate::config::domain::DomainRule;
use crate::plan::ObjectRef;
use crate::plan::testing::{World, now};

const WORLD: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Route
metadata: {name: hello, namespace: ns, labels: {team: a}}
spec: {traffic: [{configurationName: hello, latestRevision: true, percent: 100}]}
---
apiVersion: serving.knative.dev/v1
kind: Configuration
metadata: {name: hello, namespace: ns}
spec: {}
status: {latestCreatedRevisionName: hello-1, latestReadyRevisionName: hello-1}
---
apiVersion: serving.knative.dev/v1
kind: Revision
metadata: {name: hello-1, namespace: ns}
spec: {containers: [{ports: [{name: h2c, containerPort: 8080}]}]}
status: {observedGeneration: 1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: serving.knative.dev/v1
kind: Revision
metadata: {name: hello-2, namespace: ns}
spec: {containers: []}
status: {observedGeneration: 1, conditions: [{type: Ready, status: "True"}]}
"#;

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.domain.domains.insert("localhost".into(), DomainRule::default());
    settings.neap.external_http_port = 8080;
    settings
}

fn run_with(world: &mut World, settings: Settings) -> Plan {
    let context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
    let route: Route =
        serde_json::from_value(world.value("Route", "ns", "hello").expect("there").clone()).expect("a Route");
    world.settle(&ObjectRef::of(&route), |w| observe(w, "ns", "hello", context.clone()), plan)
}

fn run(world: &mut World) -> Plan {
    run_with(world, settings())
}

fn status(world: &World) -> Value {
    world.value("Route", "ns", "hello").expect("there")["status"].clone()
}

fn shown(world: &World) -> String {
    let show = |c: &Value| {
        format!(
            "{}={}({})",
            c["type"].as_str().unwrap_or(""),
            c["status"].as_str().unwrap_or(""),
            c["reason"].as_str().unwrap_or("")
        )
    };
    status(world)["conditions"].as_array().expect("conditions").iter().map(show).collect::<Vec<_>>().join(" ")
}

fn serve(world: &mut World) {
    let generation = world.value("Ingress", "ns", "hello").expect("there")["metadata"]["generation"].clone();
    world.patch(
        "Ingress",
        "ns",
        "hello",
        json!({"status": {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": "True"}],
            "privateLoadBalancer": {"ingress": [{"domainInternal": "gw.knative-serving.svc.cluster.local"}]}}}),
    );
}

#[test]
fn a5_4_a5_6_d5_1_d5_2_a_route_becomes_ready_when_its_ingress_is() {
    let mut world = World::of(WORLD);
    run(&mut world);
    assert_eq!(
        shown(&world),
        "AllTrafficAssigned=True() CertificateProvisioned=True(TLSNotEnabled) IngressReady=Unknown(IngressNotConfigured) Ready=Unknown(IngressNotConfigured)"
    );
    let placeholder = world.value("Service", "ns", "hello").expect("created");
    assert_eq!(placeholder["spec"]["externalName"], "hello.ns.localhost");
    let ingress = world.value("Ingress", "ns", "hello").expect("created");
    assert_eq!(
        ingress["spec"]["rules"],
        json!([
            {"hosts": ["hello.ns", "hello.ns.svc", "hello.ns.svc.cluster.local"], "visibility": "ClusterLocal", "http": {"paths": [
                {"splits": [{"serviceNamespace": "ns", "serviceName": "hello-1", "servicePort": 81, "percent": 100,
                    "appendHeaders": {"Knative-Serving-Revision": "hello-1", "Knative-Serving-Namespace": "ns"}}]}]}},
            {"hosts": ["hello.ns.localhost"], "visibility": "ExternalIP", "http": {"paths": [
                {"splits": [{"serviceNamespace": "ns", "serviceName": "hello-1", "servicePort": 81, "percent": 100,
                    "appendHeaders": {"Knative-Serving-Revision": "hello-1", "Knative-Serving-Namespace": "ns"}}]}]}},
        ])
    );
    serve(&mut world);
    run(&mut world);
    assert!(shown(&world).ends_with("Ready=True()"), "{}", shown(&world));
    assert_eq!(
        world.value("Service", "ns", "hello").expect("there")["spec"]["externalName"],
        "gw.knative-serving.svc.cluster.local"
    );
    let status = status(&world);
    assert_eq!(status["url"], "http://hello.ns.localhost:8080");
    assert_eq!(status["address"]["url"], "http://hello.ns.svc.cluster.local");
    assert_eq!(status["traffic"], json!([{"revisionName": "hello-1", "latestRevision": true, "percent": 100}]));
}

#[test]
fn d5_2_c3_11_tags_get_hosts_and_headers() {
    let mut world = World::of(WORLD);
    let traffic =
        json!([{"revisionName": "hello-1", "percent": 100}, {"revisionName": "hello-2", "tag": "next", "percent": 0}]);
    world.patch("Route", "ns", "hello", json!({"spec": {"traffic": traffic}}));
    let mut with_headers = settings();
    with_headers.features.tag_header_based_routing = Flag::Enabled;
    run_with(&mut world, with_headers);
    assert_eq!(status(&world)["traffic"][1]["url"], "http://next-hello.ns.localhost:8080");
    let ingress = world.value("Ingress", "ns", "hello").expect("created");
    let main = &ingress["spec"]["rules"][1]["http"]["paths"];
    assert_eq!(main[0]["headers"], json!({"Knative-Serving-Tag": {"exact": "next"}}));
    assert_eq!(main[1]["appendHeaders"], json!({"Knative-Serving-Default-Route": "true"}));
    let tag = &ingress["spec"]["rules"][3];
    assert_eq!(tag["hosts"], json!(["next-hello.ns.localhost"]));
    assert_eq!(tag["http"]["paths"][0]["appendHeaders"], json!({"Knative-Serving-Tag": "next"}));
    // C3.11: the whole name of each side, none of its short forms.
    assert_eq!(
        ingress["metadata"]["annotations"]["networking.internal.knative.dev/tag-to-host"],
        r#"{"next":["next-hello.ns.svc.cluster.local","next-hello.ns.localhost"]}"#
    );
    assert!(world.value("Service", "ns", "next-hello").is_some());

    // "Allowed" is for what a revision may ask for; tags as headers are on or off (B3.4).
    let mut allowed = settings();
    allowed.features.tag_header_based_routing = Flag::Allowed;
    run_with(&mut world, allowed);
    let ingress = world.value("Ingress", "ns", "hello").expect("there");
    assert_eq!(ingress["spec"]["rules"][1]["http"]["paths"].as_array().map(Vec::len), Some(1));

    // A tag is hidden by labelling its placeholder, and forgotten with its target.
    world.patch(
        "Service",
        "ns",
        "next-hello",
        json!({"metadata": {"labels": {"networking.knative.dev/visibility": "cluster-local"}}}),
    );
    run(&mut world);
    assert_eq!(status(&world)["traffic"][1]["url"], "http://next-hello.ns.svc.cluster.local");
    world.patch("Route", "ns", "hello", json!({"spec": {"traffic": [{"revisionName": "hello-1", "percent": 100}]}}));
    run(&mut world);
    assert!(world.value("Service", "ns", "next-hello").is_none());
}

#[test]
fn c3_5_a_hidden_route_has_no_public_rule() {
    let mut world = World::of(WORLD);
    world.patch(
        "Route",
        "ns",
        "hello",
        json!({"metadata": {"labels": {"networking.knative.dev/visibility": "cluster-local"}}}),
    );
    run(&mut world);
    assert_eq!(
        world.value("Ingress", "ns", "hello").expect("created")["spec"]["rules"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(status(&world)["url"], "http://hello.ns.svc.cluster.local");
}

#[test]
fn a5_5_what_cannot_be_routed_says_why() {
    let mut world = World::of(WORLD);
    world.patch("Route", "ns", "hello", json!({"spec": {"traffic": [{"revisionName": "no", "percent": 100}]}}));
    run(&mut world);
    assert!(shown(&world).starts_with("AllTrafficAssigned=False(RevisionMissing)"), "{}", shown(&world));
    assert_eq!(status(&world)["url"], "http://hello.ns.localhost:8080");

    let mut world = World::of(WORLD);
    world.put_yaml("{apiVersion: v1, kind: Service, metadata: {name: hello, namespace: ns}, spec: {}}");
    run(&mut world);
    assert!(shown(&world).contains("IngressReady=False(NotOwned)"), "{}", shown(&world));
}

#[test]
fn a5_6_c3_10_a_rollout_keeps_the_route_waiting() {
    let mut world = World::of(WORLD);
    let mut slow = settings();
    slow.network.rollout_duration = Duration::from_secs(100);
    run_with(&mut world, slow.clone());
    serve(&mut world);
    run_with(&mut world, slow.clone());
    world.patch("Configuration", "ns", "hello", json!({"status": {"latestReadyRevisionName": "hello-2"}}));
    run_with(&mut world, slow.clone());
    assert_eq!(status(&world)["traffic"].as_array().map(Vec::len), Some(2));
    serve(&mut world);
    let plan = run_with(&mut world, slow);
    assert!(shown(&world).contains("IngressReady=Unknown(RolloutInProgress)"), "{}", shown(&world));
    assert!(plan.again.is_some());
}

#[test]
fn d5_3_certificates_are_asked_for_when_tls_is_on() {
    let mut world = World::of(WORLD);
    let mut secure = settings();
    secure.network.external_domain_tls = true;
    run_with(&mut world, secure.clone());
    assert!(shown(&world).contains("CertificateProvisioned=True(HTTPDowngrade)"), "{}", shown(&world));
    let name = "route-uid-route-hello";
    assert_eq!(
        world.value("Certificate", "ns", name).expect("asked for")["spec"]["dnsNames"],
        json!(["hello.ns.localhost"])
    );
    world.patch(
        "Certificate",
        "ns",
        name,
        json!({"status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    run_with(&mut world, secure);
    assert_eq!(status(&world)["url"], "https://hello.ns.localhost");
    assert_eq!(world.value("Ingress", "ns", "hello").expect("there")["spec"]["tls"][0]["secretName"], name);
    run(&mut world);
    assert!(world.value("Certificate", "ns", name).is_none());
}

fn make_ready(world: &mut World, certificate: &str) {
    let ready = json!({"status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}});
    world.patch("Certificate", "ns", certificate, ready);
}

#[test]
fn d5_3_a_wildcard_certificate_of_the_namespace_is_used() {
    let mut world = World::of(WORLD);
    world.put_yaml(
        "apiVersion: networking.internal.knative.dev/v1alpha1\nkind: Certificate\nmetadata: {name: ns.localhost, namespace: ns, \
         labels: {networking.knative.dev/wildcardDomain: localhost}}\n\
         spec: {dnsNames: [\"*.ns.localhost\"], secretName: wild, domain: localhost}",
    );
    let mut secure = settings();
    secure.network.external_domain_tls = true;
    run_with(&mut world, secure.clone());
    assert!(world.value("Certificate", "ns", "route-uid-route-hello").is_none());
    assert!(shown(&world).contains("CertificateProvisioned=True(HTTPDowngrade)"), "{}", shown(&world));
    make_ready(&mut world, "ns.localhost");
    run_with(&mut world, secure.clone());
    assert!(shown(&world).contains("CertificateProvisioned=True()"), "{}", shown(&world));
    assert_eq!(status(&world)["url"], "https://hello.ns.localhost");
    let tls = &world.value("Ingress", "ns", "hello").expect("there")["spec"]["tls"];
    assert_eq!(*tls, json!([{"hosts": ["hello.ns.localhost"], "secretName": "wild", "secretNamespace": "ns"}]));
    // One that is for other hosts is of no use.
    world.patch("Certificate", "ns", "ns.localhost", json!({"spec": {"dnsNames": ["*.other.localhost"]}}));
    run_with(&mut world, secure);
    assert!(world.value("Certificate", "ns", "route-uid-route-hello").is_some());
}

#[test]
fn d5_3_hosts_inside_the_cluster_have_certificates_of_their_own() {
    let mut world = World::of(WORLD);
    let traffic = json!([{"configurationName": "hello", "latestRevision": true, "percent": 100, "tag": "blue"}]);
    world.patch("Route", "ns", "hello", json!({"spec": {"traffic": traffic}}));
    let mut secure = settings();
    secure.network.cluster_local_domain_tls = true;
    run_with(&mut world, secure.clone());
    let certificates: Vec<String> = world.names().into_iter().filter(|name| name.starts_with("Cert")).collect();
    let tag = names::hash::adler32(b"blue");
    assert_eq!(
        certificates,
        [
            format!("Certificate/route-uid-route-hello-{tag}-local"),
            "Certificate/route-uid-route-hello-local".to_owned()
        ]
    );
    let made = world.value("Certificate", "ns", "route-uid-route-hello-local").expect("made");
    assert_eq!(made["spec"]["dnsNames"], json!(["hello.ns", "hello.ns.svc", "hello.ns.svc.cluster.local"]));
    assert_eq!(made["metadata"]["labels"]["networking.knative.dev/certificate-type"], "cluster-local-domain");
    make_ready(&mut world, "route-uid-route-hello-local");
    run_with(&mut world, secure);
    assert_eq!(status(&world)["address"]["url"], "https://hello.ns.svc.cluster.local");
    assert_eq!(status(&world)["url"], "http://hello.ns.localhost:8080", "public hosts have none");
}

#[test]
fn a5_7_what_certificates_add_up_to() {
    let mut world = World::of(WORLD);
    let check = |world: &mut World, settings: &Settings, want: &str| {
        run_with(world, settings.clone());
        assert!(shown(world).contains(&format!("CertificateProvisioned={want}")), "{} not in {}", want, shown(world));
    };
    let mut s = settings();
    check(&mut world, &s, "True(TLSNotEnabled)");
    s.network.external_domain_tls = true;
    check(&mut world, &s, "True(HTTPDowngrade)");
    s.network.http_protocol = crate::config::network::HttpProtocol::Redirected;
    check(&mut world, &s, "Unknown(CertificateNotReady)");
    let name = "route-uid-route-hello";
    let failed = json!({"status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "False", "reason": "Bad"}]}});
    world.patch("Certificate", "ns", name, failed);
    check(&mut world, &s, "False(CertificateProvisionFailed)");
    make_ready(&mut world, name);
    check(&mut world, &s, "True()");
    world.patch("Certificate", "ns", name, json!({"metadata": {"ownerReferences": null}}));
    check(&mut world, &s, "False(CertificateNotOwned)");
    world.patch(
        "Route",
        "ns",
        "hello",
        json!({"metadata": {"labels": {"networking.knative.dev/visibility": "cluster-local"}}}),
    );
    check(&mut world, &s, "True(TLSNotEnabled)");
}

#[test]
fn c1_6_c3_1_c3_2_c3_3_c3_4_what_a_route_says_of_its_network() {
    let annotated = |annotations: Value, settings: Settings| {
        let mut world = World::of(WORLD);
        world.patch("Route", "ns", "hello", json!({"metadata": {"annotations": annotations}}));
        run_with(&mut world, settings);
        world
    };
    let mut secure = settings();
    secure.network.external_domain_tls = true;
    let labels = json!({"team": "a", "serving.knative.dev/route": "hello", "serving.knative.dev/routeNamespace": "ns"});
    let world = annotated(json!({}), secure.clone());
    let ingress = &world.value("Ingress", "ns", "hello").expect("made")["metadata"];
    assert_eq!(ingress["labels"], labels);
    assert_eq!(ingress["annotations"]["networking.knative.dev/ingress.class"], "neap.ingress.networking.knative.dev");
    let placeholder = &world.value("Service", "ns", "hello").expect("made")["metadata"];
    assert_eq!(placeholder["labels"], json!({"team": "a", "serving.knative.dev/route": "hello"}));
    for spelling in ["ingress.class", "ingress-class"] {
        let world = annotated(json!({format!("networking.knative.dev/{spelling}"): "mine"}), secure.clone());
        let annotations = &world.value("Ingress", "ns", "hello").expect("made")["metadata"]["annotations"];
        assert_eq!(annotations["networking.knative.dev/ingress.class"], "mine");
        assert!(annotations["networking.knative.dev/ingress-class"].is_null());
    }
    for spelling in ["certificate.class", "certificate-class"] {
        let world = annotated(json!({format!("networking.knative.dev/{spelling}"): "mine"}), secure.clone());
        let made = world.value("Certificate", "ns", "route-uid-route-hello").expect("asked for");
        assert_eq!(made["metadata"]["annotations"]["networking.knative.dev/certificate.class"], "mine");
        assert_eq!(made["metadata"]["labels"]["serving.knative.dev/route"], "hello");
    }
    for spelling in ["disable-external-domain-tls", "disable-auto-tls", "disableAutoTLS"] {
        let world = annotated(json!({format!("networking.knative.dev/{spelling}"): "true"}), secure.clone());
        assert!(world.value("Certificate", "ns", "route-uid-route-hello").is_none(), "{spelling}");
    }
    for spelling in ["http-protocol", "httpOption"] {
        let mut world = annotated(json!({format!("networking.knative.dev/{spelling}"): "Redirected"}), secure.clone());
        assert_eq!(world.value("Ingress", "ns", "hello").expect("made")["spec"]["httpOption"], "Enabled");
        make_ready(&mut world, "route-uid-route-hello");
        run_with(&mut world, secure.clone());
        assert_eq!(world.value("Ingress", "ns", "hello").expect("made")["spec"]["httpOption"], "Redirected");
    }
}

#[test]
fn d5_4_placeholders_go_with_their_tags() {
    let mut world = World::of(WORLD);
    let target = |tag: &str| json!({"configurationName": "hello", "latestRevision": true, "percent": 100, "tag": tag});
    world.patch("Route", "ns", "hello", json!({"spec": {"traffic": [target("blue")]}}));
    run(&mut world);
    assert!(world.value("Service", "ns", "blue-hello").is_some());
    assert_eq!(status(&world)["traffic"][0]["url"], "http://blue-hello.ns.localhost:8080");
    world.patch("Route", "ns", "hello", json!({"spec": {"traffic": [target("")]}}));
    run(&mut world);
    assert!(world.value("Service", "ns", "blue-hello").is_none());
    assert!(world.value("Service", "ns", "hello").is_some());
}

#[test]
fn requests_are_sent_to_a_tag_by_what_they_carry() {
    let mut world = World::of(WORLD);
    world.patch(
        "Route",
        "ns",
        "hello",
        json!({"metadata": {"annotations": {
            "neap.dev/routes": "- {headers: {x-canary: '1'}, tag: canary}\n- {path: /x, tag: gone}",
            "neap.dev/rate-limit": "100/s"}},
            "spec": {"traffic": [
                {"configurationName": "hello", "latestRevision": true, "percent": 100},
                {"revisionName": "hello-2", "latestRevision": false, "percent": 0, "tag": "canary"}]}}),
    );
    run(&mut world);
    let ingress = world.value("Ingress", "ns", "hello").expect("there").clone();
    let annotations = &ingress["metadata"]["annotations"];
    assert_eq!(annotations["neap.dev/rate-limit"], "100/s");
    assert!(annotations.get("neap.dev/routes").is_none());
    let extra = annotations["neap.dev/paths"].as_str().expect("a text");
    // The main host inside and outside, but not the tag's own.
    let places: Vec<(usize, usize)> = crate::routing::extras::read_paths(extra).expect("reads").into_keys().collect();
    assert_eq!(places, [(0, 1), (1, 1)]);
    for (rule, path) in places {
        let path = &ingress["spec"]["rules"][rule]["http"]["paths"][path];
        assert_eq!(path["splits"][0]["serviceName"], "hello-2", "{ingress}");
    }
}

#[test]
fn f1_11_a6_6_challenges_come_first_in_the_rules_of_their_hosts() {
    let mut world = World::of(WORLD);
    let mut secure = settings();
    secure.network.external_domain_tls = true;
    run_with(&mut world, secure.clone());
    let name = "route-uid-route-hello";
    let challenges = json!([
        {"url": "http://hello.ns.localhost/.well-known/acme-challenge/tok", "serviceName": "solver",
            "serviceNamespace": "ns", "servicePort": 8089},
        {"url": "http://other.ns.localhost/.well-known/acme-challenge/tok", "serviceName": "solver",
            "serviceNamespace": "ns", "servicePort": 8089},
    ]);
    let conditions = |ready: &str, renewing: &str| {
        json!([{"type": "Ready", "status": ready, "reason": "IssueFailed", "message": "ca refuses it"},
            {"type": "Renewing", "status": renewing}])
    };
    let mut look = |ready: &str, renewing: &str| {
        let status =
            json!({"observedGeneration": 1, "conditions": conditions(ready, renewing), "http01Challenges": challenges});
        world.patch("Certificate", "ns", name, json!({ "status": status }));
        run_with(&mut world, secure.clone());
        let rules = world.value("Ingress", "ns", "hello").expect("there")["spec"]["rules"].clone();
        let paths = |rule: &Value| -> Vec<String> {
            let paths = rule["http"]["paths"].as_array().expect("paths");
            paths.iter().map(|p| p["path"].as_str().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(paths(&rules[0]), [""], "hosts inside are not looked at");
        (paths(&rules[1]), status_message(&world))
    };
    let challenge = "/.well-known/acme-challenge/tok".to_owned();
    let (paths, message) = look("False", "False");
    assert_eq!(paths, [challenge.clone(), String::new()]);
    assert_eq!(message, format!("Certificate {name} is not ready downgrade HTTP: ca refuses it"));
    assert_eq!(look("True", "True").0, [challenge, String::new()]);
    assert_eq!(look("True", "False").0, [""], "nothing is open");
}

fn status_message(world: &World) -> String {
    let conditions = status(world)["conditions"].clone();
    let of = |c: &&Value| c["type"] == "CertificateProvisioned";
    let found = conditions.as_array().expect("conditions").iter().find(of).cloned().expect("that one");
    found["message"].as_str().unwrap_or_default().to_owned()
}
