//! Running an image's program without any isolation: found in the image's directory, started on the machine as it is.
//!
//! A statically linked program runs as it is; a dynamic one through the loader that the image brings, with the
//! image's library directories; a script through the interpreter that the image brings. Paths that the program opens
//! itself are the machine's: that is what "no isolation" means.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::init::{Started, step};
use super::process::DEFAULT_PATH;
use super::wire::StartError;
use crate::launch::Process;
use crate::sys;

/// Directories of an image where its loader would look for libraries.
const LIBRARY_DIRS: [&str; 8] = [
    "lib",
    "lib64",
    "usr/lib",
    "usr/lib64",
    "usr/local/lib",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
];
/// Interpreters of interpreters end somewhere.
const MAX_SCRIPTS: u32 = 4;

/// The process as this machine can run it, for an image unpacked at `root`.
pub(super) fn resolve(root: &Path, process: &Process) -> Started<Process> {
    let open_root: OwnedFd = fs::File::open(root).or_else(step("open the unpacked image"))?.into();
    let cwd = in_root(&open_root, &process.cwd).filter(|p| p.is_dir()).unwrap_or_else(|| root.to_owned());
    let name = process.argv.first().map(String::as_str).unwrap_or("");
    let path = process.env.iter().rfind(|(n, _)| n == "PATH").map_or(DEFAULT_PATH, |(_, v)| v);
    let program = find(&open_root, name, path, &process.cwd)
        .ok_or_else(|| fault(format!("cannot run {name:?}: executable file not found in the image")))?;
    let mut argv = process.argv.clone();
    argv[0] = program.to_string_lossy().into_owned();
    for _ in 0..MAX_SCRIPTS {
        let head = head_of(Path::new(&argv[0])).or_else(step(format_args!("read {}", argv[0])))?;
        match kind_of(&head) {
            Kind::Static => return Ok(Process { argv, cwd, ..process.clone() }),
            Kind::Dynamic(loader) => {
                let found = in_root(&open_root, Path::new(&loader)).ok_or_else(|| {
                    fault(format!("{name:?} wants the loader {loader}, which the image does not hold; build it statically, or use `--runtime container`"))
                })?;
                let libraries: Vec<String> = LIBRARY_DIRS
                    .iter()
                    .map(|dir| root.join(dir))
                    .filter(|dir| dir.is_dir())
                    .map(|dir| dir.to_string_lossy().into_owned())
                    .collect();
                let loader = [found.to_string_lossy().into_owned(), "--library-path".into(), libraries.join(":")];
                return Ok(Process { argv: loader.into_iter().chain(argv).collect(), cwd, ..process.clone() });
            }
            Kind::Script(interpreter, argument) => {
                let found = in_root(&open_root, Path::new(&interpreter)).ok_or_else(|| {
                    fault(format!("{name:?} is a script for {interpreter}, which the image does not hold"))
                })?;
                argv.splice(0..0, [found.to_string_lossy().into_owned()].into_iter().chain(argument));
            }
            Kind::Unknown => {
                return Err(fault(format!("{name:?} is neither a program nor a script of this kind of machine")));
            }
        }
    }
    Err(fault(format!("{name:?} is a script of scripts without end")))
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Static,
    /// Path of the loader.
    Dynamic(String),
    /// Interpreter and its one argument.
    Script(String, Option<String>),
    Unknown,
}

fn find(root: &OwnedFd, name: &str, path: &str, cwd: &Path) -> Option<PathBuf> {
    if name.contains('/') {
        return in_root(root, &cwd.join(name)).filter(|p| p.is_file());
    }
    path.split(':').filter_map(|dir| in_root(root, &Path::new(dir).join(name))).find(|p| p.is_file())
}

/// Where a path of the image really lies, its links followed inside the image.
fn in_root(root: &OwnedFd, path: &Path) -> Option<PathBuf> {
    let found = sys::open_in_root(root.as_fd(), path, libc::O_PATH).ok()?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()
}

fn head_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

/// From a file's first page. Loader paths lie in the first page of every linker's output we know.
fn kind_of(head: &[u8]) -> Kind {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let (interpreter, argument) = match line.trim().split_once(char::is_whitespace) {
            Some((interpreter, argument)) => (interpreter, Some(argument.trim().to_owned())),
            None => (line.trim(), None),
        };
        return Kind::Script(interpreter.to_owned(), argument.filter(|a| !a.is_empty()));
    }
    // 64-bit little-endian ELF: program headers at [32..40], their size at [54..56], their number at [56..58].
    if !head.starts_with(b"\x7fELF\x02\x01") || head.len() < 64 {
        return Kind::Unknown;
    }
    let number = |at: usize, size: usize| {
        head.get(at..at + size).map(|bytes| bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b)))
    };
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Kind::Unknown;
    };
    const INTERPRETER: u64 = 3;
    for at in (0..count).filter_map(|n| usize::try_from(table.checked_add(n * size)?).ok()) {
        if at.checked_add(56).is_none_or(|end| end > head.len()) {
            break;
        }
        if number(at, 4) == Some(INTERPRETER) {
            let (Some(offset), Some(length)) = (number(at + 8, 8), number(at + 32, 8)) else { break };
            let text = usize::try_from(offset).ok().and_then(|from| head.get(from..from.checked_add(length as usize)?));
            let text = text.map(|t| String::from_utf8_lossy(t).trim_end_matches('\0').to_owned());
            return text.map_or(Kind::Unknown, Kind::Dynamic);
        }
    }
    Kind::Static
}

fn fault(message: String) -> StartError {
    StartError { config: false, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(interpreter: Option<&str>) -> Vec<u8> {
        let mut head = vec![0_u8; 64 + 56];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[32] = 64;
        head[54] = 56;
        head[56] = 1;
        head[64] = if interpreter.is_some() { 3 } else { 1 };
        let text = interpreter.unwrap_or("");
        head[64 + 8] = 120;
        head[64 + 32] = text.len() as u8 + 1;
        head.extend_from_slice(text.as_bytes());
        head.push(0);
        head
    }

    #[test]
    fn files_tell_what_they_are() {
        let check = |head: &[u8], expected: Kind| assert_eq!(kind_of(head), expected);
        check(&elf(None), Kind::Static);
        check(&elf(Some("/lib/ld.so")), Kind::Dynamic("/lib/ld.so".into()));
        check(b"#!/bin/sh\necho", Kind::Script("/bin/sh".into(), None));
        check(b"#! /usr/bin/env  python3 -u\n", Kind::Script("/usr/bin/env".into(), Some("python3 -u".into())));
        check(b"MZ", Kind::Unknown);
        check(b"", Kind::Unknown);
        check(b"\x7fELF\x02\x01", Kind::Unknown);
        let mut wild = elf(Some("/x"));
        wild[32..40].fill(0xff);
        check(&wild, Kind::Static);
    }

    #[test]
    fn programs_are_found_inside_the_image_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().canonicalize().expect("exists").join("root");
        fs::create_dir_all(root.join("bin")).expect("made");
        fs::write(root.join("bin/app"), elf(None)).expect("written");
        fs::write(root.join("bin/dyn"), elf(Some("/lib/ld.so"))).expect("written");
        fs::write(root.join("bin/run"), "#!/bin/app -x\n").expect("written");
        std::os::unix::fs::symlink("/bin/app", root.join("link")).expect("linked");
        std::os::unix::fs::symlink("../../../etc/hostname", root.join("out")).expect("linked");
        let run = |argv: &[&str]| {
            let argv = argv.iter().map(|a| (*a).to_owned()).collect();
            resolve(&root, &Process { argv, cwd: "/".into(), ..Process::default() }).map(|p| p.argv)
        };
        let app = root.join("bin/app").to_string_lossy().into_owned();
        assert_eq!(run(&["app", "1"]), Ok(vec![app.clone(), "1".into()]));
        assert_eq!(run(&["/link"]), Ok(vec![app.clone()]));
        let script = root.join("bin/run").to_string_lossy().into_owned();
        assert_eq!(run(&["/bin/run"]), Ok(vec![app, "-x".into(), script]));
        for (argv, message) in [
            ("nothing", "not found in the image"),
            ("/out", "not found in the image"),
            ("dyn", "wants the loader /lib/ld.so"),
        ] {
            let error = run(&[argv]).expect_err("cannot run");
            assert!(error.message.contains(message), "{}", error.message);
        }
    }
}
