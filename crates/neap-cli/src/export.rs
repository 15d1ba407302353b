//! `neap export`: services as files that make them again elsewhere, on one machine or on a cluster.

use std::io::Write;

use serde_json::{Map, Value};

use crate::connect::connect;
use crate::{Env, Error, Target};

/// What an API server writes into metadata, or what says who wrote there; it would be wrong or refused elsewhere.
const METADATA: [&str; 8] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "ownerReferences",
    "finalizers",
];
/// Annotations that tell of this platform's past.
const ANNOTATIONS: [&str; 3] = [
    "serving.knative.dev/creator",
    "serving.knative.dev/lastModifier",
    "kubectl.kubernetes.io/last-applied-configuration",
];

#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    target: Target,
    /// The services [default: all of the namespace]
    names: Vec<String>,
}

impl Export {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let root = format!("/apis/serving.knative.dev/v1/namespaces/{}/services", connection.namespace);
        let get = async |path: String| -> Result<Value, kube::Error> {
            let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
            connection.client.request(request).await
        };
        let mut found = Vec::new();
        for name in &self.names {
            match get(format!("{root}/{name}")).await {
                Ok(service) => found.push(service),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    let namespace = connection.namespace.clone();
                    return Err(Error::NotFound { kind: "service", name: name.clone(), namespace });
                }
                Err(error) => return Err(connection.explain(error)),
            }
        }
        if self.names.is_empty() {
            let mut list = get(root).await.map_err(|e| connection.explain(e))?;
            found = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        }
        for service in found {
            let text = serde_yaml::to_string(&bare(service)).map_err(std::io::Error::other)?;
            write!(out, "---\n{text}")?;
        }
        Ok(())
    }
}

/// What its owner wrote, as far as that can still be told.
fn bare(mut service: Value) -> Value {
    let mut whole = Map::new();
    whole.insert("apiVersion".into(), "serving.knative.dev/v1".into());
    whole.insert("kind".into(), "Service".into());
    let mut metadata = service["metadata"].take();
    if let Some(metadata) = metadata.as_object_mut() {
        METADATA.iter().for_each(|field| drop(metadata.remove(*field)));
        // It is made where it is applied.
        metadata.remove("namespace");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            ANNOTATIONS.iter().for_each(|name| drop(annotations.remove(*name)));
        }
        if metadata.get("annotations").and_then(Value::as_object).is_some_and(Map::is_empty) {
            metadata.remove("annotations");
        }
    }
    whole.insert("metadata".into(), metadata);
    whole.insert("spec".into(), service["spec"].take());
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_its_owner_wrote_is_left() {
        let held = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2, "managedFields": [],
                "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"l": "x"}, "annotations": {"serving.knative.dev/creator": "me"}},
            "spec": {"template": {"spec": {"containers": [{"image": "i"}]}}},
            "status": {"url": "http://a"},
        });
        assert_eq!(
            bare(held),
            json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Service",
                "metadata": {"name": "a", "labels": {"l": "x"}},
                "spec": {"template": {"spec": {"containers": [{"image": "i"}]}}},
            })
        );
    }
}
