//! Which instance may take a request, how many at once, and who waits.
//!
//! [`Throttle`] is a plain structure that the data plane keeps per Revision, behind its own lock; every call is short
//! and deterministic. It must never wait, read a clock or draw a random number: waiters are values the caller hands
//! over and gets back when it is their turn, and deadlines are the caller's, who then cancels.

mod breaker;
mod capacity;
mod pick;
mod subset;
#[cfg(test)]
mod tests;

pub use breaker::{Acquired, Grant, Throttle, Ticket, Woken};
pub use capacity::{Capacity, cluster_ip_capacity};
pub use pick::Policy;
pub use subset::subset;

/// How many requests may wait for one Revision at an activator or gateway (E1.4). Beyond them a request is refused
/// with 503: at some kilobytes each, this bounds the memory one Revision can take.
pub const ACTIVATOR_QUEUE_DEPTH: usize = 10_000;

/// How many requests may wait in front of a single instance, as a multiple of its container concurrency (E2.3).
pub const INSTANCE_QUEUE_FACTOR: usize = 10;
