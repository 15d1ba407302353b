//! Thin shells around the rules: each kind's controller observes through caches, asks `neap-logic` for a
//! plan, carries it out and reports. Nothing is decided here, and nothing here knows where the API server
//! runs.

mod caches;
mod certificates;
mod digests;
mod events;
mod index;
mod kinds;
mod leader;
mod metrics;
mod ports;
mod queue;
mod reconcilers;
mod run;
mod settings;
mod shell;
#[cfg(test)]
mod tests;

pub mod autoscaler;

pub use autoscaler::Clock;
pub use certificates::{Authority, AuthorityError};
pub use index::Key;
pub use leader::Election;
pub use metrics::Metrics;
pub use ports::{Credentials, DigestResolver, GatewayStatus, ServedBoard};
pub use run::{Controllers, RunError};
pub use settings::SettingsFollower;
