//! The one place that reads the machine's clocks. Everything that decides takes the time as an argument.

/// Wall-clock time.
#[expect(clippy::disallowed_methods, reason = "the edge where time enters")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
