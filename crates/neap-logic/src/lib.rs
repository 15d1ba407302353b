//! The rules of Neap, as synchronous functions from values to values.
//!
//! Everything a controller, the gateway or the admission door has to decide is decided here. This crate
//! must never wait, read a clock, draw a random number, look at the environment, log, or speak HTTP:
//! whatever a rule needs of the world is an argument, whatever it wants of the world is its result.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod admit;
pub mod certificates;
pub mod check;
pub mod conditions;
pub mod config;
pub mod convert;
pub mod gc;
pub mod names;
pub mod plan;
pub mod routing;
pub mod scale;
pub mod throttle;
pub mod traffic;
