//! Who may import whom: the manifests against `arrows.txt`. Also: the rules must stay free of runtimes and sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Crates that must not be able to reach an async runtime, HTTP or a client, however indirectly.
const PURE: &[&str] = &["neap-api", "neap-logic"];
const FORBIDDEN: &[&str] = &["tokio", "hyper", "kube-client", "kube-runtime", "reqwest"];

fn metadata() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    // What other platforms need was never fetched by a build for this one.
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform=host-tuple"])
        .current_dir(root)
        .output()
        .expect("cargo runs, since it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn ours(metadata: &Value) -> BTreeMap<String, &Value> {
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let named = packages.filter(|p| p["source"].is_null());
    named.map(|p| (p["name"].as_str().expect("a name").to_owned(), p)).collect()
}

#[test]
fn the_arrows_are_those_on_the_list() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let mut lines = Vec::new();
    for (name, package) in &ours {
        let mut arrows = BTreeSet::new();
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let to = dependency["name"].as_str().expect("a name");
            if ours.contains_key(to) {
                let dev = dependency["kind"] == "dev";
                arrows.insert(if dev { format!("dev:{to}") } else { to.to_owned() });
            }
        }
        lines.push((name.clone(), arrows));
    }
    let listed: BTreeMap<String, BTreeSet<String>> = include_str!("arrows.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, rest)| (name.to_owned(), rest.split_whitespace().map(str::to_owned).collect()))
        .collect();
    for (name, arrows) in &lines {
        assert_eq!(listed.get(name), Some(arrows), "the arrows of {name} differ from arrows.txt");
    }
    assert_eq!(listed.len(), lines.len(), "arrows.txt lists a crate that is not there");
}

#[test]
fn the_rules_reach_no_runtime_and_no_socket() {
    let metadata = metadata();
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a resolved graph");
    let name = |id: &str| {
        let packages = metadata["packages"].as_array().expect("packages");
        packages.iter().find(|p| p["id"] == id).and_then(|p| p["name"].as_str()).unwrap_or_default().to_owned()
    };
    let edges: BTreeMap<&str, Vec<&str>> = nodes
        .iter()
        .map(|node| {
            let normal = node["deps"].as_array().expect("deps").iter().filter(|dep| {
                dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k["kind"].is_null()))
            });
            (node["id"].as_str().expect("an id"), normal.filter_map(|dep| dep["pkg"].as_str()).collect())
        })
        .collect();
    for pure in PURE {
        let start = edges.keys().find(|id| name(id) == *pure).expect("the crate is in the graph");
        let mut seen = BTreeSet::from([*start]);
        let mut queue = vec![*start];
        while let Some(id) = queue.pop() {
            let reached = name(id);
            assert!(!FORBIDDEN.contains(&reached.as_str()), "{pure} reaches {reached}");
            for next in edges.get(id).into_iter().flatten() {
                if seen.insert(next) {
                    queue.push(next);
                }
            }
        }
    }
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let metadata = metadata();
    for (name, package) in ours(&metadata) {
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().expect("a path")).expect("readable");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace lints");
        assert_eq!(package["version"], "0.0.0", "{name} is internal");
    }
}
