//! A second copy of a request that may be sent once more: what it asks changes nothing, it has no body, and whoever got it
//! closed the connection without a word. An instance that dies thus loses no reader's request; at most two die of one.

use http::{HeaderName, HeaderValue, Method, Uri};

use crate::body::Body;
use crate::handler::Request;

/// What is needed to send a request again that has no body and may be repeated.
pub(super) struct Spare {
    method: Method,
    uri: Uri,
    /// A list, since a second map would cost every request what hardly one needs.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Spare {
    /// Only what changes nothing: a DELETE that was done before its instance died would be answered with 404 by the next.
    /// `None` also for one that has been repeated before: a request that ends whoever gets it must not go through all
    /// instances.
    pub(super) fn of(request: &Request) -> Option<Self> {
        let repeated = request.extensions().get::<Repeated>().is_some();
        (!repeated && request.method().is_safe() && request.body().is_empty()).then(|| Self {
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
        send_once(&mut request);
        request
    }
}

/// Says that this request is a second copy itself: it is not sent again when whoever got it closes without a word.
pub fn send_once(request: &mut Request) {
    request.extensions_mut().insert(Repeated);
}

/// Marks a request that was sent before.
#[derive(Debug, Clone, Copy)]
struct Repeated;

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
        assert!(Spare::of(&repeated).is_none(), "once");
    }
}
