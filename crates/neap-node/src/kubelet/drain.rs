//! The port to whoever sends requests to pods: a pod is stopped only after nothing is in flight to it any more.

use std::collections::BTreeMap;
use std::net::IpAddr;

use neap_runtime::pod::BoxFuture;
use tokio::time::Instant;

/// A pod that is about to be stopped, as the gateway knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub ip: Option<IpAddr>,
    /// Real ports by name where the pod shares the machine's network; empty otherwise.
    pub ports: BTreeMap<String, u16>,
}

pub trait Drain: Send + Sync + 'static {
    /// Resolves when no request is in flight to the pod and none will be sent, at the latest at `deadline`.
    fn drained(&self, pod: Leaving, deadline: Instant) -> BoxFuture<'_, ()>;
}

/// For machines where nobody can tell: pods are stopped at once.
pub struct NoDrain;

impl Drain for NoDrain {
    fn drained(&self, _pod: Leaving, _deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
