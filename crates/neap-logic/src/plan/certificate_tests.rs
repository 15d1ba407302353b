//! A Certificate from nothing to its renewal, and what is said of it on the way.

use serde_json::{Value, json};

use super::*;
use crate::config::{Acme, Settings};
use crate::plan::testing::{World, now};

const WORLD: &str = r#"
apiVersion: networking.internal.knative.dev/v1alpha1
kind: Certificate
metadata: {name: c, namespace: ns, annotations: {networking.knative.dev/certificate.class: neap.certificate.networking.knative.dev}}
spec: {dnsNames: [shop.example.org], domain: example.org, secretName: c}
"#;

const DIRECTORY: &str = "https://ca.example/dir";

fn day(n: i64) -> Timestamp {
    now() + jiff::SignedDuration::from_hours(24 * n)
}

fn life() -> Span {
    Span { from: day(0), to: day(90) }
}

fn settings(acme: bool) -> Arc<Settings> {
    let mut settings = Settings::default();
    settings.neap.acme = acme.then(|| Acme::at(DIRECTORY));
    Arc::new(settings)
}

fn issued(issuer: &str) -> Progress {
    Progress::Issued(Box::new(Issued {
        chain: "chain".into(),
        key: "key".into(),
        authority: None,
        life: life(),
        issuer: issuer.into(),
    }))
}

/// Looks at the certificate on a day.
fn look(world: &mut World, acme: bool, at: Timestamp, progress: Progress) -> Plan {
    let observe = |w: &World| {
        use crate::plan::cache::Cache;
        let certificate = w.get::<Certificate>("ns", "c")?;
        let secret = w.get::<Secret>("ns", "c");
        let held = secret.as_ref().and_then(|secret| {
            let issuer = meta::annotation(&secret.metadata, neap::ISSUER)?.to_owned();
            Some(Held { life: life(), names: vec!["shop.example.org".into()], issuer })
        });
        let order = w.get::<Secret>("knative-serving", "acme-uid-certificate-c");
        let challenges = matches!(progress, Progress::Working(_)).then(|| challenge("ns", "shop.example.org", "t"));
        let context = Context { now: at, settings: settings(acme), refusals: Vec::new() };
        Some(Observed {
            certificate,
            secret,
            held,
            suggested: None,
            local: Some("local/1".into()),
            order,
            progress: progress.clone(),
            challenges: challenges.into_iter().collect(),
            context,
        })
    };
    let certificate: Certificate =
        serde_json::from_value(world.value("Certificate", "ns", "c").expect("there").clone()).expect("one");
    world.settle(&ObjectRef::of(&certificate), observe, plan)
}

fn shown(world: &World) -> String {
    let status = &world.value("Certificate", "ns", "c").expect("there")["status"];
    let condition = |c: &Value| {
        let text = |key: &str| c[key].as_str().unwrap_or("").to_owned();
        format!("{}={}({}: {})", text("type"), text("status"), text("reason"), text("message"))
    };
    let all: Vec<String> = status["conditions"].as_array().into_iter().flatten().map(condition).collect();
    format!("{} until {}", all.join(" "), status["notAfter"].as_str().unwrap_or("-"))
}

#[test]
fn a6_6_a_certificate_from_order_to_renewal() {
    let mut world = World::of(WORLD);
    world.put_yaml(
        "{apiVersion: v1, kind: Secret, metadata: {name: acme-uid-certificate-c, namespace: knative-serving}}",
    );
    look(&mut world, true, day(0), Progress::Working("ordered".into()));
    assert_eq!(shown(&world), "Ready=Unknown(InProgress: ordered) until -");
    let challenges = &world.value("Certificate", "ns", "c").expect("there")["status"]["http01Challenges"];
    assert_eq!(
        *challenges,
        json!([{"url": "http://shop.example.org/.well-known/acme-challenge/t", "serviceName": "neap-acme",
            "serviceNamespace": "ns", "servicePort": 80}])
    );
    look(&mut world, true, day(0), Progress::Failed("ca refuses".into()));
    assert_eq!(shown(&world), "Ready=False(IssueFailed: ca refuses) until -");

    let plan = look(&mut world, true, day(0), issued(DIRECTORY));
    assert_eq!(plan.events.len(), 1);
    assert_eq!((plan.writes.len(), plan.barrier), (2, 1), "the order goes only when the Secret is written");
    assert!(shown(&world).starts_with("Ready=True(: ) until 2026-04-02"), "{}", shown(&world));
    let secret = world.value("Secret", "ns", "c").expect("written");
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert_eq!(secret["metadata"]["labels"]["networking.internal.knative.dev/certificate-uid"], "uid-certificate-c");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["kind"], "Certificate");
    // What was ordered is in use: the order goes, and the next look is when two thirds of the life are over.
    assert!(world.value("Secret", "knative-serving", "acme-uid-certificate-c").is_none());
    let plan = look(&mut world, true, day(1), Progress::Idle);
    let again = plan.again.expect("looks again").as_secs() / 86_400;
    assert!((54..=59).contains(&again), "{again}");

    look(&mut world, true, day(61), Progress::Working("ordered".into()));
    assert!(shown(&world).contains("Ready=True(: ) Renewing=True(InProgress: ordered)"), "{}", shown(&world));
    look(&mut world, true, day(61), Progress::Failed("ca refuses".into()));
    assert!(shown(&world).contains("Ready=True(: ) Renewing=True(RenewalFailed: ca refuses)"), "{}", shown(&world));
    look(&mut world, true, day(91), Progress::Failed("ca refuses".into()));
    assert_eq!(shown(&world), "Ready=False(IssueFailed: ca refuses) until -");
}

#[test]
fn another_authority_is_asked_when_the_settings_change() {
    let mut world = World::of(WORLD);
    look(&mut world, false, day(0), issued("local/1"));
    look(&mut world, false, day(1), Progress::Failed("not looked at".into()));
    assert!(shown(&world).starts_with("Ready=True(: ) until"), "{}", shown(&world));
    look(&mut world, true, day(1), Progress::Working("ordered".into()));
    assert!(shown(&world).contains("Ready=True(: ) Renewing=True(InProgress: ordered)"), "{}", shown(&world));
    look(&mut world, true, day(1), issued(DIRECTORY));
    assert_eq!(
        world.value("Secret", "ns", "c").expect("there")["metadata"]["annotations"]["neap.dev/issuer"],
        DIRECTORY
    );
}

#[test]
fn what_cannot_be_had_is_said() {
    let mut world = World::of(&WORLD.replace("[shop.example.org]", "['*.ns.example.org']"));
    look(&mut world, true, day(0), Progress::Idle);
    assert!(shown(&world).contains("Ready=False(NotSupported: a certificate for *.ns.example.org needs a DNS-01"));

    let mut world = World::of(WORLD);
    world.put_yaml("{apiVersion: v1, kind: Secret, metadata: {name: c, namespace: ns}}");
    look(&mut world, true, day(0), Progress::Idle);
    assert!(shown(&world).contains("Ready=False(NotOwned: There is an existing Secret \"c\""), "{}", shown(&world));
}
