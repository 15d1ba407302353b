//! What a pod's volumes are on disk, and the small files of /etc that every pod has.
//!
//! Files of config-maps and secrets are replaced together: a reader sees the old set or the new one, by way of one
//! symbolic link that is swapped (`..data`), as Kubernetes does it and as applications that watch such files expect.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::machine::Sandbox;
use crate::pod::{Dns, PodSpec, Volume, VolumeFile};

const DATA: &str = "..data";

/// Makes the pod's volumes (or brings the files of existing ones up to date); says where each lies.
pub(crate) fn prepare(pod_dir: &Path, spec: &PodSpec, root: bool) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut places = BTreeMap::new();
    // Only root gives files away.
    let group = spec.fs_group.filter(|_| root);
    for (name, volume) in &spec.volumes {
        let dir = pod_dir.join("volumes").join(safe_name(name)?);
        let place = match volume {
            Volume::HostPath(path) => {
                if !path.exists() {
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("the path {} of volume {name} does not exist on this machine", path.display()),
                    ));
                }
                path.clone()
            }
            Volume::EmptyDir { memory, size_limit } => {
                make_empty(&dir, group)?;
                // After the machine's restart the directory is there and the memory is not.
                if *memory && root && !is_mounted(&dir)? {
                    mount_tmpfs(&dir, *size_limit, group)?;
                }
                dir
            }
            // Each container has a view of its own of it.
            Volume::Image { .. } => continue,
            Volume::Files(files) => {
                write_files(&dir, files, &mounted_within(spec, name), group)?;
                dir
            }
        };
        places.insert(name.clone(), place);
    }
    Ok(places)
}

/// Where other volumes are mounted inside this one: directories that must be there, since nothing can be made in it
/// from inside. Only volumes that are written by us: in others a container could lay a link.
fn mounted_within(spec: &PodSpec, name: &str) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for outer in container.mounts.iter().filter(|m| m.volume == name && m.sub_path.is_none()) {
            let inner = container.mounts.iter().filter(|m| m.path != outer.path && m.sub_path.is_none());
            all.extend(inner.filter_map(|m| safe_path(m.path.strip_prefix(&outer.path).ok()?).ok()));
        }
    }
    all
}

/// Takes the mounts under a pod's volumes away, so that the directory can be removed.
pub(crate) fn release(pod_dir: &Path) {
    for entry in fs::read_dir(pod_dir.join("volumes")).into_iter().flatten().flatten() {
        // Not a mount point: nothing to do.
        let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
    }
}

/// `/etc/resolv.conf`, `/etc/hosts`, `/etc/hostname` of a pod.
pub(crate) fn write_etc(pod_dir: &Path, spec: &PodSpec, sandbox: &Sandbox) -> io::Result<()> {
    let dir = pod_dir.join("etc");
    fs::create_dir_all(&dir)?;
    let write = |name: &str, text: String| {
        fs::write(dir.join(name), text)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644))
    };
    write("resolv.conf", resolv_conf(&spec.dns, || fs::read_to_string("/etc/resolv.conf").unwrap_or_default()))?;
    write("hostname", format!("{}\n", spec.hostname))?;
    let shared = sandbox.dir.is_none();
    let machine = if shared { fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
    let mut text = if machine.is_empty() { hosts(&spec.hostname, sandbox.address) } else { machine };
    for (address, names) in &spec.host_aliases {
        text.push_str(&format!("{address}\t{}\n", names.join("\t")));
    }
    write("hosts", text)
}

/// Without a name server of its own a pod asks whom the machine asks.
fn resolv_conf(dns: &Dns, machine: impl FnOnce() -> String) -> String {
    if dns.nameservers.is_empty() {
        return machine();
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn hosts(hostname: &str, address: std::net::Ipv4Addr) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n")
}

/// Made once, whole or not at all: what containers later change about it is theirs.
fn make_empty(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if fs::symlink_metadata(dir).is_ok() {
        return Ok(());
    }
    let mut aside = dir.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    fs::create_dir_all(&aside)?;
    chown(&aside, None, group)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(shared_mode(group)))?;
    fs::rename(&aside, dir)
}

/// Open to all; what is made in it belongs to the pod's group, if it has one.
fn shared_mode(group: Option<u32>) -> u32 {
    if group.is_some() { 0o2777 } else { 0o777 }
}

fn is_mounted(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

fn mount_tmpfs(dir: &Path, size: Option<u64>, group: Option<u32>) -> io::Result<()> {
    let size = size.map_or(String::new(), |bytes| format!(",size={bytes}"));
    let gid = group.map_or(String::new(), |gid| format!(",gid={gid}"));
    let options = format!("mode={:o}{size}{gid}", shared_mode(group));
    Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?)
}

/// Writes the set aside and swaps it in. An unchanged set is left alone.
fn write_files(
    dir: &Path,
    files: &BTreeMap<PathBuf, VolumeFile>,
    mounted: &BTreeSet<PathBuf>,
    group: Option<u32>,
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let top = |path: &PathBuf| path.iter().next().map(PathBuf::from);
    // Inside a directory that the files themselves have, there is no place: it is replaced with them.
    let beside = |path: &&PathBuf| files.keys().all(|file| top(file) != top(path));
    for path in mounted.iter().filter(beside) {
        let place = dir.join(top(path).unwrap_or_default());
        if fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_symlink()) {
            // To files that are no more.
            fs::remove_file(&place)?;
        }
        fs::create_dir_all(dir.join(path))?;
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && unchanged(&dir.join(current), files, group)
    {
        return Ok(());
    }
    let number =
        current.as_ref().and_then(|c| c.to_str()?.strip_prefix("..set")?.parse::<u64>().ok()).map_or(0, |n| n + 1);
    let name = format!("..set{number}");
    let set = dir.join(&name);
    // Left by a crash half-way.
    let _ = fs::remove_dir_all(&set);
    fs::create_dir(&set)?;
    fs::set_permissions(&set, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let path = safe_path(path)?;
        let target = set.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        out.write_all(&file.content)?;
        fchown(&out, None, group)?;
        out.set_permissions(fs::Permissions::from_mode(mode_of(file, group)))?;
    }
    let aside = dir.join("..data.new");
    let _ = fs::remove_file(&aside);
    symlink(&name, &aside)?;
    fs::rename(&aside, dir.join(DATA))?;
    let tops: Vec<PathBuf> = files
        .keys()
        .filter_map(|p| p.components().find(|c| matches!(c, Component::Normal(_))))
        .map(|c| PathBuf::from(c.as_os_str()))
        .collect();
    for top in &tops {
        let link = dir.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let file_name = PathBuf::from(entry.file_name());
        let ours = file_name == Path::new(&name) || file_name == Path::new(DATA);
        let mounted = mounted.iter().any(|path| top(path).as_ref() == Some(&file_name));
        if ours || mounted || tops.contains(&file_name) {
            continue;
        }
        let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
    }
    Ok(())
}

/// The pod's group reads, whatever else the file's mode says.
fn mode_of(file: &VolumeFile, group: Option<u32>) -> u32 {
    (file.mode | if group.is_some() { 0o440 } else { 0 }) & 0o7777
}

fn unchanged(set: &Path, files: &BTreeMap<PathBuf, VolumeFile>, group: Option<u32>) -> bool {
    let same = |(path, file): (&PathBuf, &VolumeFile)| {
        let path = set.join(path);
        fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o7777 == mode_of(file, group))
            && fs::read(&path).is_ok_and(|content| content == file.content)
    };
    files.iter().all(same) && count_files(set) == files.len()
}

fn count_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}

/// A relative path that stays where it is put.
fn safe_path(path: &Path) -> io::Result<PathBuf> {
    let plain = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let reserved = path.components().next().is_some_and(|c| c.as_os_str().to_string_lossy().starts_with(".."));
    if !plain || reserved || path.as_os_str().is_empty() {
        let message = format!("the file path {} in a volume is not a plain relative path", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(path.components().filter(|c| matches!(c, Component::Normal(_))).collect())
}

fn safe_name(name: &str) -> io::Result<&str> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot be the name of a volume")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str, u32)]) -> BTreeMap<PathBuf, VolumeFile> {
        let file = |content: &str, mode| VolumeFile { content: content.as_bytes().to_vec(), mode };
        all.iter().map(|(path, content, mode)| (PathBuf::from(path), file(content, *mode))).collect()
    }

    #[test]
    fn files_are_replaced_together_and_only_when_they_change() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vol = dir.path().join("v");
        // A place for another volume.
        let mounted = [PathBuf::from("inner/deep")].into();
        write_files(&vol, &files(&[("a", "1", 0o644), ("sub/b", "2", 0o400)]), &mounted, None).expect("written");
        assert_eq!(fs::read_to_string(vol.join("a")).expect("there"), "1");
        assert_eq!(fs::read_to_string(vol.join("sub/b")).expect("there"), "2");
        assert_eq!(fs::metadata(vol.join("sub/b")).expect("there").permissions().mode() & 0o777, 0o400);
        let first = fs::read_link(vol.join(DATA)).expect("a link");
        write_files(&vol, &files(&[("a", "1", 0o644), ("sub/b", "2", 0o400)]), &mounted, None).expect("written");
        assert_eq!(fs::read_link(vol.join(DATA)).expect("a link"), first, "nothing changed");
        write_files(&vol, &files(&[("a", "3", 0o644)]), &mounted, None).expect("written");
        assert!(vol.join("inner/deep").is_dir());
        assert_eq!(fs::read_to_string(vol.join("a")).expect("there"), "3");
        assert!(!vol.join("sub").exists() && fs::symlink_metadata(vol.join("sub")).is_err());
        assert_eq!(
            fs::read_dir(&vol).expect("there").count(),
            4,
            "the set, its link, the link to the file, and the place"
        );
    }

    #[test]
    fn the_pods_group_has_its_volumes() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root gives files away");
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let volumes = BTreeMap::from([
            ("files".to_owned(), Volume::Files(files(&[("key", "1", 0o600)]))),
            ("disk".to_owned(), Volume::EmptyDir { memory: false, size_limit: None }),
        ]);
        let spec = PodSpec { volumes, fs_group: Some(4242), ..PodSpec::default() };
        let places = prepare(dir.path(), &spec, true).expect("prepared");
        let look = |path: PathBuf| {
            let meta = fs::metadata(path).expect("there");
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(look(places["files"].join("key")), (4242, 0o640));
        assert_eq!(look(places["disk"].clone()), (4242, 0o2777));
        fs::set_permissions(&places["disk"], fs::Permissions::from_mode(0o700)).expect("changed");
        prepare(dir.path(), &spec, true).expect("again");
        assert_eq!(look(places["disk"].clone()), (4242, 0o700), "what a container changed stays");
    }

    #[test]
    fn host_names_are_the_pods_own_and_those_it_asks_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let alias = ("192.0.2.1".parse().expect("an address"), vec!["db".to_owned(), "db.test".to_owned()]);
        let spec = PodSpec { hostname: "p".into(), host_aliases: vec![alias], ..PodSpec::default() };
        let address = [198, 19, 0, 5].into();
        let sandbox = Sandbox { dir: Some("/ns".into()), address, cable: None, users: None };
        write_etc(dir.path(), &spec, &sandbox).expect("written");
        let text = fs::read_to_string(dir.path().join("etc/hosts")).expect("there");
        assert!(text.contains("198.19.0.5\tp\n") && text.ends_with("192.0.2.1\tdb\tdb.test\n"), "{text}");
    }

    #[test]
    fn paths_may_not_leave_the_volume() {
        let check = |path: &str, good: bool| assert_eq!(safe_path(Path::new(path)).is_ok(), good, "{path}");
        check("a", true);
        check("a/b.c", true);
        check("./a", true);
        check("../a", false);
        check("a/../../b", false);
        check("/a", false);
        check("..data", false);
        check("", false);
    }

    #[test]
    fn name_servers_are_the_pods_or_the_machines() {
        let dns = Dns {
            nameservers: vec!["198.19.0.1".parse().expect("an address")],
            searches: vec!["a.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        let machine = || "nameserver 192.0.2.53\n".to_owned();
        assert_eq!(resolv_conf(&dns, machine), "search a.svc svc\nnameserver 198.19.0.1\noptions ndots:5\n");
        assert_eq!(resolv_conf(&Dns::default(), machine), "nameserver 192.0.2.53\n");
    }
}
