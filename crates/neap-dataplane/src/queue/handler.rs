//! What the sidecar does with a request (E2.2): probes are answered, everything else is counted, waits for a place, and
//! goes to the application on loopback.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use neap_api::keys::headers as names;
use neap_api::statistics::{self, Statistics};
use neap_proxy::breaker::Permit;
use neap_proxy::upstream::Deadline;
use neap_proxy::{
    Body, Breaker, Connection, Fault, Handler, Limits, OnEnd, Outcome, Picked, Picker, Protocol, ProxyError, Rejected,
    Request, Response, Target, Upstream, error, forward, headers,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::drain::Drainer;
use super::log::{Entry, Logger};
use super::metrics::{self, Metrics};
use super::probe::Prober;
use crate::request;
use crate::stats::Account;

/// Answer to probes of the platform that ask for the sidecar.
const NAME: &str = "queue";
/// Value of `K-Proxy-Request` of requests that come from an activator.
const ACTIVATOR: &str = "activator";
/// Where containers wait, before they are stopped, until nothing comes any more.
const DRAIN_PATH: &str = "/wait-for-drain";
const STATS_PATH: &str = "/metrics";
/// A container that is restarted, not stopped with its pod, asks to wait too. Without a signal within this time it is
/// that, and must not be held up (E2.8).
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// User agents of probes for the health of the pod.
const PROBERS: [&str; 3] = ["kube-probe/", "Knative-Activator-Probe", "Knative-Autoscaling-Probe"];

const PROBE: HeaderName = HeaderName::from_static(names::PROBE);
const HASH: HeaderName = HeaderName::from_static(names::HASH);
const KUBELET_PROBE: HeaderName = HeaderName::from_static(names::KUBELET_PROBE);
const PROXY_REQUEST: HeaderName = HeaderName::from_static(names::PROXY_REQUEST);

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Main,
    Admin,
    Stats,
    Metrics,
}

/// Everything of one sidecar. It lives on one thread.
pub(super) struct Sidecar {
    pub(super) target: SocketAddr,
    pub(super) limits: Limits,
    pub(super) breaker: Option<Breaker>,
    pub(super) upstream: Upstream,
    pub(super) engine: neap_proxy::Metrics,
    pub(super) drainer: Rc<Drainer>,
    pub(super) prober: Prober,
    pub(super) metrics: Option<Metrics>,
    pub(super) logger: Option<Arc<Logger>>,
    pub(super) log_probes: bool,
    pub(super) tasks: TaskTracker,
    /// Cancelled when the pod is told to end.
    pub(super) terminate: CancellationToken,
    pub(super) counted: Counted,
}

/// Requests present, and the latest message about them.
pub(super) struct Counted {
    pod: String,
    started: Instant,
    all: RefCell<Account>,
    proxied: RefCell<Account>,
    reported: Cell<Instant>,
    message: RefCell<Bytes>,
    /// A request has ended.
    ended: Notify,
}

impl Counted {
    pub(super) fn new(pod: &str, now: Instant) -> Self {
        let message = Statistics { pod_name: pod.to_owned(), ..Statistics::default() };
        Self {
            pod: pod.to_owned(),
            started: now,
            all: RefCell::new(Account::new(now)),
            proxied: RefCell::new(Account::new(now)),
            reported: Cell::new(now),
            message: RefCell::new(message.encode().into()),
            ended: Notify::new(),
        }
    }

    /// Makes the message anew, about the time since the last one (E2.9).
    pub(super) fn report(&self, now: Instant) {
        let seconds = now.saturating_duration_since(self.reported.replace(now)).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "requests of one second")]
        let rate = |count: u64| count as f64 / seconds;
        let (all, requests, _) = self.all.borrow_mut().collect(now);
        let (proxied, through_proxy, _) = self.proxied.borrow_mut().collect(now);
        let message = Statistics {
            pod_name: self.pod.clone(),
            average_concurrent_requests: all,
            average_proxied_concurrent_requests: proxied,
            request_count: rate(requests),
            proxied_request_count: rate(through_proxy),
            process_uptime: (now - self.started).as_secs_f64(),
            timestamp: 0,
        };
        *self.message.borrow_mut() = message.encode().into();
    }

    /// Resolves when no more than `tunnels` of the requests are left.
    pub(super) async fn only(&self, tunnels: impl Fn() -> u32) {
        loop {
            let ended = self.ended.notified();
            if self.all.borrow().present() <= tunnels() {
                return;
            }
            ended.await;
        }
    }
}

/// The engine's handler: which listener, which part.
pub(super) struct Front {
    pub(super) doors: Vec<Door>,
    pub(super) sidecar: Rc<Sidecar>,
}

impl Handler for Front {
    async fn handle(&self, request: Request, connection: &Connection) -> Response {
        match self.doors[connection.listener] {
            Door::Main => self.sidecar.main(request, connection).await,
            Door::Admin => Box::pin(self.sidecar.admin(&request)).await,
            Door::Stats => self.sidecar.statistics(&request),
            Door::Metrics => self.sidecar.metrics(&request),
        }
    }
}

impl Sidecar {
    async fn main(self: &Rc<Self>, request: Request, connection: &Connection) -> Response {
        let arrived = Instant::now();
        let logger = self.logger.as_ref().filter(|_| self.log_probes || !is_probe(request.headers()));
        let entry = logger.map(|logger| Entry::begin(logger, &request, connection, arrived));
        let response = match self.probe(request.headers()) {
            Some(Probed::Answer(response)) => response,
            // Boxed: what is rare must not make room in every request.
            Some(Probed::Health) => Box::pin(self.health(request.headers())).await,
            None => {
                self.drainer.touch(arrived);
                self.proxy(&mut Some(request), connection, arrived).await
            }
        };
        match entry {
            None => response,
            Some(entry) => entry.watch(response),
        }
    }

    fn probe(&self, headers: &HeaderMap) -> Option<Probed> {
        let health = is_health_check(headers);
        if !health && headers.get(&PROBE).is_none_or(|probe| probe != "probe") {
            return None;
        }
        if self.drainer.is_draining() {
            return Some(Probed::Answer(text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")));
        }
        if health {
            return Some(Probed::Health);
        }
        Some(Probed::Answer(match headers.get(&HASH) {
            Some(hash) if !hash.is_empty() => {
                let mut response = http::Response::new(Body::empty());
                response.headers_mut().insert(HASH, hash.clone());
                response
            }
            _ => text(StatusCode::BAD_REQUEST, "a probe request must contain a non-empty \"K-Network-Hash\" header\n"),
        }))
    }

    async fn health(&self, headers: &HeaderMap) -> Response {
        let value = headers.get(&PROBE).map_or(&b""[..], HeaderValue::as_bytes);
        if value != NAME.as_bytes() {
            let told = format!("unexpected probe header value: {}\n", String::from_utf8_lossy(value));
            return text(StatusCode::BAD_REQUEST, told);
        }
        if self.prober.ready().await {
            http::Response::new(Body::full(NAME))
        } else {
            empty(StatusCode::SERVICE_UNAVAILABLE)
        }
    }

    /// Takes the request out of its place, like [`forward`].
    async fn proxy(
        self: &Rc<Self>,
        place: &mut Option<Request>,
        connection: &Connection,
        arrived: Instant,
    ) -> Response {
        let grpc = error::speaks_grpc(place.as_ref().expect("a request to serve").headers());
        match self.forward(place, connection, arrived).await {
            Ok(response) => response,
            Err(error) => {
                let answer = error.answer();
                self.engine.error(&error);
                if answer.fault == Fault::App {
                    tracing::warn!(code = answer.code, error = &error as &dyn std::error::Error, "request failed");
                } else {
                    tracing::debug!(code = answer.code, error = &error as &dyn std::error::Error, "request failed");
                }
                error.respond(grpc)
            }
        }
    }

    async fn forward(
        self: &Rc<Self>,
        place: &mut Option<Request>,
        connection: &Connection,
        arrived: Instant,
    ) -> Result<Response, ProxyError> {
        let request = place.as_mut().expect("a request to serve");
        let mut visit = Visit::begin(self, request, arrived);
        // E2.13: the application is spoken to as its client speaks to us.
        let protocol = if request.version() == Version::HTTP_2 { Protocol::H2c } else { Protocol::Http1 };
        if let Err(error) = headers::canonical(request) {
            visit.status = error.answer().status;
            return Err(error);
        }
        request::finish_behind_ingress(request.headers_mut(), connection);
        let target = Target { addr: self.target, protocol };
        let mut picker = Place { target, visit: Some(visit) };
        forward(&self.upstream, &mut picker, place, &self.limits, arrived).await
    }

    async fn admin(&self, request: &Request) -> Response {
        if request.uri().path() != DRAIN_PATH {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        let (terminate, drainer) = (self.terminate.clone(), self.drainer.clone());
        self.tasks.spawn_local(async move {
            tokio::select! {
                () = terminate.cancelled() => {}
                () = sleep(RESTART_AFTER) => drainer.reset(),
            }
        });
        self.drainer.drain(Instant::now()).await;
        http::Response::new(Body::empty())
    }

    fn statistics(&self, request: &Request) -> Response {
        if request.uri().path() != STATS_PATH {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        let mut response = http::Response::new(Body::full(self.counted.message.borrow().clone()));
        let kind = HeaderValue::from_static(statistics::CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    fn metrics(&self, request: &Request) -> Response {
        let Some(metrics) = self.metrics.as_ref().filter(|_| request.uri().path() == STATS_PATH) else {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        };
        let mut response = http::Response::new(Body::full(metrics.render()));
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

enum Probed {
    Answer(Response),
    Health,
}

/// E2.4.
fn is_health_check(headers: &HeaderMap) -> bool {
    let by_agent = headers
        .get(header::USER_AGENT)
        .is_some_and(|agent| PROBERS.iter().any(|prober| agent.as_bytes().starts_with(prober.as_bytes())));
    by_agent || headers.get(&KUBELET_PROBE).is_some_and(|mark| !mark.is_empty())
}

/// A probe as request logs tell them apart.
fn is_probe(headers: &HeaderMap) -> bool {
    let filled = |name: HeaderName| headers.get(name).is_some_and(|value| !value.is_empty());
    let kubelet =
        headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(PROBERS[0].as_bytes()));
    kubelet || filled(KUBELET_PROBE) || filled(PROBE)
}

fn empty(status: StatusCode) -> Response {
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// One request from its arrival to the end of its answer. Dropping it gives back its place and counts it.
struct Visit {
    sidecar: Rc<Sidecar>,
    arrived: Instant,
    proxied: bool,
    permit: Option<Permit>,
    /// When it went to the application.
    sent: Option<Instant>,
    status: StatusCode,
    /// For metrics, when there are any.
    told: Option<(&'static str, String)>,
}

/// What a client that went away before an answer counts as; nginx's number for it.
const GONE: u16 = 499;

impl Visit {
    fn begin(sidecar: &Rc<Sidecar>, request: &Request, arrived: Instant) -> Self {
        let headers = request.headers();
        let proxied = headers.get(&PROXY_REQUEST).is_some_and(|by| by == ACTIVATOR);
        sidecar.counted.all.borrow_mut().begin(arrived);
        if proxied {
            sidecar.counted.proxied.borrow_mut().begin(arrived);
        }
        let told = sidecar.metrics.as_ref().map(|of| (metrics::method(request.method()), of.tag(headers)));
        let status = StatusCode::from_u16(GONE).expect("a valid status code");
        Self { sidecar: sidecar.clone(), arrived, proxied, permit: None, sent: None, status, told }
    }
}

impl OnEnd for Visit {
    /// Dropping does it all.
    fn on_end(&mut self, _outcome: Outcome, _bytes: u64) {}
}

impl Drop for Visit {
    fn drop(&mut self) {
        let sidecar = &self.sidecar;
        let now = Instant::now();
        sidecar.counted.all.borrow_mut().end(now, self.arrived, Some(self.status));
        if self.proxied {
            sidecar.counted.proxied.borrow_mut().end(now, self.arrived, Some(self.status));
        }
        drop(self.permit.take());
        if let (Some(metrics), Some((method, tag))) = (&sidecar.metrics, self.told.take()) {
            if let Some(sent) = self.sent {
                metrics.invocation(self.status, now - sent);
            }
            metrics.served(method, self.status, tag, now - self.arrived);
        }
        sidecar.counted.ended.notify_waiters();
    }
}

/// The picker: there is one target, and a limit before it.
struct Place {
    target: Target,
    visit: Option<Visit>,
}

impl Picker for Place {
    type Hold = Visit;

    async fn pick(&mut self, deadline: Option<Deadline>) -> Result<Picked<Visit>, ProxyError> {
        let mut visit = self.visit.take().expect("picked once");
        let sidecar = visit.sidecar.clone();
        if let Some(breaker) = &sidecar.breaker {
            match breaker.enter(deadline.map(|deadline| deadline.at)).await {
                Ok(permit) => visit.permit = Some(permit),
                Err(rejected) => {
                    let error = match (rejected, deadline) {
                        (Rejected::Full { depth }, _) => ProxyError::QueueFull { depth },
                        (Rejected::Deadline, Some(deadline)) => deadline.error(),
                        (Rejected::Deadline, None) => unreachable!("only a deadline passes"),
                    };
                    visit.status = error.answer().status;
                    return Err(error);
                }
            }
            if let Some(metrics) = &sidecar.metrics {
                metrics.depth(breaker.in_flight());
            }
        }
        // The clock is read for metrics only.
        visit.sent = visit.told.is_some().then(Instant::now);
        Ok(Picked { target: self.target, hold: visit })
    }

    fn answered(&mut self, visit: &mut Visit, answer: &Response) {
        visit.status = answer.status();
    }

    fn failed(&mut self, mut picked: Picked<Visit>, error: &ProxyError) {
        picked.hold.status = error.answer().status;
    }

    /// There is no other one to try.
    fn refused(&mut self, mut picked: Picked<Visit>, error: ProxyError) -> Result<(), ProxyError> {
        picked.hold.status = error.answer().status;
        Err(error)
    }
}
