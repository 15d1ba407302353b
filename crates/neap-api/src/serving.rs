//! `serving.knative.dev`: Service, Configuration, Revision, Route (v1) and DomainMapping (v1beta1). Facts A2 to A6.

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_derive::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::status::status;

/// API group of the serving kinds.
pub const GROUP: &str = "serving.knative.dev";

/// A Service owns one Configuration and one Route: the workload and the way to it, kept together.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Service",
    plural = "services",
    namespaced,
    status = "ServiceStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "kservice",
    shortname = "ksvc",
    category = "all",
    category = "knative",
    category = "serving",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// What to run.
    #[serde(default)]
    pub template: RevisionTemplate,
    /// How requests are spread over revisions; empty means all to the latest ready revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

status! {
    /// What was observed of a Service.
    pub struct ServiceStatus {
        /// Name of the latest revision that is or was ready.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub latest_ready_revision_name: String,
        /// Name of the revision created last.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub latest_created_revision_name: String,
        /// Where the service answers, from outside when it is public.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
        /// Where the service answers inside the cluster.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<Address>,
        /// The spread of requests as it is now, every target resolved to a revision.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub traffic: Vec<TrafficTarget>,
    }
}

/// A Configuration describes the newest wanted state of a workload and keeps its history as Revisions.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Configuration",
    plural = "configurations",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "config",
    shortname = "cfg",
    category = "all",
    category = "knative",
    category = "serving",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationSpec {
    /// What to run.
    #[serde(default)]
    pub template: RevisionTemplate,
}

status! {
    /// What was observed of a Configuration.
    pub struct ConfigurationStatus {
        /// Name of the latest revision that is or was ready.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub latest_ready_revision_name: String,
        /// Name of the revision created last.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub latest_created_revision_name: String,
    }
}

/// The template a new Revision is stamped from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionTemplate {
    /// Labels, annotations and possibly the name of the Revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form")]
    pub metadata: Option<ObjectMeta>,
    /// The Revision's spec.
    #[serde(default)]
    pub spec: RevisionSpec,
}

/// An immutable snapshot of code and configuration.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Revision",
    plural = "revisions",
    namespaced,
    status = "RevisionStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "rev",
    category = "all",
    category = "knative",
    category = "serving",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct RevisionSpec {
    /// Requests one instance may handle at the same time; 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_concurrency: Option<i64>,
    /// Seconds a request may take in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Seconds until the first byte of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_start_timeout_seconds: Option<i64>,
    /// Seconds without a byte of the response after which a request ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<i64>,
    /// The pod that runs the code.
    #[serde(flatten)]
    pub pod: PodSpec,
}

status! {
    /// What was observed of a Revision.
    pub struct RevisionStatus {
        /// Where this revision's logs can be read.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub log_url: String,
        /// Image digest of each container.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub container_statuses: Vec<ContainerStatus>,
        /// Image digest of each init container.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub init_container_statuses: Vec<ContainerStatus>,
        /// Instances that run now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub actual_replicas: Option<i32>,
        /// Instances the autoscaler wants.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub desired_replicas: Option<i32>,
    }
}

/// A container's image as it was resolved when the Revision came to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// The container's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `repository@sha256:…`, empty when the registry is exempt from resolution.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
}

/// A Route maps a host name to Revisions by weight.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Route",
    plural = "routes",
    namespaced,
    status = "RouteStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "rt",
    category = "all",
    category = "knative",
    category = "serving",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// How requests are spread over revisions and configurations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

status! {
    /// What was observed of a Route.
    pub struct RouteStatus {
        /// Where the route answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
        /// Where the route answers inside the cluster.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<Address>,
        /// The spread of requests as it is now, every target resolved to a revision.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub traffic: Vec<TrafficTarget>,
    }
}

/// One share of a Route's requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTarget {
    /// A name under which this target alone can be called.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// The Revision to send to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision_name: String,
    /// The Configuration whose latest ready Revision to send to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub configuration_name: String,
    /// Whether the target follows the latest ready Revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<bool>,
    /// Share of requests, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// Where the tag answers; only in a status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Where an object answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Address {
    /// The URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A DomainMapping gives a Service a host name of its own; the host is the object's name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1beta1",
    kind = "DomainMapping",
    plural = "domainmappings",
    namespaced,
    status = "DomainMappingStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "dm",
    category = "all",
    category = "knative",
    category = "serving",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct DomainMappingSpec {
    /// The addressable object requests go to.
    #[serde(default, rename = "ref")]
    pub reference: KReference,
    /// A certificate of the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<DomainMappingTls>,
}

/// A Secret with a certificate for a DomainMapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainMappingTls {
    /// Name of the Secret, in the mapping's namespace.
    pub secret_name: String,
}

/// A reference to another object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KReference {
    /// Kind of the referent.
    #[serde(default)]
    pub kind: String,
    /// Namespace of the referent; the holder's own when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the referent.
    #[serde(default)]
    pub name: String,
    /// API version of the referent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Group of the API, resolved to a version by the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Points to a specific address by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

status! {
    /// What was observed of a DomainMapping.
    pub struct DomainMappingStatus {
        /// Where the mapping answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
        /// Where the mapping answers, as an address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<Address>,
    }
}

/// A template's metadata keeps whatever the user wrote (A3.1).
fn free_form(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "annotations": { "type": "object", "additionalProperties": { "type": "string" } },
            "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            "finalizers": { "type": "array", "items": { "type": "string" } },
            "name": { "type": "string" },
            "namespace": { "type": "string" },
            "generateName": { "type": "string" }
        },
        "x-kubernetes-preserve-unknown-fields": true
    })
}
