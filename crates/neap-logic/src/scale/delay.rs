//! Holds a smaller count back until it has lasted (`scale-down-delay`, E4.7).

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use super::TICK;

/// The greatest count of the last while. Counts of one tick share a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DelayWindow {
    /// Slot and count, counts falling: a count is dropped as soon as a newer one is at least as great.
    falling: VecDeque<(i64, u32)>,
}

impl DelayWindow {
    /// Records a count and returns the greatest one within `delay`. Without a delay that is the count itself.
    pub fn record(&mut self, now: Timestamp, count: u32, delay: Duration) -> u32 {
        let tick = TICK.as_secs();
        let slots = i64::try_from(delay.as_secs().div_ceil(tick)).unwrap_or(i64::MAX);
        if slots == 0 {
            self.falling.clear();
            return count;
        }
        let slot = now.as_second().div_euclid(i64::try_from(tick).expect("a tick is short"));
        while self.falling.back().is_some_and(|(_, older)| *older <= count) {
            self.falling.pop_back();
        }
        self.falling.push_back((slot, count));
        while self.falling.front().is_some_and(|(old, _)| slot - old >= slots) {
            self.falling.pop_front();
        }
        self.falling.front().map_or(count, |(_, greatest)| *greatest)
    }
}
