//! Several unpacked layers copied into one directory, for machines without overlayfs.
//!
//! Reads overlayfs's marks as the kernel would. The target is ours alone while this runs; every component of a path
//! below it is checked to be a real directory before anything is put into it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::StoreError;

/// Copies the layers, lowest first, into `target`, which is made when missing.
pub(super) fn merge(layers: &[PathBuf], target: &Path) -> Result<(), StoreError> {
    let copy = || {
        fs::create_dir_all(target)?;
        layers.iter().try_for_each(|layer| {
            let mut layer_copy = Copy { root: nix::unistd::geteuid().is_root(), links: HashMap::new() };
            layer_copy.directory(layer, target)
        })
    };
    copy().map_err(StoreError::disk("copy the image to", target))
}

struct Copy {
    root: bool,
    /// Inode of a file with several names to its first copy. Inodes are only unique within a layer's directory.
    links: HashMap<u64, PathBuf>,
}

impl Copy {
    /// `to` exists and is a real directory.
    fn directory(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if is_opaque(from) {
            for entry in fs::read_dir(to)? {
                remove(&entry?.path())?;
            }
        }
        // Own mode last: it may forbid writing into the directory.
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            self.entry(&entry.path(), &to.join(entry.file_name()))?;
        }
        let meta = fs::symlink_metadata(from)?;
        self.attributes(from, to, &meta)?;
        set_times(to, &meta)
    }

    fn entry(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(from)?;
        let kind = meta.file_type();
        let there = fs::symlink_metadata(to).ok();
        if kind.is_dir() {
            match there {
                Some(t) if t.is_dir() => fs::set_permissions(to, fs::Permissions::from_mode(t.mode() | 0o700))?,
                Some(_) => {
                    fs::remove_file(to)?;
                    fs::create_dir(to)?;
                }
                None => fs::create_dir(to)?,
            }
            return self.directory(from, to);
        }
        if there.is_some() {
            remove(to)?;
        }
        if kind.is_char_device() && meta.rdev() == 0 {
            return Ok(());
        }
        if meta.nlink() > 1 && !kind.is_dir() {
            if let Some(first) = self.links.get(&meta.ino()) {
                return fs::hard_link(first, to);
            }
            self.links.insert(meta.ino(), to.to_owned());
        }
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
            if self.root {
                std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
            }
            return Ok(());
        }
        if kind.is_file() {
            fs::copy(from, to)?;
        } else if kind.is_fifo() {
            nix::unistd::mkfifo(to, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        } else if self.root && (kind.is_char_device() || kind.is_block_device()) {
            let flag = nix::sys::stat::SFlag::from_bits_truncate(meta.mode() & libc::S_IFMT);
            nix::sys::stat::mknod(to, flag, nix::sys::stat::Mode::empty(), meta.rdev())?;
        } else {
            // Sockets are not part of an image, devices need root.
            return Ok(());
        }
        self.attributes(from, to, &meta)?;
        set_times(to, &meta)
    }

    fn attributes(&self, from: &Path, to: &Path, meta: &fs::Metadata) -> io::Result<()> {
        if self.root {
            std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
        }
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        if !meta.is_file() && !meta.is_dir() {
            return Ok(());
        }
        for name in xattr::list(from).into_iter().flatten() {
            let text = name.to_string_lossy();
            if text.starts_with("trusted.overlay.") || text.starts_with("user.overlay.") {
                continue;
            }
            if let Some(value) = xattr::get(from, &name)? {
                // Not every file system has attributes, and some need privileges; a file without them still works.
                let _ = xattr::set(to, &name, &value);
            }
        }
        Ok(())
    }
}

fn is_opaque(directory: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| matches!(xattr::get(directory, name), Ok(Some(value)) if value == b"y"))
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn set_times(path: &Path, meta: &fs::Metadata) -> io::Result<()> {
    let time = nix::sys::time::TimeSpec::new(meta.mtime(), meta.mtime_nsec());
    let cwd = nix::fcntl::AT_FDCWD;
    Ok(nix::sys::stat::utimensat(cwd, path, &time, &time, nix::sys::stat::UtimensatFlags::NoFollowSymlink)?)
}
