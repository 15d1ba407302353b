//! All controllers together: caches first, then the loops, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use neap_logic::config::Settings;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::autoscaler::{Autoscaler, Clock};
use crate::caches::Caches;
use crate::certificates;
use crate::digests;
use crate::events;
use crate::kinds::{self, Queues};
use crate::metrics::Metrics;
use crate::ports::{DigestResolver, GatewayStatus};
use crate::reconcilers::{
    Certificates, Configurations, DomainMappings, Garbage, Ingresses, Labeler, Revisions, Routes, ServerlessServices,
    Services, Wildcards,
};
use crate::shell::{self, Shared, Told};

/// How often everything is looked at again without being told to. Changes come by watch; this is for the one
/// that was missed.
const RESYNC: Duration = Duration::from_secs(10 * 60);
/// How long the API may take to list every kind at the start.
const FIRST_LISTING: Duration = Duration::from_secs(120);
/// How long looks under way may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// What the controllers are made of.
pub struct Controllers {
    /// The API.
    pub client: Client,
    /// The settings; a change takes effect at once.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Who knows digests of images.
    pub digests: Arc<dyn DigestResolver>,
    /// Who knows what the gateway serves.
    pub gateway: Arc<dyn GatewayStatus>,
    /// The time.
    pub clock: Clock,
    /// What they tell about themselves.
    pub metrics: Metrics,
    /// The autoscaler, where it runs in this process.
    pub autoscaler: Option<Autoscaler>,
}

/// Why the controllers could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some kind could not be listed.
    #[error(
        "the API server did not list every kind within {seconds} s: see the warnings about watches, and whether all kinds are installed"
    )]
    NotListed {
        /// How long was waited.
        seconds: u64,
    },
    /// A task that should have gone on did not.
    #[error("a part of the controllers ended early; start them again")]
    Ended {
        /// Its panic, if it was one.
        source: Option<JoinError>,
    },
}

impl Controllers {
    /// Runs until `stop`. `ready` is cancelled when every cache is filled and every controller works.
    pub async fn run(self, ready: CancellationToken, stop: CancellationToken) -> Result<(), RunError> {
        let Self { client, settings, digests, gateway, clock, metrics, autoscaler } = self;
        let queues = Arc::new(Queues::default());
        let mut caches = Caches::default();
        let watches = kinds::register(&mut caches, &queues);
        let caches = Arc::new(caches);

        // Dropped at the end, which ends the watches and all else that only waits.
        let mut background = JoinSet::new();
        let (listed, mut all_listed) = mpsc::channel(1);
        for watch in watches {
            background.spawn(watch(client.clone(), caches.clone(), listed.clone()));
        }
        drop(listed);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // Every watch drops its sender with its first listing; nothing is ever sent.
            waited = timeout(FIRST_LISTING, all_listed.recv()) => {
                if waited.is_err() {
                    return Err(RunError::NotListed { seconds: FIRST_LISTING.as_secs() });
                }
            }
        }
        debug!("every kind is listed");

        let (recorder, writer) = events::channel(client.clone());
        background.spawn(writer.run());
        let (digests, asker) = digests::pair(digests, client.clone(), queues.revision.clone());
        background.spawn(asker.run(stop.clone()));
        let certificates =
            certificates::pair(client.clone(), caches.clone(), clock.clone(), queues.certificate.clone());
        let (desk, clerk) = certificates;
        background.spawn(clerk.run(stop.clone()));
        background.spawn(follow_gateway(gateway.clone(), queues.clone()));
        background.spawn(look_again(settings.clone(), queues.clone(), caches.clone()));

        let shared =
            Arc::new(Shared { client, caches, settings, clock, events: recorder, metrics, told: Told::default() });
        let mut loops = JoinSet::new();
        macro_rules! start {
            ($reconciler:expr, $queue:ident) => {
                loops.spawn(shell::work($reconciler, queues.$queue.clone(), shared.clone(), stop.clone()))
            };
        }
        start!(Services, service);
        start!(Configurations, configuration);
        start!(Revisions { digests }, revision);
        start!(Routes, route);
        start!(Labeler, labeler);
        start!(ServerlessServices, serverless_service);
        start!(DomainMappings, domain_mapping);
        start!(Garbage, garbage);
        start!(Ingresses { gateway }, ingress);
        start!(Wildcards, wildcard);
        start!(Certificates { desk }, certificate);
        if let Some(autoscaler) = autoscaler {
            loops.spawn(autoscaler.run(stop.clone()));
        }
        ready.cancel();
        info!("controllers run");

        let ended = tokio::select! {
            () = stop.cancelled() => None,
            // None of these ends by itself.
            Some(ended) = background.join_next() => Some(ended),
            Some(ended) = loops.join_next() => Some(ended),
        };
        let drained = async { while loops.join_next().await.is_some() {} };
        if timeout(DRAIN, drained).await.is_err() {
            debug!("some looks did not end in time; they are made again at the next start");
        }
        match ended {
            Some(ended) if !stop.is_cancelled() => Err(RunError::Ended { source: ended.err() }),
            _ => Ok(()),
        }
    }
}

/// Looks at Ingresses about which the gateway has news.
async fn follow_gateway(gateway: Arc<dyn GatewayStatus>, queues: Arc<Queues>) {
    loop {
        for ingress in gateway.changed().await {
            queues.ingress.add(ingress);
        }
    }
}

/// Looks at everything now and then, and whenever the settings change.
async fn look_again(mut settings: watch::Receiver<Arc<Settings>>, queues: Arc<Queues>, caches: Arc<Caches>) {
    let mut timer = interval(RESYNC);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let open = tokio::select! {
            _ = timer.tick() => true,
            changed = settings.changed() => changed.is_ok(),
        };
        queues.add_all(&caches);
        if !open {
            // Nobody will change the settings any more; the timer goes on alone.
            loop {
                timer.tick().await;
                queues.add_all(&caches);
            }
        }
    }
}
