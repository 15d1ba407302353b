//! The way to an authority outside: HTTPS with bounded waits, and the account we have there, kept in a Secret.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountCredentials, BodyWrapper, BytesResponse, Error as AcmeError, ExternalAccountKey, HttpClient,
    NewAccount,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use neap_api::acme::ACCOUNT_TYPE;
use neap_api::keys::{config, neap};
use neap_logic::certificates::Fault;
use neap_logic::config::Acme;
use neap_logic::names::hash::sha256_hex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::time::timeout;

/// For one answer of an authority. It may have looked at a name before it answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// To come to speak with it.
const CONNECT: Duration = Duration::from_secs(15);
/// Keys of the Secrets.
const CREDENTIALS: &str = "credentials";
const HMAC_KEY: &str = "hmac-key";

/// `host` or `host:port` of a directory: what people know an authority by.
pub(super) fn authority(directory: &str) -> &str {
    let rest = directory.split_once("://").map_or(directory, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// A fault of what an ACME client says.
pub(super) fn fault(directory: &str, host: Option<&str>, error: &AcmeError) -> Fault {
    let authority = authority(directory);
    match error {
        AcmeError::Api(problem) => {
            // A problem of one name of several says more than that of the whole.
            let sub = problem.subproblems.first();
            let detail = sub.and_then(|sub| sub.detail.as_deref()).or(problem.detail.as_deref());
            let kind = sub.and_then(|sub| sub.r#type.as_deref()).or(problem.r#type.as_deref());
            Fault::of_problem(authority, host, kind, detail)
        }
        other => Fault::unreachable(authority, &neap_logic::plan::meta::chain(other)),
    }
}

/// The account at the authority, made when there is none.
pub(super) async fn account(client: &Client, acme: &Acme) -> Result<Account, Fault> {
    let place = authority(&acme.directory);
    let failed = |error: &AcmeError| fault(&acme.directory, None, error);
    let ours = |what: &str, why: String| Fault::unreachable(place, &format!("{what}: {why}"));
    let kept = |error: kube::Error| ours("the Secret of its account cannot be read or written", error.to_string());
    let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
    let name = secret_name(&acme.directory);
    let http = Https::new(&acme.root_ca).map_err(|why| ours("acme.root-ca in config-neap", why))?;
    let builder = Account::builder_with_http(Box::new(http));
    let contact = acme.email.as_ref().map(|email| format!("mailto:{email}"));
    let contacts: Vec<&str> = contact.as_deref().into_iter().collect();

    if let Some(secret) = secrets.get_opt(&name).await.map_err(kept)? {
        let data = secret.data.as_ref().and_then(|data| data.get(CREDENTIALS));
        let credentials: Option<AccountCredentials> = data.and_then(|data| serde_json::from_slice(&data.0).ok());
        let Some(credentials) = credentials else {
            return Err(ours("its account", format!("the Secret knative-serving/{name} holds none; delete it")));
        };
        let account = builder.from_credentials(credentials).await.map_err(|e| failed(&e))?;
        let told = secret.metadata.annotations.as_ref().and_then(|a| a.get(neap::ACME_EMAIL));
        if told != acme.email.as_ref() {
            account.update_contacts(&contacts).await.map_err(|e| failed(&e))?;
            let patch = json!({"metadata": {"annotations": {neap::ACME_EMAIL: acme.email}}});
            secrets.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(kept)?;
        }
        return Ok(account);
    }
    let external = match &acme.external_account {
        None => None,
        Some((id, secret)) => {
            Some(external_account(&secrets, id, secret).await.map_err(|why| ours("acme.eab-secret", why))?)
        }
    };
    let new = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) =
        builder.create(&new, acme.directory.clone(), external.as_ref()).await.map_err(|e| failed(&e))?;
    let credentials = serde_json::to_vec(&credentials).expect("plain values serialise");
    let mut annotations = BTreeMap::from([(neap::ACME_DIRECTORY.to_owned(), acme.directory.clone())]);
    annotations.extend(acme.email.iter().map(|email| (neap::ACME_EMAIL.to_owned(), email.clone())));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(config::NAMESPACE.into()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        data: Some([(CREDENTIALS.to_owned(), ByteString(credentials))].into()),
        type_: Some(ACCOUNT_TYPE.into()),
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &secret).await.map_err(kept)?;
    tracing::info!(authority = place, account = account.id(), "an account was made");
    Ok(account)
}

/// The authority does not know the account any more.
pub(super) async fn forget(client: &Client, directory: &str) -> kube::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
    match secrets.delete(&secret_name(directory), &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}

/// One account for each directory.
fn secret_name(directory: &str) -> String {
    format!("acme-account-{}", &sha256_hex(directory.as_bytes())[..10])
}

async fn external_account(secrets: &Api<Secret>, id: &str, name: &str) -> Result<ExternalAccountKey, String> {
    let secret = secrets.get(name).await.map_err(|e| e.to_string())?;
    let key = secret.data.as_ref().and_then(|data| data.get(HMAC_KEY));
    let key = key.ok_or_else(|| format!("the Secret knative-serving/{name} has no {HMAC_KEY}"))?;
    // Authorities show it in the form that URLs take, with or without padding.
    let text = String::from_utf8_lossy(&key.0);
    let text = text.trim();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).or_else(|_| BASE64_URL_SAFE.decode(text));
    let bytes = bytes.map_err(|e| format!("{HMAC_KEY} in the Secret knative-serving/{name} is no base64url: {e}"))?;
    Ok(ExternalAccountKey::new(id.to_owned(), &bytes))
}

/// HTTPS to authorities, which nobody else's certificates are enough for.
struct Https(HyperClient<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl Https {
    /// Trusts what the system trusts, and `roots`, PEM.
    fn new(roots: &str) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(native.certs);
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            let root = root.map_err(|e| e.to_string())?;
            store.add(root).map_err(|e| e.to_string())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider speaks them")
            .with_root_certificates(store)
            .with_no_client_auth();
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_connect_timeout(Some(CONNECT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(plain);
        Ok(Self(HyperClient::builder(TokioExecutor::new()).build(connector)))
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, AcmeError>> + Send>> {
        let answer = self.0.request(request);
        Box::pin(async move {
            match timeout(PATIENCE, answer).await {
                Ok(Ok(response)) => Ok(BytesResponse::from(response)),
                Ok(Err(error)) => Err(AcmeError::Other(Box::new(error))),
                Err(_) => Err(AcmeError::Timeout(None)),
            }
        })
    }
}
