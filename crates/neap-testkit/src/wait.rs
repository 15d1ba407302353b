//! Waiting in tests: for a predicate on what the API shows, with a deadline on the test's clock.

use std::future::Future;
use std::time::Duration;

/// Virtual seconds after which a test that waits has failed.
const DEADLINE: Duration = Duration::from_secs(120);
/// Virtual time between two looks; costs nothing under a paused clock.
const LOOK: Duration = Duration::from_millis(1);

/// The first value that `look` finds.
///
/// # Panics
/// Nothing was found before the deadline: `what` did not happen.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "{what}: not within {} virtual seconds", DEADLINE.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}
