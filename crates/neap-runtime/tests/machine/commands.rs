//! Commands in running containers: streams, terminals, ends.

use std::time::Duration;

use neap_runtime::Mode;
use neap_runtime::pod::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::words::pod;
use crate::{PATIENCE, World, world};

async fn sleeping(world: &World) -> PodId {
    let mut spec = pod("busy", &["/bin/busybox", "sleep", "1000"]);
    spec.containers[0].user = Some(1000);
    let id = world.run(spec).await;
    world.wait(&id, "a run", |s| s.ready).await;
    id
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
}

async fn begin(world: &World, id: &PodId, command: CommandOptions) -> CommandSession {
    world.runtime.exec(id, "user", command).await.unwrap_or_else(|error| panic!("{error:?}"))
}

async fn all(mut stream: impl AsyncReadExt + Unpin) -> String {
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("an end").expect("reads");
    text
}

pub(crate) async fn talks_with_a_command() {
    let world = world(Mode::Container).await;
    let id = sleeping(&world).await;
    let script = "/bin/busybox id -u; echo $GIVEN $HOSTNAME; /bin/busybox cat; echo oops >&2; exit 7";
    let mut session = begin(&world, &id, CommandOptions { argv: shell(script), stdin: true, terminal: false }).await;
    let mut stdin = session.stdin.take().expect("asked for");
    stdin.write_all(b"typed\n").await.expect("written");
    drop(stdin);
    assert_eq!(all(session.stdout).await, "1000\nvalue busy-host\ntyped\n");
    assert_eq!(all(session.stderr.expect("apart")).await, "oops\n");
    assert_eq!(session.exit.await.expect("known"), 7);

    let script = "/bin/busybox tty; read line; /bin/busybox stty size; echo got $line; exit 3";
    let command = CommandOptions { argv: shell(script), stdin: true, terminal: true };
    let mut session = begin(&world, &id, command).await;
    session.resize.as_ref().expect("a terminal")(33, 101).expect("sized");
    session.stdin.take().expect("asked for").write_all(b"me\r").await.expect("written");
    let shown = all(session.stdout).await;
    assert!(shown.contains("/dev/pts/") && shown.contains("33 101") && shown.contains("got me"), "{shown:?}");
    assert_eq!(session.exit.await.expect("known"), 3);

    // What the container was given may be more than one message to the spawner holds.
    let mut spec = pod("large", &["/bin/busybox", "sleep", "1000"]);
    spec.containers[0].env.extend((0..40).map(|n| (format!("LARGE_{n}"), "x".repeat(8 << 10))));
    let large = world.run(spec).await;
    world.wait(&large, "a run", |s| s.ready).await;
    let argv = shell("echo ${#LARGE_0} ${#LARGE_39}");
    let session = begin(&world, &large, CommandOptions { argv, ..CommandOptions::default() }).await;
    assert_eq!(all(session.stdout).await, "8192 8192\n");

    let missing =
        begin(&world, &id, CommandOptions { argv: vec!["/no/such".into()], ..CommandOptions::default() }).await;
    assert!(all(missing.stderr.expect("apart")).await.contains("/no/such"));
    assert_eq!(missing.exit.await.expect("known"), 126);
    let nobody = world.runtime.exec(&id, "nobody", CommandOptions::default()).await;
    assert!(matches!(nobody, Err(Error::NoSuchContainer { .. })));
    world.end().await;
}

pub(crate) async fn joins_every_kind_of_container() {
    for mode in [Mode::Rootless, Mode::Process] {
        let world = world(mode).await;
        let id = world.run(pod("busy", &["/bin/busybox", "sleep", "1000"])).await;
        world.wait(&id, "a run", |s| s.ready).await;
        for terminal in [false, true] {
            let argv = shell("echo $GIVEN; exit 5");
            let session = begin(&world, &id, CommandOptions { argv, terminal, stdin: false }).await;
            assert_eq!(all(session.stdout).await.trim(), "value", "{mode:?} {terminal}");
            assert_eq!(session.exit.await.expect("known"), 5);
        }
        world.end().await;
    }
}

/// Also where the command changed its user, by which the kernel forgets that it should die with its parent.
pub(crate) async fn ends_a_command_with_all_it_began() {
    let world = world(Mode::Container).await;
    let id = sleeping(&world).await;
    for terminal in [false, true] {
        let script = "/bin/busybox sleep 777 & /bin/busybox sleep 778";
        let mut session = begin(&world, &id, CommandOptions { argv: shell(script), stdin: false, terminal }).await;
        let count = |world: &World, id: &PodId| {
            let (runtime, id) = (world.runtime.clone(), id.clone());
            async move {
                let script = "n=0; for p in /proc/[0-9]*; do /bin/busybox grep -q 77[78] $p/cmdline && n=$((n+1)); done; echo $n";
                let look =
                    runtime.exec(&id, "user", CommandOptions { argv: shell(script), ..CommandOptions::default() });
                all(look.await.expect("looks").stdout).await.trim().to_owned()
            }
        };
        let begun = Instant::now();
        let before = loop {
            let found = count(&world, &id).await;
            if found.parse::<u32>().is_ok_and(|n| n >= 2) || begun.elapsed() > PATIENCE {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(before.parse::<u32>().is_ok_and(|n| n >= 2), "{before}");
        drop(session.exit);
        session.resize = None;
        let begun = Instant::now();
        while count(&world, &id).await.parse::<u32>().is_ok_and(|n| n > 0) {
            assert!(begun.elapsed() < PATIENCE, "{}", count(&world, &id).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    world.end().await;
}

/// Reads until what was read holds this.
async fn until(stream: &mut (impl AsyncReadExt + Unpin), wanted: &str) -> String {
    let (mut text, mut buffer) = (String::new(), [0_u8; 4096]);
    while !text.contains(wanted) {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let length = read.unwrap_or_else(|_| panic!("waited for {wanted:?}; there is {text:?}")).expect("reads");
        assert!(length > 0, "the end came before {wanted:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    text
}

pub(crate) async fn is_attached_to() {
    for mode in [Mode::Container, Mode::Rootless, Mode::Process] {
        let world = world(mode).await;
        let script = "while read line; do echo heard $line; echo aside >&2; done; echo the end";
        let mut spec = pod("listens", &["/bin/busybox", "sh", "-c", script]);
        (spec.containers[0].stdin, spec.containers[0].stdin_once) = (true, true);
        spec.restart = RestartPolicy::Never;
        let id = world.run(spec).await;
        world.wait(&id, "a run", |s| s.ready).await;
        let attach = async |stdin| world.runtime.attach(&id, "user", stdin).await.unwrap_or_else(|e| panic!("{e:?}"));
        // Who only looks changes nothing by leaving.
        drop(attach(false).await);
        let mut looks = attach(false).await;
        assert!(looks.stdin.is_none() && looks.resize.is_none());
        let mut session = attach(true).await;
        let mut stdin = session.stdin.take().expect("open");
        stdin.write_all(b"one\ntwo\n").await.expect("written");
        let talking = async {
            let text = until(&mut session.stdout, "heard two\n").await;
            assert_eq!(text, "heard one\nheard two\n", "{mode:?}");
            until(session.stderr.as_mut().expect("apart"), "aside\n").await;
            stdin.shutdown().await.expect("closed");
            drop(stdin);
            assert_eq!(all(&mut session.stdout).await, "the end\n");
        };
        let (ended, ()) = tokio::join!(session.exit, talking);
        assert_eq!(ended.expect("known"), 0);
        let looking = all(&mut looks.stdout);
        let (seen, _) = tokio::join!(looking, looks.exit);
        assert_eq!(seen, "heard one\nheard two\nthe end\n", "{mode:?}");
        world.wait(&id, "the end", |s| s.phase == PodPhase::Succeeded).await;
        assert!(world.log(&id, LogOptions::default()).await.contains("heard two\n"));
        assert!(matches!(world.runtime.attach(&id, "user", false).await, Err(Error::NotRunning { .. })));
        world.end().await;
    }
}

pub(crate) async fn has_a_terminal() {
    for mode in [Mode::Container, Mode::Rootless, Mode::Process] {
        let world = world(mode).await;
        let mut spec = pod("shell", &["/bin/busybox", "sh", "-c", "while read a; do $a; done"]);
        (spec.containers[0].stdin, spec.containers[0].terminal) = (true, true);
        if mode == Mode::Container {
            spec.containers[0].user = Some(1000);
        }
        let id = world.run(spec).await;
        world.wait(&id, "a run", |s| s.ready).await;
        let mut session = world.runtime.attach(&id, "user", true).await.expect("attached");
        assert!(session.stderr.is_none());
        session.resize.as_ref().expect("a terminal")(33, 101).expect("sized");
        let mut stdin = session.stdin.take().expect("open");
        let talking = async {
            stdin.write_all(b"/bin/busybox stty size\r/bin/busybox tty\r").await.expect("written");
            let text = until(&mut session.stdout, "/dev/pts/").await;
            assert!(text.contains("33 101"), "{mode:?} {text:?}");
            // More than any buffer on the way holds: the container waits for its reader, and nothing is lost.
            stdin.write_all(b"/bin/busybox dd if=/dev/zero bs=1000 count=1000\r").await.expect("written");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let text = until(&mut session.stdout, "1000+0 records out").await;
            assert_eq!(text.matches('\0').count(), 1_000_000, "{mode:?}");
        };
        tokio::select! {
            () = talking => {}
            ended = session.exit => panic!("{ended:?}"),
        }
        drop((stdin, session.stdout));
        assert!(world.runtime.status(&id).expect("here").ready, "it lives on without guests");
        world.end().await;
    }
}

pub(crate) async fn has_ports_that_can_be_reached() {
    for mode in [Mode::Container, Mode::Rootless, Mode::Process] {
        let world = world(mode).await;
        let mut spec = crate::words::web("inner");
        (spec.containers[0].readiness, spec.containers[0].startup) = (None, None);
        if mode != Mode::Container {
            // On a port of its own.
            spec.containers[0].command = shell("exec /bin/busybox httpd -f -p 127.0.0.1:$PORT -h /tmp");
        } else {
            // Nobody outside the pod's network gets there.
            spec.containers[0].command =
                ["/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/www"].map(Into::into).to_vec();
        }
        let id = world.run(spec).await;
        world.wait(&id, "a run", |s| s.ready).await;
        let begun = Instant::now();
        let mut socket = loop {
            match world.runtime.connect(&id, 8080).await {
                Ok(socket) => break socket,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{mode:?} {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("written");
        let answer = all(&mut socket).await;
        assert!(
            answer.starts_with("HTTP/1.") && (mode != Mode::Container || answer.ends_with("hello\n")),
            "{answer:?}"
        );
        assert!(matches!(world.runtime.connect(&id, 1).await, Err(Error::Connect { port: 1, .. })));
        world.end().await;
    }
}
