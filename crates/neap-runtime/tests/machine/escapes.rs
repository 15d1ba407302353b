//! Tries to get out of a container, or to take more than is given. All must fail.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use neap_runtime::Mode;
use neap_runtime::pod::*;
use tokio::io::AsyncWriteExt;

use crate::words::{container, pod};
use crate::world;

/// Each line of a script says `ESCAPED` and how, if it got through.
const TRIES: &str = r#"
    P=/bin/busybox
    try() { name=$1; shift; "$@" >/dev/null 2>&1 && echo "ESCAPED $name"; }
    into() { (echo "$2" > "$1") 2>/dev/null && echo "ESCAPED write $1"; }
    $P mkdir -p /t
    try "mount tmpfs" $P mount -t tmpfs none /t
    try "mount proc" $P mount -t proc none /t
    try "mount sysfs" $P mount -t sysfs none /t
    try "bind" $P mount -o bind /proc/sys /t
    try "remount sys" $P mount -o remount,rw /sys
    try "remount proc" $P mount -o remount,rw,bind /proc/sys /proc/sys
    try "umount mask" $P umount /proc/kcore
    try "umount cgroup" $P umount /sys/fs/cgroup
    try "pivot" $P pivot_root /t /t
    try "new user namespace" $P unshare -U $P true
    try "new mount namespace" $P unshare -m $P true
    try "enter namespaces" $P nsenter -t 1 -m $P true
    into /proc/sysrq-trigger h
    into /proc/sys/kernel/core_pattern '|/x'
    into /proc/sys/kernel/domainname x
    into /proc/sys/vm/drop_caches 1
    into /proc/irq/default_smp_affinity 1
    into /sys/kernel/uevent_helper /x
    into /sys/power/state mem
    for f in /sys/fs/cgroup/*/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do into $f 99999999999; done
    for f in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/release_agent; do into $f 1; done
    for d in /sys/fs/cgroup /sys/fs/cgroup/*; do try "mkdir $d" $P mkdir $d/x; done
    try "kcore" $P head -c 1 /proc/kcore
    [ -n "$($P head -c 1 /proc/kcore 2>/dev/null)" ] && echo "ESCAPED kcore"
    [ -n "$($P ls /sys/firmware 2>/dev/null)" ] && echo "ESCAPED firmware"
    for m in "b 8 0" "c 1 1" "c 1 3"; do
        for d in /dev /t /dev/shm /v; do
            $P mknod $d/node $m 2>/dev/null && $P head -c 1 $d/node >/dev/null 2>&1 && echo "ESCAPED device $d $m"
            $P rm -f $d/node 2>/dev/null
        done
    done
    $P chmod 0 /dev/null 2>/dev/null; $P chmod 0 /proc/self/fd/0 2>/dev/null; $P chown 7 /dev/zero 2>/dev/null
    $P rm /dev/full 2>/dev/null
    try "raw socket" $P arping -c 1 -w 1 198.19.0.1
    $P date -s "$($P date '+%Y-%m-%d %H:%M:%S')" 2>&1 | $P grep -q "not permitted" || echo "ESCAPED clock"
    try "host name of the machine" $P hostname other
    try "reboot" $P reboot -f
    try "module" $P insmod /bin/busybox
    try "swap" $P swapon /t
    [ "$($P ls -d /proc/[0-9]* | $P wc -l)" -gt 12 ] && echo "ESCAPED others' processes"
    $P grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status
    [ -e /proc/1/root/work ] && echo "ESCAPED root"
    echo done
"#;

pub(crate) async fn tries_from_inside_fail() {
    let world = world(Mode::Container).await;
    let null = std::fs::metadata("/dev/null").expect("there");
    let volume = |spec: &mut PodSpec| {
        spec.volumes.insert("v".into(), Volume::EmptyDir { memory: false, size_limit: None });
        spec.containers[0].mounts =
            vec![Mount { volume: "v".into(), path: "/v".into(), sub_path: None, read_only: false }];
    };
    let (said, _) = world.script("plain", TRIES, volume).await;
    assert!(!said.contains("ESCAPED") && said.ends_with("done\n"), "{said}");
    assert!(said.contains("Seccomp:\t2"), "{said}");
    // What the filter holds back, capabilities, namespaces and mounts must hold back, too.
    let (said, _) = world
        .script("unfiltered", &TRIES.replace("$P unshare -U $P true", "$P false"), |spec| {
            volume(spec);
            spec.containers[0].seccomp = Seccomp::Unconfined;
        })
        .await;
    assert!(!said.contains("ESCAPED") && said.contains("Seccomp:\t0"), "{said}");
    // Who may make device nodes may still not open them.
    let (said, _) = world
        .script("nodes", TRIES, |spec| {
            volume(spec);
            spec.containers[0].add_capabilities = vec!["MKNOD".into()];
        })
        .await;
    assert!(!said.contains("ESCAPED"), "{said}");
    let after = std::fs::metadata("/dev/null").expect("still there");
    assert_eq!((after.mode(), after.uid(), after.ino()), (null.mode(), null.uid(), null.ino()), "the machine's device");
    assert!(after.file_type().is_char_device());

    // A program with the set-user bit changes nothing where privileges are given up, and none in volumes ever does.
    let script = "P=/bin/busybox; $P cp $P /v/su; $P chmod 6755 /v/su; exec $P sleep 0.2";
    let mut spec = pod("setuid", &["/bin/busybox", "sh", "-c", script]);
    volume(&mut spec);
    spec.restart = RestartPolicy::Never;
    let mut user = container(
        "user2",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox usleep 100000; /bin/busybox grep v/su /proc/self/mounts; /bin/busybox grep -o 'nosuid,nodev' /proc/self/mounts | /bin/busybox wc -l; /bin/busybox grep -c ' /v .*nosuid' /proc/self/mounts",
        ],
    );
    user.mounts = spec.containers[0].mounts.clone();
    user.user = Some(1000);
    spec.containers.push(user);
    let id = world.run(spec).await;
    world.wait(&id, "the end", |s| s.phase == PodPhase::Succeeded).await;
    let mounts = world.dir.path().join("logs/test_setuid_uid-setuid/user2/0.log");
    assert!(std::fs::read_to_string(mounts).expect("a log").trim_end().ends_with('1'), "volumes are mounted nosuid");
    world.end().await;
}

pub(crate) async fn links_in_volumes_lead_nowhere() {
    let world = world(Mode::Container).await;
    let secret = world.dir.path().join("secret");
    std::fs::write(&secret, "the machine's").expect("written");
    let links = format!(
        "P=/bin/busybox; $P ln -s / /v/abs; $P ln -s ../../../../../../../../../.. /v/up; $P ln -s {} /v/file; $P mkdir /v/d; $P ln -s /proc/1/root /v/magic",
        secret.display()
    );
    let mut spec = pod(
        "links",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "for d in /a /u /m; do /bin/busybox ls $d; done; /bin/busybox cat /f/x; echo end; /bin/busybox sleep 100",
        ],
    );
    spec.volumes.insert("v".into(), Volume::EmptyDir { memory: false, size_limit: None });
    let mount = |path: &str, sub: Option<&str>| Mount {
        volume: "v".into(),
        path: path.into(),
        sub_path: sub.map(Into::into),
        read_only: false,
    };
    let mut init = container("plant", &["/bin/busybox", "sh", "-c", &links]);
    init.mounts = vec![mount("/v", None)];
    spec.init_containers = vec![init];
    spec.containers[0].mounts =
        vec![mount("/a", Some("abs")), mount("/u", Some("up")), mount("/m", Some("abs/d")), mount("/f", Some("d"))];
    let id = world.run(spec).await;
    world.wait(&id, "a run", |s| s.ready).await;
    // Each link ends in the volume itself.
    let list = "abs\nd\nfile\nmagic\nup\n";
    let said = format!("{list}{list}/bin/busybox: can't open '/f/x': No such file or directory\nend\n");
    let normal = world.log(&id, LogOptions::default()).await;
    let begun = tokio::time::Instant::now();
    let mut found = normal;
    while !found.ends_with("end\n") && begun.elapsed() < crate::PATIENCE {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        found = world.log(&id, LogOptions::default()).await;
    }
    assert_eq!(found.replace("cat: ", "/bin/busybox: "), said);

    // Through a link to a file of the machine nothing is found, and nothing is made there.
    let mut spec = pod("file", &["/bin/busybox", "sh", "-c", "/bin/busybox cat /f; exec /bin/busybox sleep 100"]);
    spec.volumes.insert("v".into(), Volume::EmptyDir { memory: false, size_limit: None });
    let mut init = container("plant", &["/bin/busybox", "sh", "-c", &links]);
    init.mounts = vec![mount("/v", None)];
    spec.init_containers = vec![init];
    spec.containers[0].mounts = vec![mount("/f", Some("file"))];
    let id = world.run(spec).await;
    let refused =
        |s: &PodStatus| s.containers[0].restarts > 0 || matches!(&s.containers[0].state, ContainerState::Terminated(_));
    world.wait(&id, "the refusal", refused).await;
    assert!(!world.log(&id, LogOptions { previous: false, ..LogOptions::default() }).await.contains("the machine's"));
    assert_eq!(std::fs::read_to_string(&secret).expect("there"), "the machine's");

    // Volumes that the machine's side writes into cannot be written to, whatever the mount asks for.
    let (said, _) = world
        .script("files", "(echo x > /c/key) 2>/dev/null && echo ESCAPED; /bin/busybox ln -sf /etc /c/..data 2>/dev/null && echo ESCAPED; /bin/busybox cat /c/key", |spec| {
            let file = VolumeFile { content: b"value\n".to_vec(), mode: 0o666 };
            spec.volumes.insert("c".into(), Volume::Files([("key".into(), file)].into()));
            spec.containers[0].mounts = vec![Mount { volume: "c".into(), path: "/c".into(), sub_path: None, read_only: false }];
        })
        .await;
    assert_eq!(said, "value\n");
    world.end().await;
}

/// A pod whose main container finds what an init container planted in the volume `v`.
fn planted(spec: &mut PodSpec, plant: &str, paths: &[&str]) {
    let mount = |path: &str| Mount { volume: "v".into(), path: path.into(), sub_path: None, read_only: false };
    spec.volumes.insert("v".into(), Volume::EmptyDir { memory: false, size_limit: None });
    spec.volumes.insert("w".into(), Volume::EmptyDir { memory: false, size_limit: None });
    let mut init = container("plant", &["/bin/busybox", "sh", "-c", plant]);
    init.mounts = vec![mount("/v")];
    spec.init_containers = vec![init];
    spec.containers[0].mounts = paths
        .iter()
        .map(|path| match path.split_once(' ') {
            Some((volume, path)) => Mount { volume: volume.into(), ..mount(path) },
            None => mount(path),
        })
        .collect();
}

/// What hides files of /proc must not be a link that a volume over /dev has in its place (CVE-2025-31133).
pub(crate) async fn covers_are_not_taken_from_volumes() {
    let world = world(Mode::Container).await;
    let plant =
        "P=/bin/busybox; $P ln -s / /v/root; $P ln -s /proc/sys/kernel/domainname /v/null; $P ln -s /v/none /v/full";
    let script = r#"
        P=/bin/busybox
        for f in kcore keys interrupts timer_list; do (echo escaped > /proc/$f) 2>/dev/null; done
        $P grep -q escaped /proc/sys/kernel/domainname && echo ESCAPED
        for f in null zero full random; do [ -c /dev/$f ] || echo "MISSING $f"; done
        [ -e /v/none ] && echo FOLLOWED
        echo done"#;
    // However it is spelled, it lies over /dev. The second time, everything is there already.
    for (name, path) in [("link", "/v/root/dev"), ("dots", "/x/../dev"), ("plain", "/dev")] {
        let (said, _) = world.script(name, script, |spec| planted(spec, plant, &["/v", path])).await;
        assert_eq!(said, "done\n", "{path}");
    }
    world.end().await;
}

pub(crate) async fn mounts_follow_links_but_not_everywhere() {
    let world = world(Mode::Container).await;
    let plant = "P=/bin/busybox; $P ln -s / /v/root; $P ln -s /made/here /v/dangling; $P ln -s ../www /v/there";
    let script = "P=/bin/busybox; echo x > /made/here/f; $P cat /www/f; $P ls /w; echo done";
    let (said, _) = world
        .script("links", script, |spec| {
            planted(spec, plant, &["/v", "w /v/dangling", "w /v/there", "w /w"]);
        })
        .await;
    assert_eq!(said, "x\nf\ndone\n");
    for path in ["/v/root/proc", "/v/root/proc/sys/kernel", "/proc/self"] {
        let mut spec = pod("proc", &["/bin/busybox", "true"]);
        planted(&mut spec, plant, &["/v", path]);
        let id = world.run(spec).await;
        let refused = |s: &PodStatus| match &s.containers[0].state {
            ContainerState::Waiting { reason, message } => {
                reason == "CreateContainerConfigError" && message.contains("leads into /proc")
            }
            _ => false,
        };
        world.wait(&id, "the refusal", refused).await;
        world.runtime.remove(&id, std::time::Duration::ZERO).await.expect("removed");
    }
    world.end().await;
}

pub(crate) async fn greed_stays_inside() {
    let world = world(Mode::Container).await;
    // More processes than it may have: the container fails to, the machine does not notice.
    let (said, end) = world
        .script("bomb", "i=0; while [ $i -lt 200 ]; do /bin/busybox sleep 100 & i=$((i+1)); done; echo made", |spec| {
            spec.containers[0].resources.pids_limit = Some(32);
        })
        .await;
    assert!(said.contains("can't fork") && !said.contains("made"), "{said} {end:?}");
    let (said, _) = world
        .script("default", "/bin/busybox cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", |_| {})
        .await;
    assert_eq!(said, "4096\n", "a bound that nobody named");
    // More memory-backed disk than it may have.
    let (said, _) = world
        .script(
            "disk",
            "/bin/busybox dd if=/dev/zero of=/v/f bs=64k count=1000 2>&1 | /bin/busybox grep -c 'No space'",
            |spec| {
                spec.volumes.insert("v".into(), Volume::EmptyDir { memory: true, size_limit: Some(1 << 20) });
                spec.containers[0].mounts =
                    vec![Mount { volume: "v".into(), path: "/v".into(), sub_path: None, read_only: false }];
            },
        )
        .await;
    assert_eq!(said, "1\n");
    let id = world.run(pod("plain", &["/bin/busybox", "sleep", "100"])).await;
    world.wait(&id, "a run beside all that", |s| s.ready).await;
    world.end().await;
}

/// On a small disk of its own, which the data directory is.
pub(crate) async fn who_fills_the_disk_is_evicted() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().expect("a temporary directory");
    mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=96m")).expect("a disk");
    let runtime = crate::open_at(dir.path(), Mode::Container).await;
    let small = runtime.ensure(pod("small", &["/bin/busybox", "sleep", "1000"])).await;
    small.expect("taken");
    let fill = "/bin/busybox dd if=/dev/zero of=/fill bs=1M 2>/dev/null; exec /bin/busybox sleep 1000";
    let spec = pod("greedy", &["/bin/busybox", "sh", "-c", fill]);
    let id = spec.id.clone();
    runtime.ensure(spec).await.expect("taken");
    let status = crate::wait(&runtime, &id, "the eviction", |s| s.evicted.is_some()).await;
    assert_eq!(status.phase, PodPhase::Failed);
    assert!(status.evicted.is_some_and(|why| why.contains("low on resource")));
    let ended = |s: &PodStatus| matches!(s.containers[0].state, ContainerState::Terminated(_));
    crate::wait(&runtime, &id, "the end", ended).await;
    let small = PodId("uid-small".into());
    assert!(runtime.status(&small).is_some_and(|s| s.ready && s.evicted.is_none()), "who took little runs on");
    runtime.remove(&id, std::time::Duration::ZERO).await.expect("removed");
    runtime.remove(&small, std::time::Duration::ZERO).await.expect("removed");
    runtime.shutdown().await;
    drop(runtime);
    umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmounted");
}

/// Of the machine a pod reaches what is meant for it; of another neap's pods nothing, and nobody reaches it past that.
pub(crate) async fn the_machine_and_strangers_keep_to_themselves() {
    let world = world(Mode::Container).await;
    let gateway = world.runtime.gateway().expect("a network");
    let mut servers = tokio::task::JoinSet::new();
    let mut listen = async |ip: std::net::Ipv4Addr| {
        let listener = tokio::net::TcpListener::bind((ip, 0)).await.expect("listens");
        let port = listener.local_addr().expect("bound").port();
        servers.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                // A pod that does not wait for the answer was there nevertheless.
                drop(socket.write_all(b"HTTP/1.0 200 OK\r\n\r\nhere").await);
            }
        });
        port
    };
    let (open_port, closed_port) = (listen(gateway).await, listen(gateway).await);
    let elsewhere_port = listen(std::net::Ipv4Addr::UNSPECIFIED).await;
    world.runtime.guard(&[open_port], &[53]).expect("guarded");
    // Again, as after a change.
    world.runtime.guard(&[open_port], &[53]).expect("guarded");
    let other = crate::world(Mode::Container).await;
    let stranger = other.run(crate::words::web("stranger")).await;
    let stranger = other.wait(&stranger, "readiness", |s| s.ready).await.ip.expect("an address");
    let own = world.run(crate::words::web("own")).await;
    let own = world.wait(&own, "the machine's probe", |s| s.ready).await.ip.expect("an address");
    let script = format!(
        "ask() {{ printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 2 $1 $2 2>/dev/null; }}
         reach() {{ ask $1 $2 | /bin/busybox grep -q HTTP && echo $3; }}
         reach {gateway} {open_port} open; reach {gateway} {closed_port} closed; reach {gateway} {elsewhere_port} elsewhere
         reach {stranger} 8080 stranger; reach {own} 8080 own; echo done"
    );
    let (said, _) = world.script("tries", &script, |_| {}).await;
    assert_eq!(said, "open\nown\ndone\n");
    other.end().await;
    world.end().await;
}
