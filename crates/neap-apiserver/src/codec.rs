//! Bytes and values: what the client sends, what it would like to receive, and bodies of responses.

use crate::metadata::Shape;
use crate::protobuf::{self, ProtobufError};
use crate::status::{ApiError, Result, to_value};
use crate::strict;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WARNING, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every response: whole, or a stream that ends with the watch or the log.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Kubernetes' limit on a request body (`MaxRequestBodyBytes`), in bytes.
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// Kubernetes truncates what it puts into one warning header, in bytes.
const WARNING_LIMIT: usize = 4096;

/// What requests of compiled-in kinds may be written in, and what those of custom resources may.
pub(crate) const NATIVE: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const CUSTOM: &str = "application/json, application/yaml";
/// Bytes of a body that is not understood which are shown again.
const SHOWN: usize = 30;

fn accepted(native: bool) -> &'static str {
    if native { NATIVE } else { CUSTOM }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Json,
    Yaml,
}

/// In which shape objects are returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    #[default]
    Whole,
    Table,
    /// Metadata only, of one object.
    Partial,
    /// Metadata only, of each object in a list.
    PartialList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub format: Format,
    pub view: View,
    pub pretty: bool,
    /// `meta.k8s.io/v1beta1` is meant, where a view is asked for.
    pub beta: bool,
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// One media range of an Accept header: its type and parameters.
pub struct MediaRange<'a> {
    pub media: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl MediaRange<'_> {
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

/// The media ranges a client takes, those it prefers first.
pub fn media_ranges(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let mut ranges: Vec<MediaRange<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            let params = parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
            MediaRange { media, params }
        })
        .filter(|r| !r.media.is_empty())
        .collect();
    // A quality in thousandths; of equals the first stands first.
    let quality = |r: &MediaRange<'_>| r.param("q").and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0);
    ranges.sort_by_key(|r| std::cmp::Reverse((quality(r) * 1000.0) as i32));
    ranges
}

/// In which form the answer goes out. `native`: the answer is about a compiled-in kind, or about none.
pub fn wanted(headers: &HeaderMap, pretty: bool, native: bool) -> Result<Wanted> {
    let ranges = media_ranges(headers);
    if ranges.is_empty() {
        return Ok(Wanted { pretty, ..Wanted::default() });
    }
    let mut known = false;
    for range in &ranges {
        let format = match range.media {
            "application/json" | "application/*" | "*/*" => Format::Json,
            "application/yaml" | "application/x-yaml" | "text/yaml" => Format::Yaml,
            other => {
                known |= other == PROTOBUF;
                continue;
            }
        };
        known = true;
        let version = range.param("v");
        let view = match (range.param("as"), range.param("g"), version) {
            (None, ..) => View::Whole,
            (Some("Table"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => View::Table,
            (Some("PartialObjectMetadata"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => View::Partial,
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => View::PartialList,
            _ => continue,
        };
        return Ok(Wanted { format, view, pretty, beta: version == Some("v1beta1") });
    }
    let accepted = accepted(native);
    Err(if known || !native { ApiError::NotAcceptable { accepted } } else { ApiError::NoRepresentation { accepted } })
}

/// The media type of a request body, without parameters; JSON when nothing is said.
pub fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next())
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .unwrap_or("application/json")
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A request body that holds a small object of its own kind (options, a Scale, a review).
pub fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    decode(headers, body, true, &mut Vec::new())?.map_err(ApiError::bad_request)
}

/// A request body that holds an object of the exchange's kind; what strict decoding complains about beyond unknown
/// fields is added to `faults`.
pub fn parse_object(headers: &HeaderMap, body: &[u8], shape: &Shape<'_>, faults: &mut Vec<String>) -> Result<Value> {
    let unrecognised = |why: &str| {
        let kind = shape.kind;
        let shown = summary(body);
        ApiError::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({shown})"))
    };
    let native = !shape.conditional_updates;
    let object = match decode(headers, body, native, faults)?.map_err(|why| unrecognised(&why))? {
        Value::Null if native => Value::Object(serde_json::Map::new()),
        object @ Value::Object(_) => object,
        other => {
            let what = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            };
            let why =
                format!("couldn't get version/kind; json parse error: json: cannot unmarshal {what} into an object");
            return Err(unrecognised(&why));
        }
    };
    if !native {
        // A custom resource says itself what it is.
        let told = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
        if told("kind").is_empty() {
            let text = String::from_utf8_lossy(body);
            return Err(unrecognised(&format!("Object 'Kind' is missing in '{text}'")));
        }
        if told("apiVersion") != shape.api_version {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({}) does not match the expected API version ({})",
                told("apiVersion"),
                shape.api_version
            )));
        }
        if told("kind") != shape.kind {
            let why = format!("must be {}", shape.kind);
            return Err(ApiError::Invalid {
                group: shape.group.to_owned(),
                kind: told("kind").to_owned(),
                name: crate::metadata::text(&object, "name").to_owned(),
                causes: vec![crate::status::invalid("kind", &Value::from(told("kind")), &why)],
            });
        }
    }
    Ok(object)
}

/// The outer failure is the answer; the inner one is what is wrong with the text.
fn decode(
    headers: &HeaderMap,
    body: &[u8],
    native: bool,
    faults: &mut Vec<String>,
) -> Result<std::result::Result<Value, String>> {
    let parsed = match content_type(headers) {
        "application/json" => json(body, faults),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            read_yaml(body, faults).map_err(|e| format!("error converting YAML to JSON: yaml: {e}"))
        }
        PROTOBUF => match protobuf::decode(body) {
            Err(ProtobufError::Unknown { .. }) => {
                return Err(ApiError::UnsupportedMediaType { accepted: accepted(native).to_owned() });
            }
            decoded => decoded.map_err(|broken| broken.to_string()),
        },
        _ => return Err(ApiError::UnsupportedMediaType { accepted: accepted(native).to_owned() }),
    };
    Ok(parsed)
}

fn json(body: &[u8], faults: &mut Vec<String>) -> std::result::Result<Value, String> {
    let (value, repeated) =
        strict::decode(body).map_err(|e| format!("couldn't get version/kind; json parse error: {}", json_fault(&e)))?;
    faults.extend(repeated.iter().map(|path| format!("duplicate field {path:?}")));
    Ok(value)
}

/// A fault of JSON; the most frequent one, a text that breaks off, in the words that clients know.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() }
}

fn summary(body: &[u8]) -> String {
    let (shown, more) = match body.get(..SHOWN) {
        Some(shown) if body.len() > SHOWN => (shown, " ..."),
        _ => (body, ""),
    };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(shown).into_owned() + more,
        Some(_) => shown.iter().map(|b| format!("{b:02x}")).collect::<String>() + more,
    }
}

/// YAML; JSON, which is what programs send as YAML, is read as such.
fn read_yaml(body: &[u8], faults: &mut Vec<String>) -> std::result::Result<Value, serde_yaml::Error> {
    let known = match body.first() {
        Some(b'{') => strict::decode(body).ok(),
        _ => None,
    };
    let (value, repeated) = match known {
        Some(read) => read,
        None => strict::decode_yaml(body)?,
    };
    faults.extend(repeated.iter().map(|path| format!("duplicate field {path:?}")));
    Ok(value)
}

/// An applied configuration; names that it says twice are added to `faults`.
pub fn yaml(body: &[u8], faults: &mut Vec<String>) -> Result<Value> {
    read_yaml(body, faults)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: error converting YAML to JSON: yaml: {e}")))
}

pub fn respond(code: u16, value: &Value, wanted: Wanted) -> Response<Body> {
    match wanted.format {
        Format::Json => {
            let bytes = if wanted.pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
            respond_json(code, bytes.expect("a JSON value is serialisable"))
        }
        Format::Yaml => {
            let text = serde_yaml::to_string(value).unwrap_or_default();
            typed(code, "application/yaml", full(text))
        }
    }
}

/// A body that is JSON already; parsed again only for a client that wants YAML or spaces.
pub fn respond_raw(code: u16, bytes: Vec<u8>, wanted: Wanted) -> Response<Body> {
    if wanted.format == Format::Json && !wanted.pretty {
        return respond_json(code, bytes);
    }
    match serde_json::from_slice(&bytes) {
        Ok(value) => respond(code, &value, wanted),
        Err(e) => error(&ApiError::internal(e)),
    }
}

fn respond_json(code: u16, bytes: Vec<u8>) -> Response<Body> {
    typed(code, "application/json", full(bytes))
}

pub fn typed(code: u16, media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

pub fn error(error: &ApiError) -> Response<Body> {
    if let ApiError::NoSuchPage = error {
        let mut response = typed(404, "text/plain; charset=utf-8", full(format!("{error}\n")));
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        return response;
    }
    let status = error.status();
    let bytes = serde_json::to_vec(&to_value(&status)).expect("a JSON value is serialisable");
    let mut response = respond_json(if status.code == 0 { 500 } else { status.code }, bytes);
    if let Some(seconds) = status.details.map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning: 299 - "…"` headers; clients print them to stderr.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut room = WARNING_LIMIT;
    for text in warnings {
        let mut quoted = String::with_capacity(text.len() + 10);
        quoted.push_str("299 - \"");
        for c in text.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                '\n' | '\r' | '\t' => quoted.push(' '),
                c if c.is_control() => {}
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        if quoted.len() > room {
            return;
        }
        room -= quoted.len();
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation() {
        let check = |accept: &str, want: Option<(Format, View)>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
            assert_eq!(wanted(&headers, false, true).ok().map(|w| (w.format, w.view)), want, "{accept}");
        };
        check("application/json", Some((Format::Json, View::Whole)));
        check("*/*", Some((Format::Json, View::Whole)));
        check("application/yaml", Some((Format::Yaml, View::Whole)));
        check("application/vnd.kubernetes.protobuf, */*", Some((Format::Json, View::Whole)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Format::Json, View::Whole)));
        check("application/vnd.kubernetes.protobuf", None);
        check("text/html", None);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Format::Json, View::Table)),
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Format::Json, View::PartialList)),
        );
        check("application/json;q=0.5, application/yaml;q=0.9", Some((Format::Yaml, View::Whole)));
        check("application/json;as=Other;g=x;v=v1,application/json", Some((Format::Json, View::Whole)));
        check("application/json;stream=watch", Some((Format::Json, View::Whole)));
    }

    #[test]
    fn warnings_are_quoted_and_bounded() {
        let mut response = respond_json(200, Vec::new());
        warn(&mut response, &["unknown field \"spec.x\"".into(), "y".repeat(5000), "z".into()]);
        let got: Vec<_> = response.headers().get_all(WARNING).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(got, [r#"299 - "unknown field \"spec.x\"""#]);
    }
}
