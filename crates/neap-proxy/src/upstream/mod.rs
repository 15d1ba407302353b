//! Requests to upstreams: one worker's connections, and how a request travels over one of them.
//!
//! A request is sent twice only when that cannot do harm: the connection gave it back unsent, or the other side closed
//! it before it answered anything, and the request has no body and changes nothing (RFC 9110, sections 9.2.1 and 9.2.2;
//! RFC 9112, section 9.3.1); whether and where it is sent again the caller says. Connecting is never retried here:
//! the request goes back to the caller, who may know a better target.

mod body;
mod connect;
mod http1;
mod http2;
mod patient;
mod pool;
mod spare;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Limits, UpstreamConfig};
use crate::error::ProxyError;
use crate::handler::{Request, Response};
use crate::metrics::Metrics;

pub(crate) use body::UpstreamBody;
pub(crate) use http1::Switched;
use pool::Pool;
pub use spare::send_once;

/// What is spoken on a connection to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// Address and port.
    pub addr: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// The instant by which an answer must have begun, and what it means when it has not.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// How long that was from the request's arrival.
    pub after: Duration,
    /// The idle limit was the shortest one.
    idle: bool,
}

impl Limits {
    /// The first limit that passes if a request that arrived at `arrived` is not answered.
    pub fn deadline(&self, arrived: Instant) -> Option<Deadline> {
        let answer = match (self.total, self.response_start) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let (after, idle) = match (answer, self.idle) {
            (Some(answer), Some(idle)) if idle < answer => (idle, true),
            (Some(answer), _) => (answer, false),
            (None, Some(idle)) => (idle, true),
            (None, None) => return None,
        };
        Some(Deadline { at: arrived + after, after, idle })
    }
}

impl Deadline {
    /// The limit passed at the application.
    pub fn error(&self) -> ProxyError {
        if self.idle {
            ProxyError::IdleTimeout { after: self.after }
        } else {
            ProxyError::Timeout { after: self.after }
        }
    }

    /// The limit passed before any application got the request.
    pub fn wait_error(&self) -> ProxyError {
        ProxyError::WaitTimeout { after: self.after }
    }
}

/// An answer; after a 101 the two connections are to be joined.
pub(crate) struct Answered {
    pub(crate) response: Response,
    pub(crate) switched: Option<Switched>,
    /// How long it took to connect, when that was necessary.
    pub(crate) connect: Option<Duration>,
}

/// The upstream connections of one worker.
pub struct Upstream {
    pools: RefCell<HashMap<Target, Rc<Pool>>>,
    config: Rc<UpstreamConfig>,
    metrics: Metrics,
    tasks: TaskTracker,
    leaving: CancellationToken,
}

impl Upstream {
    /// Connections that need a task of their own (h2, sockets after an upgrade) are spawned on `tasks`, which the
    /// worker waits for when it drains.
    pub fn new(config: UpstreamConfig, metrics: Metrics, tasks: TaskTracker) -> Self {
        Self { pools: RefCell::default(), config: Rc::new(config), metrics, tasks, leaving: CancellationToken::new() }
    }

    /// Tells all WebSockets that the server goes away (status 1001), and cuts those that do not go.
    pub fn close_tunnels(&self) {
        self.leaving.cancel();
    }

    /// Sends a request in canonical form (see [`crate::headers::canonical`]) and waits for the head of the answer.
    ///
    /// The request is taken out of its place when it is sent. If this fails and the request is there again, another
    /// upstream may have it: none saw it, or one that closed without a word did and it may be repeated. (Passing the
    /// place, not the request, also spares the futures of this path a copy each.)
    pub async fn send(
        &self,
        target: Target,
        request: &mut Option<Request>,
        deadline: Option<Deadline>,
        idle: Option<Duration>,
    ) -> Result<Response, ProxyError> {
        Ok(self.exchange(target, request, deadline, idle).await?.response)
    }

    pub(crate) async fn exchange(
        &self,
        target: Target,
        request: &mut Option<Request>,
        deadline: Option<Deadline>,
        idle: Option<Duration>,
    ) -> Result<Answered, ProxyError> {
        let pool = self.pool(target);
        // Pinned where it is made, so that the two ways of waiting share its room.
        let answer = std::pin::pin!(async {
            match target.protocol {
                Protocol::Http1 => http1::send(&pool, request, idle).await,
                // Boxed, for it is large and would make every request pay for its room.
                Protocol::H2c => Box::pin(http2::send(&pool, request, idle)).await,
            }
        });
        match deadline {
            None => answer.await,
            Some(deadline) => match timeout_at(deadline.at, answer).await {
                Ok(answered) => answered,
                Err(_elapsed) => {
                    // A connection that took too long has not seen the request, but there is no time left for another.
                    Err(deadline.error())
                }
            },
        }
    }

    /// Closes what has been idle for too long and forgets targets without connections. To be called once in
    /// [`crate::config::SWEEP_INTERVAL`] (see [`crate::Worker::on_sweep`]).
    pub fn sweep(&self) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep();
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    fn pool(&self, target: Target) -> Rc<Pool> {
        if let Some(pool) = self.pools.borrow().get(&target) {
            return pool.clone();
        }
        let pool = Rc::new(Pool::new(target, self.config.clone(), self.metrics.clone(), self.tasks.clone()));
        self.pools.borrow_mut().insert(target, pool.clone());
        pool
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_shortest_limit_counts_and_names_itself() {
        let seconds = Duration::from_secs;
        let now = crate::time::now();
        let check = |total: u64, start: u64, idle: u64, after: Option<u64>, code: &str| {
            let some = |value: u64| (value > 0).then(|| seconds(value));
            let limits = Limits { total: some(total), response_start: some(start), idle: some(idle) };
            let deadline = limits.deadline(now);
            assert_eq!(deadline.map(|d| d.after), after.map(seconds));
            if let Some(deadline) = deadline {
                assert_eq!(deadline.at, now + deadline.after);
                assert_eq!(deadline.error().answer().code, code);
            }
        };
        check(0, 0, 0, None, "");
        check(300, 0, 0, Some(300), "timeout");
        check(300, 60, 0, Some(60), "timeout");
        check(300, 60, 5, Some(5), "idle-timeout");
        check(300, 60, 60, Some(60), "timeout");
        check(0, 0, 5, Some(5), "idle-timeout");
    }
}
