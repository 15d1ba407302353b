//! `config-neap`, the keys `logs.*`: how far the logs of containers grow on this machine, and where they are sent.
//!
//! Where fluentd stood in older installations of this platform. Nothing here opens or resolves anything.

use std::time::Duration;

use super::neap::MAP;
use super::reader::{Data, Mistake, Reader};
use super::{go, quantity};

/// `logs.container-max-size`: a container's log file turns over when it reaches this (kubelet's `containerLogMaxSize`).
pub const CONTAINER_MAX_SIZE: u64 = 10 << 20;
/// `logs.container-max-files`: files of one run of a container, the newest included (kubelet's `containerLogMaxFiles`).
pub const CONTAINER_MAX_FILES: u32 = 5;
/// `logs.batch-size`: bytes of lines that are sent at once at most. Collectors take 4 MiB and more.
pub const BATCH_SIZE: u64 = 1 << 20;
/// `logs.batch-age`: how long a line may wait for others.
pub const BATCH_AGE: Duration = Duration::from_secs(1);
/// `logs.timeout`: how long an endpoint may take to answer (OpenTelemetry's default for exporters).
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// `logs.file-max-size`: a file that logs are shipped to turns over when it reaches this.
pub const FILE_MAX_SIZE: u64 = 100 << 20;
/// `logs.file-max-files`: files of each path, the newest included.
pub const FILE_MAX_FILES: u32 = 5;

/// What a path of files may name.
pub const PLACEHOLDERS: [&str; 6] = ["namespace", "service", "configuration", "revision", "pod", "container"];
/// Headers that are ours to set.
const OWN_HEADERS: [&str; 6] =
    ["host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection"];

/// Where logs go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Files of JSON lines at this path, in which `{namespace}` and the like stand for a line's own.
    Files(String),
    /// OTLP over HTTP, posted to this URL.
    Otlp(String),
    /// Loki's push API, posted to this URL.
    Loki(String),
}

/// How OTLP is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// What every collector takes.
    Protobuf,
    /// What people read.
    Json,
}

/// Settings of container logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// A container's log file turns over at this size, bytes.
    pub container_max_size: u64,
    /// Files of one run of a container.
    pub container_max_files: u32,
    /// Where logs are sent; nowhere when `None`.
    pub ship_to: Option<Target>,
    /// Names and values of headers to send along.
    pub headers: Vec<(String, String)>,
    /// A Secret of the platform's namespace whose keys and values are further headers; none when empty.
    pub headers_secret: String,
    /// Authorities (PEM) to trust beside the machine's.
    pub ca: String,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// Bytes of lines sent at once.
    pub batch_size: u64,
    /// How long a line may wait for others.
    pub batch_age: Duration,
    /// How long an endpoint may take.
    pub timeout: Duration,
    /// Whether a line that is a JSON object is asked for its severity.
    pub json_severity: bool,
    /// How OTLP is written.
    pub otlp_encoding: Encoding,
    /// Whether Loki is sent structured metadata (Loki 3, or 2.9 where it is allowed).
    pub loki_structured_metadata: bool,
    /// Size at which a shipped file turns over, bytes.
    pub file_max_size: u64,
    /// Shipped files of each path.
    pub file_max_files: u32,
    /// Age at which a shipped file turns over; never when `None`.
    pub file_max_age: Option<Duration>,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            container_max_size: CONTAINER_MAX_SIZE,
            container_max_files: CONTAINER_MAX_FILES,
            ship_to: None,
            headers: Vec::new(),
            headers_secret: String::new(),
            ca: String::new(),
            gzip: true,
            batch_size: BATCH_SIZE,
            batch_age: BATCH_AGE,
            timeout: TIMEOUT,
            json_severity: true,
            otlp_encoding: Encoding::Protobuf,
            loki_structured_metadata: true,
            file_max_size: FILE_MAX_SIZE,
            file_max_files: FILE_MAX_FILES,
            file_max_age: None,
        }
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Logs {
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Logs::default();
    Logs {
        container_max_size: r.with(
            &["logs.container-max-size"],
            d.container_max_size,
            "a size such as 10Mi, from 64Ki to 1Gi",
            |v| size(v, 64 << 10, 1 << 30),
        ),
        container_max_files: r.with(
            &["logs.container-max-files"],
            d.container_max_files,
            "a number from 2 to 100",
            |v| v.parse().ok().filter(|n| (2..=100).contains(n)),
        ),
        ship_to: target(&mut r),
        headers: headers(&mut r),
        headers_secret: r.with(&["logs.headers-secret"], d.headers_secret, "the name of a Secret", |v| {
            (v.is_empty() || crate::names::is_dns1123_subdomain(v)).then(|| v.to_owned())
        }),
        ca: r.with(&["logs.ca"], d.ca, "certificates as PEM, `-----BEGIN CERTIFICATE-----` and so on", |v| {
            (v.is_empty() || v.contains("-----BEGIN CERTIFICATE-----")).then(|| v.to_owned())
        }),
        gzip: r.with(&["logs.compression"], d.gzip, "gzip or none", |v| match v {
            "gzip" => Some(true),
            "none" => Some(false),
            _ => None,
        }),
        batch_size: r.with(&["logs.batch-size"], d.batch_size, "a size such as 1Mi, from 1Ki to 16Mi", |v| {
            size(v, 1 << 10, 16 << 20)
        }),
        batch_age: r.with(&["logs.batch-age"], d.batch_age, "a duration such as 1s, from 100ms to 5m", |v| {
            go::parse_duration(v)?.positive().filter(|d| (100..=300_000).contains(&d.as_millis()))
        }),
        timeout: r.with(&["logs.timeout"], d.timeout, "a duration such as 10s, from 1s to 5m", |v| {
            go::parse_duration(v)?.positive().filter(|d| (1000..=300_000).contains(&d.as_millis()))
        }),
        json_severity: r.boolean(&["logs.json-severity"], d.json_severity),
        otlp_encoding: r.with(&["logs.otlp-encoding"], d.otlp_encoding, "protobuf or json", |v| match v {
            "protobuf" => Some(Encoding::Protobuf),
            "json" => Some(Encoding::Json),
            _ => None,
        }),
        loki_structured_metadata: r.boolean(&["logs.loki-structured-metadata"], d.loki_structured_metadata),
        file_max_size: r.with(
            &["logs.file-max-size"],
            d.file_max_size,
            "a size such as 100Mi, from 64Ki to 1Ti",
            |v| size(v, 64 << 10, 1 << 40),
        ),
        file_max_files: r.with(&["logs.file-max-files"], d.file_max_files, "a number from 1 to 1000", |v| {
            v.parse().ok().filter(|n| (1..=1000).contains(n))
        }),
        file_max_age: r.with(&["logs.file-max-age"], d.file_max_age, "a duration of 1m or more, or 0 for never", |v| {
            let age = go::parse_duration(v)?.positive()?;
            (age.is_zero() || age >= Duration::from_secs(60)).then(|| Some(age).filter(|age| !age.is_zero()))
        }),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared with the bounds before")]
fn size(text: &str, least: u64, most: u64) -> Option<u64> {
    let bytes = quantity::parse(text)?;
    #[expect(clippy::cast_precision_loss, reason = "the bounds are far below 2^52")]
    let fits = bytes >= least as f64 && bytes <= most as f64;
    fits.then_some(bytes as u64)
}

fn target(r: &mut Reader<'_>) -> Option<Target> {
    let key = "logs.ship-to";
    let text = r.text(&[key], "");
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let read = match text.split_once("://") {
        Some(("file", path)) => template(path).map(Target::Files),
        Some(("otlp+http", rest)) => url("http", rest, "/v1/logs").map(Target::Otlp),
        Some(("otlp+https", rest)) => url("https", rest, "/v1/logs").map(Target::Otlp),
        Some(("loki+http", rest)) => url("http", rest, "/loki/api/v1/push").map(Target::Loki),
        Some(("loki+https", rest)) => url("https", rest, "/loki/api/v1/push").map(Target::Loki),
        _ => Err("begins with none of file://, otlp+http://, otlp+https://, loki+http://, loki+https://".into()),
    };
    match read {
        Ok(target) => Some(target),
        Err(problem) => {
            // What stands before a host may be a password.
            let shown = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("...@{rest}"));
            r.mistake(key, format!("{shown:?} {problem}"));
            None
        }
    }
}

/// An endpoint's URL; `path` is what clients of its protocol append to a base.
fn url(scheme: &str, rest: &str, path: &str) -> Result<String, String> {
    if rest.contains('@') {
        return Err("names a user; write the header `Authorization: Basic ...` into logs.headers instead".into());
    }
    if rest.contains(['?', '#']) || rest.chars().any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err("has more than a host, a port and a path".into());
    }
    let (authority, base) = rest.split_once('/').map_or((rest, ""), |(authority, base)| (authority, base));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good = match inner {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => crate::names::is_dns1123_subdomain(&host.to_ascii_lowercase()),
    };
    if !good {
        return Err(format!("names no host: {host:?}"));
    }
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err(format!("names no port: {:?}", port.unwrap_or_default()));
    }
    let base = base.trim_end_matches('/');
    let base = if base.is_empty() { String::new() } else { format!("/{base}") };
    let path = if base.ends_with(path) { "" } else { path };
    Ok(format!("{scheme}://{authority}{base}{path}"))
}

/// A path with `{placeholders}`.
fn template(path: &str) -> Result<String, String> {
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(
            "names no file: write three slashes and a file's name, as in file:///var/log/neap/{service}.jsonl".into()
        );
    }
    if path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err("leads out of its own directory".into());
    }
    let mut rest = path;
    while let Some(open) = rest.find(['{', '}']) {
        let end = rest[open..].find('}').filter(|end| *end > 0);
        let name = end.map(|end| &rest[open + 1..open + end]);
        match (end, name) {
            (Some(end), Some(name)) if PLACEHOLDERS.contains(&name) => rest = &rest[open + end + 1..],
            _ => {
                let known: Vec<String> = PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
                return Err(format!("has braces that are none of {}", known.join(", ")));
            }
        }
    }
    Ok(path.to_owned())
}

/// `Name: value`, one a line.
fn headers(r: &mut Reader<'_>) -> Vec<(String, String)> {
    let key = "logs.headers";
    let text = r.text(&[key], "");
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        // The value may be a secret: it is not repeated.
        match header(line) {
            Ok(header) => all.push(header),
            Err(problem) => r.mistake(key, format!("line {} {problem}", at + 1)),
        }
    }
    all
}

/// A header as it may be sent along, of `Name: value`.
///
/// # Errors
/// What is wrong with it, without its value, which may be a secret.
pub fn header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("is not of the form `Name: value`")?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        return Err(format!("has {name:?}, which is no name of a header"));
    }
    if OWN_HEADERS.contains(&name.as_str()) {
        return Err(format!("sets {name}, which cannot be chosen"));
    }
    if !value.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        return Err(format!("gives {name} a value with characters that no header may have"));
    }
    Ok((name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Logs, String> {
        let data: Data = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut mistakes = Vec::new();
        let logs = parse(&data, &mut mistakes);
        let said: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        if said.is_empty() { Ok(logs) } else { Err(said.join("; ")) }
    }

    #[test]
    fn targets_are_whole_urls_and_paths() {
        let check = |text: &str, want: Option<Target>| {
            assert_eq!(read(&[("logs.ship-to", text)]).expect("fine").ship_to, want, "{text}");
        };
        let (otlp, loki) = (|t: &str| Some(Target::Otlp(t.into())), |t: &str| Some(Target::Loki(t.into())));
        check("", None);
        check("  ", None);
        check("otlp+http://collector:4318", otlp("http://collector:4318/v1/logs"));
        check("otlp+http://collector:4318/", otlp("http://collector:4318/v1/logs"));
        check("otlp+https://otlp.example.com/base", otlp("https://otlp.example.com/base/v1/logs"));
        check("otlp+http://[::1]:4318/v1/logs", otlp("http://[::1]:4318/v1/logs"));
        check("loki+http://10.0.0.7:3100", loki("http://10.0.0.7:3100/loki/api/v1/push"));
        check("loki+https://logs.example.com/loki/api/v1/push/", loki("https://logs.example.com/loki/api/v1/push"));
        let path = "/var/log/neap/{namespace}/{service}-{revision}.jsonl";
        check(&format!("file://{path}"), Some(Target::Files(path.into())));
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        let check = |key: &str, value: &str, want: &str| {
            let said = read(&[(key, value)]).expect_err("a mistake");
            assert!(said.starts_with(&format!("config-neap {key}:")) && said.contains(want), "{said}");
        };
        check("logs.ship-to", "http://collector:4318", "otlp+http://");
        check("logs.ship-to", "otlp+http://me:secret@host", "logs.headers");
        let said = read(&[("logs.ship-to", "otlp+http://me:sec@ret@host")]).expect_err("a mistake");
        assert!(said.contains("@host") && !said.contains("sec@") && !said.contains("me:"), "{said}");
        check("logs.ship-to", "otlp+http://host:0", "port");
        check("logs.ship-to", "otlp+http://", "host");
        check("logs.ship-to", "loki+http://host:3100?x=1", "more than a host");
        check("logs.ship-to", "file://var/log/x", "three slashes");
        check("logs.ship-to", "file:///var/log/neap/", "file");
        check("logs.ship-to", "file:///var/../etc/passwd", "leads out");
        check("logs.ship-to", "file:///var/{host}.log", "{namespace}, {service}");
        check("logs.ship-to", "file:///var/}x{.log", "braces");
        check("logs.ship-to", "file:///var/{service", "braces");
        check("logs.headers", "Authorization Bearer x", "Name: value");
        check("logs.headers", "A: 1\nContent-Type: text/plain", "line 2 sets content-type");
        check("logs.headers", "A B: 1", "no name of a header");
        check("logs.headers", "A: \u{1}", "characters");
        check("logs.compression", "snappy", "gzip or none");
        check("logs.batch-size", "1Gi", "from 1Ki to 16Mi");
        check("logs.batch-age", "1ms", "from 100ms");
        check("logs.timeout", "0", "from 1s");
        check("logs.container-max-size", "1", "from 64Ki");
        check("logs.container-max-files", "1", "from 2");
        check("logs.otlp-encoding", "grpc", "protobuf or json");
        check("logs.file-max-age", "1s", "1m or more");
        check("logs.ca", "x", "PEM");
        check("logs.headers-secret", "a b", "name of a Secret");
        let said = read(&[("logs.headers", "Authorization: Bearer s\u{e9}cret")]).expect_err("a mistake");
        assert!(!said.contains("cret"), "{said}");
    }

    #[test]
    fn everything_can_be_set() {
        let logs = read(&[
            ("logs.container-max-size", "1Mi"),
            ("logs.container-max-files", "3"),
            ("logs.headers", "Authorization: Bearer a:b\n\nX-Scope-OrgID: team"),
            ("logs.headers-secret", "logs-token"),
            ("logs.compression", "none"),
            ("logs.batch-size", "64Ki"),
            ("logs.batch-age", "250ms"),
            ("logs.timeout", "3s"),
            ("logs.json-severity", "false"),
            ("logs.otlp-encoding", "json"),
            ("logs.loki-structured-metadata", "false"),
            ("logs.file-max-size", "1Gi"),
            ("logs.file-max-files", "9"),
            ("logs.file-max-age", "24h"),
        ])
        .expect("fine");
        let want = Logs {
            container_max_size: 1 << 20,
            container_max_files: 3,
            headers: [("authorization", "Bearer a:b"), ("x-scope-orgid", "team")]
                .map(|(n, v)| (n.into(), v.into()))
                .into(),
            headers_secret: "logs-token".into(),
            gzip: false,
            batch_size: 64 << 10,
            batch_age: Duration::from_millis(250),
            timeout: Duration::from_secs(3),
            json_severity: false,
            otlp_encoding: Encoding::Json,
            loki_structured_metadata: false,
            file_max_size: 1 << 30,
            file_max_files: 9,
            file_max_age: Some(Duration::from_secs(24 * 3600)),
            ..Logs::default()
        };
        assert_eq!(logs, want);
    }
}
