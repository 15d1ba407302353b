//! One line of a log, ready to be sent: whose it is, when it was said, how grave it is. Values in, values out.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;

/// Bytes of a line that is put together of parts, or cut off a longer one. Loki refuses lines beyond 256 KiB.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// What a record costs beside its text, roughly: so that many empty lines do not make an endless request.
const OVERHEAD: usize = 100;

/// Where lines come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) container: String,
    /// Runs of the container before this one.
    pub(super) restarts: Option<u32>,
    /// What the pod is part of; its own name where it is part of nothing.
    pub(super) service: String,
    pub(super) configuration: Option<String>,
    pub(super) revision: Option<String>,
    /// Path inside the container, of lines that were written to a file.
    pub(super) file: Option<String>,
    pub(super) node: String,
    pub(super) host: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Stdout,
    Stderr,
    File,
}

impl Stream {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::File => "file",
        }
    }

    pub(super) fn parse(name: &[u8]) -> Self {
        if name == b"stderr" { Self::Stderr } else { Self::Stdout }
    }
}

/// OpenTelemetry's severities, each by the first number of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Trace = 1,
    Debug = 5,
    Info = 9,
    Notice = 10,
    Warn = 13,
    Error = 17,
    Critical = 18,
    Fatal = 21,
}

impl Severity {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Fatal => "fatal",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        let known: &[(&str, Self)] = &[
            ("trace", Self::Trace),
            ("debug", Self::Debug),
            ("info", Self::Info),
            ("information", Self::Info),
            ("informational", Self::Info),
            ("default", Self::Info),
            ("notice", Self::Notice),
            ("warn", Self::Warn),
            ("warning", Self::Warn),
            ("error", Self::Error),
            ("err", Self::Error),
            ("critical", Self::Critical),
            ("crit", Self::Critical),
            ("dpanic", Self::Critical),
            ("alert", Self::Critical),
            ("fatal", Self::Fatal),
            ("panic", Self::Fatal),
            ("emergency", Self::Fatal),
            ("emerg", Self::Fatal),
        ];
        known.iter().find(|(name, _)| name.eq_ignore_ascii_case(word.trim())).map(|(_, severity)| *severity)
    }

    /// As bunyan and pino count.
    fn of_number(number: i64) -> Option<Self> {
        Some(match number {
            10..=19 => Self::Trace,
            20..=29 => Self::Debug,
            30..=39 => Self::Info,
            40..=49 => Self::Warn,
            50..=59 => Self::Error,
            60..=69 => Self::Fatal,
            _ => return None,
        })
    }

    /// What a line says of itself, if it is a JSON object that does.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let line = line.trim_start();
        if !line.starts_with('{') {
            return None;
        }
        let words: Words = serde_json::from_str(line).ok()?;
        match words.severity.or(words.level).or(words.lvl)? {
            Level::Word(word) => Self::of_word(&word),
            Level::Number(number) => Self::of_number(number),
            Level::Other(_) => None,
        }
    }
}

/// The names under which programs write their severity.
#[derive(Deserialize)]
struct Words<'a> {
    #[serde(borrow)]
    severity: Option<Level<'a>>,
    #[serde(borrow, alias = "log.level", alias = "loglevel", alias = "@l")]
    level: Option<Level<'a>>,
    #[serde(borrow)]
    lvl: Option<Level<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Level<'a> {
    Word(#[serde(borrow)] Cow<'a, str>),
    Number(i64),
    Other(serde::de::IgnoredAny),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) origin: Arc<Origin>,
    /// Nanoseconds since 1970, when it was said.
    pub(super) time: u64,
    /// The same, when it was read.
    pub(super) observed: u64,
    pub(super) stream: Stream,
    pub(super) severity: Option<Severity>,
    pub(super) body: String,
    /// The line went on, or had begun before.
    pub(super) partial: bool,
}

impl Record {
    pub(super) fn size(&self) -> usize {
        self.body.len() + OVERHEAD
    }
}

/// Text as it may be sent: what is no UTF-8 is replaced.
pub(super) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Nanoseconds since 1970 of an RFC 3339 time.
pub(super) fn nanos(time: &[u8]) -> Option<u64> {
    let time: jiff::Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
    u64::try_from(time.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_are_found_in_json_lines() {
        let check = |line: &str, want: Option<Severity>| assert_eq!(Severity::of_line(line), want, "{line}");
        check(r#"{"severity":"WARNING","message":"x"}"#, Some(Severity::Warn));
        check(r#" {"level":"error","severity":null}"#, Some(Severity::Error));
        check(r#"{"level":30,"msg":"pino"}"#, Some(Severity::Info));
        check(r#"{"lvl":"dbug"}"#, None);
        check(r#"{"log.level":"Debug"}"#, Some(Severity::Debug));
        check(r#"{"level":"\u0065rror"}"#, Some(Severity::Error));
        check(r#"{"level":{"a":1}}"#, None);
        check(r#"{"level":"error""#, None);
        check("ERROR: plain", None);
        check("", None);
        check("[1]", None);
    }

    #[test]
    fn times_are_read_and_bytes_made_safe() {
        assert_eq!(nanos(b"1970-01-01T00:00:01.000000002Z"), Some(1_000_000_002));
        assert_eq!(nanos(b"yesterday"), None);
        assert_eq!(nanos(b"1969-01-01T00:00:00Z"), None);
        assert_eq!(text(b"a\xffb".to_vec()), "a\u{fffd}b");
    }
}
