//! The data plane: what stands between a client and the application.
//!
//! Watches feed plain indexes ([`DataPlane`]); the indexes publish immutable snapshots; a request looks up one
//! snapshot from start to end. A [`Gate`](gate) per Revision holds what is live: the instances, what each of them is
//! doing, and who waits. The [`Gateway`] is the HTTP engine with a handler on top that routes, waits for an
//! instance, keeps its limits, and counts.
//!
//! Only [`watch`] may name a Kubernetes client. This crate must never know the store, the API server or the
//! controllers: what they need of it is a value they can watch ([`IngressStatus`], [`Stat`], wake-ups).

#![forbid(unsafe_code)]

pub mod activator;
mod admin;
mod certificates;
mod config;
mod drain;
mod extras;
mod front;
mod gate;
mod gateway;
mod index;
mod plane;
mod probe;
pub mod queue;
mod request;
mod snapshot;
mod stats;
mod status;
mod turns;
mod visit;
pub mod watch;

pub use admin::Overview;
pub use config::{Config, DEFAULT_CLUSTER_DOMAIN, GatewayListener};
pub use gateway::Gateway;
pub use neap_logic::routing::{Door, IngressKey, RevisionKey};
pub use plane::{DataPlane, Feed, Wakes};
pub use stats::Stat;
pub use status::{IngressState, IngressStatus};
