//! The connection on which an activator, or a gateway, tells a cluster's autoscaler what it counts (fact E1.11).

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

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

/// Keeps a connection and sends what comes, until nothing can come any more. `told` hears whether it stands.
pub async fn send(host: &str, port: u16, mut messages: mpsc::Receiver<Vec<u8>>, told: impl Fn(bool)) {
    let mut again = AGAIN;
    let mut latest = None;
    loop {
        let opened = tokio::select! {
            opened = timeout(CONNECT, open(host, port)) => opened,
            () = keep_latest(&mut messages, &mut latest) => return,
        };
        match opened {
            Ok(Ok(socket)) => {
                tracing::info!(host, port, "connected to the autoscaler");
                told(true);
                again = AGAIN;
                let why = converse(socket, latest.take(), &mut messages).await;
                told(false);
                match why {
                    None => return,
                    Some(why) => tracing::warn!(why, "the connection to the autoscaler was lost"),
                }
            }
            Ok(Err(error)) => {
                told(false);
                tracing::warn!(
                    host,
                    port,
                    error = &error as &dyn std::error::Error,
                    "the autoscaler cannot be reached"
                );
            }
            Err(_elapsed) => {
                told(false);
                tracing::warn!(host, port, "the autoscaler does not answer");
            }
        }
        tokio::select! {
            () = sleep(again) => {}
            () = keep_latest(&mut messages, &mut latest) => return,
        }
        again = (again * 2).min(AGAIN_MOST);
    }
}

/// Takes what comes while nobody listens. Each message says what one second brought, and the autoscaler takes it for the
/// present one: only the last is worth telling. Ends when nothing more can come.
async fn keep_latest(messages: &mut mpsc::Receiver<Vec<u8>>, latest: &mut Option<Vec<u8>>) {
    while let Some(message) = messages.recv().await {
        *latest = Some(message);
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
async fn converse(
    mut socket: Socket,
    mut first: Option<Vec<u8>>,
    messages: &mut mpsc::Receiver<Vec<u8>>,
) -> Option<String> {
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            message = next(&mut first, messages) => match message {
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

async fn next(first: &mut Option<Vec<u8>>, messages: &mut mpsc::Receiver<Vec<u8>>) -> Option<Vec<u8>> {
    match first.take() {
        Some(first) => Some(first),
        None => messages.recv().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_counted_while_nobody_listened_is_not_told_all_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (sender, messages) = mpsc::channel(8);
        for second in 0..5 {
            sender.send(vec![second]).await.expect("room");
        }
        let heard = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a WebSocket");
            let mut heard = Vec::new();
            while heard.last() != Some(&9) {
                match socket.next().await.expect("open").expect("whole") {
                    Message::Binary(bytes) => heard.push(bytes[0]),
                    _ => continue,
                }
                if heard.len() == 1 {
                    sender.send(vec![9]).await.expect("room");
                }
            }
            heard
        };
        let heard = async {
            tokio::select! {
                () = send("127.0.0.1", port, messages, |_| {}) => panic!("it goes on"),
                heard = heard => heard,
            }
        };
        assert_eq!(timeout(Duration::from_secs(10), heard).await.expect("in time"), [4, 9]);
    }
}
