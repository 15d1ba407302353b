//! One changed route costs the same beside ten others and beside ten thousand. Counted in bytes allocated, which no busy
//! machine can bend.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use neap_api::networking::Ingress;
use neap_api::serving::Revision;
use neap_dataplane::{DataPlane, Feed};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("is one of its kind")
}

fn ingress(n: usize, revision: &str) -> Ingress {
    object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": { "namespace": "ns", "name": format!("route-{n}"),
                      "annotations": { "networking.knative.dev/ingress.class": "c" } },
        "spec": { "rules": [{ "hosts": [format!("route-{n}.ns.example.com")], "http": { "paths": [{ "splits": [{
            "serviceName": revision, "serviceNamespace": "ns", "servicePort": 80, "percent": 100,
            "appendHeaders": { "Knative-Serving-Revision": revision, "Knative-Serving-Namespace": "ns" } }] }] } }] },
    }))
}

fn revision(n: usize) -> Revision {
    object(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": { "namespace": "ns", "name": format!("r-{n}") },
        "spec": { "timeoutSeconds": 300, "containers": [{ "image": "x" }] },
    }))
}

fn endpoints(n: usize, last: u8) -> EndpointSlice {
    object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "ns", "name": format!("r-{n}-private-1"),
                      "labels": { "kubernetes.io/service-name": format!("r-{n}-private") } },
        "ports": [{ "name": "http", "port": 8080 }], "endpoints": [{ "addresses": [format!("198.19.0.{last}")] }],
    }))
}

/// Bytes allocated by one change of each kind, beside `count` others.
fn cost(count: usize) -> [u64; 3] {
    let (plane, _wakes) = DataPlane::new("c");
    let now = Instant::now();
    for n in 0..count {
        plane.feed(Feed::Apply(revision(n)), now);
        plane.feed(Feed::Apply(endpoints(n, 1)), now);
        plane.feed(Feed::Apply(ingress(n, &format!("r-{n}"))), now);
    }
    // Somebody holds the state before, as a request does: what is shared has to be copied.
    let _held = plane.ingress_status().borrow().clone();
    // Tables grow at their own times, so the mean of some changes is taken.
    const CHANGES: usize = 16;
    let routes: Vec<Ingress> = (0..CHANGES).map(|n| ingress(n % count, "r-0")).collect();
    let revisions: Vec<Revision> = (0..CHANGES).map(|n| revision(count + n)).collect();
    let moved: Vec<EndpointSlice> = (0..CHANGES).map(|n| endpoints(n % count, 2)).collect();
    let routes = allocation_counter::measure(|| routes.into_iter().for_each(|one| plane.feed(Feed::Apply(one), now)));
    let revisions =
        allocation_counter::measure(|| revisions.into_iter().for_each(|one| plane.feed(Feed::Apply(one), now)));
    let moved = allocation_counter::measure(|| moved.into_iter().for_each(|one| plane.feed(Feed::Apply(one), now)));
    [routes, revisions, moved].map(|counted| counted.bytes_total / CHANGES as u64)
}

#[test]
fn a_change_costs_the_same_beside_ten_and_ten_thousand() {
    let (few, many) = (cost(10), cost(10_000));
    println!("bytes allocated per change of a route, a Revision, endpoints: {few:?} beside 10, {many:?} beside 10,000");
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few * 2, "{few} bytes beside ten, {many} beside ten thousand");
    }
}
