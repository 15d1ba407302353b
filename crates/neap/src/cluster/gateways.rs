//! Finds out what the gateways of a cluster serve, by asking every one of them for every host (fact F2), and tells the
//! controllers. An Ingress is served when all gateways answer with the hash of its present version.
//!
//! Which Ingress owns a host is decided by the same index the gateways have; only whether they have heard is asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Request, StatusCode, header};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use neap_api::keys::{config, headers, networking};
use neap_api::networking::Ingress;
use neap_controllers::{Key, ServedBoard};
use neap_logic::config::Settings;
use neap_logic::plan::ingress::Served;
use neap_logic::routing::{Index, IngressKey, network_hash};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

/// One question.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions at the same time.
const AT_ONCE: usize = 15;
/// Between two rounds for one Ingress: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// By which gateways and applications know that it is a probe.
const AGENT: &str = "Knative-Ingress-Probe";
/// The port of a gateway's Service that takes plain HTTP.
const PLAIN: &str = "http2";
const CLUSTER_LOCAL: &str = "ClusterLocal";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Which of the two gateway Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    External,
    Local,
}

/// What has to answer with what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    hash: String,
    hosts: BTreeSet<(Side, String)>,
}

pub(super) struct Prober {
    client: Client,
    settings: watch::Receiver<Arc<Settings>>,
    board: Arc<ServedBoard>,
    index: Index,
    questions: HashMap<IngressKey, Question>,
    slices: BTreeMap<String, EndpointSlice>,
    gateways: watch::Sender<Gateways>,
    running: HashMap<IngressKey, AbortHandle>,
    checks: JoinSet<(IngressKey, String)>,
    room: Arc<Semaphore>,
}

/// The addresses behind both Services.
type Gateways = BTreeSet<(Side, SocketAddr)>;

impl Prober {
    pub(super) fn new(client: Client, settings: watch::Receiver<Arc<Settings>>, board: Arc<ServedBoard>) -> Self {
        Self {
            client,
            settings,
            board,
            index: Index::new(networking::NEAP_INGRESS_CLASS),
            questions: HashMap::new(),
            slices: BTreeMap::new(),
            gateways: watch::Sender::default(),
            running: HashMap::new(),
            checks: JoinSet::new(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Asks for ever.
    pub(super) async fn run(mut self) {
        let mut ingresses = follow(Api::<Ingress>::all(self.client.clone()), watcher::Config::default());
        let of_services = watcher::Config::default().labels(SERVICE_NAME);
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), config::NAMESPACE);
        let mut slices = follow(slices, of_services);
        let mut listed = Vec::new();
        loop {
            tokio::select! {
                Some(event) = ingresses.next() => match event {
                    Ok(Event::Apply(ingress)) => self.ingress(&ingress),
                    Ok(Event::Delete(ingress)) => self.gone(&key_of(&ingress)),
                    Ok(Event::Init) => listed.clear(),
                    Ok(Event::InitApply(ingress)) => listed.push(ingress),
                    Ok(Event::InitDone) => self.all(std::mem::take(&mut listed)),
                    Err(error) => tracing::warn!(%error, "Ingresses cannot be watched; it is tried again"),
                },
                Some(event) = slices.next() => match event {
                    Ok(Event::Apply(slice) | Event::InitApply(slice)) => {
                        self.slices.insert(slice.name_any(), slice);
                        self.addresses();
                    }
                    Ok(Event::Delete(slice)) => {
                        self.slices.remove(&slice.name_any());
                        self.addresses();
                    }
                    Ok(Event::Init) => self.slices.clear(),
                    Ok(Event::InitDone) => self.addresses(),
                    Err(error) => tracing::warn!(%error, "the gateways' addresses cannot be watched; it is tried again"),
                },
                Ok(()) = self.settings.changed() => self.addresses(),
                Some(done) = self.checks.join_next() => {
                    // One that was given up says nothing, but must be taken out of the way of those that end.
                    if let Ok((key, hash)) = done {
                        self.served(&key, hash);
                    }
                }
            }
        }
    }

    fn ingress(&mut self, ingress: &Ingress) {
        let change = self.index.apply(ingress);
        let key = key_of(ingress);
        if self.index.get(&key).is_some() {
            self.questions.insert(key.clone(), question(ingress));
        } else {
            self.gone(&key);
        }
        // Others may have won or lost a host by it.
        for touched in change.touched {
            self.look(&touched);
        }
    }

    fn all(&mut self, listed: Vec<Ingress>) {
        let here: BTreeSet<IngressKey> = listed.iter().map(key_of).collect();
        let gone: Vec<IngressKey> = self.questions.keys().filter(|key| !here.contains(key)).cloned().collect();
        for key in gone {
            self.gone(&key);
        }
        for ingress in &listed {
            self.ingress(ingress);
        }
    }

    fn gone(&mut self, key: &IngressKey) {
        if self.questions.remove(key).is_none() {
            return;
        }
        if let Some(running) = self.running.remove(key) {
            running.abort();
        }
        self.board.remove(&board_key(key));
        for touched in self.index.delete(key).touched {
            self.look(&touched);
        }
    }

    /// Asks about an Ingress anew, or says at once that somebody else has its host.
    fn look(&mut self, key: &IngressKey) {
        let Some(question) = self.questions.get(key) else { return };
        if let Some(running) = self.running.remove(key) {
            running.abort();
        }
        let conflicts = conflicts(&self.index, key);
        if !conflicts.is_empty() {
            self.board.set(board_key(key), Served { hash: Some(question.hash.clone()), conflicts });
            return;
        }
        let check = check(key.clone(), question.clone(), self.gateways.subscribe(), self.room.clone());
        self.running.insert(key.clone(), self.checks.spawn(check));
    }

    fn served(&mut self, key: &IngressKey, hash: String) {
        if self.questions.get(key).is_some_and(|question| question.hash == hash) {
            self.running.remove(key);
            let conflicts = conflicts(&self.index, key);
            self.board.set(board_key(key), Served { hash: Some(hash), conflicts });
        }
    }

    fn addresses(&mut self) {
        let settings = self.settings.borrow_and_update().clone();
        let sides = [(Side::External, &settings.neap.external_gateway), (Side::Local, &settings.neap.local_gateway)];
        let mut found = Gateways::new();
        for slice in self.slices.values() {
            let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
            for (side, name) in &sides {
                if service == Some(&name.name) && name.namespace == config::NAMESPACE {
                    found.extend(ready(slice).into_iter().map(|address| (*side, address)));
                }
            }
        }
        self.gateways.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
    }
}

/// Ends when every gateway serves it, with the hash they serve.
async fn check(
    key: IngressKey,
    question: Question,
    mut gateways: watch::Receiver<Gateways>,
    room: Arc<Semaphore>,
) -> (IngressKey, String) {
    let mut delay = BACK_OFF.0;
    loop {
        let known = gateways.borrow_and_update().clone();
        if all_serve(&question, &known, &room).await {
            return (key, question.hash);
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(BACK_OFF.1),
            Ok(()) = gateways.changed() => delay = BACK_OFF.0,
        }
    }
}

async fn all_serve(question: &Question, gateways: &Gateways, room: &Semaphore) -> bool {
    for (side, host) in &question.hosts {
        let asked: Vec<SocketAddr> = gateways.iter().filter(|(of, _)| of == side).map(|(_, at)| *at).collect();
        if asked.is_empty() {
            tracing::debug!(%host, "no gateway is there to serve it");
            return false;
        }
        for address in asked {
            // The semaphore is never closed.
            let Ok(_permit) = room.acquire().await else { return false };
            if !serves(address, host, &question.hash).await {
                return false;
            }
        }
    }
    true
}

/// Whether one gateway has heard (F2.2, F2.3).
async fn serves(gateway: SocketAddr, host: &str, hash: &str) -> bool {
    let request = Request::get("/healthz")
        .header(header::HOST, host)
        .header(header::USER_AGENT, AGENT)
        .header(headers::PROBE, "probe")
        .header(headers::HASH, "override")
        .body(());
    let Ok(request) = request else { return false };
    match neap_proxy::probe::probe(gateway, request, PATIENCE).await {
        Ok(answer) if matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE) => false,
        Ok(answer) => match answer.headers.get(headers::HASH) {
            Some(served) => served.as_bytes() == hash.as_bytes(),
            None => {
                tracing::info!(%host, status = %answer.status, "a gateway answered a probe without a hash; taken as served");
                true
            }
        },
        Err(error) => {
            tracing::debug!(%host, %error, "a gateway does not answer");
            false
        }
    }
}

/// What has to be asked about an Ingress. A wildcard host cannot be asked for, and goes with the others.
fn question(ingress: &Ingress) -> Question {
    let mut hosts = BTreeSet::new();
    for rule in &ingress.spec.rules {
        let side = if rule.visibility == CLUSTER_LOCAL { Side::Local } else { Side::External };
        hosts.extend(rule.hosts.iter().filter(|host| !host.starts_with('*')).map(|host| (side, host.clone())));
    }
    Question { hash: network_hash(ingress), hosts }
}

fn conflicts(index: &Index, key: &IngressKey) -> Vec<(String, String)> {
    index.conflicts(key).iter().map(|c| (c.host.to_string(), c.owner.to_string())).collect()
}

/// The addresses of a slice that take requests.
fn ready(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let port = slice.ports.iter().flatten().find(|port| port.name.as_deref() == Some(PLAIN)).and_then(|p| p.port);
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return Vec::new() };
    let endpoints = slice.endpoints.iter().flatten();
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    ready
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|address| Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port)))
        .collect()
}

fn key_of(ingress: &Ingress) -> IngressKey {
    IngressKey::new(&ingress.namespace().unwrap_or_default(), &ingress.name_any())
}

fn board_key(key: &IngressKey) -> Key {
    Key::new(key.namespace.to_string(), key.name.to_string())
}

fn follow<K>(api: Api<K>, config: watcher::Config) -> BoxStream<'static, watcher::Result<Event<K>>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(api, config).default_backoff().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn f2_2_every_host_at_its_own_gateways() {
        let rule =
            |host: &str, visibility: &str| json!({"hosts": [host], "visibility": visibility, "http": {"paths": []}});
        let ingress: Ingress = serde_json::from_value(json!({
            "metadata": {"name": "i", "namespace": "ns"},
            "spec": {"rules": [rule("a.example.com", "ExternalIP"), rule("a.ns", "ClusterLocal"), rule("*.b.com", "ExternalIP")]},
        }))
        .expect("an Ingress");
        let hosts = question(&ingress).hosts.into_iter().collect::<Vec<_>>();
        assert_eq!(hosts, [(Side::External, "a.example.com".to_owned()), (Side::Local, "a.ns".to_owned())]);
    }

    #[test]
    fn only_ready_addresses_are_asked() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "s"}, "addressType": "IPv4",
            "ports": [{"name": "https", "port": 8443}, {"name": "http2", "port": 8080}],
            "endpoints": [{"addresses": ["198.19.0.1"]}, {"addresses": ["198.19.0.2"], "conditions": {"ready": false}}],
        }))
        .expect("a slice");
        assert_eq!(ready(&slice), ["198.19.0.1:8080".parse().expect("an address")]);
    }

    /// A gateway that gives one answer.
    async fn gateway(answer: &'static str) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let read = socket.read(&mut head).await.expect("reads");
                let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
                assert!(head.contains("k-network-probe: probe") && head.contains("user-agent: knative-ingress-probe"));
                socket.write_all(answer.as_bytes()).await.expect("writes");
            }
        });
        (address, server)
    }

    #[tokio::test]
    async fn f2_3_served_is_the_right_hash() {
        let check = async |answer: &'static str, want: bool| {
            let (address, mut server) = gateway(answer).await;
            assert_eq!(serves(address, "a.example.com", "abc").await, want, "{answer:?}");
            server.shutdown().await;
        };
        check("HTTP/1.1 200 OK\r\nK-Network-Hash: abc\r\nContent-Length: 0\r\n\r\n", true).await;
        check("HTTP/1.1 200 OK\r\nK-Network-Hash: old\r\nContent-Length: 0\r\n\r\n", false).await;
        check("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false).await;
        check("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", false).await;
        check("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", true).await;
    }

    #[tokio::test]
    async fn all_gateways_must_serve_it() {
        let (good, _one) = gateway("HTTP/1.1 200 OK\r\nK-Network-Hash: abc\r\nContent-Length: 0\r\n\r\n").await;
        let (late, _other) = gateway("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        let room = Semaphore::new(1);
        let question =
            Question { hash: "abc".into(), hosts: BTreeSet::from([(Side::External, "a.example.com".into())]) };
        let check = async |gateways: &[(Side, SocketAddr)], want: bool| {
            let gateways = gateways.iter().copied().collect();
            assert_eq!(all_serve(&question, &gateways, &room).await, want, "{gateways:?}");
        };
        check(&[(Side::External, good)], true).await;
        check(&[(Side::External, good), (Side::External, late)], false).await;
        check(&[(Side::External, good), (Side::Local, late)], true).await;
        check(&[(Side::Local, good)], false).await;
        check(&[], false).await;
    }
}
