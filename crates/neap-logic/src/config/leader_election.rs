//! `config-leader-election`: who acts when several copies of the platform run.

use std::time::Duration;

use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-leader-election";

/// `lease-duration`: how long a lease holds without renewal.
pub const LEASE_DURATION: Duration = Duration::from_secs(60);
/// `renew-deadline`: a holder that could not renew for so long gives up.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(40);
/// `retry-period`: time between tries.
pub const RETRY_PERIOD: Duration = Duration::from_secs(10);
/// The most `buckets`.
pub const MAX_BUCKETS: u32 = 10;

/// Settings of leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderElection {
    /// How long a lease holds without renewal.
    pub lease_duration: Duration,
    /// A holder that could not renew for so long gives up.
    pub renew_deadline: Duration,
    /// Time between tries.
    pub retry_period: Duration,
    /// Into how many parts the keys are divided.
    pub buckets: u32,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self { lease_duration: LEASE_DURATION, renew_deadline: RENEW_DEADLINE, retry_period: RETRY_PERIOD, buckets: 1 }
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> LeaderElection {
    let mut r = Reader::new(MAP, data, mistakes);
    let d = LeaderElection::default();
    let parsed = LeaderElection {
        lease_duration: r.duration(&["lease-duration"], d.lease_duration),
        renew_deadline: r.duration(&["renew-deadline"], d.renew_deadline),
        retry_period: r.duration(&["retry-period"], d.retry_period),
        buckets: r.parse(&["buckets"], d.buckets, "a whole number"),
    };
    r.require((1..=MAX_BUCKETS).contains(&parsed.buckets), "buckets", || {
        format!("{} must be in [1, {MAX_BUCKETS}]", parsed.buckets)
    });
    r.require(
        parsed.retry_period < parsed.renew_deadline && parsed.renew_deadline < parsed.lease_duration,
        "renew-deadline",
        || "must be longer than retry-period and shorter than lease-duration".into(),
    );
    parsed
}
