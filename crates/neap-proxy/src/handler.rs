//! What the engine asks of the one who uses it: a request comes in, a response goes out.

use std::cell::RefCell;
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
    /// For the handler.
    pub memo: Memo,
}

impl Connection {
    /// A connection in the clear.
    pub fn plain(peer: SocketAddr, local: SocketAddr, listener: usize) -> Self {
        // An IPv4 client on a dual-stack socket is an IPv4 client.
        let address = peer.ip().to_canonical().to_string();
        let peer_value = HeaderValue::try_from(address).expect("addresses are plain text");
        Self { peer, local, listener, tls: false, server_name: None, peer_value, memo: Memo::default() }
    }
}

/// The header value that was made last for a connection, and of what: the requests of one mostly have these parts in
/// common, and then it need not be made again.
#[derive(Debug, Clone, Default)]
pub struct Memo(RefCell<Option<Box<Made>>>);

#[derive(Debug, Clone)]
struct Made {
    /// The parts, each with a line break behind it, which no header value has.
    of: Vec<u8>,
    value: HeaderValue,
}

/// A value made of more, in bytes, is not kept: connections are many, and may live for long.
const MEMO_LIMIT: usize = 512;

impl Memo {
    /// What `make` makes of these parts of header values, or has made of them the last time.
    pub fn value_of(&self, parts: [&[u8]; 3], make: impl FnOnce() -> Option<HeaderValue>) -> Option<HeaderValue> {
        let mut last = self.0.borrow_mut();
        if let Some(made) = last.as_ref().filter(|made| made.is_of(parts)) {
            return Some(made.value.clone());
        }
        let value = make()?;
        if parts.iter().map(|part| part.len()).sum::<usize>() <= MEMO_LIMIT {
            *last =
                Some(Box::new(Made { of: parts.map(|part| [part, b"\n"].concat()).concat(), value: value.clone() }));
        }
        Some(value)
    }
}

impl Made {
    fn is_of(&self, parts: [&[u8]; 3]) -> bool {
        let left = parts.iter().try_fold(&*self.of, |left, part| left.strip_prefix(*part)?.strip_prefix(b"\n"));
        left.is_some_and(<[u8]>::is_empty)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_makes_a_value_again_when_a_part_is_another() {
        let memo = Memo::default();
        let made = std::cell::Cell::new(0);
        let check = |parts: [&[u8]; 3], times: u32| {
            let value = memo.value_of(parts, || {
                made.set(made.get() + 1);
                HeaderValue::from_bytes(&parts.join(&b'|')).ok()
            });
            assert_eq!(value.expect("a value").as_bytes(), parts.join(&b'|'));
            assert_eq!(made.replace(0), times, "{parts:?}");
        };
        check([b"a", b"b", b"c"], 1);
        check([b"a", b"b", b"c"], 0);
        check([b"ab", b"", b"c"], 1);
        check([b"a", b"b", b"c"], 1);
        check([b"a", b"b", b"cd"], 1);
        check([b"a", b"b", b"c"], 1);
        let long = vec![b'a'; MEMO_LIMIT];
        check([&long, b"b", b"c"], 1);
        check([&long, b"b", b"c"], 1);
        check([b"a", b"b", b"c"], 0);
    }
}
