//! Host names of routes and their tags, and the URLs made of them.

use std::collections::BTreeMap;

use serde_json::json;

use super::template::TemplateError;
use crate::config::Settings;

/// What a host name is made from.
#[derive(Debug, Clone, Copy)]
pub struct RouteName<'a> {
    /// The route.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels; they choose the domain.
    pub labels: &'a BTreeMap<String, String>,
    /// Its annotations, for the template.
    pub annotations: &'a BTreeMap<String, String>,
}

/// Why a route has no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The setting does not fit this route.
    #[error("{key} in config-network cannot name this route")]
    Template {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: TemplateError,
    },
    /// The name of all routes of a namespace is no wildcard.
    #[error(
        "domain-template in config-network makes {host:?} of all routes of a namespace, which no certificate can be for: the route's name must be a part of its own, the first one"
    )]
    Wildcard {
        /// The name.
        host: String,
    },
    /// The name is no DNS name.
    #[error("invalid domain name {host:?}: each part between dots takes 1 to 63 lower-case letters, digits or dashes")]
    Invalid {
        /// The name.
        host: String,
    },
}

/// The name of the Kubernetes Service that stands for a route or for one of its tags.
pub fn tag_service(route: &RouteName<'_>, tag: &str, settings: &Settings) -> Result<String, HostError> {
    if tag.is_empty() {
        return Ok(route.name.to_owned());
    }
    settings
        .network
        .tag_template
        .render(&json!({"Name": route.name, "Tag": tag}))
        .map_err(|source| HostError::Template { key: "tag-template", source })
}

/// The host of a route (empty tag) or of one of its tags. `local` makes it a name inside the cluster.
pub fn host(route: &RouteName<'_>, tag: &str, local: bool, settings: &Settings) -> Result<String, HostError> {
    let service = tag_service(route, tag, settings)?;
    if local {
        return Ok(service_host(&service, route.namespace, settings));
    }
    let domain = settings.domain.lookup(route.labels, &settings.neap.cluster_domain);
    let host = settings
        .network
        .domain_template
        .render(&json!({
            "Name": service,
            "Namespace": route.namespace,
            "Domain": domain,
            "Annotations": route.annotations,
            "Labels": route.labels,
        }))
        .map_err(|source| HostError::Template { key: "domain-template", source })?;
    match host.split('.').all(super::is_dns1123_label) {
        true => Ok(host),
        false => Err(HostError::Invalid { host }),
    }
}

/// The name of all routes of a namespace under a domain, as certificates have it: `*.ns.example.com`.
pub fn wildcard(namespace: &str, domain: &str, settings: &Settings) -> Result<String, HostError> {
    let empty = BTreeMap::<String, String>::new();
    let rendered = settings.network.domain_template.render(&json!({
        "Name": "*", "Namespace": namespace, "Domain": domain, "Annotations": empty, "Labels": empty,
    }));
    let host = rendered.map_err(|source| HostError::Template { key: "domain-template", source })?;
    match host.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(super::is_dns1123_label)) {
        true => Ok(host),
        false => Err(HostError::Wildcard { host }),
    }
}

/// Whether a host only exists inside the cluster.
pub fn is_local(host: &str, settings: &Settings) -> bool {
    host.strip_suffix(settings.neap.cluster_domain.as_str()).is_some_and(|rest| rest.ends_with(".svc."))
}

/// The DNS name of a Kubernetes Service.
pub fn service_host(name: &str, namespace: &str, settings: &Settings) -> String {
    format!("{name}.{namespace}.svc.{}", settings.neap.cluster_domain)
}

/// Every name by which a cluster-local host can be called: in the same namespace's search list, and whole.
pub fn local_names(host: &str, settings: &Settings) -> Vec<String> {
    match host.strip_suffix(&format!(".svc.{}", settings.neap.cluster_domain)) {
        Some(short) => vec![short.to_owned(), format!("{short}.svc"), host.to_owned()],
        None => vec![host.to_owned()],
    }
}

/// The URL of a host as the world sees it: the published port is part of it unless it is the scheme's own.
pub fn url(scheme: &str, host: &str, settings: &Settings) -> String {
    let port = match scheme {
        "https" => settings.neap.external_https_port,
        _ => settings.neap.external_http_port,
    };
    let default_port = if scheme == "https" { crate::config::neap::HTTPS_PORT } else { crate::config::neap::HTTP_PORT };
    // Inside the cluster the gateway's Service maps the scheme's own port.
    if port == default_port || is_local(host, settings) {
        format!("{scheme}://{host}")
    } else {
        format!("{scheme}://{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::domain::DomainRule;

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.domain.domains.insert("localhost".into(), DomainRule::default());
        settings.neap.external_http_port = 8080;
        settings
    }

    #[test]
    fn hosts_and_urls() {
        let (labels, annotations) = (BTreeMap::new(), BTreeMap::new());
        let route = RouteName { name: "hello", namespace: "ns", labels: &labels, annotations: &annotations };
        let s = settings();
        let check = |tag: &str, local: bool, want_host: &str, want_url: &str| {
            let host = host(&route, tag, local, &s).expect("a host");
            assert_eq!((host.as_str(), url("http", &host, &s).as_str()), (want_host, want_url));
        };
        check("", false, "hello.ns.localhost", "http://hello.ns.localhost:8080");
        check("v2", false, "v2-hello.ns.localhost", "http://v2-hello.ns.localhost:8080");
        check("", true, "hello.ns.svc.cluster.local", "http://hello.ns.svc.cluster.local");
        assert_eq!(
            local_names("hello.ns.svc.cluster.local", &s),
            ["hello.ns", "hello.ns.svc", "hello.ns.svc.cluster.local"]
        );
        assert!(!is_local("a.localhost", &s));
    }
}
