//! The engine from the outside: a client on a pipe, an origin on loopback, the engine between them, all on one
//! thread.

mod harness;
mod http1;
mod http2;
mod lifetime;
mod limits;
mod retry;
mod whole;
