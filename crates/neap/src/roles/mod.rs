//! The two roles that stand in for Knative's own images, told what to do by those images' environment and nothing else.

mod activator;
mod encrypted;
mod queue;

pub use activator::main as activator;
pub use queue::main as queue;
