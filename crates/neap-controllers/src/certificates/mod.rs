//! Who makes certificates of our own class: the platform's local authority, and authorities outside that speak ACME.
//!
//! The rules are `neap_logic::certificates` and `neap_logic::plan::certificate`. Here keys are made, authorities asked, and what
//! has to outlive the process is written into Secrets before it is needed: the local authority, accounts, and orders with
//! their keys.

mod account;
mod authority;
mod desk;
mod office;
mod order;
mod read;
mod record;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError};
pub(crate) use desk::{Ask, Desk, pair};
pub(crate) use read::held;
pub(crate) use record::certificate_of;
