//! `neap describe`: a service on one page.

use std::io::Write;

use serde_json::Value;

use crate::connect::connect;
use crate::get::columns;
use crate::tree::Tree;
use crate::{Env, Error, Target};

/// Events shown.
const EVENTS: usize = 10;

#[derive(Debug, clap::Args)]
pub struct Describe {
    #[command(flatten)]
    target: Target,
    /// The service.
    name: String,
}

impl Describe {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let tree = Tree::read(&connection, &self.name).await?;
        Ok(out.write_all(describe(&tree).as_bytes())?)
    }
}

fn describe(tree: &Tree) -> String {
    let service = &tree.service;
    let text = |at: &str| service.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut page = columns(&[
        row(["Name:", &text("/metadata/name")]),
        row(["Namespace:", &text("/metadata/namespace")]),
        row(["Created:", &text("/metadata/creationTimestamp")]),
        row(["URL:", tree.url()]),
        row(["Inside:", &text("/status/address/url")]),
        row(["Latest:", &text("/status/latestReadyRevisionName")]),
    ]);
    section(&mut page, "Conditions", ["TYPE", "STATUS", "REASON", "MESSAGE"], conditions(service));
    section(&mut page, "Traffic", ["REVISION", "PERCENT", "TAG", "URL"], traffic(service));
    section(&mut page, "Revisions", ["NAME", "READY", "INSTANCES", "IMAGE"], revisions(tree));
    let events = tree.events.iter().rev().take(EVENTS).map(|event| {
        let about = format!("{} {}", show(&event["involvedObject"]["kind"]), show(&event["involvedObject"]["name"]));
        [show(&event["lastTimestamp"]), about, show(&event["reason"]), show(&event["message"])]
    });
    section(&mut page, "Events", ["TIME", "ABOUT", "REASON", "MESSAGE"], events.collect());
    page
}

fn section(page: &mut String, title: &str, head: [&str; 4], lines: Vec<[String; 4]>) {
    if lines.is_empty() {
        return;
    }
    let mut table = vec![row(head)];
    table.extend(lines.into_iter().map(|line| line.to_vec()));
    page.push_str(&format!("\n{title}\n{}", columns(&table)));
}

fn conditions(service: &Value) -> Vec<[String; 4]> {
    let all = service["status"]["conditions"].as_array().into_iter().flatten();
    all.map(|c| [show(&c["type"]), show(&c["status"]), show(&c["reason"]), show(&c["message"])]).collect()
}

fn traffic(service: &Value) -> Vec<[String; 4]> {
    let all = service["status"]["traffic"].as_array().into_iter().flatten();
    all.map(|t| [show(&t["revisionName"]), show(&t["percent"]), show(&t["tag"]), show(&t["url"])]).collect()
}

fn revisions(tree: &Tree) -> Vec<[String; 4]> {
    let line = |revision: &crate::tree::Part| {
        let ready = revision.condition("Ready").map_or_else(|| "Unknown".to_owned(), |c| show(&c["status"]));
        let instances = show(&revision.object["status"]["actualReplicas"]);
        let instances = if instances.is_empty() { "0".to_owned() } else { instances };
        let image = show(&revision.object["spec"]["containers"][0]["image"]);
        [revision.name().to_owned(), ready, instances, image]
    };
    tree.of_kind("Revision").map(line).collect()
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        // A page has one line for it.
        Value::String(text) => text.replace('\n', " "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Part;
    use serde_json::json;

    #[test]
    fn a_page_has_what_there_is() {
        let service = json!({
            "metadata": {"name": "hello", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"url": "http://h", "traffic": [{"revisionName": "hello-00001", "percent": 100}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let revision = json!({"metadata": {"name": "hello-00001"}, "spec": {"containers": [{"image": "i:1"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let tree = Tree { service, parts: vec![Part { kind: "Revision", object: revision }], events: Vec::new() };
        let page = describe(&tree);
        for line in ["Name:        hello", "Ready   True", "hello-00001   100", "hello-00001   True    0           i:1"]
        {
            assert!(page.contains(line), "{line} not in\n{page}");
        }
        assert!(!page.contains("Events"), "{page}");
    }
}
