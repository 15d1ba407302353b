//! Certificates: who issues one, when it is renewed, what is next in an order, what a refusal means and how long it lasts.
//!
//! No key is made here, nothing is signed and nobody asked: those who do are told what to do, and say what came of it.

pub mod fault;
pub mod issuer;
pub mod order;
pub mod renewal;

pub use fault::{Fault, Kind};
pub use issuer::{Issuer, issuer};
