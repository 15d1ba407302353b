//! The words of Neap: Knative's and Neap's API types, the names users and tools see, and the description of every
//! kind the platform serves. Data only: no rule, no clock, no socket lives here.

pub mod acme;
pub mod autoscaling;
pub mod builtin;
pub mod caching;
pub mod condition;
pub mod crd;
pub mod keys;
pub mod networking;
mod old;
mod schema;
pub mod serving;
pub mod statistics;
mod status;

pub use condition::{Condition, ConditionStatus};
pub use crd::crds;
