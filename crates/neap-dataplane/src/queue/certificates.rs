//! The certificate mounted into the pod when traffic inside the cluster is encrypted (E2.1). It is renewed in place, so
//! the files are read again every now and then; a pair that cannot be used leaves the one before in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use neap_proxy::tls::{CertifiedKey, ClientHello, ResolvesServerCert, certified_key};

/// Sweeps, one a second, between two looks at the files.
pub(super) const RELOAD_SWEEPS: u32 = 60;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

#[derive(Debug)]
pub(super) struct Mounted {
    directory: PathBuf,
    current: ArcSwap<Pair>,
}

#[derive(Debug)]
struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
    certified: Arc<CertifiedKey>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The two do not make a certificate.
    #[error("the certificate in {directory} cannot be used")]
    Unusable {
        /// Where it lies.
        directory: PathBuf,
        /// Why.
        #[source]
        source: neap_proxy::tls::TlsError,
    },
}

impl Mounted {
    /// `None` when nothing is mounted.
    pub(super) fn open(directory: &Path) -> Result<Option<Arc<Self>>, CertificateError> {
        if !directory.join(CERTIFICATE).exists() || !directory.join(KEY).exists() {
            return Ok(None);
        }
        let current = ArcSwap::from_pointee(Pair::read(directory)?);
        Ok(Some(Arc::new(Self { directory: directory.to_owned(), current })))
    }

    /// Looks at the files again.
    pub(super) fn reload(&self) {
        let current = self.current.load();
        match Pair::read_if_changed(&self.directory, &current) {
            Ok(None) => {}
            Ok(Some(pair)) => {
                self.current.store(Arc::new(pair));
                tracing::info!("the certificate has changed and was read again");
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the certificate used before stays in use");
            }
        }
    }
}

#[cfg(test)]
impl Mounted {
    /// The certificate shown now.
    pub(super) fn leaf(&self) -> Vec<u8> {
        self.current.load().certified.cert[0].to_vec()
    }
}

impl ResolvesServerCert for Mounted {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified.clone())
    }
}

impl Pair {
    fn read(directory: &Path) -> Result<Self, CertificateError> {
        let (chain, key) = files(directory)?;
        Self::of(directory, chain, key)
    }

    fn read_if_changed(directory: &Path, known: &Self) -> Result<Option<Self>, CertificateError> {
        let (chain, key) = files(directory)?;
        if chain == known.chain && key == known.key {
            return Ok(None);
        }
        Self::of(directory, chain, key).map(Some)
    }

    fn of(directory: &Path, chain: Vec<u8>, key: Vec<u8>) -> Result<Self, CertificateError> {
        let unusable = |source| CertificateError::Unusable { directory: directory.to_owned(), source };
        let certified = certified_key(&chain, &key).map_err(unusable)?;
        Ok(Self { chain, key, certified })
    }
}

fn files(directory: &Path) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
    let read = |name| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| CertificateError::Read { path, source })
    };
    Ok((read(CERTIFICATE)?, read(KEY)?))
}
