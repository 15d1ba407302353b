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
use neap_proxy::{OnEnd, Outcome, Picked, Picker, Protocol, ProxyError, Request, Response, Target};
use tokio::time::{Instant, sleep_until};

use crate::activator::PORTS as SIDECAR_PORTS;
use crate::config::SETTLE;
use crate::extras::affinity::Prefer;
use crate::extras::hedge::Placed;
use crate::gate::{Comes, Entry, Gate, GateName, Leave, Waiting};
use crate::request;

/// An instance that dies closes its connections before it stops taking new ones, and a busy machine may take its time
/// between the two. For so long, a second connection that it closes is part of the same death.
const DYING: Duration = Duration::from_millis(100);

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
    pub(crate) fn refused(&mut self, error: &ProxyError, now: Instant) {
        if let Some(leave) = self.leave.take() {
            tracing::debug!(gate = %self.gate.name, instance = %leave.instance, %error, "not taken");
            let silent = match error {
                ProxyError::ConnectTimeout { after, .. } => Some(*after),
                _ => None,
            };
            self.gate.refused(leave, now, silent);
        }
    }

    /// The instance closed the connection without a word: the request goes to another, if there is one with room.
    fn elsewhere(&mut self) {
        if let Some(leave) = self.leave.take() {
            tracing::debug!(gate = %self.gate.name, instance = %leave.instance, "closed without a word");
            self.prefer = Some(Prefer::Other(leave.instance));
            self.gate.leave(leave);
        }
    }

    /// A sidecar is told that this request is counted here, so that the autoscaler does not count it twice (E1.10).
    pub(crate) fn tell_sidecar(&self, target: &Target, request: &mut Request) {
        if SIDECAR_PORTS.contains(&target.addr.port()) && matches!(self.gate.name, GateName::Revision(_)) {
            request.headers_mut().insert(request::PROXY_REQUEST, request::BY_ACTIVATOR);
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
        if std::mem::take(&mut self.counted) && !self.apart {
            self.gate.end(None, Instant::now(), self.arrived, None);
        }
        self.gate = gate;
        Ok(())
    }

    fn ask(&mut self) -> Entry {
        // Nothing has waited before the first time, so the clock need not be read again.
        let now = if self.counted { Instant::now() } else { self.arrived };
        let comes = match (self.counted, self.apart) {
            (true, _) => Comes::Again,
            (false, true) => Comes::Apart,
            (false, false) => Comes::First,
        };
        let entry = self.gate.enter(now, comes, self.prefer.as_ref());
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
    /// Who closed the connection without a word first, and when.
    died: Option<(SocketAddr, Instant)>,
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
            died: None,
            picked: None,
            placed: None,
        }
    }

    /// The same with a wish; `apart` when somebody else counts the request.
    pub(crate) fn with_wish(gate: Arc<Gate>, arrived: Instant, prefer: Option<Prefer>, apart: bool) -> Self {
        let mut this = Self::new(gate, arrived);
        if let Some(visit) = &mut this.visit {
            (visit.prefer, visit.apart) = (prefer, apart);
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

    fn bound(&mut self, picked: &Picked<Visit>, request: &mut Request) {
        picked.hold.tell_sidecar(&picked.target, request);
    }

    fn connected(&mut self, took: Duration) {
        self.connect = Some(took);
    }

    fn answered(&mut self, visit: &mut Visit, answer: &Response) {
        visit.status = Some(answer.status());
    }

    /// Another instance gets it, and no third: a request that ends whoever gets it must not go through all of them.
    fn unheard(
        &mut self,
        picked: Picked<Visit>,
        error: ProxyError,
        closed: u32,
    ) -> Result<Option<Picked<Visit>>, ProxyError> {
        let (mut visit, addr, now) = (picked.hold, picked.target.addr, Instant::now());
        match self.died {
            None => {
                self.died = Some((addr, now));
                visit.elsewhere();
            }
            Some((first, at)) if closed == 2 && first == addr && now < at + DYING => visit.refused(&error, now),
            Some(_) => {
                visit.status = Some(error.answer().status);
                return Err(error);
            }
        }
        self.visit = Some(visit);
        Ok(None)
    }

    /// Nothing was sent: another instance, or the same one a little later.
    fn refused(&mut self, picked: Picked<Visit>, error: ProxyError) -> Result<(), ProxyError> {
        let mut visit = picked.hold;
        let now = Instant::now();
        visit.refused(&error, now);
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
            let settings =
                Settings { limits, protocol: Protocol::Http1, container_concurrency: 0, depth: 1, service: None };
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
