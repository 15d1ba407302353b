//! The data directory: where everything lies, and who holds it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A data directory that this process holds until it ends.
pub struct DataDir {
    root: PathBuf,
    /// Locked as long as it lives; the system lets go of it however the process ends.
    _lock: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is held by another neap (process {holder}); stop it, or give another --data-dir")]
    Held { path: PathBuf, holder: String },
    #[error("cannot {what} {path}: give a --data-dir that can be written")]
    Disk { what: &'static str, path: PathBuf, source: io::Error },
}

impl DataDir {
    /// Makes the directory where it is missing and takes hold of it.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be written.
    pub fn hold(root: &Path) -> Result<Self, Error> {
        let disk = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Disk { what, path, source }
        };
        // Secrets are in it: nobody else may look.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(disk("create", root))?;
        let root = root.canonicalize().map_err(disk("resolve", root))?;
        let path = root.join("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(disk("open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // A holder that has not written its number yet is a holder all the same.
                drop(file.read_to_string(&mut holder));
                let holder = if holder.trim().is_empty() { "unknown".to_owned() } else { holder.trim().to_owned() };
                return Err(Error::Held { path: root, holder });
            }
            Err((_, errno)) => return Err(disk("lock", &path)(errno.into())),
        };
        let pid = std::process::id().to_string();
        let written =
            lock.set_len(0).and_then(|()| lock.seek(SeekFrom::Start(0))).and_then(|_| lock.write_all(pid.as_bytes()));
        written.map_err(disk("write", &path))?;
        let data = Self { root, _lock: lock };
        // Whoever waits for this file waits for this start, not for the ports of the last one.
        match fs::remove_file(data.endpoints()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("remove", &data.endpoints())(error)),
            _ => Ok(data),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn store(&self) -> PathBuf {
        self.root.join("store.redb")
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Pods, images and logs.
    pub fn runtime(&self) -> PathBuf {
        self.root.join("runtime")
    }

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// The authority that the gateway's certificates come from, where nobody else issues them.
    pub fn authority(&self) -> PathBuf {
        self.root.join("ca.crt")
    }

    pub fn endpoints(&self) -> PathBuf {
        self.root.join("endpoints.json")
    }
}

/// Writes a file beside its place and moves it there: a reader sees the old content or the new, never half.
///
/// # Errors
/// The directory cannot be written.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let aside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(|source| Error::Disk { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_of_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = DataDir::hold(dir.path()).expect("free");
        let Err(Error::Held { holder, .. }) = DataDir::hold(dir.path()) else { panic!("it is held") };
        assert_eq!(holder, std::process::id().to_string());
        drop(first);
        fs::write(dir.path().join("endpoints.json"), "{}").expect("a file");
        let again = DataDir::hold(dir.path()).expect("free again");
        assert!(!again.endpoints().exists(), "what the last start said");
    }
}
