//! What the gateway says about Ingresses: which version of each is live.

use std::sync::Arc;

use neap_logic::routing::{Conflict, IngressKey};

use crate::snapshot::Shared;

/// All Ingresses the gateway serves. A value is published only after the snapshot it speaks of: what is in here is
/// what the next request gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IngressStatus {
    pub(crate) live: Shared<IngressKey, IngressState>,
}

/// One Ingress.
#[derive(Debug, Clone, PartialEq)]
pub struct IngressState {
    /// Its K-Network-Hash.
    pub hash: Arc<str>,
    /// `metadata.generation` of the version that is live.
    pub generation: i64,
    /// Hosts that another Ingress has (`DomainConflict`).
    pub conflicts: Vec<Conflict>,
    /// What of it cannot be routed, and why.
    pub problems: Vec<String>,
}

impl IngressStatus {
    /// The state of an Ingress; `None` while the gateway does not serve it.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&IngressState> {
        self.live.get(&IngressKey::new(namespace, name))
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&IngressKey, &IngressState)> {
        self.live.iter()
    }
}
