//! What pods may ask for: hooks, sidecars, groups, names, their own address.

use std::time::Duration;

use neap_runtime::Mode;
use neap_runtime::pod::*;

use crate::words::{container, pod};
use crate::world;

fn shell(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
}

pub(crate) async fn hooks_and_sidecars_have_their_turn() {
    let world = world(Mode::Container).await;
    let say = |word: &str| format!("echo {word} >> /shared/f");
    let until_told = |word: &str| {
        let script = format!(
            "trap 'echo end-{word} >> /shared/f; exit 0' TERM; echo {word} >> /shared/f; while :; do /bin/busybox usleep 10000; done"
        );
        shell(&script)
    };
    let mut spec = pod("turns", &[]);
    spec.volumes.insert("s".into(), Volume::EmptyDir { memory: false, size_limit: None });
    spec.init_containers = vec![container("first", &[]), container("beside", &[]), container("last", &[])];
    spec.init_containers[0].command = shell(&say("first"));
    spec.init_containers[1].command = until_told("beside");
    spec.init_containers[1].sidecar = true;
    let ready = ProbeAction::Exec(shell("/bin/busybox grep -q beside /shared/f"));
    spec.init_containers[1].startup = Some(crate::words::probe(ready));
    spec.init_containers[2].command = shell(&say("last"));
    spec.containers[0].command = until_told("main");
    spec.containers[0].post_start =
        Some(Hook::Act(ProbeAction::Exec(shell("/bin/busybox usleep 200000; echo hook >> /shared/f"))));
    for one in spec.init_containers.iter_mut().chain(&mut spec.containers) {
        one.mounts = vec![Mount { volume: "s".into(), path: "/shared".into(), sub_path: None, read_only: false }];
    }
    let id = world.run(spec).await;
    let status = world.wait(&id, "readiness", |s| s.ready).await;
    assert!(status.init_containers[1].ready && status.init_containers[1].started);
    let read = world.dir.path().join("pods/uid-turns/volumes/s/f");
    let words = || std::fs::read_to_string(&read).expect("there").split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(), "first beside last main hook");
    let copy = world.dir.path().join("copy");
    std::fs::hard_link(&read, &copy).expect("linked");
    world.runtime.remove(&id, Duration::from_secs(5)).await.expect("removed");
    let all = std::fs::read_to_string(copy).expect("there");
    assert!(all.ends_with("end-main\nend-beside\n"), "sidecars end last: {all}");

    let mut spec = pod("failing-hook", &["/bin/busybox", "sleep", "100"]);
    spec.containers[0].post_start = Some(Hook::Act(ProbeAction::Exec(shell("exit 1"))));
    let id = world.run(spec).await;
    let status = world.wait(&id, "a restart by the hook", |s| s.containers[0].restarts > 0).await;
    assert!(!status.ready);
    world.end().await;
}

pub(crate) async fn asks_for_its_own_address() {
    let world = world(Mode::Container).await;
    let script = format!(
        "echo $IP {POD_IP}; /bin/busybox id -G; /bin/busybox grep elsewhere /etc/hosts; /bin/busybox touch /v/f; /bin/busybox stat -c %g /v/f; exec /bin/busybox sleep 100"
    );
    let mut spec = pod("self", &[]);
    spec.containers[0].command = shell(&script);
    spec.containers[0].env.push(("IP".into(), POD_IP.into()));
    spec.containers[0].user = Some(1000);
    spec.containers[0].mounts = vec![Mount { volume: "v".into(), path: "/v".into(), sub_path: None, read_only: false }];
    spec.volumes.insert("v".into(), Volume::EmptyDir { memory: true, size_limit: None });
    spec.supplemental_groups = vec![77];
    spec.fs_group = Some(78);
    spec.host_aliases = vec![("192.0.2.9".parse().expect("an address"), vec!["elsewhere".into()])];
    let id = world.run(spec).await;
    let status = world.wait(&id, "a run", |s| s.ready).await;
    let ip = status.ip.expect("an address");
    world.says(&id, &format!("{ip} {ip}\n1001 77 78\n192.0.2.9\telsewhere\n78\n")).await;
    world.end().await;
}

pub(crate) async fn sees_the_machine_where_it_may() {
    let world = world(Mode::Container).await;
    let look = "[ -d /proc/$1 ] && echo sees; /bin/busybox readlink /proc/self/ns/ipc";
    let own = std::process::id().to_string();
    let machine = std::fs::read_link("/proc/self/ns/ipc").expect("a namespace").display().to_string();
    let argv = ["/bin/busybox", "sh", "-c", look, "sh", &own];
    let mut spec = pod("host", &argv);
    (spec.host_pid, spec.host_ipc, spec.restart) = (true, true, RestartPolicy::Never);
    let id = world.run(spec).await;
    world.wait(&id, "the end", |s| s.phase == PodPhase::Succeeded).await;
    world.says(&id, &format!("sees\n{machine}\n")).await;
    let mut spec = pod("apart", &argv);
    spec.restart = RestartPolicy::Never;
    let id = world.run(spec).await;
    world.wait(&id, "the end", |s| s.phase == PodPhase::Succeeded).await;
    let said = world.log(&id, LogOptions::default()).await;
    assert!(!said.contains("sees") && !said.contains(&machine), "{said}");
    // What it leaves behind among the machine's processes goes with it.
    let mut spec =
        pod("straggler", &["/bin/busybox", "sh", "-c", "/bin/busybox sleep 4321 & exec /bin/busybox sleep 1000"]);
    spec.host_pid = true;
    let id = world.run(spec).await;
    world.wait(&id, "a run", |s| s.ready).await;
    world.runtime.remove(&id, Duration::ZERO).await.expect("removed");
    let begun = tokio::time::Instant::now();
    let straggler = |dir: &std::path::Path| crate::leaks::traces(dir).into_iter().find(|t| t.contains("busybox"));
    while let Some(left) = straggler(world.dir.path()) {
        assert!(begun.elapsed() < crate::PATIENCE, "{left}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end().await;
}

pub(crate) async fn names_a_profile_of_its_own() {
    let world = world(Mode::Container).await;
    let profiles = world.dir.path().join("seccomp/team");
    std::fs::create_dir_all(&profiles).expect("made");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(profiles.join("no-mkdir.json"), profile).expect("written");
    let script = "/bin/busybox mkdir /tmp/x 2>/dev/null && echo made; /bin/busybox touch /tmp/y && echo touched";
    let (said, _) =
        world.script("own", script, |s| s.containers[0].seccomp = Seccomp::Local("team/no-mkdir.json".into())).await;
    assert_eq!(said, "touched\n");
    let (said, _) = world.script("usual", script, |_| {}).await;
    assert_eq!(said, "made\ntouched\n");
    for (name, profile) in [("none", "none.json"), ("outside", "../seccomp/team/no-mkdir.json")] {
        let mut spec = pod(name, &["/bin/busybox", "true"]);
        spec.containers[0].seccomp = Seccomp::Local(profile.into());
        let id = world.run(spec).await;
        let waits = |s: &PodStatus| matches!(&s.containers[0].state, ContainerState::Waiting { reason, .. } if reason == "CreateContainerConfigError");
        world.wait(&id, "the refusal", waits).await;
    }
    world.end().await;
}
