//! Which kinds are watched, by what they are found, and whom a change concerns.
//!
//! A change never carries what happened: it only names keys to look at.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod, Secret, Service as CoreService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use neap_api::autoscaling::PodAutoscaler;
use neap_api::caching::Image;
use neap_api::keys::{self, networking, serving};
use neap_api::networking::{Certificate, ClusterDomainClaim, Ingress, ServerlessService};
use neap_api::serving::{Configuration, DomainMapping, Revision, Route, Service};
use neap_logic::plan::cache::{Cache, Cached};
use neap_logic::plan::domainmapping;
use neap_logic::plan::serverlessservice::{SLICE_SERVICE, StandIns};
use tokio::sync::mpsc;
use tracing::warn;

use crate::caches::{Caches, Store, slim};
use crate::certificates::certificate_of;
use crate::index::{Key, Step, Terms};
use crate::queue::Queue;

/// Pseudo label of Routes: what their targets name, `Configuration/…` or `Revision/…`.
pub(crate) const TARGET: &str = "neap.dev/route-target";
/// Pseudo label of DomainMappings: what they refer to, `Kind/name`.
pub(crate) const REFERENT: &str = "neap.dev/domain-referent";

/// The labels and annotations that have an index; others are found by looking at every object of a namespace.
pub(crate) const INDEXED: [&str; 7] =
    [serving::CONFIGURATION, serving::ROUTES, serving::ROUTE, serving::REVISION_UID, SLICE_SERVICE, TARGET, REFERENT];

/// The queue of each controller.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) service: Arc<Queue>,
    pub(crate) configuration: Arc<Queue>,
    pub(crate) revision: Arc<Queue>,
    pub(crate) route: Arc<Queue>,
    pub(crate) labeler: Arc<Queue>,
    pub(crate) serverless_service: Arc<Queue>,
    pub(crate) domain_mapping: Arc<Queue>,
    pub(crate) garbage: Arc<Queue>,
    pub(crate) ingress: Arc<Queue>,
    pub(crate) wildcard: Arc<Queue>,
    pub(crate) certificate: Arc<Queue>,
}

impl Queues {
    /// Asks for a look at everything.
    pub(crate) fn add_all(&self, caches: &Caches) {
        let all = |queues: &[&Arc<Queue>], keys: Vec<Key>| {
            for key in keys {
                queues.iter().for_each(|queue| queue.add(key.clone()));
            }
        };
        all(&[&self.service], caches.keys::<Service>());
        all(&[&self.configuration, &self.garbage], caches.keys::<Configuration>());
        all(&[&self.revision], caches.keys::<Revision>());
        all(&[&self.route, &self.labeler], caches.keys::<Route>());
        all(&[&self.serverless_service], caches.keys::<ServerlessService>());
        all(&[&self.domain_mapping], caches.keys::<DomainMapping>());
        all(&[&self.ingress], caches.keys::<Ingress>());
        all(&[&self.wildcard], caches.keys::<Namespace>());
        all(&[&self.certificate], caches.keys::<Certificate>());
    }

    fn routes_to(&self, caches: &Caches, namespace: &str, kind: &str, name: &str) {
        for key in caches.keys_by::<Route>(namespace, TARGET, &format!("{kind}/{name}")) {
            self.route.add(key.clone());
            self.labeler.add(key);
        }
    }

    fn mappings_to(&self, caches: &Caches, namespace: &str, kind: &str, name: &str) {
        for key in caches.keys_by::<DomainMapping>(namespace, REFERENT, &format!("{kind}/{name}")) {
            self.domain_mapping.add(key);
        }
    }
}

/// A watch under way: it runs until it is dropped.
pub(crate) type Watch = BoxFuture<'static, ()>;

/// Begins a watch: with the finished caches, and with a sender that is dropped when the first listing is complete.
pub(crate) type Start = Box<dyn FnOnce(Client, Arc<Caches>, mpsc::Sender<()>) -> Watch + Send>;

/// Adds every kind to the caches and returns the watches that feed them, to be run with the finished caches.
pub(crate) fn register(caches: &mut Caches, queues: &Arc<Queues>) -> Vec<Start> {
    let mut watches: Vec<Start> = Vec::new();
    macro_rules! kind {
        ($kind:ty, $config:expr, $terms:expr, |$caches:ident, $queues:ident, $step:ident, $key:ident| $tell:expr) => {{
            let listening = queues.clone();
            let store = caches.add::<$kind>($terms, move |$caches, $step| {
                let $queues = &listening;
                let Some(object) = $step.after.as_ref().or($step.before.as_ref()) else { return };
                let $key = Key::of(object.as_ref());
                $tell
            });
            let config = $config;
            watches.push(Box::new(move |client, caches, listed| Box::pin(feed(client, config, store, caches, listed))));
        }};
    }
    let all = watcher::Config::default;

    kind!(Service, all(), no_terms, |caches, queues, _step, key| {
        queues.mappings_to(caches, &key.namespace, "Service", &key.name);
        queues.service.add(key);
    });
    kind!(Configuration, all(), |c| member_terms(&c.metadata), |caches, queues, step, key| {
        queues.routes_to(caches, &key.namespace, "Configuration", &key.name);
        for owner in owners(step, "Service", |o| &o.metadata) {
            queues.service.add(owner);
        }
        let pins = |c: &Configuration| {
            c.status.as_ref().map(|s| (s.latest_ready_revision_name.clone(), s.latest_created_revision_name.clone()))
        };
        if step.before.as_deref().and_then(pins) != step.after.as_deref().and_then(pins) {
            queues.garbage.add(key.clone());
        }
        queues.configuration.add(key);
    });
    kind!(
        Revision,
        all(),
        |r| {
            let mut terms = member_terms(&r.metadata);
            terms.extend(label_term(&r.metadata, serving::CONFIGURATION));
            terms
        },
        |caches, queues, step, key| {
            queues.routes_to(caches, &key.namespace, "Revision", &key.name);
            // Only being routed to or not makes a Revision more or less collectable.
            let labels = |r: &Revision| r.metadata.labels.clone();
            let collectable = step.before.as_deref().map(labels) != step.after.as_deref().map(labels);
            for owner in owners(step, "Configuration", |o| &o.metadata) {
                queues.routes_to(caches, &owner.namespace, "Configuration", &owner.name);
                if collectable {
                    queues.garbage.add(owner.clone());
                }
                queues.configuration.add(owner);
            }
            queues.revision.add(key);
        }
    );
    kind!(Route, all(), route_terms, |caches, queues, step, key| {
        queues.mappings_to(caches, &key.namespace, "Route", &key.name);
        for owner in owners(step, "Service", |o| &o.metadata) {
            queues.service.add(owner);
        }
        queues.labeler.add(key.clone());
        queues.route.add(key);
    });
    kind!(
        DomainMapping,
        all(),
        |m| {
            let references = std::iter::once(m.spec.reference.clone()).chain(domainmapping::references(m));
            references.map(|to| (REFERENT, format!("{}/{}", to.kind, to.name))).collect()
        },
        |_caches, queues, _step, key| queues.domain_mapping.add(key)
    );
    // Only what is made for Revisions carries the label.
    kind!(Deployment, all().labels(serving::REVISION_UID), no_terms, |_caches, queues, step, _key| {
        for owner in owners(step, "Revision", |o| &o.metadata) {
            queues.serverless_service.add(owner.clone());
            queues.revision.add(owner);
        }
    });
    kind!(PodAutoscaler, all(), no_terms, |_caches, queues, step, _key| {
        for owner in owners(step, "Revision", |o| &o.metadata) {
            queues.revision.add(owner);
        }
    });
    kind!(Image, all(), no_terms, |_caches, queues, step, _key| {
        // Only its absence matters.
        if step.after.is_none() {
            for owner in owners(step, "Revision", |o| &o.metadata) {
                queues.revision.add(owner);
            }
        }
    });
    kind!(
        Pod,
        all().labels(serving::REVISION_UID),
        |p| label_term(&p.metadata, serving::REVISION_UID).into_iter().collect(),
        |_caches, queues, step, key| {
            let pod = step.after.as_ref().or(step.before.as_ref());
            if let Some((_, revision)) = pod.and_then(|p| label_term(&p.metadata, serving::REVISION)) {
                queues.revision.add(Key::new(key.namespace, revision));
            }
        }
    );
    kind!(
        CoreService,
        all(),
        |s| label_term(&s.metadata, serving::ROUTE).into_iter().collect(),
        |caches, queues, step, key| {
            for owner in owners(step, "Route", |o| &o.metadata) {
                queues.route.add(owner);
            }
            for owner in owners(step, "ServerlessService", |o| &o.metadata) {
                queues.serverless_service.add(owner);
            }
            queues.mappings_to(caches, &key.namespace, "Service", &key.name);
        }
    );
    kind!(
        Endpoints,
        all(),
        |e| label_term(&e.metadata, serving::ROUTE).into_iter().collect(),
        |_caches, queues, step, _key| {
            for owner in owners(step, "Route", |o| &o.metadata) {
                queues.route.add(owner);
            }
            for owner in owners(step, "ServerlessService", |o| &o.metadata) {
                queues.serverless_service.add(owner);
            }
        }
    );
    kind!(
        EndpointSlice,
        all(),
        |s| label_term(&s.metadata, SLICE_SERVICE).into_iter().collect(),
        |caches, queues, step, key| {
            let slice = step.after.as_ref().or(step.before.as_ref());
            let Some((_, service)) = slice.and_then(|s| label_term(&s.metadata, SLICE_SERVICE)) else { return };
            if key.namespace == keys::config::NAMESPACE {
                // Whoever stands in for pods has changed, which concerns every revision.
                for sks in caches.keys::<ServerlessService>() {
                    queues.serverless_service.add(sks);
                }
            }
            let service = caches.get::<CoreService>(&key.namespace, &service);
            if let Some(owner) = service.and_then(|service| owner_of(&service.metadata, "ServerlessService")) {
                queues.serverless_service.add(Key::new(key.namespace, owner));
            }
        }
    );
    kind!(ServerlessService, all(), no_terms, |_caches, queues, _step, key| queues.serverless_service.add(key));
    kind!(Ingress, all(), no_terms, |_caches, queues, step, key| {
        for owner in owners(step, "Route", |o| &o.metadata) {
            queues.route.add(owner);
        }
        for owner in owners(step, "DomainMapping", |o| &o.metadata) {
            queues.domain_mapping.add(owner);
        }
        queues.ingress.add(key);
    });
    kind!(
        Certificate,
        all(),
        |c| label_term(&c.metadata, serving::ROUTE).into_iter().collect(),
        |caches, queues, step, key| {
            for owner in owners(step, "Route", |o| &o.metadata) {
                queues.route.add(owner);
            }
            for owner in owners(step, "DomainMapping", |o| &o.metadata) {
                queues.domain_mapping.add(owner);
            }
            // One of the whole namespace concerns every Route in it, and the sidecars of every Revision.
            for owner in owners(step, "Namespace", |o| &o.metadata) {
                queues.wildcard.add(Key::new("", owner.name));
                for route in caches.keys::<Route>().into_iter().filter(|route| route.namespace == key.namespace) {
                    queues.route.add(route);
                }
                for revision in caches.keys::<Revision>().into_iter().filter(|r| r.namespace == key.namespace) {
                    queues.revision.add(revision);
                }
            }
            queues.certificate.add(key);
        }
    );
    // Certificates, and orders for them; no other Secret is watched.
    kind!(Secret, all().labels(networking::CERTIFICATE_UID), no_terms, |_caches, queues, step, _key| {
        for owner in owners(step, "Certificate", |o| &o.metadata) {
            queues.certificate.add(owner);
        }
        let secret = step.after.as_ref().or(step.before.as_ref());
        if let Some(certificate) = secret.and_then(|secret| certificate_of(&secret.metadata)) {
            queues.certificate.add(certificate);
        }
    });
    kind!(Namespace, all(), no_terms, |_caches, queues, _step, key| queues.wildcard.add(key));
    kind!(ClusterDomainClaim, all(), no_terms, |caches, queues, _step, key| {
        // Mappings of that host, whatever namespace they are in.
        for mapping in caches.keys::<DomainMapping>().into_iter().filter(|mapping| mapping.name == key.name) {
            queues.domain_mapping.add(mapping);
        }
    });
    watches
}

fn no_terms<K>(_: &K) -> Terms {
    Terms::new()
}

fn label_term(meta: &ObjectMeta, label: &'static str) -> Option<(&'static str, String)> {
    Some((label, meta.labels.as_ref()?.get(label)?.clone()))
}

/// The Routes that have marked an object.
fn member_terms(meta: &ObjectMeta) -> Terms {
    let routes = meta.annotations.as_ref().and_then(|a| a.get(serving::ROUTES));
    routes.into_iter().flat_map(|list| list.split(',')).map(|route| (serving::ROUTES, route.to_owned())).collect()
}

fn route_terms(route: &Route) -> Terms {
    let shown = route.status.iter().flat_map(|s| &s.traffic);
    let mut terms = BTreeSet::new();
    for target in route.spec.traffic.iter().chain(shown) {
        for (kind, name) in [("Revision", &target.revision_name), ("Configuration", &target.configuration_name)] {
            if !name.is_empty() {
                terms.insert((TARGET, format!("{kind}/{name}")));
            }
        }
    }
    terms.into_iter().collect()
}

fn owner_of(meta: &ObjectMeta, kind: &str) -> Option<String> {
    let owners = meta.owner_references.iter().flatten();
    owners.filter(|o| o.controller == Some(true) && o.kind == kind).map(|o| o.name.clone()).next()
}

/// The controllers of an object of this kind, before and after.
fn owners<K: Cached>(step: &Step<K>, kind: &str, meta: fn(&K) -> &ObjectMeta) -> BTreeSet<Key> {
    let objects = step.before.iter().chain(&step.after);
    objects
        .filter_map(|object| {
            let meta = meta(object);
            Some(Key::new(meta.namespace.clone().unwrap_or_default(), owner_of(meta, kind)?))
        })
        .collect()
}

/// Keeps one index in step with the API.
async fn feed<K: Cached + Debug>(
    client: Client,
    config: watcher::Config,
    store: Arc<Store<K>>,
    caches: Arc<Caches>,
    listed: mpsc::Sender<()>,
) {
    let mut listed = Some(listed);
    let mut events = pin!(watcher(Api::<K>::all(client), config).default_backoff());
    let mut listing = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(mut object)) => {
                slim(&mut object);
                let step = store.write(|index| index.apply(object));
                store.tell(&caches, step);
            }
            Ok(Event::Delete(object)) => {
                let step = store.write(|index| index.delete(&object));
                store.tell(&caches, step);
            }
            Ok(Event::Init) => {
                listing.clear();
                store.write(|index| index.begin_listing());
            }
            Ok(Event::InitApply(mut object)) => {
                slim(&mut object);
                listing.push(object);
            }
            Ok(Event::InitDone) => {
                let steps = store.write(|index| index.end_listing(std::mem::take(&mut listing)));
                store.tell(&caches, steps);
                // Dropping the sender is the sign.
                listed.take();
            }
            Err(error) => warn!(kind = %K::kind(&()), %error, "watch failed; it is tried again"),
        }
    }
}

/// Who stands in for pods: the activators where there are any, else the gateway.
pub(crate) fn stand_ins(caches: &Caches, local_gateway: &Key) -> StandIns {
    const ACTIVATOR: &str = "activator-service";
    let slices = |namespace: &str, service: &str| caches.labelled::<EndpointSlice>(namespace, SLICE_SERVICE, service);
    let activators = StandIns::activators(&slices(keys::config::NAMESPACE, ACTIVATOR));
    if activators.addresses.is_empty() {
        return StandIns::gateway(&slices(&local_gateway.namespace, &local_gateway.name));
    }
    activators
}
