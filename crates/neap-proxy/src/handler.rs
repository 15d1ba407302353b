//! What the engine asks of the one who uses it: a request comes in, a response goes out.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

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
}

/// Serves requests. One value exists per worker and never leaves its thread, so it may hold `Rc` and `RefCell`.
///
/// A handler never fails: it turns what went wrong into a response (see [`crate::ProxyError::respond`]). When
/// the client goes away the future is dropped.
pub trait Handler: 'static {
    /// Answers one request.
    fn handle(&self, request: Request, connection: &Connection) -> impl Future<Output = Response>;
}
