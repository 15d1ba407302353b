//! How full the disk may become, and who stops first: what arrives (images) well before pods are ended for the room.

use std::io;
use std::path::Path;

use nix::sys::statvfs::{Statvfs, statvfs};

/// What the machine keeps for itself: this part of the disk, and at most so many bytes. Below it pods are ended.
const RESERVE_PART: u64 = 20;
const RESERVE_BYTES: u64 = 1 << 30;
/// Images leave so many times the reserve, so that a pull fails rather than a pod.
const FOR_PODS: u64 = 2;

/// Bytes of the disk that a directory lies on, used or not.
///
/// # Errors
/// The directory cannot be looked at.
pub fn size_of_disk(dir: &Path) -> io::Result<u64> {
    Ok(sizes(&statvfs(dir)?).0)
}

/// Bytes of a disk of this size that must stay free.
pub(crate) fn reserve(total: u64) -> u64 {
    (total / RESERVE_PART).min(RESERVE_BYTES)
}

/// Whether the free space is below the reserve.
pub(crate) fn is_short(disk: &Statvfs) -> bool {
    let (total, free) = sizes(disk);
    free < reserve(total)
}

/// Whether so many bytes of an image may still arrive.
pub(crate) fn takes(disk: &Statvfs, bytes: u64) -> bool {
    let (total, free) = sizes(disk);
    free >= bytes.saturating_add(FOR_PODS * reserve(total))
}

fn sizes(disk: &Statvfs) -> (u64, u64) {
    let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
    (bytes(disk.blocks()), bytes(disk.blocks_available()))
}
