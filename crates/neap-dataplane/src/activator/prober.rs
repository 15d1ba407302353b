//! Asks instances whether they take requests (E1.8), again and again until they do.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::header;
use neap_api::keys::headers as names;
use neap_logic::routing::RevisionKey;
use neap_proxy::probe;
use tokio::time::{Instant, sleep_until};

use super::backends::Backends;

/// Instances asked at the same time.
const AT_ONCE: usize = 64;
const PATH: &str = "/healthz";
const AGENT: &str = "Knative-Activator-Probe";
/// What a sidecar is asked for, and answers.
const QUEUE: &str = "queue";

type Who = (RevisionKey, SocketAddr);

/// Runs for ever.
pub(super) async fn run(backends: Arc<Backends>, timeout: Duration, interval: Duration) {
    ask_all(&backends, interval, |addr| takes_requests(addr, timeout)).await;
}

/// Each instance has its own turns, so that those that do not answer hold up nobody who has just come.
async fn ask_all<F: Future<Output = bool>>(backends: &Backends, interval: Duration, ask: impl Fn(SocketAddr) -> F) {
    let mut turns = Turns::default();
    let mut asking = FuturesUnordered::new();
    turns.refresh(backends.unproven(), Instant::now());
    loop {
        while asking.len() < AT_ONCE
            && let Some(who) = turns.take(Instant::now())
        {
            let (answer, next) = (ask(who.1), Instant::now() + interval);
            asking.push(async move { (answer.await, who, next) });
        }
        let full = asking.len() >= AT_ONCE;
        tokio::select! {
            Some((takes, who, next)) = asking.next(), if !asking.is_empty() => {
                if takes {
                    backends.proved(&who.0, who.1, Instant::now());
                    turns.done(&who);
                } else {
                    turns.again(&who, next);
                }
            }
            () = backends.news() => turns.refresh(backends.unproven(), Instant::now()),
            () = until(turns.next()), if !full => {}
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// When each unproven instance is to be asked; `None` while it is.
#[derive(Default)]
struct Turns(HashMap<Who, Option<Turn>>);

/// Who has never been asked comes first, then who is overdue most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    asked: bool,
    at: Instant,
}

impl Turns {
    /// These are all there are.
    fn refresh(&mut self, unproven: Vec<Who>, now: Instant) {
        let unproven: HashSet<Who> = unproven.into_iter().collect();
        self.0.retain(|who, _| unproven.contains(who));
        for who in unproven {
            self.0.entry(who).or_insert(Some(Turn { asked: false, at: now }));
        }
    }

    /// One whose time has come.
    fn take(&mut self, now: Instant) -> Option<Who> {
        let due = self.0.iter_mut().filter_map(|(who, turn)| Some((who, turn.filter(|turn| turn.at <= now)?, turn)));
        let (who, _, turn) = due.min_by_key(|(_, turn, _)| *turn)?;
        *turn = None;
        Some(who.clone())
    }

    fn again(&mut self, who: &Who, at: Instant) {
        // It may have gone while it was being asked.
        if let Some(turn) = self.0.get_mut(who) {
            *turn = Some(Turn { asked: true, at });
        }
    }

    fn done(&mut self, who: &Who) {
        self.0.remove(who);
    }

    fn next(&self) -> Option<Instant> {
        self.0.values().flatten().map(|turn| turn.at).min()
    }
}

async fn takes_requests(addr: SocketAddr, timeout: Duration) -> bool {
    let request = http::Request::get(PATH)
        .header(header::HOST, addr.to_string())
        .header(header::USER_AGENT, AGENT)
        .header(names::PROBE, QUEUE)
        .body(())
        .expect("made of constants");
    match probe::probe(addr, request, timeout).await {
        Ok(answer) => answer.status.is_success() && answer.body == QUEUE,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "an instance does not take requests yet");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::sleep;

    use super::*;
    use crate::activator::backends::{Candidate, Known};
    use crate::gate::{Gate, GateName, Settings};
    use crate::plane::Wakes;

    #[tokio::test(start_paused = true)]
    async fn e1_8_a_fresh_instance_is_asked_at_once_whatever_the_others_do() {
        const DEAD: u16 = 500;
        let key = RevisionKey::new("ns", "r");
        let limits = neap_proxy::Limits::default();
        let protocol = neap_proxy::Protocol::Http1;
        let settings = Settings { limits, protocol, container_concurrency: 0, depth: 1, service: None };
        let name = GateName::Revision(key.clone());
        let gate = Arc::new(Gate::new(name, settings, Wakes::new().0, Instant::now()));
        let backends = Backends::new([198, 19, 0, 9].into(), false);
        let tell = |ports: std::ops::RangeInclusive<u16>| {
            let candidate = |port| Candidate { addr: ([198, 19, 0, 1], port).into(), ready: true };
            let known = Known { candidates: ports.map(candidate).collect(), public: Vec::new(), early: false };
            backends.update(&key, &gate, known, Instant::now());
        };
        tell(1..=DEAD);
        let asked = RefCell::new(HashMap::<u16, u32>::new());
        let (timeout, interval) = (Duration::from_millis(300), Duration::from_millis(200));
        let ask = |addr: SocketAddr| {
            let port = addr.port();
            *asked.borrow_mut().entry(port).or_default() += 1;
            async move {
                if port <= DEAD {
                    sleep(timeout).await;
                }
                port > DEAD
            }
        };
        let world = async {
            sleep(Duration::from_secs(10)).await;
            assert!((1..=DEAD).all(|port| asked.borrow().get(&port).is_some_and(|n| *n >= 2)), "all have their turns");
            tell(1..=DEAD + 1);
            // No longer than it takes until one of the 64 gives up.
            sleep(timeout + Duration::from_millis(1)).await;
            assert_eq!(asked.borrow().get(&(DEAD + 1)), Some(&1));
            assert_eq!(gate.observe().ready, 1, "and gets requests");
            // News of others is no reason to ask again before the time.
            asked.borrow_mut().clear();
            for _ in 0..100 {
                tell(1..=DEAD + 1);
                sleep(Duration::from_millis(1)).await;
            }
            assert!(asked.borrow().values().sum::<u32>() <= 2 * AT_ONCE as u32, "{:?}", asked.borrow());
        };
        tokio::select! {
            () = ask_all(&backends, interval, ask) => unreachable!("it runs for ever"),
            () = world => {}
        }
    }
}
