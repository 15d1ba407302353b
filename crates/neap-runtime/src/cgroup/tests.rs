//! Layouts from mount tables, and the files that are written, on directories that only look like control groups.

use super::*;

fn line(root: &str, mount: &str, kind: &str, options: &str) -> String {
    format!("30 24 0:26 {root} {mount} rw,relatime shared:9 - {kind} {kind} rw,{options}\n")
}

#[test]
fn layouts_are_found_in_the_mount_table() {
    let check = |lines: &[String], expected: &[(&str, &[&str])]| {
        let found = Tree::detect(&lines.concat(), "neap").map(|t| t.hierarchies).unwrap_or_default();
        let found: Vec<(String, Vec<String>)> = found
            .into_iter()
            .map(|h| {
                let controllers = match h.kind {
                    Kind::V1(c) => c,
                    Kind::V2 => vec!["v2".to_owned()],
                };
                (h.mount.to_string_lossy().into_owned(), controllers)
            })
            .collect();
        let expected: Vec<(String, Vec<String>)> =
            expected.iter().map(|(m, c)| ((*m).to_owned(), c.iter().map(|c| (*c).to_owned()).collect())).collect();
        assert_eq!(found, expected);
    };
    check(&[line("/", "/sys/fs/cgroup", "cgroup2", "nsdelegate")], &[("/sys/fs/cgroup", &["v2"])]);
    check(
        &[
            line("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
            line("/", "/sys/fs/cgroup/blkio", "cgroup", "blkio"),
            line("/", "/sys/fs/cgroup/systemd", "cgroup", "xattr,name=systemd"),
            line("/", "/sys/fs/cgroup/unified", "cgroup2", ""),
            line("/", "/elsewhere", "cgroup", "cpu,cpuacct"),
            line("/", "/proc", "proc", ""),
        ],
        &[
            ("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
            ("/sys/fs/cgroup/systemd", &["name=systemd"]),
            ("/sys/fs/cgroup/unified", &["v2"]),
        ],
    );
    check(&[line("/", "/proc", "proc", "")], &[]);
}

/// A directory with the files that the kernel would have made.
fn fake(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(path, content).expect("written");
    }
    dir
}

fn limits() -> Limits {
    Limits { cpu_shares: 128, cpu_quota_us: Some(100_000), memory_bytes: Some(1 << 27), pids: Some(50) }
}

fn check_written(dir: &tempfile::TempDir, expected: &[(&str, &str)]) {
    for (path, content) in expected {
        assert_eq!(fs::read_to_string(dir.path().join(path)).expect(path), *content, "{path}");
    }
}

#[test]
fn v1_limits_states_and_counts() {
    let dir = fake(&[
        ("cpu/neap/g/cpu.shares", ""),
        ("cpu/neap/g/cpu.cfs_period_us", ""),
        ("cpu/neap/g/cpu.cfs_quota_us", ""),
        ("cpu/neap/g/cgroup.procs", ""),
        ("memory/neap/g/memory.limit_in_bytes", ""),
        ("memory/neap/g/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ("memory/neap/g/cgroup.procs", ""),
        ("freezer/neap/g/cgroup.procs", ""),
        ("freezer/neap/g/freezer.state", ""),
        ("freezer/neap/g/made-inside/freezer.state", "FROZEN"),
    ]);
    let mount = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let lines: String =
        ["cpu", "memory", "freezer"].iter().map(|name| line("/", &mount(name), "cgroup", name)).collect();
    let group = Tree::detect(&lines, "neap").expect("found").group("g");
    group.set_bounds(&limits()).expect("set");
    group.set_cpu(&limits()).expect("set");
    group.add(42).expect("added");
    check_written(
        &dir,
        &[
            ("cpu/neap/g/cpu.shares", "128"),
            ("cpu/neap/g/cpu.cfs_period_us", "100000"),
            ("cpu/neap/g/cpu.cfs_quota_us", "100000"),
            ("memory/neap/g/memory.limit_in_bytes", "134217728"),
            ("memory/neap/g/cgroup.procs", "42"),
        ],
    );
    assert_eq!((group.oom_kills(), group.pids()), (3, vec![42]));
    let unlimited = Limits { cpu_shares: 0, cpu_quota_us: None, memory_bytes: None, pids: None };
    group.set_bounds(&unlimited).expect("set");
    group.set_cpu(&unlimited).expect("set");
    check_written(&dir, &[("cpu/neap/g/cpu.shares", "2"), ("cpu/neap/g/cpu.cfs_quota_us", "-1")]);
    let views: Vec<_> = group.views().into_iter().map(|(_, name)| name).collect();
    assert_eq!(views, ["cpu", "memory", "freezer"].map(PathBuf::from));
}

#[test]
fn v2_limits_states_and_counts() {
    let dir = fake(&[
        ("cgroup.controllers", "cpu memory pids io"),
        ("cgroup.subtree_control", "cpu"),
        ("neap/cgroup.controllers", "cpu memory pids"),
        ("neap/cgroup.subtree_control", "cpu memory pids"),
        ("neap/cpu.weight", ""),
        ("neap/g/cpu.weight", ""),
        ("neap/g/cpu.max", ""),
        ("neap/g/memory.max", ""),
        ("neap/g/memory.oom.group", ""),
        ("neap/g/memory.events", "low 0\noom 1\noom_kill 1\n"),
        ("neap/g/pids.max", ""),
    ]);
    let tree = Tree::detect(&line("/", &dir.path().to_string_lossy(), "cgroup2", ""), "neap").expect("found");
    tree.prepare(4).expect("prepared");
    check_written(&dir, &[("cgroup.subtree_control", "+pids"), ("neap/cpu.weight", "157")]);
    assert!(tree.can_limit("memory") && !tree.can_limit("hugetlb"));
    assert_eq!(tree.groups(), ["g"]);
    let group = tree.group("g");
    group.set_bounds(&limits()).expect("set");
    group.set_cpu(&limits()).expect("set");
    check_written(
        &dir,
        &[
            ("neap/g/cpu.weight", "5"),
            ("neap/g/cpu.max", "100000 100000"),
            ("neap/g/memory.max", "134217728"),
            ("neap/g/memory.oom.group", "1"),
            ("neap/g/pids.max", "50"),
        ],
    );
    assert_eq!(group.oom_kills(), 1);
    assert_eq!(group.views(), [(dir.path().join("neap/g"), PathBuf::new())]);
}

#[test]
fn shares_map_onto_weights() {
    let check = |shares, weight| assert_eq!(weight_of_shares(shares), weight);
    check(0, 1);
    check(2, 1);
    check(1024, 39);
    check(262_144, 10_000);
    check(u64::MAX, 10_000);
}

/// On v1 a frozen process does not die, and a privileged container may freeze what it made below its own group.
#[test]
fn who_is_frozen_inside_dies_too() {
    let dir = fake(&[
        ("freezer/neap/g/freezer.state", "THAWED"),
        ("freezer/neap/g/cgroup.procs", ""),
        ("freezer/neap/g/inside/freezer.state", "FROZEN"),
        ("freezer/neap/g/inside/cgroup.procs", ""),
    ]);
    let mount = dir.path().join("freezer");
    let group =
        Tree::detect(&line("/", &mount.to_string_lossy(), "cgroup", "freezer"), "neap").expect("found").group("g");
    assert!(group.exists());
    group.kill();
    check_written(&dir, &[("freezer/neap/g/inside/freezer.state", "THAWED")]);
}
