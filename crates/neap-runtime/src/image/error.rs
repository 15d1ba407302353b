//! What can go wrong with images, as values a person and a kubelet can use.
//!
//! Messages are whole sentences; a `PullError` can be shared between those who waited for the same pull.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reference::ReferenceError;

/// Why an image could not be made ready. [`PullError::reason`] is the container's waiting reason.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    #[error("couldn't parse image name {reference:?}: {problem}")]
    InvalidName { reference: String, problem: ReferenceError },
    #[error("Container image {reference:?} is not present with pull policy of Never")]
    NeverPull { reference: String },
    #[error("failed to pull image {reference:?}: {problem}")]
    Registry { reference: String, problem: RegistryError },
    #[error("failed to pull image {reference:?}: no image for {wanted} in it, only for {found}")]
    NoPlatform { reference: String, wanted: String, found: String },
    #[error("failed to pull image {reference:?}: {problem}")]
    Store { reference: String, problem: StoreError },
}

impl PullError {
    /// Kubernetes' waiting reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            Self::Registry { .. } | Self::NoPlatform { .. } | Self::Store { .. } => "ErrImagePull",
        }
    }

    /// One sentence for the container's status and the event.
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// Asking again later may help; otherwise somebody must change something first.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::InvalidName { .. } | Self::NeverPull { .. } | Self::NoPlatform { .. })
    }
}

/// Why a tag could not be turned into a digest, worded as Knative's clients know it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("failed to resolve image to digest: could not parse reference: {problem}")]
    InvalidName { reference: String, problem: ReferenceError },
    #[error("failed to resolve image to digest: {problem}")]
    Registry { reference: String, problem: RegistryError },
}

impl ResolveError {
    /// Asking again later may help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Registry { .. })
    }
}

/// What a remote registry answered, or that it did not.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// `explained` is what the registry wrote in its body; a HEAD answer has none.
    #[error("{method} {url}: unexpected status code {status}{}", explanation(.explained))]
    Status { method: &'static str, url: String, status: http::StatusCode, explained: String },
    #[error("{method} {url}: {problem}")]
    Unreachable { method: &'static str, url: String, problem: String },
    #[error("{url}: the registry refused the credentials: {problem}")]
    Credentials { url: String, problem: String },
    #[error("{url}: no answer within {seconds} s")]
    Slow { url: String, seconds: u64 },
    #[error("{url}: the registry's answer makes no sense: {problem}")]
    Answer { url: String, problem: String },
    #[error("the registry client cannot start: {problem}")]
    Client { problem: String },
}

fn explanation(explained: &str) -> String {
    if explained.is_empty() {
        " (HEAD responses have no body, use GET for details)".to_owned()
    } else {
        format!(": {explained}")
    }
}

/// What the store on disk could not do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} {}: {}", path.display(), .cause)]
    Disk { what: &'static str, path: PathBuf, cause: Arc<io::Error> },
    #[error("no space left on the disk that holds {}: free some and try again", path.display())]
    Full { path: PathBuf },
    #[error("{what} is not what its digest says: want {want}, got {got}")]
    Digest { what: String, want: String, got: String },
    #[error("{what} is {got} bytes long, want {want}")]
    Length { what: String, want: u64, got: u64 },
    #[error("{what} is not in the store")]
    Missing { what: String },
    #[error("{what} is broken: {problem}")]
    Broken { what: String, problem: String },
    #[error("{what} has the media type {media_type:?}, which is not an image's")]
    MediaType { what: String, media_type: String },
    #[error("{name:?} is not a valid image name: {problem}")]
    Name { name: String, problem: ReferenceError },
    #[error("image {name} is not here")]
    NoSuchImage { name: String },
    #[error("image {name} is used by a pod")]
    InUse { name: String },
}

impl StoreError {
    /// An I/O error with its place. A full disk gets its own variant: it is the one users can cure.
    pub(crate) fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| {
            if is_full(&cause) {
                return Self::Full { path: path.to_owned() };
            }
            Self::Disk { what, path: path.to_owned(), cause: Arc::new(cause) }
        }
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_manifest_reads_as_knatives_users_know_it() {
        let error = ResolveError::Registry {
            reference: "x".into(),
            problem: RegistryError::Status {
                method: "HEAD",
                url: "http://127.0.0.1:5000/v2/x/manifests/y".into(),
                status: http::StatusCode::NOT_FOUND,
                explained: String::new(),
            },
        };
        assert_eq!(
            error.to_string(),
            "failed to resolve image to digest: HEAD http://127.0.0.1:5000/v2/x/manifests/y: unexpected status code \
             404 Not Found (HEAD responses have no body, use GET for details)"
        );
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = StoreError::disk("write", Path::new("/d"))(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.to_string(), "no space left on the disk that holds /d: free some and try again");
        let denied = StoreError::disk("write", Path::new("/d"))(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.to_string(), "cannot write /d: permission denied");
    }
}
