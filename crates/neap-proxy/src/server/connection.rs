//! One client connection from its first byte to its last.
//!
//! The connection has no timers of its own. Its notes are read by the worker's sweep, which marks it as expired
//! and wakes it; that makes limits exact to about a second and free for those who keep them.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::accept::{Accepted, Seat};
use super::answers::{Answer, Answers, Streams};
use super::io::{HangsUp, Lender, Lent, Notes, Returned, Stream};
use super::worker::Shared;
use crate::access::Observation;
use crate::body::{Body, BodyError, OnEnd, Outcome};
use crate::config::{H2_CONNECTION_WINDOW, H2_PING_INTERVAL, H2_PING_TIMEOUT, H2_STREAM_WINDOW, ServerConfig};
use crate::handler::{Connection, Handler, Response};
use crate::metrics::ExpiredLabels;
use crate::time::now;
use crate::tls::ACME_TLS;

/// A connection that has been silent for so long gives its buffers back. Shorter, and clients that pause would be served
/// with fresh ones each time; longer, and ten thousand that only keep a connection would hold a hundred megabytes.
const REST_AFTER: Duration = Duration::from_secs(5);

/// How long a client is listened to that was answered before it had sent its whole body: for its answer to reach it.
const LINGER: Duration = Duration::from_secs(2);

/// How long a draining server waits for the first request of a connection that it has accepted: some round trips.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// A connection as the sweep sees it.
pub(super) struct Watched {
    notes: Arc<Notes>,
    requests: Cell<usize>,
    /// A request has ended since the last sweep.
    served: Cell<bool>,
    /// Since when, at the latest, it has been in each of these states; kept by the sweep.
    idle_since: Cell<Instant>,
    reading_since: Cell<Option<Instant>>,
    stalled_since: Cell<Option<Instant>>,
    expired: Cell<Option<Expired>>,
    waker: RefCell<Waker>,
    /// h2 frames are not heads; its own pings tell whether the client is there.
    h2: Cell<bool>,
    /// Served at least one request, and silent since, for long enough to give back what it was served with.
    rests: Cell<bool>,
    ever_served: Cell<bool>,
    /// Its place in the worker's list.
    place: Cell<usize>,
    /// Those of h2, which may stand still one by one.
    answers: OnceCell<Rc<Answers>>,
    /// A request's body was dropped before its end.
    unread: Cell<bool>,
    /// The last sweep saw a request in progress that this one may see too.
    was_in_request: Cell<bool>,
    /// Whether an HTTP/1 client has hung up behind bytes that nobody reads, as those of a body that waits for an instance.
    hung_up: RefCell<Option<Box<dyn Fn() -> bool>>>,
}

/// What the client was too slow at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expired {
    Head,
    Idle,
    Write,
    /// It was not slow, it is gone.
    HungUp,
}

impl Watched {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            notes: Arc::default(),
            requests: Cell::new(0),
            served: Cell::new(false),
            idle_since: Cell::new(now()),
            reading_since: Cell::new(None),
            stalled_since: Cell::new(None),
            expired: Cell::new(None),
            waker: RefCell::new(Waker::noop().clone()),
            h2: Cell::new(false),
            rests: Cell::new(false),
            ever_served: Cell::new(false),
            place: Cell::new(0),
            answers: OnceCell::new(),
            unread: Cell::new(false),
            was_in_request: Cell::new(false),
            hung_up: RefCell::new(None),
        })
    }

    /// Marks it if it has overstayed; returns how many of its answers were called off.
    pub(super) fn judge(&self, now: Instant, config: &ServerConfig) -> usize {
        let in_request = self.requests.get() > 0;
        let served = self.served.replace(false);
        let stays_in_request = self.was_in_request.replace(in_request) && in_request && !served;
        if served || in_request {
            self.idle_since.set(now);
            self.reading_since.set(None);
        }
        if self.notes.moved.swap(false, Ordering::Relaxed) {
            self.stalled_since.set(None);
        }
        let reading = !in_request && !self.h2.get() && self.notes.reading.load(Ordering::Relaxed);
        let over = |since: &Cell<Option<Instant>>, is: bool, limit: Duration| {
            since.set(if is { since.get().or(Some(now)) } else { None });
            since.get().is_some_and(|since| now - since >= limit)
        };
        let stalled = self.notes.stalled.load(Ordering::Relaxed);
        let expired = if over(&self.stalled_since, stalled, config.write_stall_timeout) {
            Some(Expired::Write)
        } else if over(&self.reading_since, reading, config.head_timeout) {
            Some(Expired::Head)
        } else if now.saturating_duration_since(self.idle_since.get()) >= self.may_be_silent(config) {
            Some(Expired::Idle)
        } else if stays_in_request && self.hung_up.borrow().as_ref().is_some_and(|hung_up| hung_up()) {
            Some(Expired::HungUp)
        } else {
            None
        };
        if expired.is_some() {
            self.expired.set(expired);
            self.wake();
        } else if !in_request
            && !reading
            && !self.h2.get()
            && self.ever_served.get()
            && !self.rests.get()
            && self.notes.whole.load(Ordering::Relaxed)
            && now.saturating_duration_since(self.idle_since.get()) >= REST_AFTER
        {
            self.rests.set(true);
            self.wake();
        }
        self.answers.get().map_or(0, |answers| answers.judge(now, config.write_stall_timeout))
    }

    /// Whoever has been served may take its time for the next request; whoever has just come has come to ask.
    fn may_be_silent(&self, config: &ServerConfig) -> Duration {
        if self.ever_served.get() { config.idle_timeout } else { config.idle_timeout.min(config.first_request_timeout) }
    }

    #[cfg(test)]
    pub(super) fn is_resting(&self) -> bool {
        self.rests.get()
    }

    pub(super) fn wake(&self) {
        self.waker.borrow().wake_by_ref();
    }

    /// An HTTP/1.1 connection whose first request has not come yet, as after a TLS handshake.
    fn is_fresh(&self) -> bool {
        !self.h2.get() && !self.ever_served.get() && self.requests.get() == 0
    }

    /// Part of a request's head has come, and no request is in progress.
    fn in_head(&self) -> bool {
        !self.h2.get() && self.requests.get() == 0 && self.notes.reading.load(Ordering::Relaxed)
    }

    fn request_begins(&self) {
        self.notes.head_complete();
        // The one before was read to its end after all, or this one would not have been found.
        self.unread.set(false);
        self.requests.set(self.requests.get() + 1);
    }
}

/// Counts a request at its connection until its answer has ended.
struct InRequest(Rc<Watched>);

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
        // Bytes that came during the request (its body, or the next head) begin to count now.
        self.0.notes.head_complete();
        self.0.served.set(true);
        self.0.ever_served.set(true);
    }
}

/// Notes that a request's body was not read to its end.
struct Unread(Rc<Watched>);

impl OnEnd for Unread {
    fn on_end(&mut self, outcome: Outcome, _bytes: u64) {
        self.0.unread.set(self.0.unread.get() || outcome == Outcome::Dropped);
    }
}

/// A response's body, which keeps its request counted.
struct Counted {
    body: Body,
    /// Over h2.
    answer: Option<Rc<Answer>>,
    _in_request: InRequest,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(answer) = &self.answer {
            answer.polled(matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_data()));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

pub(super) async fn serve<H: Handler>(accepted: Accepted, shared: Rc<Shared>, handler: Rc<H>) {
    let Accepted { stream, peer, listener, seat } = accepted;
    let metrics = &shared.server.metrics;
    metrics.connections.inc();
    let place = Place { _seat: seat, _open: Open::new(&metrics.connections_open) };
    let (Ok(local), Ok(stream)) = (stream.local_addr(), tokio::net::TcpStream::from_std(stream)) else {
        return;
    };
    let mut connection = Connection::plain(peer, local, listener);
    match &shared.listeners[listener] {
        // Boxed, so that each kind of connection takes its own room and not that of the largest.
        None => Box::pin(speak(stream, connection, None, &shared, handler, Some(place))).await,
        Some(tls) => {
            let timeout = shared.server.config.tls_handshake_timeout;
            let Ok(Ok(mut stream)) = Box::pin(tokio::time::timeout(timeout, tls.accept(stream))).await else {
                metrics.tls_failures.inc();
                return;
            };
            let (_, session) = stream.get_ref();
            if session.alpn_protocol() == Some(ACME_TLS) {
                // The handshake was the answer. Whoever asked may be gone already.
                drop(tokio::time::timeout(timeout, stream.shutdown()).await);
                return;
            }
            connection.tls = true;
            connection.server_name = session.server_name().map(Arc::from);
            let h2 = session.alpn_protocol().map(|protocol| protocol == b"h2");
            Box::pin(speak(stream, connection, h2, &shared, handler, Some(place))).await;
        }
    }
}

/// What an open connection counts for, until its socket is closed, by whomever: a tunnel takes it along.
#[derive(Debug)]
pub(crate) struct Place {
    _seat: Seat,
    _open: Open,
}

/// Counts an open connection.
#[derive(Debug)]
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    fn new(gauge: &prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// `h2` is what TLS settled, if it did.
pub(crate) async fn speak<T, H>(
    io: T,
    connection: Connection,
    h2: Option<bool>,
    shared: &Rc<Shared>,
    handler: Rc<H>,
    place: Option<Place>,
) where
    T: AsyncRead + AsyncWrite + HangsUp + Unpin + Send + 'static,
    H: Handler,
{
    let watched = Watched::new();
    let mut io = Stream::new(io, watched.notes.clone(), place);
    let _watch = Watch::new(shared, &watched);
    let h2 = match h2 {
        Some(h2) => h2,
        None => match until_expired(&watched, shared, io.speaks_h2()).await {
            Some(Ok(h2)) => h2,
            _ => return,
        },
    };
    watched.h2.set(h2);
    let config = &shared.server.config;
    let connection = Rc::new(connection);
    let access = shared.server.access.clone();
    let serve = {
        let watched = watched.clone();
        move |request: http::Request<Incoming>| {
            watched.request_begins();
            let in_request = InRequest(watched.clone());
            let answer = watched.answers.get().map(|answers| answers.begin());
            let (handler, connection) = (handler.clone(), connection.clone());
            let has_body = !hyper::body::Body::is_end_stream(request.body());
            let version = request.version();
            let request = request.map(|incoming| match Body::client(incoming, version) {
                body if has_body && !watched.h2.get() => body.on_end(Unread(watched.clone())),
                body => body,
            });
            let observation = access.as_ref().map(|log| Observation::begin(log, &request, &connection));
            async move {
                let mut response: Response = handler.handle(request, &connection).await;
                if let Some(observation) = observation {
                    response = observation.watch(response);
                }
                Ok::<_, Infallible>(response.map(|body| Counted { body, answer, _in_request: in_request }))
            }
        }
    };
    let result = if h2 {
        let max_head = u32::try_from(config.max_head_bytes).unwrap_or(u32::MAX);
        let answers = watched.answers.get_or_init(Rc::default).clone();
        let serving = hyper::server::conn::http2::Builder::new(Streams(answers))
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_concurrent_streams(config.h2_max_streams)
            .max_header_list_size(max_head)
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .serve_connection(TokioIo::new(io), service_fn(serve));
        // Boxed, so that a connection that speaks HTTP/1 does not make room for it.
        Box::pin(drive::<T>(serving, &watched, shared, None)).await
    } else {
        loop {
            let (lent, lender) = Lent::new(io);
            watched.hung_up.replace(Some(Box::new(lender.hung_up())));
            let serving = hyper::server::conn::http1::Builder::new()
                .max_buf_size(config.max_head_bytes)
                // Its timer would be set and cleared for each request; the sweep does the same for nothing.
                .header_read_timeout(None)
                // Otherwise it reads ahead, with room of its own, only to learn whether the client is still there.
                .half_close(T::TELLS)
                .serve_connection(TokioIo::new(lent), service_fn(serve.clone()))
                .with_upgrades();
            // Boxed, so that what hyper holds is gone while the connection rests.
            let result = Box::pin(drive(serving, &watched, shared, Some(&lender))).await;
            watched.hung_up.take();
            match lender.take_back() {
                Some(Returned::Open(back)) if result.is_ok() => io = back,
                Some(Returned::Closed(back))
                    if watched.unread.get() && result.is_ok() && watched.expired.get().is_none() =>
                {
                    back.linger(LINGER).await;
                    return;
                }
                _ => break result,
            }
            match until_expired(&watched, shared, io.next_bytes()).await {
                Some(Ok(true)) => watched.rests.set(false),
                _ => return,
            }
        }
    };
    if let Err(error) = result {
        // Clients vanish all the time; whoever wants to see it asks for it.
        tracing::debug!(error = &error as &dyn std::error::Error, "client connection ended");
    }
}

/// Both of hyper's connections.
trait Serving: Future<Output = hyper::Result<()>> {
    fn shut_down(self: Pin<&mut Self>);
}

impl<I, S> Serving for hyper::server::conn::http1::UpgradeableConnection<I, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = Counted>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Serving for hyper::server::conn::http2::Connection<I, S, Streams>
where
    S: hyper::service::HttpService<Incoming, ResBody = Counted>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Lets the connection run until it ends, is told to drain (GOAWAY, `Connection: close`), expires, or goes to rest.
///
/// At a drain the connection is polled before it is told: what has come already is a request that the client will not
/// send again, and hyper closes a connection that looks idle without a look at its socket. One whose head has come in
/// part is told when the head is whole.
async fn drive<T: HangsUp>(
    serving: impl Serving,
    watched: &Rc<Watched>,
    shared: &Shared,
    lender: Option<&Lender<T>>,
) -> hyper::Result<()> {
    let mut serving = std::pin::pin!(serving);
    let mut told = false;
    let mut grace: Option<Pin<Box<tokio::time::Sleep>>> = None;
    watched.register_on_first_poll().await;
    std::future::poll_fn(|cx: &mut Context<'_>| {
        if watched.rests.get() && !told {
            // No request is in progress and no byte of one has been read, so this ends it on the spot; whatever the
            // client sends from now on stays in the socket for whoever reads next.
            told = true;
            lender.inspect(|lender| lender.recall());
            serving.as_mut().shut_down();
        }
        if let Poll::Ready(result) = serving.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if watched.requests.get() > 0 && lender.is_some_and(|lender| lender.poll_end(cx)) {
            // Nobody is left to be answered.
            watched.expired.set(Some(Expired::HungUp));
            return Poll::Ready(Ok(()));
        }
        if shared.draining.get()
            && !told
            && !watched.in_head()
            && (!watched.is_fresh() || poll_first_request(&mut grace, cx).is_ready())
        {
            told = true;
            serving.as_mut().shut_down();
            if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
        }
        match watched.expired.get() {
            None => Poll::Pending,
            // The sweep did not know yet of the request that has just been read.
            Some(Expired::Head | Expired::Idle) if watched.requests.get() > 0 => {
                watched.expired.set(None);
                Poll::Pending
            }
            Some(expired) => {
                shared.expire(expired);
                Poll::Ready(Ok(()))
            }
        }
    })
    .await
}

/// The same for what comes before HTTP. `None`: give up.
async fn until_expired<T>(watched: &Rc<Watched>, shared: &Shared, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut grace = None;
    watched.register_on_first_poll().await;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        if let Some(expired) = watched.expired.get() {
            shared.expire(expired);
            return Poll::Ready(None);
        }
        if !shared.draining.get() {
            return Poll::Pending;
        }
        // A client that kept its connection expects such an end, and sends again. One that has just connected sends
        // its first request at this moment.
        if watched.ever_served.get() {
            return Poll::Ready(None);
        }
        poll_first_request(&mut grace, cx).map(|()| None)
    })
    .await
}

fn poll_first_request(grace: &mut Option<Pin<Box<tokio::time::Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    grace.get_or_insert_with(|| Box::pin(tokio::time::sleep(FIRST_REQUEST))).as_mut().poll(cx)
}

impl Watched {
    /// A task's waker stays the same, so once is enough.
    async fn register_on_first_poll(&self) {
        std::future::poll_fn(|cx| {
            *self.waker.borrow_mut() = cx.waker().clone();
            Poll::Ready(())
        })
        .await;
    }
}

impl Shared {
    /// Answers over h2 were called off, for their clients took no more of them.
    pub(super) fn answers_cut(&self, count: usize) {
        if count > 0 {
            let labels = ExpiredLabels { waiting_for: "stream" };
            self.server.metrics.connections_expired.get_or_create(&labels).inc_by(count as u64);
        }
    }

    fn expire(&self, expired: Expired) {
        let waiting_for = match expired {
            Expired::Head => "head",
            Expired::Idle => "idle",
            Expired::Write => "write",
            Expired::HungUp => "nobody",
        };
        self.server.metrics.connections_expired.get_or_create(&ExpiredLabels { waiting_for }).inc();
    }
}

/// Keeps a connection in the worker's list.
struct Watch<'a> {
    shared: &'a Shared,
    watched: Rc<Watched>,
}

impl<'a> Watch<'a> {
    fn new(shared: &'a Shared, watched: &Rc<Watched>) -> Self {
        let mut list = shared.watched.borrow_mut();
        watched.place.set(list.len());
        list.push(watched.clone());
        Self { shared, watched: watched.clone() }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut list = self.shared.watched.borrow_mut();
        let place = self.watched.place.get();
        list.swap_remove(place);
        if let Some(moved) = list.get(place) {
            moved.place.set(place);
        }
    }
}
