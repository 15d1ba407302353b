//! Whole lives of pods on a machine that only pretends, with a clock that jumps.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::state::{Loaded, PodCell};
use super::*;
use crate::image::ImageConfig;
use crate::launch::Launch;
use crate::machine::{CommandOutput, Handle, Sandbox};
use crate::pod::*;
use crate::record::{Exit, ProcessId, Run, VERSION};
use crate::spawner::wire::StartError;

/// How a container behaves, run by run; the last behaviour repeats.
#[derive(Clone, Debug)]
enum Act {
    /// Ends by itself.
    Ends {
        after: Duration,
        code: i32,
    },
    /// Runs until a signal it obeys.
    Runs {
        hears_term: bool,
    },
    CannotStart,
    /// Our own code fails.
    Faulty,
}

/// A container at play, and the signal that ended it.
type Playing = (Act, watch::Sender<Option<i32>>);

#[derive(Default)]
struct Fake {
    acts: Mutex<BTreeMap<String, VecDeque<Act>>>,
    /// What was done, in order.
    events: Mutex<Vec<String>>,
    running: Mutex<BTreeMap<i32, Playing>>,
    /// Network probes succeed from then on.
    well_at: Mutex<Option<Instant>>,
    probes: Mutex<u32>,
    /// Sandboxes of an earlier life are not what they were.
    strange: Mutex<bool>,
}

impl Fake {
    fn note(&self, event: impl Into<String>) {
        self.events.lock().expect("not poisoned").push(event.into());
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().expect("not poisoned").clone()
    }
}

fn exit(code: i32, ran: Duration) -> Exit {
    let started = jiff::Timestamp::UNIX_EPOCH;
    let finished = started.saturating_add(ran).expect("in range");
    let signal = (code > 128).then_some(code - 128);
    Exit { version: VERSION, code, signal, oom_killed: false, started: Some(started), finished, error: None }
}

impl Machine for Fake {
    fn open_sandbox(&self, _: bool, _: bool) -> BoxFuture<'_, io::Result<Sandbox>> {
        self.note("sandbox");
        Box::pin(async { Ok(Sandbox { dir: None, address: Ipv4Addr::new(198, 19, 0, 2), cable: None, users: None }) })
    }

    fn close_sandbox<'a>(&'a self, _: &'a Sandbox) -> BoxFuture<'a, io::Result<()>> {
        self.note("sandbox closed");
        Box::pin(async { Ok(()) })
    }

    fn adopt_sandbox(&self, _: &Sandbox) -> bool {
        !*self.strange.lock().expect("not poisoned")
    }

    fn start<'a>(
        &'a self,
        dir: &'a Path,
        launch: Launch,
        _: Option<i32>,
    ) -> BoxFuture<'a, io::Result<Result<Handle, StartError>>> {
        let name = launch.process.argv[0].clone();
        self.note(format!("start {name}"));
        let act = {
            let mut acts = self.acts.lock().expect("not poisoned");
            let acts = acts.get_mut(&name).expect("a script for each container");
            if acts.len() > 1 { acts.pop_front() } else { acts.front().cloned() }.expect("an act")
        };
        Box::pin(async move {
            if matches!(act, Act::CannotStart) {
                return Ok(Err(StartError { config: false, message: "no such program".into() }));
            }
            assert!(!matches!(act, Act::Faulty), "as the script says");
            crate::record::write(&dir.join("launch.json"), &launch)?;
            let mut running = self.running.lock().expect("not poisoned");
            let pid = running.len() as i32 + 1;
            running.insert(pid, (act, watch::Sender::new(None)));
            let id = ProcessId { pid, start: 0 };
            let run = Run {
                version: VERSION,
                boot: crate::record::boot_id(),
                keeper: id,
                process: id,
                isolation: Isolation::Full,
                group: None,
                started: jiff::Timestamp::UNIX_EPOCH,
            };
            crate::record::write(&dir.join("run.json"), &run)?;
            Ok(Ok(Handle { run, dir: dir.to_owned() }))
        })
    }

    fn abandon(&self, run: &Run) {
        self.note(format!("abandon {}", run.process.pid));
    }

    fn talk<'a>(&'a self, _: &'a Handle, _: &'a CommandOptions) -> BoxFuture<'a, io::Result<CommandSession>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn attach<'a>(&'a self, _: &'a Handle, _: bool) -> BoxFuture<'a, io::Result<CommandSession>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a Sandbox, _: u16) -> BoxFuture<'a, io::Result<tokio::net::TcpStream>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn ended<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Exit> {
        let (act, killed) = {
            let running = self.running.lock().expect("not poisoned");
            let (act, killed) = &running[&handle.run.process.pid];
            (act.clone(), killed.subscribe())
        };
        Box::pin(async move {
            let mut killed = killed;
            let begun = Instant::now();
            let by_itself = async {
                match act {
                    Act::Ends { after, code } => {
                        sleep(after).await;
                        code
                    }
                    _ => std::future::pending().await,
                }
            };
            let code = tokio::select! {
                code = by_itself => code,
                signal = killed.wait_for(Option::is_some) => 128 + signal.expect("held").expect("some"),
            };
            exit(code, begun.elapsed())
        })
    }

    fn signal(&self, handle: &Handle, signal: i32) -> io::Result<()> {
        self.note(format!("signal {signal}"));
        let running = self.running.lock().expect("not poisoned");
        let (act, killed) = &running[&handle.run.process.pid];
        if signal == libc::SIGKILL || matches!(act, Act::Runs { hears_term: true }) {
            killed.send_replace(Some(signal));
        }
        Ok(())
    }

    fn end_if_deaf(&self, _: &Handle, _: i32) -> io::Result<()> {
        Ok(())
    }

    fn hold_pids<'a>(&'a self, _: &'a Path, _: &'a [PathBuf]) -> BoxFuture<'a, io::Result<i32>> {
        self.note("hold pids");
        Box::pin(async { Ok(1) })
    }

    fn exec<'a>(&'a self, _: &'a Handle, argv: &'a [String], _: Duration) -> BoxFuture<'a, io::Result<CommandOutput>> {
        self.note(format!("exec {}", argv.join(" ")));
        Box::pin(async move {
            let code = argv.last().and_then(|a| a.parse().ok()).unwrap_or(0);
            Ok(CommandOutput { code, output: String::new() })
        })
    }

    fn probe<'a>(&'a self, _: Ipv4Addr, _: &'a ProbeAction, _: Duration) -> BoxFuture<'a, Result<(), String>> {
        *self.probes.lock().expect("not poisoned") += 1;
        let well = self.well_at.lock().expect("not poisoned").is_some_and(|at| Instant::now() >= at);
        Box::pin(async move { if well { Ok(()) } else { Err("not well".to_owned()) } })
    }
}

/// Fails so often before the image is there, and as long as somebody without a password asks who must have one.
#[derive(Default)]
struct Registry {
    fails: Mutex<u32>,
    private: bool,
}

impl ImageSource for Registry {
    fn ensure<'a>(
        &'a self,
        reference: &'a str,
        _: PullPolicy,
        credentials: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Image, PullFault>> {
        let mut left = self.fails.lock().expect("not poisoned");
        let fails = *left > 0 || self.private && credentials.is_empty();
        *left = left.saturating_sub(1);
        Box::pin(async move {
            if fails {
                return Err(PullFault { reason: "ErrImagePull".into(), message: "away".into() });
            }
            Ok(Image {
                reference: reference.to_owned(),
                digest: "sha256:1".into(),
                id: format!("{reference}@sha256:1"),
                config: ImageConfig::default(),
                layers: vec!["/layers/1".into()],
            })
        })
    }
}

struct Stage {
    fake: Arc<Fake>,
    world: Arc<World>,
    cell: Arc<PodCell>,
    _dir: tempfile::TempDir,
    tasks: JoinSet<()>,
}

fn probe(action: ProbeAction, period: u64, failures: u32) -> Probe {
    Probe {
        action,
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(period),
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: failures,
        grace: None,
    }
}

fn container(name: &str) -> ContainerSpec {
    ContainerSpec { name: name.into(), image: "app".into(), command: vec![name.into()], ..ContainerSpec::default() }
}

/// Puts a pod with containers `init` (of the names that begin with "init") and others on a fake machine.
fn stage(acts: &[(&str, &[Act])], pulls_fail: u32, change: impl FnOnce(&mut PodSpec)) -> Stage {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let of =
        |init: bool| acts.iter().map(|(n, _)| *n).filter(|n| n.starts_with("init") == init).map(container).collect();
    let mut spec = PodSpec {
        id: PodId("u".into()),
        name: "p".into(),
        namespace: "n".into(),
        hostname: "p".into(),
        init_containers: of(true),
        containers: of(false),
        grace: Duration::from_secs(30),
        ..PodSpec::default()
    };
    change(&mut spec);
    let fake = Arc::new(Fake::default());
    *fake.acts.lock().expect("not poisoned") =
        acts.iter().map(|(name, acts)| ((*name).to_owned(), acts.iter().cloned().collect())).collect();
    let logs = dir.path().join("logs");
    let world = Arc::new(World {
        machine: fake.clone(),
        images: Arc::new(Registry {
            fails: Mutex::new(pulls_fail),
            private: acts.iter().any(|(n, _)| *n == "private"),
        }),
        isolation: Isolation::Full,
        logs: Arc::new(Shelf::new(logs.clone(), dir.path().to_owned())),
        profiles: PathBuf::new(),
    });
    let (changes, _) = broadcast::channel(1024);
    let cell = PodCell::create(dir.path().join("u"), logs.join("n_p_u"), spec, changes).expect("written down");
    let mut tasks = JoinSet::new();
    let (living, lives_in) = (cell.clone(), world.clone());
    tasks.spawn(async move { pod::live_on(&world, &living).await });
    Stage { fake, world: lives_in, cell, _dir: dir, tasks }
}

impl Stage {
    async fn wait(&self, reached: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let looking = async {
            loop {
                let status = self.cell.status();
                if reached(&status) {
                    return status;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(3600), looking).await.unwrap_or_else(|_| panic!("it is {:#?}", self.cell.status()))
    }

    /// The runtime goes and comes again; what runs runs on.
    async fn restart(&mut self) {
        self.tasks.shutdown().await;
        let (changes, _) = broadcast::channel(1024);
        let loaded = PodCell::load(&self.cell.dir, &self.world.logs, changes).expect("readable");
        let Loaded::Pod(cell) = loaded else { panic!("there is a pod") };
        self.cell = cell;
        let (world, living) = (self.world.clone(), self.cell.clone());
        self.tasks.spawn(async move { pod::live_on(&world, &living).await });
    }

    /// Asks for the pod's end and waits for it.
    async fn remove(mut self, grace: u64) -> (Vec<String>, Duration) {
        let begun = Instant::now();
        let deadline = crate::clock::now().saturating_add(Duration::from_secs(grace)).expect("in range");
        self.cell.remove(deadline);
        self.tasks.join_next().await.expect("one").expect("no panic");
        assert!(!self.cell.dir.exists(), "nothing is left but logs");
        (self.fake.events(), begun.elapsed())
    }
}

fn reason(status: &PodStatus) -> &str {
    match &status.containers[0].state {
        ContainerState::Waiting { reason, .. } => reason,
        _ => "",
    }
}

const POLITE: &[Act] = &[Act::Runs { hears_term: true }];
const TCP: ProbeAction = ProbeAction::Tcp { port: 80 };

#[tokio::test(start_paused = true)]
async fn a_pod_comes_and_goes() {
    let stage = stage(
        &[
            ("init-a", &[Act::Ends { after: Duration::from_secs(1), code: 0 }]),
            ("init-b", &[Act::Ends { after: Duration::from_secs(1), code: 0 }]),
            ("main", POLITE),
            ("side", POLITE),
        ],
        0,
        |_| {},
    );
    assert_eq!(stage.cell.status().phase, PodPhase::Pending);
    let status = stage.wait(|s| s.ready).await;
    assert_eq!(status.containers[0].image_id, "app@sha256:1");
    let (events, _) = stage.remove(10).await;
    assert_eq!(
        events,
        [
            "sandbox",
            "start init-a",
            "start init-b",
            "start main",
            "start side",
            "signal 15",
            "signal 15",
            "sandbox closed"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_hears_nothing_is_killed_when_its_time_is_up() {
    let stage = stage(&[("main", &[Act::Runs { hears_term: false }])], 0, |spec| {
        spec.containers[0].pre_stop = Some(Hook::Act(ProbeAction::Exec(vec!["hook".into()])));
    });
    stage.wait(|s| s.ready).await;
    let (events, took) = stage.remove(10).await;
    assert_eq!(events[2..], ["exec hook", "signal 15", "signal 9", "sandbox closed"]);
    assert!((9..12).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_liveness_ends_runs_again_only_by_the_policy() {
    let check = async |policy, expected| {
        let stage = stage(&[("main", POLITE)], 0, |spec| {
            spec.restart = policy;
            spec.containers[0].liveness = Some(Probe { grace: Some(Duration::from_secs(3)), ..probe(TCP, 10, 1) });
        });
        let status = stage.wait(|s| s.containers[0].restarts > 0 || s.phase == PodPhase::Failed).await;
        assert_eq!(status.phase, expected, "{policy:?}");
    };
    check(RestartPolicy::Always, PodPhase::Running).await;
    check(RestartPolicy::OnFailure, PodPhase::Running).await;
    check(RestartPolicy::Never, PodPhase::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_may_have_a_grace_of_its_own() {
    let stage = stage(&[("main", &[Act::Runs { hears_term: false }, Act::Runs { hears_term: true }])], 0, |spec| {
        spec.containers[0].liveness = Some(Probe { grace: Some(Duration::from_secs(2)), ..probe(TCP, 10, 2) });
    });
    let begun = Instant::now();
    let status = stage.wait(|s| s.containers[0].trouble.is_some()).await;
    let said = |status: &PodStatus| match &status.containers[0].trouble {
        Some(Trouble::Unhealthy(why) | Trouble::Ending(why)) => why.clone(),
        None => String::new(),
    };
    assert_eq!(said(&status), "Liveness probe failed: not well");
    let status = stage.wait(|s| matches!(s.containers[0].trouble, Some(Trouble::Ending(_)))).await;
    assert_eq!(said(&status), "Container main failed liveness probe, will be restarted: not well");
    stage.wait(|s| s.containers[0].restarts == 1).await;
    assert!((21..24).contains(&begun.elapsed().as_secs()), "the pod's own is 30 s: {:?}", begun.elapsed());
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_has_failed_and_waits_to_be_removed() {
    let stage = stage(&[("main", POLITE), ("side", &[Act::Runs { hears_term: false }])], 0, |_| {});
    stage.wait(|s| s.ready).await;
    stage.cell.evict("too much".into(), crate::clock::now());
    let ended = |s: &PodStatus| s.containers.iter().all(|c| matches!(c.state, ContainerState::Terminated(_)));
    let status = stage.wait(ended).await;
    assert_eq!((status.phase, status.ready, status.evicted.as_deref()), (PodPhase::Failed, false, Some("too much")));
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(stage.cell.status().containers[0].restarts, 0);
    let (events, _) = stage.remove(10).await;
    assert_eq!(events.iter().filter(|e| e.starts_with("start")).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn crashes_are_restarted_ever_later() {
    let stage = stage(&[("main", &[Act::Ends { after: Duration::from_secs(1), code: 1 }])], 0, |_| {});
    let begun = Instant::now();
    let mut at = Vec::new();
    for restarts in 1..5 {
        stage.wait(|s| s.containers[0].restarts == restarts).await;
        at.push(begun.elapsed().as_secs());
    }
    // Each run takes a second; the waits between are 0, 10, 20, 40.
    assert_eq!(at, [1, 12, 33, 74]);
    let status = stage.wait(|s| reason(s) == "CrashLoopBackOff").await;
    assert_eq!(status.phase, PodPhase::Running);
    assert_eq!(status.containers[0].last.as_ref().map(|t| (t.exit_code, t.reason.as_str())), Some((1, "Error")));
    let (_, took) = stage.remove(10).await;
    assert!(took < Duration::from_secs(1), "a waiting container needs no grace");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_a_run_that_failed() {
    let stage = stage(&[("main", &[Act::CannotStart])], 0, |spec| spec.restart = RestartPolicy::Never);
    let status = stage.wait(|s| s.phase == PodPhase::Failed).await;
    let ContainerState::Terminated(end) = &status.containers[0].state else { panic!("it ended") };
    assert_eq!((end.exit_code, end.reason.as_str(), end.message.as_str()), (128, "StartError", "no such program"));
}

#[tokio::test(start_paused = true)]
async fn a_life_that_breaks_off_is_taken_up_again() {
    let stage = stage(&[("main", &[Act::Faulty, Act::Runs { hears_term: true }]), ("side", POLITE)], 0, |_| {});
    stage.wait(|s| s.ready).await;
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn policies_end_pods() {
    let check = async |policy, code, expected| {
        let stage = stage(&[("main", &[Act::Ends { after: Duration::from_secs(1), code }])], 0, |s| s.restart = policy);
        let status = stage.wait(|s| matches!(s.phase, PodPhase::Succeeded | PodPhase::Failed)).await;
        assert_eq!((status.phase, status.ready), (expected, false));
    };
    check(RestartPolicy::Never, 0, PodPhase::Succeeded).await;
    check(RestartPolicy::Never, 3, PodPhase::Failed).await;
    check(RestartPolicy::OnFailure, 0, PodPhase::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn pulls_are_tried_again_and_say_so() {
    let stage = stage(&[("main", POLITE)], 2, |_| {});
    let begun = Instant::now();
    stage.wait(|s| reason(s) == "ErrImagePull").await;
    stage.wait(|s| reason(s) == "ImagePullBackOff").await;
    stage.wait(|s| s.ready).await;
    assert_eq!(begun.elapsed().as_secs(), 30, "10 s, then 20 s");
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn readiness_is_asked_eagerly_then_calmly() {
    let stage = stage(&[("main", POLITE)], 0, |spec| spec.containers[0].readiness = Some(probe(TCP, 10, 3)));
    *stage.fake.well_at.lock().expect("not poisoned") = Some(Instant::now() + Duration::from_millis(40));
    let begun = Instant::now();
    stage.wait(|s| s.ready).await;
    assert!((40..45).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let asked = *stage.fake.probes.lock().expect("not poisoned");
    assert!((35..=45).contains(&asked), "{asked}");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(*stage.fake.probes.lock().expect("not poisoned") - asked, 10);
    *stage.fake.well_at.lock().expect("not poisoned") = None;
    let begun = Instant::now();
    let status = stage.wait(|s| !s.ready).await;
    assert!((20..=30).contains(&begun.elapsed().as_secs()), "three failures in a row: {:?}", begun.elapsed());
    assert_eq!(status.containers[0].restarts, 0);
    assert_eq!(status.containers[0].trouble, Some(Trouble::Unhealthy("Readiness probe failed: not well".into())));
    *stage.fake.well_at.lock().expect("not poisoned") = Some(Instant::now());
    assert_eq!(stage.wait(|s| s.ready).await.containers[0].trouble, None);
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_is_not_taken_for_death() {
    let stage = stage(&[("main", POLITE)], 0, |spec| {
        spec.containers[0].startup = Some(probe(TCP, 10, 3));
        spec.containers[0].liveness = Some(probe(TCP, 10, 1));
    });
    *stage.fake.well_at.lock().expect("not poisoned") = Some(Instant::now() + Duration::from_secs(25));
    let status = stage.wait(|s| s.ready).await;
    assert_eq!((status.containers[0].restarts, status.containers[0].started), (0, true));
    *stage.fake.well_at.lock().expect("not poisoned") = None;
    let status = stage.wait(|s| s.containers[0].restarts == 1).await;
    assert_eq!(status.containers[0].last.as_ref().map(|t| t.exit_code), Some(143), "liveness ended it");
    // It does not start now: three periods, then it is ended again.
    stage.wait(|s| s.containers[0].restarts == 2).await;
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_init_container_that_fails_holds_the_rest_back() {
    let crash =
        &[Act::Ends { after: Duration::from_secs(1), code: 1 }, Act::Ends { after: Duration::from_secs(1), code: 0 }];
    let stage = stage(&[("init", crash), ("main", POLITE)], 0, |_| {});
    let status = stage.wait(|s| s.init_containers[0].restarts == 1).await;
    assert_eq!((status.phase, reason(&status)), (PodPhase::Pending, "PodInitializing"));
    stage.wait(|s| s.ready).await;
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_written_down_is_found_again() {
    let stage = stage(&[("main", &[Act::Ends { after: Duration::from_secs(1), code: 1 }])], 0, |_| {});
    stage.wait(|s| s.containers[0].restarts == 2).await;
    let load = || {
        let shelf = Shelf::new("/logs".into(), PathBuf::new());
        PodCell::load(&stage.cell.dir, &shelf, broadcast::channel(1).0)
    };
    let Loaded::Pod(again) = load().expect("readable") else { panic!("there is a pod") };
    let (was, is) = (stage.cell.status(), again.status());
    assert_eq!((is.containers[0].restarts, &is.containers[0].last), (2, &was.containers[0].last));
    assert_eq!((is.ip, is.started), (was.ip, was.started));
    assert_eq!(again.log_dir, Path::new("/logs/n_p_u"));
    let spec = stage.cell.dir.join("spec.json");
    let whole = std::fs::read_to_string(&spec).expect("there");
    std::fs::write(&spec, "{ torn").expect("written");
    assert!(matches!(load(), Ok(Loaded::Nothing)));
    std::fs::write(&spec, r#"{"version": 9, "spec": {"of": "tomorrow"}}"#).expect("written");
    assert!(matches!(load(), Ok(Loaded::Foreign(9))), "it is not ours to remove");
    std::fs::write(&spec, whole).expect("written");
    std::fs::create_dir(stage.cell.dir.join("state.999.json")).expect("made");
    assert!(load().is_err(), "what cannot be read now may be whole");
}

#[tokio::test(start_paused = true)]
async fn what_probes_said_outlives_the_runtime() {
    let mut stage = stage(&[("main", POLITE)], 0, |spec| {
        spec.containers[0].startup = Some(probe(TCP, 10, 3));
        spec.containers[0].readiness = Some(probe(TCP, 10, 3));
        spec.containers[0].liveness = Some(probe(TCP, 1000, 3));
    });
    let well = |at: Option<Instant>| *stage.fake.well_at.lock().expect("not poisoned") = at;
    well(Some(Instant::now()));
    stage.wait(|s| s.ready).await;
    // Nobody is asked anew before it counts: a probe that fails once or twice takes nothing back.
    well(None);
    stage.restart().await;
    let begun = Instant::now();
    let status = stage.wait(|s| s.ready).await;
    assert!(status.containers[0].started && begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    stage.wait(|s| !s.ready).await;
    assert_eq!(begun.elapsed().as_secs() / 10, 2, "three failures in a row");
    stage.restart().await;
    sleep(Duration::from_secs(1)).await;
    assert!(!stage.cell.status().ready, "what was not ready is not");
    assert!(stage.cell.status().containers[0].started);
    stage.remove(1).await;
}

/// Their layers must stay while it runs, and in the record of a platform that was started anew.
#[tokio::test(start_paused = true)]
async fn a_container_tells_which_images_are_its_volumes() {
    let mut stage = stage(&[("main", POLITE)], 0, |spec| {
        let (reference, credentials) = ("data:latest".to_owned(), Vec::new());
        spec.volumes.insert("v".into(), Volume::Image { reference, pull: PullPolicy::IfNotPresent, credentials });
        spec.containers[0].mounts.push(Mount {
            volume: "v".into(),
            path: "/data".into(),
            sub_path: None,
            read_only: true,
        });
    });
    stage.wait(|s| s.ready).await;
    stage.restart().await;
    assert_eq!(stage.cell.status().containers[0].volume_images, ["data:latest@sha256:1"]);
    stage.remove(10).await;
}

#[tokio::test(start_paused = true)]
async fn an_ended_pod_holds_nothing_but_its_record() {
    let ends = &[Act::Ends { after: Duration::from_secs(1), code: 0 }];
    let mut stage = stage(&[("main", ends)], 0, |spec| {
        spec.restart = RestartPolicy::Never;
        spec.volumes.insert("v".into(), Volume::EmptyDir { memory: false, size_limit: None });
    });
    stage.wait(|s| s.phase == PodPhase::Succeeded && s.ip.is_none()).await;
    stage.restart().await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(stage.fake.events(), ["sandbox", "start main", "sandbox closed"]);
    assert!(!stage.cell.dir.join("volumes").exists() && stage.cell.dir.join("spec.json").exists());
    let status = stage.cell.status();
    assert!(matches!(&status.containers[0].state, ContainerState::Terminated(t) if t.exit_code == 0));
    let (events, _) = stage.remove(10).await;
    assert_eq!(events.len(), 3, "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn who_shares_processes_lives_with_a_process_of_the_pods() {
    let stage = stage(&[("main", POLITE), ("side", POLITE)], 0, |spec| spec.share_process_namespace = true);
    stage.wait(|s| s.ready).await;
    let (events, _) = stage.remove(1).await;
    assert_eq!(events.iter().filter(|e| *e == "hold pids").count(), 2, "each asks for it, none waits for another");
}

#[tokio::test(start_paused = true)]
async fn new_credentials_end_a_wait_for_an_image() {
    let stage = stage(&[("private", POLITE)], 0, |_| {});
    stage.wait(|s| reason(s) == "ImagePullBackOff").await;
    let mut spec = (*stage.cell.spec()).clone();
    let key = Credentials { registry: "r".into(), username: "me".into(), password: "secret".into() };
    spec.containers[0].credentials = vec![key];
    let begun = Instant::now();
    stage.cell.replace_spec(spec).expect("written down");
    stage.wait(|s| s.ready).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_adopted_only_with_its_network() {
    let mut stage = stage(&[("main", POLITE)], 0, |_| {});
    stage.wait(|s| s.ready).await;
    stage.restart().await;
    stage.wait(|s| s.ready).await;
    assert_eq!(stage.fake.events(), ["sandbox", "start main"], "it was adopted");
    *stage.fake.strange.lock().expect("not poisoned") = true;
    stage.restart().await;
    let status = stage.wait(|s| s.ready && s.containers[0].restarts == 1).await;
    assert_eq!(status.containers[0].last.as_ref().map(|t| t.exit_code), Some(255));
    // Once because its network is gone, and once because it has ended: its keeper may not have cleared up.
    assert_eq!(stage.fake.events()[2..], ["abandon 1", "sandbox", "abandon 1", "start main"]);
    stage.remove(1).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_begun_leaves_nothing_behind() {
    let stage = stage(&[("main", POLITE)], 0, |spec| {
        spec.containers[0].seccomp = Seccomp::Local("../elsewhere".into());
    });
    stage.wait(|s| reason(s) == "CreateContainerConfigError").await;
    sleep(Duration::from_secs(100)).await;
    let tries = stage.cell.dir.join("c/main");
    assert_eq!(std::fs::read_dir(&tries).map_or(0, Iterator::count), 0);
    assert_eq!(stage.cell.read(|s| s.record.containers["main"].runs), 0);
    stage.remove(1).await;
}

#[test]
fn volumes_show_the_newest_files_whoever_prepares_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let spec = |n: u32| {
        let file = VolumeFile { content: n.to_string().into_bytes(), mode: 0o644 };
        PodSpec {
            id: PodId("u".into()),
            containers: vec![container("main")],
            volumes: [("v".to_owned(), Volume::Files([("key".into(), file)].into()))].into(),
            ..PodSpec::default()
        }
    };
    let (changes, _) = broadcast::channel(1);
    let cell = PodCell::create(dir.path().join("u"), dir.path().join("l"), spec(0), changes).expect("written down");
    // A container starts again and again while its config-map changes.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                cell.prepare_volumes(false).expect("prepared by a start");
            }
        });
        for n in 1..300 {
            cell.replace_spec(spec(n)).expect("taken");
            cell.prepare_volumes(false).expect("prepared by a change");
            let shown = std::fs::read_to_string(cell.dir.join("volumes/v/key")).expect("there");
            assert_eq!(shown, n.to_string());
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        starts.join().expect("no panic");
    });
}
