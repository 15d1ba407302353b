//! TLS out of the box: for a host that no Secret has a certificate for, the gateway shows one of the local authority.
//!
//! So `https://NAME.NAMESPACE.localhost:8443` works from the first start for whoever trusts that authority, while URLs stay plain
//! until `external-domain-tls` is switched on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use neap_api::keys::{config, neap};
use neap_controllers::Authority;
use neap_dataplane::DataPlane;
use neap_proxy::tls::{CertifiedKey, ClientHello, ResolvesServerCert, certified_key};

use crate::process::{chain, now};

/// Certificates kept. They are made in a fraction of a millisecond, so that forgetting all of them at once does no harm.
const KEPT: usize = 1024;
/// One is made anew when less of its life is left.
const LEFT: SignedDuration = SignedDuration::from_hours(24 * 30);
/// When an authority could not be read or made, it is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// Who asks for no name has dialled an address.
const UNNAMED: &str = "localhost";

pub(super) struct Fallback {
    plane: Arc<DataPlane>,
    /// The domain that a flag named.
    domain: Option<String>,
    /// What it answers to who dials an address.
    addresses: Vec<String>,
    office: Mutex<Office>,
}

/// Who issues, and what was issued so far.
struct Office {
    authority: Authority,
    made: HashMap<String, (Arc<CertifiedKey>, Timestamp)>,
}

impl Fallback {
    pub(super) fn new(authority: Authority, plane: Arc<DataPlane>, domain: Option<&str>, listen: IpAddr) -> Self {
        let mut addresses = vec![UNNAMED.to_owned(), "127.0.0.1".into(), "::1".into()];
        if !listen.is_unspecified() && !listen.is_loopback() {
            addresses.push(listen.to_string());
        }
        let office = Mutex::new(Office { authority, made: HashMap::new() });
        Self { plane, domain: domain.map(str::to_owned), addresses, office }
    }

    /// Takes another authority when the API holds another one, for ever; `shown` is told of each. A Secret that is deleted is
    /// made anew at once.
    pub(super) async fn follow(self: Arc<Self>, client: Client, shown: impl Fn(&Authority)) {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
        let only = watcher::Config::default().fields(&format!("metadata.name={}", neap::LOCAL_AUTHORITY));
        let mut changes = std::pin::pin!(watcher(secrets, only).default_backoff());
        let mut failed = false;
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                // Nobody may change it any more.
                () = tokio::time::sleep(AGAIN), if std::mem::take(&mut failed) => Some(Ok(Event::InitDone)),
            };
            let Some(change) = change else { return };
            let held = match change {
                Ok(Event::Init | Event::InitApply(_)) => continue,
                // Also the end of a listing: what was deleted before it is nowhere named.
                Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                    Authority::ensure(&client, now()).await.map_err(|error| chain(&error))
                }
                Err(error) => Err(chain(&error)),
            };
            match held {
                Ok(authority) if authority.mark() != self.office().authority.mark() => {
                    shown(&authority);
                    *self.office() = Office { authority, made: HashMap::new() };
                }
                Ok(_) => {}
                Err(why) => {
                    tracing::warn!(why, "the local authority used before stays in use");
                    failed = true;
                }
            }
        }
    }

    fn office(&self) -> MutexGuard<'_, Office> {
        self.office.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut office = self.office();
        if let Some((certificate, _)) = office.made.get(&key).filter(|(_, until)| until.duration_since(now) > LEFT) {
            return Some(certificate.clone());
        }
        let names = name.map_or_else(|| self.addresses.clone(), |name| vec![name]);
        let issued = match office.authority.issue(&names, now) {
            Ok(issued) => issued,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no certificate for this name");
                return None;
            }
        };
        let certificate = certified_key(issued.chain.as_bytes(), issued.key.as_bytes()).ok()?;
        if office.made.len() >= KEPT {
            office.made.clear();
        }
        office.made.insert(key, (certificate.clone(), issued.life.to));
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
        assert!(fallback.office().made.len() <= KEPT);
    }

    #[tokio::test]
    async fn another_authority_is_taken_at_once() {
        let api = neap_testkit::Api::start().await;
        let authority = Authority::ensure(&api.client(), now()).await.expect("is made");
        let (plane, _wakes) = DataPlane::new("");
        let fallback = Arc::new(Fallback::new(authority, plane, None, IpAddr::from([127, 0, 0, 1])));
        let (told, mut marks) = tokio::sync::mpsc::channel(1);
        let follow = fallback.clone().follow(api.client(), move |authority| {
            told.try_send(authority.mark().to_owned()).expect("one");
        });
        let certificate = || fallback.certificate(None).expect("there is one");
        let first = certificate();
        let deleted = async {
            let secrets: Api<Secret> = Api::namespaced(api.client(), config::NAMESPACE);
            secrets.delete(neap::LOCAL_AUTHORITY, &kube::api::DeleteParams::default()).await.expect("deleted");
            let mark = marks.recv().await.expect("is told");
            let held = Authority::ensure(&api.client(), now()).await.expect("is held");
            assert_eq!(mark, held.mark());
            while fallback.office().authority.mark() != mark {
                tokio::task::yield_now().await;
            }
            assert!(!Arc::ptr_eq(&certificate(), &first));
        };
        tokio::select! {
            () = follow => panic!("it goes on"),
            () = deleted => {}
        }
    }
}
