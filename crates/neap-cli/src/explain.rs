//! `neap explain`: why a service is as it is, in sentences, from the cause to the whole.

use std::io::Write;

use serde_json::Value;

use crate::connect::connect;
use crate::tree::{Part, Tree};
use crate::{Env, Error, Target};

/// Warnings shown.
const WARNINGS: usize = 10;

#[derive(Debug, clap::Args)]
pub struct Explain {
    #[command(flatten)]
    target: Target,
    /// The service.
    name: String,
}

impl Explain {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let tree = Tree::read(&connection, &self.name).await?;
        for line in explain(&tree) {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

fn explain(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let name = tree.service["metadata"]["name"].as_str().unwrap_or_default();
    let service = Part { kind: "Service", object: tree.service.clone() };
    let is_seen = tree.service["status"]["observedGeneration"] == tree.service["metadata"]["generation"];
    lines.push(match service.condition("Ready") {
        Some(ready) if ready["status"] == "True" && is_seen => format!("service {name} is ready at {}", tree.url()),
        Some(ready) if is_seen => format!("service {name} is not ready: {}", words(ready)),
        _ => format!("service {name} is not ready: the controllers have not seen its latest change yet"),
    });
    // The cause comes first: a revision fails because of a container, a service because of a revision.
    let causes: Vec<String> = tree.parts.iter().flat_map(troubles).collect();
    if !causes.is_empty() {
        lines.push("because".into());
        lines.extend(causes.into_iter().map(|cause| format!("  {cause}")));
    }
    for revision in tree.of_kind("Revision") {
        lines.push(standing(tree, revision));
    }
    let warnings = tree.warnings(WARNINGS);
    if !warnings.is_empty() {
        lines.push("warnings, the latest first".into());
        lines.extend(warnings.into_iter().map(|warning| format!("  {warning}")));
    }
    lines
}

/// What is wrong with one object.
fn troubles(part: &Part) -> Vec<String> {
    match part.kind {
        "Pod" => pod_troubles(part),
        // What a Revision says of it says it better.
        "Deployment" => Vec::new(),
        _ => {
            let bad = part.conditions().filter(|c| c["status"] != "True" && c["type"] != "Ready");
            // A severity marks what need not hold, and sleep is no trouble.
            let bad = bad.filter(|c| c["severity"].as_str().unwrap_or_default().is_empty());
            let bad = bad.filter(|c| !(part.kind != "Route" && c["type"] == "Active" && c["reason"] == "NoTraffic"));
            bad.map(|c| format!("{} {}: {}", part.kind, part.name(), words(c))).collect()
        }
    }
}

fn pod_troubles(pod: &Part) -> Vec<String> {
    let mut told = Vec::new();
    for status in pod.object["status"]["containerStatuses"].as_array().into_iter().flatten() {
        let container = status["name"].as_str().unwrap_or_default();
        let waiting = &status["state"]["waiting"];
        if let Some(reason) = waiting["reason"].as_str().filter(|reason| *reason != "ContainerCreating") {
            let message = waiting["message"].as_str().unwrap_or("no further words");
            told.push(format!("Pod {}: container {container} waits ({reason}): {message}", pod.name()));
        }
        let ended = [&status["state"]["terminated"], &status["lastState"]["terminated"]];
        if let Some(code) = ended.iter().find_map(|ended| ended["exitCode"].as_i64()).filter(|code| *code != 0) {
            let restarts = status["restartCount"].as_i64().unwrap_or(0);
            told.push(format!("Pod {}: container {container} ended with code {code}, {restarts} restarts", pod.name()));
        }
    }
    let unplaced = pod.condition("PodScheduled").filter(|c| c["status"] == "False");
    told.extend(unplaced.map(|c| format!("Pod {}: {}", pod.name(), words(c))));
    told
}

/// Whether a revision runs, and why not more of it.
fn standing(tree: &Tree, revision: &Part) -> String {
    let name = revision.name();
    let share = tree.share(name);
    let head = format!("revision {name} gets {share} % of the requests and");
    let Some(scaler) = tree.of_kind("PodAutoscaler").find(|scaler| scaler.name() == name) else {
        return format!("{head} is not scaled yet");
    };
    let count = |field: &str| scaler.object["status"][field].as_i64().unwrap_or(0);
    let (wanted, there) = (count("desiredScale"), count("actualScale"));
    let why = scaler.condition("Active").map(words).unwrap_or_default();
    match (wanted, there) {
        (_, 0) if wanted <= 0 => format!("{head} sleeps: {why}"),
        (_, 0) => format!("{head} is being started: {why}"),
        _ if wanted >= 0 && wanted != there => format!("{head} has {there} instances, going to {wanted}"),
        _ => format!("{head} has {there} {}", if there == 1 { "instance" } else { "instances" }),
    }
}

/// A condition as a sentence.
fn words(condition: &Value) -> String {
    let text = |field: &str| condition[field].as_str().unwrap_or_default().trim_end_matches('.');
    let message = text("message");
    match (message, text("reason")) {
        ("", "") => format!("{} is {}", text("type"), text("status")),
        ("", reason) => reason.to_owned(),
        (message, "") => message.to_owned(),
        (message, reason) => format!("{message} ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tree(ready: &str, parts: Vec<(&'static str, Value)>) -> Tree {
        let service = json!({
            "metadata": {"name": "hello", "generation": 1},
            "status": {"observedGeneration": 1, "url": "http://hello.default.localhost",
                "traffic": [{"revisionName": "hello-00001", "percent": 100}],
                "conditions": [{"type": "Ready", "status": ready, "reason": "RevisionFailed", "message": "it failed."}]},
        });
        let event = |message: &str| json!({"type": "Warning", "reason": "R", "message": message, "involvedObject": {"kind": "Service", "name": "hello"}});
        let parts = parts.into_iter().map(|(kind, object)| Part { kind, object }).collect();
        let events = if ready == "True" { Vec::new() } else { vec![event("old"), event("new"), event("new")] };
        Tree { service, parts, events }
    }

    #[test]
    fn sleep_is_explained_and_is_no_trouble() {
        let asleep = json!([{"type": "Active", "status": "False", "reason": "NoTraffic", "message": "The target is not receiving traffic."}]);
        let parts = vec![
            (
                "PodAutoscaler",
                json!({"metadata": {"name": "hello-00001"}, "status": {"desiredScale": 0, "actualScale": 0, "conditions": asleep}}),
            ),
            ("Revision", json!({"metadata": {"name": "hello-00001"}, "status": {"conditions": asleep}})),
        ];
        assert_eq!(
            explain(&tree("True", parts)),
            [
                "service hello is ready at http://hello.default.localhost",
                "revision hello-00001 gets 100 % of the requests and sleeps: The target is not receiving traffic (NoTraffic)",
            ]
        );
    }

    #[test]
    fn the_cause_comes_before_what_follows_from_it() {
        let crashed = json!([{"name": "user-container", "restartCount": 3, "lastState": {"terminated": {"exitCode": 1}}, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}]);
        let unhealthy = json!([{"type": "ContainerHealthy", "status": "False", "reason": "ExitCode1", "message": "Container failed."},
            {"type": "Ready", "status": "False", "message": "Container failed."}]);
        let parts = vec![
            ("Pod", json!({"metadata": {"name": "p"}, "status": {"containerStatuses": crashed}})),
            ("Revision", json!({"metadata": {"name": "hello-00001"}, "status": {"conditions": unhealthy}})),
        ];
        assert_eq!(
            explain(&tree("False", parts)),
            [
                "service hello is not ready: it failed (RevisionFailed)",
                "because",
                "  Pod p: container user-container waits (CrashLoopBackOff): back-off",
                "  Pod p: container user-container ended with code 1, 3 restarts",
                "  Revision hello-00001: Container failed (ExitCode1)",
                "revision hello-00001 gets 100 % of the requests and is not scaled yet",
                "warnings, the latest first",
                "  Service hello: R: new",
                "  Service hello: R: old",
            ]
        );
    }
}
