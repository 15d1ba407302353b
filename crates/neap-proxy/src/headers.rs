//! Header rules of an HTTP intermediary.
//!
//! The sections cited are those of RFC 9110 (semantics), 9112 (HTTP/1.1) and 9113 (h2). Only rules of the
//! protocol live here; what a platform adds or takes away is the handler's business.

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use hyper::upgrade::OnUpgrade;

use crate::error::ProxyError;
use crate::handler::Request;

/// `X-Forwarded-For`: the addresses a request came through, nearest last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`: the scheme the first client used.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`: the host the first client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Takes off what is meant for one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have nothing of the kind, and one look at the names says so sooner than a search for each.
    if has_hop_by_hop(headers) {
        strip_found(headers);
    }
}

fn has_hop_by_hop(headers: &HeaderMap) -> bool {
    headers.keys().any(is_hop_by_hop)
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    match name.as_str() {
        // 7.6.1: these are to be removed even when Connection does not name them.
        "connection" | "keep-alive" | "proxy-connection" | "te" | "upgrade" => true,
        // 9112, 6.1: the engine frames each message anew.
        "transfer-encoding" => true,
        // 11.7.1, 11.7.2: between a client and the next proxy; a gateway is none.
        "proxy-authenticate" | "proxy-authorization" => true,
        // Of the switch to h2c, which is not made; it need not be named to be believed.
        "http2-settings" => true,
        _ => false,
    }
}

fn strip_found(headers: &mut HeaderMap) {
    // 10.1.4: TE is hop by hop and named by Connection, but `trailers` holds for the whole way since we pass trailers
    // on, and gRPC insists on it.
    let trailers = headers
        .get(header::TE)
        .and_then(|te| te.to_str().ok())
        .is_some_and(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")));
    // 7.6.1: first the fields that Connection names, then Connection itself.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A client must not be able to take away what the other side relies on.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name)).cloned() {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// The same for a 101, which needs the two fields that say what was switched to (7.8).
pub(crate) fn strip_switching(headers: &mut HeaderMap) {
    let upgrade = headers.remove(header::UPGRADE);
    strip_hop_by_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Whether a 101 switched to a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Brings a request into the form the engine sends: HTTP/1.1, origin-form target, exactly one Host, nothing that was
/// meant for the client's connection only.
///
/// To be called before a header is set or believed: `Connection` names fields to be taken off, and a client may name
/// any. What it wanted to switch to is remembered for the engine.
pub fn canonical(request: &mut Request) -> Result<(), ProxyError> {
    if request.method() == Method::CONNECT {
        return Err(ProxyError::ConnectMethod);
    }
    if request.uri().authority().is_some() {
        canonical_uri(request);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        // Somebody further on may route by it, and must read the same name in it as we do.
        (Some(host), None) if is_host(host.as_bytes()) => {}
        (Some(_), None) => return Err(ProxyError::BadRequest { why: "the host is none" }),
        // 9112, 3.2: a missing Host is an error; HTTP/1.0 need not send one, but then there is nothing to route by.
        (None, _) => return Err(ProxyError::BadRequest { why: "no host" }),
        (Some(_), Some(_)) => return Err(ProxyError::BadRequest { why: "more than one host" }),
    }
    // 9113, 8.2.3: h2 may split cookies; HTTP/1.1 may not.
    if request.version() == Version::HTTP_2 {
        join_cookies(request.headers_mut());
    }
    if has_hop_by_hop(request.headers()) {
        let wanted = wanted_upgrade(request.headers());
        strip_found(request.headers_mut());
        if let Some(wanted) = wanted {
            request.extensions_mut().insert(Wanted(wanted));
        }
    }
    *request.version_mut() = Version::HTTP_11;
    Ok(())
}

/// Whether a text is made of what hosts and ports are made of (RFC 3986, section 3.2): no user, no path, no space.
fn is_host(host: &[u8]) -> bool {
    !host.is_empty() && host.iter().all(|byte| HOST[usize::from(*byte)])
}

const HOST: [bool; 256] = {
    let mut table = [false; 256];
    let (allowed, mut at) = (b"-._~!$&'()*+,;=%:[]", 0);
    while at < allowed.len() {
        table[allowed[at] as usize] = true;
        at += 1;
    }
    let mut byte = 0;
    while byte < 128 {
        table[byte] = table[byte] || (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

/// Moves an authority from the target into Host, where it wins (9112, 3.2.2; 9113, 8.3.1).
pub(crate) fn canonical_uri(request: &mut Request) {
    let uri = request.uri();
    let host = uri.authority().map(|authority| {
        // User information must not be sent on (9110, 4.2.4).
        let text = authority.as_str();
        let host = text.rsplit_once('@').map_or(text, |(_, host)| host);
        HeaderValue::from_str(host).expect("an authority is made of header characters")
    });
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// The authority a request is for: of its target, else its Host.
pub fn authority(request: &Request) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST)?.to_str().ok(),
    }
}

fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(header::COOKIE, joined);
    }
}

/// The protocol that a client asked to switch to.
#[derive(Debug, Clone)]
struct Wanted(HeaderValue);

/// Whether a request in canonical form asks for another protocol.
pub fn wants_upgrade(request: &Request) -> bool {
    request.extensions().get::<Wanted>().is_some()
}

/// If the client asked for another protocol, puts back what asks the upstream for the same and returns the client's
/// side of the switch.
pub(crate) fn take_upgrade(request: &mut Request) -> Option<OnUpgrade> {
    let Wanted(wanted) = request.extensions_mut().remove::<Wanted>()?;
    let client = request.extensions_mut().remove::<OnUpgrade>()?;
    request.headers_mut().insert(header::UPGRADE, wanted);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Some(client)
}

/// 7.8: Upgrade counts only if Connection names it. h2c is not switched to this way any more (9113, 3.1).
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(header::UPGRADE)?;
    let named = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    if !named {
        return None;
    }
    let h2c = |protocol: &str| protocol.trim().get(..3).is_some_and(|start| start.eq_ignore_ascii_case("h2c"));
    let list = upgrade.to_str().ok()?;
    if !list.split(',').any(h2c) {
        return Some(upgrade.clone());
    }
    // An application that still switches to it would serve any number of requests on what we take for one.
    let rest: Vec<_> = list.split(',').filter(|protocol| !h2c(protocol)).map(str::trim).collect();
    HeaderValue::try_from(rest.join(", ")).ok().filter(|rest| !rest.is_empty())
}

/// Where a request came from, for the `X-Forwarded-` fields.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The other end of the connection.
    pub peer: &'a HeaderValue,
    /// Whether TLS was spoken on it.
    pub tls: bool,
    /// Whether the peer is a proxy of ours whose word is taken.
    pub trusted: bool,
}

/// Sets `X-Forwarded-For`, `-Proto` and `-Host`. What an untrusted peer said of scheme and host is replaced; its
/// address is always added at the end of the list, where it can be relied on.
pub fn set_forwarded(headers: &mut HeaderMap, origin: Origin<'_>) {
    add_forwarded_for(headers, origin.peer);
    if !(origin.trusted && headers.contains_key(X_FORWARDED_PROTO)) {
        let scheme = if origin.tls { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if !(origin.trusted && headers.contains_key(X_FORWARDED_HOST))
        && let Some(host) = headers.get(header::HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// Adds an address at the end of `X-Forwarded-For`.
pub fn add_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    match headers.entry(X_FORWARDED_FOR) {
        Entry::Vacant(none) => drop(none.insert(peer.clone())),
        Entry::Occupied(mut addresses) => {
            let mut all = Vec::with_capacity(64);
            for value in addresses.iter() {
                let value = value.as_bytes().trim_ascii();
                if !value.is_empty() {
                    all.extend_from_slice(value);
                    all.extend_from_slice(b", ");
                }
            }
            all.extend_from_slice(peer.as_bytes());
            addresses.insert(HeaderValue::from_maybe_shared(bytes::Bytes::from(all)).expect("made of header values"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
            })
            .collect()
    }

    fn list(headers: &HeaderMap) -> Vec<(String, String)> {
        let mut list: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_string())).collect();
        list.sort();
        list
    }

    #[test]
    fn hop_by_hop_fields_stay_on_their_hop() {
        let check = |given: &[(&str, &str)], left: &[(&str, &str)]| {
            let mut headers = map(given);
            strip_hop_by_hop(&mut headers);
            assert_eq!(list(&headers), list(&map(left)), "{given:?}");
        };
        check(&[("accept", "a"), ("x-a", "1")], &[("accept", "a"), ("x-a", "1")]);
        check(&[("connection", "x-a, close"), ("x-a", "1"), ("x-b", "2")], &[("x-b", "2")]);
        check(&[("connection", "x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "2")], &[]);
        check(
            &[("connection", "host, content-length"), ("host", "h"), ("content-length", "1")],
            &[("host", "h"), ("content-length", "1")],
        );
        check(&[("keep-alive", "timeout=5"), ("proxy-connection", "keep-alive"), ("upgrade", "x")], &[]);
        check(&[("transfer-encoding", "chunked"), ("trailer", "x-t")], &[("trailer", "x-t")]);
        check(&[("proxy-authorization", "Basic x"), ("authorization", "Basic y")], &[("authorization", "Basic y")]);
        check(&[("te", "gzip, Trailers"), ("connection", "TE")], &[("te", "trailers")]);
        check(&[("te", "gzip")], &[]);
    }

    #[test]
    fn nobody_switches_to_h2c() {
        let check = |upgrade: &str, want: Option<&str>| {
            let mut headers = map(&[("connection", "upgrade"), ("upgrade", upgrade), ("http2-settings", "AAMAAABk")]);
            let wanted = wanted_upgrade(&headers);
            assert_eq!(wanted.as_ref().map(|value| value.to_str().expect("text")), want, "{upgrade}");
            strip_hop_by_hop(&mut headers);
            assert_eq!(list(&headers), []);
        };
        check("websocket", Some("websocket"));
        check("foo/2, bar", Some("foo/2, bar"));
        check("H2C", None);
        check("h2c, websocket", Some("websocket"));
        check("x ,h2c-14,y", Some("x, y"));
    }

    #[test]
    fn requests_become_canonical() {
        let check = |uri: &str, host: &[&str], version: Version, want: Result<(&str, &str), &str>| {
            let mut builder = http::Request::builder().uri(uri).version(version);
            for host in host {
                builder = builder.header("host", *host);
            }
            let mut request = builder.body(Body::empty()).expect("a request");
            let got = canonical(&mut request).map_err(|error| error.to_string());
            let host = request.headers().get("host").map(|host| host.to_str().expect("text"));
            match want {
                Ok((target, authority)) => {
                    assert_eq!(got, Ok(()));
                    assert_eq!((request.uri().to_string().as_str(), host), (target, Some(authority)));
                    assert_eq!(request.version(), Version::HTTP_11);
                }
                Err(text) => assert!(got.expect_err(uri).contains(text)),
            }
        };
        check("/a?b", &["h:8080"], Version::HTTP_11, Ok(("/a?b", "h:8080")));
        check("http://x/a", &["h"], Version::HTTP_11, Ok(("/a", "x")));
        check("http://user:pass@x", &[], Version::HTTP_2, Ok(("/", "x")));
        check("*", &["h"], Version::HTTP_11, Ok(("*", "h")));
        check("/", &[], Version::HTTP_10, Err("no host"));
        check("/", &["a", "b"], Version::HTTP_11, Err("more than one host"));
    }

    #[test]
    fn connect_is_refused() {
        let mut request =
            http::Request::builder().method("CONNECT").uri("a:443").body(Body::empty()).expect("a request");
        assert!(matches!(canonical(&mut request), Err(ProxyError::ConnectMethod)));
    }

    #[test]
    fn cookies_of_h2_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut headers);
        assert_eq!(list(&headers), list(&map(&[("cookie", "a=1; b=2; c=3")])));
    }

    #[test]
    fn only_a_named_upgrade_counts() {
        let check = |fields: &[(&str, &str)], wanted: bool| {
            assert_eq!(wanted_upgrade(&map(fields)).is_some(), wanted, "{fields:?}");
        };
        check(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true);
        check(&[("upgrade", "websocket")], false);
        check(&[("connection", "upgrade")], false);
        check(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], false);
    }

    #[test]
    fn a_switch_keeps_its_two_fields() {
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("keep-alive", "x"), ("a", "b")]);
        strip_switching(&mut headers);
        assert_eq!(list(&headers), list(&map(&[("connection", "upgrade"), ("upgrade", "websocket"), ("a", "b")])));
    }

    #[test]
    fn forwarded_fields() {
        let check = |given: &[(&str, &str)], tls: bool, trusted: bool, want: &[(&str, &str)]| {
            let mut headers = map(given);
            set_forwarded(&mut headers, Origin { peer: &HeaderValue::from_static("10.0.0.9"), tls, trusted });
            assert_eq!(list(&headers), list(&map(want)), "{given:?}");
        };
        check(
            &[("host", "h")],
            false,
            false,
            &[("host", "h"), ("x-forwarded-for", "10.0.0.9"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "h")],
        );
        let claimed = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "out")];
        check(
            &[&claimed[..], &[("host", "h")]].concat(),
            false,
            false,
            &[
                ("host", "h"),
                ("x-forwarded-for", "1.1.1.1, 10.0.0.9"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "h"),
            ],
        );
        check(
            &[&claimed[..], &[("host", "h")]].concat(),
            false,
            true,
            &[
                ("host", "h"),
                ("x-forwarded-for", "1.1.1.1, 10.0.0.9"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "out"),
            ],
        );
        check(
            &[("host", "h")],
            true,
            true,
            &[
                ("host", "h"),
                ("x-forwarded-for", "10.0.0.9"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "h"),
            ],
        );
    }
}
