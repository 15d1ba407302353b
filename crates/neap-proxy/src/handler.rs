//! What the engine asks of the one who uses it: a request comes in, a response goes out.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;

use crate::body::Body;

/// A request as handlers see it.
pub type Request = http::Request<Body>;
/// A response as handlers make it.
pub type Response = http::Response<Body>;

/// What is known of the connection a request came on.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Which listener, by its place in the list the server was started with.
    pub listener: usize,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// The server name the client asked for in the TLS handshake.
    pub server_name: Option<Arc<str>>,
    /// The other end's address as a header value, made once for all requests of the connection.
    pub peer_value: HeaderValue,
}

impl Connection {
    /// A connection in the clear.
    pub fn plain(peer: SocketAddr, local: SocketAddr, listener: usize) -> Self {
        // An IPv4 client on a dual-stack socket is an IPv4 client.
        let address = peer.ip().to_canonical().to_string();
        let peer_value = HeaderValue::try_from(address).expect("addresses are plain text");
        Self { peer, local, listener, tls: false, server_name: None, peer_value }
    }
}

/// Serves requests. One value exists per worker and never leaves its thread, so it may hold `Rc` and `RefCell`.
///
/// A handler never fails: it turns what went wrong into a response (see [`crate::ProxyError::respond`]). When
/// the client goes away the future is dropped.
pub trait Handler: 'static {
    /// Answers one request.
    fn handle(&self, request: Request, connection: &Connection) -> impl Future<Output = Response>;
}
