//! What every role of the binary does first: messages to the log, threads, signals; and how it says why it failed.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::Arc;

use jiff::Timestamp;
use neap_logic::config::Settings;
use neap_runtime::image::RegistrySettings;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Sends messages to standard error; `NEAP_LOG` says which, and `shown` when it says nothing.
///
/// # Errors
/// `NEAP_LOG` is no filter.
pub fn log(env: &BTreeMap<String, String>, shown: &str) -> Result<(), String> {
    let filter = env.get("NEAP_LOG").map_or(shown, String::as_str);
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("NEAP_LOG={filter} is no log filter: {e}"))?;
    let color = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(io::stderr).init();
    Ok(())
}

/// Threads for many small tasks.
///
/// # Errors
/// The machine gives none.
pub fn threads() -> Result<tokio::runtime::Runtime, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 8))
        .thread_name("neap")
        .enable_all()
        .build()
        .map_err(|e| format!("the machine gives no threads: {e}"))
}

/// The two signals that end a role.
pub struct Signals {
    /// Ctrl-C.
    pub interrupt: Signal,
    /// What a service manager sends.
    pub terminate: Signal,
}

impl Signals {
    /// # Errors
    /// The system refuses to deliver them.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Resolves with either.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Why a process ends otherwise than it should; each is one line that says what to do.
#[derive(Debug)]
pub enum Failure {
    /// It was called in a wrong way: another call may do.
    Usage(String),
    /// It could not be done.
    Failed(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        // Some libraries repeat their cause.
        if !line.contains(&words) {
            line = format!("{line}: {words}");
        }
        cause = next.source();
    }
    line
}

/// The clock that the roof hands to everyone else.
#[expect(clippy::disallowed_methods, reason = "the roof hands the clock to everyone else")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Tells `images` which registries have mirrors or speak plain HTTP, now and whenever the settings change, for ever.
pub async fn follow_registries(mut settings: watch::Receiver<Arc<Settings>>, images: impl Fn(RegistrySettings)) {
    loop {
        let named = {
            let neap = &settings.borrow_and_update().neap;
            RegistrySettings { insecure: neap.insecure_registries.clone(), mirrors: neap.registry_mirrors.clone() }
        };
        images(named);
        if settings.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
