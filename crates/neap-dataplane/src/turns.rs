//! Numbers that share requests out among the sides of a split.
//!
//! They are evenly spread, not random: a split of 80 to 20 is met within a request or two, where chance would need thousands.
//! Each rule has a sequence of its own: in one for all, a page that makes fifty-five requests of which one goes by a split would
//! find each next number beside the last one, and a canary would have all visitors for hundreds of pages, and then none.

use std::cell::Cell;

use neap_logic::routing::PathRule;

/// 2^32 divided by the golden ratio: multiples of it fill the range more evenly than any other step.
const STEP: u32 = 0x9E37_79B9;
/// Rules that meet in one slot share a sequence. A power of two.
const SLOTS: usize = 256;

/// The sequences of one worker.
pub(crate) struct Turns {
    slots: Box<[Cell<u32>]>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        // Each worker begins elsewhere, else the first requests of all would go to the same side.
        Self { slots: (0..SLOTS).map(|_| Cell::new(fastrand::u32(..))).collect() }
    }

    /// The next number of a rule.
    pub(crate) fn next(&self, rule: &PathRule) -> u32 {
        self.next_of(std::ptr::from_ref(rule).addr())
    }

    fn next_of(&self, address: usize) -> u32 {
        // Rules lie in rows, so that the lower bits say little.
        let mixed = (address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let slot = &self.slots[mixed as usize % SLOTS];
        slot.set(slot.get().wrapping_add(STEP));
        slot.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_by_other_rules_does_not_matter() {
        let one: usize = 0x1000;
        for between in 0..200_usize {
            let turns = Turns::new();
            let mut first_side = 0;
            for n in 1..=1000_u32 {
                for _ in 0..between {
                    turns.next_of(0x2_0000);
                }
                first_side += u32::from(turns.next_of(one) < u32::MAX / 10 * 3);
                // From an unlucky beginning it is 3.3.
                assert!((first_side * 10).abs_diff(n * 3) <= 40, "{first_side} of {n} with {between} between");
            }
        }
    }

    #[test]
    fn neighbours_have_sequences_of_their_own() {
        let size = size_of::<PathRule>();
        let turns = Turns::new();
        let slots = |address: usize| {
            let before: Vec<u32> = turns.slots.iter().map(Cell::get).collect();
            turns.next_of(address);
            turns.slots.iter().zip(before).position(|(slot, before)| slot.get() != before).expect("one has moved")
        };
        let taken: std::collections::BTreeSet<usize> = (0..16).map(|n| slots(0x7f00_0000_1000 + n * size)).collect();
        assert!(taken.len() >= 12, "{taken:?}");
    }
}
