//! The roles on Kubernetes: the same controllers, autoscaler, admission and gateway as on one machine, against a cluster's
//! API server. What differs is only what the ports are plugged into: statistics are scraped and pushed, the gateway is
//! probed, digests come from registries.

mod controller;
mod gateway;
mod gateways;
mod install;
mod path;
mod pushed;
mod scrape;
mod webhook;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use neap_controllers::{Clock, SettingsFollower};
use neap_logic::config::Settings;
use prometheus_client::registry::Registry as Metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{self, Cluster};
use crate::parts::{Ended, Parts};
use crate::process::{self, Failure, Signals, now, say};

/// Which messages are shown when `NEAP_LOG` says nothing: these run where logs are collected.
const LOG_DEFAULT: &str = "info,kube=warn";
/// How long the API server may take until the config-maps are read.
const SETTINGS: Duration = Duration::from_secs(60);
/// An API server that has said nothing for so long is not there any more. It ends a watch, which may be quiet as long as it
/// lasts, after 290 s.
const SILENCE: Duration = Duration::from_secs(295);
/// How long the parts of a role may take to end.
const STOP: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("signals cannot be handled")]
    Signals(#[source] io::Error),
    #[error("the kubeconfig {path} cannot be used")]
    Kubeconfig { path: String, source: Box<kube::config::KubeconfigError> },
    #[error("no cluster is known here: give --kubeconfig, or set KUBECONFIG")]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    #[error("the API server cannot be spoken to")]
    Client(#[source] Box<kube::Error>),
    #[error("the API server refused what this role needs")]
    Api(#[from] kube::Error),
    #[error("cannot listen on {address}: give another {flag}")]
    Listen { address: SocketAddr, flag: &'static str, source: io::Error },
    #[error(
        "the config-maps of knative-serving were not read within {} s: is the cluster reachable, and was `neap install` run?",
        SETTINGS.as_secs()
    )]
    NoSettings,
    #[error("the controllers ended")]
    Controllers(#[from] neap_controllers::RunError),
    #[error("the lead was lost; start again to stand for it")]
    LeadLost,
    #[error("the threads of the gateway cannot be started")]
    Gateway(#[source] io::Error),
    #[error("the certificates of the webhook cannot be made")]
    Certificates(#[from] neap_apiserver::pki::PkiError),
    #[error("the Secret {name} holds no usable certificate: {why}; delete it to have a new one made")]
    Secret { name: &'static str, why: &'static str },
    #[error("{kind} {name} cannot be written")]
    Install { kind: String, name: String, source: Box<kube::Error> },
    #[error("the definition of {0} was not accepted within a minute: see its conditions")]
    NotEstablished(String),
    #[error("--autoscaler {0:?} is no address: give HOST:PORT")]
    Autoscaler(String),
    #[error("--domain {0:?} is no domain name: give one such as apps.example.com")]
    Domain(String),
    /// Not a fault: it was told to end before it had begun.
    #[error("it was told to end")]
    Stopped,
    #[error("nothing can be printed")]
    Print(#[source] io::Error),
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Runs a role until a signal.
///
/// # Errors
/// One line that says what to do.
pub fn main(role: args::Role, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    process::log(env, LOG_DEFAULT)?;
    let run = async {
        match role {
            args::Role::Controller(flags) => controller::controller(flags, env).await,
            args::Role::Autoscaler(flags) => controller::autoscaler(flags, env).await,
            args::Role::Gateway(flags) => gateway::run(flags, env).await,
            args::Role::Webhook(flags) => webhook::run(flags, env).await,
        }
    };
    process::threads()?.block_on(run).or_else(ended)
}

/// Puts Neap onto a cluster, or prints what would be put there.
///
/// # Errors
/// One line that says what to do.
pub fn install(flags: args::Install, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    process::log(env, "warn")?;
    process::threads()?.block_on(install::run(flags, env)).or_else(ended)
}

fn ended(error: Error) -> Result<(), Failure> {
    match error {
        Error::Stopped => Ok(()),
        Error::Autoscaler(_) | Error::Domain(_) => Err(Failure::Usage(process::chain(&error))),
        other => Err(Failure::Failed(process::chain(&other))),
    }
}

/// A client: of the kubeconfig that was named, else of the cluster this runs in, else of the user's.
pub(crate) async fn connect(flags: &Cluster, env: &BTreeMap<String, String>) -> Result<Client, Error> {
    let options = KubeConfigOptions { context: flags.context.clone(), ..Default::default() };
    let named = flags.kubeconfig.clone().or_else(|| {
        let path = env.get("KUBECONFIG").filter(|path| !path.is_empty())?;
        path.split(':').map(PathBuf::from).find(|path| path.exists())
    });
    let mut config = match named {
        Some(path) => {
            let unusable = |source| Error::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
            let file = Kubeconfig::read_from(&path).map_err(unusable)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?
        }
        None => Config::infer().await.map_err(|e| Error::NoCluster(Box::new(e)))?,
    };
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).map_err(|e| Error::Client(Box::new(e)))
}

/// What every role that acts on a cluster is made of.
struct Base {
    client: Client,
    settings: watch::Receiver<Arc<Settings>>,
    clock: Clock,
    parts: Parts<Error>,
    stop: CancellationToken,
    /// Told to end, but still serving.
    leaving: CancellationToken,
    signals: Signals,
}

impl Base {
    /// Connects and reads the settings.
    async fn new(flags: &Cluster, env: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut signals = Signals::catch().map_err(Error::Signals)?;
        let client = connect(flags, env).await?;
        let stop = CancellationToken::new();
        let mut parts = Parts::new(stop.clone());
        let clock = Clock::new(now);
        let (follower, settings) = SettingsFollower::new(client.clone(), clock.clone());
        let read = CancellationToken::new();
        parts.spawn("settings", follower.run(read.clone(), stop.clone()));
        tokio::select! {
            () = read.cancelled() => {}
            () = tokio::time::sleep(SETTINGS) => return Err(Error::NoSettings),
            () = signals.any() => {
                // Nobody may go on as if there were settings: a gateway would serve nothing, a webhook register itself.
                stop.cancel();
                return Err(Error::Stopped);
            }
        }
        Ok(Self { client, settings, clock, parts, stop, leaving: CancellationToken::new(), signals })
    }

    /// Serves metrics and health.
    async fn admin(&mut self, address: SocketAddr, metrics: Metrics) -> Result<(), Error> {
        let listener = listen(address, "--metrics").await?;
        self.parts.spawn(
            "metrics",
            crate::up::metrics::serve(listener, Arc::new(metrics), self.leaving.clone(), self.stop.clone()),
        );
        Ok(())
    }

    /// Runs until a signal or a failure, then ends all parts.
    async fn serve(mut self) -> Result<(), Error> {
        let result = tokio::select! {
            () = self.signals.any() => Ok(()),
            () = self.stop.cancelled() => Ok(()),
            fault = self.parts.failed() => Err(fault),
        };
        self.stop.cancel();
        if tokio::time::timeout(STOP, self.parts.join()).await.is_err() {
            tracing::warn!("not every part ended in time");
        }
        result
    }
}

/// Who this process is: on Kubernetes the pod's name.
fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, flag, source })
}

/// The line scripts wait for.
fn ready(role: &str) {
    say(format_args!("ready: {role}"));
}
