//! TLS for listeners and towards upstreams: which versions and protocols; a listener's certificates come from a resolver.
//!
//! The names of rustls that a resolver needs are handed on from here, so that nobody else chooses a version or a
//! cryptography provider.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::SupportedKxGroup;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use rustls::server::{ClientHello, ResolvesServerCert};
pub use rustls::sign::CertifiedKey;

/// The protocol in whose handshake an authority looks for an answer (RFC 8737); nothing is said after it.
pub const ACME_TLS: &[u8] = b"acme-tls/1";

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
    let (chain, key) = pair(chain, key)?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
}

/// A certificate that answers who speaks [`ACME_TLS`], and its key, from PEM. What makes it an answer is an extension that
/// nobody else understands, so that whether the two fit is not looked at.
pub fn challenge_key(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, key) = pair(chain, key)?;
    let key = rustls::crypto::ring::default_provider().key_provider.load_private_key(key)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn pair(chain: &[u8], key: &[u8]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what: "certificate", source })?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "private key", source })?;
    Ok((chain, key))
}

/// For the world: TLS 1.2 and 1.3, h2 before HTTP/1.1, certificates by server name from `resolver`, which may also answer
/// who speaks [`ACME_TLS`].
pub fn server_config(resolver: Arc<dyn ResolvesServerCert>) -> Arc<ServerConfig> {
    let policy = TlsPolicy { versions: vec![&TLS13, &TLS12], ..TlsPolicy::default() };
    let mut config = Arc::unwrap_or_clone(policy.server_config(resolver));
    config.alpn_protocols.push(ACME_TLS.to_vec());
    Arc::new(config)
}

/// Which TLS is spoken, where somebody decides about it: versions, suites and groups.
#[derive(Debug, Clone)]
pub struct TlsPolicy {
    versions: Vec<&'static SupportedProtocolVersion>,
    /// Of TLS 1.2; empty is all. Those of 1.3 are not for choosing.
    suites: Vec<SupportedCipherSuite>,
    /// Empty is all.
    groups: Vec<&'static dyn SupportedKxGroup>,
}

/// Why a policy makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not a version of TLS, or none that is still spoken.
    #[error("TLS version {0:?} is not spoken: use 1.2 or 1.3")]
    Version(String),
    /// The least is above the most.
    #[error("the least TLS version is above the most")]
    NoVersion,
    /// Nothing of this list can be spoken.
    #[error("none of {0:?} is spoken here")]
    Nothing(String),
}

impl Default for TlsPolicy {
    /// TLS 1.3 only: both ends are the platform's own.
    fn default() -> Self {
        Self { versions: vec![&TLS13], suites: Vec::new(), groups: Vec::new() }
    }
}

impl TlsPolicy {
    /// From texts as people write them; empty is the default. Suites and groups go by their Go or standard names,
    /// with commas between; what the provider does not have is passed over while something is left.
    ///
    /// # Errors
    /// What cannot be spoken.
    pub fn parse(min: &str, max: &str, suites: &str, groups: &str) -> Result<Self, PolicyError> {
        let version = |text: &str, default: u8| match text {
            "" => Ok(default),
            "1.2" => Ok(2),
            "1.3" => Ok(3),
            other => Err(PolicyError::Version(other.to_owned())),
        };
        let (min, max) = (version(min, 3)?, version(max, 3)?);
        let versions: Vec<_> = [(3, &TLS13), (2, &TLS12)]
            .into_iter()
            .filter(|(minor, _)| (min..=max).contains(minor))
            .map(|(_, version)| version)
            .collect();
        if versions.is_empty() {
            return Err(PolicyError::NoVersion);
        }
        let provider = rustls::crypto::ring::default_provider();
        let suites = chosen(suites, |name| {
            provider.cipher_suites.iter().copied().find(|suite| suite.suite().as_str() == Some(name))
        })?;
        let groups = chosen(groups, |name| {
            let wanted = match name {
                "X25519" => rustls::NamedGroup::X25519,
                "CurveP256" | "P-256" => rustls::NamedGroup::secp256r1,
                "CurveP384" | "P-384" => rustls::NamedGroup::secp384r1,
                _ => return None,
            };
            provider.kx_groups.iter().copied().find(|group| group.name() == wanted)
        })?;
        Ok(Self { versions, suites, groups })
    }

    /// A listener's side: h2 before HTTP/1.1, certificates by server name from `resolver`.
    pub fn server_config(&self, resolver: Arc<dyn ResolvesServerCert>) -> Arc<ServerConfig> {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.suites.is_empty() {
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || self.suites.contains(suite));
        }
        if !self.groups.is_empty() {
            provider.kx_groups.clone_from(&self.groups);
        }
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)
            .expect("the provider keeps suites for each version")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// TLS towards upstreams of one kind: whom to trust, and the one name all of them show. Clones share what is trusted, which
/// can be replaced while connections are made.
#[derive(Debug, Clone)]
pub struct ClientTls {
    name: ServerName<'static>,
    configs: Arc<RwLock<Configs>>,
}

#[derive(Debug, Clone)]
struct Configs {
    http1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
}

impl Configs {
    fn trusting(roots: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            store.add(root.map_err(|source| TlsError::Pem { what: "certificate authority", source })?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Both ends are the platform's own.
        let http1 = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks it")
            .with_root_certificates(store)
            .with_no_client_auth();
        let mut h2 = http1.clone();
        h2.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { http1: Arc::new(http1), h2: Arc::new(h2) })
    }
}

impl ClientTls {
    /// Trusts these authorities (PEM) and expects certificates for `name`.
    ///
    /// # Errors
    /// An authority that cannot be read.
    ///
    /// # Panics
    /// When `name` is no DNS name; it is meant to be a constant.
    pub fn new(roots: &[u8], name: &'static str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name).expect("the name is a DNS name");
        Ok(Self { name, configs: Arc::new(RwLock::new(Configs::trusting(roots)?)) })
    }

    /// Trusts these authorities from now on.
    ///
    /// # Errors
    /// An authority that cannot be read; then nothing changes.
    pub fn trust(&self, roots: &[u8]) -> Result<(), TlsError> {
        let configs = Configs::trusting(roots)?;
        *self.configs.write().unwrap_or_else(PoisonError::into_inner) = configs;
        Ok(())
    }

    pub(crate) async fn connect(&self, stream: TcpStream, h2: bool) -> io::Result<TlsStream<TcpStream>> {
        let configs = self.configs.read().unwrap_or_else(PoisonError::into_inner).clone();
        let config = if h2 { configs.h2 } else { configs.http1 };
        TlsConnector::from(config).connect(self.name.clone(), stream).await
    }
}

/// The known ones of a list with commas.
fn chosen<T>(list: &str, known: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, PolicyError> {
    let mut names = list.split(',').map(str::trim).filter(|name| !name.is_empty()).peekable();
    if names.peek().is_none() {
        return Ok(Vec::new());
    }
    let known: Vec<T> = names.filter_map(known).collect();
    if known.is_empty() { Err(PolicyError::Nothing(list.to_owned())) } else { Ok(known) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_parsed() {
        let check = |texts: [&str; 4], versions: usize, suites: usize, groups: usize| {
            let [min, max, some, curves] = texts;
            let policy = TlsPolicy::parse(min, max, some, curves).expect("is a policy");
            assert_eq!((policy.versions.len(), policy.suites.len(), policy.groups.len()), (versions, suites, groups));
        };
        check(["", "", "", ""], 1, 0, 0);
        check(["1.2", "", "", ""], 2, 0, 0);
        check(["1.2", "1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, unknown", "X25519MLKEM768,P-256"], 1, 1, 1);
        let refused = |texts: [&str; 4]| {
            let [min, max, some, curves] = texts;
            TlsPolicy::parse(min, max, some, curves).expect_err("makes no sense")
        };
        assert_eq!(refused(["1.1", "", "", ""]), PolicyError::Version("1.1".into()));
        assert_eq!(refused(["1.3", "1.2", "", ""]), PolicyError::NoVersion);
        assert_eq!(refused(["", "", "", "P-521"]), PolicyError::Nothing("P-521".into()));
    }

    #[test]
    fn pairs_are_checked() {
        let make = || rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("makes a certificate");
        let (one, other) = (make(), make());
        let check = |chain: &str, key: &str| certified_key(chain.as_bytes(), key.as_bytes());
        assert_eq!(check(&one.cert.pem(), &one.signing_key.serialize_pem()).expect("fits").cert.len(), 1);
        assert!(matches!(check(&one.cert.pem(), &other.signing_key.serialize_pem()), Err(TlsError::Key(_))));
        assert!(matches!(check(&one.cert.pem(), "nonsense"), Err(TlsError::Pem { .. })));

        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
        let (answer, key) = (params.self_signed(&one.signing_key).expect("signs"), one.signing_key.serialize_pem());
        assert!(check(&answer.pem(), &key).is_err(), "nobody else may show it");
        challenge_key(answer.pem().as_bytes(), key.as_bytes()).expect("an answer");
    }
}
