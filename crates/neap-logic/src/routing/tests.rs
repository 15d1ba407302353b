//! Cases are written as Ingress YAML and one line per request.

use std::collections::BTreeSet;
use std::sync::Arc;

use neap_api::networking::Ingress;

use super::*;

const CLASS: &str = "neap.ingress.networking.knative.dev";

/// An Ingress `ns/name`, created at the given second, with this spec in YAML.
fn ingress(name: &str, second: u8, spec: &str) -> Ingress {
    let (namespace, name) = name.split_once('/').unwrap();
    let mut ingress: Ingress = serde_yaml::from_str(&format!(
        "apiVersion: networking.internal.knative.dev/v1alpha1\nkind: Ingress\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  \
         creationTimestamp: 2026-01-01T00:00:{second:02}Z\n  annotations: {{networking.knative.dev/ingress.class: {CLASS}}}\nspec: {{}}\n"
    ))
    .unwrap();
    ingress.spec = serde_yaml::from_str(spec).unwrap();
    ingress
}

fn simple(name: &str, second: u8, hosts: &str) -> Ingress {
    let service = name.replace('/', "-");
    ingress(
        name,
        second,
        &format!(
            "rules: [{{hosts: [{hosts}], http: {{paths: [{{splits: [{{serviceName: {service}, servicePort: 80}}]}}]}}}}]"
        ),
    )
}

fn table(all: &[Ingress]) -> Table {
    let mut index = Index::new(CLASS);
    index.reset(all);
    index.table()
}

/// `door scheme host path [header=value]…` → what the table answers, in one word or two.
fn ask(table: &Table, request: &str) -> String {
    let mut words = request.split_whitespace();
    let door = if words.next() == Some("in") { Door::Local } else { Door::External };
    let secure = words.next() == Some("https");
    let (host, path) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let headers: Vec<(&str, &str)> = words.map(|pair| pair.split_once('=').unwrap()).collect();
    let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    match table.find(door, secure, host, path, query, header) {
        Lookup::Found(Found { path, .. }) => {
            let backend = &path.choose(0).backend;
            match &path.rewrite_host {
                Some(host) => format!("{} as {host}", backend.service),
                None => backend.service.to_string(),
            }
        }
        Lookup::Redirect(_) => "redirect".to_owned(),
        Lookup::NoHost => "no host".to_owned(),
        Lookup::LocalOnly(_) => "local only".to_owned(),
        Lookup::NoPath(_) => "no path".to_owned(),
    }
}

fn check(table: &Table, cases: &[(&str, &str)]) {
    for (request, answer) in cases {
        assert_eq!(ask(table, request), *answer, "{request}");
    }
}

const ROUTE: &str = "
rules:
- hosts: [hello.default, hello.default.svc, hello.default.svc.cluster.local]
  visibility: ClusterLocal
  http: {paths: [{splits: [{serviceName: inner, servicePort: 80, percent: 100}]}]}
- hosts: [hello.default.example.com]
  visibility: ExternalIP
  http:
    paths:
    - splits: [{serviceName: rest, servicePort: 80}]
    - {path: /foo, splits: [{serviceName: foo, servicePort: 80}]}
    - headers: {Knative-Serving-Tag: {exact: blue}}
      splits: [{serviceName: blue, servicePort: 80}]
    - {path: /foo/bar, rewriteHost: other.host, splits: [{serviceName: foobar, servicePort: 80}]}
";

#[test]
fn hosts_doors_paths_and_headers() {
    let table = table(&[ingress("default/hello", 0, ROUTE)]);
    check(
        &table,
        &[
            ("out http hello.default.example.com /", "rest"),
            ("out http HELLO.Default.example.com:8080 /", "rest"),
            ("out http hello.default.example.com. /", "rest"),
            ("out http hello.default.example.com /foo", "foo"),
            ("out http hello.default.example.com /food", "foo"),
            ("out http hello.default.example.com /foo/bar/x", "foobar as other.host"),
            ("out http hello.default.example.com /fo", "rest"),
            ("out http hello.default.example.com / knative-serving-tag=blue", "blue"),
            ("out http hello.default.example.com / knative-serving-tag=Blue", "rest"),
            ("out http hello.default.example.com /foo knative-serving-tag=blue", "foo"),
            ("in http hello.default.example.com /", "rest"),
            ("in http hello.default.svc /", "inner"),
            ("in http hello.default:80 /", "inner"),
            ("out http hello.default.svc.cluster.local /", "local only"),
            ("out http example.com /", "no host"),
            ("out http xhello.default.example.com /", "no host"),
        ],
    );
    let long = "x".repeat(300);
    check(
        &table,
        &[(&format!("out http {long} /"), "no host"), ("out http : /", "no host"), ("out http [::1]:80 /", "no host")],
    );
}

#[test]
fn one_host_in_two_rules() {
    let spec = "
rules:
- {hosts: [a.b], visibility: ClusterLocal, http: {paths: [{splits: [{serviceName: inner, servicePort: 80}]}]}}
- {hosts: [a.b], http: {paths: [{path: /x, splits: [{serviceName: x, servicePort: 80}]}]}}
- {hosts: [A.B], http: {paths: [{path: /x/y, splits: [{serviceName: xy, servicePort: 80}]}]}}
";
    let table = table(&[ingress("n/i", 0, spec)]);
    check(
        &table,
        &[
            ("in http a.b /x", "inner"),
            ("out http a.b /x", "x"),
            ("out http a.b /x/y", "xy"),
            ("out http a.b /", "no path"),
        ],
    );
}

#[test]
fn wildcards() {
    let all = [
        simple("n/all", 0, "'*'"),
        simple("n/com", 0, "'*.example.com'"),
        simple("n/a", 0, "'*.a.example.com', b.example.com"),
    ];
    check(
        &table(&all),
        &[
            ("out http x.example.com /", "n-com"),
            ("out http x.y.example.com /", "n-com"),
            ("out http x.a.example.com /", "n-a"),
            ("out http b.example.com /", "n-a"),
            ("out http example.com /", "n-all"),
            ("out http anything /", "n-all"),
        ],
    );
}

#[test]
fn redirect_is_for_plain_requests_from_outside() {
    let spec = "
httpOption: Redirected
tls: [{hosts: [a.b, '*.c.d'], secretName: s, secretNamespace: n}]
rules:
- {hosts: [a.b], http: {paths: [{splits: [{serviceName: s, servicePort: 443}]}]}}
- {hosts: [l.b], visibility: ClusterLocal, http: {paths: [{splits: [{serviceName: l, servicePort: 80}]}]}}
";
    let table = table(&[ingress("n/i", 0, spec)]);
    check(
        &table,
        &[("out http a.b /", "redirect"), ("out https a.b /", "s"), ("in http a.b /", "s"), ("in http l.b /", "l")],
    );
    let secret = SecretRef { namespace: "n".into(), name: "s".into() };
    assert_eq!(table.certificate("A.b"), Some(&secret));
    assert_eq!(table.certificate("x.c.d"), Some(&secret));
    assert_eq!(table.certificate("l.b"), None);
}

#[test]
fn splits_headers_and_backends() {
    let spec = "
rules:
- hosts: [a.b]
  http:
    paths:
    - appendHeaders: {X-Both: path, X-Path: p}
      splits:
      - {serviceNamespace: n, serviceName: one, servicePort: 80, percent: 30, appendHeaders: {Knative-Serving-Revision: one, Knative-Serving-Namespace: n, x-both: split}}
      - {serviceName: none, servicePort: http2, percent: 0}
      - {serviceName: two, servicePort: 81, percent: 70}
";
    let compiled = compile(&ingress("n/i", 0, spec));
    assert_eq!(compiled.problems, Vec::<String>::new());
    let (host, routes) = &compiled.hosts[0];
    assert_eq!(&**host, "a.b");
    let path = &routes.external.as_ref().unwrap()[0];
    let mut hits = [0; 3];
    for step in 0..1000_u32 {
        // The middle of each thousandth of the range.
        let number = ((u64::from(step) << 32) + (1 << 31)) / 1000;
        let split = path.choose(u32::try_from(number).unwrap());
        hits[path.splits.iter().position(|other| std::ptr::eq(other, split)).unwrap()] += 1;
    }
    assert_eq!(hits, [300, 0, 700]);

    let one = &path.splits[0];
    assert_eq!(one.backend.revision, Some(RevisionKey::new("n", "one")));
    let headers: Vec<String> = one.headers.iter().map(|h| format!("{}: {}", h.name, h.value)).collect();
    assert_eq!(
        headers,
        ["knative-serving-namespace: n", "knative-serving-revision: one", "x-both: split", "x-path: p"]
    );
    assert_eq!(path.splits[1].backend.port, Port::Name("http2".into()));
    assert_eq!(path.splits[2].backend.revision, None);
    assert_eq!(&*path.splits[2].backend.namespace, "n");
}

#[test]
fn what_cannot_be_routed_is_named() {
    let check = |spec: &str, wanted: &[&str]| {
        let compiled = compile(&ingress("n/i", 0, spec));
        assert_eq!(compiled.problems, wanted, "{spec}");
    };
    check("rules: [{hosts: [a.b]}]", &["spec.rules[0] has no path that can be routed"]);
    let path = |splits: &str| format!("rules: [{{hosts: [a.b], http: {{paths: [{{splits: [{splits}]}}]}}}}]");
    let no_path = "spec.rules[0] has no path that can be routed";
    check(&path(""), &["path \"\": it has no split that can be routed", no_path]);
    check(
        &path("{serviceName: s, servicePort: 0}"),
        &[
            "path \"\": port 0 of service \"s\" is out of range",
            "path \"\": it has no split that can be routed",
            no_path,
        ],
    );
    check(
        &path("{serviceName: s, servicePort: 1, percent: 60}, {serviceName: t, servicePort: 1, percent: 60}"),
        &["path \"\": its splits sum to 120 percent, want 100", no_path],
    );
    check(
        "rules: [{hosts: ['', a.b, 'x.*.y'], http: {paths: [{splits: [{serviceName: s, servicePort: 1}]}]}}]",
        &["spec.rules[0].hosts: \"\" is not a host name", "spec.rules[0].hosts: \"x.*.y\" is not a host name"],
    );
}

#[test]
fn the_older_ingress_keeps_its_host() {
    let (old, young) = (simple("z/old", 1, "a.b, c.d"), simple("a/young", 2, "a.b, e.f"));
    let key = |ingress: &Ingress| compile(ingress).key;
    let mut index = Index::new(CLASS);

    // In the order that is worse for the older one.
    index.apply(&young);
    check(&index.table(), &[("out http a.b /", "a-young")]);
    let change = index.apply(&old);
    assert_eq!(change.touched, BTreeSet::from([key(&old), key(&young)]));
    let conflict = Conflict { host: "a.b".into(), owner: key(&old) };
    assert_eq!(index.conflicts(&key(&young)), [conflict]);
    assert_eq!(index.conflicts(&key(&old)), []);
    let before = index.table();
    check(&before, &[("out http a.b /", "z-old"), ("out http e.f /", "a-young")]);

    // The host passes on when the older one goes, and a table taken earlier does not change.
    let change = index.delete(&key(&old));
    assert!(change.table && change.touched.contains(&key(&young)), "{change:?}");
    assert_eq!(index.conflicts(&key(&young)), []);
    check(&index.table(), &[("out http a.b /", "a-young"), ("out http c.d /", "no host")]);
    check(&before, &[("out http a.b /", "z-old"), ("out http c.d /", "z-old")]);

    // Created within the same second, the name decides.
    let (one, two) = (simple("n/one", 3, "s.t"), simple("n/two", 3, "s.t"));
    for order in [[&one, &two], [&two, &one]] {
        let mut index = Index::new(CLASS);
        for ingress in order {
            index.apply(ingress);
        }
        check(&index.table(), &[("out http s.t /", "n-one")]);
    }
}

#[test]
fn only_what_matters_changes_the_table() {
    let mut index = Index::new(CLASS);
    let mut hello = simple("n/hello", 0, "a.b");
    assert!(index.apply(&hello).table);

    hello.status = Some(neap_api::networking::IngressStatus::default());
    hello.metadata.resource_version = Some("2".to_owned());
    assert_eq!(index.apply(&hello), Change::default());

    hello.spec.rules[0].hosts = vec!["c.d".to_owned()];
    assert!(index.apply(&hello).table);
    check(&index.table(), &[("out http a.b /", "no host"), ("out http c.d /", "n-hello")]);

    hello.metadata.annotations.as_mut().unwrap().insert("networking.knative.dev/ingress.class".into(), "istio".into());
    assert!(index.apply(&hello).table);
    assert!(index.table().is_empty() && index.is_empty());
    assert_eq!(index.apply(&hello), Change::default());
}

#[test]
fn reset_replaces_everything() {
    let mut index = Index::new(CLASS);
    index.reset(&[simple("n/a", 0, "a.a"), simple("n/b", 0, "b.b")]);
    let kept = index.get(&IngressKey::new("n", "b")).unwrap().clone();
    let change = index.reset(&[simple("n/b", 0, "b.b"), simple("n/c", 0, "c.c")]);
    assert_eq!(change.touched, BTreeSet::from([IngressKey::new("n", "a"), IngressKey::new("n", "c")]));
    assert!(Arc::ptr_eq(&kept, index.get(&IngressKey::new("n", "b")).unwrap()));
    check(&index.table(), &[("out http a.a /", "no host"), ("out http b.b /", "n-b"), ("out http c.c /", "n-c")]);
    assert_eq!(index.table().len(), 2);
}

#[test]
fn the_hash_is_of_spec_namespace_and_name() {
    let one = simple("n/a", 0, "a.a");
    let mut other = simple("n/a", 9, "a.a");
    other.metadata.resource_version = Some("9".to_owned());
    assert_eq!(network_hash(&one), network_hash(&other));
    assert_ne!(network_hash(&one), network_hash(&simple("n/b", 0, "a.a")));
    assert_ne!(network_hash(&one), network_hash(&simple("n/a", 0, "a.b")));
    // sha256 of `{}` + "n" + "a".
    assert_eq!(
        network_hash(&ingress("n/a", 0, "{}")),
        "fc0d50d2256bc904e5e56ebf7d80788af86c54a73f751f1021aa51db13aa55d2"
    );
}

/// A random history of changes gives the same table as a fresh index over what is left.
#[test]
fn incremental_equals_fresh() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut index = Index::new(CLASS);
    let mut all: Vec<Option<Ingress>> = vec![None; 12];
    for _ in 0..500 {
        let at = rng.usize(..all.len());
        if rng.u8(..4) == 0 {
            all[at] = None;
            index.delete(&IngressKey::new("n", &format!("i{at}")));
        } else {
            let hosts = format!("h{}.x, h{}.x, '*.w{}'", rng.u8(..8), rng.u8(..8), rng.u8(..3));
            let new = simple(&format!("n/i{at}"), u8::try_from(at % 5).unwrap(), &hosts);
            index.apply(&new);
            all[at] = Some(new);
        }
        let left: Vec<Ingress> = all.iter().flatten().cloned().collect();
        let (grown, fresh) = (index.table(), table(&left));
        assert_eq!(grown.len(), fresh.len());
        for host in (0..8).map(|n| format!("h{n}.x")).chain((0..3).map(|n| format!("a.w{n}"))) {
            let owner = |table: &Table| table.host(&host).map(|routes| routes.ingress.clone());
            assert_eq!(owner(&grown), owner(&fresh), "{host}");
        }
    }
}

#[test]
fn several_services_under_one_domain() {
    let mut spec = String::from("rules:\n- hosts: [shop.example]\n  http:\n    paths:\n");
    let list = "
- {path: /api, service: api}
- {path: /api/v2, service: v2}
- {pathExact: /api/v2, service: v2root}
- {path: /api, headers: {x-beta: '1'}, service: beta}
- {path: /api, headers: {x-beta: '1'}, query: {deep: '1'}, service: deep}
- {query: {page: '2'}, service: page}
";
    let mut extra = Vec::new();
    for (at, rule) in extras::rules(list, true).unwrap().into_iter().enumerate() {
        let extras::RuleTarget::To(to) = &rule.target else { panic!("{rule:?}") };
        let path = if rule.path.is_empty() { String::new() } else { format!("path: {}, ", rule.path) };
        spec += &format!("    - {{{path}splits: [{{serviceName: {}, servicePort: 80}}]}}\n", to.name);
        extra.push(extras::PathExtra { rule: 0, path: at, more: rule.more });
    }
    spec += "    - {splits: [{serviceName: rest, servicePort: 80}]}\n";
    let mut one = ingress("n/i", 0, &spec);
    let annotations = one.metadata.annotations.as_mut().unwrap();
    annotations.insert(neap_api::keys::neap::PATHS.into(), extras::write_paths(&extra));
    let changed = network_hash(&one);
    check(
        &table(std::slice::from_ref(&one)),
        &[
            ("out http shop.example /", "rest"),
            ("out http shop.example /apiary", "rest"),
            ("out http shop.example /api", "api"),
            ("out http shop.example /api/x?deep=1", "api"),
            ("out http shop.example /api/x x-beta=1", "beta"),
            ("out http shop.example /api/x?deep=1 x-beta=1", "deep"),
            // The longer path wins over the one that asks for more.
            ("out http shop.example /api/v2/x x-beta=1", "v2"),
            ("out http shop.example /api/v2", "v2root"),
            ("out http shop.example /api/v2/", "v2"),
            ("out http shop.example /x?page=2", "page"),
            ("out http shop.example /x?page=22", "rest"),
        ],
    );
    one.metadata.annotations.as_mut().unwrap().remove(neap_api::keys::neap::PATHS);
    assert_ne!(network_hash(&one), changed, "what is routed on is part of the version");
}

#[test]
fn f1_11_challenges_are_not_redirected() {
    let spec = "
httpOption: Redirected
tls: [{hosts: [a.b], secretName: s, secretNamespace: n}]
rules:
- hosts: [a.b, '*.a.b']
  http:
    paths:
    - {path: /.well-known/acme-challenge/token, splits: [{serviceName: solver, servicePort: 80}]}
    - {splits: [{serviceName: app, servicePort: 80}]}
";
    check(
        &table(&[ingress("n/i", 0, spec)]),
        &[
            ("out http a.b /", "redirect"),
            ("out http a.b /.well-known/acme-challenge/token", "solver"),
            ("out http a.b /.well-known/acme-challenge/other", "redirect"),
            ("out https a.b /", "app"),
            // No certificate holds for these.
            ("out http x.a.b /", "app"),
        ],
    );
}

#[test]
fn what_goes_beyond_is_a_part_of_the_host_or_nothing() {
    let plain = ingress(
        "n/plain",
        0,
        "rules: [{hosts: [p.x], http: {paths: [{splits: [{serviceName: s, servicePort: 80}]}]}}]",
    );
    let mut limited = ingress(
        "n/limited",
        0,
        "rules: [{hosts: [l.x], http: {paths: [{splits: [{serviceName: s, servicePort: 80}]}]}}]",
    );
    let annotations = limited.metadata.annotations.as_mut().unwrap();
    annotations.insert("neap.dev/rate-limit".into(), "5/s".into());
    annotations.insert("neap.dev/auth".into(), "nonsense".into());
    let mut index = Index::new(CLASS);
    index.reset(&[plain, limited.clone()]);
    assert!(index.table().host("p.x").unwrap().extras.is_none());
    let extras = index.table().host("l.x").unwrap().extras.clone().unwrap();
    assert_eq!(extras.rate.as_ref().unwrap().rate.burst, 5);
    assert_eq!(extras.auth, Some(extras::AuthRule::Broken));
    let problems = &index.get(&IngressKey::new("n", "limited")).unwrap().problems;
    assert_eq!(problems, &["annotation neap.dev/auth: \"nonsense\" is neither \"key\" nor \"jwt\""]);
    // A change of an annotation alone is a change.
    limited.metadata.annotations.as_mut().unwrap().insert("neap.dev/rate-limit".into(), "6/s".into());
    assert!(index.apply(&limited).table);
}
