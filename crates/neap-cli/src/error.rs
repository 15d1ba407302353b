//! What can go wrong for a user, each with the next step.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no platform found: start one with `neap up`, or name a kubeconfig with --kubeconfig")]
    NoPlatform,
    #[error("the kubeconfig {path} cannot be used: mend it, or name another with --kubeconfig")]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error("the platform at {address} does not answer: is `neap up` running?")]
    Unreachable { address: String, source: Box<kube::Error> },
    #[error("{message}")]
    Refused { message: String },
    #[error("the request to the platform failed")]
    Client(#[source] Box<kube::Error>),
    #[error("{kind} {name:?} does not exist in namespace {namespace:?}; `neap get` lists what does")]
    NotFound { kind: &'static str, name: String, namespace: String },
    #[error("service {name:?} is not ready: {why}")]
    Failed { name: String, why: String },
    #[error(
        "service {name:?} was not ready within {seconds} s: {why}; `neap get` shows how it goes on, --wait-timeout gives it longer"
    )]
    Late { name: String, seconds: u64, why: String },
    #[error("{0}")]
    Usage(String),
    #[error("the registry's address is not known: name it with --registry HOST:PORT")]
    NoRegistry,
    #[error("the registry at {address} {what}")]
    Registry { address: String, what: String },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the log broke off; `neap logs` again shows it from the beginning")]
    Log(#[source] io::Error),
    /// Told apart for whoever looks elsewhere then.
    #[error("there is no log")]
    NoLog,
    #[error("service {name:?} was deleted while it was waited for")]
    Deleted { name: String },
    #[error("{path} is not a service in YAML or JSON: {why}")]
    Manifest { path: PathBuf, why: String },
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

impl Error {
    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }

    /// Whoever closed the pipe has seen enough.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { message: status.message.clone() },
            other => Self::Client(Box::new(other)),
        }
    }
}

/// The whole chain in one line.
pub fn report(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = next.source();
    }
    line
}
