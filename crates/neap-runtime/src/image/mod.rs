//! Images on this machine: names, a store by digest, pulls, unpacked layers, archives.
//!
//! [`Images`] is the only door. What is in the store was verified against its digest and appears whole or not at
//! all. Nothing here knows pods; whoever runs an image says so through the keep set of [`Images::collect`].

mod archive;
mod budget;
mod collect;
mod content;
mod credentials;
mod digest;
mod error;
mod manifest;
mod merge;
mod pull;
pub mod reference;
mod remote;
mod sink;
mod store;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use archive::Loaded;
pub use collect::{Collected, ImageInfo};
pub use content::{BlobUpload, ManifestContent, PutManifestError, Referrer};
pub use error::{PullError, RegistryError, ResolveError, StoreError};
pub use manifest::MANIFEST_MAX;
pub use reference::{Reference, ReferenceError};
pub use store::Origin;

use crate::pod::{Credentials, PullPolicy};

/// How layers lie on disk, which follows from how containers can be mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// One directory per layer for overlayfs mounted by root (`trusted.overlay.*`).
    #[default]
    Overlay,
    /// One directory per layer for overlayfs in a user namespace (mount option `userxattr`).
    UserOverlay,
    /// One directory with everything merged; `Image::layers` then has one element. Copy it before writing.
    Merged,
}

impl Layout {
    /// Layers unpacked for one layout are useless in another.
    fn directory(self) -> &'static str {
        match self {
            Self::Overlay => "layers",
            Self::UserOverlay => "layers-user",
            Self::Merged => "layers-merged",
        }
    }

    const ALL: [Self; 3] = [Self::Overlay, Self::UserOverlay, Self::Merged];
}

/// What a registry offers one image for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

/// Called while images arrive; must return at once.
pub type ProgressHook = Arc<dyn Fn(&Progress) + Send + Sync>;

/// One step of a pull or load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of a blob; `total` as the manifest says.
    Download {
        reference: String,
        digest: String,
        done: u64,
        total: u64,
    },
    Unpacked {
        reference: String,
        digest: String,
    },
    Ready {
        reference: String,
        digest: String,
    },
}

/// Where images are asked for beside their own registries, as far as it may change while we run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// As [`Config::insecure_registries`].
    pub insecure: Vec<String>,
    /// As [`Config::mirrors`].
    pub mirrors: BTreeMap<String, Vec<String>>,
}

#[derive(Clone)]
pub struct Config {
    pub layout: Layout,
    pub platform: Platform,
    /// Hosts, with or without port, that are spoken to in plain HTTP. Loopback hosts always are.
    pub insecure_registries: Vec<String>,
    /// Registry host to the hosts asked first, in order: `host[:port][/prefix]`, `http://` in front for plain HTTP.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// `host:port` names under which this machine's own registry is known.
    pub local_registries: Vec<String>,
    /// No byte for this long ends a request.
    pub read_timeout: Duration,
    pub connect_timeout: Duration,
    pub progress: Option<ProgressHook>,
}

/// An image that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As it was asked for.
    pub reference: String,
    /// What the reference stands for: `sha256:…` of the manifest, or of the index it was chosen from.
    pub digest: String,
    /// `repository@sha256:…`, as a container's `imageID` shows it.
    pub id: String,
    pub config: ImageConfig,
    /// Unpacked, lowest first.
    pub layers: Vec<PathBuf>,
}

/// How the image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
    /// `8080/tcp`.
    pub exposed_ports: Vec<String>,
    pub stop_signal: Option<String>,
    pub volumes: Vec<PathBuf>,
}

/// No byte for this long ends a request to a registry.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A registry that takes longer to accept a connection is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Default for Config {
    fn default() -> Self {
        Self {
            layout: Layout::default(),
            platform: Platform::current(),
            insecure_registries: Vec::new(),
            mirrors: BTreeMap::new(),
            local_registries: Vec::new(),
            read_timeout: READ_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            progress: None,
        }
    }
}

impl Platform {
    /// The machine this was built for, in the registries' words.
    pub fn current() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }
}

/// Pulls since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullStats {
    pub pulls: u64,
    pub failures: u64,
    /// Compressed, as they came over the wire.
    pub bytes: u64,
    /// Sum over all pulls, failed ones included.
    pub time: Duration,
}

#[derive(Default)]
struct Stats {
    pulls: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
}

impl Stats {
    fn record(&self, ok: bool, took: Duration) {
        self.pulls.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(u64::from(!ok), Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The images of one machine. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<store::Store>,
    config: Config,
    remote: remote::Remote,
    flights: pull::Flights,
    /// Unpacked images by digest.
    ready: Mutex<HashMap<String, pull::Ready>>,
    /// Last uses that are not written down yet: a start must not wait for the disk to note that it happened.
    used: Mutex<HashMap<String, jiff::Timestamp>>,
    /// Names of the local registry, `host:port`.
    local: RwLock<Vec<String>>,
    /// Read while something arrives, written while something is collected.
    collecting: tokio::sync::RwLock<()>,
    stats: Stats,
}

/// Under this registry the store keeps what was pushed to this machine's own registry, so that another port or host
/// name tomorrow finds it again.
const LOCAL: &str = "registry.neap.local";

impl Images {
    /// Opens (or makes) the store in `dir`; removes what an earlier run left unfinished.
    pub fn open(dir: impl AsRef<Path>, config: Config) -> Result<Self, StoreError> {
        let store = Arc::new(store::Store::open(dir.as_ref(), now().into())?);
        let inner = Inner {
            store,
            remote: remote::Remote::new(&config),
            flights: pull::Flights::default(),
            ready: Mutex::default(),
            used: Mutex::default(),
            local: RwLock::new(local_names(&config.local_registries)),
            collecting: tokio::sync::RwLock::new(()),
            stats: Stats::default(),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Tells under which `host:port` names this machine's own registry is reached, once its port is known.
    pub fn set_local_registries(&self, names: &[String]) {
        *self.inner.local.write().unwrap_or_else(PoisonError::into_inner) = local_names(names);
    }

    /// Replaces what was said about mirrors and insecure registries.
    pub fn set_registries(&self, settings: RegistrySettings) {
        self.inner.remote.set_registries(settings);
    }

    /// Makes an image ready to run by the rules of its pull policy. Calls for the same image share one pull.
    pub async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: &[Credentials],
    ) -> Result<Image, PullError> {
        self.inner.ensure(reference, policy, credentials).await
    }

    /// The digest that a reference stands for now: `sha256:…`.
    pub async fn resolve(&self, reference: &str, credentials: &[Credentials]) -> Result<String, ResolveError> {
        self.inner.resolve(reference, credentials).await
    }

    /// The digest a reference has in this store, without asking anybody.
    pub fn known(&self, reference: &str) -> Option<String> {
        let reference = Reference::parse(reference).ok()?;
        self.inner.find(&reference).map(|found| found.digest)
    }

    /// Everything of the image merged into `target`, which is made; for modes without overlay.
    pub async fn unpack_merged(&self, image: &Image, target: &Path) -> Result<(), StoreError> {
        let (layers, target) = (image.layers.clone(), target.to_owned());
        blocking(move || merge::merge(&layers, &target)).await
    }

    /// Images out of a `docker save` archive or a tar of an OCI layout, compressed or not. They run under their names
    /// without any registry being asked. `name` replaces the names in the archive.
    pub async fn load(
        &self,
        archive: impl std::io::Read + Send + 'static,
        name: Option<String>,
    ) -> Result<Vec<Loaded>, StoreError> {
        let _no_collection = self.inner.collecting.read().await;
        let store = self.inner.store.clone();
        let images = blocking(move || archive::read(&store, archive, name.as_deref())).await?;
        let mut loaded = Vec::new();
        for (reference, found) in images {
            self.inner.name(&reference, &found).await?;
            loaded.push(Loaded { name: reference.to_string(), digest: found.digest });
        }
        Ok(loaded)
    }

    pub async fn load_file(&self, path: &Path, name: Option<String>) -> Result<Vec<Loaded>, StoreError> {
        let owned = path.to_owned();
        let file = blocking(move || std::fs::File::open(&owned).map_err(StoreError::disk("read", &owned))).await?;
        self.load(file, name).await
    }

    /// An image of one layer from files in memory (path, mode, content). The same files give the same digest.
    pub async fn import_files(
        &self,
        name: &str,
        files: &[(&str, u32, &[u8])],
        config: ImageConfig,
    ) -> Result<String, StoreError> {
        let reference =
            Reference::parse(name).map_err(|problem| StoreError::Name { name: name.to_owned(), problem })?;
        let _no_collection = self.inner.collecting.read().await;
        let found = archive::build(&self.inner.store, files, &config, &self.inner.config.platform)?;
        self.inner.name(&reference, &found).await?;
        Ok(found.digest)
    }

    /// How full the disk is that the images are on, in percent, as `df` counts it.
    pub fn disk_use(&self) -> Option<u64> {
        let disk = nix::sys::statvfs::statvfs(self.inner.store.dir()).ok()?;
        let used = disk.blocks().saturating_sub(disk.blocks_free());
        Some(used * 100 / (used + disk.blocks_available()).max(1))
    }

    pub fn pull_stats(&self) -> PullStats {
        let stats = &self.inner.stats;
        PullStats {
            pulls: stats.pulls.load(Ordering::Relaxed),
            failures: stats.failures.load(Ordering::Relaxed),
            bytes: stats.bytes.load(Ordering::Relaxed),
            time: Duration::from_micros(stats.micros.load(Ordering::Relaxed)),
        }
    }
}

/// Digests of images straight from their registries: for a process that keeps no images.
#[derive(Clone)]
pub struct Registries {
    remote: Arc<remote::Remote>,
}

impl Registries {
    pub fn new(config: &Config) -> Self {
        Self { remote: Arc::new(remote::Remote::new(config)) }
    }

    /// Replaces what was said about mirrors and insecure registries.
    pub fn set_registries(&self, settings: RegistrySettings) {
        self.remote.set_registries(settings);
    }

    /// The digest that a reference stands for now: `sha256:…`.
    pub async fn resolve(&self, reference: &str, credentials: &[Credentials]) -> Result<String, ResolveError> {
        let parsed = Reference::parse(reference)
            .map_err(|problem| ResolveError::InvalidName { reference: reference.to_owned(), problem })?;
        if let Some(digest) = &parsed.digest {
            return Ok(digest.clone());
        }
        let asked = self.remote.digest(&parsed, credentials).await;
        asked.map_err(|problem| ResolveError::Registry { reference: reference.to_owned(), problem })
    }
}

impl Inner {
    async fn resolve(&self, text: &str, credentials: &[Credentials]) -> Result<String, ResolveError> {
        let reference = Reference::parse(text)
            .map_err(|problem| ResolveError::InvalidName { reference: text.to_owned(), problem })?;
        if let Some(digest) = &reference.digest {
            return Ok(digest.clone());
        }
        let failed = |problem| ResolveError::Registry { reference: text.to_owned(), problem };
        let here = self.find(&reference);
        if let Some(found) = here.as_ref().filter(|f| f.origin == Origin::Given) {
            return Ok(found.digest.clone());
        }
        if self.is_local(&reference.registry) {
            return Err(failed(self.not_in_local_registry("HEAD", &reference, "")));
        }
        match (self.remote.digest(&reference, credentials).await, here) {
            (Ok(digest), _) => Ok(digest),
            // A laptop on a train: what was pulled yesterday is the best answer there is.
            (Err(problem @ RegistryError::Unreachable { .. }), Some(found)) => {
                tracing::warn!(image = text, digest = found.digest, %problem, "taking the local image's digest");
                Ok(found.digest)
            }
            (Err(problem), _) => Err(failed(problem)),
        }
    }

    /// The name under which the store knows a repository.
    fn repository(&self, reference: &Reference) -> String {
        if self.is_local(&reference.registry) {
            return local_repository(&reference.repository);
        }
        reference.name()
    }

    fn is_local(&self, registry: &str) -> bool {
        self.local.read().unwrap_or_else(PoisonError::into_inner).iter().any(|name| name == registry)
    }

    fn not_in_local_registry(&self, method: &'static str, reference: &Reference, explained: &str) -> RegistryError {
        RegistryError::Status {
            method,
            url: format!(
                "http://{}/v2/{}/manifests/{}",
                reference.registry,
                reference.repository,
                reference.identifier()
            ),
            status: http::StatusCode::NOT_FOUND,
            explained: explained.to_owned(),
        }
    }

    fn find(&self, reference: &Reference) -> Option<store::Found> {
        match &reference.digest {
            Some(digest) => self.store.find_digest(digest),
            None => self.store.find(&self.repository(reference), reference.identifier()),
        }
    }

    async fn name(&self, reference: &Reference, found: &store::Found) -> Result<(), StoreError> {
        let (store, repository, found) = (self.store.clone(), self.repository(reference), found.clone());
        // With a digest beside it a tag is only a note; it must not move what the tag stands for.
        let tag = reference.tag.clone().filter(|_| reference.digest.is_none());
        blocking(move || store.name(&repository, tag.as_slice(), &found, now())).await
    }

    async fn put_blob(&self, bytes: Vec<u8>) -> Result<String, StoreError> {
        let store = self.store.clone();
        blocking(move || store.put_blob(&bytes)).await
    }

    async fn read_blob(&self, what: &str, digest: &str, max: u64) -> Result<Vec<u8>, StoreError> {
        let (store, what, digest) = (self.store.clone(), what.to_owned(), digest.to_owned());
        blocking(move || store.read_blob(&what, &digest, max)).await
    }

    fn ready(&self) -> MutexGuard<'_, HashMap<String, pull::Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, digest: &str) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.to_owned(), now());
    }

    fn report(&self, progress: Progress) {
        if let Some(hook) = &self.config.progress {
            hook(&progress);
        }
    }
}

fn local_repository(repository: &str) -> String {
    format!("{LOCAL}/{repository}")
}

/// Every name of the local registry, with the loopback names of each port: that is where it listens.
fn local_names(configured: &[String]) -> Vec<String> {
    let mut names = Vec::new();
    for name in configured {
        names.push(name.clone());
        if let Some((_, port)) = name.rsplit_once(':') {
            names.extend(["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}")));
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Work that waits for the disk, on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(StoreError::Missing { what: "the runtime, which is shutting down,".to_owned() }),
    }
}

/// The store's only clock: times of use, and how long pulls take.
#[expect(clippy::disallowed_methods, reason = "the edge: nothing decides by it except what is unused longest")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[cfg(test)]
mod tests;
