//! The API server of a test.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::{Method, Request};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Client;
use kube::api::PostParams;
use kube::client::Body;
use neap_apiserver::{ApiServer, ClientService, Config};
use neap_logic::config::Settings;
use neap_store::Store;
use tower::Service;

/// Where the virtual time of tests begins.
const EPOCH: Timestamp = Timestamp::constant(1_700_000_000, 0);
/// Generated names are the same in every run.
const SEED: u64 = 7;

/// The instant so many seconds after a test's beginning.
pub fn at(seconds: i64) -> Timestamp {
    EPOCH + SignedDuration::from_secs(seconds)
}

/// An API server with every kind of the platform, the namespaces `default` and `knative-serving`, and default settings.
#[derive(Clone)]
pub struct Api {
    server: ApiServer,
    settings: Arc<Mutex<Arc<Settings>>>,
    writes: Arc<AtomicU64>,
    started: tokio::time::Instant,
}

impl Api {
    /// Must be called inside a tokio runtime: the server's clock is the runtime's.
    pub async fn start() -> Self {
        let settings = Arc::new(Mutex::new(Arc::new(Settings::default())));
        let current = settings.clone();
        let read = Arc::new(move || current.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let registry = neap_kinds::registry(read).expect("the platform's kinds can be served");
        let started = tokio::time::Instant::now();
        let config = Config::new(Arc::new(move || now(started)), SEED);
        let server = ApiServer::new(Store::memory(), registry, config);
        let api = Self { server, settings, writes: Arc::default(), started };
        for name in ["default", "knative-serving"] {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.into());
            let namespaces: kube::Api<Namespace> = kube::Api::all(api.client());
            namespaces.create(&PostParams::default(), &namespace).await.expect("a fresh server takes a namespace");
        }
        let maps: kube::Api<ConfigMap> = kube::Api::namespaced(api.client(), "knative-serving");
        for map in neap_logic::config::examples("example.com") {
            maps.create(&PostParams::default(), &map).await.expect("the examples are valid");
        }
        api.writes.store(0, Ordering::Relaxed);
        api
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        let user = UserInfo {
            username: Some("tester".into()),
            groups: Some(vec!["system:masters".into(), "system:authenticated".into()]),
            ..Default::default()
        };
        let service = Counted { inner: self.server.client_service(user), writes: self.writes.clone() };
        Client::new(service, "default")
    }

    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// The settings that admission uses from now on.
    pub fn set(&self, settings: Settings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// The instant on the server's clock.
    pub fn now(&self) -> Timestamp {
        now(self.started)
    }

    /// How many requests that write were made since the last call.
    pub fn writes(&self) -> u64 {
        self.writes.swap(0, Ordering::Relaxed)
    }
}

fn now(started: tokio::time::Instant) -> Timestamp {
    EPOCH + SignedDuration::try_from(started.elapsed()).unwrap_or(SignedDuration::MAX)
}

/// Counts what writes on its way to the server.
#[derive(Clone)]
struct Counted {
    inner: ClientService,
    writes: Arc<AtomicU64>,
}

impl Service<Request<Body>> for Counted {
    type Response = <ClientService as Service<Request<Body>>>::Response;
    type Error = Infallible;
    type Future = <ClientService as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.call(request)
    }
}
