//! From a container's specification and its image to what the spawner must know. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::capabilities;
use crate::cgroup::{CPU_PERIOD_US, MIN_CPU_SHARES};
use crate::image::{Image, ImageConfig};
use crate::launch::{Bind, Isolation, LAUNCH_VERSION, Launch, Limits, LogFiles, Process, Root};
use crate::logs;
use crate::pod::{ContainerSpec, PodSpec, Resources};

/// The smallest quota the kernel takes.
const MIN_CPU_QUOTA_US: u64 = 1000;
/// What Kubernetes' pods see as their host's name server file and the like.
pub(crate) const ETC_FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

/// Where things of one run lie.
pub(crate) struct Places<'a> {
    /// Of this run.
    pub dir: &'a Path,
    /// Of the pod: `etc/`, `volumes/`.
    pub pod_dir: &'a Path,
    /// Volume name to the directory that is mounted for it.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub log: PathBuf,
    /// Namespaces of the pod.
    pub join: Vec<PathBuf>,
    /// The image merged into one directory, where there is no overlay.
    pub merged: Option<PathBuf>,
}

/// Everything for one run of a container. `Err` is a fault of the specification or the image, in a sentence.
pub(crate) fn launch(
    pod: &PodSpec,
    container: &ContainerSpec,
    image: &Image,
    isolation: Isolation,
    port: Option<u16>,
    places: Places<'_>,
) -> Result<Launch, String> {
    if isolation == Isolation::None && !container.mounts.is_empty() {
        return Err("volumes cannot be mounted without isolation; use `--runtime container` or `rootless`".to_owned());
    }
    let process = process(container, &image.config, isolation, port, &pod.hostname)?;
    let dir = places.dir;
    let root = match (isolation, places.merged) {
        (Isolation::None, Some(merged)) => Root::None(merged),
        (Isolation::None, None) => return Err("the image is not unpacked for running without isolation".to_owned()),
        (_, _) if image.layers.is_empty() => return Err("the image has no layers".to_owned()),
        (isolation, _) => Root::Overlay {
            lower: image.layers.clone(),
            upper: dir.join("upper"),
            work: dir.join("work"),
            target: dir.join("root"),
            user_xattr: isolation == Isolation::User,
        },
    };
    Ok(Launch {
        version: LAUNCH_VERSION,
        isolation,
        hostname: pod.hostname.clone(),
        join: places.join,
        root,
        read_only_root: container.read_only_root,
        privileged: container.privileged,
        mounts: mounts(container, places.pod_dir, dir, places.volumes)?,
        group_views: Vec::new(),
        process,
        limits: limits(&container.resources),
        log: LogFiles { path: places.log, max_bytes: logs::MAX_BYTES, keep: logs::MAX_FILES },
    })
}

/// What the container's program is and who runs it; also the ground for commands that join it.
pub(crate) fn process(
    container: &ContainerSpec,
    image: &ImageConfig,
    isolation: Isolation,
    port: Option<u16>,
    hostname: &str,
) -> Result<Process, String> {
    let argv: Vec<String> = if !container.command.is_empty() {
        [container.command.as_slice(), container.args.as_slice()].concat()
    } else if !container.args.is_empty() {
        [image.entrypoint.as_slice(), container.args.as_slice()].concat()
    } else {
        [image.entrypoint.as_slice(), image.cmd.as_slice()].concat()
    };
    if argv.is_empty() {
        return Err("no command specified: neither the container nor its image names one".to_owned());
    }
    let mut env = image.env.clone();
    if isolation != Isolation::None {
        env.push(("HOSTNAME".to_owned(), hostname.to_owned()));
    }
    env.extend(container.env.iter().cloned());
    // Where pods share the machine's network, each gets a port of its own, whatever the specification wished.
    env.extend(port.map(|port| ("PORT".to_owned(), port.to_string())));
    let capabilities =
        capabilities::resolve(container.privileged, &container.add_capabilities, &container.drop_capabilities)?;
    Ok(Process {
        argv,
        env,
        cwd: container
            .working_dir
            .clone()
            .or_else(|| image.working_dir.clone())
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or_else(|| PathBuf::from("/")),
        user: user(container.user, container.group, &image.user),
        non_root: container.run_as_non_root,
        capabilities,
        no_new_privileges: container.no_new_privileges,
    })
}

fn user(uid: Option<i64>, gid: Option<i64>, image: &str) -> String {
    let (image_user, image_group) = image.split_once(':').unwrap_or((image, ""));
    match (uid, gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        (Some(uid), None) => uid.to_string(),
        (None, Some(gid)) => format!("{image_user}:{gid}"),
        (None, None) if image_group.is_empty() => image_user.to_owned(),
        (None, None) => image.to_owned(),
    }
}

fn limits(resources: &Resources) -> Limits {
    let request = resources.cpu_request_milli.or(resources.cpu_limit_milli);
    Limits {
        cpu_shares: request.map_or(MIN_CPU_SHARES, |milli| (milli * 1024 / 1000).max(MIN_CPU_SHARES)),
        cpu_quota_us: resources
            .cpu_limit_milli
            .filter(|milli| *milli > 0)
            .map(|milli| (milli * CPU_PERIOD_US / 1000).max(MIN_CPU_QUOTA_US)),
        memory_bytes: resources.memory_limit.filter(|bytes| *bytes > 0),
        pids: resources.pids_limit.filter(|pids| *pids > 0),
    }
}

fn mounts(
    container: &ContainerSpec,
    pod_dir: &Path,
    dir: &Path,
    volumes: &BTreeMap<String, PathBuf>,
) -> Result<Vec<Bind>, String> {
    let own =
        |source: PathBuf, target: PathBuf| Bind { source, sub_path: None, target, read_only: false, recursive: false };
    let mut all = Vec::new();
    for name in ETC_FILES {
        let target = Path::new("/etc").join(name);
        // A volume over it is the user's wish.
        if container.mounts.iter().all(|m| m.path != target && m.path != Path::new("/etc")) {
            all.push(own(pod_dir.join("etc").join(name), target));
        }
    }
    let mut wanted: Vec<_> = container.mounts.iter().collect();
    wanted.sort_by_key(|mount| mount.path.components().count());
    for mount in wanted {
        let source = volumes.get(&mount.volume).ok_or_else(|| {
            format!("the volume {:?} of mount {} is not in the pod", mount.volume, mount.path.display())
        })?;
        if !mount.path.is_absolute() {
            return Err(format!("the mount path {} is not absolute", mount.path.display()));
        }
        all.push(Bind {
            source: source.clone(),
            sub_path: mount.sub_path.clone().filter(|sub| !sub.as_os_str().is_empty()),
            target: mount.path.clone(),
            read_only: mount.read_only,
            recursive: true,
        });
    }
    if container.termination_message_path.is_absolute() {
        all.push(own(dir.join("termination-log"), container.termination_message_path.clone()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
