//! What the shells declared they need of the outside, plugged together: the gateway's counters for the autoscaler, its
//! load and drain for deployments and the kubelet, its status for the ingress controller, the image store for digests.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use neap_controllers::autoscaler::{Sample, Stat, StatSource, Wake, WakeSet};
use neap_controllers::{Credentials, DigestResolver, Key, ServedBoard};
use neap_dataplane::{DataPlane, IngressStatus, RevisionKey};
use neap_logic::plan::ingress::Served;
use neap_node::deployments::Load;
use neap_node::kubelet::{Drain, Leaving};
use neap_runtime::image::{Images, ResolveError};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The gateway's own counters, for the autoscaler.
pub(super) struct Stats {
    plane: Arc<DataPlane>,
    wakes: WakeSet,
}

impl Stats {
    pub(super) fn new(plane: Arc<DataPlane>) -> Self {
        Self { plane, wakes: WakeSet::default() }
    }

    /// Hands the gateway's wakes on, for ever.
    pub(super) async fn forward(self: Arc<Self>, mut wakes: mpsc::Receiver<RevisionKey>) {
        while let Some(revision) = wakes.recv().await {
            // A burst is met by its size at once, not by one instance first.
            let waiting = self.plane.present(&revision).max(1);
            self.wakes.wake(&revision, f64::from(waiting));
        }
    }
}

impl StatSource for Stats {
    fn collect(&self, _wanted: Vec<RevisionKey>) -> BoxFuture<'static, Vec<(RevisionKey, Sample)>> {
        let collected = self.plane.collect(Instant::now());
        let samples = collected.into_iter().map(|stat| {
            let requests = stat.rate();
            (stat.revision, Sample::Stat(Stat { concurrency: stat.average_concurrency, requests }))
        });
        std::future::ready(samples.collect()).boxed()
    }

    fn woken(&self) -> BoxFuture<'_, Vec<Wake>> {
        self.wakes.woken().boxed()
    }
}

/// Who is busy, and when somebody is done.
pub(super) struct Drains {
    plane: Arc<DataPlane>,
}

impl Drains {
    pub(super) fn new(plane: Arc<DataPlane>) -> Self {
        Self { plane }
    }
}

impl Load for Drains {
    fn in_flight(&self, address: SocketAddr) -> usize {
        self.plane.in_flight(address)
    }
}

impl Drain for Drains {
    fn drained(&self, pod: Leaving, deadline: Instant) -> BoxFuture<'_, ()> {
        async move {
            let Some(ip) = pod.ip else { return };
            let all = async {
                if pod.ports.is_empty() {
                    self.plane.drained(ip, None).await;
                }
                for port in pod.ports.values() {
                    self.plane.drained(ip, Some(*port)).await;
                }
            };
            if tokio::time::timeout_at(deadline, all).await.is_err() {
                tracing::warn!(pod = %pod.name, namespace = %pod.namespace, "requests were still in flight when the pod had to stop");
            }
        }
        .boxed()
    }
}

/// Tells the controllers what the gateway serves, for ever.
pub(super) async fn mirror_ingress_status(mut status: watch::Receiver<IngressStatus>, board: Arc<ServedBoard>) {
    let mut known: HashSet<Key> = HashSet::new();
    loop {
        let served: Vec<(Key, Served)> = status
            .borrow_and_update()
            .iter()
            .map(|(ingress, state)| {
                let conflicts = state
                    .conflicts
                    .iter()
                    .map(|c| (c.host.to_string(), format!("{}/{}", c.owner.namespace, c.owner.name)))
                    .collect();
                let key = Key::new(ingress.namespace.to_string(), ingress.name.to_string());
                (key, Served { hash: Some(state.hash.to_string()), conflicts })
            })
            .collect();
        let now: HashSet<Key> = served.iter().map(|(key, _)| key.clone()).collect();
        for gone in known.difference(&now) {
            board.remove(gone);
        }
        for (key, served) in served {
            board.set(key, served);
        }
        known = now;
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Digests out of the image store, or from the registry an image names.
pub(super) struct Resolver {
    images: Images,
}

impl Resolver {
    pub(super) fn new(images: Images) -> Self {
        Self { images }
    }
}

impl DigestResolver for Resolver {
    fn resolve(&self, image: String, credentials: Credentials) -> BoxFuture<'static, Result<String, String>> {
        let images = self.images.clone();
        async move {
            let mut known = Vec::new();
            for config in &credentials.docker_configs {
                known.extend(read(config)?);
            }
            images.resolve(&image, &known).await.map_err(|error| words(&error))
        }
        .boxed()
    }
}

fn read(config: &str) -> Result<Vec<neap_runtime::pod::Credentials>, String> {
    neap_node::kubelet::docker_credentials(config.as_bytes())
        .map_err(|error| format!("a pull secret is no docker configuration: {error}"))
}

/// The registry's own words: that they are about a digest is said by the one who asked.
fn words(error: &ResolveError) -> String {
    match error {
        ResolveError::InvalidName { problem, .. } => format!("could not parse reference: {problem}"),
        ResolveError::Registry { problem, .. } => problem.to_string(),
    }
}
