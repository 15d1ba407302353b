//! A service with everything that was made for it, read at one moment. Objects stay JSON: they are shown, not understood.

use kube::Client;
use neap_api::keys::serving;
use serde_json::Value;

use crate::connect::Connection;
use crate::error::Error;

/// Where each kind is served, and by which label those of a service are found; from the cause to the whole.
const PARTS: [(&str, &str, &str, &str); 8] = [
    ("Pod", "/api/v1", "pods", serving::SERVICE),
    ("Deployment", "/apis/apps/v1", "deployments", serving::SERVICE),
    ("PodAutoscaler", "/apis/autoscaling.internal.knative.dev/v1alpha1", "podautoscalers", serving::SERVICE),
    ("Revision", "/apis/serving.knative.dev/v1", "revisions", serving::SERVICE),
    ("Configuration", "/apis/serving.knative.dev/v1", "configurations", serving::SERVICE),
    ("Certificate", "/apis/networking.internal.knative.dev/v1alpha1", "certificates", serving::ROUTE),
    ("Ingress", "/apis/networking.internal.knative.dev/v1alpha1", "ingresses", serving::ROUTE),
    ("Route", "/apis/serving.knative.dev/v1", "routes", serving::SERVICE),
];

/// One object and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) kind: &'static str,
    pub(crate) object: Value,
}

impl Part {
    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(crate) fn conditions(&self) -> impl Iterator<Item = &Value> {
        self.object["status"]["conditions"].as_array().into_iter().flatten()
    }

    pub(crate) fn condition(&self, type_: &str) -> Option<&Value> {
        self.conditions().find(|c| c["type"] == type_)
    }
}

/// A service, its parts, and the warnings about them.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) service: Value,
    pub(crate) parts: Vec<Part>,
    pub(crate) events: Vec<Value>,
}

impl Tree {
    /// # Errors
    /// There is no such service, or the API does not answer.
    pub(crate) async fn read(connection: &Connection, name: &str) -> Result<Self, Error> {
        let namespace = &connection.namespace;
        let path = format!("/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}");
        let service = match get(&connection.client, &path).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                return Err(Error::NotFound { kind: "service", name: name.into(), namespace: namespace.clone() });
            }
            other => other.map_err(|e| connection.explain(e))?,
        };
        let mut parts = Vec::new();
        for (kind, root, plural, label) in PARTS {
            let path = format!("{root}/namespaces/{namespace}/{plural}?labelSelector={label}%3D{name}");
            // Who may not see a kind still sees the others.
            let Ok(mut list) = get(&connection.client, &path).await else { continue };
            let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            parts.extend(items.into_iter().map(|object| Part { kind, object }));
        }
        let mut events = get(&connection.client, &format!("/api/v1/namespaces/{namespace}/events")).await;
        let events = events.as_mut().ok().and_then(|list| list["items"].as_array_mut()).map(std::mem::take);
        let mut tree = Self { service, parts, events: Vec::new() };
        tree.events = events.unwrap_or_default().into_iter().filter(|event| tree.is_about_us(event)).collect();
        tree.events.sort_by_key(|event| event["lastTimestamp"].as_str().unwrap_or_default().to_owned());
        Ok(tree)
    }

    fn is_about_us(&self, event: &Value) -> bool {
        let about = &event["involvedObject"];
        let is = |kind: &str, object: &Value| about["kind"] == kind && about["name"] == object["metadata"]["name"];
        is("Service", &self.service) || self.parts.iter().any(|part| is(part.kind, &part.object))
    }

    pub(crate) fn of_kind(&self, kind: &'static str) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.kind == kind)
    }

    /// The latest warnings, each sentence once: object, reason, words.
    pub(crate) fn warnings(&self, most: usize) -> Vec<String> {
        let mut told: Vec<String> = Vec::new();
        for event in self.events.iter().rev().filter(|event| event["type"] == "Warning") {
            let text = |at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or_default();
            let line = format!(
                "{} {}: {}: {}",
                text("/involvedObject/kind"),
                text("/involvedObject/name"),
                text("/reason"),
                text("/message")
            );
            if !told.contains(&line) && told.len() < most {
                told.push(line);
            }
        }
        told
    }

    pub(crate) fn url(&self) -> &str {
        self.service["status"]["url"].as_str().unwrap_or("(no URL yet)")
    }

    /// The percentage of the requests that a revision gets.
    pub(crate) fn share(&self, revision: &str) -> i64 {
        let traffic = self.service["status"]["traffic"].as_array().into_iter().flatten();
        traffic.filter(|t| t["revisionName"] == revision).filter_map(|t| t["percent"].as_i64()).sum()
    }
}

async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}
