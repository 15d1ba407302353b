//! The sidecar on Kubernetes: a drop-in for Knative's queue-proxy, on one thread and in few megabytes.
//!
//! Same environment, ports, probes, statistics and end as upstream's (facts E2, C5.3), so that either runs in the
//! other's place, beside the other's activator and autoscaler. It must never need the API: a pod's sidecar has no
//! account there.

mod certificates;
mod drain;
mod handler;
pub(crate) mod log;
mod metrics;
mod probe;
mod settings;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use neap_logic::throttle::INSTANCE_QUEUE_FACTOR;
use neap_proxy::{Breaker, Listener, Running, Server, ServerConfig, Upstream, UpstreamConfig, Worker};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::certificates::Mounted;
use self::drain::Drainer;
use self::handler::{Counted, Door, Front, Sidecar};
use self::log::Logger;
use self::probe::Prober;

pub use self::certificates::CertificateError;
pub use self::log::RequestLog;
pub use self::settings::{Owner, Settings, SettingsError};

/// Where the certificate of the cluster's inside is mounted.
pub const CERTIFICATES: &str = "/var/lib/knative/certs";
/// Where containers wait for the end of traffic.
pub const ADMIN_PORT: u16 = 8022;
/// Where the autoscaler reads statistics.
pub const STATS_PORT: u16 = 9090;

/// How long sockets that left HTTP may go on once all requests have ended (E2.8).
const TUNNELS: Duration = Duration::from_secs(60);
/// Idle connections kept to an application without a limit; with one, as many as its limit (E2.13).
const IDLE_CONNECTIONS: usize = 1000;
/// How long the application may take to accept. Upstream tries 15 times, each a little longer than the one before; the
/// kernel tries again by itself, so one attempt of the same length is the same.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(19);

/// A sidecar that has not been started.
pub struct Queue {
    settings: Settings,
    certificates: Option<Arc<Mounted>>,
    request_log: Option<Arc<dyn RequestLog>>,
    quiet: Duration,
    tunnels: Duration,
}

/// Bound and listening.
#[derive(Debug)]
pub struct Sockets {
    /// For requests and probes.
    pub main: TcpListener,
    /// The same with TLS; used when a certificate is mounted.
    pub tls: Option<TcpListener>,
    /// For `/wait-for-drain`.
    pub admin: TcpListener,
    /// For the autoscaler.
    pub stats: TcpListener,
    /// For users; used when they want metrics.
    pub metrics: Option<TcpListener>,
}

/// Why a port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on port {port}: is another sidecar running in this pod?")]
pub struct BindError {
    port: u16,
    source: io::Error,
}

impl Queue {
    /// Reads the certificate, if one is mounted in `certificates` (see [`CERTIFICATES`]).
    ///
    /// # Errors
    /// A certificate that cannot be used.
    pub fn new(settings: Settings, certificates: &Path) -> Result<Self, CertificateError> {
        let certificates = Mounted::open(certificates)?;
        Ok(Self { settings, certificates, request_log: None, quiet: drain::QUIET, tunnels: TUNNELS })
    }

    /// Takes the lines of request logs, when the settings want them.
    #[must_use]
    pub fn with_request_log(mut self, log: Arc<dyn RequestLog>) -> Self {
        self.request_log = Some(log);
        self
    }

    /// Binds the ports on all addresses.
    ///
    /// # Errors
    /// A port that is taken.
    pub fn bind(&self) -> Result<Sockets, BindError> {
        let settings = &self.settings;
        Ok(Sockets {
            main: listen(settings.serving_port)?,
            tls: self.certificates.as_ref().map(|_| listen(settings.tls_port)).transpose()?,
            admin: listen(ADMIN_PORT)?,
            stats: listen(STATS_PORT)?,
            metrics: settings.metrics_port.map(listen).transpose()?,
        })
    }

    /// Serves on the calling thread until `terminate` has been cancelled and everything has ended. `beside` runs on the
    /// same thread until then: it is what listens for signals.
    ///
    /// # Errors
    /// The machine gives no runtime.
    pub fn run(
        self,
        sockets: Sockets,
        terminate: CancellationToken,
        beside: impl Future<Output = ()> + 'static,
    ) -> io::Result<()> {
        let (server, listeners, shutdown, make) = self.build(sockets, terminate);
        server.run(listeners, shutdown, beside, make)
    }

    /// The same on a thread of its own.
    ///
    /// # Errors
    /// The machine gives no thread.
    pub fn start(self, sockets: Sockets, terminate: CancellationToken) -> io::Result<Running> {
        let (server, listeners, shutdown, make) = self.build(sockets, terminate);
        server.start(listeners, 1, shutdown, make)
    }

    fn build(
        self,
        sockets: Sockets,
        terminate: CancellationToken,
    ) -> (Server, Vec<Listener>, CancellationToken, impl Fn(&Worker) -> Front + Send + Sync + 'static) {
        let engine = neap_proxy::Metrics::default();
        let config = ServerConfig {
            drain_timeout: self.settings.limits.total.unwrap_or_default() + self.tunnels + TUNNELS,
            ..ServerConfig::default()
        };
        let server = Server::new(config, engine.clone());
        let mut doors = vec![Door::Main, Door::Admin, Door::Stats];
        let mut listeners =
            vec![Listener::plain(sockets.main), Listener::plain(sockets.admin), Listener::plain(sockets.stats)];
        if let (Some(socket), Some(certificates)) = (sockets.tls, &self.certificates) {
            doors.push(Door::Main);
            listeners.push(Listener::tls(socket, self.settings.tls.server_config(certificates.clone())));
        }
        if let Some(socket) = sockets.metrics {
            doors.push(Door::Metrics);
            listeners.push(Listener::plain(socket));
        }
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        let make = move |worker: &Worker| Front {
            doors: doors.clone(),
            sidecar: self.sidecar(worker, &engine, &terminate, &ends),
        };
        (server, listeners, shutdown, make)
    }

    fn sidecar(
        &self,
        worker: &Worker,
        engine: &neap_proxy::Metrics,
        terminate: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Rc<Sidecar> {
        let settings = &self.settings;
        let tasks = worker.tasks().clone();
        let limit = settings.container_concurrency;
        let config = UpstreamConfig {
            connect_timeout: CONNECT_TIMEOUT,
            max_idle: if limit > 0 { limit } else { IDLE_CONNECTIONS },
            ..UpstreamConfig::default()
        };
        let logger = settings.request_log.as_ref().zip(self.request_log.as_ref()).map(|(template, sink)| {
            let owner = Arc::new(settings.owner.clone());
            Arc::new(Logger { template: template.clone(), owner, sink: sink.clone() })
        });
        let now = Instant::now();
        let sidecar = Rc::new(Sidecar {
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, settings.user_port)),
            limits: settings.limits,
            breaker: (limit > 0).then(|| Breaker::new(limit, limit.saturating_mul(INSTANCE_QUEUE_FACTOR))),
            upstream: Upstream::new(config, engine.clone(), tasks.clone()),
            engine: engine.clone(),
            drainer: Rc::new(Drainer::new(self.quiet)),
            prober: Prober::new(settings.probes.clone(), settings.detect_http2, tasks.clone()),
            metrics: settings.metrics_port.map(|_| metrics::Metrics::new(&settings.owner)),
            logger,
            log_probes: settings.log_probes,
            tasks: tasks.clone(),
            terminate: terminate.clone(),
            counted: Counted::new(&settings.owner.pod, now),
        });
        let (swept, certificates, sweeps) = (sidecar.clone(), self.certificates.clone(), Cell::new(0));
        worker.on_sweep(move || {
            swept.counted.report(Instant::now());
            swept.upstream.sweep();
            swept.prober.sweep();
            sweeps.set(sweeps.get() + 1);
            if let Some(certificates) =
                certificates.as_ref().filter(|_| sweeps.get() % certificates::RELOAD_SWEEPS == 0)
            {
                certificates.reload();
            }
        });
        tasks.spawn_local(end(sidecar.clone(), shutdown.clone(), self.tunnels));
        sidecar
    }
}

/// What happens when the pod is told to end (E2.8).
async fn end(sidecar: Rc<Sidecar>, shutdown: CancellationToken, tunnels: Duration) {
    sidecar.terminate.cancelled().await;
    tracing::info!("told to end: serving until nothing has come for a while");
    sidecar.drainer.drain(Instant::now()).await;
    tracing::info!("closing the listeners");
    shutdown.cancel();
    sidecar.counted.only(|| u32::try_from(sidecar.engine.tunnels.get()).unwrap_or_default()).await;
    if tokio::time::timeout(tunnels, sidecar.counted.only(|| 0)).await.is_err() {
        tracing::info!(left = sidecar.engine.tunnels.get(), "closing sockets");
        sidecar.upstream.close_tunnels();
    }
}

/// On IPv6 and IPv4, or on IPv4 where there is no other.
fn listen(port: u16) -> Result<TcpListener, BindError> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|source| BindError { port, source })
}
