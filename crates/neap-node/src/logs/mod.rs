//! Sends what containers say to where people look for it: an OTLP collector, Loki, or files. It reads the logs that the
//! runtime keeps, and the files that containers write into a volume of theirs; it is not told what the pods are for.
//!
//! Promises: each line that is still kept arrives at least once, in the order of its log; another run of the platform
//! goes on where the last one was; an endpoint that is down costs a batch of memory and no more; what cannot be sent is
//! counted and said. It never holds a container up, and never writes to its logs.

mod answer;
mod batch;
mod checkpoint;
mod files;
mod loki;
mod metrics;
mod otlp;
mod pace;
mod reading;
mod record;
mod ship;
mod sink;
mod tail;

use std::time::Duration;

pub use metrics::Metrics;
pub use ship::Shipper;

/// What is sent where. Headers may be secret: it is never shown whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Nowhere when `None`.
    pub target: Option<Target>,
    pub headers: Vec<(String, String)>,
    /// Authorities (PEM) to trust beside the machine's.
    pub ca: String,
    pub gzip: bool,
    /// Bytes of lines sent at once.
    pub batch_size: usize,
    /// How long a line may wait for others.
    pub batch_age: Duration,
    /// How long the endpoint may take.
    pub timeout: Duration,
    /// How long after a failure it is tried again; doubled from try to try up to a minute.
    pub retry: Duration,
    /// Ask lines that are JSON for their severity.
    pub json_severity: bool,
    /// The volume whose files are collected.
    pub volume: Option<VolumeName>,
    pub naming: Naming,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Files(FileTarget),
    Otlp { url: String, json: bool },
    Loki { url: String, structured_metadata: bool },
}

/// JSON lines at a path in which `{namespace}`, `{service}`, `{configuration}`, `{revision}`, `{pod}`, `{container}`
/// stand for a line's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTarget {
    pub path: String,
    /// Bytes at which a file turns over.
    pub max_size: u64,
    /// The newest file included.
    pub max_files: u32,
    pub max_age: Option<Duration>,
}

/// A volume that each container has a part of, `NAMESPACE_POD_CONTAINER`, and where that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeName {
    pub name: String,
    pub path: String,
}

/// Labels of a pod that say what it is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// The first that the pod has.
    pub service: Vec<String>,
    pub configuration: Option<String>,
    pub revision: Option<String>,
    /// Of this machine.
    pub node: String,
    pub host: String,
}

#[cfg(test)]
mod tests;
