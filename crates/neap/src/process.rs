//! What every role of the binary does first: messages to the log, threads, signals; and how it says why it failed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
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

/// The signals that end a role.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where it was to be ignored from the start, as `nohup` has it.
    hang_up: Option<Signal>,
}

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Ctrl-C.
    Interrupt,
    /// What a service manager sends.
    Terminate,
    /// The terminal is gone.
    HangUp,
}

impl Signals {
    /// # Errors
    /// The system refuses to deliver them.
    pub fn catch() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hang_up = (!ignores_hang_up(&status)).then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hang_up })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Told {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.terminate.recv() => Told::Terminate,
            _ = hang_up => Told::HangUp,
        }
    }

    /// Resolves with any of them.
    pub async fn any(&mut self) {
        self.next().await;
    }
}

/// Whether the signals that are ignored, of which signal 1 is the first bit, have that of a lost terminal.
fn ignores_hang_up(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & 1 == 1)
}

/// A line for the person or script that reads standard output. Nobody needs to.
pub fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// How a process says that it was called in a wrong way.
const USAGE: u8 = 2;

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

/// What of the environment is text. Whoever starts us may have put anything there, and nothing we read is anything else.
pub fn texts<T: FromIterator<(String, String)>>(vars: impl Iterator<Item = (OsString, OsString)>) -> T {
    vars.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// One provider of cryptography for every connection this process makes.
///
/// # Errors
/// There is another one already.
pub fn cryptography() -> Result<(), String> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed.map_err(|_| "another provider of cryptography is installed in this process".to_owned())
}

/// 0 done, 1 failed, 2 wrong usage; most of the latter is answered by the argument parser.
pub fn finish(result: Result<(), impl Into<Failure>>) -> ExitCode {
    let Err(failure) = result.map_err(Into::into) else { return ExitCode::SUCCESS };
    let (message, code) = match failure {
        Failure::Failed(message) => (message, ExitCode::FAILURE),
        Failure::Usage(message) => (message, ExitCode::from(USAGE)),
    };
    // Nobody may be listening any more.
    drop(writeln!(io::stderr(), "neap: {message}"));
    code
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_terminal_that_goes_may_be_ignored() {
        let check = |bits: &str, want: bool| {
            let status =
                format!("Name:\tneap\nSigBlk:\t0000000000000001\nSigIgn:\t{bits}\nSigCgt:\t0000000000000001\n");
            assert_eq!(ignores_hang_up(&status), want, "{bits}");
        };
        check("0000000000001001", true);
        check("0000000000001000", false);
        check("?", false);
        assert!(!ignores_hang_up(""));
    }

    #[test]
    fn what_is_no_text_is_left_out() {
        let latin = OsString::from_vec(vec![b'\xe4']);
        let vars = [("A".into(), "1".into()), ("B".into(), latin.clone()), (latin, "2".into())];
        assert_eq!(texts::<Vec<_>>(vars.into_iter()), [("A".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        assert_eq!(finish(Ok::<(), String>(())), ExitCode::SUCCESS);
        assert_eq!(finish(Err("x".to_owned())), ExitCode::FAILURE);
        assert_eq!(finish(Err(Failure::Usage("x".into()))), ExitCode::from(2));
    }
}
