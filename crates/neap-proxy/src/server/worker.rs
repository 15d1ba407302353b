//! One core's share of the server: a thread, a runtime of its own, local tasks.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{self, Accepted, Seats};
use super::connection::{self, Watched};
use super::{Listener, Server};
use crate::config::SWEEP_INTERVAL;
use crate::handler::Handler;
use crate::time::now;

/// Connections that may be on their way to one worker.
const HAND_OVER: usize = 256;
/// Connections that may wait to be accepted, where `net.core.somaxconn` allows it.
const BACKLOG: i32 = 4096;

/// What a handler may know of the worker it belongs to.
#[derive(Clone)]
pub struct Worker {
    index: usize,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    sweeps: Rc<RefCell<Vec<Sweep>>>,
}

type Sweep = Box<dyn Fn()>;

impl Worker {
    /// Counts from zero.
    pub fn index(&self) -> usize {
        self.index
    }

    /// For tasks of the worker: it waits for them when it drains, and drops what is left after the drain timeout.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Cancelled when the server is to stop.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Calls `sweep` about once a second on this worker (see [`crate::config::SWEEP_INTERVAL`]).
    pub fn on_sweep(&self, sweep: impl Fn() + 'static) {
        self.sweeps.borrow_mut().push(Box::new(sweep));
    }

    /// A worker for code that serves without a [`Server`], such as tests; its sweeps are never called.
    pub fn detached() -> Self {
        Self { index: 0, tasks: TaskTracker::new(), shutdown: CancellationToken::new(), sweeps: Rc::default() }
    }
}

/// Lets hyper spawn on the worker's own task set.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        // The stream's task ends with its connection, which owns the other end of its channel.
        tokio::task::spawn_local(future);
    }
}

/// What all connections of one worker share.
pub(crate) struct Shared {
    pub(super) server: Server,
    pub(super) listeners: Arc<[Option<tokio_rustls::TlsAcceptor>]>,
    pub(super) draining: Cell<bool>,
    /// Connections to look after: swept each second, woken to drain.
    pub(super) watched: RefCell<Vec<Rc<Watched>>>,
}

impl Shared {
    pub(crate) fn new(server: Server, listeners: Arc<[Option<tokio_rustls::TlsAcceptor>]>) -> Rc<Self> {
        Rc::new(Self { server, listeners, draining: Cell::new(false), watched: RefCell::default() })
    }
}

/// A worker's thread.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) handle: JoinHandle<()>,
    /// Fails when the thread has ended; `None` once it has.
    ended: Option<oneshot::Receiver<Infallible>>,
}

impl Thread {
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(ended) = &mut self.ended {
            // The other end is never used, only dropped, at the thread's end.
            drop(ready!(Pin::new(ended).poll(cx)));
            self.ended = None;
        }
        Poll::Ready(())
    }
}

pub(super) fn start<H, F>(
    server: Server,
    listeners: Vec<Listener>,
    workers: usize,
    shutdown: CancellationToken,
    handler: F,
) -> io::Result<Vec<Thread>>
where
    H: Handler,
    F: Fn(&Worker) -> H + Send + Sync + 'static,
{
    widen(&listeners)?;
    let acceptors = acceptors(&listeners);
    let (seats, queues): (Vec<_>, Vec<_>) = (0..workers)
        .map(|_| {
            let (queue, receiver) = mpsc::channel(HAND_OVER);
            (Seats { queue, taken: Arc::default() }, receiver)
        })
        .unzip();
    // The accept loops are spread over the workers.
    let mut sockets: Vec<Vec<(usize, std::net::TcpListener)>> = (0..workers).map(|_| Vec::new()).collect();
    for (index, listener) in listeners.into_iter().enumerate() {
        sockets[index % workers].push((index, listener.socket));
    }
    let handler = Arc::new(handler);
    let mut threads = Vec::with_capacity(workers);
    for (index, (queue, sockets)) in queues.into_iter().zip(sockets).enumerate() {
        let (server, acceptors, seats) = (server.clone(), acceptors.clone(), seats.clone());
        let (shutdown, handler) = (shutdown.clone(), handler.clone());
        let (alive, ended) = oneshot::channel();
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let _alive: oneshot::Sender<Infallible> = alive;
            let runtime = runtime();
            let Ok(runtime) = runtime.map_err(|error| begun.send(Err(error))) else { return };
            drop(begun.send(Ok(())));
            let shared = Shared::new(server, acceptors);
            let worker = Worker { index, tasks: TaskTracker::new(), shutdown, sweeps: Rc::default() };
            runtime.block_on(run(worker, shared, queue, sockets, seats, &*handler));
        };
        let handle = std::thread::Builder::new().name(format!("neap-http-{index}")).spawn(body)?;
        begins.recv().map_err(io::Error::other)??;
        threads.push(Thread { handle, ended: Some(ended) });
    }
    Ok(threads)
}

pub(super) fn run_here<H: Handler>(
    server: Server,
    listeners: Vec<Listener>,
    shutdown: CancellationToken,
    beside: impl Future<Output = ()> + 'static,
    make_handler: &dyn Fn(&Worker) -> H,
) -> io::Result<()> {
    widen(&listeners)?;
    let shared = Shared::new(server, acceptors(&listeners));
    let runtime = runtime()?;
    let (queue, receiver) = mpsc::channel(HAND_OVER);
    let seats = vec![Seats { queue, taken: Arc::default() }];
    let sockets = listeners.into_iter().map(|listener| listener.socket).enumerate().collect();
    let worker = Worker { index: 0, tasks: TaskTracker::new(), shutdown, sweeps: Rc::default() };
    runtime.block_on(async {
        // Its end ends nothing; our end ends it.
        let beside = async {
            beside.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = run(worker, shared, receiver, sockets, seats, make_handler) => {}
            () = beside => {}
        }
    });
    Ok(())
}

/// Cannot leave its thread, so local tasks are its own, without a set of them in between.
fn runtime() -> io::Result<LocalRuntime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// Lets as many connections wait to be accepted as the kernel allows. Whoever comes beyond that is not refused but tries again
/// after a second, then after two; the 128 of the standard library are less than one burst of clients.
fn widen(listeners: &[Listener]) -> io::Result<()> {
    listeners.iter().try_for_each(|listener| socket2::SockRef::from(&listener.socket).listen(BACKLOG))
}

fn acceptors(listeners: &[Listener]) -> Arc<[Option<tokio_rustls::TlsAcceptor>]> {
    listeners.iter().map(|listener| listener.tls.clone().map(tokio_rustls::TlsAcceptor::from)).collect()
}

async fn run<H: Handler>(
    worker: Worker,
    shared: Rc<Shared>,
    mut queue: mpsc::Receiver<Accepted>,
    sockets: Vec<(usize, std::net::TcpListener)>,
    seats: Vec<Seats>,
    make_handler: &dyn Fn(&Worker) -> H,
) {
    let handler = Rc::new(make_handler(&worker));
    for (listener, socket) in sockets {
        let (seats, max) = (seats.clone(), shared.server.config.max_connections);
        worker.tasks.spawn_local(accept::run(socket, listener, seats, max, worker.shutdown.clone()));
    }
    drop(seats);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = worker.shutdown.cancelled() => break,
            Some(accepted) = queue.recv() => {
                worker.tasks.spawn_local(connection::serve(accepted, shared.clone(), handler.clone()));
            }
            _ = sweep.tick() => shared.sweep(&worker),
        }
    }
    shared.drain();
    worker.tasks.close();
    let drained = async {
        // What was accepted but not begun is served too: its client sees an open connection. The queue ends with the
        // last of the accept loops, which may belong to another worker.
        let mut handing_over = true;
        loop {
            tokio::select! {
                accepted = queue.recv(), if handing_over => match accepted {
                    Some(accepted) => {
                        worker.tasks.spawn_local(connection::serve(accepted, shared.clone(), handler.clone()));
                    }
                    None => handing_over = false,
                },
                () = worker.tasks.wait(), if !handing_over => break,
                _ = sweep.tick() => shared.sweep(&worker),
            }
        }
    };
    if tokio::time::timeout(shared.server.config.drain_timeout, drained).await.is_err() {
        tracing::warn!(worker = worker.index, left = worker.tasks.len(), "drain timeout: cutting what is left");
    }
}

impl Shared {
    fn sweep(&self, worker: &Worker) {
        let now = now();
        self.judge(now);
        for sweep in worker.sweeps.borrow().iter() {
            sweep();
        }
    }

    /// Marks the connections that overstayed.
    pub(crate) fn judge(&self, now: Instant) {
        for watched in self.watched.borrow().iter() {
            let cut = watched.judge(now, &self.server.config);
            self.answers_cut(cut);
        }
    }

    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.watched.borrow().len()
    }

    #[cfg(test)]
    pub(crate) fn resting(&self) -> usize {
        self.watched.borrow().iter().filter(|watched| watched.is_resting()).count()
    }

    pub(crate) fn drain(&self) {
        self.draining.set(true);
        for watched in self.watched.borrow().iter() {
            watched.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_connections_waits_in_the_socket() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux has it");
        if most.trim().parse::<usize>().expect("a number") < 500 {
            println!("skipped: this machine lets only {} connections wait", most.trim());
            return;
        }
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let addr = socket.local_addr().expect("bound");
        let listener = Listener { socket, tls: None };
        widen(std::slice::from_ref(&listener)).expect("listens");
        let connect = |_| std::net::TcpStream::connect_timeout(&addr, std::time::Duration::from_millis(900));
        let connected: Vec<_> = (0..400).map(connect).collect::<io::Result<_>>().expect("nobody has to try again");
        assert_eq!(connected.len(), 400);
    }
}
