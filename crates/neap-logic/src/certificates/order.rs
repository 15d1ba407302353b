//! What is next in an order (RFC 8555, 7.1.6), from what the authority last said of it and what was done for it.
//!
//! The same answer comes out after a restart: nothing is remembered but what stands in the order's record.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::fault::{Fault, Kind};
use crate::config::ChallengeKind;

/// How long one attempt at an order may take. Authorities answer in seconds; what takes longer hangs.
pub const ATTEMPT: SignedDuration = SignedDuration::from_mins(10);
/// Between two looks at an order that the authority works on: the first ones, and those when it has taken long already.
const POLL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));
/// After so many looks the time between them is doubled.
const POLLS: u32 = 5;
/// Between two looks at whether the answers are served.
pub const LOOK: Duration = Duration::from_millis(200);
/// So long after they were written the answers are taken to be served: every gateway watches them.
const SETTLED: SignedDuration = SignedDuration::from_secs(1);
/// So long an Ingress may take to serve its challenge paths; the authority is told then all the same.
const SETTLED_AT_LAST: SignedDuration = SignedDuration::from_secs(15);

/// What an authority says of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Control over some name is not shown yet.
    Pending,
    /// A request for the certificate is awaited.
    Ready,
    /// The certificate is being made.
    Processing,
    /// It can be fetched.
    Valid,
    /// It has failed.
    Invalid,
}

/// What an authority says of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// Control is to be shown.
    Open {
        /// The kinds of challenges it takes.
        offered: Vec<ChallengeKind>,
        /// Whether it was told to look.
        told: bool,
    },
    /// Control was shown.
    Shown,
    /// It was looked for in vain, or came too late.
    Failed(Fault),
}

/// An order as it stands.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What the authority says of it.
    pub status: Status,
    /// What it says of each name.
    pub names: Vec<Name>,
    /// Why it has failed, where the authority says so of the order and not of a name.
    pub problem: Option<Fault>,
    /// The kind of challenge of this attempt.
    pub kind: ChallengeKind,
    /// When this attempt began.
    pub began: Timestamp,
    /// Since when its answers are written.
    pub presented: Option<Timestamp>,
    /// Whether Ingresses serve the challenge paths; `None` when no Ingress names these hosts.
    pub served: Option<bool>,
    /// Whether there is a key that the certificate was asked for with.
    pub requested: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write the answers down.
    Present,
    /// Look again at whether they are served.
    AwaitServed,
    /// Tell the authority to look.
    Tell,
    /// Ask it again.
    Poll,
    /// Make a key, write it down, and ask for the certificate.
    Request,
    /// Fetch the certificate.
    Fetch,
    /// Give the order up.
    Fail(Fault),
}

/// How long to wait before an order is looked at again, after so many looks.
pub fn poll_after(looks: u32) -> Duration {
    let (first, longest) = POLL;
    first.saturating_mul(1 << (looks / POLLS).min(8)).min(longest)
}

/// Decides.
pub fn step(authority: &str, seen: &Seen, now: Timestamp) -> Step {
    let refused = |message: String| Step::Fail(Fault { kind: Kind::Refused, message, until: None });
    let failed = seen.names.iter().find_map(|name| match name {
        Name::Failed(fault) => Some(fault),
        _ => None,
    });
    if let Some(fault) = failed.or(seen.problem.as_ref()) {
        return Step::Fail(fault.clone());
    }
    if now.duration_since(seen.began) > ATTEMPT {
        let minutes = ATTEMPT.as_mins();
        return Step::Fail(Fault::unreachable(authority, &format!("the order was not done within {minutes} minutes")));
    }
    match seen.status {
        Status::Invalid => refused(format!("{authority} refuses the order and does not say why")),
        Status::Pending => pending(authority, seen, now),
        Status::Ready => Step::Request,
        Status::Processing if seen.requested => Step::Poll,
        Status::Valid if seen.requested => Step::Fetch,
        // Asked for with a key that is lost: the certificate is of no use.
        Status::Processing | Status::Valid => {
            Step::Fail(Fault::unreachable(authority, "the key of the order is lost, another one is made"))
        }
    }
}

fn pending(authority: &str, seen: &Seen, now: Timestamp) -> Step {
    let mut untold = false;
    for name in &seen.names {
        if let Name::Open { offered, told } = name {
            if !offered.contains(&seen.kind) {
                let kind = seen.kind.as_str();
                let message = format!("{authority} offers no {kind} challenge: see acme.challenges in config-neap");
                return Step::Fail(Fault { kind: Kind::Refused, message, until: None });
            }
            untold |= !told;
        }
    }
    if !untold {
        return Step::Poll;
    }
    let Some(presented) = seen.presented else { return Step::Present };
    let stands = now.duration_since(presented);
    let served = stands >= SETTLED && seen.served.unwrap_or(true);
    if served || stands >= SETTLED_AT_LAST { Step::Tell } else { Step::AwaitServed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn open(told: bool) -> Name {
        Name::Open { offered: vec![ChallengeKind::Http01, ChallengeKind::TlsAlpn01], told }
    }

    fn check(change: impl FnOnce(&mut Seen), now: i64, want: &str) {
        let mut seen = Seen {
            status: Status::Pending,
            names: vec![Name::Shown, open(false)],
            problem: None,
            kind: ChallengeKind::Http01,
            began: at(0),
            presented: None,
            served: None,
            requested: false,
        };
        change(&mut seen);
        let got = match step("ca", &seen, at(now)) {
            Step::Fail(fault) => format!("{:?}: {}", fault.kind, fault.message),
            other => format!("{other:?}"),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn what_is_next() {
        check(|_| {}, 0, "Present");
        check(|s| s.presented = Some(at(5)), 5, "AwaitServed");
        check(|s| s.presented = Some(at(5)), 6, "Tell");
        check(|s| (s.presented, s.served) = (Some(at(5)), Some(false)), 19, "AwaitServed");
        check(|s| (s.presented, s.served) = (Some(at(5)), Some(false)), 20, "Tell");
        check(|s| (s.presented, s.served) = (Some(at(5)), Some(true)), 7, "Tell");
        check(|s| s.names = vec![open(true)], 0, "Poll");
        check(|s| s.names = vec![Name::Shown], 0, "Poll");
        check(|s| s.status = Status::Ready, 0, "Request");
        check(|s| (s.status, s.requested) = (Status::Processing, true), 0, "Poll");
        check(|s| (s.status, s.requested) = (Status::Valid, true), 0, "Fetch");
        let lost = "Unreachable: ca cannot be asked: the key of the order is lost, another one is made";
        check(|s| s.status = Status::Valid, 0, lost);
        check(|s| s.status = Status::Processing, 0, lost);
        check(|s| s.status = Status::Invalid, 0, "Refused: ca refuses the order and does not say why");
        let fault = || Fault { kind: Kind::Refused, message: "no such name".into(), until: None };
        check(|s| (s.status, s.names) = (Status::Invalid, vec![Name::Failed(fault())]), 0, "Refused: no such name");
        check(|s| s.problem = Some(fault()), 0, "Refused: no such name");
        check(
            |s| s.names = vec![Name::Open { offered: vec![ChallengeKind::TlsAlpn01], told: false }],
            0,
            "Refused: ca offers no http-01 challenge: see acme.challenges in config-neap",
        );
        check(|_| {}, 601, "Unreachable: ca cannot be asked: the order was not done within 10 minutes");
    }

    #[test]
    fn slow_authorities_are_asked_less_often() {
        let waits: Vec<u64> = (0..18).map(|looks| poll_after(looks).as_secs()).collect();
        assert_eq!(waits, [2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 8, 8, 8, 16, 16, 16]);
        assert_eq!(poll_after(u32::MAX).as_secs(), 16);
    }
}
