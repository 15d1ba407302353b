//! The two times an autoscaler needs: the wall's, which conditions carry and which may jump, and one that never runs
//! back, for windows.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Tells the time.
#[derive(Clone)]
pub struct Clock {
    wall: Option<Arc<dyn Fn() -> Timestamp + Send + Sync>>,
    base: Timestamp,
    start: Instant,
}

impl Clock {
    /// A clock whose wall time comes from `wall`. The steady time begins with it and then follows the runtime.
    pub fn new(wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { base: wall(), wall: Some(Arc::new(wall)), start: Instant::now() }
    }

    /// A clock that begins at `base` and follows the runtime only, so that paused time is paused everywhere.
    pub fn starting_at(base: Timestamp) -> Self {
        Self { wall: None, base, start: Instant::now() }
    }

    /// The wall's time.
    pub fn now(&self) -> Timestamp {
        self.wall.as_ref().map_or_else(|| self.steady(Instant::now()), |wall| wall())
    }

    /// The steady time of an instant.
    pub fn steady(&self, instant: Instant) -> Timestamp {
        let elapsed = SignedDuration::try_from(instant.saturating_duration_since(self.start)).unwrap_or_default();
        self.base.saturating_add(elapsed).unwrap_or(self.base)
    }
}
