//! Where a request goes: Ingress objects compiled into an immutable table, and the lookup on it.
//!
//! [`Index`] is fed with objects and keeps one compiled part per Ingress; [`Table`] is the snapshot it publishes.
//! A lookup borrows from the table and allocates nothing. This module must never talk to a backend, know whether
//! one is up, or draw a random number: the choice between splits is made with a number the caller brings.

mod compile;
pub mod extras;
mod hash;
mod host;
mod index;
mod rule;
mod table;
#[cfg(test)]
mod tests;

pub use compile::{CompiledIngress, compile};
pub use extras::Extras;
pub use hash::network_hash;
pub use host::{HOST_LIMIT, HostBuf, HostMap, host_of};
pub use index::{Change, Conflict, Index};
pub use rule::{Backend, Header, HostRoutes, IngressKey, PathRule, Port, RevisionKey, SecretRef, Split};
pub use table::{Door, Found, Lookup, Table};
