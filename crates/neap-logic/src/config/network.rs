//! `config-network`: names, schemes and certificates of routes.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use neap_api::keys::networking::NEAP_INGRESS_CLASS;
use serde_json::json;

use super::reader::{Data, Mistake, Reader};
use crate::names::template::Template;

/// The config-map's name.
pub const MAP: &str = "config-network";

/// `certificate-class`.
pub const CERTIFICATE_CLASS: &str = "cert-manager.certificate.networking.knative.dev";
/// `domain-template`.
pub const DOMAIN_TEMPLATE: &str = "{{.Name}}.{{.Namespace}}.{{.Domain}}";
/// `tag-template`.
pub const TAG_TEMPLATE: &str = "{{.Tag}}-{{.Name}}";

/// What happens to plain HTTP on an external host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpProtocol {
    /// It is served.
    Enabled,
    /// It is answered with a redirect to https.
    Redirected,
    /// It is not served; deprecated upstream.
    Disabled,
}

/// Whether pods can be called by address inside a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshCompatibility {
    /// Find out.
    Auto,
    /// Only through the Service address.
    Enabled,
    /// Always by pod address.
    Disabled,
}

/// Settings of routes.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The ingress implementation for routes that name none.
    pub ingress_class: String,
    /// The certificate implementation for routes that name none.
    pub certificate_class: String,
    /// Host of a route: Name, Namespace, Domain, Annotations, Labels.
    pub domain_template: Template,
    /// First label of a tag's host: Name, Tag.
    pub tag_template: Template,
    /// Certificates for external hosts.
    pub external_domain_tls: bool,
    /// Certificates for cluster-local hosts.
    pub cluster_local_domain_tls: bool,
    /// TLS between the platform's parts.
    pub system_internal_tls: bool,
    /// Plain HTTP on external hosts.
    pub http_protocol: HttpProtocol,
    /// Namespaces that get a wildcard certificate; `None` for no namespace.
    pub namespace_wildcard_cert_selector: Option<LabelSelector>,
    /// Length of a gradual rollout; zero moves at once.
    pub rollout_duration: Duration,
    /// Whether a DomainMapping may claim its domain by itself.
    pub autocreate_cluster_domain_claims: bool,
    /// Whether pods stay addressable inside a mesh.
    pub enable_mesh_pod_addressability: bool,
    /// Whether a mesh is in the way of pod addresses.
    pub mesh_compatibility: MeshCompatibility,
    /// Scheme of a route's URL while it has no certificate.
    pub default_external_scheme: String,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            ingress_class: NEAP_INGRESS_CLASS.into(),
            certificate_class: CERTIFICATE_CLASS.into(),
            domain_template: template(DOMAIN_TEMPLATE),
            tag_template: template(TAG_TEMPLATE),
            external_domain_tls: false,
            cluster_local_domain_tls: false,
            system_internal_tls: false,
            http_protocol: HttpProtocol::Enabled,
            namespace_wildcard_cert_selector: None,
            rollout_duration: Duration::ZERO,
            autocreate_cluster_domain_claims: false,
            enable_mesh_pod_addressability: false,
            mesh_compatibility: MeshCompatibility::Auto,
            default_external_scheme: "http".into(),
        }
    }
}

fn template(text: &str) -> Template {
    text.parse().expect("the default templates are well formed")
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Network {
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Network::default();
    Network {
        ingress_class: r.text(&["ingress-class", "ingress.class"], &d.ingress_class),
        certificate_class: r.text(&["certificate-class", "certificate.class"], &d.certificate_class),
        domain_template: domain_template(&mut r),
        tag_template: tag_template(&mut r),
        external_domain_tls: enabled(&mut r, &["external-domain-tls", "auto-tls", "autoTLS"]),
        cluster_local_domain_tls: enabled(&mut r, &["cluster-local-domain-tls"]),
        system_internal_tls: enabled(&mut r, &["system-internal-tls"])
            || r.boolean(&["internal-encryption"], false) && r.raw(&["system-internal-tls"]).is_none(),
        http_protocol: r.with(
            &["http-protocol", "httpProtocol"],
            d.http_protocol,
            "enabled, redirected or disabled",
            |v| match v.to_ascii_lowercase().as_str() {
                "" | "enabled" => Some(HttpProtocol::Enabled),
                "redirected" => Some(HttpProtocol::Redirected),
                "disabled" => Some(HttpProtocol::Disabled),
                _ => None,
            },
        ),
        namespace_wildcard_cert_selector: r.with(
            &["namespace-wildcard-cert-selector"],
            None,
            "a label selector in YAML",
            |v| match v {
                "" => Some(None),
                text => serde_yaml::from_str(text)
                    .ok()
                    .filter(|s: &Option<LabelSelector>| s.iter().all(has_known_operators)),
            },
        ),
        rollout_duration: Duration::from_secs(r.parse(
            &["rollout-duration", "rolloutDuration"],
            0,
            "seconds, not negative",
        )),
        autocreate_cluster_domain_claims: r.boolean(
            &["autocreate-cluster-domain-claims", "autocreateClusterDomainClaims"],
            d.autocreate_cluster_domain_claims,
        ),
        enable_mesh_pod_addressability: r.boolean(&["enable-mesh-pod-addressability"], false),
        mesh_compatibility: r.with(
            &["mesh-compatibility-mode"],
            d.mesh_compatibility,
            "auto, enabled or disabled",
            |v| match v.to_ascii_lowercase().as_str() {
                "auto" => Some(MeshCompatibility::Auto),
                "enabled" => Some(MeshCompatibility::Enabled),
                "disabled" => Some(MeshCompatibility::Disabled),
                _ => None,
            },
        ),
        default_external_scheme: r.with(
            &["default-external-scheme", "defaultExternalScheme"],
            d.default_external_scheme,
            "http or https",
            |v| matches!(v, "http" | "https").then(|| v.to_owned()),
        ),
    }
}

fn has_known_operators(selector: &LabelSelector) -> bool {
    let known = ["In", "NotIn", "Exists", "DoesNotExist"];
    selector.match_expressions.iter().flatten().all(|r| known.contains(&r.operator.as_str()))
}

fn enabled(r: &mut Reader<'_>, keys: &[&'static str]) -> bool {
    r.with(keys, false, "enabled or disabled", |v| match v.to_ascii_lowercase().as_str() {
        "enabled" => Some(true),
        "disabled" | "" => Some(false),
        _ => None,
    })
}

/// A template is tried on an invented route before it is believed, so a mistake shows when it is made.
fn domain_template(r: &mut Reader<'_>) -> Template {
    let sample = json!({"Name": "foo", "Namespace": "bar", "Domain": "baz.com", "Annotations": {}, "Labels": {}});
    tried(r, &["domain-template", "domainTemplate"], DOMAIN_TEMPLATE, &sample)
}

fn tag_template(r: &mut Reader<'_>) -> Template {
    tried(r, &["tag-template", "tagTemplate"], TAG_TEMPLATE, &json!({"Name": "foo", "Tag": "v2"}))
}

fn tried(r: &mut Reader<'_>, keys: &[&'static str], default: &str, sample: &serde_json::Value) -> Template {
    let Some((key, text)) = r.raw(keys) else { return template(default) };
    let problem = match text.parse::<Template>() {
        Ok(parsed) => match parsed.render(sample) {
            Ok(host) if host.contains('/') => format!("{text:?} yields {host:?}, which has a path and is no host name"),
            Ok(host) if host.is_empty() => format!("{text:?} yields nothing"),
            Ok(_) => return parsed,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    r.mistake(key, problem);
    template(default)
}
