//! The autoscaler: measures each Revision, decides how many instances it should have, and sees to it.
//!
//! One task owns all state. Watches, measurements, wakes and finished API calls reach it as values; what it wants of
//! the API it hands to short jobs, at most one of a kind per Revision. Rules live in `neap_logic::scale` and
//! `neap_logic::plan::podautoscaler`; nothing is decided here. A Revision at zero without traffic is parked: it costs
//! no timer until a wake.

mod api;
#[cfg(test)]
mod api_tests;
mod clock;
mod engine;
mod metrics;
mod ports;
mod scaler;
#[cfg(test)]
mod tests;
mod timers;
mod watch;
mod world;

pub use clock::Clock;
pub use metrics::Metrics;
pub use ports::{ActivationProbe, AlwaysInPath, ProbeTarget, Sample, Stat, StatSource, Wake, WakeSet};

use std::sync::Arc;

use kube::Client;
use neap_logic::config::Settings;
use tokio::sync::watch as latest;
use tokio_util::sync::CancellationToken;

/// What an autoscaler is made of.
pub struct Autoscaler {
    /// The API.
    pub client: Client,
    /// The platform's settings; a change takes effect at once.
    pub settings: latest::Receiver<Arc<Settings>>,
    /// Where measurements and wakes come from.
    pub stats: Arc<dyn StatSource>,
    /// Who knows whether requests would meet the activator.
    pub probe: Arc<dyn ActivationProbe>,
    /// The time.
    pub clock: Clock,
    /// What it tells about itself.
    pub metrics: Metrics,
}

impl Autoscaler {
    /// Scales until `stop`. Jobs in flight are given up then: whoever comes next plans them again.
    pub async fn run(self, stop: CancellationToken) {
        let Self { client, settings, stats, probe, clock, metrics } = self;
        let mut changes = watch::all(&client);
        engine::Engine::new(client, settings, stats, probe, clock, metrics).run(&mut changes, stop).await;
    }
}
