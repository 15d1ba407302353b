//! Averages of a measured value over the stable and the panic window, in buckets of one second (E3.7).

use std::time::Duration;

use jiff::Timestamp;

use super::decide::Load;

/// Averages are rounded to six digits, so that a sum of fractions that should be whole does not ask for one more
/// instance.
const DIGITS: f64 = 1e6;

/// The share of the weight that the buckets of a whole window take together under weighted averaging.
const WEIGHT_IN_WINDOW: f64 = 0.9999;

/// The newest bucket never weighs less than this under weighted averaging.
const LEAST_WEIGHT: f64 = 0.2;

/// How buckets make an average (`metric-aggregation-algorithm`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// Every bucket counts the same.
    #[default]
    Linear,
    /// Each bucket counts less than the one after it, by a constant factor.
    WeightedExponential,
}

/// One measured value of one Revision over time.
///
/// The average is taken over the part of a window that has been written: a window counts from its first record, and
/// anew after a silence longer than the window. A shorter silence inside counts as zeros; one at the end does not.
#[derive(Clone, Debug)]
pub struct Series {
    /// A ring by second, as long as the stable window.
    buckets: Box<[f64]>,
    last: Option<i64>,
    stable: Span,
    panic: Span,
}

/// A window: its length in seconds and the second its data begins with.
#[derive(Clone, Copy, Debug)]
struct Span {
    len: i64,
    first: i64,
}

impl Series {
    /// An empty series. Windows are taken in whole seconds, one at least; the panic window is not the longer one.
    pub fn new(stable: Duration, panic: Duration) -> Self {
        let stable = i64::try_from(stable.as_secs()).unwrap_or(i64::MAX).max(1);
        let panic = i64::try_from(panic.as_secs()).unwrap_or(i64::MAX).clamp(1, stable);
        Self {
            buckets: vec![0.0; usize::try_from(stable).expect("a window fits in memory")].into(),
            last: None,
            stable: Span { len: stable, first: 0 },
            panic: Span { len: panic, first: 0 },
        }
    }

    /// Whether the series has these windows.
    pub fn has_windows(&self, stable: Duration, panic: Duration) -> bool {
        let len = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX).max(1);
        self.stable.len == len(stable) && self.panic.len == len(panic).min(self.stable.len)
    }

    /// Adds to the bucket of that second. What is older than the stable window is dropped.
    pub fn record(&mut self, at: Timestamp, value: f64) {
        let second = at.as_second();
        match self.last {
            Some(last) if second <= last => {
                if second <= last - self.stable.len {
                    return;
                }
                self.stable.first = self.stable.first.min(second);
                self.panic.first = self.panic.first.min(second);
            }
            last => {
                let silence = last.map_or(i64::MAX, |last| second - last);
                for span in [&mut self.stable, &mut self.panic] {
                    if silence > span.len {
                        span.first = second;
                    }
                }
                if silence > self.stable.len {
                    self.buckets.fill(0.0);
                } else {
                    for skipped in second - silence + 1..=second {
                        *self.bucket(skipped) = 0.0;
                    }
                }
                self.last = Some(second);
            }
        }
        *self.bucket(second) += value;
    }

    /// Both averages at this time. `None` when nothing has been recorded within the stable window.
    pub fn load(&self, now: Timestamp, how: Aggregation) -> Option<Load> {
        let now = now.as_second();
        self.last.filter(|last| now - last < self.stable.len)?;
        Some(Load { stable: self.average(self.stable, now, how), panic: self.average(self.panic, now, how) })
    }

    fn average(&self, span: Span, now: i64, how: Aggregation) -> f64 {
        let last = self.last.unwrap_or(i64::MIN);
        // Records may run ahead of `now` by a clock's whim; the newest one is then the end.
        let end = last;
        let start = span.first.max(now.max(last) - span.len + 1);
        if end < start {
            return 0.0;
        }
        let newest_first = (start..=end).rev().map(|second| self.buckets[self.at(second)]);
        let average = match how {
            Aggregation::Linear => newest_first.sum::<f64>() / (end - start + 1) as f64,
            Aggregation::WeightedExponential => {
                let newest = (1.0 - (1.0 - WEIGHT_IN_WINDOW).powf(1.0 / span.len as f64)).max(LEAST_WEIGHT);
                let (mut sum, mut weights, mut weight) = (0.0, 0.0, newest);
                for value in newest_first {
                    sum += value * weight;
                    weights += weight;
                    weight *= 1.0 - newest;
                }
                sum / weights
            }
        };
        (average * DIGITS).round() / DIGITS
    }

    fn bucket(&mut self, second: i64) -> &mut f64 {
        &mut self.buckets[self.at(second)]
    }

    fn at(&self, second: i64) -> usize {
        usize::try_from(second.rem_euclid(self.stable.len)).expect("a remainder is not negative")
    }
}
