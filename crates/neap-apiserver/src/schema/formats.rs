//! The `format`s a text can be held to. A format that is not listed is not enforced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether a format is one that is checked.
pub(super) fn is_known(name: &str) -> bool {
    matches!(
        name,
        "byte"
            | "cidr"
            | "date"
            | "date-time"
            | "datetime"
            | "duration"
            | "email"
            | "hostname"
            | "int32"
            | "int64"
            | "ipv4"
            | "ipv6"
            | "mac"
            | "uri"
            | "uuid"
    )
}

/// Whether the text has the format.
pub(super) fn matches(format: &str, text: &str) -> bool {
    match format {
        // Written by hand it comes in lines.
        "byte" => match text.contains(['\r', '\n']) {
            true => STANDARD.decode(text.replace(['\r', '\n'], "")).is_ok(),
            false => STANDARD.decode(text).is_ok(),
        },
        "cidr" => cidr(text),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "date-time" | "datetime" => date_time(text),
        "duration" => duration(text),
        "email" => text
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !text.contains(char::is_whitespace)),
        "hostname" => hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "mac" => mac(text),
        "uri" => uri(text),
        "uuid" => uuid(text),
        _ => true,
    }
}

/// RFC 3339: a date, a time and an offset.
fn date_time(text: &str) -> bool {
    text.len() >= "2006-01-02T15:04:05Z".len()
        && text.as_bytes()[10] | 0x20 == b't'
        && text.parse::<jiff::Timestamp>().is_ok()
}

fn cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    (address.parse::<Ipv4Addr>().is_ok() && length <= 32) || (address.parse::<Ipv6Addr>().is_ok() && length <= 128)
}

/// Go's durations (`1h30m`, `-1.5s`, `0`) and the days and weeks the validation library adds.
fn duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if number == 0 || rest[..number].parse::<f64>().is_err() {
            return false;
        }
        rest = rest[number..].trim_start_matches(' ');
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').unwrap_or(rest.len());
        if !matches!(
            &rest[..unit],
            "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h" | "d" | "w" | "day" | "days" | "week" | "weeks"
        ) {
            return false;
        }
        rest = rest[unit..].trim_start_matches(' ');
        parts += 1;
    }
    parts > 0
}

fn hostname(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 255
        && labels.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// An absolute URI or a rooted path, which is what the Kubernetes check accepts.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return false;
    }
    text.starts_with('/')
        || text.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
                && !rest.is_empty()
        })
}

fn uuid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = text.match_indices('-').map(|(at, _)| at).collect::<Vec<_>>();
    digits == 32 && (dashes.is_empty() && text.len() == 32 || dashes == [8, 13, 18, 23] && text.len() == 36)
}
