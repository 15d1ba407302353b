//! The way to an authority outside: HTTPS with bounded waits, and the account we have there, kept in a Secret.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
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
use tokio::time::{sleep, timeout};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// For one answer of an authority, to its last byte. It may have looked at a name before it answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one. A chain with its authorities is a few thousand.
const ANSWER: usize = 1 << 20;
/// To come to speak with it.
const CONNECT: Duration = Duration::from_secs(15);
/// Keys of the Secrets.
const CREDENTIALS: &str = "credentials";
/// How often an account that was just made is tried to be written down, and how long after each failure again.
const WRITES: (u32, Duration) = (5, Duration::from_secs(1));
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
///
/// Its Secret is made first, without an account in it: whoever may not write it makes no account that is then lost, of
/// which an authority takes a few an hour, or one in all where it is bound to an external one.
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

    let secret = place_for(&secrets, &name, &acme.directory).await.map_err(kept)?;
    if let Some(data) = secret.data.as_ref().and_then(|data| data.get(CREDENTIALS)) {
        let credentials: Option<AccountCredentials> = serde_json::from_slice(&data.0).ok();
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
    let credentials = ByteString(serde_json::to_vec(&credentials).expect("plain values serialise"));
    let patch = json!({
        "metadata": {"annotations": {neap::ACME_EMAIL: acme.email}},
        "data": {CREDENTIALS: credentials},
    });
    write_down(&secrets, &name, &patch).await.map_err(kept)?;
    tracing::info!(authority = place, account = account.id(), "an account was made");
    Ok(account)
}

/// The Secret of an account, with or without one in it.
async fn place_for(secrets: &Api<Secret>, name: &str, directory: &str) -> kube::Result<Secret> {
    if let Some(secret) = secrets.get_opt(name).await? {
        return Ok(secret);
    }
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(config::NAMESPACE.into()),
            annotations: Some(BTreeMap::from([(neap::ACME_DIRECTORY.to_owned(), directory.to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some(ACCOUNT_TYPE.into()),
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &secret).await
}

/// Tries for a while: what is to be written is nowhere else.
async fn write_down(secrets: &Api<Secret>, name: &str, patch: &serde_json::Value) -> kube::Result<()> {
    let (mut left, pause) = WRITES;
    loop {
        left -= 1;
        match secrets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(_) if left > 0 => sleep(pause).await,
            result => return result.map(drop),
        }
    }
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
        Box::pin(whole(self.0.request(request)))
    }
}

/// An answer with all of its body, which the caller would wait for without end: whoever stops in the middle of one is as
/// good as silent.
async fn whole<B, E>(answer: impl Future<Output = Result<Response<B>, E>>) -> Result<BytesResponse, AcmeError>
where
    B: Body,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    let read = async {
        let (head, body) = answer.await.map_err(Into::into)?.into_parts();
        let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    };
    match timeout(PATIENCE, read).await {
        Ok(Ok(response)) => Ok(BytesResponse::from(response)),
        Ok(Err(error)) => Err(AcmeError::Other(error)),
        Err(_) => Err(AcmeError::Timeout(None)),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_place_of_an_account_comes_before_the_account() {
        let api = neap_testkit::Api::start().await;
        let acme = Acme::at("https://127.0.0.1:1/dir");
        for _ in 0..2 {
            account(&api.client(), &acme).await.map(drop).expect_err("nobody is there");
        }
        let secrets: Api<Secret> = Api::namespaced(api.client(), config::NAMESPACE);
        let secret = secrets.get(&secret_name(&acme.directory)).await.expect("is made");
        assert!(secret.data.is_none_or(|data| data.is_empty()));
        let patch = json!({"data": {CREDENTIALS: ByteString(b"torn".to_vec())}});
        write_down(&secrets, &secret_name(&acme.directory), &patch).await.expect("is written");
        let fault = account(&api.client(), &acme).await.map(drop).expect_err("it cannot be read");
        assert!(fault.message.contains("delete it"), "{}", fault.message);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_to_its_end_and_no_longer() {
        let check = async |parts: Vec<Bytes>, ends: bool, want: Result<&[u8], &str>| {
            let frames = stream::iter(parts).map(|part| Ok::<_, Infallible>(Frame::data(part)));
            let body = match ends {
                true => StreamBody::new(frames.boxed()),
                false => StreamBody::new(frames.chain(stream::pending()).boxed()),
            };
            let got = match whole(async { Ok::<_, Infallible>(Response::new(body)) }).await {
                Ok(mut response) => response.body.into_bytes().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match (&got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                _ => panic!("{got:?}"),
            }
        };
        check(vec!["an ".into(), "answer".into()], true, Ok(b"an answer")).await;
        check(vec!["an ".into()], false, Err("timed out")).await;
        check(vec![vec![0; ANSWER].into(), "more".into()], true, Err("limit")).await;
    }
}
