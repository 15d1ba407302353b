//! How long pods take, and what they cost.

use std::time::Duration;

use neap_runtime::Mode;
use neap_runtime::pod::PodRuntime;
use tokio::time::Instant;

use crate::words::web;
use crate::world;

/// Create to ready, twenty times, with the machine's pools filled; then twenty at once.
pub(crate) async fn bench() {
    let world = world(Mode::Container).await;
    println!("{}", world.runtime.describe());
    let mut times = Vec::new();
    for at in 0..20 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        let spec = web(&format!("b{at}"));
        let begun = Instant::now();
        let id = world.run(spec).await;
        world.wait(&id, "readiness", |s| s.ready).await;
        times.push(begun.elapsed());
        world.runtime.remove(&id, Duration::ZERO).await.expect("removed");
    }
    times.sort();
    println!("create to ready: min {:?}, p50 {:?}, p95 {:?}, max {:?}", times[0], times[10], times[18], times[19]);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let begun = Instant::now();
    let all = (0..20).map(|at| {
        let (world, spec) = (&world, web(&format!("m{at}")));
        async move {
            let id = world.run(spec).await;
            world.wait(&id, "readiness", |s| s.ready).await;
        }
    });
    futures::future::join_all(all).await;
    println!("twenty at once: last ready after {:?}", begun.elapsed());
    println!("{}", memory());
    world.end().await;
}

/// Memory of the keepers, by proportional share.
fn memory() -> String {
    let mut keepers = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("comm").trim() == "pod-keeper" {
            let rollup = read("smaps_rollup");
            let kib = |field: &str| -> u64 {
                rollup.lines().find_map(|l| l.strip_prefix(field)?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
            };
            keepers.push((kib("Rss:"), kib("Pss:"), kib("Private_Dirty:")));
        }
    }
    let count = keepers.len().max(1) as u64;
    let mean = |pick: fn(&(u64, u64, u64)) -> u64| keepers.iter().map(pick).sum::<u64>() / count;
    format!(
        "{} keepers: mean RSS {} KiB, PSS {} KiB, private {} KiB",
        keepers.len(),
        mean(|k| k.0),
        mean(|k| k.1),
        mean(|k| k.2)
    )
}
