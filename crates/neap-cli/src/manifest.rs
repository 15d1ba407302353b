//! From flags to a service: a new one, or the one there is with what the flags name changed and nothing else.

use std::io::Read;
use std::path::Path;

use neap_api::keys::autoscaling;
use serde_json::{Map, Value, json};

use crate::Error;

/// What of a service flags can say.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Flags {
    /// Container image to run.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Environment variable; `NAME-` takes one away; may be repeated.
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
}

/// The flags that say something a file says too.
pub(crate) const OF_A_SERVICE: [&str; 12] = [
    "name",
    "image",
    "env",
    "port",
    "concurrency",
    "timeout",
    "min",
    "max",
    "target_concurrency",
    "window",
    "limit",
    "args",
];

impl Flags {
    /// A service of its own.
    pub(crate) fn service(&self, name: &str) -> Result<Value, Error> {
        if self.image.is_none() {
            return Err(Error::Usage(format!("there is no service {name:?} yet: give --image to make one")));
        }
        let mut template = json!({"spec": {"containers": [{}]}});
        self.change(&mut template)?;
        Ok(json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"template": template},
        }))
    }

    /// Changes what the flags name in the template of a service.
    pub(crate) fn change(&self, template: &mut Value) -> Result<(), Error> {
        let Self { image, env, port, concurrency, timeout, min, max, target_concurrency, window, limit, args } = self;
        // A name is of one revision only.
        if let Some(metadata) = template["metadata"].as_object_mut() {
            metadata.remove("name");
        }
        let container = serving_container(template);
        if let Some(image) = image {
            container["image"] = json!(image);
        }
        for word in env {
            change_env(container, word)?;
        }
        if let Some(port) = port {
            container["ports"] = json!([container_port(port)?]);
        }
        for limit in limit {
            let (name, quantity) = pair(limit, "--limit", "memory=128Mi")?;
            container["resources"]["limits"][name] = json!(quantity);
        }
        if !args.is_empty() {
            container["args"] = json!(args);
        }
        for (field, value) in [("containerConcurrency", concurrency), ("timeoutSeconds", timeout)] {
            if let Some(value) = value {
                template["spec"][field] = json!(value);
            }
        }
        let annotations = [
            (autoscaling::MIN_SCALE, min.map(|n| n.to_string())),
            (autoscaling::MAX_SCALE, max.map(|n| n.to_string())),
            (autoscaling::TARGET, target_concurrency.map(|n| n.to_string())),
            (autoscaling::WINDOW, window.clone()),
        ];
        for (key, value) in annotations {
            if let Some(value) = value {
                template["metadata"]["annotations"][key] = json!(value);
            }
        }
        Ok(())
    }
}

/// The container that takes requests: the one that names a port, else the first.
fn serving_container(template: &mut Value) -> &mut Value {
    if !template["spec"]["containers"].is_array() {
        template["spec"]["containers"] = json!([{}]);
    }
    let containers = template["spec"]["containers"].as_array_mut().expect("made above");
    if containers.is_empty() {
        containers.push(json!({}));
    }
    let at = containers.iter().position(|c| c["ports"].as_array().is_some_and(|p| !p.is_empty())).unwrap_or(0);
    &mut containers[at]
}

fn change_env(container: &mut Value, word: &str) -> Result<(), Error> {
    if !container["env"].is_array() {
        container["env"] = json!([]);
    }
    let list = container["env"].as_array_mut().expect("made above");
    if let Some(name) = word.strip_suffix('-').filter(|name| !name.contains('=')) {
        list.retain(|entry| entry["name"] != name);
        return Ok(());
    }
    let (name, value) = pair(word, "--env", "NAME=VALUE")?;
    let entry = json!({"name": name, "value": value});
    match list.iter_mut().find(|entry| entry["name"] == name) {
        Some(held) => *held = entry,
        None => list.push(entry),
    }
    Ok(())
}

fn container_port(text: &str) -> Result<Value, Error> {
    let (name, number) = match text.split_once(':') {
        Some((name, number)) => (Some(name), number),
        None => (None, text),
    };
    let number: u16 =
        number.parse().map_err(|_| Error::Usage(format!("--port {text:?} is no port: give 8080 or h2c:8080")))?;
    let mut port = Map::from_iter([("containerPort".to_owned(), json!(number)), ("protocol".to_owned(), json!("TCP"))]);
    port.extend(name.map(|name| ("name".to_owned(), json!(name))));
    Ok(Value::Object(port))
}

fn pair<'a>(text: &'a str, flag: &str, shape: &str) -> Result<(&'a str, &'a str), Error> {
    text.split_once('=').ok_or_else(|| Error::Usage(format!("{flag} {text:?} has no value: write {flag} {shape}")))
}

/// Every service of a file, which may hold several documents.
pub(crate) fn read(path: &Path) -> Result<Vec<Value>, Error> {
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
        flags: Flags,
    }

    fn flags(words: &str) -> Flags {
        Line::try_parse_from(["deploy"].into_iter().chain(words.split_whitespace())).expect("it parses").flags
    }

    #[test]
    fn flags_become_a_service() {
        let made = flags("--image i:1 -e A=b=c --port h2c:9000 --concurrency 5 --min 1 --window 10s --limit cpu=1,memory=64Mi -- x y")
            .service("hello")
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
    fn what_no_flag_names_stays() {
        let mut template = json!({
            "metadata": {"name": "hello-v1", "annotations": {"autoscaling.knative.dev/min-scale": "1", "mine": "x"}},
            "spec": {"timeoutSeconds": 7, "containers": [
                {"name": "helper", "image": "h"},
                {"image": "hello:1", "ports": [{"containerPort": 9000}], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                 "resources": {"limits": {"cpu": "1"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            ]},
        });
        flags("--image hello:2 --env A=3 --env B- --env C=4 --limit memory=64Mi --max 5")
            .change(&mut template)
            .expect("changed");
        assert_eq!(
            template,
            json!({
                "metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "5", "mine": "x"}},
                "spec": {"timeoutSeconds": 7, "containers": [
                    {"name": "helper", "image": "h"},
                    {"image": "hello:2", "ports": [{"containerPort": 9000}], "env": [{"name": "A", "value": "3"}, {"name": "C", "value": "4"}],
                     "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                ]},
            })
        );
    }

    #[test]
    fn wrong_flags_say_what_is_right() {
        for (words, want) in
            [("--image i --env A", "--env NAME=VALUE"), ("--image i --port x", "h2c:8080"), ("--min 1", "--image")]
        {
            let error = flags(words).service("h").expect_err("it is wrong").to_string();
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
