//! Settings: defaults, overrides, and every kind of mistake.

use std::time::Duration;

use super::*;

fn data(pairs: &[(&str, &str)]) -> Data {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn parse(map: &str, pairs: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    Settings::parse(&Maps::from([(map.to_owned(), data(pairs))]))
        .map_err(|m| m.iter().map(ToString::to_string).collect())
}

#[test]
fn nothing_set_is_the_default() {
    assert_eq!(Settings::parse(&Maps::new()), Ok(Settings::default()));
}

#[test]
fn examples_change_nothing_but_the_domain() {
    let maps: Maps = examples("localhost")
        .into_iter()
        .map(|m| (m.metadata.name.expect("named"), m.data.unwrap_or_default()))
        .collect();
    let mut want = Settings::default();
    want.domain
        .domains
        .insert("localhost".into(), domain::DomainRule { kind: "wildcard".into(), ..Default::default() });
    assert_eq!(Settings::parse(&maps), Ok(want));
}

#[test]
fn example_checksums_fit() {
    for map in examples("localhost") {
        let example = &map.data.as_ref().expect("data")[EXAMPLE_KEY];
        assert_eq!(map.metadata.annotations.as_ref().expect("annotated")[EXAMPLE_CHECKSUM], checksum(example));
    }
}

#[test]
fn every_mistake_is_reported() {
    let check = |map: &str, pairs: &[(&str, &str)], want: &[&str]| {
        let got = parse(map, pairs).expect_err("mistakes");
        assert_eq!(got.len(), want.len(), "{got:?}");
        for (got, want) in got.iter().zip(want) {
            assert!(got.contains(want), "{got:?} does not mention {want:?}");
        }
    };
    check(
        "config-autoscaler",
        &[("stable-window", "1s"), ("max-scale-up-rate", "1")],
        &["stable-window", "max-scale-up-rate"],
    );
    check("config-autoscaler", &[("initial-scale", "0")], &["initial-scale"]);
    check("config-autoscaler", &[("max-scale-limit", "5"), ("max-scale", "6")], &["max-scale-limit 5"]);
    check("config-defaults", &[("revision-timeout-seconds", "1000")], &["exceeds max-revision-timeout-seconds 600"]);
    check("config-defaults", &[("revision-cpu-limit", "lots")], &["quantity"]);
    check("config-features", &[("multi-container", "maybe")], &["enabled, allowed or disabled"]);
    check("config-gc", &[("min-non-active-revisions", "20"), ("max-non-active-revisions", "10")], &["exceeds"]);
    check("config-network", &[("domain-template", "{{.Nme}}")], &["Nme"]);
    check("config-network", &[("domain-template", "{{.Name}}/x")], &["path"]);
    check("config-deployment", &[("progress-deadline", "1.5s")], &["whole seconds"]);
    check("config-domain", &[("example.com", "selector: 1")], &["selector"]);
    check("config-logging", &[("loglevel.controller", "loud")], &["loud"]);
    check("config-leader-election", &[("buckets", "11")], &["[1, 10]"]);
    check("config-domain", &[("Foo_Bar", "")], &["domain name"]);
    check("config-neap", &[("local-gateway", "other/gateway")], &["knative-serving/NAME"]);
    check("config-neap", &[("external-http-port", "0")], &["port"]);
    check("config-neap", &[("registries.insecure", "a b")], &["separated by commas"]);
    for line in ["docker.io", "docker.io=https://x", "docker.io=", "a=x\na=y", "docker.io=x/ y"] {
        check("config-neap", &[("registries.mirrors", line)], &["docker.io=mirror.example"]);
    }
    for (key, value, want) in [
        ("acme.directory", "http://plain.example", "https URL"),
        ("acme.email", "a@x, b@x", "one e-mail"),
        ("acme.challenges", "dns-01", "http-01"),
        ("acme.max-orders", "0", "1 to 100"),
        ("acme.eab-key-id", "kid", "go together"),
    ] {
        check("config-neap", &[(key, value)], &[want]);
    }
    check("config-observability", &[("tracing-protocol", "grpc")], &["tracing-endpoint"]);
}

#[test]
fn b6_old_spellings_and_odd_forms_are_read() {
    let s = parse("config-network", &[("autoTLS", "Enabled"), ("ingress.class", "x"), ("rolloutDuration", "90")])
        .expect("fine");
    assert!(s.network.external_domain_tls);
    assert_eq!(s.network.ingress_class, "x");
    assert_eq!(s.network.rollout_duration, Duration::from_secs(90));
    let s = parse("config-autoscaler", &[("container-concurrency-target-percentage", "0.5")]).expect("fine");
    assert_eq!(s.autoscaler.target_utilization, 0.5);
    let s = parse("config-gc", &[("max-non-active-revisions", "disabled"), ("retain-since-create-time", "disabled")])
        .expect("fine");
    assert_eq!((s.gc.max_non_active, s.gc.retain_since_create), (None, None));
    let s = parse("config-gc", &[("max-non-active-revisions", "Disabled"), ("retain-since-last-active-time", "")])
        .expect("fine");
    assert_eq!((s.gc.max_non_active, s.gc.retain_since_last_active), (None, Some(gc::RETAIN_SINCE_LAST_ACTIVE)));
    assert_eq!(
        parse("config-defaults", &[("enable-service-links", "default")]).expect("fine").defaults.enable_service_links,
        None
    );
}

#[test]
fn b5_1_the_most_specific_domain_wins() {
    let s = parse(
        "config-domain",
        &[("b.com", ""), ("a.com", ""), ("shop.com", "selector:\n  app: shop"), ("_example", "x")],
    )
    .expect("fine");
    let labels = |pairs: &[(&str, &str)]| data(pairs);
    let check = |pairs: &[(&str, &str)], want: &str| assert_eq!(s.domain.lookup(&labels(pairs), "cluster.local"), want);
    check(&[], "a.com");
    check(&[("app", "shop")], "shop.com");
    check(&[("networking.knative.dev/visibility", "cluster-local")], "svc.cluster.local");
    assert_eq!(Settings::default().domain.lookup(&labels(&[]), "cluster.local"), "svc.cluster.local");
}

#[test]
fn registries_and_their_mirrors() {
    let s = parse(
        "config-neap",
        &[
            ("registries.insecure", "10.0.0.1:5000, local.example"),
            (
                "registries.mirrors",
                "docker.io=mirror.example:5000/hub,http://10.0.0.1:5000\n\nquay.io = cache.example\n",
            ),
        ],
    )
    .expect("fine")
    .neap;
    assert_eq!(s.insecure_registries, ["10.0.0.1:5000", "local.example"]);
    assert_eq!(s.registry_mirrors["docker.io"], ["mirror.example:5000/hub", "http://10.0.0.1:5000"]);
    assert_eq!(s.registry_mirrors["quay.io"], ["cache.example"]);
}

#[test]
fn an_authority_is_named_by_a_word_or_a_url() {
    let acme = |pairs: &[(&str, &str)]| parse("config-neap", pairs).expect("fine").neap.acme;
    assert_eq!(acme(&[("acme.email", "me@example.com")]), None);
    let known = acme(&[("acme.directory", "letsencrypt")]).expect("one");
    assert_eq!(known.directory, "https://acme-v02.api.letsencrypt.org/directory");
    assert_eq!(known.challenges, [ChallengeKind::Http01, ChallengeKind::TlsAlpn01]);
    let own = acme(&[
        ("acme.directory", "https://ca.lan:14000/dir"),
        ("acme.challenges", "tls-alpn-01"),
        ("acme.eab-key-id", "kid"),
        ("acme.eab-secret", "eab"),
        ("acme.profile", "shortlived"),
    ])
    .expect("one");
    assert_eq!(own.challenges, [ChallengeKind::TlsAlpn01]);
    assert_eq!(own.external_account, Some(("kid".into(), "eab".into())));
    assert_eq!(own.profile.as_deref(), Some("shortlived"));
}
