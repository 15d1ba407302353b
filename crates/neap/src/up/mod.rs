//! `neap up`: the whole platform in one process.
//!
//! Config → build → run: flags and environment become a [`Config`]; `build` opens the data directory, binds every
//! socket and puts the parts together; `run` serves until a signal, then drains. Nothing is decided here.

mod api;
mod bootstrap;
mod config;
mod data_dir;
mod demo;
mod endpoints;
mod exec;
mod logs;
pub(crate) mod metrics;
mod platform;
mod ports;
mod top;

use std::collections::BTreeMap;

use crate::args;
use crate::process::{self, Failure, Signals};

pub use config::Config;
pub use platform::Error;

/// Which messages are shown when `NEAP_LOG` says nothing.
const LOG_DEFAULT: &str = "warn";

/// Runs until a signal.
///
/// # Errors
/// One line that says what to do.
pub fn main(flags: args::Up, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    process::log(env, LOG_DEFAULT)?;
    let config = Config::resolve(flags, env).map_err(|e| Failure::Usage(e.to_string()))?;
    // The gateway has threads of its own.
    process::threads()?.block_on(serve(config)).map_err(|e| process::chain(&e).into())
}

async fn serve(config: Config) -> Result<(), Error> {
    let mut signals = Signals::catch().map_err(Error::Signals)?;
    let demo = config.demo;
    let mut platform = platform::Platform::start(config).await?;
    for line in platform.banner() {
        println!("{line}");
    }
    if demo {
        println!("{}", demo::deploy(&platform).await?);
    }
    println!("{}", platform.ready_line());
    let (ending, result) = tokio::select! {
        _ = signals.interrupt.recv() => (platform::Ending::Whole, Ok(())),
        // A service manager restarts us: what runs goes on running.
        _ = signals.terminate.recv() => (platform::Ending::LeavePods, Ok(())),
        fault = platform.failed() => (platform::Ending::LeavePods, Err(fault)),
    };
    platform.stop(ending).await;
    result
}
