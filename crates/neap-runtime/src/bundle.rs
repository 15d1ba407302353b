//! From a container's specification and its image to what the spawner must know. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::capabilities;
use crate::cgroup::{CPU_PERIOD_US, MIN_CPU_SHARES};
use crate::image::{Image, ImageConfig};
use crate::launch::{
    Bind, ImageMount, Isolation, LAUNCH_VERSION, Launch, Limits, LogFiles, Process, Root, Streams, Users,
};
use crate::logs::shelf::Turnover;
use crate::pod::{ContainerSpec, POD_IP, PodSpec, Resources, Seccomp, Volume};
use crate::seccomp;

/// The smallest quota the kernel takes.
const MIN_CPU_QUOTA_US: u64 = 1000;
/// Processes and threads of a container at most, where it names no number: more than servers have, few enough that one
/// that forks without end does not take the machine with it (OpenShift's value per pod).
const MAX_PIDS: u64 = 4096;
/// In the middle of what containers may have.
const OOM_SCORE: u16 = 500;
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
    pub turnover: Turnover,
    /// Namespaces of the pod.
    pub join: Vec<PathBuf>,
    /// Of the pod.
    pub address: Ipv4Addr,
    /// The pod's own users, if it has them.
    pub users: Option<Users>,
    /// Images that are volumes, by the volume's name: their layers, lowest first.
    pub images: BTreeMap<String, Vec<PathBuf>>,
    /// Text of the seccomp profile, where the container names one of its own.
    pub profile: Option<String>,
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
    let container = &with_address(container, places.address);
    let mut process = process(pod, container, &image.config, isolation, port)?;
    process.seccomp = system_calls(container, isolation, process.capabilities, places.profile.as_deref())?;
    if isolation != Isolation::Full && pod.own_users {
        return Err("users of its own (hostUsers: false) need `--runtime container`".to_owned());
    }
    let dir = places.dir;
    let images: BTreeMap<String, ImageMount> = places
        .images
        .into_iter()
        .map(|(name, layers)| {
            let target = dir.join("images").join(&name);
            (name, ImageMount { layers, target })
        })
        .collect();
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
        host_ipc: pod.host_ipc,
        users: places.users,
        root,
        read_only_root: container.read_only_root,
        privileged: container.privileged,
        mounts: mounts(pod, container, places.pod_dir, dir, places.volumes, &images)?,
        images: images.into_values().collect(),
        group_views: Vec::new(),
        // Always before neap itself (0) and what stands over containers (-900).
        oom_score: container.oom_score.unwrap_or(OOM_SCORE).clamp(1, 1000),
        process,
        streams: streams(container),
        limits: limits(&container.resources),
        log: LogFiles { path: places.log, max_bytes: places.turnover.max_bytes, keep: places.turnover.max_files },
    })
}

fn streams(container: &ContainerSpec) -> Streams {
    let once = container.stdin_once;
    match (container.terminal, container.stdin) {
        (true, input) => Streams::Terminal { input, once },
        (false, true) => Streams::Input { once },
        (false, false) => Streams::Output,
    }
}

/// What the container's program is and who runs it; also the ground for commands that join it.
fn process(
    pod: &PodSpec,
    container: &ContainerSpec,
    image: &ImageConfig,
    isolation: Isolation,
    port: Option<u16>,
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
        env.push(("HOSTNAME".to_owned(), pod.hostname.clone()));
    }
    if container.terminal {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
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
        groups: pod.supplemental_groups.iter().chain(&pod.fs_group).copied().collect(),
        capabilities,
        no_new_privileges: container.no_new_privileges,
        seccomp: Vec::new(),
    })
}

/// The specification with the pod's address wherever it asks for it.
fn with_address(container: &ContainerSpec, address: Ipv4Addr) -> ContainerSpec {
    let mut container = container.clone();
    let address = address.to_string();
    let put = |text: &mut String| {
        if text.contains(POD_IP) {
            *text = text.replace(POD_IP, &address);
        }
    };
    container.command.iter_mut().chain(&mut container.args).for_each(put);
    container.env.iter_mut().for_each(|(_, value)| put(value));
    for path in container.mounts.iter_mut().filter_map(|mount| mount.sub_path.as_mut()) {
        if let Some(text) = path.to_str() {
            *path = PathBuf::from(text.replace(POD_IP, &address));
        }
    }
    container
}

fn system_calls(
    container: &ContainerSpec,
    isolation: Isolation,
    capabilities: u64,
    profile: Option<&str>,
) -> Result<seccomp::Program, String> {
    if isolation == Isolation::None || container.privileged {
        return Ok(Vec::new());
    }
    match (&container.seccomp, profile) {
        (Seccomp::Unconfined, _) => Ok(Vec::new()),
        (Seccomp::Default, _) => Ok(seccomp::default(capabilities)),
        (Seccomp::Local(_), Some(text)) => seccomp::parse(text, capabilities),
        (Seccomp::Local(path), None) => Err(format!("there is no seccomp profile {}", path.display())),
    }
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
        pids: Some(resources.pids_limit.filter(|pids| *pids > 0).unwrap_or(MAX_PIDS)),
    }
}

fn mounts(
    pod: &PodSpec,
    container: &ContainerSpec,
    pod_dir: &Path,
    dir: &Path,
    volumes: &BTreeMap<String, PathBuf>,
    images: &BTreeMap<String, ImageMount>,
) -> Result<Vec<Bind>, String> {
    let own = |source: PathBuf, target: PathBuf| Bind {
        source,
        sub_path: None,
        target,
        read_only: false,
        recursive: false,
        image: false,
    };
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
        let image = images.get(&mount.volume);
        let source = image.map(|image| &image.target).or_else(|| volumes.get(&mount.volume)).ok_or_else(|| {
            format!("the volume {:?} of mount {} is not in the pod", mount.volume, mount.path.display())
        })?;
        if !mount.path.is_absolute() {
            return Err(format!("the mount path {} is not absolute", mount.path.display()));
        }
        // These files are written by root on the machine's side: a container that could lay links among them would
        // choose where (CVE-2017-1002102).
        let written_by_us = matches!(pod.volumes.get(&mount.volume), Some(Volume::Files(_)));
        all.push(Bind {
            source: source.clone(),
            sub_path: mount.sub_path.clone().filter(|sub| !sub.as_os_str().is_empty()),
            target: mount.path.clone(),
            read_only: mount.read_only || written_by_us,
            recursive: true,
            image: image.is_some(),
        });
    }
    if container.termination_message_path.is_absolute() {
        all.push(own(dir.join("termination-log"), container.termination_message_path.clone()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
