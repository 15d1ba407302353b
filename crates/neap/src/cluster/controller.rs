//! `neap controller` and `neap autoscaler`: what decides. Of several copies one acts; the others stand by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use neap_controllers::autoscaler::{self, ActivationProbe, AlwaysInPath, Autoscaler};
use neap_controllers::{Controllers, Credentials, DigestResolver, Election, ServedBoard};
use neap_runtime::image::{Registries, ResolveError};
use prometheus_client::registry::Registry as Metrics;
use tokio_util::sync::CancellationToken;

use super::gateways::Prober;
use super::path::PathProbe;
use super::scrape::Statistics;
use super::{Base, Error, host_name, listen, pushed, ready};
use crate::args;
use crate::process::follow_registries;

/// Controllers, and the autoscaler unless it runs elsewhere.
pub(super) async fn controller(flags: args::Controller, env: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut base = Base::new(&flags.cluster, env).await?;
    let mut metrics = Metrics::default();

    let board = Arc::new(ServedBoard::default());
    let prober = Prober::new(base.client.clone(), base.settings.clone(), board.clone());
    let registries = Registries::new(&neap_runtime::image::Config::default());
    let told = registries.clone();
    let following = follow_registries(base.settings.clone(), move |named| told.set_registries(named));
    base.parts.spawn_endless("registries", following);
    let controllers = Controllers {
        client: base.client.clone(),
        settings: base.settings.clone(),
        digests: Arc::new(Registry(registries)),
        gateway: board,
        clock: base.clock.clone(),
        metrics: neap_controllers::Metrics::register(&mut metrics),
        autoscaler: None,
    };
    let lead = Lead::new(&base, "controller");
    let stop = base.stop.clone();
    base.parts.spawn_fallible("controllers", async move {
        lead.run(stop, |leading| async move {
            let started = CancellationToken::new();
            let told = started.clone();
            let running = async {
                // Who stands by need not know what gateways serve.
                tokio::select! {
                    result = controllers.run(started, leading) => result,
                    () = prober.run() => unreachable!("it asks for ever"),
                }
            };
            tokio::pin!(running);
            tokio::select! {
                result = &mut running => return result.map_err(Error::from),
                () = told.cancelled() => ready("controller"),
            }
            running.await.map_err(Error::from)
        })
        .await
    });
    if !flags.no_autoscaler {
        start_autoscaler(&mut base, &flags.autoscaling, &mut metrics).await?;
    }
    base.admin(flags.metrics, metrics).await?;
    base.serve().await
}

/// The autoscaler alone.
pub(super) async fn autoscaler(flags: args::Autoscaler, env: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut base = Base::new(&flags.cluster, env).await?;
    let mut metrics = Metrics::default();
    start_autoscaler(&mut base, &flags.autoscaling, &mut metrics).await?;
    base.admin(flags.metrics, metrics).await?;
    base.serve().await
}

async fn start_autoscaler(base: &mut Base, flags: &args::Autoscaling, metrics: &mut Metrics) -> Result<(), Error> {
    let listener = listen(flags.statistics, "--statistics").await?;
    let statistics = Arc::new(Statistics::new());
    base.parts.spawn_endless("pods", statistics.clone().watch(base.client.clone()));
    let leading = CancellationToken::new();
    base.parts.spawn("statistics", pushed::serve(listener, statistics.clone(), leading.clone(), base.stop.clone()));
    let probe: Arc<dyn ActivationProbe> = match flags.always_in_path {
        true => Arc::new(AlwaysInPath),
        false => Arc::new(PathProbe::new(base.settings.clone())),
    };
    let autoscaler = Autoscaler {
        client: base.client.clone(),
        settings: base.settings.clone(),
        stats: statistics,
        probe,
        clock: base.clock.clone(),
        metrics: autoscaler::Metrics::register(metrics),
    };
    let lead = Lead::new(base, "autoscaler");
    let stop = base.stop.clone();
    base.parts.spawn_fallible("autoscaler", async move {
        lead.run(stop, |stop| async move {
            leading.cancel();
            ready("autoscaler");
            autoscaler.run(stop).await;
            Ok(())
        })
        .await
    });
    Ok(())
}

/// Work that only the holder of a Lease may do.
struct Lead(Election);

impl Lead {
    fn new(base: &Base, component: &str) -> Self {
        Self(Election {
            client: base.client.clone(),
            component: component.to_owned(),
            // Two processes on one host are two candidates.
            identity: format!("{}_{:016x}", host_name(), fastrand::u64(..)),
            settings: base.settings.clone(),
            clock: base.clock.clone(),
        })
    }

    async fn run<W, F>(self, stop: CancellationToken, work: W) -> Result<(), Error>
    where
        W: FnOnce(CancellationToken) -> F,
        F: Future<Output = Result<(), Error>>,
    {
        let outcome = Mutex::new(Err(Error::LeadLost));
        self.0
            .run(stop.clone(), |leading| async {
                let result = work(leading).await;
                if result.is_err() || stop.is_cancelled() {
                    *outcome.lock().unwrap_or_else(PoisonError::into_inner) = result;
                }
            })
            .await;
        if stop.is_cancelled() {
            return Ok(());
        }
        outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Digests from the registries that images name.
struct Registry(Registries);

impl DigestResolver for Registry {
    fn resolve(&self, image: String, credentials: Credentials) -> BoxFuture<'static, Result<String, String>> {
        let registries = self.0.clone();
        async move {
            let mut known = Vec::new();
            for config in &credentials.docker_configs {
                known.extend(
                    neap_node::kubelet::docker_credentials(config.as_bytes())
                        .map_err(|error| format!("a pull secret is no docker configuration: {error}"))?,
                );
            }
            registries.resolve(&image, &known).await.map_err(|error| match error {
                ResolveError::InvalidName { problem, .. } => format!("could not parse reference: {problem}"),
                ResolveError::Registry { problem, .. } => problem.to_string(),
            })
        }
        .boxed()
    }
}
