//! The probes of one running container: startup first, then readiness and liveness beside each other.
//!
//! Runs as long as the container does; comes back only when the container is to be killed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::World;
use super::state::PodCell;
use crate::clock;
use crate::machine::Handle;
use crate::pod::{ContainerSpec, Hook, Probe, ProbeAction, Trouble};
use crate::probe::{Cadence, Verdicts};

/// Everything a try needs to know about the container.
pub(super) struct Target<'a> {
    pub world: &'a World,
    pub cell: &'a Arc<PodCell>,
    pub spec: &'a ContainerSpec,
    pub handle: &'a Handle,
}

/// Why a container is to be ended, and how long it may take, where that is not the pod's own grace.
pub(super) struct Unwell {
    pub why: String,
    pub grace: Option<Duration>,
}

/// Why the probes want the container dead.
pub(super) async fn run(target: &Target<'_>) -> Unwell {
    let name = &target.spec.name;
    let passed = target.cell.read(|s| s.record.containers.get(name).is_some_and(|c| c.begun == c.runs));
    if let Some(startup) = target.spec.startup.as_ref().filter(|_| !passed) {
        if let Err(last) = until_first_verdict(target, startup).await {
            let why = format!("Container {name} failed startup probe, will be restarted: {last}");
            return Unwell { why, grace: startup.grace };
        }
        target.cell.update_container(name, |record, live| {
            record.begun = record.runs;
            live.status.started = true;
            live.status.ready = target.spec.readiness.is_none();
        });
    }
    let readiness = async {
        match &target.spec.readiness {
            Some(probe) => watch_readiness(target, probe).await,
            None => std::future::pending().await,
        }
    };
    let liveness = async {
        match &target.spec.liveness {
            Some(probe) => watch_liveness(target, probe).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        never = readiness => match never {},
        last = liveness => {
            let why = format!("Container {name} failed liveness probe, will be restarted: {last}");
            Unwell { why, grace: target.spec.liveness.as_ref().and_then(|p| p.grace) }
        }
    }
}

/// Tries at millisecond cadence until the probe succeeds, or until it failed for as long as it may.
async fn until_first_verdict(target: &Target<'_>, probe: &Probe) -> Result<(), String> {
    let mut cadence = Cadence::new(&probe.action, true);
    let mut verdicts = Verdicts::default();
    sleep(target.left_of(probe.initial_delay)).await;
    let mut counted = Instant::now();
    loop {
        let outcome = target.attempt(probe).await;
        let verdict = match &outcome {
            Ok(()) => verdicts.success(probe),
            Err(_) => {
                // One failure a period, however often it was tried.
                let counts = counted.elapsed() >= probe.period;
                if counts {
                    counted = Instant::now();
                    target.unhealthy("Startup", &outcome);
                }
                verdicts.failure(probe, counts)
            }
        };
        match (verdict, outcome) {
            (Some(true), _) => return Ok(()),
            (Some(false), Err(last)) => return Err(last),
            (_, outcome) => sleep(cadence.next(outcome.is_ok(), probe.period)).await,
        }
    }
}

async fn watch_readiness(target: &Target<'_>, probe: &Probe) -> Infallible {
    // What was ready before the runtime was started anew is asked calmly, or it would lose that within milliseconds.
    let was_ready = target.cell.read(|s| s.containers.get(&target.spec.name).is_some_and(|c| c.status.ready));
    let mut cadence = Cadence::new(&probe.action, !was_ready);
    let mut verdicts = Verdicts::default();
    sleep(target.left_of(probe.initial_delay)).await;
    let mut told = Instant::now();
    loop {
        let outcome = target.attempt(probe).await;
        let verdict = match &outcome {
            Ok(()) => verdicts.success(probe),
            Err(_) => {
                // A start that is not done yet is no news; nor is every single try.
                if told.elapsed() >= probe.period {
                    told = Instant::now();
                    target.unhealthy("Readiness", &outcome);
                }
                verdicts.failure(probe, true)
            }
        };
        if let Some(ready) = verdict {
            target.cell.update_container(&target.spec.name, |record, live| {
                record.ready = if ready { record.runs } else { 0 };
                if live.status.ready && !ready {
                    let why = outcome.as_ref().err();
                    tracing::info!(pod = %target.cell.id, container = target.spec.name, why, "not ready any more");
                }
                live.status.ready = ready;
                if ready {
                    live.status.trouble = None;
                }
            });
        }
        sleep(cadence.next(outcome.is_ok(), probe.period)).await;
    }
}

async fn watch_liveness(target: &Target<'_>, probe: &Probe) -> String {
    let mut cadence = Cadence::new(&probe.action, false);
    let mut verdicts = Verdicts::default();
    sleep(target.left_of(probe.initial_delay).max(probe.period)).await;
    loop {
        let outcome = target.attempt(probe).await;
        target.unhealthy("Liveness", &outcome);
        match outcome {
            Ok(()) => {
                verdicts.success(probe);
            }
            Err(last) if verdicts.failure(probe, true) == Some(false) => return last,
            Err(_) => {}
        }
        sleep(cadence.next(true, probe.period)).await;
    }
}

impl Target<'_> {
    /// What is left of a time that began with the container: it may have started long before we look after it.
    fn left_of(&self, delay: Duration) -> Duration {
        let ran = clock::now().duration_since(self.handle.run.started);
        delay.saturating_sub(Duration::try_from(ran).unwrap_or_default())
    }

    /// Notes what a probe found, if it is not well.
    fn unhealthy(&self, kind: &str, outcome: &Result<(), String>) {
        if let Err(why) = outcome {
            let trouble = Trouble::Unhealthy(format!("{kind} probe failed: {why}"));
            self.cell.update_container(&self.spec.name, |_, live| live.status.trouble = Some(trouble));
        }
    }

    /// One try.
    async fn attempt(&self, probe: &Probe) -> Result<(), String> {
        self.act(&probe.action, probe.timeout).await
    }

    /// Does what a hook says.
    pub(super) async fn hook(&self, hook: &Hook, timeout: Duration) -> Result<(), String> {
        match hook {
            Hook::Act(action) => self.act(action, timeout).await,
            Hook::Sleep(time) => {
                sleep((*time).min(timeout)).await;
                Ok(())
            }
        }
    }

    /// Does what a probe says. `Err` says why that did not go well.
    async fn act(&self, action: &ProbeAction, timeout: Duration) -> Result<(), String> {
        match action {
            ProbeAction::Exec(argv) => match self.world.machine.exec(self.handle, argv, timeout).await {
                Ok(done) if done.code == 0 => Ok(()),
                Ok(done) if done.output.trim().is_empty() => Err(format!("the command ended with {}", done.code)),
                Ok(done) => Err(format!("the command ended with {}: {}", done.code, done.output.trim())),
                Err(error) => Err(error.to_string()),
            },
            network => {
                let address = self.cell.read(|s| s.record.sandbox.as_ref().map(|s| s.address));
                let Some(address) = address else { return Err("the pod has no address".to_owned()) };
                let action =
                    with_real_port(network, self.spec, |name| self.cell.read(|s| s.record.ports.get(name).copied()));
                self.world.machine.probe(address, &action, timeout).await
            }
        }
    }
}

/// Where pods share the machine's network, the port that the specification names is not the one that is used.
fn with_real_port(action: &ProbeAction, spec: &ContainerSpec, real: impl Fn(&str) -> Option<u16>) -> ProbeAction {
    let mut action = action.clone();
    let (ProbeAction::Http { port, .. } | ProbeAction::Tcp { port } | ProbeAction::Grpc { port, .. }) = &mut action
    else {
        return action;
    };
    let named = spec.ports.iter().find(|p| p.container_port == *port);
    if let Some(real) = named.and_then(|p| real(&p.name)) {
        *port = real;
    }
    action
}
