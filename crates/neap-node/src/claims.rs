//! PersistentVolumeClaims: on one machine each is a directory that the kubelet makes, so a claim is bound as soon as it
//! is seen.

use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes};

/// Runs until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let mut claims = Box::pin(changes::<PersistentVolumeClaim>(Api::all(client.clone()), watcher::Config::default()));
    loop {
        let change = tokio::select! {
            () = shutdown.cancelled() => return,
            change = claims.next() => change,
        };
        let found = match change {
            None => return,
            Some(Change::Apply(claim)) => vec![claim],
            Some(Change::Reset(all)) => all,
            Some(Change::Delete(_)) => continue,
        };
        for claim in found {
            let Some(status) = bound(&claim) else { continue };
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            let patch = serde_json::json!({ "status": status });
            match api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(error)) if error.code == 404 => {}
                Err(error) => tracing::warn!(claim = %claim.name_any(), %error, "a claim could not be bound"),
            }
        }
    }
}

/// The status of a claim that is not bound yet.
fn bound(claim: &PersistentVolumeClaim) -> Option<PersistentVolumeClaimStatus> {
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    if phase == Some("Bound") || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = claim.spec.as_ref()?;
    let asked: Option<BTreeMap<String, Quantity>> = spec.resources.as_ref().and_then(|r| r.requests.clone());
    Some(PersistentVolumeClaimStatus {
        phase: Some("Bound".into()),
        access_modes: spec.access_modes.clone(),
        capacity: asked,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_bound_once() {
        let mut claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "c"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .expect("a claim");
        let status = bound(&claim).expect("a status");
        assert_eq!(status.capacity.as_ref().and_then(|c| c.get("storage")).map(|q| q.0.as_str()), Some("1Gi"));
        claim.status = Some(status);
        assert_eq!(bound(&claim), None);
    }
}
