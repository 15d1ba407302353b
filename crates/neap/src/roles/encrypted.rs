//! The certificate of the activator where traffic inside the cluster is encrypted (`system-internal-tls`): read at the start,
//! and followed while it is renewed.

use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use neap_dataplane::activator::{SIDECAR_NAME, Tls};
use neap_proxy::tls::{CertifiedKey, ClientHello, ClientTls, ResolvesServerCert, certified_key};

/// The Secret that Knative's controllers keep filled.
const SECRET: &str = "routing-serving-certs";
const CONFIG: &str = "config-network";

/// What is shown to callers now.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Follows the Secret.
pub(super) struct Renewal {
    secrets: Api<Secret>,
    shown: Arc<Shown>,
    sidecars: ClientTls,
}

/// `None` when traffic is in the clear.
pub(super) async fn read(client: &Client, namespace: &str) -> Result<Option<(Tls, Renewal)>, String> {
    let config = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(CONFIG).await;
    let config = config.map_err(|e| format!("{CONFIG} in {namespace} cannot be read: {e}"))?;
    let data = config.and_then(|config| config.data).unwrap_or_default();
    let says = |key: &str, word: &str| data.get(key).is_some_and(|value| value.eq_ignore_ascii_case(word));
    if !says("system-internal-tls", "enabled") && !says("internal-encryption", "true") {
        return Ok(None);
    }
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let secret = secrets.get(SECRET).await.map_err(|e| {
        format!("system-internal-tls is enabled, but the Secret {SECRET} in {namespace} cannot be read: {e}")
    })?;
    let (pair, authorities) = parts(&secret)?;
    let sidecars = ClientTls::new(&authorities, SIDECAR_NAME).map_err(|e| format!("ca.crt in {SECRET}: {e}"))?;
    let shown = Arc::new(Shown(RwLock::new(pair)));
    let tls = Tls { certificates: shown.clone(), sidecars: sidecars.clone() };
    Ok(Some((tls, Renewal { secrets, shown, sidecars })))
}

impl Renewal {
    /// Runs for ever.
    pub(super) async fn run(self) {
        let only = watcher::Config::default().fields(&format!("metadata.name={SECRET}"));
        let mut changes = std::pin::pin!(watcher(self.secrets, only).default_backoff().applied_objects());
        while let Some(change) = changes.next().await {
            let renewed = match change {
                Ok(secret) => parts(&secret).and_then(|(pair, authorities)| {
                    self.sidecars.trust(&authorities).map_err(|e| format!("ca.crt in {SECRET}: {e}"))?;
                    *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
                    Ok(())
                }),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = renewed {
                tracing::warn!(why, "the certificate used before stays in use");
            }
        }
    }
}

fn parts(secret: &Secret) -> Result<(Arc<CertifiedKey>, Vec<u8>), String> {
    let field = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key)).filter(|value| !value.0.is_empty());
        value.map(|value| value.0.clone()).ok_or_else(|| format!("{key} is missing in the Secret {SECRET}"))
    };
    let pair = certified_key(&field("tls.crt")?, &field("tls.key")?);
    Ok((pair.map_err(|e| format!("the Secret {SECRET} cannot be used: {e}"))?, field("ca.crt")?))
}
