//! An issuer's keys, fetched when a token needs them and kept.
//!
//! Fetching is asked for by requests, and done by nobody in particular: one at a time for each issuer, not again for a while,
//! bounded in time and size. While keys are known requests do not wait for newer ones; a token that names an unknown key
//! waits for one fetch, for issuers change their keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use neap_logic::routing::extras::{KeySource, is_key_address};
use neap_proxy::ProxyError;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tower::Service;

use super::jwks::Keys;

/// Keys are asked for again after this time. Issuers announce a new key days before they use it, and most let it be kept for
/// an hour or more.
const FRESH: Duration = Duration::from_secs(600);
/// Keys that could not be renewed are trusted for so long: an issuer's bad day is not ours.
const LAST: Duration = Duration::from_secs(24 * 3600);
/// From the end of one fetch to the beginning of the next, whatever callers send.
const AGAIN: Duration = Duration::from_secs(10);
/// A fetch may take so long, discovery included.
const FETCH: Duration = Duration::from_secs(5);
/// Largest answer of an issuer.
const LARGEST: usize = 256 * 1024;
/// Requests that may wait for one issuer at once.
const MOST_WAITING: usize = 1_000;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{url} cannot be asked")]
    Io {
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{url} answers {status}")]
    Status { url: String, status: StatusCode },
    #[error("the answer of {url} is not what it should be")]
    Json {
        url: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{url} {what}")]
    Content { url: String, what: &'static str },
    #[error("no answer within {FETCH:?}")]
    Timeout,
}

/// The keys of one issuer, for all routes that trust it.
#[derive(Debug)]
pub(crate) struct KeySet {
    source: KeySource,
    current: ArcSwapOption<Fetched>,
    turn: Mutex<Turn>,
    /// Counts fetches that have ended.
    ended: watch::Sender<u64>,
    waiting: AtomicUsize,
    /// Itself, for the fetch that outlives the request that began it.
    this: Weak<Self>,
}

#[derive(Debug)]
struct Fetched {
    keys: Arc<Keys>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Turn {
    fetching: bool,
    ended: Option<Instant>,
}

/// All that are in use.
#[derive(Debug, Default)]
pub(crate) struct KeySets(HashMap<KeySource, Weak<KeySet>>);

impl KeySets {
    pub(crate) fn of(&mut self, source: &KeySource) -> Arc<KeySet> {
        if let Some(set) = self.0.get(source).and_then(Weak::upgrade) {
            return set;
        }
        self.0.retain(|_, set| set.strong_count() > 0);
        let set = KeySet::new(source.clone());
        self.0.insert(source.clone(), Arc::downgrade(&set));
        set
    }
}

impl KeySet {
    pub(crate) fn new(source: KeySource) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            source,
            current: ArcSwapOption::empty(),
            turn: Mutex::default(),
            ended: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
            this: this.clone(),
        })
    }

    /// The keys to verify a token with that names this one.
    pub(crate) async fn keys_for(&self, id: Option<&str>, tasks: &TaskTracker) -> Result<Arc<Keys>, ProxyError> {
        if let Some(known) = self.known()
            && id.is_none_or(|id| known.keys.has(id))
        {
            if known.at.elapsed() >= FRESH {
                self.begin(tasks);
            }
            return Ok(known.keys.clone());
        }
        let mut ended = self.ended.subscribe();
        if self.begin(tasks) {
            let _waiting =
                Waiting::new(&self.waiting).ok_or_else(|| self.missing("too many requests wait for them"))?;
            // It ends by itself, and before this.
            let _ = timeout(FETCH * 2, ended.changed()).await;
        }
        let known = self.known().ok_or_else(|| self.missing("they could not be fetched"))?;
        Ok(known.keys.clone())
    }

    fn known(&self) -> Option<Arc<Fetched>> {
        self.current.load_full().filter(|known| known.at.elapsed() < LAST)
    }

    fn missing(&self, why: &str) -> ProxyError {
        ProxyError::AuthUnavailable { what: format!("the keys of {} are not known: {why}", address(&self.source)) }
    }

    /// Begins a fetch if it is time for one. Returns whether one is under way.
    fn begin(&self, tasks: &TaskTracker) -> bool {
        let Some(this) = self.this.upgrade() else { return false };
        {
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if turn.fetching {
                return true;
            }
            if turn.ended.is_some_and(|ended| ended.elapsed() < AGAIN) {
                return false;
            }
            turn.fetching = true;
        }
        let turn = MyTurn(this);
        tasks.spawn_local(async move {
            let fetched = timeout(FETCH, fetch(&turn.0.source)).await.unwrap_or(Err(FetchError::Timeout));
            match fetched {
                Ok(keys) => {
                    let fetched = Fetched { keys: Arc::new(keys), at: Instant::now() };
                    turn.0.current.store(Some(Arc::new(fetched)));
                }
                Err(error) => tracing::warn!(
                    issuer = address(&turn.0.source),
                    error = &error as &dyn std::error::Error,
                    "an issuer's keys cannot be fetched"
                ),
            }
            drop(turn);
        });
        true
    }
}

/// A fetch under way; also when it is cut short, others may begin one again.
struct MyTurn(Arc<KeySet>);

impl Drop for MyTurn {
    fn drop(&mut self) {
        *self.0.turn.lock().unwrap_or_else(PoisonError::into_inner) =
            Turn { fetching: false, ended: Some(Instant::now()) };
        self.0.ended.send_modify(|count| *count += 1);
    }
}

/// One of those that wait.
struct Waiting<'w>(&'w AtomicUsize);

impl<'w> Waiting<'w> {
    fn new(waiting: &'w AtomicUsize) -> Option<Self> {
        let this = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < MOST_WAITING).then_some(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn address(source: &KeySource) -> &str {
    match source {
        KeySource::Url(url) | KeySource::Discovery(url) => url,
        KeySource::Secret(secret) => &secret.name,
    }
}

async fn fetch(source: &KeySource) -> Result<Keys, FetchError> {
    let url = match source {
        KeySource::Discovery(issuer) => discover(issuer).await?,
        other => address(other).to_owned(),
    };
    let text = get(&url).await?;
    let keys = Keys::read(&text).map_err(|source| FetchError::Json { url: url.clone(), source })?;
    if keys.is_empty() {
        return Err(FetchError::Content { url, what: "has no key that can be used" });
    }
    Ok(keys)
}

/// OpenID Connect Discovery 1.0, section 4.
async fn discover(issuer: &str) -> Result<String, FetchError> {
    let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let text = get(&url).await?;
    let said: Value = serde_json::from_slice(&text).map_err(|source| FetchError::Json { url: url.clone(), source })?;
    // Section 4.3: the issuer must be who was asked for.
    if said.get("issuer").and_then(Value::as_str) != Some(issuer) {
        return Err(FetchError::Content { url, what: "speaks of another issuer" });
    }
    match said.get("jwks_uri").and_then(Value::as_str) {
        Some(keys) if is_key_address(keys).is_ok() && may_name(issuer, keys) => Ok(keys.to_owned()),
        _ => Err(FetchError::Content { url, what: "names no address of keys that could be trusted" }),
    }
}

/// Whether an issuer may send us there for its keys. Without TLS only to itself: whoever says who may call says which issuer
/// that is, but not what else is asked on this machine.
fn may_name(issuer: &str, keys: &str) -> bool {
    let origin = |url: &str| {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        (scheme.to_owned(), host.to_ascii_lowercase())
    };
    keys.starts_with("https://") || origin(keys) == origin(issuer)
}

type Connector = HttpsConnector<HttpConnector>;

/// The roots are read once.
fn connector() -> Result<Connector, std::io::Error> {
    static CONNECTOR: OnceLock<Connector> = OnceLock::new();
    if let Some(known) = CONNECTOR.get() {
        return Ok(known.clone());
    }
    let builder =
        HttpsConnectorBuilder::new().with_provider_and_native_roots(rustls::crypto::ring::default_provider())?;
    let made = builder.https_or_http().enable_http1().build();
    Ok(CONNECTOR.get_or_init(|| made).clone())
}

/// One GET on a connection of its own; redirects are not followed, for they could lead anywhere.
async fn get(url: &str) -> Result<Bytes, FetchError> {
    let io = |source: Box<dyn std::error::Error + Send + Sync>| FetchError::Io { url: url.to_owned(), source };
    let uri: Uri = url.parse().map_err(|error| io(Box::new(error)))?;
    let mut connector = connector().map_err(|error| io(Box::new(error)))?;
    let stream = connector.call(uri.clone()).await.map_err(io)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| io(Box::new(error)))?;
    let exchange = async {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "neap")
            .body(Empty::<Bytes>::new())
            .map_err(|error| io(Box::new(error)))?;
        let response = sender.send_request(request).await.map_err(|error| io(Box::new(error)))?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { url: url.to_owned(), status: response.status() });
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(io)?;
        Ok(body.to_bytes())
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // It may end with the last byte of the answer, or before the first: the exchange knows.
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::sleep;

    use super::super::testing::Signer;
    use super::*;

    /// An issuer on loopback: answers by path, counted.
    struct Issuer {
        url: String,
        answers: Rc<RefCell<HashMap<String, String>>>,
        asked: Rc<Cell<usize>>,
    }

    impl Issuer {
        async fn new() -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let url = format!("http://{}", listener.local_addr().expect("has an address"));
            let (answers, asked) = (Rc::new(RefCell::new(HashMap::<String, String>::new())), Rc::new(Cell::new(0)));
            let (known, count) = (answers.clone(), asked.clone());
            spawn_local(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut head = vec![0; 4096];
                    let length = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..length]).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    count.set(count.get() + 1);
                    let answer = match known.borrow().get(&path) {
                        Some(text) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()),
                        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
                    };
                    drop(stream.write_all(answer.as_bytes()).await);
                }
            });
            Self { url, answers, asked }
        }

        fn says(&self, path: &str, text: &Value) {
            self.answers.borrow_mut().insert(path.into(), text.to_string());
        }

        fn set(&self, signers: &[&Signer]) {
            let keys: Vec<_> = signers.iter().map(|signer| signer.public()).collect();
            self.says("/keys", &json!({ "keys": keys }));
        }

        fn keys(&self) -> Arc<KeySet> {
            KeySet::new(KeySource::Url(format!("{}/keys", self.url).into()))
        }
    }

    async fn local<T>(test: impl Future<Output = T>) -> T {
        LocalSet::new().run_until(test).await
    }

    /// Whether the set has a key, after a fetch if that was needed.
    async fn has(set: &KeySet, tasks: &TaskTracker, id: &str) -> Result<bool, String> {
        set.keys_for(Some(id), tasks).await.map(|keys| keys.has(id)).map_err(|error| error.to_string())
    }

    #[test]
    fn issuers_send_nobody_elsewhere_on_this_machine() {
        let check = |issuer: &str, keys: &str, want| assert_eq!(may_name(issuer, keys), want, "{issuer} {keys}");
        check("https://id.example", "https://keys.example/set", true);
        check("https://id.example", "http://127.0.0.1:9000/", false);
        check("http://127.0.0.1:9000/realm", "http://127.0.0.1:9000/keys", true);
        check("http://127.0.0.1:9000", "http://127.0.0.1:9001/keys", false);
        check("http://id.localhost:80", "http://ID.localhost:80?keys", true);
    }

    #[tokio::test]
    async fn a_new_key_is_fetched_when_a_token_names_it_and_not_more_often_than_that() {
        local(async {
            let (issuer, tasks) = (Issuer::new().await, TaskTracker::new());
            let (one, two) = (Signer::ed25519("1"), Signer::ed25519("2"));
            issuer.set(&[&one]);
            let set = issuer.keys();
            let all = futures::future::join_all((0..10).map(|_| has(&set, &tasks, "1"))).await;
            assert_eq!((all, issuer.asked.get()), (vec![Ok(true); 10], 1), "one fetch for all");
            assert_eq!(has(&set, &tasks, "2").await, Ok(false));
            issuer.set(&[&one, &two]);
            for _ in 0..100 {
                assert_eq!(has(&set, &tasks, "2").await, Ok(false));
            }
            assert_eq!(issuer.asked.get(), 1, "whatever callers name, an issuer is not asked again at once");
            tokio::time::pause();
            tokio::time::advance(AGAIN).await;
            tokio::time::resume();
            assert_eq!((has(&set, &tasks, "2").await, issuer.asked.get()), (Ok(true), 2));
        })
        .await;
    }

    #[tokio::test]
    async fn known_keys_are_used_while_newer_ones_come_and_while_none_do() {
        local(async {
            let (issuer, tasks) = (Issuer::new().await, TaskTracker::new());
            let one = Signer::ed25519("1");
            issuer.set(&[&one]);
            let set = issuer.keys();
            assert_eq!(has(&set, &tasks, "1").await, Ok(true));
            issuer.answers.borrow_mut().clear();
            tokio::time::pause();
            tokio::time::advance(FRESH).await;
            tokio::time::resume();
            assert_eq!(has(&set, &tasks, "1").await, Ok(true));
            let mut ended = set.ended.subscribe();
            ended.mark_unchanged();
            if issuer.asked.get() < 2 {
                ended.changed().await.expect("a fetch was begun");
            }
            assert_eq!((has(&set, &tasks, "1").await, issuer.asked.get()), (Ok(true), 2));
            tokio::time::pause();
            tokio::time::advance(LAST).await;
            tokio::time::resume();
            let error = has(&set, &tasks, "1").await.expect_err("too old");
            assert!(error.ends_with("/keys are not known: they could not be fetched"), "{error}");
        })
        .await;
    }

    #[tokio::test]
    async fn an_issuer_says_where_its_keys_are() {
        local(async {
            let tasks = TaskTracker::new();
            let check = async |said: &dyn Fn(&str) -> Value, good: bool| {
                let issuer = Issuer::new().await;
                issuer.set(&[&Signer::ed25519("1")]);
                issuer.says("/.well-known/openid-configuration", &said(&issuer.url));
                let set = KeySet::new(KeySource::Discovery(issuer.url.as_str().into()));
                assert_eq!(has(&set, &tasks, "1").await.is_ok(), good);
            };
            check(&|url| json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }), true).await;
            check(&|url| json!({ "issuer": format!("{url}/"), "jwks_uri": format!("{url}/keys") }), false).await;
            check(&|url| json!({ "issuer": url, "jwks_uri": "http://keys.example/" }), false).await;
            check(&|url| json!({ "issuer": url, "jwks_uri": format!("{url}/none") }), false).await;
            check(&|url| json!({ "issuer": url }), false).await;
        })
        .await;
    }

    #[tokio::test]
    async fn answers_are_bounded_in_size_and_time() {
        local(async {
            let (issuer, tasks) = (Issuer::new().await, TaskTracker::new());
            let mut long = json!({ "keys": [Signer::ed25519("1").public()] });
            long["padding"] = "x".repeat(LARGEST).into();
            issuer.says("/keys", &long);
            assert!(has(&issuer.keys(), &tasks, "1").await.is_err());

            let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let url = format!("http://{}/", silent.local_addr().expect("has an address"));
            let set = KeySet::new(KeySource::Url(url.into()));
            tokio::time::pause();
            let began = Instant::now();
            assert!(has(&set, &tasks, "1").await.is_err());
            assert_eq!(began.elapsed().as_secs(), FETCH.as_secs());
            sleep(Duration::ZERO).await;
        })
        .await;
    }

    #[test]
    fn routes_of_one_issuer_share_its_keys() {
        let mut sets = KeySets::default();
        let source = |n: u8| KeySource::Url(format!("https://{n}").into());
        let (one, again, other) = (sets.of(&source(1)), sets.of(&source(1)), sets.of(&source(2)));
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other));
        drop((one, again));
        let _third = sets.of(&source(3));
        assert_eq!(sets.0.len(), 2, "what nobody uses is forgotten");
    }
}
