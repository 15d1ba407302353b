//! Values as Go programs write them: durations such as `1m30s` and booleans such as `T`.
//!
//! Config-maps and annotations of this API were defined by Go's parsers, so what those accept and refuse
//! is part of the format. Nothing here knows which setting it reads.

use std::time::Duration;

/// A duration as Go's `time.ParseDuration` reads it; the sign is kept because some rules name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    /// Signed length in nanoseconds.
    pub nanos: i128,
}

impl GoDuration {
    /// The length when it is not negative.
    pub fn positive(self) -> Option<Duration> {
        let nanos = u128::try_from(self.nanos).ok()?;
        let secs = u64::try_from(nanos / NANOS_PER_SECOND as u128).ok()?;
        Some(Duration::new(secs, (nanos % NANOS_PER_SECOND as u128) as u32))
    }

    /// Whether it has no fraction of a second.
    pub fn is_whole_seconds(self) -> bool {
        self.nanos % NANOS_PER_SECOND == 0
    }
}

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// Units, longest spelling first so that `ms` is not read as `m`.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("h", 3600 * NANOS_PER_SECOND),
];

/// Parses a Go duration: an optional sign, then decimal numbers each with a unit, or the bare `0`.
pub fn parse_duration(text: &str) -> Option<GoDuration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(GoDuration { nanos: 0 });
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = &rest[..end];
        rest = &rest[end..];
        let (unit, scale) = UNITS.iter().find(|(unit, _)| {
            rest.strip_prefix(unit)
                .is_some_and(|after| after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        })?;
        rest = &rest[unit.len()..];
        total = total.checked_add(scaled(number, *scale)?)?;
    }
    // Go's durations are 64-bit nanoseconds; anything longer is refused there too.
    i64::try_from(total).ok()?;
    Some(GoDuration { nanos: if negative { -total } else { total } })
}

fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        place /= 10;
        total += i128::from(digit - b'0') * place;
    }
    Some(total)
}

/// Writes a duration the way Go prints it: `1h0m0s`, `1m30s`, `1.5s`, `250ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < NANOS_PER_SECOND as u128 {
        let (unit, scale) = if nanos < 1_000 {
            ("ns", 1)
        } else if nanos < 1_000_000 {
            ("\u{b5}s", 1_000)
        } else {
            ("ms", 1_000_000)
        };
        return format!("{}{unit}", with_fraction(nanos, scale));
    }
    let secs = duration.as_secs();
    let (hours, minutes) = (secs / 3600, secs / 60 % 60);
    let seconds = with_fraction(nanos % (60 * NANOS_PER_SECOND as u128), NANOS_PER_SECOND as u128);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

fn with_fraction(value: u128, scale: u128) -> String {
    let (whole, part) = (value / scale, value % scale);
    if part == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let digits = format!("{part:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

/// The spellings Go's `strconv.ParseBool` accepts.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        let check = |text: &str, millis: Option<i128>| {
            assert_eq!(parse_duration(text).map(|d| d.nanos), millis.map(|m| m * 1_000_000), "{text}");
        };
        check("60s", Some(60_000));
        check("1m30s", Some(90_000));
        check("1h", Some(3_600_000));
        check("1.5s", Some(1_500));
        check(".5s", Some(500));
        check("250ms", Some(250));
        check("0", Some(0));
        check("-3s", Some(-3_000));
        for bad in ["", "s", "5", "1d", "1s2", "-", "1..5s", "9999999999h"] {
            check(bad, None);
        }
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        let check = |millis: u64, text: &str| assert_eq!(format_duration(Duration::from_millis(millis)), text);
        check(0, "0s");
        check(250, "250ms");
        check(1_500, "1.5s");
        check(60_000, "1m0s");
        check(3_601_000, "1h0m1s");
    }
}
