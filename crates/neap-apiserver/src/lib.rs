//! The Kubernetes HTTP contract for whatever kinds are registered.
pub mod openapi;
pub mod patch;
pub mod schema;
