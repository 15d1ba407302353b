//! What the gateway changes in a request's headers, as functions on the headers alone.

use std::net::IpAddr;

use http::Uri;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use neap_api::keys::headers as names;
use neap_logic::routing::Header;
use neap_proxy::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO};
use neap_proxy::{Connection, Memo, ProxyError, Request};

const REVISION: HeaderName = HeaderName::from_static(names::REVISION);
const NAMESPACE: HeaderName = HeaderName::from_static(names::NAMESPACE);
const TAG: HeaderName = HeaderName::from_static(names::TAG);
const DEFAULT_ROUTE: HeaderName = HeaderName::from_static(names::DEFAULT_ROUTE);
const PROBE: HeaderName = HeaderName::from_static(names::PROBE);
const HASH: HeaderName = HeaderName::from_static(names::HASH);
/// The hash of a probe that wants to be told the real one.
pub(crate) const OVERRIDE: &str = "override";
/// A request with this header is told in `Server-Timing` where its time went.
pub(crate) const TIMING: &str = "x-neap-timing";
pub(crate) const PROXY_REQUEST: HeaderName = HeaderName::from_static(names::PROXY_REQUEST);
/// What it says of a request that was counted before it came to a sidecar.
pub(crate) const BY_ACTIVATOR: HeaderValue = HeaderValue::from_static("activator");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static(names::ORIGINAL_HOST);
/// What frames a message is the engine's to say: a route that appended one of these would break the connection to the
/// instance for all others.
const FRAMING: [HeaderName; 5] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::TE, header::TRANSFER_ENCODING, header::UPGRADE];
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Whether a proxy of ours says that the first client spoke https.
pub(crate) fn says_https(headers: &HeaderMap) -> bool {
    headers.get(X_FORWARDED_PROTO).is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// What one look at the names of a request's fields shows. Few requests have any of these, and a search for each would take
/// longer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Marks {
    /// A probe's, or one that only the platform may send.
    pub(crate) platform: bool,
    /// One that an application may take for one of these, or for the way a request came.
    double: bool,
    /// It wants to be told where its time went.
    pub(crate) timing: bool,
}

impl Marks {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut marks = Self::default();
        // All of them begin with one of two letters.
        for name in headers.keys().map(HeaderName::as_str).filter(|name| matches!(name.as_bytes(), [b'k' | b'x', ..])) {
            marks.platform |= is_platforms(name);
            marks.double |= is_double(name);
            marks.timing |= name == TIMING;
        }
        marks
    }
}

fn is_platforms(name: &str) -> bool {
    name.starts_with("k-") || name.starts_with("knative-")
}

/// Takes off what only the platform may say: a client must not choose a Revision or pretend another Host. Returns
/// whether the request is a networking probe that wants to know the hash of its route. A probe that brings a hash of
/// its own keeps it (G8.4).
pub(crate) fn take_platform(headers: &mut HeaderMap, marks: Marks) -> bool {
    if marks.double {
        drop_doubles(headers);
    }
    if !marks.platform {
        return false;
    }
    let probing = headers.get(PROBE).is_some_and(|probe| probe == "probe");
    let asks = probing && headers.get(HASH).is_some_and(|hash| hash == OVERRIDE);
    for name in [REVISION, NAMESPACE, PROXY_REQUEST, ORIGINAL_HOST] {
        headers.remove(name);
    }
    if asks || !probing {
        headers.remove(HASH);
    }
    asks
}

/// Whose request it is: the peer's, or who the proxy of ours before us says it had for a peer.
pub(crate) fn client(headers: &HeaderMap, connection: &Connection, trusted: bool) -> IpAddr {
    let peer = connection.peer.ip();
    if !trusted {
        return peer;
    }
    // We have added the proxy itself at the end by now.
    let list = headers.get(X_FORWARDED_FOR).and_then(|list| list.to_str().ok()).unwrap_or_default();
    list.rsplit(',').nth(1).and_then(|address| address.trim().parse().ok()).unwrap_or(peer)
}

/// The same before the peer has been added to the list.
pub(crate) fn first_client(headers: &HeaderMap, connection: &Connection, trusted: bool) -> IpAddr {
    let peer = connection.peer.ip();
    let list = headers.get_all(X_FORWARDED_FOR).iter().next_back().filter(|_| trusted);
    let last = list.and_then(|list| list.to_str().ok()).and_then(|list| list.rsplit(',').next());
    last.and_then(|address| address.trim().parse().ok()).unwrap_or(peer)
}

/// Applications behind CGI, WSGI or Rack read `x_forwarded_for` and `x-forwarded-for` as one variable; what the platform
/// says must not have a second voice.
fn drop_doubles(headers: &mut HeaderMap) {
    let doubles: Vec<HeaderName> = headers.keys().filter(|name| is_double(name.as_str())).cloned().collect();
    for name in doubles {
        headers.remove(name);
    }
}

fn is_double(name: &str) -> bool {
    let is_ours = |prefix: &str| {
        let mut pairs = name.bytes().zip(prefix.bytes());
        name.len() >= prefix.len() && pairs.all(|(is, ours)| is == ours || (is == b'_' && ours == b'-'))
    };
    ["x-forwarded-", "k-", "knative-"].into_iter().any(is_ours) && name.contains('_')
}

/// Tells a probe which version of its route it went by (F2.1).
pub(crate) fn set_hash(headers: &mut HeaderMap, hash: &str) {
    if let Ok(hash) = HeaderValue::from_str(hash) {
        headers.insert(HASH, hash);
    }
}

/// F1.3 `rewriteHost`.
pub(crate) fn set_host(headers: &mut HeaderMap, host: &str) {
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
}

/// The application behind a wildcard gets the name it was called by, wherever the request goes by then.
pub(crate) fn keep_host(headers: &mut HeaderMap) {
    if !headers.contains_key(&ORIGINAL_HOST)
        && let Some(host) = headers.get(header::HOST).cloned()
    {
        headers.insert(ORIGINAL_HOST, host);
    }
}

/// Goes on with another path, and says what was taken off.
pub(crate) fn rewrite_path(request: &mut Request, prefix: &str, path: &str) -> Result<(), ProxyError> {
    let wrong = || ProxyError::BadRequest { why: "its path cannot be rewritten" };
    let target = match request.uri().query() {
        Some(query) => Uri::try_from(format!("{path}?{query}")),
        None => Uri::try_from(path),
    };
    // A path that begins with two slashes would be read as a host by some.
    let target = target.ok().filter(|target| target.authority().is_none()).ok_or_else(wrong)?;
    *request.uri_mut() = target;
    let prefix = if prefix.is_empty() { "/" } else { prefix };
    request.headers_mut().insert(X_FORWARDED_PREFIX, HeaderValue::from_str(prefix).map_err(|_| wrong())?);
    Ok(())
}

/// F1.3 `appendHeaders`: they replace what the request carries. The two that name a Revision are for an activator
/// behind an ingress; here both are one, and the application must not see them (C4.1).
pub(crate) fn set_headers(headers: &mut HeaderMap, wanted: &[Header], to_revision: bool) {
    for Header { name, value } in wanted {
        if to_revision && (**name == *names::REVISION || **name == *names::NAMESPACE) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
            && !FRAMING.contains(&name)
        {
            headers.insert(name, value);
        }
    }
}

/// What a queue-proxy does before the application: restores Host (E2.10), takes off Knative's own headers (C4.1), adds
/// `Forwarded` (C4.11), begins a trace (G5.10).
pub(crate) fn finish_for_revision(headers: &mut HeaderMap, memo: &Memo) {
    finish(headers, memo, [&TAG, &DEFAULT_ROUTE]);
}

/// The same in a sidecar behind an ingress, which has said all but one thing: who connected to us.
pub(crate) fn finish_behind_ingress(headers: &mut HeaderMap, connection: &Connection) {
    finish(headers, &connection.memo, [&REVISION, &NAMESPACE]);
    neap_proxy::headers::add_forwarded_for(headers, &connection.peer_value);
}

/// What an activator does before the sidecar of an instance (E1.10): the Host goes where nothing routes by it, and the
/// sidecar is told who counts this request.
pub(crate) fn finish_for_sidecar(headers: &mut HeaderMap, peer: &HeaderValue) {
    headers.remove(REVISION);
    headers.remove(NAMESPACE);
    if let Some(host) = headers.get(header::HOST).cloned()
        && !headers.contains_key(&ORIGINAL_HOST)
    {
        headers.insert(ORIGINAL_HOST, host);
    }
    headers.insert(PROXY_REQUEST, BY_ACTIVATOR);
    neap_proxy::headers::add_forwarded_for(headers, peer);
}

fn finish(headers: &mut HeaderMap, memo: &Memo, hidden: [&HeaderName; 2]) {
    let tracks = Tracks::of(headers);
    let forwarded = if tracks.has_forwarded {
        None
    } else {
        memo.value_of([tracks.nodes, tracks.host, tracks.proto], || tracks.forwarded())
    };
    let Tracks { has_trace, has_platforms, .. } = tracks;
    if has_platforms {
        if let Some(host) = headers.remove(ORIGINAL_HOST) {
            headers.insert(header::HOST, host);
        }
        for name in hidden {
            headers.remove(name);
        }
    }
    if let Some(forwarded) = forwarded {
        headers.insert(header::FORWARDED, forwarded);
    }
    if !has_trace {
        headers.insert(TRACEPARENT, traceparent(fastrand::u128(1..), fastrand::u64(1..)));
    }
}

/// What a request says of its way until here.
#[derive(Default)]
struct Tracks<'h> {
    nodes: &'h [u8],
    host: &'h [u8],
    proto: &'h [u8],
    has_forwarded: bool,
    has_trace: bool,
    /// See [`is_platforms`].
    has_platforms: bool,
}

impl<'h> Tracks<'h> {
    /// One look at all fields, for nearly all requests are asked for all of these.
    fn of(headers: &'h HeaderMap) -> Self {
        let mut tracks = Self::default();
        for (name, value) in headers {
            let part = match name.as_str() {
                "x-forwarded-for" => &mut tracks.nodes,
                "x-forwarded-host" => &mut tracks.host,
                "x-forwarded-proto" => &mut tracks.proto,
                name => {
                    tracks.has_forwarded |= name == "forwarded";
                    tracks.has_trace |= name == "traceparent";
                    tracks.has_platforms |= is_platforms(name);
                    continue;
                }
            };
            // Of several the first that says something.
            if part.is_empty() {
                *part = value.as_bytes().trim_ascii();
            }
        }
        tracks
    }

    /// `Forwarded` (RFC 7239) from the `X-Forwarded-` fields: host and scheme belong to the first node.
    fn forwarded(&self) -> Option<HeaderValue> {
        let mut out = Text::default();
        let nodes = self.nodes.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for (at, node) in nodes.filter(|node| !node.is_empty()).enumerate() {
            if at > 0 {
                out.push(b", ");
            }
            // Section 6: an IPv6 address is quoted, for it has colons.
            match node {
                // What is no address would be read as further pairs; section 6.2 has a word for it.
                _ if !is_of(&NODE, node) => out.push(b"for=unknown"),
                _ if node.contains(&b':') => out.push_all(&[b"for=\"[", node, b"]\""]),
                _ => out.push_all(&[b"for=", node]),
            }
            if at == 0 {
                self.push_pairs(&mut out);
            }
        }
        if out.is_empty() {
            self.push_pairs(&mut out);
        }
        out.value()
    }

    fn push_pairs(&self, out: &mut Text) {
        for (name, value) in [(&b"host="[..], self.host), (b"proto=", self.proto)] {
            if value.is_empty() {
                continue;
            }
            if !out.is_empty() {
                out.push(b";");
            }
            out.push(name);
            // Section 4: a value that is no token is quoted; a port makes a host one. What could end the quotes is no host.
            match value {
                _ if is_of(&TOKEN, value) => out.push(value),
                _ if value.iter().any(|byte| b"\"\\".contains(byte)) => out.push(b"\"unknown\""),
                _ => out.push_all(&[b"\"", value, b"\""]),
            }
        }
    }
}

/// A set of bytes.
type ByteSet = [bool; 256];

/// Of an address.
static NODE: ByteSet = alphanumeric_and(b".:-_");
/// Of a token (RFC 9110, section 5.6.2), as far as hosts and schemes have use for it.
static TOKEN: ByteSet = alphanumeric_and(b"-._~");

const fn alphanumeric_and(more: &[u8]) -> ByteSet {
    let mut set = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        set[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < more.len() {
        set[more[at] as usize] = true;
        at += 1;
    }
    set
}

fn is_of(set: &ByteSet, text: &[u8]) -> bool {
    text.iter().all(|byte| set[usize::from(*byte)])
}

/// Collects a header value on the stack, so that an ordinary one takes a single allocation.
struct Text {
    short: [u8; 256],
    length: usize,
    /// All of it, once it has outgrown `short`.
    long: Vec<u8>,
}

impl Default for Text {
    fn default() -> Self {
        Self { short: [0; 256], length: 0, long: Vec::new() }
    }
}

impl Text {
    fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        if self.long.is_empty() && end <= self.short.len() {
            self.short[self.length..end].copy_from_slice(part);
        } else {
            if self.long.is_empty() {
                self.long.extend_from_slice(&self.short[..self.length]);
            }
            self.long.extend_from_slice(part);
        }
        self.length = end;
    }

    fn push_all(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.push(part);
        }
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn value(&self) -> Option<HeaderValue> {
        let all = if self.long.is_empty() { &self.short[..self.length] } else { &self.long };
        if all.is_empty() { None } else { HeaderValue::from_bytes(all).ok() }
    }
}

/// W3C Trace Context, version 00, not sampled: whoever samples starts a trace of its own.
fn traceparent(trace: u128, span: u64) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex(&mut text[3..35], &trace.to_be_bytes());
    write_hex(&mut text[36..52], &span.to_be_bytes());
    HeaderValue::from_bytes(&text).expect("hexadecimal digits")
}

fn write_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
        };
        fields.iter().map(pair).collect()
    }

    fn list(headers: &HeaderMap) -> Vec<String> {
        let mut list: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        list.sort();
        list
    }

    #[test]
    fn clients_cannot_speak_for_the_platform() {
        let check = |given: &[(&str, &str)], left: &[(&str, &str)], probing: bool| {
            let mut headers = map(given);
            let marks = Marks::of(&headers);
            assert_eq!(take_platform(&mut headers, marks), probing);
            assert_eq!(list(&headers), list(&map(left)));
        };
        check(&[("accept", "x"), ("keep-alive", "x")], &[("accept", "x"), ("keep-alive", "x")], false);
        check(
            &[
                ("x_forwarded_for", "1.1.1.1"),
                ("x-forwarded_proto", "https"),
                ("k_original_host", "c"),
                ("user_id", "7"),
            ],
            &[("user_id", "7")],
            false,
        );
        check(
            &[("knative-serving-revision", "a"), ("knative-serving-namespace", "b"), ("k-original-host", "c")],
            &[],
            false,
        );
        check(
            &[("knative-serving-tag", "t"), ("k-proxy-request", "activator")],
            &[("knative-serving-tag", "t")],
            false,
        );
        check(&[("k-network-probe", "probe"), ("k-network-hash", "override")], &[("k-network-probe", "probe")], true);
        let own = [("k-network-probe", "probe"), ("k-network-hash", "its-own")];
        check(&own, &own, false);
        check(&[("k-network-hash", "override")], &[], false);
    }

    #[test]
    fn route_headers_replace() {
        let header = |name: &str, value: &str| Header { name: name.into(), value: value.into() };
        let wanted =
            [header("foo", "new"), header("knative-serving-revision", "r"), header("transfer-encoding", "chunked")];
        let check = |to_revision: bool, left: &[(&str, &str)]| {
            let mut headers = map(&[("foo", "old"), ("foo", "older")]);
            set_headers(&mut headers, &wanted, to_revision);
            assert_eq!(list(&headers), list(&map(left)));
        };
        check(true, &[("foo", "new")]);
        check(false, &[("foo", "new"), ("knative-serving-revision", "r")]);
    }

    #[test]
    fn forwarded_is_made_from_its_parts() {
        let check = |given: &[(&str, &str)], want: Option<&str>| {
            let headers = map(given);
            let got = Tracks::of(&headers).forwarded();
            assert_eq!(got.as_ref().map(|value| value.to_str().expect("text")), want);
        };
        check(&[], None);
        check(&[("x-forwarded-for", "1.2.3.4")], Some("for=1.2.3.4"));
        check(&[("x-forwarded-proto", "https")], Some("proto=https"));
        check(
            &[("x-forwarded-for", "1.2.3.4, 10.0.0.1"), ("x-forwarded-host", "h"), ("x-forwarded-proto", "http")],
            Some("for=1.2.3.4;host=h;proto=http, for=10.0.0.1"),
        );
        check(
            &[("x-forwarded-for", "2001:db8::17"), ("x-forwarded-host", "h:8080")],
            Some("for=\"[2001:db8::17]\";host=\"h:8080\""),
        );
        check(
            &[("x-forwarded-for", "1.1.1.1;host=evil;proto=https, 10.0.0.1"), ("x-forwarded-host", "h;proto=https")],
            Some("for=unknown;host=\"h;proto=https\", for=10.0.0.1"),
        );
        check(&[("x-forwarded-host", "h\";proto=https")], Some("host=\"unknown\""));
        let many = vec!["10.0.0.1"; 100].join(", ");
        let long = vec!["for=10.0.0.1"; 100].join(", ");
        check(&[("x-forwarded-for", &many)], Some(&long));
    }

    #[test]
    fn the_application_sees_its_own_world() {
        let mut headers = map(&[
            ("host", "svc.ns.svc.cluster.local"),
            ("k-original-host", "www.example.com"),
            ("knative-serving-tag", "t"),
            ("knative-serving-default-route", "true"),
            ("forwarded", "for=9.9.9.9"),
            ("traceparent", "00-aa-bb-01"),
        ]);
        finish_for_revision(&mut headers, &Memo::default());
        let left = [("host", "www.example.com"), ("forwarded", "for=9.9.9.9"), ("traceparent", "00-aa-bb-01")];
        assert_eq!(list(&headers), list(&map(&left)));
    }

    #[test]
    fn traces() {
        let value = traceparent(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);
        assert_eq!(value, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    }
}
