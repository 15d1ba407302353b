//! Waiting for an instance: the picker between the engine and a gate.
//!
//! A request for a Revision without instances is held here, asks for one at once, and goes the moment the gate hears
//! of it; nothing is polled. It gives up at its own deadline (Knative's activator timeout).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use neap_proxy::upstream::Deadline;
use neap_proxy::{OnEnd, Outcome, Picked, Picker, Protocol, ProxyError, Request, Response, Target};
use tokio::time::{Instant, sleep_until};

use crate::activator::PORTS as SIDECAR_PORTS;
use crate::config::SETTLE;
use crate::gate::{Entry, Gate, GateName, Leave, Waiting};
use crate::request;

/// One request at a gate, from its arrival to the end of its answer. Whatever becomes of it, dropping this gives
/// back its place and counts it.
pub(crate) struct Visit {
    gate: Arc<Gate>,
    arrived: Instant,
    counted: bool,
    leave: Option<Leave>,
    status: Option<StatusCode>,
}

impl Visit {
    /// Takes a place, waiting for one if need be. The second value says for what it had to.
    async fn enter(&mut self, deadline: Option<Deadline>) -> Result<(SocketAddr, Option<WaitedFor>), ProxyError> {
        let mut waited = None;
        loop {
            match self.ask() {
                Entry::Enter(leave) => return Ok((self.take(leave), waited)),
                Entry::Full { depth } => return Err(ProxyError::QueueFull { depth }),
                Entry::Wait(waiting) => {
                    waited = Some(if waiting.empty { WaitedFor::Instance } else { WaitedFor::Turn });
                    // Boxed: most requests do not wait and should not pay for the room.
                    if let Some(leave) = Box::pin(self.wait(waiting, deadline)).await? {
                        return Ok((self.take(leave), waited));
                    }
                }
                Entry::Gone(successor) => self.follow(successor)?,
            }
        }
    }

    /// `None`: the gate was taken out of service.
    async fn wait(&self, waiting: Waiting, deadline: Option<Deadline>) -> Result<Option<Leave>, ProxyError> {
        let mut queued = Queued { gate: &self.gate, waiting: Some(waiting) };
        loop {
            let (retry, empty) = queued.outlook();
            // Nobody starts instances of a plain Service: what is missing after a moment stays missing.
            let patience = match (&self.gate.name, empty) {
                (GateName::Service { .. }, true) => Some(self.arrived + SETTLE),
                _ => None,
            };
            tokio::select! {
                biased;
                leave = queued.leave() => return Ok(leave),
                () = until(deadline.map(|deadline| deadline.at)) => {
                    return Err(deadline.expect("only a deadline passes").wait_error());
                }
                () = until(patience) => {
                    return Err(ProxyError::NoBackend { what: self.gate.name.to_string() });
                }
                () = until(retry) => queued.try_again(),
            }
        }
    }

    /// Goes on to the gate that took the place of this one.
    fn follow(&mut self, successor: Option<Arc<Gate>>) -> Result<(), ProxyError> {
        let Some(gate) = successor else {
            return Err(ProxyError::NoBackend { what: self.gate.name.to_string() });
        };
        if std::mem::take(&mut self.counted) {
            self.gate.end(None, Instant::now(), self.arrived, None);
        }
        self.gate = gate;
        Ok(())
    }

    fn ask(&mut self) -> Entry {
        // Nothing has waited before the first time, so the clock need not be read again.
        let now = if self.counted { Instant::now() } else { self.arrived };
        let entry = self.gate.enter(now, !self.counted);
        self.counted |= !matches!(entry, Entry::Gone(_));
        entry
    }

    fn take(&mut self, leave: Leave) -> SocketAddr {
        let addr = leave.instance;
        self.leave = Some(leave);
        addr
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A place in the queue that is given up when dropped.
struct Queued<'a> {
    gate: &'a Gate,
    waiting: Option<Waiting>,
}

impl Queued<'_> {
    /// `None`: the gate has let go of it.
    async fn leave(&mut self) -> Option<Leave> {
        let waiting = self.waiting.as_mut().expect("there until it has left");
        let leave = (&mut waiting.leave).await.ok();
        self.waiting = None;
        leave
    }

    fn outlook(&self) -> (Option<Instant>, bool) {
        self.waiting.as_ref().map_or((None, false), |waiting| (waiting.retry, waiting.empty))
    }

    fn try_again(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            self.gate.try_again(waiting, Instant::now());
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            self.gate.cancel(waiting);
        }
    }
}

impl OnEnd for Visit {
    /// Dropping does it all.
    fn on_end(&mut self, _outcome: Outcome, _bytes: u64) {}
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.counted {
            self.gate.end(self.leave.take(), Instant::now(), self.arrived, self.status);
        }
    }
}

/// What a request waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitedFor {
    /// There was none.
    Instance,
    /// All had as many requests as they take.
    Turn,
}

/// Picks an instance for one request.
pub(crate) struct Activator {
    visit: Option<Visit>,
    began: Instant,
    /// How long it had to wait, and for what, if it did.
    pub(crate) waited: Option<(WaitedFor, Duration)>,
    /// How long it took to connect, if that was necessary.
    pub(crate) connect: Option<Duration>,
    protocol: Option<Protocol>,
    port: Option<u16>,
}

impl Activator {
    pub(crate) fn new(gate: Arc<Gate>, arrived: Instant) -> Self {
        let visit = Visit { gate, arrived, counted: false, leave: None, status: None };
        Self { visit: Some(visit), began: arrived, waited: None, connect: None, protocol: None, port: None }
    }

    /// The same, before sidecars: they are spoken to as the client speaks, and may take TLS on a port of its own.
    pub(crate) fn before_sidecar(gate: Arc<Gate>, arrived: Instant, protocol: Protocol, port: Option<u16>) -> Self {
        Self { protocol: Some(protocol), port, ..Self::new(gate, arrived) }
    }
}

impl Picker for Activator {
    type Hold = Visit;

    async fn pick(&mut self, deadline: Option<Deadline>) -> Result<Picked<Visit>, ProxyError> {
        let mut visit = self.visit.take().expect("one visit at a time");
        let result = visit.enter(deadline).await;
        match result {
            Ok((addr, waited)) => {
                if let Some(what) = waited {
                    self.waited = Some((what, self.began.elapsed()));
                }
                let protocol = self.protocol.unwrap_or(visit.gate.settings.protocol);
                let mut target = Target { addr, protocol };
                if let Some(port) = self.port {
                    target.addr.set_port(port);
                }
                Ok(Picked { target, hold: visit })
            }
            Err(error) => {
                visit.status = Some(error.answer().status);
                Err(error)
            }
        }
    }

    /// A sidecar is told that this request is counted here, so that the autoscaler does not count it twice (E1.10).
    fn bound(&mut self, picked: &Picked<Visit>, request: &mut Request) {
        if SIDECAR_PORTS.contains(&picked.target.addr.port()) && matches!(picked.hold.gate.name, GateName::Revision(_))
        {
            request.headers_mut().insert(request::PROXY_REQUEST, request::BY_ACTIVATOR);
        }
    }

    fn connected(&mut self, took: Duration) {
        self.connect = Some(took);
    }

    fn answered(&mut self, visit: &mut Visit, answer: &Response) {
        visit.status = Some(answer.status());
    }

    /// Nothing was sent: another instance, or the same one a little later.
    fn refused(&mut self, picked: Picked<Visit>, error: ProxyError) -> Result<(), ProxyError> {
        let mut visit = picked.hold;
        let now = Instant::now();
        if let Some(leave) = visit.leave.take() {
            tracing::debug!(gate = %visit.gate.name, instance = %leave.instance, "connection refused");
            let silent = match &error {
                ProxyError::ConnectTimeout { after, .. } => Some(*after),
                _ => None,
            };
            visit.gate.refused(leave, now, silent);
        }
        // A Service has no limits of its own that would end the attempts, and no platform that replaces what is broken.
        if matches!(visit.gate.name, GateName::Service { .. }) && now >= visit.arrived + SETTLE {
            visit.status = Some(error.answer().status);
            return Err(error);
        }
        self.visit = Some(visit);
        Ok(())
    }

    fn failed(&mut self, mut picked: Picked<Visit>, error: &ProxyError) {
        picked.hold.status = Some(error.answer().status);
    }
}

#[cfg(test)]
mod tests {
    use neap_logic::routing::RevisionKey;
    use neap_proxy::{Body, Limits};

    use super::*;
    use crate::gate::Settings;
    use crate::plane::Wakes;

    #[tokio::test]
    async fn e1_10_only_sidecars_are_told_who_counts() {
        let revision = GateName::Revision(RevisionKey::new("ns", "r"));
        let port = neap_logic::routing::Port::Number(80);
        let service = GateName::Service { namespace: "ns".into(), name: "s".into(), port };
        for (name, port, told) in
            [(&revision, 8012, true), (&revision, 8013, true), (&revision, 8080, false), (&service, 8012, false)]
        {
            let limits = Limits::default();
            let settings = Settings { limits, protocol: Protocol::Http1, container_concurrency: 0, depth: 1 };
            let gate = Gate::new(name.clone(), settings, Wakes::new().0, Instant::now());
            let addr = ([198, 19, 0, 1], port).into();
            gate.set_instances(vec![addr], Instant::now());
            let mut activator = Activator::new(Arc::new(gate), Instant::now());
            let picked = activator.pick(None).await.expect("there is an instance");
            let mut request = http::Request::new(Body::empty());
            activator.bound(&picked, &mut request);
            assert_eq!(request.headers().get(request::PROXY_REQUEST).is_some(), told, "{name} {port}");
        }
    }
}
