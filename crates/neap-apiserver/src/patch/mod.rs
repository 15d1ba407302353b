//! The four ways a client changes an object without sending it whole, and the book-keeping of who set
//! which field. Pure functions over JSON values and compiled schemas: no clock (the caller brings the
//! time), no I/O, no knowledge of a concrete kind.

mod apply;
mod error;
mod fieldset;
mod json;
mod managers;
mod strategic;
#[cfg(test)]
mod tests;
mod typed;

pub use apply::{ApplyError, Conflict, apply};
pub use error::PatchError;
pub use json::{json_patch, merge_patch};
pub use managers::{Manager, Operation, track_update};
pub use strategic::strategic_merge;
