//! TLS for listeners: which versions and protocols; the certificates come from a resolver.
//!
//! The names of rustls that a resolver needs are handed on from here, so that nobody else chooses a version or a
//! cryptography provider.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use rustls::server::{ClientHello, ResolvesServerCert};
pub use rustls::sign::CertifiedKey;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text is no PEM, or holds something else.
    #[error("cannot read the {what} as PEM")]
    Pem {
        /// Certificate or private key.
        what: &'static str,
        /// What the parser said.
        #[source]
        source: pem::Error,
    },
    /// Key and certificate do not fit, or are of a kind that is not supported.
    #[error("the private key cannot be used with the certificate")]
    Key(#[from] rustls::Error),
}

/// A certificate chain and its key, from PEM.
pub fn certified_key(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what: "certificate", source })?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "private key", source })?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
}

/// TLS 1.2 and 1.3, h2 before HTTP/1.1, certificates by server name from `resolver`.
pub fn server_config(resolver: Arc<dyn ResolvesServerCert>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider speaks the default versions")
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_checked() {
        let make = || rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("makes a certificate");
        let (one, other) = (make(), make());
        let check = |chain: &str, key: &str| certified_key(chain.as_bytes(), key.as_bytes());
        assert_eq!(check(&one.cert.pem(), &one.signing_key.serialize_pem()).expect("fits").cert.len(), 1);
        assert!(matches!(check(&one.cert.pem(), &other.signing_key.serialize_pem()), Err(TlsError::Key(_))));
        assert!(matches!(check(&one.cert.pem(), "nonsense"), Err(TlsError::Pem { .. })));
    }
}
