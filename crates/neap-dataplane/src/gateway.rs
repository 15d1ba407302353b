//! The gateway: the engine's handler that routes, waits for an instance, sends, and counts.

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode, header};
use neap_api::acme::CHALLENGE_PATH;
use neap_logic::routing::{Door, HostRoutes, IngressKey, Lookup, PathRule, RevisionKey, Split, Table};
use neap_proxy::{
    Body, Connection, Handler, Listener, Metrics, ProxyError, Request, Response, Running, Server, Upstream, Worker,
    error, forward, headers, tls,
};
use prometheus_client::registry::Registry;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::GateCollector;
use crate::certificates::Resolver;
use crate::config::{Config, GatewayListener, SETTLE};
use crate::extras::affinity::{self, Place, Sticky};
use crate::extras::hedge::{self, HedgeMetrics, Hedged};
use crate::extras::{Applied, auth};
use crate::front;
use crate::gate::{Gate, GateName};
use crate::plane::DataPlane;
use crate::probe;
use crate::request::{self, Marks};
use crate::snapshot::{Destination, Snapshot};
use crate::turns::Turns;
use crate::visit::{Activator, WaitedFor};

/// Routes that may lead from one to the next within the gateway: a custom domain to a route, and one more.
const MAX_LEGS: usize = 3;

/// A gateway that has not been started.
pub struct Gateway {
    config: Config,
    plane: Arc<DataPlane>,
    metrics: Metrics,
    hedges: HedgeMetrics,
}

impl Gateway {
    /// Registers the metrics of the engine and of all Revisions under `registry`.
    pub fn new(config: Config, plane: Arc<DataPlane>, registry: &mut Registry) -> Self {
        let metrics = Metrics::register(registry);
        registry.register_collector(Box::new(GateCollector::new(plane.clone())));
        let hedges = HedgeMetrics::register(registry);
        Self { config, plane, metrics, hedges }
    }

    /// Serves on these sockets with so many threads until `shutdown` is cancelled; [`Running::join`] then waits for
    /// requests in progress.
    pub fn start(
        self,
        listeners: Vec<GatewayListener>,
        workers: usize,
        shutdown: CancellationToken,
    ) -> io::Result<Running> {
        let (server, sockets, make) = self.build(listeners);
        server.start(sockets, workers, shutdown, make)
    }

    /// The same on the calling thread alone, with `beside` (see [`Server::run`]).
    pub fn run(
        self,
        listeners: Vec<GatewayListener>,
        shutdown: CancellationToken,
        beside: impl Future<Output = ()> + 'static,
    ) -> io::Result<()> {
        let (server, sockets, make) = self.build(listeners);
        server.run(sockets, shutdown, beside, make)
    }

    fn build(
        self,
        listeners: Vec<GatewayListener>,
    ) -> (Server, Vec<Listener>, impl Fn(&Worker) -> Front + Send + Sync + 'static) {
        let Self { config, plane, metrics, hedges } = self;
        let resolver = Resolver { snapshots: plane.snapshots(), fallback: config.fallback_certificate };
        let tls = tls::server_config(Arc::new(resolver));
        let mut server = Server::new(config.server, metrics.clone());
        if let Some(log) = config.access_log {
            server = server.with_access_log(log);
        }
        let doors: Arc<[Entrance]> = listeners
            .iter()
            .map(|listener| Entrance { door: listener.door, trusted: listener.trust_forwarded })
            .collect();
        let sockets = listeners
            .into_iter()
            .map(|listener| Listener { socket: listener.socket, tls: listener.tls.then(|| tls.clone()) })
            .collect();
        let https_port = config.https_port;
        let revision_suffix: Arc<str> = format!(".svc.{}", config.cluster_domain).into();
        let make = move |worker: &Worker| {
            let upstream = front::upstream(worker, config.upstream.clone(), &metrics);
            front::readmit(worker, &plane);
            Front {
                snapshots: plane.snapshots(),
                plane: plane.clone(),
                upstream,
                metrics: metrics.clone(),
                hedges: hedges.clone(),
                tasks: worker.tasks().clone(),
                doors: doors.clone(),
                https_port,
                revision_suffix: revision_suffix.clone(),
                turns: Turns::new(),
            }
        };
        (server, sockets, make)
    }
}

struct Entrance {
    door: Door,
    trusted: bool,
}

/// One worker's handler.
struct Front {
    snapshots: Arc<ArcSwap<Snapshot>>,
    plane: Arc<DataPlane>,
    upstream: Rc<Upstream>,
    metrics: Metrics,
    hedges: HedgeMetrics,
    /// Of the worker.
    tasks: TaskTracker,
    doors: Arc<[Entrance]>,
    https_port: u16,
    /// `.svc.cluster.local`
    revision_suffix: Arc<str>,
    turns: Turns,
}

impl Handler for Front {
    async fn handle(&self, request: Request, connection: &Connection) -> Response {
        let arrived = Instant::now();
        let grpc = error::speaks_grpc(request.headers());
        match self.serve(&mut Some(request), connection, arrived).await {
            Ok(response) => response,
            Err(error) => front::failed(&self.metrics, &error, grpc),
        }
    }
}

/// Where a request goes: through which rules, to which gate.
struct Way<'s> {
    gate: &'s Arc<Gate>,
    /// The rules it went by; none for a Revision that was asked for by its own name.
    legs: Legs<'s>,
    /// What is known of its client, where that matters.
    sticky: Option<Sticky>,
}

impl Way<'_> {
    /// What the routes ask for beyond Knative; `None` for nearly all requests.
    fn extras(&mut self, snapshot: &Snapshot) -> Option<Box<Applied>> {
        let mut states = Vec::new();
        if self.legs.taken[0].is_none() {
            // Who knows a Revision's own name comes no further by it than others.
            if let (GateName::Revision(key), Some(service)) = (&self.gate.name, &self.gate.settings.service) {
                let of = IngressKey { namespace: key.namespace.clone(), name: service.clone() };
                states.extend(snapshot.extras.get(&of).cloned());
            }
        } else if self.legs.iter().any(|(host, ..)| host.extras.is_some()) {
            // A certificate authority has no keys, and its questions are few.
            let asking = self.legs.iter().filter(|(host, path, _)| host.extras.is_some() && !path.is_challenge());
            states.extend(asking.filter_map(|(host, ..)| snapshot.extras.get(&host.ingress).cloned()));
        }
        (!states.is_empty()).then(|| Box::new(Applied { states, sticky: self.sticky.take() }))
    }
}

#[derive(Default)]
struct Legs<'s> {
    taken: [Option<(&'s HostRoutes, &'s PathRule, &'s Split)>; MAX_LEGS],
}

impl<'s> Legs<'s> {
    fn iter(&self) -> impl Iterator<Item = &(&'s HostRoutes, &'s PathRule, &'s Split)> {
        self.taken.iter().flatten()
    }

    fn hash(&self) -> Option<&'s str> {
        self.taken[0].map(|(host, _, _)| &*host.hash)
    }
}

enum Route<'s> {
    Go(Way<'s>),
    Redirect,
    NotFound,
    /// There is a route, but what it leads to is not known (yet).
    Unknown(String),
}

impl Front {
    async fn serve(
        &self,
        place: &mut Option<Request>,
        connection: &Connection,
        arrived: Instant,
    ) -> Result<Response, ProxyError> {
        let request = place.as_mut().expect("a request to serve");
        headers::canonical(request)?;
        let marks = Marks::of(request.headers());
        let entrance = &self.doors[connection.listener];
        let secure = connection.tls || (entrance.trusted && request::says_https(request.headers()));
        let mut published = None;
        let (gate, extras) = loop {
            let snapshot = self.snapshots.load();
            if let Some(answer) = challenge_answer(&snapshot, request) {
                return Ok(answer);
            }
            match self.route(&snapshot, request, connection, entrance, secure)? {
                Route::Go(mut way) => {
                    if marks.platform
                        && let Some(answer) = probe::answer(request, way.legs.hash(), &way.gate.name)
                    {
                        return answer;
                    }
                    edit(request, &way, connection, entrance, marks)?;
                    break (way.gate.clone(), way.extras(&snapshot));
                }
                Route::Redirect => return Ok(self.redirect(request)),
                Route::NotFound => {
                    let host = headers::authority(request).unwrap_or_default().to_owned();
                    return Err(ProxyError::NoRoute { host });
                }
                Route::Unknown(what) => {
                    drop(snapshot);
                    match &mut published {
                        // What came between the look at the snapshot and this moment is not told; it is looked at again.
                        None => published = Some(self.plane.published()),
                        Some(published) => Box::pin(self.settle(published, arrived + SETTLE, what)).await?,
                    }
                }
            }
        };
        if marks.timing {
            request.headers_mut().remove(request::TIMING);
        }
        if let Some(extras) = extras {
            return Box::pin(self.serve_beyond(*extras, gate, place, connection, arrived, marks.timing, secure)).await;
        }
        let limits = gate.settings.limits;
        let mut activator = Activator::new(gate, arrived);
        let mut response = forward(&self.upstream, &mut activator, place, &limits, arrived).await?;
        tell_timings(&mut response, &activator, arrived, marks.timing);
        Ok(response)
    }

    /// The same under rules that go beyond Knative.
    #[expect(clippy::too_many_arguments, reason = "the locals of its only caller, kept off its own path")]
    async fn serve_beyond(
        &self,
        extras: Applied,
        gate: Arc<Gate>,
        place: &mut Option<Request>,
        connection: &Connection,
        arrived: Instant,
        asked: bool,
        secure: bool,
    ) -> Result<Response, ProxyError> {
        let request = place.as_mut().expect("a request to serve");
        let trusted = self.doors[connection.listener].trusted;
        let door = auth::Door { snapshots: &self.snapshots, tasks: &self.tasks, now: unix_now() };
        extras.guard(request, connection, trusted, &door).await?;
        let revision = match &gate.name {
            GateName::Revision(key) => Some(key),
            GateName::Service { .. } => None,
        };
        let prefer = extras.sticky.as_ref().and_then(|sticky| sticky.prefer(revision));
        let limits = gate.settings.limits;
        let hedged = extras.hedged().and_then(|state| Some((state, state.rules.hedge?, hedge::copy(request)?)));
        let mut activator = Activator::with_wish(gate.clone(), arrived, prefer, hedged.is_some());
        let mut response = match hedged {
            None => forward(&self.upstream, &mut activator, place, &limits, arrived).await?,
            Some((state, rule, copy)) => {
                let hedged = Hedged {
                    upstream: &self.upstream,
                    gate: &gate,
                    hedger: &state.hedger,
                    rule,
                    metrics: &self.hedges,
                    limits: &limits,
                    arrived,
                };
                hedged.forward(&mut activator, place, copy).await?
            }
        };
        if let (Some(Sticky::Cookie(known)), Some(instance)) = (&extras.sticky, activator.picked) {
            let kept = known.is_some_and(|known| {
                // One that has no room just now is still the client's own.
                known.is_at(revision) && (known.instance == instance || gate.has(&known.instance))
            });
            if !kept
                && let Some((name, seal)) = extras.cookie()
                && let Some(value) = affinity::set_cookie(name, seal, Place::new(revision, instance), secure)
            {
                response.headers_mut().append(header::SET_COOKIE, value);
            }
        }
        tell_timings(&mut response, &activator, arrived, asked);
        Ok(response)
    }

    /// Waits for the next snapshot.
    async fn settle(
        &self,
        published: &mut tokio::sync::watch::Receiver<u64>,
        until: Instant,
        what: String,
    ) -> Result<(), ProxyError> {
        match timeout_at(until, published.changed()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ProxyError::NoBackend { what }),
        }
    }

    fn route<'s>(
        &self,
        snapshot: &'s Snapshot,
        request: &Request,
        connection: &Connection,
        entrance: &Entrance,
        secure: bool,
    ) -> Result<Route<'s>, ProxyError> {
        let mut path = Cow::Borrowed(request.uri().path());
        let query = request.uri().query();
        let matched = |name: &str| request.headers().get(name)?.to_str().ok();
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let mut host = host.ok_or_else(|| ProxyError::BadRequest { why: "host is not text" })?;
        let mut door = entrance.door;
        let mut legs = Legs::default();
        let mut sticky = None;
        for leg in 0..MAX_LEGS {
            let found = match snapshot.routes.find(door, secure, host, &path, query, matched) {
                Lookup::Found(found) => found,
                Lookup::Redirect(_) => return Ok(Route::Redirect),
                Lookup::NoHost if leg == 0 && door == Door::Local => {
                    let gate = self.revision_of_host(host).and_then(|key| snapshot.revisions.get(&key));
                    return Ok(gate.map_or(Route::NotFound, |gate| Route::Go(Way { gate, legs, sticky })));
                }
                Lookup::NoHost | Lookup::LocalOnly(_) | Lookup::NoPath(_) => return Ok(Route::NotFound),
            };
            if sticky.is_none()
                && let Some(rule) = found.host.extras.as_ref().and_then(|extras| extras.affinity.as_ref())
                && let Some(state) = snapshot.extras.get(&found.host.ingress)
            {
                // The peer has not been added to the list yet.
                let client = request::first_client(request.headers(), connection, entrance.trusted);
                sticky = Some(Sticky::of(rule, &state.seal, request.headers(), client));
            }
            let split = match &sticky {
                None => found.path.choose(self.turns.next(found.path)),
                Some(sticky) => sticky.choose(found.path, self.turns.next(found.path)),
            };
            legs.taken[leg] = Some((found.host, found.path, split));
            if let Some(rewritten) = found.path.rewritten(&path) {
                path = Cow::Owned(rewritten);
            }
            // A rewritten host that is served here needs no second trip through the network (custom domains).
            let rewritten = found.path.rewrite_host.as_deref();
            let mut next = rewritten.filter(|host| split.backend.revision.is_none() && serves(&snapshot.routes, host));
            if next.is_none() {
                match snapshot.destination(&split.backend) {
                    Destination::Gate(gate) => return Ok(Route::Go(Way { gate, legs, sticky })),
                    Destination::Alias(name) => next = Some(name).filter(|host| serves(&snapshot.routes, host)),
                    Destination::Unknown => {}
                }
            }
            match next {
                Some(next) => {
                    // A namespace may lead the world to what it keeps inside; to what others keep inside it may not.
                    let own = snapshot.routes.host(next).map(|routes| &routes.ingress.namespace);
                    if own == Some(&split.backend.namespace) {
                        door = Door::Local;
                    }
                    host = next;
                }
                None => {
                    let backend = &split.backend;
                    return Ok(Route::Unknown(match &backend.revision {
                        Some(revision) => format!("revision {revision}"),
                        None => format!("service {}/{} port {}", backend.namespace, backend.service, backend.port),
                    }));
                }
            }
        }
        Err(ProxyError::Internal { what: format!("the routes of host {host} lead in a circle") })
    }

    /// `REVISION.NAMESPACE.svc.cluster.local`, with or without the domain.
    fn revision_of_host(&self, host: &str) -> Option<RevisionKey> {
        let host = host.split_once(':').map_or(host, |(host, _port)| host);
        let name = host.strip_suffix(&*self.revision_suffix).or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
        let (revision, namespace) = name.split_once('.')?;
        (!namespace.contains('.')).then(|| RevisionKey::new(namespace, revision))
    }

    /// 301, as Knative's own gateways answer; the port is left out where it is https' own.
    fn redirect(&self, request: &Request) -> Response {
        let host = headers::authority(request).unwrap_or_default();
        let host = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let location = match self.https_port {
            443 => format!("https://{host}{path}"),
            port => format!("https://{host}:{port}{path}"),
        };
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        if let Ok(location) = HeaderValue::try_from(location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// What an authority that makes certificates wants to read, in the clear, whatever the routes of the host say.
fn challenge_answer(snapshot: &Snapshot, request: &Request) -> Option<Response> {
    let token = request.uri().path().strip_prefix(CHALLENGE_PATH)?;
    let answer = snapshot.http01(headers::authority(request)?, token)?;
    let mut response = http::Response::new(Body::full(answer.to_owned()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Some(response)
}

fn serves(routes: &Table, host: &str) -> bool {
    routes.host(host).is_some()
}

fn edit(
    request: &mut Request,
    way: &Way<'_>,
    connection: &Connection,
    entrance: &Entrance,
    marks: Marks,
) -> Result<(), ProxyError> {
    let to_revision = matches!(way.gate.name, GateName::Revision(_));
    let origin = headers::Origin { peer: &connection.peer_value, tls: connection.tls, trusted: entrance.trusted };
    let headers = request.headers_mut();
    let probing = request::take_platform(headers, marks);
    headers::set_forwarded(headers, origin);
    if probing && let Some(hash) = way.legs.hash() {
        request::set_hash(headers, hash);
    }
    for (routes, path, split) in way.legs.iter() {
        if path.more.is_some()
            && let Some(rewritten) = path.rewritten(request.uri().path())
        {
            request::rewrite_path(request, &path.prefix, &rewritten)?;
        }
        let headers = request.headers_mut();
        if let Some(host) = &path.rewrite_host {
            if routes.extras.as_ref().is_some_and(|extras| extras.keeps_host) {
                request::keep_host(headers);
            }
            request::set_host(headers, host);
        }
        let known = split.backend.revision.is_some();
        request::set_headers(headers, &split.headers, known);
    }
    if to_revision {
        request::finish_for_revision(request.headers_mut(), &connection.memo);
    }
    Ok(())
}

/// Tokens are made and end by the time of day.
fn unix_now() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge where the time of day is read; what is judged by it takes it as a value"
    )]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn tell_timings(response: &mut Response, activator: &Activator, arrived: Instant, asked: bool) {
    if asked {
        let timing = all_timings(activator, arrived.elapsed());
        response.headers_mut().append("server-timing", timing);
    } else if let Some((_, waited)) = activator.waited {
        response.headers_mut().append("server-timing", server_timing(waited));
    }
}

/// Where the time until the answer began has gone, for a caller that asked: in the queue, for an instance to wake, for a
/// connection to it, and in the application.
fn all_timings(activator: &Activator, total: Duration) -> HeaderValue {
    let waited = |what| activator.waited.filter(|(of, _)| *of == what).map_or(Duration::ZERO, |(_, time)| time);
    let (queue, wake) = (waited(WaitedFor::Turn), waited(WaitedFor::Instance));
    let connect = activator.connect.unwrap_or_default();
    let app = total.saturating_sub(queue + wake + connect);
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let text = format!(
        "neap-queue;dur={:.3}, neap-wake;dur={:.3}, neap-connect;dur={:.3}, neap-app;dur={:.3}",
        ms(queue),
        ms(wake),
        ms(connect),
        ms(app)
    );
    HeaderValue::try_from(text).expect("digits and plain text")
}

/// Tells the caller that, and how long, it waited for an instance.
fn server_timing(waited: Duration) -> HeaderValue {
    let text = format!("neap-wait;dur={:.1};desc=\"waiting for an instance\"", waited.as_secs_f64() * 1000.0);
    HeaderValue::try_from(text).expect("digits and plain text")
}

#[cfg(test)]
mod beyond_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
