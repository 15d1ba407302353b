//! The local certificate authority: made once per data directory, used at every start to issue what the server and its
//! first user need. Reads and writes files only here, private ones with mode 0600 and never half.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Life of the authority. It outlives any machine it was made on; replacing it would cut off every kubeconfig.
const AUTHORITY_YEARS: i16 = 30;
/// Life of what it issues. Everything is issued anew at each start; copies of a kubeconfig live this long.
const ISSUED_YEARS: i16 = 5;
const AUTHORITY_NAME: &str = "neap-ca";

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write {}; check that the directory is writable", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is no usable certificate authority; move ca.crt and ca.key away to have a new one made", .path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot issue a certificate for {name}")]
    Issue {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("the TLS configuration was refused: {why}")]
    Tls { why: String },
    #[error(transparent)]
    Signer(#[from] crate::auth::token::SignerError),
}

pub type Result<T> = std::result::Result<T, PkiError>;

pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    now: Timestamp,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// The authority in `dir` (`ca.crt`, `ca.key`), made when there is none.
    pub fn load_or_create(dir: &Path, now: Timestamp) -> Result<Self> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !key_path.exists() {
            let (pem, key) = create(now).map_err(|source| PkiError::Authority { path: key_path.clone(), source })?;
            std::fs::create_dir_all(dir).map_err(|source| PkiError::Write { path: dir.to_owned(), source })?;
            // The certificate first: a key without one would be taken for a damaged authority.
            write(&cert_path, pem.as_bytes(), 0o644)?;
            write(&key_path, key.as_bytes(), 0o600)?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.to_owned(), source })
        };
        let (pem, key) = (read(&cert_path)?, read(&key_path)?);
        Self::from_pem(pem, &key, now).map_err(|source| PkiError::Authority { path: key_path, source })
    }

    /// An authority that is kept elsewhere than in files.
    pub fn from_pem(pem: String, key: &str, now: Timestamp) -> std::result::Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(key)?)?;
        Ok(Self { pem, issuer, now })
    }

    /// A new authority, and its key in PEM, for those who keep it elsewhere than in files.
    pub fn create(now: Timestamp) -> Result<(Self, String)> {
        let fail = |source| PkiError::Issue { name: AUTHORITY_NAME.to_owned(), source };
        let (pem, key) = create(now).map_err(fail)?;
        Ok((Self::from_pem(pem, &key, now).map_err(fail)?, key))
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// For a server that is reached under these names and addresses.
    pub fn serving(&self, names: &[String]) -> Result<Identity> {
        let name = names.first().map_or("localhost", String::as_str);
        let params = CertificateParams::new(names.to_vec())
            .map_err(|source| PkiError::Issue { name: name.to_owned(), source })?;
        self.issue(params, name, &[], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a user: the common name is the user's name, the organisations are the groups.
    pub fn client(&self, name: &str, groups: &[&str]) -> Result<Identity> {
        self.issue(CertificateParams::default(), name, groups, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        name: &str,
        groups: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let fail = |source| PkiError::Issue { name: name.to_owned(), source };
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        // rcgen keeps one value per type; several groups travel as one multi-valued list of organisations.
        if let Some(group) = groups.first() {
            subject.push(DnType::OrganizationName, *group);
        }
        for (at, group) in groups.iter().enumerate().skip(1) {
            tracing::warn!(at, group, "a client certificate carries one group; this one is left out");
        }
        params.distinguished_name = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        live(&mut params, self.now, ISSUED_YEARS);
        let key = KeyPair::generate().map_err(fail)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fail)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn create(now: Timestamp) -> std::result::Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, AUTHORITY_NAME);
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    live(&mut params, now, AUTHORITY_YEARS);
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// From yesterday, so that a client whose clock is a little behind is not turned away.
fn live(params: &mut CertificateParams, now: Timestamp, years: i16) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let from = today.yesterday().unwrap_or(today);
    params.not_before = date_time_ymd(from.year().into(), from.month().unsigned_abs(), from.day().unsigned_abs());
    // The 28th exists in every month of every year.
    let day = today.day().clamp(1, 28).unsigned_abs();
    params.not_after = date_time_ymd((today.year() + years).into(), today.month().unsigned_abs(), day);
}

/// TLS for the listener: its own certificate, and users by certificates of the same authority, if they have one.
pub fn server_config(authority: &Authority, serving: &Identity) -> Result<Arc<rustls::ServerConfig>> {
    let fail = |why: String| PkiError::Tls { why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority.pem())? {
        roots.add(certificate).map_err(|e| fail(e.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| fail(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(serving.key.as_bytes()).map_err(|e| fail(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&serving.certificate)?, key)
        .map_err(|e| fail(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| PkiError::Tls { why: e.to_string() })
}

/// The key that signs service-account tokens (`sa.key`, PKCS#8), made when there is none.
pub fn signing_key(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("sa.key");
    if !path.exists() {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::Write { path: dir.to_owned(), source })?;
        write(&path, &crate::auth::token::Signer::generate()?, 0o600)?;
    }
    std::fs::read(&path).map_err(|source| PkiError::Read { path, source })
}

/// A kubeconfig with one cluster, one user and one context, all called `neap`.
pub fn kubeconfig(url: &str, authority: &Authority, user: &Identity) -> String {
    use base64::Engine;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "neap", "cluster": {"server": url,
            "certificate-authority-data": base64(authority.pem())}}],
        "users": [{"name": "neap", "user": {"client-certificate-data": base64(&user.certificate),
            "client-key-data": base64(&user.key)}}],
        "contexts": [{"name": "neap", "context": {"cluster": "neap", "user": "neap", "namespace": "default"}}],
        "current-context": "neap",
    });
    serde_yaml::to_string(&value).expect("strings and lists are YAML")
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o600)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let fail = |source| PkiError::Write { path: path.to_owned(), source };
    let aside = path.with_extension("new");
    // Left over from a crash; its mode may be another.
    let _ = std::fs::remove_file(&aside);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&aside, path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_is_made_once_and_its_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-02-28T12:00:00Z".parse().unwrap();
        let first = Authority::load_or_create(dir.path(), now).unwrap();
        let second = Authority::load_or_create(dir.path(), now).unwrap();
        assert_eq!(first.pem(), second.pem());
        signing_key(dir.path()).unwrap();
        for file in ["ca.key", "sa.key"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let serving = second.serving(&["localhost".into(), "127.0.0.1".into()]).unwrap();
        server_config(&second, &serving).unwrap();
        let client = second.client("me", &["system:masters"]).unwrap();
        let der = CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap();
        let user = crate::auth::identity::of_certificate(&der).unwrap();
        assert_eq!(user.username.as_deref(), Some("me"));
        assert!(user.groups.unwrap().contains(&"system:masters".to_owned()));
    }
}
