//! The connections of one worker to one target.
//!
//! An idle HTTP/1.1 connection is a value, not a task: nothing runs for it. Whether the other side closed it
//! in the meantime is found out when it is taken out again, or by the sweep.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use tokio_util::task::TaskTracker;

use super::Target;
use super::http1::Connection;
use super::http2::{Failure, Http2};
use crate::config::{SWEEP_INTERVAL, UpstreamConfig};
use crate::metrics::Metrics;

pub(super) struct Pool {
    pub(super) target: Target,
    pub(super) config: Rc<UpstreamConfig>,
    pub(super) metrics: Metrics,
    pub(super) tasks: TaskTracker,
    idle: RefCell<Vec<Idle>>,
    pub(super) h2: RefCell<Vec<Http2>>,
    /// Held while an h2 connection is being made, so that a burst of requests shares it.
    pub(super) h2_connecting: tokio::sync::Mutex<()>,
    /// Attempts that failed, and how the last one did.
    pub(super) h2_failures: Cell<(u32, Option<Failure>)>,
}

struct Idle {
    connection: Connection,
    /// Sweeps it may still live to see. Counting them costs nothing per request, where reading a clock would.
    sweeps: u64,
}

impl Pool {
    pub(super) fn new(target: Target, config: Rc<UpstreamConfig>, metrics: Metrics, tasks: TaskTracker) -> Self {
        Self {
            target,
            config,
            metrics,
            tasks,
            idle: RefCell::default(),
            h2: RefCell::default(),
            h2_connecting: tokio::sync::Mutex::new(()),
            h2_failures: Cell::default(),
        }
    }

    /// The connection used last that is still good; `cx` is the task that will use it.
    pub(super) fn take(&self, cx: &mut Context<'_>) -> Option<Connection> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.poll_idle(cx) {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection that is ready for another request.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.config.max_idle {
            let most = self.config.idle_timeout;
            let keep = connection.keep_alive().map_or(most, |hint| hint.min(most));
            let sweeps = keep.as_secs() / SWEEP_INTERVAL.as_secs();
            if sweeps > 0 {
                idle.push(Idle { connection, sweeps });
            }
        }
    }

    pub(super) fn sweep(&self) {
        // No task waits for an idle connection, hence nobody is to be woken.
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.borrow_mut().retain_mut(|idle| {
            idle.sweeps -= 1;
            idle.sweeps > 0 && idle.connection.poll_idle(&mut cx)
        });
        let most = self.config.idle_timeout.as_secs() / SWEEP_INTERVAL.as_secs();
        self.h2.borrow_mut().retain(|connection| !connection.is_closed() && !connection.swept(most));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.h2.borrow().is_empty()
    }
}
