//! Whether and when a container that ended is started again, and a pull that failed is tried again. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pod::RestartPolicy;

/// First wait after the one immediate restart, and after a failed pull (kubelet's values, as the next three).
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A container that ran this long is not in a crash loop.
const RESET_AFTER: Duration = Duration::from_secs(600);

/// How long the next wait is. Doubles with each use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    /// How often it was waited, or restarted without waiting.
    steps: u32,
}

impl Backoff {
    /// After a container that ran for `ran` ended: the first restart is immediate.
    pub(crate) fn restart(&mut self, ran: Duration) -> Duration {
        if ran >= RESET_AFTER {
            self.steps = 0;
        }
        self.steps += 1;
        match self.steps {
            1 => Duration::ZERO,
            n => doubled(n - 2),
        }
    }

    /// After something failed that will be tried again.
    pub(crate) fn retry(&mut self) -> Duration {
        self.steps += 1;
        doubled(self.steps - 1)
    }
}

fn doubled(times: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << times.min(16)).min(LONGEST_WAIT)
}

/// Whether a container that ended with `code` is to run again.
pub(crate) fn again(policy: RestartPolicy, init: bool, code: i32) -> bool {
    match policy {
        // Init containers have done their work when they end well, whatever the pod's policy.
        RestartPolicy::Always => !(init && code == 0),
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_after_a_long_run() {
        let mut backoff = Backoff::default();
        let mut after = |seconds| backoff.restart(Duration::from_secs(seconds)).as_secs();
        assert_eq!([1, 1, 599, 1, 1, 1, 1, 1].map(&mut after), [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!([600, 1].map(&mut after), [0, 10]);
        let mut backoff = Backoff::default();
        assert_eq!([(); 7].map(|()| backoff.retry().as_secs()), [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn policies_decide_by_the_exit_code() {
        use RestartPolicy::{Always, Never, OnFailure};
        let check = |policy, init, code, expected| assert_eq!(again(policy, init, code), expected);
        check(Always, false, 0, true);
        check(Always, false, 1, true);
        check(Always, true, 0, false);
        check(Always, true, 1, true);
        check(OnFailure, false, 0, false);
        check(OnFailure, true, 2, true);
        check(Never, false, 2, false);
    }
}
