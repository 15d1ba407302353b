//! Hedging: when a second instance is asked too, and how often that may be.

use std::time::Duration;

use neap_api::keys::neap as keys;

use super::Problem;
use crate::config::go::parse_duration;

/// Shortest wait before a hedge; below it nearly every request would have one.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longest wait; beyond it a hedge helps nobody.
const LONGEST: Duration = Duration::from_secs(60);

/// How long an instance is waited for alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// So long.
    Fixed(Duration),
    /// Until so many percent of requests would have been answered.
    Percentile(u8),
}

/// `50ms`, `p95`.
pub(super) fn parse(text: &str) -> Result<HedgeAfter, Problem> {
    let wrong = || {
        let message = format!("{text:?} is neither a time from 1ms to 60s nor one of p90, p95 and p99");
        Problem::new(keys::HEDGE_AFTER, message)
    };
    match text.trim() {
        "p90" => Ok(HedgeAfter::Percentile(90)),
        "p95" => Ok(HedgeAfter::Percentile(95)),
        "p99" => Ok(HedgeAfter::Percentile(99)),
        text => {
            let after = parse_duration(text).and_then(|time| time.positive()).ok_or_else(wrong)?;
            if (SHORTEST..=LONGEST).contains(&after) { Ok(HedgeAfter::Fixed(after)) } else { Err(wrong()) }
        }
    }
}

/// A running estimate of a percentile of latencies, of one word: each observation moves it a little, up when it was longer
/// and down when it was shorter, in such proportion that it comes to rest where the percentile is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantile {
    /// The estimate.
    pub nanos: u64,
    /// How many observations it stands on, as far as that matters.
    pub seen: u8,
}

impl Quantile {
    /// Observations before it is believed.
    const WARM: u8 = 20;
    /// How far one observation moves it, a 256th part of the estimate for the full weight.
    const STEP: u64 = 16;

    /// Nothing is known.
    pub const NEW: Self = Self { nanos: 0, seen: 0 };

    /// After one more observation.
    pub fn after(self, percent: u8, nanos: u64) -> Self {
        let seen = self.seen.saturating_add(1).min(Self::WARM);
        if self.seen == 0 {
            return Self { nanos: nanos.max(1), seen };
        }
        let (up, down) = (u64::from(percent), 100 - u64::from(percent));
        let share = |weight: u64| (self.nanos / 256).saturating_mul(Self::STEP * weight) / 100 + 1;
        let nanos = if nanos > self.nanos {
            self.nanos.saturating_add(share(up)).min(nanos)
        } else {
            self.nanos.saturating_sub(share(down)).max(nanos).max(1)
        };
        Self { nanos, seen }
    }

    /// The estimate, once there is one.
    pub fn estimate(self) -> Option<Duration> {
        let bounded = Duration::from_nanos(self.nanos).clamp(SHORTEST, LONGEST);
        (self.seen >= Self::WARM).then_some(bounded)
    }
}

/// How many hedges are left: each request that may have one earns a share of it, and a few can be saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(u32);

impl Budget {
    /// A hedge costs this much.
    const PRICE: u32 = 100;
    /// A request earns this much: hedges are at most 5 % of requests.
    const EARNED: u32 = 5;
    /// Ten hedges may be saved for a bad moment.
    const MOST: u32 = 10 * Self::PRICE;

    /// Enough for one.
    pub const NEW: Self = Self(Self::PRICE);

    /// After one more request.
    #[must_use]
    pub fn earn(self) -> Self {
        Self((self.0 + Self::EARNED).min(Self::MOST))
    }

    /// After one more hedge; `None` when there is none left.
    #[must_use]
    pub fn spend(self) -> Option<Self> {
        self.0.checked_sub(Self::PRICE).map(Self)
    }
}
