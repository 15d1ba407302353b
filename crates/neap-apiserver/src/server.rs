//! The API server as a value: what it is made of, how a request finds its verb, and the tower services around it.
//!
//! All decisions about one object happen between two reads of the store without an await, on the calling task; only
//! waiting for the disk, for a watch event or for a streaming subresource is asynchronous.

use crate::audit::{self, Audit};
use crate::auth;
use crate::auth::token::Signer;
use crate::codec::{self, Body, BoxError, Wanted};
use crate::gate::Gate;
use crate::kind::{Kind, Semantics};
use crate::registry::{Kinds, Registry, Served};
use crate::request::{self, Query, Resource, Target, Verb};
use crate::status::{ApiError, Result};
use crate::storage::Managed;
use crate::{crd, discovery, verbs};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use neap_store::{Committed, Durable, Store};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the server is told from outside; it reads no clock, no environment and no randomness of its own.
#[derive(Clone)]
pub struct Config {
    pub now: Now,
    /// Seeds uids and generated names.
    pub seed: u64,
    /// As `/version` reports it.
    pub git_version: String,
    /// Bearer tokens that are users.
    pub tokens: HashMap<String, UserInfo>,
    /// Signs and checks service-account tokens; without it the `token` subresource is refused.
    pub signer: Option<Arc<Signer>>,
    /// Where the server is reached, as `/api` tells clients.
    pub address: String,
    /// Ends open watches when the server stops.
    pub shutdown: tokio_util::sync::CancellationToken,
    /// Where requests are noted, if they are.
    pub audit: Option<Audit>,
}

impl Config {
    pub fn new(now: Now, seed: u64) -> Self {
        Self {
            now,
            seed,
            git_version: GIT_VERSION.to_owned(),
            tokens: HashMap::new(),
            signer: None,
            address: String::new(),
            shutdown: tokio_util::sync::CancellationToken::new(),
            audit: None,
        }
    }
}

/// The Kubernetes version whose contract this is.
pub const GIT_VERSION: &str = "v1.36.0+neap";

/// A client that takes longer to send its body holds a connection for nothing (Kubernetes: `--request-timeout`).
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct ApiServer(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) config: Config,
    pub(crate) rng: Mutex<fastrand::Rng>,
    /// Room for requests from outside.
    gate: Gate,
    pub(crate) documents: crate::documents::Cache,
    pub(crate) history: crate::history::History,
    pub(crate) lines: verbs::lines::Lines,
    /// Held while a definition's kind is put in its place; see `crd`.
    pub(crate) definitions: Mutex<()>,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// As soon as readers see it: for callers inside the process, who derive it again after a crash.
    Visible,
    /// Once it is on disk.
    Durable,
}

/// Who asks, and what an answer means to them.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `None`: nobody was authenticated.
    pub user: Option<UserInfo>,
    pub ack: Ack,
    pub managed: Managed,
    /// The address at the other end of the socket.
    pub source: Option<IpAddr>,
}

impl Caller {
    /// Somebody at the other end of a socket: told of a write once it is on disk.
    pub fn outside(user: Option<UserInfo>) -> Self {
        Self { user, ack: Ack::Durable, managed: Managed::Shown, source: None }
    }

    /// A part of this process: told of a write at once, and not interested in who set which field.
    pub fn inside(user: UserInfo) -> Self {
        Self { user: Some(user), ack: Ack::Visible, managed: Managed::LeftOut, source: None }
    }

    pub(crate) fn is_inside(&self) -> bool {
        self.ack == Ack::Visible
    }
}

/// One request on its way through a verb.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) server: Arc<Inner>,
    pub(crate) kinds: Arc<Kinds>,
    /// The kind and version that the URL names.
    pub(crate) served: Served,
    /// The kind and version whose rules apply: the stored one where versions are converted.
    pub(crate) working: Served,
    pub(crate) at: Resource,
    pub(crate) query: Query,
    pub(crate) wanted: Wanted,
    pub(crate) user: UserInfo,
    pub(crate) user_agent: String,
    pub(crate) ack: Ack,
    pub(crate) managed: Managed,
    pub(crate) now: Timestamp,
    pub(crate) warnings: Vec<String>,
    /// What strict decoding of the body complains about; judged with the unknown fields.
    pub(crate) faults: Vec<String>,
}

impl Exchange {
    pub(crate) fn kind(&self) -> &Kind {
        &self.served.kind
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.at.namespace.as_deref()
    }

    pub(crate) fn name(&self) -> &str {
        self.at.name.as_deref().unwrap_or("")
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::NotFound { resource: self.kind().id(), name: self.name().to_owned() }
    }

    /// Who is named in managedFields: the asked manager, or the program in front of the user agent's slash.
    pub(crate) fn manager(&self) -> String {
        self.query.field_manager.clone().unwrap_or_else(|| {
            let agent = self.user_agent.split('/').next().unwrap_or("");
            let agent = &agent[..agent.floor_char_boundary(request::MANAGER_LIMIT)];
            if agent.is_empty() { "unknown".to_owned() } else { agent.to_owned() }
        })
    }
}

impl ApiServer {
    /// Definitions that users stored earlier are served again.
    pub fn new(store: Store, registry: Registry, config: Config) -> Self {
        let server = Self(Arc::new(Inner {
            store,
            registry,
            rng: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            gate: Gate::default(),
            config,
            documents: crate::documents::Cache::default(),
            history: crate::history::History::default(),
            lines: verbs::lines::Lines::default(),
            definitions: Mutex::default(),
        }));
        auth::review::register(&server.0);
        crd::register(&server.0);
        server
    }

    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// A service whose requests come from `user` and whose writes are acknowledged when visible. What it gets is without
    /// `managedFields`.
    pub fn client_service(&self, user: UserInfo) -> ClientService {
        ClientService { server: self.clone(), caller: Caller::inside(user) }
    }

    /// Answers one request whose body was read. Never fails: failures are answers too.
    pub async fn handle(&self, request: Request<Bytes>, caller: Caller) -> Response<Body> {
        self.0.history.pass(self.0.now(), &self.0.store);
        let record = self.record(&request, &caller);
        let mut warnings = Vec::new();
        let mut response = match self.0.clone().route(request, caller, &mut warnings).await {
            Ok(response) => self.answered(record, response),
            Err(error) => {
                if let ApiError::Internal(why) = &error {
                    tracing::error!(why, "a request failed inside the server");
                }
                self.refused(record, &error)
            }
        };
        codec::warn(&mut response, &warnings);
        response
    }

    fn record(&self, request: &Request<Bytes>, caller: &Caller) -> Option<audit::Record> {
        let audit = self.0.config.audit.as_ref()?;
        audit::Record::begin(audit, request, caller, || self.0.chance(audit::id), &self.0.config.now)
    }

    fn answered(&self, record: Option<audit::Record>, response: Response<Body>) -> Response<Body> {
        let Some(record) = record else { return response };
        if response.body().size_hint().exact().is_none() {
            return record.streams(response).map(BodyExt::boxed_unsync);
        }
        record.answered(response.status().as_u16());
        response
    }

    fn refused(&self, record: Option<audit::Record>, error: &ApiError) -> Response<Body> {
        if let Some(record) = record {
            record.failed(error);
        }
        codec::error(error)
    }

    /// Answers somebody outside, who is the user of their bearer token, or else the one of their `certificate`. Writes are
    /// acknowledged when durable.
    pub async fn ask<B>(
        &self,
        request: Request<B>,
        certificate: Option<&UserInfo>,
        source: Option<IpAddr>,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let user = self.identify(request.headers(), certificate);
        self.ask_as(request, user, source).await
    }

    /// Who asks: the user of a bearer token, or else the one of the certificate, or nobody.
    pub(crate) fn identify(&self, headers: &HeaderMap, certificate: Option<&UserInfo>) -> Result<Option<UserInfo>> {
        auth::identity::of_request(&self.0, headers, certificate)
    }

    /// As [`ApiServer::ask`], once it is known who asks.
    pub(crate) async fn ask_as<B>(
        &self,
        request: Request<B>,
        user: Result<Option<UserInfo>>,
        source: Option<IpAddr>,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let caller = |user| Caller { source, ..Caller::outside(user) };
        match user {
            Ok(user) => self.answer(request, caller(user)).await,
            Err(error) => {
                let record = self.record(&request.map(|_| Bytes::new()), &caller(None));
                self.refused(record, &error)
            }
        }
    }

    /// Reads the body, bounded, then answers.
    pub async fn answer<B>(&self, request: Request<B>, caller: Caller) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let outside = !caller.is_inside();
        let public = auth::is_public(request.uri().path());
        if caller.user.is_none() && !public {
            // Before anything is read: a stranger's body is nothing to keep.
            let record = self.record(&request.map(|_| Bytes::new()), &caller);
            return self.refused(record, &ApiError::Unauthorized);
        }
        let (parts, body) = request.into_parts();
        if public {
            return self.handle(Request::from_parts(parts, Bytes::new()), caller).await;
        }
        // Who does not say how much comes is given room for the most.
        let size = body.size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
        let who = caller.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
        let _ticket = match outside.then(|| self.0.gate.enter(who, size.min(codec::BODY_LIMIT))) {
            None => None,
            Some(Some(ticket)) => Some(ticket),
            Some(None) => {
                let record = self.record(&Request::from_parts(parts, Bytes::new()), &caller);
                let message = "too many requests are being answered; try again".to_owned();
                let busy = ApiError::TooManyRequests { message, retry_after_seconds: 1, causes: Vec::new() };
                return self.refused(record, &busy);
            }
        };
        let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, codec::BODY_LIMIT).collect());
        let error = match read.await {
            Ok(Ok(body)) => return self.handle(Request::from_parts(parts, body.to_bytes()), caller).await,
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                ApiError::TooLarge { limit: codec::BODY_LIMIT }
            }
            Ok(Err(error)) => ApiError::bad_request(format!("the request body broke off: {error}")),
            Err(_) => ApiError::bad_request("the request body did not arrive in time"),
        };
        let record = self.record(&Request::from_parts(parts, Bytes::new()), &caller);
        self.refused(record, &error)
    }
}

impl Inner {
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.now)()
    }

    pub(crate) fn chance<T>(&self, f: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        f(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kind whose rules apply to objects served under `served`.
    pub(crate) fn working(kinds: &Kinds, served: &Served) -> Served {
        let kind = &served.kind;
        if kind.convert.is_none() {
            return served.clone();
        }
        let (group, plural) = &kind.stored_as;
        let stored = kinds.get(group, plural).unwrap_or(kind).clone();
        let name = stored.storage_version().name.clone();
        let at = stored.versions.iter().position(|v| v.name == name).unwrap_or(0);
        Served::new(stored, at)
    }

    async fn route(
        self: Arc<Self>,
        request: Request<Bytes>,
        caller: Caller,
        warnings: &mut Vec<String>,
    ) -> Result<Response<Body>> {
        let path = request.uri().path();
        if !path.starts_with('/') {
            return Err(ApiError::NoSuchPage);
        }
        let user = match (caller.user, auth::is_public(path)) {
            (Some(user), _) => auth::impersonate(&self, user, request.headers())?,
            (None, true) => auth::anonymous(),
            (None, false) => return Err(ApiError::Unauthorized),
        };
        let query = request::query(request.uri().query().unwrap_or(""));
        let at = match request::target(path) {
            Target::Resource(at) => at,
            Target::Other(segments) => {
                auth::check_path(&self, &user, request.method(), path)?;
                return discovery::answer(&self, &segments, &request, &query);
            }
        };
        let verb = request::verb(request.method(), &at, query.watch)?;
        auth::check(&self, &user, verb, &at)?;
        let kinds = self.registry.kinds();
        let (kind, index) = kinds.resolve(&at.group, &at.version, &at.plural)?;
        let served = Served::new(kind, index);
        if at.namespace.is_some() && !served.kind.namespaced {
            return Err(kinds.missing(&at.group));
        }
        let needs_namespace =
            served.kind.namespaced && at.namespace.is_none() && !matches!(verb, Verb::List | Verb::Watch);
        if needs_namespace {
            let native = served.kind.semantics == Semantics::Native && at.name.is_none();
            return Err(if native { ApiError::MethodNotAllowed } else { kinds.missing(&at.group) });
        }
        if let Some(text) = &served.version().deprecated {
            warnings.push(text.clone());
        }
        let header =
            |name: http::HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let user_agent = header(http::header::USER_AGENT);
        // People who look with a browser or curl get spaces.
        let pretty = query.pretty || ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| user_agent.starts_with(p));
        let mut x = Exchange {
            working: Self::working(&kinds, &served),
            wanted: codec::wanted(request.headers(), pretty, served.kind.semantics == Semantics::Native)?,
            now: self.now(),
            server: self,
            kinds,
            served,
            at,
            query,
            user,
            user_agent,
            ack: caller.ack,
            managed: caller.managed,
            warnings: Vec::new(),
            faults: Vec::new(),
        };
        let result = verbs::dispatch(&mut x, verb, request).await;
        warnings.append(&mut x.warnings);
        result
    }

    /// Waits for the disk where the caller wants that.
    pub(crate) async fn acknowledge(&self, ack: Ack, committed: Option<Committed>) -> Result<()> {
        match committed {
            Some(committed) if ack == Ack::Durable => on_disk(committed.durable).await,
            _ => Ok(()),
        }
    }

    /// As [`Inner::acknowledge`], for a write that found everything as wished: what it found may not be on disk yet.
    pub(crate) async fn settle(&self, ack: Ack) -> Result<()> {
        match ack {
            Ack::Durable => on_disk(self.store.flush()).await,
            Ack::Visible => Ok(()),
        }
    }
}

async fn on_disk(durable: Durable) -> Result<()> {
    let store_error = |e| crate::storage::store_error(&e, &crate::status::ResourceId::default(), "");
    durable.wait().await.map_err(store_error)
}

/// The API server as one authenticated user inside this process sees it.
#[derive(Clone)]
pub struct ClientService {
    server: ApiServer,
    caller: Caller,
}

impl<B> tower::Service<Request<B>> for ClientService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    // A `kube::Client` has one task that makes all calls; so nothing happens here before the future is polled.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, caller) = (self.server.clone(), self.caller.clone());
        Box::pin(async move { Ok(server.answer(request, caller).await) })
    }
}
