//! Container logs: lines with time and stream in files that turn over at a size, kept for a while after the pod.
//!
//! `write` runs in the keeper of a container, `read` in the runtime; they share only the file format, which is the
//! one that Kubernetes' log tools know: `2026-01-02T03:04:05.000000006Z stdout F the line`.

pub(crate) mod read;
pub mod shelf;
pub(crate) mod write;

use std::path::{Path, PathBuf};

/// A file turns over when it reaches this (Kubernetes' `containerLogMaxSize`).
pub(crate) const MAX_BYTES: u64 = 10 * 1024 * 1024;
/// Files per run of a container, the newest included (Kubernetes' `containerLogMaxFiles`).
pub(crate) const MAX_FILES: u32 = 5;
/// Files per run that anybody may wish for.
pub(crate) const MOST_FILES: u32 = 100;
/// Longest stretch of a line in one record; longer lines are cut into `P` records and a last `F` one.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// One record of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// As it is written, RFC 3339 with nine digits.
    pub time: &'a [u8],
    /// `stdout` or `stderr`.
    pub stream: &'a [u8],
    /// The line ends here; otherwise the next record of this stream goes on with it.
    pub whole: bool,
    pub text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads `TIME STREAM TAG TEXT`, with or without its end of line.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { time, stream, whole: tag == b"F", text: parts.next().unwrap_or_default() })
    }
}

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

/// Pods whose logs are kept, the living among them. The oldest go first.
const MAX_PODS: usize = 500;
/// Bytes that all logs together may take before the oldest dead pods' are removed.
const MAX_TOTAL_BYTES: u64 = 1024 * 1024 * 1024;

/// Who would miss the logs of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Lives,
    /// Somebody who has not read them yet.
    Unread,
    None,
}

/// Removes the logs of the longest unwritten dead pods until so many pods and bytes are left; those that are unread
/// only beyond twice that. `claim` is told a pod's UID.
fn prune_to(logs: &Path, (max_pods, max_bytes): (usize, u64), claim: impl Fn(&str) -> Claim) {
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let mut pods: Vec<_> = entries.map(|entry| (weigh(&entry.path()), entry.path())).collect();
    pods.sort_by_key(|((_, written), _)| std::cmp::Reverse(*written));
    let mut total = 0;
    for (at, ((bytes, _), path)) in pods.into_iter().enumerate() {
        total += bytes;
        let beyond = |times: usize| at >= times * max_pods || total > times as u64 * max_bytes;
        if at == 0 || !beyond(1) {
            continue;
        }
        let uid = path.file_name().and_then(|n| n.to_str()?.rsplit('_').next());
        let stays = match uid.map_or(Claim::None, &claim) {
            Claim::Lives => true,
            Claim::Unread => !beyond(2),
            Claim::None => false,
        };
        if !stays {
            // A volume that a container filled may lie in it, nested without end.
            let _ = crate::trees::remove(&path);
        }
    }
}

/// Bytes of a pod's directory on the disk, and when a log in it was last written. What containers left in a volume says of
/// itself what they like: neither its lengths count nor its times.
fn weigh(pod: &Path) -> (u64, Option<std::time::SystemTime>) {
    let bytes = crate::trees::weigh(pod, &mut shelf::WEIGHED.clone());
    let own = |path: &Path| std::fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok();
    let inside = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = inside(pod).filter(|path| path.file_name().is_none_or(|name| name != shelf::KEPT));
    let times = logs.flat_map(|path| inside(&path).chain([path.clone()]).collect::<Vec<_>>());
    (bytes, times.chain([pod.to_owned()]).filter_map(|path| own(&path)).max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_logs_go_first() {
        // On the disk a file takes whole blocks, and a directory may take one.
        const FILE: u64 = 1 << 20;
        let check = |max_pods, max_bytes, claims: &[(&str, Claim)], hole: bool, expected: &[&str]| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            for (at, name) in ["a", "b", "c"].iter().enumerate() {
                let pod = dir.path().join(name).join("user");
                std::fs::create_dir_all(&pod).expect("made");
                std::fs::write(pod.join("0.log"), vec![1; FILE as usize]).expect("written");
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 + at as u64);
                if hole && *name == "b" {
                    // Of now, and a terabyte long.
                    std::fs::create_dir(dir.path().join("b/.volume")).expect("made");
                    let file = std::fs::File::create(dir.path().join("b/.volume/lastlog")).expect("made");
                    file.set_len(1 << 40).expect("longer");
                }
                for path in [pod.join("0.log"), pod.clone(), dir.path().join(name)] {
                    std::fs::File::open(path).and_then(|f| f.set_modified(time)).expect("dated");
                }
            }
            let claim = |uid: &str| claims.iter().find(|(who, _)| *who == uid).map_or(Claim::None, |(_, claim)| *claim);
            prune_to(dir.path(), (max_pods, max_bytes), claim);
            let mut left: Vec<_> = std::fs::read_dir(dir.path())
                .expect("there")
                .flatten()
                .map(|e| e.file_name().into_string().expect("text"))
                .collect();
            left.sort();
            assert_eq!(left, expected);
        };
        let (two_and_a_half, half) = (FILE * 5 / 2, FILE / 2);
        let unread = [("a", Claim::Unread), ("b", Claim::Unread)];
        check(9, 4 * FILE, &[], false, &["a", "b", "c"]);
        check(2, 4 * FILE, &[], false, &["b", "c"]);
        check(9, two_and_a_half, &[], false, &["b", "c"]);
        check(9, half, &[], false, &["c"]);
        check(9, half, &[("a", Claim::Lives)], false, &["a", "c"]);
        check(2, 4 * FILE, &[("a", Claim::Unread)], false, &["a", "b", "c"]);
        check(1, 4 * FILE, &unread, false, &["b", "c"]);
        check(9, FILE * 5 / 4, &unread, false, &["b", "c"]);
        // A hole takes no room, and no pod's logs are newer for what lies in its volume.
        check(9, 4 * FILE, &[], true, &["a", "b", "c"]);
        check(1, 4 * FILE, &[], true, &["c"]);
    }
}
