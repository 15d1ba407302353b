//! The store's file: who may have it, how it comes into being, and how redb reaches it.
//! Nothing is written to a file before its content was found to be a sound store.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{BackendError, StorageBackend};

use crate::Error;

/// The file's mode: it holds secrets.
const PRIVATE: u32 = 0o600;

/// What a store is kept on. The file, or in tests a disk that forgets or fails.
pub(crate) trait Device: Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// A file that nobody else has, for as long as this lives.
#[derive(Debug)]
pub(crate) struct OwnedFile(File);

impl Device for OwnedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A file at its place, or one still being made beside it.
#[derive(Debug)]
pub(crate) enum Found {
    Existing(OwnedFile),
    New(OwnedFile, Birth),
}

/// Moves a finished new file to its place. A store file is therefore whole from the first moment it can
/// be seen, and an empty or zeroed one is damage, never a beginning.
#[derive(Debug)]
#[must_use = "without `finish` the new file is discarded by the next start"]
pub(crate) struct Birth {
    aside: PathBuf,
    path: PathBuf,
}

impl Birth {
    pub(crate) fn finish(self) -> Result<(), Error> {
        let place = || -> io::Result<()> {
            fs::rename(&self.aside, &self.path)?;
            // The name is part of what must survive a power cut.
            File::open(parent(&self.path))?.sync_all()
        };
        place().map_err(|error| open_error(&self.path, error))
    }
}

/// Opens and locks the file, or begins a new one if there is none.
///
/// The lock is on the open file, not on its name, and moves with it when a new file takes its place. Whoever
/// holds a lock on the file aside and then sees nothing at the place is alone in making it.
pub(crate) fn find(path: &Path) -> Result<Found, Error> {
    let fail = |error| open_error(path, error);
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                if !file.metadata().map_err(fail)?.is_file() {
                    return Err(Error::Foreign { path: path.to_owned() });
                }
                return Ok(Found::Existing(OwnedFile(locked(file, path)?)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let mut new = OpenOptions::new();
        new.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
        let file = locked(new.open(&aside).map_err(fail)?, path)?;
        if path.try_exists().map_err(fail)? {
            // Another process has just made it; if the aside file is a leftover, its maker's next start
            // takes care of it.
            continue;
        }
        // Left behind by a crash while it was being made: nobody was told that it holds anything.
        file.set_len(0).map_err(fail)?;
        file.set_permissions(fs::Permissions::from_mode(PRIVATE)).map_err(fail)?;
        let birth = Birth { aside, path: path.to_owned() };
        return Ok(Found::New(OwnedFile(file), birth));
    }
}

fn locked(file: File, path: &Path) -> Result<File, Error> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(open_error(path, error)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn open_error(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Open { path: path.to_owned(), source: Arc::new(source) }
}

/// A device as redb sees it, with two additions: until `accept` all writes are held back in memory, and
/// the first failure is remembered by kind, because redb's errors do not say which operation it was.
#[derive(Debug, Clone)]
pub(crate) struct Backend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Arc<dyn Device>,
    /// Writes held back, in their order; `None` after `accept`. Repairing a file takes some tens.
    held: Mutex<Option<Vec<Held>>>,
    failure: Mutex<Option<Failure>>,
}

#[derive(Debug)]
enum Held {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// What failed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no room for a write, and nothing else happened: trying again later is safe.
    NoSpace,
    /// Anything else.
    Other,
}

impl Backend {
    pub(crate) fn new(device: Arc<dyn Device>) -> Backend {
        let held = Mutex::new(Some(Vec::new()));
        Backend(Arc::new(Inner { device, held, failure: Mutex::new(None) }))
    }

    /// Does what was held back, and from now on everything at once.
    pub(crate) fn accept(&self) -> io::Result<()> {
        let mut held = self.held();
        let device = &self.0.device;
        for operation in held.take().into_iter().flatten() {
            match operation {
                Held::Write(offset, data) => self.noting(device.write(offset, &data))?,
                Held::SetLen(len) => self.noting(device.set_len(len))?,
                Held::Sync => self.noting_sync(device.sync())?,
            }
        }
        Ok(())
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        *self.0.failure.lock().expect(UNPOISONED)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Vec<Held>>> {
        self.0.held.lock().expect(UNPOISONED)
    }

    fn noting<T>(&self, result: io::Result<T>) -> io::Result<T> {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        result.inspect_err(|error| {
            let full = matches!(error.kind(), StorageFull | QuotaExceeded);
            self.note(if full { Failure::NoSpace } else { Failure::Other });
        })
    }

    /// A failed sync is never harmless, whatever it says: see the crate's header.
    fn noting_sync<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|_| self.note(Failure::Other))
    }

    fn note(&self, failure: Failure) {
        let mut first = self.0.failure.lock().expect(UNPOISONED);
        // A failure that is not harmless stays so, whatever came before it.
        if first.is_none() || failure == Failure::Other {
            *first = Some(failure);
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds the backend's locks";

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let held = self.held();
        let mut len = self.noting(self.0.device.len())?;
        for operation in held.iter().flatten() {
            match operation {
                Held::Write(offset, data) => len = len.max(offset + data.len() as u64),
                Held::SetLen(new) => len = *new,
                Held::Sync => {}
            }
        }
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let held = self.held();
        let Some(held) = held.as_ref().filter(|held| !held.is_empty()) else {
            drop(held);
            return self.noting(self.0.device.read(offset, out));
        };
        let there = self.noting(self.0.device.len())?.saturating_sub(offset);
        let there = out.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        if there > 0 {
            self.noting(self.0.device.read(offset, &mut out[..there]))?;
        }
        out[there..].fill(0);
        let end = offset + out.len() as u64;
        for operation in held {
            match operation {
                Held::Write(at, data) => {
                    let from = offset.max(*at);
                    let to = end.min(at + data.len() as u64);
                    if from < to {
                        let source = &data[(from - at) as usize..(to - at) as usize];
                        out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
                    }
                }
                // What was cut off reads as zeros if the file grows again.
                Held::SetLen(len) if *len < end => out[len.saturating_sub(offset) as usize..].fill(0),
                Held::SetLen(_) | Held::Sync => {}
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &mut *self.held() {
            Some(held) => held.push(Held::SetLen(len)),
            None => return self.noting(self.0.device.set_len(len)),
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match &mut *self.held() {
            Some(held) => held.push(Held::Sync),
            None => return self.noting_sync(self.0.device.sync()),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &mut *self.held() {
            Some(held) => held.push(Held::Write(offset, data.to_vec())),
            None => return self.noting(self.0.device.write(offset, data)),
        }
        Ok(())
    }

    // The file was locked before redb got to see it, and stays so for longer than redb has it.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
