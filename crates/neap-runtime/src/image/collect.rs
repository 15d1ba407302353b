//! What is in the store, and what may go.
//!
//! Names that were given here (pushed, loaded, built) are never taken away by collection, only by `remove`. What was
//! pulled goes when nobody ran it for a while. Content goes when no name needs it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use super::digest::{Algorithm, hex_of, is_sha256};
use super::manifest::{CONFIG_MAX, ConfigFile, Document, MANIFEST_MAX};
use super::pull::names_in_chain;
use super::store::{Names, Origin, Store, blobs_dir};
use super::{Images, LOCAL, Layout, Reference, StoreError, blocking, now};

/// Content that no name needs is spared while it is this young: a push sends blobs long before the manifest.
const YOUNG: Duration = Duration::from_secs(3600);

/// One name of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `registry/repository`.
    pub repository: String,
    /// `None` for what is known by digest only.
    pub tag: Option<String>,
    pub digest: String,
    pub origin: Origin,
    /// Bytes of the compressed content that is here or was pulled.
    pub size: u64,
    pub last_used: Option<jiff::Timestamp>,
}

/// What a collection took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub names: usize,
    pub blobs: usize,
    pub layers: usize,
    /// Of the blobs; unpacked layers are not measured.
    pub bytes: u64,
}

impl Images {
    /// Every name, sorted.
    pub async fn list(&self) -> Result<Vec<ImageInfo>, StoreError> {
        self.write_uses().await?;
        let shown = self.local_registry_name();
        let store = self.inner.store.clone();
        blocking(move || {
            let names = store.names().clone();
            let mut list = Vec::new();
            for (repository, entry) in &names.repositories {
                let repository = match repository.strip_prefix(LOCAL) {
                    Some(path) => format!("{shown}{path}"),
                    None => repository.clone(),
                };
                let tagged: BTreeSet<&String> = entry.tags.values().collect();
                let tags = entry.tags.iter().map(|(tag, digest)| (Some(tag.clone()), digest));
                let untagged = entry.manifests.keys().filter(|d| !tagged.contains(d)).map(|digest| (None, digest));
                for (tag, digest) in tags.chain(untagged) {
                    list.push(ImageInfo {
                        repository: repository.clone(),
                        tag,
                        digest: digest.clone(),
                        origin: entry.manifests.get(digest).map_or(Origin::Pulled, |k| k.origin),
                        size: size_of(&store, digest),
                        last_used: names.used.get(digest).copied(),
                    });
                }
            }
            Ok(list)
        })
        .await
    }

    /// Takes a name away: a tag, or with a digest the manifest and every tag of it in that repository. `in_use` are
    /// digests of images that run.
    pub async fn remove(&self, reference: &str, in_use: &BTreeSet<String>) -> Result<(), StoreError> {
        let parsed =
            Reference::parse(reference).map_err(|problem| StoreError::Name { name: reference.to_owned(), problem })?;
        let repository = self.inner.repository(&parsed);
        let missing = || StoreError::NoSuchImage { name: reference.to_owned() };
        let found = self.inner.store.find(&repository, parsed.identifier()).ok_or_else(missing)?;
        if in_use.contains(&found.digest) {
            return Err(StoreError::InUse { name: reference.to_owned() });
        }
        self.remove_name(repository, parsed.identifier().to_owned()).await.map(drop)
    }

    /// `identifier` is a tag or a digest. Returns whether it was there.
    pub(super) async fn remove_name(&self, repository: String, identifier: String) -> Result<bool, StoreError> {
        let store = self.inner.store.clone();
        blocking(move || store.change(|names| forget(names, &repository, &identifier))).await
    }

    /// Takes away what was pulled and not used since `unused_for`, except `keep` (image digests), then all content
    /// that no name needs. Does nothing while a pull or load is under way.
    pub async fn collect(&self, keep: &BTreeSet<String>, unused_for: Duration) -> Result<Collected, StoreError> {
        self.write_uses().await?;
        let Ok(_alone) = self.inner.collecting.try_write() else { return Ok(Collected::default()) };
        let (store, keep) = (self.inner.store.clone(), keep.clone());
        let time = now();
        let before = time.checked_sub(unused_for).unwrap_or(jiff::Timestamp::MIN);
        let collected = blocking(move || sweep(&store, &keep, before, time.into())).await?;
        if collected.layers > 0 {
            // Whatever lost its layers is made ready anew when it is asked for.
            self.inner.ready().retain(|_, ready| ready.stands());
        }
        Ok(collected)
    }

    /// Writes down the last uses that were only remembered so far.
    async fn write_uses(&self) -> Result<(), StoreError> {
        let used = std::mem::take(&mut *self.inner.used.lock().unwrap_or_else(PoisonError::into_inner));
        let store = self.inner.store.clone();
        blocking(move || store.change(|names| names.used.extend(used))).await
    }

    fn local_registry_name(&self) -> String {
        let names = self.inner.local.read().unwrap_or_else(PoisonError::into_inner);
        let preferred = names.iter().find(|n| n.starts_with("localhost:")).or_else(|| names.first());
        preferred.cloned().unwrap_or_else(|| LOCAL.to_owned())
    }
}

fn forget(names: &mut Names, repository: &str, identifier: &str) -> bool {
    let Some(entry) = names.repositories.get_mut(repository) else { return false };
    let there = match entry.tags.remove(identifier) {
        // The manifest goes with its last tag; in our own registry it stays reachable by digest.
        Some(digest) => {
            if !entry.tags.values().any(|d| *d == digest) && !repository.starts_with(LOCAL) {
                entry.manifests.remove(&digest);
            }
            true
        }
        None => {
            entry.tags.retain(|_, digest| digest != identifier);
            entry.manifests.remove(identifier).is_some()
        }
    };
    names.repositories.retain(|_, r| !r.manifests.is_empty());
    there
}

fn sweep(
    store: &Store,
    keep: &BTreeSet<String>,
    before: jiff::Timestamp,
    time: SystemTime,
) -> Result<Collected, StoreError> {
    let names = store.change(|names| {
        let mut dropped = 0;
        let used = names.used.clone();
        let stale = |digest: &String| !keep.contains(digest) && used.get(digest).is_none_or(|t| *t < before);
        for entry in names.repositories.values_mut() {
            let tagged: BTreeSet<String> = entry.tags.values().cloned().collect();
            let count = entry.manifests.len();
            // Given images stay as long as a tag names them; a digest without a tag is an older push.
            entry
                .manifests
                .retain(|digest, known| !stale(digest) || (known.origin == Origin::Given && tagged.contains(digest)));
            dropped += count - entry.manifests.len();
            entry.tags.retain(|_, digest| entry.manifests.contains_key(digest));
        }
        names.repositories.retain(|_, r| !r.manifests.is_empty());
        let known: BTreeSet<&String> = names.repositories.values().flat_map(|r| r.manifests.keys()).collect();
        let gone: Vec<String> = used.keys().filter(|d| !known.contains(d)).cloned().collect();
        for digest in gone {
            names.used.remove(&digest);
        }
        dropped
    })?;
    let manifests: Vec<(String, Origin)> = {
        let names = store.names();
        let all = names.repositories.values().flat_map(|r| &r.manifests);
        let named: Vec<_> = all.map(|(digest, known)| (digest.clone(), known.origin)).collect();
        // What runs stays, also when its name was taken away: its layers are mounted.
        let kept = keep.iter().filter(|digest| named.iter().all(|(known, _)| known != *digest));
        let kept: Vec<_> = kept.map(|digest| (digest.clone(), Origin::Pulled)).collect();
        named.into_iter().chain(kept).collect()
    };
    let mut collected = Collected { names, ..Collected::default() };
    let (blobs, layers) = needed(store, &manifests);
    let mut files = Vec::new();
    for algorithm in Algorithm::ALL {
        let directory = blobs_dir(store.dir(), algorithm);
        files.extend(fs::read_dir(&directory).map_err(StoreError::disk("read", &directory))?.flatten());
    }
    for entry in files {
        let name = entry.file_name();
        let Ok(meta) = entry.metadata() else { continue };
        if blobs.contains(&*name.to_string_lossy()) || is_young(&meta, time) {
            continue;
        }
        fs::remove_file(entry.path()).map_err(StoreError::disk("remove", &entry.path()))?;
        collected.blobs += 1;
        collected.bytes += meta.len();
    }
    for layout in Layout::ALL {
        collected.layers += sweep_layers(&store.dir().join(layout.directory()), &layers)?;
    }
    Ok(collected)
}

/// Names of the blob files and of the layer directories that the manifests need. A pulled layer that is unpacked needs
/// its blob no more: nobody can ask us for it, and its registry has it.
fn needed(store: &Store, manifests: &[(String, Origin)]) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut blobs = BTreeSet::new();
    let mut layers = BTreeSet::new();
    for (root, origin) in manifests {
        // A merged image lies under its own digest.
        let merged = layer_name(root);
        layers.insert(merged.to_owned());
        let mut needed = store.reachable([root.clone()]);
        for digest in needed.clone() {
            for (layer, unpacked_as) in layers_of(store, &digest) {
                let names = unpacked_as.each_ref().map(|digest| layer_name(digest));
                let unpacked = names.iter().chain([&merged]).any(|name| is_unpacked(store, name));
                if *origin == Origin::Pulled && unpacked {
                    needed.remove(&layer);
                }
                layers.extend(names.map(str::to_owned));
            }
        }
        blobs.extend(needed.iter().map(|digest| hex_of(digest).to_owned()));
    }
    (blobs, layers)
}

fn layer_name(digest: &str) -> &str {
    &hex_of(digest)[..32]
}

fn is_unpacked(store: &Store, name: &str) -> bool {
    Layout::ALL.iter().any(|layout| store.dir().join(layout.directory()).join(name).is_dir())
}

/// An image manifest's layers, each with the two names it may be unpacked under; empty for anything else.
fn layers_of(store: &Store, digest: &str) -> Vec<(String, [String; 2])> {
    let read = || -> Option<Vec<(String, [String; 2])>> {
        let bytes = store.read_blob("manifest", digest, MANIFEST_MAX).ok()?;
        let Document::Image(manifest) = Document::parse("manifest", &bytes).ok()? else { return None };
        let bytes = store.read_blob("configuration", &manifest.config.digest, CONFIG_MAX).ok()?;
        let file: ConfigFile = serde_json::from_slice(&bytes).ok()?;
        let in_chain = names_in_chain(&file.rootfs.diff_ids);
        let names = file.rootfs.diff_ids.into_iter().zip(in_chain).map(|(diff_id, in_chain)| [diff_id, in_chain]);
        let pairs = manifest.layers.into_iter().map(|l| l.digest).zip(names);
        Some(pairs.filter(|(_, [diff_id, _])| is_sha256(diff_id)).collect())
    };
    read().unwrap_or_default()
}

fn sweep_layers(directory: &Path, needed: &BTreeSet<String>) -> Result<usize, StoreError> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(0) };
    let mut removed = 0;
    for entry in entries.flatten() {
        if needed.contains(&*entry.file_name().to_string_lossy()) {
            continue;
        }
        crate::trees::remove(&entry.path()).map_err(StoreError::disk("remove", &entry.path()))?;
        removed += 1;
    }
    Ok(removed)
}

fn is_young(meta: &fs::Metadata, time: SystemTime) -> bool {
    let age = meta.modified().ok().and_then(|t| time.duration_since(t).ok());
    age.is_none_or(|age| age < YOUNG)
}

fn size_of(store: &Store, digest: &str) -> u64 {
    let sizes = |digest: &str| {
        let bytes = store.read_blob("manifest", digest, MANIFEST_MAX).ok()?;
        Some((bytes.len() as u64, Document::parse("manifest", &bytes).ok()?))
    };
    match sizes(digest) {
        Some((own, Document::Image(manifest))) => {
            own + manifest.config.size + manifest.layers.iter().map(|l| l.size).sum::<u64>()
        }
        Some((own, Document::Index(index))) => {
            let children = index.manifests.iter().filter(|d| store.blob_size(&d.digest).is_some());
            own + children.map(|d| size_of(store, &d.digest)).sum::<u64>()
        }
        None => 0,
    }
}
