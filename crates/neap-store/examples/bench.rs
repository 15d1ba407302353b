//! Measures the store on the disk that holds the given directory (default: the current one):
//! commits per second, how long a durable wait takes, how a watcher keeps up, opening, and memory.
//!
//! `cargo run --release -p neap-store --example bench -- DIR`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use neap_store::{Expect, Options, Store, Txn};

/// A typical object: a Revision or a Pod in JSON.
const VALUE_BYTES: usize = 2 * 1024;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let directory = tempfile::tempdir_in(directory)?;
    let path = directory.path().join("store");

    println!("{:<44} {:>10.1} MiB", "resident, before", resident());
    let store = Store::open(&path, Options::default())?;
    println!("{:<44} {:>10.1} MiB", "resident, empty file store", resident());
    throughput("file, commit, nobody waits", &store, 10_000)?;
    let start = now();
    store.flush().wait_blocking()?;
    println!("{:<44} {:>10.1} ms", "  then flush", millis(start.elapsed()));
    for tasks in [1, 16, 64] {
        durable(&store, tasks)?;
    }
    store.close()?;
    println!("{:<44} {:>10.1} MiB", "file", std::fs::metadata(&path)?.len() as f64 / MIB);
    reopen(&path)?;

    let memory = Store::memory();
    throughput("memory, commit", &memory, 200_000)?;
    lookups(&memory);
    watchers(&memory)?;
    Ok(())
}

const MIB: f64 = 1024.0 * 1024.0;

fn throughput(what: &str, store: &Store, count: usize) -> Result<(), neap_store::Error> {
    let value = vec![b'x'; VALUE_BYTES];
    let start = now();
    let mut busy = 0;
    for number in 0..count {
        let txn = || Txn::new().put(key(number % 2_000), Expect::Any, value.clone());
        while let Err(error) = store.commit(txn()) {
            match error {
                neap_store::Error::Busy { .. } => busy += 1,
                error => return Err(error),
            }
            store.flush().wait_blocking()?;
        }
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!("{what:<44} {rate:>10.0} commits/s ({busy} times busy)");
    Ok(())
}

fn lookups(store: &Store) {
    let start = now();
    let count = 500_000;
    let found = (0..count).filter(|number| store.get(key(number % 2_000).as_bytes()).is_some()).count();
    let each = start.elapsed().as_nanos() / count as u128;
    println!("{:<44} {each:>10} ns ({found} found)", "memory, get");
    let start = now();
    let rounds = 500;
    for _ in 0..rounds {
        store.range(b"/registry/", None, usize::MAX, None).expect("now is always readable");
    }
    let each = start.elapsed().as_micros() / rounds;
    println!("{:<44} {each:>10} µs", "memory, range of 2000");
}

/// Five thousand watchers, each of one key's own prefix; every write concerns one of them.
fn watchers(store: &Store) -> Result<(), neap_store::Error> {
    let mut watchers = Vec::new();
    for number in 0..5_000 {
        let prefix = format!("{}/", key(number));
        watchers.push(store.watch(prefix.as_bytes(), store.revision())?);
    }
    let start = now();
    let count = 50_000;
    let mut seen = 0;
    for number in 0..count {
        let key = format!("{}/x", key(number % 5_000));
        store.commit(Txn::new().put(key, Expect::Any, &b"y"[..]))?;
        seen += usize::from(watchers[number % 5_000].try_next().is_ready());
    }
    let each = start.elapsed().as_nanos() / count as u128;
    println!("{:<44} {each:>10} ns ({seen} seen)", "memory, write and event, 5000 watchers");
    Ok(())
}

fn durable(store: &Store, tasks: usize) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let start = now();
    let each = 200;
    let mut waits = runtime.block_on(async {
        let mut running = tokio::task::JoinSet::new();
        for task in 0..tasks {
            let store = store.clone();
            running.spawn(async move {
                let mut waits = Vec::new();
                for number in 0..each {
                    let start = now();
                    let key = key((task * each + number) % 2_000);
                    let txn = Txn::new().put(key, Expect::Any, vec![b'y'; VALUE_BYTES]);
                    store.commit(txn)?.durable.wait().await?;
                    waits.push(start.elapsed());
                }
                Ok::<_, neap_store::Error>(waits)
            });
        }
        let mut all = Vec::new();
        for waits in running.join_all().await {
            all.extend(waits?);
        }
        Ok::<_, neap_store::Error>(all)
    })?;
    let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |part: f64| millis(waits[(waits.len() as f64 * part) as usize]);
    let (p50, p99) = (at(0.5), at(0.99));
    let what = format!("file, commit and wait, {tasks} at once");
    println!("{what:<44} {rate:>10.0} commits/s, wait p50 {p50:.2} ms, p99 {p99:.2} ms");
    Ok(())
}

fn reopen(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let start = now();
    let store = Store::open(path, Options::default())?;
    let keys = store.stats().keys;
    println!("{:<44} {:>10.1} ms ({keys} keys)", "file, open", millis(start.elapsed()));
    println!("{:<44} {:>10.1} MiB", "resident, opened again", resident());
    Ok(())
}

fn key(number: usize) -> String {
    format!("/registry/serving.knative.dev/services/default/service-{number:05}")
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Resident memory of this process, in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

#[allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}
