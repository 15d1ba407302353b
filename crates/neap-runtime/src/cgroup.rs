//! Control groups by files: limits, killing, and what the kernel counted. v1, v2 and the mix of both.
//!
//! Every path is derived from a [`Tree`], so tests point it at a directory. Nothing here knows a container; a
//! [`Group`] is a name below the tree's base. Hierarchies that carry nothing we use are left alone.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::launch::Limits;
use crate::pod::Usage;

/// Length of the window that a CPU quota counts in; the kernel's and Kubernetes' default.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// The smallest share: a container without a request yields to all that have one (Kubernetes' value).
pub(crate) const MIN_CPU_SHARES: u64 = 2;
/// The weight of one busy process outside of any group.
const FULL_CORE_SHARES: u64 = 1024;
/// Controllers of v1 that carry something we set, read or show. `name=systemd` only so that a service manager
/// does not count containers as parts of neap's own service and end them with it.
const V1_WANTED: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "freezer", "name=systemd"];
const V2_WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// Where groups are made: one directory per hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tree {
    base: String,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hierarchy {
    mount: PathBuf,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    V1(Vec<String>),
    /// Carries the controllers that V1 does not.
    V2,
}

/// One group: a directory in each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    name: String,
    base: String,
    hierarchies: Vec<Hierarchy>,
}

impl Tree {
    /// Reads the machine's hierarchies from the text of `/proc/self/mountinfo`. `None`: there are none to use.
    pub(crate) fn detect(mountinfo: &str, base: &str) -> Option<Self> {
        let mut hierarchies = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            let mount = left.split(' ').nth(4).unwrap_or("");
            let kind = match kind {
                "cgroup" => {
                    let found: Vec<String> =
                        options.split(',').filter(|o| V1_WANTED.contains(o)).map(str::to_owned).collect();
                    if found.is_empty() {
                        continue;
                    }
                    Kind::V1(found)
                }
                "cgroup2" => Kind::V2,
                _ => continue,
            };
            // The same hierarchy may be mounted several times.
            if hierarchies.iter().any(|h: &Hierarchy| h.kind == kind) {
                continue;
            }
            hierarchies.push(Hierarchy { mount: PathBuf::from(mount), kind });
        }
        (!hierarchies.is_empty()).then(|| Self { base: base.to_owned(), hierarchies })
    }

    /// Makes the base directories and, on v2, passes the controllers down. Fails when the machine does not let us.
    /// All pods together weigh as much against the rest of the machine as `cores` busy processes would; otherwise
    /// they would weigh as much as a single one.
    pub(crate) fn prepare(&self, cores: u64) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            if hierarchy.kind == Kind::V2 {
                self.enable_v2(&hierarchy.mount)?;
            }
            make_dir(&hierarchy.mount.join(&self.base))?;
            if hierarchy.kind == Kind::V2 {
                enable_children(&hierarchy.mount.join(&self.base))?;
            }
        }
        self.group("").set_weight(cores * FULL_CORE_SHARES)
    }

    /// The v2 root passes controllers to its children only while no process sits in it, unless it is the machine's
    /// own root. In a container it is not: then those processes move aside into a leaf first.
    fn enable_v2(&self, mount: &Path) -> io::Result<()> {
        match enable_children(mount) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let aside = mount.join(format!("{}-init", self.base));
                make_dir(&aside)?;
                for pid in read(&mount.join("cgroup.procs"))?.lines() {
                    // A process may have ended, or be a kernel thread that cannot move.
                    let _ = write(&aside.join("cgroup.procs"), pid);
                }
                enable_children(mount)
            }
            other => other,
        }
    }

    pub(crate) fn group(&self, name: &str) -> Group {
        Group { name: name.to_owned(), base: self.base.clone(), hierarchies: self.hierarchies.clone() }
    }

    /// Names of the groups that exist below the base.
    pub(crate) fn groups(&self) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let Ok(entries) = fs::read_dir(hierarchy.mount.join(&self.base)) else { continue };
            names.extend(
                entries
                    .flatten()
                    .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                    .filter_map(|e| e.file_name().into_string().ok()),
            );
        }
        names.into_iter().collect()
    }

    /// Removes the base; succeeds also when groups are left in it.
    pub(crate) fn remove_if_empty(&self) {
        for hierarchy in &self.hierarchies {
            let _ = fs::remove_dir(hierarchy.mount.join(&self.base));
        }
    }

    pub(crate) fn can_limit(&self, controller: &str) -> bool {
        self.group("").hierarchy(controller).is_some()
    }
}

impl Group {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        self.dirs().try_for_each(|dir| make_dir(&dir))
    }

    pub(crate) fn exists(&self) -> bool {
        self.dirs().any(|dir| dir.exists())
    }

    /// Moves a process in. Without other threads of that process around, its children follow by birth.
    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        self.dirs().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// What must hold from a container's first instruction on.
    pub(crate) fn set_bounds(&self, limits: &Limits) -> io::Result<()> {
        if let (Some((dir, v2)), Some(bytes)) = (self.hierarchy("memory"), limits.memory_bytes) {
            if v2 {
                write(&dir.join("memory.max"), &bytes.to_string())?;
                // Memory is what is limited: swap is not more of it, as Kubernetes has it. Not every kernel swaps.
                let _ = write(&dir.join("memory.swap.max"), "0");
                // A container whose limit is hit ends whole, as Kubernetes has it on v2.
                let _ = write(&dir.join("memory.oom.group"), "1");
            } else {
                write(&dir.join("memory.limit_in_bytes"), &bytes.to_string())?;
                let _ = write(&dir.join("memory.memsw.limit_in_bytes"), &bytes.to_string());
            }
        }
        if let (Some((dir, _)), Some(pids)) = (self.hierarchy("pids"), limits.pids) {
            write(&dir.join("pids.max"), &pids.to_string())?;
        }
        Ok(())
    }

    /// How much of the processors it gets.
    pub(crate) fn set_cpu(&self, limits: &Limits) -> io::Result<()> {
        self.set_weight(limits.cpu_shares.max(MIN_CPU_SHARES))?;
        if let Some((dir, v2)) = self.hierarchy("cpu") {
            if v2 {
                let quota = limits.cpu_quota_us.map_or("max".to_owned(), |q| q.to_string());
                write(&dir.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
            } else {
                write(&dir.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
                let quota = limits.cpu_quota_us.map_or("-1".to_owned(), |q| q.to_string());
                write(&dir.join("cpu.cfs_quota_us"), &quota)?;
            }
        }
        Ok(())
    }

    fn set_weight(&self, shares: u64) -> io::Result<()> {
        match self.hierarchy("cpu") {
            Some((dir, true)) => write(&dir.join("cpu.weight"), &weight_of_shares(shares).to_string()),
            Some((dir, false)) => write(&dir.join("cpu.shares"), &shares.to_string()),
            None => Ok(()),
        }
    }

    /// How many processes the kernel killed here for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some((dir, v2)) = self.hierarchy("memory") else { return 0 };
        let file = if v2 { "memory.events" } else { "memory.oom_control" };
        read(&dir.join(file)).map_or(0, |text| keyed(&text, "oom_kill").unwrap_or(0))
    }

    /// What its processes have used. `None` where the machine does not count it.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let (cpu, v2) = self.hierarchy("cpuacct").or_else(|| self.hierarchy("cpu"))?;
        let cpu = if v2 {
            Duration::from_micros(keyed(&read(&cpu.join("cpu.stat")).ok()?, "usage_usec")?)
        } else {
            Duration::from_nanos(read(&cpu.join("cpuacct.usage")).ok()?.trim().parse().ok()?)
        };
        let (memory, v2) = self.hierarchy("memory")?;
        let (file, untouched) =
            if v2 { ("memory.current", "inactive_file") } else { ("memory.usage_in_bytes", "total_inactive_file") };
        let all: u64 = read(&memory.join(file)).ok()?.trim().parse().ok()?;
        let untouched = keyed(&read(&memory.join("memory.stat")).ok()?, untouched).unwrap_or(0);
        Some(Usage { cpu, memory_bytes: all.saturating_sub(untouched) })
    }

    /// The processes in the group, as this process sees their numbers.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.dirs().next().map_or_else(Vec::new, |dir| pids_of(&dir))
    }

    /// Kills what is in the group and in those that a privileged container made below it.
    pub(crate) fn kill(&self) {
        if let Some((dir, false)) = self.hierarchy("freezer") {
            // On v1 a frozen process does not even die. Without a freezer nothing is frozen.
            for dir in tree_of(&dir) {
                let _ = write(&dir.join("freezer.state"), "THAWED");
            }
        }
        for dir in self.dirs().flat_map(|dir| tree_of(&dir)) {
            for pid in pids_of(&dir) {
                // It may just have died.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }

    /// Kills what is left and removes the group. Returns whether it is gone.
    pub(crate) fn remove(&self) -> bool {
        self.kill();
        self.remove_if_empty()
    }

    /// Like [`Self::remove`], tried so often, a millisecond apart. Blocks.
    pub(crate) fn remove_within(&self, tries: u32) -> bool {
        for _ in 0..tries {
            if self.remove() {
                return true;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "called where blocking is allowed; nothing tells of the end"
            )]
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Returns whether it is gone.
    pub(crate) fn remove_if_empty(&self) -> bool {
        // The innermost first; a directory of this kind goes when nothing is in it but the kernel's own files.
        self.dirs().flat_map(|dir| tree_of(&dir)).fold(true, |gone, dir| match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => false,
            _ => gone,
        })
    }

    /// What a container should see under /sys/fs/cgroup: (directory of the group, path below /sys/fs/cgroup).
    pub(crate) fn views(&self) -> Vec<(PathBuf, PathBuf)> {
        let has_v1 = self.hierarchies.iter().any(|h| matches!(h.kind, Kind::V1(_)));
        let mut views = Vec::new();
        for hierarchy in &self.hierarchies {
            let dir = self.dir(hierarchy);
            match &hierarchy.kind {
                Kind::V1(controllers) => {
                    for controller in controllers {
                        let name = controller.strip_prefix("name=").unwrap_or(controller);
                        views.push((dir.clone(), PathBuf::from(name)));
                    }
                }
                Kind::V2 if has_v1 => views.push((dir, PathBuf::from("unified"))),
                Kind::V2 => views.push((dir, PathBuf::new())),
            }
        }
        views
    }

    fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(&self.base).join(&self.name)
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchies.iter().map(|h| self.dir(h))
    }

    /// The directory where a controller lives, and whether it speaks v2.
    fn hierarchy(&self, controller: &str) -> Option<(PathBuf, bool)> {
        let v1 = self.hierarchies.iter().find(|h| matches!(&h.kind, Kind::V1(c) if c.iter().any(|c| c == controller)));
        if let Some(found) = v1 {
            return Some((self.dir(found), false));
        }
        let v2 = self.hierarchies.iter().find(|h| h.kind == Kind::V2)?;
        let offered = read(&v2.mount.join("cgroup.controllers")).unwrap_or_default();
        offered.split_whitespace().any(|c| c == controller).then(|| (self.dir(v2), true))
    }
}

/// A group's directory and all below it, the innermost first.
fn tree_of(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let mut all: Vec<PathBuf> = below.flat_map(|e| tree_of(&e.path())).collect();
    all.push(dir.to_owned());
    all
}

fn pids_of(dir: &Path) -> Vec<i32> {
    let text = read(&dir.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another view of numbers, and for the caller's own group where one is killed.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// cgroup v1 shares (2 to 262144) on the v2 weight scale (1 to 10000), as Kubernetes maps them.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn enable_children(dir: &Path) -> io::Result<()> {
    let offered = read(&dir.join("cgroup.controllers"))?;
    let enabled = read(&dir.join("cgroup.subtree_control"))?;
    for controller in V2_WANTED {
        let has = |list: &str| list.split_whitespace().any(|c| c == controller);
        if has(&offered) && !has(&enabled) {
            write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

/// One write to an existing file: what the kernel takes as one command.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
