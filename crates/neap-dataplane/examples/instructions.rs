//! A fixed number of requests through a whole gateway on one thread, client and instance included, so that instructions can
//! be counted (`bench/instructions`).
//!
//! `instructions REQUESTS [CONTAINER_CONCURRENCY]`

use neap_dataplane::{Config, Door, Gateway, GatewayListener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

mod world;

const REQUEST: &[u8] = b"GET /some/path?with=query HTTP/1.1\r\nHost: hello.default.example.com\r\nAccept: */*\r\n\
    User-Agent: instructions/1\r\nAccept-Encoding: gzip\r\nCookie: a=b\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello World!\n";
/// The last bytes of an answer.
const END: &[u8] = b"Hello World!\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let requests: u32 = args.next().ok_or("instructions REQUESTS [CONTAINER_CONCURRENCY]")?.parse()?;
    let concurrency: i64 = args.next().map_or(Ok(0), |limit| limit.parse())?;
    let origin = std::net::TcpListener::bind("127.0.0.1:0")?;
    origin.set_nonblocking(true)?;
    let (plane, _wakes) = world::one_service(origin.local_addr()?, concurrency)?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    let gateway = socket.local_addr()?;
    let listener = GatewayListener { socket, door: Door::External, tls: false, trust_forwarded: false };
    let shutdown = CancellationToken::new();
    let done = shutdown.clone();
    let beside = async move {
        let origin = TcpListener::from_std(origin).expect("is not blocking");
        let client = async {
            let mut stream = TcpStream::connect(gateway).await.expect("connects");
            stream.set_nodelay(true).expect("is a socket");
            for _ in 0..requests {
                stream.write_all(REQUEST).await.expect("writes");
                until(&mut stream, END).await;
            }
        };
        let instance = async {
            loop {
                let (mut stream, _) = origin.accept().await.expect("accepts");
                stream.set_nodelay(true).expect("is a socket");
                while until(&mut stream, b"\r\n\r\n").await {
                    stream.write_all(ANSWER).await.expect("writes");
                }
            }
        };
        tokio::select! {
            () = client => {}
            () = instance => {}
        }
        done.cancel();
    };
    let mut registry = prometheus_client::registry::Registry::default();
    Gateway::new(Config::default(), plane, &mut registry).run(vec![listener], shutdown, beside)?;
    Ok(())
}

/// Reads until what was read ends so; false when the other side has closed.
async fn until(stream: &mut TcpStream, end: &[u8]) -> bool {
    let mut read = [0; 4096];
    let mut length = 0;
    loop {
        match stream.read(&mut read[length..]).await {
            Ok(n) if n > 0 => length += n,
            _ => return false,
        }
        if read[..length].ends_with(end) {
            return true;
        }
    }
}
