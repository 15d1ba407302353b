//! Bytes and values: what the client sends, what it would like to receive, and bodies of responses.

use crate::protobuf::{self, ProtobufError};
use crate::status::{ApiError, Result, to_value};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WARNING};
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

const ACCEPTED: &str = "application/json, application/yaml";

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
    /// Metadata only.
    Partial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub format: Format,
    pub view: View,
    pub pretty: bool,
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

/// The media ranges a client takes, in its order (Kubernetes ignores q-values).
pub fn media_ranges(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    headers
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
        .collect()
}

pub fn wanted(headers: &HeaderMap, pretty: bool) -> Result<Wanted> {
    let ranges = media_ranges(headers);
    if ranges.is_empty() {
        return Ok(Wanted { pretty, ..Wanted::default() });
    }
    for range in &ranges {
        let format = match range.media {
            "application/json" | "application/*" | "*/*" => Format::Json,
            "application/yaml" | "application/x-yaml" | "text/yaml" => Format::Yaml,
            _ => continue,
        };
        let view = match (range.param("as"), range.param("g"), range.param("v")) {
            (None, ..) => View::Whole,
            (Some("Table"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => View::Table,
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1")) => {
                View::Partial
            }
            _ => continue,
        };
        return Ok(Wanted { format, view, pretty });
    }
    Err(ApiError::NotAcceptable { accepted: ACCEPTED })
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

/// A request body that holds an object.
pub fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    match content_type(headers) {
        "application/json" => json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(body),
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body).map_err(|error| match error {
            ProtobufError::Unknown { .. } => ApiError::UnsupportedMediaType { accepted: ACCEPTED.to_owned() },
            broken => ApiError::bad_request(broken),
        }),
        _ => Err(ApiError::UnsupportedMediaType { accepted: ACCEPTED.to_owned() }),
    }
}

pub fn json(body: &[u8]) -> Result<Value> {
    if body.is_empty() {
        return Err(ApiError::bad_request("the request body is empty"));
    }
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {e}")))
}

pub fn yaml(body: &[u8]) -> Result<Value> {
    serde_yaml::from_slice(body).map_err(|e| ApiError::bad_request(format!("error converting YAML to JSON: {e}")))
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
            assert_eq!(wanted(&headers, false).ok().map(|w| (w.format, w.view)), want, "{accept}");
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
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some((Format::Json, View::Partial)));
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
