//! When to try again, and when to say something again. No clock of its own.

use std::time::Duration;

/// Longest time between two tries.
const LONGEST: Duration = Duration::from_secs(60);
/// What happens again and again is said so often.
const SAID: Duration = Duration::from_secs(60);

/// Time between tries, doubling.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration) -> Self {
        Self { first, next: first }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The time to wait, of which up to a fifth is left to `chance` (0 to 1): not all machines come back at once. A wish
    /// makes it longer, never shorter: "at once" may be what a clock says that is behind.
    pub(super) fn pause(&mut self, wished: Option<Duration>, chance: f64) -> Duration {
        let own = self.next.mul_f64(0.8 + 0.2 * chance.clamp(0.0, 1.0));
        self.next = (self.next * 2).min(LONGEST);
        wished.map_or(own, |wished| wished.max(own))
    }
}

/// Adds up what happens, and says it at once when it is new and once a minute when it goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Complaint {
    count: u64,
    said: Option<tokio::time::Instant>,
}

impl Complaint {
    pub(super) fn add(&mut self, count: u64) {
        self.count += count;
    }

    /// How much there is to be said now.
    pub(super) fn due(&mut self, now: tokio::time::Instant) -> Option<u64> {
        if self.count == 0 || self.said.is_some_and(|said| now.duration_since(said) < SAID) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause(None, 1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.pause(None, 0.0), Duration::from_millis(800));
        assert_eq!(backoff.pause(Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert_eq!(backoff.pause(None, 1.0), Duration::from_secs(4), "a wish does not slow the rest down less");
        assert_eq!(backoff.pause(Some(Duration::ZERO), 1.0), Duration::from_secs(8), "nor this one");
    }

    #[tokio::test(start_paused = true)]
    async fn complaints_add_up() {
        let mut complaint = Complaint::default();
        let now = tokio::time::Instant::now();
        assert_eq!(complaint.due(now), None);
        complaint.add(2);
        assert_eq!(complaint.due(now), Some(2));
        complaint.add(3);
        complaint.add(4);
        assert_eq!(complaint.due(now + Duration::from_secs(59)), None);
        assert_eq!(complaint.due(now + Duration::from_secs(60)), Some(7));
        assert_eq!(complaint.due(now + Duration::from_secs(600)), None);
    }
}
