//! The one place where the engine asks what time it is.
//!
//! Everything else takes instants as arguments, so that a paused clock rules the tests.

use tokio::time::Instant;

/// Now, on the clock the timers run on.
pub(crate) fn now() -> Instant {
    Instant::now()
}
