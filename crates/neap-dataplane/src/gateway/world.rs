//! What the tests of the gateway have in common: a gateway, what it is fed, and instances on loopback.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use neap_api::keys::networking::NEAP_INGRESS_CLASS;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::plane::Feed;

pub(super) const EXTERNAL: usize = 0;
pub(super) const LOCAL: usize = 1;

/// A gateway in a little world.
pub(super) struct World {
    pub(super) plane: Arc<DataPlane>,
    pub(super) front: Rc<Front>,
    woken: RefCell<mpsc::Receiver<RevisionKey>>,
}

impl World {
    pub(super) fn new() -> Self {
        let (plane, woken) = DataPlane::new(NEAP_INGRESS_CLASS);
        let metrics = Metrics::default();
        let config = Config::default();
        let upstream = Upstream::new(config.upstream, metrics.clone(), TaskTracker::new());
        let doors = [Door::External, Door::Local].map(|door| Entrance { door, trusted: door == Door::Local });
        let front = Front {
            snapshots: plane.snapshots(),
            plane: plane.clone(),
            upstream: Rc::new(upstream),
            metrics,
            hedges: HedgeMetrics::default(),
            tasks: TaskTracker::new(),
            doors: doors.into(),
            https_port: 8443,
            revision_suffix: ".svc.cluster.local".into(),
            turns: Turns::new(),
        };
        Self { plane, front: Rc::new(front), woken: RefCell::new(woken) }
    }

    pub(super) fn revision(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["containers"] = json!([{ "image": "x" }]);
        let meta = json!({ "namespace": "ns", "name": name });
        let object =
            json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": meta, "spec": spec });
        self.feed::<neap_api::serving::Revision>(object);
    }

    pub(super) fn instances(&self, service: &str, port_name: &str, addrs: &[SocketAddr]) {
        let all: Vec<_> = addrs.iter().map(|addr| (service, *addr)).collect();
        self.all_instances(port_name, &all);
    }

    /// These are all there are, of any Service.
    pub(super) fn all_instances(&self, port_name: &str, all: &[(&str, SocketAddr)]) {
        let slices = all.iter().enumerate().map(|(n, (service, addr))| {
            let meta = json!({ "namespace": "ns", "name": format!("{service}-{n}"),
                               "labels": { "kubernetes.io/service-name": service } });
            serde_json::from_value(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta,
                "ports": [{ "name": port_name, "port": addr.port() }],
                "endpoints": [{ "addresses": [addr.ip()], "conditions": { "ready": true } }],
            }))
            .expect("a slice")
        });
        self.plane
            .feed::<k8s_openapi::api::discovery::v1::EndpointSlice>(Feed::Reset(slices.collect()), Instant::now());
    }

    pub(super) fn ingress(&self, name: &str, spec: Value) {
        let meta = json!({ "namespace": "ns", "name": name,
                           "annotations": { "networking.knative.dev/ingress.class": NEAP_INGRESS_CLASS } });
        self.feed::<neap_api::networking::Ingress>(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": meta, "spec": spec,
        }));
    }

    /// The same, with annotations of its own.
    pub(super) fn annotated_ingress(&self, name: &str, mut annotations: Value, spec: Value) {
        annotations["networking.knative.dev/ingress.class"] = NEAP_INGRESS_CLASS.into();
        let meta = json!({ "namespace": "ns", "name": name, "annotations": annotations });
        self.feed::<neap_api::networking::Ingress>(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": meta, "spec": spec,
        }));
    }

    pub(super) fn secret(&self, name: &str, type_: &str, data: Value) {
        self.feed::<k8s_openapi::api::core::v1::Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": "ns", "name": name }, "type": type_,
            "data": data,
        }));
    }

    pub(super) fn service(&self, name: &str, spec: Value) {
        let meta = json!({ "namespace": "ns", "name": name });
        self.feed::<k8s_openapi::api::core::v1::Service>(
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec }),
        );
    }

    pub(super) fn feed<K: serde::de::DeserializeOwned + crate::plane::Indexed>(&self, object: Value) {
        self.plane.feed(Feed::Apply(serde_json::from_value::<K>(object).expect("an object")), Instant::now());
    }

    /// A Revision `r` behind `app.example` outside and `app.ns` inside.
    pub(super) fn with_app(spec: Value) -> Self {
        let world = Self::new();
        world.revision("r", spec);
        let paths = json!({ "paths": [path_to_revision("r")] });
        world.ingress(
            "app",
            json!({ "rules": [
                { "hosts": ["app.example"], "http": paths },
                { "hosts": ["app.ns", "app.ns.svc.cluster.local"], "visibility": "ClusterLocal", "http": paths },
            ]}),
        );
        world
    }

    pub(super) async fn send(&self, door: usize, request: Request) -> (Response<()>, String) {
        let connection = connection(door);
        let (head, body) = self.front.handle(request, &connection).await.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (http::Response::from_parts(head, ()), String::from_utf8(body.to_vec()).expect("text"))
    }

    pub(super) async fn get(&self, door: usize, host: &str, path: &str) -> (u16, String) {
        let (head, body) = self.send(door, get(host, path)).await;
        (head.status().as_u16(), body)
    }

    pub(super) fn was_woken(&self) -> Option<String> {
        self.woken.borrow_mut().try_recv().ok().map(|key| key.to_string())
    }
}

pub(super) type Response<T> = http::Response<T>;

pub(super) fn connection(listener: usize) -> Connection {
    Connection::plain(([192, 0, 2, 7], 4711).into(), ([192, 0, 2, 1], 80).into(), listener)
}

pub(super) fn get(host: &str, path: &str) -> Request {
    http::Request::get(path).header("host", host).body(Body::empty()).expect("a request")
}

pub(super) fn path_to_revision(revision: &str) -> Value {
    json!({ "splits": [{ "serviceName": revision, "serviceNamespace": "ns", "servicePort": 80, "percent": 100,
        "appendHeaders": { "Knative-Serving-Revision": revision, "Knative-Serving-Namespace": "ns" } }] })
}

pub(super) fn path_to_service(service: &str, more: Value) -> Value {
    let mut path = json!({ "splits": [{ "serviceName": service, "serviceNamespace": "ns", "servicePort": 80 }] });
    path.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    path
}

pub(super) async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// An instance.
pub(super) async fn instance<F, R>(handler: F) -> SocketAddr
where
    F: Fn(http::Request<Incoming>) -> R + 'static,
    R: Future<Output = String> + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    let handler = Rc::new(handler);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = handler.clone();
            spawn_local(async move {
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(answer.await)))) }
                });
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    addr
}

/// One that answers with the headers it got.
pub(super) async fn mirror() -> SocketAddr {
    instance(|request| async move {
        let mut lines: Vec<_> =
            request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect();
        lines.sort();
        lines.join("\n")
    })
    .await
}

pub(super) fn dead() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("has an address")
}
