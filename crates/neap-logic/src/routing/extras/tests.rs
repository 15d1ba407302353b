//! Annotations in, meanings out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

fn read(pairs: &[(&str, &str)]) -> (Extras, Vec<Problem>) {
    let map: BTreeMap<&str, &str> = pairs.iter().copied().collect();
    extras(&IngressKey::new("ns", "hello"), |key| map.get(key).copied())
}

/// Exactly this is wrong, under exactly this key.
fn wrong(pairs: &[(&str, &str)], key: &str, message: &str) {
    let (_, problems) = read(pairs);
    let [problem] = &*problems else { panic!("{pairs:?}: {problems:?}") };
    assert_eq!(problem.key, key, "{problem:?}");
    assert!(problem.message.contains(message), "{problem:?}");
}

fn good(pairs: &[(&str, &str)]) -> Extras {
    let (extras, problems) = read(pairs);
    assert_eq!(problems, [], "{pairs:?}");
    extras
}

#[test]
fn nothing_asked_is_nothing() {
    assert!(good(&[("neap.dev/written-as", "x"), ("other", "y")]).is_empty());
}

#[test]
fn affinity_by_three_ways() {
    let cookie = |name: &str| {
        let (extras, _) =
            extras(&IngressKey::new("ns", name), |key| (key == keys::SESSION_AFFINITY).then_some("cookie"));
        match extras.affinity {
            Some(Affinity::Cookie { name }) => name,
            other => panic!("{other:?}"),
        }
    };
    assert!(cookie("a").starts_with("neap-") && cookie("a").len() == 21);
    assert_ne!(cookie("a"), cookie("b"), "routes that share a domain have cookies of their own");
    let by = |text: &str| good(&[(keys::SESSION_AFFINITY, text)]).affinity;
    assert_eq!(by("client-ip"), Some(Affinity::ClientIp));
    assert_eq!(by("header: X-User "), Some(Affinity::Header("x-user".into())));
    wrong(&[(keys::SESSION_AFFINITY, "header:")], keys::SESSION_AFFINITY, "none of");
    wrong(&[(keys::SESSION_AFFINITY, "header:a b")], keys::SESSION_AFFINITY, "none of");
    wrong(&[(keys::SESSION_AFFINITY, "Cookie")], keys::SESSION_AFFINITY, "none of");
}

#[test]
fn when_an_instance_goes_only_its_clients_move() {
    let instances: Vec<String> = (0..10).map(|n| format!("198.19.0.{n}:8080")).collect();
    let own = |client: u64, among: &[String]| {
        among.iter().max_by_key(|i| Affinity::score(client, i.as_bytes())).expect("some").clone()
    };
    let mut of_each = BTreeMap::new();
    for client in (0..10_000).map(|n| Affinity::key(format!("client {n}").as_bytes())) {
        let before = own(client, &instances);
        let after = own(client, &instances[1..]);
        assert!(before == instances[0] || before == after);
        *of_each.entry(before).or_insert(0) += 1;
    }
    assert!(of_each.values().all(|n| (800..1_200).contains(n)), "{of_each:?}");
}

#[test]
fn rates() {
    let rate = |text: &str| good(&[(keys::RATE_LIMIT, text)]).rate.expect("a rate").rate;
    assert_eq!(rate("100/s"), Rate { interval: 10_000_000, burst: 100 });
    assert_eq!(rate(" 100/s  burst 20 "), Rate { interval: 10_000_000, burst: 20 });
    assert_eq!(rate("600/m"), Rate { interval: 100_000_000, burst: 10 });
    assert_eq!(rate("10/h"), Rate { interval: 360_000_000_000, burst: 1 });
    for bad in
        ["", "100", "/s", "0/s", "-1/s", "1.5/s", "100/d", "100/s burst", "100/s burst 0", "1/s burst 2 x", "1000001/s"]
    {
        wrong(&[(keys::RATE_LIMIT, bad)], keys::RATE_LIMIT, "is no rate");
    }
    let by = |text: &str| good(&[(keys::RATE_LIMIT, "1/s"), (keys::RATE_LIMIT_BY, text)]).rate.expect("a rate").by;
    assert_eq!((by("client"), by("all")), (RateBy::Client, RateBy::All));
    assert_eq!(by("header:X-Api-Key"), RateBy::Header("x-api-key".into()));
    wrong(&[(keys::RATE_LIMIT, "1/s"), (keys::RATE_LIMIT_BY, "user")], keys::RATE_LIMIT_BY, "none of");
    wrong(&[(keys::RATE_LIMIT_BY, "all")], keys::RATE_LIMIT_BY, "says nothing without");
}

#[test]
fn so_many_at_once_and_then_one_by_one() {
    let rate = Rate { interval: 1_000, burst: 3 };
    let mut booked = 0;
    let mut ask = |now: u64| match rate.admit(booked, now) {
        Ok(next) => {
            booked = next;
            None
        }
        Err(after) => Some(after),
    };
    let nanos = |n| Some(Duration::from_nanos(n));
    let answers: Vec<_> = [5_000, 5_000, 5_000, 5_000, 5_400, 6_000, 6_000, 20_000].map(&mut ask).into();
    assert_eq!(answers, [None, None, None, nanos(1_000), nanos(600), None, nanos(1_000), None]);
    // A clock read on another thread may be behind: that is never cheaper.
    assert_eq!(ask(19_000), None);
    assert!(rate.admit(u64::MAX, 5).is_err(), "no overflow");
}

#[test]
fn hedges() {
    let after = |text: &str| good(&[(keys::HEDGE_AFTER, text)]).hedge;
    assert_eq!(after("50ms"), Some(HedgeAfter::Fixed(Duration::from_millis(50))));
    assert_eq!(after("p95"), Some(HedgeAfter::Percentile(95)));
    for bad in ["", "0s", "100us", "2m", "p50", "-1s", "50"] {
        wrong(&[(keys::HEDGE_AFTER, bad)], keys::HEDGE_AFTER, "neither a time");
    }
}

#[test]
fn the_estimate_comes_to_rest_at_the_percentile() {
    let mut quantile = Quantile::NEW;
    let mut state = 1u64;
    for n in 0..20_000u64 {
        assert_eq!(quantile.estimate().is_some(), n >= 20);
        // Evenly spread between 0 and 100 ms.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        quantile = quantile.after(95, (state >> 33) % 100_000_000);
    }
    let estimate = quantile.estimate().expect("warm").as_millis();
    assert!((88..=100).contains(&estimate), "{estimate}");
}

#[test]
fn one_in_twenty_requests_may_have_a_hedge() {
    let (mut budget, mut spent) = (Budget::NEW, 0);
    for _ in 0..1_000 {
        budget = budget.earn();
        if let Some(left) = budget.spend() {
            budget = left;
            spent += 1;
        }
    }
    assert_eq!(spent, 51);
    for _ in 0..10_000 {
        budget = budget.earn();
    }
    assert_eq!((0..100).filter(|_| budget.spend().inspect(|left| budget = *left).is_some()).count(), 10);
}

#[test]
fn who_may_call() {
    let secret = |name: &str| crate::routing::SecretRef { namespace: "ns".into(), name: name.into() };
    let key = good(&[(keys::AUTH, "key"), (keys::AUTH_SECRET, "keys")]);
    assert_eq!(key.auth, Some(AuthRule::Key(secret("keys"))));
    let jwt = |more: &[(&'static str, &'static str)]| {
        let base = [(keys::AUTH, "jwt"), (keys::AUTH_ISSUER, "https://id.example.org"), (keys::AUTH_AUDIENCE, "a, b")];
        [&base[..], more].concat()
    };
    let rule = |more| match good(&jwt(more)).auth {
        Some(AuthRule::Jwt(rule)) => *rule,
        other => panic!("{other:?}"),
    };
    let plain = rule(&[]);
    assert_eq!(
        (&*plain.audiences, &plain.keys),
        (&["a".into(), "b".into()][..], &KeySource::Discovery("https://id.example.org".into()))
    );
    assert_eq!(rule(&[(keys::AUTH_SECRET, "s")]).keys, KeySource::Secret(secret("s")));
    assert_eq!(rule(&[(keys::AUTH_JWKS, "http://localhost:1/k")]).keys, KeySource::Url("http://localhost:1/k".into()));
    let claims = rule(&[(keys::AUTH_CLAIMS, "sub=X-Sub, email = x-mail"), (keys::AUTH_REQUIRE, "hd=example.org|b")]);
    assert_eq!(&*claims.claims[1].claim, "email");
    assert_eq!(&*claims.claims[1].header, "x-mail");
    assert_eq!(&*claims.require[0].values, ["example.org".into(), "b".into()]);
    for (more, key, message) in [
        (&[(keys::AUTH_CLAIMS, "sub=host")][..], keys::AUTH_CLAIMS, "is no claim and header"),
        (&[(keys::AUTH_CLAIMS, "sub=X-Forwarded-For")], keys::AUTH_CLAIMS, "is no claim and header"),
        (&[(keys::AUTH_CLAIMS, "sub")], keys::AUTH_CLAIMS, "is no claim and header"),
        (&[(keys::AUTH_REQUIRE, "email=")], keys::AUTH_REQUIRE, "is no claim and values"),
        (&[(keys::AUTH_JWKS, "http://id.example.org/k")], keys::AUTH_JWKS, "https://"),
        (&[(keys::AUTH_JWKS, "https://user@x/k")], keys::AUTH_JWKS, "no address"),
        (&[(keys::AUTH_JWKS, "http://localhost@evil.example/")], keys::AUTH_JWKS, "no address"),
        (&[(keys::AUTH_JWKS, "https://x/"), (keys::AUTH_SECRET, "s")], keys::AUTH_JWKS, "excludes"),
        (&[(keys::AUTH_SECRET, "No Name")], keys::AUTH_SECRET, "no name"),
    ] {
        wrong(&jwt(more), key, message);
        assert_eq!(read(&jwt(more)).0.auth, Some(AuthRule::Broken), "nobody is let in");
    }
    wrong(&[(keys::AUTH, "basic")], keys::AUTH, "neither");
    wrong(&[(keys::AUTH, "key")], keys::AUTH_SECRET, "must name");
    wrong(&[(keys::AUTH, "key"), (keys::AUTH_SECRET, "s"), (keys::AUTH_ISSUER, "x")], keys::AUTH_ISSUER, "belongs to");
    wrong(&[(keys::AUTH_SECRET, "s")], keys::AUTH_SECRET, "needs neap.dev/auth");
    wrong(&[(keys::AUTH, "jwt"), (keys::AUTH_ISSUER, "https://x")], keys::AUTH_AUDIENCE, "for whom");
    wrong(&[(keys::AUTH, "jwt"), (keys::AUTH_AUDIENCE, "x")], keys::AUTH_ISSUER, "whose");
    assert_eq!(read(&[(keys::AUTH, "nonsense")]).0.auth, Some(AuthRule::Broken));
    assert_eq!(read(&[(keys::AUTH_ISSUER, "x")]).0.auth, Some(AuthRule::Broken), "half of it is not nothing");
}

#[test]
fn entries_of_a_list() {
    let list = "
- {path: /api/, service: api}
- {pathExact: /, headers: {X-A: 1, x-b: {prefix: v}, x-c: {present: false}}, query: {v: '2'}, tag: canary}
";
    let parsed = rules("- {path: /api/, service: api, rewritePath: /v2}", true).expect("good");
    assert_eq!(parsed[0].path, "/api");
    assert!(matches!(&parsed[0].target, RuleTarget::To(to) if to.name == "api" && to.kind == "Service"));
    assert_eq!(parsed[0].more.rewrite.as_deref(), Some("/v2"));
    let parsed = rules(list.lines().last().expect("a line"), false).expect("good");
    assert!(parsed[0].more.exact && parsed[0].more.weight() == 4);
    assert_eq!(parsed[0].more.headers[0], FieldTest { name: "x-a".into(), test: Test::Exact("1".into()) });
    let long = format!("- {{path: /{}, service: x}}", "x".repeat(70_000));
    let many = "- {path: /a, service: x}\n".repeat(65);
    for (list, domain, message) in [
        (list, true, "entry 2: must lead to either a service or a ref"),
        (list, false, "entry 1: must lead to a tag"),
        ("{", true, "is no YAML"),
        ("a: b", true, "is no list"),
        ("- x", true, "entry 1: is no mapping"),
        ("- {pth: /a, service: x}", true, "\"pth\" is not one of"),
        ("- {path: api, service: x}", true, "must begin with a slash"),
        ("- {path: '/a?b', service: x}", true, "must begin with a slash"),
        ("- {path: /a, rewritePath: b, service: x}", true, "rewritePath"),
        ("- {path: /a, pathExact: /b, service: x}", true, "both path and pathExact"),
        ("- {service: x}", true, "matches everything"),
        ("- {path: /, service: x}", true, "matches everything"),
        ("- {path: /a, headers: {'a b': c}, service: x}", true, "no name of a header"),
        ("- {path: /a, headers: {a: {regex: c}}, service: x}", true, "must be a value"),
        ("- {path: /a, headers: [a], service: x}", true, "must map names to values"),
        ("- {path: /a, ref: {kind: Service, name: x, namespace: other}}", true, "the mapping's own"),
        ("- {path: /a, ref: 5}", true, "ref:"),
        ("- {path: 5, service: x}", true, "path must be a text"),
        (&many, true, "at most 64"),
        (&long, true, "at most 65536"),
    ] {
        let problem = rules(list, domain).expect_err(list);
        assert!(problem.message.contains(message), "{list}: {problem:?}");
    }
}

#[test]
fn what_an_ingress_carries_comes_back() {
    let parsed = rules(
        "- {path: /a, headers: {x: {contains: y}}, query: {q: {present: true}}, rewritePath: /, service: s}",
        true,
    );
    let more = parsed.expect("good").remove(0).more;
    let text = write_paths(&[PathExtra { rule: 1, path: 2, more: more.clone() }]);
    assert_eq!(
        text,
        r#"[{"rule":1,"path":2,"headers":[{"name":"x","contains":"y"}],"query":[{"name":"q","present":true}],"rewrite":"/"}]"#
    );
    assert_eq!(read_paths(&text).expect("reads"), BTreeMap::from([((1, 2), more)]));
    assert!(read_paths("[{}]").is_err());
}

#[test]
fn paths_and_queries() {
    let check = |list: &str, path: &str, query: Option<&str>, header: Option<&str>, want: bool| {
        let rule = rules(list, true).expect(list).remove(0);
        let begins = path.starts_with(&rule.path);
        let got = begins && rule.more.matches(&rule.path, path, query, |name| header.filter(|_| name == "x-a"));
        assert_eq!(got, want, "{list} {path} {query:?} {header:?}");
    };
    let api = "- {path: /api, service: s}";
    for (path, want) in
        [("/api", true), ("/api/", true), ("/api/x", true), ("/apiary", false), ("/ap", false), ("/API", false)]
    {
        check(api, path, None, None, want);
    }
    check("- {pathExact: /api, service: s}", "/api", None, None, true);
    check("- {pathExact: /api, service: s}", "/api/", None, None, false);
    check("- {pathExact: /, service: s}", "/", None, None, true);
    check("- {pathExact: /, service: s}", "/x", None, None, false);
    let query = "- {query: {v: 'a b'}, service: s}";
    for (text, want) in
        [("v=a+b", true), ("x=1&v=a%20b", true), ("%76=a+b", true), ("v=a", false), ("v=a+b%2", false), ("", false)]
    {
        check(query, "/", Some(text), None, want);
    }
    check(query, "/", None, None, false);
    check("- {query: {v: {present: true}}, service: s}", "/", Some("v"), None, true);
    check("- {query: {v: {present: false}}, service: s}", "/", Some("vv=1"), None, true);
    // The first of several counts, for tests as for most frameworks.
    check("- {query: {v: '2'}, service: s}", "/", Some("v=1&v=2"), None, false);
    check("- {headers: {X-A: 'yes'}, service: s}", "/", None, Some("yes"), true);
    check("- {headers: {X-A: 'yes'}, service: s}", "/", None, Some("Yes"), false);
    check("- {headers: {X-A: {prefix: ye}}, service: s}", "/", None, Some("yes"), true);
    check("- {headers: {X-A: {contains: e}}, service: s}", "/", None, Some("yes"), true);
    check("- {headers: {X-A: {contains: e}}, service: s}", "/", None, None, false);
    check("- {headers: {X-A: {present: true}}, service: s}", "/", None, Some(""), true);
}

#[test]
fn rewritten_paths() {
    let check = |prefix: &str, rewrite: &str, path: &str, want: &str| {
        let more = PathMore { rewrite: Some(rewrite.into()), ..PathMore::default() };
        assert_eq!(more.rewritten(prefix, path).as_deref(), Some(want), "{prefix} {rewrite} {path}");
    };
    check("/api", "/", "/api/x", "/x");
    check("/api", "/", "/api", "/");
    check("/api", "/", "/api/", "/");
    check("/api", "/v2", "/api", "/v2");
    check("/api", "/v2/", "/api/x/", "/v2/x/");
    check("", "/v2", "/x", "/v2/x");
    check("/a", "/b", "/a//evil.example/", "/b//evil.example/");
    assert_eq!(PathMore::default().rewritten("/a", "/a"), None);
}
