//! The roof: roles and modes, wiring, settings, signals, drain. Everything that decides lives below.

mod accept;
pub mod args;
pub mod cluster;
mod parts;
pub mod process;
mod reporting;
pub mod roles;
pub mod sample;
pub mod up;
