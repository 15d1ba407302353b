//! Takes connections off a listening socket and hands each to the worker that has fewest.
//!
//! One loop per listener, not one socket per worker (SO_REUSEPORT): the kernel's hash leaves two workers with
//! 40 and 24 of 64 connections as often as not, and the busier one then sets the latency. A hand-over costs
//! one wake-up per connection, nothing per request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pause when the process is out of file descriptors or over its connection limit.
const PAUSE: Duration = Duration::from_millis(50);
/// Silence after which the kernel asks whether the client's machine is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Between two such questions; Linux gives up after nine.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// A connection on its way to a worker.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) listener: usize,
    pub(super) seat: Seat,
}

/// One worker as the accept loops see it.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    pub(super) queue: mpsc::Sender<Accepted>,
    pub(super) taken: Arc<AtomicUsize>,
}

/// Counts a connection while it lives: at its worker, and at the listener it came by.
#[derive(Debug)]
pub(super) struct Seat([Arc<AtomicUsize>; 2]);

impl Seat {
    fn take(worker: &Arc<AtomicUsize>, door: &Arc<AtomicUsize>) -> Self {
        let counts = [worker.clone(), door.clone()];
        for count in &counts {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self(counts)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

pub(super) async fn run(
    socket: std::net::TcpListener,
    listener: usize,
    workers: Vec<Seats>,
    max_connections: usize,
    shutdown: CancellationToken,
) {
    // Its own: a crowd at one listener, such as the one for strangers, does not close the others.
    let door = Arc::<AtomicUsize>::default();
    let stopped = shutdown.cancelled();
    tokio::pin!(stopped);
    let socket = match socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(listener, error = &error as &dyn std::error::Error, "cannot listen");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = accept(&socket) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if !hand_over(&workers, &door, listener, stream, peer).await {
                    return;
                }
            }
            // The client gave up before we came to it.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(listener, error = &error as &dyn std::error::Error, "cannot accept; pausing");
                tokio::time::sleep(PAUSE).await;
            }
        }
        // What waits in the kernel's backlog is not refused, only late.
        while door.load(Ordering::Relaxed) >= max_connections {
            tokio::select! {
                biased;
                () = &mut stopped => break,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
    // The kernel has shaken hands with clients that we have not seen yet; closing the socket would reset them.
    let Ok(socket) = socket.into_std() else { return };
    while let Ok((stream, peer)) = socket.accept() {
        if let Ok(stream) = prepared(stream)
            && !hand_over(&workers, &door, listener, stream, peer).await
        {
            return;
        }
    }
}

/// Gives the connection to the worker that has fewest. A worker that has ended takes none; false: all have.
async fn hand_over(
    workers: &[Seats],
    door: &Arc<AtomicUsize>,
    listener: usize,
    stream: std::net::TcpStream,
    peer: SocketAddr,
) -> bool {
    let mut stream = Some(stream);
    while let Some(given) = stream.take() {
        let alive = workers.iter().filter(|worker| !worker.queue.is_closed());
        let Some(worker) = alive.min_by_key(|worker| worker.taken.load(Ordering::Relaxed)) else { return false };
        let seat = Seat::take(&worker.taken, door);
        let accepted = Accepted { stream: given, peer, listener, seat };
        stream = worker.queue.send(accepted).await.err().map(|unsent| unsent.0.stream);
    }
    true
}

async fn accept(socket: &TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let (stream, peer) = socket.accept().await?;
    Ok((prepared(stream.into_std()?)?, peer))
}

/// A socket that no runtime has registered, so that any worker may.
fn prepared(stream: std::net::TcpStream) -> io::Result<std::net::TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    // Whoever vanished without a word must not hold an instance awake for ever, as an open socket would.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}
