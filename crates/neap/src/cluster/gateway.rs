//! `neap gateway`: the data plane of a cluster. One process is ingress and activator in one hop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use neap_api::keys::{config, networking};
use neap_dataplane::activator;
use neap_dataplane::{DataPlane, Door, Gateway, GatewayListener};
use prometheus_client::registry::Registry as Metrics;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Base, Error, listen, ready};
use crate::parts::Ended;
use crate::{args, reporting};

/// Variable: this pod's address, by which it finds itself among the endpoints of the gateways' Service.
const POD_IP: &str = "POD_IP";
/// How long requests may still come in after the signal, until kube-proxy and load balancers know. Half of the 30 s that a
/// pod has by default to end.
const PROPAGATION: Duration = Duration::from_secs(15);

pub(super) async fn run(flags: args::Gateway, env: &BTreeMap<String, String>) -> Result<(), Error> {
    // A connection is a descriptor.
    neap_runtime::raise_open_files();
    let mut base = Base::new(&flags.cluster, env).await?;
    let mut metrics = Metrics::default();
    let (plane, wakes) = match env.get(POD_IP).and_then(|ip| ip.parse().ok()) {
        Some(own) => DataPlane::among_others(networking::NEAP_INGRESS_CLASS, config::NAMESPACE, own),
        None => DataPlane::new(networking::NEAP_INGRESS_CLASS),
    };
    let listed = CancellationToken::new();
    let watches = neap_dataplane::watch::run(base.client.clone(), plane.clone(), listed.clone(), base.stop.clone());
    base.parts.spawn("gateway watches", watches);

    let mut doors = vec![
        (flags.http_port, "--http-port", Door::External, false),
        (flags.https_port, "--https-port", Door::External, true),
        (flags.internal_port, "--internal-port", Door::Local, false),
    ];
    doors.extend(flags.internal_https_port.map(|port| (port, "--internal-https-port", Door::Local, true)));
    let mut listeners = Vec::new();
    for (port, flag, door, tls) in doors {
        let address = SocketAddr::new(flags.listen, port);
        let unusable = |source| Error::Listen { address, flag, source };
        let socket = listen(address, flag).await?.into_std().map_err(unusable)?;
        let trust_forwarded = flags.trust_forwarded && door == Door::External;
        listeners.push(GatewayListener { socket, door, tls, trust_forwarded });
    }
    let settings = base.settings.borrow().clone();
    let dataplane = neap_dataplane::Config {
        server: neap_proxy::ServerConfig {
            drain_timeout: Duration::from_secs(flags.drain_seconds),
            ..Default::default()
        },
        https_port: settings.neap.external_https_port,
        cluster_domain: settings.neap.cluster_domain.clone(),
        ..Default::default()
    };
    // What is counted here is what the autoscaler goes by.
    let (sender, messages) = mpsc::channel(activator::MESSAGES);
    let (pod, counted) = (super::host_name(), plane.clone());
    base.parts.spawn_endless("statistics", async move { activator::report(pod, &counted, wakes, &sender).await });
    let autoscaler = flags
        .autoscaler
        .unwrap_or_else(|| format!("autoscaler.{}.svc.{}:8080", config::NAMESPACE, settings.neap.cluster_domain));
    let (host, port) = autoscaler
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)))
        .ok_or(Error::Autoscaler(autoscaler.clone()))?;
    base.parts.spawn_endless("autoscaler", async move { reporting::send(&host, port, messages, |_| {}).await });
    // Before that every host would be unknown, and nobody shall count us as ready.
    tokio::select! {
        () = listed.cancelled() => {}
        () = base.signals.any() => return Ok(()),
        fault = base.parts.failed() => return Err(fault),
    }
    let gateway = Gateway::new(dataplane, plane.clone(), &mut metrics);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // Requests in flight end before the watches they live on.
    let closing = CancellationToken::new();
    let mut running = gateway.start(listeners, workers, closing.clone()).map_err(Error::Gateway)?;
    base.admin(flags.metrics, metrics).await?;
    ready("gateway");

    let Base { mut signals, mut parts, stop, leaving, .. } = base;
    let result = tokio::select! {
        () = signals.any() => {
            tracing::info!("told to end: serving until all routers know");
            leaving.cancel();
            // Told twice, it ends at once.
            tokio::select! {
                () = tokio::time::sleep(PROPAGATION) => {}
                () = signals.any() => {}
            }
            Ok(())
        }
        fault = parts.failed() => Err(fault),
        () = running.failed() => Err(Ended { part: "a worker of the gateway" }.into()),
    };
    closing.cancel();
    // It ends by itself: it cuts what is left after `--drain-seconds`.
    running.join().await;
    stop.cancel();
    parts.join().await;
    result
}
