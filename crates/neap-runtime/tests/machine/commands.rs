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
