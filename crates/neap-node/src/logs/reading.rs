//! One log being read: from the oldest file of it that has something unread, over all that began since, to its end.
//!
//! Files are held open while they have something unread, so that what turned over is still there. Nothing is kept in
//! memory but begun lines, and those within bounds.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use neap_runtime::LogRecord;
use neap_runtime::shelf::{RunLog, after_hole};

use super::checkpoint::{Position, Print};
use super::record::{MAX_LINE, Origin, Record, Severity, Stream, nanos, text};

/// Files that are gone from the disk's directories, but held for what is unread in them: beyond so many of one log the
/// oldest is given up.
const HELD: usize = 2;
/// Bytes that are looked through in one look to count the lines in what is given up. Beyond that they stay uncounted.
const COUNTED: u64 = 256 << 20;
/// How long a begun line may wait for its end, nanoseconds.
const BEGUN_AGE: u64 = 10_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// What the runtime writes: time, stream, tag, text.
    Records,
    /// Whatever a program wrote.
    Lines,
}

pub(super) struct Reading {
    origin: Arc<Origin>,
    format: Format,
    /// Oldest first; the last is the one that is written to.
    stretches: VecDeque<Stretch>,
    /// Of the newest file ever seen.
    newest: u64,
    begun: [Option<Begun>; 2],
    /// A piece of the line that is read now has been sent.
    went_on: bool,
    /// Bytes read so far.
    read: u64,
    /// Nothing more will be written.
    pub(super) over: bool,
    /// Everything that is there has been read.
    pub(super) at_end: bool,
}

struct Stretch {
    file: File,
    inode: u64,
    print: Print,
    offset: u64,
    /// Length when it was last looked at.
    seen: u64,
    /// Of what was read last.
    last: Print,
}

/// A line whose end has not been read.
struct Begun {
    text: Vec<u8>,
    time: u64,
    /// Where it begins, and when that was read.
    at: Position,
    order: u64,
    since: u64,
    /// A piece of it has been sent.
    went_on: bool,
}

/// How a log is read.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Nanoseconds since 1970.
    pub(super) now: u64,
    pub(super) json_severity: bool,
    /// Begun lines may be kept for their end.
    pub(super) may_wait: bool,
}

/// What was lost, and for want of a look nobody knows how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    pub(super) lines: u64,
    pub(super) gaps: u64,
    /// Bytes that were looked through to count the lines.
    counted: u64,
}

impl Stretch {
    fn new(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let print = Print::of(&file)?;
        Ok(Self { inode: meta.ino(), seen: meta.len(), print, offset: 0, file, last: Print::default() })
    }

    fn position(&self) -> Position {
        Position { inode: self.inode, print: self.print, offset: self.offset }
    }

    fn is_held(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }
}

impl Reading {
    fn new(origin: Origin, format: Format) -> Self {
        Self {
            origin: Arc::new(origin),
            format,
            stretches: VecDeque::new(),
            newest: 0,
            begun: [None, None],
            went_on: false,
            read: 0,
            over: false,
            at_end: false,
        }
    }

    /// What a container says. `from`: how far an earlier run of the platform came.
    pub(super) fn of_run(origin: Origin, run: &RunLog, from: Option<Position>, losses: &mut Losses) -> Self {
        let mut this = Self::new(origin, Format::Records);
        this.look_at_run(run, losses);
        let Some(from) = from else { return this };
        match this.stretches.iter().position(|stretch| from.is_in(&stretch.file)) {
            Some(at) => {
                this.stretches.drain(..at);
                this.stretches[0].offset = from.offset;
                this.stretches[0].print = from.print;
            }
            None if this.stretches.is_empty() => {}
            None => losses.gaps += 1,
        }
        this
    }

    /// A file that a program wrote. `from`: where to begin, which may lie behind its end for now.
    pub(super) fn of_file(origin: Origin, file: File, from: u64) -> io::Result<Self> {
        let mut this = Self::new(origin, Format::Lines);
        let mut stretch = Stretch::new(file)?;
        stretch.offset = from;
        this.stretches.push_back(stretch);
        Ok(this)
    }

    /// Takes in the files that began since.
    pub(super) fn look_at_run(&mut self, run: &RunLog, losses: &mut Losses) {
        let mut newer: Vec<Stretch> = Vec::new();
        let mut met = false;
        for path in run.files() {
            let Ok(inode) = fs::metadata(&path).map(|meta| meta.ino()) else { break };
            // An inode that is held cannot be another file's.
            met = inode == self.newest && self.newest != 0;
            if met {
                break;
            }
            // It turned over between two looks: the same file under its next name.
            if newer.last().is_some_and(|last| last.inode == inode) {
                continue;
            }
            match File::open(&path).and_then(Stretch::new) {
                Ok(stretch) => newer.push(stretch),
                Err(_) => break,
            }
        }
        if newer.is_empty() {
            return;
        }
        if !met && self.newest != 0 {
            losses.gaps += 1;
        }
        self.newest = newer[0].inode;
        self.at_end = false;
        self.stretches.extend(newer.into_iter().rev());
        while self.stretches.len() > HELD && self.stretches.iter().filter(|s| s.is_held()).count() > HELD {
            self.give_up_oldest(losses);
        }
    }

    /// Sees whether a file was cut and begun anew.
    pub(super) fn look_at_file(&mut self) {
        let Some(stretch) = self.stretches.front_mut() else { return };
        let Ok(meta) = stretch.file.metadata() else { return };
        if meta.len() < stretch.seen || !stretch.print.fits(&stretch.file) {
            stretch.offset = 0;
            stretch.print = Print::of(&stretch.file).unwrap_or_default();
            self.went_on = false;
        }
        stretch.seen = meta.len();
        self.at_end &= stretch.offset >= meta.len();
    }

    /// Whether the other file begins as this one began and has, up to where this one was read, what was read of it: then
    /// the other is its copy, and up to there nothing new.
    pub(super) fn is_copied_by(&self, file: &File) -> Option<u64> {
        let Stretch { print, offset, last, .. } = self.stretches.front()?;
        let same = print.is_telling() && last.is_telling() && print.fits(file);
        (same && Print::before(file, *offset).is_ok_and(|before| before == *last)).then_some(*offset)
    }

    /// Up to where everything was handed out.
    pub(super) fn position(&self) -> Option<Position> {
        let begun = self.begun.iter().flatten().filter(|begun| !begun.text.is_empty());
        let earliest = begun.min_by_key(|begun| begun.order).map(|begun| begun.at);
        earliest.or_else(|| Some(self.stretches.front()?.position()))
    }

    /// It has no name on the disk any more.
    pub(super) fn is_removed(&self) -> bool {
        self.stretches.iter().all(Stretch::is_held)
    }

    /// Bytes of begun lines.
    pub(super) fn waiting(&self) -> usize {
        self.begun.iter().flatten().map(|begun| begun.text.len()).sum()
    }

    /// Bytes on the disk that nobody but us keeps there.
    pub(super) fn held_bytes(&self) -> u64 {
        let metas = self.stretches.iter().filter_map(|stretch| stretch.file.metadata().ok());
        metas.filter(|meta| meta.nlink() == 0).map(|meta| meta.blocks() * 512).sum()
    }

    /// What is unread of it will not be sent.
    pub(super) fn give_up(&mut self, losses: &mut Losses) {
        while !self.stretches.is_empty() {
            self.give_up_oldest(losses);
        }
        self.at_end = true;
    }

    fn give_up_oldest(&mut self, losses: &mut Losses) {
        let Some(stretch) = self.stretches.pop_front() else { return };
        let mut buffer = vec![0; MAX_LINE];
        let mut at = stretch.offset;
        while losses.counted < COUNTED
            && let Ok(read) = stretch.file.read_at(&mut buffer, at)
            && read > 0
        {
            losses.counted += read as u64;
            let chunk = &buffer[..read];
            if self.format == Format::Lines && chunk[0] == 0 {
                at = after_zeros(&stretch.file, at, chunk);
                continue;
            }
            let end = chunk.iter().rposition(|b| *b == b'\n').map_or(read, |end| end + 1);
            let whole = |line: &&[u8]| match self.format {
                Format::Records => LogRecord::parse(line).is_some_and(|record| record.whole),
                Format::Lines => true,
            };
            losses.lines += chunk[..end].split_inclusive(|b| *b == b'\n').filter(whole).count() as u64;
            at += end as u64;
        }
    }

    /// Reads on, until `room` bytes are used up (then `true`: there may be more) or nothing more is there.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        mut room: usize,
        manner: Manner,
        out: &mut Vec<Record>,
    ) -> io::Result<bool> {
        self.at_end = false;
        while room > 0 {
            let last = self.stretches.len() == 1;
            let Some(stretch) = self.stretches.front_mut() else {
                self.at_end = true;
                break;
            };
            let read = stretch.file.read_at(buffer, stretch.offset)?;
            if read == 0 {
                if !last {
                    self.stretches.pop_front();
                    continue;
                }
                self.at_end = true;
                break;
            }
            if !stretch.print.is_telling() {
                stretch.print = Print::of(&stretch.file)?;
            }
            let chunk = &buffer[..read];
            if self.format == Format::Lines && chunk[0] == 0 {
                // A file that was cut under a program which writes on where it was: nothing was ever there.
                stretch.offset = after_zeros(&stretch.file, stretch.offset, chunk);
                continue;
            }
            let ended = chunk.iter().rposition(|b| *b == b'\n');
            // Of a file that nobody writes to any more even the rest counts.
            let rest = ended.is_none() && (read == buffer.len() || !last || self.over);
            let Some(end) = ended.map(|end| end + 1).or(rest.then_some(read)) else {
                self.at_end = true;
                break;
            };
            let cut = ended.is_none() && read == buffer.len();
            let mut lines = chunk[..end].split_inclusive(|b| *b == b'\n');
            while room > 0
                && let Some(line) = lines.next()
            {
                let before = out.len();
                self.take(line, cut, manner, out);
                room = room.saturating_sub(out[before..].iter().map(Record::size).sum());
            }
        }
        if self.at_end {
            self.end_begun(manner, out);
        }
        if self.format == Format::Lines
            && let Some(stretch) = self.stretches.front_mut()
            && stretch.file.metadata()?.len() >= stretch.offset
        {
            stretch.last = Print::before(&stretch.file, stretch.offset)?;
        }
        Ok(!self.at_end)
    }

    fn take(&mut self, line: &[u8], cut: bool, manner: Manner, out: &mut Vec<Record>) {
        let Some(stretch) = self.stretches.front_mut() else { return };
        let at = stretch.position();
        let order = self.read;
        stretch.offset += line.len() as u64;
        self.read += line.len() as u64;
        if self.format == Format::Lines {
            let bytes = line.strip_suffix(b"\n").unwrap_or(line);
            let partial = std::mem::replace(&mut self.went_on, cut) || cut;
            out.push(self.record(bytes.to_vec(), manner.now, Stream::File, partial, manner));
            return;
        }
        // What a full disk left of a record is none.
        let Some(record) = LogRecord::parse(line) else { return };
        let Some(time) = nanos(record.time) else { return };
        let stream = Stream::parse(record.stream);
        let slot = stream as usize;
        let Some(mut begun) = self.begun[slot].take().or_else(|| {
            let new = || Begun { text: Vec::new(), time, at, order, since: manner.now, went_on: false };
            (!record.whole).then(new)
        }) else {
            out.push(self.record(record.text.to_vec(), time, stream, false, manner));
            return;
        };
        if begun.text.is_empty() {
            begun = Begun { time, at, order, since: manner.now, ..begun };
        }
        begun.text.extend_from_slice(record.text);
        if record.whole {
            out.push(self.record(begun.text, begun.time, stream, begun.went_on, manner));
        } else {
            let full = begun.text.len() >= MAX_LINE || !manner.may_wait;
            self.begun[slot] = Some(begun);
            if full {
                self.send_begun(slot, manner, out);
            }
        }
    }

    /// Lines that will have no end, or have waited long enough for it.
    fn end_begun(&mut self, manner: Manner, out: &mut Vec<Record>) {
        for slot in 0..self.begun.len() {
            let old = |begun: &Begun| manner.now.saturating_sub(begun.since) >= BEGUN_AGE;
            if self.begun[slot].as_ref().is_some_and(|begun| !begun.text.is_empty() && (self.over || old(begun))) {
                self.send_begun(slot, manner, out);
            }
        }
    }

    fn send_begun(&mut self, slot: usize, manner: Manner, out: &mut Vec<Record>) {
        let Some(begun) = &mut self.begun[slot] else { return };
        let (text, time) = (std::mem::take(&mut begun.text), begun.time);
        begun.went_on = true;
        let stream = if slot == Stream::Stderr as usize { Stream::Stderr } else { Stream::Stdout };
        let record = self.record(text, time, stream, true, manner);
        out.push(record);
    }

    fn record(&self, bytes: Vec<u8>, time: u64, stream: Stream, partial: bool, manner: Manner) -> Record {
        let body = text(bytes);
        let severity = if manner.json_severity && !partial { Severity::of_line(&body) } else { None };
        Record { origin: self.origin.clone(), time, observed: manner.now, stream, severity, body, partial }
    }
}

/// Where a file goes on after the zeros that a chunk read at an offset begins with, and the hole that they may be of.
fn after_zeros(file: &File, offset: u64, chunk: &[u8]) -> u64 {
    let zeros = chunk.iter().take_while(|b| **b == 0).count() as u64;
    after_hole(file, offset + zeros.saturating_sub(1)).max(offset + zeros)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn holes_are_not_read_to_count_what_is_lost() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"first\n").unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"last\n", 1 << 40).unwrap();
        let mut losses = Losses::default();
        Reading::of_file(Origin::default(), file, 0).unwrap().give_up(&mut losses);
        assert!(losses.lines == 2 && losses.counted < 1 << 20, "{losses:?}");
    }
}
