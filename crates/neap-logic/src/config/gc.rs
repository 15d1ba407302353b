//! `config-gc`: which old revisions are kept.

use std::time::Duration;

use super::go;
use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-gc";

/// `retain-since-create-time`.
pub const RETAIN_SINCE_CREATE: Duration = Duration::from_secs(48 * 3600);
/// `retain-since-last-active-time`.
pub const RETAIN_SINCE_LAST_ACTIVE: Duration = Duration::from_secs(15 * 3600);
/// `min-non-active-revisions`.
pub const MIN_NON_ACTIVE: usize = 20;
/// `max-non-active-revisions`.
pub const MAX_NON_ACTIVE: usize = 1000;

/// Settings of the revision collector; `None` is the word `disabled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gc {
    /// Younger revisions stay.
    pub retain_since_create: Option<Duration>,
    /// Revisions that took requests more recently stay.
    pub retain_since_last_active: Option<Duration>,
    /// So many of the newest unused revisions stay in any case.
    pub min_non_active: usize,
    /// No more unused revisions than this stay.
    pub max_non_active: Option<usize>,
}

impl Default for Gc {
    fn default() -> Self {
        Self {
            retain_since_create: Some(RETAIN_SINCE_CREATE),
            retain_since_last_active: Some(RETAIN_SINCE_LAST_ACTIVE),
            min_non_active: MIN_NON_ACTIVE,
            max_non_active: Some(MAX_NON_ACTIVE),
        }
    }
}

pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Gc {
    const DISABLED: &str = "disabled";
    let mut r = Reader::new(MAP, data, mistakes);
    let d = Gc::default();
    let duration = |default: Option<Duration>| {
        move |text: &str| match text {
            "" => Some(default),
            text if text.eq_ignore_ascii_case(DISABLED) => Some(None),
            text => go::parse_duration(text)?.positive().map(Some),
        }
    };
    let parsed = Gc {
        retain_since_create: r.with(
            &["retain-since-create-time"],
            d.retain_since_create,
            "a duration or disabled",
            duration(d.retain_since_create),
        ),
        retain_since_last_active: r.with(
            &["retain-since-last-active-time"],
            d.retain_since_last_active,
            "a duration or disabled",
            duration(d.retain_since_last_active),
        ),
        min_non_active: r.parse(&["min-non-active-revisions"], d.min_non_active, "a whole number that is not negative"),
        max_non_active: r.with(&["max-non-active-revisions"], d.max_non_active, "a whole number or disabled", |v| {
            match v {
                "" => Some(d.max_non_active),
                v if v.eq_ignore_ascii_case(DISABLED) => Some(None),
                v => v.parse().ok().map(Some),
            }
        }),
    };
    r.require(parsed.max_non_active.is_none_or(|max| parsed.min_non_active <= max), "min-non-active-revisions", || {
        format!("{} exceeds max-non-active-revisions", parsed.min_non_active)
    });
    parsed
}
