//! How far each log has been sent, so that another run of the platform goes on there: neither leaving out a line nor
//! sending everything again.
//!
//! A file is known by its inode and by how it begins: names change when logs turn over, and an inode is given to
//! another file once the first is gone.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;
/// Bytes from the beginning of a file that tell it from others: more than a time stamp.
const PRINT: usize = 64;
/// Positions that are remembered of one pod. What a container could make more of is files in a volume.
const PER_POD: usize = 400;

/// The beginning of a file: how much of it was there, and a checksum of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Print {
    length: u8,
    sum: u64,
}

impl Print {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        Self::at(file, 0, PRINT)
    }

    /// The same of what stands before an offset.
    pub(super) fn before(file: &File, offset: u64) -> io::Result<Self> {
        let length = PRINT.min(usize::try_from(offset).unwrap_or(PRINT));
        Self::at(file, offset - length as u64, length)
    }

    fn at(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        let mut bytes = [0; PRINT];
        let mut read = 0;
        while read < length {
            match file.read_at(&mut bytes[read..length], offset + read as u64)? {
                0 => break,
                n => read += n,
            }
        }
        // FNV-1a: nobody gains by a collision but their own lines' loss.
        let sum = bytes[..read]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Ok(Self { length: u8::try_from(read).unwrap_or(u8::MAX), sum })
    }

    /// Whether the file still begins so.
    pub(super) fn fits(&self, file: &File) -> bool {
        Self::at(file, 0, usize::from(self.length)).is_ok_and(|now| now == *self)
    }

    /// It says enough to tell one file from another that is not its copy.
    pub(super) fn is_telling(&self) -> bool {
        usize::from(self.length) >= PRINT / 2
    }
}

/// Up to where a log was dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) inode: u64,
    pub(super) print: Print,
    pub(super) offset: u64,
}

impl Position {
    pub(super) fn is_in(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|meta| meta.ino() == self.inode && meta.len() >= self.offset) && self.print.fits(file)
    }
}

/// Which log of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum LogKey {
    /// Standard output and error of one run.
    Run {
        container: String,
        number: u32,
    },
    File {
        container: String,
        inode: u64,
    },
}

impl LogKey {
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    fn write(&self) -> String {
        match self {
            Self::Run { container, number } => format!("{container}/{number}"),
            Self::File { container, inode } => format!("{container}//{inode}"),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (container, rest) = text.split_once('/')?;
        let container = container.to_owned();
        Some(match rest.strip_prefix('/') {
            Some(inode) => Self::File { container, inode: inode.parse().ok()? },
            None => Self::Run { container, number: rest.parse().ok()? },
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The pod has ended, and nothing of it is left to send.
    pub(super) done: bool,
    pub(super) logs: BTreeMap<LogKey, Position>,
}

/// All pods, by the names of their directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) pods: BTreeMap<String, Progress>,
}

/// The same as it is written.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    format: u32,
    pods: BTreeMap<String, StoredPod>,
}

#[derive(Default, Serialize, Deserialize)]
struct StoredPod {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    done: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    logs: BTreeMap<String, Position>,
}

impl Checkpoint {
    /// What is missing or unreadable is a beginning: everything that is still kept is sent.
    pub(super) fn read(path: &Path) -> Self {
        let read = || serde_json::from_slice::<Stored>(&fs::read(path).ok()?).ok();
        let stored = read().filter(|stored| stored.format == FORMAT).unwrap_or_default();
        let pod = |pod: StoredPod| Progress {
            done: pod.done,
            logs: pod.logs.into_iter().filter_map(|(key, at)| Some((LogKey::read(&key)?, at))).collect(),
        };
        Self { pods: stored.pods.into_iter().map(|(name, stored)| (name, pod(stored))).collect() }
    }

    /// Replaces the file in one step, on the disk.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let pod = |pod: &Progress| StoredPod {
            done: pod.done,
            logs: pod.logs.iter().map(|(key, at)| (key.write(), *at)).collect(),
        };
        let pods = self.pods.iter().map(|(name, progress)| (name.clone(), pod(progress))).collect();
        let aside = path.with_extension("new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(&Stored { format: FORMAT, pods })?)?;
        file.sync_data()?;
        fs::rename(&aside, path)
    }

    pub(super) fn is_done(&self, pod: &str) -> bool {
        self.pods.get(pod).is_some_and(|progress| progress.done)
    }

    pub(super) fn at(&self, pod: &str, key: &LogKey) -> Option<Position> {
        self.pods.get(pod)?.logs.get(key).copied()
    }

    pub(super) fn set(&mut self, pod: &str, key: &LogKey, at: Position) {
        let progress = self.pods.entry(pod.to_owned()).or_default();
        progress.logs.insert(key.clone(), at);
        while progress.logs.len() > PER_POD {
            // Of files there may be any number, of runs a few.
            let other = |known: &&LogKey| known.is_file() && *known != key;
            let Some(old) = progress.logs.keys().find(other).cloned() else { return };
            progress.logs.remove(&old);
        }
    }

    /// A log that will not be seen again.
    pub(super) fn forget(&mut self, pod: &str, key: &LogKey) {
        if let Some(progress) = self.pods.get_mut(pod) {
            progress.logs.remove(key);
        }
    }

    pub(super) fn finish(&mut self, pod: &str) {
        self.pods.insert(pod.to_owned(), Progress { done: true, logs: BTreeMap::new() });
    }

    /// Forgets pods that have no logs any more. Whether there were any.
    pub(super) fn retain(&mut self, names: &HashSet<String>) -> bool {
        let before = self.pods.len();
        self.pods.retain(|name, _| names.contains(name));
        self.pods.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_garbage_is_a_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.json");
        assert_eq!(Checkpoint::read(&path), Checkpoint::default());
        let mut checkpoint = Checkpoint::default();
        let position = Position { inode: 7, print: Print { length: 64, sum: u64::MAX }, offset: 1 << 40 };
        let run = LogKey::Run { container: "user-container".into(), number: 3 };
        let file = LogKey::File { container: "user-container".into(), inode: u64::MAX };
        checkpoint.set("n_p_u", &run, position);
        checkpoint.set("n_p_u", &file, position);
        checkpoint.finish("n_q_v");
        checkpoint.write(&path).unwrap();
        let mut again = Checkpoint::read(&path);
        assert_eq!(again, checkpoint);
        assert!(again.is_done("n_q_v") && !again.is_done("n_p_u"));
        assert_eq!((again.at("n_p_u", &run), again.at("n_q_v", &run)), (Some(position), None));
        assert!(again.retain(&HashSet::from(["n_p_u".to_owned()])));
        assert!(!again.is_done("n_q_v"));
        fs::write(&path, "{\"format\":1,\"pods\":").unwrap();
        assert_eq!(Checkpoint::read(&path), Checkpoint::default());
        fs::write(&path, r#"{"format":9,"pods":{}}"#).unwrap();
        assert_eq!(Checkpoint::read(&path), Checkpoint::default());
    }

    #[test]
    fn files_without_end_do_not_push_out_what_matters() {
        let mut checkpoint = Checkpoint::default();
        let run = LogKey::Run { container: "c".into(), number: 0 };
        let file = |inode| LogKey::File { container: "c".into(), inode };
        checkpoint.set("p", &run, Position::default());
        for inode in 0..=(PER_POD as u64) {
            checkpoint.set("p", &file(inode), Position::default());
        }
        assert_eq!(checkpoint.pods["p"].logs.len(), PER_POD);
        assert!(checkpoint.at("p", &run).is_some() && checkpoint.at("p", &file(PER_POD as u64)).is_some());
        checkpoint.forget("p", &run);
        assert_eq!(checkpoint.at("p", &run), None);
    }

    /// As the first version wrote it.
    #[test]
    fn the_first_format_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.json");
        let text = r#"{"format":1,"pods":{"n_p_u":{"logs":{"c/0":{"inode":5,"print":{"length":3,"sum":9},"offset":12},
            "c//8":{"inode":8,"print":{"length":0,"sum":0},"offset":0},"odd":{"inode":1,"print":{"length":0,"sum":0},"offset":0}}},
            "n_q_v":{"done":true}}}"#;
        fs::write(&path, text).unwrap();
        let read = Checkpoint::read(&path);
        let at = read.at("n_p_u", &LogKey::Run { container: "c".into(), number: 0 }).unwrap();
        assert_eq!((at.inode, at.offset, read.pods["n_p_u"].logs.len()), (5, 12, 2));
        assert!(read.is_done("n_q_v"));
    }

    #[test]
    fn a_file_is_known_by_how_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            File::open(dir.path().join(name)).unwrap()
        };
        let first = file("a", "2026-01-01T00:00:00.000000001Z stdout F one\n");
        let print = Print::of(&first).unwrap();
        assert!(print.is_telling());
        let grown = file("a", "2026-01-01T00:00:00.000000001Z stdout F one\nand more, and more, and more\n");
        assert!(print.fits(&grown) && print.fits(&first));
        assert!(!print.fits(&file("b", "2026-01-01T00:00:00.000000002Z stdout F one\n")));
        assert!(!print.fits(&file("c", "2026")));
        let inode = grown.metadata().unwrap().ino();
        assert!(Position { inode, print, offset: 5 }.is_in(&grown));
        assert!(!Position { inode, print, offset: 500 }.is_in(&grown));
        assert!(!Position { inode: inode + 1, print, offset: 5 }.is_in(&grown));
        assert!(!Print::of(&file("d", "x")).unwrap().is_telling());
    }
}
