//! Packs the binary's relocations where the machine's C library can read them packed: they are five percent of the file, and
//! every process reads all of them when it starts, sidecars too.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let native = std::env::var("HOST") == std::env::var("TARGET");
    if native && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Of this machine; `None` where the C library is another one.
fn glibc() -> Option<(u32, u32)> {
    let answer = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let answer = String::from_utf8(answer.stdout).ok()?;
    let (major, minor) = answer.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
