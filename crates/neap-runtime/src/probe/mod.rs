//! Is a container well? When to ask, what the answers add up to, and the questions that go over the network.
//!
//! When and what-it-means are pure ([`Cadence`], [`Verdicts`]); a question is one bounded exchange on a fresh
//! connection, from the machine to the pod's address.

mod grpc;
mod http;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::pod::{Probe, ProbeAction};

/// First tries of a probe that something waits for come this close together.
const EAGER_STEP: Duration = Duration::from_millis(1);
/// A command costs forks and, on cgroup v1, a moment in which nobody else can fork: fewer tries.
const EAGER_COMMAND_STEP: Duration = Duration::from_millis(20);
/// So many eager tries before they begin to thin out, by a quarter each, until the period is reached.
const EAGER_TRIES: u32 = 100;

/// When a probe is tried again. Until the first success something waits for it (a caller, or other probes), so tries
/// come at millisecond cadence; afterwards the period holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cadence {
    step: Duration,
    tries: u32,
    eager: bool,
}

impl Cadence {
    pub(crate) fn new(action: &ProbeAction, eager: bool) -> Self {
        let step = if matches!(action, ProbeAction::Exec(_)) { EAGER_COMMAND_STEP } else { EAGER_STEP };
        Self { step, tries: 0, eager }
    }

    /// How long to wait after a try.
    pub(crate) fn next(&mut self, success: bool, period: Duration) -> Duration {
        self.eager &= !success;
        if !self.eager {
            return period;
        }
        self.tries += 1;
        if self.tries > EAGER_TRIES {
            self.step += self.step / 4;
        }
        self.step = self.step.min(period);
        self.step
    }
}

/// Adds tries up to a verdict: so many successes or failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdicts {
    successes: u32,
    failures: u32,
}

impl Verdicts {
    /// The verdict that stands after this try, if it is one.
    pub(crate) fn success(&mut self, probe: &Probe) -> Option<bool> {
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        (self.successes >= probe.success_threshold.max(1)).then_some(true)
    }

    /// `counts`: a failure of an eager try counts only once per period, or a slow start would be taken for death.
    pub(crate) fn failure(&mut self, probe: &Probe, counts: bool) -> Option<bool> {
        self.successes = 0;
        if counts {
            self.failures = self.failures.saturating_add(1);
        }
        (self.failures >= probe.failure_threshold.max(1)).then_some(false)
    }
}

/// Asks over the network.
pub(crate) struct Prober {
    tls: http::Tls,
}

impl Prober {
    pub(crate) fn new() -> Self {
        Self { tls: http::Tls::default() }
    }

    /// One try. Commands are not for the network: they fail here.
    pub(crate) async fn check(&self, ip: Ipv4Addr, action: &ProbeAction, timeout: Duration) -> Result<(), String> {
        let connect = |port: u16| async move {
            let address = SocketAddr::from((ip, port));
            let stream = TcpStream::connect(address).await.map_err(|e| format!("connect to {address}: {e}"))?;
            let _ = stream.set_nodelay(true);
            // Many short connections to the same pod: leave no port waiting behind.
            let _ = stream.set_zero_linger();
            Ok::<_, String>(stream)
        };
        let work = async {
            match action {
                ProbeAction::Tcp { port } => connect(*port).await.map(drop),
                ProbeAction::Http { port, .. } => {
                    let stream = connect(*port).await?;
                    http::check(stream, SocketAddr::from((ip, *port)), action, &self.tls).await
                }
                ProbeAction::Grpc { port, service } => grpc::check(connect(*port).await?, service).await,
                ProbeAction::Exec(_) => Err("a command cannot be asked over the network".to_owned()),
            }
        };
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
    }
}

#[cfg(test)]
mod tests;
