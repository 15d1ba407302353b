//! The store on disk: blobs by digest, and which names stand for which digests.
//!
//! Synchronous and without policy. A blob becomes visible by a rename after its bytes were checked and flushed; the
//! names are one small file that is written aside and renamed. A crash leaves the old state or the new one.
//!
//! ```text
//! DIR/names.json               which repository knows which manifests and tags, with a format version
//! DIR/blobs/ALGORITHM/HEX      manifests, configurations, layers as they came; sha256, or as whoever pushed it said
//! DIR/incoming/…               what is not yet whole; `HEX.part` may be continued
//! DIR/layers*/HEX32            one directory per unpacked layer (see `unpack`)
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::digest::{Algorithm, check_bytes, check_digest, copy_hashed, digest_of, hex, hex_of};
use super::error::StoreError;
use super::manifest::Document;
use crate::disk;

/// Format of `names.json`. A greater number is refused: a newer Neap wrote it.
const FORMAT: u32 = 1;
/// Unfinished downloads older than this are not continued: the registry's content has most likely moved on.
const PART_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Bytes written between two looks at the disk.
const LOOK: u64 = 1 << 20;

pub(super) struct Store {
    dir: PathBuf,
    names: Mutex<Names>,
}

/// Everything that is known by name. Repositories are `registry/path`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Names {
    format: u32,
    pub(super) repositories: BTreeMap<String, Repository>,
    /// Manifest digest to when it last ran or was asked for.
    #[serde(default)]
    pub(super) used: BTreeMap<String, jiff::Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Repository {
    pub(super) tags: BTreeMap<String, String>,
    pub(super) manifests: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) media_type: String,
    pub(super) origin: Origin,
}

/// Where a name came from. It decides who is asked what the name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A copy of what a registry has; that registry knows best.
    Pulled,
    /// Pushed, loaded or built here: this store knows best, no registry is asked.
    Given,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) origin: Origin,
}

impl Store {
    pub(super) fn open(dir: &Path, now: SystemTime) -> Result<Self, StoreError> {
        let blobs = Algorithm::ALL.map(|algorithm| blobs_dir(dir, algorithm));
        for path in blobs.into_iter().chain([dir.join("incoming")]) {
            fs::create_dir_all(&path).map_err(StoreError::disk("make the directory", &path))?;
        }
        sweep_incoming(&dir.join("incoming"), now);
        let path = dir.join("names.json");
        let names = match fs::read(&path) {
            Ok(bytes) => read_names(&path, &bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Names { format: FORMAT, ..Names::default() },
            Err(e) => return Err(StoreError::disk("read", &path)(e)),
        };
        Ok(Self { dir: dir.to_owned(), names: Mutex::new(names) })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    // ---- names ----

    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the names and writes them down before anybody sees the change.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Names) -> T) -> Result<T, StoreError> {
        let mut names = self.names();
        let mut next = names.clone();
        let answer = change(&mut next);
        if next != *names {
            self.write_names(&next)?;
            *names = next;
        }
        Ok(answer)
    }

    fn write_names(&self, names: &Names) -> Result<(), StoreError> {
        let path = self.dir.join("names.json");
        let aside = self.dir.join("names.json.new");
        let bytes = serde_json::to_vec_pretty(names).expect("names are plain maps of strings");
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            fs::rename(&aside, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(StoreError::disk("write", &path))
    }

    /// Makes a manifest known in a repository, and tags of it. A manifest that was given stays given.
    pub(super) fn name(
        &self,
        repository: &str,
        tags: &[String],
        found: &Found,
        now: jiff::Timestamp,
    ) -> Result<(), StoreError> {
        self.change(|names| {
            let entry = names.repositories.entry(repository.to_owned()).or_default();
            let known = Known { media_type: found.media_type.clone(), origin: found.origin };
            let known = entry.manifests.entry(found.digest.clone()).or_insert(known);
            if found.origin == Origin::Given {
                known.origin = Origin::Given;
            }
            entry.tags.extend(tags.iter().map(|tag| (tag.clone(), found.digest.clone())));
            names.used.insert(found.digest.clone(), now);
        })
    }

    /// What a tag or digest stands for in a repository.
    pub(super) fn find(&self, repository: &str, identifier: &str) -> Option<Found> {
        let names = self.names();
        let entry = names.repositories.get(repository)?;
        let digest = entry.tags.get(identifier).map_or(identifier, String::as_str);
        let known = entry.manifests.get(digest)?;
        Some(Found { digest: digest.to_owned(), media_type: known.media_type.clone(), origin: known.origin })
    }

    /// A manifest by its digest, whatever repository it came by: content is content.
    pub(super) fn find_digest(&self, digest: &str) -> Option<Found> {
        let names = self.names();
        let known = names.repositories.values().find_map(|r| r.manifests.get(digest))?;
        Some(Found { digest: digest.to_owned(), media_type: known.media_type.clone(), origin: known.origin })
    }

    // ---- blobs ----

    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        blobs_dir(&self.dir, Algorithm::of(digest)).join(hex_of(digest))
    }

    pub(super) fn blob_size(&self, digest: &str) -> Option<u64> {
        fs::metadata(self.blob_path(digest)).ok().filter(fs::Metadata::is_file).map(|m| m.len())
    }

    /// Whole and of the length the manifest says; anything else is a leftover of a crash and counts as absent.
    pub(super) fn has_blob(&self, digest: &str, size: u64) -> bool {
        self.blob_size(digest) == Some(size)
    }

    /// A small blob (manifest, configuration), checked again on the way in.
    pub(super) fn read_blob(&self, what: &str, digest: &str, max: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { what: format!("{what} {digest}") });
            }
            Err(e) => return Err(StoreError::disk("open", &path)(e)),
        };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(StoreError::disk("read", &path))?;
        if bytes.len() as u64 > max {
            return Err(StoreError::Length { what: what.to_owned(), want: max, got: bytes.len() as u64 });
        }
        check_bytes(what, digest, &bytes)?;
        Ok(bytes)
    }

    /// Removes a blob that is not what its digest says. Returns whether it did.
    pub(super) fn drop_if_damaged(&self, digest: &str) -> bool {
        let path = self.blob_path(digest);
        let hashed = || Algorithm::of(digest).digest_from(&mut File::open(&path)?);
        let damaged = hashed().is_ok_and(|got| got != digest);
        if damaged {
            tracing::warn!(path = %path.display(), "removing content that is not what its digest says");
        }
        damaged && fs::remove_file(&path).is_ok()
    }

    /// Whether so many bytes may still arrive: what pods run on is not for images.
    pub(super) fn has_room_for(&self, bytes: u64) -> Result<(), StoreError> {
        let disk =
            nix::sys::statvfs::statvfs(&self.dir).map_err(|e| StoreError::disk("measure", &self.dir)(e.into()))?;
        match disk::takes(&disk, bytes) {
            true => Ok(()),
            false => Err(StoreError::Full { path: self.dir.clone() }),
        }
    }

    pub(super) fn put_blob(&self, bytes: &[u8]) -> Result<String, StoreError> {
        let digest = digest_of(bytes);
        self.put_blob_as(&digest, bytes)?;
        Ok(digest)
    }

    /// Content under a digest that was checked already.
    pub(super) fn put_blob_as(&self, digest: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has_blob(digest, bytes.len() as u64) {
            return Ok(());
        }
        let mut writer = self.begin()?;
        writer.write(bytes)?;
        writer.finish("content", Some(digest)).map(drop)
    }

    /// A new blob whose digest may not yet be known.
    pub(super) fn begin(&self) -> Result<BlobWriter, StoreError> {
        let incoming = self.dir.join("incoming");
        let file = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&incoming)
            .map_err(StoreError::disk("write in", &incoming))?;
        let (file, path) = file.keep().map_err(|e| StoreError::disk("write in", &incoming)(e.error))?;
        Ok(BlobWriter { file, path, store: self.dir.clone(), hash: Sha256::new(), len: 0, unseen: 0, keep: false })
    }

    /// A blob of known digest, continued where an earlier attempt stopped.
    pub(super) fn resume(&self, digest: &str) -> Result<BlobWriter, StoreError> {
        let path = self.dir.join("incoming").join(format!("{}.part", hex_of(digest)));
        let open = || {
            let mut file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let mut hash = Sha256::new();
            let len = copy_hashed(&mut file, &mut io::sink(), &mut hash)?;
            Ok((file, hash, len))
        };
        let (file, hash, len) = open().map_err(StoreError::disk("write", &path))?;
        Ok(BlobWriter { file, path, store: self.dir.clone(), hash, len, unseen: 0, keep: true })
    }

    /// Every manifest, configuration and layer that can be reached from the given manifests, as far as it is here.
    pub(super) fn reachable(&self, roots: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut queue: VecDeque<String> = roots.into_iter().collect();
        while let Some(digest) = queue.pop_front() {
            if seen.contains(&digest) {
                continue;
            }
            if let Ok(bytes) = self.read_blob("manifest", &digest, super::manifest::MANIFEST_MAX) {
                match Document::parse("manifest", &bytes) {
                    Ok(Document::Index(index)) => queue.extend(index.manifests.into_iter().map(|d| d.digest)),
                    Ok(image @ Document::Image(_)) => seen.extend(image.descriptors().map(|d| d.digest.clone())),
                    Err(_) => {}
                }
            }
            seen.insert(digest);
        }
        seen
    }
}

/// A blob on its way in. Dropped before `finish` it is removed, unless it can be continued.
pub(super) struct BlobWriter {
    file: File,
    path: PathBuf,
    store: PathBuf,
    hash: Sha256,
    len: u64,
    /// Bytes written since the last look at the disk.
    unseen: u64,
    keep: bool,
}

impl BlobWriter {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if let Err(e) = self.file.write_all(bytes) {
            // Half of the bytes may be there, and on a full disk they are in the way.
            self.keep = false;
            return Err(StoreError::disk("write", &self.path)(e));
        }
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        self.unseen += bytes.len() as u64;
        if self.unseen >= LOOK {
            self.unseen = 0;
            let disk = nix::sys::statvfs::fstatvfs(&self.file);
            if disk.is_ok_and(|disk| !disk::takes(&disk, 0)) {
                self.keep = false;
                return Err(StoreError::Full { path: self.path.clone() });
            }
        }
        Ok(())
    }

    /// Throws away what is there and begins again.
    pub(super) fn restart(&mut self) -> Result<(), StoreError> {
        use std::io::Seek;
        let restart = |file: &mut File| file.set_len(0).and_then(|()| file.rewind());
        restart(&mut self.file).map_err(StoreError::disk("write", &self.path))?;
        self.hash = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Checks the digest, flushes and installs. Returns the digest.
    ///
    /// How a digest will be computed is known only now; what was summed up on the way is SHA-256, for any other
    /// algorithm the file is read once more.
    pub(super) fn finish(mut self, what: &str, want: Option<&str>) -> Result<String, StoreError> {
        self.keep = false;
        let got = match want.map(Algorithm::of) {
            None | Some(Algorithm::Sha256) => format!("sha256:{}", hex(&self.hash.finalize_reset())),
            Some(other) => File::open(&self.path)
                .and_then(|mut file| other.digest_from(&mut file))
                .map_err(StoreError::disk("read", &self.path))?,
        };
        if let Some(want) = want {
            check_digest(what, want, &got)?;
        }
        let blobs = blobs_dir(&self.store, Algorithm::of(&got));
        let target = blobs.join(hex_of(&got));
        let install = || {
            self.file.sync_data()?;
            fs::rename(&self.path, &target)?;
            File::open(&blobs)?.sync_all()
        };
        install().map_err(StoreError::disk("write", &target))?;
        // The file has its new name: nothing is left to remove.
        self.keep = true;
        Ok(got)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.keep {
            // It may have been renamed; nothing else can be done about a file that will not go.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where the blobs of an algorithm are.
pub(super) fn blobs_dir(store: &Path, algorithm: Algorithm) -> PathBuf {
    store.join("blobs").join(algorithm.name())
}

fn read_names(path: &Path, bytes: &[u8]) -> Result<Names, StoreError> {
    let broken = |problem: String| StoreError::Broken { what: path.display().to_string(), problem };
    let names: Names = serde_json::from_slice(bytes).map_err(|e| broken(e.to_string()))?;
    if names.format > FORMAT {
        let problem =
            format!("it has format {}, this Neap reads {FORMAT}; use the newer Neap that wrote it", names.format);
        return Err(broken(problem));
    }
    Ok(names)
}

/// What an earlier run did not finish: scratch files go, downloads that can be continued stay for a day.
fn sweep_incoming(dir: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let part = entry.path().extension().is_some_and(|e| e == "part");
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| now.duration_since(t).ok());
        if part && age.is_some_and(|age| age < PART_KEPT) {
            continue;
        }
        // A leftover that cannot be removed costs space, not correctness.
        let _ = crate::trees::remove(&entry.path());
    }
}
