//! From a reference to an image that can run: what is here already, what must be fetched, how it is unpacked.
//!
//! Each blob and each layer is worked on once at a time, however many ask for it; an image's names are written only
//! after everything it needs stands on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::future::{self, BoxFuture, FutureExt, Shared, WeakShared};
use futures::stream::StreamExt;
use tempfile::TempDir;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::budget::Budget;
use super::digest::{check_bytes, check_digest, digest_of, hex_of, is_sha256};
use super::error::{PullError, RegistryError, StoreError};
use super::manifest::{CONFIG_MAX, ConfigFile, Descriptor, Document, MANIFEST_MAX, Manifest};
use super::remote::Source;
use super::sink::Sink;
use super::store::{Found, Origin};
use super::unpack::{Whiteouts, adopt_implied, unpack};
use super::{Image, ImageConfig, Inner, Layout, Progress, Reference, blocking};
use crate::pod::{Credentials, PullPolicy};

/// Blobs on the wire at once, over all images.
const DOWNLOADS: usize = 4;
/// Layers being unpacked at once, over all images: each keeps a core busy.
const UNPACKS: usize = 2;
/// Times a download is taken up again where it broke off, before the pull fails and its owner backs off.
const RESUMES: u32 = 4;
/// Times damaged content is looked for: behind a damaged index lies a manifest, behind that all the rest.
const REPAIRS: u32 = 4;
/// An index in an index in an index is nobody's image.
const NESTING_MAX: u32 = 3;
/// Bytes between two progress reports of one blob.
const PROGRESS_STEP: u64 = 256 << 10;

/// Work that several may wait for.
pub(super) struct Flights {
    /// Weak, so that a pull nobody waits for any more ends and lets go of its locks.
    pulls: Mutex<Vec<(FlightKey, WeakShared<BoxFuture<'static, Pulled>>)>>,
    /// One lock per blob or layer that is being made.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    downloads: Semaphore,
    unpacks: Semaphore,
}

#[derive(Clone, PartialEq)]
struct FlightKey {
    reference: String,
    policy: PullPolicy,
    credentials: Vec<Credentials>,
}

type Pulled = Result<Image, PullError>;
type Flight = Shared<BoxFuture<'static, Pulled>>;

impl Default for Flights {
    fn default() -> Self {
        Self {
            pulls: Mutex::default(),
            locks: Mutex::default(),
            downloads: Semaphore::new(DOWNLOADS),
            unpacks: Semaphore::new(UNPACKS),
        }
    }
}

impl Flights {
    async fn lock(&self, key: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                locks.insert(key, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

/// An unpacked image, whatever it is called.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    config: ImageConfig,
    layers: Vec<PathBuf>,
}

impl Ready {
    pub(super) fn stands(&self) -> bool {
        self.layers.iter().all(|layer| layer.is_dir())
    }
}

/// Where missing content may come from.
#[derive(Clone, Copy)]
struct Supply<'a> {
    /// As asked for, for messages and progress.
    reference: &'a str,
    source: Option<&'a Source>,
}

impl Supply<'_> {
    fn store(&self, problem: StoreError) -> PullError {
        PullError::Store { reference: self.reference.to_owned(), problem }
    }

    fn registry(&self, problem: RegistryError) -> PullError {
        PullError::Registry { reference: self.reference.to_owned(), problem }
    }
}

impl Inner {
    pub(super) async fn ensure(
        self: &Arc<Self>,
        text: &str,
        policy: PullPolicy,
        credentials: &[Credentials],
    ) -> Result<Image, PullError> {
        let reference =
            Reference::parse(text).map_err(|problem| PullError::InvalidName { reference: text.to_owned(), problem })?;
        let found = self.find(&reference);
        if let Some(found) = found.filter(|f| self.may_use(&reference, f, policy))
            && let Some(image) = self.ready_image(text, &reference, &found)
        {
            return Ok(image);
        }
        let key = FlightKey { reference: text.to_owned(), policy, credentials: credentials.to_vec() };
        self.flight(key, reference).await
    }

    /// Joins the flight that is under way for the same question, or starts one.
    fn flight(self: &Arc<Self>, key: FlightKey, reference: Reference) -> Flight {
        let mut pulls = self.flights.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|(_, flight)| flight.upgrade().is_some_and(|f| f.peek().is_none()));
        if let Some(flight) = pulls.iter().find(|(k, _)| *k == key).and_then(|(_, flight)| flight.upgrade()) {
            return flight;
        }
        let (inner, started) = (self.clone(), key.clone());
        let flight = async move { inner.make_ready(started, reference).await }.boxed().shared();
        pulls.extend(flight.downgrade().map(|weak| (key, weak)));
        flight
    }

    async fn make_ready(self: Arc<Self>, key: FlightKey, reference: Reference) -> Result<Image, PullError> {
        // While anything arrives nothing is collected.
        let _no_collection = self.collecting.read().await;
        let FlightKey { reference: text, policy, credentials } = key;
        let found = self.find(&reference);
        let usable = found.clone().filter(|f| self.may_use(&reference, f, policy));
        if let Some(found) = &usable {
            let supply = Supply { reference: &text, source: None };
            match self.materialize(supply, &found.digest).await {
                Ok(()) => return self.finished(&text, &reference, found).await,
                // Unpacked layers were collected, or lie in another layout: fetch them again.
                Err(PullError::Store { problem: StoreError::Missing { .. }, .. })
                    if found.origin == Origin::Pulled && policy != PullPolicy::Never => {}
                Err(e) => return Err(e),
            }
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NeverPull { reference: text });
        }
        if self.is_local(&reference.registry) {
            let problem = self.not_in_local_registry("GET", &reference, "MANIFEST_UNKNOWN: manifest unknown");
            return Err(PullError::Registry { reference: text, problem });
        }
        let started = super::now();
        let pulled = self.pull(&text, &reference, &credentials).await;
        let took = super::now().duration_since(started).unsigned_abs();
        self.stats.record(pulled.is_ok(), took);
        let found = pulled?;
        self.finished(&text, &reference, &found).await
    }

    /// Fetches an image and everything it needs, then gives it its name.
    async fn pull(&self, text: &str, reference: &Reference, credentials: &[Credentials]) -> Result<Found, PullError> {
        let failed = |problem| PullError::Registry { reference: text.to_owned(), problem };
        let (source, bytes, digest) = self.remote.manifest(reference, credentials).await.map_err(failed)?;
        let supply = Supply { reference: text, source: Some(&source) };
        let what = format!("the manifest of {text}");
        let want = reference.digest.clone().unwrap_or(digest);
        check_bytes(&what, &want, &bytes).map_err(|e| supply.store(e))?;
        let document = Document::parse(&what, &bytes).map_err(|e| supply.store(e))?;
        let found = Found { digest: want, media_type: document.media_type().to_owned(), origin: Origin::Pulled };
        self.put_blob(bytes.to_vec()).await.map_err(|e| supply.store(e))?;
        self.materialize(supply, &found.digest).await?;
        Ok(found)
    }

    async fn finished(&self, text: &str, reference: &Reference, found: &Found) -> Result<Image, PullError> {
        let failed = |problem| PullError::Store { reference: text.to_owned(), problem };
        self.name(reference, found).await.map_err(failed)?;
        self.report(Progress::Ready { reference: text.to_owned(), digest: found.digest.clone() });
        self.ready_image(text, reference, found)
            .ok_or_else(|| failed(StoreError::Missing { what: format!("image {text}, which was just made ready,") }))
    }

    /// From memory, without touching the disk.
    fn ready_image(&self, text: &str, reference: &Reference, found: &Found) -> Option<Image> {
        let ready = self.ready().get(&found.digest).cloned()?;
        self.touch(&found.digest);
        Some(Image {
            reference: text.to_owned(),
            digest: found.digest.clone(),
            id: format!("{}@{}", reference.name(), found.digest),
            config: ready.config,
            layers: ready.layers,
        })
    }

    /// Whether what is here answers the question without asking the registry.
    fn may_use(&self, reference: &Reference, found: &Found, policy: PullPolicy) -> bool {
        policy != PullPolicy::Always || reference.digest.is_some() || found.origin == Origin::Given
    }

    /// Makes everything that `digest` needs stand on disk, unpacked, and remembers it as ready.
    async fn materialize(&self, supply: Supply<'_>, digest: &str) -> Result<(), PullError> {
        if self.ready().contains_key(digest) {
            return Ok(());
        }
        for _ in 0..REPAIRS {
            match self.materialize_once(supply, digest).await {
                // What a disk made of it, perhaps long ago: without the damaged files it is fetched anew.
                Err(PullError::Store { problem, .. }) if is_damage(&problem) && self.drop_damaged(digest).await > 0 => {
                }
                other => return other,
            }
        }
        self.materialize_once(supply, digest).await
    }

    /// Takes out of the store what does not have its digest. Returns how much that was.
    async fn drop_damaged(&self, digest: &str) -> usize {
        let (store, root) = (self.store.clone(), digest.to_owned());
        let dropped = blocking(move || {
            let all = store.reachable([root]);
            Ok(all.iter().filter(|digest| store.drop_if_damaged(digest)).count())
        });
        dropped.await.unwrap_or(0)
    }

    async fn materialize_once(&self, supply: Supply<'_>, digest: &str) -> Result<(), PullError> {
        let manifest = self.image_manifest(supply, digest).await?;
        self.fetch(supply, &manifest.config).await?;
        let config = self.read_config(supply, &manifest.config).await?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let problem =
                format!("it names {} layers and {} contents of layers", manifest.layers.len(), diff_ids.len());
            return Err(
                supply.store(StoreError::Broken { what: format!("the manifest of {}", supply.reference), problem })
            );
        }
        let layers = match self.config.layout {
            Layout::Merged => vec![self.merged(supply, digest, &manifest, diff_ids).await?],
            Layout::Overlay | Layout::UserOverlay => self.layered(supply, &manifest, diff_ids).await?,
        };
        let ready = Ready { config: config.config.to_image_config(), layers };
        self.ready().insert(digest.to_owned(), ready);
        Ok(())
    }

    /// The manifest itself, or the one an index has for this platform.
    async fn image_manifest(&self, supply: Supply<'_>, digest: &str) -> Result<Manifest, PullError> {
        let mut digest = digest.to_owned();
        for _ in 0..NESTING_MAX {
            let what = format!("the manifest {digest} of {}", supply.reference);
            let bytes = match (self.read_blob(&what, &digest, MANIFEST_MAX).await, supply.source) {
                (Ok(bytes), _) => bytes,
                (Err(StoreError::Missing { .. }), Some(source)) => {
                    let bytes = source.manifest(&digest).await.map_err(|e| supply.registry(e))?.to_vec();
                    check_bytes(&what, &digest, &bytes).map_err(|e| supply.store(e))?;
                    self.put_blob(bytes.clone()).await.map_err(|e| supply.store(e))?;
                    bytes
                }
                (Err(e), _) => return Err(supply.store(e)),
            };
            match Document::parse(&what, &bytes).map_err(|e| supply.store(e))? {
                Document::Image(manifest) => return Ok(manifest),
                Document::Index(index) => {
                    let chosen = index.choose(&self.config.platform).ok_or_else(|| PullError::NoPlatform {
                        reference: supply.reference.to_owned(),
                        wanted: self.config.platform.describe(),
                        found: index.platforms(),
                    })?;
                    digest = chosen.digest.clone();
                }
            }
        }
        let problem = "it is an index of indexes of indexes".to_owned();
        Err(supply.store(StoreError::Broken { what: supply.reference.to_owned(), problem }))
    }

    async fn read_config(&self, supply: Supply<'_>, config: &Descriptor) -> Result<ConfigFile, PullError> {
        let what = format!("the configuration of {}", supply.reference);
        let bytes = self.read_blob(&what, &config.digest, CONFIG_MAX).await.map_err(|e| supply.store(e))?;
        let file: ConfigFile = serde_json::from_slice(&bytes)
            .map_err(|e| supply.store(StoreError::Broken { what: what.clone(), problem: e.to_string() }))?;
        match file.rootfs.diff_ids.iter().find(|d| !is_sha256(d)) {
            Some(bad) => {
                let problem = format!("{bad:?} is not a sha256 digest");
                Err(supply.store(StoreError::Broken { what, problem }))
            }
            None => Ok(file),
        }
    }

    async fn layered(
        &self,
        supply: Supply<'_>,
        manifest: &Manifest,
        diff_ids: &[String],
    ) -> Result<Vec<PathBuf>, PullError> {
        let whiteouts = if self.config.layout == Layout::UserOverlay { Whiteouts::User } else { Whiteouts::Trusted };
        let in_chain = names_in_chain(diff_ids);
        let parts =
            manifest.layers.iter().zip(diff_ids).zip(&in_chain).map(|((layer, diff_id), in_chain)| async move {
                let (alone, in_chain) = (self.layer_dir(diff_id), self.layer_dir(in_chain));
                let _one_at_a_time = self.flights.lock(format!("layer {}", alone.display())).await;
                if let Some(stands) = [&alone, &in_chain].into_iter().find(|dir| dir.is_dir()) {
                    return Ok(Part::Stands(stands.clone()));
                }
                self.fetch(supply, layer).await?;
                let _permit = self.flights.unpacks.acquire().await.expect("the semaphore is never closed");
                let blobs = vec![(self.store.blob_path(&layer.digest), diff_id.clone())];
                let (scratch, implied) = self.unpack_into(supply, blobs, whiteouts).await?;
                self.report(Progress::Unpacked {
                    reference: supply.reference.to_owned(),
                    digest: layer.digest.clone(),
                });
                if !implied.is_empty() {
                    return Ok(Part::Undressed { scratch, implied, target: in_chain });
                }
                self.install(supply, scratch, alone.clone()).await?;
                Ok(Part::Stands(alone))
            });
        let mut layers: Vec<PathBuf> = Vec::new();
        for part in future::try_join_all(parts).await? {
            let layer = match part {
                Part::Stands(path) => path,
                Part::Undressed { scratch, implied, target } => {
                    let lower = layers.clone();
                    let dress = move || {
                        let dressed = adopt_implied(scratch.path(), &implied, &lower);
                        dressed.map_err(StoreError::disk("unpack into", scratch.path())).map(|()| scratch)
                    };
                    let scratch = blocking(dress).await.map_err(|e| supply.store(e))?;
                    self.install(supply, scratch, target.clone()).await?;
                    target
                }
            };
            // One directory cannot lie in an overlay twice, and two layers of one content are nothing rare (BuildKit
            // writes an empty one for each step that changes nothing). What counts is the upper one.
            layers.retain(|lower| *lower != layer);
            layers.push(layer);
        }
        Ok(layers)
    }

    /// All layers in one directory, named after the image.
    async fn merged(
        &self,
        supply: Supply<'_>,
        digest: &str,
        manifest: &Manifest,
        diff_ids: &[String],
    ) -> Result<PathBuf, PullError> {
        let target = self.layer_dir(digest);
        let _one_at_a_time = self.flights.lock(format!("layer {}", target.display())).await;
        if target.is_dir() {
            return Ok(target);
        }
        future::try_join_all(manifest.layers.iter().map(|layer| self.fetch(supply, layer))).await?;
        let _permit = self.flights.unpacks.acquire().await.expect("the semaphore is never closed");
        let blobs = manifest.layers.iter().zip(diff_ids);
        let blobs = blobs.map(|(layer, diff_id)| (self.store.blob_path(&layer.digest), diff_id.clone())).collect();
        let (scratch, _) = self.unpack_into(supply, blobs, Whiteouts::Apply).await?;
        self.install(supply, scratch, target.clone()).await?;
        Ok(target)
    }

    async fn unpack_into(
        &self,
        supply: Supply<'_>,
        blobs: Vec<(PathBuf, String)>,
        whiteouts: Whiteouts,
    ) -> Result<(TempDir, Vec<PathBuf>), PullError> {
        let incoming = self.store.dir().join("incoming");
        blocking(move || unpack_whole(&blobs, &incoming, whiteouts)).await.map_err(|e| supply.store(e))
    }

    async fn install(&self, supply: Supply<'_>, scratch: TempDir, target: PathBuf) -> Result<(), PullError> {
        blocking(move || install(&scratch, &target)).await.map_err(|e| supply.store(e))
    }

    pub(super) fn layer_dir(&self, digest: &str) -> PathBuf {
        // Half of the digits keep mount options short and still never meet by chance.
        let name = &hex_of(digest)[..32];
        self.store.dir().join(self.config.layout.directory()).join(name)
    }

    /// Makes a blob stand in the store, unless what it would be unpacked for stands already.
    async fn fetch(&self, supply: Supply<'_>, blob: &Descriptor) -> Result<(), PullError> {
        let _one_at_a_time = self.flights.lock(format!("blob {}", blob.digest)).await;
        if self.store.has_blob(&blob.digest, blob.size) {
            return Ok(());
        }
        let Some(source) = supply.source else {
            let what = format!("content {} of {}", blob.digest, supply.reference);
            return Err(supply.store(StoreError::Missing { what }));
        };
        let _permit = self.flights.downloads.acquire().await.expect("the semaphore is never closed");
        self.store.has_room_for(blob.size).map_err(|e| supply.store(e))?;
        let mut tries = 0;
        loop {
            match self.download(supply, source, blob).await {
                Ok(()) => {
                    self.stats.add_bytes(blob.size);
                    return Ok(());
                }
                Err(Broken::Off(_)) if tries < RESUMES => tries += 1,
                Err(Broken::Off(e)) => return Err(supply.registry(e)),
                Err(Broken::Registry(e)) => return Err(supply.registry(e)),
                Err(Broken::Store { problem, resumed: true }) if is_content(&problem) && tries < RESUMES => {
                    tries = RESUMES;
                }
                Err(Broken::Store { problem, .. }) => return Err(supply.store(problem)),
            }
        }
    }

    async fn download(&self, supply: Supply<'_>, source: &Source, blob: &Descriptor) -> Result<(), Broken> {
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        let what = format!("content {} of {}", blob.digest, supply.reference);
        let writer = blocking(move || store.resume(&digest)).await.map_err(Broken::fresh)?;
        let mut sink = Sink::new(writer);
        if sink.len() >= blob.size {
            // As long as it should be and yet not installed: what is there is not to be trusted.
            sink.restart().await.map_err(Broken::fresh)?;
        }
        let mut resumed = sink.len() > 0;
        let mut stream = source.blob(&blob.digest, sink.len()).await.map_err(Broken::Registry)?;
        if stream.whole && resumed {
            sink.restart().await.map_err(Broken::fresh)?;
            resumed = false;
        }
        let mut reported = 0;
        while let Some(piece) = stream.bytes.next().await {
            match piece {
                Ok(bytes) => sink.write(bytes).await.map_err(|problem| Broken::Store { problem, resumed })?,
                // The client's own check of a whole blob; ours below says the same more clearly.
                Err(e) if e.get_ref().is_some_and(|cause| cause.is::<oci_client::errors::DigestError>()) => break,
                Err(e) => {
                    sink.flush().await.map_err(|problem| Broken::Store { problem, resumed })?;
                    let url = source.blob_url(&blob.digest);
                    return Err(Broken::Off(RegistryError::Unreachable { method: "GET", url, problem: e.to_string() }));
                }
            }
            if sink.len() > blob.size {
                let problem = StoreError::Length { what, want: blob.size, got: sink.len() };
                sink.restart().await.map_err(Broken::fresh)?;
                return Err(Broken::Store { problem, resumed });
            }
            if sink.len() >= reported + PROGRESS_STEP || sink.len() == blob.size {
                reported = sink.len();
                self.report(Progress::Download {
                    reference: supply.reference.to_owned(),
                    digest: blob.digest.clone(),
                    done: reported,
                    total: blob.size,
                });
            }
        }
        if sink.len() < blob.size {
            sink.flush().await.map_err(|problem| Broken::Store { problem, resumed })?;
            let problem = format!("the connection ended after {} of {} bytes", sink.len(), blob.size);
            let url = source.blob_url(&blob.digest);
            return Err(Broken::Off(RegistryError::Unreachable { method: "GET", url, problem }));
        }
        let finished = sink.finish(what, Some(blob.digest.clone())).await;
        finished.map(drop).map_err(|problem| Broken::Store { problem, resumed })
    }
}

/// How a download ended early.
enum Broken {
    /// In the middle: what came is kept and continued.
    Off(RegistryError),
    Registry(RegistryError),
    /// `resumed`: the first part came from an earlier attempt and may be what is wrong.
    Store {
        problem: StoreError,
        resumed: bool,
    },
}

impl Broken {
    fn fresh(problem: StoreError) -> Self {
        Self::Store { problem, resumed: false }
    }
}

fn is_content(problem: &StoreError) -> bool {
    matches!(problem, StoreError::Digest { .. } | StoreError::Length { .. })
}

fn is_damage(problem: &StoreError) -> bool {
    is_content(problem) || matches!(problem, StoreError::Broken { .. })
}

/// A layer on its way to its place.
enum Part {
    Stands(PathBuf),
    /// It has directories that it does not describe: owner and mode of those are what the layers below say.
    Undressed {
        scratch: TempDir,
        implied: Vec<PathBuf>,
        target: PathBuf,
    },
}

/// Names, in the form of digests, for layers whose looks depend on what lies below them: of two images that share such
/// a layer each has its own, or one could open the other's directories to everybody.
pub(super) fn names_in_chain(diff_ids: &[String]) -> Vec<String> {
    let mut chain = String::new();
    let mut next = |diff_id: &String| {
        chain = digest_of(format!("{chain} {diff_id}").as_bytes());
        chain.clone()
    };
    diff_ids.iter().map(&mut next).collect()
}

/// Unpacks into a scratch directory and checks. Returns also the implied directories of the last layer.
fn unpack_whole(
    blobs: &[(PathBuf, String)],
    incoming: &Path,
    whiteouts: Whiteouts,
) -> Result<(TempDir, Vec<PathBuf>), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = || StoreError::disk("unpack into", incoming);
    let scratch = tempfile::Builder::new()
        .prefix("layer-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(incoming)
        .map_err(failed())?;
    // The mask of this process is no business of an image's root directory.
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).map_err(failed())?;
    let mut implied = Vec::new();
    for (blob, diff_id) in blobs {
        let file = std::fs::File::open(blob).map_err(StoreError::disk("read", blob))?;
        let size = file.metadata().map_err(StoreError::disk("read", blob))?.len();
        let what = format!("layer {diff_id}");
        let unpacked = unpack(&what, file, scratch.path(), whiteouts, Budget::of(size))?;
        check_digest(&what, diff_id, &unpacked.diff_id)?;
        implied = unpacked.implied;
    }
    Ok((scratch, implied))
}

/// Flushes and renames.
fn install(scratch: &TempDir, target: &Path) -> Result<(), StoreError> {
    let install = || {
        // Once for the whole tree: thousands of files must not each wait for the disk.
        nix::unistd::syncfs(std::fs::File::open(scratch.path())?)?;
        std::fs::create_dir_all(target.parent().expect("layers lie in a directory of their own"))?;
        match std::fs::rename(scratch.path(), target) {
            // Somebody whose wait was cancelled finished first; both hold the same.
            Err(_) if target.is_dir() => Ok(()),
            done => done,
        }
    };
    install().map_err(StoreError::disk("unpack into", target))
}
