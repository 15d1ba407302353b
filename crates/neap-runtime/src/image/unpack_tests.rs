use super::*;

/// A tar from lines: `d path`, `f path content`, `l path target`, `h path target`, `w path` (a whiteout is just `f`).
fn layer(lines: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for line in lines {
        let parts: Vec<&str> = line.split(' ').collect();
        let mut header = tar::Header::new_gnu();
        header.set_mode(if parts[0] == "d" { 0o755 } else { 0o644 });
        header.set_mtime(1_000_000_000);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_size(0);
        let name = parts[1].as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        match parts[0] {
            "d" => header.set_entry_type(tar::EntryType::Directory),
            "f" => header.set_size(parts[2].len() as u64),
            "l" => header.set_entry_type(tar::EntryType::Symlink),
            "h" => header.set_entry_type(tar::EntryType::Link),
            "c" => header.set_entry_type(tar::EntryType::Char),
            other => panic!("unknown kind {other}"),
        }
        if matches!(parts[0], "l" | "h") {
            let target = parts[2].as_bytes();
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        }
        header.set_cksum();
        let content = if parts[0] == "f" { parts[2].as_bytes() } else { b"" };
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn roomy() -> Budget {
    Budget::of(0)
}

/// What lies in a directory: `path`, `path=content`, `path->target`, `path!` for a whiteout, `path#` for an opaque one.
fn tree(root: &Path) -> String {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                let opaque = xattr::get(&path, "trusted.overlay.opaque").unwrap_or(None).is_some();
                out.push(format!("{name}{}", if opaque { "#" } else { "/" }));
                walk(root, &path, out);
            } else if meta.is_symlink() {
                out.push(format!("{name}->{}", fs::read_link(&path).unwrap().display()));
            } else if meta.is_file() {
                out.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
            } else {
                out.push(format!("{name}!"));
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.join(" ")
}

fn check(layers: &[&[&str]], whiteouts: Whiteouts, want: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut problem = None;
    for lines in layers {
        if let Err(e) = unpack("layer", &layer(lines)[..], dir.path(), whiteouts, roomy()) {
            problem = Some(e.to_string());
        }
    }
    let got = problem.unwrap_or_else(|| tree(dir.path()));
    assert_eq!(got, want, "{layers:?}");
}

fn overlay(lines: &[&str], want: &str) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: trusted.overlay attributes need root");
        return;
    }
    check(&[lines], Whiteouts::Trusted, want);
}

fn merged(layers: &[&[&str]], want: &str) {
    check(layers, Whiteouts::Apply, want);
}

#[test]
fn files_links_and_directories_arrive() {
    overlay(&["d a", "f a/b hello", "l a/c b", "h d a/b"], "a/ a/b=hello a/c->b d=hello");
    overlay(&["f x/y/z 1"], "x/ x/y/ x/y/z=1");
    overlay(&["f ./a 1", "f /b 2"], "a=1 b=2");
    overlay(&["f a 1", "f a 2"], "a=2");
    overlay(&["d a", "f a/b 1", "f a 2"], "a=2");
}

#[test]
fn whiteouts_become_overlays_marks() {
    overlay(&["d a", "f a/.wh.b x"], "a/ a/b!");
    overlay(&["d a", "f a/.wh..wh..opq x", "f a/c 1"], "a# a/c=1");
    overlay(&["f .wh.a x", "d a", "f a/b 1"], "a# a/b=1");
    overlay(&["d a", "f a/b 1", "f .wh.a x"], "a# a/b=1");
    overlay(&["f .wh.a x", "f a 1"], "a=1");
    overlay(&["f a 1", "f .wh.a x"], "a=1");
    overlay(&["f .wh.a x", "f a/b 1"], "a# a/b=1");
    overlay(&["f .wh..wh.plnk x"], "");
}

#[test]
fn whiteouts_are_applied_when_merging() {
    merged(&[&["d a", "f a/b 1", "f a/c 2"], &["f a/.wh.b x"]], "a/ a/c=2");
    merged(&[&["d a", "f a/b 1", "f a/c 2"], &["f a/.wh..wh..opq x", "f a/d 3"]], "a/ a/d=3");
    merged(&[&["d a", "f a/b 1"], &["f a/d 3", "f a/.wh..wh..opq x"]], "a/ a/d=3");
    merged(&[&["d a", "f a/b 1"], &["f .wh.a x"]], "");
    merged(&[&["f a 1"], &["f a 2", "f .wh.a x"]], "a=2");
    merged(&[&["f a 1"], &["d a", "f a/b 2"]], "a/ a/b=2");
    // The file behind a hard link keeps its content when another name of it is replaced.
    merged(&[&["f a 1", "h b a"], &["f b 2"]], "a=1 b=2");
}

#[test]
fn nothing_leaves_the_target() {
    overlay(&["f ../evil x"], "layer is broken: it contains the path ../evil, which leaves the image");
    overlay(&["f a/../../evil x"], "layer is broken: it contains the path a/../../evil, which leaves the image");
    overlay(&["h a ../evil"], "layer is broken: it contains the path ../evil, which leaves the image");
    // Links may point anywhere, walking them stays inside.
    overlay(&["l a /etc", "f a/passwd x"], "a->/etc etc/ etc/passwd=x");
    overlay(&["l a ../../..", "f a/b x"], "a->../../.. b=x");
    overlay(&["l a b", "l b a", "f a/c x"], "layer is broken: it contains a path through too many symbolic links");
    overlay(&["f a 1", "f a/b 2"], "layer is broken: it contains a path through a, which is no directory");
    overlay(&["h a b"], "layer is broken: it contains a hard link to b, which is not in the layer");
    overlay(&["c a"], "layer is broken: it contains a character device 0/0, which would hide files of other layers");
    overlay(&["f .wh... x"], "layer is broken: it contains a whiteout that names nothing");
}

#[test]
fn modes_times_and_owners_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let root = nix::unistd::geteuid().is_root();
    let owner = if root { 1234 } else { nix::unistd::geteuid().as_raw() };
    for (path, kind, mode) in [("ro/", tar::EntryType::Directory, 0o555), ("ro/suid", tar::EntryType::Regular, 0o4711)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_uid(owner.into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_size(0);
        tar.append_data(&mut header, path, io::empty()).unwrap();
    }
    unpack("layer", &tar.into_inner().unwrap()[..], dir.path(), Whiteouts::Apply, roomy()).unwrap();
    for (path, mode) in [("ro", 0o555), ("ro/suid", 0o4711)] {
        let meta = fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.uid()), (mode, 1_000_000_000, owner), "{path}");
    }
    fs::set_permissions(dir.path().join("ro"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_compression_gives_the_same_diff_id() {
    let plain = layer(&["f a 1"]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &plain).unwrap();
    let want = super::super::digest::digest_of(&plain);
    for bytes in [plain.clone(), gzip.finish().unwrap(), zstd::encode_all(&plain[..], 1).unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = unpack("layer", &bytes[..], dir.path(), Whiteouts::Apply, roomy()).unwrap();
        assert_eq!((unpacked.diff_id, tree(dir.path())), (want.clone(), "a=1".to_owned()));
    }
}

#[test]
fn implied_directories_take_the_lower_layers_mode() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    fs::create_dir(dirs[0].path().join("tmp")).unwrap();
    fs::set_permissions(dirs[0].path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let unpacked = unpack("layer", &layer(&["f tmp/a 1"])[..], dirs[1].path(), Whiteouts::Apply, roomy()).unwrap();
    assert_eq!(unpacked.implied, [PathBuf::from("tmp")]);
    adopt_implied(dirs[1].path(), &unpacked.implied, &[dirs[0].path().to_owned()]).unwrap();
    assert_eq!(fs::metadata(dirs[1].path().join("tmp")).unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn a_truncated_layer_is_an_error() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &layer(&["f a 1"])).unwrap();
    let bytes = gzip.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack("layer", &bytes[..bytes.len() / 2], dir.path(), Whiteouts::Apply, roomy()).is_err());
}

#[test]
fn bombs_do_not_go_off() {
    let check = |what: &str, layer: Vec<u8>, budget: Budget, problem: &str| {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack("layer", &layer[..], dir.path(), Whiteouts::Apply, budget).expect_err(what);
        assert!(error.to_string().contains(problem), "{what}: {error}");
    };
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::Write::write_all(&mut out, bytes).unwrap();
        out.finish().unwrap()
    };
    let entry = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let zeros = |n: usize| vec![0_u8; n];
    let file = [entry(tar::EntryType::Regular, 1 << 20), zeros(1 << 20)].concat();
    check("a large file", gzip(&file), Budget::tiny(1000, 10), "more than its compressed size");
    let mut trailing = layer(&["f a 1"]);
    trailing.extend(zeros(1 << 20));
    check("zeros without end after it", gzip(&trailing), Budget::tiny(1000, 10), "more than its compressed size");
    let hidden = [entry(tar::EntryType::Fifo, 1 << 20), zeros(1 << 20)].concat();
    check("content that nobody asked for", gzip(&hidden), Budget::tiny(1000, 10), "more than its compressed size");
    for kind in [tar::EntryType::XHeader, tar::EntryType::GNULongName] {
        let long = [entry(kind, 8 << 20), zeros(8 << 20)].concat();
        check("a long description", gzip(&long), roomy(), "a file's description of more than a megabyte");
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    tar.append_data(&mut header, format!("{}a", "d/".repeat(600)), io::empty()).unwrap();
    let deep = tar.into_inner().unwrap();
    check("directories in directories", deep, roomy(), "more than 512 directories");
    let names: Vec<String> = (0..20).map(|n| format!("d d{n}")).collect();
    let many = layer(&names.iter().map(String::as_str).collect::<Vec<_>>());
    check("many files", many, Budget::tiny(1 << 20, 10), "files");
}
