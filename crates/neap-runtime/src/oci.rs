//! A container as an OCI bundle, so that another runtime can run the same and be compared: the same layers, in the
//! pod's own namespaces, with everything that the container was given. Our own launcher does not read it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::capabilities;
use crate::cgroup::CPU_PERIOD_US;
use crate::launch::{Bind, Launch, Limits, Root, Streams};
use crate::seccomp;
use crate::spawner::paths::{DEFAULT_PATH, MASKED, MAX_FILES, READ_ONLY};
use crate::sys;
use crate::users::{self, Identity};

/// A bundle on disk. Its root goes with it; the rest of the directory stays.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    /// Where `config.json` and `rootfs` are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Somebody may have taken it away already.
        let _ = umount2(&self.dir.join("rootfs"), MntFlags::MNT_DETACH);
    }
}

/// Writes the bundle of a run into an empty directory.
pub(crate) fn write(dir: &Path, launch: &Launch) -> io::Result<Bundle> {
    let Root::Overlay { lower, .. } = &launch.root else {
        return Err(unsupported("a container without a root of its own is no bundle"));
    };
    if launch.users.is_some() {
        return Err(unsupported("a container with users of its own is not written as a bundle"));
    }
    for part in ["rootfs", "upper", "work"] {
        fs::create_dir_all(dir.join(part))?;
    }
    let layers: Vec<_> = lower.iter().rev().map(|layer| layer.to_string_lossy()).collect();
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
    mount(Some("overlay"), &dir.join("rootfs"), Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))?;
    let bundle = Bundle { dir: dir.to_owned() };
    let list = |name: &str| fs::read_to_string(dir.join("rootfs/etc").join(name)).unwrap_or_default();
    let mut identity =
        users::resolve(&launch.process.user, &list("passwd"), &list("group")).map_err(io::Error::other)?;
    identity.groups.extend(&launch.process.groups);
    let config = config(launch, &identity)?;
    fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    Ok(bundle)
}

fn unsupported(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

fn config(launch: &Launch, identity: &Identity) -> io::Result<Value> {
    let joins = |name: &str| launch.join.iter().find(|path| path.ends_with(name));
    let namespace = |kind: &str, file: &str| match joins(file) {
        Some(path) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    };
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "mount"}), json!({"type": "cgroup"})];
    namespaces.push(namespace("uts", "uts"));
    if joins("net").is_some() {
        namespaces.push(namespace("network", "net"));
    }
    if !launch.host_ipc {
        namespaces.push(namespace("ipc", "ipc"));
    }
    let names = |paths: &[&'static str]| if launch.privileged { Vec::new() } else { paths.to_vec() };
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": format!("/neap-bundle-{:016x}", sys::random_u64()),
        "resources": resources(&launch.limits),
        "maskedPaths": names(&MASKED),
        "readonlyPaths": names(&READ_ONLY),
    });
    let process = &launch.process;
    if process.seccomp == seccomp::default(process.capabilities) {
        linux["seccomp"] = seccomp::default_as_oci(process.capabilities);
    } else if !process.seccomp.is_empty() {
        return Err(unsupported("a container with a seccomp profile of its own is not written as a bundle"));
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": self::process(launch, identity),
        "root": {"path": "rootfs", "readonly": launch.read_only_root},
        "mounts": mounts(launch)?,
        "linux": linux,
    });
    // A namespace that is joined has its name already.
    if joins("uts").is_none() {
        config["hostname"] = launch.hostname.clone().into();
    }
    Ok(config)
}

fn process(launch: &Launch, identity: &Identity) -> Value {
    let process = &launch.process;
    let mut env = process.env.clone();
    let mut default = |name: &str, value: &str| {
        if env.iter().all(|(known, _)| known != name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", identity.home.as_deref().unwrap_or("/"));
    let env: Vec<_> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let possible = capabilities::names(process.capabilities);
    let held = if identity.uid == 0 { possible.clone() } else { Vec::new() };
    // As far as this machine goes: more is refused there, and taken for as much as there is here.
    let files = sys::hard_file_limit().map_or(MAX_FILES, |hard| hard.min(MAX_FILES));
    let cwd = if process.cwd.as_os_str().is_empty() { Path::new("/") } else { &process.cwd };
    json!({
        "terminal": matches!(launch.streams, Streams::Terminal { .. }),
        "user": {
            "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups, "umask": 0o022,
        },
        "args": process.argv,
        "env": env,
        "cwd": cwd,
        "capabilities": {"bounding": possible, "effective": held, "permitted": held},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}],
        "noNewPrivileges": process.no_new_privileges,
        "oomScoreAdj": launch.oom_score,
    })
}

fn resources(limits: &Limits) -> Value {
    let mut all = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "cpu": {"shares": limits.cpu_shares, "period": CPU_PERIOD_US},
    });
    if let Some(quota) = limits.cpu_quota_us {
        all["cpu"]["quota"] = quota.into();
    }
    if let Some(bytes) = limits.memory_bytes {
        all["memory"] = json!({"limit": bytes, "swap": bytes});
    }
    if let Some(pids) = limits.pids {
        all["pids"] = json!({"limit": pids});
    }
    all
}

fn mounts(launch: &Launch) -> io::Result<Vec<Value>> {
    let own = |kind: &str, target: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": target, "options": options});
    let access = if launch.privileged { "rw" } else { "ro" };
    let mut all = vec![
        own("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        own("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
        own("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", access]),
        own("tmpfs", "/dev", &["nosuid", "mode=755", "size=65536k"]),
        own("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        own("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        own("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    for Bind { source, sub_path, target, read_only, recursive, image } in &launch.mounts {
        if *image {
            return Err(unsupported("a container with an image as a volume is not written as a bundle"));
        }
        if sub_path.is_some() {
            // It would be looked up by its path, which a container could change.
            return Err(unsupported("a container with a subPath is not written as a bundle"));
        }
        let mut options = vec![if *recursive { "rbind" } else { "bind" }];
        if !launch.privileged {
            options.extend(["nosuid", "nodev"]);
        }
        options.push(if *read_only { "ro" } else { "rw" });
        all.push(json!({"type": "bind", "source": source, "destination": target, "options": options}));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Process;

    #[test]
    fn what_is_written_is_what_the_specification_knows() {
        let launch: Launch = serde_json::from_value(json!({
            "version": 2, "isolation": "Full", "hostname": "h", "join": ["/run/x/net", "/run/x/uts"],
            "host_ipc": false, "root": {"None": "/"}, "read_only_root": true, "privileged": false,
            "mounts": [{"source": "/v", "sub_path": null, "target": "/t", "read_only": true, "recursive": true}],
            "group_views": [], "oom_score": 500, "process": Process::default(),
            "limits": {"cpu_shares": 512, "cpu_quota_us": 50000, "memory_bytes": 1 << 20, "pids": 9},
            "log": {"path": "/l", "max_bytes": 1, "keep": 1},
        }))
        .expect("a launch");
        let mut launch = launch;
        launch.process.capabilities = capabilities::bit("KILL").expect("known");
        launch.process.seccomp = seccomp::default(launch.process.capabilities);
        let written = config(&launch, &Identity { uid: 7, ..Identity::default() }).expect("written");
        let known: oci_spec::runtime::Spec = serde_json::from_value(written.clone()).expect("as specified");
        let linux = known.linux().as_ref().expect("Linux");
        assert_eq!(linux.namespaces().as_ref().expect("some").len(), 6);
        assert!(linux.seccomp().as_ref().expect("one").syscalls().as_ref().expect("some").len() > 3);
        assert_eq!(linux.masked_paths().as_ref().expect("some").len(), MASKED.len());
        let process = known.process().as_ref().expect("one");
        let capabilities = process.capabilities().as_ref().expect("some");
        assert_eq!(capabilities.bounding().as_ref().expect("some").len(), 1);
        assert!(capabilities.effective().as_ref().is_none_or(|held| held.is_empty()), "uid 7 holds none");
        assert_eq!(written["linux"]["resources"]["memory"], json!({"limit": 1 << 20, "swap": 1 << 20}));
        assert_eq!((known.hostname(), known.mounts().as_ref().expect("some").len()), (&None, 8));
    }
}
