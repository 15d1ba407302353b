//! The disk that pods take: measured, and compared with what they may take and with what the disk has left. A pod that
//! takes too much is ended and says why, as Kubernetes evicts it; its owner makes another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::state::PodCell;
use crate::clock;
use crate::pod::{PodSpec, Volume};
use crate::trees::weigh;

/// Time between two looks at the space that is left; a look costs microseconds.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two measurements of pods that have bounds (Kubernetes' housekeeping: 10 s).
const MEASURE: Duration = Duration::from_secs(10);
/// Files of a pod that are counted at most: a measurement must come to an end.
const MAX_FILES: u64 = 2_000_000;

/// Bytes by container (writable layer and logs) and by volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Usage {
    containers: BTreeMap<String, u64>,
    volumes: BTreeMap<String, u64>,
}

/// Runs for ever. `pods` tells who is here, `dir` lies on the disk that is watched.
pub(crate) async fn watch(pods: impl Fn() -> Vec<Arc<PodCell>>, dir: PathBuf) {
    let mut measured = Instant::now();
    let mut evicted: Option<Instant> = None;
    loop {
        sleep(LOOK).await;
        // What an evicted pod leaves free shows a moment later.
        let settling = evicted.is_some_and(|at| at.elapsed() < MEASURE);
        let short = !settling && is_short(&dir);
        let due = measured.elapsed() >= MEASURE;
        if !short && !due {
            continue;
        }
        let here: Vec<_> = pods().into_iter().filter(|c| c.ending.borrow().is_none()).collect();
        let wanted = here.into_iter().filter(|c| short || is_bounded(&c.spec())).collect();
        let all = measure_all(wanted).await;
        if due {
            measured = Instant::now();
        }
        for (cell, usage) in &all {
            if let Some(why) = excess(&cell.spec(), usage) {
                cell.evict(why, clock::now());
            }
        }
        if short && let Some((cell, usage)) = all.iter().max_by_key(|(_, usage)| usage.total()) {
            let why = format!(
                "The node was low on resource: ephemeral-storage. The pod was using {}Ki, more than any other.",
                usage.total() / 1024
            );
            cell.evict(why, clock::now());
            evicted = Some(Instant::now());
        }
    }
}

async fn measure_all(cells: Vec<Arc<PodCell>>) -> Vec<(Arc<PodCell>, Usage)> {
    let work = move || cells.into_iter().map(|cell| (cell.clone(), measure(&cell.dir, &cell.log_dir, &cell.spec())));
    tokio::task::spawn_blocking(move || work().collect()).await.unwrap_or_default()
}

fn is_short(dir: &Path) -> bool {
    nix::sys::statvfs::statvfs(dir).is_ok_and(|disk| crate::disk::is_short(&disk))
}

fn is_bounded(spec: &PodSpec) -> bool {
    spec.containers.iter().any(|c| c.resources.storage_limit.is_some())
        || spec.volumes.values().any(|v| matches!(v, Volume::EmptyDir { memory: false, size_limit: Some(_) }))
}

/// Why the pod takes more than it may, in Kubernetes' words.
fn excess(spec: &PodSpec, usage: &Usage) -> Option<String> {
    for (name, volume) in &spec.volumes {
        if let (Volume::EmptyDir { memory: false, size_limit: Some(limit) }, Some(used)) =
            (volume, usage.volumes.get(name))
            && used > limit
        {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit \"{limit}\". "));
        }
    }
    for container in &spec.containers {
        if let (Some(limit), Some(used)) = (container.resources.storage_limit, usage.containers.get(&container.name))
            && *used > limit
        {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit \"{limit}\". ",
                container.name
            ));
        }
    }
    let limits: Option<Vec<u64>> = spec.containers.iter().map(|c| c.resources.storage_limit).collect();
    let limit: u64 = limits?.into_iter().sum();
    (limit > 0 && usage.total() > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "))
}

fn measure(dir: &Path, logs: &Path, spec: &PodSpec) -> Usage {
    let mut files = MAX_FILES;
    let mut usage = Usage::default();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        let layers = weigh(&dir.join("c").join(&container.name), &mut files);
        let bytes = layers + weigh(&logs.join(&container.name), &mut files);
        usage.containers.insert(container.name.clone(), bytes);
    }
    for (name, volume) in &spec.volumes {
        if matches!(volume, Volume::EmptyDir { memory: false, .. }) {
            usage.volumes.insert(name.clone(), weigh(&dir.join("volumes").join(name), &mut files));
        }
    }
    usage
}

impl Usage {
    fn total(&self) -> u64 {
        self.containers.values().chain(self.volumes.values()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{ContainerSpec, Resources};

    fn spec(limits: &[Option<u64>], volume: Option<u64>) -> PodSpec {
        let container = |(at, limit): (usize, &Option<u64>)| ContainerSpec {
            name: format!("c{at}"),
            resources: Resources { storage_limit: *limit, ..Resources::default() },
            ..ContainerSpec::default()
        };
        PodSpec {
            containers: limits.iter().enumerate().map(container).collect(),
            volumes: [("v".to_owned(), Volume::EmptyDir { memory: false, size_limit: volume })].into(),
            ..PodSpec::default()
        }
    }

    #[test]
    fn too_much_is_named() {
        let check = |limits: &[Option<u64>], volume, used: &[u64], in_volume: u64, want: Option<&str>| {
            let containers = used.iter().enumerate().map(|(at, n)| (format!("c{at}"), *n)).collect();
            let usage = Usage { containers, volumes: [("v".to_owned(), in_volume)].into() };
            let found = excess(&spec(limits, volume), &usage);
            assert_eq!(found.as_deref().map(str::trim), want);
        };
        check(&[None], None, &[u64::MAX >> 8], 1 << 50, None);
        check(&[None], Some(10), &[0], 10, None);
        check(&[None], Some(10), &[0], 11, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"10\"."));
        check(
            &[Some(5), None],
            None,
            &[6, 0],
            0,
            Some("Container c0 exceeded its local ephemeral storage limit \"5\"."),
        );
        check(
            &[Some(5), Some(5)],
            None,
            &[5, 5],
            1,
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 10."),
        );
        assert!(
            is_bounded(&spec(&[None], Some(1)))
                && is_bounded(&spec(&[Some(1)], None))
                && !is_bounded(&spec(&[None], None))
        );
        assert_eq!((crate::disk::reserve(1 << 40), crate::disk::reserve(20 << 20)), (1 << 30, 1 << 20));
    }
}
