//! Real containers on this machine, through the crate's public face only.
//!
//! Every case has a data directory of its own and leaves nothing behind: no process, mount, interface, group. Needs
//! root and a static busybox; says so and passes when they are missing. `-- NAME` runs one case, `-- bench` measures,
//! `-- churn` looks for leaks at length.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use neap_runtime::image::ImageConfig;
use neap_runtime::pod::*;
use neap_runtime::{Config, Mode, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

mod bench;
mod commands;
mod escapes;
mod leaks;
mod network;
mod pods;
mod runc;
mod users;
mod words;

use words::{container, http, pod, probe, web};

pub(crate) const IMAGE: &str = "example.test/busybox:1";
const BUSYBOX: &str = "/usr/bin/busybox";
/// Nothing here takes longer on a machine that is not broken.
const PATIENCE: Duration = Duration::from_secs(30);

type Case = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! cases {
    ($($name:path),* $(,)?) => { &[$((stringify!($name), || Box::pin($name()))),*] };
}

const CASES: &[Case] = cases![
    serves_and_leaves_nothing,
    looks_right_inside,
    restarts_and_backs_off,
    survives_the_runtime,
    is_killed_for_memory,
    mounts_volumes,
    runs_init_containers_first,
    obeys_probes,
    ends_gracefully,
    keeps_two_neaps_apart,
    outlives_its_spawner,
    shares_what_is_asked_for,
    runs_rootless,
    runs_as_a_process,
    says_what_cannot_run,
    commands::talks_with_a_command,
    commands::ends_a_command_with_all_it_began,
    commands::joins_every_kind_of_container,
    commands::is_attached_to,
    commands::has_a_terminal,
    commands::has_ports_that_can_be_reached,
    escapes::tries_from_inside_fail,
    escapes::links_in_volumes_lead_nowhere,
    escapes::covers_are_not_taken_from_volumes,
    escapes::mounts_follow_links_but_not_everywhere,
    escapes::greed_stays_inside,
    escapes::the_machine_and_strangers_keep_to_themselves,
    pods::hooks_and_sidecars_have_their_turn,
    pods::asks_for_its_own_address,
    pods::sees_the_machine_where_it_may,
    pods::names_a_profile_of_its_own,
    escapes::who_fills_the_disk_is_evicted,
    leaks::nothing_is_left_after_crashes,
    leaks::nothing_is_left_of_a_neap_whose_directory_was_removed,
    runc::runs_our_bundle_alike,
    users::has_users_of_its_own,
    network::is_reached_by_the_ports_of_services,
    network::reaches_itself_by_the_ports_of_services,
    network::reaches_out_where_forwarding_is_dropped,
    network::reaches_out_where_others_tables_drop,
    users::keeps_its_own_users_by_rules,
    users::mounts_images,
];

/// What an ordinary user can run, too.
const FOR_ANYONE: &[&str] = &["runs_rootless", "runs_as_a_process"];

fn main() {
    neap_runtime::spawner::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if let [flag, dir] = &arguments[..]
        && flag == "--hold"
    {
        return runtime.block_on(hold(Path::new(dir)));
    }
    if let [flag, dir] = &arguments[..]
        && flag == "--forward"
    {
        std::fs::create_dir_all(dir).expect("made");
        return runtime.block_on(network::forward(Path::new(dir)));
    }
    if let [flag, dir, round, count] = &arguments[..]
        && flag == "--churn"
    {
        let number = |text: &String| text.parse().expect("a number");
        return runtime.block_on(leaks::churn(Path::new(dir), number(round), number(count)));
    }
    if !Path::new(BUSYBOX).exists() {
        println!("skipped: needs a static busybox at {BUSYBOX}");
        return;
    }
    let wanted = arguments.iter().find(|a| !a.starts_with('-'));
    if wanted.is_some_and(|w| w == "churn") {
        return runtime.block_on(leaks::ten_rounds_of_two_hundred());
    }
    if wanted.is_some_and(|w| w == "bench-runc") {
        return runtime.block_on(runc::bench());
    }
    if wanted.is_some_and(|w| w == "bench") {
        return runtime.block_on(bench::bench());
    }
    if let Some(wanted) = wanted
        && CASES.iter().all(|(name, _)| !name.contains(wanted.as_str()))
    {
        eprintln!("no case is called {wanted:?}");
        std::process::exit(1);
    }
    for (name, case) in CASES {
        if wanted.is_some_and(|w| !name.contains(w.as_str())) {
            continue;
        }
        if !nix::unistd::geteuid().is_root() && !FOR_ANYONE.contains(name) {
            println!("skipped: {name} needs root");
            continue;
        }
        let begun = Instant::now();
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE * 3, case()).await.unwrap_or_else(|_| panic!("{name} takes too long"));
        });
        println!("ok {name} ({:.1} s)", begun.elapsed().as_secs_f64());
    }
}

struct World {
    dir: tempfile::TempDir,
    runtime: Arc<Runtime>,
    /// Nothing is left to take away.
    ended: std::sync::atomic::AtomicBool,
}

/// Also where a case fails half-way nothing may stay on the machine.
impl Drop for World {
    fn drop(&mut self) {
        if !self.ended.load(std::sync::atomic::Ordering::SeqCst) {
            take_away(&self.runtime);
        }
    }
}

/// A directory in which a runtime of another process may have left pods.
struct Leftovers(Option<tempfile::TempDir>);

impl Leftovers {
    fn new() -> Self {
        Self(Some(tempfile::tempdir().expect("a temporary directory")))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().expect("until it is taken over").path()
    }

    /// A runtime that looks after what is there.
    async fn open(mut self) -> World {
        let runtime = open_at(self.path(), Mode::Container).await;
        World { dir: self.0.take().expect("until now"), runtime, ended: Default::default() }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        let opened = on_another_thread(async move {
            let config = Config { data_dir: dir.path().to_owned(), ..config(Mode::Container) };
            (Runtime::open(config).await, dir)
        });
        if let Some((Ok(runtime), _dir)) = opened {
            take_away(&runtime);
        }
    }
}

fn take_away(runtime: &Arc<Runtime>) {
    let runtime = runtime.clone();
    on_another_thread(async move {
        for pod in runtime.list() {
            let _ = runtime.remove(&pod.id, Duration::ZERO).await;
        }
        runtime.shutdown().await;
    });
}

/// Waits for it where nobody may wait otherwise: while a case is dropped.
fn on_another_thread<T: Send>(work: impl Future<Output = T> + Send) -> Option<T> {
    let handle = tokio::runtime::Handle::try_current().ok()?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| handle.block_on(async { tokio::time::timeout(PATIENCE, work).await.ok() }));
        waiting.join().ok().flatten()
    })
}

fn config(mode: Mode) -> Config {
    Config {
        data_dir: PathBuf::new(),
        mode,
        pod_cidr: "198.19.0.0/16".to_owned(),
        images: neap_runtime::image::Config::default(),
    }
}

/// Waits for something that nobody tells of.
async fn until(what: &str, reached: impl Fn() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < PATIENCE, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn open_at(dir: &Path, mode: Mode) -> Arc<Runtime> {
    let config = Config { data_dir: dir.to_owned(), ..config(mode) };
    let runtime =
        Runtime::open(config).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    let busybox = std::fs::read(BUSYBOX).expect("busybox");
    let mut files: Vec<(String, u32, Vec<u8>)> = vec![
        ("bin/busybox".into(), 0o755, busybox),
        ("www/index.html".into(), 0o644, b"hello\n".to_vec()),
        ("etc/passwd".into(), 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n".to_vec()),
        ("tmp/.keep".into(), 0o644, vec![]),
    ];
    for tool in ["sh", "httpd"] {
        files.push((format!("bin/{tool}"), 0o755, format!("#!/bin/busybox {tool}\n").into_bytes()));
    }
    let files: Vec<(&str, u32, &[u8])> = files.iter().map(|(p, m, c)| (p.as_str(), *m, c.as_slice())).collect();
    let image = ImageConfig {
        cmd: vec!["/bin/busybox".into()],
        env: vec![("FROM_IMAGE".into(), "yes".into())],
        ..ImageConfig::default()
    };
    runtime.images().import_files(IMAGE, &files, image).await.expect("imports");
    runtime
}

async fn world(mode: Mode) -> World {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = open_at(dir.path(), mode).await;
    World { dir, runtime, ended: Default::default() }
}

impl World {
    /// Removes every pod and checks that nothing is left.
    async fn end(self) {
        for pod in self.runtime.list() {
            self.runtime.remove(&pod.id, Duration::ZERO).await.expect("removes");
        }
        self.runtime.shutdown().await;
        self.ended.store(true, std::sync::atomic::Ordering::SeqCst);
        let dir = self.dir.path().canonicalize().expect("there");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let left: Vec<_> = mounts.lines().filter(|l| l.contains(&*dir.to_string_lossy())).collect();
        assert!(left.is_empty(), "mounts left: {left:?}");
        assert_eq!(std::fs::read_dir(dir.join("pods")).expect("there").count(), 0, "pods left");
        let namespaces = std::fs::read_dir(dir.join("run/ns")).map_or(0, Iterator::count);
        assert_eq!(namespaces, 0, "namespaces left");
    }

    async fn run(&self, spec: PodSpec) -> PodId {
        let id = spec.id.clone();
        self.runtime.ensure(spec).await.expect("taken");
        id
    }

    async fn wait(&self, id: &PodId, what: &str, reached: impl Fn(&PodStatus) -> bool) -> PodStatus {
        wait(&self.runtime, id, what, reached).await
    }

    async fn log(&self, id: &PodId, options: LogOptions) -> String {
        self.log_of(id, "user", options).await
    }

    async fn log_of(&self, id: &PodId, container: &str, options: LogOptions) -> String {
        let mut stream = self.runtime.logs(id, container, options).await.expect("a log");
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend(bytes.expect("reads"));
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Waits until the log is this.
    async fn says(&self, id: &PodId, expected: &str) {
        self.says_in(id, "user", expected).await;
    }

    async fn says_in(&self, id: &PodId, container: &str, expected: &str) {
        let begun = Instant::now();
        loop {
            let said = self.log_of(id, container, LogOptions::default()).await;
            if said == expected {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{said:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a shell script to its end and returns what it said.
    async fn script(&self, name: &str, script: &str, change: impl FnOnce(&mut PodSpec)) -> (String, Terminated) {
        let mut spec = pod(name, &["/bin/busybox", "sh", "-c", script]);
        spec.restart = RestartPolicy::Never;
        change(&mut spec);
        let id = self.run(spec).await;
        let status = self
            .wait(&id, "the end of the script", |s| matches!(s.phase, PodPhase::Succeeded | PodPhase::Failed))
            .await;
        let ContainerState::Terminated(end) = status.containers[0].state.clone() else { panic!("it ended") };
        (self.log(&id, LogOptions::default()).await, end)
    }
}

async fn wait(runtime: &Runtime, id: &PodId, what: &str, reached: impl Fn(&PodStatus) -> bool) -> PodStatus {
    let mut changes = runtime.changes();
    let waiting = async {
        loop {
            if let Some(status) = runtime.status(id).filter(|s| reached(s)) {
                return status;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.recv()).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(status) => status,
        Err(_) => panic!("waited for {what} of {id}; it is {:#?}", runtime.status(id)),
    }
}

async fn get(status: &PodStatus, port: u16) -> std::io::Result<String> {
    let port = status.ports.get("user-port").copied().unwrap_or(port);
    let mut stream = tokio::net::TcpStream::connect((status.ip.expect("an address"), port)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn serves_and_leaves_nothing() {
    let world = world(Mode::Container).await;
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("one of them");
    let [soft, hard] = [3, 4].map(|at| files.split_whitespace().nth(at).expect("a number"));
    assert_eq!(soft, hard, "whoever started this did not mean it for a thousand pods");
    let id = world.run(web("web")).await;
    let status = world.wait(&id, "readiness", |s| s.ready).await;
    assert_eq!(status.phase, PodPhase::Running);
    assert_eq!(status.labels.get("l").map(String::as_str), Some("v"));
    assert!(status.containers[0].image_id.contains("@sha256:"), "{}", status.containers[0].image_id);
    assert!(get(&status, 8080).await.expect("served").ends_with("hello\n"));
    let filters = leaks::cables(world.dir.path()).into_iter().map(|c| format!("/proc/sys/net/ipv4/conf/{c}/rp_filter"));
    let filters: Vec<_> = filters.map(|f| std::fs::read_to_string(f).unwrap_or_default()).collect();
    assert!(
        !filters.is_empty() && filters.iter().all(|f| f.trim() != "0"),
        "nobody sends in others' names: {filters:?}"
    );
    assert!(world.log(&id, LogOptions::default()).await.contains("response:200"), "requests are logged");
    world.runtime.ensure(web("web")).await.expect("again is fine");
    let begun = Instant::now();
    world.runtime.remove(&id, Duration::from_secs(20)).await.expect("removed");
    // busybox has no handler for SIGTERM, to which a first process without one is immune.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(world.runtime.status(&id), None);
    assert!(get(&status, 8080).await.is_err(), "nobody answers at a dead pod's address");
    assert!(
        world.log(&id, LogOptions { tail: Some(1), ..LogOptions::default() }).await.contains("response:200"),
        "logs stay"
    );
    world.runtime.remove(&id, Duration::ZERO).await.expect("gone is gone");
    world.end().await;
}

async fn looks_right_inside() {
    let world = world(Mode::Container).await;
    let script = r#"
        P=/bin/busybox
        for f in fd full null ptmx random stdin stdout stderr tty urandom zero shm mqueue pts; do $P test -e /dev/$f || echo "MISSING $f"; done
        $P test -e /dev/console && echo "HAS console"
        $P cat; echo "stdin at end"
        echo "host $($P hostname) $HOSTNAME $GIVEN $FROM_IMAGE $HOME"
        echo "memory $($P cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null)"
        echo "shares $($P cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.weight 2>/dev/null)"
        echo 1 2>/dev/null > /proc/sys/kernel/domainname && echo "WROTE sysctl"
        $P mkdir /sys/fs/cgroup/x 2>/dev/null && echo "WROTE cgroup"
        $P mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo "WROTE cgroup"
        $P mknod /tmp/disk b 8 0 2>/dev/null && echo "MADE device"
        $P mount -t tmpfs none /tmp 2>/dev/null && echo "MOUNTED"
        $P stat -c "resolv %a" /etc/resolv.conf
        $P cat /etc/resolv.conf
        $P grep -c . /etc/hosts >/dev/null && $P grep host /etc/hosts
        echo "pid $$"; echo "files $(ulimit -n)"; echo "oom $($P cat /proc/self/oom_score_adj)"
        $P touch /tmp/a && echo "tmp works"
        $P ls /proc/acpi /sys/firmware 2>/dev/null | $P wc -l
        echo oops >&2
        echo -n "last words" > /dev/termination-log
        exit 7"#;
    let (said, end) = world
        .script("inside", script, |spec| {
            spec.containers[0].oom_score = Some(321);
            spec.containers[0].resources = Resources {
                cpu_request_milli: Some(125),
                cpu_limit_milli: Some(1000),
                memory_limit: Some(128 << 20),
                pids_limit: Some(100),
                storage_limit: None,
            };
        })
        .await;
    for bad in ["MISSING", "HAS", "WROTE", "MADE", "MOUNTED"] {
        assert!(!said.contains(bad), "{bad} in:\n{said}");
    }
    for good in [
        "stdin at end",
        "host inside-host inside-host value yes /root",
        "memory 134217728",
        "resolv 644",
        "nameserver 198.19.0.1",
        "search svc",
        "inside-host",
        "pid 1\n",
        "oom 321\n",
        "tmp works",
        "oops",
    ] {
        assert!(said.contains(good), "no {good:?} in:\n{said}");
    }
    assert_eq!((end.exit_code, end.reason.as_str(), end.message.as_str()), (7, "Error", "last words"));

    let whoami = "echo $(/bin/busybox id -u):$(/bin/busybox id -g) $HOME; echo through > /dev/stdout; /bin/busybox grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status";
    let (said, _) = world.script("numbers", whoami, |s| s.containers[0].user = Some(2020)).await;
    assert!(said.contains("2020:0 /") && said.contains("through"), "{said}");
    assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
    let (said, _) = world
        .script("named", whoami, |s| {
            (s.containers[0].user, s.containers[0].no_new_privileges) = (Some(1000), true);
            s.containers[0].drop_capabilities = vec!["ALL".into()];
        })
        .await;
    assert!(said.contains("1000:1001 /home/web"), "{said}");
    assert!(said.contains("CapBnd:\t0000000000000000") && said.contains("NoNewPrivs:\t1"), "{said}");
    let (said, end) = world
        .script("sealed", "echo x > /file && echo WROTE; echo $PWD; echo end", |s| {
            s.containers[0].read_only_root = true;
            s.containers[0].working_dir = Some("/foo/bar/baz".into());
        })
        .await;
    assert!(!said.contains("WROTE"), "{said}");
    assert!(said.contains("/foo/bar/baz") && end.exit_code == 0, "{said} {end:?}");
    world.end().await;
}

async fn restarts_and_backs_off() {
    let world = world(Mode::Container).await;
    let mut spec = pod("crash", &["/bin/busybox", "sh", "-c", "echo run; exit 3"]);
    spec.containers[0].termination_message_from_logs = true;
    let id = world.run(spec).await;
    let waits = |s: &PodStatus| matches!(&s.containers[0].state, ContainerState::Waiting { reason, .. } if reason == "CrashLoopBackOff");
    let status = world.wait(&id, "a crash loop", waits).await;
    assert_eq!(status.containers[0].restarts, 1, "the first restart is immediate");
    let last = status.containers[0].last.clone().expect("it ended");
    assert_eq!((last.exit_code, last.reason.as_str(), last.message.as_str()), (3, "Error", "run"));
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    assert_eq!(world.log(&id, previous).await, "run\n");
    world.end().await;
}

/// Takes a pod, says when it is ready, and waits to be killed.
async fn hold(dir: &Path) {
    let runtime = open_at(dir, Mode::Container).await;
    let mut spec = pod(
        "held",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox httpd -p 8080 -h /www; n=0; while :; do n=$((n+1)); echo tick $n; /bin/busybox usleep 50000; done",
        ],
    );
    spec.containers[0].readiness = Some(probe(http()));
    let id = spec.id.clone();
    runtime.ensure(spec).await.expect("taken");
    runtime.ensure(pod("dying", &["/bin/busybox", "sh", "-c", "/bin/busybox sleep 1; exit 9"])).await.expect("taken");
    runtime.ensure(pod("lost", &["/bin/busybox", "sleep", "1000"])).await.expect("taken");
    wait(&runtime, &id, "readiness", |s| s.ready).await;
    for id in ["uid-dying", "uid-lost"] {
        let runs = |s: &PodStatus| matches!(s.containers[0].state, ContainerState::Running { .. });
        wait(&runtime, &PodId(id.into()), "a run", runs).await;
    }
    println!("ready");
    std::future::pending::<()>().await;
}

/// By a keeper's record.
fn groups_of(run: &serde_json::Value) -> Vec<PathBuf> {
    let (name, base) = (run["group"]["name"].as_str().expect("a name"), run["group"]["base"].as_str().expect("a base"));
    let hierarchies = run["group"]["hierarchies"].as_array().expect("a list").iter();
    hierarchies.map(|h| Path::new(h["mount"].as_str().expect("a path")).join(base).join(name)).collect()
}

async fn survives_the_runtime() {
    let dir = Leftovers::new();
    let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .arg("--hold")
        .arg(dir.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(stdout), &mut line).await.expect("reads");
    assert_eq!(line, "ready\n");
    child.kill().await.expect("killed");
    // The dying one dies unseen, and the held one goes on talking.
    let talk = dir.path().join("logs/test_held_uid-held/user/0.log");
    let ticks = || std::fs::read_to_string(&talk).expect("a log").lines().count();
    let before = ticks();
    let died = dir.path().join("pods/uid-dying/c/user/0/exit.json");
    until("the end of one and the talk of the other", || died.exists() && ticks() > before + 20).await;
    // As if its keeper had been killed before it could clear up; and of the third nobody knows any more what it was.
    let run_of = |id: &str| std::fs::read(dir.path().join("pods").join(id).join("c/user/0/run.json")).expect("there");
    let runs = ["uid-dying", "uid-lost"].map(|id| serde_json::from_slice(&run_of(id)).expect("JSON"));
    let groups: Vec<_> = runs.iter().flat_map(groups_of).collect();
    groups.iter().for_each(|group| std::fs::create_dir_all(group).expect("made"));
    std::fs::remove_file(dir.path().join("pods/uid-lost/spec.json")).expect("removed");

    let world = dir.open().await;
    let id = PodId("uid-held".into());
    let status = world.wait(&id, "adoption", |s| s.ready).await;
    assert_eq!(status.containers[0].restarts, 0, "it was adopted, not started anew");
    until("nobody's groups are gone", || !groups.iter().any(|group| group.exists())).await;
    assert!(get(&status, 8080).await.expect("served").ends_with("hello\n"));
    let ticks = world.log(&id, LogOptions::default()).await;
    let ticks: Vec<_> = ticks.lines().collect();
    assert!(ticks.len() > 20, "the log went on without the runtime: {} lines", ticks.len());
    for (at, tick) in ticks.iter().enumerate() {
        assert_eq!(*tick, format!("tick {}", at + 1), "no line is lost");
    }
    let dying = PodId("uid-dying".into());
    let status = world.wait(&dying, "the restart of what died meanwhile", |s| s.containers[0].restarts >= 1).await;
    assert_eq!(status.containers[0].last.as_ref().map(|t| t.exit_code), Some(9));
    world.end().await;
}

async fn is_killed_for_memory() {
    let world = world(Mode::Container).await;
    let (_, end) = world
        .script("greedy", "exec /bin/busybox tail /dev/zero", |s| {
            s.containers[0].resources.memory_limit = Some(16 << 20);
        })
        .await;
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "OOMKilled"));
    world.end().await;
}

async fn mounts_volumes() {
    let world = world(Mode::Container).await;
    let file = |text: &str| VolumeFile { content: text.as_bytes().to_vec(), mode: 0o640 };
    let mount = |volume: &str, path: &str, sub: Option<&str>, read_only| Mount {
        volume: volume.into(),
        path: path.into(),
        sub_path: sub.map(PathBuf::from),
        read_only,
    };
    let mut spec = pod(
        "vol",
        &["/bin/busybox", "sh", "-c", "while :; do /bin/busybox cat /config/a; /bin/busybox usleep 20000; done"],
    );
    spec.volumes = BTreeMap::from([
        (
            "config".to_owned(),
            Volume::Files(BTreeMap::from([("a".into(), file("one\n")), ("sub/b".into(), file("two\n"))])),
        ),
        ("disk".to_owned(), Volume::EmptyDir { memory: false, size_limit: None }),
        ("ram".to_owned(), Volume::EmptyDir { memory: true, size_limit: Some(1 << 20) }),
    ]);
    spec.containers[0].mounts = vec![mount("config", "/config", None, true), mount("disk", "/disk", None, false)];
    let mut second = container(
        "second",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "P=/bin/busybox; $P cat /one; echo x 2>/dev/null > /config/sub/b && echo WROTE; echo y > /disk/deep/f && $P ls /disk/deep; $P df /ram | $P grep -c 1024; $P id -u > /ram/who; $P sleep 100",
        ],
    );
    second.user = Some(33);
    second.mounts = vec![
        mount("config", "/config", None, true),
        mount("config", "/one", Some("sub/b"), true),
        mount("disk", "/disk/deep", Some("made/by/us"), false),
        mount("ram", "/ram", None, false),
    ];
    second.user = None;
    spec.containers.push(second);
    let id = world.run(spec.clone()).await;
    world.wait(&id, "both to run", |s| s.ready).await;
    world.says_in(&id, "second", "two\nf\n1\n").await;
    spec.volumes.insert("config".to_owned(), Volume::Files(BTreeMap::from([("a".into(), file("changed\n"))])));
    world.runtime.ensure(spec).await.expect("taken");
    let seen = async {
        while !world.log(&id, LogOptions::default()).await.contains("changed") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), seen).await.expect("the running container sees the change");
    world.end().await;
}

async fn runs_init_containers_first() {
    let world = world(Mode::Container).await;
    let mut spec = pod("init", &["/bin/busybox", "sh", "-c", "/bin/busybox cat /shared/f; /bin/busybox sleep 100"]);
    spec.volumes = BTreeMap::from([("s".to_owned(), Volume::EmptyDir { memory: false, size_limit: None })]);
    let mount = Mount { volume: "s".into(), path: "/shared".into(), sub_path: None, read_only: false };
    for (name, script) in
        [("first", "/bin/busybox usleep 100000; echo 1 >> /shared/f"), ("then", "echo 2 >> /shared/f")]
    {
        let mut one = container(name, &["/bin/busybox", "sh", "-c", script]);
        one.mounts.push(mount.clone());
        spec.init_containers.push(one);
    }
    spec.containers[0].mounts.push(mount);
    let id = world.run(spec).await;
    let status = world.wait(&id, "the main container", |s| s.ready).await;
    assert!(
        status.init_containers.iter().all(|c| matches!(&c.state, ContainerState::Terminated(t) if t.exit_code == 0))
    );
    world.says(&id, "1\n2\n").await;
    world.end().await;
}

async fn obeys_probes() {
    let world = world(Mode::Container).await;
    let exec =
        |script: &str| probe(ProbeAction::Exec(vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()]));
    let mut spec = pod(
        "probed",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox usleep 300000; /bin/busybox touch /tmp/ready; /bin/busybox sleep 100",
        ],
    );
    spec.containers[0].startup = Some(Probe { failure_threshold: 30, ..exec("/bin/busybox test -e /tmp/ready") });
    spec.containers[0].liveness = Some(exec("! /bin/busybox test -e /tmp/bad"));
    spec.containers[0].readiness = Some(exec("! /bin/busybox test -e /tmp/busy"));
    let id = world.run(spec).await;
    let status = world.wait(&id, "readiness", |s| s.ready).await;
    assert!(status.containers[0].started);
    let mut spec = pod("unwell", &["/bin/busybox", "sleep", "100"]);
    spec.containers[0].liveness = Some(exec("exit 1"));
    let id = world.run(spec).await;
    let status = world.wait(&id, "a restart by the liveness probe", |s| s.containers[0].restarts > 0).await;
    assert!(status.containers[0].last.is_some());
    world.end().await;
}

async fn ends_gracefully() {
    let world = world(Mode::Container).await;
    let script = "trap 'echo term; /bin/busybox usleep 300000; echo bye; exit 0' TERM; echo up; while :; do /bin/busybox usleep 10000; done";
    let mut spec = pod("polite", &["/bin/busybox", "sh", "-c", script]);
    spec.containers[0].pre_stop = Some(Hook::Act(ProbeAction::Exec(vec![
        "/bin/busybox".into(),
        "sh".into(),
        "-c".into(),
        "echo hook > /proc/1/fd/1".into(),
    ])));
    let id = world.run(spec).await;
    world.wait(&id, "a run", |s| s.ready).await;
    let following =
        world.runtime.logs(&id, "user", LogOptions { follow: true, ..LogOptions::default() }).await.expect("a log");
    world.says(&id, "up\n").await;
    let reading = following.map(|b| b.expect("reads")).collect::<Vec<_>>();
    let (removed, said) = tokio::join!(world.runtime.remove(&id, Duration::from_secs(10)), reading);
    removed.expect("removed");
    assert_eq!(String::from_utf8_lossy(&said.concat()), "up\nhook\nterm\nbye\n");
    let script = "trap 'echo heard' TERM; echo up; while :; do /bin/busybox usleep 10000; done";
    let id = world.run(pod("stubborn", &["/bin/busybox", "sh", "-c", script])).await;
    world.says(&id, "up\n").await;
    let begun = Instant::now();
    let (slow, quick) = tokio::join!(world.runtime.remove(&id, Duration::from_secs(60)), async {
        world.says(&id, "up\nheard\n").await;
        world.runtime.remove(&id, Duration::from_millis(300)).await
    });
    slow.and(quick).expect("removed");
    assert!(begun.elapsed() < Duration::from_secs(5), "the more impatient asker is heard: {:?}", begun.elapsed());
    world.end().await;
}

async fn keeps_two_neaps_apart() {
    let (one, two) = (world(Mode::Container).await, world(Mode::Container).await);
    let (a, b) = (one.run(web("same")).await, two.run(web("same")).await);
    let a = one.wait(&a, "readiness", |s| s.ready).await;
    let b = two.wait(&b, "readiness", |s| s.ready).await;
    assert_ne!(a.ip, b.ip);
    assert_ne!(one.runtime.gateway(), two.runtime.gateway());
    assert!(get(&a, 8080).await.is_ok() && get(&b, 8080).await.is_ok());
    one.end().await;
    assert!(get(&b, 8080).await.is_ok(), "the other lives on");
    two.end().await;
}

/// The spawner of this process: its child that is not a keeper.
fn spawner() -> i32 {
    let children = std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
    let children: Vec<i32> = children
        .flat_map(|task| {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .collect();
    let is_spawner =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "pod-spawner");
    children.into_iter().find(is_spawner).expect("a spawner runs")
}

async fn outlives_its_spawner() {
    let world = world(Mode::Container).await;
    let before = world.run(web("before")).await;
    world.wait(&before, "readiness", |s| s.ready).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawner()), nix::sys::signal::SIGKILL).expect("killed");
    for name in ["a", "b", "c", "d", "e", "f"] {
        let id = world.run(web(name)).await;
        world.wait(&id, "readiness", |s| s.ready).await;
    }
    let status = world.runtime.status(&before).expect("there");
    assert!(status.ready && status.containers[0].restarts == 0);
    world.end().await;
}

async fn shares_what_is_asked_for() {
    let world = world(Mode::Container).await;
    // The first one ends again and again; that is no affair of the others'.
    let mut spec = pod("shared", &["/bin/busybox", "sh", "-c", "/bin/busybox usleep 300000; exit 1"]);
    spec.share_process_namespace = true;
    let look = "P=/bin/busybox; until $P grep -q '[3]00000' /proc/[0-9]*/cmdline 2>/dev/null; do $P usleep 10000; done; echo sees; [ $$ != 1 ] && echo other; \
        $P cat /proc/1/comm; $P ls /proc/1/root/ 2>/dev/null; ($P true & exec $P usleep 100000); exec $P sleep 100";
    spec.containers.push(container("other", &["/bin/busybox", "sh", "-c", look]));
    let id = world.run(spec).await;
    let status = world.wait(&id, "the first one's restart", |s| s.containers[0].restarts > 0).await;
    assert_eq!(status.containers[1].restarts, 0, "it lives on");
    world.says_in(&id, "other", "sees\nother\npod-init\n").await;
    let record = world.dir.path().join("pods/uid-shared/c/.pids/0/run.json");
    let read = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&record).expect("there")).expect("JSON");
    let first = read();
    for who in ["keeper", "process"] {
        let pid = i32::try_from(first[who]["pid"].as_i64().expect("a number")).expect("small");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("killed");
    }
    until("there is another holder", || read()["process"]["pid"] != first["process"]["pid"]).await;
    until("the group of the first is gone", || !groups_of(&first).iter().any(|group| group.exists())).await;
    let holder = format!("/proc/{}/status", read()["process"]["pid"]);
    let about = std::fs::read_to_string(&holder).expect("it lives");
    assert!(about.contains("Uid:\t65534\t65534") && about.contains("CapBnd:\t0000000000000000"), "{about}");
    world.runtime.remove(&id, Duration::ZERO).await.expect("removed");
    until("the holder of the processes is gone", || !Path::new(&holder).exists()).await;
    let mut spec = pod(
        "host",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox ip -o link | /bin/busybox grep -q neap && echo sees; exec /bin/busybox sleep 100",
        ],
    );
    spec.host_network = true;
    let id = world.run(spec).await;
    world.says(&id, "sees\n").await;
    world.end().await;
}

async fn runs_rootless() {
    let world = world(Mode::Rootless).await;
    assert!(world.runtime.describe().starts_with("rootless"), "{}", world.runtime.describe());
    let mut spec = pod(
        "rootless",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "echo pid $$; /bin/busybox hostname; exec /bin/busybox httpd -f -p $PORT -h /www",
        ],
    );
    spec.containers[0].readiness = Some(probe(http()));
    let id = world.run(spec).await;
    let status = world.wait(&id, "readiness", |s| s.ready).await;
    assert!(get(&status, 0).await.expect("served").ends_with("hello\n"));
    world.says(&id, "pid 1\nrootless-host\n").await;
    world.end().await;
}

async fn runs_as_a_process() {
    let world = world(Mode::Process).await;
    assert!(world.runtime.describe().contains("NO ISOLATION"), "{}", world.runtime.describe());
    let mut spec = pod(
        "process",
        &["/bin/busybox", "sh", "-c", "echo port $PORT; exec /usr/bin/busybox httpd -f -p 127.0.0.1:$PORT -h /"],
    );
    spec.containers[0].readiness = Some(probe(ProbeAction::Tcp { port: 8080 }));
    let id = world.run(spec).await;
    let status = world.wait(&id, "readiness", |s| s.ready).await;
    let port = status.ports["user-port"];
    world.says(&id, &format!("port {port}\n")).await;
    assert!(get(&status, 0).await.is_ok());
    world.runtime.remove(&id, Duration::from_secs(5)).await.expect("removed");
    assert!(get(&status, 0).await.is_err());
    world.end().await;
}

async fn says_what_cannot_run() {
    let world = world(Mode::Container).await;
    let (_, end) = world.script("missing", "", |s| s.containers[0].command = vec!["/no/such/program".into()]).await;
    assert_eq!((end.exit_code, end.reason.as_str()), (128, "StartError"));
    assert!(end.message.contains("/no/such/program"), "{}", end.message);
    let mut spec = pod("root", &["/bin/busybox", "true"]);
    spec.containers[0].run_as_non_root = true;
    let id = world.run(spec).await;
    let waits = |wanted: &'static str| move |s: &PodStatus| matches!(&s.containers[0].state, ContainerState::Waiting { reason, .. } if reason == wanted);
    world.wait(&id, "the refusal", waits("CreateContainerConfigError")).await;
    let mut spec = pod("nowhere", &["/bin/busybox", "true"]);
    spec.containers[0].image = "example.test/none:1".into();
    spec.containers[0].pull = PullPolicy::Never;
    let id = world.run(spec).await;
    world.wait(&id, "the pull's refusal", waits("ErrImageNeverPull")).await;
    let begun = Instant::now();
    world.runtime.remove(&id, Duration::from_secs(20)).await.expect("removed");
    assert!(begun.elapsed() < Duration::from_secs(2));
    world.end().await;
}
