//! Writes what a container says into its log files, line by line. Runs in the keeper: one thread, little memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;

use super::{MAX_LINE, numbered};
use crate::launch::LogFiles;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 0,
    Stderr = 1,
}

pub(crate) struct LogWriter {
    files: LogFiles,
    file: File,
    size: u64,
    /// Begun lines, one per stream.
    open: [Vec<u8>; 2],
    out: Vec<u8>,
    /// A write failed: half a record may be at the end of the file.
    torn: bool,
}

impl LogWriter {
    pub(crate) fn open(files: LogFiles) -> io::Result<Self> {
        let file = append(&files.path)?;
        let size = file.metadata()?.len();
        Ok(Self { files, file, size, open: [Vec::new(), Vec::new()], out: Vec::new(), torn: false })
    }

    /// Takes bytes as they came. Whole lines are in the file afterwards; a begun line waits for its end.
    pub(crate) fn write(&mut self, stream: Stream, mut bytes: &[u8], now: Timestamp) -> io::Result<()> {
        self.out.clear();
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.record(stream, &bytes[..end], true, now);
            bytes = &bytes[end + 1..];
        }
        if self.open[stream as usize].len() + bytes.len() > MAX_LINE {
            self.record(stream, bytes, false, now);
        } else {
            self.open[stream as usize].extend_from_slice(bytes);
        }
        self.flush()
    }

    /// Ends begun lines: nothing more will come.
    pub(crate) fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        self.out.clear();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.open[stream as usize].is_empty() {
                self.record(stream, &[], true, now);
            }
        }
        self.flush()
    }

    fn record(&mut self, stream: Stream, rest: &[u8], whole: bool, now: Timestamp) {
        let mut line = std::mem::take(&mut self.open[stream as usize]);
        line.extend_from_slice(rest);
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let mut parts = line.chunks(MAX_LINE).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let tag = if whole && parts.peek().is_none() { 'F' } else { 'P' };
            // Writing to a Vec cannot fail.
            let _ = write!(self.out, "{now:.9} {name} {tag} ");
            self.out.extend_from_slice(part);
            self.out.push(b'\n');
            if parts.peek().is_none() {
                break;
            }
        }
        line.clear();
        // Keep the room of usual lines, not that of one giant.
        if line.capacity() <= MAX_LINE {
            self.open[stream as usize] = line;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        if self.size > 0 && self.size + self.out.len() as u64 > self.files.max_bytes {
            self.turn_over()?;
        }
        if self.torn {
            // Its end, so that the next record is not taken for a part of it.
            self.out.insert(0, b'\n');
        }
        self.torn = true;
        self.file.write_all(&self.out)?;
        self.torn = false;
        self.size += self.out.len() as u64;
        Ok(())
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let path: &PathBuf = &self.files.path;
        for age in (0..self.files.keep.saturating_sub(1)).rev() {
            // The older ones need not exist yet.
            let _ = std::fs::rename(numbered(path, age), numbered(path, age + 1));
        }
        self.file = append(path)?;
        self.file.set_len(0)?;
        self.size = 0;
        Ok(())
    }
}

fn append(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(writes: &[(Stream, &str)], max_bytes: u64, keep: u32, expected: &[&str]) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("0.log");
        let mut log = LogWriter::open(LogFiles { path: path.clone(), max_bytes, keep }).expect("opens");
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().expect("a time");
        for (stream, text) in writes {
            log.write(*stream, text.as_bytes(), now).expect("writes");
        }
        log.finish(now).expect("finishes");
        let found: Vec<String> = (0..keep + 1)
            .filter_map(|age| std::fs::read_to_string(numbered(&path, age)).ok())
            .map(|text| text.replace("2026-01-02T03:04:05.000000006Z ", ""))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn after_a_full_disk_lines_are_whole_again() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Some("size=64k");
        if mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), options).is_err() {
            println!("skipped: needs a small disk, which only root can make");
            return;
        }
        let path = dir.path().join("0.log");
        let files = LogFiles { path: path.clone(), max_bytes: 1 << 20, keep: 3 };
        let mut log = LogWriter::open(files).expect("opens");
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let long = format!("{}\n", "x".repeat(10_000));
        while log.write(Stream::Stdout, long.as_bytes(), now).is_ok() {}
        // Room again: the beginning of the log is not needed for this.
        OpenOptions::new().write(true).open(&path).expect("there").set_len(20_000).expect("cut");
        log.write(Stream::Stdout, b"whole\n", now).expect("there is room");
        let text = std::fs::read_to_string(&path).expect("reads");
        drop(log);
        umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmounted");
        assert!(text.ends_with("x\n2026-01-02T03:04:05.000000000Z stdout F whole\n"), "{:?}", &text[text.len() - 80..]);
    }

    #[test]
    fn lines_are_tagged_joined_cut_and_turned_over() {
        use Stream::{Stderr, Stdout};
        check(&[(Stdout, "a\nb\n")], 1000, 3, &["stdout F a\nstdout F b\n"]);
        check(&[(Stdout, "a"), (Stderr, "x\n"), (Stdout, "b\n")], 1000, 3, &["stderr F x\nstdout F ab\n"]);
        check(&[(Stdout, "no end")], 1000, 3, &["stdout F no end\n"]);
        check(&[(Stdout, "\n\n")], 1000, 3, &["stdout F \nstdout F \n"]);
        let long = "y".repeat(MAX_LINE + 1);
        let cut = format!("stdout P {}\nstdout F yz\n", "y".repeat(MAX_LINE));
        check(
            &[(Stdout, &long), (Stdout, "z\n")],
            100_000,
            3,
            &[&format!("stdout P {}\nstdout P y\nstdout F z\n", "y".repeat(MAX_LINE))],
        );
        check(&[(Stdout, &format!("{long}z\n"))], 100_000, 3, &[&cut]);
        check(
            &[(Stdout, "1\n"), (Stdout, "2\n"), (Stdout, "3\n"), (Stdout, "4\n")],
            50,
            3,
            &["stdout F 4\n", "stdout F 3\n", "stdout F 2\n"],
        );
    }
}
