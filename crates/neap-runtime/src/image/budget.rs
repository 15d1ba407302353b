//! What unpacking a layer may cost. A layer is somebody else's data: a few kilobytes can stand for terabytes of zeros,
//! for millions of files, or for one description that fills the memory.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::AsFd;

/// Whatever its compressed size, a layer may unpack to this.
const BYTES_FLOOR: u64 = 4 << 30;
/// Else to so many times its compressed size. Programs and texts shrink to a third; nothing honest to a hundredth.
const RATIO: u64 = 100;
/// Files in a layer at most. A large distribution has some hundred thousand.
const ENTRIES: u64 = 4_000_000;
/// What stands between two files in an archive: names, attributes.
const DESCRIPTION: u64 = 1 << 20;
/// Bytes written between two looks at the disk.
const LOOK: u64 = 64 << 20;

/// What is left of it.
pub(super) struct Budget {
    bytes: u64,
    entries: u64,
    unseen: u64,
}

impl Budget {
    /// For a layer of this compressed size.
    pub(super) fn of(compressed: u64) -> Self {
        Self { bytes: compressed.saturating_mul(RATIO).max(BYTES_FLOOR), entries: ENTRIES, unseen: LOOK }
    }

    #[cfg(test)]
    pub(super) fn tiny(bytes: u64, entries: u64) -> Self {
        Self { bytes, entries, unseen: 0 }
    }

    pub(super) fn entry(&mut self) -> io::Result<()> {
        self.entries = self.entries.checked_sub(1).ok_or_else(|| bomb(&format!("more than {ENTRIES} files")))?;
        Ok(())
    }

    /// Copies a file's content, as far as the budget and the disk under `place` allow.
    pub(super) fn copy(&mut self, from: &mut impl Read, to: &mut impl io::Write, place: &impl AsFd) -> io::Result<()> {
        loop {
            let step = LOOK.saturating_sub(self.unseen).clamp(1, LOOK);
            let copied = io::copy(&mut from.take(step.min(self.bytes.saturating_add(1))), to)?;
            if copied == 0 {
                return Ok(());
            }
            self.bytes = self
                .bytes
                .checked_sub(copied)
                .ok_or_else(|| bomb("far more than its compressed size can stand for"))?;
            self.unseen += copied;
            if self.unseen >= LOOK {
                self.unseen = 0;
                let disk = nix::sys::statvfs::fstatvfs(place.as_fd())?;
                if !crate::disk::takes(&disk, 0) {
                    return Err(io::Error::from(io::ErrorKind::StorageFull));
                }
            }
        }
    }
}

/// A stream that yields no more than a description's worth while `limited`: an archive's reader keeps descriptions in
/// memory whole.
pub(super) struct Watched<'a, R> {
    pub(super) inner: R,
    pub(super) allowance: &'a Cell<u64>,
}

pub(super) fn limit(allowance: &Cell<u64>) {
    allowance.set(DESCRIPTION);
}

pub(super) fn unlimit(allowance: &Cell<u64>) {
    allowance.set(u64::MAX);
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.allowance.get().checked_sub(read as u64);
        self.allowance.set(left.ok_or_else(|| bomb("a file's description of more than a megabyte"))?);
        Ok(read)
    }
}

fn bomb(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it unpacks to {what}"))
}
