//! Ports of Services that are not those their pods listen on. A Service's name means its pods' addresses here, so a port
//! is led to another one on the way; who does that is told by this loop what it should be. What a pod sends to itself goes no
//! way at all, so that it must be led inside the pod: that costs the pod something, and is done only for Services that
//! somebody may call by their names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use neap_runtime::{PortMap, Transport};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes, merged};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Changes come in swarms: pods of one Service start together. None of them waits for this port to answer a wake.
const SETTLE: Duration = Duration::from_millis(50);
/// Before what was not taken is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Takes the whole map each time, and what of it pods need for calling themselves.
pub type Apply = Arc<dyn Fn(PortMap, &PortMap) -> io::Result<()> + Send + Sync>;

/// Whether somebody calls this Service by its name.
pub type IsCalled = fn(&Service) -> bool;

type Key = (String, String);

enum Event {
    Service(Change<Service>),
    Slice(Change<EndpointSlice>),
}

#[derive(Default)]
struct Index {
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, EndpointSlice>,
    /// Which of the two were listed once.
    listed: [bool; 2],
}

/// Runs until `shutdown`.
pub async fn run(client: Client, apply: Apply, is_called: IsCalled, shutdown: CancellationToken) {
    let mut index = Index::default();
    let mut events = merged(vec![
        changes(Api::all(client.clone()), watcher::Config::default()).map(Event::Service).boxed(),
        changes(Api::all(client), watcher::Config::default()).map(Event::Slice).boxed(),
    ]);
    let mut applied: Option<Led> = None;
    let mut told = Vec::new();
    let mut retry = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(event) => index.take(event),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if retry => {}
        }
        let settled = tokio::time::Instant::now() + SETTLE;
        while let Ok(event) = tokio::time::timeout_at(settled, events.next()).await {
            match event {
                Some(event) => index.take(event),
                None => return,
            }
        }
        // Before everything was seen once, what is missing means nothing.
        if index.listed != [true, true] {
            continue;
        }
        let (led, clashes) = ports(index.services.values(), index.slices.values(), is_called);
        for clash in clashes.iter().filter(|clash| !told.contains(*clash)) {
            tracing::warn!("{clash}");
        }
        told = clashes;
        if applied.as_ref() == Some(&led) {
            continue;
        }
        let (work, wanted) = (apply.clone(), led.clone());
        let done = tokio::task::spawn_blocking(move || work(wanted.all, &wanted.own));
        let done = done.await.map_err(io::Error::other).flatten();
        retry = done.is_err();
        match done {
            Ok(()) => applied = Some(led),
            Err(error) => {
                tracing::warn!(%error, "the ports of Services could not be set; trying again");
                applied = None;
            }
        }
    }
}

impl Index {
    fn take(&mut self, event: Event) {
        match event {
            Event::Service(change) => {
                self.listed[0] |= matches!(change, Change::Reset(_));
                keep(&mut self.services, change);
            }
            Event::Slice(change) => {
                self.listed[1] |= matches!(change, Change::Reset(_));
                keep(&mut self.slices, change);
            }
        }
    }
}

fn keep<K: Resource>(map: &mut BTreeMap<Key, K>, change: Change<K>) {
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match change {
        Change::Apply(object) => drop(map.insert(key(&object), object)),
        Change::Delete(object) => drop(map.remove(&key(&object))),
        Change::Reset(all) => *map = all.into_iter().map(|object| (key(&object), object)).collect(),
    }
}

/// What leads where.
#[derive(Clone, Debug, Default, PartialEq)]
struct Led {
    all: PortMap,
    /// What of it pods need for calling themselves.
    own: PortMap,
}

/// The map, and in words what could not be in it: a pod has one address for all its Services, so two of them may want the
/// same port to be another. The older one has it.
fn ports<'a>(
    services: impl Iterator<Item = &'a Service>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    is_called: IsCalled,
) -> (Led, Vec<String>) {
    let mut of: BTreeMap<Key, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        if let Some(service) = slice.labels().get(SERVICE_NAME) {
            of.entry((slice.namespace().unwrap_or_default(), service.clone())).or_default().push(slice);
        }
    }
    let mut services: Vec<&Service> = services.filter(|service| is_led(service)).collect();
    services.sort_by_key(|s| (s.creation_timestamp().map(|t| t.0), s.namespace(), s.name_any()));
    let mut all: BTreeMap<(Ipv4Addr, Transport, u16), (u16, &Service)> = BTreeMap::new();
    let (mut clashes, mut called) = (Vec::new(), BTreeSet::new());
    for service in services {
        let key = (service.namespace().unwrap_or_default(), service.name_any());
        for (asked, meant) in of.get(&key).into_iter().flatten().flat_map(|slice| of_slice(service, slice)) {
            let (has, owner) = all.entry(asked).or_insert((meant, service));
            if *has == meant {
                // Of several that mean the same one is enough.
                if is_called(service) {
                    called.insert(asked);
                }
            } else {
                clashes.push(format!(
                    "port {} of the Service {}/{} is not led to {meant}: on the pods that it shares with {}/{} it means {has}",
                    asked.2,
                    key.0,
                    key.1,
                    owner.namespace().unwrap_or_default(),
                    owner.name_any(),
                ));
            }
        }
    }
    clashes.sort();
    clashes.dedup();
    let elsewhere = all.into_iter().filter(|(asked, (meant, _))| asked.2 != *meant);
    let mut led = Led::default();
    for (asked, (meant, _)) in elsewhere {
        led.all.insert(asked, meant);
        if called.contains(&asked) {
            led.own.insert(asked, meant);
        }
    }
    (led, clashes)
}

/// Names of others lead elsewhere; of one without an address of its own each pod is called as it is.
fn is_led(service: &Service) -> bool {
    let spec = service.spec.clone().unwrap_or_default();
    spec.type_.as_deref() != Some("ExternalName") && spec.cluster_ip.as_deref() != Some("None")
}

/// Which ports of these pods are asked for, and which are meant.
fn of_slice(service: &Service, slice: &EndpointSlice) -> Vec<((Ipv4Addr, Transport, u16), u16)> {
    let mut all = Vec::new();
    let transport = |protocol: Option<&str>| match protocol.unwrap_or("TCP") {
        "TCP" => Some(Transport::Tcp),
        "UDP" => Some(Transport::Udp),
        _ => None,
    };
    for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
        let name = port.name.as_deref().unwrap_or_default();
        let Some(how) = transport(port.protocol.as_deref()) else { continue };
        let meant =
            slice.ports.iter().flatten().find(|p| {
                p.name.as_deref().unwrap_or_default() == name && transport(p.protocol.as_deref()) == Some(how)
            });
        let number = |n: i32| u16::try_from(n).ok();
        let (Some(asked), Some(meant)) = (number(port.port), meant.and_then(|p| number(p.port?))) else { continue };
        let addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
        all.extend(addresses.filter_map(|a| a.parse().ok()).map(|ip| ((ip, how, asked), meant)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn service(name: &str, age: u32, spec: Value) -> Service {
        let created = Timestamp::UNIX_EPOCH + Duration::from_secs(u64::from(age));
        let metadata = json!({"name": name, "namespace": "n", "creationTimestamp": created.to_string()});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn slice(of: &str, ports: Value, addresses: &[&str]) -> EndpointSlice {
        let labels = json!({SERVICE_NAME: of});
        serde_json::from_value(json!({
            "metadata": {"name": format!("{of}-x"), "namespace": "n", "labels": labels}, "addressType": "IPv4",
            "ports": ports, "endpoints": [{"addresses": addresses}],
        }))
        .unwrap()
    }

    fn check(services: &[Service], slices: &[EndpointSlice], want: &[&str], clashes: usize) {
        let (led, clashing) = ports(services.iter(), slices.iter(), |_| true);
        assert_eq!(led.own, led.all);
        let got: Vec<String> =
            led.all.iter().map(|((ip, how, asked), meant)| format!("{ip} {how:?} {asked} {meant}")).collect();
        assert_eq!(got, want);
        assert_eq!(clashing.len(), clashes, "{clashing:?}");
    }

    #[test]
    fn ports_are_led_to_those_of_the_pods() {
        let web = service(
            "web",
            1,
            json!({"ports": [
                {"name": "http", "port": 80, "targetPort": 8080}, {"name": "same", "port": 9090},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            ]}),
        );
        let there = json!([{"name": "http", "port": 8080}, {"name": "same", "port": 9090}, {"name": "dns", "port": 5353, "protocol": "UDP"}]);
        let slices = [slice("web", there, &["198.19.0.2", "198.19.0.3"])];
        let want =
            ["198.19.0.2 Tcp 80 8080", "198.19.0.2 Udp 53 5353", "198.19.0.3 Tcp 80 8080", "198.19.0.3 Udp 53 5353"];
        check(&[web], &slices, &want, 0);
        // A port without a name, and those who are not led.
        let unnamed = json!([{"port": 8080}]);
        let plain = service("plain", 1, json!({"ports": [{"port": 80}]}));
        check(&[plain], &[slice("plain", unnamed.clone(), &["198.19.0.4", "not one"])], &["198.19.0.4 Tcp 80 8080"], 0);
        let headless = service("h", 1, json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        check(&[headless], &[slice("h", unnamed.clone(), &["198.19.0.4"])], &[], 0);
        check(&[], &[slice("gone", unnamed, &["198.19.0.4"])], &[], 0);
    }

    #[test]
    fn the_older_of_two_services_has_the_port_of_their_pods() {
        let of = |name: &str, age: u32| service(name, age, json!({"ports": [{"port": 80}]}));
        let to = |name: &str, port: u16| slice(name, json!([{"port": port}]), &["198.19.0.2"]);
        check(&[of("b", 1), of("a", 2)], &[to("a", 9090), to("b", 8080)], &["198.19.0.2 Tcp 80 8080"], 1);
        // Also where the older one means just what it says.
        check(&[of("a", 1), of("b", 2)], &[to("a", 80), to("b", 8080)], &[], 1);
        check(&[of("a", 1), of("b", 2)], &[to("a", 8080), to("b", 8080)], &["198.19.0.2 Tcp 80 8080"], 0);
    }

    #[test]
    fn pods_are_led_to_themselves_for_services_that_are_called() {
        let of = |name: &str, port: u16| service(name, 1, json!({"ports": [{"port": port}]}));
        let to = |name: &str| slice(name, json!([{"port": 8080}]), &["198.19.0.2"]);
        let (services, slices) = ([of("web", 80), of("inner", 81)], [to("web"), to("inner")]);
        let (led, _) = ports(services.iter(), slices.iter(), |service| service.name_any() != "inner");
        let asked = |map: &PortMap| map.keys().map(|(_, _, port)| *port).collect::<Vec<_>>();
        assert_eq!((asked(&led.all), asked(&led.own)), (vec![80, 81], vec![80]));
        // Also where one that nobody calls was there first and means the same.
        let (services, slices) = ([of("inner", 80), of("web", 80)], [to("inner"), to("web")]);
        let (led, clashes) = ports(services.iter(), slices.iter(), |service| service.name_any() != "inner");
        assert_eq!((asked(&led.own), clashes.len()), (vec![80], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_the_api_is_applied_and_tried_again() {
        let api = neap_testkit::Api::start().await;
        let applied = Arc::new(std::sync::Mutex::new((Vec::new(), 1_u32)));
        let seen = applied.clone();
        let apply: Apply = Arc::new(move |map, _| {
            let (all, fails) = &mut *seen.lock().unwrap();
            if !map.is_empty() && *fails > 0 {
                *fails -= 1;
                return Err(io::Error::other("not now"));
            }
            all.push(map);
            Ok(())
        });
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(api.client(), apply, |_| true, shutdown.clone()));
        let parameters = kube::api::PostParams::default();
        let mut object = service("web", 1, json!({"ports": [{"port": 80, "targetPort": 8080}]}));
        object.metadata.namespace = Some("default".into());
        Api::<Service>::namespaced(api.client(), "default").create(&parameters, &object).await.unwrap();
        let mut object = slice("web", json!([{"port": 8080}]), &["198.19.0.2"]);
        object.metadata.namespace = Some("default".into());
        Api::<EndpointSlice>::namespaced(api.client(), "default").create(&parameters, &object).await.unwrap();
        let want = PortMap::from([(([198, 19, 0, 2].into(), Transport::Tcp, 80), 8080)]);
        let last = || async { applied.lock().unwrap().0.last().filter(|map| **map == want).cloned() };
        neap_testkit::eventually("the map", last).await;
        shutdown.cancel();
    }
}
