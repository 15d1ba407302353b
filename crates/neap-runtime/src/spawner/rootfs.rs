//! A container's view of the filesystem: layers, /proc, /sys, /dev, volumes, and what is hidden or read-only in them.
//!
//! Two halves with the swap of the root between them. Before it, everything that comes from the machine is opened
//! as a mount that hangs nowhere; after it, those are hung at paths that can no longer lead out of the container.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::init::{Started, step};
use super::wire::StartError;
use crate::launch::{Bind, ImageMount, Isolation, Launch, Root};
use crate::sys;

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Devices every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// What would tell about, or reach into, the machine (the lists that Docker and Kubernetes use).
pub(crate) const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
pub(crate) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// What may be mounted in /proc nevertheless: files that programs only read, which lxcfs and its like make smaller.
const HARMLESS: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];
/// Symbolic links followed in one path at most, as in the kernel.
const LINKS_MAX: u32 = 40;
/// mount(2) takes its options on one page.
const MAX_OPTIONS: usize = 4000;

/// A mount that hangs nowhere yet, and where it will.
struct Pending {
    mount: OwnedFd,
    target: PathBuf,
    kind: Target,
    /// Of the pod; its target may be a link of the image's.
    volume: bool,
}

enum Target {
    Directory,
    File,
}

/// Makes the root of the calling process the container's. Its mount namespace must be its own and private.
/// `users`: the pod's own, if it has them; everything that the container is to own is then shown to belong to them.
pub(super) fn build(launch: &Launch, users: Option<&OwnedFd>) -> Started<()> {
    let user = launch.isolation == Isolation::User;
    let root = mount_root(&launch.root, users)?;
    for image in &launch.images {
        mount_image(image, users)?;
    }
    let first_user = launch.users.as_ref().map(|users| users.first);
    let mut pending = system_mounts(launch, user)?;
    for bind in &launch.mounts {
        pending.push(open_bind(bind, launch.privileged, users)?);
    }
    let (devices, covers) = match launch.privileged {
        true => (Vec::new(), Vec::new()),
        false => (open_devices()?, open_covers()?),
    };
    sys::swap_root(&root).or_else(step("change to the container's root"))?;

    let root: OwnedFd = fs::File::open("/").or_else(step("open the container's root"))?.into();
    for item in &pending {
        let was_there = is_at(&item.mount, "/dev");
        match item.volume {
            true => hang_volume(&root, item, launch.privileged, first_user)?,
            false => hang(item)?,
        }
        if !launch.privileged && !was_there && is_at(&item.mount, "/dev") {
            fill_dev(&devices)?;
        }
    }
    if !launch.privileged {
        if !user {
            close_writing("/sys/fs/cgroup", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)?;
        }
        mask(covers)?;
    }
    // Images name working directories that they do not hold; other runtimes make them too.
    if !launch.process.cwd.as_os_str().is_empty() {
        let _ = make_working_dir(&launch.process.cwd, first_user);
    }
    if launch.read_only_root {
        close_writing("/", MsFlags::MS_NODEV)?;
    }
    Ok(())
}

/// `keep`: flags the mount already has, which a change of flags would lose.
fn close_writing(path: &str, keep: MsFlags) -> Started<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | keep;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .map_err(io::Error::from)
        .or_else(step(format_args!("make {path} read-only")))
}

/// All but the last part belong to whom they would: what is missing is made for the container's root.
fn make_working_dir(path: &Path, owner: Option<u32>) -> io::Result<()> {
    let mut so_far = PathBuf::from("/");
    for part in path.components() {
        so_far.push(part);
        match fs::create_dir(&so_far) {
            Ok(()) => std::os::unix::fs::lchown(&so_far, owner, owner)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Why a pod cannot have users of its own here, once and in one sentence.
fn no_own_users<T>(what: &Path) -> impl FnOnce(io::Error) -> Started<T> {
    move |error| {
        let message = format!(
            "hostUsers: false is not possible here: the filesystem of {} cannot show files with other owners (idmapped \
             mounts: {error})",
            what.display()
        );
        Err(StartError { config: true, message })
    }
}

/// Layers as the pod's users own them, hung up in a small filesystem at `at`, for an overlay to be made of them.
fn layers_for(layers: &[PathBuf], users: &OwnedFd, at: &Path) -> Started<Vec<PathBuf>> {
    let place = sys::new_filesystem(c"tmpfs", &[("mode", "700"), ("size", "64k")], NOSUID | NODEV | NOEXEC);
    place
        .and_then(|place| sys::move_mount(place.as_fd(), at))
        .or_else(step(format_args!("make room for layers at {}", at.display())))?;
    let hang = |(number, layer): (usize, &PathBuf)| {
        let target = at.join(number.to_string());
        fs::create_dir(&target).or_else(step(format_args!("make room for the layer {}", layer.display())))?;
        let tree = sys::open_tree(layer, false).or_else(step(format_args!("open the layer {}", layer.display())))?;
        sys::mount_for(tree.as_fd(), users.as_fd(), false).or_else(no_own_users(layer))?;
        sys::move_mount(tree.as_fd(), &target).or_else(step(format_args!("mount the layer {}", layer.display())))?;
        Ok(target)
    };
    layers.iter().enumerate().map(hang).collect()
}

/// The content of an image, read-only, at a place of its own in this view.
fn mount_image(image: &ImageMount, users: Option<&OwnedFd>) -> Started<()> {
    let target = &image.target;
    let layers = match users {
        Some(users) => layers_for(&image.layers, users, target)?,
        None => image.layers.clone(),
    };
    let what = || format!("mount an image of {} layers at {}", layers.len(), target.display());
    if let [layer] = &layers[..] {
        // An overlay wants two.
        return sys::open_tree(layer, false)
            .and_then(|tree| sys::mount_set(tree.as_fd(), RDONLY, false).map(|()| tree))
            .and_then(|tree| sys::move_mount(tree.as_fd(), target))
            .or_else(step(what()));
    }
    let options = overlay_options(&layers, None, false)?;
    enter_parent(&layers)?;
    mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV | MsFlags::MS_RDONLY, Some(options.as_str()))
        .map_err(io::Error::from)
        .or_else(step(what()))
}

fn enter_parent(layers: &[PathBuf]) -> Started<()> {
    let Some(parent) = layers.first().and_then(|l| l.parent()) else { return Ok(()) };
    nix::unistd::chdir(parent)
        .map_err(io::Error::from)
        .or_else(step(format_args!("change to the layers at {}", parent.display())))
}

fn mount_root(root: &Root, users: Option<&OwnedFd>) -> Started<PathBuf> {
    match root {
        Root::Overlay { lower, upper, work, target, user_xattr } => {
            let lower = &match users {
                Some(users) => layers_for(lower, users, target)?,
                None => lower.clone(),
            };
            let options = overlay_options(lower, Some((upper, work)), *user_xattr)?;
            enter_parent(lower)?;
            let mount_with =
                |options: &str| mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV, Some(options));
            // "volatile": the writable layer goes with the container, so nothing of it need ever be flushed. Kernels
            // before 5.10 do not know the word.
            mount_with(&format!("{options},volatile"))
                .or_else(|error| if error == nix::errno::Errno::EINVAL { mount_with(&options) } else { Err(error) })
                .map_err(io::Error::from)
                .or_else(step(format_args!("mount {} layers as an overlay at {}", lower.len(), target.display())))?;
            Ok(target.clone())
        }
        Root::None(_) => {
            Err(StartError { config: false, message: "this kind of container has no root of its own".into() })
        }
    }
}

/// Lower directories are named relative to the first one's parent, so that many layers fit on a page.
fn overlay_options(lower: &[PathBuf], writable: Option<(&Path, &Path)>, user_xattr: bool) -> Started<String> {
    let parent = lower.first().and_then(|l| l.parent());
    let escape = |path: &Path| {
        let text = path.to_string_lossy();
        text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
    };
    let names: Vec<String> = lower
        .iter()
        .rev()
        .map(|layer| match parent.and_then(|p| layer.strip_prefix(p).ok()) {
            Some(name) => escape(name),
            None => escape(layer),
        })
        .collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if let Some((upper, work)) = writable {
        options.push_str(&format!(",upperdir={},workdir={}", escape(upper), escape(work)));
    }
    if user_xattr {
        options.push_str(",userxattr");
    }
    if options.len() > MAX_OPTIONS {
        let message = format!("the image has {} layers, which is more than one overlay can hold", lower.len());
        return Err(StartError { config: true, message });
    }
    Ok(options)
}

fn system_mounts(launch: &Launch, user: bool) -> Started<Vec<Pending>> {
    let privileged = launch.privileged;
    let safe = NOSUID | NODEV | NOEXEC;
    let mut all = Vec::new();
    let mut add = |target: &str, mount: io::Result<OwnedFd>| -> Started<()> {
        let mount = mount.or_else(step(format_args!("prepare {target}")))?;
        all.push(Pending { mount, target: PathBuf::from(target), kind: Target::Directory, volume: false });
        Ok(())
    };
    add("/proc", sys::new_filesystem(c"proc", &[], safe))?;
    let read_only = if privileged { 0 } else { RDONLY };
    if user {
        // A fresh sysfs belongs to who owns the network, which here is the machine.
        let sys_tree = sys::open_tree(Path::new("/sys"), true)
            .and_then(|tree| sys::mount_set(tree.as_fd(), safe | RDONLY, true).map(|()| tree));
        add("/sys", sys_tree)?;
    } else {
        add("/sys", sys::new_filesystem(c"sysfs", &[], safe | read_only))?;
        add("/sys/fs/cgroup", sys::new_filesystem(c"tmpfs", &[("mode", "755"), ("size", "64k")], safe))?;
    }
    if privileged {
        add("/dev", sys::open_tree(Path::new("/dev"), true))?;
    } else {
        // No device works here but those that are mounted in: what a container makes itself cannot be opened.
        add("/dev", sys::new_filesystem(c"tmpfs", &[("mode", "755"), ("size", "64m")], NOSUID | NODEV))?;
        let mut options = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
        // The group of terminals in most images.
        let group = (launch.users.as_ref().map_or(0, |users| users.first) + 5).to_string();
        if !user {
            options.push(("gid", &group));
        }
        add("/dev/pts", sys::new_filesystem(c"devpts", &options, NOSUID | NOEXEC))?;
    }
    add("/dev/shm", sys::new_filesystem(c"tmpfs", &[("mode", "1777"), ("size", "64m")], safe))?;
    add("/dev/mqueue", sys::new_filesystem(c"mqueue", &[], safe))?;
    if !user {
        for (source, name) in &launch.group_views {
            let target = Path::new("/sys/fs/cgroup").join(name);
            let mount = sys::open_tree(source, false)
                .and_then(|tree| sys::mount_set(tree.as_fd(), safe | read_only, false).map(|()| tree));
            let mount = mount.or_else(step(format_args!("prepare {}", target.display())))?;
            all.push(Pending { mount, target, kind: Target::Directory, volume: false });
        }
    }
    Ok(all)
}

fn open_bind(bind: &Bind, privileged: bool, users: Option<&OwnedFd>) -> Started<Pending> {
    let what = || format!("open {} for {}", bind.source.display(), bind.target.display());
    let tree = match &bind.sub_path {
        None => sys::open_tree(&bind.source, bind.recursive).or_else(step(what()))?,
        Some(sub) => {
            let inside = open_sub_path(&bind.source, sub, !bind.image).or_else(step(what()))?;
            let named = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
            sys::open_tree(&named, bind.recursive).or_else(step(what()))?
        }
    };
    let mut attributes = if privileged { 0 } else { NOSUID | NODEV };
    if bind.read_only {
        attributes |= RDONLY;
    }
    if bind.image {
        attributes |= RDONLY | NOEXEC;
    }
    // The layers of an image are shown so already.
    if let Some(users) = users.filter(|_| !bind.image) {
        sys::mount_for(tree.as_fd(), users.as_fd(), bind.recursive).or_else(no_own_users(&bind.source))?;
    }
    if attributes != 0 {
        sys::mount_set(tree.as_fd(), attributes, bind.recursive).or_else(step(what()))?;
    }
    let meta = fs::File::from(tree.try_clone().or_else(step(what()))?).metadata().or_else(step(what()))?;
    let kind = if meta.is_dir() { Target::Directory } else { Target::File };
    Ok(Pending { mount: tree, target: bind.target.clone(), kind, volume: true })
}

/// A path inside a volume, made as directories where it is missing, never followed out of the volume.
fn open_sub_path(volume: &Path, sub: &Path, make: bool) -> io::Result<OwnedFd> {
    let root: OwnedFd = fs::File::open(volume)?.into();
    match sys::open_in_root(root.as_fd(), sub, libc::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && make => {}
        other => return other,
    }
    let mut so_far = PathBuf::from(".");
    for part in sub.components() {
        let Component::Normal(name) = part else { continue };
        let parent = sys::open_in_root(root.as_fd(), &so_far, libc::O_PATH | libc::O_DIRECTORY)?;
        match nix::sys::stat::mkdirat(parent.as_fd(), Path::new(name), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        so_far.push(name);
    }
    sys::open_in_root(root.as_fd(), sub, libc::O_PATH)
}

/// The machine's device nodes, each as a mount of its own: read-only, so that nobody inside can change their owner or
/// mode, which are the machine's (writing to a device is no writing to its node).
fn open_devices() -> Started<Vec<(&'static str, OwnedFd)>> {
    let open = |name: &&'static str| {
        let device = sys::open_tree(&Path::new("/dev").join(name), false)
            .and_then(|tree| sys::mount_set(tree.as_fd(), RDONLY | NOSUID | NOEXEC, false).map(|()| tree));
        device.or_else(step(format_args!("open /dev/{name}"))).map(|fd| (*name, fd))
    };
    DEVICES.iter().map(open).collect()
}

/// What hides a file, once for each that might be. Taken from the machine: inside, where a volume may lie over /dev,
/// a "/dev/null" could be a link to the very file that is to be hidden (CVE-2025-31133).
fn open_covers() -> Started<Vec<OwnedFd>> {
    let open = |_: &&str| {
        let cover = sys::open_tree(Path::new("/dev/null"), false)
            .and_then(|tree| sys::mount_set(tree.as_fd(), RDONLY | NOSUID | NOEXEC, false).map(|()| tree));
        cover.or_else(step("open /dev/null"))
    };
    MASKED.iter().map(open).collect()
}

/// Of the system's own: never through a link, so an image in which /proc is one does not start.
fn hang(item: &Pending) -> Started<()> {
    let target = &item.target;
    fs::create_dir_all(target).or_else(step(format_args!("make the mount point {}", target.display())))?;
    sys::move_mount(item.mount.as_fd(), target).or_else(step(format_args!("mount {}", target.display())))
}

/// Where the image's links lead, as everywhere: `/var/run` is `/run` in most of them. But not into /proc, which other
/// containers' volumes could lead it to, and where the rest of this file relies on what it finds.
fn hang_volume(root: &OwnedFd, item: &Pending, privileged: bool, owner: Option<u32>) -> Started<()> {
    let target = &item.target;
    let place = reach(root, target, &item.kind, owner)
        .or_else(step(format_args!("make the mount point {}", target.display())))?;
    if !privileged && !HARMLESS.iter().any(|path| target == Path::new(path)) {
        let there = fstatfs(&place).map_err(io::Error::from);
        let there = there.or_else(step(format_args!("look at the mount point {}", target.display())))?;
        if there.filesystem_type() == PROC_SUPER_MAGIC {
            let message = format!("the mount path {} leads into /proc, where nothing can be mounted", target.display());
            return Err(StartError { config: true, message });
        }
    }
    sys::move_mount_onto(item.mount.as_fd(), place.as_fd()).or_else(step(format_args!("mount {}", target.display())))
}

/// Opens a mount point, and makes what is missing of it. A directory is looked for where links lead; a file is mounted
/// over the link that has its name.
fn reach(root: &OwnedFd, target: &Path, kind: &Target, owner: Option<u32>) -> io::Result<OwnedFd> {
    let flags = match kind {
        Target::Directory => libc::O_PATH | libc::O_DIRECTORY,
        Target::File => libc::O_PATH | libc::O_NOFOLLOW,
    };
    match sys::open_in_root(root.as_fd(), target, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let parts = |path: &Path| path.components().map(|c| c.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut rest: VecDeque<OsString> = parts(target).into();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        // What is absolute begins at the root again.
        let here = at.join(part);
        match fs::symlink_metadata(&here) {
            Ok(meta) if meta.is_symlink() => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                for part in parts(&fs::read_link(&here)?).into_iter().rev() {
                    rest.push_front(part);
                }
            }
            Ok(_) => at = here,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match kind {
                    Target::File if rest.is_empty() => fs::File::create_new(&here).map(drop)?,
                    _ => fs::create_dir(&here)?,
                }
                std::os::unix::fs::lchown(&here, owner, owner)?;
                at = here;
            }
            Err(error) => return Err(error),
        }
    }
    sys::open_in_root(root.as_fd(), &at, flags)
}

/// Whether this mount is what the container sees at `path`, however that was spelled.
fn is_at(mount: &OwnedFd, path: &str) -> bool {
    let identity = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
    match (fstat(mount), stat(path)) {
        (Ok(mount), Ok(seen)) => identity(mount) == identity(seen),
        _ => false,
    }
}

fn fill_dev(devices: &[(&str, OwnedFd)]) -> Started<()> {
    let all = || -> io::Result<()> {
        for (name, device) in devices {
            let target = Path::new("/dev").join(name);
            // Whatever lies there already (in a volume) is covered, not followed and not changed.
            if fs::symlink_metadata(&target).is_err() {
                fs::File::create_new(&target)?;
            }
            sys::move_mount(device.as_fd(), &target)?;
        }
        for (name, to) in LINKS {
            match symlink(to, Path::new("/dev").join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    };
    all().or_else(step("fill /dev"))
}

fn mask(mut covers: Vec<OwnedFd>) -> Started<()> {
    for path in MASKED {
        let target = Path::new(path);
        let Ok(meta) = fs::symlink_metadata(target) else { continue };
        let cover = if meta.is_dir() {
            sys::new_filesystem(c"tmpfs", &[("size", "0")], RDONLY | NOSUID | NODEV | NOEXEC)
        } else {
            Ok(covers.pop().expect("there is one for each path"))
        };
        cover.and_then(|c| sys::move_mount(c.as_fd(), target)).or_else(step(format_args!("hide {path}")))?;
    }
    for path in READ_ONLY {
        let target = Path::new(path);
        if fs::symlink_metadata(target).is_err() {
            continue;
        }
        let cover = || {
            let tree = sys::open_tree(target, true)?;
            sys::mount_set(tree.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC, true)?;
            sys::move_mount(tree.as_fd(), target)
        };
        cover().or_else(step(format_args!("make {path} read-only")))?;
    }
    Ok(())
}
