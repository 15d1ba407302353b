//! Everything that can go wrong at the store's boundary. Values, not strings: the API server maps
//! each variant to a status of its own. An error never repeats its source in its own text.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::Revision;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A condition of the transaction did not hold; nothing was changed.
    #[error("key \"{}\" is not in the expected state: {}; read it again and retry", .key.escape_ascii(), at(*.current))]
    Conflict {
        /// The first key whose condition failed.
        key: Bytes,
        /// The revision that last changed the key, or `None` if it does not exist.
        current: Option<Revision>,
    },
    /// A transaction names one key twice, so its outcome would depend on an order.
    #[error("key \"{}\" occurs twice in one transaction; merge the two steps", .key.escape_ascii())]
    DuplicateKey {
        /// The key.
        key: Bytes,
    },
    /// A key, a value or a transaction is over its limit.
    #[error("{what} is too large: {size}, and the limit is {limit}")]
    TooLarge {
        /// What was measured, in words and with its unit.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The largest size taken.
        limit: usize,
    },
    /// The revision asked for lies before the history that is kept.
    #[error("revision {requested} is no longer kept, history starts at {compacted}; list again")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can be asked for.
        compacted: Revision,
    },
    /// The revision asked for does not exist yet.
    #[error("revision {requested} does not exist yet, the newest is {current}; list again")]
    Future {
        /// The revision asked for.
        requested: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The disk is too far behind to take another write.
    #[error("the disk does not keep up: {waiting} changes ({bytes} bytes) wait to be written; retry shortly")]
    Busy {
        /// Keys waiting to be written.
        waiting: usize,
        /// Their size.
        bytes: usize,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Writing failed; see the crate's header for what still works and what heals by itself.
    #[error("{} cannot be written, changes are refused: {}", .path.display(), advice(*.heals))]
    Broken {
        /// The store's file.
        path: PathBuf,
        /// Whether the store tries again by itself.
        heals: bool,
        /// What the disk said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Another process, or another `Store` of this one, has the file open.
    #[error("{} is in use by another process; stop that one first, or choose another data directory", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be opened or created.
    #[error("cannot open {}; check the path and its permissions", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The file is something else than a store.
    #[error("{} is not a store file and was left as it is; move it away or choose another data directory", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is a damaged store.
    #[error("{} is damaged and was left as it is ({detail}); restore it from a backup, or move it away to start empty", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file was written by a version with another format.
    #[error("{} has format {found}, this version reads format {supported}; use the version that wrote it", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format byte found.
        found: u8,
        /// The format byte this version reads and writes.
        supported: u8,
    },
}

fn at(current: Option<Revision>) -> String {
    match current {
        Some(revision) => format!("its revision is {revision}"),
        None => "it does not exist".to_owned(),
    }
}

fn advice(heals: bool) -> &'static str {
    if heals {
        "free some disk space, writing resumes by itself within seconds"
    } else {
        "check the disk, then restart"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each variant as a user reads it, and the cause, if it has one, only in its source.
    #[test]
    fn each_error_says_what_happened_and_what_to_do() {
        let path = PathBuf::from("/data/store");
        let key = Bytes::from_static(b"/pods/a\xff");
        let cause = || Arc::new(std::io::Error::other("the cause"));
        let broken = |heals| Error::Broken { path: path.clone(), heals, source: cause() };
        let table = [
            (
                Error::Conflict { key: key.clone(), current: Some(3) },
                "key \"/pods/a\\xff\" is not in the expected state: its revision is 3; read it again and retry",
            ),
            (
                Error::Conflict { key: key.clone(), current: None },
                "key \"/pods/a\\xff\" is not in the expected state: it does not exist; read it again and retry",
            ),
            (Error::DuplicateKey { key }, "key \"/pods/a\\xff\" occurs twice in one transaction; merge the two steps"),
            (
                Error::TooLarge { what: "a key (bytes)", size: 5, limit: 4 },
                "a key (bytes) is too large: 5, and the limit is 4",
            ),
            (
                Error::Compacted { requested: 1, compacted: 2 },
                "revision 1 is no longer kept, history starts at 2; list again",
            ),
            (Error::Future { requested: 2, current: 1 }, "revision 2 does not exist yet, the newest is 1; list again"),
            (
                Error::Busy { waiting: 2, bytes: 30 },
                "the disk does not keep up: 2 changes (30 bytes) wait to be written; retry shortly",
            ),
            (Error::Closed, "the store is closed"),
            (
                broken(true),
                "/data/store cannot be written, changes are refused: free some disk space, writing resumes by itself within seconds",
            ),
            (broken(false), "/data/store cannot be written, changes are refused: check the disk, then restart"),
            (
                Error::InUse { path: path.clone() },
                "/data/store is in use by another process; stop that one first, or choose another data directory",
            ),
            (
                Error::Open { path: path.clone(), source: cause() },
                "cannot open /data/store; check the path and its permissions",
            ),
            (
                Error::Foreign { path: path.clone() },
                "/data/store is not a store file and was left as it is; move it away or choose another data directory",
            ),
            (
                Error::Corrupt { path: path.clone(), detail: "it is empty".to_owned() },
                "/data/store is damaged and was left as it is (it is empty); restore it from a backup, or move it away to start empty",
            ),
            (
                Error::Format { path, found: 2, supported: 1 },
                "/data/store has format 2, this version reads format 1; use the version that wrote it",
            ),
        ];
        for (error, expected) in table {
            assert_eq!(error.to_string(), expected);
        }
    }
}
