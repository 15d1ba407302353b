//! How much of what clients send is read and answered at a time: a number of requests, and a number of bytes. It knows
//! nothing of what is asked, and never makes anybody wait: who finds no room is told to come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Requests from outside that are read or answered at a time, watches and conversations not counted once they began
/// (kube-apiserver: `--max-requests-inflight` and `--max-mutating-requests-inflight` together).
pub(crate) const REQUESTS: usize = 600;
/// Bytes of bodies at a time. What is parsed takes up to eighty times as much.
pub(crate) const BYTES: usize = 32 * 1024 * 1024;
/// One user has at most this part of each, so that nobody keeps everybody else out.
const SHARE: usize = 4;

/// Who is being answered.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    all: Load,
    /// Only users who hold something.
    users: HashMap<String, Load>,
}

#[derive(Default, Clone, Copy, PartialEq, Debug)]
struct Load {
    requests: usize,
    bytes: usize,
}

impl Load {
    fn with(self, more: Load) -> Load {
        Load { requests: self.requests + more.requests, bytes: self.bytes + more.bytes }
    }

    fn without(self, less: Load) -> Load {
        Load { requests: self.requests - less.requests, bytes: self.bytes - less.bytes }
    }

    fn fits(self, part: usize) -> bool {
        self.requests <= REQUESTS / part && self.bytes <= BYTES / part
    }
}

/// The room of one request, given back when it is dropped.
pub(crate) struct Ticket {
    gate: Gate,
    user: String,
    load: Load,
}

impl Gate {
    /// `None` when there is no room for a request with a body of up to `bytes`.
    pub(crate) fn enter(&self, user: &str, bytes: usize) -> Option<Ticket> {
        let load = Load { requests: 1, bytes };
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = held.all.with(load);
        let own = held.users.get(user).copied().unwrap_or_default().with(load);
        if !all.fits(1) || !own.fits(SHARE) {
            return None;
        }
        held.all = all;
        held.users.insert(user.to_owned(), own);
        Some(Ticket { gate: self.clone(), user: user.to_owned(), load })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.all = held.all.without(self.load);
        let left = held.users.get(&self.user).copied().unwrap_or(self.load).without(self.load);
        if left == Load::default() {
            held.users.remove(&self.user);
        } else {
            held.users.insert(self.user.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_gets_a_part_and_all_together_the_whole() {
        let gate = Gate::default();
        let fill =
            |user: &str, bytes: usize| -> Vec<Ticket> { std::iter::from_fn(|| gate.enter(user, bytes)).collect() };
        let one = fill("a", 0);
        assert_eq!(one.len(), REQUESTS / SHARE);
        let mut others: Vec<Ticket> = ["b", "c", "d"].iter().flat_map(|user| fill(user, 0)).collect();
        assert_eq!(one.len() + others.len(), REQUESTS);
        assert!(gate.enter("e", 0).is_none());
        drop(others.pop());
        assert!(gate.enter("e", 0).is_some());
        drop((one, others));
        const LARGE: usize = 3 * 1024 * 1024;
        assert_eq!(fill("a", LARGE).len(), BYTES / SHARE / LARGE);
        let held = gate.0.lock().unwrap();
        assert_eq!((held.all, held.users.len()), (Load::default(), 0), "all is given back");
    }
}
