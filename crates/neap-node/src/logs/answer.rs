//! What an endpoint's answer means for the lines that were sent. Status in, verdict out.

use std::time::Duration;

use jiff::Timestamp;

/// Longest that an endpoint may ask to be left alone.
const LONGEST_WISH: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Arrived,
    /// Nothing is wrong with the lines: they are sent again, not before this time where the endpoint asks for that.
    Again(Option<Duration>),
    /// Fewer at once may go.
    TooLarge,
    /// These will never be taken.
    Refused,
}

pub(super) fn judge(status: u16, retry_after: Option<&str>, now: Timestamp) -> Verdict {
    match status {
        200..=299 => Verdict::Arrived,
        413 => Verdict::TooLarge,
        // A wrong token or path is mended in the settings: until then lines wait, rather than being thrown away for it.
        401 | 403 | 404 | 405 | 407 | 408 | 425 | 429 => Verdict::Again(retry_after.and_then(|text| wish(text, now))),
        // Elsewhere is for a person to say, too.
        300..=399 | 500.. => Verdict::Again(retry_after.and_then(|text| wish(text, now))),
        _ => Verdict::Refused,
    }
}

/// `Retry-After`: seconds, or a date.
fn wish(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wished = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(wished.min(LONGEST_WISH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let check = |status, retry_after: Option<&str>, want| {
            assert_eq!(judge(status, retry_after, now), want, "{status} {retry_after:?}");
        };
        let seconds = |n| Verdict::Again(Some(Duration::from_secs(n)));
        check(200, None, Verdict::Arrived);
        check(204, Some("9"), Verdict::Arrived);
        check(400, None, Verdict::Refused);
        check(422, Some("9"), Verdict::Refused);
        check(413, None, Verdict::TooLarge);
        for status in [302, 401, 403, 404, 408, 429, 500, 502, 503, 504] {
            check(status, None, Verdict::Again(None));
        }
        check(429, Some("7"), seconds(7));
        check(503, Some(" 100000 "), seconds(300));
        check(503, Some("Thu, 01 Jan 2026 00:00:30 GMT"), seconds(30));
        check(503, Some("Wed, 31 Dec 2025 23:00:00 GMT"), seconds(0));
        check(503, Some("soon"), Verdict::Again(None));
    }
}
