//! Pods started, used and removed, with `kill -9` of the runtime, of keepers and of containers in between: afterwards
//! nothing of it is on the machine.

use std::hash::BuildHasher;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use neap_runtime::Mode;
use neap_runtime::pod::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::words::{http, pod, probe, web};
use crate::{Leftovers, open_at, wait};

/// The runtime of one round: takes pods, uses them, removes some, and says when it is in the middle of things.
pub(crate) async fn churn(dir: &Path, round: u32, count: u32) {
    let runtime = open_at(dir, Mode::Container).await;
    // What the round before left running, and what it left half-made.
    let removals = runtime.list().into_iter().map(|pod| {
        let runtime = runtime.clone();
        async move { runtime.remove(&pod.id, Duration::ZERO).await.expect("removed") }
    });
    futures::future::join_all(removals).await;
    for n in 0..count {
        let mut spec = match n % 4 {
            0 => pod(&format!("r{round}n{n}"), &["/bin/busybox", "sh", "-c", "exit 3"]),
            1 => pod(&format!("r{round}n{n}"), &["/bin/busybox", "sleep", "1000"]),
            _ => web(&format!("r{round}n{n}")),
        };
        spec.volumes.insert("m".into(), Volume::EmptyDir { memory: true, size_limit: Some(1 << 20) });
        spec.containers[0].mounts =
            vec![Mount { volume: "m".into(), path: "/m".into(), sub_path: None, read_only: false }];
        if n % 4 == 2 {
            spec.containers[0].liveness = Some(probe(http()));
        }
        let id = spec.id.clone();
        runtime.ensure(spec).await.expect("taken");
        if n % 3 == 0 {
            wait(&runtime, &id, "a beginning", |s| s.started.is_some()).await;
        }
        if n == count / 2 {
            println!("busy");
        }
        if n % 5 == 4 {
            let before = PodId(format!("uid-r{round}n{}", n - 1));
            runtime.remove(&before, Duration::ZERO).await.expect("removed");
        }
    }
    println!("all");
    std::future::pending::<()>().await;
}

/// What is on the machine of the neap in this directory.
pub(crate) fn traces(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().expect("there");
    let digest = Sha256::digest(dir.as_os_str().as_bytes());
    let base = format!("neap-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3]);
    let mut found = Vec::new();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        if read(&entry.path().join("cgroup")).contains(&base) {
            found.push(format!("process {:?} {}", entry.file_name(), read(&entry.path().join("comm")).trim()));
        }
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        for path in [hierarchy.path().join(&base), Path::new("/sys/fs/cgroup").join(&base)] {
            if path.exists() {
                found.push(format!("group {}", path.display()));
            }
        }
    }
    let mounts = read(Path::new("/proc/self/mountinfo"));
    found.extend(mounts.lines().filter(|l| l.contains(&*dir.to_string_lossy())).map(|l| format!("mount {l}")));
    found.extend(claim(&dir).map(|name| format!("link {name}")));
    found.extend(cables(&dir).into_iter().map(|name| format!("link {name}")));
    for part in ["pods", "run/ns"] {
        let entries = std::fs::read_dir(dir.join(part)).into_iter().flatten().flatten();
        found.extend(entries.map(|e| format!("file {}", e.path().display())));
    }
    found.sort();
    found.dedup();
    found
}

fn links() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/net").expect("links").flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// The interface by which the neap in this directory claims its addresses.
fn claim(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().expect("there");
    links().into_iter().find(|name| {
        let alias = std::fs::read_to_string(format!("/sys/class/net/{name}/ifalias")).unwrap_or_default();
        alias.trim().ends_with(&*dir.to_string_lossy())
    })
}

/// The machine's ends of its pods' cables.
pub(crate) fn cables(dir: &Path) -> Vec<String> {
    let Some(claim) = claim(dir) else { return Vec::new() };
    let prefix = format!("np{}x", claim.trim_start_matches("neap"));
    links().into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

/// How many there are of each kind.
fn count(traces: &[String]) -> String {
    let mut kinds = std::collections::BTreeMap::new();
    for trace in traces {
        let kind = match trace.split_once(' ') {
            Some(("mount", what)) if what.contains("nsfs") => "namespace",
            Some((kind, _)) => kind,
            None => "other",
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let all = ["process", "namespace", "link", "mount", "group", "file", "table"];
    all.map(|kind| format!("{kind} {}", kinds.get(kind).unwrap_or(&0))).join(", ")
}

/// The packet filter of a neap whose interface is gone.
fn orphaned_table(claim: Option<&str>) -> Option<String> {
    let name = claim.filter(|name| !Path::new("/sys/class/net").join(name).exists())?;
    let listed = std::process::Command::new("nft").args(["list", "tables"]).output().ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed.lines().any(|line| line == format!("table ip {name}")).then(|| format!("table {name}"))
}

/// Says what is there before, in the middle of each round, and afterwards.
async fn rounds(rounds: u32, count_of_pods: u32) {
    let dir = Leftovers::new();
    let before = traces(dir.path());
    println!("before: {}", count(&before));
    assert!(before.is_empty(), "{before:#?}");
    let chance = std::hash::RandomState::new();
    let mut claimed = None;
    for round in 0..rounds {
        let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
            .arg("--churn")
            .arg(dir.path())
            .args([round.to_string(), count_of_pods.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let wanted = if round % 2 == 0 { "busy" } else { "all" };
        while lines.next_line().await.expect("reads").is_some_and(|line| line != wanted) {}
        // Some keepers and some containers die by themselves, then the runtime does: it is what `neap` is to its pods.
        let there = traces(dir.path());
        claimed = claim(&dir.path().canonicalize().expect("there"));
        let victims: Vec<i32> = there
            .iter()
            .filter(|t| t.starts_with("process") && !t.contains("pod-spawner"))
            .filter_map(|t| t.split('"').nth(1)?.parse().ok())
            .collect();
        // One in four, by chance.
        let victims: Vec<i32> = victims.into_iter().filter(|pid| chance.hash_one(pid) % 4 == 0).collect();
        for pid in &victims {
            // It may have ended since.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        child.kill().await.expect("killed");
        println!("round {round}: {}; kill -9 of {} of them and of the runtime", count(&there), victims.len());
    }
    let world = dir.open().await;
    let pods = world.runtime.list();
    assert!(!pods.is_empty(), "something was left to look after");
    // Everybody is looked after again.
    let id = world.run(web("after")).await;
    world.wait(&id, "readiness after all that", |s| s.ready).await;
    for pod in pods {
        world.runtime.remove(&pod.id, Duration::ZERO).await.expect("removed");
    }
    world.runtime.remove(&id, Duration::ZERO).await.expect("removed");
    world.runtime.shutdown().await;
    let begun = tokio::time::Instant::now();
    let mut left = traces(world.dir.path());
    while !left.is_empty() && begun.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = traces(world.dir.path());
    }
    left.extend(orphaned_table(claimed.as_deref()));
    println!("after: {}", count(&left));
    assert!(left.is_empty(), "{left:#?}");
}

/// Its directory was removed as far as what is mounted in it allows: the next neap takes the rest away.
pub(crate) async fn nothing_is_left_of_a_neap_whose_directory_was_removed() {
    let dir = Leftovers::new();
    let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .arg("--churn")
        .arg(dir.path())
        .args(["0", "4"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    while lines.next_line().await.expect("reads").is_some_and(|line| line != "all") {}
    child.kill().await.expect("killed");
    let kinds = |kind: &str| traces(dir.path()).iter().filter(|t| t.starts_with(kind)).count();
    assert!(kinds("process") > 0 && kinds("link") > 0 && kinds("group") > 0, "{:#?}", traces(dir.path()));
    for pod in std::fs::read_dir(dir.path().join("pods")).expect("there").flatten() {
        // As a person would who wants it gone.
        let _ = nix::mount::umount2(&pod.path().join("volumes/m"), nix::mount::MntFlags::MNT_DETACH);
    }
    neap_runtime::remove_tree(&dir.path().join("pods")).expect("removed");
    let next = crate::world(Mode::Container).await;
    crate::until("nothing to be left", || traces(dir.path()).is_empty()).await;
    next.end().await;
}

pub(crate) async fn nothing_is_left_after_crashes() {
    rounds(4, 8).await;
}

/// At length: minutes.
pub(crate) async fn ten_rounds_of_two_hundred() {
    let begun = tokio::time::Instant::now();
    rounds(10, 200).await;
    println!("ten rounds of two hundred pods left nothing ({:.0} s)", begun.elapsed().as_secs_f64());
}
