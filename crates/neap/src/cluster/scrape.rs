//! Where the autoscaler of a cluster gets its numbers: it asks queue-proxies once a second, and takes what activators send
//! (facts E1.11, E3).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
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
use tokio::time::{Instant, timeout_at};

use crate::process::now;

/// The queue-proxy's port for statistics.
const PORT: u16 = 9090;
/// How long all pods together may take. Upstream allows three seconds; here slow pods would hold up everybody's next second.
const PATIENCE: Duration = Duration::from_millis(900);
/// Revisions asked at the same time: enough that those of a dead node leave room for the others in that time.
const REVISIONS: usize = 512;
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
    /// Whether the first listing of each is complete: before that nobody is known to be idle.
    listed: Listed,
}

#[derive(Default)]
struct Listed {
    pods: AtomicBool,
    metrics: AtomicBool,
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
    address: SocketAddr,
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
        let listing = Seen { pods: pods.clone(), metrics: metrics.clone(), listed: Listed::default() };
        if self.seen.set(listing).is_err() {
            return;
        }
        let Some(seen) = self.seen.get() else { return };
        let listed = async {
            // A writer lives as long as its watch, and both run below.
            if metrics.wait_until_ready().await.is_ok() {
                seen.listed.metrics.store(true, Ordering::Relaxed);
            }
            if pods.wait_until_ready().await.is_ok() {
                seen.listed.pods.store(true, Ordering::Relaxed);
            }
        };
        let ours = watcher::Config::default().labels(serving::REVISION);
        let every_pod = watcher(Api::<Pod>::all(client.clone()), ours)
            .default_backoff()
            // Their specification is most of them, and nobody here reads it.
            .modify(|pod| {
                pod.spec = None;
                pod.metadata.managed_fields = None;
            })
            .reflect(pod_writer);
        let every_metric = watcher(Api::<Metric>::all(client), watcher::Config::default())
            .default_backoff()
            .modify(|metric| metric.metadata.managed_fields = None)
            .reflect(metric_writer);
        tokio::join!(drain("pods", every_pod), drain("metrics", every_metric), listed);
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

    /// Whether a Revision's pods are to be asked.
    fn asking(&self, key: &RevisionKey) -> Asking {
        let Some(seen) = self.seen.get().filter(|seen| seen.listed.metrics.load(Ordering::Relaxed)) else {
            return Asking::Unknown;
        };
        let reference = reflector::ObjectRef::<Metric>::new(&key.name).within(&key.namespace);
        let Some(metric) = seen.metrics.get(&reference).filter(|metric| !metric.spec.scrape_target.is_empty()) else {
            return Asking::No;
        };
        if !seen.listed.pods.load(Ordering::Relaxed) {
            return Asking::Unknown;
        }
        Asking::Yes(Duration::from_nanos(u64::try_from(metric.spec.stable_window).unwrap_or_default()))
    }

    async fn ask_all(
        http: Http<HttpConnector, Empty<Bytes>>,
        mut targets: Vec<Target>,
        window: Duration,
        deadline: Instant,
    ) -> Scraped {
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
        while let Ok(Some(answer)) = timeout_at(deadline, running.next()).await {
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
        let (mut asked, mut unknown) = (Vec::new(), Vec::new());
        for key in wanted {
            match self.asking(&key) {
                Asking::Yes(window) => asked.push((targets.remove(&key).unwrap_or_default(), window, key)),
                Asking::No => {}
                Asking::Unknown => unknown.push((key, Err(Collection::NoEndpoints))),
            }
        }
        let http = self.http.clone();
        async move {
            // One end for all: what has not answered then is not known this time.
            let deadline = Instant::now() + PATIENCE;
            let asking = asked.into_iter().map(|(targets, window, key)| {
                let http = http.clone();
                async move { (key, Self::ask_all(http, targets, window, deadline).await) }
            });
            let mut scraped: Vec<_> = stream::iter(asking).buffer_unordered(REVISIONS).collect().await;
            scraped.extend(unknown);
            together(scraped, pushed)
        }
        .boxed()
    }

    fn woken(&self) -> BoxFuture<'_, Vec<Wake>> {
        self.wakes.woken().boxed()
    }
}

/// Whether pods are asked for their numbers.
#[derive(Debug, PartialEq)]
enum Asking {
    /// With the window of the Revision's Metric.
    Yes(Duration),
    /// What is sent is the whole truth (E3.6).
    No,
    /// The watches have not told yet.
    Unknown,
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
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    Some((key, Target { address: SocketAddr::new(ip, PORT), age }))
}

/// One pod's numbers; `None` when it does not give any.
async fn ask(http: &Http<HttpConnector, Empty<Bytes>>, address: SocketAddr) -> Option<statistics::Statistics> {
    let request = Request::get(format!("http://{address}/metrics"))
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

    #[tokio::test(start_paused = true)]
    async fn silent_pods_share_one_deadline() {
        // It takes connections and never answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("bound");
        let targets = (0..5).map(|_| Target { address, age: Duration::ZERO }).collect();
        let http = Http::builder(TokioExecutor::new()).build(HttpConnector::new());
        let began = Instant::now();
        let scraped = Statistics::ask_all(http, targets, Duration::ZERO, began + PATIENCE).await;
        assert_eq!(scraped, Err(Collection::Silent));
        assert!(began.elapsed() <= PATIENCE + Duration::from_millis(1), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn nobody_is_idle_before_the_watches_have_told() {
        let statistics = Statistics::new();
        let key = RevisionKey::new("ns", "rev");
        let unknown = vec![(key.clone(), Sample::Trouble(Collection::NoEndpoints))];
        assert_eq!(statistics.collect(vec![key.clone()]).await, unknown);
        // The Metric is known, its pods are not.
        let (pods, _pods) = reflector::store();
        let (metrics, mut metric_writer) = reflector::store();
        let metric: Metric = serde_json::from_value(json!({
            "metadata": {"name": "rev", "namespace": "ns"},
            "spec": {"stableWindow": 60, "panicWindow": 6, "scrapeTarget": "rev-private"},
        }))
        .expect("a Metric");
        metric_writer.apply_watcher_event(&watcher::Event::Apply(metric));
        let listed = Listed { metrics: AtomicBool::new(true), pods: AtomicBool::new(false) };
        assert!(statistics.seen.set(Seen { pods, metrics, listed }).is_ok());
        assert_eq!(statistics.collect(vec![key.clone()]).await, unknown);
        // Without a Metric that says so nobody is asked, and nothing is unknown.
        assert_eq!(statistics.collect(vec![RevisionKey::new("ns", "other")]).await, []);
        statistics.seen.get().expect("set").listed.pods.store(true, Ordering::Relaxed);
        assert_eq!(statistics.collect(vec![key.clone()]).await, [(key, Sample::Stat(Stat::default()))]);
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
