//! What a failed order means: whose fault, in one sentence, and how long to leave the authority alone.
//!
//! The bounds are those of Let's Encrypt, the strictest of the well-known authorities: five refused validations of a name in
//! an hour, then none for that hour; five certificates for the same names in a week.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// First wait after a refusal, doubled with each in a row: tries after 0, 2, 6, 14, 30 and 62 minutes are five in any hour.
const REFUSED: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(6 * 3600));
/// The same when nobody answers, which costs the authority nothing.
const UNREACHABLE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(3600));
/// The same when there were too many, unless the authority says until when.
const LIMITED: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
/// No authority's word keeps us from asking for longer: its limits are of a week.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 3600);

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The authority looked, and says no.
    Refused,
    /// It has had too many from us.
    RateLimited,
    /// It did not answer, or not what it should.
    Unreachable,
    /// It does not know our account (any more): another one is made.
    NoAccount,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Whose fault.
    pub kind: Kind,
    /// A sentence without a full stop.
    pub message: String,
    /// Until when the authority wants to be left alone, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Fault {
    /// Of a problem document (RFC 7807) about a host, or about all that was asked for.
    pub fn of_problem(authority: &str, host: Option<&str>, kind: Option<&str>, detail: Option<&str>) -> Self {
        let word = kind.unwrap_or_default().rsplit(':').next().unwrap_or_default();
        let detail = one_line(detail.filter(|d| !d.trim().is_empty()).unwrap_or("it does not say why"));
        let about = host.map(|host| format!(" for {host}")).unwrap_or_default();
        let (kind, says) = match word {
            "rateLimited" => (Kind::RateLimited, "wants no more orders"),
            "serverInternal" | "badNonce" => (Kind::Unreachable, "could not answer"),
            "accountDoesNotExist" => (Kind::NoAccount, "does not know the account"),
            _ => (Kind::Refused, "refuses a certificate"),
        };
        let until = (kind == Kind::RateLimited).then(|| retry_after(&detail)).flatten();
        let named = if word.is_empty() { String::new() } else { format!(" ({word})") };
        Self { kind, message: format!("{authority} {says}{about}: {detail}{named}"), until }
    }

    /// It was not reached, or broke off.
    pub fn unreachable(authority: &str, why: &str) -> Self {
        Self {
            kind: Kind::Unreachable,
            message: format!("{authority} cannot be asked: {}", one_line(why)),
            until: None,
        }
    }

    /// When to try again after so many failures in a row, this one included.
    pub fn again_at(&self, failures: u32, now: Timestamp) -> Timestamp {
        let (first, last) = match self.kind {
            Kind::Refused => REFUSED,
            Kind::RateLimited => LIMITED,
            Kind::Unreachable | Kind::NoAccount => UNREACHABLE,
        };
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(last);
        let after = |delay: Duration| {
            now.saturating_add(SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX)).unwrap_or(now)
        };
        let said = self.until.filter(|until| *until > now).map(|until| until.min(after(LONGEST)));
        said.unwrap_or_else(|| after(doubled))
    }
}

/// What follows "retry after" in the words of Let's Encrypt: `2026-03-09 15:04:05 UTC`.
fn retry_after(detail: &str) -> Option<Timestamp> {
    let (_, rest) = detail.split_once("retry after ")?;
    let text: String = rest.chars().take("2026-03-09 15:04:05".len()).collect();
    format!("{}Z", text.replacen(' ', "T", 1)).parse().ok()
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn check(kind: &str, detail: &str, failures: u32, want: (&str, i64)) {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let fault = Fault::of_problem("ca.example", Some("a.example.org"), Some(&kind), Some(detail));
        let waits = fault.again_at(failures, at(0)).as_second();
        assert_eq!((fault.message.as_str(), waits), want);
    }

    #[test]
    fn a_problem_is_a_sentence_and_a_wait() {
        let refused = "ca.example refuses a certificate for a.example.org: no such name (dns)";
        check("dns", "no such\n name.", 1, (refused, 120));
        check("dns", "no such name", 4, (refused, 960));
        check("dns", "no such name", 40, (refused, 6 * 3600));
        let down = "ca.example could not answer for a.example.org: oops (serverInternal)";
        check("serverInternal", "oops", 1, (down, 15));
        check("serverInternal", "oops", 30, (down, 3600));
        let limited = "ca.example wants no more orders for a.example.org: too many";
        check("rateLimited", "too many", 1, (&format!("{limited} (rateLimited)"), 3600));
        let until = "too many, retry after 1970-01-01 02:00:00 UTC: see x";
        let said = format!("{limited}, retry after 1970-01-01 02:00:00 UTC: see x (rateLimited)");
        check("rateLimited", until, 7, (&said, 7200));
        let never = "too many, retry after 2170-01-01 02:00:00 UTC: see x";
        let said = format!("{limited}, retry after 2170-01-01 02:00:00 UTC: see x (rateLimited)");
        check("rateLimited", never, 1, (&said, 8 * 24 * 3600));
    }

    #[test]
    fn five_refusals_fit_into_an_hour_and_no_more() {
        let fault = Fault::of_problem("ca", None, None, None);
        let mut tries = vec![at(0)];
        for failures in 1..12 {
            let last = *tries.last().expect("one");
            tries.push(fault.again_at(failures, last));
        }
        for (n, from) in tries.iter().enumerate() {
            let within = tries[n..].iter().filter(|t| t.duration_since(*from) < SignedDuration::from_hours(1)).count();
            assert!(within <= 5, "{within} tries within an hour of try {n}");
        }
    }
}
