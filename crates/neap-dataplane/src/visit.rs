//! Waiting for an instance: the picker between the engine and a gate.
//!
//! A request for a Revision without instances is held here, asks for one at once, and goes the moment the gate hears
//! of it; nothing is polled. It gives up at its own deadline (Knative's activator timeout).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use neap_proxy::upstream::Deadline;
use neap_proxy::{OnEnd, Outcome, Picked, Picker, Protocol, ProxyError, Response, Target};
use tokio::time::{Instant, sleep_until};

use crate::config::SETTLE;
use crate::extras::affinity::Prefer;
use crate::extras::hedge::Placed;
use crate::gate::{Entry, Gate, GateName, Leave, Waiting};

/// One request at a gate, from its arrival to the end of its answer. Whatever becomes of it, dropping this gives
/// back its place and counts it.
pub(crate) struct Visit {
    gate: Arc<Gate>,
    arrived: Instant,
    counted: bool,
    leave: Option<Leave>,
    status: Option<StatusCode>,
    /// Whether somebody else counts the request.
    apart: bool,
    prefer: Option<Prefer>,
}

impl Visit {
    /// One that has its place already, of a request that somebody else counts.
    pub(crate) fn placed(gate: Arc<Gate>, leave: Leave) -> Self {
        let arrived = Instant::now();
        Self { gate, arrived, counted: true, leave: Some(leave), status: None, apart: true, prefer: None }
    }

    /// The instance did not take the request.
    pub(crate) fn refused(mut self) {
        if let Some(leave) = self.leave.take() {
            self.gate.refused(leave, Instant::now());
        }
    }
}

/// Counts one request that may take more than one place: from its beginning to the end of its answer.
pub(crate) struct Tally {
    gate: Arc<Gate>,
    arrived: Instant,
    status: Option<StatusCode>,
}

impl Tally {
    pub(crate) fn begin(gate: Arc<Gate>, arrived: Instant) -> Self {
        gate.begin(arrived);
        Self { gate, arrived, status: None }
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl OnEnd for Tally {
    /// Dropping does it all.
    fn on_end(&mut self, _outcome: Outcome, _bytes: u64) {}
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.gate.end(None, Instant::now(), self.arrived, self.status);
    }
}

impl Visit {
    /// Takes a place, waiting for one if need be. The second value says for what it had to.
    async fn enter(&mut self, deadline: Option<Deadline>) -> Result<(SocketAddr, Option<WaitedFor>), ProxyError> {
        match self.ask() {
            Entry::Enter(leave) => Ok((self.take(leave), None)),
            Entry::Full { depth } => Err(ProxyError::QueueFull { depth }),
            Entry::Wait(waiting) => {
                let waited = if waiting.empty { WaitedFor::Instance } else { WaitedFor::Turn };
                // Boxed: most requests do not wait and should not pay for the room.
                Ok((Box::pin(self.wait(waiting, deadline)).await?, Some(waited)))
            }
        }
    }

    async fn wait(&mut self, mut waiting: Waiting, deadline: Option<Deadline>) -> Result<SocketAddr, ProxyError> {
        loop {
            // Nobody starts instances of a plain Service: what is missing after a moment stays missing.
            let patience = match (&self.gate.name, waiting.empty) {
                (GateName::Service { .. }, true) => Some(self.arrived + SETTLE),
                _ => None,
            };
            let retry = waiting.retry;
            let queued = Queued { gate: &self.gate, waiting: Some(waiting) };
            let woken = tokio::select! {
                biased;
                leave = queued.leave() => leave,
                () = until(deadline.map(|deadline| deadline.at)) => {
                    return Err(deadline.expect("only a deadline passes").wait_error());
                }
                () = until(patience) => {
                    return Err(ProxyError::NoBackend { what: self.gate.name.to_string() });
                }
                () = until(retry) => None,
            };
            if let Some(leave) = woken {
                return Ok(self.take(leave));
            }
            waiting = match self.ask() {
                Entry::Enter(leave) => return Ok(self.take(leave)),
                Entry::Full { depth } => return Err(ProxyError::QueueFull { depth }),
                Entry::Wait(waiting) => waiting,
            };
        }
    }

    fn ask(&mut self) -> Entry {
        let first = !std::mem::replace(&mut self.counted, true);
        // Nothing has waited before the first time, so the clock need not be read again.
        let now = if first { self.arrived } else { Instant::now() };
        self.gate.enter(now, first, self.prefer.as_ref())
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
    /// `None` cannot happen while the gate lives: it never drops a waiter without waking it.
    async fn leave(mut self) -> Option<Leave> {
        let waiting = self.waiting.as_mut().expect("taken only by drop");
        let leave = (&mut waiting.leave).await.ok();
        self.waiting = None;
        leave
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
        if self.apart {
            if let Some(leave) = self.leave.take() {
                self.gate.leave(leave);
            }
        } else if self.counted {
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
    /// The instance.
    pub(crate) picked: Option<SocketAddr>,
    placed: Option<Rc<Placed>>,
}

impl Activator {
    pub(crate) fn new(gate: Arc<Gate>, arrived: Instant) -> Self {
        let visit = Visit { gate, arrived, counted: false, leave: None, status: None, apart: false, prefer: None };
        Self {
            visit: Some(visit),
            began: arrived,
            waited: None,
            connect: None,
            protocol: None,
            port: None,
            picked: None,
            placed: None,
        }
    }

    /// The same with a wish; `apart` when somebody else counts the request.
    pub(crate) fn with_wish(gate: Arc<Gate>, arrived: Instant, prefer: Option<Prefer>, apart: bool) -> Self {
        let mut this = Self::new(gate, arrived);
        if let Some(visit) = &mut this.visit {
            (visit.prefer, visit.apart, visit.counted) = (prefer, apart, apart);
        }
        this
    }

    /// Whom to tell of the instance as soon as it is known.
    pub(crate) fn tell(&mut self, placed: Rc<Placed>) {
        self.placed = Some(placed);
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
                self.picked = Some(addr);
                if let Some(placed) = &self.placed {
                    placed.tell(addr);
                }
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
            visit.gate.refused(leave, now);
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
