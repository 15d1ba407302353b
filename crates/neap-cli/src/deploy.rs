//! `neap deploy`: from flags or a file to a service that is ready.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use neap_api::keys::autoscaling;
use neap_api::serving::Service;
use serde_json::{Map, Value, json};

use crate::connect::{Connection, connect};
use crate::progress::Progress;
use crate::wait;
use crate::{Env, Error, Target};

/// Who owns the fields that `deploy` sets (server-side apply).
const MANAGER: &str = "neap";

#[derive(Debug, clap::Args)]
pub struct Deploy {
    #[command(flatten)]
    target: Target,
    /// Name of the service.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Container image to run.
    #[arg(long, value_name = "IMAGE", required_unless_present = "file")]
    image: Option<String>,
    /// A service in YAML or JSON instead of flags; `-` is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "image"])]
    file: Option<PathBuf>,
    /// Environment variable; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Port the application listens on; `h2c:PORT` for HTTP/2 without TLS.
    #[arg(short, long, value_name = "[h2c:]PORT")]
    port: Option<String>,
    /// Requests one instance may handle at the same time; 0 is no limit.
    #[arg(long, value_name = "N")]
    concurrency: Option<i64>,
    /// Seconds a request may take.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<i64>,
    /// Fewest instances.
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Most instances.
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Requests in flight to aim at per instance.
    #[arg(long, value_name = "N")]
    target_concurrency: Option<u32>,
    /// Over how long the load is averaged before it scales down, such as 60s.
    #[arg(long, value_name = "DURATION")]
    window: Option<String>,
    /// Most CPU and memory, such as cpu=500m,memory=128Mi.
    #[arg(long, value_name = "NAME=QUANTITY", value_delimiter = ',')]
    limit: Vec<String>,
    /// Arguments of the container, after `--`.
    #[arg(last = true)]
    args: Vec<String>,
    /// Answer at once instead of waiting for the service to be ready.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait_timeout: u64,
}

impl Deploy {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let manifests = match &self.file {
            Some(path) => read(path)?,
            None => vec![self.manifest()?],
        };
        let connection = connect(&self.target, env).await?;
        for manifest in manifests {
            self.one(&connection, manifest, env, out).await?;
        }
        Ok(())
    }

    async fn one(
        &self,
        connection: &Connection,
        manifest: Value,
        env: &Env,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Error> {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let api: Api<Service> = Api::namespaced(connection.client.clone(), &connection.namespace);
        // What a user typed wins over what anybody else set.
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(&name, &params, &Patch::Apply(&manifest)).await.map_err(|e| connection.explain(e))?;
        if self.no_wait {
            writeln!(out, "service {name} is applied")?;
            return Ok(());
        }
        let mut progress = Progress::new(env);
        progress.say("waiting for the controllers");
        let ready = wait::ready(connection, &name, Duration::from_secs(self.wait_timeout), &mut progress).await?;
        drop(progress);
        let status = ready.status.unwrap_or_default();
        let revision = status.latest_ready_revision_name;
        let url = status.url.unwrap_or_default();
        let what = if applied.metadata.generation == Some(1) { "created" } else { "updated" };
        writeln!(out, "service {} {what}, revision {revision} is ready at\n{url}", applied.name_any())?;
        Ok(())
    }

    fn manifest(&self) -> Result<Value, Error> {
        let mut container = Map::from_iter([("image".to_owned(), json!(self.image))]);
        if !self.env.is_empty() {
            let pairs = self.env.iter().map(|e| pair(e, "--env", "NAME=VALUE"));
            let list = pairs
                .map(|p| p.map(|(name, value)| json!({"name": name, "value": value})))
                .collect::<Result<Vec<_>, _>>()?;
            container.insert("env".into(), json!(list));
        }
        if let Some(port) = &self.port {
            let (name, number) = match port.split_once(':') {
                Some((name, number)) => (Some(name), number),
                None => (None, port.as_str()),
            };
            let number: u16 = number
                .parse()
                .map_err(|_| Error::Usage(format!("--port {port:?} is no port: give 8080 or h2c:8080")))?;
            let mut port = json!({"containerPort": number, "protocol": "TCP"});
            if let Some(name) = name {
                port["name"] = json!(name);
            }
            container.insert("ports".into(), json!([port]));
        }
        if !self.limit.is_empty() {
            let limits =
                self.limit.iter().map(|l| pair(l, "--limit", "memory=128Mi")).collect::<Result<Vec<_>, _>>()?;
            let limits: Map<String, Value> = limits.into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
            container.insert("resources".into(), json!({ "limits": limits }));
        }
        if !self.args.is_empty() {
            container.insert("args".into(), json!(self.args));
        }
        let annotations = [
            (autoscaling::MIN_SCALE, self.min.map(|n| n.to_string())),
            (autoscaling::MAX_SCALE, self.max.map(|n| n.to_string())),
            (autoscaling::TARGET, self.target_concurrency.map(|n| n.to_string())),
            (autoscaling::WINDOW, self.window.clone()),
        ];
        let annotations: Map<String, Value> =
            annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))).collect();
        let mut spec = json!({"containers": [container]});
        for (field, value) in [("containerConcurrency", self.concurrency), ("timeoutSeconds", self.timeout)] {
            if let Some(value) = value {
                spec[field] = json!(value);
            }
        }
        let mut template = json!({ "spec": spec });
        if !annotations.is_empty() {
            template["metadata"] = json!({ "annotations": annotations });
        }
        Ok(json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": self.name},
            "spec": {"template": template},
        }))
    }
}

fn pair<'a>(text: &'a str, flag: &str, shape: &str) -> Result<(&'a str, &'a str), Error> {
    text.split_once('=').ok_or_else(|| Error::Usage(format!("{flag} {text:?} has no value: write {flag} {shape}")))
}

/// Every service of a file, which may hold several documents.
fn read(path: &Path) -> Result<Vec<Value>, Error> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(unreadable)?
    };
    parse(&text).map_err(|why| Error::Manifest { path: path.to_owned(), why })
}

fn parse(text: &str) -> Result<Vec<Value>, String> {
    use serde::Deserialize;
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|e| e.to_string())?;
        if value.is_null() {
            continue;
        }
        let (group, kind) =
            (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default());
        if !group.starts_with("serving.knative.dev/") || kind != "Service" {
            return Err(format!("it holds a {kind:?} of {group:?}; other kinds go through `kubectl apply -f`"));
        }
        if value["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            return Err("metadata.name is missing".into());
        }
        found.push(value);
    }
    if found.is_empty() { Err("it is empty".into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        deploy: Deploy,
    }

    fn manifest(words: &str) -> Result<Value, Error> {
        let words = ["deploy"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words).expect("it parses").deploy.manifest()
    }

    #[test]
    fn flags_become_a_service() {
        let made = manifest("hello --image i:1 -e A=b=c --port h2c:9000 --concurrency 5 --min 1 --window 10s --limit cpu=1,memory=64Mi -- x y")
            .expect("a manifest");
        let template = &made["spec"]["template"];
        assert_eq!(template["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"], "1");
        assert_eq!(template["spec"]["containerConcurrency"], 5);
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["env"], json!([{"name": "A", "value": "b=c"}]));
        assert_eq!(container["ports"], json!([{"containerPort": 9000, "name": "h2c", "protocol": "TCP"}]));
        assert_eq!(container["resources"]["limits"], json!({"cpu": "1", "memory": "64Mi"}));
        assert_eq!(container["args"], json!(["x", "y"]));
    }

    #[test]
    fn wrong_flags_say_what_is_right() {
        for (words, want) in [("h --image i --env A", "--env NAME=VALUE"), ("h --image i --port x", "h2c:8080")] {
            let error = manifest(words).expect_err("it is wrong").to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn files_hold_services() {
        let two = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n---\n\
                   apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: b}\n---\n";
        assert_eq!(parse(two).map(|found| found.len()), Ok(2));
        assert!(parse("kind: Pod\napiVersion: v1").expect_err("a pod").contains("kubectl apply"));
        assert!(parse("").is_err() && parse("a: [").is_err());
    }
}
