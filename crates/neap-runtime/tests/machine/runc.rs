//! The same container under our launcher and under runc: what it sees must be the same, but for a list of differences
//! that is told, with its reasons, in `runc.md` beside this file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use neap_runtime::pod::*;
use neap_runtime::{Bundle, Mode};
use tokio::time::Instant;

use crate::words::pod;
use crate::{World, world};

/// Says what a container sees, a `name=value` a line.
const LOOK: &str = r#"
    B=/bin/busybox
    say() { echo "$1=$2"; }
    say hostname "$($B hostname)"
    $B env | $B sort | $B sed 's/^/env./'
    say cwd "$($B pwd)"
    say id "$($B id)"
    for f in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Groups SigIgn SigBlk; do
        say "status.$f" "$($B grep "^$f:" /proc/self/status | $B tr -s '\t ' ' ' | $B cut -d: -f2)"
    done
    $B sed -n 's/^\(Max [a-z ]*[a-z]\)  *\([0-9a-z]*\)  *\([0-9a-z]*\) .*/limit.\1=\2 \3/p' /proc/self/limits
    $B awk '{ n = 7; while ($n != "-") n++; print "mount." $5 "=" $(n+1) " " $6 }' /proc/self/mountinfo
    for d in /dev/*; do say "dev.$d" "$($B stat -c '%A %u:%g %t:%T' "$d")"; done
    for p in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts /proc/latency_stats; do
        [ -e $p ] && say "read.$p" "$($B head -c 4 $p 2>/dev/null | $B wc -c)"
    done
    for p in /proc/acpi /proc/scsi /sys/firmware; do [ -e $p ] && say "list.$p" "$($B ls $p 2>/dev/null | $B wc -l)"; done
    for p in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/uevent_helper /x /tmp/x /dev/x /dev/shm/x \
             /etc/hosts /sys/fs/cgroup/x; do
        (: >> $p) 2>/dev/null && say "write.$p" yes || say "write.$p" no
    done
    for f in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us \
             cpu/cpu.cfs_period_us pids/pids.max memory.max memory.swap.max cpu.max cpu.weight pids.max; do
        [ -e /sys/fs/cgroup/$f ] && say "cgroup.$f" "$($B cat /sys/fs/cgroup/$f)"
    done
    say cgroups "$($B cut -d: -f3 /proc/self/cgroup | $B sort -u | $B tr '\n' ' ')"
    say oom_score_adj "$($B cat /proc/self/oom_score_adj)"
    say stdin "$($B readlink /proc/self/fd/0)"
    say umask "$(umask)"
    say network "$($B ls /sys/class/net | $B tr '\n' ' ')"
    # Without a process of its own: how many of a pipe have begun when it looks is a matter of luck.
    set -- /proc/[0-9]*; say processes $#
    say clone "$($B unshare -m $B true 2>&1 | $B tail -1)"
    say chroot "$($B chroot / $B true 2>&1 && echo fine)"
    say end "$$"
"#;

/// What differs, and is told of in `runc.md`.
const DIFFERENCES: &[&str] = &include!("runc-differences.txt");

fn runc(arguments: &[&str]) -> std::io::Result<std::process::Output> {
    Command::new("runc").args(arguments).stdin(std::process::Stdio::null()).output()
}

fn missing() -> bool {
    let there = runc(&["--version"]).is_ok_and(|output| output.status.success());
    if !there {
        println!("skipped: needs runc");
    }
    !there
}

fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

async fn seen_by_ours(world: &World, spec: PodSpec) -> (PodId, BTreeMap<String, String>) {
    let id = world.run(spec).await;
    let begun = Instant::now();
    loop {
        let seen = parse(&world.log(&id, LogOptions::default()).await);
        if seen.contains_key("end") {
            return (id, seen);
        }
        assert!(begun.elapsed() < crate::PATIENCE, "{seen:?} {:#?}", world.runtime.status(&id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs the bundle with another command.
fn run(bundle: &Bundle, name: &str, command: &[&str]) -> String {
    let path = bundle.dir().join("config.json");
    let text = std::fs::read_to_string(&path).expect("written");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["process"]["args"] = serde_json::json!(command);
    std::fs::write(&path, config.to_string()).expect("written");
    let dir = bundle.dir().to_string_lossy().into_owned();
    let output = runc(&["run", "--bundle", &dir, name]).expect("runs");
    drop(runc(&["delete", "-f", name]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) async fn runs_our_bundle_alike() {
    if missing() {
        return;
    }
    let world = world(Mode::Container).await;
    let waits = format!("{LOOK}\nexec /bin/busybox sleep 1000");
    let plain = pod("plain", &["/bin/busybox", "sh", "-c", &waits]);
    let mut bounded = pod("bounded", &["/bin/busybox", "sh", "-c", &waits]);
    bounded.supplemental_groups = vec![77];
    bounded.volumes.insert("v".into(), Volume::EmptyDir { memory: false, size_limit: None });
    let one = &mut bounded.containers[0];
    (one.user, one.group, one.working_dir) = (Some(1000), Some(1001), Some("/tmp".into()));
    (one.read_only_root, one.no_new_privileges) = (true, true);
    one.drop_capabilities = vec!["ALL".into()];
    one.resources.memory_limit = Some(64 << 20);
    one.resources.cpu_limit_milli = Some(500);
    one.mounts = vec![Mount { volume: "v".into(), path: "/v".into(), sub_path: None, read_only: true }];
    let mut found = BTreeSet::new();
    for (name, spec) in [("plain", plain), ("bounded", bounded)] {
        let (id, ours) = seen_by_ours(&world, spec).await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let bundle = world.runtime.bundle(&id, "user", dir.path()).expect("a bundle");
        let container = format!("neap-test-{name}-{}", std::process::id());
        let theirs = parse(&run(&bundle, &container, &["/bin/busybox", "sh", "-c", LOOK]));
        assert!(theirs.contains_key("end"), "{theirs:?}");
        let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for key in keys {
            let (a, b) = (ours.get(key), theirs.get(key));
            if a != b {
                println!("{name}: {key} is {:?} here and {:?} there", a.map_or("", |v| v), b.map_or("", |v| v));
                found.insert(key.clone());
            }
        }
    }
    let told = |key: &str| {
        DIFFERENCES.iter().any(|told| match told.strip_suffix('*') {
            Some(beginning) => key.starts_with(beginning),
            None => key == *told,
        })
    };
    let untold: Vec<_> = found.iter().filter(|key| !told(key)).collect();
    assert!(untold.is_empty(), "differs from runc, and runc.md does not say why: {untold:?}");
    world.end().await;
}

/// "create pod" to "process started" next to `runc run` of the same bundle, one after the other.
pub(crate) async fn bench() {
    const ROUNDS: usize = 200;
    if missing() {
        return;
    }
    let world = world(Mode::Container).await;
    println!("{}", world.runtime.describe());
    let model = world.run(pod("model", &["/bin/busybox", "sleep", "1000"])).await;
    world.wait(&model, "a run", |s| s.ready).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bundle = world.runtime.bundle(&model, "user", dir.path()).expect("a bundle");
    let path = bundle.dir().to_string_lossy().into_owned();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for at in 0..ROUNDS {
        let spec = pod(&format!("r{at}"), &["/bin/busybox", "sleep", "1000"]);
        let begun = Instant::now();
        let id = world.run(spec).await;
        let running = |s: &PodStatus| matches!(s.containers[0].state, ContainerState::Running { .. });
        world.wait(&id, "a run", running).await;
        ours.push(begun.elapsed());
        world.runtime.remove(&id, Duration::ZERO).await.expect("removed");
        let name = format!("neap-bench-{}-{at}", std::process::id());
        let begun = Instant::now();
        started_by_runc(&path, &name);
        theirs.push(begun.elapsed());
        drop(runc(&["delete", "-f", &name]));
    }
    for (name, mut times) in
        [("neap: create pod to process started, network and all", ours), ("runc run -d of the same bundle", theirs)]
    {
        times.sort();
        println!("{name}: p50 {:?}, p99 {:?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    }
    drop(bundle);
    world.end().await;
}

fn started_by_runc(bundle: &str, name: &str) {
    // Not its output: the container would hold the pipe open.
    let null = || std::process::Stdio::null();
    let started = Command::new("runc")
        .args(["run", "-d", "--bundle", bundle, name])
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .status();
    assert!(started.is_ok_and(|status| status.success()), "runc does not run {}", Path::new(bundle).display());
}
