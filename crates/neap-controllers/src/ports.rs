//! What the controllers need of the outside. The roof plugs the implementations in.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use neap_logic::plan::ingress::Served;
use tokio::sync::Notify;

use crate::index::Key;

/// With what a registry may be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The pod's service account.
    pub service_account: String,
    /// Contents of the pull secrets that apply, each a docker configuration in JSON.
    pub docker_configs: Vec<String>,
}

/// Asks registries for digests.
pub trait DigestResolver: Send + Sync + 'static {
    /// `sha256:…` of an image, empty when it shall be used as it is written; or the registry's words. The
    /// caller bounds the time.
    fn resolve(&self, image: String, credentials: Credentials) -> BoxFuture<'static, Result<String, String>>;

    /// Longest pause before an image that could not be resolved is asked for again (D4.5).
    fn longest_pause(&self) -> Duration {
        Duration::from_secs(1000)
    }
}

/// Knows what the gateway serves.
pub trait GatewayStatus: Send + Sync + 'static {
    /// What the gateway says about an Ingress.
    fn served(&self, ingress: &Key) -> Served;

    /// Resolves with the Ingresses about which it says something else than before. Dropping the future loses
    /// nothing.
    fn changed(&self) -> BoxFuture<'_, Vec<Key>>;
}

/// What a gateway in this process serves, kept where the gateway writes and the controllers read. There are
/// never more entries than Ingresses.
#[derive(Debug, Default)]
pub struct ServedBoard {
    state: Mutex<Board>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Board {
    served: HashMap<Key, Served>,
    changed: BTreeSet<Key>,
}

impl ServedBoard {
    /// The gateway serves this now.
    pub fn set(&self, ingress: Key, served: Served) {
        let mut board = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if board.served.get(&ingress) == Some(&served) {
            return;
        }
        board.served.insert(ingress.clone(), served);
        board.changed.insert(ingress);
        drop(board);
        self.notify.notify_one();
    }

    /// The gateway no longer knows an Ingress.
    pub fn remove(&self, ingress: &Key) {
        let mut board = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if board.served.remove(ingress).is_some() {
            board.changed.insert(ingress.clone());
            drop(board);
            self.notify.notify_one();
        }
    }

    async fn next_changes(&self) -> Vec<Key> {
        loop {
            let taken = std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).changed);
            if !taken.is_empty() {
                return taken.into_iter().collect();
            }
            // A change made after the look above has left its permit here.
            self.notify.notified().await;
        }
    }
}

impl GatewayStatus for ServedBoard {
    fn served(&self, ingress: &Key) -> Served {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).served.get(ingress).cloned().unwrap_or_default()
    }

    fn changed(&self) -> BoxFuture<'_, Vec<Key>> {
        Box::pin(self.next_changes())
    }
}
