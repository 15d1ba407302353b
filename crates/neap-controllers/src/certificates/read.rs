//! What a certificate says of itself.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use neap_api::keys::neap;
use neap_logic::certificates::renewal::Span;
use neap_logic::plan::certificate::{CHAIN, Held, KEY};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The first certificate of a chain.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) life: Span,
    names: Vec<String>,
    public_key: Vec<u8>,
}

pub(super) fn leaf(chain: &[u8]) -> Option<Leaf> {
    let der = CertificateDer::pem_slice_iter(chain).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let validity = certificate.validity();
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let life = Span { from: at(validity.not_before)?, to: at(validity.not_after)? };
    if life.to <= life.from {
        return None;
    }
    Some(Leaf { life, names: names.collect(), public_key: certificate.public_key().subject_public_key.data.to_vec() })
}

/// What a Secret of ours holds; nothing when it cannot be used.
pub(crate) fn held(secret: &Secret) -> Option<Held> {
    let data = secret.data.as_ref()?;
    let leaf = leaf(&data.get(CHAIN)?.0)?;
    let key = KeyPair::from_pem(std::str::from_utf8(&data.get(KEY)?.0).ok()?).ok()?;
    if key.public_key_raw() != leaf.public_key {
        return None;
    }
    let issuer = secret.metadata.annotations.as_ref()?.get(neap::ISSUER)?.clone();
    Some(Held { life: leaf.life, names: leaf.names, issuer })
}
