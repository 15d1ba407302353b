//! Who issues a certificate for some names.

use crate::config::Acme;

/// What is said of certificates that no authority outside could give: they are for names inside.
const INSIDE: [&str; 2] = ["cluster-local-domain", "system-internal"];
/// Domains nobody owns (RFC 6761, RFC 6762, RFC 8375, RFC 9476 and ICANN's `internal`).
const NOBODYS: [&str; 9] =
    ["localhost", "local", "internal", "test", "example", "invalid", "onion", "alt", "home.arpa"];
/// Names in one certificate: what Let's Encrypt takes.
const MOST_NAMES: usize = 100;

/// Who issues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// The platform's own authority.
    Local,
    /// The authority behind `acme.directory`.
    Acme,
    /// Nobody can; why, and what to do, in a sentence.
    Nobody(String),
}

/// Decides who issues a certificate of a type (C3.7) for these names.
pub fn issuer(kind: &str, names: &[String], acme: Option<&Acme>, cluster_domain: &str) -> Issuer {
    if acme.is_none() || INSIDE.contains(&kind) || names.iter().all(|name| is_private(name, cluster_domain)) {
        return Issuer::Local;
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("*.")) {
        return Issuer::Nobody(format!(
            "a certificate for {name} needs a DNS-01 challenge, which Neap does not answer: empty \
             namespace-wildcard-cert-selector in config-network, so that each route gets a certificate of its own"
        ));
    }
    if let Some(name) = names.iter().find(|name| is_private(name, cluster_domain)) {
        return Issuer::Nobody(format!("no public authority certifies {name}: ask for it apart from public names"));
    }
    if names.len() > MOST_NAMES {
        return Issuer::Nobody(format!(
            "{} names do not fit into one certificate: at most {MOST_NAMES} do",
            names.len()
        ));
    }
    Issuer::Acme
}

/// Whether no public authority would certify a name.
pub fn is_private(name: &str, cluster_domain: &str) -> bool {
    let below = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !name.contains('.')
        || name.parse::<std::net::IpAddr>().is_ok()
        || below(cluster_domain)
        || NOBODYS.into_iter().any(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, names: &[&str], with_acme: bool, want: &str) {
        let acme = Acme::at("https://ca.example/dir");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let got = match issuer(kind, &names, Some(&acme).filter(|_| with_acme), "cluster.local") {
            Issuer::Local => "local".to_owned(),
            Issuer::Acme => "acme".to_owned(),
            Issuer::Nobody(why) => why,
        };
        assert!(got.contains(want), "{names:?}: {got:?} does not say {want:?}");
    }

    #[test]
    fn who_issues() {
        let external = "external-domain";
        check(external, &["shop.example.org"], false, "local");
        check(external, &["shop.example.org"], true, "acme");
        check(external, &["a.ns.localhost"], true, "local");
        check(external, &["a.ns.svc.cluster.local"], true, "local");
        check(external, &["notlocalhost.org"], true, "acme");
        check(external, &["192.168.1.1"], true, "local");
        check("cluster-local-domain", &["a.ns", "a.ns.svc"], true, "local");
        check("system-internal", &["kn-user-ns", "data-plane.knative.dev"], true, "local");
        check(external, &["*.ns.localhost"], true, "local");
        check(external, &["*.ns.example.org"], true, "needs a DNS-01 challenge");
        check(external, &["*.ns.example.org"], false, "local");
        check(external, &["a.example.org", "b.lan.local"], true, "no public authority certifies b.lan.local");
    }
}
