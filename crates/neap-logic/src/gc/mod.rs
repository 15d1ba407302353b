//! Which old revisions may go (facts E7).

use jiff::Timestamp;

use crate::config::Gc;

/// What the rule needs to know of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// When it was last in use; its creation when it never was.
    pub last_active: Timestamp,
    /// Whether it must stay: latest ready, in use, or kept by its owner.
    pub pinned: bool,
}

/// The names of the revisions to delete, oldest first.
pub fn collect(candidates: &[Candidate], settings: &Gc, now: Timestamp) -> Vec<String> {
    let mut unused: Vec<&Candidate> = candidates.iter().filter(|c| !c.pinned).collect();
    // The one used most recently is last.
    unused.sort_by_key(|c| (c.last_active, c.created));
    // So many of the unused may go, whichever they are.
    let most = unused.len().saturating_sub(settings.min_non_active);
    let (stale, fresh): (Vec<_>, Vec<_>) = unused.into_iter().partition(|c| is_stale(c, settings, now));
    if stale.len() >= most {
        return stale.into_iter().take(most).map(|c| c.name.clone()).collect();
    }
    let excess = settings.max_non_active.map_or(0, |max| fresh.len().saturating_sub(max));
    stale.into_iter().chain(fresh.into_iter().take(excess)).map(|c| c.name.clone()).collect()
}

/// Older than both retentions. A retention that is off keeps nothing from growing old, but when both are off
/// only the count decides.
fn is_stale(candidate: &Candidate, settings: &Gc, now: Timestamp) -> bool {
    let older = |since: Timestamp, retain: Option<std::time::Duration>| {
        let Some(retain) = retain else { return true };
        std::time::Duration::try_from(now.duration_since(since)).is_ok_and(|age| age >= retain)
    };
    if settings.retain_since_create.is_none() && settings.retain_since_last_active.is_none() {
        return false;
    }
    older(candidate.created, settings.retain_since_create)
        && older(candidate.last_active, settings.retain_since_last_active)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HOUR: i64 = 3600;

    fn check(candidates: &[(&str, i64, i64, bool)], min: usize, max: Option<usize>, want: &[&str]) {
        let at = |hours_ago: i64| Timestamp::from_second(1_000_000 - hours_ago * HOUR).expect("in range");
        let candidates: Vec<Candidate> = candidates
            .iter()
            .map(|(name, created, active, pinned)| Candidate {
                name: (*name).into(),
                created: at(*created),
                last_active: at(*active),
                pinned: *pinned,
            })
            .collect();
        let settings = Gc {
            retain_since_create: Some(Duration::from_secs(48 * 3600)),
            retain_since_last_active: Some(Duration::from_secs(15 * 3600)),
            min_non_active: min,
            max_non_active: max,
        };
        assert_eq!(collect(&candidates, &settings, at(0)), want);
    }

    #[test]
    fn old_and_unused_revisions_go() {
        let all = [
            ("a", 100, 90, false),
            ("b", 80, 70, false),
            ("c", 60, 50, true),
            ("d", 50, 10, false),
            ("e", 1, 1, false),
        ];
        check(&all, 0, None, &["a", "b"]);
        check(&all, 3, None, &["a"]);
        check(&all, 4, None, &[]);
        check(&all, 0, Some(1), &["a", "b", "d"]);
        check(&all, 1, Some(1), &["a", "b", "d"]);
        // E7.1: what may go is counted, not cut off at the oldest: "d" was used longer ago but is younger.
        check(&[("d", 20, 18, false), ("e", 48, 15, false)], 1, None, &["e"]);
    }
}
