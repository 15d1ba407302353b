//! Listening and serving: one worker per core, connections handed to the worker that has fewest.
//!
//! `Config → build → run`: [`Server::new`] takes limits, [`Server::start`] starts threads, [`Running`] waits for
//! the end. When the shutdown token is cancelled, listeners close, connections finish what they carry, and
//! what is left after the drain timeout is cut.

mod accept;
mod answers;
pub(crate) mod connection;
mod io;
pub(crate) mod worker;

use std::io as std_io;
use std::sync::Arc;

use rustls::ServerConfig as TlsConfig;
use tokio_util::sync::CancellationToken;

use crate::access::AccessLog;
use crate::config::ServerConfig;
use crate::handler::Handler;
use crate::metrics::Metrics;

pub use worker::{LocalExecutor, Worker};

/// A socket that listens, and what is spoken on it.
#[derive(Debug)]
pub struct Listener {
    /// Bound and listening.
    pub socket: std::net::TcpListener,
    /// TLS, or HTTP in the clear (HTTP/1.1 and h2c by prior knowledge).
    pub tls: Option<Arc<TlsConfig>>,
}

impl Listener {
    /// In the clear.
    pub fn plain(socket: std::net::TcpListener) -> Self {
        Self { socket, tls: None }
    }

    /// With TLS; see [`crate::tls::server_config`].
    pub fn tls(socket: std::net::TcpListener, tls: Arc<TlsConfig>) -> Self {
        Self { socket, tls: Some(tls) }
    }
}

/// A server that has not been started.
#[derive(Clone)]
pub struct Server {
    config: ServerConfig,
    metrics: Metrics,
    access: Option<Arc<dyn AccessLog>>,
}

impl Server {
    /// A server with these limits.
    #[must_use]
    pub fn new(config: ServerConfig, metrics: Metrics) -> Self {
        Self { config, metrics, access: None }
    }

    /// Records every request.
    #[must_use]
    pub fn with_access_log(mut self, log: Arc<dyn AccessLog>) -> Self {
        self.access = Some(log);
        self
    }

    /// Starts `workers` threads. `handler` is called once on each of them.
    pub fn start<H, F>(
        self,
        listeners: Vec<Listener>,
        workers: usize,
        shutdown: CancellationToken,
        handler: F,
    ) -> std_io::Result<Running>
    where
        H: Handler,
        F: Fn(&Worker) -> H + Send + Sync + 'static,
    {
        let addresses = listeners.iter().map(|l| l.socket.local_addr()).collect::<std_io::Result<Vec<_>>>()?;
        let threads = worker::start(self, listeners, workers.max(1), shutdown, handler)?;
        Ok(Running { threads, addresses })
    }

    /// Serves on the calling thread, which becomes the only worker, until `shutdown` has been cancelled and all is
    /// drained. For processes that are to be small: there is one runtime and no other thread. `beside` runs on it until
    /// all has ended, such as what listens for signals.
    pub fn run<H, F>(
        self,
        listeners: Vec<Listener>,
        shutdown: CancellationToken,
        beside: impl Future<Output = ()> + 'static,
        handler: F,
    ) -> std_io::Result<()>
    where
        H: Handler,
        F: Fn(&Worker) -> H,
    {
        worker::run_here(self, listeners, shutdown, beside, &handler)
    }
}

/// A server that runs.
#[derive(Debug)]
#[must_use = "the server runs until this has been waited for"]
pub struct Running {
    threads: Vec<worker::Thread>,
    addresses: Vec<std::net::SocketAddr>,
}

impl Running {
    /// Where it listens, in the order of the listeners.
    pub fn addresses(&self) -> &[std::net::SocketAddr] {
        &self.addresses
    }

    /// Waits until every worker has drained and ended, once the shutdown token has been cancelled.
    pub async fn join(mut self) {
        for thread in &mut self.threads {
            std::future::poll_fn(|cx| thread.poll_ended(cx)).await;
        }
        self.join_blocking();
    }

    /// Resolves when a worker has ended. If nobody has cancelled the shutdown token that is a fault: the others go on, but
    /// the listeners that were its own are closed.
    pub async fn failed(&mut self) {
        std::future::poll_fn(|cx| {
            let ended = self.threads.iter_mut().any(|thread| thread.poll_ended(cx).is_ready());
            if ended { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    /// The same for code without a runtime.
    pub fn join_blocking(self) {
        for thread in self.threads {
            if thread.handle.join().is_err() {
                tracing::error!("a worker of the HTTP engine panicked; this is a bug");
            }
        }
    }
}
