//! `neap up`: the whole platform in one process.
//!
//! Config → build → run: flags and environment become a [`Config`]; `build` opens the data directory, binds every
//! socket and puts the parts together; `run` serves until a signal, then drains. Nothing is decided here.

mod api;
mod bootstrap;
mod certificates;
mod config;
mod data_dir;
mod demo;
mod endpoints;
mod exec;
mod logs;
pub(crate) mod metrics;
mod platform;
mod ports;
mod pulls;
mod shipping;
mod top;

use std::collections::BTreeMap;

use crate::args;
use crate::process::{self, Failure, Signals, Told, say};

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
    let mut platform = tokio::select! {
        started = platform::Platform::start(config) => started?,
        _ = signals.next() => return Ok(()),
    };
    platform.banner().iter().for_each(say);
    if demo {
        let told = tokio::select! {
            deployed = demo::deploy(&platform) => deployed,
            signal = signals.next() => return end(platform, signal, &mut signals, Ok(())).await,
        };
        // Without its sample the platform is still one.
        say(told.unwrap_or_else(|error| process::chain(&error)));
    }
    say(platform.ready_line());
    let (signal, result) = tokio::select! {
        signal = signals.next() => (signal, Ok(())),
        fault = platform.failed() => (Told::Terminate, Err(fault)),
    };
    end(platform, signal, &mut signals, result).await
}

/// Ends in order; a second signal cuts the requests in flight.
async fn end(
    platform: platform::Platform,
    signal: Told,
    signals: &mut Signals,
    result: Result<(), Error>,
) -> Result<(), Error> {
    let ending = match signal {
        Told::Interrupt | Told::HangUp => platform::Ending::Whole,
        // A service manager restarts us: what runs goes on running.
        Told::Terminate => platform::Ending::LeavePods,
    };
    platform.stop(ending, signals.any()).await;
    result
}
