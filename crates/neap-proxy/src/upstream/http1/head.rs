//! Heads: a request's, written, and an answer's, read (RFC 9112, sections 2 to 6). No input or output here.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::Body as _;

use super::Broken;
use super::framing::{Chunk, Decoder, Encoder};
use crate::handler::Request;

/// Fields of an answer's head. Few have more than thirty; room that is not used costs nothing.
const FIELDS: usize = 256;

/// Room left below a server's own keep-alive time, so that we close first.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// Writes a request's head and says how its body is to be written, if it has one. Whatever the request says of its body's
/// length, what is written is true.
pub(super) fn write(request: &Request, to: &mut Vec<u8>) -> Option<Encoder> {
    let body = request.body();
    let encoder =
        if body.is_empty() { None } else { Some(body.size_hint().exact().map_or(Encoder::Chunked, Encoder::Length)) };
    to.extend_from_slice(request.method().as_str().as_bytes());
    to.push(b' ');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    if target.starts_with('?') {
        // A path that was left out is that of the root (RFC 9110, section 4.2.3).
        to.push(b'/');
    }
    to.extend_from_slice(target.as_bytes());
    to.extend_from_slice(b" HTTP/1.1\r\n");
    // RFC 9110, section 8.6: who has a body as a rule should say that there is none; h2 clients need not, and strict
    // servers insist.
    let mut says_length = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    for (name, value) in request.headers() {
        match *name {
            header::CONTENT_LENGTH => says_length = true,
            header::TRANSFER_ENCODING => {}
            _ => write_field(name, value, to),
        }
    }
    match encoder {
        Some(Encoder::Length(length)) => write_length(length, to),
        Some(Encoder::Chunked) => to.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        None if says_length => write_length(0, to),
        None => {}
    }
    to.extend_from_slice(b"\r\n");
    encoder
}

fn write_length(length: u64, to: &mut Vec<u8>) {
    write_field(&header::CONTENT_LENGTH, &length.into(), to);
}

pub(super) fn write_field(name: &HeaderName, value: &HeaderValue, to: &mut Vec<u8>) {
    to.extend_from_slice(name.as_str().as_bytes());
    to.extend_from_slice(b": ");
    to.extend_from_slice(value.as_bytes());
    to.extend_from_slice(b"\r\n");
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    /// Its own bytes.
    pub(super) length: usize,
    /// How its body comes.
    pub(super) body: Decoder,
    /// How long the connection may be kept behind it: `None` when nothing was said, zero when it ends.
    pub(super) keep_alive: Option<Duration>,
}

/// Whether the end of a head may be in the bytes from `seen` on: a line that is empty.
pub(super) fn may_end(bytes: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(3);
    bytes[from..].windows(2).any(|pair| pair == b"\n\n") || bytes[from..].windows(3).any(|three| three == b"\n\r\n")
}

/// Reads the head of an answer to such a request, whose headers it takes to put its own in. `None`: it is not all there.
pub(super) fn read(bytes: &Bytes, request: &mut Request) -> Result<Option<Head>, Broken> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Broken::Malformed("the status is none"))?;
    // The map goes around: into it the server reads the next request, and finds it large enough. Behind an answer that comes
    // before the proper one the request may be needed again.
    let mut headers = if status.is_informational() { HeaderMap::new() } else { std::mem::take(request.headers_mut()) };
    headers.clear();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        // A piece of the whole, not a copy.
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        let (Ok(name), Ok(value)) = (name, value) else { return Err(Broken::Malformed("a header is none")) };
        headers.append(name, value);
    }
    let old = parsed.version == Some(0);
    if old && headers.contains_key(header::TRANSFER_ENCODING) {
        // RFC 9112, section 6.1: nobody can say where that ends.
        return Err(Broken::Malformed("an answer of HTTP/1.0 has a transfer coding"));
    }
    // Whoever says it in two ways may mean the other one (RFC 9112, section 6.3).
    let two_ways = headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH);
    let body = framing(request.method(), status, &mut headers)?;
    // After an answer of 1.0 nobody knows whether the other side understands a body of unknown length.
    let ends = old || two_ways || body == Decoder::UntilClose || closes(&headers);
    let keep_alive = if ends { Some(Duration::ZERO) } else { keep_alive_hint(&headers) };
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if old { Version::HTTP_10 } else { Version::HTTP_11 };
    *response.headers_mut() = headers;
    let usual = status.canonical_reason();
    if let Some(reason) = parsed.reason.filter(|reason| !reason.is_empty() && Some(*reason) != usual)
        && let Ok(reason) = hyper::ext::ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    Ok(Some(Head { response, length, body, keep_alive }))
}

/// RFC 9112, section 6.3: how the body comes. What the head says of that is made consistent.
fn framing(method: &Method, status: StatusCode, headers: &mut HeaderMap) -> Result<Decoder, Broken> {
    let coded = headers.contains_key(header::TRANSFER_ENCODING);
    if coded {
        // It is taken off, and a length beside it says something else.
        headers.remove(header::CONTENT_LENGTH);
    }
    let length = content_length(headers);
    if *method == Method::HEAD || status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        if length.is_err() {
            headers.remove(header::CONTENT_LENGTH);
        }
        return Ok(Decoder::Done);
    }
    if coded {
        return coding(headers);
    }
    Ok(length?.map_or(Decoder::UntilClose, Decoder::of_length))
}

/// Codings other than `chunked` are not undone, so what is in them cannot be passed on.
fn coding(headers: &HeaderMap) -> Result<Decoder, Broken> {
    let mut last = Decoder::UntilClose;
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        let codings = value.to_str().map_err(|_| Broken::Coding)?;
        for coding in codings.split(',').map(str::trim) {
            let chunked = coding.eq_ignore_ascii_case("chunked");
            // Chunks of chunks are nothing that anybody means, and an empty coding is read as none or as the last one.
            if last != Decoder::UntilClose || !chunked && !coding.eq_ignore_ascii_case("identity") {
                return Err(Broken::Coding);
            }
            if chunked {
                last = Decoder::Chunked(Chunk::Size);
            }
        }
    }
    Ok(last)
}

/// The one length that all fields agree on, and leaves one of them.
fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, Broken> {
    let mut length = None;
    let mut said = 0;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let value = value.to_str().map_err(|_| Broken::Malformed("a length is no number"))?;
        for part in value.split(',') {
            let part = part.trim();
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let number = part.parse::<u64>().ok().filter(|_| digits);
            let number = number.ok_or(Broken::Malformed("a length is no number"))?;
            if length.is_some_and(|length| length != number) {
                return Err(Broken::Malformed("it says two lengths"));
            }
            (length, said) = (Some(number), said + 1);
        }
    }
    if let Some(length) = length.filter(|_| said > 1) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(length)
}

fn closes(headers: &HeaderMap) -> bool {
    let mut said = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    said.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
}

/// `Keep-Alive: timeout=5`: what Node, Apache and others promise.
fn keep_alive_hint(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    let hint = Duration::from_secs(seconds.trim().parse().ok()?);
    Some(hint.saturating_sub(KEEP_ALIVE_MARGIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    fn written(method: &Method, headers: &[(&str, &str)], body: Body) -> (String, Option<Encoder>) {
        let mut request = http::Request::builder().method(method).uri("/a?b=c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut to = Vec::new();
        let encoder = write(&request.body(body).expect("a request"), &mut to);
        (String::from_utf8(to).expect("text"), encoder)
    }

    #[test]
    fn a_request_says_what_body_it_has() {
        let check = |method: Method, headers: &[(&str, &str)], body: Body, fields: &str, encoder: Option<Encoder>| {
            let (head, how) = written(&method, headers, body);
            assert_eq!(head, format!("{method} /a?b=c HTTP/1.1\r\n{fields}\r\n"));
            assert_eq!(how, encoder, "{head}");
        };
        let two = Some(Encoder::Length(2));
        check(Method::GET, &[("a", "1"), ("b", "2"), ("a", "3")], Body::empty(), "a: 1\r\na: 3\r\nb: 2\r\n", None);
        check(Method::POST, &[], Body::empty(), "content-length: 0\r\n", None);
        check(Method::DELETE, &[], Body::empty(), "", None);
        check(Method::DELETE, &[("content-length", "0")], Body::empty(), "content-length: 0\r\n", None);
        check(Method::POST, &[], Body::full("ab"), "content-length: 2\r\n", two);
        // It said something else: the instance would wait for more, or take the rest for another request.
        check(Method::POST, &[("content-length", "7")], Body::full("ab"), "content-length: 2\r\n", two);
        check(Method::GET, &[("content-length", "7")], Body::empty(), "content-length: 0\r\n", None);
        check(Method::POST, &[("transfer-encoding", "x")], Body::full("ab"), "content-length: 2\r\n", two);
    }

    #[test]
    fn a_target_has_a_path() {
        let check = |target: &str, line: &str| {
            let mut request = http::Request::new(Body::empty());
            *request.uri_mut() = http::Uri::from(target.parse::<http::uri::PathAndQuery>().expect("a target"));
            let mut to = Vec::new();
            write(&request, &mut to);
            assert_eq!(String::from_utf8_lossy(&to), format!("GET {line} HTTP/1.1\r\n\r\n"));
        };
        check("/a?b", "/a?b");
        check("?b", "/?b");
        check("*", "*");
    }

    fn answer(method: &Method, text: &str) -> Result<Option<Head>, Broken> {
        let mut request = http::Request::new(Body::empty());
        *request.method_mut() = method.clone();
        read(&Bytes::copy_from_slice(text.as_bytes()), &mut request)
    }

    #[test]
    fn a_request_keeps_its_headers_until_it_is_answered() {
        let check = |status: &str, kept: usize| {
            let mut request = http::Request::builder().header("a", "1").body(Body::empty()).expect("a request");
            let text = format!("HTTP/1.1 {status}\r\nb: 2\r\n\r\n");
            let head = read(&Bytes::from(text), &mut request).expect("is HTTP").expect("is whole");
            let names: Vec<_> = head.response.headers().keys().map(HeaderName::as_str).collect();
            assert_eq!((request.headers().len(), names), (kept, vec!["b"]), "{status}");
        };
        check("103 Early Hints", 1);
        check("200 OK", 0);
    }

    #[test]
    fn an_answer_says_how_its_body_comes() {
        let check = |method: Method, head: &str, body: Decoder, seconds: Option<u64>| {
            let text = format!("HTTP/1.1 {head}\r\n\r\n");
            let read = answer(&method, &(text.clone() + "BODY")).expect("is HTTP").expect("is whole");
            assert_eq!((read.body, read.length), (body, text.len()), "{head}");
            assert_eq!(read.keep_alive, seconds.map(Duration::from_secs), "{head}");
        };
        let (get, chunked) = (Method::GET, || Decoder::Chunked(Chunk::Size));
        check(get.clone(), "200 OK\r\nContent-Length: 5", Decoder::Length(5), None);
        check(get.clone(), "200 OK\r\nContent-Length: 0", Decoder::Done, None);
        check(get.clone(), "200 OK", Decoder::UntilClose, Some(0));
        check(get.clone(), "204 No Content", Decoder::Done, None);
        check(get.clone(), "304 Not Modified\r\nContent-Length: 5", Decoder::Done, None);
        check(Method::HEAD, "200 OK\r\nContent-Length: 5", Decoder::Done, None);
        check(Method::HEAD, "200 OK\r\nTransfer-Encoding: chunked", Decoder::Done, None);
        check(get.clone(), "101 Switching Protocols\r\nUpgrade: x", Decoder::Done, None);
        check(get.clone(), "200 OK\r\nTransfer-Encoding: Chunked", chunked(), None);
        check(get.clone(), "200 OK\r\nTransfer-Encoding: identity, chunked", chunked(), None);
        check(get.clone(), "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", chunked(), Some(0));
        check(Method::HEAD, "200 OK\r\nContent-Length: many", Decoder::Done, None);
        check(get.clone(), "200 OK\r\nTransfer-Encoding: identity", Decoder::UntilClose, Some(0));
        check(get.clone(), "200 OK\r\nContent-Length: 5\r\nConnection: x, Close", Decoder::Length(5), Some(0));
        check(get.clone(), "200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=5", Decoder::Length(5), Some(4));
        check(
            get.clone(),
            "200 OK\r\nContent-Length: 5\r\nKeep-Alive: max=9, timeout=15",
            Decoder::Length(5),
            Some(14),
        );
        check(get.clone(), "200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=soon", Decoder::Length(5), None);
        let old = answer(&get, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n");
        let old = old.expect("is HTTP").expect("is whole");
        assert_eq!((old.body, old.keep_alive), (Decoder::Length(5), Some(Duration::ZERO)));
    }

    #[test]
    fn one_length_is_left() {
        let check = |fields: &str, length: Option<u64>| {
            let read = answer(&Method::GET, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).map(|head| {
                let head = head.expect("is whole");
                let said: Vec<_> = head.response.headers().get_all("content-length").iter().cloned().collect();
                assert_eq!(said, [HeaderValue::from(head.body.expects())], "{fields}");
                head.body.expects()
            });
            assert_eq!(read.ok(), length, "{fields}");
        };
        check("Content-Length: 5\r\nContent-Length: 5\r\n", Some(5));
        check("Content-Length: 5, 5\r\n", Some(5));
        check("Content-Length: 5\r\nContent-Length: 6\r\n", None);
        check("Content-Length: 5, 6\r\n", None);
        check("Content-Length: +5\r\n", None);
        check("Content-Length: 0x5\r\n", None);
        check("Content-Length: \r\n", None);
        check("Content-Length: 99999999999999999999\r\n", None);
    }

    #[test]
    fn what_is_no_answer() {
        let check = |text: &str, whole: Result<bool, &str>| {
            let read = answer(&Method::GET, text).map(|head| head.is_some()).map_err(|broken| broken.to_string());
            assert_eq!(read.as_ref().copied().map_err(String::as_str), whole, "{text:?}");
        };
        check("HTTP/1.1 200 OK\r\nA: b\r\n", Ok(false));
        check("HT", Ok(false));
        check("220 mail.example ESMTP\r\n\r\n", Err("this is no HTTP: invalid HTTP version"));
        check("HTTP/2.0 200 OK\r\n\r\n", Err("this is no HTTP: invalid HTTP version"));
        check("HTTP/1.1 20 OK\r\n\r\n", Err("this is no HTTP: invalid response status"));
        check("HTTP/1.1 099 OK\r\n\r\n", Err("the status is none"));
        check("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Err("this is no HTTP: invalid header name"));
        check("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Err("this is no HTTP: invalid header name"));
        check("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", Err("this is no HTTP: invalid header value"));
        let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(old, Err("an answer of HTTP/1.0 has a transfer coding"));
        let coded = |coding: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n");
        check(&coded("gzip, chunked"), Err("the answer is in a transfer coding other than chunked"));
        check(&coded("chunked, chunked"), Err("the answer is in a transfer coding other than chunked"));
        check(&coded("chunked,"), Err("the answer is in a transfer coding other than chunked"));
        check(&coded("chunked\r\nTransfer-Encoding: "), Err("the answer is in a transfer coding other than chunked"));
        check(&coded("chunked, identity"), Err("the answer is in a transfer coding other than chunked"));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS + 1));
        check(&many, Err("this is no HTTP: too many headers"));
        check(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS)), Ok(true));
    }

    #[test]
    fn an_unusual_reason_is_kept() {
        let reason = |text: &str| {
            let head = answer(&Method::GET, text).expect("is HTTP").expect("is whole");
            let reason = head.response.extensions().get::<hyper::ext::ReasonPhrase>();
            reason.map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned())
        };
        assert_eq!(reason("HTTP/1.1 200 Very well\r\n\r\n").as_deref(), Some("Very well"));
        assert_eq!(reason("HTTP/1.1 200 OK\r\n\r\n"), None);
        assert_eq!(reason("HTTP/1.1 200\r\n\r\n"), None);
    }

    #[test]
    fn the_end_of_a_head_is_found_across_pieces() {
        let head = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
        for seen in 0..head.len() {
            // As long as the end lies in what is new.
            assert_eq!(may_end(head, seen), seen < 26, "{seen}");
        }
        assert!(!may_end(b"HTTP/1.1 200 OK\r\nA: b\r\n\r", 0));
        assert!(may_end(b"HTTP/1.1 200 OK\n\n", 0));
    }
}
