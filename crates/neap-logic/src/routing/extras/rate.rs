//! Rate limits: what is written, and whether one more request is within it.

use std::time::Duration;

use neap_api::keys::neap as keys;

use super::{Problem, is_header_name};

/// Most requests a limit can allow in its unit of time; beyond it a limit limits nothing.
const MOST: u64 = 1_000_000;

/// A limit and by what it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateRule {
    /// How many.
    pub rate: Rate,
    /// Of whom.
    pub by: RateBy,
}

/// By what requests are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateBy {
    /// The address they come from.
    Client,
    /// The value of this header; those without it count together.
    Header(Box<str>),
    /// All count together.
    All,
}

/// So many requests in so much time. One request is allowed each `interval`, and `burst` may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds between two requests.
    pub interval: u64,
    /// Requests that may come at once after a silence.
    pub burst: u32,
}

impl Rate {
    /// Whether a request may pass at `now`. Times are nanoseconds since any fixed instant; `booked` is up to when requests
    /// have been paid for (0 for a newcomer). `Ok` is the new such time, `Err` how long to wait.
    pub fn admit(&self, booked: u64, now: u64) -> Result<u64, Duration> {
        let next = booked.max(now).saturating_add(self.interval);
        let room = self.interval.saturating_mul(u64::from(self.burst));
        match next.saturating_sub(now).checked_sub(room) {
            None | Some(0) => Ok(next),
            Some(over) => Err(Duration::from_nanos(over)),
        }
    }
}

/// `100/s`, `600/m burst 50`, `10/h`.
pub(super) fn parse(text: &str, by: Option<&str>) -> Result<RateRule, Problem> {
    let by = match by.map(str::trim) {
        None | Some("client") => RateBy::Client,
        Some("all") => RateBy::All,
        Some(other) => match other.strip_prefix("header:").map(str::trim) {
            Some(name) if is_header_name(name) => RateBy::Header(name.to_ascii_lowercase().into()),
            _ => {
                let message = format!("{other:?} is none of \"client\", \"all\" and \"header:NAME\"");
                return Err(Problem::new(keys::RATE_LIMIT_BY, message));
            }
        },
    };
    let wrong = || {
        let example = "write \"100/s\", \"600/m\" or \"10/h\", and \"burst 20\" behind it if you like";
        Problem::new(keys::RATE_LIMIT, format!("{text:?} is no rate: {example}"))
    };
    let bounded = |count: &str| count.parse::<u64>().ok().filter(|count| (1..=MOST).contains(count));
    let mut words = text.split_whitespace();
    let (count, unit) = words.next().and_then(|word| word.split_once('/')).ok_or_else(wrong)?;
    let count = bounded(count).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let burst = match (words.next(), words.next(), words.next()) {
        // What the limit allows in a second may come at once, as who writes "100/s" expects.
        (None, ..) => count.div_ceil(seconds),
        (Some("burst"), Some(burst), None) => bounded(burst).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    let burst = u32::try_from(burst).expect("bounded above");
    Ok(RateRule { rate: Rate { interval: seconds * 1_000_000_000 / count, burst }, by })
}
