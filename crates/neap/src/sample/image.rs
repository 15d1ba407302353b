//! The sample's image, packed from this very process: the executable and the shared objects it runs with.
//!
//! Which objects these are is read from the process's own memory map, so nothing is guessed about the machine's linker.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Path in the image, mode, content.
pub type Files = Vec<(PathBuf, u32, Vec<u8>)>;

/// Where the executable lies in the image.
pub const EXECUTABLE: &str = "/app/neap";

/// Where Linux shows a process its own mappings and executable.
const MAPS: &str = "/proc/self/maps";
const SELF: &str = "/proc/self/exe";

/// All files the image needs.
///
/// # Errors
/// The executable or a shared object cannot be read.
pub fn pack() -> io::Result<Files> {
    let mut files = vec![(PathBuf::from(EXECUTABLE), 0o755, fs::read(SELF)?)];
    for object in shared_objects(&fs::read_to_string(MAPS)?, &fs::read_link(SELF)?) {
        files.push((object.clone(), 0o755, fs::read(&object)?));
    }
    if let Some(loader) = interpreter(&files[0].2)
        && !files.iter().any(|(path, _, _)| *path == loader)
    {
        files.push((loader.clone(), 0o755, fs::read(&loader)?));
    }
    files.push((
        PathBuf::from("/etc/passwd"),
        0o644,
        b"root:x:0:0:root:/:/bin/false\nnonroot:x:65532:65532::/:/bin/false\n".to_vec(),
    ));
    files.push((PathBuf::from("/etc/group"), 0o644, b"root:x:0:\nnonroot:x:65532:\n".to_vec()));
    Ok(files)
}

/// Files that are mapped and are neither the executable nor something of the kernel's.
fn shared_objects(maps: &str, executable: &Path) -> BTreeSet<PathBuf> {
    maps.lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))))
        .filter(|path| path != executable)
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|name| name.contains(".so")))
        .collect()
}

/// The program interpreter an ELF file names (`PT_INTERP`): the loader must lie at exactly this path.
fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?) as usize);
    let word = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let wide = |at: usize| usize::try_from(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?)).ok();
    // Only 64-bit little-endian files: every machine Neap runs on.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (wide(0x20)?, half(0x36)?, half(0x38)?);
    let header = (0..count).map(|n| table + n * size).find(|at| word(*at) == Some(PT_INTERP))?;
    let (offset, length) = (wide(header + 0x08)?, wide(header + 0x20)?);
    let name = elf.get(offset..offset + length)?.split(|b| *b == 0).next()?;
    Some(PathBuf::from(String::from_utf8(name.to_vec()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_packed() {
        let files = pack().expect("own executable is readable");
        assert_eq!(files[0].0, Path::new(EXECUTABLE));
        assert!(files[0].2.starts_with(b"\x7fELF"));
        if let Some(loader) = interpreter(&files[0].2) {
            assert!(files.iter().any(|(path, _, _)| *path == loader), "{loader:?} must be in the image");
        }
    }

    #[test]
    fn mapped_objects_are_found() {
        let maps = "55d0-55d1 r--p 00000000 fe:00 1  /usr/bin/app.so.exe\n\
                    7f00-7f01 r-xp 00000000 fe:00 2  /lib/x86_64-linux-gnu/libc.so.6\n\
                    7f02-7f03 r-xp 00000000 fe:00 2  /lib/x86_64-linux-gnu/libc.so.6\n\
                    7ffd-7ffe rw-p 00000000 00:00 0  [stack]\n";
        let found = shared_objects(maps, Path::new("/usr/bin/app.so.exe"));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6")]);
    }
}
