//! The shipper before real receivers: order, restarts, outages, refusals, files that turn over, volumes, bounds.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use neap_runtime::shelf::Shelf;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::metrics::Reason;
use super::*;
use crate::kubelet::Clock;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a receiver answers next: status and `Retry-After`.
type Answer = (u16, Option<&'static str>);

/// An endpoint that keeps what it takes, and answers as it is told.
struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    /// Larger requests are too large, bytes.
    most: Option<usize>,
    taken: Vec<(Request<()>, Value)>,
    asked: usize,
    largest: usize,
}

impl Receiver {
    async fn start(address: Option<SocketAddr>, answers: &[Answer]) -> Self {
        Self::start_as(address, answers, None).await
    }

    async fn start_as(address: Option<SocketAddr>, answers: &[Answer], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address.unwrap_or(([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { answers: answers.iter().copied().collect(), ..State::default() }));
        let mut tasks = JoinSet::new();
        let shared = state.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (shared.clone(), tls.clone());
                connections.spawn(async move {
                    let service = service_fn(|request| take(state.clone(), request));
                    let server = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(server.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(server.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Self { address, state, _tasks: tasks }
    }

    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// The text of every line, in the order of arrival.
    fn lines(&self) -> Vec<String> {
        self.look(|state| state.taken.iter().flat_map(|(_, body)| lines(body)).map(|(line, _)| line).collect())
    }

    async fn until(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let waiting = async {
            while !self.look(|state| reached(state)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = || self.look(|state| format!("{} asked, {:?}", state.asked, state.taken));
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not {what}: {}", seen()));
    }

    async fn until_lines(&self, count: usize) -> Vec<String> {
        self.until("all lines", |state| state.taken.iter().map(|(_, body)| lines(body).len()).sum::<usize>() >= count)
            .await;
        self.lines()
    }
}

async fn take(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut bytes = body.collect().await.map(|all| all.to_bytes().to_vec()).unwrap_or_default();
    if head.headers.get("content-encoding").is_some_and(|value| value == "gzip") {
        let packed = std::mem::take(&mut bytes);
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    }
    let mut state = state.lock().unwrap();
    state.asked += 1;
    state.largest = state.largest.max(bytes.len());
    let too_large = state.most.is_some_and(|most| bytes.len() > most).then_some((413, None));
    let (status, retry_after) = too_large.or_else(|| state.answers.pop_front()).unwrap_or((200, None));
    if status < 300 {
        let body = match head.headers["content-type"].as_bytes() {
            b"application/json" => serde_json::from_slice(&bytes).unwrap(),
            _ => otlp::tests::decode(&bytes),
        };
        state.taken.push((Request::from_parts(head, ()), body));
    }
    let mut response = Response::builder().status(status);
    if let Some(wish) = retry_after {
        response = response.header("retry-after", wish);
    }
    Ok(response.body(Full::new("no\nreason".into())).unwrap())
}

/// Text and attributes of the lines in a request of either protocol.
fn lines(body: &Value) -> Vec<(String, Value)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    for resource in list(&body["resourceLogs"]) {
        for log in list(&resource["scopeLogs"][0]["logRecords"]) {
            all.push((text(&log["body"]["stringValue"]), log["attributes"].clone()));
        }
    }
    // Loki sorts by time; its streams come one after the other.
    let mut timed = Vec::new();
    for stream in list(&body["streams"]) {
        for value in list(&stream["values"]) {
            timed.push((text(&value[0]), text(&value[1]), stream["stream"].clone()));
        }
    }
    timed.sort_by(|a, b| a.0.cmp(&b.0));
    all.extend(timed.into_iter().map(|(_, line, labels)| (line, labels)));
    all
}

/// A machine with logs.
pub(super) struct Place {
    dir: tempfile::TempDir,
    pub(super) shelf: Arc<Shelf>,
    metrics: Metrics,
    checkpoint: &'static str,
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (logs, pods) = (dir.path().join("logs"), dir.path().join("pods"));
        fs::create_dir_all(&logs).unwrap();
        let shelf = Arc::new(Shelf::new(logs, pods));
        Self { shelf, dir, metrics: Metrics::default(), checkpoint: "shipped.json" }
    }

    /// A living pod.
    pub(super) fn pod(&self, name: &str) -> Pod {
        let labels = json!({"app.test/service": format!("{name}-service"), "app.test/revision": "r-1"});
        let described =
            json!({"format": 1, "id": format!("u-{name}"), "namespace": "n", "name": name, "labels": labels});
        let logs = self.dir.path().join(format!("logs/n_{name}_u-{name}"));
        fs::create_dir_all(logs.join("c")).unwrap();
        fs::write(logs.join(".pod.json"), described.to_string()).unwrap();
        let dir = self.dir.path().join(format!("pods/u-{name}"));
        let part = dir.join(format!("volumes/var-log/n_{name}_c"));
        fs::create_dir_all(&part).unwrap();
        Pod { logs, dir, part, told: 0 }
    }

    pub(super) fn checkpoint(&self) -> PathBuf {
        self.dir.path().join(self.checkpoint)
    }

    /// Ships until the result is dropped. `change` makes settings of the usual ones.
    fn ship(&self, target: Target, change: impl FnOnce(&mut Settings)) -> Shipping {
        let mut settings = Settings {
            target: Some(target),
            headers: vec![("authorization".into(), "Bearer secret".into())],
            ca: String::new(),
            gzip: true,
            batch_size: 64 << 10,
            batch_age: Duration::from_millis(20),
            timeout: Duration::from_secs(10),
            retry: Duration::from_millis(20),
            json_severity: true,
            volume: Some(VolumeName { name: "var-log".into(), path: "/var/log".into() }),
            naming: Naming {
                service: vec!["app.test/service".into()],
                revision: Some("app.test/revision".into()),
                ..Naming::default()
            },
        };
        change(&mut settings);
        let (sender, receiver) = watch::channel(Arc::new(settings));
        let clock: Clock = crate::kubelet::system_clock();
        let shipper = Shipper::new(self.shelf.clone(), receiver, self.checkpoint(), clock, self.metrics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(shipper.run());
        Shipping { settings: sender, tasks }
    }

    async fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let waiting = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not {what}"));
    }
}

struct Shipping {
    settings: watch::Sender<Arc<Settings>>,
    tasks: JoinSet<()>,
}

impl Shipping {
    /// As a kill does it: no last word.
    async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

pub(super) struct Pod {
    pub(super) logs: PathBuf,
    dir: PathBuf,
    pub(super) part: PathBuf,
    told: u64,
}

impl Pod {
    pub(super) fn log(&self) -> PathBuf {
        self.logs.join("c/0.log")
    }

    pub(super) fn record(&mut self, stream: &str, tag: &str, text: &str) {
        self.told += 1;
        let time = Timestamp::from_nanosecond(1_700_000_000_000_000_000 + i128::from(self.told)).unwrap();
        let mut file = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        file.write_all(format!("{time:.9} {stream} {tag} {text}\n").as_bytes()).unwrap();
    }

    pub(super) fn say(&mut self, from: usize, to: usize) {
        for n in from..to {
            self.record("stdout", "F", &format!("line {n}"));
        }
    }

    /// As the keeper does it, with so many files in all.
    fn turn_over(&self, keep: usize) {
        let numbered = |age: usize| match age {
            0 => self.log(),
            age => PathBuf::from(format!("{}.{age}", self.log().display())),
        };
        for age in (0..keep - 1).rev() {
            let _ = fs::rename(numbered(age), numbered(age + 1));
        }
        File::create(self.log()).unwrap();
    }

    /// As the runtime does it, when somebody reads volumes.
    pub(super) fn end(&self) {
        fs::rename(self.dir.join("volumes/var-log"), self.logs.join(".volume")).unwrap();
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn otlp_to(receiver: &Receiver) -> Target {
    Target::Otlp { url: format!("http://{}/v1/logs", receiver.address), json: false }
}

fn numbered(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("line {n}")).collect()
}

#[tokio::test]
async fn lines_arrive_in_order_with_who_said_them() {
    let check = async |target: &dyn Fn(&Receiver) -> Target, path: &str, type_: &str| {
        let place = Place::new();
        let mut pod = place.pod("p");
        pod.say(0, 500);
        pod.record("stderr", "F", "{\"level\":\"error\"}");
        let receiver = Receiver::start(None, &[]).await;
        let shipping = place.ship(target(&receiver), |_| {});
        let lines = receiver.until_lines(501).await;
        assert_eq!(lines, [numbered(0, 500), vec!["{\"level\":\"error\"}".into()]].concat());
        receiver.look(|state| {
            let (head, body) = &state.taken[0];
            assert_eq!((head.uri().path(), head.headers()["content-type"].to_str().unwrap()), (path, type_));
            assert_eq!(head.headers()["authorization"], "Bearer secret");
            let text = body.to_string();
            assert!(text.contains("p-service") && text.contains("r-1") && text.contains("stdout"), "{text}");
            assert!(state.taken.iter().any(|(_, body)| body.to_string().contains("\"error\"")));
        });
        shipping.kill().await;
    };
    check(&otlp_to, "/v1/logs", "application/x-protobuf").await;
    let json = |receiver: &Receiver| Target::Otlp { url: format!("http://{}/v1/logs", receiver.address), json: true };
    check(&json, "/v1/logs", "application/json").await;
    let loki = |receiver: &Receiver| Target::Loki {
        url: format!("http://{}/loki/api/v1/push", receiver.address),
        structured_metadata: true,
    };
    check(&loki, "/loki/api/v1/push", "application/json").await;
}

#[tokio::test]
async fn a_restart_loses_nothing_and_sends_nothing_again() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let receiver = Receiver::start(None, &[]).await;
    pod.say(0, 100);
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    receiver.until_lines(100).await;
    let saved = || fs::read_to_string(place.checkpoint()).is_ok_and(|text| text.contains("\"offset\""));
    place.until("written down", saved).await;
    shipping.kill().await;
    // Meanwhile it goes on, and its file turns over.
    pod.say(100, 150);
    pod.turn_over(5);
    pod.say(150, 200);
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    receiver.until_lines(200).await;
    pod.say(200, 210);
    assert_eq!(receiver.until_lines(210).await, numbered(0, 210));
    // The pod ends: what it said last arrives too, and then it is done with.
    pod.say(210, 215);
    pod.end();
    assert_eq!(receiver.until_lines(215).await, numbered(0, 215));
    place.until("done", || fs::read_to_string(place.checkpoint()).is_ok_and(|text| text.contains("\"done\""))).await;
    shipping.kill().await;
    let again = place.ship(otlp_to(&receiver), |_| {});
    let mut other = place.pod("q");
    other.say(0, 1);
    assert_eq!(receiver.until_lines(216).await.len(), 216);
    again.kill().await;
}

#[tokio::test]
async fn without_a_save_lines_come_again_but_none_is_missing() {
    let mut place = Place::new();
    let mut pod = place.pod("p");
    let receiver = Receiver::start(None, &[]).await;
    pod.say(0, 50);
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    receiver.until_lines(50).await;
    shipping.kill().await;
    // A look that was under way may still write the other one down.
    place.checkpoint = "torn.json";
    fs::write(place.checkpoint(), "torn").unwrap();
    let again = place.ship(otlp_to(&receiver), |_| {});
    let all = receiver.until_lines(100).await;
    assert_eq!(all, [numbered(0, 50), numbered(0, 50)].concat());
    again.kill().await;
}

#[tokio::test]
async fn an_endpoint_that_is_down_gets_all_when_it_is_up() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let address = Receiver::start(None, &[]).await.address;
    let target = Target::Otlp { url: format!("http://{address}/v1/logs"), json: true };
    let shipping = place.ship(target, |_| {});
    pod.say(0, 20);
    place.until("tried", || place.metrics.failures.get() >= 2).await;
    pod.turn_over(5);
    pod.say(20, 40);
    let receiver = Receiver::start(Some(address), &[(503, None), (429, Some("0")), (401, None)]).await;
    assert_eq!(receiver.until_lines(40).await, numbered(0, 40));
    assert_eq!(place.metrics.dropped(Reason::Refused) + place.metrics.dropped(Reason::Lost), 0);
    place.until("counted", || place.metrics.records.get() == 40).await;
    shipping.kill().await;
}

#[tokio::test]
async fn a_wish_to_be_left_alone_is_heard() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let receiver = Receiver::start(None, &[(429, Some("1"))]).await;
    pod.say(0, 1);
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    receiver.until("asked", |state| state.asked == 1).await;
    let asked = tokio::time::Instant::now();
    receiver.until_lines(1).await;
    assert!(asked.elapsed() >= Duration::from_millis(900), "{:?}", asked.elapsed());
    shipping.kill().await;
}

#[tokio::test]
async fn what_is_refused_is_counted_and_the_rest_goes_on() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let receiver = Receiver::start(None, &[(400, None)]).await;
    pod.say(0, 30);
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    place.until("refused", || place.metrics.dropped(Reason::Refused) == 30).await;
    pod.say(30, 40);
    assert_eq!(receiver.until_lines(10).await, numbered(30, 40));
    shipping.kill().await;
}

#[tokio::test]
async fn what_is_too_large_goes_in_parts() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let receiver = Receiver::start(None, &[]).await;
    receiver.look(|state| state.most = Some(4096));
    pod.say(0, 100);
    pod.record("stdout", "F", &"x".repeat(5000));
    pod.say(101, 110);
    let shipping = place.ship(otlp_to(&receiver), |settings| settings.gzip = false);
    assert_eq!(receiver.until_lines(109).await, [numbered(0, 100), numbered(101, 110)].concat());
    assert_eq!(place.metrics.dropped(Reason::Refused), 1);
    shipping.kill().await;
}

#[tokio::test]
async fn lines_that_turn_away_unsent_are_counted() {
    let place = Place::new();
    let mut pod = place.pod("p");
    // Nobody listens there any more.
    let address = Receiver::start(None, &[]).await.address;
    let target = Target::Otlp { url: format!("http://{address}/v1/logs"), json: true };
    pod.say(0, 10);
    let shipping = place.ship(target, |settings| settings.batch_size = 1000);
    place.until("tried", || place.metrics.failures.get() >= 1).await;
    // One batch is in memory. Of each file some are gone by the time that the endpoint is there.
    for turn in 1..8 {
        pod.turn_over(2);
        pod.say(turn * 10, turn * 10 + 10);
        // Each look tells the age of what waits.
        for _ in 0..2 {
            let lag = place.metrics.lag.get();
            place.until("looked", || place.metrics.lag.get() > lag).await;
        }
    }
    let receiver = Receiver::start(Some(address), &[]).await;
    let last =
        |state: &State| state.taken.iter().any(|(_, body)| lines(body).iter().any(|(line, _)| line == "line 79"));
    receiver.until("the last line", last).await;
    let (arrived, lost) = (receiver.lines().len() as u64, place.metrics.dropped(Reason::Lost));
    assert!(lost > 0 && place.metrics.gaps.get() == 0, "{lost}");
    assert_eq!(arrived + lost, 80, "{arrived} arrived");
    shipping.kill().await;
}

#[tokio::test]
async fn an_endless_line_is_sent_in_pieces_and_streams_do_not_mix() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let receiver = Receiver::start(None, &[]).await;
    pod.record("stdout", "P", "one ");
    pod.record("stderr", "F", "between");
    pod.record("stdout", "F", "line");
    for _ in 0..8 {
        pod.record("stdout", "P", &"y".repeat(16 * 1024));
    }
    pod.record("stdout", "F", "end");
    fs::write(pod.part.join("app.log"), vec![b'z'; 200_000]).unwrap();
    pod.end();
    let shipping = place.ship(otlp_to(&receiver), |settings| settings.batch_size = 1 << 20);
    let all = receiver.until_lines(9).await;
    assert_eq!(&all[..2], ["between", "one line"]);
    // Two logs, whose turns come one after the other.
    let lengths =
        |of: char| -> Vec<usize> { all[2..].iter().filter(|line| line.starts_with(of)).map(String::len).collect() };
    assert_eq!((lengths('y'), lengths('z')), (vec![65536; 2], vec![65536, 65536, 65536, 3392]));
    assert!(all.contains(&"end".to_owned()));
    receiver.look(|state| {
        let partial = |body: &Value| lines(body).iter().filter(|(_, a)| a.to_string().contains("partial")).count();
        assert_eq!(state.taken.iter().map(|(_, body)| partial(body)).sum::<usize>(), 7);
    });
    shipping.kill().await;
}

#[tokio::test]
async fn files_of_a_volume_are_followed_wherever_they_go() {
    let place = Place::new();
    let pod = place.pod("p");
    let receiver = Receiver::start(None, &[]).await;
    let path = pod.part.join("app/server.log");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let append = |from: usize, to: usize| {
        let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for n in from..to {
            writeln!(file, "2026-01-01 00:00:00.000 [main] INFO org.example.App - line {n}").unwrap();
        }
    };
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    let read = |lines: Vec<String>| -> Vec<usize> {
        lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    append(0, 10);
    receiver.until_lines(10).await;
    // By renaming.
    append(10, 15);
    fs::rename(&path, pod.part.join("app/server.log.1")).unwrap();
    append(15, 20);
    receiver.until_lines(20).await;
    // By copying and cutting.
    append(20, 25);
    fs::copy(&path, pod.part.join("app/server.log.copy")).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    append(25, 30);
    receiver.until_lines(30).await;
    // Its end, and half a line.
    append(30, 35);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"no end 35").unwrap();
    pod.end();
    let mut all = read(receiver.until_lines(36).await);
    all.sort_unstable();
    assert_eq!(all, (0..36).collect::<Vec<_>>());
    receiver.look(|state| {
        let text = state.taken[0].1.to_string();
        assert!(text.contains("/var/log/app/server.log") && text.contains("log.file.name"), "{text}");
    });
    place.until("let go", || !pod.logs.join(".volume").exists()).await;
    shipping.kill().await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_take_lines_costs_one_batch() {
    let place = Place::new();
    let mut pods: Vec<Pod> = (0..20).map(|n| place.pod(&format!("p{n}"))).collect();
    for pod in &mut pods {
        for _ in 0..20 {
            pod.record("stdout", "F", &"x".repeat(10_000));
        }
    }
    let receiver = Receiver::start(None, &[(503, None); 4]).await;
    let shipping = place.ship(otlp_to(&receiver), |settings| settings.gzip = false);
    receiver.until("asked", |state| state.asked >= 4).await;
    // Of four megabytes never more is taken up than a batch has room for, and a line.
    let largest = receiver.look(|state| state.largest);
    assert!(largest < (64 << 10) + 20_000, "{largest}");
    assert_eq!(receiver.until_lines(400).await.len(), 400);
    receiver.look(|state| assert!(state.largest < (64 << 10) + 20_000, "{}", state.largest));
    shipping.kill().await;
}

#[tokio::test]
async fn many_ended_pods_are_all_read() {
    let place = Place::new();
    for n in 0..80 {
        let mut pod = place.pod(&format!("p{n:02}"));
        pod.say(n, n + 1);
        pod.end();
    }
    let receiver = Receiver::start(None, &[]).await;
    let shipping = place.ship(otlp_to(&receiver), |_| {});
    let mut all = receiver.until_lines(80).await;
    all.sort_by_key(|line| line[5..].parse::<usize>().unwrap());
    assert_eq!(all, numbered(0, 80));
    shipping.kill().await;
}

#[tokio::test]
async fn settings_take_effect_at_once() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let (first, second) = (Receiver::start(None, &[(503, None); 3]).await, Receiver::start(None, &[]).await);
    pod.say(0, 10);
    let shipping = place.ship(otlp_to(&first), |settings| settings.retry = Duration::from_secs(60));
    first.until("asked", |state| state.asked == 1).await;
    let change = |target: Option<Target>| {
        shipping.settings.send_modify(|settings| {
            let changed = Settings { target: target.clone(), ..Settings::clone(settings) };
            *settings = Arc::new(changed);
        });
    };
    change(Some(otlp_to(&second)));
    assert_eq!(second.until_lines(10).await, numbered(0, 10));
    change(None);
    pod.say(10, 20);
    let path = format!("{}/out/{{namespace}}/{{service}}.jsonl", place.dir.path().display());
    change(Some(Target::Files(FileTarget { path, max_size: 1 << 20, max_files: 2, max_age: None })));
    let out = place.dir.path().join("out/n/p-service.jsonl");
    let written = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    place.until("written", || written(&out).lines().count() == 10).await;
    assert!(written(&out).contains("line 10") && !written(&out).contains("line 9"));
    shipping.kill().await;
}

/// A certificate that nobody else has issued, and a server that shows it.
fn tls() -> (String, TlsAcceptor) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (certificate.pem(), Arc::new(server).into())
}

#[tokio::test]
async fn a_tls_endpoint_is_verified() {
    let place = Place::new();
    let mut pod = place.pod("p");
    pod.say(0, 1);
    let ((own, acceptor), (other, _)) = (tls(), tls());
    let receiver = Receiver::start_as(None, &[], Some(acceptor)).await;
    let target = Target::Otlp { url: format!("https://{}/v1/logs", receiver.address), json: true };
    let shipping = place.ship(target.clone(), |settings| settings.ca = other);
    place.until("failed", || place.metrics.failures.get() >= 2).await;
    receiver.look(|state| assert_eq!(state.asked, 0, "whoever is not known gets nothing"));
    let trusting = Settings { ca: own, ..Settings::clone(&shipping.settings.borrow()) };
    shipping.settings.send_replace(Arc::new(trusting.clone()));
    assert_eq!(receiver.until_lines(1).await, ["line 0"]);
    shipping.kill().await;
    let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let refused = sink::Sink::open(&Settings { ca: torn.into(), ..trusting }, &target).err();
    assert_eq!(refused.map(|error| error.to_string()).as_deref(), Some("an authority in logs.ca is not usable"));
}
