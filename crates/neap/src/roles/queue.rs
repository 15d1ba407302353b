//! `neap queue`: the sidecar of a pod on Kubernetes, in the place of Knative's queue-proxy. One thread, one runtime.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use neap_dataplane::queue::{CERTIFICATES, Queue, RequestLog, Settings};
use tokio_util::sync::CancellationToken;

use crate::process::{self, Signals};

/// Lines of request logs that may be on their way. Whoever reads our output slower than that misses some, and is told;
/// the alternative would be that requests wait for a log.
const LINES: usize = 4096;

/// Runs until the pod ends.
///
/// # Errors
/// One line that says what to do.
pub fn main(env: &BTreeMap<String, String>) -> Result<(), String> {
    let settings = Settings::from_env(env).map_err(|e| e.to_string())?;
    process::log(env, filter(&settings.log_level))?;
    let logs = settings.request_log.is_some();
    let queue = Queue::new(settings, Path::new(CERTIFICATES)).map_err(|e| process::chain(&e))?;
    let queue = if logs { queue.with_request_log(Arc::new(Lines::to_stdout()?)) } else { queue };
    let sockets = queue.bind().map_err(|e| process::chain(&e))?;
    let terminate = CancellationToken::new();
    let told = terminate.clone();
    let signals = async move {
        match Signals::catch() {
            Ok(mut signals) => signals.any().await,
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "signals cannot be handled"),
        }
        told.cancel();
    };
    queue.run(sockets, terminate, signals).map_err(|e| format!("the machine gives no runtime: {e}"))
}

/// Levels of zap, which configures upstream's images, as ours.
fn filter(level: &str) -> &str {
    match level {
        "debug" => "debug",
        "warn" => "warn",
        "error" | "dpanic" | "panic" | "fatal" => "error",
        _ => "info",
    }
}

/// Request logs on standard output, written by a thread of their own.
struct Lines(SyncSender<String>);

impl Lines {
    fn to_stdout() -> Result<Self, String> {
        let (sender, receiver) = sync_channel::<String>(LINES);
        let write = move || {
            let mut out = std::io::stdout();
            for line in receiver {
                if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("neap-log".into()).spawn(write);
        thread.map(|_| Self(sender)).map_err(|e| format!("the machine gives no thread for request logs: {e}"))
    }
}

impl RequestLog for Lines {
    fn line(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.0.try_send(line) {
            tracing::warn!("a line of the request log was dropped: its reader is too slow");
        }
    }
}
