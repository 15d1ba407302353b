//! Wildcard certificates of namespaces (D8.1).

use serde_json::{Value, json};

use super::super::testing::{World, now};
use super::*;
use crate::config::domain::DomainRule;
use crate::config::{Data, Maps};

const WORLD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
"#;

fn settings(selector: &str) -> Settings {
    let data = |pairs: &[(&str, &str)]| -> Data { pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect() };
    let mut settings = Settings::parse(&Maps::from([(
        "config-network".to_owned(),
        data(&[("external-domain-tls", "Enabled"), ("namespace-wildcard-cert-selector", selector)]),
    )]))
    .expect("settings");
    let rule = |kind: &str| DomainRule { kind: kind.into(), ..DomainRule::default() };
    settings.domain.domains.insert("example.com".into(), rule(WILDCARD));
    settings.domain.domains.insert("special.org".into(), rule(""));
    settings
}

fn run(world: &mut World, settings: Settings) -> Plan {
    let context = Context { now: now(), settings: Arc::new(settings), refusals: Vec::new() };
    let namespace: Namespace =
        serde_json::from_value(world.value("Namespace", "", "shop").expect("there").clone()).expect("a Namespace");
    world.settle(&ObjectRef::of(&namespace), |w| observe(w, "", "shop", context.clone()), plan)
}

#[test]
fn d8_1_c3_6_c3_7_a_namespace_has_a_certificate_for_each_wildcard_domain() {
    let mut world = World::of(WORLD);
    let plan = run(&mut world, settings("{}"));
    assert_eq!(world.names(), ["Certificate/shop.example.com", "Namespace/shop"]);
    assert_eq!(plan.events[0].reason, "Created");
    let made = world.value("Certificate", "shop", "shop.example.com").expect("made");
    assert_eq!(
        made["spec"],
        json!({"dnsNames": ["*.shop.example.com"], "domain": "example.com", "secretName": "shop.example.com"})
    );
    assert_eq!(
        made["metadata"]["labels"],
        json!({"networking.knative.dev/wildcardDomain": "example.com",
            "networking.knative.dev/certificate-type": "external-domain"})
    );
    assert_eq!(
        made["metadata"]["annotations"],
        json!({"networking.knative.dev/certificate.class": "cert-manager.certificate.networking.knative.dev"})
    );
    assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "Namespace");
    // What nobody asks for any more goes; other people's certificates stay.
    world.put_yaml(
        "apiVersion: networking.internal.knative.dev/v1alpha1\nkind: Certificate\nmetadata: {name: mine, namespace: shop, \
         labels: {networking.knative.dev/certificate-type: external-domain, networking.knative.dev/wildcardDomain: x}}\nspec: {}",
    );
    run(&mut world, settings(""));
    assert_eq!(world.names(), ["Certificate/mine", "Namespace/shop"]);
}

#[test]
fn b6_9_the_selector_chooses_namespaces() {
    let check = |selector: &str, want: bool| {
        let mut world = World::of(WORLD);
        run(&mut world, settings(selector));
        assert_eq!(world.names().len() == 2, want, "{selector:?}");
    };
    check("", false);
    check("{}", true);
    check("matchLabels: {team: a}", true);
    check("matchLabels: {team: b}", false);
    check("matchExpressions: [{key: team, operator: In, values: [a, b]}]", true);
    check("matchExpressions: [{key: team, operator: NotIn, values: [a, b]}]", false);
    check("matchExpressions: [{key: team, operator: Exists}]", true);
    check("matchExpressions: [{key: team, operator: DoesNotExist}]", false);
    check("matchExpressions: [{key: other, operator: NotIn, values: [a]}]", true);
    let refused = |selector: &str| {
        let data = Data::from([("namespace-wildcard-cert-selector".to_owned(), selector.to_owned())]);
        assert!(Settings::parse(&Maps::from([("config-network".to_owned(), data)])).is_err(), "{selector}");
    };
    refused("matchExpressions: [{key: team, operator: Like, values: [a]}]");
    refused("matchLabels: 3");
}

#[test]
fn b6_5_without_tls_there_are_no_certificates() {
    let mut off = settings("{}");
    off.network.external_domain_tls = false;
    let mut world = World::of(WORLD);
    assert!(run(&mut world, off).is_empty());
    let mut odd = settings("{}");
    odd.network.domain_template = "{{.Name}}-{{.Namespace}}.{{.Domain}}".parse().expect("a template");
    let plan = run(&mut world, odd);
    assert!(plan.writes.is_empty());
    assert_eq!(plan.events[0].reason, "InvalidDomainTemplate");
    let value: &Value = world.value("Namespace", "", "shop").expect("there");
    assert!(value["status"].is_null());
}
