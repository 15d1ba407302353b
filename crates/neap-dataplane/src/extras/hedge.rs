//! Hedging: when an instance takes long over a request that may be repeated, a second one is asked too, and the first answer
//! counts. The other attempt is called off.
//!
//! It is one request all the while: it is counted once, with the time its caller waited. Only the places at the two
//! instances are two, and are given back each in its time.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use neap_logic::routing::extras::{Budget, HedgeAfter, Quantile};
use neap_proxy::upstream::Deadline;
use neap_proxy::{
    Body, Limits, Picked, Picker, ProxyError, Request, Response, Target, Upstream, forward, headers, send_once,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::gate::{Gate, Leave};
use crate::visit::{Activator, Tally, Visit};

/// What hedges did.
#[derive(Debug, Clone, Default)]
pub(crate) struct HedgeMetrics {
    sent: Counter,
    won: Counter,
}

impl HedgeMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register("neap_hedges_sent", "Second attempts sent while the first was slow", this.sent.clone());
        registry.register("neap_hedges_won", "Second attempts that answered first", this.won.clone());
        this
    }
}

#[cfg(test)]
impl HedgeMetrics {
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.sent.get(), self.won.get())
    }
}

/// What a route remembers of its hedges.
#[derive(Debug)]
pub(crate) struct Hedger(Mutex<Memory>);

#[derive(Debug)]
struct Memory {
    budget: Budget,
    latency: Quantile,
}

impl Default for Hedger {
    fn default() -> Self {
        Self(Mutex::new(Memory { budget: Budget::NEW, latency: Quantile::NEW }))
    }
}

impl Hedger {
    fn with<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request comes that may have a hedge: after how long, if at all.
    fn begin(&self, rule: HedgeAfter) -> Option<Duration> {
        self.with(|memory| {
            memory.budget = memory.budget.earn();
            match rule {
                HedgeAfter::Fixed(after) => Some(after),
                HedgeAfter::Percentile(_) => memory.latency.estimate(),
            }
        })
    }

    fn spend(&self) -> bool {
        self.with(|memory| memory.budget.spend().map(|left| memory.budget = left).is_some())
    }

    fn observe(&self, rule: HedgeAfter, took: Duration) {
        if let HedgeAfter::Percentile(percent) = rule {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.with(|memory| memory.latency = memory.latency.after(percent, nanos));
        }
    }
}

/// The instance of an attempt, told when it is known.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    /// Where, and since when.
    place: Cell<Option<(std::net::SocketAddr, Instant)>>,
    told: Notify,
}

impl Placed {
    pub(crate) fn tell(&self, instance: std::net::SocketAddr) {
        self.place.set(Some((instance, Instant::now())));
        self.told.notify_one();
    }
}

/// A copy of a request that may be repeated: it has no body, and wants no other protocol.
pub(crate) fn copy(request: &Request) -> Option<Request> {
    let whole = http_body::Body::is_end_stream(request.body()) && !headers::wants_upgrade(request);
    if !whole || !request.method().is_idempotent() {
        return None;
    }
    let mut copy = http::Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    send_once(&mut copy);
    Some(copy)
}

/// Everything about one request.
pub(crate) struct Hedged<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) gate: &'a Arc<Gate>,
    pub(crate) hedger: &'a Hedger,
    pub(crate) rule: HedgeAfter,
    pub(crate) metrics: &'a HedgeMetrics,
    pub(crate) limits: &'a Limits,
    pub(crate) arrived: Instant,
}

impl Hedged<'_> {
    /// Sends it, and its copy if need be. `activator` is for the first attempt, and does not count it.
    pub(crate) async fn forward(
        self,
        activator: &mut Activator,
        place: &mut Option<Request>,
        copy: Request,
    ) -> Result<Response, ProxyError> {
        let mut tally = Tally::begin(self.gate.clone(), self.arrived);
        let placed = Rc::new(Placed::default());
        activator.tell(placed.clone());
        let after = self.hedger.begin(self.rule);
        let (answer, instance) = self.race(activator, place, copy, &placed, after).await;
        activator.picked = instance.or(activator.picked);
        match answer {
            Ok(response) => {
                tally.answered(response.status());
                Ok(response.map(|body| body.on_end(tally)))
            }
            Err(error) => {
                tally.answered(error.answer().status);
                Err(error)
            }
        }
    }

    /// The answer, and the instance it is from where that was not the first.
    async fn race(
        &self,
        activator: &mut Activator,
        place: &mut Option<Request>,
        copy: Request,
        placed: &Placed,
        after: Option<Duration>,
    ) -> (Result<Response, ProxyError>, Option<std::net::SocketAddr>) {
        let mut first = std::pin::pin!(forward(self.upstream, activator, place, self.limits, self.arrived));
        let slow = async {
            let Some(after) = after else { return std::future::pending().await };
            // The time to wait for an instance is not its fault; it runs from there.
            placed.told.notified().await;
            sleep(after).await;
        };
        let took = || placed.place.get().map(|(_, since)| since.elapsed());
        tokio::select! {
            biased;
            answer = &mut first => {
                if let (Ok(_), Some(took)) = (&answer, took()) {
                    self.hedger.observe(self.rule, took);
                }
                return (answer, None);
            }
            () = slow => {}
        }
        let other = placed.place.get().and_then(|(instance, _)| self.gate.enter_other(&instance));
        let Some(leave) = other else { return (first.await, None) };
        if !self.hedger.spend() {
            self.gate.leave(leave);
            return (first.await, None);
        }
        self.metrics.sent.inc();
        let instance = leave.instance;
        let mut picker = Given { gate: self.gate, leave: Some(leave) };
        let mut place = Some(copy);
        let mut second = std::pin::pin!(forward(self.upstream, &mut picker, &mut place, self.limits, self.arrived));
        let (answer, of_second) = tokio::select! {
            biased;
            answer = &mut first => match answer {
                Ok(response) => (Ok(response), false),
                Err(error) => match second.await {
                    Ok(response) => (Ok(response), true),
                    Err(_) => (Err(error), false),
                },
            },
            answer = &mut second => match answer {
                Ok(response) => (Ok(response), true),
                Err(_) => (first.await, false),
            },
        };
        if let (Ok(_), Some(took)) = (&answer, took()) {
            self.hedger.observe(self.rule, took);
        }
        if of_second {
            self.metrics.won.inc();
        }
        (answer, of_second.then_some(instance))
    }
}

/// Picks what it was given, once.
struct Given<'g> {
    gate: &'g Arc<Gate>,
    leave: Option<Leave>,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            self.gate.leave(leave);
        }
    }
}

impl Picker for Given<'_> {
    type Hold = Visit;

    async fn pick(&mut self, _deadline: Option<Deadline>) -> Result<Picked<Visit>, ProxyError> {
        let gone = || ProxyError::NoBackend { what: self.gate.name.to_string() };
        let leave = self.leave.take().ok_or_else(gone)?;
        let target = Target { addr: leave.instance, protocol: self.gate.settings.protocol };
        Ok(Picked { target, hold: Visit::placed(self.gate.clone(), leave) })
    }

    fn bound(&mut self, picked: &Picked<Visit>, request: &mut Request) {
        picked.hold.tell_sidecar(&picked.target, request);
    }

    /// The first attempt is still under way; this one was only to be quicker.
    fn refused(&mut self, mut picked: Picked<Visit>, error: ProxyError) -> Result<(), ProxyError> {
        picked.hold.refused(&error, Instant::now());
        Err(error)
    }
}
