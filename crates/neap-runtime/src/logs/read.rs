//! Reads what keepers wrote: the whole, the end, what came since, and what comes next.
//!
//! Files turn over under the reader; it holds the file it reads open, finishes it, and goes on with the newer one.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{MOST_FILES, Record, numbered};
use crate::pod::LogOptions;

/// Most bytes handed on at once.
const CHUNK: usize = 32 * 1024;
/// Bytes looked at in one step when searching the last lines from the end.
const BACK_STEP: u64 = 64 * 1024;

/// A position in a container's log, oldest file first.
pub(crate) struct LogReader {
    path: PathBuf,
    options: LogOptions,
    /// What is still to be read before the newest file, oldest first, then the newest itself.
    queue: Vec<File>,
    current: Option<BufReader<File>>,
    /// Of the newest file that was opened.
    inode: u64,
    left: Option<u64>,
    /// The next record begins a line.
    fresh_line: bool,
    /// A record whose end is not written yet.
    begun: Vec<u8>,
}

impl LogReader {
    /// `NotFound` when nothing was ever logged.
    pub(crate) fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let (mut files, newest) = open_down_to(path, None)?;
        let inode = newest.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no log"))?;
        files.reverse();
        if let Some(lines) = options.tail {
            files = skip_to_tail(files, lines)?;
        }
        files.reverse();
        let left = options.limit_bytes;
        Ok(Self {
            path: path.to_owned(),
            options,
            queue: files,
            current: None,
            inode,
            left,
            fresh_line: true,
            begun: Vec::new(),
        })
    }

    /// The next stretch. Empty: nothing more is there now. `None`: the limit is reached.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        while out.len() < CHUNK {
            if self.left == Some(0) {
                return Ok((!out.is_empty()).then_some(out));
            }
            if self.current.is_none() && !self.open_next()? {
                break;
            }
            let Some(reader) = &mut self.current else { break };
            let read = reader.read_until(b'\n', &mut self.begun)?;
            if self.begun.last() != Some(&b'\n') {
                // The end of the file; in the newest one the rest of this record may still come.
                if read == 0 && (!self.queue.is_empty() || self.turned_over()) {
                    self.current = None;
                    self.begun.clear();
                    continue;
                }
                break;
            }
            let record = std::mem::take(&mut self.begun);
            self.take(&record, &mut out);
        }
        Ok(Some(out))
    }

    fn open_next(&mut self) -> io::Result<bool> {
        if self.queue.is_empty() {
            self.queue_newer()?;
        }
        self.current = self.queue.pop().map(BufReader::new);
        Ok(self.current.is_some())
    }

    fn turned_over(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|m| m.ino() != self.inode)
    }

    /// The files that were begun after the one read last, which may itself be gone already.
    fn queue_newer(&mut self) -> io::Result<()> {
        let (newer, newest) = open_down_to(&self.path, Some(self.inode))?;
        self.inode = newest.unwrap_or(self.inode);
        self.queue = newer;
        Ok(())
    }

    fn take(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let Some(Record { time, whole, text, .. }) = Record::parse(record) else { return };
        if let Some(since) = self.options.since
            && std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok()).is_some_and(|t| t < since)
        {
            return;
        }
        let start = out.len();
        if self.options.timestamps && self.fresh_line {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if whole {
            out.push(b'\n');
        }
        self.fresh_line = whole;
        if let Some(left) = &mut self.left {
            let taken = (out.len() - start).min(usize::try_from(*left).unwrap_or(usize::MAX));
            out.truncate(start + taken);
            *left -= taken as u64;
        }
    }
}

/// Opens the files of a log, newest first, down to the one that is `known`; and says which is the newest.
fn open_down_to(path: &Path, known: Option<u64>) -> io::Result<(Vec<File>, Option<u64>)> {
    let mut files = Vec::new();
    let mut newest = None;
    let mut last = None;
    for age in 0..MOST_FILES {
        let Ok(file) = File::open(numbered(path, age)) else { break };
        let inode = file.metadata()?.ino();
        if known == Some(inode) {
            break;
        }
        newest.get_or_insert(inode);
        // It turned over between the two looks: the same file under its next name.
        if last != Some(inode) {
            files.push(file);
        }
        last = Some(inode);
    }
    Ok((files, newest))
}

/// Drops and positions files so that the last `lines` lines remain.
fn skip_to_tail(files: Vec<File>, lines: u64) -> io::Result<Vec<File>> {
    let mut kept = Vec::new();
    let mut wanted = lines;
    for mut file in files.into_iter().rev() {
        if wanted == 0 && !kept.is_empty() {
            break;
        }
        let (position, found) = last_lines(&mut file, wanted)?;
        file.seek(SeekFrom::Start(position))?;
        wanted -= found.min(wanted);
        kept.push(file);
    }
    kept.reverse();
    Ok(kept)
}

/// Where the last `wanted` whole lines of a file begin, and how many of them it has.
fn last_lines(file: &mut File, wanted: u64) -> io::Result<(u64, u64)> {
    let end = file.metadata()?.len();
    if wanted == 0 {
        return Ok((end, 0));
    }
    // Line ends are counted from the back; a `P` record ends no line, and is skipped together with its `F`.
    let mut found = 0;
    let mut at = end;
    let mut tail: Vec<u8> = Vec::new();
    while at > 0 {
        let step = BACK_STEP.min(at);
        at -= step;
        file.seek(SeekFrom::Start(at))?;
        let mut block = vec![0; step as usize];
        file.read_exact(&mut block)?;
        block.append(&mut tail);
        // Whole records of this block, last first; the first one may have begun before it.
        let mut stop = block.len();
        while let Some(newline) = block[..stop.saturating_sub(1)].iter().rposition(|b| *b == b'\n') {
            if ends_line(&block[newline + 1..stop]) {
                found += 1;
                if found > wanted {
                    return Ok((at + stop as u64, wanted));
                }
            }
            stop = newline + 1;
        }
        tail = block[..stop].to_vec();
    }
    if ends_line(&tail) {
        found += 1;
        if found > wanted {
            return Ok((tail.len() as u64, wanted));
        }
    }
    Ok((0, found))
}

fn ends_line(record: &[u8]) -> bool {
    record.ends_with(b"\n") && Record::parse(record).is_some_and(|record| record.whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::LogFiles;
    use crate::logs::write::{LogWriter, Stream};

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn read(path: &Path, options: LogOptions) -> String {
        let mut reader = LogReader::open(path, options).expect("opens");
        let mut all = Vec::new();
        while let Some(chunk) = reader.next().expect("reads") {
            if chunk.is_empty() {
                break;
            }
            all.extend(chunk);
        }
        String::from_utf8(all).expect("text")
    }

    /// Ten lines, one a second from second 0, over several files.
    fn sample(max_bytes: u64) -> (tempfile::TempDir, PathBuf, LogWriter) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("0.log");
        let mut log = LogWriter::open(LogFiles { path: path.clone(), max_bytes, keep: 5 }).expect("opens");
        for n in 0..10 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes(), time(n)).expect("writes");
        }
        (dir, path, log)
    }

    #[test]
    fn options_choose_what_is_read() {
        for max_bytes in [100_000, 200] {
            let (_dir, path, _) = sample(max_bytes);
            let check = |options: LogOptions, expected: &str| assert_eq!(read(&path, options), expected);
            let none = LogOptions::default;
            check(LogOptions { tail: Some(2), ..none() }, "line 8\nline 9\n");
            check(LogOptions { tail: Some(0), ..none() }, "");
            check(LogOptions { tail: Some(5), ..none() }, "line 5\nline 6\nline 7\nline 8\nline 9\n");
            check(LogOptions { since: Some(time(8)), ..none() }, "line 8\nline 9\n");
            check(LogOptions { tail: Some(1), timestamps: true, ..none() }, "1970-01-01T00:00:09.000000000Z line 9\n");
            check(LogOptions { tail: Some(1), limit_bytes: Some(3), ..none() }, "lin");
            assert!(read(&path, LogOptions { tail: Some(100), ..none() }).starts_with("line 0\nline 1\n"));
            assert_eq!(read(&path, none()).lines().count(), 10);
        }
    }

    #[test]
    fn cut_lines_are_joined_and_counted_as_one() {
        let (_dir, path, mut log) = sample(1_000_000);
        let long = "x".repeat(crate::logs::MAX_LINE + 5);
        log.write(Stream::Stdout, format!("{long}\nend\n").as_bytes(), time(20)).expect("writes");
        assert_eq!(read(&path, LogOptions { tail: Some(2), ..LogOptions::default() }), format!("{long}\nend\n"));
        let stamped = read(&path, LogOptions { tail: Some(2), timestamps: true, ..LogOptions::default() });
        assert_eq!(stamped.matches("1970").count(), 2);
    }

    #[test]
    fn following_goes_over_a_turned_file() {
        let (_dir, path, mut log) = sample(200);
        let mut reader = LogReader::open(&path, LogOptions { tail: Some(1), ..LogOptions::default() }).expect("opens");
        let mut next = || String::from_utf8(reader.next().expect("reads").expect("no limit")).expect("text");
        assert_eq!(next(), "line 9\n");
        assert_eq!(next(), "");
        for n in 10..16 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes(), time(n)).expect("writes");
        }
        assert_eq!(next(), "line 10\nline 11\nline 12\nline 13\nline 14\nline 15\n");
        assert_eq!(next(), "");
    }
}
