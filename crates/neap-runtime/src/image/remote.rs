//! Talks to registries: where to ask, with which credentials, and what the answer means.
//!
//! Knows no store. Whatever it returns is still to be checked against its digest by the caller.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use http::{HeaderValue, Method, StatusCode, header};
use oci_client::RegistryOperation;
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciEnvelope, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use tokio::sync::OnceCell;

use super::credentials::matching;
use super::digest::{Algorithm, is_digest};
use super::error::RegistryError;
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX, OCI_INDEX, OCI_MANIFEST};
use super::reference::{host_of, is_loopback};
use super::{Config, Reference, RegistrySettings};
use crate::pod::Credentials;

/// Seconds for one question about a manifest, tokens included. Knative gives a digest 10 s; a pull may take longer.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Clients kept (each has its own connections and tokens). Beyond it all are forgotten and made again as needed.
const CLIENTS_MAX: usize = 32;
const MANIFESTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
/// What a registry says that a manifest's digest is.
const DIGEST_HEADER: &str = "docker-content-digest";
/// Characters of a registry's own explanation that are passed on.
const EXPLANATION_MAX: usize = 300;

pub(super) struct Remote {
    registries: RwLock<RegistrySettings>,
    read_timeout: Duration,
    connect_timeout: Duration,
    clients: Mutex<HashMap<ClientKey, Clients>>,
}

/// One asks for tokens and for blobs. It reads a manifest to its end, however long that is made: for manifests there is
/// another.
#[derive(Clone)]
struct Clients {
    registry: Client,
    plain: reqwest::Client,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    host: String,
    plain: bool,
    user: Option<(String, String)>,
}

/// A place where an image may be: the registry itself or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    /// In front of the repository on a mirror.
    prefix: String,
    plain: bool,
}

/// The place and the identity that a manifest was got with; its blobs come from there too.
#[derive(Clone)]
pub(super) struct Source {
    client: Client,
    reference: oci_client::Reference,
    plain: bool,
    http: reqwest::Client,
    /// Who asks, as the registry wants to hear it.
    identity: Arc<OnceCell<Option<HeaderValue>>>,
}

/// Bytes of a blob. `whole` means the registry began at the first byte whatever was asked.
pub(super) struct BlobStream {
    pub(super) whole: bool,
    pub(super) bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

fn is_plain(settings: &RegistrySettings, registry: &str) -> bool {
    is_loopback(registry) || settings.insecure.iter().any(|i| i == registry || i == host_of(registry))
}

impl Endpoint {
    fn repository(&self, reference: &Reference) -> String {
        match self.prefix.as_str() {
            "" => reference.repository.clone(),
            prefix => format!("{prefix}/{}", reference.repository),
        }
    }
}

impl Remote {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            registries: RwLock::new(RegistrySettings {
                insecure: config.insecure_registries.clone(),
                mirrors: config.mirrors.clone(),
            }),
            read_timeout: config.read_timeout,
            connect_timeout: config.connect_timeout,
            clients: Mutex::default(),
        }
    }

    /// Asks there from now on; what is under way goes on as it began.
    pub(super) fn set_registries(&self, settings: RegistrySettings) {
        *self.registries.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// The manifest or index behind a reference, its digest as the registry has it, and where it was found.
    pub(super) async fn manifest(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
    ) -> Result<(Source, Bytes, String), RegistryError> {
        self.ask(reference, credentials, async |source, auth| {
            let (bytes, digest) = source.manifest_as(auth).await?;
            Ok((source, bytes, digest))
        })
        .await
    }

    /// The digest behind a reference, by HEAD where the registry says it there.
    pub(super) async fn digest(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
    ) -> Result<String, RegistryError> {
        self.ask(reference, credentials, async |source, auth| timed(&source.url(), source.digest_as(auth)).await?).await
    }

    /// Asks each place with each fitting identity until one answers. What the registry itself said to the most
    /// specific credentials is what the user gets to read.
    async fn ask<T>(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
        question: impl AsyncFn(Source, &RegistryAuth) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut refusal = None;
        for endpoint in self.endpoints(reference) {
            refusal = None;
            // A password is for the host it was given for: a mirror gets to see only its own.
            let repository = endpoint.repository(reference);
            let mut users: Vec<Option<&Credentials>> =
                matching(&endpoint.host, &repository, credentials).into_iter().map(Some).collect();
            // Last, nobody: stale credentials must not keep a public image away.
            users.push(None);
            for user in &users {
                let auth = user
                    .map_or(RegistryAuth::Anonymous, |c| RegistryAuth::Basic(c.username.clone(), c.password.clone()));
                let source = self.source(&endpoint, reference, *user)?;
                match question(source, &auth).await {
                    Ok(answer) => return Ok(answer),
                    Err(e) => {
                        let another_user_may = is_refusal(&e);
                        refusal.get_or_insert(e);
                        if !another_user_may {
                            break;
                        }
                    }
                }
            }
        }
        Err(refusal.expect("the registry itself is always asked, by nobody if by no one else"))
    }

    /// Mirrors in their order, then the registry itself.
    fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let settings = self.registries.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mirrors = settings.mirrors.get(&reference.registry).into_iter().flatten();
        let mirror = |text: &String| {
            let (plain, rest) = match text.split_once("://") {
                Some((scheme, rest)) => (scheme == "http", rest),
                None => (false, text.as_str()),
            };
            let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/').to_owned();
            Endpoint { host: host.to_owned(), prefix, plain: plain || is_plain(&settings, host) }
        };
        let own = Endpoint {
            host: reference.registry.clone(),
            prefix: String::new(),
            plain: is_plain(&settings, &reference.registry),
        };
        mirrors.map(mirror).chain([own]).collect()
    }

    fn source(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        user: Option<&Credentials>,
    ) -> Result<Source, RegistryError> {
        let key = ClientKey {
            host: endpoint.host.clone(),
            plain: endpoint.plain,
            user: user.map(|c| (c.username.clone(), c.password.clone())),
        };
        let Clients { registry: client, plain: http } = self.client(key)?;
        let repository = endpoint.repository(reference);
        let host = endpoint.host.clone();
        let reference = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(host, repository, digest.clone()),
            (None, tag) => oci_client::Reference::with_tag(host, repository, tag.clone().unwrap_or_default()),
        };
        Ok(Source { client, reference, plain: endpoint.plain, http, identity: Arc::default() })
    }

    fn client(&self, key: ClientKey) -> Result<Clients, RegistryError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        // Another part of the program may have chosen its provider already; either will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: if key.plain { ClientProtocol::Http } else { ClientProtocol::Https },
            read_timeout: Some(self.read_timeout),
            connect_timeout: Some(self.connect_timeout),
            user_agent: "neap",
            ..ClientConfig::default()
        };
        // The client's constructor panics where the machine has no certificate authorities at all.
        let make = || {
            let builder = reqwest::Client::builder().user_agent("neap");
            let plain = builder.read_timeout(self.read_timeout).connect_timeout(self.connect_timeout).build();
            Ok(Clients { registry: Client::try_from(config)?, plain: plain.map_err(OciDistributionError::from)? })
        };
        let made = std::panic::catch_unwind(AssertUnwindSafe(make));
        let client = match made {
            Ok(Ok(client)) => client,
            Ok(Err::<_, OciDistributionError>(e)) => {
                return Err(RegistryError::Client { problem: root_cause(&e) });
            }
            Err(_) => {
                let problem = "no certificate authorities on this machine; install the package ca-certificates";
                return Err(RegistryError::Client { problem: problem.to_owned() });
            }
        };
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl Source {
    /// The child of an index.
    pub(super) async fn manifest(&self, digest: &str) -> Result<Bytes, RegistryError> {
        let child = Self { reference: self.reference.clone_with_digest(digest.to_owned()), ..self.clone() };
        // The identity was stored in the client by the first question.
        let (bytes, _) = child.manifest_as(&RegistryAuth::Anonymous).await?;
        Ok(bytes)
    }

    async fn manifest_as(&self, auth: &RegistryAuth) -> Result<(Bytes, String), RegistryError> {
        match timed(&self.url(), self.get_manifest(auth)).await? {
            Ok(found) => Ok(found),
            Err(error) => Err(self.explain_refusal(error, auth).await),
        }
    }

    async fn get_manifest(&self, auth: &RegistryAuth) -> Result<(Bytes, String), RegistryError> {
        let url = self.url();
        let failed = |e: reqwest::Error| self.error("GET", &url, e.into());
        let mut answer = self.ask_for_manifest(Method::GET, auth).await?;
        let (status, said) = (answer.status(), digest_said(&answer));
        let mut body = Vec::new();
        while let Some(some) = answer.chunk().await.map_err(failed)? {
            if (body.len() + some.len()) as u64 > MANIFEST_MAX {
                let problem = format!("its manifest is longer than {} MiB", MANIFEST_MAX >> 20);
                return Err(RegistryError::Answer { url, problem });
            }
            body.extend_from_slice(&some);
        }
        refused(status, &body, &url).map_err(|e| self.error("GET", &url, e))?;
        let want = self.reference.digest().map(str::to_owned).or(said);
        let got = want.as_deref().map_or(Algorithm::Sha256, Algorithm::of).digest(&body);
        match want {
            Some(want) if is_digest(&want) && want != got => {
                let problem = format!("the manifest's digest is {got}, and it was to be {want}");
                Err(RegistryError::Answer { url, problem })
            }
            want => Ok((body.into(), want.unwrap_or(got))),
        }
    }

    /// By HEAD, where the registry answers that as it should.
    async fn digest_as(&self, auth: &RegistryAuth) -> Result<String, RegistryError> {
        let answer = self.ask_for_manifest(Method::HEAD, auth).await?;
        let status = answer.status();
        let known =
            [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::TOO_MANY_REQUESTS];
        match digest_said(&answer).filter(|_| status == StatusCode::OK) {
            Some(digest) => Ok(digest),
            None if known.contains(&status) => {
                Err(RegistryError::Status { method: "HEAD", url: self.url(), status, explained: String::new() })
            }
            None => self.get_manifest(auth).await.map(|(_, digest)| digest),
        }
    }

    async fn ask_for_manifest(&self, method: Method, auth: &RegistryAuth) -> Result<reqwest::Response, RegistryError> {
        let url = self.url();
        let said = if method == Method::HEAD { "HEAD" } else { "GET" };
        let identity = self.identity.get_or_init(|| async {
            // Whoever gets no token asks as nobody, and reads in the answer what that is worth.
            let token = self.client.auth(&self.reference, auth, RegistryOperation::Pull).await;
            let text = match (token, auth) {
                (Ok(Some(token)), _) => Some(format!("Bearer {token}")),
                (Ok(None), RegistryAuth::Basic(user, password)) => Some(basic(user, password)),
                (Ok(None) | Err(_), _) => None,
            };
            let header = |text: String| {
                let mut value = HeaderValue::try_from(text).ok()?;
                value.set_sensitive(true);
                Some(value)
            };
            text.and_then(header)
        });
        let identity = identity.await.clone();
        let mut request = self.http.request(method, &url).header(header::ACCEPT, MANIFESTS.join(", "));
        if let Some(identity) = identity {
            request = request.header(header::AUTHORIZATION, identity);
        }
        request.send().await.map_err(|e| self.error(said, &url, e.into()))
    }

    /// The client hides why a token was not given; asking for one openly tells.
    async fn explain_refusal(&self, error: RegistryError, auth: &RegistryAuth) -> RegistryError {
        let unauthorized =
            matches!(&error, RegistryError::Status { status, .. } if *status == StatusCode::UNAUTHORIZED);
        if !unauthorized || *auth == RegistryAuth::Anonymous {
            return error;
        }
        let asked = self.client.auth(&self.reference, auth, RegistryOperation::Pull);
        match timed(&self.url(), asked).await {
            Ok(Err(OciDistributionError::AuthenticationFailure(problem))) => {
                RegistryError::Credentials { url: self.url(), problem: shorten(&problem) }
            }
            _ => error,
        }
    }

    /// A blob from `offset` on.
    pub(super) async fn blob(&self, digest: &str, offset: u64) -> Result<BlobStream, RegistryError> {
        let url = self.blob_url(digest);
        let answer = self.client.pull_blob_stream_partial(&self.reference, &digest, offset, None);
        match timed(&url, answer).await?.map_err(|e| self.error("GET", &url, e))? {
            BlobResponse::Full(stream) => Ok(BlobStream { whole: true, bytes: stream.stream }),
            BlobResponse::Partial(stream) => Ok(BlobStream { whole: false, bytes: stream.stream }),
        }
    }

    fn base(&self) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}", self.reference.resolve_registry(), self.reference.repository())
    }

    fn url(&self) -> String {
        let identifier = self.reference.digest().or(self.reference.tag()).unwrap_or_default();
        format!("{}/manifests/{identifier}", self.base())
    }

    pub(super) fn blob_url(&self, digest: &str) -> String {
        format!("{}/blobs/{digest}", self.base())
    }

    fn error(&self, method: &'static str, url: &str, error: OciDistributionError) -> RegistryError {
        let url = url.to_owned();
        // HEAD has no body, whatever the client found out by asking again with GET.
        let explained = |text: String| if method == "HEAD" { String::new() } else { shorten(&text) };
        match error {
            OciDistributionError::UnauthorizedError { .. } => {
                let explained = explained("authentication required".to_owned());
                RegistryError::Status { method, url, status: StatusCode::UNAUTHORIZED, explained }
            }
            OciDistributionError::AuthenticationFailure(problem) => {
                RegistryError::Credentials { url, problem: shorten(&problem) }
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let first = envelope.errors.into_iter().next();
                let status = first.as_ref().map_or(StatusCode::BAD_REQUEST, |e| status_of(&e.code));
                let text = first.map_or_else(String::new, |e| {
                    let code = serde_json::to_value(&e.code).ok();
                    let code = code.as_ref().and_then(|c| c.as_str()).unwrap_or("UNKNOWN").to_owned();
                    if e.message.is_empty() { code } else { format!("{code}: {}", e.message) }
                });
                RegistryError::Status { method, url, status, explained: explained(text) }
            }
            OciDistributionError::ServerError { code, message, .. } => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
                let text = if message.trim().is_empty() { "no explanation".to_owned() } else { message };
                RegistryError::Status { method, url, status, explained: explained(text) }
            }
            OciDistributionError::ImageManifestNotFoundError(text) => {
                RegistryError::Status { method, url, status: StatusCode::NOT_FOUND, explained: explained(text) }
            }
            error @ OciDistributionError::RequestError(_) => {
                RegistryError::Unreachable { method, url, problem: root_cause(&error) }
            }
            other => RegistryError::Answer { url, problem: shorten(&root_cause(&other)) },
        }
    }
}

fn digest_said(answer: &reqwest::Response) -> Option<String> {
    let text = answer.headers().get(DIGEST_HEADER)?.to_str().ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// What an answer that is no manifest says.
fn refused(status: StatusCode, body: &[u8], url: &str) -> Result<(), OciDistributionError> {
    let url = url.to_owned();
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED => Err(OciDistributionError::UnauthorizedError { url }),
        _ => match serde_json::from_slice::<OciEnvelope>(body) {
            Ok(envelope) if status.is_client_error() => Err(OciDistributionError::RegistryError { envelope, url }),
            _ => {
                let message = String::from_utf8_lossy(body).into_owned();
                Err(OciDistributionError::ServerError { code: status.as_u16(), url, message })
            }
        },
    }
}

async fn timed<T>(url: &str, question: impl Future<Output = T>) -> Result<T, RegistryError> {
    tokio::time::timeout(MANIFEST_TIMEOUT, question)
        .await
        .map_err(|_| RegistryError::Slow { url: url.to_owned(), seconds: MANIFEST_TIMEOUT.as_secs() })
}

fn is_refusal(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => *status == StatusCode::UNAUTHORIZED || *status == StatusCode::FORBIDDEN,
        RegistryError::Credentials { .. } => true,
        _ => false,
    }
}

/// The distribution specification's codes with the status they travel with.
fn status_of(code: &OciErrorCode) -> StatusCode {
    use OciErrorCode as C;
    match code {
        C::BlobUnknown
        | C::BlobUploadUnknown
        | C::ManifestUnknown
        | C::ManifestBlobUnknown
        | C::NameUnknown
        | C::NotFound => StatusCode::NOT_FOUND,
        C::Unauthorized => StatusCode::UNAUTHORIZED,
        C::Denied => StatusCode::FORBIDDEN,
        C::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
        C::Toomanyrequests => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The innermost cause: `connection refused` says more than five layers of "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(EXPLANATION_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, want: &[(&str, &str, bool)]) {
        let remote = Remote::new(&Config::default());
        remote.set_registries(RegistrySettings {
            insecure: vec!["plain.example".into(), "port.example:81".into()],
            mirrors: std::collections::BTreeMap::from([(
                "docker.io".to_owned(),
                vec!["mirror.example/hub".to_owned(), "http://other:8080".to_owned()],
            )]),
        });
        let reference = Reference::parse(&format!("{registry}/a/b")).unwrap();
        let got = remote.endpoints(&reference);
        let got: Vec<_> = got.iter().map(|e| (e.host.as_str(), e.prefix.as_str(), e.plain)).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn mirrors_come_first_and_loopback_is_plain() {
        check("docker.io", &[("mirror.example", "hub", false), ("other:8080", "", true), ("docker.io", "", false)]);
        check("localhost:5000", &[("localhost:5000", "", true)]);
        check("127.0.0.1:1", &[("127.0.0.1:1", "", true)]);
        check("plain.example:99", &[("plain.example:99", "", true)]);
        check("port.example:81", &[("port.example:81", "", true)]);
        check("port.example:82", &[("port.example:82", "", false)]);
        check("ghcr.io", &[("ghcr.io", "", false)]);
    }
}
