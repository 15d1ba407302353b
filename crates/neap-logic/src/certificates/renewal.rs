//! When a certificate is renewed.

use jiff::{SignedDuration, Timestamp};

use crate::names::hash::fnv32a;

/// From when to when a certificate is good, or when its authority would like it renewed (RFC 9773).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first instant.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
}

impl Span {
    fn at(&self, thousandth: i32) -> Timestamp {
        let length = self.to.duration_since(self.from);
        self.from.saturating_add(length / 1000 * thousandth).unwrap_or(self.to)
    }
}

/// Spread over so many thousandths of the life before the time to renew, so that what was issued together is not renewed
/// together.
const SPREAD: i32 = 50;
/// Whatever the authority would like: after nine tenths of its life a certificate is renewed.
const LATEST: i32 = 900;
/// And not before a tenth of it, or a day: an authority that always wants a renewal at once is not asked again and again.
const EARLIEST: (i32, SignedDuration) = (100, SignedDuration::from_hours(24));

/// When to renew: at two thirds of the life, or within the window the authority suggests. `of` tells certificates apart.
pub fn renew_at(life: Span, suggested: Option<Span>, of: &str) -> Timestamp {
    let chance = i32::try_from(fnv32a(of.as_bytes()) % 1000).expect("below 1000");
    let (share, time) = EARLIEST;
    let earliest = life.at(share).min(life.from.saturating_add(time).unwrap_or(life.to));
    // Not `clamp`, which panics for a life that ends before it begins: certificates come from others.
    let within = |time: Timestamp| time.max(earliest).min(life.at(LATEST));
    match suggested {
        Some(window) if window.to > window.from => within(window.at(chance)),
        // A window that is one instant, or none: then, in the authority's words.
        Some(window) => within(window.from),
        None => life.at(667 - chance * SPREAD / 1000),
    }
}

/// How long until then, at least a moment.
pub fn until(then: Timestamp, now: Timestamp) -> SignedDuration {
    then.duration_since(now).max(SignedDuration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: i64, to: i64) -> Span {
        let at = |second| Timestamp::from_second(second).expect("in range");
        Span { from: at(from), to: at(to) }
    }

    fn check(suggested: Option<Span>, want: std::ops::RangeInclusive<i64>) {
        for of in ["a", "b", "c", "route-1", "route-2"] {
            let at = renew_at(span(0, 9_000), suggested, of).as_second();
            assert!(want.contains(&at), "{of}: {at} not in {want:?}");
        }
    }

    #[test]
    fn at_two_thirds_or_when_the_authority_likes() {
        check(None, 5_550..=6_003);
        check(Some(span(3_000, 4_000)), 3_000..=4_000);
        check(Some(span(8_500, 9_500)), 8_100..=8_100);
        check(Some(span(1_000, 1_000)), 1_000..=1_000);
        check(Some(span(100, 100)), 900..=900);
        let backwards = renew_at(span(9_000, 0), Some(span(3_000, 4_000)), "a").as_second();
        assert!((0..=9_000).contains(&backwards), "{backwards}");
        let spread: std::collections::BTreeSet<_> =
            (0..50).map(|n| renew_at(span(0, 9_000), None, &n.to_string())).collect();
        assert!(spread.len() > 30, "{}", spread.len());
    }
}
