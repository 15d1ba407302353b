//! Where the autoscaler of a cluster gets its numbers: it asks queue-proxies once a second, and takes what activators send
//! (facts E1.11, E3).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use neap_api::autoscaling::Metric;
use neap_api::keys::serving;
use neap_api::statistics::{self, RevisionStatistics};
use neap_controllers::autoscaler::{Sample, Stat, StatSource, Wake, WakeSet};
use neap_logic::plan::metric::Collection;
use neap_logic::routing::RevisionKey;
use neap_logic::scale::scrape;

use crate::process::now;

/// The queue-proxy's port for statistics.
const PORT: u16 = 9090;
/// How long one pod may take. Upstream allows three seconds; here one slow pod would hold up everybody's next second.
const PATIENCE: Duration = Duration::from_millis(900);
/// Revisions asked at the same time.
const REVISIONS: usize = 64;
/// Idle connections kept per pod.
const IDLE: usize = 1;

/// Numbers of all Revisions.
pub(super) struct Statistics {
    http: Http<HttpConnector, Empty<Bytes>>,
    /// Empty until the watches have begun.
    seen: OnceLock<Seen>,
    pushed: Mutex<HashMap<RevisionKey, Pushed>>,
    wakes: WakeSet,
}

/// What the watches know.
struct Seen {
    pods: Store<Pod>,
    metrics: Store<Metric>,
}

/// What activators sent about one Revision since the last second.
#[derive(Default)]
struct Pushed {
    /// By activator: the sum of its averages, and how many there were.
    concurrency: HashMap<String, (f64, u32)>,
    requests: f64,
}

/// A pod to ask.
struct Target {
    address: IpAddr,
    age: Duration,
}

impl Statistics {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(PATIENCE));
        connector.set_nodelay(true);
        let http = Http::builder(TokioExecutor::new()).pool_max_idle_per_host(IDLE).build(connector);
        Self { http, seen: OnceLock::new(), pushed: Mutex::default(), wakes: WakeSet::default() }
    }

    /// Follows pods and metrics, for ever.
    pub(super) async fn watch(self: Arc<Self>, client: Client) {
        let (pods, pod_writer) = reflector::store();
        let (metrics, metric_writer) = reflector::store();
        if self.seen.set(Seen { pods, metrics }).is_err() {
            return;
        }
        let ours = watcher::Config::default().labels(serving::REVISION);
        let pods = watcher(Api::<Pod>::all(client.clone()), ours)
            .default_backoff()
            // Their specification is most of them, and nobody here reads it.
            .modify(|pod| {
                pod.spec = None;
                pod.metadata.managed_fields = None;
            })
            .reflect(pod_writer);
        let metrics = watcher(Api::<Metric>::all(client), watcher::Config::default())
            .default_backoff()
            .modify(|metric| metric.metadata.managed_fields = None)
            .reflect(metric_writer);
        tokio::join!(drain("pods", pods), drain("metrics", metrics));
    }

    /// Takes a message of an activator in.
    pub(super) fn push(&self, messages: Vec<RevisionStatistics>) {
        for message in messages {
            let Some(numbers) = message.statistics else { continue };
            let (concurrency, requests) = (numbers.average_concurrent_requests, numbers.request_count);
            if !(concurrency.is_finite() && requests.is_finite()) || concurrency < 0.0 || requests < 0.0 {
                continue;
            }
            let key = RevisionKey::new(&message.namespace, &message.name);
            if concurrency > 0.0 || requests > 0.0 {
                // Of a Revision that has instances nothing comes of it.
                self.wakes.wake(&key, concurrency.max(1.0));
            }
            let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
            let pushed = pushed.entry(key).or_default();
            let (sum, count) = pushed.concurrency.entry(numbers.pod_name).or_default();
            *sum += concurrency;
            *count += 1;
            pushed.requests += requests;
        }
    }

    fn take_pushed(&self) -> HashMap<RevisionKey, Stat> {
        let pushed = std::mem::take(&mut *self.pushed.lock().unwrap_or_else(PoisonError::into_inner));
        let stat = |pushed: Pushed| Stat {
            concurrency: pushed.concurrency.values().map(|(sum, count)| sum / f64::from(*count)).sum(),
            requests: pushed.requests,
        };
        pushed.into_iter().map(|(key, pushed)| (key, stat(pushed))).collect()
    }

    /// The pods of each Revision that can be asked, in no order.
    fn targets(&self, wanted: &HashSet<RevisionKey>) -> HashMap<RevisionKey, Vec<Target>> {
        let mut targets: HashMap<RevisionKey, Vec<Target>> = HashMap::new();
        let now = now();
        for pod in self.seen.get().map(|seen| seen.pods.state()).unwrap_or_default() {
            let Some((key, target)) = target(&pod, now) else { continue };
            if wanted.contains(&key) {
                targets.entry(key).or_default().push(target);
            }
        }
        targets
    }

    /// The window of a Revision's Metric; `None` when its pods are not to be asked (E3.6).
    fn window(&self, key: &RevisionKey) -> Option<Duration> {
        let reference = reflector::ObjectRef::<Metric>::new(&key.name).within(&key.namespace);
        let metric = self.seen.get()?.metrics.get(&reference)?;
        let spec = &metric.spec;
        let window = u64::try_from(spec.stable_window).unwrap_or_default();
        (!spec.scrape_target.is_empty()).then(|| Duration::from_nanos(window))
    }

    async fn ask_all(http: Http<HttpConnector, Empty<Bytes>>, mut targets: Vec<Target>, window: Duration) -> Scraped {
        if targets.is_empty() {
            // Nobody there is nobody busy.
            return Ok((0.0, 0.0));
        }
        fastrand::shuffle(&mut targets);
        scrape::old_first(&mut targets, window, |target| target.age);
        let (all, size) = (targets.len(), scrape::sample_size(targets.len()));
        let mut waiting = targets.into_iter().map(|target| ask(&http, target.address));
        let mut running: FuturesUnordered<_> = waiting.by_ref().take(size).collect();
        let mut answers = Vec::with_capacity(size);
        while let Some(answer) = running.next().await {
            match answer {
                Some(answer) => answers.push(answer),
                // Another one takes its place.
                None => running.extend(waiting.next()),
            }
        }
        scrape::whole(&answers, all).ok_or(Collection::Silent)
    }
}

impl StatSource for Statistics {
    fn collect(&self, wanted: Vec<RevisionKey>) -> BoxFuture<'static, Vec<(RevisionKey, Sample)>> {
        let wanted: HashSet<RevisionKey> = wanted.into_iter().collect();
        let mut targets = self.targets(&wanted);
        let pushed = self.take_pushed();
        let mut asked = Vec::new();
        for key in &wanted {
            if let Some(window) = self.window(key) {
                asked.push((key.clone(), targets.remove(key).unwrap_or_default(), window));
            }
        }
        let http = self.http.clone();
        async move {
            let asking = asked.into_iter().map(|(key, targets, window)| {
                let http = http.clone();
                async move { (key, Self::ask_all(http, targets, window).await) }
            });
            let scraped: Vec<_> = stream::iter(asking).buffer_unordered(REVISIONS).collect().await;
            together(scraped, pushed)
        }
        .boxed()
    }

    fn woken(&self) -> BoxFuture<'_, Vec<Wake>> {
        self.wakes.woken().boxed()
    }
}

/// Concurrency and requests per second of a Revision, or why they are not known.
type Scraped = Result<(f64, f64), Collection>;

/// Sums what was scraped and what was sent. Without pods what was sent is all there is.
fn together(scraped: Vec<(RevisionKey, Scraped)>, pushed: HashMap<RevisionKey, Stat>) -> Vec<(RevisionKey, Sample)> {
    let mut stats: BTreeMap<RevisionKey, Sample> =
        pushed.into_iter().map(|(key, stat)| (key, Sample::Stat(stat))).collect();
    for (key, outcome) in scraped {
        match (outcome, stats.get_mut(&key)) {
            (Ok((concurrency, requests)), Some(Sample::Stat(stat))) => {
                stat.concurrency += concurrency;
                stat.requests += requests;
            }
            (Ok((concurrency, requests)), _) => {
                stats.insert(key, Sample::Stat(Stat { concurrency, requests }));
            }
            (Err(_), Some(_)) => {}
            (Err(trouble), None) => drop(stats.insert(key, Sample::Trouble(trouble))),
        }
    }
    stats.into_iter().collect()
}

/// A pod that runs, is ready, and is not on its way out.
fn target(pod: &Pod, now: Timestamp) -> Option<(RevisionKey, Target)> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || status.phase.as_deref() != Some("Running") {
        return None;
    }
    let revision = pod.metadata.labels.as_ref()?.get(serving::REVISION)?;
    let key = RevisionKey::new(pod.metadata.namespace.as_deref()?, revision);
    let started = status.start_time.as_ref().map_or(now, |time| time.0);
    let age = Duration::try_from(now.duration_since(started)).unwrap_or_default();
    Some((key, Target { address: status.pod_ip.as_deref()?.parse().ok()?, age }))
}

/// One pod's numbers; `None` when it does not give any.
async fn ask(http: &Http<HttpConnector, Empty<Bytes>>, address: IpAddr) -> Option<statistics::Statistics> {
    let request = Request::get(format!("http://{}/metrics", SocketAddr::new(address, PORT)))
        .header(header::ACCEPT, statistics::CONTENT_TYPE)
        .body(Empty::new())
        .ok()?;
    let answer = async {
        let response = http.request(request).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let body = Limited::new(response.into_body(), statistics::LENGTH_MAX).collect().await.ok()?;
        statistics::Statistics::decode(&body.to_bytes()).ok()
    };
    tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
}

async fn drain<K: std::fmt::Debug>(
    what: &'static str,
    events: impl futures::Stream<Item = Result<K, watcher::Error>> + Send,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        if let Err(error) = event {
            tracing::warn!(%error, "{what} cannot be watched; it is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_api::statistics::Statistics as Numbers;
    use serde_json::json;

    fn message(activator: &str, concurrency: f64, requests: f64) -> RevisionStatistics {
        let statistics = Some(Numbers {
            pod_name: activator.into(),
            average_concurrent_requests: concurrency,
            request_count: requests,
            ..Numbers::default()
        });
        RevisionStatistics { namespace: "ns".into(), name: "rev".into(), statistics }
    }

    #[test]
    fn activators_add_up_and_repetitions_average() {
        let statistics = Statistics::new();
        statistics.push(vec![message("a", 2.0, 5.0), message("a", 4.0, 5.0), message("b", 1.0, 3.0)]);
        statistics.push(vec![message("b", f64::NAN, 1.0), message("b", -1.0, 1.0)]);
        let key = RevisionKey::new("ns", "rev");
        let taken = statistics.take_pushed();
        assert_eq!(taken.get(&key), Some(&Stat { concurrency: 4.0, requests: 13.0 }));
        assert!(statistics.take_pushed().is_empty());
        assert_eq!(statistics.woken().now_or_never().expect("somebody asked").len(), 1);
    }

    #[test]
    fn scraped_and_sent_numbers_are_one() {
        let key = |name: &str| RevisionKey::new("ns", name);
        let sent = |concurrency| Stat { concurrency, requests: 1.0 };
        let pushed = HashMap::from([(key("both"), sent(1.0)), (key("sent"), sent(2.0)), (key("silent"), sent(3.0))]);
        let scraped = vec![
            (key("both"), Ok((4.0, 9.0))),
            (key("scraped"), Ok((1.0, 1.0))),
            (key("silent"), Err(Collection::Silent)),
            (key("none"), Err(Collection::NoEndpoints)),
        ];
        let want = vec![
            (key("both"), Sample::Stat(Stat { concurrency: 5.0, requests: 10.0 })),
            (key("none"), Sample::Trouble(Collection::NoEndpoints)),
            (key("scraped"), Sample::Stat(Stat { concurrency: 1.0, requests: 1.0 })),
            (key("sent"), Sample::Stat(sent(2.0))),
            (key("silent"), Sample::Stat(sent(3.0))),
        ];
        assert_eq!(together(scraped, pushed), want);
    }

    #[test]
    fn only_pods_that_serve_are_asked() {
        let check = |patch: serde_json::Value, want: bool| {
            let mut pod = json!({
                "metadata": {"name": "p", "namespace": "ns", "labels": {"serving.knative.dev/revision": "rev"}},
                "status": {"phase": "Running", "podIP": "198.19.0.9", "startTime": "2026-01-01T00:00:00Z",
                           "conditions": [{"type": "Ready", "status": "True"}]},
            });
            json_patch::merge(&mut pod, &patch);
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
            let found = target(&pod, now);
            assert_eq!(found.is_some(), want, "{patch}");
            if let Some((key, target)) = found {
                assert_eq!((key, target.age.as_secs()), (RevisionKey::new("ns", "rev"), 60));
            }
        };
        check(json!({}), true);
        check(json!({"status": {"phase": "Pending"}}), false);
        check(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}), false);
        check(json!({"status": {"podIP": null}}), false);
        check(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z"}}), false);
        check(json!({"metadata": {"labels": {"serving.knative.dev/revision": null}}}), false);
    }
}
