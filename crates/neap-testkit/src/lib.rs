//! What tests of the shells stand on: the real API server on a memory store, as a `kube::Client`. No socket, no thread:
//! a paused clock stays in the test's hands.

mod api;
mod wait;

pub use api::{Api, at};
pub use wait::eventually;
