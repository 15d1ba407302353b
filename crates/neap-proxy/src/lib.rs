//! The one HTTP engine of Neap.
//!
//! It accepts connections, speaks HTTP/1.1, h2, h2c and TLS on either side, streams in both directions,
//! pools upstream connections, bounds every wait and drains without losing a request. What is served is
//! decided by a [`Handler`]; where a request goes is decided by a [`Picker`].
//!
//! Each core has one worker: an operating-system thread with a current-thread runtime, its own connections
//! and its own upstream pool. A request lives and dies on one worker, so the warm path takes no lock.
//!
//! This crate must never know Kubernetes, revisions, or any other crate of ours.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod access;
pub mod body;
pub mod breaker;
pub mod config;
pub mod error;
pub mod forward;
pub mod handler;
pub mod headers;
pub mod metrics;
pub mod probe;
pub mod server;
#[cfg(test)]
mod tests;
mod time;
pub mod tls;
mod tunnel;
pub mod upstream;

pub use body::{Body, BodyError, Cause, OnEnd, Outcome};
pub use breaker::{Breaker, Permit, Rejected};
pub use config::{Limits, ServerConfig, UpstreamConfig};
pub use error::{Answer, Fault, ProxyError};
pub use forward::{Picked, Picker, forward};
pub use handler::{Connection, Handler, Memo, Request, Response};
pub use metrics::Metrics;
pub use server::{Listener, Running, Server, Worker};
pub use upstream::{Protocol, Target, Upstream, send_once};
