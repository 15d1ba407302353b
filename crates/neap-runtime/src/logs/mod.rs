//! Container logs: lines with time and stream in files that turn over at a size, kept for a while after the pod.
//!
//! `write` runs in the keeper of a container, `read` in the runtime; they share only the file format, which is the
//! one that Kubernetes' log tools know: `2026-01-02T03:04:05.000000006Z stdout F the line`.

pub(crate) mod read;
pub(crate) mod write;

use std::path::{Path, PathBuf};

/// A file turns over when it reaches this (Kubernetes' `containerLogMaxSize`).
pub(crate) const MAX_BYTES: u64 = 10 * 1024 * 1024;
/// Files per run of a container, the newest included (Kubernetes' `containerLogMaxFiles`).
pub(crate) const MAX_FILES: u32 = 5;
/// Longest stretch of a line in one record; longer lines are cut into `P` records and a last `F` one.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// `PATH` for 0, `PATH.N` for older ones.
pub(crate) fn numbered(path: &Path, age: u32) -> PathBuf {
    match age {
        0 => path.to_owned(),
        age => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{age}"));
            PathBuf::from(name)
        }
    }
}
