//! Objects in, an overview out.

use serde_json::{Value, json};

use crate::*;
use neap_logic::routing::Door;
use tokio::time::Instant;

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

fn revision(name: &str, concurrency: i64, port_name: &str) -> neap_api::serving::Revision {
    object(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": { "namespace": "ns", "name": name },
        "spec": { "containerConcurrency": concurrency, "timeoutSeconds": 300,
                  "containers": [{ "image": "x", "ports": [{ "containerPort": 8080, "name": port_name }] }] },
    }))
}

fn slice(
    service: &str,
    name: &str,
    port: (&str, u16),
    ready: &[(&str, bool)],
) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    let endpoints: Vec<Value> =
        ready.iter().map(|(ip, ready)| json!({ "addresses": [ip], "conditions": { "ready": ready } })).collect();
    object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "ns", "name": name, "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": port.0, "port": port.1 }, { "name": "http-autometric", "port": 9090 }],
        "endpoints": endpoints,
    }))
}

fn service(name: &str, ports: Value) -> k8s_openapi::api::core::v1::Service {
    object(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "ns", "name": name },
        "spec": { "ports": ports },
    }))
}

/// One line per gate.
fn lines(plane: &DataPlane) -> Vec<String> {
    let all = plane.overview().gates.into_iter();
    all.map(|gate| {
        let instances: Vec<_> = gate.instances.into_iter().map(|(addr, _)| addr).collect();
        format!("{}: {}", gate.name, instances.join(" "))
    })
    .collect()
}

#[test]
fn revisions_and_endpoints_meet_in_either_order() {
    let now = Instant::now();
    let first = slice("r-1-private", "s1", ("http", 8012), &[("198.19.0.1", true), ("198.19.0.2", false)]);
    let second = slice("r-1-private", "s2", ("http", 34567), &[("127.0.0.1", true)]);
    let both = ["revision ns/r-1: 127.0.0.1:34567 198.19.0.1:8012"];

    let (plane, _) = DataPlane::new("c");
    plane.feed(Feed::Apply(revision("r-1", 0, "http1")), now);
    plane.feed(Feed::Apply(first.clone()), now);
    plane.feed(Feed::Apply(second.clone()), now);
    assert_eq!(lines(&plane), both);
    plane.feed(Feed::Delete(first.clone()), now);
    assert_eq!(lines(&plane), ["revision ns/r-1: 127.0.0.1:34567"]);

    let (plane, _) = DataPlane::new("c");
    plane.feed(Feed::Reset(vec![first, second.clone()]), now);
    plane.feed(Feed::Reset(vec![revision("r-1", 0, "http1")]), now);
    assert_eq!(lines(&plane), both);
    plane.feed(Feed::Reset(vec![second]), now);
    assert_eq!(lines(&plane), ["revision ns/r-1: 127.0.0.1:34567"]);
    plane.feed(Feed::<neap_api::serving::Revision>::Reset(vec![]), now);
    assert_eq!(lines(&plane), [""; 0]);
}

#[test]
fn long_revision_names_have_shortened_private_services() {
    let now = Instant::now();
    let name = "a".repeat(60);
    let private = neap_logic::names::private_service(&name);
    assert_ne!(private, format!("{name}-private"), "the point of the test");
    let (plane, _) = DataPlane::new("c");
    plane.feed(Feed::Apply(revision(&name, 0, "h2c")), now);
    plane.feed(Feed::Apply(slice(&private, "s", ("http2", 1), &[("198.19.0.1", true)])), now);
    assert_eq!(lines(&plane), [format!("revision ns/{name}: 198.19.0.1:1")]);
}

#[test]
fn a_changed_revision_gets_a_new_gate_and_the_old_one_drains() {
    let now = Instant::now();
    let (plane, _) = DataPlane::new("c");
    plane.feed(Feed::Apply(revision("r", 0, "")), now);
    plane.feed(Feed::Apply(slice("r-private", "s", ("http", 1), &[("198.19.0.1", true)])), now);
    let before = plane.gates();
    plane.feed(Feed::Apply(revision("r", 0, "")), now);
    assert_eq!(plane.gates().len(), 1, "nothing changed");
    plane.feed(Feed::Apply(revision("r", 5, "")), now);
    assert_eq!(plane.gates().len(), 2, "the old one is held by this test as by a request");
    assert_eq!(plane.overview().gates[0].container_concurrency, 5);
    assert_eq!(lines(&plane), ["revision ns/r: 198.19.0.1:1"]);
    drop(before);
    assert_eq!(plane.gates().len(), 1);
}

#[test]
fn plain_services_have_a_gate_per_port() {
    let now = Instant::now();
    let (plane, _) = DataPlane::new("c");
    let ports = json!([{ "name": "http", "port": 80 }, { "name": "http2", "port": 81 }]);
    plane.feed(Feed::Apply(service("web", ports)), now);
    plane.feed(Feed::Apply(slice("web", "s1", ("http", 8080), &[("198.19.0.1", true)])), now);
    plane.feed(Feed::Apply(slice("web", "s2", ("http2", 8081), &[("198.19.0.2", true)])), now);
    assert_eq!(lines(&plane), ["service ns/web port 80: 198.19.0.1:8080", "service ns/web port 81: 198.19.0.2:8081"]);
    let protocols: Vec<_> = plane.snapshot().gates().map(|gate| gate.settings.protocol).collect();
    assert!(protocols.contains(&neap_proxy::Protocol::H2c) && protocols.contains(&neap_proxy::Protocol::Http1));
    let mut own = service("web", json!([]));
    own.metadata.labels = Some([(neap_api::keys::networking::SERVICE_TYPE.to_owned(), "Public".to_owned())].into());
    plane.feed(Feed::Apply(own), now);
    assert_eq!(lines(&plane), [""; 0], "a Revision's own Services are not kept");
}

#[test]
fn ingress_status_says_what_is_live() {
    let now = Instant::now();
    let (plane, _) = DataPlane::new("ours");
    let status = plane.ingress_status();
    let ingress = |name: &str, generation: i64, class: &str, host: &str| -> neap_api::networking::Ingress {
        object(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": { "namespace": "ns", "name": name, "generation": generation,
                "creationTimestamp": format!("2026-01-01T00:00:0{generation}Z"),
                "annotations": { "networking.knative.dev/ingress.class": class } },
            "spec": { "rules": [{ "hosts": [host], "http": { "paths": [
                { "splits": [{ "serviceName": "s", "serviceNamespace": "ns", "servicePort": 80, "percent": 100 }] }] } }] },
        }))
    };
    plane.feed(Feed::Apply(ingress("a", 1, "ours", "a.example")), now);
    plane.feed(Feed::Apply(ingress("theirs", 1, "theirs", "t.example")), now);
    let live = status.borrow().clone();
    assert_eq!(live.get("ns", "a").expect("is live").generation, 1);
    assert!(live.get("ns", "theirs").is_none());
    assert!(plane.snapshot().routes.host("a.example").is_some(), "published before it is said");

    let hash = live.get("ns", "a").expect("is live").hash.clone();
    plane.feed(Feed::Apply(ingress("a", 2, "ours", "b.example")), now);
    let live = status.borrow().clone();
    let state = live.get("ns", "a").expect("is live");
    assert!(state.generation == 2 && state.hash != hash);

    plane.feed(Feed::Apply(ingress("c", 3, "ours", "b.example")), now);
    assert_eq!(status.borrow().get("ns", "c").expect("is known").conflicts[0].owner, IngressKey::new("ns", "a"));
    plane.feed(Feed::Delete(ingress("a", 2, "ours", "b.example")), now);
    let live = status.borrow().clone();
    assert!(live.get("ns", "a").is_none() && live.get("ns", "c").expect("is live").conflicts.is_empty());
    let snapshot = plane.snapshot();
    let found = snapshot.routes.find(Door::External, false, "b.example", "/", None, |_| None);
    assert!(matches!(found, neap_logic::routing::Lookup::Found(_)));
}

#[test]
fn certificates_come_and_go_with_their_secrets() {
    let now = Instant::now();
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("makes a certificate");
    let secret = |chain: &str| -> k8s_openapi::api::core::v1::Secret {
        k8s_openapi::api::core::v1::Secret {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                namespace: Some("ns".into()),
                name: Some("cert".into()),
                ..Default::default()
            },
            data: Some(
                [("tls.crt", chain.to_owned()), ("tls.key", made.signing_key.serialize_pem())]
                    .map(|(key, text)| (key.to_owned(), k8s_openapi::ByteString(text.into_bytes())))
                    .into(),
            ),
            ..Default::default()
        }
    };
    let (plane, _) = DataPlane::new("c");
    let count = || plane.snapshot().certificates.size();
    plane.feed(Feed::Apply(secret(&made.cert.pem())), now);
    assert_eq!(count(), 1);
    plane.feed(Feed::Apply(secret("broken")), now);
    assert_eq!(count(), 1, "the one before is better than none");
    plane.feed(Feed::Delete(secret("")), now);
    plane.feed(Feed::Apply(secret("broken")), now);
    assert_eq!(count(), 0, "there was none before");
    plane.feed(Feed::Reset(vec![secret(&made.cert.pem())]), now);
    plane.feed(Feed::Delete(secret("")), now);
    assert_eq!(count(), 0);
}

#[test]
fn one_gate_is_asked_for_what_is_present_there() {
    let (plane, _) = DataPlane::new("c");
    let key = RevisionKey::new("ns", "r");
    assert_eq!(plane.present(&key), 0);
    plane.feed(Feed::Apply(revision("r", 0, "http1")), Instant::now());
    plane.snapshot().revisions[&key].enter(Instant::now(), gate::Comes::First, None);
    assert_eq!(plane.present(&key), 1);
}

/// Two gateways with an account each would let two requests into an instance that takes one.
#[test]
fn instances_with_a_limit_are_shared_out_among_gateways() {
    let now = Instant::now();
    let own = "198.19.9.2".parse().expect("an address");
    let (plane, _) = DataPlane::among_others("c", "ns", own);
    let all = [("198.19.0.1", true), ("198.19.0.2", true), ("198.19.0.3", true)];
    for (name, concurrency) in [("one", 1), ("free", 0), ("sidecar", 1)] {
        plane.feed(Feed::Apply(revision(name, concurrency, "http1")), now);
        let port = if name == "sidecar" { 8012 } else { 8080 };
        plane.feed(Feed::Apply(slice(&format!("{name}-private"), name, ("http", port), &all)), now);
    }
    let check = |gateways: &[(&str, bool)], own: &str| {
        plane.feed(Feed::Apply(slice("gateway", "gateway-1", ("http2", 8080), gateways)), now);
        let want = |name: &str, port: u16, instances: &str| {
            let addresses: Vec<_> = instances.split(' ').map(|n| format!("198.19.0.{n}:{port}")).collect();
            format!("revision ns/{name}: {}", addresses.join(" "))
        };
        let all = [want("free", 8080, "1 2 3"), want("one", 8080, own), want("sidecar", 8012, "1 2 3")];
        assert_eq!(lines(&plane), all, "{gateways:?}");
    };
    check(&[], "1 2 3");
    check(&[("198.19.9.2", true)], "1 2 3");
    check(&[("198.19.9.2", true), ("198.19.9.3", true)], "1 3");
    check(&[("198.19.9.1", true), ("198.19.9.2", true), ("198.19.9.3", true)], "2");
    check(&[("198.19.9.1", true), ("198.19.9.2", true), ("198.19.9.3", false)], "2");
    // One that is not ready itself has requests to end, and gets no new ones.
    check(&[("198.19.9.1", true), ("198.19.9.2", false)], "1 2 3");
}
