//! The activator on Kubernetes: a drop-in for Knative's, before the sidecars of a cluster's pods (facts E1).
//!
//! The same gates as in the gateway, fed by watches, but reached by headers that an ingress has set, and with instances
//! that first have to prove that they take requests. Statistics go to the autoscaler as bytes in Knative's wire format;
//! the connection they travel on is the roof's.

pub(crate) mod backends;
mod handler;
mod prober;
mod report;
mod settings;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use neap_logic::routing::RevisionKey;
use neap_proxy::tls::{ClientTls, ResolvesServerCert, TlsPolicy};
use neap_proxy::{Listener, Metrics, Running, Server, ServerConfig, UpstreamConfig};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::backends::Backends;
use self::handler::{Front, Health};
use self::report::Reporter;
use crate::admin::GateCollector;
use crate::front;
use crate::plane::DataPlane;

pub use self::settings::{Settings, SettingsError};

/// Where requests come in: HTTP/1.1 and h2c on both (E1.1).
pub const PORTS: [u16; 2] = [8012, 8013];
/// Where requests come in with TLS, here and at sidecars.
pub const SECURE_PORT: u16 = 8112;
/// The name in the certificates of sidecars (E1.10).
pub const SIDECAR_NAME: &str = "data-plane.knative.dev";
/// Where metrics are read.
pub const METRICS_PORT: u16 = 9090;
/// How long requests may still come in after the signal, until all routers know (E1.12).
pub const PROPAGATION: Duration = Duration::from_secs(45);

/// How long requests in flight may take at the end: what is left of upstream's grace period.
const DRAIN: Duration = Duration::from_secs(555);
/// Between two regular messages (E1.11).
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// An activator that has not been started.
pub struct Activator {
    settings: Settings,
    plane: Arc<DataPlane>,
    wakes: mpsc::Receiver<RevisionKey>,
    backends: Arc<Backends>,
    connection: Connection,
    tls: Option<Tls>,
}

/// How traffic inside the cluster is encrypted.
#[derive(Debug, Clone)]
pub struct Tls {
    /// What is shown to callers.
    pub certificates: Arc<dyn ResolvesServerCert>,
    /// What is expected of sidecars; their certificates are for [`SIDECAR_NAME`].
    pub sidecars: ClientTls,
}

/// What the roof tells of its connection to the autoscaler.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    health: Arc<Health>,
    reachable: Gauge,
    errors: Counter,
}

impl Connection {
    /// It is there, or not.
    pub fn set(&self, connected: bool) {
        self.health.connected.store(connected, Ordering::Relaxed);
        self.reachable.set(connected.into());
        if !connected {
            self.errors.inc();
        }
    }
}

/// The steps of an end, to be cancelled one after the other.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// The pod was told to end: it says that it is not ready, and serves.
    pub stopping: CancellationToken,
    /// No new requests; those in flight still wait for instances, so these are still followed, probed and counted.
    pub shutdown: CancellationToken,
    /// The last request has ended.
    pub ended: CancellationToken,
}

/// An activator that runs, in parts that the roof gives threads to.
#[must_use = "nothing runs that is not polled"]
pub struct Started {
    /// The servers.
    pub running: Running,
    /// Messages for the autoscaler.
    pub messages: mpsc::Receiver<Vec<u8>>,
    /// To be told about the connection they travel on.
    pub connection: Connection,
    /// Makes the messages and probes instances; ends with the `ended` token.
    pub background: futures::future::BoxFuture<'static, ()>,
}

impl Activator {
    /// With the data plane it needs, to be fed by [`crate::watch::activator`].
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let backends = Arc::new(Backends::new(settings.ip, false));
        let (plane, wakes) = DataPlane::with_backends(backends.clone());
        Self { settings, plane, wakes, backends, connection: Connection::default(), tls: None }
    }

    /// With encrypted traffic inside the cluster.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// What the watches feed.
    pub fn plane(&self) -> Arc<DataPlane> {
        self.plane.clone()
    }

    /// Serves on `requests`, the last of which takes TLS if there is any, and shows metrics on `metrics`, as long as
    /// `life` says.
    ///
    /// # Errors
    /// The machine gives no threads.
    pub fn start(
        self,
        requests: Vec<std::net::TcpListener>,
        metrics: std::net::TcpListener,
        workers: usize,
        life: &Life,
    ) -> io::Result<Started> {
        let Life { stopping, shutdown, ended } = life.clone();
        let Self { settings, plane, wakes, backends, connection, tls } = self;
        let mut registry = Registry::default();
        let engine = Metrics::register(&mut registry);
        registry.register_collector(Box::new(GateCollector::new(plane.clone())));
        registry.register(
            "kn_activator_stats_conn_reachable",
            "Whether the autoscaler is connected",
            connection.reachable.clone(),
        );
        registry.register(
            "kn_activator_stats_conn_errors",
            "Times the connection to the autoscaler was lost or could not be made",
            connection.errors.clone(),
        );
        let registry = Arc::new(registry);
        let server = Server::new(ServerConfig { drain_timeout: DRAIN, ..ServerConfig::default() }, engine.clone());
        let place = requests.len();
        let mut listeners: Vec<_> = requests.into_iter().chain([metrics]).map(Listener::plain).collect();
        if let Some(tls) = &tls
            && let Some(last) = place.checked_sub(1)
        {
            listeners[last].tls = Some(TlsPolicy::default().server_config(tls.certificates.clone()));
        }
        let secure_port = tls.as_ref().map(|_| SECURE_PORT);
        let suffix: Arc<str> = format!("svc.{}", settings.cluster_domain).into();
        let (health, snapshots, served) = (connection.health.clone(), plane.snapshots(), plane.clone());
        let upstream = UpstreamConfig {
            max_idle: settings.idle_per_instance,
            tls: tls.map(|tls| tls.sidecars),
            ..UpstreamConfig::default()
        };
        let running = server.start(listeners, workers, shutdown, move |worker| {
            let upstream = front::upstream(worker, upstream.clone(), &engine);
            front::readmit(worker, &served);
            Front {
                snapshots: snapshots.clone(),
                upstream,
                engine: engine.clone(),
                health: health.clone(),
                metrics: (place, registry.clone()),
                suffix: suffix.clone(),
                secure_port,
            }
        })?;
        let (sender, messages) = mpsc::channel(MESSAGES);
        let health = connection.health.clone();
        let background = async move {
            let stops = async {
                stopping.cancelled().await;
                health.stopping.store(true, Ordering::Relaxed);
                ended.cancelled().await;
            };
            tokio::select! {
                () = stops => {}
                () = prober::run(backends, settings.probe_timeout, settings.probe_interval) => {}
                () = report(settings.pod, &plane, wakes, &sender) => {}
            }
        };
        Ok(Started { running, messages, connection, background: Box::pin(background) })
    }
}

/// Messages for the autoscaler that may wait for the connection.
pub const MESSAGES: usize = 64;

/// Makes messages of what `plane` counts in the name of `pod`, for as long as somebody may wake. One that finds the channel
/// full is let go: the next one says what is true then.
pub async fn report(
    pod: String,
    plane: &DataPlane,
    mut wakes: mpsc::Receiver<RevisionKey>,
    messages: &mpsc::Sender<Vec<u8>>,
) {
    let mut reporter = Reporter::new(pod);
    let mut regular = tokio::time::interval_at(Instant::now() + REPORT_INTERVAL, REPORT_INTERVAL);
    regular.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            // What is told at once has to be known before the message that takes it off again.
            biased;
            woken = wakes.recv() => match woken {
                Some(key) => Some(reporter.at_once(&key)),
                None => return,
            },
            _ = regular.tick() => reporter.regular(&plane.collect(Instant::now())),
        };
        if let Some(message) = message
            && messages.try_send(message).is_err()
        {
            tracing::debug!("a message to the autoscaler was dropped: there is no connection");
        }
    }
}
