//! Pods whose users are nobody outside, and images as volumes, for them and for others.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use neap_runtime::Mode;
use neap_runtime::pod::*;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::words::{container, pod};
use crate::{World, world};

const DATA: &str = "example.test/data:1";

/// An image of several layers, as `docker save` writes it.
async fn load(world: &World, name: &str, layers: &[&[(&str, &str)]]) {
    let add = |archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(8);
        archive.append_data(&mut header, path, content).expect("appended");
    };
    let mut all = tar::Builder::new(Vec::new());
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for (at, files) in layers.iter().enumerate() {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, content) in *files {
            add(&mut layer, path, content.as_bytes());
        }
        let layer = layer.into_inner().expect("whole");
        let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
        ids.push(format!("sha256:{digest}"));
        names.push(format!("{at}.tar"));
        add(&mut all, &format!("{at}.tar"), &layer);
    }
    let platform = neap_runtime::image::Platform::current();
    let config = serde_json::json!({
        "os": platform.os, "architecture": platform.architecture, "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    add(&mut all, "config.json", config.to_string().as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    add(&mut all, "manifest.json", manifest.to_string().as_bytes());
    let archive = std::io::Cursor::new(all.into_inner().expect("whole"));
    world.runtime.images().load(archive, None).await.expect("loads");
}

fn mount(volume: &str, path: &str) -> Mount {
    Mount { volume: volume.into(), path: path.into(), sub_path: None, read_only: false }
}

fn empty(memory: bool) -> Volume {
    Volume::EmptyDir { memory, size_limit: None }
}

pub(crate) async fn has_users_of_its_own() {
    let world = world(Mode::Container).await;
    let script = r#"
        P=/bin/busybox
        $P awk '{print "map", $1, $3}' /proc/self/uid_map
        echo "who $($P id -u):$($P id -g)"
        $P touch /made /disk/made /ram/made /tmp/made && echo wrote
        $P stat -c "%n %u:%g" /made / /bin/busybox /disk /disk/made /ram/made /config/a /work /deep /etc/hosts /dev/pts
        $P chown 1000:1001 /disk/made && $P stat -c "%n %u:%g" /disk/made
        $P hostname other 2>/dev/null && echo "NAMED the pod"
        $P mount -t tmpfs none /tmp 2>/dev/null && echo MOUNTED
        echo x 2>/dev/null > /proc/sys/kernel/core_pattern && echo "WROTE sysctl"
        $P chmod 600 /dev/null 2>/dev/null && echo "CHANGED a device"
        echo through > /dev/stdout
        exec $P sleep 1000"#;
    let mut spec = pod("apart", &["/bin/busybox", "sh", "-c", script]);
    spec.own_users = true;
    let file = VolumeFile { content: b"1".to_vec(), mode: 0o600 };
    spec.volumes = [
        ("disk".to_owned(), empty(false)),
        ("ram".to_owned(), empty(true)),
        ("config".to_owned(), Volume::Files([(PathBuf::from("a"), file)].into())),
    ]
    .into();
    let container = &mut spec.containers[0];
    container.working_dir = Some("/work/of/mine".into());
    container.mounts =
        vec![mount("disk", "/disk"), mount("ram", "/ram"), mount("config", "/config"), mount("disk", "/deep/down")];
    let id = world.run(spec).await;
    world.wait(&id, "a run", |s| s.ready).await;
    let said = "map 0 65536\nwho 0:0\nwrote\n/made 0:0\n/ 0:0\n/bin/busybox 0:0\n/disk 0:0\n/disk/made 0:0\n/ram/made 0:0\n\
        /config/a 0:0\n/work 0:0\n/deep 0:0\n/etc/hosts 0:0\n/dev/pts 65534:65534\n/disk/made 1000:1001\nthrough\n";
    world.says(&id, said).await;
    // Outside it is nobody; on the disk its files are as any pod's.
    let run = world.dir.path().join("pods/uid-apart/c/user/0/run.json");
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(run).expect("there")).expect("JSON");
    let process = format!("/proc/{}", run["process"]["pid"]);
    let uid = std::fs::metadata(&process).expect("it runs").uid();
    assert!((0x7000_0000..0x7fff_0000).contains(&uid), "{uid}");
    let disk = world.dir.path().join("pods/uid-apart/volumes/disk/made");
    assert_eq!(std::fs::metadata(disk).expect("there").uid(), 1000);
    let own = std::fs::read_link(format!("{process}/ns/user")).expect("there");
    assert_ne!(own, std::fs::read_link("/proc/self/ns/user").expect("there"));
    // A command that joins it is in there, too.
    let argv = ["/bin/busybox", "sh", "-c", "/bin/busybox readlink /proc/self/ns/user; /bin/busybox id -u"];
    let command = CommandOptions { argv: argv.map(str::to_owned).to_vec(), ..CommandOptions::default() };
    let mut session = world.runtime.exec(&id, "user", command).await.expect("begins");
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.expect("reads");
    assert_eq!(session.exit.await.expect("ends"), 0);
    assert_eq!(text, format!("{}\n0\n", own.display()));

    // Two pods are apart from each other.
    let other = world.run(PodSpec { own_users: true, ..pod("other", &["/bin/busybox", "sleep", "1000"]) }).await;
    world.wait(&other, "a run", |s| s.ready).await;
    let run = world.dir.path().join("pods/uid-other/c/user/0/run.json");
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(run).expect("there")).expect("JSON");
    let other_uid = std::fs::metadata(format!("/proc/{}", run["process"]["pid"])).expect("it runs").uid();
    assert!(uid.abs_diff(other_uid) >= 65536, "{uid} {other_uid}");
    world.end().await;
}

pub(crate) async fn keeps_its_own_users_by_rules() {
    let world = world(Mode::Container).await;
    let script = "P=/bin/busybox; echo $($P id -u):$($P id -G); $P touch /v/f && $P stat -c '%u:%g' /v/f; $P grep CapEff /proc/self/status";
    let (said, _) = world
        .script("user", script, |spec| {
            spec.own_users = true;
            (spec.containers[0].user, spec.fs_group) = (Some(1000), Some(78));
            spec.volumes.insert("v".into(), empty(false));
            spec.containers[0].mounts = vec![mount("v", "/v")];
        })
        .await;
    assert_eq!(said, "1000:1001 78\n1000:78\nCapEff:\t0000000000000000\n");
    let mut spec = pod("beyond", &["/bin/busybox", "true"]);
    (spec.own_users, spec.containers[0].user) = (true, Some(70_000));
    let id = world.run(spec).await;
    let refused = |s: &PodStatus| matches!(&s.containers[0].state, ContainerState::Waiting { message, .. } if message.contains("hostUsers: false") && message.contains("70000"));
    world.wait(&id, "the refusal", refused).await;
    let mut spec = pod("both", &["/bin/busybox", "true"]);
    (spec.own_users, spec.host_network) = (true, true);
    let id = world.run(spec).await;
    let refused = |s: &PodStatus| matches!(&s.containers[0].state, ContainerState::Waiting { message, .. } if message.contains("hostUsers: false"));
    world.wait(&id, "the refusal", refused).await;
    world.end().await;
}

pub(crate) async fn mounts_images() {
    let world = world(Mode::Container).await;
    let program = "#!/bin/busybox sh\necho RAN\n";
    let layers: &[&[(&str, &str)]] = &[&[("lib/a", "one"), ("lib/b", "two"), ("run", program)], &[("lib/b", "three")]];
    load(&world, DATA, layers).await;
    load(&world, "example.test/one:1", &layers[..1]).await;
    let image = |reference: &str| Volume::Image {
        reference: reference.into(),
        pull: PullPolicy::Never,
        credentials: Vec::new(),
    };
    for own_users in [false, true] {
        let script = r#"P=/bin/busybox; $P cat /data/lib/a /data/lib/b /one/lib/b /sub/a; echo
            $P stat -c %u:%g /data/lib/b /one/lib/a /sub/b
            $P touch /data/x 2>/dev/null && echo WROTE; $P touch /one/x 2>/dev/null && echo WROTE; $P touch /sub/a 2>/dev/null && echo WROTE
            /data/run 2>/dev/null; /one/run 2>/dev/null; exit 0"#;
        let (said, end) = world
            .script(if own_users { "mapped" } else { "plain" }, script, |spec| {
                spec.own_users = own_users;
                spec.volumes =
                    [("data".to_owned(), image(DATA)), ("one".to_owned(), image("example.test/one:1"))].into();
                let sub = Mount { sub_path: Some("lib".into()), ..mount("data", "/sub") };
                spec.containers[0].mounts = vec![mount("data", "/data"), mount("one", "/one"), sub];
            })
            .await;
        assert_eq!((said.as_str(), end.exit_code), ("onethreetwoone\n7:8\n7:8\n7:8\n", 0), "{own_users}");
    }
    let waits = |wanted: &'static str| move |s: &PodStatus| matches!(&s.containers[0].state, ContainerState::Waiting { reason, .. } if reason == wanted);
    let mut spec = pod("missing", &["/bin/busybox", "true"]);
    spec.volumes.insert("none".into(), image("example.test/none:1"));
    spec.containers[0].mounts = vec![mount("none", "/none")];
    let id = world.run(spec).await;
    world.wait(&id, "the pull's refusal", waits("ErrImageNeverPull")).await;
    // A part that the image does not hold is not made in it.
    let mut spec = pod("part", &["/bin/busybox", "true"]);
    spec.restart = RestartPolicy::Never;
    spec.volumes.insert("one".into(), image("example.test/one:1"));
    spec.containers[0].mounts = vec![Mount { sub_path: Some("no/such".into()), ..mount("one", "/none") }];
    let id = world.run(spec).await;
    world.wait(&id, "the refusal", |s| s.phase == PodPhase::Failed).await;
    // Two containers see the same.
    let mut spec = pod("both", &["/bin/busybox", "sleep", "1000"]);
    spec.volumes.insert("data".into(), image(DATA));
    spec.containers[0].mounts = vec![mount("data", "/data")];
    let mut second = container("second", &["/bin/busybox", "cat", "/data/lib/b"]);
    second.mounts = vec![mount("data", "/data")];
    spec.containers.push(second);
    let id = world.run(spec).await;
    crate::until("the second container has looked", || {
        let log = world.dir.path().join("logs/test_both_uid-both/second/0.log");
        std::fs::read_to_string(log).is_ok_and(|text| text.contains("three"))
    })
    .await;
    world.runtime.remove(&id, Duration::ZERO).await.expect("removed");
    world.end().await;
}
