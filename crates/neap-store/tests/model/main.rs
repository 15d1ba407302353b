//! The store against the plainest model there is: a copy of the whole map per revision and a list of all
//! events. Random operations from a seed; a failure names its seed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod runner;

use runner::{Backing, Runner};

#[test]
fn memory_store_equals_its_model() {
    for seed in 0..40 {
        Runner::new(seed, Backing::Memory).run(1_000);
    }
}

#[test]
fn file_store_equals_its_model_across_restarts() {
    for seed in 0..6 {
        Runner::new(seed, Backing::file()).run(400);
    }
}

/// The same for longer, for whoever changed the index: `cargo test -p neap-store -- --ignored long`.
#[test]
#[ignore = "takes minutes"]
fn long_model_run() {
    for seed in 1_000..2_000 {
        Runner::new(seed, Backing::Memory).run(2_000);
    }
    for seed in 1_000..1_100 {
        Runner::new(seed, Backing::file()).run(1_000);
    }
}
