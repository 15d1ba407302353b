//! `config-domain`: which domain a route's host name ends in.

use std::collections::BTreeMap;

use neap_api::keys::networking::{VISIBILITY, VISIBILITY_CLUSTER_LOCAL};

use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-domain";

/// The type of a domain whose namespaces can have wildcard certificates.
pub const WILDCARD: &str = "wildcard";

/// Domains by the labels they ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Domain {
    /// Domain → what a route must carry for it.
    pub domains: BTreeMap<String, DomainRule>,
}

/// When a domain applies.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
pub struct DomainRule {
    /// Labels a route must carry; none means every route.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// `wildcard` where one certificate covers the domain.
    #[serde(default, rename = "type")]
    pub kind: String,
}

impl Domain {
    /// The domain for a route with these labels: most labels matched, then the first by name.
    pub fn lookup(&self, labels: &BTreeMap<String, String>, cluster_domain: &str) -> String {
        let local = || format!("svc.{cluster_domain}");
        if labels.get(VISIBILITY).is_some_and(|v| v == VISIBILITY_CLUSTER_LOCAL) {
            return local();
        }
        let mut best: Option<(usize, &str)> = None;
        for (domain, rule) in &self.domains {
            let matches = rule.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
            if matches && best.is_none_or(|(specific, _)| rule.selector.len() > specific) {
                best = Some((rule.selector.len(), domain));
            }
        }
        best.map_or_else(local, |(_, domain)| domain.to_owned())
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Domain {
    let mut r = Reader::new(MAP, data, mistakes);
    let mut domains = BTreeMap::new();
    for (domain, text) in r.entries() {
        if !crate::names::is_dns1123_subdomain(domain) {
            r.mistake(domain, "must be a domain name such as apps.example.com");
            continue;
        }
        match rule(text) {
            Some(mut rule) => {
                if rule.selector.is_empty() && rule.kind.is_empty() {
                    rule.kind = WILDCARD.into();
                }
                domains.insert(domain.clone(), rule);
            }
            None => r.mistake(domain, "must be empty or YAML with `selector: {label: value}`"),
        }
    }
    Domain { domains }
}

fn rule(text: &str) -> Option<DomainRule> {
    if text.trim().is_empty() {
        return Some(DomainRule::default());
    }
    serde_yaml::from_str::<Option<DomainRule>>(text).ok().map(Option::unwrap_or_default)
}
