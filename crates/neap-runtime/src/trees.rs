//! Removing directories that others may close or fill at the same time.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Tries before giving up on a tree that somebody else is still removing or writing.
const TRIES: u32 = 10;

/// Removes a tree. Succeeds when it is gone, by whomever. Directories that their owner may not enter are opened first:
/// without root, overlayfs and containers leave such behind.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..TRIES {
        last = fs::remove_dir_all(dir);
        match &last {
            Ok(()) => return Ok(()),
            Err(_) if fs::symlink_metadata(dir).is_err() => return Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::PermissionDenied => open_up(dir),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty => {}
                _ => return last,
            },
        }
    }
    last
}

fn open_up(dir: &Path) {
    let Ok(meta) = fs::symlink_metadata(dir) else { return };
    if !meta.is_dir() {
        return;
    }
    // Not ours: the removal will say so.
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        open_up(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_directories_and_missing_ones_go() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let closed = dir.path().join("a/b");
        fs::create_dir_all(closed.join("c")).expect("made");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("closed");
        remove(&dir.path().join("a")).expect("removed");
        assert!(!dir.path().join("a").exists());
        remove(&dir.path().join("a")).expect("gone is gone");
    }
}
