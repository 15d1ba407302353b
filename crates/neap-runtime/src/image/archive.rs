//! Images from files: `docker save` archives, OCI layouts in a tar, and plain files from memory.
//!
//! An archive is read once, front to back, so it may come from a pipe. Every file in it becomes a blob first; only
//! what an image needs keeps its place in the store, and names are given last.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::digest::digest_of;
use super::error::StoreError;
use super::manifest::{
    CONFIG_MAX, ConfigFile, Descriptor, Document, Index, MANIFEST_MAX, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD, OCI_MANIFEST, RootFs, RunConfig,
};
use super::store::{Found, Origin, Store};
use super::unpack::decompress;
use super::{ImageConfig, Platform, Reference};

/// The name containerd and Docker give an image in an OCI layout; the second may be a bare tag.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Entries of an archive at most. Real ones have a few hundred.
const ENTRIES_MAX: usize = 100_000;
/// Steps through links in an archive at most.
const LINKS_MAX: usize = 8;

/// What an archive brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub name: String,
    pub digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A file of the archive, by its cleaned path.
enum Entry {
    Blob { digest: String, size: u64, media_type: &'static str },
    Link(String),
}

/// Reads an archive into the store. `name` replaces the names in it. The caller names what is returned.
pub(super) fn read(
    store: &Arc<Store>,
    archive: impl Read,
    name: Option<&str>,
) -> Result<Vec<(Reference, Found)>, StoreError> {
    let entries = read_entries(store, archive)?;
    let images = match (find(&entries, "index.json"), find(&entries, "manifest.json")) {
        (Some(index), saved) => from_layout(store, &entries, index, saved, name),
        (None, Some(saved)) => from_saved(store, &entries, saved, name),
        (None, None) => Err(broken("it has neither manifest.json (docker save) nor index.json (OCI layout)")),
    }?;
    if images.is_empty() {
        return Err(broken("it holds no image with a name; give one"));
    }
    Ok(images)
}

/// An image of one layer made from files in memory. The same files give the same digest.
pub(super) fn build(
    store: &Store,
    files: &[(&str, u32, &[u8])],
    config: &ImageConfig,
    platform: &Platform,
) -> Result<Found, StoreError> {
    let mut sorted: BTreeMap<PathBuf, (u32, &[u8])> = BTreeMap::new();
    for (path, mode, bytes) in files {
        let path = clean(Path::new(path)).ok_or_else(|| StoreError::Broken {
            what: "the list of files".to_owned(),
            problem: format!("{path:?} is not a path in an image"),
        })?;
        sorted.insert(path, (*mode, bytes));
    }
    let layer = layer_tar(&sorted).map_err(StoreError::disk("write", store.dir()))?;
    let diff_id = store.put_blob(&layer)?;
    let file = ConfigFile {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        config: RunConfig::from_image_config(config),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id.clone()] },
    };
    let config = serde_json::to_vec(&file).expect("a configuration is plain data");
    let config = descriptor(OCI_CONFIG, store.put_blob(&config)?, config.len() as u64);
    put_manifest(store, config, vec![descriptor(OCI_LAYER, diff_id, layer.len() as u64)])
}

/// Parents first, then what is in them; all owned by root, all from the beginning of time.
fn layer_tar(files: &BTreeMap<PathBuf, (u32, &[u8])>) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut directories = std::collections::BTreeSet::new();
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    for (path, (mode, bytes)) in files {
        let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        parents.reverse();
        for parent in parents {
            if directories.insert(parent.to_owned()) {
                let mut entry = header(tar::EntryType::Directory, 0o755, 0);
                tar.append_data(&mut entry, parent.join(""), std::io::empty())?;
            }
        }
        let mut entry = header(tar::EntryType::Regular, *mode, bytes.len() as u64);
        tar.append_data(&mut entry, path, *bytes)?;
    }
    tar.into_inner()
}

fn read_entries(store: &Arc<Store>, archive: impl Read) -> Result<HashMap<String, Entry>, StoreError> {
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::StorageFull => StoreError::Full { path: store.dir().to_owned() },
        _ => broken(&e.to_string()),
    };
    let mut entries = HashMap::new();
    let mut tar = tar::Archive::new(decompress(archive).map_err(unreadable)?);
    for entry in tar.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let Some(path) = clean(&entry.path().map_err(unreadable)?) else { continue };
        if entries.len() >= ENTRIES_MAX {
            return Err(broken("it has too many entries for an image archive"));
        }
        let kind = entry.header().entry_type();
        let key = path.to_string_lossy().into_owned();
        if kind.is_file() {
            let mut writer = store.begin()?;
            let mut buffer = vec![0; 128 << 10];
            let mut first = [0; 4];
            loop {
                let n = entry.read(&mut buffer).map_err(unreadable)?;
                if n == 0 {
                    break;
                }
                if writer.len() == 0 {
                    let have = n.min(first.len());
                    first[..have].copy_from_slice(&buffer[..have]);
                }
                writer.write(&buffer[..n])?;
            }
            let size = writer.len();
            let digest = writer.finish("a file of the archive", None)?;
            let media_type = match first {
                [0x1f, 0x8b, ..] => OCI_LAYER_GZIP,
                [0x28, 0xb5, 0x2f, 0xfd] => OCI_LAYER_ZSTD,
                _ => OCI_LAYER,
            };
            entries.insert(key, Entry::Blob { digest, size, media_type });
        } else if kind.is_symlink() || kind.is_hard_link() {
            let Some(target) = entry.link_name().map_err(unreadable)? else { continue };
            // Docker links equal layers, relative to the link; hard links count from the root.
            let base = if kind.is_symlink() { path.parent().unwrap_or(Path::new("")) } else { Path::new("") };
            if let Some(target) = normalize(&base.join(target)) {
                entries.insert(key, Entry::Link(target.to_string_lossy().into_owned()));
            }
        }
    }
    Ok(entries)
}

/// The names and images of an OCI layout. Docker writes `manifest.json` beside it, which knows more names.
fn from_layout(
    store: &Store,
    entries: &HashMap<String, Entry>,
    index: (&str, u64),
    saved: Option<(&str, u64)>,
    name: Option<&str>,
) -> Result<Vec<(Reference, Found)>, StoreError> {
    let bytes = store.read_blob("index.json", index.0, MANIFEST_MAX)?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| broken(&format!("index.json: {e}")))?;
    let saved = match saved {
        Some((digest, _)) => saved_images(store, digest)?,
        None => Vec::new(),
    };
    let mut images = Vec::new();
    for entry in &index.manifests {
        let bytes = store.read_blob("the manifest in index.json", &entry.digest, MANIFEST_MAX)?;
        let document = Document::parse("the manifest in index.json", &bytes)?;
        let found =
            Found { digest: entry.digest.clone(), media_type: document.media_type().to_owned(), origin: Origin::Given };
        let mut names: Vec<String> = Vec::new();
        if let Some(name) = name {
            names.push(name.to_owned());
        } else if let Some(full) = entry.annotations.get(FULL_NAME) {
            names.push(full.clone());
        } else {
            if let Document::Image(manifest) = &document {
                let same = |s: &&SavedImage| {
                    find(entries, &s.config).is_some_and(|(digest, _)| digest == manifest.config.digest)
                };
                names.extend(saved.iter().filter(same).flat_map(|s| s.repo_tags.clone().unwrap_or_default()));
            }
            if names.is_empty() {
                names.extend(entry.annotations.get(REF_NAME).cloned());
            }
        }
        for name in names {
            images.push((parse_name(&name)?, found.clone()));
        }
    }
    Ok(images)
}

/// `docker save` before OCI: a configuration and layers by path, from which a manifest is made.
fn from_saved(
    store: &Store,
    entries: &HashMap<String, Entry>,
    saved: (&str, u64),
    name: Option<&str>,
) -> Result<Vec<(Reference, Found)>, StoreError> {
    let mut images = Vec::new();
    for image in saved_images(store, saved.0)? {
        let missing = |path: &str| broken(&format!("manifest.json names {path}, which is not in it"));
        let (config, size) = find(entries, &image.config).ok_or_else(|| missing(&image.config))?;
        if size > CONFIG_MAX {
            return Err(broken("its configuration is too large"));
        }
        let config = descriptor(OCI_CONFIG, config.to_owned(), size);
        let layers = image.layers.iter().map(|path| {
            let (digest, size, media_type) = find_layer(entries, path).ok_or_else(|| missing(path))?;
            Ok(descriptor(media_type, digest.to_owned(), size))
        });
        let found = put_manifest(store, config, layers.collect::<Result<_, StoreError>>()?)?;
        let names = match name {
            Some(name) => vec![name.to_owned()],
            None => image.repo_tags.unwrap_or_default(),
        };
        for name in names {
            images.push((parse_name(&name)?, found.clone()));
        }
    }
    Ok(images)
}

fn saved_images(store: &Store, digest: &str) -> Result<Vec<SavedImage>, StoreError> {
    let bytes = store.read_blob("manifest.json", digest, MANIFEST_MAX)?;
    serde_json::from_slice(&bytes).map_err(|e| broken(&format!("manifest.json: {e}")))
}

fn put_manifest(store: &Store, config: Descriptor, layers: Vec<Descriptor>) -> Result<Found, StoreError> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        config,
        layers,
        subject: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("a manifest is plain data");
    let digest = digest_of(&bytes);
    store.put_blob(&bytes)?;
    Ok(Found { digest, media_type: OCI_MANIFEST.to_owned(), origin: Origin::Given })
}

fn descriptor(media_type: &str, digest: String, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, ..Descriptor::default() }
}

fn find<'a>(entries: &'a HashMap<String, Entry>, path: &str) -> Option<(&'a str, u64)> {
    find_layer(entries, path).map(|(digest, size, _)| (digest, size))
}

fn find_layer<'a>(entries: &'a HashMap<String, Entry>, path: &str) -> Option<(&'a str, u64, &'static str)> {
    let mut path = normalize(Path::new(path))?.to_string_lossy().into_owned();
    for _ in 0..LINKS_MAX {
        match entries.get(&path)? {
            Entry::Blob { digest, size, media_type } => return Some((digest, *size, media_type)),
            Entry::Link(target) => path = target.clone(),
        }
    }
    None
}

fn parse_name(name: &str) -> Result<Reference, StoreError> {
    Reference::parse(name).map_err(|problem| StoreError::Name { name: name.to_owned(), problem })
}

/// A relative path without `.`; `None` for the root and for what leaves it.
fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

/// Like `clean`, with `..` taken as it is written (only ever used as a key, never opened).
fn normalize(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if !clean.pop() => return None,
            _ => {}
        }
    }
    Some(clean)
}

fn broken(problem: &str) -> StoreError {
    StoreError::Broken { what: "the archive".to_owned(), problem: problem.to_owned() }
}
