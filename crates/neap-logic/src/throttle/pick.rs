//! Which of the instances with room takes the next request (E1.6).

/// Up to this `containerConcurrency` instances are filled one after the other, so that few are busy and the rest can
/// be stopped; above it requests are spread.
const FILL_UP_TO: u32 = 3;

/// How an instance is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The less busy of two instances drawn at random. For instances without a limit.
    LessBusyOfTwo,
    /// The first with room, in the order of their keys.
    FirstWithRoom,
    /// The next with room after the one picked last.
    RoundRobin,
}

impl Policy {
    /// The policy for a `containerConcurrency`.
    pub fn for_concurrency(container_concurrency: u32) -> Self {
        match container_concurrency {
            0 => Self::LessBusyOfTwo,
            1..=FILL_UP_TO => Self::FirstWithRoom,
            _ => Self::RoundRobin,
        }
    }

    /// Picks one of `count` instances, given how busy each is (`None`: no room). `last` is what was picked before;
    /// only round robin looks at it. `random` is used only by the draw of two.
    pub fn pick(self, count: usize, last: usize, random: u64, busy: impl Fn(usize) -> Option<u32>) -> Option<usize> {
        let first_from = |start: usize| (start..count).chain(0..start.min(count)).find(|&at| busy(at).is_some());
        match self {
            Self::FirstWithRoom => first_from(0),
            Self::RoundRobin => first_from(if last + 1 < count { last + 1 } else { 0 }),
            Self::LessBusyOfTwo => {
                let (one, two) = two_of(count, random)?;
                match (busy(one), busy(two)) {
                    (Some(a), Some(b)) => Some(if b < a { two } else { one }),
                    (Some(_), None) => Some(one),
                    (None, Some(_)) => Some(two),
                    (None, None) => first_from(0),
                }
            }
        }
    }
}

/// Two positions below `count`, different where there are two.
fn two_of(count: usize, random: u64) -> Option<(usize, usize)> {
    let (low, high) = ((random & 0xFFFF_FFFF) as usize, (random >> 32) as usize);
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let one = low % count;
            let two = (one + 1 + high % (count - 1)) % count;
            Some((one, two))
        }
    }
}
