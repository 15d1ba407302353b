//! `networking.internal.knative.dev/v1alpha1`: Ingress, ServerlessService, Certificate, ClusterDomainClaim. Facts A6, F1.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::{is_zero, status};

/// API group of the networking kinds.
pub const GROUP: &str = "networking.internal.knative.dev";

/// Which hosts and paths lead to which backends; carried out by the implementation its class annotation names.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "Ingress",
    plural = "ingresses",
    namespaced,
    status = "IngressStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "kingress",
    shortname = "king",
    category = "knative-internal",
    category = "networking",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct IngressSpec {
    /// Certificates by host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<IngressTls>,
    /// Rules by host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<IngressRule>,
    /// Empty, `Enabled` (plain HTTP is served) or `Redirected` (answered with 301 to https).
    #[serde(default, rename = "httpOption", skip_serializing_if = "String::is_empty")]
    pub http_option: String,
}

/// A certificate for some hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressTls {
    /// Hosts the certificate is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The Secret's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub secret_name: String,
    /// The Secret's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub secret_namespace: String,
}

/// Paths of some hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// The hosts; a request's port does not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// `ExternalIP` (also when empty) or `ClusterLocal`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub visibility: String,
    /// The paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRule>,
}

/// The paths of a rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpRule {
    /// The paths, most specific first.
    #[serde(default)]
    pub paths: Vec<HttpPath>,
}

/// One path and where it leads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpPath {
    /// A literal prefix; empty matches every path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The Host header the backend gets instead of the request's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rewrite_host: String,
    /// Headers a request must carry to match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderMatch>,
    /// Backends by weight.
    #[serde(default)]
    pub splits: Vec<IngressSplit>,
    /// Headers set before the request goes on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub append_headers: BTreeMap<String, String>,
}

/// How a header must look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderMatch {
    /// The exact value.
    #[serde(default)]
    pub exact: String,
}

/// One backend and its share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressSplit {
    /// Namespace of the Kubernetes Service.
    #[serde(default)]
    pub service_namespace: String,
    /// Name of the Kubernetes Service.
    #[serde(default)]
    pub service_name: String,
    /// Port of the Kubernetes Service, by number or name.
    #[serde(default = "port_zero")]
    pub service_port: IntOrString,
    /// Share of requests, 0 to 100.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub percent: i64,
    /// Headers set before the request goes on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub append_headers: BTreeMap<String, String>,
}

fn port_zero() -> IntOrString {
    IntOrString::Int(0)
}

status! {
    /// What was observed of an Ingress.
    pub struct IngressStatus {
        /// Where public hosts are served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub public_load_balancer: Option<LoadBalancerStatus>,
        /// Where cluster-local hosts are served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub private_load_balancer: Option<LoadBalancerStatus>,
    }
}

/// Addresses of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadBalancerStatus {
    /// The addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One address of a load balancer: one of the fields is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// An IP address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// A DNS name for the outside.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// A DNS name inside the cluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain_internal: String,
    /// Only reachable through a mesh.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mesh_only: bool,
}

/// Two Kubernetes Services for one revision: a public one with switchable endpoints, a private one that selects the pods.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ServerlessService",
    plural = "serverlessservices",
    namespaced,
    status = "ServerlessServiceStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "sks",
    category = "knative-internal",
    category = "networking",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct ServerlessServiceSpec {
    /// `Serve` (endpoints are the pods) or `Proxy` (endpoints are the activators).
    #[serde(default)]
    pub mode: String,
    /// What owns the pods.
    #[serde(default)]
    pub object_ref: ObjectReference,
    /// `http1` or `h2c`.
    #[serde(default)]
    pub protocol_type: String,
    /// How many activators to put in the path; 0 means all.
    #[serde(default, skip_serializing_if = "is_zero32")]
    pub num_activators: i32,
}

status! {
    /// What was observed of a ServerlessService.
    pub struct ServerlessServiceStatus {
        /// Name of the public Service.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub service_name: String,
        /// Name of the private Service.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub private_service_name: String,
    }
}

/// Asks for a certificate.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "Certificate",
    plural = "certificates",
    namespaced,
    status = "CertificateStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "kcert",
    category = "knative-internal",
    category = "networking",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    /// DNS names the certificate is for.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// The top-level domain all names belong to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// The Secret to keep it in.
    #[serde(default)]
    pub secret_name: String,
}

status! {
    /// What was observed of a Certificate.
    pub struct CertificateStatus {
        /// When the certificate ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub not_after: Option<Time>,
        /// HTTP-01 challenges to be answered.
        #[serde(default, rename = "http01Challenges", skip_serializing_if = "Vec::is_empty")]
        pub http01_challenges: Vec<Http01Challenge>,
    }
}

/// An ACME HTTP-01 challenge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Http01Challenge {
    /// The URL the authority will ask.
    #[serde(default)]
    pub url: String,
    /// The Service that answers.
    #[serde(default)]
    pub service_name: String,
    /// Its namespace.
    #[serde(default)]
    pub service_namespace: String,
    /// Its port.
    #[serde(default = "port_zero")]
    pub service_port: IntOrString,
}

/// Says which namespace may use a domain; the domain is the object's name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ClusterDomainClaim",
    plural = "clusterdomainclaims",
    derive = "PartialEq",
    derive = "Default",
    shortname = "cdc",
    category = "knative-internal",
    category = "networking",
    crates(kube_core = "kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDomainClaimSpec {
    /// The namespace.
    #[serde(default)]
    pub namespace: String,
}

fn is_zero32(n: &i32) -> bool {
    *n == 0
}
