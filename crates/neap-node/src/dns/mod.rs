//! Cluster DNS: names of Services inside `cluster.local`, everything else asked of the machine's own resolvers.
//! `zone` knows the names; this file speaks the protocol over UDP and TCP.

mod zone;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::feed::{changes, merged};
use zone::{Answer, Event, Zone};

/// Seconds a client may keep an answer: addresses of pods change at any moment.
const TTL: u32 = 1;
/// Patience with an upstream resolver.
const UPSTREAM: Duration = Duration::from_secs(2);
/// Longest message over UDP without an agreement on more (RFC 1035, 4.2.1) and the most we take.
const PLAIN_UDP: usize = 512;
const LARGEST_UDP: usize = 4096;
/// Questions handed on at the same time; more are dropped, and the client asks again.
const FORWARDS: usize = 256;
/// TCP connections at the same time, and how long each may last.
const CONVERSATIONS: usize = 64;
const CONVERSATION: Duration = Duration::from_secs(30);
/// After a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A TCP client that says nothing is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// What the server is told.
pub struct Config {
    /// Where to listen, UDP and TCP alike.
    pub listen: SocketAddr,
    /// The cluster's domain, `cluster.local`.
    pub domain: String,
    /// Resolvers for every other name.
    pub upstreams: Vec<IpAddr>,
}

/// Bound sockets: the address is known, and taken, before anything is served.
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    zone: Mutex<Zone>,
    upstreams: Vec<SocketAddr>,
}

impl Server {
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(config: Config) -> io::Result<Self> {
        let Config { listen, domain, upstreams } = config;
        let udp = UdpSocket::bind(listen).await?;
        let tcp = TcpListener::bind(udp.local_addr()?).await?;
        let upstreams = upstreams.into_iter().map(|ip| SocketAddr::new(ip, 53)).collect();
        Ok(Self { udp, tcp, shared: Arc::new(Shared { zone: Mutex::new(Zone::new(&domain)), upstreams }) })
    }

    /// # Errors
    /// The system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn run(self, client: Client, shutdown: CancellationToken) {
        let mut events = merged(vec![
            changes::<Service>(Api::all(client.clone()), watcher::Config::default()).map(Event::Service).boxed(),
            changes::<EndpointSlice>(Api::all(client), watcher::Config::default()).map(Event::Slice).boxed(),
        ]);
        let udp = Arc::new(self.udp);
        // Kept apart: whoever holds all connections, or asks for names that nobody outside answers for, must not keep
        // the cluster's own names from the others.
        let (mut forwards, mut conversations) = (JoinSet::new(), JoinSet::new());
        let mut buffer = vec![0; LARGEST_UDP];
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = forwards.join_next(), if !forwards.is_empty() => {}
                Some(_) = conversations.join_next(), if !conversations.is_empty() => {}
                Some(event) = events.next() => self.shared.zone().take(event),
                received = udp.recv_from(&mut buffer) => {
                    let Ok((length, from)) = received else { continue };
                    match self.shared.own(&buffer[..length], true) {
                        // A client that went away needs no answer, nor does one whose queue is full get it.
                        Own::Answer(answer) => drop(udp.try_send_to(&answer, from)),
                        Own::Foreign(request) if forwards.len() < FORWARDS => {
                            let (shared, udp, asked) = (self.shared.clone(), udp.clone(), buffer[..length].to_vec());
                            forwards.spawn(async move {
                                if let Some(answer) = shared.forward(&asked, &request, true).await {
                                    drop(udp.send_to(&answer, from).await);
                                }
                            });
                        }
                        // It will be asked again.
                        Own::Foreign(_) | Own::Nothing => {}
                    }
                }
                accepted = self.tcp.accept(), if conversations.len() < CONVERSATIONS => {
                    let Ok((stream, _)) = accepted else {
                        // Most likely out of descriptors; asked at once it would say the same.
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    let shared = self.shared.clone();
                    conversations.spawn(async move {
                        // The peer broke off, fell silent, or took its time; each ends the conversation.
                        drop(tokio::time::timeout(CONVERSATION, shared.converse(stream)).await);
                    });
                }
            }
        }
    }
}

/// What can be said of a question without asking anybody.
enum Own {
    Answer(Vec<u8>),
    /// It is about a name outside.
    Foreign(Box<Message>),
    /// It is no question, or its answer cannot be written.
    Nothing,
}

impl Shared {
    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
            let mut asked = vec![0; usize::from(length)];
            tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut asked)).await??;
            let Some(answer) = self.answer(&asked, false).await else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            stream.write_u16(length).await?;
            stream.write_all(&answer).await?;
        }
    }

    /// The answer's bytes; `None` where there was no question.
    async fn answer(&self, asked: &[u8], udp: bool) -> Option<Vec<u8>> {
        match self.own(asked, udp) {
            Own::Answer(answer) => Some(answer),
            Own::Foreign(request) => self.forward(asked, &request, udp).await,
            Own::Nothing => None,
        }
    }

    fn own(&self, asked: &[u8], udp: bool) -> Own {
        let Ok(request) = Message::from_vec(asked) else { return Own::Nothing };
        // Whoever answers answers may do so without end: in somebody else's name they come from another resolver.
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return Own::Nothing;
        }
        let Some(query) = request.queries.first().cloned() else { return Own::Nothing };
        let name = query.name().to_lowercase().to_ascii();
        let Some(found) = self.zone().lookup(name.trim_end_matches('.')) else {
            return Own::Foreign(Box::new(request));
        };
        let mut response = reply(&request);
        response.metadata.authoritative = true;
        fill(&mut response, query.name(), query.query_type(), found);
        encode(&response, &request, udp).map_or(Own::Nothing, Own::Answer)
    }

    async fn forward(&self, asked: &[u8], request: &Message, udp: bool) -> Option<Vec<u8>> {
        for upstream in &self.upstreams {
            let answer = if udp { ask_udp(asked, *upstream).await } else { ask_tcp(asked, *upstream).await };
            match answer {
                Ok(answer) => return Some(answer),
                Err(error) => tracing::debug!(%upstream, %error, "an upstream resolver did not answer"),
            }
        }
        let mut response = reply(request);
        response.metadata.response_code = ResponseCode::ServFail;
        response.to_vec().ok()
    }
}

fn reply(request: &Message) -> Message {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.queries.clone_from(&request.queries);
    response
}

fn fill(response: &mut Message, name: &Name, type_: RecordType, answer: Answer) {
    match answer {
        Answer::Addresses(mut addresses) if matches!(type_, RecordType::A | RecordType::ANY) => {
            // Most callers take the first.
            fastrand::shuffle(&mut addresses);
            response.answers.extend(addresses.into_iter().map(|ip| address(name, ip)));
        }
        Answer::Alias { target, addresses } => {
            let Ok(target) = Name::from_ascii(format!("{target}.")) else { return };
            response.answers.push(Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone()))));
            if type_ == RecordType::A {
                response.answers.extend(addresses.into_iter().map(|ip| address(&target, ip)));
            }
        }
        Answer::Ports(ports) if type_ == RecordType::SRV => {
            for (port, target) in ports {
                if let Ok(target) = Name::from_ascii(format!("{target}.")) {
                    response.answers.push(Record::from_rdata(
                        name.clone(),
                        TTL,
                        RData::SRV(SRV::new(0, 100, port, target)),
                    ));
                }
            }
        }
        Answer::Missing => response.metadata.response_code = ResponseCode::NXDomain,
        // The name is there and has no record of that type.
        Answer::Addresses(_) | Answer::Ports(_) => {}
    }
    if response.answers.is_empty() {
        let zone = Name::from_ascii(format!("{}.", zone::apex(&name.to_ascii()))).unwrap_or_else(|_| Name::root());
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 7200, 1800, 86_400, TTL);
        response.authorities.push(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    }
}

fn address(name: &Name, ip: Ipv4Addr) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::A(A(ip)))
}

/// Cut to what the client takes over UDP, with the mark that says so (it then comes by TCP).
fn encode(response: &Message, request: &Message, udp: bool) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    let most = usize::from(request.max_payload()).clamp(PLAIN_UDP, LARGEST_UDP);
    if udp && bytes.len() > most { response.truncate().to_vec().ok() } else { Some(bytes) }
}

async fn ask_udp(asked: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await?;
    socket.connect(upstream).await?;
    socket.send(asked).await?;
    let mut buffer = vec![0; LARGEST_UDP];
    let length = tokio::time::timeout(UPSTREAM, socket.recv(&mut buffer)).await??;
    buffer.truncate(length);
    Ok(buffer)
}

async fn ask_tcp(asked: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(upstream).await?;
        let length = u16::try_from(asked.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(asked).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(UPSTREAM, exchange).await?
}

/// Resolvers named in a resolv.conf, but for those that are ourselves.
pub fn upstreams(resolv_conf: &str, ourselves: IpAddr) -> Vec<IpAddr> {
    let named = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    named.filter_map(|rest| rest.trim().parse().ok()).filter(|ip| *ip != ourselves).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    async fn ask(shared: &Shared, name: &str, type_: RecordType) -> Message {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).expect("a name"), type_));
        let answer = shared.answer(&request.to_vec().expect("encodes"), true).await.expect("an answer");
        Message::from_vec(&answer).expect("decodes")
    }

    #[tokio::test]
    async fn answers_follow_the_protocol() {
        let mut zone = Zone::new("cluster.local");
        zone::tests::fill(&mut zone);
        let shared = Shared { zone: Mutex::new(zone), upstreams: Vec::new() };
        let found = ask(&shared, "web.n.svc.cluster.local.", RecordType::A).await;
        assert_eq!(found.answers.len(), 1);
        let alias = ask(&shared, "alias.n.svc.cluster.local.", RecordType::A).await;
        assert_eq!(alias.answers.len(), 2, "the alias and where it leads");
        let missing = ask(&shared, "nothing.n.svc.cluster.local.", RecordType::A).await;
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(missing.authorities.len(), 1);
        let other = ask(&shared, "web.n.svc.cluster.local.", RecordType::AAAA).await;
        assert_eq!((other.metadata.response_code, other.answers.len()), (ResponseCode::NoError, 0));
        let outside = ask(&shared, "example.org.", RecordType::A).await;
        assert_eq!(outside.metadata.response_code, ResponseCode::ServFail, "there is nobody to ask");
    }

    #[tokio::test]
    async fn who_holds_every_connection_keeps_nobody_from_an_answer() {
        let config = Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            domain: "cluster.local".into(),
            upstreams: Vec::new(),
        };
        let server = Server::bind(config).await.unwrap();
        zone::tests::fill(&mut server.shared.zone());
        let address = server.address().unwrap();
        let api = neap_testkit::Api::start().await;
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(api.client(), shutdown.clone()));
        let mut held = Vec::new();
        for _ in 0..CONVERSATIONS + 10 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii("none.n.svc.cluster.local.").unwrap(), RecordType::A));
        let answer = ask_udp(&request.to_vec().unwrap(), address).await.expect("an answer all the same");
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::NXDomain);
        drop(held);
        shutdown.cancel();
    }

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# by hand\nnameserver 192.0.2.1\nnameserver 198.19.0.1\noptions ndots:5\nnameserver bad\n";
        assert_eq!(
            upstreams(text, "198.19.0.1".parse().expect("an address")),
            ["192.0.2.1".parse::<IpAddr>().expect("an address")]
        );
    }
}
