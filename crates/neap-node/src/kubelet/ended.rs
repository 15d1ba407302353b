//! Pods that have ended and that nobody takes away: so many are kept for whoever looks what became of them, and the
//! oldest go. What a cluster's pod garbage collector does, with a bound that fits one machine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use neap_runtime::pod::PodId;

use super::sources::Key;

/// Ended pods that are kept. Kubernetes keeps 12500 (`--terminated-pod-gc-threshold`) on up to 5000 machines; each costs
/// an object, a record and its logs.
pub(super) const KEPT: usize = 500;

/// By age, the oldest first.
#[derive(Default)]
pub(super) struct Ended(BTreeMap<(Option<Timestamp>, PodId), Key>);

impl Ended {
    pub(super) fn note(&mut self, pod: &Pod) {
        let age = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let id = PodId(pod.uid().unwrap_or_default());
        self.0.insert((age, id), (pod.namespace().unwrap_or_default(), pod.name_any()));
    }

    pub(super) fn forget(&mut self, id: &PodId) {
        self.0.retain(|(_, ended), _| ended != id);
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &PodId> {
        self.0.keys().map(|(_, id)| id)
    }

    /// Takes out those that are too many.
    pub(super) fn surplus(&mut self, keep: usize) -> Vec<(PodId, Key)> {
        let many = self.0.len().saturating_sub(keep);
        (0..many).filter_map(|_| self.0.pop_first()).map(|((_, id), key)| (id, key)).collect()
    }
}

/// Removes one at once. What fails is tried again when the next pod ends, or after a restart.
pub(super) async fn remove(client: Client, (id, (namespace, name)): (PodId, Key)) {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(id.0), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    match Api::<Pod>::namespaced(client, &namespace).delete(&name, &parameters).await {
        Ok(_) => tracing::info!(pod = name, namespace, "removed a pod that ended long ago: there are too many"),
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => {}
        Err(error) => tracing::warn!(pod = name, namespace, %error, "a pod that ended long ago cannot be removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_go_first() {
        let mut ended = Ended::default();
        for (uid, at) in [("b", 20), ("c", 30), ("a", 10), ("b", 20)] {
            let created = format!("2026-01-01T00:00:{at}Z");
            let pod = json!({"metadata": {"name": uid, "namespace": "n", "uid": uid, "creationTimestamp": created}});
            ended.note(&serde_json::from_value(pod).unwrap());
        }
        let mut check = |keep: usize, want: &[&str]| {
            let gone: Vec<String> = ended.surplus(keep).into_iter().map(|(id, _)| id.0).collect();
            assert_eq!(gone, want, "{keep}");
        };
        check(3, &[]);
        check(2, &["a"]);
        check(2, &[]);
        ended.forget(&PodId("b".into()));
        assert_eq!(ended.ids().map(|id| id.0.as_str()).collect::<Vec<_>>(), ["c"]);
    }
}
