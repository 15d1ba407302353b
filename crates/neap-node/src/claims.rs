//! PersistentVolumeClaims: on one machine each is a directory that the kubelet makes, so a claim is bound as soon as it
//! is seen. Before that it is protected: its object stays until its data is gone, or a crash in between would leave data
//! that nobody knows of.

use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes};

/// Kubernetes' own name for it: whoever applies what a cluster has shown brings it along.
pub(crate) const PROTECTION: &str = "kubernetes.io/pvc-protection";

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
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            let (name, as_is) = (claim.name_any(), PatchParams::default());
            let written = async {
                if let Some(patch) = protected(&claim) {
                    api.patch(&name, &as_is, &Patch::Merge(patch)).await?;
                }
                if let Some(status) = bound(&claim) {
                    api.patch_status(&name, &as_is, &Patch::Merge(json!({ "status": status }))).await?;
                }
                Ok(())
            };
            match written.await {
                Ok(()) => {}
                // Somebody was faster: what it is now is seen next.
                Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => {}
                Err(error) => tracing::warn!(claim = name, %error, "a claim could not be bound"),
            }
        }
    }
}

/// What is changed about a claim that is not protected yet.
fn protected(claim: &PersistentVolumeClaim) -> Option<Value> {
    let finalizers = claim.finalizers();
    if claim.metadata.deletion_timestamp.is_some() || finalizers.iter().any(|one| one == PROTECTION) {
        return None;
    }
    let all: Vec<&str> = finalizers.iter().map(String::as_str).chain([PROTECTION]).collect();
    Some(json!({"metadata": {"finalizers": all, "resourceVersion": claim.resource_version()}}))
}

/// What is changed about a claim that need not be protected any more.
pub(crate) fn released(claim: &PersistentVolumeClaim) -> Option<Value> {
    let finalizers = claim.finalizers();
    let others: Vec<&str> = finalizers.iter().map(String::as_str).filter(|one| *one != PROTECTION).collect();
    (others.len() < finalizers.len())
        .then(|| json!({"metadata": {"finalizers": others, "resourceVersion": claim.resource_version()}}))
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

    #[test]
    fn a_claim_is_protected_once_and_keeps_what_others_wait_for() {
        let claim = |finalizers: Value| -> PersistentVolumeClaim {
            let metadata = json!({"name": "c", "resourceVersion": "7", "finalizers": finalizers});
            serde_json::from_value(json!({ "metadata": metadata })).expect("a claim")
        };
        let patch = |finalizers: Value| Some(json!({"metadata": {"finalizers": finalizers, "resourceVersion": "7"}}));
        assert_eq!(protected(&claim(json!(["a/b"]))), patch(json!(["a/b", PROTECTION])));
        assert_eq!(protected(&claim(json!([PROTECTION]))), None);
        assert_eq!(released(&claim(json!(["a/b", PROTECTION]))), patch(json!(["a/b"])));
        assert_eq!(released(&claim(json!([PROTECTION]))), patch(json!([])));
        assert_eq!(released(&claim(json!(["a/b"]))), None);
        let mut going = claim(json!([]));
        going.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-02T03:04:05Z")).expect("a time"));
        assert_eq!(protected(&going), None, "nobody may add to what is going");
    }

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
