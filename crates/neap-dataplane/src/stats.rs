//! Exact counters of one Revision: how many requests were present, on average over time, and how many came.
//!
//! Plain arithmetic over instants that the caller brings. A request is present from its arrival to the end of its
//! answer, waiting included; the autoscaler needs the demand, not what happened to be served.

use http::StatusCode;
use neap_logic::routing::RevisionKey;
use tokio::time::Instant;

/// Upper bounds of the latency histogram, seconds: those of Knative's `kn.serving.invocation.duration`.
pub(crate) const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// What happened at a Revision since it was last asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Stat {
    /// Which Revision.
    pub revision: RevisionKey,
    /// Requests present, averaged over the time since the last collection. Those that wait count.
    pub average_concurrency: f64,
    /// Requests that came since the last collection.
    pub request_count: u64,
    /// How long ago that was, seconds.
    pub seconds: f64,
    /// Requests present now.
    pub concurrency: u32,
    /// Of these, how many wait for an instance.
    pub waiting: u32,
    /// Instances that may take requests now.
    pub instances: u32,
}

impl Stat {
    /// Requests per second. After a pause of the collector they are spread over all of it; over less than a second nothing
    /// is extrapolated.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "requests of some seconds are far below 2^52")]
        let count = self.request_count as f64;
        count / self.seconds.max(1.0)
    }
}

/// Sums since the start, for metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    /// Requests that came.
    pub(crate) requests: u64,
    /// Answers by the first digit of their status; 0 is "none".
    pub(crate) by_class: [u64; 6],
    /// Latencies by bucket, not cumulated; the last is "longer".
    pub(crate) buckets: [u64; BUCKETS.len() + 1],
    /// Sum of all latencies, seconds.
    pub(crate) seconds: f64,
    /// Requests that had to wait for an instance.
    pub(crate) waited: u64,
    /// Requests refused because the queue was full.
    pub(crate) refused: u64,
    /// Times an instance was asked for because there was none.
    pub(crate) wakes: u64,
}

#[derive(Debug)]
pub(crate) struct Account {
    present: u32,
    /// When `present` changed last, or was collected.
    since: Instant,
    /// Requests times seconds since the last collection.
    area: f64,
    collected: Instant,
    arrived: u64,
    totals: Totals,
}

impl Account {
    pub(crate) fn new(now: Instant) -> Self {
        Self { present: 0, since: now, area: 0.0, collected: now, arrived: 0, totals: Totals::default() }
    }

    /// A request came.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.advance(now);
        self.present += 1;
        self.arrived += 1;
        self.totals.requests += 1;
    }

    /// A request has ended. `arrived` is when it came; without a status nobody was answered.
    pub(crate) fn end(&mut self, now: Instant, arrived: Instant, status: Option<StatusCode>) {
        self.advance(now);
        self.present -= 1;
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100).min(5));
        self.totals.by_class[class] += 1;
        let seconds = now.saturating_duration_since(arrived).as_secs_f64();
        self.totals.seconds += seconds;
        self.totals.buckets[BUCKETS.partition_point(|bound| *bound < seconds)] += 1;
    }

    pub(crate) fn totals(&mut self) -> &mut Totals {
        &mut self.totals
    }

    pub(crate) fn present(&self) -> u32 {
        self.present
    }

    /// The average since the last call, how many came, and the seconds since then.
    pub(crate) fn collect(&mut self, now: Instant) -> (f64, u64, f64) {
        self.advance(now);
        let elapsed = now.saturating_duration_since(self.collected).as_secs_f64();
        let average = if elapsed > 0.0 { self.area / elapsed } else { f64::from(self.present) };
        self.area = 0.0;
        self.collected = now;
        (average, std::mem::take(&mut self.arrived), elapsed)
    }

    /// Workers read their clocks before they take the lock, so `now` may lie a little in the past: then nothing
    /// is added, and nothing is lost, for the interval is still open.
    fn advance(&mut self, now: Instant) {
        if now > self.since {
            self.area += f64::from(self.present) * (now - self.since).as_secs_f64();
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Steps of (milliseconds, requests that begin or, negative, end), then what a collection at `at` must say.
    fn check(steps: &[(u64, i32)], at: u64, average: f64, count: u64) {
        let start = Instant::now();
        let time = |ms: u64| start + Duration::from_millis(ms);
        let mut account = Account::new(start);
        for (ms, change) in steps {
            for _ in 0..change.abs() {
                if *change > 0 {
                    account.begin(time(*ms));
                } else {
                    account.end(time(*ms), start, Some(StatusCode::OK));
                }
            }
        }
        let (got, arrived, _) = account.collect(time(at));
        assert!((got - average).abs() < 1e-9, "{got} is not {average}: {steps:?}");
        assert_eq!(arrived, count);
        assert_eq!(account.collect(time(at + 1000)).1, 0, "collected once");
    }

    #[test]
    fn averages_are_weighted_by_time() {
        check(&[], 1000, 0.0, 0);
        check(&[(0, 1)], 1000, 1.0, 1);
        check(&[(0, 1), (500, -1)], 1000, 0.5, 1);
        check(&[(0, 2), (250, 2), (500, -4)], 1000, 1.5, 4);
        check(&[(900, 10)], 1000, 1.0, 10);
        check(&[(0, 1), (1000, -1)], 4000, 0.25, 1);
        // Clocks of two workers may be read in one order and counted in the other.
        check(&[(500, 1), (400, 1), (500, -2)], 1000, 0.0, 2);
    }

    #[test]
    fn a_long_request_counts_in_each_collection() {
        let start = Instant::now();
        let mut account = Account::new(start);
        account.begin(start);
        for second in 1..4 {
            let (average, count, seconds) = account.collect(start + Duration::from_secs(second));
            assert!((seconds - 1.0).abs() < 1e-9);
            assert!((average - 1.0).abs() < 1e-9);
            assert_eq!(count, u64::from(second == 1));
        }
    }

    #[test]
    fn a_late_collection_does_not_make_a_burst() {
        let check = |count: u64, seconds: f64, rate: f64| {
            let stat = Stat {
                revision: RevisionKey::new("ns", "r"),
                average_concurrency: 0.0,
                request_count: count,
                seconds,
                concurrency: 0,
                waiting: 0,
                instances: 0,
            };
            assert!((stat.rate() - rate).abs() < 1e-9, "{count} in {seconds}");
        };
        check(30, 1.0, 30.0);
        check(30, 3.0, 10.0);
        check(1, 0.001, 1.0);
        check(0, 0.0, 0.0);
    }

    #[test]
    fn totals_by_class_and_bucket() {
        let start = Instant::now();
        let mut account = Account::new(start);
        for (status, ms) in [(Some(StatusCode::OK), 5), (Some(StatusCode::BAD_GATEWAY), 6), (None, 20_000)] {
            account.begin(start);
            account.end(start + Duration::from_millis(ms), start, status);
        }
        let totals = account.totals();
        assert_eq!(totals.by_class, [1, 0, 1, 0, 0, 1]);
        assert_eq!((totals.buckets[0], totals.buckets[1], totals.buckets[14]), (1, 1, 1));
        assert_eq!(totals.requests, 3);
    }
}
