//! The engine from the outside: a client on a pipe, an origin on loopback, the engine between them, all on one
//! thread.

#![expect(clippy::large_futures, reason = "a test runs once")]

mod answers;
mod harness;
mod hostile;
mod http1;
mod http2;
mod lifetime;
mod limits;
mod malformed;
mod malformed_h2;
mod memory;
mod retry;
mod whole;
