//! Certificates from Secrets, chosen by the name a client asks for, and the answers to authorities that make them.
//!
//! Answers are taken from `knative-serving` alone, and never given for a host that another namespace serves: else whoever may
//! write a Secret could have certificates for the hosts of others.

use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use neap_api::acme;
use neap_api::keys::config;
use neap_proxy::tls::{
    ACME_TLS, CertifiedKey, ClientHello, ResolvesServerCert, TlsError, certified_key, challenge_key,
};

use crate::snapshot::Snapshot;

/// Keys of a Secret that holds a certificate.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// The certificate of a Secret; `None` when it holds none.
pub(crate) fn of_secret(secret: &Secret) -> Option<Result<Arc<CertifiedKey>, TlsError>> {
    let data = secret.data.as_ref()?;
    let (chain, key) = (data.get(CERTIFICATE)?, data.get(KEY)?);
    // A Secret is made empty and filled later by some issuers.
    if chain.0.is_empty() || key.0.is_empty() {
        return None;
    }
    Some(certified_key(&chain.0, &key.0))
}

/// What is answered for the hosts of one order.
#[derive(Debug)]
pub(crate) struct Challenge {
    /// Of the Certificate that is being had.
    namespace: String,
    http01: Vec<acme::Http01Answer>,
    tls_alpn01: Vec<(String, Arc<CertifiedKey>)>,
}

/// The answers in the Secret of an order; `None` for every other Secret.
pub(crate) fn of_order(secret: &Secret) -> Option<Result<Challenge, TlsError>> {
    let ours = secret.type_.as_deref() == Some(acme::ORDER_TYPE)
        && secret.metadata.namespace.as_deref() == Some(config::NAMESPACE);
    let answers = secret.data.as_ref().filter(|_| ours)?.get(acme::ANSWERS)?;
    let acme::Answers { namespace, http01, tls_alpn01 } = serde_json::from_slice(&answers.0).ok()?;
    let pairs = tls_alpn01
        .into_iter()
        .map(|answer| Ok((answer.host, challenge_key(answer.certificate.as_bytes(), answer.key.as_bytes())?)));
    Some(pairs.collect::<Result<_, _>>().map(|tls_alpn01| Challenge { namespace, http01, tls_alpn01 }))
}

impl Snapshot {
    /// The body that answers an HTTP-01 challenge.
    pub(crate) fn http01(&self, host: &str, token: &str) -> Option<&str> {
        let host = host.rsplit_once(':').map_or(host, |(host, _port)| host);
        let mut answers = self.answering(host).flat_map(|challenge| &challenge.http01);
        let answer = answers.find(|answer| answer.token == token && answer.host.eq_ignore_ascii_case(host))?;
        Some(&answer.key_authorization)
    }

    /// The certificate that answers a TLS-ALPN-01 challenge.
    fn tls_alpn01(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        let mut answers = self.answering(host).flat_map(|challenge| &challenge.tls_alpn01);
        answers.find(|(of, _)| of.eq_ignore_ascii_case(host)).map(|(_, certificate)| certificate.clone())
    }

    fn answering(&self, host: &str) -> impl Iterator<Item = &Arc<Challenge>> {
        let owner = self.routes.host(host).map(|routes| &*routes.ingress.namespace);
        self.challenges.values().filter(move |challenge| owner.is_none_or(|owner| *owner == challenge.namespace))
    }
}

/// Looks certificates up in the current snapshot.
pub(crate) struct Resolver {
    pub(crate) snapshots: Arc<ArcSwap<Snapshot>>,
    pub(crate) fallback: Option<Arc<dyn ResolvesServerCert>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.snapshots.load();
        if hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_TLS)) {
            return snapshot.tls_alpn01(hello.server_name()?);
        }
        let secret = hello.server_name().and_then(|name| snapshot.routes.certificate(name));
        match secret.and_then(|secret| snapshot.certificates.get(secret)) {
            Some(certificate) => Some(certificate.clone()),
            None => self.fallback.as_ref()?.resolve(hello),
        }
    }
}
