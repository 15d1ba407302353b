//! TLS out of the box: for a host that no Secret has a certificate for, the gateway shows one of the local authority.
//!
//! So `https://NAME.NAMESPACE.localhost:8443` works from the first start for whoever trusts that authority, while URLs stay plain
//! until `external-domain-tls` is switched on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use neap_controllers::Authority;
use neap_dataplane::DataPlane;
use neap_proxy::tls::{CertifiedKey, ClientHello, ResolvesServerCert, certified_key};

use crate::process::now;

/// Certificates kept. They are made in a fraction of a millisecond, so that forgetting all of them at once does no harm.
const KEPT: usize = 1024;
/// One is made anew when less of its life is left.
const LEFT: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Who asks for no name has dialled an address.
const UNNAMED: &str = "localhost";

pub(super) struct Fallback {
    authority: Authority,
    plane: Arc<DataPlane>,
    /// The domain that a flag named.
    domain: Option<String>,
    /// What it answers to who dials an address.
    addresses: Vec<String>,
    made: Mutex<HashMap<String, (Arc<CertifiedKey>, Timestamp)>>,
}

impl Fallback {
    pub(super) fn new(authority: Authority, plane: Arc<DataPlane>, domain: Option<&str>, listen: IpAddr) -> Self {
        let mut addresses = vec![UNNAMED.to_owned(), "127.0.0.1".into(), "::1".into()];
        if !listen.is_unspecified() && !listen.is_loopback() {
            addresses.push(listen.to_string());
        }
        Self { authority, plane, domain: domain.map(str::to_owned), addresses, made: Mutex::default() }
    }

    /// Names of the platform's own domain, also those nobody serves, which are told so in words; and whatever is routed.
    fn answers_for(&self, name: &str) -> bool {
        is_below(name, UNNAMED)
            || self.domain.as_ref().is_some_and(|domain| is_below(name, domain))
            || self.plane.serves(name)
    }

    fn certificate(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase);
        if name.as_deref().is_some_and(|name| !self.answers_for(name)) {
            return None;
        }
        let key = name.clone().unwrap_or_default();
        let now = now();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((certificate, _)) = made.get(&key).filter(|(_, until)| until.duration_since(now) > LEFT) {
            return Some(certificate.clone());
        }
        let names = name.map_or_else(|| self.addresses.clone(), |name| vec![name]);
        let issued = match self.authority.issue(&names, now) {
            Ok(issued) => issued,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no certificate for this name");
                return None;
            }
        };
        let certificate = certified_key(issued.chain.as_bytes(), issued.key.as_bytes()).ok()?;
        if made.len() >= KEPT {
            made.clear();
        }
        made.insert(key, (certificate.clone(), issued.life.to));
        Some(certificate)
    }
}

impl std::fmt::Debug for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fallback").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Fallback {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate(hello.server_name())
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn names_of_the_domain_and_addresses_are_answered_for() {
        let api = neap_testkit::Api::start().await;
        let authority = Authority::ensure(&api.client(), now()).await.expect("is made");
        let (plane, _wakes) = DataPlane::new("");
        let fallback = Fallback::new(authority, plane, Some("apps.example"), IpAddr::from([127, 0, 0, 1]));
        let check = |name: Option<&str>, want: bool| {
            assert_eq!(fallback.certificate(name).is_some(), want, "{name:?}");
        };
        check(None, true);
        check(Some("hello.default.localhost"), true);
        check(Some("Hello.Default.Apps.Example"), true);
        check(Some("apps.example"), true);
        check(Some("example"), false);
        check(Some("notapps.example"), false);
        check(Some("shop.example.org"), false);
        let same = |name| fallback.certificate(Some(name)).expect("there is one");
        assert!(Arc::ptr_eq(&same("a.localhost"), &same("A.localhost")), "it is made once");
        for n in 0..KEPT {
            check(Some(&format!("{n}.localhost")), true);
        }
        assert!(fallback.made.lock().expect("no panic").len() <= KEPT);
    }
}
