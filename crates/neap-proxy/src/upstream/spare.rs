//! A second copy of a request that may be sent once more: what it asks changes nothing, it has no body, and whoever got it
//! closed the connection without a word. An instance that dies thus loses no reader's request.
//!
//! Where it is sent the second time, and how often, the caller says; over HTTP/1.1 it is a new connection, for others that
//! were kept may be as dead as the first and not know it yet.

use http::{HeaderName, HeaderValue, Method, Uri};

use crate::body::Body;
use crate::handler::Request;

/// Only what changes nothing: a DELETE that was done before its instance died would be answered with 404 by the next.
pub(super) fn is_repeatable(request: &Request) -> bool {
    let copy = matches!(request.extensions().get(), Some(Mark::Copy));
    !copy && request.method().is_safe() && request.body().is_empty()
}

/// Says that this request was sent before.
pub(super) fn mark_again(request: &mut Request) {
    request.extensions_mut().insert(Mark::Again);
}

/// What is needed to send a request again that an engine takes for itself, as that of h2 does.
pub(super) struct Spare {
    method: Method,
    uri: Uri,
    /// A list, since a second map would cost every request what hardly one needs.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Spare {
    /// `None` for one that must not be repeated.
    pub(super) fn of(request: &Request) -> Option<Self> {
        is_repeatable(request).then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        })
    }

    pub(super) fn request(self) -> Request {
        let mut request = http::Request::new(Body::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        for (name, value) in self.headers {
            request.headers_mut().append(name, value);
        }
        mark_again(&mut request);
        request
    }
}

/// Says that this request is a second copy itself: it is not sent again when whoever got it closes without a word.
pub fn send_once(request: &mut Request) {
    request.extensions_mut().insert(Mark::Copy);
}

/// Whether the request was sent before.
pub(super) fn is_again(request: &Request) -> bool {
    matches!(request.extensions().get(), Some(Mark::Again))
}

/// What a request has been through.
#[derive(Debug, Clone, Copy)]
enum Mark {
    /// It was sent before.
    Again,
    /// Another request is the first of the two: it is not sent once more.
    Copy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repeatable_requests_have_a_spare() {
        let check = |method: Method, body: Body, spare: bool| {
            let request = http::Request::builder().method(&method).body(body).expect("a request");
            assert_eq!(Spare::of(&request).is_some(), spare, "{method}");
        };
        check(Method::GET, Body::empty(), true);
        check(Method::DELETE, Body::empty(), false);
        check(Method::PUT, Body::full("x"), false);
        check(Method::POST, Body::empty(), false);
        let first = http::Request::builder().uri("/a?b").header("a", "1").header("b", "2").header("a", "3");
        let first = first.body(Body::empty()).expect("a request");
        let repeated = Spare::of(&first).expect("may be repeated").request();
        assert_eq!((repeated.uri(), repeated.headers()), (first.uri(), first.headers()));
        assert!(is_again(&repeated) && Spare::of(&repeated).is_some(), "how often the caller says");
        let mut copy = http::Request::new(Body::empty());
        send_once(&mut copy);
        assert!(Spare::of(&copy).is_none() && !is_again(&copy), "a copy");
    }
}
