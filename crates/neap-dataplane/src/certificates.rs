//! Certificates from Secrets, chosen by the name a client asks for.

use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use neap_proxy::tls::{CertifiedKey, ClientHello, ResolvesServerCert, TlsError, certified_key};

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
        let secret = hello.server_name().and_then(|name| snapshot.routes.certificate(name));
        match secret.and_then(|secret| snapshot.certificates.get(secret)) {
            Some(certificate) => Some(certificate.clone()),
            None => self.fallback.as_ref()?.resolve(hello),
        }
    }
}
