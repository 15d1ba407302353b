//! The bounds of an instance count (E4.10, E4.13).

use super::settings::{Reachability, Scaling};

/// Fewest and most instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest.
    pub min: u32,
    /// Most; `None` is no bound.
    pub max: Option<u32>,
}

impl Bounds {
    /// The nearest count within the bounds. Where they contradict each other the lower one wins, as in Knative.
    pub fn apply(self, count: u32) -> u32 {
        self.max.map_or(count, |max| count.min(max)).max(self.min)
    }
}

impl Scaling {
    /// The bounds that hold now: a Revision no Route refers to has no minimum, and one that never had its initial
    /// scale is held there.
    pub fn bounds(&self, initialized: bool) -> Bounds {
        let mut min = self.reachable_min();
        if !initialized && self.initial_scale > 1 {
            min = min.max(self.initial_scale);
        }
        Bounds { min, max: self.max_scale }
    }

    pub(super) fn reachable_min(&self) -> u32 {
        match self.reachability {
            Reachability::Unreachable => 0,
            Reachability::Reachable | Reachability::Unknown => self.min_scale,
        }
    }
}

/// How many instances must be ready for the Revision to count as active. 0 only for one that starts at zero.
pub fn active_threshold(scaling: &Scaling, initialized: bool) -> u32 {
    let min = scaling.reachable_min();
    if initialized { min.max(1) } else { min.max(scaling.initial_scale) }
}
