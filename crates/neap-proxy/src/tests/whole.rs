//! The server as a whole: threads, sockets, TLS, shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::tls::{CertifiedKey, ClientHello, ResolvesServerCert};
use crate::*;

/// Answers with what it knows of the connection, and counts per worker.
struct Tell {
    served: Arc<[AtomicUsize; 2]>,
    worker: usize,
}

impl Handler for Tell {
    async fn handle(&self, request: Request, connection: &Connection) -> Response {
        self.served[self.worker].fetch_add(1, Ordering::Relaxed);
        let name = connection.server_name.as_deref().unwrap_or("-");
        http::Response::new(Body::full(format!(
            "{:?} {} {} {name}",
            request.version(),
            connection.listener,
            connection.tls
        )))
    }
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        (hello.server_name() == Some("app.example")).then(|| self.0.clone())
    }
}

fn socket() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").expect("binds")
}

async fn ask(addr: std::net::SocketAddr) -> (hyper::client::conn::http1::SendRequest<Empty<Bytes>>, String) {
    let stream = TcpStream::connect(addr).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("shakes hands");
    tokio::task::spawn_local(connection);
    let request = http::Request::get("/").header("host", "a").body(Empty::new()).expect("a request");
    let answer = sender.send_request(request).await.expect("answers");
    let body = answer.into_body().collect().await.expect("collects").to_bytes();
    (sender, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn listeners_workers_tls_and_shutdown() {
    super::harness::local(async {
        let made = rcgen::generate_simple_self_signed(["app.example".to_owned()]).expect("makes a certificate");
        let pair = tls::certified_key(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes());
        let resolver = Arc::new(Fixed(pair.expect("fits")));
        let listeners = vec![Listener::plain(socket()), Listener::tls(socket(), tls::server_config(resolver))];
        let served: Arc<[AtomicUsize; 2]> = Arc::default();
        let count = served.clone();
        let shutdown = CancellationToken::new();
        let metrics = Metrics::default();
        let running = Server::new(ServerConfig::default(), metrics.clone())
            .start(listeners, 2, shutdown.clone(), move |worker| Tell { served: count.clone(), worker: worker.index() })
            .expect("starts");
        let [plain, secure] = [running.addresses()[0], running.addresses()[1]];

        let mut kept = Vec::new();
        for _ in 0..8 {
            let (sender, text) = ask(plain).await;
            assert_eq!(text, "HTTP/1.1 0 false -");
            kept.push(sender);
        }
        let per_worker: Vec<_> = served.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(per_worker, [4, 4], "connections are spread evenly");

        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("is a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("speaks TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut asking = client.clone();
        asking.alpn_protocols = vec![tls::ACME_TLS.to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let dial = async |name: &'static str| {
            let stream = TcpStream::connect(secure).await.expect("connects");
            connector.connect(ServerName::try_from(name).expect("a name"), stream).await
        };
        let stream = dial("app.example").await.expect("the certificate fits");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("shakes hands");
        tokio::task::spawn_local(connection);
        let request = http::Request::get("https://app.example/").body(Empty::<Bytes>::new()).expect("a request");
        let answer = sender.send_request(request).await.expect("answers").into_body().collect().await;
        assert_eq!(answer.expect("collects").to_bytes(), "HTTP/2.0 1 true app.example");
        assert!(dial("other.example").await.is_err());

        // An authority that makes certificates looks at the handshake only.
        let stream = TcpStream::connect(secure).await.expect("connects");
        let asking = tokio_rustls::TlsConnector::from(Arc::new(asking));
        let mut stream =
            asking.connect(ServerName::try_from("app.example").expect("a name"), stream).await.expect("an answer");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(tls::ACME_TLS));
        assert_eq!(stream.read(&mut [0; 16]).await.expect("a proper end"), 0);

        shutdown.cancel();
        let drained = tokio::time::timeout(std::time::Duration::from_secs(10), running.join());
        drained.await.expect("drains");
        // Counted by the worker, which may hear of the failure after its client.
        assert_eq!(metrics.tls_failures.get(), 1);
        assert!(TcpStream::connect(plain).await.is_err(), "the listener is closed");
        assert!(kept.iter_mut().all(|sender| sender.is_closed()), "idle connections are closed");
    })
    .await;
}

/// Answers with the protocol it was spoken to in, over TLS.
struct Secure;

impl Handler for Secure {
    async fn handle(&self, request: Request, connection: &Connection) -> Response {
        http::Response::new(Body::full(format!("{:?} {}", request.version(), connection.tls)))
    }
}

#[tokio::test]
async fn upstreams_may_speak_tls() {
    super::harness::local(async {
        let made = || rcgen::generate_simple_self_signed(["app.example".to_owned()]).expect("makes a certificate");
        let (one, other) = (made(), made());
        let pair = tls::certified_key(one.cert.pem().as_bytes(), one.signing_key.serialize_pem().as_bytes());
        let resolver = Arc::new(Fixed(pair.expect("fits")));
        let listeners = vec![Listener::tls(socket(), tls::server_config(resolver))];
        let shutdown = CancellationToken::new();
        let running = Server::new(ServerConfig::default(), Metrics::default())
            .start(listeners, 1, shutdown.clone(), |_| Secure)
            .expect("starts");
        let addr = running.addresses()[0];
        let trusted = tls::ClientTls::new(one.cert.pem().as_bytes(), "app.example").expect("is an authority");
        let config = UpstreamConfig { tls: Some(trusted.clone()), ..UpstreamConfig::default() };
        let upstream = Upstream::new(config, Metrics::default(), tokio_util::task::TaskTracker::new());
        let ask = async |protocol: Protocol| {
            let request = http::Request::get("/").header("host", "a").body(Body::empty()).expect("a request");
            let response = upstream.send(Target { addr, protocol }, &mut Some(request), None, None).await?;
            let body = response.into_body().collect().await.expect("collects").to_bytes();
            Ok::<_, ProxyError>(String::from_utf8(body.to_vec()).expect("text"))
        };
        assert_eq!(ask(Protocol::Http1).await.expect("answers"), "HTTP/1.1 true");
        assert_eq!(ask(Protocol::H2c).await.expect("answers"), "HTTP/2.0 true");
        trusted.trust(other.cert.pem().as_bytes()).expect("is an authority");
        for _ in 0..10 {
            upstream.sweep();
        }
        let refused = ask(Protocol::Http1).await.expect_err("is not trusted");
        assert!(matches!(refused, ProxyError::Connect { .. }), "{refused}");
        assert!(trusted.trust(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n").is_err());
        shutdown.cancel();
        drop(upstream);
        running.join().await;
    })
    .await;
}

/// Sends everything to one place, and takes tunnels there.
struct Through(Upstream, To);

/// The one place.
#[derive(Clone, Copy)]
struct To(Target);

struct Nothing;

impl OnEnd for Nothing {
    fn on_end(&mut self, _: Outcome, _: u64) {}
}

impl Picker for To {
    type Hold = Nothing;

    async fn pick(&mut self, _: Option<upstream::Deadline>) -> Result<Picked<Nothing>, ProxyError> {
        Ok(Picked { target: self.0, hold: Nothing })
    }

    fn refused(&mut self, _: Picked<Nothing>, error: ProxyError) -> Result<(), ProxyError> {
        Err(error)
    }
}

impl Handler for Through {
    async fn handle(&self, mut request: Request, _: &Connection) -> Response {
        headers::canonical(&mut request).expect("is sound");
        let mut to = self.1;
        let (limits, arrived) = (Limits::default(), time::now());
        match forward(&self.0, &mut to, &mut Some(request), &limits, arrived).await {
            Ok(response) => response,
            Err(error) => error.respond(false),
        }
    }
}

#[tokio::test]
async fn a_tunnel_keeps_its_seat_and_each_listener_has_its_own() {
    super::harness::local(async {
        let target = super::harness::raw_origin(Protocol::Http1, |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.expect("reads") > 0);
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
            stream.write_all(answer).await.expect("writes");
            while stream.read(&mut [0; 9]).await.is_ok_and(|n| n > 0) {}
        })
        .await;
        let shutdown = CancellationToken::new();
        let metrics = Metrics::default();
        let config = ServerConfig { max_connections: 1, ..ServerConfig::default() };
        let upstream_metrics = metrics.clone();
        let running = Server::new(config, metrics.clone())
            .start(vec![Listener::plain(socket()), Listener::plain(socket())], 1, shutdown.clone(), move |worker| {
                let upstream =
                    Upstream::new(UpstreamConfig::default(), upstream_metrics.clone(), worker.tasks().clone());
                Through(upstream, To(target))
            })
            .expect("starts");
        let [full, other] = [running.addresses()[0], running.addresses()[1]];
        let switch = async |addr| {
            let mut stream = TcpStream::connect(addr).await.expect("connects");
            let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
            stream.write_all(head).await.expect("writes");
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.expect("reads");
            assert_eq!(&answer, b"HTTP/1.1 101");
            stream
        };
        let tunnel = switch(full).await;
        while metrics.tunnels.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(metrics.connections_open.get(), 1, "a tunnel is an open connection");
        let waits = switch(full);
        tokio::pin!(waits);
        // Another listener is not in its way, and by the time it has answered the first would have had.
        for _ in 0..3 {
            tokio::select! {
                biased;
                _ = &mut waits => panic!("the listener takes more than it may"),
                stream = switch(other) => drop(stream),
            }
            while metrics.connections_open.get() > 1 {
                tokio::task::yield_now().await;
            }
        }
        drop(tunnel);
        drop(waits.await);
        shutdown.cancel();
        running.join().await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_dies_is_noticed_and_passed_over() {
    super::harness::local(async {
        let shutdown = CancellationToken::new();
        let served: Arc<[AtomicUsize; 2]> = Arc::default();
        let mut running = Server::new(ServerConfig::default(), Metrics::default())
            .start(vec![Listener::plain(socket()), Listener::plain(socket())], 2, shutdown.clone(), move |worker| {
                if worker.index() == 0 {
                    worker.on_sweep(|| panic!("a fault that a test makes"));
                }
                Tell { served: served.clone(), worker: worker.index() }
            })
            .expect("starts");
        running.failed().await;
        let of_the_other = running.addresses()[1];
        for _ in 0..3 {
            assert_eq!(ask(of_the_other).await.1, "HTTP/1.1 1 false -");
        }
        shutdown.cancel();
        running.join().await;
    })
    .await;
}
