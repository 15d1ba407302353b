//! The store as a registry sees it: repositories of this machine, their manifests, tags and blobs.
//!
//! Repositories here are paths without a host; all of them belong to this machine's own registry. HTTP is the
//! registry endpoint's business.

use std::fs::File;
use std::time::SystemTime;

use bytes::Bytes;

use super::digest::{Algorithm, check_digest, is_digest};
use super::manifest::{Descriptor, Document, MANIFEST_MAX};
use super::sink::Sink;
use super::store::{Found, Names, Origin, Store};
use super::{Images, LOCAL, StoreError, blocking, local_repository, now};

/// A manifest as it was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestContent {
    pub digest: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// A manifest that refers to another, as the referrers list shows it.
pub type Referrer = Descriptor;

/// Why a manifest was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PutManifestError {
    #[error("{0:?} is neither a tag nor a digest")]
    Reference(String),
    #[error("the manifest names {digest}, which was not uploaded")]
    BlobUnknown { digest: String },
    #[error("the manifest is not usable: {problem}")]
    Invalid { problem: StoreError },
    #[error("the manifest could not be stored: {problem}")]
    Store { problem: StoreError },
}

/// A blob being pushed. Dropped before `finish`, nothing of it remains.
pub struct BlobUpload {
    sink: Sink,
}

impl BlobUpload {
    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        self.sink.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.sink.write(bytes).await
    }

    /// Checks the digest and puts the blob into the store.
    pub async fn finish(self, digest: &str) -> Result<(), StoreError> {
        self.sink.finish("the uploaded blob".to_owned(), Some(digest.to_owned())).await.map(drop)
    }
}

impl Images {
    pub async fn begin_blob(&self) -> Result<BlobUpload, StoreError> {
        let store = self.inner.store.clone();
        let writer = blocking(move || store.has_room_for(0).and_then(|()| store.begin())).await?;
        Ok(BlobUpload { sink: Sink::new(writer) })
    }

    /// A blob's file and length. Asking for it keeps it from being collected for a while.
    pub async fn open_blob(&self, digest: &str) -> Result<Option<(File, u64)>, StoreError> {
        if !is_digest(digest) {
            return Ok(None);
        }
        let path = self.inner.store.blob_path(digest);
        #[expect(clippy::disallowed_methods, reason = "a file's age is told by the system's clock")]
        let time = SystemTime::now();
        blocking(move || match File::open(&path) {
            Ok(file) => {
                let len = file.metadata().map_err(StoreError::disk("read", &path))?.len();
                // A file that may not be touched is still a blob.
                let _ = file.set_modified(time);
                Ok(Some((file, len)))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::disk("read", &path)(e)),
        })
        .await
    }

    /// Removes a blob that no manifest needs. Returns whether it was there.
    pub async fn delete_blob(&self, digest: &str) -> Result<bool, StoreError> {
        if !is_digest(digest) {
            return Ok(false);
        }
        let (store, digest) = (self.inner.store.clone(), digest.to_owned());
        blocking(move || {
            let roots: Vec<String> =
                store.names().repositories.values().flat_map(|r| r.manifests.keys().cloned()).collect();
            if store.blob_size(&digest).is_none() {
                return Ok(false);
            }
            if store.reachable(roots).contains(&digest) {
                return Err(StoreError::InUse { name: digest });
            }
            let path = store.blob_path(&digest);
            std::fs::remove_file(&path).map_err(StoreError::disk("remove", &path))?;
            Ok(true)
        })
        .await
    }

    pub async fn get_manifest(
        &self,
        repository: &str,
        identifier: &str,
    ) -> Result<Option<ManifestContent>, StoreError> {
        let Some(found) = self.inner.store.find(&local_repository(repository), identifier) else { return Ok(None) };
        let bytes = self.inner.read_blob("the manifest", &found.digest, MANIFEST_MAX).await?;
        Ok(Some(ManifestContent { digest: found.digest, media_type: found.media_type, bytes }))
    }

    /// Takes a manifest whose blobs are all here, under a tag or its digest, and under further tags. From now on its
    /// names run without any network. Returns its digest and the digest of the manifest it refers to, if any.
    pub async fn put_manifest(
        &self,
        repository: &str,
        identifier: &str,
        tags: &[&str],
        bytes: Vec<u8>,
    ) -> Result<(String, Option<String>), PutManifestError> {
        let digest = Algorithm::of(identifier).digest(&bytes);
        let invalid = |problem| PutManifestError::Invalid { problem };
        let mut names: Vec<&str> = tags.to_vec();
        if is_digest(identifier) {
            check_digest("the manifest", identifier, &digest).map_err(invalid)?;
        } else {
            names.push(identifier);
        }
        if let Some(bad) = names.iter().find(|name| !super::reference::is_tag(name)) {
            return Err(PutManifestError::Reference((*bad).to_owned()));
        }
        let tags: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let document = Document::parse("the manifest", &bytes).map_err(invalid)?;
        let found =
            Found { digest: digest.clone(), media_type: document.media_type().to_owned(), origin: Origin::Given };
        let subject = document.subject().map(|s| s.digest.clone());
        let (store, repository) = (self.inner.store.clone(), local_repository(repository));
        let answer = (digest.clone(), subject);
        let _no_collection = self.inner.collecting.read().await;
        let put = move || {
            if let Some(missing) = missing_blob(&store, &document) {
                return Ok(Err(missing));
            }
            store.put_blob_as(&digest, &bytes)?;
            store.name(&repository, &tags, &found, now()).map(Ok)
        };
        match blocking(put).await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(digest)) => Err(PutManifestError::BlobUnknown { digest }),
            Err(problem) => Err(PutManifestError::Store { problem }),
        }
    }

    /// Returns whether the tag or digest was there.
    pub async fn delete_manifest(&self, repository: &str, identifier: &str) -> Result<bool, StoreError> {
        self.remove_name(local_repository(repository), identifier.to_owned()).await
    }

    /// Tags in order; `None` when there is no such repository.
    pub fn tags(&self, repository: &str) -> Option<Vec<String>> {
        let names = self.inner.store.names();
        let entry = names.repositories.get(&local_repository(repository))?;
        Some(entry.tags.keys().cloned().collect())
    }

    /// Repositories of this machine's registry, in order.
    pub fn repositories(&self) -> Vec<String> {
        let prefix = format!("{LOCAL}/");
        let names = self.inner.store.names();
        names.repositories.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// Manifests of a repository whose subject is `digest`.
    pub async fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Referrer>, StoreError> {
        let (store, repository, digest) = (self.inner.store.clone(), local_repository(repository), digest.to_owned());
        blocking(move || {
            let manifests = manifests_of(&store.names(), &repository);
            Ok(manifests.into_iter().filter_map(|m| referrer(&store, &m, &digest)).collect())
        })
        .await
    }
}

fn manifests_of(names: &Names, repository: &str) -> Vec<String> {
    names.repositories.get(repository).map(|r| r.manifests.keys().cloned().collect()).unwrap_or_default()
}

fn referrer(store: &Store, digest: &str, subject: &str) -> Option<Referrer> {
    let bytes = store.read_blob("the manifest", digest, MANIFEST_MAX).ok()?;
    let document = Document::parse("the manifest", &bytes).ok()?;
    if document.subject()?.digest != subject {
        return None;
    }
    let (artifact_type, annotations) = match &document {
        Document::Image(m) => {
            let own = m.artifact_type.clone().filter(|t| !t.is_empty());
            (Some(own.unwrap_or_else(|| m.config.media_type.clone())), m.annotations.clone())
        }
        Document::Index(i) => (i.artifact_type.clone().filter(|t| !t.is_empty()), i.annotations.clone()),
    };
    Some(Descriptor {
        media_type: document.media_type().to_owned(),
        digest: digest.to_owned(),
        size: bytes.len() as u64,
        platform: None,
        annotations,
        artifact_type,
    })
}

/// The first thing an image needs and the store has not. Indexes may name images of other platforms that nobody
/// pushed, and layers that may not be distributed are never pushed.
fn missing_blob(store: &Store, document: &Document) -> Option<String> {
    let Document::Image(manifest) = document else { return None };
    let pushed = |d: &&Descriptor| !d.media_type.contains("nondistributable") && !d.media_type.contains("foreign");
    std::iter::once(&manifest.config)
        .chain(&manifest.layers)
        .filter(pushed)
        .find(|d| store.blob_size(&d.digest).is_none())
        .map(|d| d.digest.clone())
}
