//! All parts of the platform, put together: what is made of what, in which order it starts, and in which it ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::{Client, ResourceExt};
use neap_api::keys::networking::SERVICE_TYPE;
use neap_controllers::autoscaler::{self, AlwaysInPath, Autoscaler};
use neap_controllers::{Authority, AuthorityError, Clock, Controllers, ServedBoard, SettingsFollower};
use neap_dataplane::{DataPlane, Door, Gateway, GatewayListener};
use neap_node::kubelet::{self, ApiAccess, Kubelet, Machine, Surroundings};
use neap_node::{
    claims, deployments, dns, endpoints as addresses, events, gc, namespaces, quota, registry, service_ports,
};
use neap_runtime::image::Images;
use neap_runtime::pod::PodRuntime;
use prometheus_client::registry::Registry as Metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::certificates::Fallback;
use super::config::Config;
use super::data_dir::{self, DataDir};
use super::endpoints::{Endpoints, dialable};
use super::ports::{Drains, Resolver, Stats, mirror_ingress_status};
use super::pulls::Pulls;
use super::{bootstrap, logs, shipping};
use crate::args;
use crate::parts::{Ended, Parts};
use crate::process::{follow_registries, now, say};

/// The cluster's own domain.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// This machine as a node.
const NODE: &str = "neap";
/// Pods a machine may have: the addresses of the pod network would allow more.
const PODS: u32 = 1000;
/// The gateway's port for the inside, where pods have a network of their own: what `http://SERVICE` means.
const INTERNAL_PORT: u16 = 80;
/// The same with TLS: what `https://SERVICE` means.
const INTERNAL_TLS_PORT: u16 = 443;
const DNS_PORT: u16 = 53;
/// How long the parts may take until everything serves.
const START: Duration = Duration::from_secs(60);
/// How long requests in flight may take at the end: Knative's longest request.
const DRAIN: Duration = Duration::from_secs(600);
/// After so long a person is told why nothing seems to happen.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long pods may take to end when the platform is stopped by hand.
const POD_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the size of the disk with the data directory cannot be found out")]
    Disk(#[source] io::Error),
    #[error("signals cannot be handled")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    #[error("{what} cannot listen on {address}: {}", remedy(flag))]
    Listen { what: &'static str, address: SocketAddr, flag: &'static str, source: io::Error },
    #[error("a bound socket cannot be used")]
    Socket(#[source] io::Error),
    #[error("the store {path} cannot be opened")]
    Store { path: PathBuf, source: neap_store::Error },
    #[error("the certificates of this platform cannot be made")]
    Pki(#[from] neap_apiserver::pki::PkiError),
    #[error("the certificates of the gateway cannot be made")]
    Authority(#[from] AuthorityError),
    #[error(
        "the key that signs tokens cannot be used: remove pki/sa.key from the data directory to have a new one made"
    )]
    Signer(#[from] neap_apiserver::auth::token::SignerError),
    #[error("the kinds of the platform cannot be served")]
    Kinds(#[from] neap_apiserver::KindError),
    #[error("the audit log {path} cannot be written: see that its folder exists and the disk has room")]
    AuditLog { path: PathBuf, source: io::Error },
    #[error("images cannot be kept")]
    Images(#[source] neap_runtime::image::StoreError),
    #[error("pods cannot be run")]
    Runtime(#[source] neap_runtime::OpenError),
    #[error("the platform's own API refused what it needs")]
    Api(#[from] kube::Error),
    #[error("the controllers did not start")]
    Controllers(#[from] neap_controllers::RunError),
    #[error("not everything was ready within {} s: the messages above say what is missing", START.as_secs())]
    Slow,
    #[error("the threads of the gateway cannot be started")]
    Gateway(#[source] io::Error),
    #[error("the sample cannot be packed")]
    Sample(#[source] io::Error),
    #[error("the sample is not ready: {why}")]
    Demo { why: String },
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// What becomes of pods when the platform stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// They end too; their objects stay, and bring them back at the next start.
    Whole,
    /// They go on, and the next start takes them over.
    LeavePods,
}

pub struct Platform {
    client: Client,
    images: Images,
    runtime: Arc<neap_runtime::Runtime>,
    endpoints: Endpoints,
    data: DataDir,
    store: neap_store::Store,
    gateway: neap_proxy::Running,
    /// Stops the gateway: first, while pods still answer.
    gateway_stop: CancellationToken,
    /// Everything between the gateway and the API.
    parts: Parts<Error>,
    stop: CancellationToken,
    api_parts: Parts<Error>,
    api_stop: CancellationToken,
}

impl Platform {
    /// Opens, binds, starts, and waits until everything serves.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let stop = CancellationToken::new();
        let gateway_stop = CancellationToken::new();
        let clock = Clock::new(now);
        let data = DataDir::hold(&config.data_dir)?;

        let sockets = Sockets::bind(&config).await?;
        let registry_name = dialable(sockets.registry.local_addr().map_err(Error::Socket)?).to_string();
        let runtime = neap_runtime::Runtime::open(neap_runtime::Config {
            data_dir: data.runtime(),
            mode: mode(config.runtime),
            pod_cidr: config.pod_cidr.clone(),
            images: neap_runtime::image::Config::default(),
        })
        .await
        .map_err(Error::Runtime)?;
        let images = runtime.images().clone();
        images.set_local_registries(&local_names(&registry_name));
        // Where pods have a network of their own, they find the platform at its first address.
        let bridge = runtime.gateway();
        let pods: Arc<dyn PodRuntime> = runtime.clone();

        let path = data.store();
        let opened = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || neap_store::Store::open(&path, neap_store::Options::default()))
        };
        let store = opened.await.expect("opening a store does not panic");
        let store = store.map_err(|source| Error::Store { path, source })?;
        // Its users end before it does.
        let api_stop = CancellationToken::new();
        let api = Api::new(&config, &data, store.clone(), bridge, api_stop.clone())?;
        let client = api.client();

        let mut api_parts = Parts::new(api_stop.clone());
        api.serve(&mut api_parts, sockets.api, bridge).await?;
        let mut parts = Parts::new(stop.clone());

        let internal = Internal::bind(bridge).await?;
        let endpoints = Endpoints {
            api: api.address(),
            http: sockets.http.local_addr().map_err(Error::Socket)?,
            https: sockets.https.local_addr().map_err(Error::Socket)?,
            registry: sockets.registry.local_addr().map_err(Error::Socket)?,
            metrics: sockets.metrics.local_addr().map_err(Error::Socket)?,
        };
        let facts = bootstrap::Facts {
            domain: config.domain.clone(),
            listen: config.listen,
            http_port: endpoints.http.port(),
            https_port: endpoints.https.port(),
            internal: (internal.gateway_address.ip(), internal.gateway_address.port()),
            internal_https_port: internal.gateway_tls.local_addr().map_err(Error::Socket)?.port(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        bootstrap::run(&client, &facts).await?;
        // From here on pods reach the platform's own doors on this machine, and nothing else of it.
        if let Err(error) =
            runtime.guard(&[DNS_PORT, INTERNAL_PORT, INTERNAL_TLS_PORT, endpoints.api.port()], &[DNS_PORT])
        {
            tracing::warn!(%error, "pods can reach everything that listens on this machine");
        }

        // Settings first: everything below reads them.
        let (follower, settings) = SettingsFollower::new(client.clone(), clock.clone());
        let settings_read = CancellationToken::new();
        parts.spawn("settings", follower.run(settings_read.clone(), stop.clone()));
        within(&mut [&mut parts, &mut api_parts], settings_read.cancelled()).await?;
        api.follow(settings.clone());
        let registries = images.clone();
        parts.spawn_endless(
            "registries",
            follow_registries(settings.clone(), move |named| registries.set_registries(named)),
        );

        let mut metrics = Metrics::default();
        metrics.register_collector(Box::new(Pulls(images.clone())));
        // Nowhere, until its headers are known.
        let wished = neap_node::logs::Settings { target: None, ..shipping::translate(&settings.borrow(), NODE) };
        let (logs_wished, logs_settings) = tokio::sync::watch::channel(Arc::new(wished));
        let shelf = runtime.shelf().clone();
        let follow = shipping::follow(settings.clone(), client.clone(), shelf.clone(), logs_wished, NODE.into());
        parts.spawn_endless("settings of logs", follow);
        let shipped = data.root().join("shipped-logs.json");
        let told = neap_node::logs::Metrics::register(&mut metrics);
        let shipper = neap_node::logs::Shipper::new(shelf, logs_settings, shipped, Arc::new(now), told);
        parts.spawn_endless("log shipping", shipper.run());
        let (plane, wakes) = DataPlane::new(neap_api::keys::networking::NEAP_INGRESS_CLASS);
        let authority = Box::pin(Authority::ensure(&client, now())).await?;
        data_dir::replace(&data.authority(), authority.pem().as_bytes(), 0o644)?;
        let fallback = Arc::new(Fallback::new(authority, plane.clone(), config.domain.as_deref(), config.listen));
        let shown = data.authority();
        let show = move |authority: &Authority| {
            if let Err(error) = data_dir::replace(&shown, authority.pem().as_bytes(), 0o644) {
                tracing::warn!(%error, "the local authority is not shown where browsers are told to look");
            }
        };
        parts.spawn_endless("local authority", fallback.clone().follow(client.clone(), show));
        let gateway = neap_dataplane::Config { fallback_certificate: Some(fallback), ..gateway_config(&endpoints) };
        let gateway = Gateway::new(gateway, plane.clone(), &mut metrics);
        let listed = CancellationToken::new();
        let watches = neap_dataplane::watch::run(client.clone(), plane.clone(), listed.clone(), stop.clone());
        parts.spawn("gateway watches", watches);
        // Before that every host would be unknown; who comes earlier waits in the sockets' backlog.
        within(&mut [&mut parts, &mut api_parts], listed.cancelled()).await?;
        let mut listeners = vec![
            GatewayListener {
                socket: blocking(sockets.http)?,
                door: Door::External,
                tls: false,
                trust_forwarded: config.trust_forwarded,
            },
            GatewayListener {
                socket: blocking(sockets.https)?,
                door: Door::External,
                tls: true,
                trust_forwarded: config.trust_forwarded,
            },
        ];
        for (socket, tls) in [(internal.gateway, false), (internal.gateway_tls, true)] {
            let socket = blocking(socket)?;
            listeners.push(GatewayListener { socket, door: Door::Local, tls, trust_forwarded: false });
        }
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let gateway = gateway.start(listeners, workers, gateway_stop.clone()).map_err(Error::Gateway)?;

        let board = Arc::new(ServedBoard::default());
        parts.spawn_endless("ingress status", mirror_ingress_status(plane.ingress_status(), board.clone()));
        let stats = Arc::new(Stats::new(plane.clone()));
        parts.spawn_endless("wakes", stats.clone().forward(wakes));
        let autoscaler = Autoscaler {
            client: client.clone(),
            settings: settings.clone(),
            stats,
            probe: Arc::new(AlwaysInPath),
            clock: clock.clone(),
            metrics: autoscaler::Metrics::register(&mut metrics),
        };
        let controllers = Controllers {
            client: client.clone(),
            settings,
            digests: Arc::new(Resolver::new(images.clone())),
            gateway: board,
            clock,
            metrics: neap_controllers::Metrics::register(&mut metrics),
            autoscaler: Some(autoscaler),
        };
        let controllers_ready = CancellationToken::new();
        parts.spawn_fallible("controllers", controllers.run(controllers_ready.clone(), stop.clone()));

        let drains = Arc::new(Drains::new(plane.clone()));
        if let Some((server, _)) = internal.dns {
            parts.spawn("dns", server.run(client.clone(), stop.clone()));
        }
        parts.spawn("registry", registry::serve(sockets.registry, images.clone(), stop.clone()));
        parts.spawn("deployments", deployments::run(client.clone(), drains.clone(), now, stop.clone()));
        parts.spawn("endpoints", addresses::run(client.clone(), stop.clone()));
        // Where pods share the machine's network each has ports of its own, and none can be led to another.
        if bridge.is_some() {
            let mapped = runtime.clone();
            let lead: service_ports::Apply = Arc::new(move |ports, own| mapped.map_ports(ports, own));
            // The gateway knows a revision's private Service by its endpoints; nobody calls it by its name.
            let is_called: service_ports::IsCalled =
                |service| service.labels().get(SERVICE_TYPE).is_none_or(|kind| kind != "Private");
            parts.spawn("service ports", service_ports::run(client.clone(), lead, is_called, stop.clone()));
        }
        parts.spawn("namespaces", namespaces::run(client.clone(), api.authority().to_owned(), stop.clone()));
        // Asked at the API's door, so that a pod beyond its quota is not even made.
        let quotas = quota::Quotas::default();
        let asked = quotas.clone();
        api.registry().admit("", "Pod", Arc::new(move |request| asked.admit(request)));
        parts.spawn("quota", quota::keep_true(client.clone(), quotas, stop.clone()));
        parts.spawn("claims", claims::run(client.clone(), stop.clone()));
        parts.spawn("events", events::run(client.clone(), now, stop.clone()));
        parts.spawn("garbage collection", gc::run(client.clone(), stop.clone()));
        let disk = neap_runtime::size_of_disk(data.root()).map_err(Error::Disk)?;
        let machine = Machine::read(NODE, node_address(bridge, config.listen), PODS, disk, pods.describe());
        let around = Surroundings {
            node: machine.facts.clone(),
            cluster_dns: bridge.map(IpAddr::V4).into_iter().collect(),
            cluster_domain: CLUSTER_DOMAIN.into(),
            host_dns: kubelet::read_resolv_conf(
                &std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
                bridge.is_none(),
            ),
            claims: data.volumes(),
            // Without a network of its own a pod has no volumes either, and so nowhere to put a token.
            api: bridge.map(|ip| ApiAccess {
                host: ip.to_string(),
                port: endpoints.api.port(),
                authority: api.authority().as_bytes().to_vec(),
            }),
        };
        let kubelet = kubelet::Config {
            machine,
            around,
            schedule: true,
            drain: drains,
            clock: Arc::new(now),
            past: data.root().join("past-pods.json"),
        };
        let kubelet = Kubelet::new(kubelet, client.clone(), pods.clone(), stop.clone());
        logs::attach(api.registry(), kubelet.clone());
        super::exec::attach(api.registry(), &kubelet);
        super::top::attach(api.registry(), &kubelet)?;
        parts.spawn("images", kubelet::collect_images(client.clone(), images.clone(), pods.clone(), stop.clone()));
        parts.spawn("kubelet", async move { kubelet.run().await });
        parts.spawn(
            "metrics",
            super::metrics::serve(sockets.metrics, Arc::new(metrics), gateway_stop.clone(), stop.clone()),
        );

        within(&mut [&mut parts, &mut api_parts], controllers_ready.cancelled()).await?;
        data_dir::replace(&data.kubeconfig(), api.kubeconfig(&endpoints.api_url())?.as_bytes(), 0o600)?;
        data_dir::replace(&data.endpoints(), endpoints.json().as_bytes(), 0o644)?;
        Ok(Self {
            client,
            images,
            runtime,
            endpoints,
            data,
            store,
            gateway,
            gateway_stop,
            parts,
            stop,
            api_parts,
            api_stop,
        })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn images(&self) -> &Images {
        &self.images
    }

    /// `host:port` of the registry, as image names spell it.
    pub fn registry(&self) -> String {
        dialable(self.endpoints.registry).to_string()
    }

    /// What a person wants to know first.
    pub fn banner(&self) -> Vec<String> {
        vec![
            format!("runtime    {}", self.runtime.describe()),
            format!("data       {}", self.data.root().display()),
            format!("api        {}", self.endpoints.api_url()),
            format!("gateway    {}", self.endpoints.http_url()),
            format!("https      {}, trusted with {}", self.endpoints.https_url(), self.data.authority().display()),
            format!("registry   {}", self.registry()),
            format!("kubectl    export KUBECONFIG={}", self.data.kubeconfig().display()),
        ]
    }

    /// The one line scripts wait for.
    pub fn ready_line(&self) -> String {
        format!("ready: {}", self.endpoints.http_url())
    }

    /// Resolves when a part that should run for ever has ended.
    pub async fn failed(&mut self) -> Error {
        first_failure(&mut [&mut self.parts, &mut self.api_parts]).await
    }

    /// Requests in flight end first, then the controllers, then the API; the store last. The gateway cuts what is left
    /// after [`DRAIN`], and `hurry` ends the wait for it.
    pub async fn stop(self, ending: Ending, hurry: impl Future<Output = ()>) {
        self.gateway_stop.cancel();
        let Self { gateway, parts, stop, api_parts, api_stop, runtime, store, data, .. } = self;
        let mut gateway = std::pin::pin!(gateway.join());
        if tokio::time::timeout(PATIENCE, &mut gateway).await.is_err() {
            say("requests are in flight; waiting for their end. Ctrl-C cuts them.");
            tokio::select! {
                () = gateway => {}
                () = hurry => tracing::warn!("told twice to end: requests in flight are cut"),
            }
        }
        for (stop, parts) in [(stop, parts), (api_stop, api_parts)] {
            stop.cancel();
            parts.join().await;
        }
        if ending == Ending::Whole {
            let ends = runtime.list().into_iter().map(|pod| {
                let runtime = runtime.clone();
                async move { runtime.remove(&pod.id, POD_GRACE).await }
            });
            for result in futures::future::join_all(ends).await {
                if let Err(error) = result {
                    tracing::warn!(%error, "a pod could not be stopped");
                }
            }
        }
        runtime.shutdown().await;
        if let Err(error) = store.close() {
            tracing::error!(%error, "the last writes may not be on disk");
        }
        drop(data);
    }
}

/// The sockets that flags name.
struct Sockets {
    api: TcpListener,
    http: TcpListener,
    https: TcpListener,
    registry: TcpListener,
    metrics: TcpListener,
}

impl Sockets {
    async fn bind(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            api: listen("the API", config.listen, config.api_port, "--api-port").await?,
            http: listen("the gateway", config.listen, config.http_port, "--http-port").await?,
            https: listen("the gateway", config.listen, config.https_port, "--https-port").await?,
            registry: listen("the registry", config.listen, config.registry_port, "--registry-port").await?,
            metrics: listen("metrics", Ipv4Addr::LOCALHOST.into(), 0, "--listen").await?,
        })
    }
}

/// What pods see: the gateway's inner door, and the name server.
struct Internal {
    gateway: TcpListener,
    gateway_tls: TcpListener,
    gateway_address: SocketAddr,
    dns: Option<(dns::Server, SocketAddr)>,
}

impl Internal {
    async fn bind(bridge: Option<Ipv4Addr>) -> Result<Self, Error> {
        let (ip, port) = bridge.map_or((Ipv4Addr::LOCALHOST, 0), |ip| (ip, INTERNAL_PORT));
        let gateway = listen("the gateway's inner door", ip.into(), port, "--pod-cidr").await?;
        let gateway_address = gateway.local_addr().map_err(Error::Socket)?;
        let port = bridge.map_or(0, |_| INTERNAL_TLS_PORT);
        let gateway_tls = listen("the gateway's inner door", ip.into(), port, "--pod-cidr").await?;
        let dns = match bridge {
            None => None,
            Some(ip) => {
                let listen = SocketAddr::from((ip, DNS_PORT));
                let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
                let upstreams = dns::upstreams(&resolv, ip.into());
                let server = dns::Server::bind(dns::Config { listen, domain: CLUSTER_DOMAIN.into(), upstreams }).await;
                let server = server.map_err(|source| Error::Listen {
                    what: "DNS",
                    address: listen,
                    flag: "--pod-cidr",
                    source,
                })?;
                Some((server, listen))
            }
        };
        Ok(Self { gateway, gateway_tls, gateway_address, dns })
    }
}

/// What to do about a socket that is taken.
fn remedy(flag: &str) -> String {
    match flag {
        flag if flag.ends_with("-port") => format!("give another {flag}, or 0 for a free port"),
        "--pod-cidr" => "another platform or name server has that address; give another --pod-cidr".to_owned(),
        flag => format!("give another {flag}"),
    }
}

pub(super) async fn listen(
    what: &'static str,
    ip: IpAddr,
    port: u16,
    flag: &'static str,
) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(ip, port);
    TcpListener::bind(address).await.map_err(|source| Error::Listen { what, address, flag, source })
}

/// The gateway's threads have runtimes of their own and want plain sockets.
fn blocking(listener: TcpListener) -> Result<std::net::TcpListener, Error> {
    listener.into_std().map_err(Error::Socket)
}

async fn within(parts: &mut [&mut Parts<Error>], ready: impl Future<Output = ()>) -> Result<(), Error> {
    tokio::select! {
        () = ready => Ok(()),
        fault = first_failure(parts) => Err(fault),
        () = tokio::time::sleep(START) => Err(Error::Slow),
    }
}

async fn first_failure(parts: &mut [&mut Parts<Error>]) -> Error {
    futures::future::select_all(parts.iter_mut().map(|parts| Box::pin(parts.failed()))).await.0
}

fn gateway_config(endpoints: &Endpoints) -> neap_dataplane::Config {
    let server = neap_proxy::ServerConfig { drain_timeout: DRAIN, ..Default::default() };
    neap_dataplane::Config { server, https_port: endpoints.https.port(), ..Default::default() }
}

/// Every way to write the registry of this machine in the name of an image.
fn local_names(registry: &str) -> [String; 3] {
    let port = registry.rsplit_once(':').map_or(registry, |(_, port)| port);
    [registry.to_owned(), format!("localhost:{port}"), format!("127.0.0.1:{port}")]
}

fn mode(flag: args::Runtime) -> neap_runtime::Mode {
    match flag {
        args::Runtime::Auto => neap_runtime::Mode::Auto,
        args::Runtime::Container => neap_runtime::Mode::Container,
        args::Runtime::Rootless => neap_runtime::Mode::Rootless,
        args::Runtime::Process => neap_runtime::Mode::Process,
    }
}

/// Where pods and users reach this machine.
fn node_address(bridge: Option<Ipv4Addr>, listen: IpAddr) -> IpAddr {
    bridge.map_or_else(|| dialable(SocketAddr::new(listen, 0)).ip(), IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_itself_lets_requests_end() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let endpoints = Endpoints { api: at(1), http: at(2), https: at(3), registry: at(4), metrics: at(5) };
        assert_eq!(gateway_config(&endpoints).server.drain_timeout, DRAIN);
    }
}
