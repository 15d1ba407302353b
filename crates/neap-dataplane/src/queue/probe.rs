//! Whether the application is ready: the user's own readiness probe, run from here (E2.5), where a probe of many
//! attempts costs the kubelet one.
//!
//! A run belongs to the worker, not to who asked: callers come and go, and those that come during a run share it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{GRPCAction, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_proxy::{Body, Limits, Metrics, Protocol, Request, Response, Target, Upstream, UpstreamConfig, probe};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

/// Between two attempts of an eager probe.
const EAGER_INTERVAL: Duration = Duration::from_millis(50);
/// How long one of its attempts may take.
const EAGER_ATTEMPT: Duration = Duration::from_millis(100);
/// And all of them.
const EAGER_TOTAL: Duration = Duration::from_secs(10);
/// Kubernetes' own default of `timeoutSeconds`.
const ATTEMPT: Duration = Duration::from_secs(1);
/// What a kubelet calls itself; applications tell probes by it.
const USER_AGENT: &str = "kube-probe/";
/// The method of the health protocol of gRPC.
const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";
/// `SERVING` in its answer.
const GRPC_SERVING: u8 = 1;

/// All probes of a pod.
pub(super) struct Prober {
    shared: Rc<Shared>,
    tasks: TaskTracker,
    /// The run in progress.
    running: RefCell<Option<watch::Receiver<Option<bool>>>>,
}

struct Shared {
    probes: Vec<Wrapped>,
    detect_http2: bool,
    /// For h2c, which needs a connection with a task.
    h2: Upstream,
}

struct Wrapped {
    probe: Probe,
    /// Successes in a row.
    successes: Cell<i32>,
}

/// Why an attempt failed, for the log.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Prober {
    pub(super) fn new(probes: Vec<Probe>, detect_http2: bool, tasks: TaskTracker) -> Self {
        let probes = probes.into_iter().map(|probe| Wrapped { probe, successes: Cell::new(0) }).collect();
        let h2 = Upstream::new(UpstreamConfig::default(), Metrics::default(), tasks.clone());
        Self { shared: Rc::new(Shared { probes, detect_http2, h2 }), tasks, running: RefCell::default() }
    }

    /// Closes connections that probes have left behind.
    pub(super) fn sweep(&self) {
        self.shared.h2.sweep();
    }

    /// Runs all probes, or waits for the run in progress.
    pub(super) async fn ready(&self) -> bool {
        if self.shared.probes.is_empty() {
            return true;
        }
        let mut result = self.join();
        let known = result.wait_for(Option::is_some).await;
        known.ok().and_then(|known| *known).unwrap_or_default()
    }

    fn join(&self) -> watch::Receiver<Option<bool>> {
        let mut running = self.running.borrow_mut();
        if let Some(run) = &*running
            && run.borrow().is_none()
            && run.has_changed().is_ok()
        {
            return run.clone();
        }
        let (sender, receiver) = watch::channel(None);
        let shared = self.shared.clone();
        self.tasks.spawn_local(async move {
            let ready = shared.run().await;
            sender.send_replace(Some(ready));
        });
        *running = Some(receiver.clone());
        receiver
    }
}

impl Shared {
    async fn run(&self) -> bool {
        let all = futures::future::join_all(self.probes.iter().map(|probe| self.one(probe))).await;
        let failures: Vec<&Failure> = all.iter().filter_map(|result| result.as_ref().err()).collect();
        for failure in &failures {
            tracing::warn!(%failure, "the application is not ready");
        }
        failures.is_empty()
    }

    async fn one(&self, wrapped: &Wrapped) -> Result<(), Failure> {
        let probe = &wrapped.probe;
        if probe.period_seconds.unwrap_or_default() != 0 {
            let limit = probe.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| *s > 0);
            return self.attempt(probe, limit.map_or(ATTEMPT, Duration::from_secs)).await;
        }
        let end = Instant::now() + EAGER_TOTAL;
        let mut failed = 0;
        let mut last = Failure("the probe did not succeed often enough".into());
        loop {
            let next = Instant::now() + EAGER_INTERVAL;
            match self.attempt(probe, EAGER_ATTEMPT).await {
                Ok(()) => {
                    wrapped.successes.set(wrapped.successes.get().saturating_add(1));
                    if wrapped.successes.get() >= probe.success_threshold.unwrap_or_default() {
                        return Ok(());
                    }
                }
                Err(failure) => {
                    wrapped.successes.set(0);
                    failed += 1;
                    last = failure;
                }
            }
            if next >= end {
                return Err(Failure(format!("{failed} attempts in {EAGER_TOTAL:?} failed; the last: {last}")));
            }
            tokio::time::sleep_until(next).await;
        }
    }

    async fn attempt(&self, probe: &Probe, limit: Duration) -> Result<(), Failure> {
        let attempt = async {
            if let Some(action) = &probe.http_get {
                self.http(action, limit).await
            } else if let Some(action) = &probe.tcp_socket {
                tcp(action).await
            } else if let Some(action) = &probe.grpc {
                self.grpc(action, limit).await
            } else {
                Err(Failure("the probe has no action that can be tried from here".into()))
            }
        };
        match timeout(limit, attempt).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Failure(format!("no answer within {limit:?}"))),
        }
    }

    async fn http(&self, action: &HTTPGetAction, limit: Duration) -> Result<(), Failure> {
        if action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            return Err(Failure(
                "a probe with scheme HTTPS is not supported: the application is asked in the clear".into(),
            ));
        }
        let addr = address(action.host.as_deref(), &action.port).await?;
        if self.detect_http2 {
            // A server that speaks h2c but is not ready may speak HTTP/1.1 properly, so its word is not the last.
            let target = Target { addr, protocol: Protocol::H2c };
            let deadline = Limits { total: Some(limit), ..Limits::default() }.deadline(Instant::now());
            let request = get(action, addr)?.map(|()| Body::empty());
            if let Ok(response) = self.h2.send(target, &mut Some(request), deadline, None).await
                && is_ready(response.status())
            {
                return Ok(());
            }
        }
        let answer = probe::probe(addr, get(action, addr)?, limit).await.map_err(|error| Failure(error.to_string()))?;
        if is_ready(answer.status) {
            Ok(())
        } else {
            Err(Failure(format!("the probe was answered with {}", answer.status)))
        }
    }

    async fn grpc(&self, action: &GRPCAction, limit: Duration) -> Result<(), Failure> {
        let port = u16::try_from(action.port).map_err(|_| Failure(format!("{} is no port", action.port)))?;
        let addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let request = grpc_check(action.service.as_deref().unwrap_or_default(), addr);
        let target = Target { addr, protocol: Protocol::H2c };
        let deadline = Limits { total: Some(limit), ..Limits::default() }.deadline(Instant::now());
        let sent = self.h2.send(target, &mut Some(request), deadline, None).await;
        grpc_verdict(sent.map_err(|error| Failure(error.to_string()))?).await
    }
}

fn is_ready(status: http::StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

fn get(action: &HTTPGetAction, addr: SocketAddr) -> Result<http::Request<()>, Failure> {
    let path = action.path.as_deref().unwrap_or_default();
    let mut request = http::Request::get(format!("/{}", path.strip_prefix('/').unwrap_or(path)))
        .body(())
        .map_err(|error| Failure(format!("the probe's path {path:?} cannot be asked for: {error}")))?;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    for field in action.http_headers.iter().flatten() {
        let pair = (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_str(&field.value));
        let (Ok(name), Ok(value)) = pair else {
            return Err(Failure(format!("the probe's header {:?} cannot be sent", field.name)));
        };
        // A host can be there once; anything else as often as it is listed.
        if name == header::HOST {
            headers.insert(name, value)
        } else {
            headers.append(name, value);
            None
        };
    }
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, HeaderValue::try_from(addr.to_string()).expect("an address is plain text"));
    }
    Ok(request)
}

async fn tcp(action: &TCPSocketAction) -> Result<(), Failure> {
    let addr = address(action.host.as_deref(), &action.port).await?;
    let connected = TcpStream::connect(addr).await;
    connected.map(drop).map_err(|error| Failure(format!("cannot connect to {addr}: {error}")))
}

async fn address(host: Option<&str>, port: &IntOrString) -> Result<SocketAddr, Failure> {
    let port = match port {
        IntOrString::Int(port) => u16::try_from(*port).ok(),
        IntOrString::String(port) => port.parse().ok(),
    };
    let port = port.ok_or_else(|| Failure("the probe's port is no number".into()))?;
    let host = host.filter(|host| !host.is_empty()).unwrap_or("127.0.0.1");
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| Failure(format!("{host}: {error}")))?;
    found.into_iter().next().ok_or_else(|| Failure(format!("{host} has no address")))
}

/// The message has one field, the service's name, and is framed with a flag and its length.
fn grpc_check(service: &str, addr: SocketAddr) -> Request {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("a name is short"));
    framed.put_slice(&message);
    http::Request::post(GRPC_CHECK)
        .header(header::HOST, addr.to_string())
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Body::full(framed.freeze()))
        .expect("made of constants")
}

async fn grpc_verdict(response: Response) -> Result<(), Failure> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|error| Failure(error.to_string()))?;
    let status =
        collected.trailers().and_then(|trailers| trailers.get("grpc-status")).or(head.headers.get("grpc-status"));
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(b"12") => return Err(Failure("the application does not implement grpc.health.v1.Health".into())),
        other => {
            let code = other.map_or("none".into(), String::from_utf8_lossy);
            return Err(Failure(format!("the health call failed with gRPC status {code}")));
        }
    }
    let message: Bytes = collected.to_bytes();
    // Field 1, a number: the only one there is.
    match message.get(5..) {
        Some([0x08, GRPC_SERVING, ..]) => Ok(()),
        _ => Err(Failure("the application says that it does not serve".into())),
    }
}
