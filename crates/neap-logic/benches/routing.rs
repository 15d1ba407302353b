//! What a lookup costs, and what a change costs, with many hosts. Run with `cargo bench -p neap-logic`.

use std::hint::black_box;
use std::time::Instant;

use neap_api::networking::Ingress;
use neap_logic::routing::{Door, Index, Lookup, Table};
use serde_json::json;

const CLASS: &str = "neap.ingress.networking.knative.dev";
const INGRESSES: usize = 5_000;
const LOOKUPS: usize = 500_000;

/// As a Route writes it: one public host and three forms of a local one.
fn ingress(n: usize) -> Ingress {
    let name = format!("service-{n}");
    let headers = json!({"Knative-Serving-Revision": format!("{name}-00001"), "Knative-Serving-Namespace": "default"});
    let paths = json!([{"splits": [{"serviceNamespace": "default", "serviceName": format!("{name}-00001"), "servicePort": 80,
        "percent": 100, "appendHeaders": headers}]}]);
    let hosts = [".default", ".default.svc", ".default.svc.cluster.local"].map(|end| format!("{name}{end}"));
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name, "annotations": {"networking.knative.dev/ingress.class": CLASS}},
        "spec": {"rules": [
            {"hosts": hosts, "visibility": "ClusterLocal", "http": {"paths": paths}},
            {"hosts": [format!("{name}.default.example.com")], "visibility": "ExternalIP", "http": {"paths": paths}},
        ]},
    }))
    .expect("an Ingress")
}

/// Parts a measurement is made in. The quickest one is told: the others had to share the machine.
const PARTS: usize = 50;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn timed(what: &str, times: usize, mut work: impl FnMut(usize)) {
    let part = times / PARTS;
    let quickest = (0..PARTS)
        .map(|at| {
            let start = Instant::now();
            (at * part..(at + 1) * part).for_each(&mut work);
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!("{what}: {:.0} ns", quickest.as_nanos() as f64 / part as f64);
}

fn find(table: &Table, host: &str) -> bool {
    let found = table.find(Door::External, false, black_box(host), black_box("/hello"), None, |_| None);
    matches!(found, Lookup::Found(found) if found.path.choose(7).percent == 100)
}

fn main() {
    let mut index = Index::new(CLASS);
    let mut all: Vec<Ingress> = (0..INGRESSES).map(ingress).collect();
    timed("compile and add one Ingress", INGRESSES, |n| {
        index.apply(&all[n]);
    });
    let table = index.table();
    let hosts: Vec<String> = (0..INGRESSES).map(|n| format!("service-{n}.default.example.com")).collect();
    let mixed: Vec<String> = hosts.iter().map(|host| host.replace("service", "Service") + ":8080").collect();
    timed("find, one host", LOOKUPS, |_| assert!(find(&table, &hosts[0])));
    timed("find, all hosts in turn", LOOKUPS, |n| assert!(find(&table, &hosts[n % INGRESSES])));
    timed("find, upper case and port", LOOKUPS, |n| assert!(find(&table, &mixed[n % INGRESSES])));
    timed("find, unknown host", LOOKUPS, |_| assert!(!find(&table, "nobody.default.example.com")));
    let mut snapshot = index.table();
    timed("change one Ingress and publish", INGRESSES, |n| {
        all[n].spec.http_option = "Enabled".to_owned();
        assert!(index.apply(&all[n]).table);
        snapshot = index.table();
    });
    assert_eq!(snapshot.len(), INGRESSES * 4);
}
