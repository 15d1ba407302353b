//! Removes pulled images that nothing refers to any more. What sleeps at zero is still referred to, by its Deployment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::api::ListParams;
use kube::{Api, Client};
use neap_runtime::image::Images;
use neap_runtime::pod::{PodRuntime, PodStatus};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two collections; the first comes after one such pause, when everything that runs is known again.
const EVERY: Duration = Duration::from_secs(3600);
/// An image that nothing refers to stays this long: it may be deployed again tomorrow.
const UNUSED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Between two looks at how full the disk is.
const LOOK: Duration = Duration::from_secs(60);
/// Beyond this many percent what nobody refers to goes at once (Kubernetes' `imageGCHighThresholdPercent`).
const FULL: u64 = 85;

/// Runs until `shutdown`.
pub async fn collect_images(client: Client, images: Images, runtime: Arc<dyn PodRuntime>, shutdown: CancellationToken) {
    let mut next = Instant::now() + EVERY;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let full = images.disk_use().is_some_and(|percent| percent > FULL);
        if !full && Instant::now() < next {
            continue;
        }
        next = Instant::now() + EVERY;
        let keep = match kept(&client, &images, runtime.list()).await {
            Ok(keep) => keep,
            // Without knowing what is used nothing is unused.
            Err(error) => {
                tracing::warn!(%error, "unused images are not looked for: what uses images cannot be listed");
                continue;
            }
        };
        match images.collect(&keep, if full { Duration::ZERO } else { UNUSED_FOR }).await {
            Ok(gone) if gone.names + gone.blobs + gone.layers > 0 => {
                tracing::info!(images = gone.names, layers = gone.layers, bytes = gone.bytes, "unused images removed");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "unused images cannot be removed"),
        }
    }
}

async fn kept(client: &Client, images: &Images, running: Vec<PodStatus>) -> kube::Result<BTreeSet<String>> {
    let everything = ListParams::default();
    let deployments = Api::<Deployment>::all(client.clone()).list(&everything).await?;
    let pods = Api::<Pod>::all(client.clone()).list(&everything).await?;
    let templates = deployments.items.iter().filter_map(|d| d.spec.as_ref()?.template.spec.as_ref());
    let specs = templates.chain(pods.items.iter().filter_map(|p| p.spec.as_ref()));
    Ok(digests(specs, &running, |reference| images.known(reference)))
}

fn digests<'a>(
    specs: impl Iterator<Item = &'a PodSpec>,
    running: &[PodStatus],
    known: impl Fn(&str) -> Option<String>,
) -> BTreeSet<String> {
    let specs: Vec<&PodSpec> = specs.collect();
    let volumes = specs.iter().flat_map(|s| s.volumes.iter().flatten());
    let named = specs
        .iter()
        .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
        .filter_map(|c| known(c.image.as_deref()?));
    let mounted = volumes.filter_map(|v| known(v.image.as_ref()?.reference.as_deref()?));
    // What runs may be older than what its names mean by now.
    let statuses = running.iter().flat_map(|p| p.containers.iter().chain(&p.init_containers));
    let ids = statuses.flat_map(|c| c.volume_images.iter().chain([&c.image_id]));
    // `repository@sha256:…`
    let used = ids.filter_map(|id| Some(id.split_once('@')?.1.to_owned()));
    named.chain(mounted).chain(used).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_runtime::pod::{ContainerState, ContainerStatus, PodId, PodPhase};
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_named_or_runs_is_kept() {
        let spec = json!({"initContainers": [{"name": "i", "image": "init"}], "containers": [{"name": "c", "image": "app"}, {"name": "d", "image": "elsewhere"}], "volumes": [{"name": "v", "image": {"reference": "data"}}]});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let container = ContainerStatus {
            name: "c".into(),
            state: ContainerState::Running { since: jiff::Timestamp::UNIX_EPOCH },
            last: None,
            trouble: None,
            ready: true,
            started: true,
            restarts: 0,
            image: "old".into(),
            image_id: "old@sha256:3".into(),
            volume_images: vec!["data@sha256:5".into()],
        };
        let pod = PodStatus {
            id: PodId("u".into()),
            name: "p".into(),
            namespace: "n".into(),
            labels: BTreeMap::new(),
            phase: PodPhase::Running,
            ready: true,
            ip: None,
            ports: BTreeMap::new(),
            init_containers: Vec::new(),
            containers: vec![container],
            evicted: None,
            started: None,
        };
        let known = |name: &str| match name {
            "app" => Some("sha256:1".to_owned()),
            "init" => Some("sha256:2".to_owned()),
            "data" => Some("sha256:4".to_owned()),
            _ => None,
        };
        let got = digests([&spec].into_iter(), &[pod], known);
        assert_eq!(got.into_iter().collect::<Vec<_>>(), ["sha256:1", "sha256:2", "sha256:3", "sha256:4", "sha256:5"]);
    }
}
