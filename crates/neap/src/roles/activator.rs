//! `neap activator`: in the place of Knative's activator. The connection to the autoscaler is made here.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use neap_dataplane::activator::{Activator, Connection, METRICS_PORT, PORTS, PROPAGATION, Settings, Started};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::args;
use crate::process::{self, Signals};

const LOG_DEFAULT: &str = "info,kube=warn";
/// How long the autoscaler may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two attempts at first; it doubles.
const AGAIN: Duration = Duration::from_millis(100);
/// And at most.
const AGAIN_MOST: Duration = Duration::from_secs(10);
/// How often the autoscaler is asked whether it is there.
const PING: Duration = Duration::from_secs(9);
/// When nothing has been heard for so long, it is not.
const SILENCE: Duration = Duration::from_secs(20);

/// Runs until the pod ends.
///
/// # Errors
/// One line that says what to do.
pub fn main(flags: &args::Activator, env: &BTreeMap<String, String>) -> Result<(), String> {
    process::log(env, LOG_DEFAULT)?;
    let settings = Settings::from_env(env).map_err(|e| e.to_string())?;
    process::threads()?.block_on(run(flags, env, settings))
}

async fn run(flags: &args::Activator, env: &BTreeMap<String, String>, settings: Settings) -> Result<(), String> {
    let mut signals = Signals::catch().map_err(|e| format!("signals cannot be handled: {e}"))?;
    let client = crate::cluster::connect(&flags.cluster, env).await.map_err(|e| process::chain(&e))?;
    let (stopping, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let (host, port) = settings.autoscaler();
    let activator = Activator::new(settings);
    let watches = neap_dataplane::watch::activator(client, activator.plane(), shutdown.clone());
    let sockets = PORTS.iter().map(|port| listen(*port)).collect::<Result<Vec<_>, _>>()?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let started = activator
        .start(sockets, listen(METRICS_PORT)?, workers, stopping.clone(), shutdown.clone())
        .map_err(|e| format!("the machine gives no threads: {e}"))?;
    let Started { running, messages, connection, background } = started;
    println!("ready: activator");
    let end = async {
        signals.any().await;
        tracing::info!("told to end: serving until all routers know");
        stopping.cancel();
        sleep(PROPAGATION).await;
        shutdown.cancel();
        running.join().await;
    };
    tokio::select! {
        () = end => Ok(()),
        // These end with the token, and then the requests in flight are all that matters.
        () = async { tokio::join!(watches, background, send(&host, port, messages, &connection)); std::future::pending().await } => Ok(()),
    }
}

/// Keeps a connection and sends what comes, until nothing can come any more.
async fn send(host: &str, port: u16, mut messages: mpsc::Receiver<Vec<u8>>, connection: &Connection) {
    let mut again = AGAIN;
    loop {
        match timeout(CONNECT, open(host, port)).await {
            Ok(Ok(socket)) => {
                tracing::info!(host, port, "connected to the autoscaler");
                connection.set(true);
                again = AGAIN;
                let why = converse(socket, &mut messages).await;
                connection.set(false);
                match why {
                    None => return,
                    Some(why) => tracing::warn!(why, "the connection to the autoscaler was lost"),
                }
            }
            Ok(Err(error)) => {
                connection.set(false);
                tracing::warn!(host, port, error = &error as &dyn std::error::Error, "the autoscaler cannot be reached");
            }
            Err(_elapsed) => {
                connection.set(false);
                tracing::warn!(host, port, "the autoscaler does not answer");
            }
        }
        sleep(again).await;
        again = (again * 2).min(AGAIN_MOST);
    }
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn open(host: &str, port: u16) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let (socket, _response) = tokio_tungstenite::client_async(format!("ws://{host}:{port}/"), stream).await?;
    Ok(socket)
}

/// Says why it ended; `None` when nothing more is to be sent.
async fn converse(mut socket: Socket, messages: &mut mpsc::Receiver<Vec<u8>>) -> Option<String> {
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            message = messages.recv() => match message {
                Some(message) => Message::Binary(message.into()),
                None => {
                    drop(socket.close(None).await);
                    return None;
                }
            },
            received = socket.next() => match received {
                // A ping is answered by the library with the next write.
                Some(Ok(Message::Close(_))) | None => return Some("it closed the connection".into()),
                Some(Ok(_)) => {
                    heard = Instant::now();
                    continue;
                }
                Some(Err(error)) => return Some(error.to_string()),
            },
            _ = pings.tick() => {
                if heard.elapsed() >= SILENCE {
                    return Some("nothing was heard from it".into());
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        match timeout(CONNECT, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Some(error.to_string()),
            Err(_elapsed) => return Some("it does not take what is sent".into()),
        }
    }
}

/// On IPv6 and IPv4, or on IPv4 where there is no other.
fn listen(port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|e| format!("cannot listen on port {port}: {e}"))
}
