//! `neap activator`: in the place of Knative's activator.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use neap_dataplane::activator::{Activator, Life, METRICS_PORT, PORTS, PROPAGATION, SECURE_PORT, Settings, Started};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::encrypted;
use crate::process::{self, Signals};
use crate::{args, reporting};

const LOG_DEFAULT: &str = "info,kube=warn";

/// Runs until the pod ends.
///
/// # Errors
/// One line that says what to do.
pub fn main(flags: &args::Activator, env: &BTreeMap<String, String>) -> Result<(), String> {
    process::log(env, LOG_DEFAULT)?;
    let settings = Settings::from_env(env).map_err(|e| e.to_string())?;
    process::threads()?.block_on(run(flags, env, settings))
}

async fn run(flags: &args::Activator, env: &BTreeMap<String, String>, settings: Settings) -> Result<(), String> {
    let mut signals = Signals::catch().map_err(|e| format!("signals cannot be handled: {e}"))?;
    let client = crate::cluster::connect(&flags.cluster, env).await.map_err(|e| process::chain(&e))?;
    let (life, listed) = (Life::default(), CancellationToken::new());
    let (host, port) = settings.autoscaler();
    let encrypted = encrypted::read(&client, &settings.namespace).await?;
    let mut activator = Activator::new(settings);
    let watches = neap_dataplane::watch::activator(client, activator.plane(), listed.clone(), life.ended.clone());
    let mut watches = std::pin::pin!(watches);
    let mut sockets = PORTS.iter().map(|port| listen(*port)).collect::<Result<Vec<_>, _>>()?;
    let mut renewal = None;
    if let Some((tls, renews)) = encrypted {
        activator = activator.with_tls(tls);
        sockets.push(listen(SECURE_PORT)?);
        renewal = Some(renews);
    }
    let renewal = async {
        if let Some(renewal) = renewal {
            renewal.run().await;
        }
    };
    // Before that every Revision would be unknown; who comes earlier waits in the sockets' backlog.
    tokio::select! {
        () = listed.cancelled() => {}
        () = &mut watches => {}
        () = signals.any() => return Ok(()),
    }
    let metrics = match flags.metrics {
        None => listen(METRICS_PORT)?,
        Some(at) => TcpListener::bind(at).map_err(|e| format!("cannot listen on {at} (--metrics): {e}"))?,
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let started =
        activator.start(sockets, metrics, workers, &life).map_err(|e| format!("the machine gives no threads: {e}"))?;
    let Started { running, messages, connection, background } = started;
    process::say("ready: activator");
    let end = async {
        signals.any().await;
        tracing::info!("told to end: serving until all routers know");
        life.stopping.cancel();
        sleep(PROPAGATION).await;
        life.shutdown.cancel();
        running.join().await;
        life.ended.cancel();
    };
    tokio::select! {
        () = end => Ok(()),
        // Requests in flight live on these.
        () = async {
            let sending = reporting::send(&host, port, messages, |up| connection.set(up));
            tokio::join!(watches, background, sending, renewal);
            std::future::pending::<()>().await;
        } => Ok(()),
    }
}

/// On IPv6 and IPv4, or on IPv4 where there is no other.
fn listen(port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|e| format!("cannot listen on port {port}: {e}"))
}
