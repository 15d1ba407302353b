//! The platform's own certificate authority: made once, kept in a Secret, and shown in a ConfigMap for those who want to
//! trust it. What it issues is trusted by nobody else.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use neap_api::keys::{config, neap, networking};
use neap_logic::certificates::renewal::Span;
use neap_logic::names::hash::sha256_hex;
use neap_logic::plan::certificate::{AUTHORITY, Issued, LOCAL};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::read;

/// Life of the authority: people put it into their browsers by hand.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365 * 10);
/// It is replaced when so much of its life is left, which is more than anything it issued has left then.
const AUTHORITY_LEFT: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Life of what it issues, as authorities of the world keep it.
const ISSUED_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);
/// Good from a while ago, so that a client whose clock is a little behind is not turned away.
const BEHIND: SignedDuration = SignedDuration::from_hours(24);
/// The key of the authority's key in its Secret.
const AUTHORITY_KEY: &str = "ca.key";
const MANAGER: &str = "neap-certificates";
/// The longest common name (RFC 5280); longer names stand among the alternative names only.
const COMMON_NAME_LIMIT: usize = 64;

/// A certificate authority of our own.
pub struct Authority {
    pem: String,
    mark: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Why there is no local authority, or no certificate of it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API did not give or take it.
    #[error("the local authority in Secret knative-serving/neap-ca cannot be read or written")]
    Api(#[from] kube::Error),
    /// The Secret holds something else.
    #[error("the Secret knative-serving/neap-ca holds no usable authority: delete it to have a new one made")]
    Unusable(#[source] rcgen::Error),
    /// A part of the Secret is missing.
    #[error("the Secret knative-serving/neap-ca lacks {0}: delete it to have a new one made")]
    Missing(&'static str),
    /// It cannot issue this.
    #[error("the local authority cannot issue a certificate for {name}")]
    Issue {
        /// The first name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

impl Authority {
    /// The authority of the platform behind `client`, made when there is none or when its end is near.
    ///
    /// # Errors
    /// The API refuses, or what is kept there cannot be used.
    pub async fn ensure(client: &Client, now: Timestamp) -> Result<Self, AuthorityError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
        let held = secrets.get_opt(neap::LOCAL_AUTHORITY).await?;
        let lasts = |secret: &Secret| {
            let life = text(secret, AUTHORITY).ok().and_then(|pem| read::leaf(pem.as_bytes())).map(|leaf| leaf.life);
            // What cannot be read is not replaced: somebody has put it there.
            life.is_none_or(|life| life.to.duration_since(now) > AUTHORITY_LEFT)
        };
        let this = match held {
            Some(secret) if lasts(&secret) => Self::of_secret(&secret)?,
            Some(secret) => {
                let mut fresh = create(now)?;
                fresh.metadata.resource_version = secret.metadata.resource_version;
                Self::of_secret(&secrets.replace(neap::LOCAL_AUTHORITY, &PostParams::default(), &fresh).await?)?
            }
            None => match secrets.create(&PostParams::default(), &create(now)?).await {
                Ok(secret) => Self::of_secret(&secret)?,
                // Another process was quicker.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    Self::of_secret(&secrets.get(neap::LOCAL_AUTHORITY).await?)?
                }
                Err(error) => return Err(error.into()),
            },
        };
        this.show(client).await?;
        Ok(this)
    }

    /// The authority, where there is one.
    pub(super) async fn existing(client: &Client) -> Result<Option<Self>, AuthorityError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
        secrets.get_opt(neap::LOCAL_AUTHORITY).await?.map(|secret| Self::of_secret(&secret)).transpose()
    }

    /// Puts what to trust where everybody may read it.
    async fn show(&self, client: &Client) -> Result<(), AuthorityError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), config::NAMESPACE);
        let data = BTreeMap::from([(AUTHORITY.to_owned(), self.pem.clone())]);
        if maps.get_opt(neap::LOCAL_AUTHORITY).await?.is_some_and(|map| map.data.as_ref() == Some(&data)) {
            return Ok(());
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(neap::LOCAL_AUTHORITY.into()),
                namespace: Some(config::NAMESPACE.into()),
                labels: Some(BTreeMap::from([(networking::TRUST_BUNDLE.to_owned(), "true".to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        };
        maps.patch(neap::LOCAL_AUTHORITY, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await?;
        Ok(())
    }

    fn of_secret(secret: &Secret) -> Result<Self, AuthorityError> {
        let pem = text(secret, AUTHORITY)?;
        let key = KeyPair::from_pem(&text(secret, AUTHORITY_KEY)?).map_err(AuthorityError::Unusable)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(AuthorityError::Unusable)?;
        let mark = format!("{LOCAL}{}", &sha256_hex(pem.as_bytes())[..16]);
        Ok(Self { pem, mark, issuer })
    }

    /// What to trust, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What marks its certificates.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// A certificate for a server under these names and addresses, with a key of its own.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn issue(&self, names: &[String], now: Timestamp) -> Result<Issued, AuthorityError> {
        let name = names.first().map_or("localhost", String::as_str);
        let fail = |source| AuthorityError::Issue { name: name.to_owned(), source };
        let life = life(now, ISSUED_LIFE);
        let mut params = CertificateParams::new(names.to_vec()).map_err(fail)?;
        let mut subject = DistinguishedName::new();
        if name.len() <= COMMON_NAME_LIMIT {
            subject.push(DnType::CommonName, name);
        }
        params.distinguished_name = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, life);
        let key = KeyPair::generate().map_err(fail)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fail)?;
        Ok(Issued {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            authority: Some(self.pem.clone()),
            life,
            issuer: self.mark.clone(),
        })
    }
}

fn create(now: Timestamp) -> Result<Secret, AuthorityError> {
    let fail = |source| AuthorityError::Issue { name: neap::LOCAL_AUTHORITY.into(), source };
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    // Several of them stand side by side in a browser's list.
    subject.push(DnType::OrganizationName, "Neap");
    subject.push(DnType::CommonName, format!("Neap local authority of {}", now.strftime("%Y-%m-%d %H:%M:%S")));
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, life(now, AUTHORITY_LIFE));
    let key = KeyPair::generate().map_err(fail)?;
    let pem = params.self_signed(&key).map_err(fail)?.pem();
    let bytes = |text: String| ByteString(text.into_bytes());
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(neap::LOCAL_AUTHORITY.into()),
            namespace: Some(config::NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        data: Some([(AUTHORITY.to_owned(), bytes(pem)), (AUTHORITY_KEY.to_owned(), bytes(key.serialize_pem()))].into()),
        ..Secret::default()
    })
}

fn text(secret: &Secret, key: &'static str) -> Result<String, AuthorityError> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or(AuthorityError::Missing(key))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| AuthorityError::Missing(key))
}

/// Whole seconds, as certificates have them.
fn life(now: Timestamp, length: SignedDuration) -> Span {
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let after = |delay: SignedDuration| whole.saturating_add(delay).unwrap_or(whole);
    Span { from: after(-BEHIND), to: after(length) }
}

fn set_life(params: &mut CertificateParams, life: Span) {
    let epoch = date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| epoch + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
    params.not_before = at(life.from);
    params.not_after = at(life.to);
}
