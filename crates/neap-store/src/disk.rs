//! The file format: what is written where in the redb file, and how a file is recognised.
//!
//! # Format 1
//!
//! - Table `neap-meta`, text to bytes: `format` is one byte, 1; `reserved` is a revision, and no revision
//!   above it was ever given out. After an orderly end it is the newest revision itself.
//! - Table `neap-entries`, key to `created` (8 bytes), `modified` (8 bytes), value.
//!
//! Numbers are big-endian. Only current values are on disk; history is not.
//!
//! A change of format gets a new number here, a function that carries the old one over, and a new file
//! in `tests/golden`; the old one stays there.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError, TableHandle,
};

use crate::file::{Backend, Device, Failure, open_error};
use crate::index::Entry;
use crate::store::FIRST_REVISION;
use crate::writer::{Batch, Change, RESERVED_REVISIONS};
use crate::{Error, Revision};

/// The format this version reads and writes.
pub const FORMAT: u8 = 1;

/// redb's page cache, in bytes. All reads are served by the index, so this only holds the upper pages of the
/// trees between writes, and the pages of one batch: half of it buffers writes.
pub const CACHE_BYTES: usize = 2 * 1024 * 1024;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("neap-meta");
const META_FORMAT: &str = "format";
const META_RESERVED: &str = "reserved";
const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("neap-entries");

/// No store gets here: at a million commits a second it takes a hundred thousand years. It keeps sums of
/// revisions from a forged file from overflowing, and fits the signed numbers some clients parse into.
const LAST_REVISION: Revision = 1 << 62;

/// Bytes in front of a value: `created` and `modified`.
const ENTRY_HEADER_BYTES: usize = 16;

/// The first bytes of every redb file.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// An open store file.
pub(crate) struct Disk {
    /// `None` only while it is being opened again.
    db: Option<Database>,
    backend: Backend,
    device: Arc<dyn Device>,
    path: PathBuf,
}

impl Disk {
    /// Makes an empty store on an empty device.
    pub(crate) fn create(device: Arc<dyn Device>, path: &Path) -> Result<Disk, Error> {
        let backend = Backend::new(device.clone());
        backend.accept().map_err(|error| open_error(path, error))?;
        let db = builder().create_with_backend(backend.clone());
        let db = db.map_err(|error| open_error(path, error))?;
        let disk = Disk { db: Some(db), backend, device, path: path.to_owned() };
        let first = || -> Result<(), redb::Error> {
            let write = disk.db().begin_write()?;
            write.open_table(META)?.insert(META_FORMAT, [FORMAT].as_slice())?;
            write.open_table(META)?.insert(META_RESERVED, FIRST_REVISION.to_be_bytes().as_slice())?;
            write.open_table(ENTRIES)?;
            write.commit()?;
            Ok(())
        };
        first().map_err(|error| open_error(path, error))?;
        Ok(disk)
    }

    /// Opens a device that holds a store, hands every entry to `load`, and returns the revision it is at. A
    /// device that is refused was not written to.
    pub(crate) fn open(
        device: Arc<dyn Device>,
        path: &Path,
        load: impl FnMut(Entry),
    ) -> Result<(Disk, Revision), Error> {
        recognise(&*device, path)?;
        let backend = Backend::new(device.clone());
        let db = attach(&backend, path)?;
        let revision = read_all(&db, path, load)?;
        backend.accept().map_err(|error| open_error(path, error))?;
        let disk = Disk { db: Some(db), backend, device, path: path.to_owned() };
        Ok((disk, revision))
    }

    /// Reserves the first block of revisions after `revision`; returns the last one of it.
    pub(crate) fn reserve(&self, revision: Revision) -> Result<Revision, Error> {
        let reserved = revision + RESERVED_REVISIONS;
        self.set_reserved(reserved).map_err(|error| open_error(&self.path, error))?;
        Ok(reserved)
    }

    /// Writes a batch; it is on disk when this returns.
    pub(crate) fn write(&self, batch: &Batch) -> Result<(), Error> {
        self.try_write(batch).map_err(|error| self.broken(error))
    }

    /// Attaches to the device anew, which redb asks for after a failure.
    pub(crate) fn reopen(&mut self) -> Result<(), Error> {
        self.db = None;
        let backend = Backend::new(self.device.clone());
        // The first database's failure is of no more interest, this one's is.
        self.backend = backend.clone();
        let db = attach(&backend, &self.path).map_err(|error| self.broken(error))?;
        backend.accept().map_err(|error| self.broken(error))?;
        self.db = Some(db);
        Ok(())
    }

    /// Ends in order: the reservation shrinks to what was given out.
    pub(crate) fn finish(mut self, revision: Revision) -> Result<(), Error> {
        self.set_reserved(revision).map_err(|error| self.broken(error))?;
        let db = self.db.take().expect("only reopening leaves it empty");
        db.close().map_err(|error| self.broken(error))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn db(&self) -> &Database {
        self.db.as_ref().expect("a disk that could not be reopened is not written to")
    }

    fn set_reserved(&self, revision: Revision) -> Result<(), redb::Error> {
        let write = self.db().begin_write()?;
        write.open_table(META)?.insert(META_RESERVED, revision.to_be_bytes().as_slice())?;
        write.commit()?;
        Ok(())
    }

    fn try_write(&self, batch: &Batch) -> Result<(), redb::Error> {
        let write = self.db().begin_write()?;
        {
            let mut entries = write.open_table(ENTRIES)?;
            for (key, change) in &batch.changes {
                match change {
                    Change::Put { value, created, modified } => {
                        let size = ENTRY_HEADER_BYTES + value.len();
                        let mut room = entries.insert_reserve(&key[..], size)?;
                        let room = room.as_mut();
                        room[..8].copy_from_slice(&created.to_be_bytes());
                        room[8..ENTRY_HEADER_BYTES].copy_from_slice(&modified.to_be_bytes());
                        room[ENTRY_HEADER_BYTES..].copy_from_slice(value);
                    }
                    Change::Delete => drop(entries.remove(&key[..])?),
                }
            }
        }
        if let Some(reserved) = batch.reserve {
            write.open_table(META)?.insert(META_RESERVED, reserved.to_be_bytes().as_slice())?;
        }
        write.commit()?;
        Ok(())
    }

    fn broken(&self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        let heals = self.backend.failure() == Some(Failure::NoSpace);
        Error::Broken { path: self.path.clone(), heals, source: Arc::new(source) }
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Tells files that never were redb's from damaged ones, before redb gets to see them.
fn recognise(device: &dyn Device, path: &Path) -> Result<(), Error> {
    let corrupt = |detail: &str| Error::Corrupt { path: path.to_owned(), detail: detail.to_owned() };
    let len = device.len().map_err(|error| open_error(path, error))?;
    if len == 0 {
        return Err(corrupt("it is empty"));
    }
    let mut head = [0; MAGIC.len()];
    let head = &mut head[..usize::try_from(len).unwrap_or(usize::MAX).min(MAGIC.len())];
    device.read(0, head).map_err(|error| open_error(path, error))?;
    match *head == MAGIC[..head.len()] {
        true if head.len() == MAGIC.len() => Ok(()),
        true => Err(corrupt("it ends within its first bytes")),
        false => Err(Error::Foreign { path: path.to_owned() }),
    }
}

/// Opens the database. The check of all its pages reads the file once, which loading the index does anyway.
fn attach(backend: &Backend, path: &Path) -> Result<Database, Error> {
    let mut builder = builder();
    builder.set_check_integrity_on_open(true);
    builder.create_with_backend(backend.clone()).map_err(|error| match error {
        DatabaseError::Storage(error) => storage_error(path, error),
        error => Error::Corrupt { path: path.to_owned(), detail: error.to_string() },
    })
}

fn read_all(db: &Database, path: &Path, mut load: impl FnMut(Entry)) -> Result<Revision, Error> {
    let corrupt = |detail: String| Error::Corrupt { path: path.to_owned(), detail };
    let storage = |error: redb::Error| storage_error(path, error);
    let read = db.begin_read().map_err(|error| storage(error.into()))?;
    let tables = read.list_tables().map_err(|error| storage(error.into()))?;
    if !tables.into_iter().any(|table| table.name() == META.name()) {
        return Err(Error::Foreign { path: path.to_owned() });
    }
    let meta = read.open_table(META).map_err(|error| table_error(path, error))?;
    let format = meta.get(META_FORMAT).map_err(|error| storage(error.into()))?;
    match format.as_ref().map(|format| format.value()) {
        Some([FORMAT]) => {}
        Some([found]) => {
            return Err(Error::Format { path: path.to_owned(), found: *found, supported: FORMAT });
        }
        _ => return Err(corrupt("it does not say which format it has".to_owned())),
    }
    let reserved = meta.get(META_RESERVED).map_err(|error| storage(error.into()))?;
    let reserved = reserved.and_then(|reserved| reserved.value().try_into().ok());
    let sensible = |revision: &Revision| (FIRST_REVISION..LAST_REVISION).contains(revision);
    let Some(reserved) = reserved.map(Revision::from_be_bytes).filter(sensible) else {
        return Err(corrupt("it does not say which revisions were given out".to_owned()));
    };
    let entries = read.open_table(ENTRIES).map_err(|error| table_error(path, error))?;
    for entry in entries.iter().map_err(|error| storage(error.into()))? {
        let (key, value) = entry.map_err(|error| storage(error.into()))?;
        let entry = decode(key.value(), value.value())
            .filter(|entry| entry.created <= entry.modified && entry.modified <= reserved);
        match entry {
            Some(entry) => load(entry),
            None => {
                let key = key.value().escape_ascii();
                return Err(corrupt(format!("the record of key \"{key}\" makes no sense")));
            }
        }
    }
    Ok(reserved)
}

fn decode(key: &[u8], record: &[u8]) -> Option<Entry> {
    let (created, rest) = record.split_first_chunk()?;
    let (modified, value) = rest.split_first_chunk()?;
    Some(Entry {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        created: Revision::from_be_bytes(*created),
        modified: Revision::from_be_bytes(*modified),
    })
}

fn storage_error(path: &Path, error: impl Into<redb::Error>) -> Error {
    let corrupt = |detail: String| Error::Corrupt { path: path.to_owned(), detail };
    match error.into() {
        redb::Error::Corrupted(detail) => corrupt(detail),
        redb::Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => corrupt("it ends too early".to_owned()),
        error => open_error(path, error),
    }
}

/// A table of ours with types that are not ours: somebody else's file.
fn table_error(path: &Path, error: TableError) -> Error {
    match error {
        TableError::Storage(error @ StorageError::Corrupted(_)) => storage_error(path, error),
        TableError::Storage(error) => open_error(path, error),
        _ => Error::Foreign { path: path.to_owned() },
    }
}

#[cfg(test)]
mod tests;
