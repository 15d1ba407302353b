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
mod metrics;
mod platform;
mod ports;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args;

pub use config::Config;
pub use platform::Error;

/// Which messages are shown when `NEAP_LOG` says nothing.
const LOG_DEFAULT: &str = "warn";

/// Runs until a signal.
///
/// # Errors
/// One line that says what to do.
pub fn main(flags: args::Up, env: &BTreeMap<String, String>) -> Result<(), String> {
    let filter = env.get("NEAP_LOG").map_or(LOG_DEFAULT, String::as_str);
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("NEAP_LOG={filter} is no log filter: {e}"))?;
    let color = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(std::io::stderr).init();
    let config = Config::resolve(flags, env).map_err(|e| e.to_string())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The gateway has threads of its own; what remains is many small tasks.
        .worker_threads(threads.clamp(2, 8))
        .thread_name("neap")
        .enable_all()
        .build()
        .map_err(|e| format!("the machine gives no threads: {e}"))?;
    runtime.block_on(serve(config)).map_err(|e| chain(&e))
}

async fn serve(config: Config) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
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
        _ = interrupt.recv() => (platform::Ending::Whole, Ok(())),
        // A service manager restarts us: what runs goes on running.
        _ = terminate.recv() => (platform::Ending::LeavePods, Ok(())),
        fault = platform.failed() => (platform::Ending::LeavePods, Err(fault)),
    };
    platform.stop(ending).await;
    result
}

/// An error with all its causes, in one line.
fn chain(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        line = format!("{line}: {next}");
        cause = next.source();
    }
    line
}
