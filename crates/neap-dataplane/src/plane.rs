//! The data plane's shared state: indexes go in, snapshots come out.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use neap_api::networking::Ingress;
use neap_api::serving::Revision;
use neap_logic::routing::{IngressKey, RevisionKey, SecretRef};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::activator::backends::Backends;
use crate::gate::{Gate, Suspensions};
use crate::index::{Dirty, Indexes, key_of};
use crate::snapshot::{ServiceKey, Snapshot};
use crate::stats::Stat;
use crate::status::IngressStatus;

/// Wake-ups that may be on their way to the autoscaler. One more is not lost: a Revision asks again while requests
/// wait, and the next collection of statistics tells it too.
const WAKES: usize = 1024;

/// Where a Revision without instances asks for one.
#[derive(Debug, Clone)]
pub struct Wakes {
    sender: mpsc::Sender<RevisionKey>,
    /// The other thing a gate has somebody else look after.
    pub(crate) suspended: Suspensions,
}

impl Wakes {
    pub(crate) fn new() -> (Self, mpsc::Receiver<RevisionKey>) {
        let (sender, receiver) = mpsc::channel(WAKES);
        (Self { sender, suspended: Suspensions::default() }, receiver)
    }

    pub(crate) fn send(&self, revision: &RevisionKey) {
        if let Err(error) = self.sender.try_send(revision.clone()) {
            tracing::debug!(%revision, error = &error as &dyn std::error::Error, "wake-up not delivered");
        }
    }
}

/// Shared by watches, gateways, the autoscaler's port and the kubelet. One exists per process.
pub struct DataPlane {
    indexes: Mutex<Indexes>,
    suspended: Suspensions,
    snapshots: Arc<ArcSwap<Snapshot>>,
    /// Counts snapshots, for those who wait for one.
    published: watch::Sender<u64>,
    status: watch::Sender<IngressStatus>,
}

/// One event of a watch. `Reset` replaces all objects of the kind, as after a new list.
#[derive(Debug, Clone)]
pub enum Feed<K> {
    /// New or changed.
    Apply(K),
    /// Gone.
    Delete(K),
    /// These are all there are.
    Reset(Vec<K>),
}

/// A kind the indexes take.
pub(crate) trait Indexed: Sized {
    type Key: Eq + std::hash::Hash;
    fn key(&self) -> Self::Key;
    fn keys(indexes: &Indexes) -> Vec<Self::Key>;
    fn apply(&self, indexes: &mut Indexes, now: Instant) -> Dirty;
    fn delete(key: &Self::Key, indexes: &mut Indexes, now: Instant) -> Dirty;
}

impl DataPlane {
    /// An empty data plane for Ingresses of one class, and the wake-ups it sends.
    pub fn new(ingress_class: &str) -> (Arc<Self>, mpsc::Receiver<RevisionKey>) {
        let (wakes, woken) = Wakes::new();
        let suspended = wakes.suspended.clone();
        (Self::of(Indexes::new(ingress_class, wakes), suspended), woken)
    }

    /// The same for one of several gateways: those behind a Service of `namespace` that leads to the address `own` too.
    /// Instances with a `containerConcurrency` are shared out among them.
    pub fn among_others(ingress_class: &str, namespace: &str, own: IpAddr) -> (Arc<Self>, mpsc::Receiver<RevisionKey>) {
        let (wakes, woken) = Wakes::new();
        let suspended = wakes.suspended.clone();
        (Self::of(Indexes::new(ingress_class, wakes).with_peers(namespace, own), suspended), woken)
    }

    /// One without routes, whose instances have to prove themselves first.
    pub(crate) fn with_backends(backends: Arc<Backends>) -> (Arc<Self>, mpsc::Receiver<RevisionKey>) {
        let (wakes, woken) = Wakes::new();
        let suspended = wakes.suspended.clone();
        (Self::of(Indexes::new("", wakes).with_backends(backends), suspended), woken)
    }

    fn of(indexes: Indexes, suspended: Suspensions) -> Arc<Self> {
        let plane = Self {
            indexes: Mutex::new(indexes),
            suspended,
            snapshots: Arc::default(),
            published: watch::Sender::new(0),
            status: watch::Sender::default(),
        };
        Arc::new(plane)
    }

    /// Which version of each Ingress is live.
    pub fn ingress_status(&self) -> watch::Receiver<IngressStatus> {
        self.status.subscribe()
    }

    /// Whether an Ingress names this host.
    pub fn serves(&self, host: &str) -> bool {
        self.snapshots.load().routes.host(host).is_some()
    }

    /// What happened at each Revision since the last call; one caller only, for collecting resets.
    pub fn collect(&self, now: Instant) -> Vec<Stat> {
        self.snapshot().revisions.values().filter_map(|gate| gate.collect(now)).collect()
    }

    pub(crate) fn snapshots(&self) -> Arc<ArcSwap<Snapshot>> {
        self.snapshots.clone()
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.load_full()
    }

    pub(crate) fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Tries instances again that refused connections; to be called by one worker's sweep.
    pub(crate) fn readmit(&self, now: Instant) {
        self.suspended.sweep(now);
    }

    pub(crate) fn gates(&self) -> Vec<Arc<Gate>> {
        self.lock().gates()
    }

    /// Takes in one event and publishes what it changed before it returns.
    #[expect(private_bounds, reason = "the kinds are a closed list, spelled below")]
    pub fn feed<K: Indexed>(&self, feed: Feed<K>, now: Instant) {
        let mut indexes = self.lock();
        let dirty = match feed {
            Feed::Apply(object) => object.apply(&mut indexes, now),
            Feed::Delete(object) => K::delete(&object.key(), &mut indexes, now),
            Feed::Reset(all) => {
                let present: HashSet<K::Key> = all.iter().map(K::key).collect();
                let mut dirty = Dirty::default();
                for key in K::keys(&indexes).iter().filter(|key| !present.contains(key)) {
                    dirty = dirty.and(K::delete(key, &mut indexes, now));
                }
                all.iter().fold(dirty, |dirty, object| dirty.and(object.apply(&mut indexes, now)))
            }
        };
        // Under the lock, so that snapshots are published in the order they were made.
        if dirty.snapshot {
            self.snapshots.store(Arc::new(indexes.snapshot()));
            self.published.send_modify(|count| *count += 1);
        }
        if dirty.status {
            self.status.send_replace(indexes.status());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Indexes> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Indexed for Ingress {
    type Key = IngressKey;

    fn key(&self) -> IngressKey {
        let (namespace, name) = key_of(&self.metadata);
        IngressKey::new(namespace, name)
    }

    fn keys(indexes: &Indexes) -> Vec<IngressKey> {
        indexes.ingresses()
    }

    fn apply(&self, indexes: &mut Indexes, _now: Instant) -> Dirty {
        indexes.apply_ingress(self)
    }

    fn delete(key: &IngressKey, indexes: &mut Indexes, _now: Instant) -> Dirty {
        indexes.delete_ingress(key)
    }
}

impl Indexed for Revision {
    type Key = RevisionKey;

    fn key(&self) -> RevisionKey {
        let (namespace, name) = key_of(&self.metadata);
        RevisionKey::new(namespace, name)
    }

    fn keys(indexes: &Indexes) -> Vec<RevisionKey> {
        indexes.revisions()
    }

    fn apply(&self, indexes: &mut Indexes, now: Instant) -> Dirty {
        indexes.apply_revision(self, now)
    }

    fn delete(key: &RevisionKey, indexes: &mut Indexes, now: Instant) -> Dirty {
        indexes.delete_revision(key, now)
    }
}

impl Indexed for EndpointSlice {
    type Key = (Arc<str>, Arc<str>);

    fn key(&self) -> Self::Key {
        let (namespace, name) = key_of(&self.metadata);
        (namespace.into(), name.into())
    }

    fn keys(indexes: &Indexes) -> Vec<Self::Key> {
        indexes.slices()
    }

    fn apply(&self, indexes: &mut Indexes, now: Instant) -> Dirty {
        indexes.apply_slice(self, now)
    }

    fn delete((namespace, name): &Self::Key, indexes: &mut Indexes, now: Instant) -> Dirty {
        indexes.delete_slice(namespace, name, now)
    }
}

impl Indexed for Service {
    type Key = ServiceKey;

    fn key(&self) -> ServiceKey {
        let (namespace, name) = key_of(&self.metadata);
        ServiceKey { namespace: namespace.into(), name: name.into() }
    }

    fn keys(indexes: &Indexes) -> Vec<ServiceKey> {
        indexes.services()
    }

    fn apply(&self, indexes: &mut Indexes, now: Instant) -> Dirty {
        indexes.apply_service(self, now)
    }

    fn delete(key: &ServiceKey, indexes: &mut Indexes, now: Instant) -> Dirty {
        indexes.delete_service(key, now)
    }
}

impl Indexed for Secret {
    type Key = SecretRef;

    fn key(&self) -> SecretRef {
        let (namespace, name) = key_of(&self.metadata);
        SecretRef { namespace: namespace.into(), name: name.into() }
    }

    fn keys(indexes: &Indexes) -> Vec<SecretRef> {
        indexes.secrets()
    }

    fn apply(&self, indexes: &mut Indexes, _now: Instant) -> Dirty {
        indexes.apply_secret(self)
    }

    fn delete(key: &SecretRef, indexes: &mut Indexes, _now: Instant) -> Dirty {
        indexes.delete_secret(key)
    }
}
